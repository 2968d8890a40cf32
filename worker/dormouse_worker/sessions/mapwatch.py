"""A worker's view of its function's part of the map: shard entries and planned moves.

The list and the watch both report what they saw key by key, with the revision at which it was so; who listens keeps the newest of each
(rule *newest-map*). `revision`: everything up to here was seen.
"""

from typing import Protocol

from dormouse_core.keys import Function, Keys, number
from dormouse_core.seams import Clock, Item, Listing, Store, StoreError, WatchBatch
from dormouse_kit import log
from dormouse_kit.following import follow


class Listener(Protocol):
    def listed(self, listing: Listing) -> None:
        """A linearizable read of the whole of ``map/{F}/``."""

    def shard_changed(self, shard: int, item: Item | None, revision: int) -> None: ...

    def move_changed(self, shard: int, item: Item | None, revision: int) -> None: ...


class MapWatch:
    def __init__(self, function: Function, store: Store, clock: Clock, keys: Keys, listener: Listener) -> None:
        self.revision = 0
        self._prefix = keys.map(function)
        self._shards = keys.shards(function)
        self._moves = keys.moves(function)
        self._store = store
        self._clock = clock
        self._listener = listener

    async def start(self) -> None:
        """The first list; raises StoreError."""
        await self._list()

    async def run(self) -> None:
        """Watches from behind the first list, until it is cancelled."""
        await follow(self._store, self._clock, self._prefix, read=self._list, heard=self._heard, ended=self._ended, seen=self.revision)

    async def _list(self) -> int:
        listing = await self._store.list(self._prefix)
        self.revision = listing.revision  # lower where the store was restored
        self._listener.listed(listing)
        return listing.revision

    async def _heard(self, batch: WatchBatch) -> None:
        # Events first: a step that is refused "not mine" in between must not think that it has seen this revision.
        for event in batch.events:
            shard = self.shard_of(event.key)
            if shard is not None:
                self._listener.shard_changed(shard, event.item, event.mod_revision)
            else:
                shard = self.move_of(event.key)
                if shard is not None:
                    self._listener.move_changed(shard, event.item, event.mod_revision)
        self.revision = max(self.revision, batch.revision)

    def _ended(self, why: StoreError) -> None:
        log.event("the watch was cut", prefix=self._prefix, reason=str(why))

    def shard_of(self, key: str) -> int | None:
        return number(key[len(self._shards) :]) if key.startswith(self._shards) else None

    def move_of(self, key: str) -> int | None:
        return number(key[len(self._moves) :]) if key.startswith(self._moves) else None
