"""What Envoy is told of its memory, and that it is told as long as it is short."""

import asyncio
from pathlib import Path

import pytest
from dormouse_core import limits
from dormouse_core.shedding import pressure
from dormouse_gateway.envoy import process
from dormouse_kit.shedding import CALM_SECONDS, SHORT_SECONDS, Pressure, Shedding
from dormouse_testing.clock import SimClock
from dormouse_testing.simloop import run
from hypothesis import given
from hypothesis import strategies as st


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
    """What is taken of it, one look after another; None: it does not answer."""

    def __init__(self, *taken: float | None) -> None:
        self.taken = list(taken)
        self.asked: list[float] = []

    async def ask(self) -> float:
        self.asked.append(asyncio.get_running_loop().time())
        found = self.taken.pop(0)
        if found is None:
            raise OSError("nobody listens")
        return found


def test_what_is_said_changes_as_long_as_nothing_does_and_ends_with_the_shortage(tmp_path: Path) -> None:
    told = Pressure(tmp_path / "pressure")
    assert float((tmp_path / "pressure").read_text()) == 0
    said = []

    async def play() -> None:
        envoy = Envoy(0.1, 1.2, 1.2, 1.2, None, 1.2, 0.85, 0.7)
        shedding = Shedding(SimClock(), envoy.ask, told)
        for _ in range(8):
            await shedding.look()
            said.append(float((tmp_path / "pressure").read_text()))

    run(play())
    high, low = said[1], said[2]
    assert said[:2] == [0, 1]
    assert said[1:6] == [high, low, high, high, low], "where it is not known, what was said stays"
    assert said[6:] == [pytest.approx(0.5), 0]


@pytest.mark.parametrize("calm", [CALM_SECONDS, 2.0])
def test_it_looks_more_often_as_it_fills(tmp_path: Path, calm: float) -> None:
    envoy = Envoy(0.1, 0.7, 0.7, None, 0.1)

    async def play() -> None:
        with pytest.raises(IndexError):
            await Shedding(SimClock(), envoy.ask, Pressure(tmp_path / "pressure"), calm).run()

    run(play())
    assert [round(b - a, 3) for a, b in zip(envoy.asked, envoy.asked[1:], strict=False)] == [calm, SHORT_SECONDS, SHORT_SECONDS, calm, calm]


@pytest.mark.parametrize("answer", ["", "{}", "[]", '{"allocated": null}', '{"allocated": "much"}'])
async def test_an_answer_that_says_nothing_is_not_known(monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    async def admin(path: str, method: str, target: str) -> str:
        assert (path, method, target) == ("a", "GET", "/memory")
        return answer

    monkeypatch.setattr(process, "admin", admin)
    with pytest.raises(OSError, match="cannot be read"):
        await process.filled("a", 1000)


async def test_the_share_of_the_heap(monkeypatch: pytest.MonkeyPatch) -> None:
    async def admin(path: str, method: str, target: str) -> str:
        return '{"allocated": "750", "heap_size": "2000"}'

    monkeypatch.setattr(process, "admin", admin)
    assert await process.filled("a", 1000) == 0.75
