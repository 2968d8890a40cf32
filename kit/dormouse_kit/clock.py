"""The real clock. Everything that decides takes a `dormouse_core.seams.Clock`; processes pass this one, tests a simulated one."""

import asyncio
import os
import time

TEST_OFFSET = "DORMOUSE_TEST_CLOCK_OFFSET"
"""An environment variable for tests: the seconds by which a process's wall clock is ahead of its machine's, read when the process starts.
Nobody but a test sets it: how wrong clocks are borne cannot be shown otherwise on one machine."""


def offset_for_tests() -> float:
    """Seconds; 0 unless a test says otherwise."""
    return float(os.environ.get(TEST_OFFSET) or 0)


class SystemClock:
    """Wall time, the machine's monotonic time, asyncio's sleep."""

    def __init__(self) -> None:
        self._offset = offset_for_tests()

    def now(self) -> float:
        return time.time() + self._offset

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
