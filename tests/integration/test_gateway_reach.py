"""A living owner that a real gateway does not reach, since bytes vanish on their way: the leader is told, and calls follow what it does."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
from dormouse_core import limits
from dormouse_core.reaching import Reaches
from dormouse_core.seams import Put, Txn
from dormouse_proto import control_pb2, control_pb2_grpc, state_pb2
from dormouse_testing.etcd_server import EtcdServer
from dormouse_testing.gateway import FakeWorker, Seen, Wire, World, infer, request, running

INSTALLATION = "gateway-reach"
KEEPALIVE = 2.8  # seconds: a second of silence, and two for the ping, but for what passes before the first


class Leader(control_pb2_grpc.CoordinatorServicer):
    """Hears agents, and has them try whom one of them does not reach; decides nothing."""

    def __init__(self) -> None:
        self.reaches = Reaches()
        self.agents: set[str] = set()
        self.addresses: dict[str, str] = {}
        self.asked: set[str] = set()  # to be tried in any case
        self.reached: set[str] = set()
        self._server = grpc.aio.server()

    async def Agent(self, requests: AsyncIterator[control_pb2.AgentReport], context: Any) -> AsyncIterator[control_pb2.AgentOrder]:
        async for report in requests:
            self.agents.add(report.agent)
            now = asyncio.get_running_loop().time()
            self.reaches.take(report.agent, report.reaches, now)
            self.reached = {each.worker for each in report.reaches if each.reached}
            named = sorted({*self.reaches.to_try(now), *self.asked})
            tries = [control_pb2.AgentOrder.Try(worker=each, address=self.addresses[each]) for each in named]
            yield control_pb2.AgentOrder(tries=tries)

    async def start(self) -> str:
        control_pb2_grpc.add_CoordinatorServicer_to_server(self, self._server)
        port = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()
        return f"127.0.0.1:{port}"

    async def stop(self) -> None:
        await self._server.stop(0)

    def unreachable(self, worker: str) -> float:
        return self.reaches.seconds(worker, self.agents, asyncio.get_running_loop().time())


async def true(what: Any, seconds: float) -> float:
    """How long it took."""
    began = asyncio.get_running_loop().time()
    async with asyncio.timeout(seconds):
        while not what():  # noqa: ASYNC110 - reports come each second and set no event
            await asyncio.sleep(0.02)
    return asyncio.get_running_loop().time() - began


async def test_a_gateway_says_whom_it_does_not_reach_and_its_calls_follow_the_shard(etcd_server: EtcdServer, world: World) -> None:
    """Compressed steps go by the relay. The first is at its owner when the network is cut, the second comes afterwards."""
    lost, other = [await FakeWorker(name).start() for name in ("lost", "other")]
    wire = await Wire(lost.address).start()
    leader = Leader()
    runs = asyncio.Event()

    async def slow(seen: Seen) -> None:
        runs.set()
        await asyncio.sleep(60)

    try:
        await world.store.txn(
            Txn((), (Put(world.keys.leader, state_pb2.Leader(address=await leader.start(), name="x").SerializeToString()),))
        )
        function = await world.function("steps", shards=8)
        await world.register(function, lost, address=wire.address)
        await world.register(function, other)
        await world.own(function, "lost", list(range(8)))
        leader.addresses = {"lost": wire.address, "other": other.address}
        with running(etcd_server.endpoint, INSTALLATION) as gateway:
            await gateway.routed(function.label, "map")
            async with gateway.channel() as channel:
                lost.behave = slow
                first = asyncio.create_task(infer(channel, request("steps", 1), timeout=60, compression=grpc.Compression.Gzip))
                await runs.wait()
                assert leader.unreachable("lost") == 0
                wire.freeze()
                second = asyncio.create_task(infer(channel, request("steps", 2), timeout=60, compression=grpc.Compression.Gzip))
                leader.asked = {"other"}
                took = await true(lambda: leader.unreachable("lost") >= limits.UNREACHABLE_SECONDS, 30)
                assert took < 25, "the calls are held, and the leader knows"
                await true(lambda: "other" in leader.reached, 20)
                assert [first.done(), second.done()] == [False, False]
                await world.own(function, "other", list(range(8)), epoch=2)
                moved = asyncio.get_running_loop().time()
                answers = [await first, await second]
                assert {(each.code, each.worker) for each in answers} == {(grpc.StatusCode.OK, "other")}
                assert asyncio.get_running_loop().time() - moved < 10
                assert lost.calls[0].key in {seen.key for seen in other.calls}, "under its key"
                await asyncio.sleep(limits.UNREACHABLE_SECONDS + 2)
                assert leader.unreachable("lost") > limits.UNREACHABLE_SECONDS, (
                    "no call waits for it, and it is tried while it is out of reach"
                )
    finally:
        await wire.cut()
        await lost.stop(0)
        await other.stop(0)
        await leader.stop()


async def test_a_running_step_at_a_worker_whose_node_is_gone_follows_at_once(etcd_server: EtcdServer, world: World) -> None:
    """No reset comes. By Envoy alone it would wait for the connection's keepalive, 3 s (decision 0127)."""
    lost, other = [await FakeWorker(name).start() for name in ("lost", "other")]
    wire = await Wire(lost.address).start()
    runs = asyncio.Event()

    async def slow(seen: Seen) -> None:
        runs.set()
        await asyncio.sleep(60)

    try:
        function = await world.function("nodes", shards=8)
        await world.register(function, lost, address=wire.address)
        await world.register(function, other)
        await world.own(function, "lost", list(range(8)))
        lost.behave = slow
        with running(etcd_server.endpoint, INSTALLATION) as gateway:
            await gateway.routed(function.label, "map")
            async with gateway.channel() as channel:
                times: dict[str, float] = {}
                # A busy machine may make it look like a keepalive; without the rule, no try is faster than one.
                for way, more in [*[("relay", {"compression": grpc.Compression.Gzip})] * 3, ("envoy", {})]:
                    if times.get(way, KEEPALIVE) < KEEPALIVE:
                        continue
                    runs.clear()
                    call = asyncio.create_task(infer(channel, request("nodes", 1), timeout=60, **more))
                    await runs.wait()
                    wire.freeze()
                    await world.unregister(function, "lost")
                    await world.own(function, "other", list(range(8)), epoch=2)
                    moved = asyncio.get_running_loop().time()
                    assert (await call).worker == "other"
                    times[way] = asyncio.get_running_loop().time() - moved
                    await wire.cut()
                    wire = await Wire(lost.address).start()
                    await world.register(function, lost, address=wire.address)
                    await world.own(function, "lost", list(range(8)), epoch=3)
                    await gateway.routed(function.label, wire.address)
                assert times["relay"] < KEEPALIVE
                assert times["envoy"] < 15, "1 s of silence, 2 s for the ping, and a loaded machine"
    finally:
        await wire.cut()
        await lost.stop(0)
        await other.stop(0)
