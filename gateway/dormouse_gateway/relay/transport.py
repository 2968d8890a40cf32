"""gRPC to workers, as bytes: the relay's `Transport`.

What matters is to tell three things apart: the worker's own answer, whatever its code; a connection that could not be
made, so that nothing was sent; and one that broke, so that the call may have run. grpcio gives the last two the codes
that a worker may give, too. So a worker signs its errors (`dormouse-by`), and an unsigned one is the connection's.
Where it is not clear that nothing was sent, the call may have run.
"""

import asyncio
import time
from collections.abc import Mapping

import grpc
import grpc.aio
from dormouse_core import headernames
from dormouse_core.addresses import BY_RELAY
from dormouse_core.seams import Part, Reply
from dormouse_kit.grpc_options import channel_options

from dormouse_gateway.relay.sending import SIGNED

IDLE_SECONDS = 300.0
# What grpcio says of its own failures to connect, before anything was sent.
CONNECT = ("failed to connect to all addresses", "connection refused", "no route to host", "network is unreachable")
# Codes that grpcio gives to a call whose stream or connection ended without a status (gRPC over HTTP/2, "HTTP2 Transport Mapping").
ENDED = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.CANCELLED})


class Channels:
    """One connection a worker, kept while it is used."""

    def __init__(self, message_bytes: int) -> None:
        self._options = channel_options(message_bytes=message_bytes)
        self._channels: dict[str, tuple[grpc.aio.Channel, float]] = {}

    def to(self, address: str) -> grpc.aio.Channel:
        now = time.monotonic()
        known = self._channels.get(address)
        channel = grpc.aio.insecure_channel(address, options=self._options) if known is None else known[0]
        self._channels[address] = (channel, now)
        return channel

    async def prune(self) -> None:
        """Closes what has not been used for long: addresses come and go with workers."""
        old = time.monotonic() - IDLE_SECONDS
        for address, (channel, used) in list(self._channels.items()):
            if used < old:
                del self._channels[address]
                await channel.close()

    async def close(self) -> None:
        channels, self._channels = self._channels, {}
        await asyncio.gather(*(channel.close() for channel, _ in channels.values()))


class GrpcTransport:
    def __init__(self, channels: Channels) -> None:
        self._channels = channels

    async def call(self, address: str, method: str, message: bytes, metadata: Mapping[str, str], *, timeout: float | None) -> Reply:
        unary: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self._channels.to(address).unary_unary(method)
        call = unary(message, metadata=sent(metadata), timeout=timeout)
        try:
            answer = await call
            return Reply(0, answer, "", headers(await call.initial_metadata(), await call.trailing_metadata()))
        except grpc.aio.AioRpcError as error:
            return failed(error)
        finally:
            call.cancel()  # nothing once it is done; else our own cancellation must reach the worker

    async def stream(
        self, address: str, method: str, message: bytes, metadata: Mapping[str, str], part: Part, *, timeout: float | None
    ) -> Reply:
        streamed: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = self._channels.to(address).unary_stream(method)
        call = streamed(message, metadata=sent(metadata), timeout=timeout)
        try:
            async for each in call:
                await part(each)
            return Reply(0, b"", "", headers(await call.initial_metadata(), await call.trailing_metadata()))
        except grpc.aio.AioRpcError as error:
            return failed(error)
        finally:
            call.cancel()


def sent(metadata: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Marked, so that a gateway at a worker's address ends the call instead of sending it on."""
    return tuple({**metadata, headernames.HOPS: BY_RELAY}.items())


def failed(error: grpc.aio.AioRpcError) -> Reply:
    given = headers(error.initial_metadata(), error.trailing_metadata())
    signed = any(key in given for key in SIGNED)
    broken = "" if signed else broke(error.code(), error.details() or "")
    return Reply(error.code().value[0], b"", error.details() or "", {**given, headernames.BROKEN: broken} if broken else given)


def headers(*parts: object) -> dict[str, str]:
    out: dict[str, str] = {}
    for part in parts:
        for key, value in part or ():  # type: ignore[attr-defined]  # grpcio's Metadata iterates as pairs, its stubs say otherwise
            if isinstance(value, str):
                out[key] = value
    return out


def broke(code: grpc.StatusCode, details: str) -> str:
    """What an unsigned error means: '' where grpcio says itself what happened (a deadline, a limit), else 'connect' or 'reset'."""
    if code not in ENDED:
        return ""
    lower = details.lower()
    return "connect" if code is grpc.StatusCode.UNAVAILABLE and any(text in lower for text in CONNECT) else "reset"
