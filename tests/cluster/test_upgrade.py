"""`helm upgrade` from an earlier commit's chart and image to these, and `helm rollback`, under steps without a pause: no step is lost or
counts twice, who sleeps wakes with its sessions, and no manifest has to be touched. From the release before, no call fails either.

Slow: an image more, from this repository's history.
"""

import collections
import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from dormouse_testing import pages
from dormouse_testing.cluster import images
from dormouse_testing.cluster.client import CHART, Cluster, eventually
from dormouse_testing.cluster.functions import CRD, RELEASE, SYSTEM, Dormouse, clear, counter, echo, functions
from dormouse_testing.versions import checked_out

pytestmark = pytest.mark.slow

EARLIER = "b18a8d8f390bd5653739da024cf0b64bbb48f177"
RELEASE_BEFORE = "f4fa93d736a93813a3e6728d580ff7dd173cc823"
BEFORE = "localhost/dormouse:before"
PAGE = "Upgrade and roll back"
PATHS = (*images.CONTEXT, "deploy/helm")
PERSISTENT = ("--set", "etcd.persistence.enabled=true,etcd.persistence.size=1Gi")


def helm(cluster: Cluster, action: str, chart: Path, image: str, *, policy: bool) -> None:
    """The earliest chart knows no policy of pods, earlier ones no single node; each refuses values that it does not know."""
    words = cluster.chart_values()
    if not policy:
        words = [word for pair in zip(words[::2], words[1::2], strict=True) if "policy" not in pair[1] for word in pair]
    if chart == CHART:
        words += ["--set", "singleNode=true,gateway.replicas=2"]
    repository, _, tag = image.rpartition(":")
    words += ["--set", f"image.repository={repository},image.tag={tag}", *PERSISTENT]
    cluster.helm(action, RELEASE, str(chart), "-n", SYSTEM, *words, "--wait", "--timeout", "240s")


@pytest.fixture
def earlier(alone: Cluster, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Dormouse]:
    """The earlier version, installed, with etcd on a volume. Its parameter: the commit."""
    if alone.layout is None:
        pytest.skip("another's cluster has no image of an earlier commit")
    commit = request.param
    code = checked_out(commit, tmp_path, PATHS)
    if code is None:
        pytest.skip(f"the history of this clone does not have {commit[:7]}")
    images.dormouse(code, BEFORE)
    images.import_image(alone.layout, alone.nodes, BEFORE)
    alone.volume(f"{SYSTEM}-0")
    with contextlib.ExitStack() as ends:
        ends.callback(alone.kubectl, "delete", "pv", f"{SYSTEM}-0", "--ignore-not-found", "--wait=false")
        ends.callback(alone.kubectl, "delete", "crd", CRD, "--ignore-not-found")
        ends.callback(alone.settle)
        ends.enter_context(alone.namespace(SYSTEM))
        ends.callback(alone.helm, "uninstall", RELEASE, "-n", SYSTEM, "--ignore-not-found", "--wait")
        ends.callback(clear, alone)
        helm(alone, "install", code / "deploy/helm/dormouse", BEFORE, policy=commit != EARLIER)
        yield ends.enter_context(functions(alone, "upgrade"))


class Stepping:
    """Steps of one session, each under its key until it is answered, with the total that must be there."""

    def __init__(self, dormouse: Dormouse, session: str) -> None:
        self.session, self.count, self.longest = session, 0, 0.0
        self.errors: collections.Counter[str] = collections.Counter()
        self.wrong: list[str] = []
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
            began, key = time.monotonic(), f"{int(time.time() * 1e6):016d}-{self.session}-{self.count}"
            while (total := self._try(key)) is None:
                time.sleep(0.1)
            self.count += 1
            if total != self.count:
                self.wrong.append(f"{self.session}: {total} found after {self.count} steps")
            self.longest = max(self.longest, time.monotonic() - began)
            time.sleep(0.02)

    def _try(self, key: str) -> int | None:
        try:
            return self._dormouse.call("held", 1, session=self.session, key=key, timeout=30)
        except grpc.RpcError as error:
            self.errors[f"{error.code().name}: {error.details()}"[:120]] += 1
            return None


def workers_of(dormouse: Dormouse, image: str, count: int, name: str = "held") -> bool:
    found = dormouse.cluster.get("pods", "", dormouse.space, "-l", f"dormouse.dev/function={name}")
    return len(found) == count and all(pod["spec"]["containers"][0]["image"] == image for pod in found)


@pytest.mark.parametrize("earlier", [EARLIER], indirect=True)
def test_an_upgrade_of_the_chart_and_the_way_back(earlier: Dormouse) -> None:
    cluster = earlier.cluster
    earlier.apply(counter("held", minReplicas=2, maxReplicas=2), counter("sleeper"), echo("echo"))
    earlier.ready("held", 2)
    assert [earlier.call("sleeper", n, session="before") for n in (1, 2)] == [1, 3]
    earlier.asleep("sleeper")
    with contextlib.ExitStack() as stack:
        steppers = [stack.enter_context(Stepping(earlier, f"s{n}")) for n in range(6)]

        def go_on(what: str) -> None:
            """Each session got on since, and none is wrong."""
            counts = [each.count for each in steppers]
            eventually(f"every session goes on {what}", lambda: all(e.count > c + 5 for e, c in zip(steppers, counts, strict=True)), 90)
            assert not [wrong for each in steppers for wrong in each.wrong]
            print(what, sum((each.errors for each in steppers), collections.Counter()), f"longest {max(e.longest for e in steppers):.1f} s")
            for each in steppers:
                each.errors.clear()
                each.longest = 0.0

        go_on("before")
        helm(cluster, "upgrade", CHART, images.DORMOUSE, policy=True)
        go_on("after the upgrade")
        eventually("the workers are of the new version", lambda: workers_of(earlier, images.DORMOUSE, 2), 120)
        go_on("on workers of the new version")
        assert earlier.call("sleeper", 4, session="before") == 7
        assert earlier.call("echo", 5) == 5
        cluster.helm("rollback", RELEASE, "1", "-n", SYSTEM, "--wait", "--timeout", "240s")
        go_on("after the rollback")
        eventually("the workers are of the earlier version", lambda: workers_of(earlier, BEFORE, 2), 120)
        go_on("on workers of the earlier version")
        assert earlier.call("sleeper", 8, session="before") == 15


class Calling:
    """Calls of one function, some 5 a second, none of which is sent again. `session`: steps, each of which must count once."""

    def __init__(self, dormouse: Dormouse, name: str, session: str) -> None:
        self.name, self.count, self.longest = name, 0, 0.0
        self.wrong: list[str] = []
        self._dormouse, self._session = dormouse, session
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Calling":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._end.wait(0.2):
            began = time.monotonic()
            try:
                found = self._dormouse.call(self.name, 1, session=self._session, timeout=60)
            except grpc.RpcError as error:
                self.wrong.append(f"{self.name} after {self.count}: {error.code().name}: {error.details()}")
                return
            self.longest = max(self.longest, time.monotonic() - began)
            self.count += 1
            if found != (self.count if self._session else 1):
                self.wrong.append(f"{self.name}: {found} found after {self.count}")
                return


@pytest.mark.parametrize("earlier", [RELEASE_BEFORE], indirect=True)
def test_from_the_release_before_and_back_no_call_fails_and_one_with_an_image_of_its_own_stays_as_it_is(earlier: Dormouse) -> None:
    """All are awake: stateful ones of two workers and of one, stateless ones, and two whose workers are of the release before whatever the
    installation's image is."""
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

        def go_on(what: str) -> None:
            counts = [each.count for each in callers]
            eventually(
                what, lambda: any(e.wrong for e in callers) or all(e.count > c + 10 for e, c in zip(callers, counts, strict=True)), 90
            )
            assert [wrong for each in callers for wrong in each.wrong] == []
            print(what, {each.name: (each.count, round(each.longest, 1)) for each in callers})
            for each in callers:
                each.longest = 0.0

        def all_of(image: str) -> None:
            for name, count in (("held", 2), ("one", 1), ("echo", 1)):
                eventually(f"{name}'s workers are of {image}", lambda: workers_of(earlier, image, count, name), 120)  # noqa: B023

        go_on("before")
        with cluster.shell() as environment:
            pages.run(PAGE, 0, namespace=SYSTEM, environment=environment, TAG=images.DORMOUSE.rpartition(":")[2])
        go_on("after the upgrade")
        all_of(images.DORMOUSE)
        go_on("on workers of the new release")
        assert all(workers_of(earlier, BEFORE, 1, name) for name in ("pinned", "pinned-echo")), "an image of one's own stays"
        cluster.kubectl("delete", "pod", *earlier.pods("pinned"), "-n", earlier.space)
        go_on("with a worker of the release before that the new operator started")
        with cluster.shell() as environment:
            pages.run(PAGE, 1, namespace=SYSTEM, environment=environment)
        all_of(BEFORE)
        go_on("on workers of the release before")
