"""The calls that one step of a handler makes of other functions: what stands behind `ctx.call` (`dormouse_core.childcalls` decides).

A handler that is not `async` calls from its thread, which waits; its place is another step's meanwhile (`dormouse_core.slots`). An `async`
one gets a task. Both end with the step: when its caller goes away, when its time is over, and when it has returned.
"""

import asyncio
import concurrent.futures
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from dormouse_core import asking, headernames, limits
from dormouse_core.childcalls import Calling, unsaid, written
from dormouse_core.errors import Code, DeadlineExceeded, DormouseError, FailedPrecondition, InvalidArgument, ResourceExhausted, text_of
from dormouse_proto import inference_pb2

Waits = Callable[[bool], None]
"""Told, in the handler's thread, when the step begins to wait (True) and when it goes on."""


class Way(Protocol):
    """To the gateways."""

    async def infer(self, message: bytes, metadata: Mapping[str, str], until: float) -> bytes: ...


class StepCalls:
    """Of one step; see `dormouse_core.handlers.Caller`."""

    def __init__(
        self,
        way: Way | None,
        calling: Callable[[], Calling],
        deadline: float,
        loop: asyncio.AbstractEventLoop,
        waits: Waits | None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`calling`: asked at the first call. `waits`: of a handler in a thread; None: it is `async`, on `loop`."""
        self._way = way
        self._make = calling
        self._calling: Calling | None = None
        self._lock = threading.Lock()  # a handler may call from threads of its own
        self._thread = threading.get_ident()
        self._deadline = deadline
        self._loop = loop
        self._waits = waits
        self._monotonic = monotonic
        self._pending: set[asyncio.Task[Any]] = set()
        self._over: DormouseError | None = None

    def call(
        self,
        function: str,
        inputs: Mapping[str, Any],
        session: str | None,
        outputs: Sequence[str],
        timeout: float | None,
        key: str | None,
    ) -> Any:
        if self._way is None:
            raise unsaid()
        if self._over is not None:
            raise self._over
        until = self._until(timeout)
        message = _message(inputs, outputs)
        with self._lock:
            if self._calling is None:
                self._calling = self._make()
            calling = self._calling
            label, made = calling.next(function, session, key)
        metadata = {headernames.FUNCTION: label, headernames.IDEMPOTENCY_KEY: made, headernames.PATH: written(calling.whole)}
        if session is not None:
            metadata[headernames.SESSION] = session
        if calling.tenant:
            metadata[headernames.TENANT] = calling.tenant
        asked = self._ask(self._way, label, message, metadata, until)
        if self._waits is None:
            return self._begin(asked)
        answer = asyncio.run_coroutine_threadsafe(self._bound(asked), self._loop)
        waits = self._waits if threading.get_ident() == self._thread else _nothing  # beside a thread of the handler's own it goes on
        waits(True)
        try:
            return answer.result()
        except concurrent.futures.CancelledError:
            raise self._cancelled() from None
        finally:
            waits(False)

    def end(self, error: DormouseError | None = None) -> None:
        """The step is over: what it has not waited for is cancelled, and it makes no further call. On the event loop."""
        if self._over is None:
            self._over = error or FailedPrecondition("call: made after the step had ended")
        for task in self._pending:
            task.cancel()

    def gone(self) -> None:
        """Nobody waits for the step's answer any more. On the event loop."""
        self.end(DormouseError("call: the caller of this step went away, or its time is over", Code.CANCELLED))

    def _until(self, timeout: float | None) -> float:
        now = self._monotonic()
        if timeout is not None and not (isinstance(timeout, int | float) and timeout > 0):
            raise InvalidArgument(f"call: timeout: {timeout!r} found, a number of seconds above 0 is allowed")
        if self._deadline <= now:
            raise DeadlineExceeded("call: the step's deadline has passed; nothing was called")
        return self._deadline if timeout is None else min(self._deadline, now + timeout)

    def _begin(self, asked: Any) -> "asyncio.Task[Any]":
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if running is not self._loop:
            asked.close()
            raise FailedPrecondition("call: made from a thread: an `async` handler calls on the event loop that runs it")
        task = self._loop.create_task(asked)
        self._pending.add(task)
        task.add_done_callback(self._done)
        return task

    async def _bound(self, asked: Any) -> Any:
        return await self._begin(asked)

    def _done(self, task: "asyncio.Task[Any]") -> None:
        self._pending.discard(task)
        if not task.cancelled():
            task.exception()  # a call that nobody awaits fails for nobody

    async def _ask(self, way: Way, label: str, message: bytes, metadata: Mapping[str, str], until: float) -> Any:
        try:
            if self._over is not None:
                raise self._cancelled()
            answer = await way.infer(message, metadata, until)
            return asking.outputs(inference_pb2.ModelInferResponse.FromString(answer))
        except asyncio.CancelledError:
            if self._over is None:
                raise  # by the handler itself
            raise self._cancelled() from None
        except DormouseError as error:
            prefix = "" if error.message.startswith("call: ") else f"call of {label}: "
            raise DormouseError(prefix + error.message, error.code) from None

    def _cancelled(self) -> DormouseError:
        return self._over or DormouseError("call: cancelled", Code.CANCELLED)


def _nothing(_: bool) -> None: ...


def _message(inputs: object, outputs: Sequence[str]) -> bytes:
    if not isinstance(inputs, Mapping) or not all(isinstance(name, str) for name in inputs):
        raise InvalidArgument(f"call: inputs: {type(inputs).__name__} found, a mapping of names to arrays is allowed")
    if not isinstance(outputs, Sequence) or isinstance(outputs, str) or not all(isinstance(name, str) for name in outputs):
        raise InvalidArgument(f"call: outputs: {outputs!r} found, a list of names is allowed")
    made = inference_pb2.ModelInferRequest()
    for name, array in inputs.items():
        try:
            made.MergeFrom(asking.request("", {name: array}))
        except DormouseError as error:
            raise InvalidArgument(f"call: inputs[{name!r}]: {error.message}") from None
        except Exception as error:  # whatever NumPy makes of what a handler gives
            raise InvalidArgument(f"call: inputs[{name!r}]: {text_of(error)}") from None
    for name in outputs:
        try:
            made.outputs.add(name=name)
        except ValueError:  # half a surrogate pair
            raise InvalidArgument(f"call: outputs: {name!r} found, which is no text that can be sent") from None
    message = made.SerializeToString()
    if len(message) > limits.MESSAGE_BYTES_MAX:
        raise ResourceExhausted(f"call: inputs: {len(message)} bytes found, at most {limits.MESSAGE_BYTES_MAX} are allowed")
    return message
