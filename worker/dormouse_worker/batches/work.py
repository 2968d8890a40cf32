"""What batchers take and give back, and the watch over what runs."""

import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from dormouse_core.errors import DeadlineExceeded

from dormouse_worker.batches.requests import Request
from dormouse_worker.process.marks import Marks
from dormouse_worker.sessions import Outcome

States = dict[str, np.ndarray]
ENDING = 1.0
"""Seconds that a run has to end after its step limit, before the worker counts as hung."""


@dataclass(slots=True, eq=False)
class Work:
    """One call that waits for its turn, or runs."""

    request: Request
    states: States
    step: int
    start: bool
    end: bool
    done: Callable[[Outcome], None]
    deadline: float
    since: float
    token: int | None = None
    """Of its run."""
    busy_us: int = 0
    """Its share of the time of the last run that it was part of, by its rows."""


class Runs:
    """What runs right now: enforces the step limit towards callers, and knows when the worker hangs (the probe's question).

    At the limit a caller is answered at once. The sessions hear of the end only when nothing of the step runs any more: a step beside its
    own zombie would find the handler in a state that nobody foresaw.
    """

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.marks: Marks | None = None
        """Where runs are marked for the supervisor."""
        self.on_end: Callable[[], None] = _nothing
        """Called on the event loop when a run has ended, also one whose caller was answered before, or when a call was dropped that had not
        run."""
        self._runs: dict[int, float] = {}
        self._marked: set[int] = set()
        self._numbers = itertools.count()

    def begin(self, now: float, works: Iterable[Work] = (), thread: int = 0) -> int:
        """A token for `end`. Thread-safe: single operations on a dict. `thread`: the native id of its own thread."""
        token = next(self._numbers)
        self._runs[token] = now
        if self.marks is not None:
            self._marked.add(token)
            self.marks.begin(token, now, [work.request.call_key for work in works if work.request.call_key], thread)
        return token

    def on_loop(self, token: int | None) -> None:
        """The event loop is in this run's code from now on; None: in none's."""
        if self.marks is not None:
            self.marks.on_loop(token)

    def left(self, token: int) -> None:
        """Nothing of the run's own code runs any more, though the loop has not heard: its thread may begin the next at once, and that one
        may hold the interpreter."""
        if self.marks is not None and token in self._marked:
            self._marked.discard(token)
            self.marks.end(token)

    def end(self, token: int) -> float | None:
        """When it began. On the event loop."""
        began = self._runs.pop(token, None)
        if began is not None:
            self.left(token)
            self.on_end()
        return began

    def has(self, token: int) -> bool:
        return token in self._runs

    def oldest(self, now: float) -> float:
        """Age in seconds of the run that began first; 0: none."""
        return now - min(list(self._runs.values()), default=now)

    def hangs(self, now: float) -> bool:
        return self.oldest(now) > self.limit + ENDING

    def exceeded(self) -> DeadlineExceeded:
        return DeadlineExceeded(f"the step ran longer than {self.limit:g} s (timeouts.step)")

    def __len__(self) -> int:
        return len(self._runs)


def _nothing() -> None: ...


@dataclass(slots=True)
class Figures:
    """Of a batcher, for metrics and reports."""

    runs: int = 0
    rows: int = 0
    busy_seconds: float = 0.0
    dropped: int = 0
    waiting: int = field(default=0)
    items: int = 0
    """Rows of all those calls: a caller's batch of 8 counts 8."""
    queued_seconds: float = 0.0
    """From each call's arrival in the batcher to its run."""
    ran_seconds: float = 0.0
    """For each call, the time of the run that it was part of."""
    last: float = 0.0
    """When the last run ended, Unix time in seconds."""

    def ran(self, works: Sequence[Work], began: float, took: float) -> None:
        """A run of `works` ended."""
        count = len(works)
        self.runs += 1
        self.rows += count
        self.busy_seconds += took
        rows = sum([work.request.rows for work in works])
        self.items += rows
        each = took * 1e6 / rows if rows else 0.0
        for work in works:
            work.busy_us = round(work.request.rows * each)
        self.queued_seconds += count * began - sum([work.since for work in works])
        self.ran_seconds += count * took
        self.last = time.time()
