"""How many calls the relay may have at one worker now.

A worker refuses with `busy` beyond its concurrency; calls then wait here, and one goes when one comes back: sending
all of them again and again would keep the worker busy with refusals. A worker that cannot be reached is tried again
by one call, at growing intervals, not by all that wait.

`window` starts at the function's maxConcurrency. Others send to the same worker (Envoy's fast path, other gateways),
so a `busy` narrows it to what this relay has there, and a window full of answers widens it by one again.

Calls that steps make have places of their own, as in the worker: as many for each **level**, the number of steps that wait for the call.
Else steps that wait for it could hold all places that it needs. No level takes another's, so steps keep nobody waiting who calls directly;
and a place that becomes free wakes who waits for one of its level.
"""

import asyncio
from collections.abc import Iterator

from dormouse_core.backoff import Backoff

PAUSE = Backoff(0.02, 0.5)


class Room:
    """Calls that wait for one thing, the first come first."""

    def __init__(self) -> None:
        self._waiting: dict[asyncio.Event, None] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def enter(self, waiter: asyncio.Event) -> None:
        self._waiting[waiter] = None

    def leave(self, waiter: asyncio.Event) -> None:
        self._waiting.pop(waiter, None)

    def wake(self, count: int | None = None) -> None:
        """The first `count`, or all. Who is woken has left the room."""
        chosen = list(self._take(len(self._waiting) if count is None else count))
        for waiter in chosen:
            waiter.set()

    def _take(self, count: int) -> Iterator[asyncio.Event]:
        while count > 0 and self._waiting:
            waiter = next(iter(self._waiting))
            del self._waiting[waiter]
            if not waiter.is_set():  # somebody else woke it already: this wake-up is for another
                count -= 1
                yield waiter


class Places:
    """One worker's for the calls of one level."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.window = float(limit)
        self.flying = 0
        self.closed_until = 0.0
        self.room = Room()

    @property
    def free(self) -> int:
        return int(self.window) - self.flying


class Gate:
    """One worker. Times are monotonic seconds. `level`: how many steps wait for the call."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.failures = 0
        self.closed_until = 0.0
        self._levels: dict[int, Places] = {}

    def at(self, level: int) -> Places:
        found = self._levels.get(level)
        if found is None:
            found = self._levels[level] = Places(self.limit)
        return found

    @property
    def flying(self) -> int:
        return sum(each.flying for each in self._levels.values())

    @property
    def idle(self) -> bool:
        """Nobody is there or waits."""
        return not any(each.flying or len(each.room) for each in self._levels.values())

    def open(self, now: float, level: int = 0) -> bool:
        if self.failures and self.flying:
            return False  # one call is finding out whether it is there
        return now >= self.opens_at(level) and self.at(level).free > 0

    def opens_at(self, level: int = 0) -> float:
        """When time alone may open it."""
        return max(self.closed_until, self.at(level).closed_until)

    def sent(self, level: int = 0) -> None:
        self.at(level).flying += 1

    def answered(self, level: int = 0) -> None:
        """The worker ran the call or refused it for a reason of the call's own: it is there and has room."""
        places = self.at(level)
        places.flying -= 1
        places.window = min(places.window + 1 / places.window, places.limit)
        found = list(self._levels.values()) if self.failures else [places]  # all have waited to hear whether it is there
        self.failures = 0
        for each in found:
            each.room.wake(max(1, each.free))

    def busy(self, now: float, level: int = 0) -> None:
        places = self.at(level)
        places.flying -= 1
        places.window = max(1.0, min(places.flying, places.limit))
        if places.flying == 0:  # nobody of ours will come back and open it
            places.closed_until = now + PAUSE.first

    def broken(self, now: float, level: int = 0) -> None:
        """It could not be reached, or its connection broke."""
        self.at(level).flying -= 1
        self._wake_one(level, anybody=True)  # to be the one who tries when the pause is over
        self.failures += 1
        self.closed_until = now + PAUSE.after(self.failures)

    def cancelled(self, level: int = 0) -> None:
        self.at(level).flying -= 1
        self._wake_one(level, anybody=self.failures > 0)

    def _wake_one(self, level: int, *, anybody: bool) -> None:
        """`anybody`: also of another level, where nobody of this one waits."""
        rooms = [self.at(level).room, *(each.room for each in self._levels.values() if anybody)]
        next((room for room in rooms if len(room)), rooms[0]).wake(1)
