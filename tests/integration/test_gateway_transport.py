"""What the relay makes of connections that fail: the worker's own answer, nothing sent, or maybe run. Against real sockets."""

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator, Awaitable, Callable

import grpc
import grpc.aio
import pytest
from dormouse_gateway.relay.transport import Channels, GrpcTransport
from dormouse_testing.gateway import INFER, FakeWorker, Refuse, Seen, Wire, request
from dormouse_testing.http2 import PREFACE
from dormouse_testing.ports import free_port

Speak = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
SETTINGS = b"\0\0\0\4\0\0\0\0\0"


@pytest.fixture
async def transport() -> AsyncIterator[GrpcTransport]:
    channels = Channels(1 << 20)
    yield GrpcTransport(channels)
    await channels.close()


async def ask(transport: GrpcTransport, address: str, timeout: float | None = 20) -> tuple[int, str, str]:
    reply = await transport.call(address, INFER, request("m").SerializeToString(), {"dormouse-call": "k"}, timeout=timeout)
    return reply.code, reply.metadata.get("dormouse-broken", ""), reply.again


@contextlib.asynccontextmanager
async def speaking(speak: Speak) -> AsyncIterator[str]:
    """A server that says anything but gRPC."""
    writers: list[asyncio.StreamWriter] = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        with contextlib.suppress(OSError):
            await speak(reader, writer)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    server.close()
    for writer in writers:
        writer.transport.abort()
    await asyncio.sleep(0.05)


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


async def called(reader: asyncio.StreamReader) -> None:
    """Returns when a call's headers have come: before them there is no stream to say anything of."""
    await reader.readexactly(len(PREFACE))
    kind = 0
    while kind != 1:
        head = await reader.readexactly(9)
        kind = head[3]
        await reader.readexactly(int.from_bytes(head[:3], "big"))


async def test_answers_and_refusals_of_the_worker(transport: GrpcTransport, worker: FakeWorker) -> None:
    assert await ask(transport, worker.address) == (0, "", "")

    async def own(seen: Seen) -> None:
        raise Refuse(grpc.StatusCode.UNAVAILABLE, "the store did not answer")

    worker.behave = own
    assert await ask(transport, worker.address) == (14, "", ""), "its own UNAVAILABLE is an answer"

    async def not_mine(seen: Seen) -> None:
        raise Refuse(grpc.StatusCode.UNAVAILABLE, "not mine", "not-mine")

    worker.behave = not_mine
    assert await ask(transport, worker.address) == (14, "", "not-mine")

    async def slow(seen: Seen) -> None:
        await asyncio.sleep(5)

    worker.behave = slow
    assert await ask(transport, worker.address, timeout=0.2) == (4, "", "")


async def test_nobody_listens(transport: GrpcTransport) -> None:
    assert await ask(transport, f"127.0.0.1:{free_port()}") == (14, "connect", "")


async def test_a_connection_that_breaks_in_mid_call(transport: GrpcTransport, worker: FakeWorker) -> None:
    wire = await Wire(worker.address).start()
    inside = asyncio.Event()

    async def hang(seen: Seen) -> None:
        inside.set()
        await asyncio.sleep(60)

    worker.behave = hang
    call = asyncio.create_task(ask(transport, wire.address))
    await inside.wait()
    await wire.cut()
    assert await call == (14, "reset", "")
    await asyncio.sleep(0.1)  # sent into the dying connection, it would count as maybe run
    assert await ask(transport, wire.address) == (14, "connect", "")


async def test_a_frozen_worker_is_given_up_after_three_seconds(transport: GrpcTransport, worker: FakeWorker) -> None:
    wire = await Wire(worker.address).start()
    assert await ask(transport, wire.address) == (0, "", "")
    wire.freeze()
    began = asyncio.get_running_loop().time()
    assert await ask(transport, wire.address, timeout=20) == (14, "reset", "")
    assert asyncio.get_running_loop().time() - began < 15
    await wire.cut()


@pytest.mark.parametrize(("error", "what"), [(2, "INTERNAL_ERROR"), (7, "REFUSED_STREAM"), (8, "CANCEL"), (0, "NO_ERROR")])
async def test_a_stream_that_is_reset(transport: GrpcTransport, error: int, what: str) -> None:
    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(SETTINGS)
        await called(reader)
        writer.write(frame(4, 1, 0, b"") + frame(3, 0, 1, struct.pack(">I", error)))
        while await reader.read(65536):
            pass

    async with speaking(speak) as address:
        code, broken, _ = await ask(transport, address)
    assert (code != 0, broken) == (True, "reset"), what


async def test_an_http_error_instead_of_a_status(transport: GrpcTransport) -> None:
    """What a proxy in front of the worker's interpreter answers when the interpreter is gone."""

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(SETTINGS)
        await called(reader)
        headers = b"\x08\x03503"  # :status 503, as a literal without indexing
        writer.write(frame(4, 1, 0, b"") + frame(1, 5, 1, headers))
        while await reader.read(65536):
            pass

    async with speaking(speak) as address:
        assert (await ask(transport, address))[:2] == (14, "reset")


async def test_a_cancelled_call_reaches_the_worker(transport: GrpcTransport, worker: FakeWorker) -> None:
    inside, gone = asyncio.Event(), asyncio.Event()

    async def hang(seen: Seen) -> None:
        inside.set()
        try:
            await asyncio.sleep(60)
        finally:
            gone.set()

    worker.behave = hang
    call = asyncio.create_task(ask(transport, worker.address, timeout=None))
    await inside.wait()
    call.cancel()
    async with asyncio.timeout(20):
        await gone.wait()
