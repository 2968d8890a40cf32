"""How much work a function has, from what its workers and the gateways' agents report.

Reports carry integrals (concurrency-seconds, calls finished) counted since the process began, so that a report that is lost or late loses
nothing: the next one holds its share. What is kept here is one rising total per metric, with its history over the stable window; an average
over any window is the difference of two totals. A process that is heard for the first time sets the base line of its counters: what it did
before this leader watched is not demand of now.
"""

from collections import deque
from dataclasses import dataclass

from dormouse_proto import control_pb2

STABLE_WINDOW = 60.0  # seconds; Knative's stable-window
PANIC_WINDOW = 6.0  # seconds; Knative's panic-window-percentage of it


class Series:
    """A rising total and its history. Time is the caller's; it never goes back."""

    def __init__(self, began: float, horizon: float = STABLE_WINDOW) -> None:
        self._horizon = horizon
        self._points: deque[tuple[float, float]] = deque([(began, 0.0)])

    def add(self, now: float, amount: float) -> None:
        """`amount` more since the last point; it is taken as spread evenly over that time."""
        last, total = self._points[-1]
        if now <= last:
            self._points[-1] = (last, total + amount)
        else:
            self._points.append((now, total + amount))
        while len(self._points) > 2 and self._points[1][0] <= now - self._horizon:
            self._points.popleft()

    def average(self, now: float, window: float) -> float:
        """Amount per second over the last `window` seconds, or over the time watched if shorter, but at least over one second."""
        began = self._points[0][0]
        start = max(now - window, began)
        return (self._points[-1][1] - self._at(start)) / max(now - start, 1.0)

    def _at(self, when: float) -> float:
        later = self._points[-1]
        for earlier in reversed(self._points):
            if earlier[0] <= when:
                if later[0] <= when:
                    return later[1]
                share = (when - earlier[0]) / (later[0] - earlier[0])
                return earlier[1] + share * (later[1] - earlier[1])
            later = earlier
        return later[1]


@dataclass(frozen=True, slots=True)
class Averages:
    """One metric over both windows."""

    stable: float
    panic: float


@dataclass(frozen=True, slots=True)
class Measured:
    """What is known of a function's demand at one moment."""

    concurrency: Averages  # calls at workers and held, on average
    rps: Averages  # calls finished a second
    sessions: Averages  # live in workers' memory
    running: int  # calls at workers now
    held: int  # calls in relays now
    live_sessions: int
    idle: float  # seconds since work was last seen
    watched: float  # seconds that these figures cover at most
    alarms: int = 0  # that are due while nobody serves


class Demand:
    """One function's demand as one leader has watched it since `now`."""

    def __init__(self, now: float) -> None:
        self._began = now
        self._last_work = now  # what came before this leader is not known, so it counts as busy until now
        self._concurrency = Series(now)
        self._calls = Series(now)
        self._sessions = Series(now)
        self._last_gauge = now
        self._workers: dict[str, control_pb2.WorkerReport] = {}
        self._agents: dict[str, control_pb2.FunctionDemand] = {}
        self.due = 0
        """Alarms that are due while nobody serves."""

    def worker(self, name: str, report: control_pb2.WorkerReport, now: float) -> None:
        self._gauge(now)
        before = self._workers.get(name)
        self._workers[name] = report
        if report.in_flight + report.queued > 0:
            self._last_work = now
        if before is None:
            return
        finished = report.calls - before.calls
        seconds = report.concurrency_seconds - before.concurrency_seconds
        if finished > 0 or report.kept_replies > before.kept_replies or seconds > 1e-6:
            self._last_work = now
        self._calls.add(now, max(finished, 0))
        self._concurrency.add(now, max(seconds, 0.0))

    def agent(self, name: str, report: control_pb2.FunctionDemand | None, now: float) -> None:
        """None: this agent listed its demand and the function was not on the list."""
        self._gauge(now)
        before = self._agents.get(name)
        if report is None:
            if before is not None:
                calm = control_pb2.FunctionDemand()
                calm.CopyFrom(before)
                calm.held = 0
                self._agents[name] = calm
            return
        self._agents[name] = report
        if report.held > 0:
            self._last_work = now
        if before is None:
            return
        if report.arrived > before.arrived or report.held_seconds > before.held_seconds:
            self._last_work = now
        self._concurrency.add(now, max(report.held_seconds - before.held_seconds, 0.0))

    def forget_worker(self, name: str) -> None:
        self._workers.pop(name, None)

    def forget_agent(self, name: str) -> None:
        self._agents.pop(name, None)

    def measure(self, now: float) -> Measured:
        self._gauge(now)
        running = sum(r.in_flight + r.queued for r in self._workers.values())
        held = sum(r.held for r in self._agents.values())
        if running or held or self.due:
            self._last_work = now
        return Measured(
            concurrency=self._averages(self._concurrency, now),
            rps=self._averages(self._calls, now),
            sessions=self._averages(self._sessions, now),
            running=running,
            held=held,
            live_sessions=self._live_sessions(),
            idle=now - self._last_work,
            watched=now - self._began,
            alarms=self.due,
        )

    def _live_sessions(self) -> int:
        return sum(r.sessions for r in self._workers.values())

    def _gauge(self, now: float) -> None:
        """Sessions are a level, not a total: what was live until now goes into the integral."""
        self._sessions.add(now, self._live_sessions() * max(now - self._last_gauge, 0.0))
        self._last_gauge = now

    @staticmethod
    def _averages(series: Series, now: float) -> Averages:
        return Averages(series.average(now, STABLE_WINDOW), series.average(now, PANIC_WINDOW))
