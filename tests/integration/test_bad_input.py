"""Bad input through the whole system: the right code, a text that names the field, what was found and what is allowed; and no harm done."""

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest
from dormouse.client import Client as PythonClient
from dormouse_core import limits
from dormouse_core.errors import Code, DormouseError
from dormouse_proto import inference_pb2, inference_pb2_grpc
from dormouse_testing import models
from dormouse_testing.streams_system import pid_of
from dormouse_testing.system import System, manifest
from dormouse_testing.workers import Client, outputs_of, request_of
from grpc import StatusCode

STATES = {"states": [{"input": "state", "output": "stateN", "shape": [-1, 4], "batchAxis": 0, "initial": "zeros"}]}
ROW = np.ones((1, 4), np.float32)

MOODY = {"runtime": "python", "model": {"uri": "file://moods"}, "handler": "moods:Moody", "sessions": {}}
HANDLER = """
import time
import dormouse
import numpy as np

class Moody(dormouse.Handler):
    inputs = [dormouse.Tensor("mood", "BYTES", [1])]
    outputs = [dormouse.Tensor("count", "INT64", [1]), dormouse.Tensor("text", "BYTES", [1])]
    states = [dormouse.State("seen", "INT64", [1])]

    def step(self, inputs, state, ctx):
        state["seen"] += 1
        mood = bytes(inputs["mood"].flat[0])
        if mood == b"raise":
            raise ValueError("no mood for this")
        while mood == b"hang":
            time.sleep(0.05)
        size = int(mood[4:]) if mood.startswith(b"say ") else 0
        return {"count": state["seen"].copy(), "text": np.array([bytes(size)], object)}
"""


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    folder = tmp_path_factory.mktemp("system")
    models.double(folder / "double.onnx")
    models.counter(folder / "counter.onnx")
    models.threshold(folder / "threshold.onnx")
    (folder / "broken.onnx").write_bytes(b"no model")
    (folder / "moods").mkdir()
    (folder / "moods" / "moods.py").write_text(HANDLER)
    awake = {"scaleToZeroAfter": "10m"}
    for name, spec in {
        "double": {"runtime": "onnx", "model": {"uri": "file://double.onnx"}},
        "threshold": {"runtime": "onnx", "model": {"uri": "file://threshold.onnx"}},
        "counter": {"runtime": "onnx", "model": {"uri": "file://counter.onnx"}, "sessions": STATES},
        "broken": {"runtime": "onnx", "model": {"uri": "file://broken.onnx"}},
        "absent": {"runtime": "onnx", "model": {"uri": "file://absent.onnx"}, "timeouts": {"hold": "5s"}},
        "moods": MOODY | {"timeouts": {"step": "3s"}},
        "talkative": MOODY,
    }.items():
        (folder / f"{name}.yaml").write_text(manifest(name, **spec, **awake))
    with System(folder) as running:
        for name in ("double", "threshold", "counter", "moods", "talkative"):
            running.wait_proved(name)
        yield running


@pytest.fixture
def client(system: System) -> Iterator[Client]:
    with system.client() as client:
        yield client


def counted(client: Client, session: str) -> np.ndarray:
    """One more step of the session: the sum of its rows so far."""
    return outputs_of(client.infer(request_of("counter", x=ROW), [("dormouse-session", session)]))["y"]


def refused(
    client: Client, request: inference_pb2.ModelInferRequest, code: StatusCode, *words: str, metadata: Any = (), timeout: float = 20.0
) -> str:
    with pytest.raises(grpc.RpcError) as caught:
        client.infer(request, metadata, timeout)
    assert caught.value.code() is code, caught.value.details()
    for word in words:
        assert word in (caught.value.details() or ""), caught.value.details()
    return str(caught.value.details())


def sequence(request: inference_pb2.ModelInferRequest, **parameters: Any) -> inference_pb2.ModelInferRequest:
    for name, value in parameters.items():
        kind = {bool: "bool_param", int: "int64_param", str: "string_param"}[type(value)]
        setattr(request.parameters[name], kind, value)
    return request


def broken_requests() -> dict[str, tuple[inference_pb2.ModelInferRequest, tuple[str, ...]]]:
    """What may be wrong in a message, and the words that the answer must have."""
    wrong_type = request_of("double", x=ROW.astype(np.int64))
    wrong_shape = request_of("double", x=np.ones((1, 5), np.float32))
    wrong_rank = request_of("double", x=np.ones(4, np.float32))
    missing = inference_pb2.ModelInferRequest(model_name="double")
    unknown = request_of("double", x=ROW, z=ROW)
    doubled = request_of("double", x=ROW)
    doubled.inputs.add().CopyFrom(doubled.inputs[0])
    doubled.raw_input_contents.append(doubled.raw_input_contents[0])
    mixed = request_of("double", x=ROW)
    mixed.inputs[0].contents.fp32_contents.extend([1, 1, 1, 1])
    short = request_of("double", x=ROW)
    short.raw_input_contents[0] = short.raw_input_contents[0][:-3]
    too_few = request_of("double", x=ROW)
    del too_few.raw_input_contents[:]
    negative = request_of("double", x=ROW)
    negative.inputs[0].shape[0] = -1
    no_such_type = request_of("double", x=ROW)
    no_such_type.inputs[0].datatype = "FLOAT"
    no_output = request_of("double", x=ROW)
    no_output.outputs.add(name="nope")
    twice = request_of("double", x=ROW)
    twice.outputs.add(name="y")
    twice.outputs.add(name="y")
    version = request_of("double", x=ROW)
    version.model_version = "7"
    scalar = request_of("threshold", x=ROW, t=np.ones(1, np.float32))
    return {
        "wrong datatype": (wrong_type, ("x", "INT64", "FP32")),
        "wrong shape": (wrong_shape, ("x", "5", "4")),
        "wrong rank": (wrong_rank, ("x", "[4]")),
        "missing input": (missing, ("x",)),
        "unknown input": (unknown, ("z", "x")),
        "doubled input": (doubled, ("x", "twice")),
        "typed and raw mixed": (mixed, ("x", "raw_input_contents")),
        "raw of the wrong length": (short, ("x", "13", "16")),
        "no contents at all": (too_few, ("x",)),
        "negative dimension": (negative, ("x", "-1")),
        "no such datatype": (no_such_type, ("x", "FLOAT")),
        "unknown output": (no_output, ("nope", "y")),
        "output asked for twice": (twice, ("y",)),
        "unknown version": (version, ("7", "1")),
        "a vector for a scalar": (scalar, ("t", "[1]", "[]")),
    }


@pytest.mark.parametrize("what", broken_requests())
def test_a_wrong_message_is_told_what_is_wrong(client: Client, what: str) -> None:
    request, words = broken_requests()[what]
    refused(client, request, StatusCode.INVALID_ARGUMENT, *words)
    np.testing.assert_array_equal(outputs_of(client.infer(request_of("double", x=ROW)))["y"], 2 * ROW)


def test_an_unknown_function_is_not_found(client: Client) -> None:
    refused(client, request_of("nobody", x=ROW), StatusCode.NOT_FOUND, "default/nobody")
    refused(client, request_of("", x=ROW), StatusCode.NOT_FOUND, "speech/nobody", metadata=[("dormouse-function", "speech/nobody")])


def test_a_message_above_the_limit_is_refused_with_the_limit(client: Client) -> None:
    large = request_of("double", x=np.ones((1_200_000, 4), np.float32))
    refused(client, large, StatusCode.RESOURCE_EXHAUSTED, "16")
    refused(client, large, StatusCode.RESOURCE_EXHAUSTED, "16", metadata=[("dormouse-function", "default/double")])
    both = [("dormouse-function", "default/counter"), ("dormouse-session", "large")]
    refused(client, large, StatusCode.RESOURCE_EXHAUSTED, f"limit of {limits.MESSAGE_BYTES} bytes", metadata=both)


def saying(size: int) -> inference_pb2.ModelInferRequest:
    return request_of("talkative", mood=np.array([b"say %d" % size], object))


@pytest.mark.parametrize("by", [grpc.Compression.NoCompression, grpc.Compression.Gzip], ids=["envoy", "relay"])
def test_large_replies(client: Client, system: System, by: grpc.Compression) -> None:
    """To the same limit on both ways, and what is beyond it is not committed: its caller would never get it."""
    session = [("dormouse-session", f"large-{by.name}")]

    def say(stub: Any, size: int) -> int:
        return int(outputs_of(stub.ModelInfer(saying(size), metadata=session, compression=by, timeout=60))["count"].flat[0])

    around = 500
    assert say(client.stub, limits.MESSAGE_BYTES - around) == 1
    with pytest.raises(grpc.RpcError) as caught:
        say(client.stub, limits.MESSAGE_BYTES)
    assert caught.value.code() is StatusCode.RESOURCE_EXHAUSTED
    assert (caught.value.details() or "").endswith(f"bytes found, at most {limits.MESSAGE_BYTES} are allowed (maxMessageBytes)")
    assert say(client.stub, 0) == 2, "the step that said too much did not count"
    with grpc.insecure_channel(system.address) as channel:
        plain = inference_pb2_grpc.GRPCInferenceServiceStub(channel)
        assert say(plain, limits.CLIENT_MESSAGE_BYTES - around) == 3
        with pytest.raises(grpc.RpcError) as caught:
            say(plain, limits.CLIENT_MESSAGE_BYTES)
        assert caught.value.code() is StatusCode.RESOURCE_EXHAUSTED
    assert say(client.stub, 0) == 5, "that is the client's own limit: the step counts"


def test_the_number_of_a_first_message_belongs_to_a_stream(client: Client) -> None:
    for given in ([("dormouse-session", "first")], [("dormouse-session", "first"), ("dormouse-function", "default/counter")]):
        metadata = [*given, ("dormouse-idempotency-key", "k"), ("dormouse-first-message", "0")]
        refused(client, request_of("counter", x=ROW), StatusCode.INVALID_ARGUMENT, "dormouse-first-message", "stream", metadata=metadata)


def test_names_of_sessions(client: Client) -> None:
    unsigned = request_of("counter", x=ROW)
    unsigned.parameters["sequence_id"].uint64_param = 7
    unsigned.parameters["sequence_start"].bool_param = True
    refused(client, unsigned, StatusCode.INVALID_ARGUMENT, "sequence_id", "uint64")
    long = sequence(request_of("counter", x=ROW), sequence_id="x" * 129, sequence_start=True)
    refused(client, long, StatusCode.INVALID_ARGUMENT, "sequence_id", "129", "128")
    metadata = [("dormouse-session", "x" * 129)]
    refused(client, request_of("counter", x=ROW), StatusCode.INVALID_ARGUMENT, "dormouse-session", "129", "128", metadata=metadata)
    refused(client, request_of("counter", x=ROW), StatusCode.INVALID_ARGUMENT, "counter", "correlation ID")


def test_a_step_without_start_is_told_in_tritons_words(client: Client) -> None:
    step = sequence(request_of("counter", x=ROW), sequence_id=4711)
    text = "inference request for sequence 4711 to model 'counter' must specify the START flag on the first request of the sequence"
    refused(client, step, StatusCode.INVALID_ARGUMENT, text)


def test_metadata_and_message_that_disagree(client: Client) -> None:
    step = sequence(request_of("counter", x=ROW), sequence_id="a", sequence_start=True)
    refused(client, step, StatusCode.INVALID_ARGUMENT, "dormouse-session", "sequence_id", metadata=[("dormouse-session", "b")])
    other = request_of("double", x=ROW)
    refused(client, other, StatusCode.INVALID_ARGUMENT, "double", "threshold", metadata=[("dormouse-function", "default/threshold")])
    twice = [("dormouse-session", "a"), ("dormouse-session", "b")]
    refused(client, request_of("counter", x=ROW), StatusCode.INVALID_ARGUMENT, "dormouse-session", metadata=twice)


def test_the_python_client_puts_keys_into_lower_case_and_contradictions_are_refused(system: System) -> None:
    """Case 1.O9. Not "the first one wins"."""
    one = {"x": np.ones((1, 4), np.float32)}
    with PythonClient(system.address) as client:
        for count in (1, 2):
            answer = client.infer("counter", one, metadata={"Dormouse-Session": "capitals"})
            assert (answer.step, answer.outputs["y"].tolist()) == (count, [[count] * 4])
        contradictions: list[dict[str, Any]] = [
            {"metadata": {"Dormouse-Session": "a", "dormouse-session": "b"}},
            {"session": "a", "metadata": {"Dormouse-Session": "b"}},
            {"sequence_id": "a", "start": True, "metadata": {"Dormouse-Session": "b"}},
            {"sequence_id": 7, "start": True, "metadata": {"Dormouse-Session": "8"}},
        ]
        for given in contradictions:
            with pytest.raises(DormouseError, match="dormouse-session") as refused:
                client.infer("counter", one, **given)
            assert refused.value.code is Code.INVALID_ARGUMENT
        assert client.infer("counter", one, metadata={"Dormouse-Session": "capitals"}).step == 3


def test_a_worker_takes_all_the_metadata_that_a_gateway_lets_through(client: Client) -> None:
    """Of the hops behind the gateway a worker's Envoy takes the least (case 11.O5)."""
    size = limits.METADATA_BYTES - 2048
    entry = limits.METADATA_ENTRY_BYTES + 8
    for number, metadata in enumerate(([("x-token", "t" * size)], [(f"x-{n:04d}", "bb") for n in range(size // entry)])):
        reply = client.infer(request_of("counter", x=ROW), [("dormouse-session", f"metadata-{number}"), *metadata])
        assert outputs_of(reply)["y"].any()


def test_an_idempotency_key_names_one_request(client: Client) -> None:
    metadata = [("dormouse-session", "keys"), ("dormouse-idempotency-key", "order-1")]
    first = client.infer(request_of("counter", x=ROW), metadata)
    again = client.infer(request_of("counter", x=ROW), metadata)
    assert outputs_of(first)["y"].tolist() == outputs_of(again)["y"].tolist() == [[1, 1, 1, 1]]
    refused(client, request_of("counter", x=2 * ROW), StatusCode.INVALID_ARGUMENT, "order-1", metadata=metadata)
    assert counted(client, "keys").tolist() == [[2, 2, 2, 2]]


def test_a_refused_step_changes_no_state(client: Client) -> None:
    assert counted(client, "steady").tolist() == [[1, 1, 1, 1]]
    for request, _ in broken_requests().values():
        request.model_name = "counter"
        with pytest.raises(grpc.RpcError):
            client.infer(request, [("dormouse-session", "steady")])
    assert counted(client, "steady").tolist() == [[2, 2, 2, 2]]


def test_a_handler_that_raises_and_one_that_never_returns(client: Client) -> None:
    def feel(text: bytes, session: str) -> int:
        request = request_of("moods", mood=np.array([text], object))
        return int(outputs_of(client.infer(request, [("dormouse-session", session)], 60))["count"].flat[0])

    assert feel(b"fine", "one") == 1
    raising = request_of("moods", mood=np.array([b"raise"], object))
    refused(client, raising, StatusCode.INTERNAL, "no mood for this", metadata=[("dormouse-session", "one")])
    assert feel(b"fine", "one") == 2, "a step that raised must not count"
    hanging = request_of("moods", mood=np.array([b"hang"], object))
    refused(client, hanging, StatusCode.DEADLINE_EXCEEDED, "longer than 3 s (timeouts.step)", metadata=[("dormouse-session", "two")])
    assert feel(b"fine", "one") == 3, "another session goes on, with its state"
    assert feel(b"fine", "two") == 1, "the step that hung did not count"


def test_a_model_that_does_not_load_and_one_that_is_not_there(client: Client, system: System) -> None:
    system.wait("broken", lambda s: s["phase"] == "Failed")
    text = refused(client, request_of("broken", x=ROW), StatusCode.FAILED_PRECONDITION, "broken")
    assert "broken.onnx" in text or "protobuf" in text.lower(), text
    system.wait("absent", lambda s: s["phase"] == "Failed")
    refused(client, request_of("absent", x=ROW), StatusCode.UNAVAILABLE, "absent.onnx", timeout=30)
    for name, reason in (("broken", "ModelInvalid"), ("absent", "ModelUnavailable")):
        system.wait(name, lambda s: reason in {c["reason"] for c in s["conditions"]})  # noqa: B023


def test_a_manifest_with_a_wrong_field_is_refused_with_the_field(system: System) -> None:
    for spec, words in (
        ({"runtime": "onnx", "model": {"uri": "file://double.onnx"}, "maxReplica": 3}, ("spec", "maxReplica")),
        ({"runtime": "tensorflow", "model": {"uri": "file://double.onnx"}}, ("spec.runtime", "tensorflow", "onnx")),
        ({"runtime": "onnx", "model": {"uri": "file://double.onnx"}, "maxReplicas": 0}, ("spec.maxReplicas", "0")),
        ({"runtime": "onnx"}, ("spec.model",)),
    ):
        done = system.run("apply", "-f", "-", stdin=manifest("wrong", **spec))
        assert done.returncode == 1
        for word in words:
            assert word in done.stderr, done.stderr
    assert system.run("get", "wrong").returncode == 1


def test_a_store_that_is_away_holds_steps_and_nothing_else(client: Client, system: System) -> None:
    """For longer than a request to it may take, and than a lease lasts. One of a session that the worker knows, and one of a new one."""
    assert counted(client, "away").tolist() == [[1, 1, 1, 1]]
    client.infer(request_of("double", x=ROW))

    def step(session: str) -> list[list[float]]:
        reply = client.infer(request_of("counter", x=ROW), [("dormouse-session", session)], timeout=60)
        found: list[list[float]] = outputs_of(reply)["y"].tolist()
        return found

    etcd = pid_of(system, "etcd")
    with ThreadPoolExecutor() as pool:
        os.kill(etcd, signal.SIGSTOP)
        try:
            held = [pool.submit(step, session) for session in ("away", "away-new")]
            end = time.monotonic() + 9
            while time.monotonic() < end:
                np.testing.assert_array_equal(outputs_of(client.infer(request_of("double", x=ROW)))["y"], 2 * ROW)
            held.append(pool.submit(step, "away-late"))
            assert not any(each.done() for each in held)
        finally:
            os.kill(etcd, signal.SIGCONT)
        assert [each.result() for each in held] == [[[2] * 4], [[1] * 4], [[1] * 4]], "each counts once"
