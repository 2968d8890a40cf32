"""The mark in the store: every function that there is has its entry (`dormouse_core.absences`).

On one machine the store is the only place where functions are, so whoever leads leaves it at once. In a cluster they are objects of the API
server, and the mark waits until each of a complete list has its entry, or was refused.
"""

import asyncio
from collections.abc import Callable
from typing import NoReturn

from dormouse_core.seams import Clock
from dormouse_kit import log

from dormouse_operator.function_entries import FunctionEntries

LOOK = 0.2  # seconds between looks whether the time has come


class Marking:
    """`whole()`: every function that there is has its entry."""

    def __init__(self, entries: FunctionEntries, clock: Clock, whole: Callable[[], bool] = lambda: True) -> None:
        self._entries = entries
        self._clock = clock
        self._whole = whole

    async def run(self) -> NoReturn:
        """One of a term's loops, which never ends by itself."""
        while not (self._whole() and await self._entries.mark()):
            await self._clock.sleep(LOOK)
        log.event("every function that there is has its entry in the store")
        await asyncio.Event().wait()
        raise AssertionError
