"""The slow path: every call that Envoy alone cannot send, and every call that it sent in vain.

A call is sent by the watched map first. After a refusal (`dormouse-again`), a break, or as Envoy's second try, the
map is read linearizably. When nobody can serve it, it is held until somebody can, at most the function's
`timeouts.hold` and the caller's deadline. Every resend carries the key that the call came with, so that a step runs
once (rules *call-key* and *kept-keys*).

No transport and no store is opened here: they are arguments, as is the clock, so that the simulation runs this very
code.
"""

import asyncio
import contextlib
import math
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from dormouse_core import childcalls, choosing, deaths, headernames, limits
from dormouse_core.backoff import Backoff
from dormouse_core.clocks import Skew, TimeReading
from dormouse_core.errors import (
    Again,
    Code,
    DormouseError,
    Internal,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
)
from dormouse_core.holding import Patience
from dormouse_core.seams import Clock, Part, Reply, StoreError, Transport
from dormouse_core.sessions.names import shard_of
from dormouse_core.shares import NOBODY, WaitingCalls
from dormouse_core.spec.objects import Timeouts

from dormouse_gateway import metrics, naming
from dormouse_gateway.envoy.bootstrap import ENTRY
from dormouse_gateway.leader.demand import Demand
from dormouse_gateway.leader.reach import Reach
from dormouse_gateway.relay import starved
from dormouse_gateway.relay.bodies import Bodies
from dormouse_gateway.relay.flights import Flights
from dormouse_gateway.relay.gates import Gate, Room
from dormouse_gateway.relay.sending import PartsTaker, carry, clear, heard, interrupted, outgoing
from dormouse_gateway.relay.turns import Turn, Turns
from dormouse_gateway.watching.reads import Read, Reads, missing, unanswered
from dormouse_gateway.watching.table import Function, Table, Unreadable, Worker

WORD = 0.3  # seconds that a supervisor is given to say it, before a call is sent to a third
CHECK_SECONDS = 5.0  # a held call looks again by itself, should a wake-up have been for somebody who could not use it
PAUSE = Backoff(0.02, 0.5)  # of a call that was refused
UNKNOWN_OUTCOME = "the worker died while the call ran; its outcome is not known"
NOBODY_SAYS = "why they died is not known; the kernel may have ended whole containers that ran out of memory"


class Unknown(Unavailable):
    """Whether there is such a function is not known yet: the store could not be reached, or has not answered."""


@dataclass(frozen=True, slots=True)
class Request:
    """A unary call as it came, or one message of a stream. `deadline`: monotonic seconds, infinite where the caller set none. `attempt`:
    Envoy's count of its tries.
    """

    method: str
    message: bytes
    metadata: Mapping[str, str]
    deadline: float = math.inf
    attempt: int = 1


@dataclass(slots=True)
class Held:
    """A call's way through the relay."""

    request: Request
    named: naming.Named
    parts: PartsTaker | None = None
    turn: Turn | None = None
    level: int = 0  # how many steps wait for it
    fresh: bool = False  # the watched map has misled this call: read
    read: Read | None = None  # the last read
    counted: str | None = None  # the uid under which it counts as held
    waited: float = 0.0
    since: float = 0.0
    refusals: int = 0
    broke: list[tuple[str, bool]] = field(default_factory=list)  # workers that were lost while it ran there; whether cleared for it
    unclear: int = 0  # asks for a cleared worker, in vain
    deaths: dict[str, tuple[int, str, bool]] = field(default_factory=dict)  # workers that died of themselves under it
    fell: set[str] = field(default_factory=set)  # instances whose connections broke while it ran in them
    avoid: set[str] = field(default_factory=set)  # workers that refused it since the map last changed
    reason: str = ""
    wake: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def witnessed(self) -> list[bool | None]:
        """See `deaths`. Why Envoy's own try failed nobody tells the relay."""
        tried = self.request.attempt > 1 and self.request.metadata.get(headernames.FN) != ENTRY
        return deaths.witnessed({name: alone for name, (_, _, alone) in self.deaths.items()}, self.broke, tried)

    @property
    def suspect(self) -> bool:
        return deaths.suspect(self.witnessed)


class Relay:
    def __init__(
        self,
        table: Table,
        reads: Reads,
        clock: Clock,
        transport: Transport,
        demand: Demand,
        *,
        default_namespace: str = "default",
        max_held: int = limits.HELD_CALLS,
        max_held_bytes: int = limits.HELD_BYTES,
        reach: Reach | None = None,
        seed: int | None = None,
        time: TimeReading | None = None,
    ) -> None:
        self._time = time or Skew(clock)
        self._table = table
        self._reads = reads
        self._clock = clock
        self._transport = transport
        self.demand = demand
        self._default_namespace = default_namespace
        self._max_held = max_held
        self.bodies = Bodies(max_held_bytes, limits.CONNECTION_HELD_FRACTION)
        self.waiting = WaitingCalls(limits.WAITING_FUNCTIONS * max_held)
        self._unheard: Counter[str] = Counter()  # calls of functions that are not known, by label
        self._rooms: dict[str, Room] = {}
        self._gates: dict[str, dict[str, Gate]] = {}  # by function, then by worker
        self._count = 0
        self._turns = Turns()
        self.starved = starved.Starved(clock)
        self._suspected: set[str] = set()  # workers that are asked to be clear, or are
        self._flights = Flights()
        self.reach = Reach(clock, transport) if reach is None else reach
        self._random = random.Random(seed)  # noqa: S311 - spreads load, guards nothing

    # ------------------------------------------------------------------------------------------------------------ from outside

    def changed(self, labels: set[str]) -> None:
        """These functions' entries or maps changed in the table: who waits for them looks again."""
        for label in labels:
            room = self._rooms.get(label)
            if room is not None:
                room.wake()
            function = self._table.function(label)
            if function is None:
                self.demand.forget(label)
            else:
                self._flights.changed(function, self._table.revision)
            gates = self._gates.get(label, {})
            for name in [name for name, gate in gates.items() if gate.idle]:
                if function is None or name not in function.workers:
                    del gates[name]
            if not gates:
                self._gates.pop(label, None)

    async def call(self, request: Request, held: contextlib.ExitStack | None = None) -> Reply:
        """The whole answer to one `ModelInfer`. Cancelling it cancels what is under way; nothing is sent afterwards. `held`: of the answer,
        what is to be closed when it has left."""
        size, connection = len(request.message), request.metadata.get(headernames.CONNECTION, "")
        try:
            self.bodies.take(size, connection)
        except ResourceExhausted as full:
            return refuse(full)
        try:
            naming.unary(request.metadata)
            message = naming.parse(request.message)
            named = naming.infer(request.metadata, message, self._default_namespace)
            now_us, verified = self._time.read()
            if verified:
                request = replace(request, metadata=naming.restamped(request.metadata, now_us))
            timestamp = naming.timestamp(request.metadata, message, now_us, verified)
            reply = await self.step(request, named, timestamp)
            if held is not None:
                held.enter_context(self.unread(len(reply.message), named, connection))
            return reply
        except DormouseError as error:
            return refuse(error)
        finally:
            self.bodies.give(size, connection)

    async def step(self, request: Request, named: naming.Named, timestamp: int, part: Part | None = None) -> Reply:
        """The same for a call that was read and counted: one message of a stream, which takes its answer in parts where there are some."""
        call = Held(request, named, None if part is None else PartsTaker(part), fresh=request.attempt > 1)
        try:
            function = self._table.function(named.label)
            with self.bodies.within(len(request.message), NOBODY if function is None else named.namespace, self._table.namespaces()):
                function = await self._first_look(call)
            with self.bodies.within(len(request.message), named.namespace, self._table.namespaces()):
                return await self._named(call, function, timestamp)
        except DormouseError as error:
            return refuse(error)

    @contextlib.contextmanager
    def unread(self, size: int, named: naming.Named, connection: str) -> Iterator[None]:
        """So many bytes of an answer wait for their caller, until this is left. ResourceExhausted: there is no room for them."""
        self.bodies.take(size, connection)
        try:
            known = self._table.namespaces()
            with self.bodies.within(size, named.namespace if named.namespace in known else NOBODY, known):
                yield
        finally:
            self.bodies.give(size, connection)

    # -------------------------------------------------------------------------------------------------------------- one call

    async def _named(self, call: Held, function: Function, timestamp: int) -> Reply:
        call.level = len(childcalls.read(call.request.metadata.get(headernames.PATH, "")))
        if function.stateful and not call.named.session:
            raise InvalidArgument(
                f"inference request to model '{call.named.name}' must specify a non-zero or non-empty correlation ID "
                f"(parameter sequence_id, or metadata {headernames.SESSION})"
            )
        unrouted = call.request.metadata.get(headernames.FN) == ENTRY
        if call.request.attempt > 1 and unrouted and not function.resend:
            raise Unavailable(UNKNOWN_OUTCOME)  # Envoy lost its connection to a relay that may have sent it
        self.demand.arrived(call.named.label, function.entry.uid)
        if function.stateful:
            self._count += 1
            call.turn = self._turns.join(f"{function.entry.uid}/{call.named.session}", timestamp, self._count, call.wake)
        try:
            return await self._serve(call, function)
        finally:
            if call.turn is not None:
                call.turn.leave()
            self._settle(call)
            if call.waited > 0:
                metrics.HOLD_SECONDS.observe(call.waited)

    async def _serve(self, call: Held, function: Function) -> Reply:
        uid = function.entry.uid
        while True:
            call.wake.clear()
            self._rooms.setdefault(call.named.label, Room()).enter(call.wake)  # before the look: no change falls between
            try:
                function = await self._look(call)
                if function.entry.uid != uid:
                    raise Unavailable(f"function {call.named.label} was deleted and made again while the call waited; send it again")
                refusal = self._suspect(call, function)
                if refusal is not None and await self._explained(call, function):
                    refusal = self._suspect(call, function)
                refusal = refusal or function.refusal(held=True)
                if refusal is not None:
                    raise refusal
                worker = self._choose(call, function)
                if worker is None:
                    await self._wait(call, function)
                    continue
            finally:
                self._leave(call)
            with self._suspecting(call, worker):
                reply = await self._send(call, function, worker)
            if reply is not None:
                return reply

    @contextlib.contextmanager
    def _suspecting(self, call: Held, worker: Worker) -> Iterator[None]:
        """While it lasts no other suspect goes to this one: each would wait there for the other."""
        if not call.suspect:
            yield
            return
        self._suspected.add(worker.name)
        try:
            yield
        finally:
            self._suspected.discard(worker.name)
            if (room := self._rooms.get(call.named.label)) is not None:
                room.wake()

    def _suspect(self, call: Held, function: Function) -> DormouseError | None:
        """Why this call is not sent to another worker: it is what they die of."""
        key = call.request.metadata.get(headernames.CALL, "")
        call.deaths |= function.died_under(key)
        killer = function.killer(key)
        witnessed = call.witnessed
        if killer is not None or not deaths.guilty(witnessed):
            return killer
        known = list(call.deaths.values())
        count = len(witnessed) - witnessed.count(None)
        tried = " after Envoy's first try failed" if None in witnessed else ""
        unexplained = (deaths.MEMORY, starved.TEXT, False) if self.starved.among(call.fell) else (None, NOBODY_SAYS, False)
        why, text, _ = known[-1] if known else unexplained
        kind = Unavailable if why is None else ResourceExhausted if why == deaths.MEMORY else Internal
        return kind(f"{count} workers died while this call ran in them{tried}, and it is not sent to another: {text}")

    async def _explained(self, call: Held, function: Function) -> bool:
        """Of a call that is refused and nobody says why its workers died: whether that was told by now."""
        if call.deaths or not call.fell or function.killer(call.request.metadata.get(headernames.CALL, "")) is not None:
            return False
        return await self.starved.wait(call.fell, call.request.deadline)

    async def _first_look(self, call: Held) -> Function:
        """The same. While the store does not say whether there is such a function, the call waits as nobody's, up to its own deadline or
        the longest that a function's calls wait unless it says otherwise. ResourceExhausted: too many wait."""
        label = call.named.label
        if self._table.function(label) is not None:
            return await self._look(call)
        if self._unheard[label] >= self._max_held:
            raise ResourceExhausted(f"{self._max_held} calls of function {label} wait already; try again later")
        self.waiting.enter(NOBODY, self._table.namespaces())  # before the first read: that waits, too
        self._unheard[label] += 1
        patience, began = Patience(Timeouts().hold, call.request.deadline), self._clock.monotonic()
        why = f"whether function {label} exists is not known: the store has not answered yet"
        try:
            while True:
                now = self._clock.monotonic()
                late = f"the deadline passed while the call waited: {why}"
                if (refusal := patience.refusal(now, now - began, late=late, long=why)) is not None:
                    raise refusal
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(patience.left(now, now - began)):
                        try:
                            return await self._look(call)
                        except Unknown as unknown:
                            why = unknown.message
                        await self._reads.answers()
                        call.waited = self._clock.monotonic() - began
        finally:
            self.waiting.leave(NOBODY)
            self._unheard[label] -= 1
            if not self._unheard[label]:
                del self._unheard[label]

    async def _look(self, call: Held) -> Function:
        """The function as this call should see it. NotFound, Unavailable, Internal."""
        label = call.named.label
        watched = self._table.function(label)
        if call.read is not None and call.read.history != self._reads.history:
            call.read = None
        if call.read is not None and self._table.revision < call.read.revision:
            watched = call.read.function  # the watch has not come so far
        if watched is not None and not call.fresh:
            return watched
        try:
            call.read = await (self._reads.stranger(label) if watched is None else self._reads.function(label))
        except Unreadable as wrong:
            raise Internal(f"the store's entry of function {label} cannot be read: {wrong}") from None
        except StoreError as away:
            if watched is None:
                kind = Unknown if unanswered(away) else Unavailable
                raise kind(f"whether function {label} exists is not known: the store did not answer ({away})") from None
            # What is known is used: a stale map costs a refusal, never a wrong answer.
            call.reason = f"the store did not answer ({away})"
            return watched
        finally:
            call.fresh = False
        if call.read.function is None:
            error = missing(label, call.read)
            how = f" (looked up from metadata {headernames.FUNCTION}, then authority, then model_name)"
            raise type(error)(error.message + how)
        return call.read.function

    def _choose(self, call: Held, function: Function) -> Worker | None:
        """Whom to send to now; None: wait, for `call.reason`."""
        now = self._clock.monotonic()
        if call.turn is not None:
            shard = shard_of(call.named.session, function.entry.shards)
            worker = function.owner(shard)
            if worker is None:
                call.reason = call.reason or f"no live worker owns shard {shard}{why(function)}"
                return None
            if worker.name in call.avoid or not call.turn.mine:
                return None
            return worker if self._open(call, function, worker, now) else None
        takers = [worker for worker in function.takers() if worker.name not in call.avoid]
        if not takers:
            call.reason = call.reason or f"no worker is ready{why(function)}"
            return None
        ready = [worker for worker in takers if self._open(call, function, worker, now)]
        if not ready:
            return None
        least = choosing.least_busy({worker.name: self._gate(function, worker).flying for worker in ready})
        return function.workers[self._random.choice(least)]

    def _gate(self, function: Function, worker: Worker) -> Gate:
        gates = self._gates.setdefault(function.label, {})
        gate = gates.get(worker.name)
        if gate is None:
            gate = gates[worker.name] = Gate(function.spec.max_concurrency)
        return gate

    def _open(self, call: Held, function: Function, worker: Worker, now: float) -> bool:
        if worker.name in self._suspected and call.suspect:
            call.reason = call.reason or "calls under which workers died run one at a time in a worker"
            return False
        if self._gate(function, worker).open(now, call.level):
            return True
        call.reason = call.reason or f"worker {worker.name} is busy or cannot be reached"
        return False

    # --------------------------------------------------------------------------------------------------------------- waiting

    async def _wait(self, call: Held, function: Function) -> None:
        """Until something changed that may help. Raises when the call may wait no longer."""
        now = self._clock.monotonic()
        if call.counted is None:
            if self.demand.held(call.named.label) >= self._max_held:
                raise ResourceExhausted(f"{self._max_held} calls of function {call.named.label} wait already; try again later")
            self.waiting.enter(call.named.namespace, self._table.namespaces())
            call.counted, call.since = function.entry.uid, now
            self.demand.hold(call.named.label, call.counted)
        patience, waited = Patience(function.spec.timeouts.hold, call.request.deadline), call.waited + now - call.since
        late = f"the deadline passed while the call waited: {call.reason}"
        long = f"no worker of {call.named.label} could serve the call within the hold limit of {patience.hold}: {call.reason}"
        if (refusal := patience.refusal(now, waited, late=late, long=long)) is not None:
            raise refusal
        pause, rooms = self._pause(call, function, now)
        for room in rooms:
            room.enter(call.wake)
        try:
            async with asyncio.timeout(max(0.0, min(patience.left(now, waited), pause))):
                await call.wake.wait()
                call.avoid.clear()
        except TimeoutError:
            call.fresh = call.fresh or bool(call.avoid)  # refused, paused, and heard nothing: ask
            call.avoid.clear()
        finally:
            for room in rooms:
                room.leave(call.wake)
        call.reason = ""

    def _pause(self, call: Held, function: Function, now: float) -> tuple[float, list[Room]]:
        """How long to wait at most before the next look, and in which rooms of workers' gates."""
        if call.avoid:  # told 'not mine' and the like by everybody who should serve it: the map is about to change
            return PAUSE.after(call.refusals) * (0.5 + self._random.random() / 2), []
        if call.turn is None:
            workers = function.takers()
        elif call.turn.mine and (owner := function.owner(shard_of(call.named.session, function.entry.shards))) is not None:
            workers = [owner]
        else:
            workers = []
        gates = [self._gate(function, worker) for worker in workers]
        opens = min((at for gate in gates if (at := gate.opens_at(call.level)) > now), default=math.inf)
        return min(CHECK_SECONDS, opens - now), [gate.at(call.level).room for gate in gates]

    def _leave(self, call: Held) -> None:
        room = self._rooms.get(call.named.label)
        if room is not None:
            room.leave(call.wake)
            if not len(room):
                del self._rooms[call.named.label]

    def _settle(self, call: Held) -> None:
        """It waits no more."""
        if call.counted is not None:
            self.demand.release(call.named.label, call.counted)
            self.waiting.leave(call.named.namespace)
            call.waited += self._clock.monotonic() - call.since
            call.counted = None

    # --------------------------------------------------------------------------------------------------------------- sending

    async def _send(self, call: Held, function: Function, worker: Worker) -> Reply | None:
        """The answer, or None: to be sent again."""
        gate = self._gate(function, worker)
        self._settle(call)
        if call.turn is not None:
            call.turn.depart()
        gate.sent(call.level)
        try:
            if call.parts is not None and not call.parts.decoupled:
                call.parts.decoupled = function.entry.metadata.decoupled
            reply, alone = await self._carried(call, function, worker)
        except asyncio.CancelledError:  # by the caller, whose deadline may have passed
            gate.cancelled(call.level)
            self.reach.doubt(worker.name, worker.address)
            raise
        now = self._clock.monotonic()
        broken = reply.metadata.get(headernames.BROKEN, "")
        why = reply.again or broken
        if broken == "connect":
            self.reach.failed(worker.name)
        elif heard(reply):
            self.reach.answered(worker.name)
        elif reply.code == Code.DEADLINE_EXCEEDED:
            self.reach.doubt(worker.name, worker.address)
        if not why:
            gate.answered(call.level)
            return reply
        if broken == "moved":
            gate.cancelled(call.level)
        elif broken:
            gate.broken(now, call.level)
        elif reply.again == Again.BUSY:
            gate.busy(now, call.level)
        else:
            call.unclear += reply.again == Again.UNCLEAR
            gate.answered(call.level)
            call.avoid.add(worker.name)
            call.refusals += 1
        if call.parts is not None and call.parts.begun:
            raise interrupted(reply)
        if broken in ("reset", "gone") and alone is not None:
            call.broke.append((worker.name, alone))
            call.fell |= {worker.instance} - {""}
            if not function.resend:
                call.fresh = True
                function = await self._look(call)
                raise function.killer(call.request.metadata.get(headernames.CALL, "")) or Unavailable(UNKNOWN_OUTCOME)
            if call.suspect:
                await asyncio.sleep(WORD)
        metrics.RESENDS.labels(why).inc()
        call.reason = f"worker {worker.name} answered {why}: {reply.details}"
        call.fresh = reply.again != Again.BUSY
        if call.turn is not None:
            call.turn.leave()
            call.turn.join()
        return None

    async def _carried(self, call: Held, function: Function, worker: Worker) -> tuple[Reply, bool | None]:
        """What came of sending it, and whether nothing else ran there meanwhile; None: neither did the call."""
        metadata = outgoing(call.request.metadata, function)
        witnessed = call.witnessed
        cleared = False
        if witnessed:  # should it be what kills, no other's rows are to be with it
            metadata[headernames.ALONE] = "1"
        if deaths.suspect(witnessed) and call.unclear < limits.CLEAR_ASKS:
            began = self._clock.monotonic()
            asked = await self._flown(call, function, worker, lambda left: clear(self._transport, worker.address, metadata, left))
            call.waited += self._clock.monotonic() - began
            if asked.again == Again.CLEARED:
                metadata[headernames.ALONE], cleared = Again.CLEARED.value, True
            elif asked.code not in (Code.OK, Code.UNIMPLEMENTED):  # which a worker of an earlier version says
                return asked, None
        message, parts = call.request.message, call.parts
        reply = await self._flown(
            call, function, worker, lambda left: carry(self._transport, worker.address, message, metadata, parts, left)
        )
        return reply, cleared

    async def _flown(self, call: Held, function: Function, worker: Worker, send: Callable[[float | None], Awaitable[Reply]]) -> Reply:
        """`send` is given the seconds that are left; None: no end."""
        deadline = call.request.deadline
        left = None if deadline == math.inf else max(0.0, deadline - self._clock.monotonic())
        shard = None if call.turn is None else shard_of(call.named.session, function.entry.shards)
        since = 0 if call.read is None else call.read.revision
        return await self._flights.carry(function, worker, shard, since, send(left))


def why(function: Function) -> str:
    """Behind what a call waits for: what is known to be wrong."""
    problem = function.problem()
    return f" ({problem.message})" if problem is not None else ""


def refuse(error: DormouseError) -> Reply:
    return Reply(int(error.code), b"", error.message)
