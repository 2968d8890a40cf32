"""A proxy of somebody's cluster before the gateway: what passes through it, and what it must be told for that (docs/fitting-in.md).

Envoy is the one that the gateway runs on, here as Envoy Gateway configures it; nginx as ingress-nginx does. Unmodified clients through the
same two: tests/conformance/test_clients.py.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterator

import grpc
import grpc.aio
import pytest
from conftest import unavailable
from dormouse_core import headernames
from dormouse_core.keys import Function
from dormouse_core.sessions.names import session_key, shard_of
from dormouse_gateway.envoy.resources import NOBODY
from dormouse_kit.grpc_options import channel_options
from dormouse_testing import fronts
from dormouse_testing.etcd_server import EtcdServer
from dormouse_testing.gateway import FakeWorker, Gateway, Refuse, Seen, World, infer, request, running

INSTALLATION = "fronts"
MIB = 1 << 20
Code = grpc.StatusCode
Front = Callable[..., contextlib.AbstractContextManager[str]]


@pytest.fixture(scope="module")
def gateway(etcd_server: EtcdServer) -> Iterator[Gateway]:
    with running(etcd_server.endpoint, INSTALLATION) as made:
        yield made


@pytest.fixture(scope="module", params=["envoy", pytest.param("nginx", marks=pytest.mark.slow)])
def front(request: pytest.FixtureRequest) -> Front:
    if request.param == "nginx" and (reason := fronts.missing_nginx()):
        unavailable(reason)
    made: Front = getattr(fronts, request.param)
    return made


@pytest.fixture(scope="module")
def address(gateway: Gateway, front: Front) -> Iterator[str]:
    """Of a proxy that is told what docs/fitting-in.md says."""
    with front(gateway.listen) as made:
        yield made


def channel(address: str, authority: str = "") -> grpc.aio.Channel:
    named = [("grpc.default_authority", authority)] if authority else []
    return grpc.aio.insecure_channel(address, options=[*channel_options(message_bytes=64 << 20), *named])


async def served(gateway: Gateway, world: World, worker: FakeWorker, name: str, shards: int = 0) -> Function:
    function = await world.function(name, shards=shards)
    await world.register(function, worker)
    if shards:
        await world.own(function, worker.name, list(range(shards)))
    await gateway.routed(function.label, "map" if shards else function.uid, lacks=NOBODY)
    return function


async def test_a_sessions_steps_and_its_metadata_pass(
    gateway: Gateway, address: str, world: World, worker: FakeWorker, front: Front
) -> None:
    name = f"steps-{front.__name__}"
    other = await FakeWorker("w1").start()
    function = await served(gateway, world, worker, name, shards=8)
    await world.register(function, other)
    await world.own(function, "w1", [1, 3, 5, 7], epoch=2)
    await gateway.routed(function.label, other.address)
    sessions = [("dormouse-session", "a b"), ("dormouse-idempotency-key", "mine-1"), ("my-own", "kept"), ("triton_grpc_error", "true")]
    async with channel(address) as calls:
        for sequence in range(1, 20):
            answer = await infer(calls, request(name, sequence))
            owner = (worker, other)[shard_of(session_key("", sequence), 8) % 2]
            assert (answer.code, answer.worker) == (Code.OK, owner.name), sequence
            assert answer.step, "what Dormouse says in metadata comes back"
        assert (await infer(calls, request(name), *sessions, ("dormouse-uid", "forged"))).code is Code.OK
    seen = (worker if shard_of(session_key("", "a b"), 8) % 2 == 0 else other).calls[-1].metadata
    assert [seen[key] for key, _ in sessions] == [value for _, value in sessions]
    assert seen["dormouse-uid"] == function.uid, "behind a proxy, too, nobody says what only the gateway may"
    await other.stop()


async def test_the_function_by_the_callers_own_authority(
    gateway: Gateway, address: str, world: World, worker: FakeWorker, front: Front
) -> None:
    name = f"named-{front.__name__}"
    await served(gateway, world, worker, name)
    async with channel(address, f"{name}.default.svc.cluster.local") as calls:
        assert (await infer(calls, request(""))).code is Code.OK


async def test_a_public_host_name_names_no_function_and_one_of_two_parts_does_where_it_is_not_the_gateways_own(
    gateway: Gateway, address: str, world: World, worker: FakeWorker, front: Front
) -> None:
    name = f"public-{front.__name__}"
    await served(gateway, world, worker, name)
    for authority, code in (
        ("inference.example.com", Code.OK),
        ("inference.example.com:443", Code.OK),
        ("example.com", Code.INVALID_ARGUMENT),
    ):
        async with channel(address, authority) as calls:
            assert (await infer(calls, request(name))).code is code, authority


async def test_a_host_name_for_one_function(gateway: Gateway, front: Front, world: World, worker: FakeWorker) -> None:
    """The proxy names the function, over what the caller names in metadata; a message that names another is refused."""
    name = f"pinned-{front.__name__}"
    await served(gateway, world, worker, name)
    with front(gateway.listen, headers={"dormouse-function": f"default/{name}"}) as address:
        async with channel(address) as calls:
            assert (await infer(calls, request(name))).code is Code.OK
            assert (await infer(calls, request(""), ("dormouse-function", "default/another"))).code is Code.OK
            refused = await infer(calls, request("another"))
    assert (refused.code, len(worker.calls)) == (Code.INVALID_ARGUMENT, 2)
    assert f"default/{name}" in refused.details


async def test_large_messages_pass_both_ways_and_larger_ones_are_refused_in_words(
    gateway: Gateway, address: str, world: World, worker: FakeWorker, front: Front
) -> None:
    name = f"large-{front.__name__}"
    await served(gateway, world, worker, name)
    size = 16 * MIB - 4096
    large = request(name, size=size)
    large.parameters["reply"].int64_param = size
    async with channel(address) as calls:
        answer = await infer(calls, large, timeout=30)
        assert (answer.code, answer.bytes) == (Code.OK, size)
        answer = await infer(calls, request(name, size=17 * MIB), timeout=30)
        assert (answer.code, "larger than the gateway's limit" in answer.details) == (Code.RESOURCE_EXHAUSTED, True), answer


async def test_refusals_keep_their_codes_and_words(gateway: Gateway, address: str, world: World, worker: FakeWorker, front: Front) -> None:
    name = f"refusing-{front.__name__}"
    await served(gateway, world, worker, name)
    text = "shape: [1, 5] found, “[-1, 4]” is expected, 100 % of the time"
    async with channel(address) as calls:
        for code in (Code.INVALID_ARGUMENT, Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED, Code.FAILED_PRECONDITION, Code.INTERNAL):

            async def refuse(seen: Seen, code: grpc.StatusCode = code) -> None:
                raise Refuse(code, text)

            worker.behave, worker.calls[:] = refuse, []
            answer = await infer(calls, request(name))
            assert (answer.code, answer.details, len(worker.calls)) == (code, text, 1), "and no proxy sends it again"
        answer = await infer(calls, request("nobody"))
        assert (answer.code, "function default/nobody not found" in answer.details) == (Code.NOT_FOUND, True)


async def test_a_call_that_waits_for_a_worker_and_one_that_is_given_up(
    gateway: Gateway, address: str, world: World, worker: FakeWorker, front: Front
) -> None:
    name = f"asleep-{front.__name__}"
    function = await world.function(name)
    await gateway.routed(function.label)
    async with channel(address) as calls:
        answer = await infer(calls, request(name), timeout=0.5)
        assert answer.code is Code.DEADLINE_EXCEEDED
        await gateway.held(0)
        cancelled = asyncio.create_task(infer(calls, request(name), timeout=60))
        await gateway.held(1)
        cancelled.cancel()
        await gateway.held(0)
        waiting = asyncio.create_task(infer(calls, request(name), timeout=60))
        await gateway.held(1)
        await world.register(function, worker)
        assert (await waiting).code is Code.OK
    assert len(worker.calls) == 1


SILENCE = {"envoy": {"idle": "0.5s"}, "nginx": {"more": fronts.ANNOTATED.replace("client_body_timeout 1h", "client_body_timeout 1s")}}


async def test_a_silent_stream_stays_and_negative_control_with_a_limit_for_silence_it_ends(
    gateway: Gateway, address: str, front: Front
) -> None:
    with front(gateway.listen, **SILENCE[front.__name__]) as short:
        async with channel(address) as calls, channel(short) as limited:
            stays, ends = (each.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")(timeout=60) for each in (calls, limited))
            with pytest.raises(grpc.aio.AioRpcError):
                await asyncio.wait_for(ends.read(), 20)
            assert not stays.done()
            await stays.done_writing()
            assert await stays.code() is Code.OK


# ---------------------------------------------------------------------------------------- what Envoy does where nobody says otherwise


async def test_negative_control_by_its_own_time_limit_a_call_that_waits_is_ended(gateway: Gateway, world: World) -> None:
    function = await world.function("ended")
    await gateway.routed(function.label)
    with fronts.envoy(gateway.listen, request_timeout="0.3s") as address:  # 15s where nobody says otherwise
        async with channel(address) as calls:
            answer = await infer(calls, request("ended"), timeout=20)
    assert (answer.code, answer.details) == (Code.UNAVAILABLE, "upstream request timeout")


async def test_negative_control_it_refuses_names_with_underscores_and_with_them_tritonclients(
    gateway: Gateway, world: World, worker: FakeWorker
) -> None:
    await served(gateway, world, worker, "underscored")
    with fronts.envoy(gateway.listen, underscores="REJECT_REQUEST") as address:
        async with channel(address) as calls:
            assert (await infer(calls, request("underscored"))).code is Code.OK
            assert (await infer(calls, request("underscored"), ("triton_grpc_error", "true"))).code is Code.INTERNAL


@pytest.mark.slow
async def test_negative_control_of_itself_nginx_takes_a_mebibyte(gateway: Gateway, world: World, worker: FakeWorker) -> None:
    if reason := fronts.missing_nginx():
        unavailable(reason)
    await served(gateway, world, worker, "two-mebibytes")
    with fronts.nginx(gateway.listen, more="") as address:
        async with channel(address) as calls:
            answer = await infer(calls, request("two-mebibytes", size=2 * MIB))
    assert (answer.code, "413" in answer.details) == (Code.UNKNOWN, True), answer


async def test_negative_control_with_a_meshs_retries_a_refused_call_is_another_call_unless_its_caller_gave_it_a_key(
    gateway: Gateway, world: World, worker: FakeWorker
) -> None:
    """Those that Istio gives to each route: a step whose outcome was not known would run again."""
    await served(gateway, world, worker, "retried", shards=8)

    async def refuse(seen: Seen) -> None:
        raise Refuse(Code.UNAVAILABLE, "its outcome is not known")

    worker.behave = refuse
    with fronts.envoy(gateway.listen, retries="connect-failure,refused-stream,unavailable,cancelled") as address:
        async with channel(address) as calls:
            for key, keys in ((), 3), (((headernames.IDEMPOTENCY_KEY, "mine"),), 1):
                worker.calls.clear()
                assert (await infer(calls, request("retried", 7), *key)).code is Code.UNAVAILABLE
                known = {seen.metadata.get(headernames.IDEMPOTENCY_KEY, seen.key) for seen in worker.calls}
                assert (len(worker.calls), len(known)) == (3, keys)


async def test_negative_control_with_a_meshs_proxy_before_a_worker_its_death_is_its_callers_error(
    gateway: Gateway, world: World, worker: FakeWorker
) -> None:
    """Nobody is refused a connection any more, which is how a gateway knows that a worker is gone and sends the call elsewhere."""
    plain, meshed = [await world.function(f"dead-{kind}") for kind in ("plain", "meshed")]
    await worker.stop()
    with fronts.envoy(worker.address) as sidecar:
        await world.register(plain, worker)
        await world.register(meshed, None, name=worker.name, address=sidecar)
        for function in (plain, meshed):
            await gateway.routed(function.label, function.uid)
        async with channel(gateway.listen) as calls:
            held = asyncio.create_task(infer(calls, request(plain.name), timeout=60))
            failed = await infer(calls, request(meshed.name), timeout=20)
            assert failed.code is Code.UNAVAILABLE, failed
            assert not held.done()
            again = await FakeWorker("w1").start()
            await world.register(plain, again)
            assert (await held).worker == "w1"
            await again.stop()
