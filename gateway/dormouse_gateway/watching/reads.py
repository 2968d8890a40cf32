"""Linearizable reads of one function: its entry and its map.

A call that was refused needs what the store says *now*: a read that began before the refusal may be as stale as the
map that misled it. So a call joins only a read that has not begun; at most one is under way a function, and the next
is shared by all who ask meanwhile. Thousands of calls whose worker died cost two reads.
"""

import asyncio
from dataclasses import dataclass

from dormouse_core import absences
from dormouse_core.errors import DormouseError, NotFound, Unavailable
from dormouse_core.keys import Function as Identity
from dormouse_core.keys import Keys
from dormouse_core.seams import Clock, Store, StoreError, Unreached

from dormouse_gateway import metrics
from dormouse_gateway.watching.table import Function, Guard, Unreadable, function_of, read_map

STRANGERS = 8
"""Reads under way for functions that are not in the watched table."""
UNANSWERED_SECONDS = 0.1  # before a store that did not answer is asked again, whose client itself waited for a connection


@dataclass(frozen=True, slots=True)
class Read:
    revision: int  # what is older than this is stale
    history: int  # while it is that of `Reads`: revisions of a store that was restored since mean nothing
    function: Function | None  # None: it is not in the store
    absent: bool = False  # and is known not to exist


def missing(label: str, read: Read) -> DormouseError:
    """What the caller of a function is told that `read` lacks. NOT_FOUND is final: it is said only of what is known not to exist."""
    if not read.absent:
        return Unavailable(absences.UNKNOWN.format(label=label))
    return NotFound(f"function {label} not found")


def unanswered(error: StoreError) -> bool:
    """The store did not say no: it could not be reached, or was silent."""
    return isinstance(error, Unreached) or not error.definite


class Reads:
    def __init__(self, keys: Keys, store: Store, clock: Clock, guard: Guard | None = None) -> None:
        self._keys = keys
        self._clock = clock
        self._absences = absences.Absences()
        self._guard = guard or Guard()
        self._store = store
        self.history = 0
        self._running: dict[str, asyncio.Task[Read]] = {}
        self._next: dict[str, asyncio.Task[Read]] = {}
        self._waiting: dict[str, asyncio.Task[Read]] = {}
        self._strangers = asyncio.Semaphore(STRANGERS)
        self._away = ""  # why strangers are not read now: the store did not answer one, and is asked until it does
        self._asking: asyncio.Task[None] | None = None
        self._listening = 0  # callers who wait for that

    def rewound(self) -> None:
        """The store was restored to an earlier revision: what was read before is not newer than anything."""
        self.history += 1
        self._absences.rewound(self._clock.monotonic())

    async def stranger(self, label: str) -> Read:
        """The same of a function that the watched table lacks: a few at a time, for callers may make up names without end. Once the store
        did not answer one, Unreached at once until it `answers`: else they would stand behind each other, each for a whole try."""
        if self._away:
            raise Unreached(self._away)
        task = self._waiting.get(label)
        if task is None:
            task = self._waiting[label] = asyncio.create_task(self._stranger(label))
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return await asyncio.shield(task)

    async def _stranger(self, label: str) -> Read:
        async with self._strangers:
            del self._waiting[label]  # it begins: who comes later wants a later one
            if self._away:
                raise Unreached(self._away)
            try:
                return await self.function(label, stranger=True)
            except StoreError as error:
                if unanswered(error):
                    self._away = self._away or str(error)
                    self._asking = self._asking or asyncio.create_task(self._ask())
                raise

    async def answers(self) -> None:
        """Returns once the store answers again. All who wait for that share one ask."""
        if self._asking is None:
            return
        self._listening += 1
        try:
            await asyncio.shield(self._asking)
        finally:
            self._listening -= 1

    async def _ask(self) -> None:
        """Until it answers, or nobody waits for that any more: who comes then reads for himself."""
        try:
            while True:
                await asyncio.sleep(UNANSWERED_SECONDS)
                try:
                    await self._store.get([self._keys.written])
                    return
                except StoreError as error:
                    if not unanswered(error) or not self._listening:
                        return
        finally:
            self._away, self._asking = "", None

    async def function(self, label: str, *, stranger: bool = False) -> Read:
        """What the store says after this was called. `stranger`: it is not expected to be there. StoreError, Unreadable."""
        if label in self._next:
            task = self._next[label]
        elif label in self._running:
            task = self._next[label] = asyncio.create_task(self._read(label, stranger, after=self._running[label]))
        else:
            task = self._running[label] = asyncio.create_task(self._read(label, stranger))
        # Shielded: one caller's cancellation must not end the read of the others. If all are cancelled, nobody asks for its exception.
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return await asyncio.shield(task)

    async def _read(self, label: str, stranger: bool, after: "asyncio.Task[Read] | None" = None) -> Read:
        me = asyncio.current_task()
        assert me is not None
        if after is not None:
            await asyncio.wait([after])
            self._running[label] = self._next.pop(label)
        try:
            read = await self._fetch(label, stranger)
            metrics.READS.labels("found" if read.function else "absent").inc()
            return read
        except (StoreError, Unreadable):
            metrics.READS.labels("failed").inc()
            raise
        finally:
            if self._running.get(label) is me:
                del self._running[label]

    async def _fetch(self, label: str, stranger: bool) -> Read:
        key = f"{self._keys.functions}{label}"
        together = [key, self._keys.written, self._keys.leader]  # what is not there, and whether it was to be there, of one moment
        revision, found = await self._store.get(together if stranger else [key])
        if key not in found and not stranger:
            revision, found = await self._store.get(together)
        item = found.get(key)
        if item is None:
            mark, leader = (found.get(name) for name in (self._keys.written, self._keys.leader))
            absent = self._absences.known(
                mark.mod_revision if mark is not None else 0,
                leader.create_revision if leader is not None else 0,
                self._clock.monotonic(),
            )
            return Read(revision, self.history, None, absent)
        function = function_of(item, None)
        identity = Identity(function.entry.namespace, function.entry.name, function.entry.uid)
        listing = await self._store.list(self._keys.map(identity))
        return Read(listing.revision, self.history, function_of(item, read_map(self._keys, identity, listing.items, self._guard)))
