"""One simulated history of everything together: who is in it, and how large it is."""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

from dormouse_core import spec
from dormouse_core.alarms import Change, Set
from dormouse_core.errors import Unavailable
from dormouse_core.seams import Put, Txn
from dormouse_core.sessions import groups
from dormouse_core.sessions.names import session_key
from dormouse_core.spec.durations import Duration
from dormouse_operator.function_entries import with_spec
from dormouse_operator.timekeeping import Timekeeper
from dormouse_proto import inference_pb2, state_pb2
from dormouse_worker.sessions import Answer, Step
from msgspec.structs import replace

from dormouse_testing import simloop
from dormouse_testing.clock import SimClock
from dormouse_testing.leader_world import manifest
from dormouse_testing.lives import NETWORK, Life, LivesLoop
from dormouse_testing.memory_store import MemoryStore
from dormouse_testing.one_world.callers import Caller
from dormouse_testing.one_world.gateways import Gateway
from dormouse_testing.one_world.operators import Operator
from dormouse_testing.one_world.provider import Provider
from dormouse_testing.one_world.weather import Weather
from dormouse_testing.one_world.workers import Worker
from dormouse_testing.sessions_sim import world
from dormouse_testing.sessions_sim.history import ALARMS, Call, History, Violation
from dormouse_testing.sessions_sim.machines import Machines
from dormouse_testing.sessions_sim.world import FUNCTION, KEYS

ORDER_US = 100_000
"""Gateways' clocks are compared to so much: they are measured over ways of some milliseconds."""
REMOVED = 10.0
"""Seconds that a removal may come late."""
DUE_US = (-1_000_000, 400_000, 3_000_000, 9_000_000)
"""From the step that sets an alarm to when it is due."""
ALARMS_SECONDS = 60
"""In which the last of them runs, once all is well."""
CANDIDATES = ("op-a", "op-b")
LARGE_BYTES = 17 * 1024
"""Of a reply that is too large to be kept in a record."""


@dataclass(frozen=True)
class Shape(world.Shape):
    """Beside what a history of sessions alone has. Rates are of events a second."""

    gateways: int = 2
    replicas: tuple[int | None, ...] = (2,)
    """What the function's replicas are set to by turns; None: as the autoscaler finds."""
    rescales: float = 0.1
    stills: float = 0.3
    """Processes that stand still for some seconds."""
    dies: float = 0.3
    compactions: float = 0.2
    restores: float = 0.0
    resets: float = 0.02
    """Of calls: the connection to the worker breaks."""
    straight: float = 0.3
    """Of unary calls: sent by the map first, as Envoy does."""
    streams: float = 0.3
    """Of what a caller does next: a stream."""
    own_keys: float = 0.5
    """Of unary calls: under a key of the caller's own, and sent again until answered."""
    large: float = 0.0
    """Of replies: too large to be kept."""
    reuses: float = 0.0
    """Of a caller's own keys: used before in the session."""
    alarms: float = 0.0
    """Of steps: set an alarm."""
    begins: float = 0.0
    """Seconds after which callers begin: clocks are measured by then."""
    max_held: int = 1000
    max_streams: int = 1000
    operations: int = groups.TXN_OPS
    """Comparisons in one commit."""


class OneWorld(world.World):
    shape: Shape

    def __init__(self, seed: int, shape: Shape, trace: Callable[[str], None] | None = None) -> None:
        super().__init__(seed, shape, trace)
        self.stores: list[MemoryStore] = []
        slack = 0.05 + 2 * shape.skew
        self.history = History(int(slack * 1e6), int(shape.removal_wait * 1e6), int(shape.ttl * 1e6), chain_in)
        self.history.order = lambda number: self.stamped.get(number, 0) // ORDER_US
        self.history.sets = self._sets
        self.machines = Machines(self.rng, SimClock(), shape.skew, 0.0, measured=False)
        self.places: dict[str, Gateway] = {}
        self.operators: dict[str, Operator] = {}
        self.missing: dict[int, int] = {}  # call -> versions of its session when the copy came that was answered "no such session"
        self.made: dict[str, int] = {}  # a gateway's key up to its number, as {timestamp}-g-{gateway} -> when it was made
        self.guessed: dict[str, float] = {}  # session -> when a key of it was last made by a clock that nobody had measured
        self.keepers: list[Timekeeper] = []
        self.stamped: dict[int, int] = {}  # call -> when the key of its newest copy was made
        self.copies_of: dict[int, int] = {}  # call -> copies of it that workers have not answered
        self.provider = Provider(self)
        self.weather = Weather(self)
        self._steps = 0

    @property
    def opaque(self) -> bool:
        """Whether a caller's key without a timestamp tells a call for as long as it is sent again."""
        shape = self.shape
        return shape.callers == 1 and not (shape.removal_wait or shape.fills)

    def session_key(self, session: int) -> str:
        return session_key("", session if self.shape.starts else str(session))

    # ---------------------------------------------------------------------------------------------------------------- the store

    def client(self, who: str, clock: SimClock | None = None) -> MemoryStore:
        store = super().client(who, clock)
        store.network = NETWORK
        if hasattr(self, "stores"):
            self.stores.append(store)
        return store

    def restored(self) -> None:
        """The store was put back: what is watched begins anew."""
        self._seen = self.etcd.revision
        for store in self.stores:
            store.break_watches()

    # ------------------------------------------------------------------------------------------------------------------ processes

    def when_dead(self, life: Life, call: Callable[[], None]) -> None:
        life.ended.add_done_callback(lambda _: call(), context=NETWORK)

    def ended(self, task: "asyncio.Task[Any]") -> None:
        """A part of the world's own machinery has failed."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self.violations.append(error)

    def _unseen(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """An error that nobody saw."""
        self.violations.append(context.get("exception") or AssertionError(context["message"]))

    def at(self, address: str) -> Worker | None:
        """Who listens there."""
        found: Worker | None = next((w for w in self.workers() if w.address == address), None)
        return found

    def workers(self) -> list[Worker]:
        return [w for w in self.instances.values() if isinstance(w, Worker) and w.alive and (w.ready or w.draining)]

    def lives(self) -> list[Life]:
        found = [w.life for w in self.workers()] + [g.life for g in self.places.values()] + [o.life for o in self.operators.values()]
        return [life for life in found if life.alive]

    async def _gateways(self, place: str) -> None:
        while True:
            gateway = Gateway(self, place)
            self.places[place] = gateway
            self.trace(f"{gateway.name} starts, its clock {gateway.timed.clock.skew:+.3f} s")
            gateway.begin()
            await gateway.life.ended
            await asyncio.sleep(self.rng.uniform(0.05, 0.5))

    async def _operators(self, candidate: str) -> None:
        while True:
            operator = Operator(self, candidate)
            self.operators[operator.name] = operator
            task = operator.life.begin(operator.run())
            task.add_done_callback(self.ended, context=NETWORK)
            await operator.life.ended
            del self.operators[operator.name]
            await asyncio.sleep(self.rng.uniform(0.1, 1.0))

    @property
    def anew(self) -> bool:
        """Whether a leader found nobody who went by the reference of the one before: all had ended. Gateways that did, and new ones, then
        stamped by two of them."""
        return sum(keeper.anew is True for keeper in self.keepers) > 1

    def leading(self) -> Operator | None:
        """Who leads, and knows it."""
        item = self.etcd.item(KEYS.leader)
        operator = None if item is None else self.operators.get(state_pb2.Leader.FromString(item.value).address)
        return operator if operator is not None and operator.leader is not None else None

    # ---------------------------------------------------------------------------------------------------------- what workers tell

    def reply(self, call: Any, chain: bytes) -> bytes:
        made = inference_pb2.ModelInferResponse(id=str(call.number), raw_output_contents=[chain])
        if self.shape.large and call.number % 100 < self.shape.large * 100:
            made.raw_output_contents.append(bytes(LARGE_BYTES))
        encoded: bytes = made.SerializeToString()
        return encoded

    def _sets(self, number: int) -> bool:
        call = self.history.calls[number]
        return number < ALARMS and not call.end and number % 100 < self.shape.alarms * 100

    def asks(self, call: Any) -> Sequence[Change]:
        if not self._sets(call.number):
            return ()
        number, now_us = ALARMS + call.number, round(self.clock.now() * 1e6)
        self.history.calls.setdefault(number, Call(number, call.session, now_us, False, False, False, 0, now_us))
        return (Set(f"a{call.number}", now_us + DUE_US[call.number % len(DUE_US)], b"%d" % number),)

    def alarmed(self, step: Step) -> Any:
        assert step.alarm is not None
        return self.history.calls[int(step.alarm.request)]

    def _pending(self) -> list[int]:
        return [number for session in self.history.sessions.values() for number in self.history.pending(session.last)]

    def arrived(self, worker: Worker, step: Step, key: str) -> None:
        """`key`: the gateway's, of this copy."""
        self._steps += 1
        number = step.call.number
        self.copies_of[number] = self.copies_of.get(number, 0) + 1
        self.missing.setdefault(-id(step), len(self.history.of(step.session).versions))
        self.stamped[number] = self.made[key]
        self.trace(f"call {number} comes to {worker.name} as {step.key}")

    def answered(self, worker: Worker, step: Step, it: Answer) -> None:
        """A worker answers a copy of a call."""
        self.trace(f"call {step.call.number} at {worker.name}: {it.error!r} {it.step}")
        self.copies_of[step.call.number] -= 1
        versions = self.missing.pop(-id(step), 0)
        if it.error is None:
            return
        try:
            if isinstance(it.error, Unavailable) and (it.error.again is not None or "is not committed" in it.error.message):
                self.history.denied(step, step.call)
            if "START flag" in it.error.message:
                self.history.said_missing(step.call, versions, int(self.clock.now() * 1e6))
        except Violation as violation:
            self.violations.append(violation)

    # ------------------------------------------------------------------------------------------------------------------------ play

    def _register(self) -> None:
        """The function, as somebody applied it before."""
        shape = self.shape
        read = spec.parse_manifest(manifest(shards=shape.shards, idle="2s")).spec
        assert read.sessions is not None
        sessions = replace(read.sessions, ttl=Duration(f"{round(shape.ttl * 1000)}ms"), max_count=shape.max_count)
        wanted = replace(read, sessions=sessions, timeouts=replace(read.timeouts, hold=Duration("60s")), replicas=shape.replicas[0])
        entry = state_pb2.FunctionEntry(namespace=FUNCTION.namespace, name=FUNCTION.name, uid=FUNCTION.uid, shards=shape.shards)
        value = with_spec(entry, wanted).SerializeToString()
        self.etcd.txn(Txn((), (Put(KEYS.function(FUNCTION.namespace, FUNCTION.name), value),)))

    async def play(self) -> None:
        asyncio.get_running_loop().set_exception_handler(self._unseen)
        self._register()
        works = [self._operators(candidate) for candidate in CANDIDATES]
        works += [self._gateways(f"gw{n}") for n in range(self.shape.gateways)]
        works += [self.weather.run(), self._calm()]
        if self.shape.fills:
            works.append(self._fill())
        tasks = [asyncio.create_task(work) for work in works]
        for task in tasks:
            task.add_done_callback(self.ended)
        callers = [Caller(self, n + 1) for n in range(self.shape.sessions) for _ in range(self.shape.callers)]
        calling = [asyncio.create_task(caller.run()) for caller in callers]
        try:
            waiting = set(calling)
            while waiting and not self.violations:
                done, waiting = await asyncio.wait(waiting, timeout=1.0, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            if not self.violations:
                await self._at_the_end()
        finally:
            await self._close([*tasks, *calling])
        if self.violations:
            raise self.violations[0]

    async def _at_the_end(self) -> None:
        """Late transactions may still do harm; then nothing may be left of what has passed."""
        while self.troubled or self.provider.stopping:  # noqa: ASYNC110 - simulated time costs nothing
            await asyncio.sleep(0.5)
        await asyncio.sleep(12.0)
        for _ in range(ALARMS_SECONDS):
            if not self._pending():
                break
            await asyncio.sleep(1.0)
        if (left := self._pending()) and not self.violations:
            raise Violation("alarm-lost", f"alarms that nobody runs: {left}")
        for gateway in self.places.values():
            held = sum(each.held for each in gateway.demand.report())
            assert (held, gateway.relay.bodies.held, len(gateway.quotas)) == (0, 0, 0), f"{gateway.name} forgets what it held"
        for worker in self.workers():
            report = worker.sessions.report()
            assert (report.running, report.queued) == (0, 0), f"{worker.name} forgets steps: {report}"
        if self.shape.removal_wait:
            await asyncio.sleep(self.shape.ttl + self.shape.removal_wait + 2 * self.shape.skew + REMOVED)
        self._check_keys()

    def _check_keys(self) -> None:
        """The store has a record for each session that is not over, and nothing of processes that are not."""
        shape, found = self.shape, [item.key for item in self.etcd.range("").items]
        records = [key for key in found if key.startswith(KEYS.states(FUNCTION))]
        if len(records) > (0 if shape.removal_wait else shape.sessions):
            raise Violation("kept-for-ever", f"{len(records)} records lie there at the end: {records}")
        expected = {KEYS.leader, KEYS.function(FUNCTION.namespace, FUNCTION.name), *records}
        expected |= {KEYS.gateway(gateway.name) for gateway in self.places.values()}
        expected |= {KEYS.worker(FUNCTION, worker.name) for worker in self.workers()}
        expected |= {key for n in range(shape.shards) for key in (KEYS.shard(FUNCTION, n), KEYS.floor(FUNCTION, n))}
        if left := [key for key in found if key not in expected]:
            raise Violation("kept-for-ever", f"what is left behind: {left}")

    async def _close(self, tasks: "list[asyncio.Task[Any]]") -> None:
        """Everything goes on for the last time, and is cancelled."""
        self._trace = None
        self.etcd.listeners.discard(self._observe)
        everything = asyncio.all_tasks() - {asyncio.current_task()}
        for task in everything:
            task.cancel()
        loop = asyncio.get_running_loop()
        assert isinstance(loop, LivesLoop)
        loop.end()
        with contextlib.suppress(Exception):
            await asyncio.wait(everything, timeout=30.0)


def chain_in(reply: bytes) -> bytes:
    contents = inference_pb2.ModelInferResponse.FromString(reply).raw_output_contents if reply else [b""]
    return bytes(contents[0])


def run(seed: int, *, shape: Shape | None = None, trace: Callable[[str], None] | None = None) -> OneWorld:
    """Plays one history; raises what it broke."""
    shape = shape or shape_of(seed)
    made: list[OneWorld] = []

    async def main() -> None:
        made.append(OneWorld(seed, shape, trace))
        await made[0].play()

    with mock.patch.object(groups, "TXN_OPS", shape.operations):
        simloop.run(main(), limit=900.0, loop=LivesLoop)
    return made[0]


MOVING = Shape(skew=2.4, gateways=3, begins=4.0, calls=20, ends=0.6, own_keys=0.0, streams=0.0)
"""The median moves as the processes whose clocks make it come and go, and sessions begin again meanwhile."""


def shape_of(seed: int) -> Shape:
    """Seeds differ in what they stress."""
    kinds = (
        Shape(alarms=0.4),
        Shape(replicas=(2, 1, 3), rescales=0.5, alarms=0.3),
        Shape(replicas=(None,), calls=6, stills=0.1, alarms=0.5),
        Shape(callers=2, starts=False, sessions=2, calls=6),
        Shape(callers=2, sessions=2, calls=6, streams=0.1),
        Shape(shards=1, sessions=8, calls=4, operations=6, streams=0.6, dies=0.1),
        Shape(ttl=1.5, removal_wait=0.5, deletes=0.3, calls=6, alarms=0.3),
        Shape(ttl=2.0, removal_wait=0.5, starts=False, calls=6, replicas=(2, 0, 1), rescales=0.4, alarms=0.3),
        Shape(skew=2.4, gateways=3, begins=4.0, dies=0.0, stills=0.0, crashes=0.0, bad=0.0, resets=0.2),
        Shape(skew=2.4, starts=False, dies=0.5, calls=6),
        MOVING,
        Shape(large=0.6, own_keys=0.9, resets=0.1),
        Shape(restores=0.2, calls=12, stills=0.1, alarms=0.3),
        Shape(fills=0.6, deletes=0.5, calls=12, alarms=0.3),
        Shape(max_count=2, sessions=5, ends=0.4, replicas=(1,)),
        Shape(max_held=2, max_streams=2, sessions=6, calls=4, streams=0.5, compactions=1.0),
        Shape(large=0.5, reuses=0.5, own_keys=0.9, resets=0.1, shards=1, sessions=2, calls=14, ends=0.4, bad=0.1),
    )
    return kinds[seed % len(kinds)]
