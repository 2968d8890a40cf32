"""Operators' processes: the real election, and the real leader for as long as it leads. Each that ends is followed by a new one."""

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from dormouse_kit.election import Election
from dormouse_operator import terms
from dormouse_operator.leading import Leader
from dormouse_operator.services import CoordinatorService
from dormouse_proto import control_pb2, state_pb2

from dormouse_testing.lives import NETWORK, Life
from dormouse_testing.one_world.workers import Dialer, later
from dormouse_testing.sessions_sim.world import KEYS

if TYPE_CHECKING:
    from dormouse_testing.one_world.world import OneWorld


class Operator:
    """One process of one of the candidates, whose address its name is."""

    def __init__(self, world: "OneWorld", candidate: str) -> None:
        world.processes += 1
        self.world = world
        self.name = f"{candidate}-{world.processes}"
        self.life = Life(self.name)
        self.timed = world.machines.start()
        self.store = world.client(self.name, self.timed.clock)
        self.leader: Leader | None = None  # once it serves
        self._dialer = Dialer(world, self.life)
        self._lines: list[AgentLine] = []
        world.when_dead(self.life, self._hang_up)

    async def run(self) -> None:
        """In its life; it ends with its term."""
        clock = self.timed.clock
        value = state_pb2.Leader(address=self.name, name=self.name).SerializeToString()
        election = Election(self.store, clock, KEYS.leader, value)
        self.store.on_rewound = lambda why: self.life.soon(election.lost.set)
        stop = asyncio.Event()
        await terms.campaigned(election, stop)
        self.world.trace(f"{self.name} leads")
        leader = Leader(
            self.store,
            clock,
            KEYS,
            self.world.provider,
            self._dialer,
            leader_new=election.election,
            name=self.name,
            removal_wait=self.world.shape.removal_wait or None,
        )
        self.world.keepers.append(leader.timekeeper)

        async def serve() -> "Operator":
            self.leader = leader
            return self

        code = await terms.lead(leader, election, stop, serve)
        self.world.trace(f"{self.name} leads no more: {code}")
        await election.resign()
        self.life.die()

    async def stop(self) -> None:
        """It serves no more."""
        self.leader = None

    def line(self) -> "AgentLine | None":
        """A gateway's agent connects."""
        if self.leader is None or not self.life.alive:
            return None
        line = AgentLine()
        self._lines.append(line)
        self.life.begin(self._serve(line, self.leader)).add_done_callback(self.world.ended, context=NETWORK)
        return line

    async def _serve(self, line: "AgentLine", leader: Leader) -> None:
        async for order in CoordinatorService(leader).Agent(line.reports(), None):
            later(line.orders.put_nowait, order)

    def _hang_up(self) -> None:
        for line in self._lines:
            line.hang_up()


class AgentLine:
    """The stream between an agent and the leader."""

    def __init__(self) -> None:
        self.orders: asyncio.Queue[control_pb2.AgentOrder | None] = asyncio.Queue()
        self._reports: asyncio.Queue[control_pb2.AgentReport | None] = asyncio.Queue()

    def report(self, report: control_pb2.AgentReport) -> None:
        later(self._reports.put_nowait, report)

    async def reports(self) -> AsyncIterator[control_pb2.AgentReport]:
        while (report := await self._reports.get()) is not None:
            yield report

    def hang_up(self) -> None:
        later(self._reports.put_nowait, None)
        later(self.orders.put_nowait, None)
