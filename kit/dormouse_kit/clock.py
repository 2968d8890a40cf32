"""The real clock. Everything that decides takes a `dormouse_core.seams.Clock`; processes pass this one, tests a simulated one."""

import asyncio
import time


class SystemClock:
    """Wall time, the machine's monotonic time, asyncio's sleep."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
