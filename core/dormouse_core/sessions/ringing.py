"""When the alarms of this worker's shards are due, and which of them run now.

What is known comes from the keys beside the records (`Keys.alarms`), listed when a shard is acquired and now and then (a commit whose
outcome was not learned may land later), and from what this worker reads and commits. It may be old news (the leader deleted a session, or
cancelled an alarm): so a due time only says that the session is to be looked at, in its order. What is found in the record decides
(`alarms.admit`).
"""

import heapq
from collections.abc import Callable, Iterable, Mapping

from dormouse_core.backoff import Backoff
from dormouse_core.limits import ALARM_BLOCKED_SECONDS, ALARMS_TOGETHER

UNSETTLED = Backoff(0.2, 60.0)
"""After a look that came to nothing for a while: the shard moves, the store is away."""


class _Known:
    """Of one shard. `listed`: no list is wanted; `once`: there has been one since it was acquired."""

    __slots__ = ("due", "failures", "listed", "once", "ringing", "since")

    def __init__(self) -> None:
        self.due: dict[str, int] = {}
        self.listed = self.once = False
        self.since: set[str] = set()  # sessions that this worker wrote before the list came: it is old news of them
        self.ringing: dict[str, bool] = {}  # whether it has one of the places
        self.failures: dict[str, int] = {}


class Book:
    """Shards by their numbers, sessions by their keys, times in microseconds."""

    def __init__(self) -> None:
        self._shards: dict[int, _Known] = {}
        self._heap: list[tuple[int, int, str]] = []  # may have some that are gone, or due at another time
        self._ringing = 0
        self._placed = 0
        self.places = ALARMS_TOGETHER
        """How many looks are before a step that has not begun: as many as may be begun at once. What is more would stand before callers'
        steps in the runner's queue. A look that waits behind a step of its own session has none, else that would keep the others back."""

    def acquired(self, shard: int) -> None:
        """The shard is owned, newly or under another fence: what was known is forgotten."""
        self.forget(shard)
        self._shards[shard] = _Known()

    def forget(self, shard: int) -> None:
        known = self._shards.pop(shard, None)
        if known is not None:
            self._ringing -= len(known.ringing)
            self._placed -= sum(known.ringing.values())

    def again(self) -> None:
        """All is to be listed once more; what is known stays."""
        for known in self._shards.values():
            known.listed = False
            known.since.clear()

    def unlisted(self) -> list[int]:
        return [number for number, known in self._shards.items() if not known.listed]

    def token(self, shard: int) -> object:
        """By which `listed` knows that the shard has not been acquired again since."""
        return self._shards.get(shard)

    def listed(self, shard: int, token: object, due: Mapping[str, int]) -> None:
        known = self._shards.get(shard)
        if known is None or known is not token or known.listed:
            return
        known.listed = known.once = True
        for session, due_us in due.items():
            if session not in known.since and session not in known.ringing and known.due.get(session) != due_us:
                self._set(shard, known, session, due_us)
        known.since.clear()

    def changed(self, shard: int, session: str, due_us: int | None) -> None:
        """The session's record, as it is now, has its earliest alarm at `due_us`; None: it has none."""
        known = self._shards.get(shard)
        if known is None:
            return
        known.failures.pop(session, None)
        if not known.listed:
            known.since.add(session)
        if due_us is None:
            known.due.pop(session, None)
        elif known.due.get(session) != due_us:
            self._set(shard, known, session, due_us)

    def of(self, shard: int, session: str) -> int | None:
        known = self._shards.get(shard)
        return None if known is None else known.due.get(session)

    # ---------------------------------------------------------------------------------------------------------------- ringing

    def due(self, now_us: int, busy: Callable[[int, str], bool]) -> list[tuple[int, str, int]]:
        """Sessions to be looked at now, with their due times; each is `rung` before it is given again. `busy`: a step of it runs."""
        found: list[tuple[int, str, int]] = []
        while self._heap and self._heap[0][0] <= now_us and not self._full:
            due_us, shard, session = heapq.heappop(self._heap)
            known = self._shards.get(shard)
            if known is None or known.due.get(session) != due_us or session in known.ringing:
                continue
            placed = known.ringing[session] = not busy(shard, session)
            self._ringing += 1
            self._placed += placed
            found.append((shard, session, due_us))
        return found

    def began(self, shard: int, token: object, session: str) -> None:
        """The step that came of a look runs: it stands before nobody's any more."""
        known = self._shards.get(shard)
        if known is not None and known is token and known.ringing.get(session):
            known.ringing[session] = False
            self._placed -= 1

    def rung(self, shard: int, token: object, session: str, now_us: int, *, settled: bool, blocked: bool = False) -> None:
        """A look has ended. `settled`: what came of it is in the record, and was told (`changed`); else it is tried again later, much later
        where it is `blocked`."""
        known = self._shards.get(shard)
        if known is None or known is not token:
            return
        self._placed -= known.ringing.pop(session)
        self._ringing -= 1
        due_us = known.due.get(session)
        if due_us is None:
            return
        if not settled:
            failures = known.failures[session] = known.failures.get(session, 0) + 1
            due_us = now_us + int((ALARM_BLOCKED_SECONDS if blocked else UNSETTLED.after(failures)) * 1e6)
        self._set(shard, known, session, due_us)

    def next_us(self) -> int | None:
        """When the next look is due; None: there is nothing to wait for."""
        return self._heap[0][0] if self._heap and not self._full else None

    @property
    def _full(self) -> bool:
        return self._ringing >= ALARMS_TOGETHER or self._placed >= self.places

    def waiting(self, now_us: int) -> int:
        """Looks that are under way or due, and one for what is not known yet: for so long the worker has work."""
        due = sum(due_us <= now_us for due_us, _, _ in self._heap[:ALARMS_TOGETHER])
        return self._ringing + due + any(not known.once for known in self._shards.values())

    def _set(self, shard: int, known: _Known, session: str, due_us: int) -> None:
        known.due[session] = due_us
        heapq.heappush(self._heap, (due_us, shard, session))
        if len(self._heap) > 64 + 2 * sum(len(each.due) for each in self._shards.values()):
            self._heap = list(self._live())
            heapq.heapify(self._heap)

    def _live(self) -> Iterable[tuple[int, int, str]]:
        return ((due_us, shard, session) for shard, known in self._shards.items() for session, due_us in known.due.items())
