"""Every error that the gateway makes itself: a gRPC status with the right code and a text that says what was found and what is allowed."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import grpc
import grpc.aio
import pytest
from dormouse_core.spec import Duration
from dormouse_proto import health_pb2, inference_pb2, state_pb2
from dormouse_testing.etcd_server import EtcdServer
from dormouse_testing.gateway import INFER, FakeWorker, Gateway, Timeouts, World, infer, request, running
from dormouse_testing.http2 import Connection

INSTALLATION = "gateway-errors"
Code = grpc.StatusCode
SERVICE = "/inference.GRPCInferenceService/"


@pytest.fixture(scope="module")
def gateway(etcd_server: EtcdServer) -> Iterator[Gateway]:
    with running(
        etcd_server.endpoint, INSTALLATION, "--max-message-bytes", "100000", "--max-held", "20", "--own-name", "front.example"
    ) as made:
        yield made


async def ask(
    channel: grpc.aio.Channel, method: str, message: bytes = b"", *metadata: tuple[str, str]
) -> tuple[grpc.StatusCode, str, bytes]:
    call = channel.unary_unary(method)
    try:
        return Code.OK, "", await call(message, metadata=metadata, timeout=20)
    except grpc.aio.AioRpcError as error:
        return error.code(), error.details() or "", b""


async def one(model: str) -> AsyncIterator[bytes]:
    yield request(model).SerializeToString()


@pytest.mark.parametrize(
    ("message", "metadata", "code", "text"),
    [
        (request("nobody"), (), Code.NOT_FOUND, "function default/nobody not found"),
        (request("sp/nobody"), (), Code.NOT_FOUND, "sp/nobody"),
        (request(""), (), Code.INVALID_ARGUMENT, "model_name: empty"),
        (request("No Name"), (), Code.INVALID_ARGUMENT, "'No Name' found, name or namespace/name is allowed"),
        (request("known", 7), (("dormouse-function", "known"),), Code.INVALID_ARGUMENT, "'known' found, namespace/name is allowed"),
        (request("other", 7), (("dormouse-function", "default/known"),), Code.INVALID_ARGUMENT, "addressed to function default/known"),
        (request("known"), (), Code.INVALID_ARGUMENT, "must specify a non-zero or non-empty correlation ID"),
        (request("known", 0), (), Code.INVALID_ARGUMENT, "must specify a non-zero or non-empty correlation ID"),
        (request("known", 7), (("dormouse-session", "7"),), Code.INVALID_ARGUMENT, "7 found, but the metadata dormouse-session says '7'"),
        (request("known"), (("dormouse-session", "a"), ("dormouse-session", "b")), Code.INVALID_ARGUMENT, "more than once"),
        (request("known"), (("dormouse-session", ""),), Code.INVALID_ARGUMENT, "0 characters found"),
        (request("known", "x" * 129), (), Code.INVALID_ARGUMENT, "129 characters found, 1 to 128"),
        (request("known", 7), (("dormouse-tenant", "t" * 129),), Code.INVALID_ARGUMENT, "dormouse-tenant: 129 characters"),
        (request("stopped", 7), (), Code.UNAVAILABLE, "function default/stopped is stopped: spec.replicas is 0"),
        (request("invalid"), (), Code.FAILED_PRECONDITION, "opset 99 is not supported (ModelInvalid)"),
        (request("missing"), (), Code.UNAVAILABLE, "404 (ModelUnavailable)"),
        (request("known", 7, size=200_000), (), Code.RESOURCE_EXHAUSTED, "limit of 100000 bytes"),
    ],
)
async def test_refusals(
    world: World,
    channel: grpc.aio.Channel,
    message: inference_pb2.ModelInferRequest,
    metadata: tuple[tuple[str, str], ...],
    code: grpc.StatusCode,
    text: str,
) -> None:
    problem = state_pb2.Problem
    await world.function("known", shards=8, uid="known")
    await world.function("stopped", shards=8, replicas=0, uid="stopped")
    await world.function("invalid", uid="invalid", problem=problem(code=9, reason="ModelInvalid", message="opset 99 is not supported"))
    await world.function("missing", uid="missing", problem=problem(code=14, reason="ModelUnavailable", message="404"))
    answer = await infer(channel, message, *metadata, timeout=20)
    assert answer.code is code
    assert text in answer.details


async def test_uint64_sequences_and_unreadable_messages(world: World, channel: grpc.aio.Channel) -> None:
    await world.function("known", shards=8, uid="known")
    unsigned = request("known")
    unsigned.parameters["sequence_id"].uint64_param = 7
    assert "uint64_param found" in (await infer(channel, unsigned)).details
    code, text, _ = await ask(channel, INFER, b"\xff\xff\xff\xff")
    assert (code, text) == (Code.INVALID_ARGUMENT, "the message is not an inference.ModelInferRequest")


async def test_the_authority(gateway: Gateway, world: World) -> None:
    await world.function("known", shards=8, uid="known")
    async with gateway.channel(authority="nobody.speech") as channel:
        assert "speech/nobody" in (await infer(channel, request("known", 7))).details
    async with gateway.channel(authority="front.example:8001") as channel:
        assert "default/nobody" in (await infer(channel, request("nobody"))).details, "the gateway's own name names no function"


OWN_ERRORS = {
    "unknown function": (request("nobody"), ()),
    "stopped": (request("halted"), ()),
    "hold expired": (request("brief"), ()),
    "no owner": (request("ownerless", 7), ()),
    "model that does not load": (request("bad"), ()),
    "session id too long": (request("ownerless", "x" * 129), ()),
    "two sessions": (request("ownerless"), ((b"dormouse-session", b"a"), (b"dormouse-session", b"b"))),
    "no message at all": (None, ()),
}


@pytest.mark.parametrize("what", OWN_ERRORS)
@pytest.mark.parametrize("method", ["ModelInfer", "ModelStreamInfer"])
async def test_its_own_errors_are_one_frame_of_headers(gateway: Gateway, world: World, what: str, method: str) -> None:
    """Case 1.O7: trailers only. A body or headers of their own would be read as a message, whose first five bytes are a length."""
    hold = Timeouts(hold=Duration("200ms"))
    await world.function("halted", replicas=0, uid="halted")
    await world.function("brief", timeouts=hold, uid="brief")
    await world.function("ownerless", shards=8, timeouts=hold, uid="ownerless")
    await world.function("bad", uid="bad", problem=state_pb2.Problem(code=9, reason="ModelInvalid", message="no model"))
    message, metadata = OWN_ERRORS[what]
    body = b"\xff\xff" if message is None else message.SerializeToString()
    headers = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", f"{SERVICE}{method}".encode()), (b":authority", b"x"),
               (b"content-type", b"application/grpc"), (b"te", b"trailers"), (b"triton_grpc_error", b"true"), *metadata]  # fmt: skip

    def frames() -> list[str]:
        with Connection(gateway.listen) as connection:
            stream = connection.open(headers)
            connection.send(stream, b"\0" + len(body).to_bytes(4, "big") + body, 1 << 14, end=True)
            return connection.frames(stream)

    assert await asyncio.to_thread(frames) == ["HEADERS"]


@pytest.mark.parametrize("size", [9_000, 15_000, 50_000])
async def test_a_long_token_goes_wherever_the_call_goes(channel: grpc.aio.Channel, world: World, worker: FakeWorker, size: int) -> None:
    """grpcio, in the relay, would take 8 KiB, and some of what is longer."""
    await world.register(await world.function("f"), worker)
    token = ("authorization", "".join(chr(33 + i * 7 % 90) for i in range(size)))
    stream = channel.stream_stream(f"{SERVICE}ModelStreamInfer")
    for _ in range(5):
        assert (await ask(channel, f"{SERVICE}ServerLive", b"", token))[0] is Code.OK
        assert (await infer(channel, request("f"), token, compression=grpc.Compression.Gzip)).worker == "w"
        assert inference_pb2.ModelStreamInferResponse.FromString(await stream(one("f"), metadata=(token,)).read()).error_message == ""


@pytest.mark.parametrize("name", ["_" * 60_000, "雪" * 20_000, "a" * 60_000])
async def test_the_error_of_a_long_wrong_name_is_told(channel: grpc.aio.Channel, name: str) -> None:
    for more in ({}, {"compression": grpc.Compression.Gzip}):
        answer = await infer(channel, request(name), **more)
        assert (answer.code, name[:300] in answer.details) == (Code.INVALID_ARGUMENT, True)


async def test_a_full_hold(gateway: Gateway, world: World, channel: grpc.aio.Channel, worker: FakeWorker) -> None:
    """Unary, in a stream, and as the status of one."""
    function = await world.function("crowded", uid="crowded")
    held = [asyncio.create_task(infer(channel, request("crowded"), timeout=60)) for _ in range(20)]
    await gateway.held(20)
    answer = await infer(channel, request("crowded"))
    assert answer.code is Code.RESOURCE_EXHAUSTED
    text = "20 calls of function default/crowded wait already"
    assert text in answer.details
    stream = channel.stream_stream(f"{SERVICE}ModelStreamInfer")
    in_band = inference_pb2.ModelStreamInferResponse.FromString(await stream(one("crowded")).read())
    assert text in in_band.error_message
    as_status = stream(one("crowded"), metadata=(("triton_grpc_error", "true"),))
    assert await as_status.code() is Code.RESOURCE_EXHAUSTED
    assert text in await as_status.details()
    await world.register(function, worker)
    assert {each.code for each in await asyncio.gather(*held)} == {Code.OK}, "and they are not harmed"


async def test_a_deleted_function(world: World, channel: grpc.aio.Channel, worker: FakeWorker) -> None:
    function = await world.function("going")
    await world.register(function, worker)
    assert (await infer(channel, request("going"))).code is Code.OK
    await world.function("going", uid=function.uid, deleting=True)
    async with asyncio.timeout(30):  # until the gateway has heard of it
        while (answer := await infer(channel, request("going"))).code is Code.OK:
            pass
    assert (answer.code, answer.details) == (Code.NOT_FOUND, "function default/going is being deleted")


async def test_methods_that_the_relay_answers(gateway: Gateway, world: World, channel: grpc.aio.Channel) -> None:
    metadata = state_pb2.ModelMetadata(platform="onnxruntime_onnx", max_batch_size=8)
    metadata.inputs.add(name="x", datatype="FP32", shape=[-1, 4])
    await world.function("described", metadata=metadata)
    await world.function("unproved", proved_revision="")
    live = inference_pb2.ServerLiveResponse.FromString((await ask(channel, f"{SERVICE}ServerLive"))[2])
    ready = inference_pb2.ServerReadyResponse.FromString((await ask(channel, f"{SERVICE}ServerReady"))[2])
    assert (live.live, ready.ready) == (True, True)
    named = inference_pb2.ModelReadyRequest(name="described").SerializeToString()
    assert inference_pb2.ModelReadyResponse.FromString((await ask(channel, f"{SERVICE}ModelReady", named))[2]).ready, "asleep is ready"
    other = inference_pb2.ModelReadyRequest(name="unproved").SerializeToString()
    assert not inference_pb2.ModelReadyResponse.FromString((await ask(channel, f"{SERVICE}ModelReady", other))[2]).ready
    for name, version in (("nobody", ""), ("described", "2")):  # no error, as in Triton: callers poll for what is still to be applied
        absent = inference_pb2.ModelReadyRequest(name=name, version=version).SerializeToString()
        code, _, message = await ask(channel, f"{SERVICE}ModelReady", absent)
        assert code is Code.OK
        assert not inference_pb2.ModelReadyResponse.FromString(message).ready
    described = inference_pb2.ModelMetadataResponse.FromString((await ask(channel, f"{SERVICE}ModelMetadata", named))[2])
    assert (described.name, described.inputs[0].name, list(described.inputs[0].shape)) == ("described", "x", [-1, 4])
    config = inference_pb2.ModelConfigResponse.FromString((await ask(channel, f"{SERVICE}ModelConfig", named))[2]).config
    assert (config.max_batch_size, list(config.input[0].dims)) == (8, [4])
    async with gateway.channel(authority="described.default") as by_authority:
        assert (await ask(by_authority, f"{SERVICE}ModelMetadata"))[0] is Code.OK
    asked = asyncio.create_task(ask(channel, f"{SERVICE}ModelMetadata", other))
    await asyncio.sleep(0.3)
    assert not asked.done(), "held until it is proved"
    await world.function("unproved", metadata=metadata)
    assert (await asked)[0] is Code.OK
    health = health_pb2.HealthCheckResponse.FromString((await ask(channel, "/grpc.health.v1.Health/Check"))[2])
    assert health.status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize(
    ("method", "text"),
    [
        (f"{SERVICE}RepositoryModelUnload", "RepositoryModelUnload: refused"),
        (f"{SERVICE}LogSettings", "LogSettings: refused"),
        (f"{SERVICE}SystemSharedMemoryRegister", "refused"),
        ("/other.Service/Method", "/other.Service/Method: no such method here"),
    ],
)
async def test_administration_is_refused(channel: grpc.aio.Channel, method: str, text: str) -> None:
    code, details, _ = await ask(channel, method)
    assert code is Code.UNIMPLEMENTED
    assert text in details
