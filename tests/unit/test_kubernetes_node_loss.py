"""A lost node from end to end, over a cluster in memory: its ReplicaSets, a scheduler that does not know and likes the dead node best, and
kubelets of nodes that live. What is decided and done about it is the real one."""

import asyncio
import itertools
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from dormouse_core import lifecycle
from dormouse_core.autoscaling import Decision
from dormouse_core.lifecycle import Scale
from dormouse_core.nodeloss import Sign
from dormouse_core.observations import FunctionSeen, WorkerSeen
from dormouse_core.seams import Wanted
from dormouse_operator.kubernetes.api.http import Object
from dormouse_operator.kubernetes.api.kinds import DEPLOYMENTS, PODS
from dormouse_operator.kubernetes.objects import names
from dormouse_operator.kubernetes.objects.object_entries import timestamp
from dormouse_operator.kubernetes.pods import stranded
from dormouse_operator.kubernetes.pods.losing import Losing
from dormouse_testing.cluster_objects import deployment, forbidden, pod
from dormouse_testing.functions_seen import report
from dormouse_testing.provider_world import World, function
from hypothesis import example, given, settings
from hypothesis import strategies as st

TICK = 0.5
START = 2.0  # seconds from a kubelet's news of a pod to its worker's lease
LEASE = 3.0
DEAD = "a"  # comes first where all is equal


class Leases:
    """Of a view only what is asked here."""

    def __init__(self, cluster: "Simulated") -> None:
        self._cluster = cluster
        self.gateway_nodes = {"g": "c"}

    def leased(self) -> set[tuple[str, str]]:
        return {("u", name) for name in self._cluster.leases}

    def reporting(self) -> set[tuple[str, str]]:
        return {("u", name) for name in self._cluster.leases if self._cluster.alive(name)}


@dataclass
class Simulated:
    """`quota`: pods that there may be; `dead`: nodes; `fits`: those that the scheduler finds good enough;
    `addressed`: pods have an address once they are taken, not only once they run."""

    wanted: int = 1
    quota: int = 100
    fits: str = "abc"
    addressed: bool = True
    dead: set[str] = field(default_factory=set)
    world: World = field(default_factory=World)
    leases: dict[str, float] = field(default_factory=dict)  # pod -> when its lease ends
    most: int = 0  # workers with a lease on nodes that live, at once
    pods_at_most: int = 0

    def __post_init__(self) -> None:
        self.numbers = itertools.count(1)
        self.nodes = self.world.provider._nodes
        self.nodes._own = "b"
        view: Any = Leases(self)
        self.losing = Losing(self.world.api, self.world.clock, self.world.pods, self.world.deployments, view, self.nodes, self.answers)
        self.world.api.put(DEPLOYMENTS, deployment(self.wanted))

    async def answers(self, address: str) -> bool:
        await asyncio.sleep(0)
        return address.partition(":")[0][-1] not in self.dead

    @property
    def pods(self) -> dict[str, Object]:
        return {name: found for (plural, _, name), found in self.world.api.objects.items() if plural == "pods"}

    def alive(self, name: str) -> bool:
        return name in self.pods and self.pods[name]["spec"]["nodeName"] not in self.dead

    def serving(self) -> list[str]:
        return [name for name in self.leases if self.alive(name)]

    async def run(self, seconds: float) -> None:
        for _ in range(int(seconds / TICK)):
            self._controllers()
            self._scheduler()
            self._kubelets()
            await self.world.heard()
            self.losing.look()
            for _ in range(5):
                await asyncio.sleep(0)
            await self.losing.relieve()
            await self._decide()
            self.most = max(self.most, len(self.serving()))
            self.pods_at_most = max(self.pods_at_most, len(self.pods))
            self.world.clock.advance(TICK)

    async def until_serving(self, limit: float) -> float:
        began = self.world.clock.monotonic()
        while len(self.serving()) < self.wanted:
            assert self.world.clock.monotonic() - began < limit
            await self.run(TICK)
        return self.world.clock.monotonic() - began

    # ------------------------------------------------------------------------------------------------------------------ the operator

    async def _decide(self) -> None:
        workers = {n: WorkerSeen(n, "", "r1", n, report=report() if self.alive(n) else None) for n in self.leases}
        entry = function(proved_revision="r1")
        seen = FunctionSeen(entry, 1, 1, workers=workers, instances=tuple(await self.world.seen()))
        for step in lifecycle.live(seen, Decision(self.wanted, "so many calls")):
            if isinstance(step, Scale):
                await self.world.provider.apply(Wanted(entry, step.revision, step.count, step.victims))

    # ------------------------------------------------------------------------------------------------------------------ the cluster

    def _controllers(self) -> None:
        found = self.world.api.objects[("deployments", "ns", "f-r1")]
        there = [each for each in self.pods.values() if "deletionTimestamp" not in each["metadata"]]
        surplus, refused = len(there) - found["spec"]["replicas"], False
        for each in sorted(there, key=self._rank)[: max(surplus, 0)]:
            self._put(each, metadata={"deletionTimestamp": timestamp(self.world.clock.now())})
        for _ in range(max(-surplus, 0)):
            if refused := len(self.pods) >= self.quota:
                break
            self.world.api.put(PODS, pod(f"p{next(self.numbers)}", node="", phase="Pending"))
        conditions = [forbidden("exceeded quota: pods")] if refused else []
        self.world.api.put(DEPLOYMENTS, {**found, "status": {"conditions": conditions}})

    @staticmethod
    def _rank(found: Object) -> tuple[bool, bool, bool, int]:
        """Whom a ReplicaSet deletes first."""
        cost = int(found["metadata"].get("annotations", {}).get(names.COST, 0))
        return bool(found["spec"]["nodeName"]), found["status"]["phase"] == "Running", stranded.ready(found), cost

    def _scheduler(self) -> None:
        """Prefers nodes with fewer pods of the function, as its template says; those that go are not counted."""
        for each in self.pods.values():
            if not each["spec"]["nodeName"]:
                there = [p["spec"]["nodeName"] for p in self.pods.values() if "deletionTimestamp" not in p["metadata"]]
                self._put(each, spec={"nodeName": min(self.fits, key=lambda node: (there.count(node), node))})

    def _kubelets(self) -> None:
        now = self.world.clock.monotonic()
        self.leases = {name: ends for name, ends in self.leases.items() if ends > now or self.alive(name)}
        for name, each in self.pods.items():
            if not self.alive(name):
                continue
            if "deletionTimestamp" in each["metadata"]:
                del self.world.api.objects[("pods", "ns", name)]
                self.leases.pop(name, None)
            elif "startTime" not in each["status"]:
                address = {"podIP": f"10.0.0.{each['spec']['nodeName']}"} if self.addressed else {}
                self._put(each, status={"startTime": timestamp(self.world.clock.now()), "made": now, **address})
            elif now - each["status"]["made"] >= START:
                statuses = [{"name": "worker", "state": {"running": {}}, "ready": True}]
                conditions = [{"type": "Ready", "status": "True"}]
                more = {"podIP": f"10.0.0.{each['spec']['nodeName']}", "containerStatuses": statuses, "conditions": conditions}
                self._put(each, status={"phase": "Running", **more})
                self.leases[name] = now + LEASE

    def _put(self, found: Object, **parts: Object) -> None:
        self.world.api.put(PODS, {**found, **{part: {**found[part], **more} for part, more in parts.items()}})


async def running(**given: Any) -> Simulated:
    found = Simulated(**given)
    await found.until_serving(10)
    assert found.pods["p1"]["spec"]["nodeName"] == DEAD
    return found


@pytest.mark.parametrize("wanted", [1, 2, 3, 5])
async def test_its_workers_are_replaced_within_seconds_and_nothing_is_left_of_them(wanted: int) -> None:
    found = await running(wanted=wanted)
    found.dead.add(DEAD)
    assert await found.until_serving(15) <= 3 + 2 + START + 3 * TICK
    await found.run(10)
    assert len(found.pods) == wanted
    assert all(each["spec"]["nodeName"] != DEAD for each in found.pods.values())
    assert found.most == wanted, "never one too many that serves"


async def test_when_it_comes_back_nothing_is_doubled() -> None:
    for after in (1.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 20.0):
        found = await running()
        found.dead.add(DEAD)
        await found.run(after)
        found.dead.clear()
        await found.run(20)
        assert (len(found.pods), len(found.serving())) == (1, 1), after


async def starts(**given: Any) -> Simulated:
    """Its only worker was taken, and loads its model."""
    found = Simulated(**given)
    while not any("startTime" in each["status"] for each in found.pods.values()):
        await found.run(TICK)
    assert (found.serving(), found.pods["p1"]["spec"]["nodeName"]) == ([], DEAD)
    return found


async def test_a_worker_that_was_starting_when_its_node_was_lost_is_replaced() -> None:
    found = await starts()
    found.dead.add(DEAD)
    assert await found.until_serving(30) <= 5 + START + 5 * TICK
    await found.run(10)
    assert (len(found.pods), found.most) == (1, 1)


async def test_one_that_had_no_address_yet_waits_for_kubernetes() -> None:
    """The only one that does: of a node that lives, a volume may keep it without one for minutes."""
    found = await starts(addressed=False)
    found.dead.add(DEAD)
    await found.run(60)
    assert (found.nodes.lost, list(found.pods)) == (set(), ["p1"])


async def test_a_function_that_slept_wakes_although_its_pod_is_bound_to_the_lost_node() -> None:
    """Nothing of Dormouse ran there: its kubelet alone is silent."""
    found = Simulated(dead={DEAD})
    assert await found.until_serving(30) <= 5 + START + 5 * TICK
    await found.run(10)
    assert len(found.pods) == 1


async def test_with_a_quota_of_one_pod_the_lost_one_makes_room_as_often_as_it_takes() -> None:
    """The scheduler binds the next one there again, until it knows."""
    found = await running(quota=1)
    found.dead.add(DEAD)
    await found.run(10)
    assert found.serving() == []
    assert len(found.pods) <= 1
    found._scheduler = lambda: [found._put(p, spec={"nodeName": "b"}) for p in found.pods.values() if not p["spec"]["nodeName"]]  # type: ignore[assignment, method-assign]
    await found.until_serving(10)
    await found.run(10)
    assert (len(found.pods), len(found.serving())) == (1, 1)


@pytest.mark.parametrize("wanted", [1, 3])
@pytest.mark.parametrize("slept", [False, True])
async def test_where_the_lost_node_alone_fits_there_is_one_beside_each_and_it_is_tried_again_ever_more_rarely(
    wanted: int, slept: bool
) -> None:
    """A node selector, a device, or the others are full; Kubernetes does not know yet."""
    found = Simulated(wanted=wanted, fits=DEAD, dead={DEAD}) if slept else await running(wanted=wanted, fits=DEAD)
    found.dead.add(DEAD)
    await found.run(120)
    assert found.nodes.lost == {DEAD}
    assert found.pods_at_most <= 2 * wanted
    made = next(found.numbers) - 1
    tries = 7  # after 2, 4, 8, 16 and each 30 seconds
    assert wanted * (1 + 4) <= made <= wanted * (2 + tries)
    found.dead.clear()
    await found.run(20)
    assert (len(found.pods), len(found.serving())) == (wanted, wanted)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a", "ab", "abc", "bc", "b"]),  # where new pods fit
            st.sampled_from(["", "a", "c"]),  # dead
            st.integers(1, 4),  # wanted
            st.integers(1, 30),  # ticks
        ),
        max_size=8,
    ),
    st.integers(1, 4),
    st.booleans(),
)
@example([("a", "a", 1, 9), ("a", "a", 2, 1), ("a", "a", 1, 5)], 1, True)
def test_whatever_happens_pods_are_bounded_and_all_is_well_once_nodes_are_back(
    events: list[tuple[str, str, int, int]], quota: int, scarce: bool
) -> None:
    async def play() -> None:
        found = Simulated(quota=quota if scarce else 100)
        for fits, dead, wanted, ticks in events:
            found.fits, found.wanted = fits, wanted
            found.dead.clear()
            found.dead.update(dead)
            await found.run(ticks * TICK)
            ordered = found.world.api.objects[("deployments", "ns", "f-r1")]["spec"]["replicas"]
            assert ordered <= 3 * 4, "those that are wanted, as many that were lost, and as many that are bound there since"
        assert found.pods_at_most <= (quota if scarce else 4 * 4)
        found.dead.clear()
        found.fits, found.wanted, found.most = "abc", min(found.wanted, quota), 0
        await found.run(80)
        assert (len(found.pods), len(found.serving())) == (found.wanted, found.wanted)

    asyncio.run(play())


def test_pods_of_one_function_that_fit_nowhere_keep_nobody_elses_from_their_place() -> None:
    """Each Deployment is tried at its own intervals."""
    again = stranded.Again()
    stuck, fresh = ("u", "r1"), ("v", "r1")
    tried = [now for now in range(200) if again.due([stuck], now)]
    assert tried == [2, 6, 14, 30, 60, 90, 120, 150, 180]
    assert again.due([stuck, fresh], 200) == set()
    assert again.due([stuck, fresh], 202) == {fresh}
    assert [again.due([], 203), again.due([stuck], 211)] == [set(), {stuck}], "what is not there for a moment is not begun anew"
    assert again.due([stuck], 300) == set()
    assert again.due([stuck], 302) == {stuck}, "after longer than the longest pause it is"


async def test_negative_control_where_each_that_is_bound_there_had_one_beside_it_pods_have_no_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = stranded.split

    def all_kept(*given: Any) -> dict[stranded.Place, stranded.Split]:
        return {where: stranded.Split(kept=each.stranded, others=each.others) for where, each in real(*given).items()}

    monkeypatch.setattr(stranded, "split", all_kept)
    found = await running(fits=DEAD)
    found.dead.add(DEAD)
    await found.run(50)
    assert len(found.pods) > 80


async def test_negative_control_where_nodes_are_not_looked_at_nothing_is_ordered(monkeypatch: pytest.MonkeyPatch) -> None:
    found = await running()
    signs = found.losing._signs
    monkeypatch.setattr(found.losing, "_signs", lambda: [replace(sign, answers=None, untaken=False) for sign in signs()] + [Sign("c")])
    found.dead.add(DEAD)
    await found.run(300)
    assert (list(found.pods), found.serving()) == (["p1"], [])


async def test_when_most_nodes_are_silent_nothing_is_replaced() -> None:
    found = await running(wanted=3)
    found.dead |= {"a", "c"}
    found.losing._view.gateway_nodes.clear()
    found.nodes._own = ""
    await found.run(30)
    assert set(found.pods) == {"p1", "p2", "p3"}
