"""tritonclient.grpc, synchronous, as its users write it. `triton.py ADDRESS` prints a line of JSON a call: call and result, or error."""

import json
import sys
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

CLIENT = triton.InferenceServerClient(sys.argv[1])
SESSION = {"dormouse-session": "triton"}


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
    found = CLIENT.get_inference_statistics("double", as_json=True)["model_stats"][0]
    return [found["name"], int(found["inference_count"]) >= 1, int(found["inference_stats"]["success"]["count"]) >= 1]


def asynchronous() -> Any:
    import queue

    answers: queue.Queue[Any] = queue.Queue()
    given = [tensor("x", np.array([[1, 2, 3, 4]], np.float32), "FP32")]
    CLIENT.async_infer("double", given, lambda result, error: answers.put(error or result.as_numpy("y").tolist()))
    return answers.get(timeout=20)


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
