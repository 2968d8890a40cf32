"""What Triton's and KServe's clients ask besides inference, of the whole system and while functions sleep; and messages of every size."""

import queue
import threading
import time
from collections.abc import Iterator

import grpc
import numpy as np
import pytest
from conftest import unavailable
from dormouse_proto import health_pb2, health_pb2_grpc, inference_pb2, reflection_pb2
from dormouse_testing import models
from dormouse_testing.up import DOUBLE, TOTAL, Up, missing, row, save_models, system
from dormouse_testing.workers import Client, outputs_of, request_of

SERVICE = "/inference.GRPCInferenceService/"
BROKEN = DOUBLE.replace("name: double", "name: broken").replace("double.onnx", "broken.onnx")
BIG = DOUBLE.replace("name: double", "name: big").replace("double.onnx", "big.onnx")
Health = health_pb2.HealthCheckResponse


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    if reason := missing():
        unavailable(reason)
    folder = tmp_path_factory.mktemp("wire")
    save_models(folder)
    (folder / "broken.onnx").write_text("no model")
    models.identity(folder / "big.onnx", models.FLOAT, ["n", "m"])
    for name, text in (("double", DOUBLE), ("total", TOTAL), ("broken", BROKEN), ("big", BIG)):
        (folder / f"{name}.yaml").write_text(text)
    with system(folder, "--max-message", "64MiB") as started:
        started.wait_ready()
        for name in ("double", "total", "big"):
            started.until_phase(name, "Ready", "Asleep")
        started.until_phase("broken", "Failed")
        yield started


@pytest.fixture
def client(up: Up) -> Iterator[Client]:
    with Client(up.gateway) as found:
        yield found


def code_of(error: pytest.ExceptionInfo[grpc.RpcError]) -> tuple[grpc.StatusCode, str]:
    return error.value.code(), error.value.details()


def test_asleep_it_is_described_and_not_woken(up: Up, client: Client) -> None:
    up.until_phase("double", "Asleep")
    stub = client.stub
    health = health_pb2_grpc.HealthStub(client.channel)
    for _ in range(3):
        assert stub.ModelReady(inference_pb2.ModelReadyRequest(name="double")).ready
        metadata = stub.ModelMetadata(inference_pb2.ModelMetadataRequest(name="double"))
        assert [(t.name, t.datatype, list(t.shape)) for t in metadata.inputs] == [("x", "FP32", [-1, 4])]
        assert stub.ModelConfig(inference_pb2.ModelConfigRequest(name="double")).config.max_batch_size == 32
        (stats,) = stub.ModelStatistics(inference_pb2.ModelStatisticsRequest(name="double")).model_stats
        assert (stats.name, stats.inference_count) == ("double", 0)
        index = stub.RepositoryIndex(inference_pb2.RepositoryIndexRequest(), metadata=[("dormouse-function", "default/double")])
        assert [(m.name, m.version, m.state) for m in index.models] == [("double", "1", "READY")]
        assert health.Check(health_pb2.HealthCheckRequest(service="default/double")).status == Health.SERVING
        time.sleep(0.3)
    assert up.get("double")["phase"] == "Asleep"


def test_a_model_by_the_name_that_it_had_elsewhere(client: Client) -> None:
    """Unary on the fast path and by the relay, in a stream, and described."""
    request = request_of("", x=row(1, 2, 3, 4))
    request.model_name = "DOUBLE"
    for _ in range(2):
        assert outputs_of(client.infer(request))["y"].tolist() == [[2, 4, 6, 8]]
    assert outputs_of(client.stub.ModelInfer(request, compression=grpc.Compression.Gzip))["y"].tolist() == [[2, 4, 6, 8]]
    assert outputs_of(client.infer(request, [("dormouse-function", "default/double")]))["y"].tolist() == [[2, 4, 6, 8]]
    (answer,) = client.stub.ModelStreamInfer(iter([request]))
    assert (answer.error_message, outputs_of(answer.infer_response)["y"].tolist()) == ("", [[2, 4, 6, 8]])
    assert client.stub.ModelMetadata(inference_pb2.ModelMetadataRequest(name="DOUBLE")).name == "DOUBLE"


def test_statistics_count_what_ran(up: Up, client: Client) -> None:
    up.command("scale", "total", "1")  # a worker's figures end with it: it does not fall asleep, however long this takes
    request = inference_pb2.ModelStatisticsRequest(name="total")
    for step in range(5):
        client.infer(request_of("total", x=row(1)), [("dormouse-session", "counted")])
        (stats,) = client.stub.ModelStatistics(request).model_stats
        assert (stats.inference_count, stats.inference_stats.success.count, stats.inference_stats.queue.count) == (step + 1,) * 3
    with pytest.raises(grpc.RpcError):
        client.infer(request_of("total", x=row(1, 2)), [("dormouse-session", "counted")])
    (stats,) = client.stub.ModelStatistics(request).model_stats
    inner = stats.inference_stats
    assert (inner.success.count, inner.fail.count, stats.execution_count) == (5, 1, 5)
    assert 0 < inner.compute_infer.ns <= inner.success.ns
    assert abs(stats.last_inference / 1000 - time.time()) < 60
    up.command("scale", "total", "auto")


def test_an_index_shows_at_most_the_function_addressed(client: Client) -> None:
    """Case 8.O2."""
    index = client.stub.RepositoryIndex
    (broken,) = index(inference_pb2.RepositoryIndexRequest(), metadata=[("dormouse-function", "default/broken")]).models
    assert broken.state == "UNAVAILABLE"
    assert "broken.onnx" in broken.reason
    assert not index(inference_pb2.RepositoryIndexRequest(ready=True), metadata=[("dormouse-function", "default/broken")]).models
    with pytest.raises(grpc.RpcError) as raised:
        index(inference_pb2.RepositoryIndexRequest())
    assert code_of(raised)[0] is grpc.StatusCode.INVALID_ARGUMENT
    assert "dormouse-function" in code_of(raised)[1]
    with pytest.raises(grpc.RpcError) as raised:
        index(inference_pb2.RepositoryIndexRequest(), metadata=[("dormouse-function", "default/none")])
    assert code_of(raised)[0] is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize(
    "method",
    ["RepositoryModelLoad", "RepositoryModelUnload", "TraceSetting", "LogSettings", "SystemSharedMemoryRegister",
     "SystemSharedMemoryUnregister", "SystemSharedMemoryStatus", "CudaSharedMemoryRegister", "CudaSharedMemoryStatus"],
)  # fmt: skip
def test_administration_is_refused(client: Client, method: str) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        client.channel.unary_unary(SERVICE + method)(b"", timeout=20)
    assert code_of(raised) == (
        grpc.StatusCode.UNIMPLEMENTED,
        f"{method}: refused; functions are not administered through the callers' port",
    )


def test_health(client: Client) -> None:
    stub = health_pb2_grpc.HealthStub(client.channel)
    for service, status in (
        ("", Health.SERVING),
        ("inference.GRPCInferenceService", Health.SERVING),
        ("default/broken", Health.NOT_SERVING),
    ):
        assert stub.Check(health_pb2.HealthCheckRequest(service=service)).status == status
    for service in ("nope", "default/none"):
        with pytest.raises(grpc.RpcError) as raised:
            stub.Check(health_pb2.HealthCheckRequest(service=service))
        assert code_of(raised)[0] is grpc.StatusCode.NOT_FOUND


def test_health_is_watched(up: Up, client: Client) -> None:
    """An unknown function is SERVICE_UNKNOWN until it is there and proved, and again when it is deleted."""
    found: queue.Queue[int] = queue.Queue()
    call = health_pb2_grpc.HealthStub(client.channel).Watch(health_pb2.HealthCheckRequest(service="default/late"))

    def listen() -> None:
        try:
            for response in call:
                found.put(response.status)
        except grpc.RpcError:
            found.put(-1)

    thread = threading.Thread(target=listen)
    thread.start()
    assert found.get(timeout=60) == Health.SERVICE_UNKNOWN
    (up.folder / "late.manifest").write_text(DOUBLE.replace("name: double", "name: late"))
    up.command("apply", "-f", str(up.folder / "late.manifest"))
    status = found.get(timeout=60)
    if status == Health.NOT_SERVING:  # not proved yet
        status = found.get(timeout=60)
    assert status == Health.SERVING
    up.command("delete", "late")
    while status != Health.SERVICE_UNKNOWN:
        status = found.get(timeout=60)
    call.cancel()
    thread.join(60)
    assert found.get(timeout=20) == -1


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_reflection(client: Client, version: str) -> None:
    method = client.channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    requests = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="inference.GRPCInferenceService"),
    ]
    first, second = method(iter(requests), timeout=10)
    assert "inference.GRPCInferenceService" in [service.name for service in first.list_services_response.service]
    assert len(second.file_descriptor_response.file_descriptor_proto) == 1


@pytest.mark.parametrize("size", [1, 1 << 10, 1 << 20, 5 << 20, (64 << 20) - 4096])
@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
def test_messages_of_every_size(client: Client, size: int, compression: grpc.Compression) -> None:
    """There and back, bit for bit, by the fast path and by the relay (which takes what is compressed)."""
    columns = max(1, size // 4)
    values = np.frombuffer(np.random.default_rng(size).bytes(4 * columns), np.float32).reshape(1, columns)
    if compression is not grpc.Compression.NoCompression:
        values = np.zeros_like(values)  # quick to compress
    began = time.monotonic()
    reply = client.stub.ModelInfer(request_of("big", x=values), compression=compression, timeout=60)
    took = time.monotonic() - began
    assert reply.raw_output_contents[0] == values.tobytes()
    print(f"{size} bytes there and back, {compression.name}: {1000 * took:.1f} ms")


def test_a_message_beyond_the_largest(client: Client) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        client.infer(request_of("big", x=np.zeros((1, 17 << 20), np.float32)), timeout=30)
    assert code_of(raised)[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert outputs_of(client.infer(request_of("big", x=np.ones((1, 1), np.float32))))["y"].tolist() == [[1]]


def test_answers_are_plain_for_a_client_that_would_take_compressed_ones(up: Up) -> None:
    """grpc-accept-encoding is an offer: identity is always allowed."""
    with grpc.insecure_channel(up.gateway, options=[("grpc.default_compression_algorithm", 2)]) as channel:
        call = channel.unary_unary(f"{SERVICE}ServerLive")
        reply, rpc = call.with_call(b"", timeout=10)
        assert inference_pb2.ServerLiveResponse.FromString(reply).live
        assert dict(rpc.initial_metadata()).get("grpc-encoding", "identity") == "identity"
