"""When a worker is kept clear for one call, so that its death would be known to be that call's doing (`dormouse_core.deaths`).

A gateway asks for it before it sends a call under which workers have died. From then on the worker admits nothing new: other calls wait in
it, in their order. Once nothing runs any more it says so, and is kept for that call for a moment. The call runs, and the others go on.

Nobody holds a worker closed: what runs is waited for CLEAR_SECONDS at most from when it closes, a gateway that does not come back
CLEARED_SECONDS, and the call has the step's limit. After that the worker is open for at least as long as it was closed: whoever has it
cleared again and again takes half of its time at most. Who asks while it rests, or while it is closed for another, waits for CLEAR_SECONDS,
and is told that it was not tried: that says nothing of how long what runs there takes.

A machine without I/O: `now` is monotonic seconds.
"""

import math
from collections import deque
from dataclasses import dataclass
from typing import Generic, TypeVar

from dormouse_core.limits import CLEAR_SECONDS, CLEARED_SECONDS

T = TypeVar("T")

CLEAR = "/dormouse.control.v1.Worker/Clear"
"""The method by which a gateway asks, with the call's metadata and an empty message. The answer is a refusal, `Again.CLEARED`,
`Again.UNCLEAR` or `Again.UNTRIED`: nothing has run. A worker of an earlier version does not know the method."""


@dataclass(frozen=True, slots=True)
class _Wish(Generic[T]):
    asker: T
    key: str
    until: float
    """How long it waits to be the one for which the worker closes."""


class Clearing(Generic[T]):
    """One worker's. `T`: who asks, as the caller knows it; each is told once, by `look`, unless it left before."""

    def __init__(self) -> None:
        self._wishes: deque[_Wish[T]] = deque()
        self._since: float | None = None  # closed, since then
        self._until = math.inf  # what runs is waited for
        self._rests_until = -math.inf
        self._key: str | None = None  # for whom it is clear
        self._kept_until = math.inf  # unless the call has come

    @property
    def closed(self) -> bool:
        """Nothing is admitted but by `enter`."""
        return self._since is not None

    @property
    def idle(self) -> bool:
        """Nobody has asked for anything."""
        return self._since is None and not self._wishes

    @property
    def asking(self) -> int:
        return len(self._wishes)

    def ask(self, asker: T, key: str, now: float) -> None:
        """To have the worker cleared for the call `key`."""
        self._wishes.append(_Wish(asker, key, now + CLEAR_SECONDS))

    def leave(self, asker: T, now: float) -> None:
        """It asks no more."""
        first = self._wishes[0] if self._wishes else None
        self._wishes = deque(wish for wish in self._wishes if wish.asker != asker)
        if first is not None and first.asker == asker and self._trying:
            self._open(now)

    def waits(self, key: str) -> bool:
        """It is clear for this call, which has not come."""
        return self._key == key and self._kept_until < math.inf

    def enter(self, key: str, now: float) -> bool:
        """The call has come. False: the worker is not clear for it, or not any more."""
        if not self.waits(key) or self._kept_until <= now:
            return False
        self._kept_until = math.inf
        return True

    def left(self, now: float) -> None:
        """The call that had entered has ended."""
        self._open(now)

    def look(self, now: float, quiet: bool) -> list[tuple[T, bool | None]]:
        """Who is told what: True: the worker is clear for its call; False: it could not be cleared; None: it was not tried. `quiet`:
        nothing runs, and nothing that was admitted waits."""
        told: list[tuple[T, bool | None]] = []
        if self._key is not None and self._kept_until <= now:
            self._open(now)
        if self._trying and self._until <= now:
            told.append((self._wishes.popleft().asker, False))
            self._open(now)
        if self._wishes and not self.closed and now >= self._rests_until:
            self._since, self._until = now, now + CLEAR_SECONDS
        first = [self._wishes.popleft()] if self._trying else []
        while self._wishes and self._wishes[0].until <= now:  # they came in this order, and all have the same patience
            told.append((self._wishes.popleft().asker, None))
        self._wishes.extendleft(first)
        if self._trying and quiet:
            wish = self._wishes.popleft()
            self._key, self._kept_until = wish.key, now + CLEARED_SECONDS
            told.append((wish.asker, True))
        return told

    def next_look(self) -> float:
        """When time alone may change something."""
        waiting = len(self._wishes) - self._trying
        until = self._wishes[-waiting].until if waiting else math.inf
        if self._key is not None:
            return min(until, self._kept_until)
        if self._trying:
            return min(until, self._until)
        return min(until, self._rests_until) if waiting else math.inf

    @property
    def _trying(self) -> bool:
        """It is closed for the first wish, and what runs is waited for."""
        return self.closed and self._key is None

    def _open(self, now: float) -> None:
        if self._since is not None:
            self._rests_until = now + (now - self._since)
        self._since = self._key = None
        self._kept_until = math.inf
