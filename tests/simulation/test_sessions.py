"""Thousands of histories of the real session loops under faults: acknowledged steps are there, once, in order, never forked, never lost.

A failing seed is printed with the command that plays it again, step by step. ``DORMOUSE_SEEDS=20000 pytest tests/simulation`` plays more.
"""

import os
from typing import Any

import pytest
from dormouse_core import steps
from dormouse_testing.sessions_sim import controls, world
from dormouse_testing.sessions_sim.history import Violation

SEEDS = int(os.environ.get("DORMOUSE_SEEDS", "1500"))
CHUNK = 100
ENOUGH = 400  # seeds in which a rule that is taken away must be missed


@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_no_promise_is_broken(first: int) -> None:
    for seed in range(first, first + CHUNK):
        play(seed)


def play(seed: int) -> world.World:
    try:
        return world.run(seed)
    except BaseException as error:
        error.add_note(f"play it again: PYTHONPATH=tests python -m dormouse_testing.sessions_sim {seed}")
        raise


def test_the_same_seed_is_the_same_history() -> None:
    for seed in range(10):
        traces: list[list[str]] = [[], []]
        for trace in traces:
            world.run(seed, trace=trace.append)
        assert traces[0] == traces[1]
        assert len(traces[0]) > 20


ERASED = (7966, 8078, 19951, 20399)
"""Seeds in which a step landed in a store that became full, and its session was deleted before its worker had read what became of it."""
UNCOUNTED = (2534, 3435, 6318, 7548, 8636, 14075, 15340, 18381)
"""Seeds in which a read of how many records there are failed, and the shard that it was for moved on."""


@pytest.mark.parametrize("seed", [*ERASED, *UNCOUNTED])
def test_what_broke_a_promise_once(seed: int) -> None:
    play(seed)


def test_without_owed_in_mind_what_was_erased_would_be_called_never_committed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = steps.resolve

    def resolve(call: Any, **seen: Any) -> steps.Resolution:
        found = real(call, **seen)
        return steps.Resolution.LOST if found is steps.Resolution.ERASED else found

    monkeypatch.setattr(steps, "resolve", resolve)
    for seed in ERASED:
        with pytest.raises(Violation, match="false-again"):
            world.run(seed)


def test_histories_are_eventful() -> None:
    """What a run that finds nothing has looked at: moves, deaths, lost outcomes, kept replies, refusals."""
    seen: dict[str, int] = {}
    words = (
        "is killed",
        "drains",
        "is cut off",
        "lost its lease",
        "another leader",
        "late",
        "did",
        "failed",
        "its shard has moved",
        "Aborted",
        "full, and applied",
        "tombstones are owed",
        "leader settles",
    )
    for seed in range(60):
        lines: list[str] = []
        world.run(seed, trace=lines.append)
        for word in words:
            seen[word] = seen.get(word, 0) + sum(word in line for line in lines)
    assert all(seen.values()), seen


@pytest.mark.parametrize("control", controls.CONTROLS, ids=lambda control: control.name)
def test_a_rule_that_is_taken_away_is_missed(control: controls.Control, monkeypatch: pytest.MonkeyPatch) -> None:
    control.apply(lambda target, name, value: monkeypatch.setattr(target, name, value, raising=False))
    found: set[str] = set()
    for seed in range(ENOUGH):
        try:
            world.run(seed)
        except Violation as violation:
            found.add(violation.kind)
            if violation.kind in control.breaks:
                return
        except AssertionError:
            continue  # without its rule the protocol may also never answer
    pytest.fail(f"{ENOUGH} histories without this rule, and the checker found only {found or 'nothing'}")
