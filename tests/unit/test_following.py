"""Read, then watch, and the same again: what is read and heard, in which order, and how often."""

import asyncio
from collections.abc import AsyncGenerator

import pytest
from dormouse_core.seams import Compacted, StoreError, WatchBatch
from dormouse_kit.following import RETRY_SECONDS, follow
from dormouse_testing import simloop
from dormouse_testing.clock import SimClock


class Script:
    """Reads and watches as they are written: a revision or an error; revisions of batches and at last an error."""

    def __init__(self, reads: list[int | StoreError], watches: list[list[int | StoreError]]) -> None:
        self.said: list[object] = []
        self._reads, self._watches = reads, watches
        self.closed = 0

    async def read(self) -> int:
        found = self._reads.pop(0)
        if isinstance(found, StoreError):
            raise found
        self.said.append(("read", found))
        return found

    async def watch(self, prefix: str, revision: int) -> AsyncGenerator[WatchBatch, None]:
        try:
            self.said.append(("watch", revision))
            if not self._watches:
                await asyncio.Event().wait()
            for step in self._watches.pop(0):
                if isinstance(step, StoreError):
                    raise step
                yield WatchBatch(step)
        finally:
            self.closed += 1

    async def heard(self, batch: WatchBatch) -> None:
        self.said.append(batch.revision)

    def ended(self, why: StoreError) -> None:
        self.said.append(str(why))


def play(script: Script, seconds: float, seen: int | None = None) -> list[object]:
    async def main() -> None:
        clock = SimClock()
        loop = follow(script, clock, "map/", read=script.read, heard=script.heard, ended=script.ended, seen=seen)  # type: ignore[arg-type]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(loop, seconds)

    simloop.run(main())
    return script.said


def test_what_a_watch_missed_is_read_and_the_watch_goes_on_behind_it() -> None:
    script = Script([7, 20, 3], [[8, 9, StoreError("cut")], [Compacted("history is gone")]])
    assert play(script, 5) == [
        ("read", 7),
        ("watch", 8),
        8,
        9,
        "cut",
        ("read", 20),
        ("watch", 21),
        "history is gone",
        ("read", 3),
        ("watch", 4),
    ]
    assert script.closed == 3


def test_a_read_that_fails_is_made_again_and_no_watch_begins_before_it() -> None:
    assert play(Script([StoreError("away"), StoreError("away"), 4], []), 5) == ["away", "away", ("read", 4), ("watch", 5)]


def test_a_watch_that_just_ends_is_like_one_that_was_cut() -> None:
    assert play(Script([4, 6], [[5]]), 5) == [("read", 4), ("watch", 5), 5, "the watch ended", ("read", 6), ("watch", 7)]


def test_after_a_read_of_before_it_begins_with_the_watch_and_reads_the_next_time() -> None:
    assert play(Script([6], [[StoreError("cut")]]), 5, seen=4) == [("watch", 5), "cut", ("read", 6), ("watch", 7)]


@pytest.mark.parametrize("error", [Compacted("restored"), StoreError("away")])
def test_a_store_whose_watches_end_at_once_is_not_read_without_end(error: StoreError) -> None:
    script = Script([1] * 10_000, [[error]] * 10_000)
    reads = [said for said in play(script, 10) if said == ("read", 1)]
    assert 2 < len(reads) <= 10 / RETRY_SECONDS + 1
