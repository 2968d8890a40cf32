"""Handlers in Python: a user's class, from the model folder or from what is installed.

A handler takes one call at a time per step and is not batched. Of sync steps as many run at once as there are CPUs, in threads; one that
waits for a call of its own (`ctx.call`) does not count (`dormouse_core.slots`). Async ones run on the event loop. A handler gets copies of
the states: a step that raises, or is late, leaves the session's own arrays as they were.

A thread cannot be stopped. A step that does not return keeps its session from going on; the probe sees its age, and the supervisor then
ends the process, which moves the session to another worker. One that holds the interpreter, so that nothing else runs, may do so for as
long as a step may run (`timeouts.hang`); the supervisor keeps the worker's lease meanwhile.

What a step raises goes to its caller in one line, and to the log with its traceback. What the package's own errors say is meant for the
caller; those are not logged.
"""

import asyncio
import importlib
import pathlib
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from dormouse_core import limits
from dormouse_core.childcalls import Calling, unsaid
from dormouse_core.errors import DeadlineExceeded, DormouseError, FailedPrecondition, Internal, text_of
from dormouse_core.handlers import Context, Declaration, declaration_of
from dormouse_core.keys import Function
from dormouse_core.slots import Slots
from dormouse_kit import log

from dormouse_worker.batches.batching import as_error
from dormouse_worker.batches.replies import Encoder
from dormouse_worker.batches.requests import Decoder, Request
from dormouse_worker.batches.work import Figures, Runs, States, Work
from dormouse_worker.models.refusals import ModelInvalid
from dormouse_worker.models.signatures import Signature, StateSpec, TensorSpec
from dormouse_worker.runtimes import own
from dormouse_worker.runtimes.alarms import StepAlarms
from dormouse_worker.runtimes.calling import StepCalls, Waits, Way
from dormouse_worker.runtimes.parts import PartsSender
from dormouse_worker.sessions import Failed, Outcome, Ran

TRACEBACKS = 10
"""A second: a handler that always fails must not fill the log."""


class PythonRuntime:
    """The handler, loaded and set up."""

    def __init__(self, handler: str, folder: pathlib.Path | None, *, function: Function, revision: str, stateful: bool) -> None:
        """`handler` is `module:Class`; `folder` comes last in the search for it. ModelInvalid: whatever the handler's code does wrong."""
        if folder is not None:
            if not folder.is_dir():
                raise ModelInvalid(f"spec.model.uri: {folder.name} is a file, the python runtime takes a folder")
            own.search(folder)
        name, _, attribute = handler.partition(":")
        hidden = own.hidden(folder) if folder is not None else {}
        if (top := name.partition(".")[0]) in hidden:
            raise ModelInvalid(f"spec.handler: {handler!r} found, but the module {top} is {hidden[top]}: rename the handler's own")
        if hidden:
            log.warning("the handler's modules are hidden by others of the same names", hidden=own.told(hidden))
        try:
            kind = getattr(importlib.import_module(name), attribute)
        except BaseException as error:  # a user's module may raise anything while it is imported, SystemExit too
            raise ModelInvalid(f"spec.handler: {handler!r} cannot be imported: {text_of(error)}") from error
        try:
            self.declaration: Declaration = declaration_of(kind, stateful=stateful)
        except FailedPrecondition as error:
            raise ModelInvalid(error.message) from None
        self.function = function
        self.context: dict[str, Any] = {"function": function.label, "revision": revision, "model": folder}
        try:
            self.handler: Any = kind()
            self.handler.setup(Context(**self.context))
        except BaseException as error:
            raise ModelInvalid(f"spec.handler: setup of {handler} raised {text_of(error)}") from error
        declared = self.declaration
        self.signature = Signature(
            "python",
            tuple(TensorSpec(t.name, t.datatype, tuple(t.shape), t.optional) for t in declared.inputs),
            tuple(TensorSpec(t.name, t.datatype, tuple(t.shape)) for t in declared.outputs),
            tuple(StateSpec(s.name, s.name, s.datatype, tuple(s.shape)) for s in declared.states),
            decoupled=declared.decoupled,
        )


class HandlerRunner:
    """Runs works on a handler, several at a time."""

    def __init__(
        self,
        runtime: PythonRuntime,
        encoder: Encoder,
        *,
        threads: int,
        step_limit: float,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.runs = Runs(step_limit)
        self.figures = Figures()
        self.forms = None  # one call at a time
        self.places = limits.ALARMS_TOGETHER if runtime.declaration.is_async else threads
        """How many alarms' steps it is given that have not begun: no more than may begin at once, for callers' steps wait behind them."""
        self._runtime = runtime
        self._declaration = runtime.declaration
        self._encoder = encoder
        self._decoder = Decoder(runtime.signature, (runtime.function.name,))
        self._raised = Raised(monotonic)
        self._monotonic = monotonic
        most = limits.CALL_DEPTH * (threads + limits.WAITING_STEPS)  # threads are made as they are needed; who may begin, `_slots` decides
        self._pool = None if runtime.declaration.is_async else ThreadPoolExecutor(most, "handler")
        self._slots: Slots[tuple[Work, asyncio.AbstractEventLoop]] = Slots(threads, limits.WAITING_STEPS)
        self.way: Way | None = None
        """To the gateways, for the calls that steps make; None: nobody has said where they are."""
        self._tasks: set[asyncio.Task[None]] = set()

    def run(self, call: Any, states: States, step: int, start: bool, end: bool, done: Callable[[Outcome], None], deadline: float) -> None:
        work = Work(call, states, step, start, end, done, deadline, self._monotonic())
        self.figures.waiting += 1
        loop = asyncio.get_running_loop()
        if self._pool is None:
            task = loop.create_task(Stepping(self._run_async(work), work, self.runs))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            self._start(self._slots.enter((work, loop), _level(work)))

    @property
    def quiet(self) -> bool:
        """Nothing runs or waits to run; a step that is beyond its limit runs until it returns."""
        return not self.figures.waiting and not len(self.runs)

    # -------------------------------------------------------------------------------------------------------------- in a thread
    def _start(self, begun: list[tuple[Work, asyncio.AbstractEventLoop]]) -> None:
        for work, loop in begun:
            assert self._pool is not None
            self._pool.submit(self._run_thread, work, loop)

    def _left(self, level: int) -> None:
        self._start(self._slots.left(level))

    def _wait(self, level: int, waits: bool) -> None:
        if waits:
            self._start(self._slots.waits(level))
        else:
            self._slots.resumes(level)

    def _run_thread(self, work: Work, loop: asyncio.AbstractEventLoop) -> None:
        began = self._monotonic()
        level = _level(work)
        if work.request.gone or work.deadline <= began:
            loop.call_soon_threadsafe(self._left, level)
            loop.call_soon_threadsafe(self._dropped, work)
            return
        token = self.runs.begin(began, (work,), threading.get_native_id())

        def waits(begins: bool) -> None:
            loop.call_soon_threadsafe(self._wait, level, begins)

        calls = self._calls(work, began, loop, waits)
        loop.call_soon_threadsafe(self._watch, work, token, calls)
        outcome: Outcome
        try:
            inputs, state, context, alarms = self._arguments(work, began, calls)
            returned = self._runtime.handler.step(inputs, state, context)
            if self._declaration.decoupled:
                parts = self._parts(work, began)
                parts.send(returned, loop)
                outcome = Ran(parts.reply(), self._states(state), alarms.end())
            else:
                outcome = self._outcome(work.request, returned, state, alarms)
        except BaseException as error:  # SystemExit in a handler must not end the thread with the call unanswered
            outcome = Failed(self._raised.told(error))
        self.runs.left(token)
        loop.call_soon_threadsafe(self._left, level)
        loop.call_soon_threadsafe(self._ended, work, token, outcome, calls)

    # -------------------------------------------------------------------------------------------------------------- on the loop
    async def _run_async(self, work: Work) -> None:
        began = self._monotonic()
        if work.request.gone or work.deadline <= began:
            self._dropped(work)
            return
        token = work.token = self.runs.begin(began, (work,))
        self.runs.on_loop(token)
        calls = self._calls(work, began, asyncio.get_running_loop(), None)
        self._watch(work, token, calls)
        outcome: Outcome
        try:
            inputs, state, context, alarms = self._arguments(work, began, calls)
            returned = self._runtime.handler.step(inputs, state, context)
            async with asyncio.timeout(self.runs.limit):
                if self._declaration.decoupled:
                    parts = self._parts(work, began)
                    await parts.send_async(returned)
                    outcome = Ran(parts.reply(), self._states(state), alarms.end())
                else:
                    outcome = self._outcome(work.request, await returned, state, alarms)
        except TimeoutError as error:
            outcome = Failed(self.runs.exceeded() if self._monotonic() - began >= self.runs.limit else self._raised.told(error))
        except BaseException as error:  # SystemExit in a handler must not end the loop, nor the task with the call unanswered
            outcome = Failed(self._raised.told(error))
        self._ended(work, token, outcome, calls)

    def _calls(self, work: Work, began: float, loop: asyncio.AbstractEventLoop, waits: Waits | None) -> StepCalls:
        request: Request = work.request

        def calling() -> Calling:
            if request.identify is None:
                raise unsaid()
            key, content = request.identify()
            return Calling(self._runtime.function, key, request.session_key, request.tenant, request.path, content)

        return StepCalls(self.way, calling, min(work.deadline, began + self.runs.limit), loop, waits, self._monotonic)

    def _arguments(self, work: Work, began: float, calls: StepCalls) -> tuple[dict[str, np.ndarray], States, Context, StepAlarms]:
        request: Request = work.request
        alarms = StepAlarms(self._decoder, time.time_ns() // 1000, self._no_alarms(work))
        context = Context(
            **self._runtime.context,
            session=request.session,
            tenant=request.tenant,
            step=work.step,
            start=work.start,
            end=work.end,
            key=request.key,
            alarm_name=request.alarm,
            deadline=min(work.deadline, began + self.runs.limit),
            is_cancelled=lambda: request.gone,
            caller=calls,
            clock=alarms,
        )
        return request.inputs, {name: array.copy() for name, array in work.states.items()}, context, alarms

    def _no_alarms(self, work: Work) -> str:
        """Why a step may set no alarms; '': it may."""
        if not self._declaration.states:
            return "the function has no sessions, and an alarm is a step of one"
        if self._declaration.decoupled:
            return "the function streams, and nobody would read an alarm's parts"
        return "this step ends its session" if work.end else ""

    def _outcome(self, request: Request, returned: Any, state: States, alarms: StepAlarms) -> Outcome:
        outputs = self._declaration.check_outputs(returned)
        ordered = [outputs[tensor.name] for tensor in self._declaration.outputs]
        return Ran(self._encoder.encode(request, ordered), self._states(state), alarms.end())

    def _states(self, state: States) -> States:
        states = self._declaration.check_states(state) if self._declaration.states else {}
        # The handler may keep what it returned or left in `state`: copies, so that it cannot change a session behind the protocol's back.
        return {name: np.array(array, copy=True) for name, array in states.items()}

    def _parts(self, work: Work, began: float) -> PartsSender:
        return PartsSender(work.request, self._declaration, self._encoder, self._monotonic, began + self.runs.limit)

    def _dropped(self, work: Work) -> None:
        self.figures.waiting -= 1
        self.figures.dropped += 1
        work.done(Failed(DeadlineExceeded("the caller's deadline passed, or it went away, before the step ran")))
        self.runs.on_end()

    def _watch(self, work: Work, token: int, calls: StepCalls) -> None:
        self.figures.waiting -= 1
        if work.request.on_begin is not None:
            work.request.on_begin()
        if (call := work.request.call) is not None:
            if call.gone:
                calls.gone()
            else:
                call.on_closed = calls.gone
        asyncio.get_running_loop().call_later(self.runs.limit, self._exceeded, work, token)

    def _exceeded(self, work: Work, token: int) -> None:
        call = work.request.call
        if call is not None and self.runs.has(token):
            call.transport.refuse(call, self.runs.exceeded())

    def _ended(self, work: Work, token: int, outcome: Outcome, calls: StepCalls) -> None:
        calls.end()
        now = self._monotonic()
        began = self.runs.end(token)
        began = now if began is None else began
        took = now - began
        self.figures.ran((work,), began, took)
        if took > self.runs.limit:
            outcome = Failed(self.runs.exceeded(), work.busy_us)
        elif isinstance(outcome, Failed):
            outcome = Failed(outcome.error, work.busy_us)
        else:
            outcome.busy_us = work.busy_us
        work.done(outcome)


def _level(work: Work) -> int:
    """How many steps wait for this one."""
    return len(work.request.path)


class Stepping(Coroutine[Any, Any, None]):
    """An async step as the event loop runs it, piece by piece; marks which step's piece it is in: that one holds the interpreter, where one
    does. What the step has put into tasks of its own is not marked."""

    def __init__(self, coroutine: Coroutine[Any, Any, None], work: Work, runs: Runs) -> None:
        self._coroutine = coroutine
        self._work = work
        self._runs = runs

    def send(self, value: Any) -> Any:
        self._runs.on_loop(self._work.token)
        try:
            return self._coroutine.send(value)
        finally:
            self._runs.on_loop(None)

    def throw(self, *error: Any) -> Any:
        self._runs.on_loop(self._work.token)
        try:
            return self._coroutine.throw(*error)
        finally:
            self._runs.on_loop(None)

    def close(self) -> None:
        self._coroutine.close()

    def __await__(self) -> Any:
        return self._coroutine.__await__()


class Raised:
    """What handlers raise, told to their callers and to the log: at most `TRACEBACKS` a second, the others by number."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._second = -1
        self._seen = 0

    def told(self, error: BaseException) -> DormouseError:
        """What the caller is told. Never raises, whatever the exception's own methods do: nobody else would end the call."""
        if not issubclass(type(error), DormouseError):
            self._log(error)
        try:
            return as_error(error) if isinstance(error, Exception) else Internal(f"the step raised {text_of(error)}")
        except BaseException:
            return Internal(text_of(error))

    def _log(self, error: BaseException) -> None:
        second = int(self._monotonic())
        if second != self._second:
            left_out, self._second, self._seen = self._seen - TRACEBACKS, second, 0
            if left_out > 0:
                log.warning("further steps raised; their tracebacks are left out", steps=left_out)
        self._seen += 1
        if self._seen <= TRACEBACKS:
            log.warning("a step raised", error=text_of(error), raised=error)
