"""Steps that wait for calls of theirs leave their places to others, and no step that is waited for is kept from running."""

import random

import pytest
from dormouse_core.limits import CALL_DEPTH, WAITING_STEPS
from dormouse_core.slots import Slots


def test_as_many_run_as_may_and_the_next_in_its_turn() -> None:
    slots: Slots[str] = Slots(2, 1)
    assert slots.enter("a", 0) == ["a"]
    assert slots.enter("b", 0) == ["b"]
    assert slots.enter("c", 0) == slots.enter("d", 0) == []
    assert slots.left(0) == ["c"]
    assert slots.left(0) == ["d"]


def test_a_step_that_waits_leaves_its_place_and_goes_on_at_once() -> None:
    slots: Slots[str] = Slots(1, 2)
    assert slots.enter("a", 0) == ["a"]
    assert slots.enter("b", 0) == slots.enter("c", 0) == slots.enter("d", 0) == []
    assert slots.waits(0) == ["b"]
    slots.resumes(0)
    assert slots.left(0) == [], "the other one runs"
    assert slots.left(0) == ["c"]


def test_steps_that_wait_have_a_limit_and_each_level_its_own() -> None:
    slots: Slots[int] = Slots(1, WAITING_STEPS)
    begun = [number for number in range(WAITING_STEPS + 10) for _ in slots.enter(number, 0)]
    while found := slots.waits(0):
        begun += found
    assert len(begun) == 1 + WAITING_STEPS, "each of them has a thread"
    assert slots.enter(-1, 1) == [-1], "whom they wait for runs all the same"


def run(seed: int, *, levels: bool) -> int:
    """Steps of two functions that call each other's, up to the depth that is allowed; how many never end."""
    chance = random.Random(seed)
    functions: list[Slots[tuple[int, int]]] = [Slots(2, 3) for _ in range(2)]

    def level(depth: int) -> int:
        return depth if levels else 0

    parents: dict[tuple[int, int, int], tuple[int, int, int] | None] = {}
    running: list[tuple[int, int, int]] = []
    number = 0

    def enter(function: int, depth: int, parent: tuple[int, int, int] | None) -> None:
        nonlocal number
        number += 1
        parents[function, depth, number] = parent
        running.extend((function, d, n) for d, n in functions[function].enter((depth, number), level(depth)))

    for _ in range(60):
        enter(chance.randrange(2), 0, None)
    ended = 0
    called: set[tuple[int, int, int]] = set()
    while running:
        step = running.pop(chance.randrange(len(running)))
        function, depth, _ = step
        if step not in called and depth < CALL_DEPTH - 1 and chance.random() < 0.8:
            called.add(step)
            begun = functions[function].waits(level(depth))
            running.extend((function, d, n) for d, n in begun)
            enter(1 - function, depth + 1, step)
            continue
        ended += 1
        running.extend((function, d, n) for d, n in functions[function].left(level(depth)))
        if (parent := parents[step]) is not None:
            functions[parent[0]].resumes(level(parent[1]))
            running.append(parent)
    return number - ended


@pytest.mark.parametrize("seed", range(30))
def test_steps_that_wait_for_each_others_functions_all_end(seed: int) -> None:
    assert run(seed, levels=True) == 0


def test_negative_control_without_levels_they_take_each_others_places_for_ever() -> None:
    assert any(run(seed, levels=False) for seed in range(30))
