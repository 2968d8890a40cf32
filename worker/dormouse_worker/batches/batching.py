"""The batcher: takes what waits, runs it together, answers each.

Which calls fit together is `joining`'s and `requests`' to say; what does not fit runs by itself, at once.

No delay by default: while one batch runs, the next gathers by itself. A run that is short runs on the event loop, since handing it to a
thread and back costs more than it; a longer one runs in a thread, so that the loop keeps reading calls, committing and answering the probe.
Which it is, is measured. Trouble stays with its row: a batch that fails, or takes as long as one call may, is run again call by call, each
under a limit of its own. So it is with an answer that cannot be given: who ran or waits beside it is answered all the same.

States belong to the sessions and are never written to; a run makes new ones.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from dormouse_core.errors import Code, DeadlineExceeded, DormouseError, Internal, InvalidArgument, Unavailable, text_of
from dormouse_kit import log

from dormouse_worker.batches.forms import Form, Forms, Trial
from dormouse_worker.batches.replies import Encoder
from dormouse_worker.batches.stacking import ALONE, Stacker, UnevenOutput
from dormouse_worker.batches.work import Figures, Runs, States, Work
from dormouse_worker.models.refusals import InvalidElement
from dormouse_worker.models.signatures import Signature
from dormouse_worker.sessions import Failed, Outcome, Ran

INLINE_SECONDS = 0.002
"""A model whose runs take less than this on average runs on the loop."""
SLOW_SECONDS = 0.05
"""A single run longer than this keeps the model off the loop for good: its time depends on what callers send."""
JOINED_SECONDS = 1.0
"""So many rows are joined as take this long together: beyond it nobody gains by company."""
JOINED = 0.5
"""Of the step limit, after which a joined run is stopped and its calls run one by one: the limit is each call's own."""
RETRY_SECONDS = 0.1  # after an error of ours


class BatchRuntime(Protocol):
    signature: Signature

    def run(self, feeds: dict[str, np.ndarray]) -> list[np.ndarray]: ...
    def stop(self) -> None: ...


@dataclass(slots=True)
class _Run:
    """One run of the model. `form`: of its works; None: they run alone. `trial`: of which it is a part. `unseen`: nobody is answered."""

    works: Sequence[Work]
    form: Form | None
    trial: Trial | None = None
    unseen: bool = False


_Result = tuple[list[Outcome], list[np.ndarray]] | Exception


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
        known = runtime.signature.batching
        self.forms = Forms(known.alone if known is not None else ())
        self._longest = min(JOINED_SECONDS, step_limit * JOINED / 2)
        self._due: deque[_Run] = deque()
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

    @property
    def quiet(self) -> bool:
        """Nothing runs or waits to run, nor is compared."""
        return not (self._due or self._groups or self._in_thread)

    # ------------------------------------------------------------------------------------------------------------------- runs
    def _flush(self) -> None:
        self._scheduled = False
        try:
            self._run_all()
        except BaseException:  # a bug of ours, which the event loop logs: what waits behind it runs all the same
            self._come_back(RETRY_SECONDS)
            raise

    def _come_back(self, seconds: float) -> None:
        if (self._due or self._groups) and not self._in_thread and not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_later(seconds, self._flush)

    def _run_all(self) -> None:
        while (self._due or self._groups) and not self._in_thread:
            now = self._monotonic()
            run = self._due.popleft() if self._due else self._gathered(now)
            if run is None:
                return
            if not run.works or (len(run.works) == 1 and self._dropped(run.works[0], now)):
                continue
            if self._average is not None and self._average < INLINE_SECONDS and not self._slow:
                token = self.runs.begin(now, run.works)
                result = self._execute(run)
                self._ended(run, result, self.runs.end(token) or now)
            else:
                self._start_thread(run, now)

    def _gathered(self, now: float) -> "_Run | None":
        """The next run out of what waits; None: nothing has waited long enough."""
        group = self._next(now)
        if group is None:
            return None
        queue = self._groups[group]
        form = None if group is ALONE else self.forms.of(group)
        most = 1
        if form is not None and form.joins is not False:
            most = form.rows(self._limit, queue[0], self._longest)
        works = self._take(group, queue, now, most, 2 if form is not None and form.joins is None else len(queue))
        if len(works) < 2 or form is None or form.joins:
            return _Run(works, form)
        trial = Trial(form, works)
        self._due.append(_Run(works[1:], form, trial))
        return _Run(works[:1], form, trial)

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

    def _take(self, group: tuple[Any, ...], queue: deque[Work], now: float, most: int, calls: int) -> list[Work]:
        """The next works of a group, of at most so many rows and calls, or one; the group then goes behind the others."""
        works: list[Work] = []
        rows = 0
        while queue and len(works) < calls:
            work = queue[0]
            if works and rows + work.request.rows > most:
                break
            queue.popleft()
            self.figures.waiting -= 1
            if not self._dropped(work, now):
                works.append(work)
                rows += work.request.rows
        del self._groups[group]
        if queue:
            self._groups[group] = queue
        return works

    def _dropped(self, work: Work, now: float) -> bool:
        """Calls that nobody waits for are not run."""
        if not work.request.gone and work.deadline > now:
            return False
        self.figures.dropped += 1
        self._answer(work, Failed(DeadlineExceeded("the caller's deadline passed, or it went away, before the step ran")))
        self.runs.on_end()
        return True

    def _answer(self, work: Work, outcome: Outcome) -> None:
        """Raised from here, it would leave those unanswered that were gathered with this call, and nobody would come back for who waits."""
        if isinstance(outcome, Ran):
            outcome.busy_us = work.busy_us
        try:
            work.done(outcome)
        except Exception as error:
            log.warning("a reply could not be delivered", error=text_of(error), raised=error)

    def _execute(self, run: "_Run") -> "_Result":
        """Where it is called: on the loop or in the thread. Never raises."""
        works = run.works
        try:
            outputs = self._runtime.run(self._stacker.stack(works))
            if run.unseen:
                return [], outputs
            public = outputs[: self._public]
            if len(works) == 1:
                replies = [self._encoder.encode(works[0].request, public)]
            else:
                self._stacker.check(works, public)
                replies = self._encoder.encode_rows([work.request for work in works], public)
            return list(map(Ran, replies, self._stacker.states(works, outputs[self._public :]))), outputs
        except Exception as error:
            return error

    def _ended(self, run: "_Run", result: "_Result", began: float) -> None:
        took = self._monotonic() - began
        if run.unseen:
            self._judged(run, result)
            return
        works = run.works
        self._average = took if self._average is None else 0.9 * self._average + 0.1 * took
        self._slow = self._slow or took > SLOW_SECONDS
        self.figures.ran(works, began, took)
        if len(works) > 1:
            self._joined(run, result, took)
            return
        late = took > self.runs.limit
        outcome = Failed(as_error(result)) if isinstance(result, Exception) else result[0][0]
        if run.trial is not None and not late and not isinstance(result, Exception):
            run.trial.outputs.append(result[1])
            if len(run.trial.outputs) == len(run.trial.works):
                self._due.appendleft(_Run(run.trial.works, run.form, run.trial, unseen=True))
        self._answer(works[0], Failed(self.runs.exceeded()) if late else outcome)

    def _joined(self, run: "_Run", result: "_Result", took: float) -> None:
        """What ran together is answered, or runs again call by call: trouble, and time, stay with the call whose they are."""
        works = run.works
        rows = sum([work.request.rows for work in works])
        if not isinstance(result, Exception):
            if run.form is not None:
                run.form.ran(rows, took)
            for work, outcome in zip(works, result[0], strict=True):
                self._answer(work, outcome)
            return
        if run.form is not None and took >= self._longest:
            run.form.stopped(rows, took)
        if run.form is not None and isinstance(result, UnevenOutput):
            self.forms.separate(run.form, works[0], str(result))
        self._due.extend(_Run([work], None) for work in works)

    def _judged(self, run: "_Run", result: "_Result") -> None:
        """Two calls have run alone, and now together."""
        trial = run.trial
        assert trial is not None
        if isinstance(result, Exception):
            wrong: str | None = f"the model refuses together what it takes alone: {as_error(result).message}"
        else:
            wrong = trial.judge(self._runtime.signature, result[1])
        if wrong is not None:
            self.forms.separate(trial.form, trial.works[0], wrong)
        elif trial.form.joins is None:  # else another worker's word came meanwhile
            trial.form.joins = True

    # ----------------------------------------------------------------------------------------------------------------- threads
    def _start_thread(self, run: "_Run", now: float) -> None:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, "model")
        self._in_thread = True
        loop = asyncio.get_running_loop()
        token = self.runs.begin(now, run.works)
        if len(run.works) == 1:
            timer = loop.call_later(self.runs.limit, self._exceeded, run.works)
        else:
            timer = loop.call_later(self.runs.limit * JOINED, self._runtime.stop)
        future = loop.run_in_executor(self._pool, self._execute, run)

        def ended(result: "asyncio.Future[_Result]") -> None:
            timer.cancel()
            began = self.runs.end(token)
            self._in_thread = False
            try:
                self._ended(run, result.result(), now if began is None else began)
            except BaseException:
                self._come_back(RETRY_SECONDS)
                raise
            if (self._due or self._groups) and not self._scheduled:
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
            log.event("the model refused the zeros of its warm-up", error=error)


def as_error(error: Exception) -> DormouseError:
    """What a caller is told of an exception out of a model or a handler: always sound, and an error.

    A handler may raise errors of ours, and kinds of its own. They are told by their code and text alone: what else an error says is the
    worker's to say (that nothing ran, that the call is to be made as a stream), and what is no code and no text would end the answer.
    """
    if isinstance(error, InvalidElement):
        return InvalidArgument(str(error))
    if not isinstance(error, DormouseError):
        return Internal(text_of(error))
    try:
        nothing_ran = isinstance(error, Unavailable) and error.again is not None
        told = DormouseError(error.message, Code(error.code))
    except Exception:
        return Internal(text_of(error))
    return Internal(told.message) if nothing_ran or told.code is Code.OK else told
