"""The stream to an Envoy, as a loop."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from dormouse_gateway.envoy.snapshot import Snapshot
from dormouse_gateway.envoy.xds import Server


async def test_an_envoy_that_leaves_leaves_nothing_waiting() -> None:
    async def silent() -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b""

    async def stream() -> None:
        context: Any = None
        async for _ in server._serve(silent(), context):
            raise AssertionError("nothing was asked for")

    server = Server(Snapshot())
    before = asyncio.all_tasks()
    running = asyncio.create_task(stream())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert len(asyncio.all_tasks() - before) > 1
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before
