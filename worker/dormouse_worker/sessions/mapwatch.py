"""A worker's view of its function's part of the map: shard entries and planned moves.

The list and the watch both report what they saw key by key, with the revision at which it was so; who listens keeps the newest of each
(rule *newest-map*).
"""

from typing import Protocol

from dormouse_core.keys import Function, Keys, number
from dormouse_core.seams import Clock, Item, Listing, Store, StoreError, WatchBatch
from dormouse_kit import log
from dormouse_kit.following import follow


class Listener(Protocol):
    def listed(self, revision: int, shards: dict[int, Item], moves: dict[int, Item]) -> None:
        """A linearizable read of the whole of ``map/{F}/``, by the numbers of shards."""

    def shard_changed(self, shard: int, item: Item | None, revision: int) -> None: ...

    def move_changed(self, shard: int, item: Item | None, revision: int) -> None: ...

    def heard(self, revision: int) -> None:
        """After changes, and without any: everything up to `revision` was seen."""


class MapWatch:
    def __init__(self, function: Function, store: Store, clock: Clock, keys: Keys, listener: Listener) -> None:
        self._listed = 0  # the revision of the newest list
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
        await follow(self._store, self._clock, self._prefix, read=self._list, heard=self._heard, ended=self._ended, seen=self._listed)

    async def _list(self) -> int:
        listing = await self._store.list(self._prefix)
        self._listed = listing.revision
        self._listener.listed(listing.revision, self._numbered(listing, self._shards), self._numbered(listing, self._moves))
        return listing.revision

    async def _heard(self, batch: WatchBatch) -> None:
        # Events first: a step that is refused "not mine" in between must not think that it has seen this revision.
        for event in batch.events:
            if (shard := self._number(event.key, self._shards)) is not None:
                self._listener.shard_changed(shard, event.item, event.mod_revision)
            elif (shard := self._number(event.key, self._moves)) is not None:
                self._listener.move_changed(shard, event.item, event.mod_revision)
        self._listener.heard(batch.revision)

    def _ended(self, why: StoreError) -> None:
        log.event("the watch broke; it starts again", prefix=self._prefix, reason=str(why))

    def _numbered(self, listing: Listing, prefix: str) -> dict[int, Item]:
        return {shard: item for item in listing.items if (shard := self._number(item.key, prefix)) is not None}

    def _number(self, key: str, prefix: str) -> int | None:
        return number(key[len(prefix) :]) if key.startswith(prefix) else None
