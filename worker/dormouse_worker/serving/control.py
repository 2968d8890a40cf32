"""The leader's stream to this worker: reports up, orders down.

Reports go at the interval that the leader asks for, and at once when something changed that it decides by. A worker without this stream
goes on serving. While it drains and nobody has listened for a while, it leaves by itself: its sessions are in the store.

A leader says in its hello which election it won. Once a later one was heard, a former leader's orders are no orders: it may not know yet
that it leads no more, and no store stands between it and the worker. One that says none is of an earlier release, to which an installation
went back: it is obeyed, or nobody would be until the last worker had gone.
"""

import asyncio
from collections.abc import Callable

from dormouse_kit import log
from dormouse_proto import control_pb2, state_pb2
from google.protobuf.message import DecodeError

from dormouse_worker.transport import frames
from dormouse_worker.transport.asgi import Exchange

DEFAULT_INTERVAL = 1.0
ORDER_BYTES = 1 << 20


class Control:
    def __init__(
        self,
        report: Callable[[bool], control_pb2.WorkerReport],
        drain: Callable[[], None],
        no_taker: Callable[[], None],
        hear: Callable[[control_pb2.WorkerOrder.Limits], None],
        timed: Callable[[control_pb2.WorkerOrder.Time], None],
        meet: Callable[[], None] = lambda: None,
        informed: Callable[[state_pb2.Batching], None] = lambda batching: None,
    ) -> None:
        """`report(whole)`: what to say now; `whole`: with the model's metadata. `hear`: what the leader knows of sessions.
        `timed`: the leader's answer to a mark. `meet`: from now on, it is another leader or stream that hears reports and answers.
        `informed`: what the leader keeps of calls that run alone."""
        self._report = report
        self._drain = drain
        self._no_taker = no_taker
        self._hear = hear
        self._timed = timed
        self._meet = meet
        self._informed = informed
        self._edition = 0  # of the metadata
        self._changed: set[asyncio.Event] = set()
        self._closing = False
        self._term = 0  # the latest election whose leader said hello

    @property
    def streams(self) -> int:
        return len(self._changed)

    def changed(self) -> None:
        """A report is due at once."""
        for event in self._changed:
            event.set()

    def described_anew(self) -> None:
        """The model's metadata changed: a report with it is due at once."""
        self._edition += 1
        self.changed()

    def close(self) -> None:
        """Ends every stream, after a last report."""
        self._closing = True
        self.changed()

    async def serve(self, exchange: Exchange) -> None:
        event = asyncio.Event()
        self._changed.add(event)
        interval = [DEFAULT_INTERVAL]
        self._meet()
        reader = asyncio.ensure_future(self._orders(exchange, interval, event))
        try:
            await exchange.begin()
            told = -1
            while not reader.done():
                event.clear()
                edition = self._edition
                await exchange.write(self._report(edition != told).SerializeToString())
                told = edition
                if self._closing:
                    break
                waiter = asyncio.ensure_future(event.wait())
                await asyncio.wait((waiter, reader), timeout=interval[0], return_when=asyncio.FIRST_COMPLETED)
                waiter.cancel()
            error = reader.exception() if reader.done() and not reader.cancelled() else None
            if isinstance(error, ConnectionError):
                return  # the leader has left, or another leads: nobody to answer
            if error is not None:
                raise error
            await exchange.end()
        finally:
            self._changed.discard(event)
            reader.cancel()

    async def _orders(self, exchange: Exchange, interval: list[float], event: asyncio.Event) -> None:
        """Obeys until the leader ends its side."""
        reader = frames.Reader(ORDER_BYTES)
        more = True
        term = 0
        while more:
            chunk, more = await exchange.chunk()
            for message in reader.feed(chunk):
                try:
                    order = control_pb2.WorkerOrder.FromString(message)
                except DecodeError as error:
                    log.warning("an order from the leader cannot be read", error=error)
                    continue
                kind = order.WhichOneof("order")
                if kind == "hello":
                    term = order.hello.term
                    if term > self._term:
                        self._meet()  # one of before may have answered since
                    self._term = max(self._term, term)
                    interval[0] = max(0.01, order.hello.report_interval_ms / 1000) if order.hello.report_interval_ms else DEFAULT_INTERVAL
                    event.set()
                elif 0 < term < self._term:
                    log.event("an order from a former leader is ignored", order=kind, term=term, leads=self._term)
                elif kind == "drain":
                    self._drain()
                elif kind == "no_taker":
                    self._no_taker()
                elif kind == "limits":
                    self._hear(order.limits)
                elif kind == "time":
                    self._timed(order.time)
                elif kind == "batching":
                    self._informed(order.batching)
