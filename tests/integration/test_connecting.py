"""How long our channels wait for a peer to take a connection."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import grpc
import grpc.aio
import pytest
from dormouse_kit.grpc_options import CONNECT_MS, channel_options
from dormouse_testing.echoing import echo_server, echoed
from dormouse_testing.proxy import Proxy


@contextlib.asynccontextmanager
async def late(seconds: float) -> AsyncIterator[str]:
    """The address of a gRPC server that is silent for this time."""
    async with echo_server() as address, Proxy(address) as proxy:
        proxy.hold("reply")
        timer = asyncio.get_running_loop().call_later(seconds, proxy.open)
        yield proxy.endpoint
        timer.cancel()


async def test_a_peer_that_is_alive_but_busy_is_waited_for() -> None:
    async with late(0.6) as address:
        assert await echoed(address, channel_options(), b"a") == b"a"


async def test_a_peer_that_takes_connections_and_is_silent_is_given_up() -> None:
    async with late(60) as address:
        began = time.monotonic()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await echoed(address, channel_options(), b"a")
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert CONNECT_MS / 1000 - 0.1 <= time.monotonic() - began < 2 * CONNECT_MS / 1000


async def test_negative_control_with_a_tenth_of_a_second_a_busy_peer_is_lost() -> None:
    async with late(10) as address:  # however late the tenth passes on a busy machine
        options = [each for each in channel_options() if "min_reconnect" not in each[0]]
        with pytest.raises(grpc.aio.AioRpcError, match="before receiving SETTINGS"):
            await echoed(address, [*options, ("grpc.min_reconnect_backoff_ms", 100)], b"a")
