"""The judge of sessions under a full store (`dormouse_testing.trails`): each wrong history is found, each right one is not."""

import pytest
from dormouse_core.errors import Code, DormouseError
from dormouse_testing.trails import Trail, Wrong

LATE = DormouseError("deadline", Code.DEADLINE_EXCEEDED)
FULL = DormouseError("the step is not committed: the store is full", Code.UNAVAILABLE)


def trail(*steps: int) -> Trail:
    it = Trail("s")
    for step, number in enumerate(steps, 1):
        it.answered(number, step, list(steps[:step]), it.asked(number))
    return it


def test_right_histories() -> None:
    it = trail(1, 2)
    it.failed(3, LATE)
    it.failed(4, LATE)
    it.failed(5, FULL)
    it.answered(6, 4, [1, 2, 4, 6], it.asked(6))
    it.answered(7, 6, [1, 2, 4, 6, 3, 7], it.asked(7))  # 3 landed late
    it.deletions = 1
    it.answered(8, 7, [1, 2, 4, 6, 3, 7, 8], it.asked(8))
    it.answered(9, 1, [9], it.asked(9))
    it.deleted = 1
    it.answered(10, 2, [9, 10], it.asked(10))
    assert (it.acked, it.lives) == (7, 1)


def test_a_session_longer_than_what_is_shown() -> None:
    it = Trail("s")
    for number in range(1, 200):
        it.answered(number, number, list(range(max(1, number - 63), number + 1)), it.asked(number))
    assert it.acked == 199


@pytest.mark.parametrize(
    ("number", "step", "shown", "why"),
    [
        (6, 3, [1, 3, 6], "the session is not"),  # 2 is lost
        (6, 1, [6], "the session is not"),  # everything is
        (6, 4, [1, 2, 2, 6], "2 is in it"),  # 2 is doubled
        (6, 4, [2, 1, 3, 6], "the session is not"),  # another order
        (6, 4, [1, 2, 5, 6], "refused as not committed"),
        (6, 4, [1, 2, 9, 6], "not of unknown outcome"),
        (6, 5, [1, 2, 3, 3, 6], "counts twice"),
        (6, 4, [1, 2, 6], "the session is not"),  # the step number is wrong
        (6, 2, [1, 2], "the session is not"),  # a reply from before
    ],
)
def test_wrong_histories(number: int, step: int, shown: list[int], why: str) -> None:
    it = trail(1, 2)
    it.failed(3, LATE)
    it.failed(5, FULL)
    with pytest.raises(Wrong, match=why) as found:
        it.answered(number, step, shown, it.asked(number))
    assert "3: DEADLINE_EXCEEDED" in str(found.value), "the history is printed"


def test_what_was_deleted_does_not_come_back() -> None:
    it = trail(1, 2)
    it.deletions = it.deleted = 1
    with pytest.raises(Wrong, match="deletions were done"):
        it.answered(3, 3, [1, 2, 3], it.asked(3))
    it = trail(1)
    it.failed(2, LATE)
    it.deletions = it.deleted = 1
    it.answered(3, 1, [3], it.asked(3))
    with pytest.raises(Wrong, match="1 is in it"):
        it.answered(4, 3, [3, 1, 4], it.asked(4))
