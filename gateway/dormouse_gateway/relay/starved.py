"""Whose containers the kernel lately ended for want of memory, by the leader's word.

Nobody in such a container is left to say what it died of. A kubelet tells of an end within one to two seconds, and the leader tells
gateways each second, so a call that is refused for such deaths waits for that word.
"""

import asyncio
from collections.abc import Set as AbstractSet

from dormouse_core.seams import Clock

PATIENCE = 3.0  # seconds
TEXT = (
    "the kernel ended containers in which it ran, which used more memory than their limit; "
    "raise spec.workers.resources.limits.memory, or let a call take less"
)


class Starved:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._instances: frozenset[str] = frozenset()
        self._news = asyncio.Event()
        """Set, and replaced, when they are others."""

    def told(self, instances: frozenset[str]) -> None:
        """All of them."""
        if instances != self._instances:
            self._instances = instances
            news, self._news = self._news, asyncio.Event()
            news.set()

    def among(self, instances: AbstractSet[str]) -> bool:
        return not self._instances.isdisjoint(instances)

    async def wait(self, instances: AbstractSet[str], deadline: float) -> bool:
        """Whether one of `instances` is among them, now or for as long as is worth while. `deadline`: monotonic."""
        until = min(self._clock.monotonic() + PATIENCE, deadline)
        while not self.among(instances):
            news = self._news
            try:
                async with asyncio.timeout(max(0.0, until - self._clock.monotonic())):
                    await news.wait()
            except TimeoutError:
                return False
        return True
