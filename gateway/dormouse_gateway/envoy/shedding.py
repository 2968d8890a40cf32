"""While Envoy's heap is nearly full, the calls and streams that hold most of it are reset, for as long as it is.

Envoy resets fifty of each thread when the pressure that it sees changes, and then no more: where the heap stands still, beyond its limit
too, nobody is. So Envoy's starter asks how full it is and says the pressure, in a file that Envoy watches.
"""

import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

from dormouse_core.seams import Clock
from dormouse_core.shedding import pressure
from dormouse_kit import log

CALM = 0.65  # of the heap
CALM_SECONDS, SHORT_SECONDS = 0.5, 0.1
"""Between two looks, below it and from there on."""
SILENT_LOOKS = 20
"""Unanswered in a row, until it is said: Envoy needs some to start."""

Ask = Callable[[str, str], Awaitable[str]]


class Pressure:
    """The file `path`, which is there from the start."""

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
    """`ask(method, target)`: Envoy's admin."""

    def __init__(self, clock: Clock, ask: Ask, heap_bytes: int, told: Pressure) -> None:
        self._clock = clock
        self._ask = ask
        self._heap_bytes = heap_bytes
        self._told = told
        self._silent = 0

    async def run(self) -> None:
        while True:
            filled = await self.look()
            await self._clock.sleep(SHORT_SECONDS if filled is not None and filled >= CALM else CALM_SECONDS)

    async def look(self) -> float | None:
        """How full the heap is. None: not known, and what was said stays."""
        try:
            filled = int(json.loads(await self._ask("GET", "/memory"))["allocated"]) / self._heap_bytes
            value = pressure(filled, self._told.value)
            if value != self._told.value:
                self._told.say(value)
        except (OSError, ValueError, KeyError, TypeError) as error:
            self._silent += 1
            if self._silent == SILENT_LOOKS:
                log.warning("nobody is reset for memory: how full Envoy's heap is cannot be asked or said", reason=repr(error))
            return None
        if self._silent >= SILENT_LOOKS:
            log.event("how full Envoy's heap is can be asked and said again")
        self._silent = 0
        return filled
