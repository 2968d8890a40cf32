"""What the sessions are given to run steps with, and what they report."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from dormouse_core.sessions.boundary import Outcome, States


class Runner(Protocol):
    """The batcher. It may be called for many sessions at once, for one session never before `done` of the step before."""

    def run(self, call: Any, states: States, step: int, start: bool, end: bool, done: Callable[[Outcome], None], deadline: float) -> None:
        """Runs `call` on `states` and calls `done` exactly once, when nothing of the step runs any more; never inside this call's own stack
        of the same session's `done`. Must not change `states`: a step that fails leaves them as they were.

        `step` is the number of this step (1: the first since the session began), `start` that it begins the session, whether or not the
        caller said so. Past `deadline` (monotonic) the runner ends with Failed(DeadlineExceeded).
        """


@dataclass(slots=True)
class SessionsReport:
    """For the control stream's WorkerReport."""

    sessions: int = 0  # in memory
    state_bytes: int = 0  # of those
    shards: int = 0  # owned
    running: int = 0  # steps that run or commit
    queued: int = 0  # steps that wait for their turn
    steps: int = 0  # acknowledged since the process began
    kept_replies: int = 0
    stored_sessions: int = 0  # live ones in the store, of the shards owned
    stored_bytes: int = 0  # of their records
    hibernated_bytes: int = 0  # of records that are not in memory
    counted: bool = False  # the three above are complete
    memory_bytes: int = 0  # what sessions take of memory, by the worker's own count
    removed: int = 0  # records, since the process began
    alarms: int = 0  # that run or are due here; not among `queued`
    alarm_seconds: float = 0.0  # those, over time, since the process began: they are work for more workers as active calls are
    stopped: list[tuple[int, int]] = field(default_factory=list)  # (shard, wall µs at which it stopped serving): rule *handoff*
