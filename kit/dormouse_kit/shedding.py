"""While Envoy is short of memory, the calls and streams that hold most of it are reset, for as long as it is.

Envoy resets fifty of each thread when the pressure that it sees changes, and then no more: where nothing changes, beyond any limit too,
nobody is. So whoever looks after an Envoy asks how much is taken and says the pressure, in a file that Envoy watches.
"""

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

from dormouse_core.seams import Clock
from dormouse_core.shedding import Said, pressure

from dormouse_kit import log

CALM = 0.65  # of what may be taken
CALM_SECONDS, SHORT_SECONDS = 0.5, 0.1
"""Between two looks, below it, unless told otherwise, and from there on."""
SILENT_LOOKS = 20
"""Unanswered in a row, until it is said: Envoy needs some to start."""


class Pressure:
    """The file `path`. It begins with 0, if it can be written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.said = Said()
        with contextlib.suppress(OSError):
            self._write(0.0)

    def say(self, said: Said) -> None:
        """OSError: Envoy was told nothing new."""
        if said.value != self.said.value:
            self._write(said.value)
        self.said = said

    def _write(self, value: float) -> None:
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

    def start(self) -> "asyncio.Task[None]":
        """On the running loop, until it is cancelled."""
        task = asyncio.create_task(self.run(), name="shedding")
        task.add_done_callback(_ended)
        return task

    async def run(self) -> None:
        while True:
            taken = await self.look()
            await self._clock.sleep(SHORT_SECONDS if taken is not None and taken >= CALM else self._calm_seconds)

    async def look(self) -> float | None:
        """The share. None: it is not known, or could not be said; then what was said stays."""
        try:
            taken = await self._taken()
            self._told.say(pressure(taken, self._told.said))
        except (OSError, ValueError) as error:
            self._silent += 1
            if self._silent == SILENT_LOOKS:
                log.warning("nobody is reset for memory: how much Envoy has taken cannot be read or passed on", reason=repr(error))
            return None
        if self._silent >= SILENT_LOOKS:
            log.event("how much Envoy has taken is read and passed on again")
        self._silent = 0
        return taken


def _ended(task: "asyncio.Task[None]") -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.warning("nobody is reset for memory any more", error=repr(error), raised=error)
