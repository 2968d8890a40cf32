"""The control streams from the leader to the workers (`Worker.Control`).

A stream that breaks is opened again at once. What the second try meets is the news: *refused* means that no process listens there any more,
so the worker is dead and its shards need not wait for its lease; anything else is unknown, and the lease settles it. A port that answers
under another worker's name is a refusal too: ports are used again.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Protocol

from dormouse_core.seams import Clock
from dormouse_kit import log
from dormouse_proto import control_pb2

REPORT_INTERVAL = 1.0  # seconds
FAILED = 1.0  # seconds before a stream that failed for a reason nobody foresaw is opened again
SILENCE = 3.0  # seconds after which the last report says nothing of now


class Refused(Exception):
    """Nobody listens at the address."""


class Unreachable(Exception):
    """The stream could not be opened, or broke; whether the process lives is not known."""


class Stream(Protocol):
    """One open control stream."""

    async def send(self, order: control_pb2.WorkerOrder) -> None:
        """Raises Unreachable when the stream is broken."""

    def reports(self) -> AsyncIterator[control_pb2.WorkerReport]:
        """Ends or raises Unreachable when the stream breaks."""

    async def close(self) -> None: ...


class Dialer(Protocol):
    async def open(self, address: str) -> Stream:
        """Raises Refused or Unreachable."""


@dataclass(slots=True)
class _Link:
    task: asyncio.Task[None]
    stream: Stream | None = None
    report: control_pb2.WorkerReport | None = None
    metadata: bytes = b""
    heard_at: float = 0.0
    gone: bool = False


class Links:
    """One link for each worker that has a lease. `term`: the create_revision of this leader's election key, by which workers tell a former
    leader's orders. `changed(worker)` is called when what is known of it changes its meaning; `heard(worker, report)` at every report;
    `timed(report)` is the leader's answer to the worker's mark."""

    def __init__(
        self,
        dialer: Dialer,
        clock: Clock,
        leader: str,
        term: int,
        heard: Callable[[str, control_pb2.WorkerReport], None],
        changed: Callable[[str], None],
        timed: Callable[[control_pb2.WorkerReport], control_pb2.WorkerOrder.Time],
    ) -> None:
        self._dialer = dialer
        self._clock = clock
        self._leader = leader
        self._term = term
        self._heard = heard
        self._changed = changed
        self._timed = timed
        self._links: dict[str, _Link] = {}

    def follow(self, worker: str, address: str) -> None:
        if worker not in self._links:
            task = asyncio.create_task(self._run(worker, address), name=f"link {worker}")
            self._links[worker] = _Link(task)

    def drop(self, worker: str) -> None:
        link = self._links.pop(worker, None)
        if link is not None:
            link.task.cancel()

    async def close(self) -> None:
        tasks = [link.task for link in self._links.values()]
        for worker in list(self._links):
            self.drop(worker)
        await asyncio.gather(*tasks, return_exceptions=True)

    def gone(self, worker: str) -> bool:
        link = self._links.get(worker)
        return link is not None and link.gone

    def report(self, worker: str) -> control_pb2.WorkerReport | None:
        """The latest report if it still says something of now."""
        link = self._links.get(worker)
        if link is None or link.report is None or self._clock.monotonic() - link.heard_at > SILENCE:
            return None
        return link.report

    async def send(self, worker: str, order: control_pb2.WorkerOrder) -> bool:
        link = self._links.get(worker)
        if link is None or link.stream is None:
            return False
        try:
            await link.stream.send(order)
        except Unreachable:
            return False  # its own task sees the break and opens anew; whoever ordered asks again at the next look
        return True

    async def _run(self, worker: str, address: str) -> None:
        broken_at = self._clock.monotonic()
        while True:
            try:
                await self._attempt(worker, address)
            except Unreachable as error:
                log.event("the control stream broke", worker=worker, error=str(error))
            except Exception as error:  # a bug of ours, or a report that nobody foresaw: it concerns this worker, who is heard again
                log.warning("the control stream failed", worker=worker, raised=error)
                await self._clock.sleep(FAILED)
            if self._clock.monotonic() - broken_at < 0.2:
                await self._clock.sleep(0.2)
            broken_at = self._clock.monotonic()

    async def _attempt(self, worker: str, address: str) -> None:
        try:
            await self._once(worker, address)
        except Refused:
            self._set_gone(worker, f"refused at {address}")

    async def _once(self, worker: str, address: str) -> None:
        stream = await self._dialer.open(address)
        link = self._links[worker]
        try:
            hello = control_pb2.WorkerOrder.Hello(leader=self._leader, report_interval_ms=int(REPORT_INTERVAL * 1000), term=self._term)
            await stream.send(control_pb2.WorkerOrder(hello=hello))
            link.stream = stream
            async for report in stream.reports():
                if report.worker != worker:
                    raise Refused
                self._take(worker, link, report)
                if report.mark:
                    await stream.send(control_pb2.WorkerOrder(time=self._timed(report)))
        finally:
            link.stream = None
            with contextlib.suppress(Unreachable):
                await stream.close()

    def _take(self, worker: str, link: _Link, report: control_pb2.WorkerReport) -> None:
        if report.HasField("metadata"):
            link.metadata = report.metadata.SerializeToString()
        elif link.metadata:
            report.metadata.ParseFromString(
                link.metadata
            )  # the first report brings it, and one after a change; whoever reads a later one wants it too
        before, link.report, link.heard_at = link.report, report, self._clock.monotonic()
        came_back, link.gone = link.gone, False
        self._heard(worker, report)
        if before is None or came_back or _meaning(before) != _meaning(report):
            self._changed(worker)

    def _set_gone(self, worker: str, why: str) -> None:
        link = self._links[worker]
        if not link.gone:
            link.gone, link.report = True, None
            log.event("a worker is gone", worker=worker, why=why)
            self._changed(worker)


def _meaning(report: control_pb2.WorkerReport) -> tuple[bool, bool, bool, int, tuple[int, ...]]:
    forms = len(report.metadata.batching.alone)
    return report.ready, report.draining, report.clock_off, forms, tuple(s.shard for s in report.stopped)
