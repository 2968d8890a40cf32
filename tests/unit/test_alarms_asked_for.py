"""The time that a handler says, as it comes: what a step is given holds NumPy's numbers."""

from datetime import UTC, datetime, timedelta, timezone
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from dormouse_core.errors import InvalidArgument
from dormouse_worker.runtimes.alarms import StepAlarms

AT = 1_700_000_000
NOW_US = (AT - 10) * 1_000_000


class Anything:
    def decode(self, _: bytes) -> None:
        """Every request is one that the function takes."""


def due_us(at: object) -> int:
    asked = StepAlarms(Anything(), NOW_US)  # type: ignore[arg-type]  # of the function's inputs nothing is asked here
    asked.set(at, {}, "a")
    [change] = asked.end()
    return int(change.due_us)  # type: ignore[union-attr]  # it is one that sets


@pytest.mark.parametrize(
    "at",
    [
        AT, float(AT), np.int64(AT), np.array([AT])[0], np.float64(AT), np.uint32(AT),
        datetime.fromtimestamp(AT, UTC), datetime.fromtimestamp(AT, timezone(timedelta(hours=9))),
    ],
)  # fmt: skip
def test_a_time_is_any_real_number_of_seconds_or_has_a_zone(at: Any) -> None:
    assert due_us(at) == AT * 1_000_000


@pytest.mark.parametrize("at", [True, np.bool_(True), "1700000000", None, 1j, np.array([AT]), datetime(2026, 1, 1), np.float64("nan")])
def test_what_is_no_time_is_refused(at: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"^alarm: at: "):
        due_us(at)


BEYOND = [1e13, 1e303, np.float64(1e303), 10**400, 10**5000, Fraction(10**400), float("inf"), np.longdouble("inf")]


@pytest.mark.parametrize("at", BEYOND, ids=range(len(BEYOND)))
def test_what_is_too_far_ahead_is_refused_however_large_the_number_is(at: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"^alarm: at: "):
        due_us(at)


@pytest.mark.parametrize("at", [-1, -1e303, -(10**400), Fraction(-(10**400)), datetime.min.replace(tzinfo=UTC)], ids=range(5))
def test_what_is_past_is_due_at_once_however_long_ago(at: Any) -> None:
    assert due_us(at) == 0
