"""Counting a step that changes only a record's size and times gives what counting it anew gives; removals fit into transactions."""

import itertools

from dormouse_core.lifetimes import Batch, Due, Tally, waves
from dormouse_core.records import Glance
from dormouse_kit import scanning
from hypothesis import given
from hypothesis import strategies as st

TTL, WAIT = 2_560_000, 40_000_000
TIMES = st.integers(0, 60_000_000)
GLANCES = st.builds(Glance, st.booleans(), TIMES, TIMES, st.integers(1, 500))
STEPS = st.lists(st.one_of(st.tuples(st.integers(0, 3), GLANCES), TIMES), max_size=40)


def figures(tally: Tally) -> tuple[object, ...]:
    return tally.records, tally.bytes, tally.live, tally.live_bytes, tally.earliest_us()


@given(STEPS)
def test_the_short_way_counts_the_same(steps: list[tuple[int, Glance] | int]) -> None:
    short, long = Tally(TTL, WAIT), Tally(TTL, WAIT)
    there: dict[int, Glance] = {}
    now = 0
    for step in steps:
        if isinstance(step, int):
            now = max(now, step)
            left = short.live - short.outlived(now)[0], short.live_bytes - short.outlived(now)[1]
            short.advance(now)
            long.advance(now)
            assert left == (short.live, short.live_bytes)
        else:
            record, after = step
            before = there.get(record)
            if before is not None and short.stays(before, after):
                short.resize(after, after.size - before.size)
            else:
                short.change(before, after)
            long.change(before, after)
            there[record] = after
        assert figures(short) == figures(long)


def test_most_steps_go_the_short_way() -> None:
    """Of a session that is stepped each second for an hour, with the default ttl of a day."""
    tally = Tally(86_400_000_000, 600_000_000)
    glances = [Glance(False, second * 1_000_000, second * 1_000_000 + 86_400_000_000, 100) for second in range(3600)]
    assert sum(tally.stays(*pair) for pair in itertools.pairwise(glances)) > 3500


# ------------------------------------------------------------------------------------------------------------------------ removals

DUE = st.dictionaries(st.integers(0, 63), st.integers(1, 300), max_size=64)
"""Shard -> records that are due in it."""


def batched(due: dict[int, int], copies: int, most: int) -> tuple[dict[int, dict[str, Due]], list[list[Batch]]]:
    records = {shard: {f"{shard}/{n}": Due(n + 1, Glance(True, 1, 1, 100)) for n in range(count)} for shard, count in due.items()}
    quarantined = {key: ("copy",) * copies for one in records.values() for key in list(one)[:2]}
    return records, waves(records, quarantined, most)


@given(DUE, st.integers(0, 50))
def test_each_record_is_removed_once_and_removals_under_way_together_have_no_shard_in_common(due: dict[int, int], copies: int) -> None:
    records, found = batched(due, copies, 119)
    parts = [(shard, part) for wave in found for batch in wave for shard, part in batch.items()]
    assert sum(len(part) for _, part in parts) == sum(due.values())
    again: dict[int, dict[str, Due]] = {shard: {} for shard in due}
    for shard, part in parts:
        again[shard].update(part)
    assert again == records
    for wave in found:
        shards = [shard for batch in wave for shard in batch]
        assert len(shards) == len(set(shards))
        for batch in wave:
            keys = [key for part in batch.values() for key in part]
            assert 2 * len(batch) + len(keys) + copies * sum(key.endswith(("/0", "/1")) for key in keys) <= 119


def test_a_few_records_in_each_of_many_shards_take_few_transactions() -> None:
    _, (wave,) = batched(dict.fromkeys(range(64), 4), 0, 120)
    assert len(wave) == 4, "not 64"
    _, found = batched({1: 1000}, 0, 120)
    assert [len(wave) for wave in found] == [1] * 9, "one after the other: each raises the floor that the next compares"


def test_shards_are_read_as_one_range_where_that_saves_requests_and_not_where_it_reads_others_records() -> None:
    assert scanning.as_one(32, 64, 64, 10**6, 10**9), "half of them"
    assert not scanning.as_one(1, 64, 64, 10, 1000)
    assert scanning.as_one(6, 64, 64, 371, 100_000), "all of it is a page"
    assert not scanning.as_one(31, 64, 64, 10**6, 10**9)
    assert not scanning.as_one(6, 64, 0, 0, 0), "nobody knows how large they are"
