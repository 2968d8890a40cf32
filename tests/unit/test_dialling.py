"""Attempts to connect, side by side: who is taken, who is ended, and how often a dead store is dialled. On simulated time."""

import asyncio

import pytest
from dormouse_kit.etcd.dialling import first_of
from dormouse_testing import simloop

DROPPED = (1.0, None)  # its packets go nowhere, and it gives up after a second
REFUSED = (0.0, None)


class Attempts:
    """`plan`: (after so many seconds, it finds this), for each attempt in their order; the last for all that follow."""

    def __init__(self, *plan: tuple[float, str | None]) -> None:
        self._plan = plan
        self.began: list[tuple[float, int]] = []
        self.ended_early = 0
        self.given_back: list[str] = []

    async def __call__(self, place: int) -> str | None:
        seconds, found = self._plan[min(len(self.began), len(self._plan) - 1)]
        self.began.append((round(asyncio.get_running_loop().time() - simloop.START, 3), place))
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            self.ended_early += 1
            raise
        if found == "denied":
            raise PermissionError
        return found

    async def give_back(self, found: str) -> None:
        self.given_back.append(found)

    def dial(self, places: int = 1, place: int = 0) -> tuple[int, str]:
        return simloop.run(first_of(self, places, place, self.give_back))


def test_an_attempt_that_is_answered_stays_alone() -> None:
    attempts = Attempts((0.09, "a"))
    assert attempts.dial(3, 1) == (1, "a")
    assert attempts.began == [(0.0, 1)]


def test_dropped_packets_cost_the_time_to_the_next_attempt() -> None:
    attempts = Attempts(DROPPED, DROPPED, (0.01, "a"))
    assert attempts.dial() == (0, "a")
    assert attempts.began == [(0.0, 0), (0.1, 0), (0.3, 0)]
    assert attempts.ended_early == 2


def test_an_attempt_that_is_slow_is_not_ended_for_the_next_one() -> None:
    """A busy machine, a TLS handshake: the first is there first."""
    attempts = Attempts((0.9, "slow"), (5.0, "slower"))
    assert attempts.dial() == (0, "slow")


def test_a_silent_member_is_passed_by() -> None:
    assert Attempts(DROPPED, (0.01, "b")).dial(3, 2) == (0, "b")


def test_members_that_refuse_are_all_tried_at_once_and_then_ever_more_seldom() -> None:
    attempts = Attempts(*[REFUSED] * 9, (0.0, "late"))
    assert attempts.dial(3) == (0, "late")
    assert [began for began, _ in attempts.began] == [0.0] * 3 + [0.05] * 3 + [0.15] * 3 + [0.35]


def test_a_dead_store_is_not_dialled_more_than_four_times_a_second() -> None:
    attempts = Attempts(*[DROPPED] * 30, (0.0, "back"))
    attempts.dial()
    assert attempts.began[-1][0] > 30 / 4


def test_what_comes_too_late_is_given_back() -> None:
    attempts = Attempts((0.15, "a"), (0.05, "b"))
    assert attempts.dial(2)[1] in ("a", "b")
    assert len(attempts.given_back) == 1


def test_a_refusal_in_words_ends_it() -> None:
    attempts = Attempts(DROPPED, (0.0, "denied"))
    with pytest.raises(PermissionError):
        attempts.dial()
    assert attempts.ended_early == 1
