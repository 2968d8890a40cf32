"""How many may be evicted at once: a drain ends wherever the pods fit, or fit nowhere; and until then one worker at a time."""

import asyncio
from typing import Any

import pytest
from dormouse_operator.kubernetes.api.http import ApiError, Object
from dormouse_operator.kubernetes.api.kinds import BUDGETS, PODS
from dormouse_operator.kubernetes.api.reflecting import PATIENCE, Reflector
from dormouse_operator.kubernetes.objects import names
from dormouse_operator.kubernetes.objects.budgets import ALL, Budgets, at_once
from dormouse_operator.kubernetes.settings import ClusterSettings
from dormouse_testing.clock import ManualClock
from dormouse_testing.memory_api import MemoryApi

GATEWAY = {"dormouse.dev/part": "gateway"}


def pod(name: str, *, going: bool = False, homeless: bool = False, phase: str = "", namespace: str = "ns", **metadata: Any) -> Object:
    scheduled = (
        {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"} if homeless else {"type": "PodScheduled", "status": "True"}
    )
    status = {"phase": phase or ("Pending" if homeless else "Running"), "conditions": [scheduled]}
    found: Object = {
        "metadata": {"name": name, "namespace": namespace, "labels": {names.UID: "u"}, **metadata},
        "spec": {},
        "status": status,
    }
    if going:
        found["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    return found


RUNS: dict[str, bool] = {}
GOES, WAITS = {"going": True}, {"homeless": True}


@pytest.mark.parametrize(
    ("pods", "expected"),
    [
        ([], 1),
        ([RUNS] * 3, 1),
        ([RUNS, RUNS, GOES, WAITS], 1),
        ([RUNS, RUNS, WAITS], 2),
        ([RUNS, GOES, WAITS, WAITS], 2),
        ([RUNS, WAITS, WAITS], 3),
        ([GOES, WAITS, WAITS, WAITS], 3),
        ([WAITS, WAITS, WAITS], 4),
        ([GOES, GOES, RUNS], 1),
        ([RUNS, RUNS, {"homeless": True, "going": True}], 1),
        ([RUNS, RUNS, {"phase": "Failed"}], 1),
        ([RUNS, WAITS, {"phase": "Failed", "going": True}], 2),
    ],
)
def test_a_pod_without_a_node_does_not_count_once_the_one_that_it_replaces_has_ended(pods: list[dict[str, bool]], expected: int) -> None:
    assert at_once([pod(str(number), **each) for number, each in enumerate(pods)]) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_a_drain_to_nowhere_ends_and_never_takes_two_at_once(count: int) -> None:
    """The disruption controller's arithmetic, over a node that is drained while its pods fit nowhere: a step is an eviction or an end."""
    running, going, waiting = count, 0, 0
    for _ in range(2 * count):
        pods = [RUNS] * running + [GOES] * going + [WAITS] * waiting
        allowed = running - (count - at_once(pod(str(number), **each) for number, each in enumerate(pods)))  # type: ignore[arg-type]
        if going:
            assert allowed <= 0, "the next goes when this one has handed over"
            going = 0
        else:
            assert allowed == 1
            running, going, waiting = running - 1, 1, waiting + 1
    assert (running, going) == (0, 0)


def test_negative_control_with_a_fixed_budget_it_would_never_end() -> None:
    count, running = 3, 2
    assert running - (count - 1) == 0


class World:
    def __init__(self) -> None:
        self.api, clock = MemoryApi(), ManualClock()
        settings = ClusterSettings(system_namespace="system", gateway="dormouse-gateway.system.svc")
        self.pods, self.copies = (Reflector(self.api, clock, kind) for kind in (PODS, BUDGETS))
        self.budgets = Budgets(self.api, clock, settings, self.pods, self.copies, "dormouse-operator-1")
        self.clock = clock
        labels = {names.UID: "u"}
        self.budget("fn", "ns", {"metadata": {"labels": labels}})
        self.budget("dormouse-gateway", "system", {"status": {"currentHealthy": 2, "expectedPods": 2}})

    def budget(self, name: str, namespace: str, more: Object) -> None:
        metadata = {"name": name, "namespace": namespace, **more.get("metadata", {})}
        self.api.put(BUDGETS, {"spec": {"maxUnavailable": 1, "selector": {"matchLabels": GATEWAY}}, **more, "metadata": metadata})

    def width(self, name: str, namespace: str) -> Any:
        return self.api.objects[("poddisruptionbudgets", namespace, name)]["spec"]["maxUnavailable"]

    async def look(self) -> None:
        for copy in (self.pods, self.copies):
            await copy._list("")
        self.copies.items.pop(("system", "dormouse-gateway"), None)  # it is no function's, so the real copy does not have it
        running = asyncio.create_task(self.budgets.run())
        for _ in range(20):
            await asyncio.sleep(0)
        running.cancel()


async def test_budgets_follow_pods_and_nothing_is_written_where_nothing_changed() -> None:
    world = World()
    for number in range(3):
        world.api.put(PODS, pod(str(number)))
    await world.look()
    assert world.api.written == []
    world.api.put(PODS, pod("0", homeless=True))
    await world.look()
    assert world.width("fn", "ns") == 2
    await world.look()
    assert world.api.written == [("fn", "patched")]
    world.api.put(PODS, pod("0"))
    await world.look()
    assert world.width("fn", "ns") == 1


async def test_a_copy_that_is_not_of_now_and_a_budget_that_goes_change_nothing() -> None:
    world = World()
    world.api.put(PODS, pod("0", homeless=True))
    world.pods._broken[""] = world.clock.monotonic() - PATIENCE
    await world.look()
    assert world.api.written == []
    world.pods._broken.clear()
    world.budget("fn", "ns", {"metadata": {"labels": {names.UID: "u"}, "deletionTimestamp": "2026-01-01T00:00:00Z"}})
    await world.look()
    assert world.api.written == []
    world.budget("fn", "ns", {"metadata": {"labels": {names.UID: "u"}}})
    await world.look()
    assert world.width("fn", "ns") == 2, "negative control: else it would"


async def test_a_gateway_that_finds_no_node_does_not_hold_the_other() -> None:
    world = World()
    world.budget("dormouse-gateway", "system", {"status": {"currentHealthy": 1, "expectedPods": 2}})
    for number, homeless in enumerate((False, True)):
        world.api.put(PODS, pod(f"g{number}", homeless=homeless, namespace="system", labels=GATEWAY))
    await world.look()
    assert world.width("dormouse-gateway", "system") == 2


OPERATOR = {"dormouse.dev/part": "operator"}
HERE, THERE = {"nodeName": "here"}, {"nodeName": "there"}


def operator(world: World, name: str, *, evicted: bool = False, node: str = "here", homeless: bool = False, going: bool = False) -> None:
    found = pod(name, namespace="system", homeless=homeless, going=going, labels={**OPERATOR, "pod-template-hash": name[-1]})
    target = [{"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}] if evicted else []
    found["status"]["conditions"] += target
    found["spec"] = {"nodeName": node} if node else {}
    world.api.put(PODS, found)


async def released(world: World) -> set[Any]:
    """Of all budgets, after this operator's end."""
    for number in range(2):
        world.api.put(PODS, {**pod(str(number)), "spec": HERE})
    await world.look()
    ending = asyncio.create_task(world.budgets.release())
    while not ending.done():
        await asyncio.sleep(0)
        world.clock.advance(0.1)
    await ending
    return {world.width("fn", "ns"), world.width("dormouse-gateway", "system")}


@pytest.mark.parametrize("evicted", [True, False])
async def test_who_is_evicted_from_the_only_node_lets_go_of_every_budget(evicted: bool) -> None:
    """And the next leader takes them up. Who ends for another reason, as in an upgrade, leaves them."""
    world = World()
    operator(world, "dormouse-operator-1", evicted=evicted, going=True)
    operator(world, "dormouse-operator-2", node="", homeless=True)
    assert await released(world) == {ALL if evicted else 1}
    await world.look()
    assert (world.width("fn", "ns"), world.width("dormouse-gateway", "system")) == (1, 1)


async def test_where_another_operator_can_lead_no_budget_is_opened() -> None:
    """On another node, or, where the node takes pods all the same, on this one."""
    for node in ("there", "here"):
        world = World()
        operator(world, "dormouse-operator-1", evicted=True, going=True)
        operator(world, "dormouse-operator-2", node=node)
        assert await released(world) == {1}


async def test_where_there_are_other_nodes_no_budget_is_opened_though_the_next_operator_has_no_room_yet() -> None:
    world = World()
    operator(world, "dormouse-operator-1", evicted=True, going=True)
    operator(world, "dormouse-operator-2", node="", homeless=True)
    world.api.put(PODS, {**pod("elsewhere"), "spec": THERE})
    assert await released(world) == {1}


async def test_the_schedulers_word_is_waited_for_and_none_is_not_taken_for_a_no() -> None:
    world = World()
    operator(world, "dormouse-operator-1", evicted=True, going=True)
    operator(world, "dormouse-operator-2", node="")
    assert await released(world) == {1}
    world = World()
    operator(world, "dormouse-operator-1", evicted=True, going=True)
    ending = asyncio.create_task(released(world))
    for _ in range(200):
        await asyncio.sleep(0)
    operator(world, "dormouse-operator-2", node="", homeless=True)
    assert await ending == {ALL}, "the pod came later"


async def test_where_nobody_takes_its_place_all_budgets_are_opened() -> None:
    world = World()
    operator(world, "dormouse-operator-1", evicted=True, going=True)
    assert await released(world) == {ALL}


async def test_an_api_server_that_does_not_answer_keeps_nobody_from_ending() -> None:
    world = World()
    world.api.refuse = ApiError(0, "NoAnswer", "away")
    await world.budgets.release()
