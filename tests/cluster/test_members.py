"""etcd's members on a cluster, under steps: one becomes three, each of them loses its disk and comes back, three never become one."""

from collections.abc import Iterator

import pytest
from dormouse_testing import pages
from dormouse_testing.cluster.client import CHART, Cluster, eventually
from dormouse_testing.cluster.functions import RELEASE, SYSTEM, Dormouse, counter, installed
from dormouse_testing.cluster.layout import ClusterError
from dormouse_testing.cluster.stepping import Stepping, go_on

pytestmark = pytest.mark.slow  # 4 minutes; tests/integration/test_members.py has the same on loopback

DISK = ("etcd.persistence.enabled=true", "etcd.persistence.size=1Gi")
VOLUMES = [f"test-members-{number}" for number in range(8)]  # three, two in place of lost ones, three anew


@pytest.fixture
def one(alone: Cluster) -> Iterator[Dormouse]:
    """One member on a volume, one worker, and volumes for what is to come."""
    if alone.layout is None:
        pytest.skip("another's cluster is not ours to disturb")
    for name in VOLUMES:
        alone.volume(name)
    try:
        with installed(alone, "test-members", *DISK) as dormouse:
            dormouse.apply(counter("held", minReplicas=1))
            dormouse.ready("held", 1)
            yield dormouse
    finally:
        alone.kubectl("delete", "pv", *VOLUMES, "--ignore-not-found", "--wait=false")


def ready(cluster: Cluster, count: int) -> bool:
    found = cluster.get("statefulset", f"{RELEASE}-etcd", SYSTEM)
    return bool(found["status"].get("readyReplicas") == count == found["spec"]["replicas"])


def upgrade(cluster: Cluster, *values: str) -> None:
    words = [word for value in ("gateway.replicas=2", "operator.replicas=1", *DISK, *values) for word in ("--set", value)]
    cluster.helm("upgrade", RELEASE, str(CHART), "-n", SYSTEM, *cluster.chart_values(), *words, "--wait", "--timeout", "240s")


def shown(cluster: Cluster, heading: str) -> None:
    """What the page says under it, as it stands there."""
    with cluster.shell() as environment:
        print(*pages.run(heading, 0, namespace=SYSTEM, environment=environment))


def warned(cluster: Cluster, reason: str) -> str:
    return next((each["message"] for each in cluster.get("events", "", SYSTEM) if each["reason"] == reason), "")


def test_one_member_becomes_three_and_each_comes_back_without_its_disk(one: Dormouse) -> None:
    cluster = one.cluster
    with Stepping(one, "members") as steps:
        go_on("with one member", [steps])
        before_three, first = set(one.pods("held")), uid(cluster, f"{RELEASE}-etcd-0")
        shown(cluster, "From one member to three")
        eventually("three members are ready", lambda: ready(cluster, 3), 60)
        assert (steps.errors, uid(cluster, f"{RELEASE}-etcd-0")) == ({}, first), "the first one goes on, and no step is refused"
        go_on("with three members", [steps])
        eventually("it is told that they share a node", lambda: "are on node1" in warned(cluster, "MembersShareANode"), 60)
        eventually("the worker is one that knows three", lambda: (found := one.pods("held")) and not set(found) & before_three, 60)
        go_on("with a worker that knows three", [steps])
        for number in (2, 0):
            pod = f"{RELEASE}-etcd-{number}"
            before = cluster.get("pod", pod, SYSTEM)["metadata"]["uid"]
            if number == 2:
                shown(cluster, "Replace a member")
            else:
                cluster.kubectl("delete", "pvc", f"data-{pod}", "-n", SYSTEM, "--wait=false")
                cluster.kubectl("delete", "pod", pod, "-n", SYSTEM)
            eventually(f"{pod} is another pod", lambda pod=pod, before=before: uid(cluster, pod) not in ("", before), 60)  # type: ignore[misc]  # defaults bind them
            eventually("three members are ready", lambda: ready(cluster, 3), 90)
            assert steps.errors == {}, f"without the disk of {pod}"
            go_on(f"after {pod} lost its disk", [steps])
    with pytest.raises(ClusterError, match="fewer members would lose their majority"):
        upgrade(cluster, "singleNode=true")
    assert cluster.get("statefulset", f"{RELEASE}-etcd", SYSTEM)["spec"]["replicas"] == 3
    shown(cluster, "The majority is lost")
    eventually("three new members are ready", lambda: ready(cluster, 3), 120)
    one.apply(counter("since", minReplicas=1))
    one.ready("since", 1)
    assert one.call("since", 1, session="s") == 1, "a store of its own, into which a backup can be restored"


def uid(cluster: Cluster, pod: str) -> str:
    found = cluster.kubectl("get", "pod", pod, "-n", SYSTEM, "--ignore-not-found", "-o", "jsonpath={.metadata.uid}")
    return found.strip()
