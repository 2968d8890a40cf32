"""What a cluster's provider counts: unknown is not zero, and each replica is counted once, with a pod or without."""

import pytest
from dormouse_operator.kubernetes.api.kinds import PODS
from dormouse_operator.kubernetes.api.reflecting import PATIENCE
from dormouse_operator.kubernetes.objects.object_entries import timestamp
from dormouse_operator.kubernetes.pods.provider import ROOM
from dormouse_testing.cluster_objects import NOW, container, deployment, forbidden, pod, unschedulable, waits
from dormouse_testing.provider_world import REASON, RUNS, World
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize("listed", [(), ("pods",), ("deployments",)])
async def test_until_both_copies_were_listed_nothing_is_known_and_that_is_not_none(listed: tuple[str, ...]) -> None:
    world = World()
    for name in listed:
        await getattr(world, name)._list("")
    assert await world.provider.observe() is None


async def test_a_copy_that_is_cut_off_for_long_is_not_known_either_and_one_that_stands_again_is() -> None:
    world = World()
    await world.heard(deployment(1))
    world.pods._broken[""] = world.clock.monotonic()
    world.clock.advance(PATIENCE - 1)
    assert len(await world.seen()) == 1, "a watch that is opened anew is no reason to know nothing"
    world.clock.advance(1)
    assert await world.provider.observe() is None
    world.pods._stands("")
    assert len(await world.seen()) == 1


async def test_a_cluster_without_workers_is_known_to_have_none() -> None:
    world = World()
    await world.heard()
    assert await world.seen() == []


KINDS = {
    "runs": {"containers": RUNS},
    "waits": {"containers": [container(waits("ContainerCreating"))], "phase": "Pending"},
    "fails": {"containers": [container(waits("ErrImagePull"))], "phase": "Pending"},
    "homeless": {"conditions": [unschedulable(300)], "phase": "Pending", "node": ""},
    "going": {"deletionTimestamp": timestamp(NOW + 10)},
    "evicted": {"phase": "Failed"},
    "lost": {"deletionTimestamp": timestamp(NOW - 60)},
}


@given(st.lists(st.sampled_from(sorted(KINDS)), max_size=6), st.integers(0, 6))
async def test_a_replica_is_counted_once_with_a_pod_or_without(kinds: list[str], replicas: int) -> None:
    """Those that are ordered and have no pod yet make up what lacks: whoever counts orders none twice, and none too few."""
    world = World()
    made = [pod(f"p{number}", **KINDS[kind]) for number, kind in enumerate(kinds)]  # type: ignore[arg-type]
    await world.heard(deployment(replicas), *made)
    found = await world.seen()
    standing = sum(kind in ("runs", "waits", "fails", "homeless") for kind in kinds)
    assert sum(not each.stopping for each in found) == max(replicas, standing)
    assert sum(each.stopping for each in found) == kinds.count("going")
    assert len({each.name for each in found}) == len(found)
    assert {(each.function, each.uid, each.revision) for each in found} <= {("ns/f", "u", "r1")}


async def test_another_revisions_pods_do_not_stand_for_this_ones() -> None:
    world = World()
    await world.heard(deployment(1, revision="r2"), pod("old", containers=RUNS), deployment(1))
    assert [(each.name, each.revision) for each in await world.seen()] == [("f-r2/0", "r2"), ("old", "r1")]


async def test_a_replica_that_the_cluster_refuses_says_why() -> None:
    world = World()
    await world.heard(deployment(1, conditions=[forbidden('pods "x" is forbidden: exceeded quota: none')]))
    [found] = await world.seen()
    assert found.problem is not None
    assert (found.exited, found.problem.reason, found.room) == (True, "QuotaExceeded", "namespace")
    await world.heard(deployment(1, conditions=[forbidden("a policy says no")]))
    assert [(each.unplaced, each.room) for each in await world.seen()] == [(True, "")], "room would be no cure"


FULL = forbidden('pods "x" is forbidden: exceeded quota: one, requested: pods=1, used: pods=1, limited: pods=1')


@pytest.mark.parametrize(
    ("requested", "limited", "room"),
    [
        ("pods=1", "pods=1", "namespace"),
        ("pods=1", "pods=0", ""),
        ("limits.memory=2Gi", "limits.memory=2G", ""),
        ("limits.memory=2G", "limits.memory=2Gi", "namespace"),
        ("requests.cpu=1500m", "requests.cpu=1", ""),
        ("requests.cpu=500m", "requests.cpu=1", "namespace"),
        ("pods=1,requests.cpu=2", "pods=3,requests.cpu=1", ""),
        ("requests.memory=1e10", "requests.memory=1Gi", ""),
        ("pods=odd", "pods=1", "namespace"),
        ("pods=1", "", "namespace"),
    ],
)
async def test_where_one_pod_is_more_than_the_whole_quota_room_would_be_no_cure(requested: str, limited: str, room: str) -> None:
    world = World()
    text = f'pods "x" is forbidden: exceeded quota: one, requested: {requested}, used: pods=1,requests.cpu=1, limited: {limited}'
    await world.heard(deployment(1, conditions=[forbidden(text)]))
    [found] = await world.seen()
    assert found.problem is not None
    assert (found.problem.reason, found.unplaced, found.room, found.limit) == ("QuotaExceeded", True, room, limited)


async def test_what_a_functions_own_ending_pod_keeps_out_is_no_problem_of_it() -> None:
    """The quota's one pod is on its way out, of another revision, and then gone; the refusal stands until the cluster has tried again."""
    world = World()
    gone = pod("old", containers=RUNS, deletionTimestamp=timestamp(NOW))
    await world.heard(gone, deployment(1, revision="r2", conditions=[FULL]))
    found, _ = await world.seen()
    assert (found.name, found.problem, found.exited, found.unplaced) == ("f-r2/0", None, False, True)
    assert found.room == "namespace"
    await world.api.delete(PODS, "ns", "old", uid="uid-old")
    await world.heard()
    assert world.provider.freed("ns") == world.clock.now(), "its Deployment is touched"
    world.clock.advance(ROOM - 0.1)
    assert [each.problem for each in await world.seen()] == [None]
    world.clock.advance(0.2)
    [found] = await world.seen()
    assert found.problem is not None, "the room is another's by now"
    assert found.problem.reason == "QuotaExceeded"


async def test_anothers_ending_pod_makes_no_refusal_less_of_a_problem() -> None:
    world = World()
    other = pod("old", containers=RUNS, deletionTimestamp=timestamp(NOW), function_uid="another")
    await world.heard(other, deployment(1, conditions=[FULL]))
    assert [each.problem.reason for each in await world.seen() if each.problem is not None] == ["QuotaExceeded"]


async def test_what_waits_for_a_node_is_told_to_who_asks() -> None:
    world = World()
    await world.heard(pod(phase="Pending", node="", conditions=[unschedulable(5)]))
    assert "Insufficient memory" in world.provider.waiting("u")
    assert [each.room for each in await world.seen()] == ["node"]
    assert world.provider.waiting("another") == ""


async def test_one_that_is_to_be_replaced_and_finds_no_room_says_so_though_it_serves() -> None:
    """An installation's new image under a quota that is full: the Deployment makes the next pod before it ends the last."""
    world = World()
    full = deployment(1, conditions=[FULL])
    full["status"] |= {"replicas": 1, "updatedReplicas": 0, "availableReplicas": 1}
    await world.heard(pod("p", containers=RUNS), full)
    assert [(each.name, each.problem) for each in await world.seen()] == [("p", None)]
    assert "serve on" in world.provider.waiting("u")
    assert "exceeded quota" in world.provider.waiting("u")
    assert world.provider.waiting("another") == ""
    full["status"] |= {"updatedReplicas": 1}
    await world.heard(full)
    assert world.provider.waiting("u") == "", "all are as they are to be"


async def test_what_was_said_of_a_pods_volume_goes_with_the_pod() -> None:
    world = World()
    await world.heard(pod("p", containers=KINDS["waits"]["containers"], phase="Pending"))  # type: ignore[arg-type]
    world.provider.mount_failed(world.pods.items["ns", "p"], REASON)
    assert [each.problem for each in await world.seen()] == [REASON]
    await world.api.delete(PODS, "ns", "p", uid="uid-p")
    await world.heard()
    assert world.provider._mounts == {}
