"""Which workers this gateway cannot connect to, for the leader (`dormouse_core.reaching`).

A call that could not be sent is noticed by the relay. What is out of reach is tried again by calls that wait for it; and where the leader
asks, because a gateway (this or another) does not reach a worker, by a call of our own, so that one who has no calls for it can say whether
it is there.
"""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

from dormouse_core import headernames
from dormouse_core.errors import Code
from dormouse_core.reaching import FRESH_SECONDS
from dormouse_core.seams import Clock, Transport
from dormouse_proto import control_pb2

LIVE = "/inference.GRPCInferenceService/ServerLive"
TRY_SECONDS = 2.0
DOUBT_SECONDS = 1.0  # what is known for so long is not asked again because of one call


@dataclass(slots=True)
class _Tried:
    at: float
    failing_since: float | None


class Reach:
    def __init__(self, clock: Clock, transport: Transport) -> None:
        self._clock = clock
        self._transport = transport
        self._tried: dict[str, _Tried] = {}
        self._tries: dict[str, asyncio.Task[None]] = {}

    def answered(self, worker: str) -> None:
        """It answered something. Costs next to nothing where it never failed: most calls."""
        if worker in self._tried:
            self._tried[worker] = _Tried(self._clock.monotonic(), None)

    def failed(self, worker: str) -> None:
        """No connection could be made."""
        now = self._clock.monotonic()
        before = self._tried.get(worker)
        since = before.failing_since if before is not None else None
        self._tried[worker] = _Tried(now, now if since is None else since)

    def doubt(self, worker: str, address: str) -> None:
        """A call's deadline passed before the worker said anything: it may be slow, or out of reach of calls that are not patient enough to
        find out. It is asked.
        """
        tried = self._tried.get(worker)
        if tried is None or self._clock.monotonic() - tried.at > DOUBT_SECONDS:
            self.ask([control_pb2.AgentOrder.Try(worker=worker, address=address)])

    def report(self) -> list[control_pb2.WorkerReach]:
        """What is known of workers that failed or were to be tried. What is old is forgotten."""
        now = self._clock.monotonic()
        for worker in [worker for worker, tried in self._tried.items() if now - tried.at > FRESH_SECONDS]:
            del self._tried[worker]
        return [
            control_pb2.WorkerReach(
                worker=worker,
                reached=tried.failing_since is None,
                seconds=0.0 if tried.failing_since is None else now - tried.failing_since,
            )
            for worker, tried in sorted(self._tried.items())
        ]

    def ask(self, tries: Iterable[control_pb2.AgentOrder.Try]) -> None:
        """The leader wants to know of these. One that is being tried is not tried twice."""
        for each in tries:
            if each.worker not in self._tries:
                task = asyncio.create_task(self._try(each.worker, each.address))
                self._tries[each.worker] = task
                task.add_done_callback(lambda _, worker=each.worker: self._tries.pop(worker, None))  # type: ignore[misc]

    async def _try(self, worker: str, address: str) -> None:
        reply = await self._transport.call(address, LIVE, b"", {}, timeout=TRY_SECONDS)
        if headernames.BROKEN in reply.metadata or reply.code == Code.DEADLINE_EXCEEDED:
            self.failed(worker)
        else:
            now = self._clock.monotonic()
            self._tried[worker] = _Tried(now, None)
