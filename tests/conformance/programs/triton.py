"""tritonclient.grpc, synchronous, as its users write it. `triton.py ADDRESS [SESSION]` prints a line of JSON a call: its
name and result, or error."""

import contextlib
import json
import queue
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

CLIENT = triton.InferenceServerClient(sys.argv[1])
SESSION = {"dormouse-session": sys.argv[2] if len(sys.argv) > 2 else "triton"}


def say(call: str, run: Callable[[], Any]) -> None:
    try:
        answer = {"call": call, "result": run()}
    except InferenceServerException as error:
        answer = {"call": call, "error": error.message(), "code": error.status()}
    print(json.dumps(answer), flush=True)


def tensor(name: str, array: np.ndarray, datatype: str) -> triton.InferInput:
    return triton.InferInput(name, list(array.shape), datatype).set_data_from_numpy(array)


def double(**options: Any) -> Any:
    given = [tensor("x", np.array([[1, 2, 3, 4]], np.float32), "FP32")]
    return CLIENT.infer("double", given, **options).as_numpy("y").tolist()


def step(sequence: int | str, value: int, start: bool = False, end: bool = False, **options: Any) -> Any:
    given = [tensor("INPUT", np.array([[value]], np.int64), "INT64")]
    found = CLIENT.infer("sequence", given, sequence_id=sequence, sequence_start=start, sequence_end=end, **options)
    return [*found.as_numpy("OUTPUT")[0].tolist(), *found.as_numpy("ID")[0].tolist()]


def three(*names: str) -> Any:
    given = [tensor("x", np.array([[3, -1]], np.float32), "FP32")]
    wanted = [triton.InferRequestedOutput(name) for name in names] or None
    found = CLIENT.infer("three", given, outputs=wanted)
    return {output.name: found.as_numpy(output.name).tolist() for output in found.get_response().outputs}


def echo(name: str, array: np.ndarray, datatype: str) -> Any:
    return CLIENT.infer("echo", [tensor(name, array, datatype)]).as_numpy(f"{name}_out")


def half() -> Any:
    values = np.array([[1.123, 65504, -0.0, np.inf, np.nan]], np.float16)
    found = CLIENT.infer("half", [tensor("x", values, "FP16")])
    return [found.get_output("y").datatype, found.as_numpy("y").tobytes() == values.tobytes()]


def text() -> Any:
    values = np.array([b"", b"a\0b", b"\xff\xfe", "\U0001f400".encode(), b"x" * 70_000], np.object_)
    return echo("bytes", values, "BYTES").tolist() == values.tolist()


def brain() -> Any:
    """Every bit pattern there and back."""
    values = np.arange(65536, dtype=np.uint16).view(ml_dtypes.bfloat16)
    found = CLIENT.infer("echo", [tensor("bf16", values, "BF16")]).get_response()
    index = [output.name for output in found.outputs].index("bf16_out")
    return [found.outputs[index].datatype, found.raw_output_contents[index] == values.tobytes()]


def statistics() -> Any:
    plain("double", 4)  # a worker's figures are of its own life, and it may have slept
    found = CLIENT.get_inference_statistics("double", as_json=True)["model_stats"][0]
    return [found["name"], int(found["inference_count"]) >= 1, int(found["inference_stats"]["success"]["count"]) >= 1]


def asynchronous() -> Any:
    import queue

    answers: queue.Queue[Any] = queue.Queue()
    given = [tensor("x", np.array([[1, 2, 3, 4]], np.float32), "FP32")]
    CLIENT.async_infer("double", given, lambda result, error: answers.put(error or result.as_numpy("y").tolist()))
    return answers.get(timeout=60)


# ------------------------------------------------------------------------------------------------------------------------- streams


class Stream:
    """Requests as they are sent, answers as they come to the callback."""

    def __init__(self) -> None:
        self._answers: queue.Queue[tuple[Any, Any]] = queue.Queue()

    def callback(self, result: Any, error: Any) -> None:
        self._answers.put((result, error))

    def send(self, model: str, name: str, array: np.ndarray, datatype: str, ident: str = "", **options: Any) -> None:
        CLIENT.async_stream_infer(model, [tensor(name, array, datatype)], request_id=ident, **options)

    def step(self, sequence: int, value: int, ident: str, **options: Any) -> None:
        self.send("sequence", "INPUT", np.array([[value]], np.int64), "INT64", ident, sequence_id=sequence, **options)

    def double(self, ident: str) -> None:
        self.send("double", "x", np.array([[1, 2, 3, 4]], np.float32), "FP32", ident)

    def answer(self, output: str = "OUTPUT") -> list[Any]:
        """[id, the first number of `output`]. An error with a status is raised, one that came in the stream is its text alone."""
        result, error = self._answers.get(timeout=60)
        if error is not None:
            if error.status() is not None:
                raise error
            return [error.message()]
        return [result.get_response().id, result.as_numpy(output).flatten()[0].item()]


@contextlib.contextmanager
def stream(**options: Any) -> Iterator[Stream]:
    opened = Stream()
    CLIENT.start_stream(opened.callback, **options)
    try:
        yield opened
    finally:
        CLIENT.stop_stream(cancel_requests=True)


def streamed(**options: Any) -> Any:
    with stream(**options) as opened:
        opened.double("an id")
        return opened.answer("y")


def streamed_sequence(sequence: int) -> Any:
    with stream() as opened:
        opened.step(sequence, 5, "a", sequence_start=True)
        opened.step(sequence, 1, "b")
        opened.step(sequence, 1, "c", sequence_end=True)
        return [opened.answer() for _ in range(3)]


def many_streamed() -> Any:
    """50 sequences of three steps, nothing waited for; each comes back in its own order."""
    sequences = range(2000, 2050)
    found: dict[str, list[int]] = {}
    with stream() as opened:
        for turn in range(3):
            for sequence in sequences:
                opened.step(sequence, sequence if turn == 0 else 1, f"{sequence}", sequence_start=turn == 0, sequence_end=turn == 2)
        for _ in range(3 * len(sequences)):
            ident, value = opened.answer()
            found.setdefault(ident, []).append(value)
    return found == {f"{sequence}": [sequence, sequence + 1, sequence + 2] for sequence in sequences}


def streamed_error(**options: Any) -> Any:
    """And the stream goes on."""
    with stream(**options) as opened:
        opened.step(1, 1, "lost")
        found = opened.answer()
        opened.double("next")
        return found + opened.answer("y")


def streamed_to_nobody() -> Any:
    with stream() as opened:
        opened.send("none", "x", np.ones((1, 1), np.float32), "FP32")
        return opened.answer()


def streamed_late() -> Any:
    with stream(stream_timeout=1.5) as opened:
        opened.send("sleepy", "seconds", np.array([3], np.float32), "FP32")
        return opened.answer("slept")


def streamed_too_large() -> Any:
    with stream() as opened:
        opened.send("double", "x", np.zeros((1, 17 << 18), np.float32), "FP32")
        return opened.answer("y")


def stopped() -> Any:
    """A stream that waits for a step of three seconds stops at once."""
    with stream() as opened:
        opened.send("sleepy", "seconds", np.array([3], np.float32), "FP32")
        time.sleep(0.2)
        began = time.monotonic()
        CLIENT.stop_stream(cancel_requests=True)
        return time.monotonic() - began < 2


def plain(model: str, width: int = 1, **options: Any) -> Any:
    return CLIENT.infer(model, [tensor("x", np.ones((1, width), np.float32), "FP32")], **options).get_response().id


say("server live", CLIENT.is_server_live)
say("server ready", CLIENT.is_server_ready)
say("model ready", lambda: CLIENT.is_model_ready("double"))
say("server metadata", lambda: CLIENT.get_server_metadata().name)
say("model metadata", lambda: [(t.name, t.datatype, list(t.shape)) for t in CLIENT.get_model_metadata("double").inputs])
say("model config", lambda: CLIENT.get_model_config("double").config.max_batch_size)
say("infer", double)
say("infer gzip", lambda: double(compression_algorithm="gzip"))
say("infer deflate", lambda: double(compression_algorithm="deflate"))
say("infer async", asynchronous)
say("statistics", statistics)
say("index", lambda: [m.state for m in CLIENT.get_model_repository_index(headers={"dormouse-function": "default/double"}).models])
say("index of all", lambda: len(CLIENT.get_model_repository_index().models))
say("outputs all", three)
say("outputs chosen", lambda: three("c", "a"))
say("outputs unknown", lambda: three("nope"))
say("FP16", half)
say("BF16", brain)
say("BYTES", text)
say("empty", lambda: list(echo("int64", np.zeros(0, np.int64), "INT64").shape))
say("sequence start", lambda: step(7, 5, start=True))
say("sequence go on", lambda: step(7, 1))
say("sequence gzip", lambda: step(7, 1, compression_algorithm="gzip"))
say("sequence end", lambda: step(7, 1, end=True))
say("sequence unknown", lambda: step(7, 1))
say("sequence of a text where numbers are wanted", lambda: step("seven", 1, start=True))
say("session by header", lambda: [
    CLIENT.infer("counter", [tensor("x", np.ones((1, 1), np.float32), "FP32")], headers=SESSION).as_numpy("y").tolist() for _ in range(3)
][-1])  # fmt: skip
say("stateful without a session", lambda: CLIENT.infer("counter", [tensor("x", np.ones((1, 1), np.float32), "FP32")]).get_response().id)
say("unknown model", lambda: CLIENT.infer("none", [tensor("x", np.ones((1, 1), np.float32), "FP32")]).get_response().id)
say("wrong shape", lambda: CLIENT.infer("double", [tensor("x", np.ones((1, 5), np.float32), "FP32")]).get_response().id)
say("timeout", lambda: CLIENT.infer("sleepy", [tensor("seconds", np.array([2], np.float32), "FP32")], client_timeout=0.2).as_numpy("slept"))
say("load", lambda: CLIENT.load_model("double"))
say("unload", lambda: CLIENT.unload_model("double"))
say("shared memory", lambda: CLIENT.register_system_shared_memory("a", "/a", 8))
say("trace settings", lambda: CLIENT.update_trace_settings("double", {}))
say("log settings", lambda: CLIENT.update_log_settings({}))
say("session id too long", lambda: plain("counter", sequence_id="x" * 129, sequence_start=True))
say("stopped", lambda: plain("stopped"))
say("hold expired", lambda: plain("stuck"))
say("too large", lambda: plain("double", 17 << 18))
say("stream", streamed)
say("stream gzip", lambda: streamed(compression_algorithm="gzip"))
say("stream deflate", lambda: streamed(compression_algorithm="deflate"))
say("stream sequence", lambda: streamed_sequence(8))
say("stream of 50 sequences", many_streamed)
say("stream error", streamed_error)
say("stream unknown model", streamed_to_nobody)
say("stream error as status", lambda: streamed_error(headers={"triton_grpc_error": "true"}))
say("stream timeout", streamed_late)
say("stream too large", streamed_too_large)
say("stream stopped", stopped)
