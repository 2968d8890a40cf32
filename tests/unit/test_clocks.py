"""Offsets, the reference, and when a clock is good, off or unknown."""

import pytest
from dormouse_core import clocks
from dormouse_core.clocks import BOUND_US, Clocks, Rising, Skew, Standing, reference
from dormouse_core.limits import CLOCK_SKEW_SECONDS, CLOCK_TRUST_SECONDS
from dormouse_testing.clock import ManualClock
from hypothesis import given
from hypothesis import strategies as st

HOUR = 3_600_000_000


def measured(clock: ManualClock, leader: ManualClock, reference_us: int = 0, agreed: int = 3, skew: Skew | None = None) -> Skew:
    skew = skew or Skew(clock)
    skew.heard(skew.mark(), round(leader.now() * 1e6), reference_us, agreed)
    return skew


# ------------------------------------------------------------------------------------------------------------------- the reference


def test_two_clocks_cannot_say_which_is_wrong() -> None:
    assert reference([0, HOUR]) is None
    assert reference([0, BOUND_US + 1]) is None
    assert reference([0]) is None


def test_two_clocks_that_agree_are_good() -> None:
    assert reference([0, BOUND_US]) == clocks.Reference(BOUND_US // 2, 2)


@pytest.mark.parametrize("offsets", [[0, -HOUR, -HOUR], [0, 0, HOUR], [0, 3, 5, HOUR]])
def test_one_wrong_clock_moves_no_reference(offsets: list[int]) -> None:
    found = reference(offsets)
    assert found is not None
    assert found.agreed == len(offsets) - 1
    assert min(abs(found.us - o) for o in offsets) <= 5


def test_clocks_in_two_camps_cannot_say() -> None:
    assert reference([0, 0, HOUR, HOUR]) is None
    assert reference([0, HOUR, 2 * HOUR]) is None


@given(
    st.integers(-HOUR, HOUR),
    st.lists(st.integers(-BOUND_US // 2, BOUND_US // 2), min_size=2, max_size=9),
    st.lists(st.integers(-10 * HOUR, 10 * HOUR), max_size=8),
)
def test_a_majority_that_agrees_is_believed_and_none_of_it_is_called_off(true: int, good: list[int], bad: list[int]) -> None:
    bad = bad[: len(good) - 1]
    found = reference([true + g for g in good] + [true + b for b in bad])
    assert found is not None
    assert all(abs(true + g - found.us) <= BOUND_US for g in good)
    assert abs(found.us - true) <= BOUND_US // 2


def test_a_measure_is_settled_by_a_short_way_or_by_several_looks() -> None:
    clock, leader = ManualClock(), ManualClock()
    skew = Skew(clock)

    def look(seconds: float) -> None:
        """All of them on the way there, as while a connection is made."""
        mark = skew.mark()
        for each in (clock, leader):
            each.advance(seconds)
        skew.heard(mark, round(leader.now() * 1e6), 0, 3)

    assert not skew.settled
    look(0.2)
    assert (skew.settled, skew.deviation_us()) == (False, -100_000), "as far off as half of the way"
    look(0.001)
    assert (skew.settled, skew.deviation_us()) == (True, -500)
    skew.meet()
    assert not skew.settled, "another leader is measured again"
    for _ in range(clocks.FIRST_SAMPLES):
        assert not skew.settled
        look(0.2)
    assert skew.settled


def test_workers_of_one_function_have_one_vote() -> None:
    clock = ManualClock()
    votes = Clocks(clock)
    for n in range(9):
        votes.report(f"w{n}", "function", HOUR)
    votes.report("a1", "a1", 0)
    clock.advance(clocks.GATHER_SECONDS)
    assert votes.reference() == clocks.Reference(0, 2)


def test_who_is_not_heard_or_does_not_know_has_no_vote() -> None:
    clock = ManualClock()
    votes = Clocks(clock)
    clock.advance(clocks.GATHER_SECONDS)
    assert votes.reference() is None
    votes.report("a2", "a2", 1)
    assert votes.reference() is not None
    votes.report("a2", "a2", None)
    assert votes.reference() is None
    votes.report("a2", "a2", 1)
    votes.forget("a2")
    assert votes.reference() is None
    votes.report("a2", "a2", 1)
    clock.advance(clocks.HEARD_SECONDS + 1)
    assert votes.reference() is None


# ------------------------------------------------------------------------------------------------------------------------ one clock


def test_unknown_is_neither_good_nor_off() -> None:
    skew = Skew(ManualClock(skew=3600.0))
    assert skew.standing() is Standing.UNKNOWN
    assert skew.now_us() is None
    assert not skew.off
    assert skew.offset_us() is None
    assert skew.correction_us() == 0


def test_without_a_reference_nothing_is_said() -> None:
    skew = measured(ManualClock(skew=3600.0), ManualClock(), agreed=0)
    assert skew.offset_us() == HOUR
    assert skew.standing() is Standing.UNKNOWN


def test_good_and_its_time_is_the_references() -> None:
    clock = ManualClock(skew=4.9)
    skew = measured(clock, ManualClock())
    assert skew.standing() is Standing.GOOD
    assert skew.now_us() == round(ManualClock().now() * 1e6)


@pytest.mark.parametrize("sign", [1, -1])
def test_how_far_a_clock_may_be_off(sign: int) -> None:
    for beyond, standing in ((-0.1, Standing.GOOD), (0.1, Standing.OFF)):
        clock = ManualClock(skew=sign * (CLOCK_SKEW_SECONDS + beyond))
        assert measured(clock, ManualClock()).standing() is standing


def test_off_and_its_timestamps_are_right_all_the_same() -> None:
    skew = measured(ManualClock(skew=-3600.0), ManualClock())
    assert skew.off
    assert skew.now_us() is None
    assert skew.best_us() == round(ManualClock().now() * 1e6)
    assert "3600.0 s behind the others' median" in skew.text()


def test_a_wrong_leader_is_seen_through() -> None:
    """Two others say that the leader is an hour ahead: the reference is an hour behind it."""
    skew = measured(ManualClock(), ManualClock(skew=3600.0), reference_us=-HOUR)
    assert skew.standing() is Standing.GOOD
    assert skew.now_us() == round(ManualClock().now() * 1e6)


def test_a_clock_that_jumps_is_unknown_until_the_leader_answers() -> None:
    clock, leader = ManualClock(), ManualClock()
    skew = measured(clock, leader)
    clock.skew = 3600.0
    assert skew.standing() is Standing.UNKNOWN
    assert skew.best_us() == round(leader.now() * 1e6), "a timestamp follows no jump"
    measured(clock, leader, skew=skew)
    assert skew.off
    clock.skew = 0.0
    assert skew.standing() is Standing.UNKNOWN
    measured(clock, leader, skew=skew)
    assert skew.standing() is Standing.GOOD


def test_all_clocks_of_one_machine_that_jump_together_stop_nobody() -> None:
    clock = ManualClock()
    skew = measured(clock, clock)
    clock.skew = 3600.0
    assert not skew.off
    measured(clock, clock, skew=skew)
    assert skew.standing() is Standing.GOOD


def test_who_comes_back_from_off_comes_back_for_good() -> None:
    clock, leader = ManualClock(skew=5.5), ManualClock()
    skew = measured(clock, leader)
    assert skew.off
    clock.skew = 4.5
    assert measured(clock, leader, skew=skew).off
    clock.skew = 3.5
    assert not measured(clock, leader, skew=skew).off


def test_without_a_leader_a_measure_is_good_for_its_time() -> None:
    clock = ManualClock()
    skew = measured(clock, ManualClock())
    clock.advance(CLOCK_TRUST_SECONDS - 1)
    assert skew.standing() is Standing.GOOD
    clock.advance(2)
    assert skew.standing() is Standing.UNKNOWN
    assert skew.now_us() is None


def test_the_sample_with_the_shortest_way_counts() -> None:
    clock, leader = ManualClock(), ManualClock()
    skew = Skew(clock)
    for way, ahead in ((0.2, 0.08), (0.001, 0.0002), (0.5, -0.2)):
        mark = skew.mark()
        clock.advance(way)
        leader.advance(way)
        skew.heard(mark, round((leader.now() - way / 2 + ahead) * 1e6), 0, 3)
    assert abs(skew.offset_us() or HOUR) <= 500


@given(st.lists(st.tuples(st.floats(0, 0.3), st.floats(0, 1)), min_size=1, max_size=clocks.SAMPLES), st.floats(-4, 4))
def test_an_offset_is_wrong_by_half_the_shortest_way_at_most(ways: list[tuple[float, float]], true: float) -> None:
    clock, leader = ManualClock(skew=true), ManualClock()
    skew = Skew(clock)
    shortest = 1.0
    for way, share in ways:
        shortest = min(shortest, way)
        mark = skew.mark()
        clock.advance(way)
        leader.advance(way)
        skew.heard(mark, round((leader.now() - way * share) * 1e6), 0, 3)
    offset = skew.offset_us()
    assert offset is not None
    assert abs(offset - true * 1e6) <= shortest * 5e5 + 5


def led_by_a_right_one_after_a_wrong_one(meets: bool) -> clocks.Reference | None:
    """What a new leader finds of two that measured themselves beside the one of before, an hour ahead."""
    others, right, wrong = [Skew(ManualClock()) for _ in range(2)], ManualClock(), ManualClock(skew=3600.0)
    votes = Clocks(right)
    for n, skew in enumerate(others):
        measured(right, wrong, -HOUR, 2, skew)
        if meets:
            skew.meet()
        votes.report(f"a{n}", f"a{n}", skew.offset_us())
        assert skew.standing() is Standing.GOOD, "what is known stays"
    right.advance(clocks.GATHER_SECONDS)
    return votes.reference()


def test_what_was_measured_beside_a_leader_of_before_is_no_vote() -> None:
    assert led_by_a_right_one_after_a_wrong_one(True) is None


def test_negative_control_told_to_the_next_leader_it_would_call_everybody_off() -> None:
    assert led_by_a_right_one_after_a_wrong_one(False) == clocks.Reference(-HOUR, 2)


def told_while_the_leaders_clock_jumps() -> list[clocks.Reference | None]:
    """What a leader answers to three that agree, each second, while its own clock is set an hour ahead after the second round."""
    leader, others = ManualClock(), [ManualClock(skew=skew) for skew in (2.0, 0.0, -2.0)]
    votes, skews, answers = Clocks(leader), [Skew(clock) for clock in others], []
    for turn in range(6):
        if turn == 2:
            leader.skew = 3600.0
        for n, skew in enumerate(skews):
            votes.report(f"a{n}", f"a{n}", skew.offset_us())
            found = votes.reference()
            answers.append(found)
            skew.heard(skew.mark(), round(leader.now() * 1e6), *clocks.agreed(found))
            assert not skew.off, (turn, n, skew.text())
        for clock in (leader, *others):
            clock.advance(1.0)
    return answers


def test_a_leader_whose_clock_jumps_calls_nobody_else_off() -> None:
    answers = told_while_the_leaders_clock_jumps()
    assert answers[6:9] == [None] * 3, "nobody is judged by what was measured before"
    assert answers[-1] == clocks.Reference(-HOUR + 1_000_000, 3), "the median of these and of the leader's own"


def test_negative_control_with_the_votes_of_before_the_first_to_meet_it_would_be_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Clocks, "_look", lambda self: None)
    with pytest.raises(AssertionError, match="behind the others' median"):
        told_while_the_leaders_clock_jumps()


def off_while_the_first_to_report_is_as_wrong_as_the_leader() -> set[int]:
    """Who is told that its clock is off by a leader that begins an hour ahead: 0, a gateway of its machine, reports every 0.1 s; 1 to 3,
    which are right, for the first time after one second, two and three quarters of one."""
    leader, others = ManualClock(skew=3600.0), [ManualClock(skew=3600.0), *(ManualClock() for _ in range(3))]
    votes, skews, off = Clocks(leader), [Skew(clock) for clock in others], set()
    for tenth in range(100):
        for n, skew in enumerate(skews):
            if tenth % 10 == (0, 5, 7, 9)[n] or n == 0:
                votes.report(f"a{n}", f"a{n}", skew.offset_us())
                skew.heard(skew.mark(), round(leader.now() * 1e6), *clocks.agreed(votes.reference()))
                off |= {n} if skew.off else set()
        for clock in (leader, *others):
            clock.advance(0.1)
    return off


def test_a_leader_that_begins_hears_all_before_it_judges_one() -> None:
    assert off_while_the_first_to_report_is_as_wrong_as_the_leader() == {0}


def test_negative_control_two_that_are_wrong_alike_would_call_the_next_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clocks, "GATHER_SECONDS", 0.0)
    assert off_while_the_first_to_report_is_as_wrong_as_the_leader() > {0}


def test_an_answer_to_nothing_that_was_asked_is_passed_over() -> None:
    skew = Skew(ManualClock())
    skew.heard(skew.mark() + 5, 1, 0, 3)
    assert skew.standing() is Standing.UNKNOWN


def test_timestamps_of_a_process_rise_whatever_its_clock_does() -> None:
    clock = ManualClock()
    rising = Rising(Skew(clock))
    found = [rising.next(), rising.next()]
    clock.skew = -4.0
    found += [rising.next(), rising.next()]
    clock.advance(200)
    found.append(rising.next())
    assert found == sorted(set(found))
    assert found[-1] == round(clock.now() * 1e6)
    assert rising.life == 0


def test_a_clock_that_was_an_hour_ahead_leaves_no_timestamp_ahead() -> None:
    """A gateway that begins with a wrong clock has made keys before a leader tells it. Rising from those, all later ones would be an hour
    ahead, and refused by every worker."""
    clock = ManualClock()
    clock.skew = 3600.0
    rising = Rising(Skew(clock))
    ahead = rising.next()
    clock.skew = 0.0
    found = [rising.next(), rising.next()]
    assert found == [round(clock.now() * 1e6), found[0] + 1]
    assert (rising.life, found[0] < ahead) == (1, True)
