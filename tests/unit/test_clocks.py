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
    assert reference([0, BOUND_US]) == clocks.Reference(BOUND_US // 2, 2, BOUND_US // 2)


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
    votes.report("a1", None, 0)
    clock.advance(clocks.GATHER_SECONDS)
    assert votes.reference() == clocks.Reference(0, 2, 0)


def test_who_is_not_heard_or_does_not_know_has_no_vote() -> None:
    clock = ManualClock()
    votes = Clocks(clock)
    clock.advance(clocks.GATHER_SECONDS)
    assert votes.reference() is None
    votes.report("a2", None, 1)
    assert votes.reference() is not None
    votes.report("a2", None, None)
    assert votes.reference() is None
    votes.report("a2", None, 1)
    votes.forget("a2", None)
    assert votes.reference() is None
    votes.report("a2", None, 1)
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
        votes.report(f"a{n}", None, skew.offset_us())
        assert skew.standing() is Standing.GOOD, "what is known stays"
    right.advance(clocks.GATHER_SECONDS)
    return votes.reference()


def test_what_was_measured_beside_a_leader_of_before_is_no_vote() -> None:
    assert led_by_a_right_one_after_a_wrong_one(True) is None


def test_negative_control_told_to_the_next_leader_it_would_call_everybody_off() -> None:
    assert led_by_a_right_one_after_a_wrong_one(False) == clocks.Reference(-HOUR, 2, -HOUR)


def told_while_the_leaders_clock_moves(by: float) -> list[clocks.Reference | None]:
    """What a leader answers to three that agree, each second, while its own clock is set after the fifth round."""
    leader, others = ManualClock(), [ManualClock(skew=skew) for skew in (2.0, 0.0, -2.0)]
    votes, skews, answers = Clocks(leader), [Skew(clock) for clock in others], []
    for turn in range(9):
        if turn == 5:
            leader.skew = by
        for n, skew in enumerate(skews):
            votes.report(f"a{n}", None, skew.offset_us(), skew.reference_us())
            found = votes.reference()
            answers.append(found)
            skew.heard(skew.mark(), votes.now_us(), *clocks.agreed(found))
            assert not skew.off, (turn, n, skew.text())
        for clock in (leader, *others):
            clock.advance(1.0)
    return answers


@pytest.mark.parametrize(("by", "agreed"), [(3600.0, 3), (-3600.0, 3), (2.0, 4), (0.015, 4)])
def test_a_leader_whose_clock_is_set_moves_nobody_and_calls_nobody_else_off(by: float, agreed: int) -> None:
    answers = told_while_the_leaders_clock_moves(by)
    before, after = answers[14], answers[-1]
    assert before is not None
    assert after is not None
    assert after.agreed == agreed, "its own vote says where it is now"
    assert abs(after.us - before.us) <= 5 * clocks.FOLLOWS * 1e6, "nothing that it says of the others has another meaning"


def test_negative_control_told_by_its_wall_clock_the_first_to_meet_it_would_be_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Clocks, "now_us", lambda self: round(self._clock.now() * 1e6))
    with pytest.raises(AssertionError, match="behind the others' median"):
        told_while_the_leaders_clock_moves(3600.0)


def test_a_leader_whose_clock_is_set_while_it_gathers_goes_on_from_what_others_go_by() -> None:
    scene = Scene(0.0, 0.0, 0.0)
    for _ in range(5):
        scene.second()
    scene.lead(0.0)
    scene.second()
    scene.second()
    scene.leader.skew = 2.0
    for _ in range(4):
        found = scene.second()
    assert found == pytest.approx([0.0] * 3, abs=0.001)


def off_while_the_first_to_report_is_as_wrong_as_the_leader() -> set[int]:
    """Who is told that its clock is off by a leader that begins an hour ahead: 0, a gateway of its machine, reports every 0.1 s; 1 to 3,
    which are right, for the first time after one second, two and three quarters of one."""
    leader, others = ManualClock(skew=3600.0), [ManualClock(skew=3600.0), *(ManualClock() for _ in range(3))]
    votes, skews, off = Clocks(leader), [Skew(clock) for clock in others], set()
    for tenth in range(100):
        for n, skew in enumerate(skews):
            if tenth % 10 == (0, 5, 7, 9)[n] or n == 0:
                votes.report(f"a{n}", None, skew.offset_us())
                skew.heard(skew.mark(), votes.now_us(), *clocks.agreed(votes.reference()))
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


# ------------------------------------------------------------------------------------------------------- the reference follows the median


class Scene:
    """A leader and processes on clocks that differ, all read at one moment."""

    def __init__(self, *skews: float) -> None:
        self.time = 0.0
        self.leader = ManualClock()
        self.votes = Clocks(self.leader)
        self.processes: list[tuple[str, ManualClock, Skew]] = []
        self.begun = 0
        for skew in skews:
            self.begin(skew)

    def begin(self, skew: float) -> None:
        clock = ManualClock(skew=skew)
        clock.advance(self.time)
        self.begun += 1
        self.processes.append((f"p{self.begun}", clock, Skew(clock)))

    def end(self, index: int) -> None:
        name, _, _ = self.processes.pop(index)
        self.votes.forget(name, None)

    def lead(self, skew: float) -> None:
        """Another leader, which nobody has told anything."""
        self.leader = ManualClock(skew=skew)
        self.leader.advance(self.time)
        self.votes = Clocks(self.leader)
        for _, _, each in self.processes:
            each.meet()

    def second(self) -> list[float]:
        """All report. What those go by that know it, in seconds from the right time."""
        for name, _, skew in self.processes:
            self.votes.report(name, None, skew.offset_us(), skew.reference_us())
            skew.heard(skew.mark(), self.votes.now_us(), *clocks.agreed(self.votes.reference()))
        for clock in (self.leader, *(clock for _, clock, _ in self.processes)):
            clock.advance(1.0)
        self.time += 1.0
        right = ManualClock()
        right.advance(self.time)
        return [found / 1e6 - right.now() for _, _, skew in self.processes if (found := skew.now_us()) is not None]


ACTS = st.lists(
    st.one_of(
        st.tuples(st.just("begin"), st.floats(-2.4, 2.4)),
        st.tuples(st.just("end"), st.integers(0, 9)),
        st.tuples(st.just("lead"), st.floats(-2.4, 2.4)),
        st.tuples(st.just("wait"), st.integers(1, 5)),
    ),
    max_size=14,
)


def moved(acts: list[tuple[str, float]]) -> float:
    """The most, in seconds, that two who go by a reference differ, or one's differs from that of a second ago."""
    scene, most = Scene(-2.0, 0.3, 1.9), 0.0
    for _ in range(5):
        before = scene.second()
    assert len(before) == 3
    for act, given_ in [*acts, ("wait", 6)]:
        if act == "begin":
            scene.begin(given_)
        elif act == "end" and len(scene.processes) > 3:
            scene.end(int(given_) % 3)  # the oldest
        elif act == "lead":
            scene.lead(given_)
        for _ in range(int(given_) if act == "wait" else 1):
            now = scene.second()
            most = max(most, *(abs(a - b) for a in now for b in [*now, *before])) if now and before else most
            before = now or before
    return most


@given(ACTS)
def test_whoever_comes_goes_or_leads_moves_the_reference_slowly(acts: list[tuple[str, float]]) -> None:
    assert moved(acts) < 2 * clocks.FOLLOWS * clocks.FOLLOWS_FOR + 1e-5


COME_AND_GO: list[tuple[str, float]] = [("begin", 2.4), ("begin", 2.2), ("begin", 2.0), ("wait", 3), ("end", 0), ("end", 0), ("wait", 3)]


def test_negative_control_the_median_would_jump(monkeypatch: pytest.MonkeyPatch) -> None:
    assert moved(COME_AND_GO) < 0.001
    monkeypatch.setattr(clocks, "FOLLOWS", 1e6)
    assert moved(COME_AND_GO) > 0.5


def test_negative_control_a_leader_that_asks_nobody_would_begin_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    acts = [("wait", 3), *COME_AND_GO, ("lead", -1.0), ("wait", 5)]
    assert moved(acts) < 0.001
    monkeypatch.setattr(Clocks, "_handed_on", lambda self: None)
    assert moved(acts) > 0.5


def test_the_reference_arrives_at_the_median() -> None:
    scene = Scene(0.0, 0.0, 0.0)
    for _ in range(5):
        scene.second()
    for _ in range(5):
        scene.begin(0.01)
    for _ in range(70):
        found = scene.second()
    assert found == pytest.approx([0.01] * 8, abs=1e-6)


def test_beyond_the_bound_the_reference_jumps_and_nobody_right_is_off() -> None:
    """The first few were wrong alike."""
    scene = Scene(3600.0, 3600.0)
    scene.leader.skew = 3600.0
    for _ in range(5):
        found = scene.second()
    assert found == pytest.approx([3600.0] * 2, abs=1e-5)
    for _ in range(4):
        scene.begin(0.0)
    for _ in range(5):
        found = scene.second()
    assert found == pytest.approx([0.0] * 4, abs=1e-5)
    assert [skew.off for _, _, skew in scene.processes] == [True] * 2 + [False] * 4


def test_a_new_median_finds_a_clock_that_is_off_before_the_reference_is_there() -> None:
    scene = Scene(-4.0, -4.0, -4.0)
    scene.leader.skew = -4.0
    for _ in range(5):
        scene.second()
    for _ in range(6):
        scene.begin(0.0)
    scene.begin(-5.5)
    scene.second()
    found = scene.second()
    assert found == pytest.approx([-4.0] * len(found), abs=0.001)
    assert [skew.off for _, _, skew in scene.processes] == [False] * 9 + [True], "it is 1.5 s from the reference, and 5.5 from the median"


def test_what_workers_say_of_the_reference_counts_where_no_agent_says_it() -> None:
    for agents, at in ((1, 0), (0, 2_000_000)):
        clock = ManualClock()
        votes = Clocks(clock)
        for n in range(5):
            votes.report(f"w{n}", f"function {n}", 0, 2_000_000)
        for n in range(agents):
            votes.report(f"a{n}", None, 0, 0)
        clock.advance(clocks.GATHER_SECONDS)
        assert votes.reference() == clocks.Reference(at, 6 + agents, 0)
        assert votes.anew is False


def test_a_reference_far_from_the_median_is_not_gone_on_with() -> None:
    clock = ManualClock()
    votes = Clocks(clock)
    for n in range(3):
        votes.report(f"a{n}", None, 0, HOUR)
    clock.advance(clocks.GATHER_SECONDS)
    assert votes.reference() == clocks.Reference(0, 4, 0)


def test_a_measure_over_a_long_way_tells_who_is_off_and_is_no_time() -> None:
    """Reports and answers that waited while their process stood still: half of the way is the most that they are wrong by."""
    clock, leader = ManualClock(skew=3600.0), ManualClock()
    skew = Skew(clock)
    mark = skew.mark()
    for each in (clock, leader):
        each.advance(2.0)
    skew.heard(mark, round(leader.now() * 1e6), 0, 3)
    assert skew.off
    assert skew.best_us() == round(clock.now() * 1e6)
    skew.heard(skew.mark(), round(leader.now() * 1e6), 0, 3)
    assert skew.best_us() == round(leader.now() * 1e6)


def test_a_leader_of_before_says_no_median() -> None:
    skew = Skew(ManualClock(skew=4.0))
    skew.heard(skew.mark(), round(ManualClock().now() * 1e6), 2_000_000, 3)
    assert skew.deviation_us() == 2_000_000


def test_timestamps_are_ahead_until_the_time_has_come_up_to_them() -> None:
    clock = ManualClock(skew=2.0)
    skew = Skew(clock)
    rising = Rising(skew)
    rising.next()
    assert not rising.ahead
    measured(clock, ManualClock(), skew=skew)
    assert rising.ahead
    clock.advance(2.0)
    assert not rising.ahead


def test_a_reference_that_is_not_measured_any_more_is_no_time_in_the_end() -> None:
    """All ways are long: whose clock is off is seen, and what was gone by before is not renewed by it."""
    clock, leader = ManualClock(), ManualClock()
    skew = measured(clock, leader)
    assert skew.now_us() is not None
    for _ in range(int(CLOCK_TRUST_SECONDS) + 70):
        mark = skew.mark()
        for each in (clock, leader):
            each.advance(1.0)
        skew.heard(mark, round(leader.now() * 1e6), 0, 3)
    assert skew.standing() is Standing.GOOD
    assert skew.now_us() is None
    assert skew.reference_us() is None


def test_a_reference_that_has_jumped_is_gone_by_no_more_where_the_way_to_it_is_long() -> None:
    clock, leader = ManualClock(), ManualClock()
    skew = measured(clock, leader, HOUR)
    assert skew.best_us() > round(clock.now() * 1e6) + HOUR // 2
    for each in (clock, leader):
        each.advance(61.0)  # the short sample is forgotten
    mark = skew.mark()
    for each in (clock, leader):
        each.advance(0.3)
    skew.heard(mark, round(leader.now() * 1e6), 0, 3)
    assert skew.now_us() is None
    assert skew.reference_us() is None
    assert skew.best_us() == round(clock.now() * 1e6)


def test_a_report_that_was_long_under_way_hands_no_reference_on() -> None:
    clock, leader = ManualClock(), ManualClock()
    skew = measured(clock, leader)
    skew.meet()
    mark = skew.mark()
    for each in (clock, leader):
        each.advance(2.0)
    skew.heard(mark, round((leader.now() - 2.0) * 1e6), 0, 0)
    assert skew.reference_us() is None
    skew.heard(skew.mark(), round(leader.now() * 1e6), 0, 0)
    assert skew.reference_us() == 0
