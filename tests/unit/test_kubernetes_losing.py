"""What becomes of pods on lost nodes: others beside them first, then they go; and what shows that a node lives."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from dormouse_core.keys import Function, Keys
from dormouse_core.limits import NODE_SILENT_SECONDS, NODE_UNTAKEN_SECONDS
from dormouse_core.nodeloss import NodeLoss, Sign
from dormouse_core.seams import Item
from dormouse_operator.kubernetes.api.http import ApiError, Object
from dormouse_operator.kubernetes.objects import names
from dormouse_operator.kubernetes.objects.object_entries import timestamp
from dormouse_operator.kubernetes.pods import stranded
from dormouse_operator.kubernetes.pods.losing import Losing
from dormouse_operator.view import View
from dormouse_proto import control_pb2, state_pb2
from dormouse_testing.cluster_objects import NOW, deployment, forbidden, pod
from dormouse_testing.provider_world import World

READY = [{"type": "Ready", "status": "True"}]
ENDS = {"deletionTimestamp": timestamp(NOW)}


def worker(name: str, node: str, *, ready: bool = True, taken: bool = True, **more: Any) -> Object:
    """A pod of the function."""
    statuses = [{"name": "worker", "state": {"running": {}}, "ready": True}] if ready else []
    found = pod(name, node=node, containers=statuses, conditions=READY if ready else [], **more)
    return {**found, "status": {**found["status"], "podIP": f"10.0.0.{name[-1]}", **({"startTime": timestamp(NOW)} if taken else {})}}


def relief(*pods: Object, replicas: int, lost: Sequence[str] = ("gone",), conditions: Sequence[Object] = ()) -> tuple[list[str], list[Any]]:
    """Names of those that are deleted by force, and (replicas, victims) of the Deployment."""
    found = stranded.relief(pods, [deployment(replicas, conditions=conditions)], losing(*lost))
    shrunk = [(each.count, [v["metadata"]["name"] for v in each.victims]) for each in found.shrunk]
    return [each["metadata"]["name"] for each in found.forced], shrunk


# ------------------------------------------------------------------------------------------------------------------ pods


def test_a_stranded_pod_stays_while_the_one_in_its_place_is_not_ready() -> None:
    assert relief(worker("p1", "gone"), worker("p2", "b", ready=False), replicas=2) == ([], [])
    assert relief(worker("p1", "gone"), replicas=1) == ([], [])


def test_once_others_are_ready_it_goes_and_without_waiting_for_its_kubelet() -> None:
    assert relief(worker("p1", "gone"), worker("p2", "b"), replicas=2) == ([], [(1, ["p1"])])
    assert relief(worker("p1", "gone", **ENDS), worker("p2", "b"), replicas=1) == (["p1"], [])


def test_where_nobody_is_wanted_all_of_them_go() -> None:
    assert relief(worker("p1", "gone", **ENDS), worker("p2", "gone", **ENDS), replicas=0) == (["p1", "p2"], [])


def test_where_a_quota_has_no_room_for_one_more_the_stranded_one_makes_it() -> None:
    refused = [forbidden('pods "p9" is forbidden: exceeded quota: pods=1')]
    assert relief(worker("p1", "gone"), replicas=2, conditions=refused) == (["p1"], [])
    assert relief(worker("p1", "gone"), worker("p2", "b", ready=False), replicas=2, conditions=refused) == ([], []), "it came meanwhile"


def test_of_a_node_that_is_not_lost_nothing_is_done() -> None:
    assert relief(worker("p1", "gone", **ENDS), worker("p2", "b"), replicas=2, lost=()) == ([], [])


@pytest.mark.parametrize("maximum", [1, 3])
async def test_lost_pods_are_ordered_beside_and_not_counted_and_no_more_are_ordered_than_are_wanted(maximum: int) -> None:
    world = lost("gone")
    others = [worker(f"p{n}", "b") for n in range(2, maximum + 1)]
    await world.heard(deployment(maximum), worker("p1", "gone"), *others)
    assert [each.name for each in await world.seen() if each.lost] == ["p1"]
    assert await world.apply(maximum) == [("f-r1", "patched")]
    assert world.api.objects[("deployments", "ns", "f-r1")]["spec"]["replicas"] == maximum + 1
    assert await world.apply(maximum) == []
    assert await world.apply(0) == [("f-r1", "patched")]
    assert world.api.objects[("deployments", "ns", "f-r1")]["spec"]["replicas"] == 0


async def test_negative_control_not_lost_nothing_is_ordered_beside_it() -> None:
    world = lost("elsewhere")
    await world.heard(deployment(1), worker("p1", "gone"))
    assert await world.apply(1) == []


async def test_callers_are_not_told_of_a_quota_that_a_lost_pod_still_takes() -> None:
    world = lost("gone")
    await world.heard(deployment(2, conditions=[forbidden('pods "p9" is forbidden: exceeded quota: pods=1')]), worker("p1", "gone"))
    assert [each.problem for each in await world.seen()] == [None, None]


def losing(*nodes: str) -> NodeLoss:
    """These are lost."""
    found, others = NodeLoss("own"), [Sign(f"other{n}", answers=True) for n in range(10)]
    for now in (0.0, NODE_SILENT_SECONDS):
        found.look([*others, *(Sign(node, answers=False) for node in nodes)], now)
    return found


def lost(node: str) -> World:
    world = World()
    world.provider._nodes = losing(node)
    return world


# ------------------------------------------------------------------------------------------------------------------ signs


class Reports:
    """Of the links only what is asked here."""

    def __init__(self) -> None:
        self.heard: set[str] = set()

    def follow(self, worker: str, address: str) -> None: ...

    def drop(self, worker: str) -> None: ...

    def report(self, worker: str) -> control_pb2.WorkerReport | None:
        return control_pb2.WorkerReport() if worker in self.heard else None


class Scene:
    """Workers p1 on node a, p2 on b; a gateway on c; the leader on b. `answering`: addresses."""

    def __init__(self) -> None:
        self.world, self.keys = World(), Keys("default")
        self.nodes, self.answering = NodeLoss("b"), {"10.0.0.1:9000", "10.0.0.2:9000"}
        self.dialled: list[str] = []
        self.reports = Reports()
        self.view = View(self.keys, self.world.clock, lambda uid: None)
        self.view.links = self.reports  # type: ignore[assignment]
        self.losing = Losing(self.world.api, self.world.clock, self.world.pods, self.world.deployments, self.view, self.nodes, self.answers)
        self.world.provider._nodes = self.nodes

    async def answers(self, address: str) -> bool:
        self.dialled.append(address)
        await asyncio.sleep(0)
        return address in self.answering

    def leased(self, name: str, *, lives: bool = True) -> None:
        key = self.keys.worker(Function("ns", "f", "u"), f"w{name[-1]}")
        entry = state_pb2.WorkerEntry(address=f"10.0.0.{name[-1]}:9000", instance=name, revision="r1")
        self.view.map_changed(key, None, Item(key, entry.SerializeToString(), 1, 1) if lives else None)

    def gateway(self, node: str, *, lives: bool = True) -> None:
        key = self.keys.gateway(f"g-{node}")
        entry = state_pb2.GatewayEntry(address="127.0.0.1:8002", node=node)
        self.view.gateway_changed(key, None, Item(key, entry.SerializeToString(), 1, 1) if lives else None)

    async def passes(self, seconds: float) -> frozenset[str]:
        for _ in range(int(seconds * 2)):
            self.losing.look()
            for _ in range(5):
                await asyncio.sleep(0)
            self.world.clock.advance(0.5)
        self.losing.look()
        return self.nodes.lost


async def scene(*pods: Object) -> Scene:
    found = Scene()
    await found.world.heard(deployment(len(pods)), *pods)
    found.gateway("c")
    return found


async def test_a_node_whose_only_worker_is_cut_off_with_it_is_lost_once_its_lease_has_ended() -> None:
    found = await scene(worker("p1", "a"), worker("p2", "b"))
    found.leased("p1")
    found.leased("p2")
    found.reports.heard = {"w1", "w2"}
    assert await found.passes(10) == set()
    assert found.dialled == [], "who reports is not dialled"
    found.reports.heard = {"w2"}
    found.answering.clear()
    await found.passes(10)
    assert not any(each.lost for each in await found.world.seen()), "its lease lives"
    found.leased("p1", lives=False)
    await found.passes(0)
    assert [each.name for each in await found.world.seen() if each.lost] == ["p1"]


async def test_an_entry_that_is_kept_for_a_worker_of_a_lost_node_spares_no_worker_of_another_function() -> None:
    """By whoever has the function's credentials, from elsewhere."""
    found = await scene(worker("p1", "a"), worker("p2", "a", function_uid="v"))
    found.answering.clear()
    found.leased("p1")
    await found.passes(10)
    assert [each.name for each in await found.world.seen() if each.lost] == ["p2"]


async def test_one_that_hands_over_on_a_node_that_the_leader_does_not_reach_is_not_forced_while_it_has_a_lease() -> None:
    found = await scene(worker("p1", "a", **ENDS), worker("p3", "a"))
    found.answering.clear()
    found.leased("p1")
    await found.passes(10)
    await found.losing.relieve()
    assert ("p1", "deleted by force") not in found.world.api.written
    found.leased("p1", lives=False)
    await found.passes(0)
    await found.losing.relieve()
    assert ("p1", "deleted by force") in found.world.api.written


async def test_a_leader_that_has_just_begun_concludes_it_from_what_it_finds() -> None:
    found = await scene(worker("p1", "a"))
    found.answering.clear()
    assert await found.passes(1) == set()
    assert await found.passes(2) == {"a"}


async def test_a_worker_whose_process_ended_on_a_node_that_lives_is_no_loss_of_the_node() -> None:
    """Its port refuses, which is an answer."""
    found = await scene(worker("p1", "a"))
    assert await found.passes(60) == set()
    assert set(found.dialled) == {"10.0.0.1:9000"}


async def test_a_gateway_with_a_lease_on_it_shows_that_a_node_lives() -> None:
    found = await scene(worker("p1", "a"))
    found.answering.clear()
    found.gateway("a")
    assert await found.passes(60) == set()
    found.gateway("a", lives=False)
    assert await found.passes(0) == {"a"}


async def test_one_that_ends_or_has_no_address_yet_accuses_nobody() -> None:
    """Its address goes before it has ended; where volumes are mounted first, none comes for minutes, on a node that lives."""
    unaddressed = worker("p2", "d", ready=False)
    del unaddressed["status"]["podIP"]
    found = await scene(worker("p1", "a", **ENDS), unaddressed)
    found.answering.clear()
    assert await found.passes(60) == set()
    assert found.dialled == []


async def test_a_node_that_is_lost_while_its_only_worker_starts_is_found_after_five_seconds() -> None:
    """One that starts again too: its kubelet's last word is that it is not ready, and nobody takes that back."""
    found = await scene(worker("p1", "a", ready=False))
    found.answering.clear()
    assert await found.passes(NODE_UNTAKEN_SECONDS - 0.5) == set()
    assert await found.passes(1.5) == {"a"}
    assert [each.name for each in await found.world.seen() if each.lost] == ["p1"]
    found.answering.add("10.0.0.1:9000")
    assert await found.passes(1) == set()


async def test_a_worker_that_starts_on_a_node_that_lives_is_no_loss_of_it_however_long_it_takes() -> None:
    """Its pod's network refuses."""
    found = await scene(worker("p1", "a", ready=False))
    assert await found.passes(600) == set()
    assert set(found.dialled) == {"10.0.0.1:9000"}


async def test_a_pod_whose_network_is_made_anew_is_asked_at_its_new_address() -> None:
    """The node was started again: the same pod, another address."""
    found = await scene(worker("p1", "a", ready=False))
    await found.passes(2)
    found.answering = {"10.0.0.7:9000"}
    again = worker("p1", "a", ready=False)
    again["status"]["podIP"] = "10.0.0.7"
    await found.world.heard(again)
    assert await found.passes(30) == set()
    assert found.dialled[-1] == "10.0.0.7:9000"


async def test_a_lost_node_whose_kubelet_takes_a_pod_lives_though_the_pod_was_never_seen_before() -> None:
    """It is taken between two looks."""
    found = await scene(worker("p1", "a"))
    found.answering.clear()
    assert await found.passes(3) == {"a"}
    await found.world.heard(worker("p2", "a", ready=False))
    assert await found.passes(0) == set()


async def test_of_many_on_one_node_those_that_were_ready_are_asked_first() -> None:
    starting = [worker(f"p{n}", "a", ready=False) for n in range(3, 9)]
    found = await scene(*starting, worker("p9", "a"), worker("p2", "b"))
    found.answering = {"10.0.0.2:9000"}
    await found.passes(1)
    assert "10.0.0.9:9000" in found.dialled
    assert await found.passes(NODE_SILENT_SECONDS) == {"a"}


async def test_a_pod_that_its_node_does_not_take_shows_that_it_is_lost_until_it_takes_it() -> None:
    found = await scene(worker("p1", "a", ready=False, taken=False))
    assert await found.passes(4) == set()
    assert await found.passes(2) == {"a"}
    await found.world.heard(worker("p1", "a", ready=False))
    assert await found.passes(0) == set()


async def test_what_the_api_server_does_not_say_is_not_known() -> None:
    found = await scene(worker("p1", "a"))
    found.answering.clear()
    await found.passes(1)
    found.world.pods._broken[""] = found.world.clock.monotonic() - 1000
    assert not found.world.pods.fresh
    assert await found.passes(60) == set()


async def test_its_pods_are_replaced_go_by_force_and_what_is_refused_is_tried_again() -> None:
    found = await scene(worker("p1", "a"))
    found.answering.clear()
    await found.passes(3)
    assert await found.world.apply(1) == [("f-r1", "patched")]
    await found.world.heard(worker("p2", "c"))
    await found.losing.relieve()
    assert found.world.api.written[-2:] == [("p1", "patched"), ("f-r1", "patched")]
    pods = found.world.api.objects
    assert int(pods[("pods", "ns", "p1")]["metadata"]["annotations"][names.COST]) < -1000
    assert pods[("deployments", "ns", "f-r1")]["spec"]["replicas"] == 1
    await found.world.heard(worker("p1", "a", **ENDS))
    found.world.api.refuse = ApiError(403, "Forbidden", "no right")
    await found.losing.relieve()
    found.world.api.refuse = None
    await found.losing.relieve()
    assert found.world.api.written[-1] == ("p1", "deleted by force")
