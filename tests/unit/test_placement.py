"""The shard planner: every plan, and every interruption of a plan."""

from collections import Counter

import pytest
from dormouse_core import placement
from dormouse_core.placement import Cancel, Give, Move, Placement
from hypothesis import given
from hypothesis import strategies as st

NAMES = [f"w{n}" for n in range(6)]


@st.composite
def placements(draw: st.DrawFn) -> Placement:
    shards = draw(st.integers(0, 20))
    kinds = {name: draw(st.sampled_from(["ready", "leaving", "dead"])) for name in NAMES}
    owners = {s: o for s in range(shards) if (o := draw(st.sampled_from([*NAMES, ""])))}
    moves = {s: draw(st.sampled_from(NAMES)) for s in owners if draw(st.integers(0, 3)) == 0}
    moves = {s: t for s, t in moves.items() if t != owners[s]}
    ready = [n for n in NAMES if kinds[n] == "ready"]
    return Placement(shards, ready, [n for n in NAMES if kinds[n] == "leaving"], owners, moves)


def hand_over(seen: Placement, shard: int) -> Placement:
    """What is observed once the owner of `shard` has done its planned move."""
    owners, moves = dict(seen.owners), dict(seen.moves)
    owners[shard] = moves.pop(shard)
    return Placement(seen.shards, seen.ready, seen.leaving, owners, moves)


def settle(seen: Placement) -> Placement:
    """Applies plans and hands shards over until nothing is left to do."""
    for _ in range(200):
        plan = placement.plan(seen)
        if not plan and not seen.moves:
            return seen
        for transition in plan:
            placement.check(seen, transition)
            seen = placement.apply(seen, transition)
        for shard in list(seen.moves):
            seen = hand_over(seen, shard)
    raise AssertionError("the plans never end")


def counts(seen: Placement) -> Counter[str]:
    return Counter(dict.fromkeys(seen.ready, 0) | Counter(seen.owners.values()))


def assert_even(seen: Placement) -> None:
    if seen.ready:
        held = counts(seen)
        assert set(held) <= set(seen.ready)
        assert max(held.values()) - min(held.values()) <= 1
        assert len(seen.owners) == seen.shards


@given(placements())
def test_every_plan_ends_even_and_every_transition_keeps_the_invariant(seen: Placement) -> None:
    if seen.ready:
        assert_even(settle(seen))
    else:
        assert placement.plan(seen) == []


@given(placements())
def test_a_plan_interrupted_anywhere_is_gone_on_with(seen: Placement) -> None:
    """After each transition alone, planning from what is then seen asks for as many as were left: nothing that was done is undone.

    Which of two workers that have equally many gets the larger share may change.
    """
    plan = placement.plan(seen)
    for done, transition in enumerate(plan):
        placement.check(seen, transition)
        seen = placement.apply(seen, transition)
        again = placement.plan(seen)
        assert len(again) == len(plan) - done - 1
        assert transition.shard not in {t.shard for t in again}


@given(placements(), st.randoms())
def test_handoffs_in_any_order_between_plans_change_nothing(seen: Placement, random: object) -> None:
    for transition in placement.plan(seen):
        seen = placement.apply(seen, transition)
    shards = list(seen.moves)
    random.shuffle(shards)  # type: ignore[attr-defined]
    for shard in shards:
        seen = hand_over(seen, shard)
        assert placement.plan(seen) == []


@given(st.integers(1, 6), st.integers(0, 64))
def test_a_join_moves_only_the_joiners_share(workers: int, shards: int) -> None:
    before = settle(Placement(shards, NAMES[:workers], [], {}, {}))
    plan = placement.plan(Placement(shards, [*NAMES[:workers], "new"], [], before.owners, {}))
    assert all(isinstance(t, Move) and t.target == "new" for t in plan)
    assert len(plan) in (shards // (workers + 1), -(-shards // (workers + 1)))


@given(st.integers(2, 6), st.integers(0, 64), st.booleans())
def test_a_leave_moves_only_the_leavers_share(workers: int, shards: int, dies: bool) -> None:
    before = settle(Placement(shards, NAMES[:workers], [], {}, {}))
    leaver = NAMES[0]
    theirs = {s for s, o in before.owners.items() if o == leaver}
    plan = placement.plan(Placement(shards, NAMES[1:workers], [] if dies else [leaver], before.owners, {}))
    assert {t.shard for t in plan} == theirs
    assert all(isinstance(t, Give if dies else Move) for t in plan)


def test_a_planned_move_to_a_worker_that_died_is_planned_anew_or_taken_back() -> None:
    seen = Placement(2, ["a", "b"], [], {0: "a", 1: "a"}, {0: "dead"})
    assert [type(t) for t in placement.plan(seen)] in ([Move], [Move, Cancel], [Cancel, Move])
    assert placement.plan(Placement(1, ["a"], [], {0: "a"}, {0: "dead"})) == [Cancel(0)]


def test_shards_that_nobody_serves_come_first() -> None:
    seen = Placement(4, ["a", "b"], ["old"], {0: "old", 1: "dead", 2: "a"}, {})
    kinds = [type(t) for t in placement.plan(seen)]
    assert kinds == sorted(kinds, key=lambda kind: kind is not Give)


def test_a_move_in_a_rollout_goes_to_the_target_revision_alone() -> None:
    seen = Placement(8, ["new-1"], ["old-1", "old-2"], {n: f"old-{1 + n % 2}" for n in range(8)}, {})
    assert {t.target for t in placement.plan(seen) if isinstance(t, Move)} == {"new-1"}


def test_check_finds_a_shard_taken_from_the_living() -> None:
    seen = Placement(1, ["a", "b"], [], {0: "a"}, {})
    with pytest.raises(AssertionError, match="live owner"):
        placement.check(seen, Give(0, "b"))
    with pytest.raises(AssertionError, match="does not own"):
        placement.check(seen, Move(0, "b", "a"))
