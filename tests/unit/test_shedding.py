"""What Envoy is told of its memory, and that it is told as long as it is short."""

import asyncio
import json
from pathlib import Path

import pytest
from dormouse_core import limits
from dormouse_core.shedding import pressure
from dormouse_gateway.envoy.shedding import CALM_SECONDS, SHORT_SECONDS, Pressure, Shedding
from dormouse_testing.clock import SimClock
from dormouse_testing.simloop import run
from hypothesis import given
from hypothesis import strategies as st

HEAP = 1_000


@given(st.floats(0, limits.RESET_HEAP_FRACTION), st.floats(0, 1))
def test_nobody_is_reset_while_there_is_room(filled: float, before: float) -> None:
    assert pressure(filled, before) == 0


@given(st.floats(limits.RESET_HEAP_FRACTION + 0.001, 5), st.floats(0, 1))
def test_it_is_never_the_same_twice_while_it_is_short(filled: float, before: float) -> None:
    found = pressure(filled, before)
    assert 0 < found <= 1
    assert found != before
    assert int(8 * found) >= int(8 * pressure(filled, -1)) - 1, "at most one of Envoy's eight classes lower"


@given(st.floats(limits.RESET_ALL_HEAP_FRACTION + 0.001, 5), st.floats(0, 1))
def test_everybody_who_holds_much_is_reset_before_everybody_is_refused(filled: float, before: float) -> None:
    assert int(8 * pressure(filled, before)) + 1 >= 8, "all of Envoy's eight classes"
    assert limits.RESET_ALL_HEAP_FRACTION < 0.95


class Envoy:
    """Its admin: `filled` of the heap; None: it does not answer."""

    def __init__(self, *filled: int | None) -> None:
        self.filled = list(filled)
        self.asked: list[float] = []

    async def ask(self, method: str, target: str) -> str:
        assert (method, target) == ("GET", "/memory")
        self.asked.append(asyncio.get_running_loop().time())
        found = self.filled.pop(0)
        if found is None:
            raise OSError("nobody listens")
        return json.dumps({"allocated": str(found), "heap_size": "0"})


def test_what_is_said_changes_as_long_as_the_heap_stands_still_and_ends_with_it(tmp_path: Path) -> None:
    told = Pressure(tmp_path / "pressure")
    assert float((tmp_path / "pressure").read_text()) == 0
    said = []

    async def play() -> None:
        envoy = Envoy(100, 1200, 1200, 1200, None, 1200, 850, 700)
        shedding = Shedding(SimClock(), envoy.ask, HEAP, told)
        for _ in range(8):
            await shedding.look()
            said.append(float((tmp_path / "pressure").read_text()))

    run(play())
    high, low = said[1], said[2]
    assert said[:2] == [0, 1]
    assert said[1:6] == [high, low, high, high, low], "where it is not known, what was said stays"
    assert said[6:] == [pytest.approx(0.5), 0]


def test_it_looks_more_often_as_it_fills(tmp_path: Path) -> None:
    envoy = Envoy(100, 700, 700, None, 100)

    async def play() -> None:
        with pytest.raises(IndexError):
            await Shedding(SimClock(), envoy.ask, HEAP, Pressure(tmp_path / "pressure")).run()

    run(play())
    assert [round(b - a, 3) for a, b in zip(envoy.asked, envoy.asked[1:], strict=False)] == [
        CALM_SECONDS, SHORT_SECONDS, SHORT_SECONDS, CALM_SECONDS, CALM_SECONDS,
    ]  # fmt: skip
