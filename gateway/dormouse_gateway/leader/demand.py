"""What the relay knows of demand: calls that wait, by function. The leader wakes a sleeping function by it."""

from collections.abc import Callable
from dataclasses import dataclass

from dormouse_core.seams import Clock
from dormouse_proto import control_pb2

from dormouse_gateway import metrics


@dataclass(slots=True)
class _Count:
    uid: str
    held: int = 0
    arrived: int = 0
    held_seconds: float = 0.0
    since: float = 0.0


class Demand:
    """`on_first` is called at once when a function's first call begins to wait."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._counts: dict[str, _Count] = {}
        self.on_first: Callable[[], None] = lambda: None

    def arrived(self, label: str, uid: str) -> None:
        self._of(label, uid).arrived += 1

    def held(self, label: str) -> int:
        count = self._counts.get(label)
        return 0 if count is None else count.held

    def hold(self, label: str, uid: str) -> None:
        count = self._of(label, uid)
        self._settle(count)
        count.held += 1
        metrics.HELD.labels(label).set(count.held)
        if count.held == 1:
            self.on_first()

    def release(self, label: str, uid: str) -> None:
        """`uid`: the one that `hold` was told. A function that was made anew in the meantime has counts of its own."""
        count = self._counts.get(label)
        if count is None or count.uid != uid:
            return
        self._settle(count)
        count.held -= 1
        metrics.HELD.labels(label).set(count.held)

    def report(self) -> list[control_pb2.FunctionDemand]:
        """Of every function that calls have come for since the agent began."""
        out = []
        for label, count in self._counts.items():
            self._settle(count)
            namespace, _, name = label.partition("/")
            out.append(
                control_pb2.FunctionDemand(
                    namespace=namespace,
                    name=name,
                    uid=count.uid,
                    held=count.held,
                    arrived=count.arrived,
                    held_seconds=count.held_seconds,
                )
            )
        return out

    def forget(self, label: str) -> None:
        """The function is gone."""
        count = self._counts.get(label)
        if count is not None and count.held == 0:
            del self._counts[label]
            metrics.HELD.remove(label)

    def _of(self, label: str, uid: str) -> _Count:
        count = self._counts.get(label)
        if count is None or count.uid != uid:
            count = self._counts[label] = _Count(uid, since=self._clock.monotonic())
            metrics.HELD.labels(label).set(0)
        return count

    def _settle(self, count: _Count) -> None:
        now = self._clock.monotonic()
        count.held_seconds += count.held * (now - count.since)
        count.since = now
