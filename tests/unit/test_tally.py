"""Counting a step that changes nothing but a record's size and times gives what counting it anew gives."""

import itertools

from dormouse_core.lifetimes import Tally
from dormouse_core.records import Glance
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
            short.advance(now)
            long.advance(now)
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
