"""Workers that the kernel ended for want of memory: who says so, for how long it is told, and in which words.

Nothing of such an end is left in a function that serves: its worker is started again, and is ready before anybody looks. So the leader
remembers it for a while, from whom it hears it:

* a supervisor that outlived its worker writes it into the worker's entry (`WorkerEntry.Killed.MEMORY`);
* where the kernel ended the whole container (`memory.oom.group`, the kubelet's default since 1.28) nobody is left to write, and its pod's
  status says it (`OOMKilled`).

Gateways are told of the second, because their callers were told by nobody.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence

from dormouse_core.observations import End
from dormouse_core.readiness import Word
from dormouse_core.seams import Instance

TOLD = 600.0
"""Seconds for which an end stands in the function's condition."""
LATELY = 60.0
"""Seconds for which gateways are told of it: their callers' calls were under way."""
KEPT = 100
"""Ends of one function, and instances that gateways are told of."""


class Starving:
    """What one leader knows. Times are wall time; a clock that jumps makes it tell for longer or shorter, no more."""

    def __init__(self) -> None:
        self._ends: dict[str, dict[tuple[str, float], End]] = defaultdict(dict)  # by the function's uid

    def worker(self, uid: str, worker: str, now: float) -> None:
        """Its supervisor says so, as long as its entry stands."""
        if not any(end.name == worker for end in self._ends[uid].values()):
            self._keep(uid, End(worker, now, container=False))

    def instances(self, found: Iterable[Instance] | None, now: float) -> None:
        """None: not known now."""
        for instance in found or ():
            if instance.starved and now - instance.starved < TOLD:
                self._keep(instance.uid, End(instance.name, instance.starved, container=True))

    def _keep(self, uid: str, end: End) -> None:
        ends = self._ends[uid]
        ends.setdefault((end.name, end.at), end)
        while len(ends) > KEPT:
            del ends[min(ends, key=lambda key: key[1])]

    def of(self, uid: str, now: float) -> tuple[End, ...]:
        """The function's, within `TOLD`, the latest last."""
        ends = self._ends.get(uid, {})
        for key in [key for key in ends if now - key[1] >= TOLD]:
            del ends[key]
        return tuple(sorted(ends.values(), key=lambda end: (end.at, end.name)))

    def lately(self, now: float) -> list[str]:
        """Instances whose containers ended within `LATELY`, the latest first."""
        ends = [end for ends in self._ends.values() for end in ends.values() if end.container and now - end.at < LATELY]
        return list(dict.fromkeys(end.name for end in sorted(ends, key=lambda end: -end.at)))[:KEPT]

    def forget(self, uid: str) -> None:
        self._ends.pop(uid, None)


def word(ends: Sequence[End]) -> Word | None:
    """The condition `OutOfMemory`; None: there is nothing to say."""
    if not ends:
        return None
    message = (
        f"The kernel ended workers that used more memory than their limit: {len(ends)} within {TOLD / 60:g} min, the last of them "
        f"{ends[-1].name}. Raise spec.workers.resources.limits.memory, or let a call take less."
    )
    return Word("True", "OOMKilled", message)
