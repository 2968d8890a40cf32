"""A real worker on its own: what callers are told, stateless."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from dormouse_proto import health_pb2, health_pb2_grpc, inference_pb2
from dormouse_testing import models
from dormouse_testing.workers import Client, WorkerProcess, outputs_of, request_of

INFER = "/inference.GRPCInferenceService/ModelInfer"


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    folder = tmp_path_factory.mktemp("worker")
    model = models.double(folder / "double.onnx")
    with WorkerProcess(folder, "--standalone", str(model), "--name", "double") as process:
        yield process


@pytest.fixture
def client(worker: WorkerProcess) -> Iterator[Client]:
    with worker.client() as found:
        yield found


def good() -> inference_pb2.ModelInferRequest:
    return request_of("double", x=np.arange(4, dtype=np.float32).reshape(1, 4))


def test_answers(client: Client) -> None:
    request = good()
    request.id = "an id"
    reply = client.infer(request)
    assert (reply.model_name, reply.model_version, reply.id) == ("double", "1", "an id")
    assert outputs_of(reply)["y"].tolist() == [[0, 2, 4, 6]]
    assert not reply.outputs[0].HasField("contents")


def test_many_at_once_each_get_their_own(client: Client) -> None:
    futures = []
    for n in range(300):
        request = request_of("double", x=np.full((1 + n % 5, 4), n, np.float32))
        request.id = str(n)
        futures.append(client.stub.ModelInfer.future(request, timeout=20))
    for n, future in enumerate(futures):
        reply = future.result()
        assert reply.id == str(n)
        assert np.array_equal(outputs_of(reply)["y"], np.full((1 + n % 5, 4), 2 * n, np.float32))


def change(**fields: Any) -> inference_pb2.ModelInferRequest:
    request = good()
    for name, value in fields.items():
        setattr(request, name, value)
    return request


def wrong_datatype() -> inference_pb2.ModelInferRequest:
    return request_of("double", x=np.zeros((1, 4), np.int64))


def doubled() -> inference_pb2.ModelInferRequest:
    request = good()
    request.inputs.append(request.inputs[0])
    request.raw_input_contents.append(request.raw_input_contents[0])
    return request


def mixed() -> inference_pb2.ModelInferRequest:
    request = good()
    request.inputs[0].contents.fp32_contents.extend([1, 2, 3, 4])
    return request


def short() -> inference_pb2.ModelInferRequest:
    request = good()
    request.raw_input_contents[0] = b"123"
    return request


def asked_for(*names: str) -> inference_pb2.ModelInferRequest:
    request = good()
    for name in names:
        request.outputs.add(name=name)
    return request


WRONG = {
    "datatype": (wrong_datatype(), ["'x'", "INT64", "FP32"]),
    "rank": (request_of("double", x=np.zeros(4, np.float32)), ["'x'", "[4]", "[-1,4]"]),
    "shape": (request_of("double", x=np.zeros((1, 5), np.float32)), ["'x'", "[1,5]", "[-1,4]"]),
    "missing": (request_of("double"), ["'x'", "missing"]),
    "unknown": (request_of("double", z=np.zeros((1, 4), np.float32)), ["'z'", "allowed are x"]),
    "doubled": (doubled(), ["'x'", "twice"]),
    "mixed": (mixed(), ["'x'", "typed contents beside raw"]),
    "raw length": (short(), ["x", "3 bytes", "16"]),
    "model": (change(model_name="other"), ["model_name", "'other'", "'double'"]),
    "version": (change(model_version="2"), ["model_version", "'2'"]),
    "unknown output": (asked_for("nope"), ["'nope'", "allowed are y"]),
    "doubled output": (asked_for("y", "y"), ["'y'", "twice"]),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_requests_are_told_what_is_wrong(client: Client, name: str) -> None:
    request, words = WRONG[name]
    with pytest.raises(grpc.RpcError) as raised:
        client.infer(request)
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert all(word in raised.value.details() for word in words), raised.value.details()
    assert client.infer(good()).raw_output_contents, "nothing else is harmed"


def test_a_wrong_call_does_not_harm_its_neighbours(client: Client) -> None:
    calls = [client.stub.ModelInfer.future(good() if n % 2 else short(), timeout=20) for n in range(200)]
    codes = [call.code() for call in calls]
    assert codes == [grpc.StatusCode.OK if n % 2 else grpc.StatusCode.INVALID_ARGUMENT for n in range(200)]


@pytest.mark.parametrize("body", [b"", b"\xff\xff\xff", b"\x0a\x05ab"])
def test_bytes_that_are_no_request(client: Client, body: bytes) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        client.channel.unary_unary(INFER)(body, timeout=10)
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_compressed_requests(client: Client, compression: grpc.Compression) -> None:
    reply = client.stub.ModelInfer(good(), compression=compression, timeout=10)
    assert outputs_of(reply)["y"].tolist() == [[0, 2, 4, 6]]


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
def test_a_message_above_the_limit(client: Client, compression: grpc.Compression) -> None:
    """Compressed, it is a few KiB on the wire: the limit holds for what it becomes."""
    request = good()
    request.raw_input_contents[0] = bytes(65 << 20)
    with pytest.raises(grpc.RpcError) as raised:
        client.stub.ModelInfer(request, compression=compression, timeout=60)
    assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "67108864" in raised.value.details()


def test_a_message_just_below_the_limit(client: Client) -> None:
    request = good()
    request.parameters["filler"].string_param = "x" * ((64 << 20) - 1000)
    assert client.infer(request).raw_output_contents


def test_many_short_deadlines_leave_nothing_behind(worker: WorkerProcess, client: Client) -> None:
    calls = [client.stub.ModelInfer.future(good(), timeout=0.001 + 0.001 * (n % 4)) for n in range(1000)]
    codes = {call.code() for call in calls}
    assert codes <= {grpc.StatusCode.OK, grpc.StatusCode.DEADLINE_EXCEEDED}
    limit = time.monotonic() + 30
    while metric(worker, "dormouse_worker_active_calls") and time.monotonic() < limit:
        time.sleep(0.05)
    assert metric(worker, "dormouse_worker_active_calls") == 0
    assert client.infer(good()).raw_output_contents


def test_cancelled_calls(client: Client) -> None:
    calls = [client.stub.ModelInfer.future(good(), timeout=20) for _ in range(200)]
    for call in calls[::2]:
        call.cancel()
    assert all(call.code() is grpc.StatusCode.OK for call in calls[1::2])


def test_metadata_methods(client: Client) -> None:
    metadata = client.stub.ModelMetadata(inference_pb2.ModelMetadataRequest(name="double"))
    assert (metadata.platform, list(metadata.versions)) == ("onnxruntime_onnx", ["1"])
    assert [(t.name, t.datatype, list(t.shape)) for t in metadata.inputs] == [("x", "FP32", [-1, 4])]
    config = client.stub.ModelConfig(inference_pb2.ModelConfigRequest(name="double")).config
    assert (config.max_batch_size, list(config.input[0].dims)) == (32, [4])
    assert client.stub.ServerLive(inference_pb2.ServerLiveRequest()).live
    assert client.stub.ModelReady(inference_pb2.ModelReadyRequest(name="double")).ready
    assert client.stub.ServerMetadata(inference_pb2.ServerMetadataRequest()).name == "dormouse"
    health = health_pb2_grpc.HealthStub(client.channel)
    assert health.Check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError) as raised:
        client.stub.ModelMetadata(inference_pb2.ModelMetadataRequest(name="other"))
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("method", ["RepositoryModelLoad", "TraceSetting", "SystemSharedMemoryRegister", "RepositoryIndex"])
def test_administration_is_refused(client: Client, method: str) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        client.channel.unary_unary(f"/inference.GRPCInferenceService/{method}")(b"", timeout=20)
    assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert method in raised.value.details()


def metric(worker: WorkerProcess, name: str) -> float:
    import urllib.request

    text = urllib.request.urlopen(f"http://{worker.address}/metrics", timeout=20).read().decode()
    return next(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name + " "))


def test_a_drain_loses_no_call(tmp_path: Path) -> None:
    """Calls in a closed loop while the worker is told to leave: every one that began is answered, or refused with `draining`."""
    model = models.double(tmp_path / "double.onnx")
    outcomes: list[str] = []
    with WorkerProcess(tmp_path, "--standalone", str(model), "--name", "double") as worker, worker.client() as client:
        stop = threading.Event()

        def call() -> None:
            while not stop.is_set():
                try:
                    client.infer(good(), timeout=30)
                    outcomes.append("ok")
                except grpc.RpcError as error:
                    again = dict(error.trailing_metadata() or ()) | dict(error.initial_metadata() or ())
                    if "failed to connect" not in str(error.details()):  # it has left: that call did not begin
                        outcomes.append(again.get("dormouse-again", str(error)))
                    return

        threads = [threading.Thread(target=call) for _ in range(4)]
        for thread in threads:
            thread.start()
        limit = time.monotonic() + 60
        while len(outcomes) <= 50:
            assert time.monotonic() < limit, outcomes
            time.sleep(0.01)
        stopper = threading.Timer(0.5, stop.set)
        stopper.start()
        assert worker.stop() == 0
        for thread in threads:
            thread.join()
    assert outcomes.count("ok") > 50
    assert set(outcomes) <= {"ok", "draining"}, set(outcomes)
