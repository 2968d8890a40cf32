"""A copy of one prefix of the store, kept by a watch.

What vanished while a watch was cut is told as deleted. Readers are told of every change once, and can wait until the copy holds their own
write.
"""

import asyncio
from collections.abc import Callable

from dormouse_core.seams import Clock, Item, Store, StoreError, WatchBatch
from dormouse_kit import listings, log
from dormouse_kit.following import follow


class Mirror:
    """`changed(key, before, after)` is called for each change, after `items` has it. `listed` is set by the first full listing."""

    def __init__(self, store: Store, clock: Clock, prefix: str, changed: Callable[[str, Item | None, Item | None], None]) -> None:
        self._store = store
        self._clock = clock
        self._changed = changed
        self._caught_up = asyncio.Condition()
        self.prefix = prefix
        self.items: dict[str, Item] = {}
        self.revision = 0
        self.listed = asyncio.Event()
        self.heard_at = clock.monotonic()

    async def run(self) -> None:
        """Never returns; the store's absence is waited out."""

        def ended(why: StoreError) -> None:
            log.event("the watch broke; it starts again", prefix=self.prefix, reason=str(why))

        await follow(self._store, self._clock, self.prefix, read=self._list, heard=self._hear, ended=ended)

    async def wait_for(self, revision: int, timeout: float = 2.0) -> bool:
        """Until the copy holds everything up to `revision`; False after `timeout` seconds."""
        deadline = self._clock.monotonic() + timeout
        async with self._caught_up:
            while self.revision < revision:
                left = deadline - self._clock.monotonic()
                if left <= 0:
                    return False
                try:
                    await asyncio.wait_for(self._caught_up.wait(), left)
                except TimeoutError:
                    return False
        return True

    async def _hear(self, batch: WatchBatch) -> None:
        self.heard_at = self._clock.monotonic()
        for event in batch.events:
            self._apply(event.key, event.item)
        await self._advance(batch.revision)

    async def _list(self) -> int:
        at, items = await listings.whole(self._store, self.prefix)
        found = {item.key: item for item in items}
        self.heard_at = self._clock.monotonic()
        for key in self.items.keys() - found.keys():
            self._apply(key, None)
        for key, item in found.items():
            before = self.items.get(key)
            if before is None or before.mod_revision != item.mod_revision:
                self._apply(key, item)
        self.revision = min(self.revision, at)  # lower where the store came back without its data: what it counts anew is not seen yet
        await self._advance(at)
        self.listed.set()
        return at

    def _apply(self, key: str, item: Item | None) -> None:
        before = self.items.get(key)
        if item is None:
            self.items.pop(key, None)
        else:
            self.items[key] = item
        self._changed(key, before, item)

    async def _advance(self, revision: int) -> None:
        async with self._caught_up:
            self.revision = max(self.revision, revision)
            self._caught_up.notify_all()
