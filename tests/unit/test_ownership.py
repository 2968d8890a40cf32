"""A shard's ownership: the table, and what only gets newer."""

import itertools

import pytest
from dormouse_core.sessions.ownership import HOLDING, MINE, TABLE, Event, OutOfOrder, Ownership, Status
from hypothesis import given
from hypothesis import strategies as st


def owned(fence: int = 5) -> Ownership:
    own = Ownership()
    own.seen(True, fence)
    assert own.status is Status.READING
    own.read(True, fence, 1, fence)
    return own


def test_a_shard_is_owned_after_a_read_and_not_by_a_watch() -> None:
    own = Ownership()
    assert not own.seen(True, 5)
    assert own.status is Status.READING
    own.read(True, 5, 3, 9)
    assert (own.status, own.fence, own.epoch) == (Status.OWNED, 5, 3)


def test_what_is_older_than_what_is_known_counts_for_nothing() -> None:
    own = owned(5)
    assert not own.seen(False, 4)
    assert not own.read(False, 4, 1, 4)
    assert own.status is Status.OWNED


def test_a_store_that_was_restored_and_written_since_is_believed() -> None:
    """In one history no read shows an older entry than one that was seen before."""
    own = owned(50)
    assert own.read(True, 40, 3, 90), "whatever is in memory is of the history that is gone"
    assert (own.status, own.fence) == (Status.OWNED, 40)
    assert own.read(False, 45, 4, 95)
    assert own.status is Status.LOST


def test_a_store_that_was_restored_does_not_leave_it_reading_for_ever() -> None:
    own = Ownership()
    own.seen(True, 50)
    own.read(True, 40, 3, 60)
    assert (own.status, own.fence) == (Status.OWNED, 40)


def test_a_read_older_than_the_watch_leaves_it_to_be_read_again() -> None:
    own = Ownership()
    own.seen(True, 7)
    own.read(True, 5, 1, 6)
    assert (own.status, own.fence) == (Status.READING, 0)


def test_a_deletion_is_as_new_as_its_revision() -> None:
    own = owned(5)
    assert own.read(False, 0, 0, 8)
    assert own.status is Status.LOST
    own.seen(True, 8)
    assert own.status is Status.LOST
    own.seen(True, 9)
    assert own.status is Status.READING


def test_any_change_of_the_fence_empties_the_memory_even_back_to_the_same_owner() -> None:
    assert owned().seen(False, 6)
    own = owned()
    assert own.seen(True, 6)
    assert own.status is Status.READING
    own = owned()
    assert own.read(True, 6, 2, 6)
    assert (own.status, own.fence) == (Status.OWNED, 6)


def test_confirming_the_same_fence_changes_nothing() -> None:
    own = owned()
    assert not own.read(True, 5, 1, 12)
    assert own.status is Status.OWNED


def test_a_handoff() -> None:
    own = owned()
    for event, status in ((Event.MOVE_DUE, Status.STOPPING), (Event.QUIET, Status.HANDING)):
        assert not own.moving(event)
        assert own.status is status
    assert own.moving(Event.HANDED)
    assert own.status is Status.LOST


def test_a_handoff_that_failed_leaves_the_owner_serving() -> None:
    own = owned()
    own.moving(Event.MOVE_DUE)
    own.moving(Event.QUIET)
    assert not own.read(True, 5, 1, 20)
    assert own.status is Status.OWNED


def test_a_new_fence_while_moving_ends_the_move() -> None:
    for events in ([Event.MOVE_DUE], [Event.MOVE_DUE, Event.QUIET]):
        own = owned()
        for event in events:
            own.moving(event)
        assert own.read(True, 6, 2, 6)
        assert own.status is Status.OWNED


def test_a_plan_taken_back() -> None:
    own = owned()
    own.moving(Event.MOVE_DUE)
    assert not own.moving(Event.MOVE_GONE)
    assert own.status is Status.OWNED


def test_who_may_know_better() -> None:
    own = Ownership()
    assert own.behind(7, 6)
    assert not own.behind(7, 7)
    own.read(False, 0, 0, 8)
    assert not own.behind(8, 6)
    assert own.behind(9, 6)
    assert not own.behind(0, 0), "a caller without a map knows nothing"


def test_out_of_order_is_an_error_of_ours() -> None:
    with pytest.raises(OutOfOrder):
        Ownership().moving(Event.QUIET)


def test_the_table_can_always_lose_and_always_come_back() -> None:
    for status in Status:
        assert TABLE[status][Event.LEFT] is Status.LOST
        assert TABLE[status][Event.SEEN_OTHER] is Status.LOST
        assert TABLE[status][Event.SEEN_MINE] is Status.READING
    assert not HOLDING & {Status.OWNED, Status.LOST, Status.UNKNOWN}
    assert Status.READING not in MINE


observations = st.lists(
    st.tuples(st.sampled_from(["seen", "read"]), st.booleans(), st.integers(1, 8)),
    max_size=30,
)


@given(observations)
def test_the_fence_only_rises_and_is_never_one_that_was_superseded(story: list[tuple[str, bool, int]]) -> None:
    """An entry has one owner at each revision; observations of it come in any order."""
    owner_at = {n: n % 3 != 0 for n in range(9)}
    own = Ownership()
    fences = [0]
    for kind, _, mod in story:
        mine = owner_at[mod]
        newest = max(own.known, mod)
        if kind == "seen":
            own.seen(mine, mod)
        else:
            own.read(mine, mod, 1, mod)
        if own.status in MINE:
            fences.append(own.fence)
            assert own.fence == own.known == newest
            assert owner_at[own.fence]
    assert all(a <= b for a, b in itertools.pairwise(fences))
