"""How many calls the relay may have at one worker now.

A worker refuses with `busy` beyond its concurrency; calls then wait here, and one goes when one comes back: sending
all of them again and again would keep the worker busy with refusals. A worker that cannot be reached is tried again
by one call, at growing intervals, not by all that wait.

`window` starts at the function's maxConcurrency. Others send to the same worker (Envoy's fast path, other gateways),
so a `busy` narrows it to what this relay has there, and a window full of answers widens it by one again.

Calls that steps make have places of their own, as in the worker: `maxConcurrency` for each step that waits for the call. Else steps that
wait for it could hold all places that it needs.
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


class Gate:
    """One worker. Times are monotonic seconds."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.window = float(limit)
        self.flying = 0
        self.failures = 0
        self.closed_until = 0.0
        self.room = Room()

    def open(self, now: float, waiting: int = 0) -> bool:
        """`waiting`: how many steps wait for the call."""
        if self.failures and self.flying:
            return False  # one call is finding out whether it is there
        return now >= self.closed_until and self.flying < int(self.window) + waiting * self.limit

    def opens_at(self) -> float:
        """When time alone may open it."""
        return self.closed_until

    def sent(self) -> None:
        self.flying += 1

    def answered(self) -> None:
        """The worker ran the call or refused it for a reason of the call's own: it is there and has room."""
        self.flying -= 1
        self.failures = 0
        self.window = min(self.window + 1 / self.window, self.limit)
        self.room.wake(max(1, int(self.window) - self.flying))

    def busy(self, now: float) -> None:
        self.flying -= 1
        self.window = max(1.0, min(self.flying, self.limit))
        if self.flying == 0:  # nobody of ours will come back and open it
            self.closed_until = now + PAUSE.first

    def broken(self, now: float) -> None:
        """It could not be reached, or its connection broke."""
        self.flying -= 1
        self.room.wake(1)  # to be the one who tries when the pause is over
        self.failures += 1
        self.closed_until = now + PAUSE.after(self.failures)

    def cancelled(self) -> None:
        self.flying -= 1
        self.room.wake(1)
