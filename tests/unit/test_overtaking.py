"""Changes of a function that come faster than its workers start: how many workers there are, that it ends, and what serves meanwhile."""

from collections.abc import Callable
from dataclasses import replace
from random import Random

import pytest
from dormouse_core import lifecycle
from dormouse_core.giving import GivingWay, Way
from dormouse_core.lifecycle import Scale, Step
from dormouse_core.observations import FunctionSeen
from dormouse_testing.overtaking import Overtaking

SEEDS = range(100)
CALM = 160  # ticks after the last change
SUPERSEDED = lifecycle._superseded


def played(seed: int) -> Overtaking:
    """A function that serves; then changes in any order and at any time, some of them bad or back to what was; the last one is good."""
    random = Random(seed)
    wanted = random.randint(1, 4)
    found = Overtaking(random, wanted, quota=wanted + random.randint(0, 4))
    settle(found)
    assert found.ready_of("r0") == wanted
    for number in range(1, random.randint(2, 12)):
        found.change(random.choice((f"r{number}", f"r{number}", f"bad-{number}", f"r{random.randint(0, number)}")))
        for _ in range(random.choice((0, 1, 1, 3, 12))):
            step(found)
    found.change("newest")
    settle(found)
    return found


def settle(found: Overtaking) -> None:
    for _ in range(CALM):
        step(found)


def step(found: Overtaking) -> None:
    before, unproved = found.ready, found.world.entry.proved_revision != found.world.entry.revision
    found.tick()
    assert found.running <= 2 * found.wanted + 1, "one to be proved, what serves, and what is not yet replaced"
    assert len(found.pods) <= found.quota
    if unproved:
        gives = found.quota == found.wanted and before == found.wanted
        assert found.ready >= min(before, found.wanted) - gives, "an unproved revision takes nobody away who is wanted"


@pytest.mark.parametrize("seed", SEEDS)
def test_changes_that_overtake_each_other_end_with_the_newest_and_leave_nobody_between(seed: int) -> None:
    ended(played(seed))


def all_end(seeds: int) -> None:
    for seed in range(seeds):
        ended(played(seed))


def ended(found: Overtaking) -> None:
    assert found.ready_of("newest") == found.wanted, "the newest serves"
    assert {pod.revision for pod in found.pods.values()} == {"newest"}
    assert {found.world.workers[shard.owner].revision for shard in found.world.shards.values()} == {"newest"}
    left = {f"the lease of {name} is gone" for name in found.world.told if found.quota == found.wanted == 1}
    assert {each.reason for each in found.failovers} <= left, "every shard was handed over by who had it, or saved by who gave its place"


def stays(seen: FunctionSeen, kept: set[str], wanted: int, why: str, most: int | None) -> list[Step]:
    """What lies between stays until the target is proved and ready."""
    ready = sum(w.serving for w in seen.of_target())
    others = {i.revision for i in seen.instances or () if not i.stopping} - kept
    return [Scale(each, 0, (), why) for each in others if seen.proved and ready >= wanted]


def crowded(seen: FunctionSeen, kept: set[str], wanted: int, why: str, most: int | None) -> list[Step]:
    """Whether there is room is not looked at."""
    found = [replace(each, unplaced=False) for each in seen.instances or ()]
    return SUPERSEDED(replace(seen, instances=found), kept, wanted, why, most)


def bare(seen: FunctionSeen, kept: set[str], wanted: int, why: str, most: int | None) -> list[Step]:
    """Nobody is kept until others are ready."""
    return SUPERSEDED(seen, kept, 0, why, most)


@pytest.mark.parametrize(
    ("rule", "broken"),
    [(stays, "one to be proved, what serves"), (crowded, "the newest serves"), (bare, "takes nobody away who is wanted")],
)
def test_negative_controls(rule: Callable[..., list[Step]], broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "_superseded", rule)
    if rule is crowded:  # else the next place is given after a while, by who would have it at once
        monkeypatch.setattr(GivingWay, "look", lambda *_, **__: Way())
    with pytest.raises(AssertionError, match=broken):
        all_end(20)


def test_negative_control_where_no_worker_gives_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GivingWay, "look", lambda *_, **__: Way())
    with pytest.raises(AssertionError, match="the newest serves"):
        all_end(20)
