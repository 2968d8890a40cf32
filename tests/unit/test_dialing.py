"""The leader's streams to workers over gRPC itself, on loopback."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from dormouse_operator import dialing
from dormouse_operator.dialing import GrpcDialer
from dormouse_operator.links import Refused, Unreachable
from dormouse_proto import control_pb2, control_pb2_grpc

ORDERS = 10
LARGE = control_pb2.WorkerOrder(limits=control_pb2.WorkerOrder.Limits(replaced=["x" * 1000] * 500))
"""Larger than what HTTP/2 lets a sender have under way, so its write waits for a reader, however slow the machine is."""
NOTHING_AHEAD = (("grpc.http2.bdp_probe", 0),)
"""A server's options: the window stays at the 64 KiB with which HTTP/2 begins."""
Send = Callable[[control_pb2.WorkerOrder], Awaitable[None]]


class Worker(control_pb2_grpc.WorkerServicer):
    """Reads no order until it is let; then it says in a report how many came."""

    def __init__(self) -> None:
        self.reads = asyncio.Event()

    async def Control(self, orders: AsyncIterator[control_pb2.WorkerOrder], context: Any) -> AsyncIterator[control_pb2.WorkerReport]:
        await self.reads.wait()
        for _ in range(ORDERS):
            await anext(orders)
        yield control_pb2.WorkerReport(mark=ORDERS)


@contextlib.asynccontextmanager
async def stream_to(worker: Worker) -> AsyncIterator[Any]:
    server = grpc.aio.server(options=NOTHING_AHEAD)
    control_pb2_grpc.add_WorkerServicer_to_server(worker, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    stream: Any = await GrpcDialer().open(f"127.0.0.1:{port}")
    await stream._call.wait_for_connection()  # from here on a write is under way as soon as its task has run
    try:
        async with asyncio.timeout(20):
            yield stream
    finally:
        await stream.close()
        await server.stop(None)


async def send_together(stream: Any, worker: Worker) -> int:
    """How many arrive of orders that are sent by tasks that know nothing of each other, as answers to marks and limits are."""
    sending = asyncio.gather(*(stream.send(LARGE) for _ in range(ORDERS)))
    await asyncio.sleep(0)
    worker.reads.set()
    await sending
    return int((await anext(stream.reports())).mark)


async def test_orders_that_are_sent_at_once_all_arrive() -> None:
    worker = Worker()
    async with stream_to(worker) as stream:
        assert await send_together(stream, worker) == ORDERS


async def test_negative_control_without_one_write_at_a_time_the_stream_breaks() -> None:
    worker = Worker()
    async with stream_to(worker) as stream:
        stream._one_write = contextlib.nullcontext()
        with pytest.raises(Unreachable, match="INTERNAL"):
            await send_together(stream, worker)


async def test_a_sender_under_whom_the_stream_is_closed_hears_of_it_and_goes_on() -> None:
    assert isinstance(await closed_under(lambda stream: stream.send), Unreachable)


async def test_negative_control_grpcs_own_write_would_end_the_sender() -> None:
    assert isinstance(await closed_under(lambda stream: stream._call.write), asyncio.CancelledError)


async def closed_under(send_of: Callable[[Any], Send]) -> object:
    """What a sender that nobody has cancelled is told when its order waits for a deaf worker and the stream is closed."""
    async with stream_to(Worker()) as stream:
        sending = asyncio.ensure_future(send_of(stream)(LARGE))
        await asyncio.sleep(0)
        assert not sending.done()
        await stream.close()
        return (await asyncio.gather(sending, return_exceptions=True))[0]


async def test_where_nobody_listens_it_is_refused_which_is_a_death_and_no_silence(tmp_path: Path) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # and does not listen
        with pytest.raises(Refused):
            await GrpcDialer().open(f"127.0.0.1:{held.getsockname()[1]}")
    with pytest.raises(Refused):
        await GrpcDialer(sockets=True).open(f"unix:{tmp_path}/none")


@pytest.mark.parametrize("sockets", [True, False])
async def test_a_socket_is_dialled_where_workers_may_be_at_one_and_nowhere_else(tmp_path: Path, sockets: bool) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "w"))
        listening.listen()
        listening.setblocking(False)
        dialer = GrpcDialer(sockets=sockets)
        if sockets:
            stream = await dialer.open(f"unix:{tmp_path}/w")
            await stream.close()
            listening.accept()[0].close()
        else:
            with pytest.raises(Unreachable):
                await dialer.open(f"unix:{tmp_path}/w")
            with pytest.raises(BlockingIOError):
                listening.accept()


async def test_who_does_not_answer_a_connection_is_out_of_reach_in_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    async def for_ever(self: GrpcDialer, address: str) -> Any:
        await asyncio.Event().wait()

    assert dialing.CONNECT == 1.0
    monkeypatch.setattr(dialing, "CONNECT", 0.01)
    monkeypatch.setattr(GrpcDialer, "_connect", for_ever)
    async with asyncio.timeout(5):
        with pytest.raises(Unreachable, match="TimeoutError"):
            await GrpcDialer().open("10.0.0.1:9000")
