"""A worker's work: calls in, answers out.

Knows tensors and sessions; `asgi` knows frames and the batcher knows runs. For each ModelInfer: read its metadata, decode and check its
message, then give it to the batcher (stateless) or to the sessions (stateful), which give it to the batcher when its turn comes. Every way
out ends in exactly one answer.

While the worker is cleared for one call, the others wait at its `door` before any of that, and alarms are not begun.
"""

import time
from collections.abc import Callable
from typing import Protocol

from dormouse_core import childcalls, headernames, limits
from dormouse_core.clocks import Skew
from dormouse_core.errors import Again, Code, DeadlineExceeded, Decoupled, DormouseError, Internal, Unavailable
from dormouse_core.keys import Function
from dormouse_core.usages import Usage
from dormouse_kit import log

from dormouse_worker.batches.forms import Forms
from dormouse_worker.batches.requests import Decoder, Digester, Request
from dormouse_worker.batches.work import Figures, Runs
from dormouse_worker.models.signatures import Signature
from dormouse_worker.process.scheduling import Scheduling
from dormouse_worker.serving.counters import Counters
from dormouse_worker.serving.door import Door
from dormouse_worker.serving.used import Used
from dormouse_worker.sessions import Answer, Failed, Outcome, Runner, Step
from dormouse_worker.sessions.alarms import whose
from dormouse_worker.transport import calls, frames, streamed
from dormouse_worker.transport.asgi import Call, Metadata, Transport

_ALONE, _CALL, _PATH, _STEP, _TENANT = (
    name.encode() for name in (headernames.ALONE, headernames.CALL, headernames.PATH, headernames.STEP, headernames.TENANT)
)
_CLEARED = Again.CLEARED.value.encode()

TAKE = 256


class Engine(Runner, Protocol):
    """A runner as the service sees it: it also tells what it does."""

    runs: Runs
    figures: Figures

    @property
    def quiet(self) -> bool:
        """Nothing runs or waits to run."""

    @property
    def forms(self) -> Forms | None:
        """None: calls never run together."""


class Steps(Protocol):
    """The sessions, as the service sees them."""

    def submit(self, step: Step) -> None: ...
    def cancel(self, step: Step) -> None: ...


class Rings(Protocol):
    """What begins alarms' steps, as the service sees it."""

    under_way: int
    """Looks at sessions for their alarms, from before the step until its end."""
    admits: Callable[[], bool]
    """Whether one may begin now."""
    on_change: Callable[[], None]
    """Called when `under_way` has changed."""

    def wake(self) -> None: ...


class Service:
    def __init__(
        self,
        function: Function,
        signature: Signature,
        engine: Engine,
        transport: Transport,
        *,
        names: tuple[str, ...],
        nonce: str,
        max_concurrency: int,
        counters: Counters,
        skew: Skew | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.function = function
        self.signature = signature
        self.engine = engine
        self.counters = counters
        self.ready = False
        self.closing = False
        """Every call is refused with `draining`: the process is about to end."""
        self.sessions: Steps | None = None
        self._rings: Rings | None = None
        self.arrivals = 0
        self.usage = Used()
        self._transport = transport
        self._decoder = Decoder(signature, names)
        self._digester = Digester(function.path, signature)
        self._reader = calls.SessionReader(function, nonce, skew) if signature.states else None
        self._identity = calls.Identity(nonce, skew) if signature.platform == "python" else None
        """Of calls of a handler without sessions: whom its own calls are made for."""
        self._skew = skew
        self._correlation = next((control for control in signature.controls if control.kind == "id"), None)
        self._limit = max_concurrency
        self._levels = [0] * (limits.CALL_DEPTH + 1)
        """How many calls are active for which so many steps wait."""
        self._monotonic = monotonic
        self._scheduling = Scheduling()
        self._door = Door(self._try, lambda: counters.active, lambda: engine.quiet and not self._alarms, monotonic)
        engine.runs.on_end = self._door.look_soon
        transport.ready = self.turn
        transport.ended = self._ended

    # ------------------------------------------------------------------------------------------------------------------- calls
    def turn(self) -> None:
        """Begins every call that waits."""
        transport = self._transport
        taken = transport.take(TAKE)
        self.arrivals += len(taken)
        self._change(len(taken))
        for call in taken:
            self._try(call)
        self._scheduling.turn(self.counters.active)

    def _change(self, by: int) -> None:
        self.counters.change(by)
        if (marks := self.engine.runs.marks) is not None:
            # Also what waits to run for nobody any more: its message is in memory until its turn comes. And alarms, which nobody calls.
            marks.inside(self.counters.active + self.engine.figures.waiting + self._alarms)

    def _try(self, call: Call) -> None:
        try:
            self._begin(call)
        except DormouseError as error:
            self._transport.refuse(call, error)
        except Exception as error:
            log.warning("a call failed inside the worker", error=repr(error))
            self._transport.refuse(call, Internal(f"the worker failed: {error!r}"))

    def _begin(self, call: Call) -> None:
        if self.closing:
            raise Unavailable("this worker is stopping", Again.DRAINING)
        if not self.ready:
            raise Unavailable("this worker is not ready", Again.NOT_MINE)
        headers = calls.read(call.headers)
        cleared = headers.get(_ALONE) == _CLEARED
        path = childcalls.read(calls.text(headers.get(_PATH, b"")))
        if call.level is None and not call.clears:  # else it waited at the door, or is no call
            # Calls of steps have places of their own, as many for each step that waits: who waits does not keep out whom it waits for, nor
            # anybody who calls directly.
            level = len(path)
            if self._levels[level] >= self._limit and not cleared:
                raise Unavailable(f"{self._limit} calls are active in this worker (maxConcurrency)", Again.BUSY)
            call.level = level
            self._levels[level] += 1
        if self._skew is not None and self._skew.off:
            raise Unavailable(self._skew.text(), Again.CLOCK)
        calls.check_function(headers, self.function)
        timeout = headers.get(b"grpc-timeout")
        if timeout is not None:
            call.deadline = call.since + frames.timeout(timeout)
            if call.deadline <= self._monotonic():
                raise DeadlineExceeded("the caller's deadline passed before the call was read")
        if call.clears:
            self._door.ask(call, calls.text(headers.get(_CALL, b"")))
            return
        if self.signature.decoupled and not call.streams:
            raise Decoupled("ModelInfer RPC doesn't support models with decoupled transaction policy; ModelStreamInfer does")
        if cleared:
            self._door.enter(call, calls.text(headers.get(_CALL, b"")))
        if self._door.keeps_out(call):
            return
        self.counters.bytes_in += len(call.body)
        limit = calls.message_bytes(headers, self._transport.limit)
        request = self._decoder.decode(frames.unframe(call.body, headers, limit))
        request.reply_bytes = limit
        request.call = call
        request.call_key = calls.text(headers.get(_CALL, b""))
        request.alone = request.alone or _ALONE in headers
        request.path = path
        received, call.body = len(call.body), b""
        if self._reader is None:
            if (identity := self._identity) is not None:
                request.tenant = calls.text(headers.get(_TENANT, b""))
                # Made where a step of its calls somebody: a key that is wrong has never been in the way of a call without a session.
                request.identify = lambda: (identity.whose(headers, request.message.parameters)[1], self._digester.digest(request))
            self.engine.run(request, {}, 0, False, False, lambda outcome: self._ran(call, outcome, received), call.deadline)
        else:
            self._step(call, request, headers, self._reader, received)

    def _step(self, call: Call, request: Request, headers: frames.Headers, reader: calls.SessionReader, received: int) -> None:
        sessions = self.sessions
        if sessions is None:
            raise Unavailable("this worker owns no sessions yet", Again.NOT_MINE)
        of = reader.read(headers, request.message.parameters)
        request.session = str(of.session)
        if self._correlation is not None:
            request.correlation = self._correlation.id(of.session)
        request.tenant, request.session_key = of.tenant, of.key
        request.key = str(of.call_key)
        request.identify = lambda: (of.call_key, b"")
        step = Step(
            session=of.key,
            key=of.call_key,
            digest=self._digester.digest(request),
            start=of.start,
            end=of.end,
            create=of.create,
            call=request,
            answer=lambda answer: self._answered(call, answer),
            rev=of.rev,
            deadline=call.deadline,
            bytes_in=received,
        )
        call.on_gone = lambda: sessions.cancel(step)
        sessions.submit(step)

    @property
    def _alarms(self) -> int:
        return 0 if self._rings is None else self._rings.under_way

    def ring(self, rings: Rings) -> None:
        """Alarms' steps run beside the calls, and like them not beside one for which the worker is cleared: a worker that dies then would
        convict that call."""
        self._rings = rings
        rings.admits = lambda: self._door.open
        rings.on_change = self._rung
        self._door.on_open = rings.wake

    def _rung(self) -> None:
        self._change(0)
        self._door.look_soon()

    def alarmed(self, step: Step) -> Request:
        """What an alarm's step is run with. InvalidArgument: this revision does not take what was asked for."""
        assert step.alarm is not None
        request = self._decoder.decode(step.alarm.request)
        tenant, session = whose(step.session)
        if self._correlation is not None:
            request.correlation = self._correlation.id(session)
        request.session, request.tenant, request.session_key = str(session), tenant, step.session
        key = step.key
        request.key, request.alarm = str(key), step.alarm.name
        request.call_key = request.key  # so that it is found where its worker is killed for it, and not those that ran beside it
        request.identify = lambda: (key, b"")
        request.on_begin = step.began
        return request

    # ----------------------------------------------------------------------------------------------------------------- answers
    def _ran(self, call: Call, outcome: Outcome, received: int) -> None:
        if call.left and (outcome.busy_us or not isinstance(outcome, Failed)):
            # Counted as failed when its caller left; what it took is not free for that.
            self.usage.add(_tenant(call), Usage(busy_us=outcome.busy_us, bytes_in=received, bytes_out=call.sent_bytes))
        if isinstance(outcome, Failed):
            self._transport.refuse(call, outcome.error)
        else:
            sent = call.sent_bytes + len(outcome.reply)
            call.used = Usage(calls=1, busy_us=outcome.busy_us, bytes_in=received, bytes_out=sent)
            self._ok(call, outcome.reply, None)

    def _answered(self, call: Call, answer: Answer) -> None:
        if answer.error is not None:
            self._transport.refuse(call, answer.error)
        elif answer.reply is not None:
            call.kept = answer.kept
            self._ok(call, answer.reply, [(_STEP, b"%d" % answer.step)] if answer.step else None)
        else:
            self._transport.refuse(call, Internal("the step has neither reply nor error"))

    def _ok(self, call: Call, message: bytes, metadata: Metadata) -> None:
        if call.streams:
            sent = self.signature.decoupled and not call.kept  # as the handler made them
            body = b"" if sent else streamed.unsent(message)
        elif message.startswith(streamed.FRAMED):
            error = "the step is committed; its reply was streamed by an earlier revision of the function, which this one does not do"
            self._transport.refuse(call, DormouseError(error, Code.ALREADY_EXISTS))
            return
        else:
            body = frames.frame(message)
        self.counters.bytes_out += len(message)
        self._transport.reply(((call, body, metadata),))

    def _ended(self, call: Call, error: DormouseError | None) -> None:
        counters = self.counters
        if call.taken:
            self._change(-1)
        if call.level is not None:
            self._levels[call.level] -= 1
        if not self._door.idle:
            self._door.gone(call)
        if not call.clears:
            self.usage.ended(_tenant(call), error, call.used, kept=call.kept)
        seconds = self._monotonic() - call.since
        if error is not None:
            counters.failed(error, seconds)
        elif call.kept:
            counters.kept += 1
        else:
            counters.codes[0] += 1
            counters.ok_seconds += seconds

    def healthy(self) -> bool:
        """The probe's answer: no run is older than its step limit allows."""
        return not self.engine.runs.hangs(self._monotonic())


def _tenant(call: Call) -> str:
    """As the caller names it, also where it cannot be read as text: then it is refused elsewhere."""
    return next((value.decode(errors="replace") for name, value in call.headers if name == _TENANT), "")
