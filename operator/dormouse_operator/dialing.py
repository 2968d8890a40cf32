"""Opening control streams over gRPC: the real `links.Dialer`.

Whether nobody listens is asked of the kernel, by a plain connection: gRPC reports a refused connection, a black hole and a server that
goes away under one code.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
from dormouse_core import addresses
from dormouse_kit.grpc_options import channel_options
from dormouse_proto import control_pb2, control_pb2_grpc

from dormouse_operator.links import Refused, Stream, Unreachable

CONNECT = 1.0  # seconds


class GrpcDialer:
    def __init__(self, *, sockets: bool = False) -> None:
        """`sockets`: workers may be at unix:PATH. A cluster's, which write their addresses themselves, may not."""
        self._sockets = sockets

    async def open(self, address: str) -> Stream:
        try:
            async with asyncio.timeout(CONNECT):
                _, writer = await self._connect(address)
        except (ConnectionRefusedError, FileNotFoundError) as error:
            raise Refused(str(error)) from error
        except (OSError, ValueError, TimeoutError) as error:
            raise Unreachable(f"{address}: {error!r}") from error
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        channel = grpc.aio.insecure_channel(address, options=channel_options())
        call = control_pb2_grpc.WorkerStub(channel).Control()
        return _GrpcStream(channel, call)

    async def _connect(self, address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._sockets and address.startswith("unix:"):
            return await asyncio.open_unix_connection(address.removeprefix("unix:"))
        return await asyncio.open_connection(*addresses.parse(address, "address"))


async def answers(address: str) -> bool:
    """Whether the machine of `address` (host:port) answers, also by refusing the connection."""
    try:
        async with asyncio.timeout(CONNECT):
            _, writer = await asyncio.open_connection(*addresses.parse(address, "address"))
    except (ConnectionRefusedError, ConnectionResetError):
        return True
    except (OSError, TimeoutError):
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True


class _GrpcStream:
    def __init__(self, channel: grpc.aio.Channel, call: Any) -> None:
        self._channel = channel
        self._call = call
        self._one_write = asyncio.Lock()  # gRPC ends a call that is written to while a write is under way
        self._closed = False

    async def send(self, order: control_pb2.WorkerOrder) -> None:
        try:
            async with self._one_write:
                await self._call.write(order)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            raise Unreachable(_told(error)) from error
        except asyncio.CancelledError:
            # gRPC has it raised in every writer of a call that was cancelled; it would end a loop that nobody has cancelled.
            if self._closed and not _cancelled():
                raise Unreachable("the stream was closed") from None
            raise

    async def reports(self) -> AsyncIterator[control_pb2.WorkerReport]:
        try:
            while (report := await self._call.read()) is not grpc.aio.EOF:
                yield report
        except grpc.aio.AioRpcError as error:
            raise Unreachable(_told(error)) from error
        raise Unreachable("the worker ended the stream")

    async def close(self) -> None:
        self._closed = True
        self._call.cancel()
        await self._channel.close(None)


def _cancelled() -> bool:
    """Whether the task that asks is to end."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _told(error: Exception) -> str:
    return f"{error.code().name}: {error.details()}" if isinstance(error, grpc.aio.AioRpcError) else repr(error)
