"""A worker's view of its function's part of the map: shard entries and planned moves.

One linearizable list, then a watch from behind it; when the watch ends, for whatever reason, the same again. Both report what they saw key
by key, with the revision at which it was so; who listens keeps the newest of each (rule *newest-map*). `revision`: everything up to
here was seen.
"""

from collections.abc import Callable
from typing import Protocol

from dormouse_core.keys import Function, Keys
from dormouse_core.seams import Clock, Compacted, Item, Listing, Store, StoreError

RETRY_SECONDS = 0.2


class Listener(Protocol):
    def listed(self, listing: Listing) -> None:
        """A linearizable read of the whole of ``map/{F}/``."""

    def shard_changed(self, shard: int, item: Item | None, revision: int) -> None: ...

    def move_changed(self, shard: int, item: Item | None, revision: int) -> None: ...


class MapWatch:
    def __init__(self, function: Function, store: Store, clock: Clock, keys: Keys, listener: Listener) -> None:
        self.revision = 0
        self.on_trouble: Callable[[str], None] = lambda text: None
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
        """Watches until it is cancelled."""
        while True:
            try:
                await self._follow()
            except Compacted:
                pass  # history that was not seen is gone: list anew
            except StoreError as error:
                self.on_trouble(f"the watch of {self._prefix} ended: {error}")
            while True:
                await self._clock.sleep(RETRY_SECONDS)
                try:
                    await self._list()
                    break
                except StoreError as error:
                    self.on_trouble(f"{self._prefix} cannot be listed: {error}")

    async def _list(self) -> None:
        listing = await self._store.list(self._prefix)
        self.revision = listing.revision  # lower where the store was restored
        self._listener.listed(listing)

    async def _follow(self) -> None:
        watch = self._store.watch(self._prefix, self.revision + 1)
        async for batch in watch:
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

    def shard_of(self, key: str) -> int | None:
        return _number(key, self._shards)

    def move_of(self, key: str) -> int | None:
        return _number(key, self._moves)


def _number(key: str, prefix: str) -> int | None:
    """The shard's number behind `prefix`; None for other keys, and for a key that nobody of ours wrote."""
    if not key.startswith(prefix):
        return None
    text = key[len(prefix) :]
    return int(text) if text.isascii() and text.isdigit() else None
