"""Each interruption of the session machine's plans, and each two together: no promise is broken, and every call ends.

Without the rule *read-outcome* for what others wrote on top (`only_the_last_write_counts`) it takes three, so the seeded histories show it.
"""

import pytest
from dormouse_core.sessions.commands import Wake
from dormouse_core.sessions.turns import Turns
from dormouse_testing.interruptions import Broken, Call, History, Scene, explore, written
from dormouse_testing.sessions_sim import controls

RECORD = written()
DAMAGED = RECORD[:-1] + bytes([RECORD[-1] ^ 1])
SCENES: dict[str, Scene] = {
    "two calls of one session, one of another, all new": lambda d: History([Call("a", 0), Call("a", 1), Call("b", 0)], d),
    "a session that lives, while its shard is to move": lambda d: History([Call("a", 0), Call("a", 1)], d, record=RECORD, moves=True),
    "a record that is damaged is begun anew": lambda d: History([Call("a", 0, start=True), Call("a", 1)], d, record=DAMAGED),
    "one call": lambda d: History([Call("a", 0)], d),
}
SMALL: dict[str, Scene] = {
    "one call": SCENES["one call"],
    "one call, while its shard is to move": lambda d: History([Call("a", 0)], d, record=RECORD, moves=True),
}
each_scene = pytest.mark.parametrize("scene", SCENES.values(), ids=SCENES)


@each_scene
def test_each_interruption(scene: Scene) -> None:
    assert explore(scene, 1) > 40


@pytest.mark.parametrize("scene", SMALL.values(), ids=SMALL)
def test_each_two_interruptions_of_one_call(scene: Scene) -> None:
    assert explore(scene, 2) > 1_000


@pytest.mark.slow
@each_scene
def test_each_two_interruptions(scene: Scene) -> None:
    assert explore(scene, 2) > 1_000


@pytest.mark.slow
def test_each_three_interruptions_of_one_call() -> None:
    assert explore(SCENES["one call"], 3) > 10_000


@pytest.mark.parametrize(
    "control",
    [
        controls.no_compares,
        controls.fence_only,
        controls.reply_before_commit,
        controls.failed_compare_means_no,
        controls.memory_survives_a_move,
        controls.unread_outcomes_are_acknowledged,
        controls.believed_when_full,
    ],
    ids=lambda control: control.__name__,
)
def test_without_a_rule_some_interruption_breaks_a_promise(control: controls.Control, monkeypatch: pytest.MonkeyPatch) -> None:
    control(monkeypatch.setattr)
    with pytest.raises(Broken):
        explore_all(2)


def explore_all(depth: int) -> None:
    for scene in SCENES.values():
        explore(scene, depth)


def test_a_plan_that_is_not_woken_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control of the checker: a plan that waits for ever, and a call that is never answered."""
    real = Turns._over

    def over(self: Turns, session: object) -> None:
        real(self, session)
        for command in [command for command in self._out if isinstance(command, Wake)]:
            self._out.remove(command)

    monkeypatch.setattr(Turns, "_over", over)
    with pytest.raises(Broken, match=r"nothing can happen any more|nothing is left to happen|does not end"):
        explore(SCENES["a session that lives, while its shard is to move"], 2)
