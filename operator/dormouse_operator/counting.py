"""How many sessions each function has and what they take in the store: from its workers' reports while it is awake, from the sweeper's
scans while it sleeps. Told to people, and to each worker what the others have: `maxCount` and `maxBytes` are of the whole function, and the
store is all namespaces'.

A figure that is not complete (a worker that is not heard, or has not counted what it took over) does not replace the last complete one.
"""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from dormouse_core import admission
from dormouse_core.storage import Used
from dormouse_proto import control_pb2

from dormouse_operator.view import View


@dataclass(frozen=True, slots=True)
class Figures:
    """`sessions`: live ones; `stored`: bytes of their records; `hibernated`: bytes of all records that are in nobody's memory."""

    sessions: int
    stored: int
    hibernated: int


SHARES_SECONDS = 1.0  # between two sums over all functions


class Counts:
    """`store`: how full the store is; None: not known. `shared`: the quota, where namespaces have shares of it."""

    def __init__(
        self,
        view: View,
        store: Callable[[], Used | None] = lambda: None,
        shared: Callable[[], int | None] = lambda: None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._shared = shared
        self._monotonic = monotonic
        self._summed_at: float | None = None
        self._stored: Counter[str] = Counter()  # by namespace, of all that have functions with sessions
        self._view = view
        self._figures: dict[str, Figures] = {}  # by uid; the last complete ones

    def figures(self, uid: str) -> Figures | None:
        """None: not counted yet."""
        return self._figures.get(uid)

    def asleep(self, uid: str, figures: Figures) -> None:
        """What a scan found of a function without workers."""
        self._figures[uid] = figures

    def forget(self, uid: str) -> None:
        self._figures.pop(uid, None)

    def heard(self, uid: str, worker: str, report: control_pb2.WorkerReport) -> control_pb2.WorkerOrder:
        """What `worker`, which has just reported, is to be told."""
        reports = {name: self._view.report(name) for name in self._view.workers(uid)}
        reports[worker] = report
        found = [r for r in reports.values() if r is not None]
        others = [r for name, r in reports.items() if r is not None and name != worker]
        sessions, stored = sum(r.stored_sessions for r in others), sum(r.stored_bytes for r in others)
        shards = sum(r.shards for r in found)  # a shard that moves is in two reports for a moment, or in none
        registered = self._view.functions.get(uid)
        of_all = registered.entry.shards if registered is not None else shards
        unknown = False
        if len(found) == len(reports) and all(r.counted for r in found) and shards == of_all:
            self._figures[uid] = Figures(
                sessions + report.stored_sessions, stored + report.stored_bytes, sum(r.hibernated_bytes for r in found)
            )
        elif (last := self._figures.get(uid)) is None:
            unknown = True
        else:
            # While shards move, what is in motion is in nobody's count; nor is what woke a moment ago. The last complete one holds.
            twice = shards > of_all
            sessions = max(0 if twice else sessions, last.sessions - report.stored_sessions)
            stored = max(0 if twice else stored, last.stored - report.stored_bytes)
        limits = control_pb2.WorkerOrder.Limits(others_sessions=sessions, others_bytes=stored, others_unknown=unknown)
        if (store := self._store()) is not None:
            limits.store_used, limits.store_age, limits.store_quota = store.fraction, store.age, store.quota
        quota = self._shared()
        if registered is not None and quota is not None:
            limits.over_share = admission.over_share(self._by_namespace(), registered.function.namespace, quota)
        return control_pb2.WorkerOrder(limits=limits)

    def _by_namespace(self) -> Counter[str]:
        """Bytes of live sessions' records, as last counted."""
        now = self._monotonic()
        if self._summed_at is None or now - self._summed_at >= SHARES_SECONDS:
            self._summed_at, self._stored = now, Counter()
            for uid, registered in self._view.functions.items():
                if registered.entry.shards:
                    found = self._figures.get(uid)
                    self._stored[registered.function.namespace] += found.stored if found is not None else 0
        return self._stored
