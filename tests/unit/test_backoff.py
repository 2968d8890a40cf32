"""Pauses that grow with each failure in a row."""

import itertools
import re
from pathlib import Path

from dormouse_core.backoff import Backoff

ROOT = Path(__file__).parents[2]


def test_each_failure_doubles_the_pause_up_to_the_longest() -> None:
    backoff = Backoff(0.1, 1.0)
    assert [backoff.after(failures) for failures in range(1, 7)] == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    assert list(itertools.islice(backoff.pauses(), 6)) == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]


def test_a_loop_that_fails_for_a_day_still_has_a_pause() -> None:
    """Two to the power of 1,024 is no float's: a worker that crashed for 17 hours would have ended who starts it again."""
    assert Backoff(1.0, 60.0).after(100_000) == 60.0
    assert Backoff(1, 60).after(100_000) == 60


def test_nobody_doubles_a_pause_of_their_own() -> None:
    doubled = re.compile(r"\* ?2 ?\*\*|= min\(2 \* |= min\(.* \* 2\)")
    parts = [path for part in ("core", "kit", "gateway", "operator", "worker", "cli") for path in (ROOT / part).rglob("*.py")]
    found = [path.name for path in parts if any(doubled.search(line) for line in path.read_text(encoding="utf-8").splitlines())]
    assert not found
    assert all(map(doubled.search, ("min(5.0, 0.1 * 2**failures)", "pause = min(2 * pause, longest)")))
