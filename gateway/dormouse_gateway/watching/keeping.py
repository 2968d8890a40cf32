"""Keeps the routing table like the store.

`functions/` and `map/` are two watches; each applies its events in the store's order. Between them the order is not
kept, which costs at most a call that goes to the relay first.
"""

import asyncio
from collections.abc import Callable

from dormouse_core.keys import Keys
from dormouse_core.seams import Clock, Store, StoreError, WatchBatch
from dormouse_kit import listings, log
from dormouse_kit.following import follow

from dormouse_gateway import metrics
from dormouse_gateway.watching.table import Table

TELL_SECONDS = 60.0  # a key that cannot be read is not logged again for so long, however often it is written
TELL_KEYS = 1024


class Watching:
    """`on_change` gets the labels of functions that changed, after each batch and after each listing."""

    def __init__(self, table: Table, keys: Keys, store: Store, clock: Clock, on_change: Callable[[set[str]], None]) -> None:
        self._table = table
        self._keys = keys
        self._store = store
        self._clock = clock
        self._on_change = on_change
        self._heard: dict[str, float] = {}
        self._told: dict[str, float] = {}  # keys that cannot be read -> when that was logged

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            for prefix in (self._keys.functions, self._keys.maps):
                group.create_task(self._follow(prefix))

    def age(self) -> float:
        """Seconds since the store was last heard on the watch that is quieter; infinite before the first listing."""
        if len(self._heard) < 2:
            return float("inf")
        return self._clock.monotonic() - min(self._heard.values())

    async def _follow(self, prefix: str) -> None:
        async def heard(batch: WatchBatch) -> None:
            self._hear(prefix)
            changed, unreadable = self._table.apply(batch.events, prefix, batch.revision)
            self._tell(changed, unreadable)

        def ended(why: StoreError) -> None:
            log.event("the watch broke; it starts again", prefix=prefix, reason=str(why))

        await follow(self._store, self._clock, prefix, read=lambda: self._list(prefix), heard=heard, ended=ended)

    async def _list(self, prefix: str) -> int:
        revision, items = await listings.whole(self._store, prefix)
        self._hear(prefix)
        changed, unreadable = self._table.replace(prefix, items, revision)
        self._tell(changed, unreadable)
        return revision

    def _hear(self, prefix: str) -> None:
        self._heard[prefix] = self._clock.monotonic()

    def _tell(self, changed: set[str], unreadable: dict[str, str]) -> None:
        now = self._clock.monotonic()
        for key, reason in unreadable.items():
            metrics.UNREADABLE.inc()
            if now - self._told.pop(key, float("-inf")) > TELL_SECONDS:
                log.warning("an entry cannot be read", key=key, reason=reason)
                self._told[key] = now
                while len(self._told) > TELL_KEYS:
                    del self._told[next(iter(self._told))]
        if changed or self._table.complete:
            self._on_change(changed)
