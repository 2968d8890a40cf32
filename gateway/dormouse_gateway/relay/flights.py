"""Calls that are at a worker, while the map changes.

A connection tells late that its other end is gone: a node that loses power sends no reset, and a keepalive takes 3 s. The map may know
within a fraction of that, when somebody moved the worker's shards. So who waits for a worker's answer watches the map, too, and gives the
worker up once somebody else is to be asked. The call then goes again under its key: the first copy may still run, and it runs once
(rules *call-key* and *kept-keys*).

It is given up neither at once nor for every change. An owner that lives hands a shard over only between steps: what it ran before is
committed and its answer is on the way, and where that is too large to be kept a second copy would learn no more than that the step is
committed. So an owner that lives has GRACE_MOVED to answer; of one without a lease only what is in the network is waited for.
"""

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass

from dormouse_core import headernames
from dormouse_core.seams import Reply

from dormouse_gateway.watching.table import Function, Worker

GRACE_GONE = 0.1
GRACE_MOVED = 1.0


@dataclass(frozen=True, slots=True)
class Lost:
    """Why a call's answer is waited for no longer than `grace` seconds."""

    grace: float
    why: str
    """`gone`: the worker has no lease any more. `moved`: it lives, and another owns the shard."""
    text: str

    def reply(self) -> Reply:
        return Reply(14, b"", self.text, {headernames.BROKEN: self.why})


def lost(function: Function, uid: str, worker: Worker, shard: int | None) -> Lost | None:
    """Whether a call of shard `shard` (None: stateless) that is at `worker` has nothing more to expect there, by the map in `function`.

    None also while nobody else could be asked, and where the call must not be sent again: then the connection decides.
    """
    if function.entry.uid != uid:
        return None  # another life of the name; what belongs to the old one is on its way out
    lives = worker.name in function.workers
    if shard is None:
        if lives or not function.resend or not function.takers():
            return None
        return Lost(GRACE_GONE, "gone", f"the lease of {worker.name} is gone")
    owner = function.owner(shard)
    if owner is None or owner.name == worker.name:
        return None
    if lives:
        return Lost(GRACE_MOVED, "moved", f"{owner.name} owns shard {shard} now")
    return Lost(GRACE_GONE, "gone", f"the lease of {worker.name} is gone, and {owner.name} owns shard {shard} now")


@dataclass(slots=True, eq=False)
class Flight:
    """One call at one worker. `since`: the map's revision that sent it there; what the watch says of before is of no interest."""

    uid: str
    worker: Worker
    shard: int | None
    since: int
    limit: asyncio.Timeout
    lost: Lost | None = None


class Flights:
    def __init__(self) -> None:
        self._flights: dict[str, dict[Flight, None]] = {}  # by the function's label, the first that was sent first

    async def carry(self, function: Function, worker: Worker, shard: int | None, since: int, answer: Awaitable[Reply]) -> Reply:
        """The answer, or a break `gone` or `moved`. Cancels `answer` then."""
        flights = self._flights.setdefault(function.label, {})
        limit = asyncio.timeout(None)
        flight = Flight(function.entry.uid, worker, shard, since, limit)
        try:
            async with limit:
                flights[flight] = None
                return await answer
        except TimeoutError:
            if flight.lost is None:
                raise
            return flight.lost.reply()
        finally:
            flights.pop(flight, None)
            if not flights:
                self._flights.pop(function.label, None)

    def changed(self, function: Function, revision: int) -> None:
        """The watched map of a function is now this one, of `revision`."""
        now = asyncio.get_running_loop().time()
        for flight in self._flights.get(function.label, ()):
            if revision < flight.since:
                continue
            found = lost(function, flight.uid, flight.worker, flight.shard)
            until = None if found is None else now + found.grace
            due = flight.limit.when()
            if found is not None and flight.lost is not None and due is not None and until is not None:
                until = min(until, due)  # the grace runs from the first change
            if not flight.limit.expired():
                flight.lost = found
                flight.limit.reschedule(until)
