"""When a worker is kept clear for one call, and that nobody can keep it so."""

import math
from collections import Counter

import pytest
from dormouse_core import limits
from dormouse_core.clearing import Clearing
from hypothesis import given
from hypothesis import strategies as st

WAIT, KEPT = limits.CLEAR_SECONDS, limits.CLEARED_SECONDS


def asked(*askers: str, now: float = 0.0) -> Clearing[str]:
    clearing: Clearing[str] = Clearing()
    for asker in askers:
        clearing.ask(asker, f"key-{asker}", now)
    return clearing


def test_it_is_clear_once_nothing_runs_and_open_again_once_the_call_has_ended() -> None:
    clearing = asked("a")
    assert not clearing.closed
    assert clearing.look(0.0, quiet=False) == []
    assert clearing.closed, "nothing new is admitted, and what runs is waited for"
    assert clearing.look(1.0, quiet=True) == [("a", True)]
    assert not clearing.enter("another", 1.0)
    assert clearing.enter("key-a", 1.0)
    assert not clearing.enter("key-a", 1.0), "once"
    assert clearing.look(50.0, quiet=True) == []
    assert clearing.closed, "while it runs"
    clearing.left(50.0)
    assert not clearing.closed
    assert clearing.idle


def test_what_does_not_end_in_its_time_is_not_waited_for() -> None:
    clearing = asked("a")
    clearing.look(0.0, quiet=False)
    assert clearing.next_look() == WAIT
    assert clearing.look(WAIT, quiet=False) == [("a", False)]
    assert clearing.idle


def test_who_does_not_come_is_not_waited_for() -> None:
    clearing = asked("a")
    assert clearing.look(0.0, quiet=True) == [("a", True)]
    assert clearing.next_look() == KEPT
    assert not clearing.enter("key-a", KEPT)
    assert clearing.look(KEPT, quiet=True) == []
    assert clearing.idle
    assert not clearing.enter("key-a", KEPT), "the others run: it would not be alone"


@pytest.mark.parametrize("quiet", [False, True])
def test_who_goes_away_leaves_it_open(quiet: bool) -> None:
    clearing = asked("a", "b")
    clearing.look(0.0, quiet=False)
    clearing.leave("b", 0.5)
    assert clearing.closed
    clearing.leave("a", 1.0)
    assert clearing.look(1.0, quiet=quiet) == []
    assert clearing.idle


def test_after_it_was_closed_it_is_open_for_as_long() -> None:
    clearing = asked("a")
    clearing.look(0.0, quiet=True)
    clearing.enter("key-a", 0.0)
    clearing.ask("b", "key-b", 1.0)
    clearing.left(2.0)
    assert clearing.look(2.0, quiet=True) == []
    assert not clearing.closed
    assert clearing.next_look() == 4.0
    assert clearing.look(4.0, quiet=True) == [("b", True)]


def test_who_asks_while_it_rests_is_waited_for_as_long_as_the_others_once_it_closes() -> None:
    clearing = asked("a")
    clearing.look(0.0, quiet=False)
    assert clearing.look(WAIT, quiet=False) == [("a", False)]
    clearing.ask("b", "key-b", WAIT + 1)
    assert clearing.look(WAIT + 1, quiet=False) == []
    assert clearing.next_look() == 2 * WAIT
    assert clearing.look(2 * WAIT, quiet=False) == []
    assert clearing.closed
    assert clearing.look(2 * WAIT + 1, quiet=False) == [], "from when it closed"
    assert clearing.look(3 * WAIT, quiet=False) == [("b", False)]


def test_for_whom_it_was_not_closed_is_told_so() -> None:
    clearing = asked("a", "b")
    clearing.look(0.0, quiet=True)
    assert clearing.enter("key-a", 0.0)
    assert clearing.next_look() == WAIT
    assert clearing.look(WAIT, quiet=False) == [("b", None)], "while the other's call ran"
    clearing.left(4 * WAIT)
    clearing.ask("c", "key-c", 4 * WAIT)
    assert clearing.look(5 * WAIT, quiet=False) == [("c", None)], "while it rested"
    assert clearing.idle


def test_each_is_told_in_the_order_in_which_they_asked() -> None:
    clearing = asked("a", "b", "c")
    told = clearing.look(0.0, quiet=True)
    for at in range(1, 9):
        if clearing.closed:
            clearing.enter(f"key-{told[-1][0]}", at - 0.5)
            clearing.left(at - 0.5)
        told += clearing.look(float(at), quiet=True)
    assert told == [("a", True), ("b", True), ("c", True)]


Attack = st.lists(st.tuples(st.sampled_from(["ask", "enter", "left", "leave", "quiet", "busy", "wait"]), st.floats(0.0, 3.0)), max_size=80)


@given(Attack)
def test_whoever_asks_again_and_again_keeps_it_closed_for_half_of_the_time_at_most(steps: list[tuple[str, float]]) -> None:
    """Also one at most is inside, and whoever was not told has not waited longer than is stated."""
    clearing: Clearing[int] = Clearing()
    now, quiet, inside = 0.0, True, False
    waiting: dict[int, float] = {}
    cleared = -1
    closings: list[tuple[float, float]] = []  # from, to
    since: float | None = None

    def look() -> None:
        nonlocal cleared, since, inside
        for asker, clear in clearing.look(now, quiet and not inside):
            del waiting[asker]
            cleared = asker if clear else cleared
        see()

    def see() -> None:
        nonlocal since
        if clearing.closed and since is None:
            since = now
        elif not clearing.closed and since is not None:
            closings.append((since, now))
            since = None

    for number, (what, seconds) in enumerate(steps):
        until = now + seconds
        while (at := clearing.next_look()) <= until:
            now = max(now, at)
            look()
        now = until
        if what == "ask":
            waiting[number] = now
            clearing.ask(number, str(number), now)
        elif what == "enter":
            came = clearing.enter(str(cleared), now)
            assert not (came and inside), "one at a time"
            inside = inside or came
        elif what == "left" and inside:
            inside = False
            clearing.left(now)
        elif what == "leave" and waiting:
            clearing.leave(min(waiting), now)
            del waiting[min(waiting)]
        quiet = quiet if what not in ("quiet", "busy") else what == "quiet"
        see()
        look()
        assert clearing.closed or not inside
        assert all(now - began < 2 * limits.CLEAR_SECONDS for began in waiting.values())
        assert inside or since is None or now - since <= limits.CLEAR_SECONDS + limits.CLEARED_SECONDS
    for (before, after), (next_, _) in zip(closings, [*closings[1:], (since, 0.0)] if since is not None else closings[1:], strict=False):
        assert next_ - after >= (after - before) * (1 - 1e-9) - 1e-9


def test_negative_control_without_its_rest_it_would_be_closed_nearly_always(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shares()["closed"] <= 51
    monkeypatch.setattr(Clearing, "_rests_until", property(lambda _: -math.inf, lambda *_: None), raising=False)
    assert shares()["closed"] > 90


def shares() -> Counter[str]:
    """Per cent of 100 s in which somebody asks each tenth of a second, and each of these calls runs for a second."""
    clearing: Clearing[int] = Clearing()
    found: Counter[str] = Counter()
    ends: float | None = None
    for tenth in range(1000):
        now = tenth / 10
        clearing.ask(tenth, str(tenth), now)
        if ends is not None and now >= ends:
            clearing.left(now)
            ends = None
        for asker, clear in clearing.look(now, ends is None):
            if clear:
                clearing.enter(str(asker), now)
                ends = now + 1
        found["closed" if clearing.closed else "open"] += 1
    return Counter({what: count // 10 for what, count in found.items()})
