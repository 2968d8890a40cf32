"""The batcher: takes what waits, runs it together, answers each.

Which calls fit together is `joining`'s and `requests`' to say; what does not fit runs by itself, at once.

No delay by default: while one batch runs, the next gathers by itself. A run that is short runs on the event loop, since handing it to a
thread and back costs more than it; a longer one runs in a thread, so that the loop keeps reading calls, committing and answering the probe.
Which it is, is measured. Trouble stays with its row: a batch that fails is run again row by row.

States belong to the sessions and are never written to; a run makes new ones.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
from dormouse_core.errors import DeadlineExceeded, DormouseError, Internal, InvalidArgument, Unavailable, text_of
from dormouse_kit import log

from dormouse_worker.replies import Encoder
from dormouse_worker.runtimes.onnx import InvalidElement
from dormouse_worker.sessions import Failed, Outcome, Ran
from dormouse_worker.signatures import Signature
from dormouse_worker.stacking import ALONE, Stacker, UnevenOutput
from dormouse_worker.work import Figures, Runs, States, Work

INLINE_SECONDS = 0.002
"""A model whose runs take less than this on average runs on the loop."""
SLOW_SECONDS = 0.05
"""A single run longer than this keeps the model off the loop for good: its time depends on what callers send."""


class BatchRuntime(Protocol):
    signature: Signature

    def run(self, feeds: dict[str, np.ndarray]) -> list[np.ndarray]: ...
    def stop(self) -> None: ...


class Batcher:
    """Runs works on a runtime that takes one run at a time."""

    def __init__(
        self,
        runtime: BatchRuntime,
        encoder: Encoder,
        *,
        delay: float,
        step_limit: float,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`delay`: seconds that a call may wait for others (maxQueueDelay)."""
        self.runs = Runs(step_limit)
        self.figures = Figures()
        self._runtime = runtime
        self._encoder = encoder
        self._stacker = Stacker(runtime.signature)
        self._public = len(runtime.signature.outputs)
        self._limit = runtime.signature.max_batch if self._stacker.batches else 1
        self._delay = delay if self._stacker.batches else 0.0
        self._monotonic = monotonic
        self._groups: dict[tuple[Any, ...], deque[Work]] = {}
        self._scheduled = False
        self._pool: ThreadPoolExecutor | None = None
        self._in_thread = False
        self._average: float | None = None
        self._slow = False

    def run(self, call: Any, states: States, step: int, start: bool, end: bool, done: Callable[[Outcome], None], deadline: float) -> None:
        """Queues one call; see `dormouse_worker.sessions.Runner`."""
        work = Work(call, states, step, start, end, done, deadline, self._monotonic())
        group = self._stacker.group(work)
        queue = self._groups.get(group)
        if queue is None:
            queue = self._groups[group] = deque()
        queue.append(work)
        self.figures.waiting += 1
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._flush)

    # ---------------------------------------------------------------------------------------------------------------- batches
    def _flush(self) -> None:
        self._scheduled = False
        while self._groups and not self._in_thread:
            now = self._monotonic()
            group = self._next(now)
            if group is None:
                return
            works = self._take(group, self._groups[group], now)
            if not works:
                continue
            if self._average is not None and self._average < INLINE_SECONDS and not self._slow:
                token = self.runs.begin(now, works)
                outcomes = self._execute(works)
                self._finished(works, outcomes, self.runs.end(token) or now)
            else:
                self._start_thread(works, now)

    def _next(self, now: float) -> tuple[Any, ...] | None:
        """The first group whose batch is full or has waited long enough; None: none has, and this comes back when one has."""
        soonest = float("inf")
        for group, queue in self._groups.items():
            left = queue[0].since + self._delay - now
            if not self._delay or left <= 0 or group is ALONE or sum([work.request.rows for work in queue]) >= self._limit:
                return group
            soonest = min(soonest, left)
        self._scheduled = True
        asyncio.get_running_loop().call_later(soonest, self._flush)
        return None

    def _take(self, group: tuple[Any, ...], queue: deque[Work], now: float) -> list[Work]:
        """The next batch of a group; the group then goes behind the others. Calls that nobody waits for are dropped here."""
        works: list[Work] = []
        rows = 0
        while queue:
            work = queue[0]
            if works and (group is ALONE or rows + work.request.rows > self._limit):
                break
            queue.popleft()
            self.figures.waiting -= 1
            if work.request.gone or work.deadline <= now:
                self.figures.dropped += 1
                work.done(Failed(DeadlineExceeded("the caller's deadline passed, or it went away, before the step ran")))
                continue
            works.append(work)
            rows += work.request.rows
        del self._groups[group]
        if queue:
            self._groups[group] = queue
        return works

    def _execute(self, works: Sequence[Work]) -> list[Outcome]:
        """Runs a batch where it is called: on the loop or in the thread. Never raises."""
        try:
            return self._attempt(works)
        except Exception as error:
            if len(works) == 1:
                return [Failed(as_error(error))]
            if isinstance(error, UnevenOutput):
                log.warning("the model does not batch as it seemed to; its calls run one by one", error=error)
                self._limit = 1
        outcomes: list[Outcome] = []
        for work in works:
            outcomes += self._execute([work])
        return outcomes

    def _attempt(self, works: Sequence[Work]) -> list[Outcome]:
        outputs = self._runtime.run(self._stacker.stack(works))
        public = outputs[: self._public]
        if len(works) == 1:
            replies = [self._encoder.encode(works[0].request, public)]
        else:
            self._stacker.check(works, public)
            replies = self._encoder.encode_rows([work.request for work in works], public)
        return list(map(Ran, replies, self._stacker.states(works, outputs[self._public :])))

    def _finished(self, works: Sequence[Work], outcomes: Sequence[Outcome], began: float) -> None:
        took = self._monotonic() - began
        self._average = took if self._average is None else 0.9 * self._average + 0.1 * took
        self._slow = self._slow or took > SLOW_SECONDS
        self.figures.ran(works, began, took)
        late = took > self.runs.limit
        for work, outcome in zip(works, outcomes, strict=True):
            work.done(Failed(self.runs.exceeded()) if late else outcome)

    # ----------------------------------------------------------------------------------------------------------------- threads
    def _start_thread(self, works: list[Work], now: float) -> None:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, "model")
        self._in_thread = True
        loop = asyncio.get_running_loop()
        token = self.runs.begin(now, works)
        timer = loop.call_later(self.runs.limit, self._exceeded, works)
        future = loop.run_in_executor(self._pool, self._execute, works)

        def ended(result: "asyncio.Future[list[Outcome]]") -> None:
            timer.cancel()
            began = self.runs.end(token)
            self._in_thread = False
            self._finished(works, result.result(), now if began is None else began)
            if self._groups and not self._scheduled:
                self._flush()

        future.add_done_callback(ended)

    def _exceeded(self, works: Sequence[Work]) -> None:
        """The step limit has passed: callers are told now, the sessions when the run has ended."""
        self._runtime.stop()
        for work in works:
            call = work.request.call
            if call is not None:
                call.transport.refuse(call, self.runs.exceeded())

    def warm_up(self, feeds: dict[str, np.ndarray]) -> None:
        """Runs once or twice at the start, so that the first call finds warm memory and the batcher knows how long a run takes."""
        try:
            self._runtime.run(feeds)
            began = self._monotonic()
            self._runtime.run(feeds)
            self._average = self._monotonic() - began
        except Exception as error:  # zeros need not be valid input: the first real call tells
            log.event("the model did not take zeros to warm up", error=error)


def as_error(error: Exception) -> DormouseError:
    """What a caller is told of an exception out of a model or a handler."""
    if isinstance(error, InvalidElement):
        return InvalidArgument(str(error))
    if isinstance(error, Unavailable) and error.again is not None:
        return Internal(error.message)  # only the worker itself may say that nothing ran
    if isinstance(error, DormouseError):
        return error
    return Internal(text_of(error))
