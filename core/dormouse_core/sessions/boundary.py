"""What crosses between the sessions and the rest of a worker.

The service reads a call off the transport, decodes it and submits a `Step`; the sessions decide when it runs and on which state, and hand
it to the `Runner` (the batcher), which calls back with an `Outcome`; once its commit is known, the step's `answer` is called. The sessions
know nothing of frames, tensors' names or models; the runner knows nothing of shards, records or keys.

Everything here is called on the worker's event loop.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dormouse_core import limits
from dormouse_core.alarms import Change
from dormouse_core.callkeys import CallKey
from dormouse_core.errors import DormouseError
from dormouse_core.records import Alarm

States = dict[str, np.ndarray]  # a session's tensors by the name of the state *input*, each with its full shape


@dataclass(frozen=True, slots=True)
class StateInfo:
    """One state of the function: what the model reads as `input` and returns as `output`.

    `shape` is one session's tensor as the model sees it, the batch axis included with size 1; -1 elsewhere: variable, and then no fixed
    size is known before a step ran. `initial` has the shape with which a session begins; it is copied, never changed.
    """

    name: str
    input: str
    output: str
    datatype: str  # the Open Inference Protocol's: FP32, INT64, ...
    shape: tuple[int, ...]
    batch_axis: int | None
    initial: np.ndarray
    fills: bool = False
    """A session whose record lacks this state goes on with `initial`."""


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """What the sessions need of a function's spec. Times are in seconds."""

    shards: int
    state_version: str
    accepts: frozenset[str] = frozenset()  # further state versions that this revision reads (rule *state-version*)
    ttl: float = 86_400.0
    """A session that is not stepped for so long is over."""
    evict_after: float = 600.0
    """A session that is not stepped for so long leaves memory; its record stays."""
    step_limit: float = 60.0
    """The longest that one step may run, from its turn."""
    removal_wait: float = limits.REMOVAL_WAIT_SECONDS
    """From a session's end or expiry to its record's removal."""
    max_count: int = limits.SESSIONS_MAX
    max_bytes: int | None = None
    """Of all live sessions' records; None: no limit."""
    memory_bytes: int = 0
    """What sessions may take of this worker's memory; beyond, the longest idle leave it. 0: no limit."""


@dataclass(slots=True)
class Answer:
    """What a step's caller is told. `reply` is an encoded ModelInferResponse, or None and then `error` says why.

    An `Unavailable` with `again` becomes the header dormouse-again (rule *again*). `step` is the session's step count after this step,
    0: unknown.
    """

    reply: bytes | None
    step: int = 0
    error: DormouseError | None = None
    kept: bool = False  # the reply of an earlier copy of this call: not billed again


@dataclass(slots=True, eq=False)
class Step:
    """One call inside a session, as the transport read it."""

    session: str  # dormouse_core.sessions.names.session_key
    key: CallKey
    digest: bytes  # of the decoded request (rule *same-request*)
    start: bool  # sequence_start: begins the session anew, whatever is there
    end: bool  # sequence_end: leaves a tombstone
    create: bool  # may begin the session if there is none: metadata dormouse-session, or `start`
    call: Any  # the transport's request; opaque here, handed to the runner
    answer: Callable[[Answer], None]  # called exactly once, except after `cancel`: then at most once
    rev: int = 0  # dormouse-rev: the sender's map was read at this revision; 0 unknown (rule *newest-map*)
    deadline: float = float("inf")  # the caller's, on the monotonic clock. The step limit runs from the step's turn
    cancelled: bool = False  # set by Sessions.cancel
    bytes_in: int = 0  # of the call's message
    rings: bool = False
    """Nobody's call: whichever alarm of the session is due when its turn comes."""
    alarm: Alarm | None = None
    """That alarm, once the turn has come; `call` is for the driver to make of it."""
    began: Callable[[], None] = lambda: None
    """Called when the runner has begun that alarm's step, which it may do long after it was given it; not by every runner."""


@dataclass(slots=True)
class Ran:
    """The step ran. `reply` is complete but for metadata; `states` are the next ones, by state input, not shared with any other session.
    `busy_us`: its share of the time for which it ran; whoever ran it sets it once that is known."""

    reply: bytes
    states: States
    alarms: Sequence[Change] = ()
    """What the step asked for, in its order."""
    busy_us: int = 0


@dataclass(frozen=True, slots=True)
class Failed:
    """The step did not run to its end. Nothing is committed; the session keeps the state that it had. `busy_us`: for how long it ran,
    where that is known."""

    error: DormouseError
    busy_us: int = 0


Outcome = Ran | Failed
