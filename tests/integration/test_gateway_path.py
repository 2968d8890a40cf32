"""The way of a unary call through a real Envoy and a real agent, with a real etcd, to workers that are not real."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator

import grpc
import grpc.aio
import pytest
from dormouse_core import headernames
from dormouse_core.keys import Function
from dormouse_core.sessions.names import session_key, shard_of
from dormouse_core.spec import Duration
from dormouse_gateway.envoy.resources import NOBODY
from dormouse_testing.etcd_server import EtcdServer
from dormouse_testing.gateway import FakeWorker, Gateway, Refuse, Seen, Timeouts, Wire, World, infer, request, running
from dormouse_testing.ports import free_port

INSTALLATION = "gateway-path"
Code = grpc.StatusCode
MIB = 1 << 20


@pytest.fixture(scope="module")
def gateway(etcd_server: EtcdServer) -> Iterator[Gateway]:
    with running(etcd_server.endpoint, INSTALLATION) as made:
        yield made


@pytest.fixture
async def workers() -> AsyncIterator[list[FakeWorker]]:
    made = [await FakeWorker(f"w{i}").start() for i in range(2)]
    yield made
    for worker in made:
        await worker.stop()


async def stateful(world: World, name: str, workers: list[FakeWorker], **more: object) -> Function:
    """Eight shards, dealt out to `workers` in turn."""
    made = await world.function(name, shards=8, **more)
    for number, worker in enumerate(workers):
        await world.register(made, worker)
        await world.own(made, worker.name, list(range(number, 8, len(workers))))
    return made


def shard(sequence: int | str) -> int:
    return shard_of(session_key("", sequence), 8)


async def test_a_stateless_call_goes_to_any_worker(
    gateway: Gateway, world: World, channel: grpc.aio.Channel, workers: list[FakeWorker]
) -> None:
    function = await world.function("plain")
    for worker in workers:
        await world.register(function, worker)
    await gateway.routed(function.label, function.uid)
    before = gateway.relay_calls()
    answers = [await infer(channel, request("plain")) for _ in range(30)]
    limit = time.monotonic() + 20
    while len({each.worker for each in answers}) == 1 and time.monotonic() < limit:  # Envoy may hear of the second a moment later
        answers.append(await infer(channel, request("plain")))
    assert {each.code for each in answers} == {Code.OK}
    assert {each.worker for each in answers} == {"w0", "w1"}
    assert gateway.relay_calls() == before, "the relay is not on the fast path"


async def test_a_step_goes_to_the_owner_of_its_shard(
    gateway: Gateway, world: World, channel: grpc.aio.Channel, workers: list[FakeWorker]
) -> None:
    function = await stateful(world, "steps", workers)
    await gateway.routed(function.label, "map", lacks=NOBODY)
    before = gateway.relay_calls()
    for sequence in [*range(1, 20), -1, 2**63 - 1, -(2**63), 2**53 + 1, "7", "a/b", "a b", "é", "x" * 128]:
        answer = await infer(channel, request("steps", sequence))
        assert (answer.code, answer.worker) == (Code.OK, f"w{shard(sequence) % 2}"), sequence
        assert answer.step
    assert gateway.relay_calls() == before
    metadata = workers[0].calls[-1].metadata
    assert metadata["dormouse-uid"] == function.uid
    assert int(metadata["dormouse-rev"]) > 0
    assert metadata["dormouse-function"] == "default/steps"
    keys = [seen.key for worker in workers for seen in worker.calls]
    assert len(set(keys)) == len(keys)
    assert all(abs(int(key[:16]) / 1e6 - time.time()) < 60 and key[16:19] == "-g-" for key in keys)


async def test_function_and_session_from_each_place(gateway: Gateway, world: World, workers: list[FakeWorker]) -> None:
    function = await world.function("vad", namespace="speech", shards=8)
    await world.register(function, workers[0])
    await world.own(function, "w0", list(range(8)))
    await gateway.routed(function.label, "map", lacks=NOBODY)
    before = gateway.relay_calls()
    for authority in ("vad.speech", "VAD.speech", "vad.speech:8001", "vad.speech.svc", "vad.speech.svc.cluster.local:80"):
        async with gateway.channel(authority=authority) as channel:
            assert (await infer(channel, request("", 7))).code is Code.OK, authority
            assert (await infer(channel, request("vad"), ("dormouse-session", "x"))).code is Code.OK, authority
    async with gateway.channel() as channel:
        assert (await infer(channel, request("speech/vad", 7))).code is Code.OK
        assert (await infer(channel, request("vad", 7), ("dormouse-function", "speech/vad"))).code is Code.OK
        # All in the metadata: neither buffered nor read here; the worker holds it to the limit that the gateway tells it.
        large = request("", size=15 * MIB)
        both = (("dormouse-function", "speech/vad"), ("dormouse-session", "x"))
        assert (await infer(channel, large, *both, ("dormouse-max-message", "1"))).bytes == 15 * MIB
        assert workers[0].calls[-1].metadata["dormouse-max-message"] == str(16 * MIB)
    assert gateway.relay_calls() == before


async def test_a_worker_that_is_not_the_owner_sends_the_call_to_the_relay(
    gateway: Gateway, world: World, channel: grpc.aio.Channel, workers: list[FakeWorker]
) -> None:
    function = await stateful(world, "moved", workers)
    await gateway.routed(function.label, "map", lacks=NOBODY)

    async def not_mine(seen: Seen) -> None:
        # The map has changed, but nobody has heard yet: exactly what a watch that is behind looks like.
        if workers[1].calls == []:
            await world.own(function, "w1", list(range(8)), epoch=2)
        raise Refuse(Code.UNAVAILABLE, "not mine", "not-mine")

    workers[0].behave = not_mine
    sequence = next(n for n in range(1, 99) if shard(n) % 2 == 0)
    answer = await infer(channel, request("moved", sequence))
    assert (answer.code, answer.worker) == (Code.OK, "w1")
    assert workers[0].calls[0].key == workers[1].calls[0].key, "the key is the call's, not the try's"
    assert int(workers[1].calls[0].metadata["dormouse-rev"]) > int(workers[0].calls[0].metadata["dormouse-rev"])


@pytest.mark.parametrize("sessions", [True, False])
async def test_a_worker_that_is_dead_costs_a_retry_at_the_relay(
    gateway: Gateway, world: World, channel: grpc.aio.Channel, workers: list[FakeWorker], sessions: bool
) -> None:
    name = f"dead-{sessions}".lower()
    function = await world.function(name, shards=8 if sessions else 0)
    await world.register(function, None, name="gone", address=f"127.0.0.1:{free_port()}")
    if sessions:
        await world.own(function, "gone", list(range(8)))
    await gateway.routed(function.label, "map" if sessions else function.uid)
    call = asyncio.create_task(infer(channel, request(name, 7 if sessions else None)))
    await asyncio.sleep(0.3)
    assert not call.done(), "held: its lease still says that it lives"
    await world.register(function, workers[0])
    if sessions:
        await world.own(function, "w0", list(range(8)), epoch=2)
    answer = await call
    assert (answer.code, answer.worker) == (Code.OK, "w0")


async def test_stateless_retries_go_to_the_relay_and_not_to_another_worker(
    gateway: Gateway, world: World, channel: grpc.aio.Channel, workers: list[FakeWorker]
) -> None:
    function = await world.function("busy")
    for worker in workers:
        await world.register(function, worker)
    await gateway.routed(function.label, function.uid)
    tries: list[str] = []

    async def busy(seen: Seen) -> None:
        tries.append(seen.metadata.get("x-envoy-attempt-count", "relay"))
        if len(tries) % 2:
            raise Refuse(Code.UNAVAILABLE, "busy", "busy")

    for worker in workers:
        worker.behave = busy
    for _ in range(10):
        assert (await infer(channel, request("busy"))).code is Code.OK
    assert tries == ["1", "relay"] * 10


async def test_a_worker_killed_in_mid_call(gateway: Gateway, world: World, channel: grpc.aio.Channel, workers: list[FakeWorker]) -> None:
    wire = await Wire(workers[0].address).start()
    steps = await world.function("killed-steps", shards=8)
    await world.own(steps, "w0", list(range(8)))
    plain = await world.function("killed-plain")
    once = await world.function("killed-once", retry_stateless=False)
    for function in (steps, plain, once):
        await world.register(function, workers[0], address=wire.address)
        await gateway.routed(function.label, function.uid)
    running_there = asyncio.Semaphore(0)

    async def hang(seen: Seen) -> None:
        running_there.release()
        await asyncio.sleep(60)

    workers[0].behave = hang
    calls = [asyncio.create_task(infer(channel, request(name, 7))) for name in ("killed-steps", "killed-plain", "killed-once")]
    for _ in calls:
        await running_there.acquire()
    for function in (steps, plain, once):
        await world.register(function, workers[1])
    await world.own(steps, "w1", list(range(8)), epoch=2)
    await wire.cut()
    for function in (steps, plain, once):
        await world.unregister(function, "w0")
    again, sent, refused = await asyncio.gather(*calls)
    assert (again.code, again.worker) == (Code.OK, "w1")
    assert (sent.code, sent.worker) == (Code.OK, "w1")
    assert refused.code is Code.UNAVAILABLE
    assert "outcome is not known" in refused.details
    assert [seen.request.model_name for seen in workers[1].calls].count("killed-once") == 0


async def test_a_worker_that_is_frozen_is_a_worker_that_is_dead(
    gateway: Gateway, world: World, channel: grpc.aio.Channel, workers: list[FakeWorker]
) -> None:
    wire = await Wire(workers[0].address).start()
    function = await world.function("frozen", shards=8)
    await world.own(function, "w0", list(range(8)))
    await world.register(function, workers[0], address=wire.address)
    await gateway.routed(function.label, "map", lacks=NOBODY)
    assert (await infer(channel, request("frozen", 7))).worker == "w0"
    wire.freeze()
    began = time.monotonic()
    call = asyncio.create_task(infer(channel, request("frozen", 7), timeout=20))
    await world.register(function, workers[1])
    await world.own(function, "w1", list(range(8)), epoch=2)
    assert (await call).worker == "w1"
    assert time.monotonic() - began < 15, "keepalive: 1 s, and 2 s to answer, on a busy machine"
    await wire.cut()


async def test_calls_are_held_at_zero_and_released_at_once(
    gateway: Gateway, world: World, channel: grpc.aio.Channel, workers: list[FakeWorker]
) -> None:
    function = await world.function("asleep", shards=8)
    await gateway.routed(function.label)
    calls = [asyncio.create_task(infer(channel, request("asleep", n), timeout=60)) for n in range(1, 501)]
    await gateway.held(500)
    assert not any(call.done() for call in calls)
    await world.register(function, workers[0])
    await world.own(function, "w0", list(range(8)))
    began = time.monotonic()
    answers = await asyncio.gather(*calls)
    assert {(each.code, each.worker) for each in answers} == {(Code.OK, "w0")}
    assert time.monotonic() - began < 15
    assert len({seen.key for seen in workers[0].calls}) == 500


async def test_the_callers_deadline_passes_in_the_hold(
    gateway: Gateway, world: World, channel: grpc.aio.Channel, workers: list[FakeWorker]
) -> None:
    function = await world.function("late")
    await gateway.routed(function.label)
    began = time.monotonic()
    answer = await infer(channel, request("late"), timeout=0.5)
    assert answer.code is Code.DEADLINE_EXCEEDED
    assert 0.4 < time.monotonic() - began < 5
    await gateway.held(0)
    cancelled = asyncio.create_task(infer(channel, request("late"), timeout=60))
    await gateway.held(1)
    cancelled.cancel()
    await gateway.held(0)
    await world.register(function, workers[0])
    assert (await infer(channel, request("late", id="after"))).code is Code.OK
    assert [seen.request.id for seen in workers[0].calls] == ["after"], "a cancelled call is never sent"


async def test_the_hold_limit(gateway: Gateway, world: World, channel: grpc.aio.Channel) -> None:
    await world.function("brief", timeouts=Timeouts(hold=Duration("300ms")))
    answer = await infer(channel, request("brief"))
    assert answer.code is Code.UNAVAILABLE
    assert "hold limit of 300ms" in answer.details
    assert "no worker is ready" in answer.details


async def test_what_callers_forge_is_taken_away(
    gateway: Gateway, world: World, channel: grpc.aio.Channel, workers: list[FakeWorker]
) -> None:
    function = await stateful(world, "forged", workers)
    await gateway.routed(function.label, "map", lacks=NOBODY)
    forged = (
        ("dormouse-call", "1700000000000000-g-evil-1"),
        ("dormouse-fn", "default/other"),
        ("dormouse-owner", workers[1].address),
        ("dormouse-rev", "999999999"),
        ("dormouse-uid", "evil"),
        ("dormouse-again", "busy"),
        ("x-envoy-max-retries", "50"),
        ("x-envoy-retry-on", "5xx"),
        ("x-envoy-upstream-rq-timeout-ms", "1"),
        ("x-envoy-attempt-count", "7"),
    )
    others = [(name, "evil") for name in headernames.GATEWAYS if name not in dict(forged)]
    sequence = next(n for n in range(1, 99) if shard(n) % 2 == 0)
    answer = await infer(channel, request("forged", sequence), *forged, *others, ("dormouse-max-message", "5"), ("my-own", "kept"))
    assert (answer.code, answer.worker) == (Code.OK, "w0")
    metadata = workers[0].calls[0].metadata
    assert "evil" not in str(metadata)
    assert metadata["dormouse-max-message"] != "5"
    assert metadata["dormouse-rev"] != "999999999"
    assert metadata.get("x-envoy-attempt-count", "1") == "1", "the relay, whose way a call may go, gives none"
    assert metadata["my-own"] == "kept"
    assert not {"x-envoy-max-retries", "x-envoy-retry-on", "x-envoy-upstream-rq-timeout-ms", "dormouse-again"} & metadata.keys()


async def test_one_request_id_for_many_calls_is_no_key(
    gateway: Gateway, world: World, channel: grpc.aio.Channel, workers: list[FakeWorker]
) -> None:
    function = await stateful(world, "traced", workers)
    await gateway.routed(function.label, "map", lacks=NOBODY)
    for _ in range(3):
        assert (await infer(channel, request("traced", 7), ("x-request-id", "trace-1"))).code is Code.OK
    seen = [seen for worker in workers for seen in worker.calls]
    assert len({each.key for each in seen}) == 3
    assert {each.metadata["x-request-id"] for each in seen} == {"trace-1"}


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
async def test_compressed_messages_reach_the_owner(
    gateway: Gateway, world: World, channel: grpc.aio.Channel, workers: list[FakeWorker], compression: grpc.Compression
) -> None:
    name = f"packed-{compression.name}".lower()
    function = await stateful(world, name, workers)
    await gateway.routed(function.label, "map", lacks=NOBODY)
    for sequence in range(1, 20):
        answer = await infer(channel, request(name, sequence, size=2000), compression=compression)
        assert (answer.code, answer.worker, answer.bytes) == (Code.OK, f"w{shard(sequence) % 2}", 2000)


async def test_large_messages(gateway: Gateway, world: World, channel: grpc.aio.Channel, workers: list[FakeWorker]) -> None:
    function = await stateful(world, "large", workers)
    await gateway.routed(function.label, "map", lacks=NOBODY)
    whole = request("large", 7, size=16 * MIB - 64)
    whole.id = "x" * (16 * MIB - whole.ByteSize() - 2)
    assert whole.ByteSize() == 16 * MIB
    assert (await infer(channel, whole, timeout=60)).code is Code.OK
    whole.id += "x"
    answer = await infer(channel, whole, timeout=60)
    assert answer.code is Code.RESOURCE_EXHAUSTED
    assert "16777216 bytes" in answer.details
    # A refusal in the first try: the largest message is sent again, by the relay, and to the same limit.
    whole.id = whole.id[:-1]
    first = asyncio.Event()

    async def refuse_once(seen: Seen) -> None:
        if not first.is_set():
            first.set()
            raise Refuse(Code.UNAVAILABLE, "dropped", "dropped")

    for worker in workers:
        worker.behave = refuse_once
    assert (await infer(channel, whole, timeout=60)).code is Code.OK
    assert first.is_set()
