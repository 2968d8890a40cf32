"""Histories of everything together: the real leader, relays, streams and workers' sessions over one store, under everybody's faults.

A failing seed is printed with the command that plays it again. ``DORMOUSE_SEEDS=20000 pytest tests/simulation`` plays more.
"""

import os

import pytest
from dormouse_testing.one_world import controls, world
from dormouse_testing.sessions_sim.history import Violation

SEEDS = int(os.environ.get("DORMOUSE_SEEDS", "1500")) // 10
CHUNK = 25
ENOUGH = 200  # seeds in which a rule that is taken away must be missed


@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_no_promise_is_broken(first: int) -> None:
    for seed in range(first, first + CHUNK):
        try:
            world.run(seed)
        except BaseException as error:
            error.add_note(f"play it again: PYTHONPATH=tests python -m dormouse_testing.one_world {seed}")
            raise


def test_the_same_seed_is_the_same_history() -> None:
    for seed in range(0, 16, 3):
        traces: list[list[str]] = [[], []]
        for trace in traces:
            world.run(seed, trace=trace.append)
        assert traces[0] == traces[1]
        assert len(traces[0]) > 20


def test_histories_are_eventful() -> None:
    """What a run that finds nothing has looked at."""
    seen: dict[str, int] = {}
    words = (
        "stands still",
        "is killed",
        "lost its lease",
        "leads no more",
        "drains",
        "compacted",
        "is put back",
        "is cut off",
        "a connection to",
        "replicas:",
        "deleted /",
        "full, and applied",
        "no longer kept",
        "START flag",
        "different content",
        "maxCount",
        "wait already",
        "not run: an earlier step",
        "the step will not be committed",
        "older than",
    )
    for seed in range(72):
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
            world.run(seed, shape=control.shape)
        except Violation as violation:
            found.add(violation.kind)
            if violation.kind in control.breaks:
                return
        except AssertionError:
            continue  # without its rule it may also never answer
    pytest.fail(f"{ENOUGH} histories without this rule, and the checker found only {found or 'nothing'}")


def test_what_breaks_without_a_rule_holds_with_it() -> None:
    """The histories that controls bring along."""
    for seed in range(10):
        for control in controls.CONTROLS:
            if control.shape is not None:
                world.run(seed, shape=control.shape)
