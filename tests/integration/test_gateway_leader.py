"""The agent's entry in the store and its stream to the leader, with a real store and a leader of the test's own."""

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
from dormouse_core.clocks import Skew
from dormouse_core.keys import Keys
from dormouse_core.seams import Put, Txn
from dormouse_gateway.leader.demand import Demand
from dormouse_gateway.leader.leading import GatewayRegistration, LeaderStream, Reports
from dormouse_kit import log
from dormouse_kit.clock import SystemClock
from dormouse_kit.etcd import EtcdStore
from dormouse_proto import control_pb2, control_pb2_grpc, state_pb2
from dormouse_testing.etcd_server import EtcdServer


class Leader(control_pb2_grpc.CoordinatorServicer):
    def __init__(self) -> None:
        self.reports: asyncio.Queue[control_pb2.AgentReport] = asyncio.Queue()

    async def Agent(self, request_iterator: AsyncIterator[control_pb2.AgentReport], context: Any) -> AsyncIterator[Any]:
        async for report in request_iterator:
            self.reports.put_nowait(report)
            yield control_pb2.AgentOrder(echo_us=report.sent_us, leader_us=report.sent_us)

    async def start(self, address: str = "127.0.0.1:0") -> str:
        self.server = grpc.aio.server()
        control_pb2_grpc.add_CoordinatorServicer_to_server(self, self.server)
        port = self.server.add_insecure_port(address)
        await self.server.start()
        return f"127.0.0.1:{port}"


async def test_reports_go_to_whoever_leads_and_at_once_when_a_call_waits(
    etcd_server: EtcdServer, installation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, clock, keys = EtcdStore([etcd_server.endpoint]), SystemClock(), Keys(installation)
    skew = Skew(clock)
    demand = Demand(clock)
    reports = Reports("agent-1", demand, skew, lambda: True)
    monkeypatch.setattr(reports, "pause", lambda: 3600.0)  # what comes, comes at once, and not as the next one in turn
    stream = asyncio.create_task(LeaderStream(store, clock, keys, reports, skew, lambda: None).run())
    first, second = Leader(), Leader()

    async def lead(leader: Leader) -> None:
        value = state_pb2.Leader(address=await leader.start(), name="x").SerializeToString()
        await store.txn(Txn((), (Put(keys.leader, value),)))

    try:
        await lead(first)
        async with asyncio.timeout(20):
            report = await first.reports.get()
        assert (report.agent, report.complete) == ("agent-1", True)
        demand.arrived("speech/vad", "u")
        demand.hold("speech/vad", "u")
        async with asyncio.timeout(20):
            while not (report := await first.reports.get()).demand:
                pass
        assert (report.demand[0].namespace, report.demand[0].name, report.demand[0].held) == ("speech", "vad", 1)
        await lead(second)
        await first.server.stop(0)
        async with asyncio.timeout(20):
            assert (await second.reports.get()).demand[0].held == 1
    finally:
        stream.cancel()
        await asyncio.gather(stream, return_exceptions=True)
        await second.server.stop(0)
        await store.close()


async def test_a_leader_that_is_away_is_said_to_be_away_once(
    etcd_server: EtcdServer, installation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(log, "event", lambda text, **_: said.append(text))
    store, clock, keys = EtcdStore([etcd_server.endpoint]), SystemClock(), Keys(installation)
    skew = Skew(clock)
    reports = Reports("agent-1", Demand(clock), skew, lambda: True)
    dialled: asyncio.Queue[None] = asyncio.Queue()

    def report() -> control_pb2.AgentReport:
        dialled.put_nowait(None)
        return control_pb2.AgentReport(agent="agent-1")

    monkeypatch.setattr(reports, "report", report)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        await store.txn(Txn((), (Put(keys.leader, state_pb2.Leader(address=address, name="x").SerializeToString()),)))
        stream = asyncio.create_task(LeaderStream(store, clock, keys, reports, skew, lambda: None).run())
        try:
            async with asyncio.timeout(60):
                for _ in range(4):
                    await dialled.get()
        finally:
            stream.cancel()
            await asyncio.gather(stream, return_exceptions=True)
            await store.close()
    assert said.count("the stream to the leader broke") == 1


async def test_the_agents_entry_lives_as_long_as_its_lease(etcd_server: EtcdServer, installation: str) -> None:
    store, keys = EtcdStore([etcd_server.endpoint]), Keys(installation)
    registration = GatewayRegistration(store, SystemClock(), keys, "agent-1", "127.0.0.1:8002")
    running = asyncio.create_task(registration.run())
    key = keys.gateway("agent-1")

    async def entry() -> Any:
        return (await store.get([key]))[1].get(key)

    async def under_another_lease(than: int) -> Any:
        async with asyncio.timeout(30):
            while (found := await entry()) is None or found.lease == than:  # noqa: ASYNC110 - a store has no event to wait for
                await asyncio.sleep(0.05)
        return found

    try:
        item = await under_another_lease(0)
        assert state_pb2.GatewayEntry.FromString(item.value).address == "127.0.0.1:8002"
        await store.revoke(item.lease)  # as if it had not been renewed in time
        again = await under_another_lease(item.lease)
        assert state_pb2.GatewayEntry.FromString(again.value).address == "127.0.0.1:8002"
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    await registration.leave()
    assert await entry() is None
    await store.close()
