"""What Envoy is told of its memory, and that it is told as long as it is short."""

import asyncio
from pathlib import Path

import pytest
from dormouse_core import limits
from dormouse_core.shedding import CLASSES, Said, pressure
from dormouse_gateway.envoy import process
from dormouse_kit.shedding import CALM_SECONDS, SHORT_SECONDS, SILENT_LOOKS, Pressure, Shedding
from dormouse_testing.clock import SimClock
from dormouse_testing.simloop import run
from hypothesis import given
from hypothesis import strategies as st

said = st.builds(Said, st.floats(0, 1), st.floats(0, 1))


@given(st.floats(0, limits.RESET_HEAP_FRACTION - 0.001), said)
def test_nothing_new_is_said_while_there_is_room(taken: float, before: Said) -> None:
    """A change to 0 resets the largest once more."""
    assert pressure(taken, before) == Said(before.value, 0.0)


@given(st.floats(limits.RESET_HEAP_FRACTION, 5), said)
def test_it_is_never_the_same_twice_while_it_is_short(taken: float, before: Said) -> None:
    found = pressure(taken, before)
    assert 0 < found.value <= 1
    assert found.value != before.value


@given(st.floats(limits.RESET_HEAP_FRACTION, 5), said)
def test_as_long_as_it_is_short_who_holds_less_is_reset_too(taken: float, before: Said) -> None:
    classes = []
    for _ in range(2 * CLASSES + 2):
        before = pressure(taken, before)
        classes.append(int(CLASSES * before.value) + 1)
    assert classes == sorted(classes) or max(classes) >= CLASSES
    assert max(classes) >= CLASSES, "all that Envoy tells apart"


@given(st.floats(limits.RESET_ALL_HEAP_FRACTION + 0.001, 5), said)
def test_all_who_hold_much_are_reset_before_everybody_is_refused(taken: float, before: Said) -> None:
    assert int(CLASSES * pressure(taken, before).value) + 1 >= CLASSES
    assert limits.RESET_ALL_HEAP_FRACTION < 0.95


def test_two_largest_replies_fit_into_a_worker() -> None:
    assert 2 * limits.MESSAGE_BYTES_MAX < limits.RESET_HEAP_FRACTION * limits.REPLY_MEMORY_BYTES


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
    first, second = said[1], said[2]
    assert said[0] == 0
    assert first == 1
    assert said[2:6] == [second, first, first, second], "where it is not known, what was said stays"
    assert said[6] not in (said[5], 0)
    assert said[7] == said[6], "there is room: nothing new"


async def test_what_cannot_be_written_is_said_later(tmp_path: Path, events: pytest.LogCaptureFixture) -> None:
    """And nobody ends for it: the folder may be full."""
    told = Pressure(tmp_path / "folder" / "pressure")
    shedding = Shedding(SimClock(), Envoy(*[1.0] * SILENT_LOOKS, 1.0).ask, told)
    for _ in range(SILENT_LOOKS):
        assert await shedding.look() is None
    assert "nobody is reset for memory" in events.text
    (tmp_path / "folder").mkdir()
    assert await shedding.look() == 1.0
    assert float((tmp_path / "folder" / "pressure").read_text()) == told.said.value == 1
    assert "again" in events.text


async def test_an_end_that_nobody_expects_is_told(tmp_path: Path, events: pytest.LogCaptureFixture) -> None:
    task = Shedding(SimClock(), Envoy().ask, Pressure(tmp_path / "pressure")).start()
    await asyncio.wait({task})
    assert "nobody is reset for memory any more" in events.text


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
