"""A copy of one prefix of the store, kept by a watch.

A watch may be cut, and the history that it would continue from may be compacted away, or be another one by now (a store that was
restored): so a watch that ended is not continued, the prefix is listed again, and what vanished meanwhile is told as deleted. Readers are
told of every change once, and can wait until the copy holds their own write.
"""

import asyncio
from collections.abc import Callable

from dormouse_core.seams import Clock, Compacted, Item, Store, StoreError
from dormouse_kit import listings, log


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
        while True:
            try:
                await self._list()
                async for batch in self._store.watch(self.prefix, self.revision + 1):
                    self.heard_at = self._clock.monotonic()
                    for event in batch.events:
                        self._apply(event.key, event.item)
                    await self._advance(batch.revision)
            except Compacted:
                continue
            except StoreError as error:
                log.event("the watch was cut", prefix=self.prefix, error=str(error))
                await self._clock.sleep(0.2)

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

    async def _list(self) -> None:
        at, items = await listings.whole(self._store, self.prefix)
        found = {item.key: item for item in items}
        self.heard_at = self._clock.monotonic()
        for key in self.items.keys() - found.keys():
            self._apply(key, None)
        for key, item in found.items():
            before = self.items.get(key)
            if before is None or before.mod_revision != item.mod_revision:
                self._apply(key, item)
        self.revision = min(self.revision, at)  # lower where the store came back without its data: else the next watch would fail at once
        await self._advance(at)
        self.listed.set()

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
