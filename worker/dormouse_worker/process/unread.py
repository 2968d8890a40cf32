"""Replies that nobody reads: the worker's Envoy holds all of a reply, for as long as whoever asked stays. While they take much memory, the
largest are dropped, with their calls (docs/decisions/0192-shedding.md).
"""

import asyncio
from pathlib import Path

from dormouse_kit.clock import SystemClock
from dormouse_kit.envoyadmin import admin
from dormouse_kit.shedding import Pressure, Shedding

from dormouse_worker.process import bootstrap, memorylimit

LOOK_SECONDS = 1.0
"""There are many workers, most of them idle."""
_PENDING = "http2.pending_send_bytes"


async def share(path: str, most: int) -> float:
    """Of `most` bytes. OSError, ValueError: Envoy does not say; `path`: its admin."""
    _, _, pending = (await admin(path, "GET", f"/stats?filter=^{_PENDING.replace('.', '%5C.')}$")).rpartition(":")
    return int(pending or 0) / most


def watch(path: str) -> "asyncio.Task[None]":
    """Until it is cancelled."""
    most = memorylimit.for_replies()

    async def taken() -> float:
        return await share(path, most)

    return Shedding(SystemClock(), taken, Pressure(Path(bootstrap.pressure(path))), LOOK_SECONDS).start()
