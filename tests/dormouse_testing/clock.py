"""Clocks for tests."""

import asyncio
import heapq
import itertools

from dormouse_core.seams import Clock

EPOCH = 1_790_000_000.0  # September 2026


class SimClock:
    """The running simulated loop's time (`simloop.run`). `skew`: how far this process's wall clock is off."""

    def __init__(self, skew: float = 0.0) -> None:
        self.skew = skew

    def now(self) -> float:
        return EPOCH + self.monotonic() + self.skew

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class Trusted:
    """A `clocks.Reading` that takes a clock for the reference itself."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def now_us(self) -> int | None:
        return round(self._clock.now() * 1e6)

    def best_us(self) -> int:
        return round(self._clock.now() * 1e6)

    def read(self) -> tuple[int, bool]:
        return self.best_us(), True


class ManualClock:
    """Stands still until `advance`; on any loop or none. Who sleeps on it wakes when the test has advanced it far enough."""

    def __init__(self, start: float = 1_000.0, skew: float = 0.0) -> None:
        self.skew = skew
        self._monotonic = start
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = itertools.count()

    def now(self) -> float:
        return EPOCH + self._monotonic + self.skew

    def monotonic(self) -> float:
        return self._monotonic

    def advance(self, seconds: float) -> None:
        assert seconds >= 0
        self._monotonic += seconds
        while self._sleepers and self._sleepers[0][0] <= self._monotonic:
            _, _, sleeper = heapq.heappop(self._sleepers)
            if not sleeper.done():
                sleeper.set_result(None)

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        sleeper = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._monotonic + seconds, next(self._order), sleeper))
        await sleeper
