"""One linearizable read, then a watch from behind it; when the watch ends, for whatever reason, the same again.

A watch that ended is not continued: the history that it would continue from may be compacted away, or be another one by now (a store that
was restored), and only a read tells. The pause is for each reason: a store whose history is written and compacted faster than it is read
would otherwise be read without end.
"""

from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Final, NoReturn

from dormouse_core.seams import Clock, Store, StoreError, WatchBatch

RETRY_SECONDS: Final = 0.2


async def follow(
    store: Store,
    clock: Clock,
    prefix: str,
    *,
    read: Callable[[], Awaitable[int]],
    heard: Callable[[WatchBatch], Awaitable[None]],
    ended: Callable[[StoreError], None],
    seen: int | None = None,
) -> NoReturn:
    """Until cancelled.

    `read` takes what is under `prefix` and returns the revision at which it was so; it may raise StoreError. `heard` gets each batch from
    there on, in order. `ended` is told why either of them ended (Compacted: the watch's history is gone). `seen`: the revision of a read
    that was made before, so that it begins with the watch.
    """
    while True:
        try:
            revision = await read() if seen is None else seen
            async with aclosing(store.watch(prefix, revision + 1)) as batches:
                async for batch in batches:
                    await heard(batch)
            raise StoreError("the watch ended")
        except StoreError as why:
            ended(why)
        seen = None
        await clock.sleep(RETRY_SECONDS)
