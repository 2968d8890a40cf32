"""`helm upgrade` from an earlier commit's chart and image to these, and `helm rollback`, under steps without a pause: no step is lost or
counts twice, who sleeps wakes with its sessions, and no manifest has to be touched. From the release before, no call fails either.

Slow: an image more, from this repository's history.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from dormouse_testing import pages
from dormouse_testing.cluster import images
from dormouse_testing.cluster.client import CHART, Cluster, eventually
from dormouse_testing.cluster.functions import CRD, RELEASE, SYSTEM, Dormouse, clear, counter, echo, functions
from dormouse_testing.cluster.stepping import Calling, Stepping, go_on
from dormouse_testing.versions import checked_out

pytestmark = pytest.mark.slow

EARLIER = "b18a8d8f390bd5653739da024cf0b64bbb48f177"
RELEASE_BEFORE = "f4fa93d736a93813a3e6728d580ff7dd173cc823"
BEFORE = "localhost/dormouse:before"
PAGE = "Upgrade and roll back"
PATHS = (*images.CONTEXT, "deploy/helm")
PERSISTENT = ("--set", "etcd.persistence.enabled=true,etcd.persistence.size=1Gi")


def helm(cluster: Cluster, action: str, chart: Path, image: str, *, policy: bool, members: int = 1) -> None:
    """The earliest chart knows no policy of pods, earlier ones no single node; each refuses values that it does not know."""
    words = cluster.chart_values()
    if not policy:
        words = [word for pair in zip(words[::2], words[1::2], strict=True) if "policy" not in pair[1] for word in pair]
    if chart == CHART:
        words += ["--set", "singleNode=true,gateway.replicas=2"]
    repository, _, tag = image.rpartition(":")
    words += ["--set", f"image.repository={repository},image.tag={tag},etcd.replicas={members}", *PERSISTENT]
    cluster.helm(action, RELEASE, str(chart), "-n", SYSTEM, *words, "--wait", "--timeout", "240s")


@pytest.fixture
def earlier(alone: Cluster, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Dormouse]:
    """The earlier version, installed, with etcd on volumes. Its parameter: the commit, and how many members."""
    if alone.layout is None:
        pytest.skip("another's cluster has no image of an earlier commit")
    commit, members = request.param
    code = checked_out(commit, tmp_path, PATHS)
    if code is None:
        pytest.skip(f"the history of this clone does not have {commit[:7]}")
    images.dormouse(code, BEFORE)
    images.import_image(alone.layout, alone.nodes, BEFORE)
    volumes = [f"{SYSTEM}-{number}" for number in range(members)]
    for volume in volumes:
        alone.volume(volume)
    with contextlib.ExitStack() as ends:
        ends.callback(alone.kubectl, "delete", "pv", *volumes, "--ignore-not-found", "--wait=false")
        ends.callback(alone.kubectl, "delete", "crd", CRD, "--ignore-not-found")
        ends.callback(alone.settle)
        ends.enter_context(alone.namespace(SYSTEM))
        ends.callback(alone.helm, "uninstall", RELEASE, "-n", SYSTEM, "--ignore-not-found", "--wait")
        ends.callback(clear, alone)
        helm(alone, "install", code / "deploy/helm/dormouse", BEFORE, policy=commit != EARLIER, members=members)
        yield ends.enter_context(functions(alone, "upgrade"))


def workers_of(dormouse: Dormouse, image: str, count: int, name: str = "held") -> bool:
    found = dormouse.cluster.get("pods", "", dormouse.space, "-l", f"dormouse.dev/function={name}")
    return len(found) == count and all(pod["spec"]["containers"][0]["image"] == image for pod in found)


@pytest.mark.parametrize("earlier", [(EARLIER, 1)], indirect=True, ids=["one"])
def test_an_upgrade_of_the_chart_and_the_way_back(earlier: Dormouse) -> None:
    cluster = earlier.cluster
    earlier.apply(counter("held", minReplicas=2, maxReplicas=2), counter("sleeper"), echo("echo"))
    earlier.ready("held", 2)
    assert [earlier.call("sleeper", n, session="before") for n in (1, 2)] == [1, 3]
    earlier.asleep("sleeper")
    with contextlib.ExitStack() as stack:
        steppers = [stack.enter_context(Stepping(earlier, f"s{n}")) for n in range(6)]
        go_on("before", steppers)
        helm(cluster, "upgrade", CHART, images.DORMOUSE, policy=True)
        go_on("after the upgrade", steppers)
        eventually("the workers are of the new version", lambda: workers_of(earlier, images.DORMOUSE, 2), 120)
        go_on("on workers of the new version", steppers)
        assert earlier.call("sleeper", 4, session="before") == 7
        assert earlier.call("echo", 5) == 5
        cluster.helm("rollback", RELEASE, "1", "-n", SYSTEM, "--wait", "--timeout", "240s")
        go_on("after the rollback", steppers)
        eventually("the workers are of the earlier version", lambda: workers_of(earlier, BEFORE, 2), 120)
        go_on("on workers of the earlier version", steppers)
        assert earlier.call("sleeper", 8, session="before") == 15


@pytest.mark.parametrize("earlier", [(RELEASE_BEFORE, 1), (RELEASE_BEFORE, 3)], indirect=True, ids=["one", "three"])
def test_from_the_release_before_and_back_no_call_fails_and_one_with_an_image_of_its_own_stays_as_it_is(earlier: Dormouse) -> None:
    """All are awake: stateful ones of two workers and of one, stateless ones, and two whose workers are of the release before whatever the
    installation's image is. etcd's version is the same in both releases, so none of its members starts again."""
    cluster, awake = earlier.cluster, {"minReplicas": 1, "maxReplicas": 1}
    own = {**awake, "workers": {"image": BEFORE}}
    earlier.apply(
        counter("held", minReplicas=2, maxReplicas=2), counter("one", **awake), echo("echo", **awake),
        counter("pinned", **own), echo("pinned-echo", **own),
    )  # fmt: skip
    names = ("held", "one", "echo", "pinned", "pinned-echo")
    for name in names:
        earlier.ready(name, 2 if name == "held" else 1)
    with contextlib.ExitStack() as stack:
        callers = [stack.enter_context(Calling(earlier, name, "" if "echo" in name else "s")) for name in names]

        def all_of(image: str) -> None:
            for name, count in (("held", 2), ("one", 1), ("echo", 1)):
                eventually(f"{name}'s workers are of {image}", lambda: workers_of(earlier, image, count, name), 120)  # noqa: B023

        def etcd() -> dict[str, str]:
            found = cluster.get("pods", "", SYSTEM, "-l", "dormouse.dev/part=etcd")
            return {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in found}

        members = etcd()
        go_on("before", callers, 10)
        with cluster.shell() as environment:
            pages.run(PAGE, 0, namespace=SYSTEM, environment=environment, TAG=images.DORMOUSE.rpartition(":")[2])
        go_on("after the upgrade", callers, 10)
        all_of(images.DORMOUSE)
        go_on("on workers of the new release", callers, 10)
        assert all(workers_of(earlier, BEFORE, 1, name) for name in ("pinned", "pinned-echo")), "an image of one's own stays"
        cluster.kubectl("delete", "pod", *earlier.pods("pinned"), "-n", earlier.space)
        assert etcd() == members
        go_on("with a worker of the release before that the new operator started", callers, 10)
        with cluster.shell() as environment:
            pages.run(PAGE, 1, namespace=SYSTEM, environment=environment)
        all_of(BEFORE)
        go_on("on workers of the release before", callers, 10)
        assert etcd() == members
