"""An installation's new image, and the workers of all functions that are awake: a few functions at a time."""

from collections import Counter
from typing import Any

import pytest
from dormouse_core.limits import REPLACE_TURN_SECONDS, REPLACED, REPLACED_A_NODE
from dormouse_core.replacing import Replacing
from dormouse_operator.kubernetes.api.kinds import DEPLOYMENTS
from dormouse_operator.kubernetes.api.reflecting import Reflector
from dormouse_operator.kubernetes.objects.replacements import Replacements, rolled_out
from dormouse_testing.clock import ManualClock
from dormouse_testing.cluster_objects import deployment
from dormouse_testing.memory_api import MemoryApi

FUNCTIONS = [f"u{number:05}" for number in range(10_000)]
TAKES = 5.0  # seconds for which one function's workers are being replaced


def replaced(nodes: int, functions: list[str], stuck: frozenset[str] = frozenset()) -> tuple[float, int, list[str]]:
    """When all have had their turn, how many were replaced together at most, and in which order they began. `stuck`: never end."""
    found, now, most, order = Replacing(), 0.0, 0, list[str]()
    ends: dict[str, float] = {}

    def begin(uid: str) -> None:
        order.append(uid)
        ends[uid] = now + (1e9 if uid in stuck else TAKES)

    for uid in functions:
        if found.ask(uid, nodes, now):
            begin(uid)
    while len(order) < len(functions):
        most = max(most, sum(end > now for end in ends.values()) if not stuck else 0)
        now += 1.0
        for uid in found.look(lambda uid: ends[uid] <= now, nodes, now):  # noqa: B023
            assert found.ask(uid, nodes, now), "it may, when it looks at last"
            begin(uid)
    return now, most, order


@pytest.mark.parametrize(("nodes", "together"), [(0, REPLACED_A_NODE), (1, REPLACED_A_NODE), (3, 3 * REPLACED_A_NODE), (50, REPLACED)])
def test_few_are_replaced_together_on_each_node_and_in_all_and_all_are_in_their_order(nodes: int, together: int) -> None:
    functions = FUNCTIONS[:400]
    took, most, order = replaced(nodes, functions)
    assert (most, order) == (together, functions)
    assert took <= len(functions) / together * (TAKES + 1)


def test_ten_thousand_are_replaced_in_half_an_hour() -> None:
    took, most, order = replaced(50, FUNCTIONS)
    assert most == REPLACED
    assert len(order) == len(FUNCTIONS)
    assert took < 2000


def test_an_image_that_does_not_start_harms_a_few_at_a_time_and_one_function_keeps_nobody_waiting_for_ever() -> None:
    took, _, _ = replaced(1, FUNCTIONS[:12], frozenset(FUNCTIONS))
    assert took == 2 * REPLACE_TURN_SECONDS
    took, _, _ = replaced(1, FUNCTIONS[:40], frozenset(FUNCTIONS[:1]))
    assert took < REPLACE_TURN_SECONDS


def test_who_asks_again_while_it_waits_waits_in_its_place() -> None:
    found = Replacing()
    assert [found.ask(uid, 1, 0.0) for uid in FUNCTIONS[:6]] == [True] * 4 + [False] * 2
    assert not found.ask(FUNCTIONS[4], 1, 0.0)
    assert found.look(lambda uid: True, 1, 1.0) == FUNCTIONS[4:6]
    assert found.look(lambda uid: True, 1, 2.0) == []
    assert [found.ask(uid, 1, 3.0) for uid in FUNCTIONS[6:12]] == [True] * 4 + [False] * 2
    assert not found.ask("late", 2, 3.0), "a node more, and those who wait come first"
    assert found.look(lambda uid: False, 2, 4.0) == [*FUNCTIONS[10:12], "late"]


def of(uid: str, **status: int) -> dict[str, Any]:
    made = deployment(1)
    made["metadata"] = {**made["metadata"], "generation": 2, "name": uid, "labels": {**made["metadata"]["labels"], "dormouse.dev/uid": uid}}
    return {**made, "status": status}


DONE = {"observedGeneration": 2, "replicas": 1, "updatedReplicas": 1, "availableReplicas": 1}


@pytest.mark.parametrize("lack", [{"observedGeneration": 1}, {"replicas": 2}, {"updatedReplicas": 0}, {"availableReplicas": 0}])
def test_a_deployment_has_replaced_its_pods_when_it_says_so_of_what_it_is_now(lack: dict[str, int]) -> None:
    assert rolled_out(of("u", **DONE))
    assert not rolled_out(of("u", **{**DONE, **lack}))


def test_the_next_one_is_written_when_one_has_ended() -> None:
    clock, turns = ManualClock(), list[str]()
    copies = Reflector(MemoryApi(), clock, DEPLOYMENTS)
    found = Replacements(clock, copies, lambda: 1, turns.append)
    assert Counter(found.may(f"u{number}") for number in range(6)) == {True: REPLACED_A_NODE, False: 2}
    copies.items = {("ns", f"u{number}"): of(f"u{number}", **{**DONE, "updatedReplicas": 0}) for number in range(6)}
    found.look()
    assert turns == []
    copies.items[("ns", "u1")] = of("u1", **DONE)
    found.look()
    assert turns == ["u4"]
    assert found.may("u4")
    del copies.items[("ns", "u2")]
    found.look()
    assert turns == ["u4", "u5"], "who is gone keeps nobody waiting"
