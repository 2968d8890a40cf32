"""What a Python handler is written against: `from dormouse import Handler, State, Tensor`.

    class Taste(Handler):
        inputs = [Tensor("liked", "INT64", [1])]
        outputs = [Tensor("ranked", "INT64", [10])]
        states = [State("taste", "FP32", [64])]

        def setup(self, ctx):
            self.weights = np.load(ctx.model / "weights.npy")

        def step(self, inputs, state, ctx):
            state["taste"] += self.weights[inputs["liked"][0]]
            return {"ranked": np.argsort(-self.weights @ state["taste"])[:10]}

Tensors are NumPy arrays by name. FP16 is float16; BF16 is uint16 bit patterns (`dormouse_core.tensors.bf16_to_fp32`); BYTES are object
arrays of `bytes`.

A `step` that is a generator (or an async one) streams: each dict that it yields is one response, sent at once; a call has any number of
them. Callers reach it by `ModelStreamInfer` alone.

A step's changes of the state and its reply count together or not at all: if `step` raises, or its worker dies before the step is stored,
the state is what it was before. Responses that were yielded are provisional until then. What a handler does elsewhere (a file, a call of
another service) may happen more than once. A call of another function of Dormouse by `ctx.call` has its effect once where that function
has sessions, however often the step is run.
"""

import hashlib
import inspect
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from dormouse_core import callkeys, limits
from dormouse_core.errors import FailedPrecondition, Internal
from dormouse_core.spec import state_bytes
from dormouse_core.tensors import DATATYPES, as_array, zeros


@dataclass(frozen=True)
class Tensor:
    """An input or output: its name, its datatype (FP32, INT64, BYTES, ...), and its shape; -1 is any size.

    `optional` (inputs): a call may leave it out; `inputs` then lacks the name.
    """

    name: str
    datatype: str
    shape: Sequence[int]
    optional: bool = False


@dataclass(frozen=True)
class State:
    """A tensor that a session keeps from one step to the next.

    A new session starts with zeros (BYTES: empty). Where `shape` has a -1 it must be told which: `initial_shape` for zeros of that
    shape, or `initial`, an array.

    `when_missing="initial"`: a session that was stored by a version of the handler without this state goes on with that first value.
    Otherwise its steps are refused. Either way the manifest's `sessions.accepts` names the stored version.
    """

    name: str
    datatype: str
    shape: Sequence[int]
    initial: NDArray[Any] | None = None
    initial_shape: Sequence[int] | None = None
    when_missing: str | None = None

    def first(self) -> NDArray[Any]:
        """The value in a new session; an array of its own each time."""
        if self.initial is not None:
            return np.array(self.initial, copy=True)
        return zeros(self.datatype, self.shape if self.initial_shape is None else self.initial_shape)


def _never() -> bool:
    return False


class Caller(Protocol):
    """Who makes a step's calls of other functions: the worker; in a test of a handler, whatever stands for it."""

    def call(
        self,
        function: str,
        inputs: Mapping[str, Any],
        session: str | None,
        outputs: Sequence[str],
        timeout: float | None,
        key: str | None,
    ) -> Any: ...


class AlarmClock(Protocol):
    """Who takes what a step asks for later: the worker; in a test of a handler, whatever stands for it."""

    def set(self, at: float | datetime, inputs: Mapping[str, Any], name: str) -> None: ...
    def cancel(self, name: str) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Context:
    """Where a handler runs, and for which step.

    In `setup` there is no step: `session` is None, `step` is 0, `key` is empty.
    """

    function: str
    """namespace/name."""
    revision: str
    model: pathlib.Path | None = None
    """The folder of `spec.model`, if the function names one."""
    session: str | None = None
    """The session's id as its caller wrote it; None in a stateless function."""
    tenant: str = ""
    step: int = 0
    """The number of this step in its session, the first is 1; 0 in a stateless function."""
    start: bool = False
    """Whether the caller marked this step as its sequence's first."""
    end: bool = False
    """Whether the caller marked this step as its sequence's last: the session ends with it."""
    key: str = ""
    """The call's own key, the same when the call is sent again after a failure: `{microseconds}-{id}`, or `{id}` alone where the caller's
    key has no timestamp of its own."""
    alarm_name: str | None = None
    """Of the alarm whose step this is; None: a caller's."""
    deadline: float = float("inf")
    """When this step must be done, by `time.monotonic()`."""
    is_cancelled: Callable[[], bool] = field(default=_never, repr=False)
    caller: Caller | None = field(default=None, repr=False)
    clock: AlarmClock | None = field(default=None, repr=False)

    def cancelled(self) -> bool:
        """Whether nobody waits for the answer any more: a long step may stop by raising."""
        return self.is_cancelled()

    def remaining(self) -> float:
        """Seconds until the deadline; 0 when it has passed."""
        return max(0.0, self.deadline - time.monotonic())

    def call(
        self,
        function: str,
        inputs: Mapping[str, Any],
        session: str | None = None,
        *,
        outputs: Sequence[str] = (),
        timeout: float | None = None,
        key: str | None = None,
    ) -> Any:
        """Calls another function of the same namespace: its outputs by name, as NumPy arrays. In an `async` handler: `await ctx.call(...)`;
        the call is on its way before it is awaited, so several may run side by side.

        `session`: the one of that name, where the function has sessions. `outputs`: the ones that are wanted; none: all. `timeout`:
        seconds, where the call is to end before the step's own deadline, which holds for it too. It carries the step's tenant, and is
        cancelled with the step.

        A step that is run again (its worker died, or somebody sent it again under its key) makes its calls under the same keys. **Of a
        function with sessions each call therefore runs once for each step; of one without, at least once.** For this a step must make the
        same calls again: one that asks for something else under the same key is INVALID_ARGUMENT. And whom it called must still know the
        key: a session remembers its last eight calls, and 16 KiB of replies; beyond, such a call is ABORTED or ALREADY_EXISTS, and never
        run again. The same ABORTED is the answer to a call that never ran and comes too late: after more than 256 calls of later steps
        there, or ten minutes after the time of its own step's key.

        `key`: the handler's name for the call; without one it has a number: the first of this session in the step, the second, and so on.
        An error does not say that the call was not run (its deadline passed, its connection broke), and the next call is another one: it
        may have the effect a second time. Under one `key` both are the same call.

        Raises `DormouseError` with the code of whoever refused it. INVALID_ARGUMENT: no such name, an input that cannot be sent or that the
        function does not take, a function that stands in the path of this call already. NOT_FOUND: there is no such function.
        PERMISSION_DENIED: it is of another namespace. DEADLINE_EXCEEDED, CANCELLED: the step is over for whoever asked for it.
        RESOURCE_EXHAUSTED: a limit. FAILED_PRECONDITION: outside of a step, or one with a session under a caller's key that says no time:
        such a key has the form {16 digits}-{id}, microseconds since 1970, or the caller sends none.
        """
        if self.caller is None:
            raise FailedPrecondition("call: made outside of a step: functions are called from `step` alone")
        return self.caller.call(function, inputs, session, outputs, timeout, key)

    def alarm(self, at: float | datetime, inputs: Mapping[str, Any], name: str) -> None:
        """Has a step of this session run at `at`, with these inputs: once, in the session's order, also where the function sleeps by then.
        It is part of this step: where the step fails, nothing was asked for. Nobody gets the answer; what counts is the session's state and
        what the step calls.

        `at`: seconds since 1970, or a datetime with a zone; what is past is due at once. `name`: another alarm of this name in the session
        is replaced. The step finds it as `ctx.alarm_name`. One that raises is tried again, later each time, 30 times in 19 hours; then it
        is given up: `dormouse sessions` shows it. A session with an alarm to run does not expire; one that ends, or begins again, has none
        any more.

        INVALID_ARGUMENT: a time that is none, or more than ten years ahead, a name or inputs that cannot be (as the function takes them
        now). RESOURCE_EXHAUSTED: a limit; more than 100 alarms in the session fail the step. FAILED_PRECONDITION: outside of a step, in one
        that ends its session, in a function without sessions or one that streams.
        """
        self._clock().set(at, inputs, name)

    def cancel_alarm(self, name: str) -> None:
        """No step of that name is to run, of those that were asked for until now; nothing happens where there is none. It is part of this
        step, like `alarm`."""
        self._clock().cancel(name)

    def _clock(self) -> AlarmClock:
        if self.clock is None:
            raise FailedPrecondition("alarm: asked for outside of a step: alarms are set and cancelled in `step` alone")
        return self.clock

    def child_key(self, number: int) -> str:
        """The idempotency key for this step's call number `number` (0, 1, ...) of another function.

        A step that is repeated makes the same calls under the same keys, so none of them runs twice: it follows from this call's key and
        from nothing that changes when the call is sent again. Timestamps rise with the number: several calls of one step to one session
        must not pass for older than what that session ran already. Where the caller's own key has no timestamp, a child's has none: it is
        recognised while it is among the last keys of the session that it was sent to.
        """
        if not self.key:
            raise Internal("child_key: outside of a step there is no key to derive from")
        parts = callkeys.split(self.key)
        ident = self.key if parts is None else parts[1]
        digest = hashlib.sha256("\0".join((self.function, self.tenant, self.session or "", ident, str(number))).encode()).hexdigest()[:32]
        return digest if parts is None else f"{parts[0] + number:016d}-{digest}"


Inputs = Mapping[str, NDArray[Any]]
States = dict[str, NDArray[Any]]


class Handler:
    """A function in Python. Declare `inputs`, `outputs` and, for a stateful function, `states`; write `step`.

    One object serves all calls of a worker. Steps of different sessions run at the same time, in threads (or on the event loop if `step` is
    `async`): keep what belongs to a session in `state`, not on `self`.
    """

    inputs: ClassVar[Sequence[Tensor]] = ()
    outputs: ClassVar[Sequence[Tensor]] = ()
    states: ClassVar[Sequence[State]] = ()

    def setup(self, ctx: Context) -> None:
        """Called once, before the first step. What it raises makes the function fail with that message."""

    def step(self, inputs: Inputs, state: States, ctx: Context) -> Any:
        """One call: returns the outputs by name, or yields them, once for each response.

        `state` (empty in a stateless function): arrays to change in place, or names to set anew.

        The arrays in `inputs` are read-only. May be `async`. Raising answers the call with INTERNAL and leaves the state as it was;
        a `dormouse_core.errors.DormouseError` answers with its own code.
        """
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Declaration:
    """What a handler class declares, checked."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    states: tuple[State, ...]
    is_async: bool
    decoupled: bool = False
    """`step` is a generator."""

    def check_outputs(self, returned: Any) -> dict[str, NDArray[Any]]:
        """The outputs that `step` returned, as arrays. Internal: one is missing, unknown, or not as declared."""
        verb = "yielded" if self.decoupled else "returned"
        if not isinstance(returned, Mapping):
            raise Internal(f"step {verb} {type(returned).__name__}, a dict of outputs by name is required")
        names = [output.name for output in self.outputs]
        unknown = [str(name) for name in returned if name not in names]
        missing = [name for name in names if name not in returned]
        if unknown or missing:
            raise Internal(f"step {verb} the outputs {', '.join(map(str, returned)) or 'none'}, {', '.join(names)} are declared")
        return {output.name: as_array(returned[output.name], output.datatype, output.shape, output.name) for output in self.outputs}

    def check_states(self, state: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        """The states after a step, as arrays. Internal: one is missing, unknown, or not as declared."""
        names = [declared.name for declared in self.states]
        if sorted(map(str, state)) != sorted(names):
            raise Internal(f"step left the states {', '.join(map(str, state)) or 'none'}, {', '.join(names)} are declared")
        return {declared.name: as_array(state[declared.name], declared.datatype, declared.shape, declared.name) for declared in self.states}


def declaration_of(handler: Any, *, stateful: bool) -> Declaration:
    """What the class `handler` declares. FailedPrecondition, with every fault in one message: it cannot serve the function.

    `stateful`: whether the function's manifest has `sessions`.
    """
    if not (isinstance(handler, type) and issubclass(handler, Handler)):
        raise FailedPrecondition(f"handler: {_name(handler)} found, a class derived from dormouse.Handler is required")
    faults: list[str] = []
    inputs = _declared(handler, "inputs", Tensor, faults)
    outputs = _declared(handler, "outputs", Tensor, faults)
    states = _declared(handler, "states", State, faults)
    for state in states:
        faults += _initial_faults(state)
    if not outputs:
        faults.append("outputs: none found, at least one is required")
    if stateful and not states:
        faults.append("states: none found, at least one is required in a function with `sessions`")
    if states and not stateful:
        faults.append(
            f"states: {len(states)} found, none is allowed in a function without `sessions` (write `sessions: {{}}` for a stateful one)"
        )
    if not faults:
        least = state_bytes([(state.shape, None, DATATYPES[state.datatype].itemsize or 4) for state in states])
        if least > limits.STATE_BYTES:
            faults.append(f"states: a session of {least} bytes found, at most {limits.STATE_BYTES} are allowed")
    if handler.step is Handler.step:
        faults.append("step: not found, it is required")
    elif found := _other_arguments(handler):
        faults.append(f"step: step{found} found, step(self, inputs, state, ctx) is required, without sessions too")
    if faults:
        raise FailedPrecondition("\n".join(f"handler {_name(handler)}: {fault}" for fault in faults))
    streams = inspect.isasyncgenfunction(handler.step)
    is_async = streams or inspect.iscoroutinefunction(handler.step)
    return Declaration(inputs, outputs, states, is_async, streams or inspect.isgeneratorfunction(handler.step))


def _other_arguments(handler: type[Handler]) -> str:
    """The arguments of its `step`, where it cannot be called with the three that it is given: told when the function is applied, and not by
    the first call."""
    given = 3 if isinstance(inspect.getattr_static(handler, "step"), staticmethod | classmethod) else 4
    try:
        signature = inspect.signature(handler.step)
    except (TypeError, ValueError):  # compiled: nothing is known of it
        return ""
    try:
        signature.bind(*range(given))
    except TypeError:
        return str(signature)
    return ""


def _declared(handler: type[Handler], name: str, kind: type[Tensor] | type[State], faults: list[str]) -> tuple[Any, ...]:
    """The declarations under `name` that are well formed; the others go to `faults`."""
    found = getattr(handler, name)
    if not isinstance(found, list | tuple):
        faults.append(f"{name}: {type(found).__name__} found, a list of {kind.__name__} is required")
        return ()
    good: dict[str, Any] = {}
    for index, item in enumerate(found):
        at = f"{name}[{index}]"
        if not isinstance(item, kind):
            faults.append(f"{at}: {type(item).__name__} found, {kind.__name__} is required")
        elif not isinstance(item.name, str) or not item.name:
            faults.append(f"{at}: the name {item.name!r} found, a text of at least one character is required")
        elif item.name in good:
            faults.append(f'{at}: the name "{item.name}" found again, each is allowed once')
        elif item.datatype not in DATATYPES:
            faults.append(f'{at} "{item.name}": datatype {item.datatype!r} found, one of {", ".join(DATATYPES)} is allowed')
        elif not _is_shape(item.shape, -1):
            faults.append(f'{at} "{item.name}": shape {item.shape!r} found, a list of sizes is allowed (-1: any size)')
        else:
            good[item.name] = item
    return tuple(good.values())


def _is_shape(shape: Any, least: int) -> bool:
    return isinstance(shape, list | tuple) and all(isinstance(size, int) and not isinstance(size, bool) and size >= least for size in shape)


def _initial_faults(state: State) -> list[str]:
    at = f'states "{state.name}"'
    if state.when_missing not in (None, "initial"):
        return [f'{at}: when_missing {state.when_missing!r} found, "initial" is allowed']
    if state.initial is not None and state.initial_shape is not None:
        return [f"{at}: both initial and initial_shape found, one is allowed"]
    if state.initial is None and state.initial_shape is None:
        varies = -1 in state.shape
        return [f"{at}: shape {list(state.shape)} found, initial or initial_shape is required where a dimension varies"] if varies else []
    if state.initial_shape is not None and not _is_shape(state.initial_shape, 0):
        return [f"{at}: initial_shape {state.initial_shape!r} found, a list of sizes of 0 and more is allowed"]
    try:
        as_array(state.first(), state.datatype, state.shape, state.name)
    except Internal as error:
        return [f"{at}: initial value: {error.message}"]
    return []


def _name(handler: Any) -> str:
    return f"{handler.__module__}:{handler.__qualname__}" if isinstance(handler, type) else repr(handler)
