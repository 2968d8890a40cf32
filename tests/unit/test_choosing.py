"""Which workers take calls and shards, and when a call that is held gives up."""

import math
from dataclasses import dataclass

from dormouse_core import choosing
from dormouse_core.errors import Code
from dormouse_core.holding import Patience
from dormouse_core.spec.durations import Duration
from hypothesis import given
from hypothesis import strategies as st


@dataclass(frozen=True)
class Worker:
    name: str
    revision: str


OLD, NEW, OTHER = Worker("a", "r1"), Worker("b", "r2"), Worker("c", "r0")


def test_calls_go_to_the_wanted_revision_and_until_it_is_proved_to_the_one_before() -> None:
    assert choosing.takers([OLD, NEW, OTHER], "r2", "r1") == [NEW]
    assert choosing.takers([OLD, OTHER], "r2", "r1") == [OLD]
    assert choosing.takers([OLD, OTHER], "r2", "r2") == [], "never back once it is proved"
    assert choosing.takers([OLD], "r2", "") == []


def test_shards_go_to_the_wanted_revision_and_until_it_is_proved_to_whoever_serves() -> None:
    assert choosing.receivers([OLD, NEW], "r2", is_proved=False) == [NEW]
    assert choosing.receivers([OLD, OTHER], "r2", is_proved=False) == [OLD, OTHER]
    assert choosing.receivers([OLD, OTHER], "r2", is_proved=True) == []


@given(st.dictionaries(st.text(max_size=3), st.integers(0, 5), min_size=1))
def test_the_least_busy_have_fewest_calls(calls: dict[str, int]) -> None:
    found = choosing.least_busy(calls)
    assert found
    assert {calls[name] for name in found} == {min(calls.values())}
    assert all(count > min(calls.values()) for name, count in calls.items() if name not in found)


def test_a_held_call_gives_up_at_its_deadline_or_at_the_hold_limit() -> None:
    patience = Patience(Duration("10s"), 105.0)
    assert patience.left(100.0, 0.0) == 5.0
    assert patience.left(100.0, 8.0) == 2.0
    assert patience.refusal(104.9, 9.9, late="late", long="long") is None
    for now, waited, code, text in ((105.0, 9.0, Code.DEADLINE_EXCEEDED, "late"), (104.0, 10.0, Code.UNAVAILABLE, "long")):
        refused = patience.refusal(now, waited, late="late", long="long")
        assert refused is not None
        assert (refused.code, refused.message) == (code, text)
    assert Patience(Duration("10s"), math.inf).left(0.0, 4.0) == 6.0
