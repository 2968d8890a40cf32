"""How much metadata a call may bring: the same wherever it goes, and beyond it that call is refused and nobody else harmed (case 11.O5)."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator

import grpc
import grpc.aio
import pytest
from dormouse_core import limits
from dormouse_core.keys import Keys
from dormouse_core.spec import Duration
from dormouse_gateway.envoy.bootstrap import bootstrap
from dormouse_gateway.settings import parse
from dormouse_kit.etcd import EtcdStore
from dormouse_proto import inference_pb2
from dormouse_testing.etcd_server import EtcdServer
from dormouse_testing.gateway import INFER, Answer, FakeWorker, Gateway, Seen, Timeouts, World, infer, request, running

INSTALLATION = "gateway-metadata"
Code = grpc.StatusCode
SERVICE = "/inference.GRPCInferenceService/"
KIB = 1024
ADDED = KIB * 5 // 4  # what the gRPC library and the gateway add to a call: about 1 KiB, says docs/operating.md
Metadata = tuple[tuple[str, str], ...]


@pytest.fixture(scope="module")
def gateway(etcd_server: EtcdServer) -> Iterator[Gateway]:
    with running(etcd_server.endpoint, INSTALLATION) as made:
        yield made


@pytest.fixture
def running_now() -> asyncio.Event:
    """Set when the neighbour's step runs."""
    return asyncio.Event()


@pytest.fixture
def let_go() -> asyncio.Event:
    """To be set for the neighbour's step to end."""
    return asyncio.Event()


@pytest.fixture
async def worker(running_now: asyncio.Event, let_go: asyncio.Event) -> AsyncIterator[FakeWorker]:
    made = await FakeWorker("w").start()

    async def slow(seen: Seen) -> None:
        if seen.request.id == "slow":
            running_now.set()
            await let_go.wait()

    made.behave = slow
    yield made
    await made.stop()


async def prepared(gateway: Gateway, world: World, worker: FakeWorker) -> None:
    """`steps` with a worker and `asleep` without."""
    steps = await world.function("steps", shards=8, uid="steps")
    await world.register(steps, worker)
    await world.own(steps, worker.name, list(range(8)))
    asleep = await world.function("asleep", shards=8, uid="asleep", timeouts=Timeouts(hold=Duration("300ms")))
    await gateway.routed(steps.label, worker.address)
    await gateway.routed(asleep.label)


def one(size: int) -> Metadata:
    return (("x-token", "a" * size),)


def many(size: int, entry: int) -> Metadata:
    """As many entries as are counted as `size` bytes, of `entry` bytes each."""
    return tuple((f"x-{number:04d}", "b" * (entry - 6 - limits.METADATA_ENTRY_BYTES)) for number in range(size // entry))


async def running_step(channel: grpc.aio.Channel, running_now: asyncio.Event) -> "asyncio.Task[Answer]":
    """A step of somebody else on the same connection, at the worker until it is let go."""
    step = asyncio.create_task(infer(channel, request("steps", 2, id="slow"), timeout=60))
    async with asyncio.timeout(60):
        await running_now.wait()
    return step


async def unary(channel: grpc.aio.Channel, method: str, message: bytes, metadata: Metadata) -> tuple[grpc.StatusCode, str]:
    try:
        await channel.unary_unary(method)(message, metadata=metadata, timeout=20)
    except grpc.aio.AioRpcError as error:
        return error.code(), error.details() or ""
    return Code.OK, ""


async def streamed(channel: grpc.aio.Channel, metadata: Metadata) -> tuple[grpc.StatusCode, str]:
    """Writes nothing before it has seen that it is not refused: grpcio would tell of the message that it could not send."""
    call = channel.stream_stream(f"{SERVICE}ModelStreamInfer")(metadata=metadata, timeout=20)
    ended = asyncio.ensure_future(call.code())
    refused, _ = await asyncio.wait([ended], timeout=0.5)
    if not refused:
        await call.done_writing()
    return await ended, await call.details()


async def everywhere(channel: grpc.aio.Channel, metadata: Metadata) -> dict[str, tuple[grpc.StatusCode, str]]:
    ready = inference_pb2.ModelReadyRequest(name="steps").SerializeToString()
    step = request("steps", 1).SerializeToString()
    named = (("dormouse-function", "default/steps"), ("dormouse-session", "s"))
    return {
        "a step": await unary(channel, INFER, step, metadata),
        "a step that is not read": await unary(channel, INFER, request().SerializeToString(), (*metadata, *named)),
        "asleep": await unary(channel, INFER, request("asleep", 1).SerializeToString(), metadata),
        "a stream": await streamed(channel, metadata),
        "about a model": await unary(channel, f"{SERVICE}ModelReady", ready, metadata),
    }


LIMIT = limits.METADATA_BYTES
WITHIN = [one(9_000), one(LIMIT - ADDED), many(LIMIT - ADDED, 1_000), many(LIMIT - ADDED, 40)]
BEYOND = [one(LIMIT), one(80 * KIB), one(1024 * KIB), many(LIMIT, 1_000), many(1024 * KIB, 1_000), many(LIMIT, 40), many(400_000, 40)]


@pytest.mark.parametrize("metadata", WITHIN, ids=lambda given: f"{len(given)}")
async def test_within_the_limit_a_call_goes_wherever_it_goes(
    gateway: Gateway, world: World, worker: FakeWorker, metadata: Metadata
) -> None:
    await prepared(gateway, world, worker)
    async with gateway.channel() as channel:
        found = await everywhere(channel, metadata)
    code, text = found.pop("asleep")
    assert (code, "within the hold limit" in text) == (Code.UNAVAILABLE, True)
    assert found == dict.fromkeys(found, (Code.OK, ""))
    sent = {(key, value) for seen in worker.calls[-2:] for key, value in seen.metadata.items()}
    assert set(metadata) <= sent, "all of it reaches the worker"
    ours = {"dormouse-size", "dormouse-wire", "dormouse-heavy", "dormouse-whole"}
    assert not any(key in ours for key, _ in sent)


@pytest.mark.parametrize("metadata", BEYOND, ids=lambda given: f"{len(given)}")
async def test_beyond_the_limit_that_call_alone_is_refused(
    gateway: Gateway, world: World, worker: FakeWorker, running_now: asyncio.Event, let_go: asyncio.Event, metadata: Metadata
) -> None:
    await prepared(gateway, world, worker)
    async with gateway.channel() as channel:
        neighbour = await running_step(channel, running_now)
        found = await everywhere(channel, metadata)
        assert not neighbour.done()
        let_go.set()
        assert (await neighbour).code is Code.OK
    assert len(worker.calls) == 1, "the neighbour's"
    for code, text in found.values():
        assert code is Code.RESOURCE_EXHAUSTED
        assert text.startswith("metadata: ")
        assert f"bytes found, at most {LIMIT} are allowed" in text


@pytest.mark.parametrize(
    "metadata",
    [one(limits.METADATA_HARD_BYTES + KIB), many((limits.METADATA_HARD_ENTRIES + 1) * 40, 40)],
    ids=["bytes", "entries"],
)
async def test_what_is_too_large_to_be_read_harms_nobody_either(
    gateway: Gateway, world: World, worker: FakeWorker, running_now: asyncio.Event, let_go: asyncio.Event, metadata: Metadata
) -> None:
    """Envoy resets the call; there is no way to have it say why."""
    await prepared(gateway, world, worker)
    async with gateway.channel() as channel:
        neighbour = await running_step(channel, running_now)
        code, _ = await unary(channel, INFER, request("steps", 1).SerializeToString(), metadata)
        assert code is Code.INTERNAL
        let_go.set()
        assert (await neighbour).code is Code.OK


async def test_negative_control_with_envoys_own_codec_and_limit_the_neighbour_fails(
    etcd_server: EtcdServer, worker: FakeWorker, running_now: asyncio.Event
) -> None:
    gateway = Gateway(etcd_server.endpoint, f"{INSTALLATION}-control")
    config = bootstrap(parse(gateway.options, "test"))
    (manager,) = config["static_resources"]["listeners"][0]["filter_chains"][0]["filters"]
    del manager["typed_config"]["max_request_headers_kb"]
    del manager["typed_config"]["http2_protocol_options"]["use_oghttp2_codec"]
    gateway.start_agent()
    gateway.start_envoy_with(json.dumps(config))
    store = EtcdStore([etcd_server.endpoint])
    try:
        gateway.wait_ready()
        await prepared(gateway, World(store, Keys(f"{INSTALLATION}-control")), worker)
        async with gateway.channel() as channel:
            neighbour = await running_step(channel, running_now)
            code, text = await unary(channel, INFER, request("steps", 1).SerializeToString(), one(80 * KIB))
            assert (code, "GOAWAY" in text or "reset" in text or "closed" in text) == (Code.UNAVAILABLE, True)
            assert (await neighbour).code is Code.UNAVAILABLE
    finally:
        await store.close()
        gateway.stop()
