"""A worker that serves gives its place to the first one of a new revision, where there is room for no worker more.

While a new revision is not proved, the one before it serves, and the first worker of the new one starts beside it. Where the namespace's
quota, or the nodes, have room for the workers that serve and for none more, it would never start. So after a while one that serves goes:
its sessions are handed over, or saved, and where it was the only one its callers are held, as while a function wakes.

* Whoever gives way takes a risk for its callers: the new revision may be bad, or find no place all the same. Then it is the new one that
  goes, the old one comes back, and the next try is later each time (`PAUSES`). A revision that needs long to load is given longer at each.
* Where the only worker went, callers wait, for `timeouts.hold` at most: half of that is for the try, and the rest for the old one to come
  back. The pause is `COSTS` times as long as nobody served, so that a revision that hangs takes a tenth of the time at most.
* What became free is for who gave it: while one of a namespace gives way, no other function of it is ordered a worker beyond those that
  have a place (`Places`). So functions of a full namespace that are changed together are replaced one after the other. Only who gives right
  after `SETTLE_SECONDS` claims the next place, and the claim ends when it has it, or does not find it (`PLACE_SECONDS`).
* Nodes are everybody's. A place there is given only while no other function waits for one, and only after `GIVE_WAY_NODE_SECONDS`: where
  nodes are added on demand, one comes before.
* Once the new revision is proved there is no risk: of the workers that it supersedes one goes at a time, whenever the next finds no place.
* The last worker is not given where sessions live in its memory alone, and none while something of the function is not known: a worker
  that is not heard may have such sessions.

A state machine without I/O. Another leader begins anew: what it finds out of place it brings back, or goes on with.
"""

from dataclasses import dataclass

from dormouse_core.backoff import Backoff
from dormouse_core.limits import GIVE_WAY_NODE_SECONDS, GIVE_WAY_SECONDS, PLACE_SECONDS
from dormouse_core.observations import FunctionSeen
from dormouse_core.seams import Instance

TRIES = Backoff(120.0, 600.0)
"""Seconds for which a try may last, the first and the longest."""
PAUSES = Backoff(60.0, 3600.0)
"""Seconds between two tries."""
COSTS = 10.0
"""Times what a try that took the only worker cost, for which the next one is waited for at least."""
CROWDED = 2
"""Tries one after the other in which the place was free and the new one did not find it: it needs more than that. No third is made until
the function's spec or the quota's limit changes."""
LEAST_TRY_SECONDS = 30.0
"""For which a try may last however short callers are held: a worker has to end in it, and another to start."""
SETTLE_SECONDS = 2.0
"""From the claim of a namespace's next place until one is given: by then every other function has looked."""
CLAIM_SECONDS = 60.0
"""For which a claim that nobody renews holds."""
KEEP_SECONDS = 120.0
"""For which the next place is kept, at the longest, for the one before that comes back, or for the one for which a superseded one went:
whoever ends may never end, on a node that is gone."""


@dataclass(frozen=True, slots=True)
class Way:
    """What a function may have meanwhile."""

    most: int | None = None
    """So many workers, at most, of the revision that serves."""
    superseded: int | None = None
    """The same of those before it, together."""
    held_back: bool = False
    """No worker of the wanted revision: it has failed in another's place, and is tried again later."""
    closed: bool = False
    """No worker that has no place yet: the next place is another function's."""
    reason: str = ""


class Places:
    """Whose the next free place of each namespace is. `now`: monotonic."""

    def __init__(self) -> None:
        self._claims: dict[str, tuple[str, float]] = {}  # namespace -> uid, and when it last said so

    def claim(self, namespace: str, uid: str, now: float) -> bool:
        """Whether it is this function's, and stays so."""
        if self.taken(namespace, uid, now):
            return False
        self._claims[namespace] = uid, now
        return True

    def leave(self, namespace: str, uid: str) -> None:
        if self._claims.get(namespace, ("", 0.0))[0] == uid:
            del self._claims[namespace]

    def taken(self, namespace: str, uid: str, now: float) -> bool:
        """Whether it is another function's."""
        holder, at = self._claims.get(namespace, (uid, 0.0))
        return holder != uid and now - at < CLAIM_SECONDS


class GivingWay:
    """One function's."""

    def __init__(self, places: Places) -> None:
        self.way = Way()
        self._places = places
        self._target = ""
        self._lacks: float | None = None  # since when the wanted revision finds no place
        self._claimed: float | None = None
        self._trying: float | None = None
        self._most = 0
        self._homeless: float | None = None  # since when it finds none though one was given
        self._gave: float | None = None  # when one that is superseded gave its place, which nobody has yet
        self._longest = LEAST_TRY_SECONDS  # a try that takes the only worker
        self._left = 0  # and how many of those stay
        self._failures = 0
        self._crowded = 0  # the latest of them that ended crowded
        self._limit = ""  # and the quota's limit then
        self._failed = 0.0  # when the latest try did
        self._down: float | None = None  # since when nobody serves because of a try that took the only worker
        self._held_until = 0.0

    def look(self, seen: FunctionSeen, wanted: int, *, rivals: bool, last: bool, hold: float, now: float) -> Way:
        """`wanted`: workers of the revision that serves. `rivals`: other functions wait for a node. `last`: the last worker may go, as far
        as is known. `hold`: seconds for which callers of the revision that serves wait."""
        if seen.instances is not None:
            self._longest = max(hold / 2, LEAST_TRY_SECONDS)
            self.way = self._look(seen, wanted, rivals, last, now)
            if self._claimed is not None and not self._places.claim(seen.entry.namespace, seen.entry.uid, now):
                self._claimed = None
            elif self._claimed is None:
                self._places.leave(seen.entry.namespace, seen.entry.uid)
        return self.way

    def _look(self, seen: FunctionSeen, wanted: int, rivals: bool, last: bool, now: float) -> Way:
        target = seen.entry.revision
        if target != self._target:  # a try that goes on goes on, for the new one, under the clock that it has
            self._target, self._failures, self._held_until, self._crowded = target, 0, 0.0, 0
        if seen.entry.deleting or seen.proved or seen.serving_revision == target:
            self._trying, self._failures, self._held_until = None, 0, 0.0
            return self._roll(seen, now) if not seen.entry.deleting else self._open(seen, now)
        if now < self._held_until:
            return self._back(seen, wanted, now)
        if self._gave is not None:
            return self._roll(seen, now)
        if self._trying is not None or self._begins(seen, wanted, rivals, last, now):
            return self._try(seen, now)
        return self._roll(seen, now) if _superseded(seen) else self._closed(seen, now)

    def _begins(self, seen: FunctionSeen, wanted: int, rivals: bool, last: bool, now: float) -> bool:
        mine, placed = _of(seen, seen.entry.revision), [i for i in _of(seen, seen.serving_revision) if not i.room]
        lacking = [i for i in mine if i.room]
        waits = any(i.room for i in _of(seen, seen.serving_revision))
        if _superseded(seen) and not (waits and any(i.exited for i in mine)):
            return False  # they go first
        if any(i.limit != self._limit for i in lacking):
            self._crowded = 0
        gives = (len(placed) > 1 or last) and self._crowded < CROWDED
        if waits and wanted and not lacking and mine and not _ending(seen):
            # Whoever calls the revision that serves waits for the place that the new one has: it may have it for as long as a try lasts.
            self._most = len(placed)
        elif self._may(seen, lacking if gives else [], placed, rivals, now):
            self._most = len(placed) - 1  # and those of the same revision that wait for a place wait no longer
        else:
            return False
        self._trying, self._lacks, self._homeless = now, None, None
        return True

    def _may(self, seen: FunctionSeen, lacking: list[Instance], placed: list[Instance], rivals: bool, now: float) -> bool:
        """Whether a worker gives its place now: long enough has none been found. A claim is followed by that, or ends."""
        if not lacking or not placed or _ending(seen) or _unheard(seen):
            self._lacks = self._claimed = None
            return False
        self._lacks = now if self._lacks is None else self._lacks
        nodes = lacking[0].room == "node"
        tried = nodes and not (seen.proved or _superseded(seen))  # whoever is superseded goes anyway
        if now - self._lacks < (GIVE_WAY_NODE_SECONDS if tried else GIVE_WAY_SECONDS) or (nodes and rivals):
            self._claimed = None
            return False
        if self._claimed is None and self._places.claim(seen.entry.namespace, seen.entry.uid, now):
            self._claimed = now
        return self._claimed is not None and now - self._claimed >= SETTLE_SECONDS

    def _try(self, seen: FunctionSeen, now: float) -> Way:
        assert self._trying is not None
        mine = _of(seen, seen.entry.revision)
        if any(i.room for i in mine):
            self._homeless = None if _ending(seen) else now if self._homeless is None else self._homeless
        else:
            self._homeless = None
            if mine:
                self._claimed = None  # it has its place
        failed = any(i.exited and i.problem is not None and not i.unplaced for i in mine)
        crowded = self._homeless is not None and now - self._homeless >= PLACE_SECONDS
        longest = TRIES.after(self._failures + 1) if self._most else min(TRIES.after(self._failures + 1), self._longest)
        if failed or crowded or now - self._trying >= longest:
            self._down = None if self._most else self._trying
            cost = now - self._trying if self._down is not None else 0.0
            lacking = [i for i in mine if i.room == "namespace"]
            self._crowded = self._crowded + 1 if crowded and lacking and not failed else 0
            self._limit = lacking[0].limit if lacking else ""
            self._trying, self._failed, self._failures = None, now, self._failures + 1
            self._held_until, self._claimed, self._homeless = now + max(PAUSES.after(self._failures), COSTS * cost), now, now
            return self._back(seen, 1, now)
        served = sum(not i.room for i in _of(seen, seen.serving_revision))
        between = max(self._most - served, 0) if any(i.room for i in mine) else None  # who came in the place, and was superseded there
        return Way(most=self._most, superseded=between, reason=f"revision {seen.entry.revision[:8]} finds no place beside it")

    def _back(self, seen: FunctionSeen, wanted: int, now: float) -> Way:
        """The revision before has its place again, or did not find it."""
        served = _of(seen, seen.serving_revision)
        if _ending(seen):
            self._homeless = now
        elif not wanted or (served and not any(i.room for i in served)) or now - (self._homeless or 0.0) >= PLACE_SECONDS:
            self._claimed = None
        if now - self._failed >= KEEP_SECONDS:
            self._claimed = None
        if self._down is not None and any(w.serving for w in seen.of(seen.serving_revision)):
            self._held_until, self._down = max(self._held_until, now + COSTS * (now - self._down)), None
        why = "it was not proved in the place of a worker that serves, and is tried again later"
        return Way(held_back=True, closed=self._claimed is None and self._taken(seen, now), reason=why)

    def _roll(self, seen: FunctionSeen, now: float) -> Way:
        """Of those that are superseded one goes at a time: the next when the one for which the last went is ready."""
        kept = [
            i for i in seen.instances or () if i.revision in (seen.entry.revision, seen.serving_revision) and not (i.stopping or i.lost)
        ]
        ready = {w.instance for w in seen.workers.values() if w.serving}
        lacking = [i for i in kept if i.room]
        if not lacking or any(not i.room and i.name not in ready for i in kept):
            return self._open(seen, now)
        reason = "workers of a later revision find no place beside it"
        if self._gave is not None:
            self._homeless = None if _ending(seen) else now if self._homeless is None else self._homeless
            if now - self._gave < KEEP_SECONDS and (self._homeless is None or now - self._homeless < PLACE_SECONDS):
                return Way(superseded=self._left, reason=reason)
            return self._open(seen, now)
        superseded = [i for i in _superseded(seen) if i.name in ready]  # others go without being asked
        if self._may(seen, lacking, superseded, False, now):
            self._gave, self._homeless, self._left = now, None, len(superseded) - 1
            return Way(superseded=self._left, reason=reason)
        return self._closed(seen, now)

    def _open(self, seen: FunctionSeen, now: float) -> Way:
        self._lacks = self._claimed = self._gave = None
        return self._closed(seen, now)

    def _closed(self, seen: FunctionSeen, now: float) -> Way:
        taken = self._taken(seen, now)
        return Way(closed=True, reason="the next place in the namespace is another function's") if taken else Way()

    def _taken(self, seen: FunctionSeen, now: float) -> bool:
        return self._places.taken(seen.entry.namespace, seen.entry.uid, now)


def _superseded(seen: FunctionSeen) -> list[Instance]:
    others = {i.revision for i in seen.instances or ()} - {seen.entry.revision, seen.serving_revision}
    return [i for revision in sorted(others) for i in _of(seen, revision)]


def _of(seen: FunctionSeen, revision: str) -> list[Instance]:
    return [i for i in seen.instances or () if i.revision == revision and not i.stopping and not i.lost]


def _unheard(seen: FunctionSeen) -> bool:
    return any(w.report is None and not w.gone for w in seen.workers.values())


def _ending(seen: FunctionSeen) -> bool:
    return any(i.stopping for i in seen.instances or ())
