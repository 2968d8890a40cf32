"""A volume that is missing: a pod's status does not say so, its events do."""

import pytest
from dormouse_core.errors import Code
from dormouse_operator.kubernetes.api.http import Object
from dormouse_operator.kubernetes.pods.problems import mount_failure, starting
from dormouse_testing.cluster_objects import NOW, container, pod, timestamp, waits

MISSING = 'MountVolume.SetUp failed for volume "code" : configmap "code" not found'


def event(reason: str, message: str = "", *, ago: float = 0.0, kind: str = "Warning", field: str = "lastTimestamp") -> Object:
    return {"type": kind, "reason": reason, "message": message, field: timestamp(NOW - ago)}


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        ([], True),
        ([waits("ContainerCreating")], True),
        ([waits("PodInitializing")], True),
        ([waits("ErrImagePull")], False),
        ([waits("CrashLoopBackOff")], False),
        ([{"running": {}}], False),
    ],
)
def test_a_pod_starts_from_when_it_has_a_node_until_its_container_is_made(states: list[Object], expected: bool) -> None:
    assert starting(pod(phase="Pending", containers=[container(state) for state in states])) is expected


def test_a_sidecar_changes_nothing_about_it() -> None:
    others = [container(waits("ContainerCreating"), name="mesh"), container(waits("ContainerCreating"))]
    assert starting(pod(phase="Pending", containers=others))


@pytest.mark.parametrize("found", [pod(phase="Running"), pod(phase="Pending", node=""), pod(phase="Pending", deletionTimestamp="x")])
def test_a_pod_that_runs_has_no_node_or_goes_does_not_start(found: Object) -> None:
    assert not starting(found)


@pytest.mark.parametrize("reason", ["FailedMount", "FailedAttachVolume", "FailedMapVolume"])
def test_a_volume_that_cannot_be_mounted_is_said(reason: str) -> None:
    problem = mount_failure([event("Scheduled", kind="Normal"), event(reason, MISSING)])
    assert problem is not None
    assert (problem.code, problem.reason) == (Code.UNAVAILABLE, "VolumeUnavailable")
    assert problem.message == f"a volume of the worker cannot be mounted: {MISSING}"


@pytest.mark.parametrize(
    "message",
    [
        'MountVolume.SetUp failed for volume "dormouse-store" : failed to sync secret cache: timed out waiting for the condition',
        'MountVolume.SetUp failed for volume "code" : object "ns"/"code" not registered',
        'MountVolume.SetUp failed for volume "code" : configmaps "code" is forbidden: User "system:node:n" cannot get resource '
        "\"configmaps\" in API group: no relationship found between node 'n' and this object",
    ],
)
def test_a_volume_of_which_the_kubelet_could_not_ask_is_not_called_missing(message: str) -> None:
    """The API server is away for a moment, or does not know the pod's node yet: callers are held through it."""
    assert mount_failure([event("FailedMount", message)]) is None
    assert mount_failure([event("FailedMount", message, ago=9), event("FailedMount", MISSING)]) is not None


@pytest.mark.parametrize("field", ["lastTimestamp", "eventTime"])
def test_of_several_the_latest_is_said(field: str) -> None:
    found = [event("FailedMount", "second", ago=1, field=field), event("FailedMount", "first", ago=50, field=field)]
    problem = mount_failure(found)
    assert problem is not None
    assert problem.message.endswith(": second")


@pytest.mark.parametrize(
    "found",
    [[], [event("Failed", MISSING)], [event("FailedMount", MISSING, kind="Normal")], [event("FailedScheduling"), event("BackOff")]],
)
def test_other_events_are_no_volumes(found: list[Object]) -> None:
    assert mount_failure(found) is None


def test_a_volume_that_came_is_no_problem_while_the_image_is_pulled() -> None:
    """The kubelet pulls when everything is mounted. The status still says ContainerCreating, and the events are there for an hour."""
    pulls = event("Pulling", 'Pulling image "registry/image:1"', ago=5, kind="Normal")
    assert mount_failure([event("FailedMount", "failed to sync configmap cache", ago=9), pulls]) is None
    assert mount_failure([event("FailedMount", MISSING, ago=1), pulls]) is not None, "it was mounted, and is not any more"
    within = [event("FailedMount", MISSING, ago=5), pulls]
    assert mount_failure(within) is mount_failure(within[::-1]) is None, "times are whole seconds"
