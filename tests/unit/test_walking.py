"""What callers of a cluster's tests saw (`dormouse_testing.cluster.walking`): whether it can be the truth."""

import pytest
from dormouse_testing.cluster.walking import Acknowledged, Failed, Seen, Walk, totals


def walk(*seen: Seen) -> Walk:
    made = Walk()
    made.seen.extend(seen)
    return made


def answers(*found: int, session: str = "s") -> Walk:
    return walk(*(Acknowledged(session, float(at), total) for at, total in enumerate(found)))


UNKNOWN = walk(Failed("s", 9.0, "ABORTED: not known", given_up=True))
TRIED = walk(Failed("s", 9.0, "UNAVAILABLE: sent again"))


def test_steps_of_one_session_at_two_places_are_counted_together() -> None:
    assert totals(answers(1, 2, 4), answers(3, 5)) == {"s": (5, 5)}
    assert totals(answers(1, 2), answers(1, session="t"), TRIED) == {"s": (2, 2), "t": (1, 1)}


def test_a_step_of_which_nobody_can_say_whether_it_ran_may_count_or_not() -> None:
    assert totals(answers(1, 2), UNKNOWN) == {"s": (2, 3)}
    assert totals(answers(1, 3), UNKNOWN) == {"s": (3, 3)}


@pytest.mark.parametrize(
    ("walks", "text"),
    [
        ((answers(1, 2, 3), answers(3)), "were each answered to two steps"),
        ((answers(1, 2, 4),), "4 found after 3 steps"),
        ((answers(1, 2, 4), TRIED), "4 found after 3 steps"),
        ((answers(1, 2, 1),), "1 after 2"),
        ((answers(0, 1),), "0 after 0"),
    ],
    ids=["a fork", "twice", "twice though it was tried again", "a step is lost", "none counted"],
)
def test_negative_control_what_cannot_be_the_truth_is_found(walks: tuple[Walk, ...], text: str) -> None:
    with pytest.raises(AssertionError, match=text):
        totals(*walks)


def test_gaps_are_those_of_everybody_and_of_one_session() -> None:
    seen = walk(Acknowledged("s", 0.0, 1), Acknowledged("t", 4.0, 1), Acknowledged("s", 7.0, 2), Acknowledged("t", 9.0, 2))
    assert (seen.gap(), seen.longest()) == (4.0, 7.0)
    assert [each.total for each in seen.between(4.0, 9.0)] == [1, 2]
