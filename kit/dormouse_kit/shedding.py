"""While an Envoy of ours is short of memory, the calls and streams that hold most of it are reset, for as long as it is.

Envoy resets fifty of each thread when the pressure that it sees changes, and then no more: where nothing changes, beyond any limit too,
nobody is. So whoever looks after an Envoy asks how much is taken and says the pressure, in a file that Envoy watches.
"""

import os
from collections.abc import Awaitable, Callable
from pathlib import Path

from dormouse_core.seams import Clock
from dormouse_core.shedding import pressure

from dormouse_kit import log

CALM = 0.65  # of what may be taken
CALM_SECONDS, SHORT_SECONDS = 0.5, 0.1
"""Between two looks, below it, unless told otherwise, and from there on."""
SILENT_LOOKS = 20
"""Unanswered in a row, until it is said: Envoy needs some to start."""


class Pressure:
    """The file `path`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.value = 0.0
        self.say(0.0)

    def say(self, value: float) -> None:
        self.value = value
        new = self._path.with_name(f"{self._path.name}.new")
        new.write_text(f"{value:.6f}")
        os.replace(new, self._path)  # Envoy hears of a file that is moved there, not of one that is written


class Shedding:
    """`taken()`: the share that is taken of what may be; OSError, ValueError: it is not known."""

    def __init__(self, clock: Clock, taken: Callable[[], Awaitable[float]], told: Pressure, calm_seconds: float = CALM_SECONDS) -> None:
        self._clock = clock
        self._calm_seconds = calm_seconds
        self._taken = taken
        self._told = told
        self._silent = 0

    async def run(self) -> None:
        while True:
            taken = await self.look()
            await self._clock.sleep(SHORT_SECONDS if taken is not None and taken >= CALM else self._calm_seconds)

    async def look(self) -> float | None:
        """The share. None: it is not known, and what was said stays."""
        try:
            taken = await self._taken()
            value = pressure(taken, self._told.value)
            if value != self._told.value:
                self._told.say(value)
        except (OSError, ValueError) as error:
            self._silent += 1
            if self._silent == SILENT_LOOKS:
                log.warning("no call is reset for memory: Envoy's use of memory cannot be read or set", reason=repr(error))
            return None
        if self._silent >= SILENT_LOOKS:
            log.event("Envoy's use of memory can be read and set again")
        self._silent = 0
        return taken
