"""Reads many records page by page, all at one revision, no faster than a given rate: for who counts or removes what lies in the store.

A page is about half a MiB whatever the records' size, so that a scan of large records neither fills memory nor keeps the store from others.
"""

from collections.abc import AsyncGenerator, Mapping

from dormouse_core.keys import Function, Keys
from dormouse_core.lifetimes import Due
from dormouse_core.seams import Clock, Listing, Store

PAGE_BYTES = 512 * 1024
FIRST_PAGE = 16
LARGEST_PAGE = 500
MOST_COPIES = 50
BYTES_PER_SECOND = 16 * 1024 * 1024
ITEM_BYTES = 512
"""What reading a record costs beside its bytes, in bytes."""
REQUEST_BYTES = 64 * 1024
"""What a request costs beside its records, in bytes: on a slow store its time is nearly all there is."""


def as_one(due: int, shards: int, counted: int, records: int, size: int) -> bool:
    """Whether the `due` of a function's `shards` are read as one range, with all others, and not range by range: where they are half of
    them, or where the others' records take less than the requests that are saved. `counted` shards are known to have `records` of `size`
    bytes."""
    if due < 2 or 2 * due >= shards:
        return due > 1
    each = (size + records * ITEM_BYTES) / counted if counted else float("inf")
    return (shards - due) * each <= due * REQUEST_BYTES


async def pages(
    store: Store, clock: Clock, prefix: str, rate: float = BYTES_PER_SECOND, revision: int = 0, *, moving: bool = False
) -> AsyncGenerator[Listing, None]:
    """At least one page, which may be empty. `revision`: at which to read; 0: now. `moving`: each page is of its own moment, so that no
    history has to be there for as long as this reads.

    StoreError: the rest cannot be read at that revision (the store was compacted, or is away)."""
    limit, start = FIRST_PAGE, ""
    while True:
        page = await store.list(prefix, start=start, limit=limit, revision=revision)
        yield page
        if not page.more or not page.items:
            return
        size = sum(len(item.value) + ITEM_BYTES for item in page.items)
        revision, start = 0 if moving else page.revision, page.items[-1].key
        limit = max(1, min(LARGEST_PAGE, PAGE_BYTES * len(page.items) // size))
        await clock.sleep(size / rate)


async def quarantined(store: Store, keys: Keys, function: Function, due: Mapping[int, Mapping[str, Due]]) -> dict[str, tuple[str, ...]]:
    """The broken copies of the sessions in `due` (by shard), by their records' keys. They go with their session. It is one read where the
    function has none, as nearly always."""
    found: dict[str, tuple[str, ...]] = {}
    if not (await store.list(keys.quarantines(function), limit=1, keys_only=True)).items:
        return found
    for shard, one in due.items():
        base, states = keys.quarantined(function, shard), keys.states(function, shard)
        for item in (await store.list(base, keys_only=True)).items:
            key = states + item.key[len(base) :].rpartition("/")[0]
            if key in one and len(found.get(key, ())) < MOST_COPIES:
                found[key] = (*found.get(key, ()), item.key)
    return found
