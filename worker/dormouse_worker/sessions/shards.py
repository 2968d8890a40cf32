"""Which shards are this worker's: follows the map, reads entries, empties memories, refuses what belongs elsewhere.

The decisions are `dormouse_core.ownership`'s; this loop feeds it what the watch and the reads saw, and acts on what came out (rules
*fence*, *handoff* and *again*).
"""

import asyncio
from collections.abc import Callable

from dormouse_core import entries
from dormouse_core.backoff import Backoff
from dormouse_core.entries import T
from dormouse_core.errors import Again
from dormouse_core.keys import Function, Keys
from dormouse_core.ownership import HOLDING, MINE, Event, Status
from dormouse_core.seams import Clock, Item, Listing, Store, StoreError
from dormouse_core.sessions import shard_of
from dormouse_kit import log
from dormouse_proto import state_pb2

from dormouse_worker.sessions.boundary import Step
from dormouse_worker.sessions.census import Census
from dormouse_worker.sessions.mapwatch import MapWatch
from dormouse_worker.sessions.memory import Shard
from dormouse_worker.sessions.moves import Mover
from dormouse_worker.sessions.turns import Turns

RETRY_SECONDS = 0.2
OLDER = Backoff(0.002, RETRY_SECONDS)
READ_ALL_FROM = 8  # so many entries and more are read as one range


class Shards:
    def __init__(
        self,
        function: Function,
        count: int,
        store: Store,
        clock: Clock,
        *,
        worker: str,
        keys: Keys,
        spawn: Callable[..., "asyncio.Task[None]"],
    ) -> None:
        self.all = [Shard(n, keys.shard(function, n), keys.floor(function, n)) for n in range(count)]
        self.on_change: Callable[[], None] = lambda: None
        self.watch = MapWatch(function, store, clock, keys, self)
        self.mover = Mover(function, store, clock, keys, self, spawn)
        self.turns: Turns
        self.census: Census
        self.on_owned: Callable[[], None] = lambda: None
        self._function = function
        self._prefix = keys.shards(function)
        self._store = store
        self._clock = clock
        self._worker = worker
        self._spawn = spawn
        self._unread: dict[Shard, None] = {}
        self._older = 0  # reads in a row that left a shard to be read again
        self._left: Again | None = None
        self._lost: list[int] = []
        self._said: set[str] = set()

    # ------------------------------------------------------------------------------------------------------------- from callers

    def submit(self, step: Step) -> None:
        all_shards = self.all
        shard = all_shards[shard_of(step.session, len(all_shards))]
        status = shard.own.status
        if status is Status.OWNED:
            self.turns.offer(shard, step)
        elif status in HOLDING:
            shard.waiting.append(step)
        elif self._left is None and shard.own.behind(step.rev, self.watch.revision):
            # Whoever sent it here has a newer map than our watch: it may be right (rule *newest-map*).
            shard.waiting.append(step)
            shard.own.asked()
            self._read_soon(shard)
        else:
            self._refuse(shard, step)

    def owned(self) -> list[Shard]:
        return [shard for shard in self.all if shard.own.status in MINE]

    @property
    def settled(self) -> bool:
        """No shard is this worker's, and none is about to be."""
        return not any(shard.own.status in MINE or shard.own.status is Status.READING for shard in self.all)

    def stop(self) -> None:
        """No step starts any more, anywhere; running ones end. `leave` follows when they have."""
        for shard in self.all:
            if shard.own.status is Status.OWNED:
                shard.own.moving(Event.MOVE_DUE)

    def leave(self, again: Again) -> None:
        """Owns nothing from now on, whatever the map says."""
        self._left = again
        for shard in self.all:
            self._after(shard, shard.own.status, shard.own.moving(Event.LEFT))

    def _refuse(self, shard: Shard, step: Step) -> None:
        if self._left is not None:
            self.turns.refuse(step, self._left, f"worker {self._worker} is leaving")
        else:
            self.turns.refuse(step, Again.NOT_MINE, f"shard {shard.number} is not of worker {self._worker}")

    # ----------------------------------------------------------------------------------------------------------- from the store

    def listed(self, listing: Listing) -> None:
        found: dict[int, Item] = {}
        moves: dict[int, Item] = {}
        for item in listing.items:
            if (number := self.watch.shard_of(item.key)) is not None:
                found[number] = item
            elif (number := self.watch.move_of(item.key)) is not None:
                moves[number] = item
        for shard in self.all:
            move = moves.get(shard.number)
            self._move(shard, move, listing.revision)
            self.entry_read(shard, found.get(shard.number), listing.revision)

    def shard_changed(self, shard: int, item: Item | None, revision: int) -> None:
        if shard < len(self.all):
            it = self.all[shard]
            was = it.own.status
            self._after(it, was, it.own.seen(self._mine(self._entry(item)), revision))

    def move_changed(self, shard: int, item: Item | None, revision: int) -> None:
        if shard < len(self.all):
            self._move(self.all[shard], item, revision)

    def entry_read(self, shard: Shard, item: Item | None, revision: int) -> None:
        was = shard.own.status
        entry = self._entry(item)
        self._after(shard, was, shard.own.read(self._mine(entry), item.mod_revision if item else 0, entry.epoch if entry else 0, revision))

    def move_read(self, shard: Shard, item: Item | None, revision: int) -> None:
        self._move(shard, item, revision)

    def _mine(self, entry: state_pb2.ShardEntry | None) -> bool:
        return entry is not None and self._left is None and entry.owner == self._worker

    def _entry(self, item: Item | None) -> state_pb2.ShardEntry | None:
        return self._parsed(state_pb2.ShardEntry, item)

    def _parsed(self, kind: type[T], item: Item | None) -> T | None:
        """None also of one that cannot be read: said once, and nobody's until the leader has written another."""
        if item is None:
            return None
        try:
            return entries.parse(kind, item)
        except entries.Unreadable as error:
            if str(error) not in self._said:
                self._said.add(str(error))
                log.warning("an entry cannot be read", function=self._function.label, error=str(error))
            return None

    def _move(self, shard: Shard, item: Item | None, revision: int) -> None:
        if revision <= shard.move_known:
            return
        shard.move_known = revision
        move = self._parsed(state_pb2.Move, item)
        shard.move = (move.target, item.mod_revision) if move and item else None
        if move is None and shard.own.status is Status.STOPPING and self._left is None:
            shard.own.moving(Event.MOVE_GONE)
            if shard.quiet is not None:
                shard.quiet.set()
            self.resumed(shard)
        else:
            self.mover.consider(shard)

    def _after(self, shard: Shard, was: Status, emptied: bool) -> None:
        """Acts on a change of ownership."""
        status = shard.own.status
        if emptied:
            self.turns.empty(shard)
            self.census.forget(shard)
        if status is Status.OWNED:
            if was is not Status.OWNED or emptied:
                self.resumed(shard)
                self.on_owned()
        elif status is Status.READING:
            self._read_soon(shard)
        elif status is Status.LOST:
            shard.stopped_us = 0
            waiting, shard.waiting = shard.waiting, []
            for step in waiting:
                self._refuse(shard, step)
            if was in MINE:
                if not self._lost:
                    asyncio.get_running_loop().call_soon(self._say_lost)
                self._lost.append(shard.number)
                self.on_change()

    def _say_lost(self) -> None:
        """One line for all that went in one turn of the loop."""
        lost, self._lost = sorted(self._lost), []
        log.event("shards left", function=self._function.label, count=len(lost), first=lost[0], last=lost[-1])

    # ----------------------------------------------------------------------------------------------------------- from the mover

    def stopped(self, shard: Shard) -> None:
        self.on_change()

    def resumed(self, shard: Shard) -> None:
        """Owned, newly or again: what waited runs."""
        if shard.stopped_us:
            shard.stopped_us = 0
            self.on_change()
        for session in list(shard.sessions.values()):
            self.turns.pump(session)
        waiting, shard.waiting = shard.waiting, []
        for step in waiting:
            self.turns.offer(shard, step)
        self.mover.consider(shard)

    def handed_over(self, shard: Shard) -> None:
        self._after(shard, Status.HANDING, True)

    # ------------------------------------------------------------------------------------------------------------------- reading

    def _read_soon(self, shard: Shard) -> None:
        if not self._unread:
            asyncio.get_running_loop().call_soon(lambda: self._spawn(self._read(), "read of shard entries"))
        self._unread[shard] = None

    async def _read(self) -> None:
        if self._older:
            # Read and still not as new as the watch: once, that is a race. Again and again, the store is not the one that the watch knows.
            await self._clock.sleep(OLDER.after(self._older))
        unread, self._unread = self._unread, {}
        keys = [shard.entry_key for shard in unread]
        while True:
            try:
                if len(keys) < READ_ALL_FROM:
                    revision, items = await self._store.get(keys)
                else:
                    listing = await self._store.list(self._prefix)
                    revision, items = listing.revision, {item.key: item for item in listing.items}
                break
            except StoreError as error:
                log.warning("shard entries cannot be read", function=self._function.label, error=str(error))
                await self._clock.sleep(RETRY_SECONDS)
        for shard in unread:
            if shard.own.status is Status.READING:
                self.entry_read(shard, items.get(shard.entry_key), revision)
        self._older = self._older + 1 if any(shard.own.status is Status.READING for shard in unread) else 0
