"""One simulated history: who is in it, and what goes wrong."""

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from dormouse_core import limits, records, usages
from dormouse_core.alarms import Change
from dormouse_core.errors import Again, DormouseError, Internal, Unavailable
from dormouse_core.keys import Function, Keys
from dormouse_core.seams import Put, Txn
from dormouse_core.sessions.groups import Pending
from dormouse_proto import state_pb2
from dormouse_worker.sessions import Answer, Failed, Outcome, Ran, Sessions, SessionSettings, StateInfo, Step

from dormouse_testing import simloop
from dormouse_testing.clock import SimClock
from dormouse_testing.memory_etcd import MemoryEtcd
from dormouse_testing.memory_store import FULL, REFUSED, Fault, MemoryStore
from dormouse_testing.sessions_sim.clients import Client
from dormouse_testing.sessions_sim.history import NUMBER, History, Violation
from dormouse_testing.sessions_sim.leader import Leader
from dormouse_testing.sessions_sim.machines import EVERY, Machines, Timed

FUNCTION = Function("sim", "chain", "uid-1")
KEYS = Keys("sim")
STATES = [StateInfo("chain", "chain", "chain", "UINT8", (-1,), None, np.zeros(0, np.uint8))]


@dataclass(frozen=True)
class Shape:
    """How large a history is, and how much goes wrong in it."""

    instances: int = 2
    shards: int = 2
    sessions: int = 3
    calls: int = 8  # a session
    trouble: float = 12.0  # seconds; then everything works, and every call must be answered
    bad: float = 0.04  # of requests to the store
    restless: float = 0.35  # how often the leader moves something for no reason
    crashes: float = 0.12  # a second and instance
    ttl: float = 3600.0
    removal_wait: float = 0.0  # 0: nothing is removed
    deletes: float = 0.0  # how often somebody deletes a session, a tick of the leader
    fills: float = 0.0  # how often the store becomes full, a second; for some seconds, and half of the leader's ticks then delete a session
    skew: float = 0.0  # seconds, of wall clocks
    wrong: float = 0.0  # of workers' clocks: an hour off, now and then
    gateways: int = 1  # who make the keys, each by its own clock
    measured: bool = True  # a leader says how far off they are
    gives_up: float = 0.05  # of calls: the client goes on with its next one
    copies: float = 0.15  # of attempts: another copy arrives, some time later
    ends: float = 0.2  # of the calls in a sequence
    watch_delays: tuple[float, ...] = (0.0, 0.005, 0.05, 0.5)
    stalls: float = 0.0  # of transactions: applied, the reply lost, and this client's reads take seconds from then on
    stale: float = 0.0  # of reads: the answer takes seconds
    callers: int = 1  # of one session; each waits for its own answers only
    max_count: int = limits.SESSIONS_MAX
    starts: bool = True  # sequences with start and end; else sessions that any step may create


def shape_of(seed: int) -> Shape:
    """Seeds differ in what they stress."""
    kinds = (
        Shape(),
        Shape(shards=1, sessions=2, bad=0.12),
        Shape(instances=3, restless=1.0, crashes=0.05),
        Shape(sessions=1, calls=14, copies=0.4, starts=False),
        Shape(ttl=1.5, removal_wait=0.5, copies=0.4, deletes=0.05),
        Shape(ttl=2.0, removal_wait=0.5, copies=0.4, starts=False, calls=6, gives_up=0.2),
        Shape(crashes=0.4, bad=0.02, gives_up=0.0, deletes=0.1),
        Shape(skew=0.5, bad=0.06, gateways=3),
        Shape(gives_up=0.6, copies=0.6, restless=1.0, calls=12, sessions=2),
        Shape(shards=1, restless=1.5, watch_delays=(1.0, 3.0), ends=0.5, bad=0.02, crashes=0.02, calls=16, sessions=1),
        Shape(shards=1, sessions=1, callers=3, stalls=0.1, restless=1.5, crashes=0.02, copies=0.0, starts=False),
        Shape(skew=2.4, wrong=0.5, gateways=3, restless=1.0, starts=False, calls=12, ttl=600.0),
        Shape(skew=2.4, wrong=0.2, gateways=2, ttl=1.5, removal_wait=0.5, copies=0.4),
        Shape(skew=2.4, gateways=2, measured=False, starts=False, calls=14, restless=1.0),
        Shape(fills=0.6, copies=0.6, calls=12, sessions=4),
        Shape(fills=0.6, shards=1, copies=0.6, starts=False, sessions=2, calls=12, crashes=0.05),
    )
    return kinds[seed % len(kinds)]


class Model:
    """The runner of one process: appends the call's number to the state, after some time."""

    def __init__(self, world: "World", process: "Process") -> None:
        self._world = world
        self._process = process

    def run(
        self,
        call: Any,
        states: dict[str, np.ndarray],
        step: int,
        start: bool,
        end: bool,
        done: Callable[[Outcome], None],
        deadline: float,
    ) -> None:
        rng = self._world.rng
        seconds = rng.uniform(0.001, 0.05) if rng.random() > 0.05 else rng.uniform(0.2, 1.0)
        chain = states["chain"]

        def finish() -> None:
            if not self._process.alive:
                return
            if self._world.troubled and rng.random() < 0.03:
                done(Failed(Internal("the handler raised")))
                return
            after = np.concatenate([chain, np.frombuffer(NUMBER.pack(call.number), np.uint8)])
            done(Ran(self._world.reply(call, after.tobytes()), {"chain": after}, self._world.asks(call)))

        asyncio.get_running_loop().call_later(seconds, finish)


@dataclass(eq=False)
class Process:
    """One worker process. A process that ended is never the same again: the instance starts the next, under a new name."""

    name: str
    store: MemoryStore
    timed: Timed
    sessions: Sessions = field(init=False)
    alive: bool = True
    ready: bool = False
    tasks: list["asyncio.Task[Any]"] = field(default_factory=list)

    def die(self) -> None:
        """SIGKILL: nothing of it runs any more. What it sent is on its way all the same."""
        self.alive = self.ready = False
        for task in [*self.tasks, *self.sessions._tasks, self.sessions.registration._task]:
            if task is not None:
                task.cancel()


class World:
    def __init__(self, seed: int, shape: Shape, trace: Callable[[str], None] | None = None) -> None:
        self.rng = random.Random(seed)
        self.shape = shape
        self.clock = SimClock()
        self.etcd = MemoryEtcd(self.clock)
        slack = 0.001 + (0.0 if shape.measured else 2 * shape.skew)
        self.history = History(int(slack * 1e6), int(shape.removal_wait * 1e6), int(shape.ttl * 1e6))
        self.machines = Machines(self.rng, self.clock, shape.skew, shape.wrong, shape.measured)
        self.gateways = [self.machines.start(never_wrong=True) for _ in range(shape.gateways)]
        self.instances: dict[str, Process] = {}
        self.troubled = True
        self.processes = 0
        self._trace = trace
        self._seen = 1
        self.full_since: float | None = None
        self.settled: dict[int, int] = {}  # shard -> the floor that was made where a leader had left debts
        self._stalled: dict[str, float] = {}  # client -> until when its reads are slow
        self.leader = Leader(self)
        self.etcd.listeners.add(self._observe)
        self.violations: list[BaseException] = []

    def reply(self, call: Any, chain: bytes) -> bytes:
        """What a step answers whose state is now `chain`."""
        return chain

    def asks(self, call: Any) -> Sequence[Change]:
        """The alarms that its step sets."""
        return ()

    def trace(self, text: str) -> None:
        if self._trace is not None:
            self._trace(f"{self.clock.monotonic():10.4f}  {text}")

    # ---------------------------------------------------------------------------------------------------------------- the store

    def client(self, who: str, clock: SimClock | None = None) -> MemoryStore:
        store = MemoryStore(clock or self.clock, etcd=self.etcd)
        store.hook = lambda method, request: self._fault(who, method, request)
        store.watch_delay = self.rng.choice(self.shape.watch_delays)
        return store

    def _fault(self, who: str, method: str, request: object) -> Fault:
        rng = self.rng
        there, back = rng.uniform(0.0002, 0.01), rng.uniform(0.0002, 0.01)
        puts = isinstance(request, Txn) and any(isinstance(write, Put) for write in request.writes)
        if self.full_since is not None and (puts or method == "grant"):
            # What was proposed before it was full is written, and answered as if it were not.
            applied = self.clock.monotonic() - self.full_since < 0.1 and rng.random() < 0.5
            self.trace(f"{who} {method}: full{', and applied' if applied else ''}")
            return Fault(request_delay=there, reply_delay=back, refuse=FULL.refuse, applied=applied)
        if self.shape.stalls and self.troubled:
            now = self.clock.monotonic()
            if method == "txn" and rng.random() < self.shape.stalls:
                self.trace(f"{who} {method}: reply, and a stall")
                self._stalled[who] = now + 2.0
                return Fault(request_delay=there, lose_reply=True)
            if method == "get" and self._stalled.get(who, 0.0) > now:
                return Fault(request_delay=2.0)
        if self.shape.stale and self.troubled and method == "get" and rng.random() < self.shape.stale:
            return Fault(request_delay=there, reply_delay=rng.uniform(0.5, 3.0))
        if not self.troubled or rng.random() > self.shape.bad:
            return Fault(request_delay=there, reply_delay=back)
        kind = rng.choice(("request", "reply", "late", "late", "slow", "refuse"))
        self.trace(f"{who} {method}: {kind}")
        match kind:
            case "request":
                return Fault(lose_request=True)
            case "reply":
                return Fault(request_delay=there, lose_reply=True)
            case "late":
                return Fault(request_delay=rng.choice((5.5, 6.0, 9.0)))  # the caller has given up by then
            case "slow":
                return Fault(request_delay=rng.uniform(0.0, 2.0), reply_delay=rng.uniform(0.0, 2.0))
            case _:
                return REFUSED

    def _observe(self) -> None:
        """Called by the store after each change: looks at every new version of every record."""
        prefix = KEYS.states(FUNCTION)
        events = self.etcd.events(prefix, self._seen + 1)
        entries = [(e.key.rpartition("/")[2], e) for e in self.etcd.events(KEYS.shards(FUNCTION), self._seen + 1)]
        left = {(shard, e.mod_revision) for shard, e in entries if e.item is None}
        for shard, e in entries:
            floor = self.etcd.item(KEYS.floor(FUNCTION, int(shard)))
            nobodys = e.item is not None and not state_pb2.ShardEntry.FromString(e.item.value).owner
            if nobodys and floor is not None and floor.mod_revision == e.mod_revision:
                self.settled[int(shard)] = state_pb2.Floor.FromString(floor.value).timestamp_us
                self.trace(f"leader settles shard {shard}")
        self._seen = self.etcd.revision
        for event in events:
            shard, _, session = event.key[len(prefix) :].partition("/")
            entry = KEYS.shard(FUNCTION, int(shard))
            erased = (entry.rpartition("/")[2], event.mod_revision) in left or self.etcd.item(entry) is None
            try:
                self.history.landed(session, event, int(self.clock.now() * 1e6), erased=erased)
            except BaseException as violation:
                self.violations.append(violation)
            self.trace(f"landed {event.mod_revision} {session} {self.history.of(session).last}")

    # ------------------------------------------------------------------------------------------------------------------ processes

    def sessions(self, process: "Process", instance: str, address: str, revision: str = "r1") -> Sessions:
        settings = SessionSettings(
            shards=self.shape.shards,
            state_version="v1",
            ttl=self.shape.ttl,
            evict_after=self.rng.choice((0.5, 600.0)),
            step_limit=5.0,
            removal_wait=self.shape.removal_wait or 600.0,
            max_count=self.shape.max_count,
        )
        made = Sessions(
            FUNCTION,
            settings,
            STATES,
            process.store,
            process.timed.clock,
            Model(self, process),
            worker=process.name,
            address=address,
            instance=instance,
            revision=revision,
            keys=KEYS,
            time=process.timed.skew,
        )
        groups = made.machine.turns.groups
        groups.add = partial(self._written, groups.add)  # type: ignore[method-assign]
        return made

    async def start(self, instance: str) -> Process:
        """Runs until it has a process that registered."""
        while True:
            self.processes += 1
            name = f"{instance}-{self.processes}"
            timed = self.machines.start()
            clock = timed.clock
            process = Process(name, self.client(name, clock), timed)
            process.sessions = self.sessions(process, instance, name)
            self.trace(f"{name} starts, its clock {clock.skew:+.3f} s")
            self.instances[instance] = process
            try:
                await process.sessions.start()
            except (DormouseError, Exception) as error:
                self.trace(f"{name} does not start: {error!r}")
                process.die()
                await asyncio.sleep(0.1)
                continue
            process.ready = True
            return process

    async def live(self, instance: str) -> None:
        """One instance's life: processes die, drain, lose their lease; the next one starts."""
        rng = self.rng
        while True:
            process = await self.start(instance)
            while process.alive:
                await asyncio.sleep(0.25)
                if process.sessions.lost.is_set():
                    self.trace(f"{process.name} lost its lease")
                    process.die()
                elif self.troubled and rng.random() < self.shape.crashes * 0.25:
                    await self._hurt(process)
            await asyncio.sleep(rng.uniform(0.0, 0.5))

    async def _hurt(self, process: Process) -> None:
        rng = self.rng
        match rng.choice(("kill", "kill", "cut", "drain")):
            case "kill":
                self.trace(f"{process.name} is killed")
                process.die()
            case "cut":
                self.trace(f"{process.name} is cut off from the store")
                process.store.down = True
                await asyncio.sleep(rng.uniform(0.5, 6.0))
                process.store.down = False
            case "drain":
                self.trace(f"{process.name} drains")
                drain = asyncio.create_task(process.sessions.drain())
                process.tasks.append(drain)
                await asyncio.wait({drain}, timeout=rng.uniform(0.0, 4.0))
                if not drain.done():
                    process.sessions.no_taker()
                    await asyncio.wait({drain}, timeout=10.0)
                if drain.done():
                    self.trace(f"{process.name} has drained")
                    process.ready = False
                    await process.sessions.close()
                process.die()

    def _written(self, add: Callable[[Pending], None], pending: Pending) -> None:
        self.history.written(pending.step, pending.write_id)
        add(pending)

    # ----------------------------------------------------------------------------------------------------------------- the network

    async def send(self, instance: str, step_of: Callable[[Callable[[Answer], None]], Step]) -> Answer:
        """One attempt at an instance: an answer, or Unavailable where the connection breaks."""
        rng = self.rng
        await asyncio.sleep(rng.uniform(0.0005, 0.02))
        process = self.instances.get(instance)
        if process is None or not process.ready:
            return Answer(None, 0, Unavailable("connection refused", Again.NOT_MINE))
        if process.timed.skew.off:
            return Answer(None, 0, Unavailable(process.timed.skew.text(), Again.CLOCK))
        answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

        def answer(it: Answer) -> None:
            assert not answered.done(), "a step is answered twice"
            answered.set_result(it)
            if isinstance(it.error, Unavailable) and (it.error.again is not None or "is not committed" in it.error.message):
                try:
                    self.history.denied(step, step.call)
                except Violation as violation:
                    self.violations.append(violation)

        step = step_of(answer)
        process.sessions.submit(step)
        for _ in range(2_000):
            done, _pending = await asyncio.wait({answered}, timeout=0.05)
            if done:
                await asyncio.sleep(rng.uniform(0.0005, 0.02))
                return answered.result()
            if not process.alive:
                return Answer(None, 0, Unavailable("connection reset"))
        raise AssertionError(f"{process.name} has not answered for 100 s")

    async def play(self) -> None:
        for number in range(self.shape.instances):
            self.instances[f"i{number}"] = None  # type: ignore[assignment]
        await self.leader.begin()
        loops = [asyncio.create_task(self.live(instance)) for instance in list(self.instances)]
        loops.append(asyncio.create_task(self.leader.lead()))
        clients = [Client(self, f"/i:{n + 1}") for n in range(self.shape.sessions) for _ in range(self.shape.callers)]
        callers = [asyncio.create_task(client.run()) for client in clients]
        loops.append(asyncio.create_task(self._calm()))
        loops.append(asyncio.create_task(self._tick()))
        if self.shape.fills:
            loops.append(asyncio.create_task(self._fill()))
        try:
            waiting = set(callers)
            while waiting and not self.violations:
                done, waiting = await asyncio.wait(waiting, timeout=1.0, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            # Late copies and late transactions may still do harm.
            for _ in range(12):
                if not self.violations:
                    await asyncio.sleep(1.0)
            for client in clients:
                client.finish()
            self._count()
            for process in self.instances.values():
                if process.ready and not self.violations and all(copy.done() for client in clients for copy in client.copies):
                    report = process.sessions.report()
                    assert (report.running, report.queued) == (0, 0), f"{process.name} forgets steps: {report}"
        finally:
            for process in self.instances.values():
                if process is not None:
                    process.die()
            tasks = [*loops, *callers, *(copy for client in clients for copy in client.copies)]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if self.violations:
            raise self.violations[0]

    def _count(self) -> None:
        """What the store says was used, in records and in totals of removed ones, against the steps that landed. Where a leader ended with
        tombstones that it owed, it took their usage along; what one owes still is not in the store."""
        totals: usages.Totals = {}
        for item in self.etcd.range(KEYS.usages(FUNCTION)).items:
            usages.include(totals, usages.decode(item.value) or {})
        for item in self.etcd.range(KEYS.states(FUNCTION)).items:
            usages.add(totals, "", records.used(item.value)[1] or usages.NOTHING)
        counted, landed = usages.whole(totals), self.history.steps
        owed = self.settled or (self.leader.owed is not None and self.leader.owed.shards)
        if counted.steps > landed or (counted.steps < landed and not owed):
            self.violations.append(Violation("usage", f"{counted.steps} steps are counted, {landed} are committed"))
        if min(counted.live_us, counted.hibernated_us) < 0:
            self.violations.append(Violation("usage", f"bytes are counted below nothing: {counted}"))

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(EVERY)
            self.machines.tick(self.troubled)

    async def _fill(self) -> None:
        while True:
            await asyncio.sleep(self.rng.expovariate(self.shape.fills))
            if not self.troubled:
                return
            self.trace("the store is full")
            self.full_since = self.clock.monotonic()
            await asyncio.sleep(self.rng.choice((0.05, 0.5, 2.0, 4.0)))
            self.full_since = None
            self.trace("the store has room")

    async def _calm(self) -> None:
        await asyncio.sleep(self.shape.trouble)
        self.trace("calm")
        self.troubled = False
        for process in self.instances.values():
            if process is not None:
                process.store.down = False


def run(seed: int, *, shape: Shape | None = None, trace: Callable[[str], None] | None = None) -> World:
    """Plays one history; raises what it broke."""
    shape = shape or shape_of(seed)
    world: list[World] = []

    async def main() -> None:
        world.append(World(seed, shape, trace))
        await world[0].play()

    simloop.run(main(), limit=600.0)
    return world[0]
