"""etcd's members on a cluster, under steps: one becomes three, each of them loses its disk and comes back, three never become one."""

import collections
import threading
import time
from collections.abc import Iterator

import grpc
import pytest
from dormouse_testing import pages
from dormouse_testing.cluster.client import CHART, Cluster, eventually
from dormouse_testing.cluster.functions import RELEASE, SYSTEM, Dormouse, counter, installed
from dormouse_testing.cluster.layout import ClusterError

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


class Stepping:
    """Steps of one session, each sent again under its key until it is answered, with the total that must be there."""

    def __init__(self, dormouse: Dormouse) -> None:
        self.count, self.longest = 0, 0.0
        self.errors: collections.Counter[str] = collections.Counter()
        self.wrong = ""
        self._dormouse = dormouse
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Stepping":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._end.is_set() and not self.wrong:
            began, key = time.monotonic(), f"{int(time.time() * 1e6):016d}-members-{self.count}"
            while (total := self._try(key)) is None:
                time.sleep(0.1)
            self.count += 1
            if total != self.count:
                self.wrong = f"{total} found after {self.count} steps"
            self.longest = max(self.longest, time.monotonic() - began)
            time.sleep(0.02)

    def _try(self, key: str) -> int | None:
        try:
            return self._dormouse.call("held", 1, session="members", key=key, timeout=30)
        except grpc.RpcError as error:
            self.errors[f"{error.code().name}: {error.details()}"[:160]] += 1
            return None

    def go_on(self, what: str) -> None:
        """None is wrong, and they get on."""
        before = self.count
        eventually(f"steps go on {what}", lambda: self.count > before + 5 or self.wrong, 90)
        assert not self.wrong
        print(f"{what}: {self.count} steps, {dict(self.errors)}, longest {self.longest:.1f} s")
        self.errors.clear()
        self.longest = 0.0


def ready(cluster: Cluster, count: int) -> bool:
    found = cluster.get("statefulset", f"{RELEASE}-etcd", SYSTEM)
    return bool(found["status"].get("readyReplicas") == count == found["status"].get("updatedReplicas"))


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
    with Stepping(one) as steps:
        steps.go_on("with one member")
        before_three = set(one.pods("held"))
        shown(cluster, "From one member to three")
        eventually("three members are ready", lambda: ready(cluster, 3), 60)
        steps.go_on("with three members")
        eventually("it is told that they share a node", lambda: "are on node1" in warned(cluster, "MembersShareANode"), 60)
        eventually("the worker is one that knows three", lambda: (found := one.pods("held")) and not set(found) & before_three, 60)
        steps.go_on("with a worker that knows three")
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
            steps.go_on(f"after {pod} lost its disk")
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
