"""How the first of several attempts to connect is found: each begins beside those that did not answer yet.

Packets of a new pod may be dropped until whoever enforces NetworkPolicies has heard of its address, for up to a second; the kernel sends a
dropped SYN again after one second, then after two more. An attempt of its own, soon after, is there as soon as the way is open. The same
attempt finds the member that answers, where the first of several does not (docs/decisions/0090-attempts-side-by-side.md).
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from dormouse_core.backoff import Backoff

Found = TypeVar("Found")

BESIDE: Final = Backoff(0.1, 0.4)  # until the next attempt begins beside one that did not answer
BACKOFF: Final = Backoff(0.05, 1.0)  # after every place has failed


async def first_of(
    attempt: Callable[[int], Awaitable[Found | None]], places: int, place: int, give_back: Callable[[Found], Awaitable[None]]
) -> tuple[int, Found]:
    """(place, what `attempt` found there); without end until one finds something.

    `attempt(place)`, 0 <= place < places, ends by itself; None: it failed. The first attempt is at `place`. What an attempt raises is
    raised. `give_back` gets what was found too late to be taken.
    """
    running: dict[asyncio.Task[Found | None], int] = {}
    beside, backoff, failed = BESIDE.pauses(), BACKOFF.pauses(), 0
    try:
        while True:
            running[asyncio.ensure_future(attempt(place % places))] = place % places
            place += 1
            done, _ = await asyncio.wait(running, timeout=next(beside), return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                if (found := task.result()) is not None:
                    return running.pop(task), found
                del running[task]
                failed += 1
            if failed >= places:
                failed = 0
                await _pause(running, next(backoff))
    finally:
        await _end(running, give_back)


async def _pause(running: "dict[asyncio.Task[Found | None], int]", seconds: float) -> None:
    if running:
        await asyncio.wait(running, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    else:
        await asyncio.sleep(seconds)


async def _end(running: "dict[asyncio.Task[Found | None], int]", give_back: Callable[[Found], Awaitable[None]]) -> None:
    for task in running:
        task.cancel()
    if not running:
        return
    await asyncio.wait(running)
    for task in running:
        if not task.cancelled() and task.exception() is None and (late := task.result()) is not None:
            await give_back(late)
