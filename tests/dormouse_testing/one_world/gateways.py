"""Gateways' agents' processes: the real relay with its table, reads, streams, quotas and the word to the leader. The way to a worker is a
double (`Way`), and so is Envoy: some calls are sent as it sends them, once by the map, and then to the relay as a second try."""

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING

from dormouse_core import headernames
from dormouse_core.clearing import CLEAR
from dormouse_core.clocks import Rising
from dormouse_core.errors import Code
from dormouse_core.seams import Part, Reply
from dormouse_gateway.leader.demand import Demand
from dormouse_gateway.leader.leading import SILENCE_SECONDS, GatewayRegistration, LeaderStream, Reports
from dormouse_gateway.leader.reach import LIVE, Reach
from dormouse_gateway.relay.relaying import Relay
from dormouse_gateway.serving.quotas import Quotas
from dormouse_gateway.serving.streaming import Streaming
from dormouse_gateway.watching.keeping import Watching
from dormouse_gateway.watching.reads import Reads
from dormouse_gateway.watching.table import Table

from dormouse_testing.lives import NETWORK, Life
from dormouse_testing.one_world.operators import AgentLine
from dormouse_testing.one_world.workers import RESET, TRAVEL
from dormouse_testing.sessions_sim.world import KEYS

if TYPE_CHECKING:
    from dormouse_testing.one_world.world import OneWorld

NOBODY = Reply(14, b"", "connection refused", {headernames.BROKEN: "connect"})


class Way:
    """A `Transport`: what comes to a worker that stands still waits, one that dies resets, and a connection may break by itself, which the
    worker learns or does not."""

    def __init__(self, world: "OneWorld") -> None:
        self._world = world

    async def call(self, address: str, method: str, message: bytes, metadata: Mapping[str, str], *, timeout: float | None) -> Reply:
        if method == LIVE:
            await asyncio.sleep(TRAVEL)
            return Reply(0) if self._world.at(address) is not None else NOBODY
        if method == CLEAR:
            return Reply(int(Code.UNIMPLEMENTED), b"", "not supported", {headernames.BY: "worker"})
        return await self._call(address, message, metadata, timeout)

    async def stream(
        self, address: str, method: str, message: bytes, metadata: Mapping[str, str], part: Part, *, timeout: float | None
    ) -> Reply:
        raise AssertionError("no function streams here")

    async def _call(self, address: str, message: bytes, metadata: Mapping[str, str], timeout: float | None) -> Reply:
        world, rng = self._world, self._world.rng
        answer: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        ticket = object()
        worker = None
        try:
            async with asyncio.timeout(timeout):
                await asyncio.sleep(rng.uniform(0.0005, 0.02))
                worker = world.at(address)
                if worker is None:
                    return NOBODY
                worker.life.soon(worker.serve, ticket, message, metadata, lambda reply: answer.done() or answer.set_result(reply))
                world.when_dead(worker.life, lambda: answer.done() or answer.set_result(RESET))
                if world.troubled and rng.random() < world.shape.resets:
                    await asyncio.sleep(rng.uniform(0.0, 0.2))
                    world.trace(f"a connection to {worker.name} breaks")
                    if rng.random() < 0.5:
                        worker.life.soon(worker.gone, ticket)
                    return RESET
                reply = await answer
                await asyncio.sleep(rng.uniform(0.0005, 0.02))
                return reply
        except TimeoutError:
            if worker is not None:
                worker.life.soon(worker.gone, ticket)
            return Reply(4, b"", "Deadline Exceeded")
        except asyncio.CancelledError:
            if worker is not None:
                worker.life.soon(worker.gone, ticket)
            raise


class Stamps(Rising):
    """Remembers when, by a clock that is right, each timestamp was made."""

    def __init__(self, gateway: "Gateway") -> None:
        super().__init__(gateway.timed.skew)
        self._gateway = gateway

    def next(self) -> int:
        made = super().next()
        self._gateway.world.made[f"{made:016d}-g-{self._gateway.name}"] = round(self._gateway.world.clock.now() * 1e6)
        return made


class Gateway:
    """One process, made as `dormouse_gateway.__main__` makes it."""

    def __init__(self, world: "OneWorld", place: str) -> None:
        world.processes += 1
        self.world = world
        self.name = f"{place}x{world.processes}"
        self.life = Life(self.name)
        self.timed = world.machines.start()
        clock, skew, shape = self.timed.clock, self.timed.skew, world.shape
        self.store = world.client(self.name, clock)
        self.table = Table(KEYS)
        self.reads = Reads(KEYS, self.store, clock)
        self.demand = Demand(clock)
        way = Way(world)
        reach = Reach(clock, way)
        self.relay = Relay(
            self.table, self.reads, clock, way, self.demand, default_namespace="sim", max_held=shape.max_held, reach=reach,
            seed=world.rng.randrange(1 << 30), time=skew,
        )  # fmt: skip
        self.way = way
        self.quotas = Quotas(self.table.sharing, shape.max_streams)
        self.stamps = Stamps(self)
        self.codes: list[int] = []
        self.streaming = Streaming(
            self.relay, clock, self.name, self.codes.append, self.quotas, default_namespace="sim", stamps=self.stamps
        )
        self.watching = Watching(self.table, KEYS, self.store, clock, self.relay.changed)
        self.registration = GatewayRegistration(self.store, clock, KEYS, self.name, self.name)
        reports = Reports(self.name, self.demand, skew, lambda: self.table.complete, reach)
        self._leader = _Leader(self, reports)
        self._calls = 0
        self.store.on_rewound = lambda why: self.life.soon(self._rewound)

    def begin(self) -> None:
        for part in (self.watching.run(), self.registration.run(), self._leader.run()):
            self.life.begin(part).add_done_callback(self.world.ended, context=NETWORK)

    @property
    def ready(self) -> bool:
        """Callers are sent here: its process lives, as far as can be seen, and has listed the store."""
        return self.life.alive and self.table.complete and not self.timed.skew.off

    def call_key(self) -> str:
        """A new one, as router.lua makes it."""
        self._calls += 1
        stamp = self.stamps.next()
        maker = f"g-{self.name}.{self.stamps.life}" if self.stamps.life else f"g-{self.name}"
        return f"{stamp:016d}-{maker}-{self._calls}"

    def _rewound(self) -> None:
        self.reads.rewound()
        self.registration.rewound()


class _Leader(LeaderStream):
    """The real one but for its connection."""

    def __init__(self, gateway: Gateway, reports: Reports) -> None:
        super().__init__(gateway.store, gateway.timed.clock, KEYS, reports, gateway.timed.skew, lambda: None)
        self._world = gateway.world

    async def _report_to(self, address: str) -> None:
        operator = self._world.operators.get(address)
        line = operator.line() if operator is not None else None
        if line is None:
            return
        self._skew.meet()
        sending = asyncio.create_task(self._send(line))
        try:
            while True:
                async with asyncio.timeout(SILENCE_SECONDS):
                    order = await line.orders.get()
                if order is None:
                    return
                self._measure(order)
                self._reports.ordered(order)
        except TimeoutError:
            return
        finally:
            sending.cancel()
            line.hang_up()

    async def _send(self, line: AgentLine) -> None:
        async for report in self._reports.stream():
            line.report(report)
