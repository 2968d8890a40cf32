"""Pods that cannot start are looked after: asked when they are slow, replaced after a minute; a Deployment that is refused is touched."""

import asyncio

import pytest
from dormouse_operator.kubernetes.api.http import ApiError, Object
from dormouse_operator.kubernetes.api.kinds import DEPLOYMENTS, EVENTS, PODS, Kind
from dormouse_operator.kubernetes.api.reflecting import Reflector
from dormouse_operator.kubernetes.objects import names
from dormouse_operator.kubernetes.objects.object_entries import timestamp
from dormouse_operator.kubernetes.pods.provider import KubernetesProvider
from dormouse_operator.kubernetes.pods.tending import INTERVAL, RENEW, Care, Tending, care
from dormouse_testing.clock import ManualClock
from dormouse_testing.cluster_objects import NOW, container, deployment, ended, forbidden, pod, waits
from dormouse_testing.memory_api import MemoryApi

QUOTA = forbidden('pods "x" is forbidden: exceeded quota: none')
PULLS = [container(waits("ErrImagePull", "no such image"))]
CREATING = [container(waits("ContainerCreating"))]


def nothing_freed(namespace: str) -> float:
    return 0.0


def cared(*found: Object, failing: bool = True) -> Care:
    return care(found, (), lambda each: failing, nothing_freed, NOW)


# ------------------------------------------------------------------------------------------------------------------ what to do


@pytest.mark.parametrize(("age", "asked"), [(1.0, False), (4.0, False), (6.0, True), (600.0, True)])
def test_a_pod_whose_container_is_made_for_long_is_asked_for_its_events(age: float, asked: bool) -> None:
    slow = pod(phase="Pending", containers=CREATING, age=age)
    assert cared(slow, failing=False) == Care(ask=(slow,) if asked else ())


def test_a_pod_that_runs_or_has_no_node_is_not_asked() -> None:
    assert cared(pod(age=600), pod(phase="Pending", node="", age=600), failing=False) == Care()


@pytest.mark.parametrize(("age", "replaced"), [(10.0, False), (59.0, False), (61.0, True)])
def test_a_pod_that_fails_is_replaced_after_a_minute(age: float, replaced: bool) -> None:
    failing = pod(phase="Pending", containers=PULLS, age=age)
    assert cared(failing) == Care(replace=(failing,) if replaced else ())


def test_negative_control_a_pod_that_does_not_fail_is_left_alone_however_old() -> None:
    assert cared(pod(age=86_400), failing=False) == Care()


@pytest.mark.parametrize("state", ["terminated", "waiting", "running"])
@pytest.mark.parametrize(("ago", "replaced"), [(5.0, False), (RENEW + 1, True)])
def test_a_minute_is_counted_from_its_workers_last_end_and_not_from_its_making(state: str, ago: float, replaced: bool) -> None:
    """A pod that served for an hour and whose worker ends once gets its chance to start again in the same pod."""
    end = ended(ago=ago)
    states = {
        "terminated": container(end),
        "waiting": container(waits("CrashLoopBackOff"), last=end),
        "running": container({"running": {}}, last=end),
    }
    found = pod(age=3600, containers=[states[state]])
    assert bool(cared(found).replace) is replaced


@pytest.mark.parametrize("more", [{"phase": "Failed"}, {"phase": "Succeeded"}, {"deletionTimestamp": timestamp(NOW)}])
def test_a_pod_that_is_over_or_goes_is_nobodys_care(more: dict[str, str]) -> None:
    assert cared(pod(age=600, containers=PULLS, **more)) == Care()  # type: ignore[arg-type]


@pytest.mark.parametrize(("age", "tried", "touched"), [(10, None, False), (31, None, True), (600, 10, False), (600, 31, True)])
def test_a_deployment_whose_pods_are_refused_is_touched_each_half_minute(age: int, tried: int | None, touched: bool) -> None:
    annotations = {names.TRIED: timestamp(NOW - tried)} if tried is not None else {}
    found = deployment(1, age=age, conditions=[QUOTA], annotations=annotations)
    assert care((), [found], lambda each: True, nothing_freed, NOW).touch == ((found,) if touched else ())
    assert care((), [deployment(1, age=age)], lambda each: True, nothing_freed, NOW) == Care()


@pytest.mark.parametrize(("freed", "touched"), [(NOW - 3, True), (NOW - 6, False)])
def test_a_refused_deployment_is_touched_at_once_where_a_pod_has_ended_since_it_was_tried(freed: float, touched: bool) -> None:
    found = deployment(1, age=600, conditions=[QUOTA], annotations={names.TRIED: timestamp(NOW - 5)})
    assert bool(care((), [found], lambda each: True, {"ns": freed}.__getitem__, NOW).touch) is touched


# ------------------------------------------------------------------------------------------------------------------ doing it


class World:
    """Tending over an API server, whose objects the copies have."""

    def __init__(self) -> None:
        self.api, self.clock, self.doubts = MemoryApi(), ManualClock(), list[str]()
        self.pods, self.deployments = (Reflector(self.api, self.clock, kind) for kind in (PODS, DEPLOYMENTS))
        self.provider = KubernetesProvider(self.api, self.clock, self.pods, self.deployments, lambda uid, revision: None, lambda uid: None)
        self.tending = Tending(self.api, self.clock, self.pods, self.deployments, self.provider, self.doubts.append)

    async def look(self) -> list[tuple[str, str]]:
        """What was written."""
        self.api.written.clear()
        for copy in (self.pods, self.deployments):
            await copy._list("")
        await self.tending.look()
        return list(self.api.written)

    def event(self, reason: str, kind: str = "Warning", ago: float = 0.0) -> None:
        at = timestamp(NOW - ago)
        self.api.put(
            EVENTS,
            {"metadata": {"namespace": "ns", "name": reason}, "type": kind, "reason": reason, "message": "configmap", "lastTimestamp": at},
        )


async def test_a_failing_pod_is_deleted_by_its_uid_and_nothing_else_is() -> None:
    world = World()
    world.api.put(PODS, pod("bad", phase="Pending", containers=PULLS, age=90))
    world.api.put(PODS, pod("young", phase="Pending", containers=PULLS))
    world.api.put(PODS, pod("good", containers=[container({"running": {}})], age=90))
    assert await world.look() == [("bad", "deleted")]
    assert await world.look() == []


async def test_a_refused_deployment_is_touched_once_and_keeps_its_replicas() -> None:
    world = World()
    world.api.put(DEPLOYMENTS, deployment(2, conditions=[QUOTA]))
    assert await world.look() == [("f-r1", "patched")]
    assert await world.look() == [], "half a minute is not over"
    world.clock.advance(31)
    assert await world.look() == [("f-r1", "patched")]
    assert world.api.objects[(DEPLOYMENTS.plural, "ns", "f-r1")]["spec"]["replicas"] == 2


async def test_a_missing_volume_is_told_to_callers_and_what_the_function_consists_of_is_doubted() -> None:
    world = World()
    world.api.put(PODS, pod(phase="Pending", containers=CREATING))
    world.event("FailedMount", ago=3)
    await world.look()
    assert world.doubts == ["u"]
    [instance] = await seen(world)
    assert instance.problem is not None
    assert (instance.exited, instance.problem.reason) == (True, "VolumeUnavailable")
    world.event("Pulling", "Normal")
    await world.look()
    [instance] = await seen(world)
    assert (instance.exited, instance.problem) == (False, None), "it came, and is no problem any more"


async def seen(world: World) -> list[Object]:
    found = await world.provider.observe()
    assert found is not None
    return list(found)  # type: ignore[arg-type]


async def test_a_pod_that_is_slow_without_a_word_of_a_volume_is_no_problem() -> None:
    world = World()
    world.api.put(PODS, pod(phase="Pending", containers=CREATING))
    assert await world.look() == []
    assert [each.problem for each in await seen(world)] == [None]
    assert world.doubts == []


async def test_what_is_refused_for_one_keeps_nothing_from_the_others(
    events: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World()
    world.api.put(PODS, pod("kept", phase="Pending", containers=PULLS, age=90))
    world.api.put(PODS, pod("other", phase="Pending", containers=PULLS, age=90))
    world.api.put(DEPLOYMENTS, deployment(2, conditions=[QUOTA]))
    delete = world.api.delete

    async def refusing(kind: Kind, namespace: str, name: str, *, uid: str) -> None:
        if name == "kept":
            raise ApiError(403, "Forbidden", "kept is forbidden")
        await delete(kind, namespace, name, uid=uid)

    monkeypatch.setattr(world.api, "delete", refusing)
    assert await world.look() == [("other", "deleted"), ("f-r1", "patched")]
    assert await world.look() == []
    assert sum("kept is forbidden" in each.getMessage() for each in events.records) == 1, "told once, while it is the same"


async def test_an_api_server_that_is_away_is_asked_again() -> None:
    world = World()
    world.api.put(PODS, pod("bad", phase="Pending", containers=PULLS, age=90))
    await world.pods._list("")
    world.api.refuse = ApiError(0, "NoAnswer", "away")
    running = asyncio.create_task(world.tending.run())
    for refuse in (world.api.refuse, None):
        world.api.refuse = refuse
        for _ in range(5):
            await asyncio.sleep(0)
        world.clock.advance(INTERVAL)
        for _ in range(5):
            await asyncio.sleep(0)
    assert world.api.written == [("bad", "deleted")]
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
