"""A caller that asks for large replies and never opens a window for them: what the gateway holds of them, and for how long."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest
from dormouse_core import limits
from dormouse_testing import hostile
from dormouse_testing.etcd_server import EtcdServer
from dormouse_testing.gateway import request
from dormouse_testing.hostile import MIB, STREAM, Attacker, Scene, codes, headers, message, neighbours, scene
from dormouse_testing.http2 import literal
from dormouse_testing.workers import metric_of

HEAP = 128
SIZE = 600_000  # less than what the overload manager looks at when it resets those that hold most
STREAMED, STREAMS = 900_000, 240  # of a stream Envoy holds up to a MiB before it asks for no more
LOOKS = 20  # in a row at a heap with room: all replies have come
FULLEST = 95  # percent of the heap: everybody is refused
SERIES = "dormouse_relay_body_bytes"
SHORT, FULL = 66, 75  # percent of the heap: from where on timers are shortest, and what is taken; from FULLEST on all are refused
STALL = limits.PRESSED_UNREAD_SECONDS


@contextlib.asynccontextmanager
async def attacked(endpoint: str, installation: str, without: Callable[[dict[str, Any]], None] | None = None) -> AsyncIterator[Scene]:
    """Four connections, with as many calls whose replies nobody reads as fill three quarters of the heap. They come a few at a time: a
    burst would fill it for a moment, and be refused with everybody's calls, and leave less, or take it to where those that hold most are
    reset."""
    async with scene(endpoint, installation, "--max-heap-bytes", f"{HEAP * MIB}", without=without) as seen:
        call = request("open")
        call.parameters["reply"].int64_param = SIZE
        made = [Attacker(seen.gateway.listen, reads=False) for _ in range(4)]
        block, body = headers(), message(call)
        async with asyncio.timeout(60):
            while await pressure(seen) < FULL and not await dropped(seen):
                for attacker in made * (3 if await pressure(seen) < SHORT - 10 else 1):
                    attacker.send(attacker.call(block, body, end=True))
                await asyncio.sleep(0.3)  # Envoy looks at its heap each tenth of a second
        yield seen
        for attacker in made:
            attacker.close()


async def pressure(seen: Scene) -> int:
    """Of Envoy's heap, in percent."""
    return (await seen.stats("fixed_heap.pressure"))["overload.envoy.resource_monitors.fixed_heap.pressure"]


async def dropped(seen: Scene) -> int:
    """Replies that were given up."""
    return sum((await seen.stats("tx_flush_timeout")).values())


async def test_replies_that_nobody_reads_are_dropped_where_memory_is_short(etcd_server: EtcdServer, installation: str) -> None:
    async with attacked(etcd_server.endpoint, installation) as seen, neighbours(seen.gateway, 2) as near:
        began = time.monotonic()
        async with asyncio.timeout(10 * STALL):
            while await pressure(seen) >= SHORT:  # noqa: ASYNC110 - the same
                await asyncio.sleep(0.1)
        given_up, reset = await dropped(seen), await shed(seen)
        print(f"the heap was short for {time.monotonic() - began:.1f} s; {given_up} replies were dropped, {reset} were reset")
        assert given_up + reset > 0
        assert codes(near).keys() == {grpc.StatusCode.OK}, [each.texts for each in near]


@pytest.mark.slow
async def test_negative_control_without_a_limit_they_stay_for_as_long_as_their_caller(etcd_server: EtcdServer, installation: str) -> None:
    def unlimited(config: dict[str, Any]) -> None:
        del hostile.manager(config)["stream_flush_timeout"]

    async with attacked(etcd_server.endpoint, installation, unlimited) as seen:
        await asyncio.sleep(4 * STALL)
        assert await pressure(seen) >= SHORT


@contextlib.asynccontextmanager
async def streamed(endpoint: str, installation: str, without: Callable[[dict[str, Any]], None] | None = None) -> AsyncIterator[Scene]:
    """240 streams that are open, and then get a reply of 900 KB each that nobody reads: more than the heap. None ends by itself."""
    async with scene(endpoint, installation, "--max-heap-bytes", f"{HEAP * MIB}", without=without) as seen:
        call = request("open", id="held")
        call.parameters["reply"].int64_param = STREAMED
        with contextlib.ExitStack() as ends:
            made = [Attacker(seen.gateway.listen, reads=False) for _ in range(8)]
            for attacker in made:
                ends.callback(attacker.close)
            block, body = headers(STREAM), message(call)
            for _ in range(STREAMS // len(made)):
                for attacker in made:
                    attacker.send(attacker.call(block, body))
                await asyncio.sleep(0.01)
            async with asyncio.timeout(60):
                while len(seen.worker.calls) < STREAMS:  # noqa: ASYNC110 - what the worker counts
                    await asyncio.sleep(0.1)
            seen.go.set()
            yield seen


async def shed(seen: Scene) -> int:
    """Streams that were reset for what they hold."""
    return (await seen.stats("reset_high_memory_stream.count")).get("envoy.overload_actions.reset_high_memory_stream.count", 0)


async def test_streams_that_nobody_reads_are_reset_until_there_is_room(etcd_server: EtcdServer, installation: str) -> None:
    async with streamed(etcd_server.endpoint, installation) as seen:
        began, looks = time.monotonic(), 0
        async with asyncio.timeout(60):
            while not await shed(seen) or looks < LOOKS:
                looks = looks + 1 if await pressure(seen) <= 100 * limits.RESET_HEAP_FRACTION else 0
                await asyncio.sleep(0.1)
        reset, most = await shed(seen), seen.envoy_mib()
        print(f"there was room after {time.monotonic() - began - LOOKS / 10:.1f} s; {reset} streams were reset, {most:.0f} MiB at most")
        async with neighbours(seen.gateway, 2) as near:
            await asyncio.sleep(2.0)
        assert codes(near).keys() == {grpc.StatusCode.OK}, [each.texts for each in near]


@pytest.mark.slow
async def test_negative_control_without_shedding_streams_that_nobody_reads_stay(etcd_server: EtcdServer, installation: str) -> None:
    def none(config: dict[str, Any]) -> None:
        actions = config["overload_manager"]["actions"]
        actions[:] = [each for each in actions if not each["name"].endswith("reset_high_memory_stream")]

    async with streamed(etcd_server.endpoint, installation, none) as seen:
        async with asyncio.timeout(60):
            while await pressure(seen) < FULLEST:  # noqa: ASYNC110 - the same
                await asyncio.sleep(0.1)
        await asyncio.sleep(10.0)
        assert await pressure(seen) >= FULLEST
        async with neighbours(seen.gateway, 2) as near:
            await asyncio.sleep(1.0)
        assert codes(near).keys() == {grpc.StatusCode.RESOURCE_EXHAUSTED}


async def test_replies_that_nobody_reads_count_in_the_relay_until_their_caller_goes(etcd_server: EtcdServer, installation: str) -> None:
    """Four calls that Envoy leaves to the relay, with replies of 4 MB; of 32 MiB a connection has a quarter."""
    async with scene(etcd_server.endpoint, installation, "--max-held-bytes", f"{32 * MIB}") as seen:

        async def held(least: int, most: int) -> None:
            async with asyncio.timeout(60):
                while not least <= await asyncio.to_thread(metric_of, seen.gateway.metrics, SERIES) <= most:  # noqa: ASYNC110 - its figure
                    await asyncio.sleep(0.05)

        call = request("open")
        call.parameters["reply"].int64_param = 4_000_000
        attacker = Attacker(seen.gateway.listen, reads=False)
        block = headers(more=literal(b"grpc-encoding", b"gzip"))
        await attacker.many(4, lambda: attacker.call(block, message(call), end=True))
        async with asyncio.timeout(60):
            while attacker.ended < 2:  # noqa: ASYNC110 - frames have no event
                await asyncio.sleep(0.05)
        await held(8_000_000, 8 * MIB)
        attacker.close()
        await held(0, 0)
