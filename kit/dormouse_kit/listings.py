"""A whole prefix at one revision, in pages, so that no single request is large."""

from dormouse_core.seams import Compacted, Item, Store

PAGE = 1000


async def whole(store: Store, prefix: str, page: int = PAGE) -> tuple[int, list[Item]]:
    """(revision, every item under `prefix` at it). Raises StoreError.

    History is dropped within a second where much is written (`dormouse_core.storage`). A listing that loses its revision half-way is made
    in one piece: begun again in pages, it could lose that one, too, for ever.
    """
    listing = await store.list(prefix, limit=page)
    revision, items = listing.revision, list(listing.items)
    try:
        while listing.more:
            listing = await store.list(prefix, start=items[-1].key, limit=page, revision=revision)
            items += listing.items
    except Compacted:
        listing = await store.list(prefix)
        revision, items = listing.revision, list(listing.items)
    return revision, items
