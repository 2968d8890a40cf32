"""How long our channels wait for a peer to take a connection."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import grpc
import grpc.aio
import pytest
from dormouse_kit.grpc_options import CONNECT_MS, Options, channel_options, server_options
from dormouse_testing.proxy import Proxy


@contextlib.asynccontextmanager
async def late(seconds: float) -> AsyncIterator[str]:
    """The address of a gRPC server that is silent for this time."""

    async def echo(request: bytes, context: object) -> bytes:
        return request

    server = grpc.aio.server(options=server_options())
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.T", {"E": grpc.unary_unary_rpc_method_handler(echo)}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with Proxy(f"127.0.0.1:{port}") as proxy:
        proxy.hold("reply")
        timer = asyncio.get_running_loop().call_later(seconds, proxy.open)
        yield proxy.endpoint
        timer.cancel()
    await server.stop(None)


async def answer(address: str, options: Options) -> bytes:
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/t.T/E")
        return await call(b"a", timeout=20)


async def test_a_peer_that_is_alive_but_busy_is_waited_for() -> None:
    async with late(0.6) as address:
        assert await answer(address, channel_options()) == b"a"


async def test_a_peer_that_takes_connections_and_is_silent_is_given_up() -> None:
    async with late(60) as address:
        began = time.monotonic()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await answer(address, channel_options())
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert CONNECT_MS / 1000 - 0.1 <= time.monotonic() - began < 2 * CONNECT_MS / 1000


async def test_negative_control_with_a_tenth_of_a_second_a_busy_peer_is_lost() -> None:
    async with late(0.6) as address:
        options = [each for each in channel_options() if "min_reconnect" not in each[0]]
        with pytest.raises(grpc.aio.AioRpcError, match="before receiving SETTINGS"):
            await answer(address, [*options, ("grpc.min_reconnect_backoff_ms", 100)])
