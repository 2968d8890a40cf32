"""Evictions and drains: every pod may be evicted, workers one at a time and after they handed over, and the only node can be drained.

etcd is on a volume here, as in an installation that is to keep its sessions.
"""

import contextlib
import itertools
import json
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from dormouse_testing.cluster.callers import CALLING
from dormouse_testing.cluster.callers import pod as pod_of
from dormouse_testing.cluster.client import Cluster, eventually
from dormouse_testing.cluster.functions import GATEWAY, SYSTEM, Dormouse, counter, echo, installed
from dormouse_testing.cluster.layout import ClusterError

PARTS = {"gateway": 2, "operator": 1, "etcd": 1}
SESSIONS = 24
ASKING = 40


@pytest.fixture(scope="module")
def dormouse(alone: Cluster) -> Iterator[Dormouse]:
    """Three functions: at zero, at one, and at three workers."""
    alone.volume(f"{SYSTEM}-0")
    try:
        with installed(alone, "test-drain", "etcd.persistence.enabled=true", "etcd.persistence.size=1Gi") as found:
            short = {"timeouts": {"step": "5s"}}
            found.apply(echo("none"), counter("one", minReplicas=1, **short), counter("three", minReplicas=3, maxReplicas=3, **short))
            found.ready("one", 1)
            found.ready("three", 3)
            found.asleep("none")
            yield found
    finally:
        if alone.own:
            alone.kubectl("delete", "pv", f"{SYSTEM}-0", "--ignore-not-found", "--wait=false")


_NUMBERS = itertools.count(1)


class Steps:
    """One step after the other on every session of a function, and how often each was acknowledged. A step that failed may have run: the
    next answer tells."""

    def __init__(self, dormouse: Dormouse, name: str) -> None:
        self._dormouse, self._name = dormouse, name
        self._ended = threading.Event()
        self.errors: list[str] = []
        self.counts = dict.fromkeys((f"{next(_NUMBERS)}" for _ in range(SESSIONS)), 0)
        self._unknown: set[str] = set()  # sessions whose last step may have run

    def __enter__(self) -> "Steps":
        for session in self.counts:
            self._step(session)
        self._tasks = [self._dormouse.pool.submit(self._walk, place) for place in range(4)]
        return self

    def _walk(self, place: int) -> None:
        while not self._ended.is_set():
            for session in list(self.counts)[place::4]:
                self._step(session)
                time.sleep(0.01)

    def _step(self, session: str) -> None:
        try:
            total = self._dormouse.call(self._name, 1, session=session, timeout=30)
        except grpc.RpcError as error:
            self.errors.append(f"{error.code().name}: {error.details()}")
            self._unknown.add(session)
            time.sleep(0.1)
            return
        known = self.counts[session]
        assert total == known + 1 or (total > known and session in self._unknown), (session, known, total)
        self.counts[session] = total
        self._unknown.discard(session)

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for task in self._tasks:
            task.result()

    def check(self) -> None:
        """What was acknowledged is there."""
        for session, count in self.counts.items():
            found = self._dormouse.call(self._name, 0, session=session, timeout=30)
            assert found == count or (found > count and session in self._unknown), (session, count, found)


def evict(dormouse: Dormouse, namespace: str, pod: str) -> bool:
    """False: not now, says the budget."""
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": namespace}}
    path = f"/api/v1/namespaces/{namespace}/pods/{pod}/eviction"
    try:
        dormouse.cluster.kubectl("create", "--raw", path, "-f", "-", stdin=json.dumps(body))
    except ClusterError as error:
        if "disruption budget" not in str(error):
            raise
        return False
    return True


class Ends:
    """The ends of pods in their order. What was evicted can be gone, and the next be allowed to go, before one can ask twice; the API
    server's watch misses nothing."""

    def __init__(self, dormouse: Dormouse, namespace: str, labels: str) -> None:
        words = ["-n", namespace, "-l", labels, "--watch", "--output-watch-events", "-o", "json"]
        self._command = dormouse.cluster.command("get", "pods", *words)
        self._environment = dormouse.cluster.environment()
        self._first = len(dormouse.cluster.get("pods", "", namespace, "-l", labels))

    def __enter__(self) -> "Ends":
        self._file = tempfile.NamedTemporaryFile()
        self._watch = subprocess.Popen(self._command, stdout=self._file, env=self._environment)
        eventually("the watch has begun", lambda: len(self._events()) >= self._first)
        return self

    def __exit__(self, *_: object) -> None:
        self._watch.terminate()
        self._watch.wait(10)
        self._found = self._events()
        self._file.close()

    def _events(self) -> list[tuple[str, dict[str, Any]]]:
        return watched(Path(self._file.name).read_text())

    def told(self) -> set[str]:
        return {pod["metadata"]["name"] for kind, pod in self._events() if kind == "DELETED" or "deletionTimestamp" in pod["metadata"]}

    def gone(self) -> set[str]:
        return {pod["metadata"]["name"] for kind, pod in self._events() if kind == "DELETED"}

    def at_once(self) -> int:
        """How many were ending at once, at most. One whose containers have ended counts no more, with the budgets too."""
        ending: set[str] = set()
        most = 0
        for kind, pod in self._found:
            name, ended = pod["metadata"]["name"], pod["status"].get("phase") in ("Failed", "Succeeded")
            if kind == "DELETED" or ended:
                ending.discard(name)
            elif "deletionTimestamp" in pod["metadata"]:
                ending.add(name)
            most = max(most, len(ending))
        return most

    def left(self) -> list[int]:
        """How many others were ready when each was told to go."""
        told: set[str] = set()
        serving: set[str] = set()
        counts = []
        for kind, pod in self._found:
            name, going = pod["metadata"]["name"], kind == "DELETED" or "deletionTimestamp" in pod["metadata"]
            serving.discard(name)
            if not going and is_ready(pod):
                serving.add(name)
            if going and name not in told:
                told.add(name)
                counts.append(len(serving))
        return counts


def watched(text: str) -> list[tuple[str, dict[str, Any]]]:
    """The events of a watch that has written so much; an event that is cut off is left out."""
    decoder, found, at = json.JSONDecoder(), [], 0
    while (at := text.find("{", at)) >= 0:
        try:
            event, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError:
            break
        found.append((event["type"], event["object"]))
    return found


def all_told(dormouse: Dormouse, namespace: str, labels: str, pods: set[str]) -> bool:
    """Asks for each of `pods` that was not told to go, as a drain does: for all at once, and again for who was refused."""
    left = pods & names(dormouse, namespace, labels)
    return not [pod for pod in sorted(left) if not evict(dormouse, namespace, pod)]


def names(dormouse: Dormouse, namespace: str, labels: str) -> set[str]:
    found = dormouse.cluster.get("pods", "", namespace, "-l", labels)
    return {pod["metadata"]["name"] for pod in found if "deletionTimestamp" not in pod["metadata"]}


def workers(dormouse: Dormouse, name: str) -> set[str]:
    return names(dormouse, *of(dormouse, name))


def of(dormouse: Dormouse, name: str) -> tuple[str, str]:
    """Namespace and labels of a function's pods."""
    return dormouse.space, f"dormouse.dev/function={name}"


def settled(dormouse: Dormouse, seconds: float = 90.0) -> None:
    """All parts are there and ready, every function has its workers, and calls reach them."""
    for part, count in PARTS.items():
        labels = f"dormouse.dev/part={part}"
        eventually(f"{part}: {count}", lambda labels=labels, count=count: ready(dormouse, labels) == count, seconds)  # type: ignore[misc]
    dormouse.ready("one", 1, seconds)
    dormouse.ready("three", 3, seconds)
    eventually("no worker more", lambda: (len(dormouse.pods("one")), len(dormouse.pods("three"))) == (1, 3), seconds)
    eventually("calls get in", lambda: answers(dormouse), seconds)


def answers(dormouse: Dormouse) -> bool:
    try:
        return all(dormouse.call(name, 0, session="0", timeout=5) == 0 for name in ("one", "three"))
    except grpc.RpcError:
        return False


def ready(dormouse: Dormouse, labels: str) -> int:
    found = dormouse.cluster.get("pods", "", SYSTEM, "-l", labels)
    return sum(is_ready(pod) for pod in found if "deletionTimestamp" not in pod["metadata"])


def is_ready(pod: dict[str, Any]) -> bool:
    return any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", []))


def replaced(dormouse: Dormouse, name: str, pod: str, count: int) -> None:
    """The pod has gone, and so many serve."""
    began = time.monotonic()
    eventually(f"{pod} is gone", lambda: pod not in dormouse.pods(name), 60)
    gone = time.monotonic() - began
    dormouse.ready(name, count)
    eventually("as many pods", lambda: len(dormouse.pods(name)) == count)
    print(f"{pod} gone after {gone:.1f} s, replaced after {time.monotonic() - began:.1f} s")


def test_workers_are_evicted_one_at_a_time_and_no_call_fails(dormouse: Dormouse) -> None:
    """5.O6. Of three, each in turn: the next may go when another has taken its place. Callers see none of it, for each hands over first."""
    before = workers(dormouse, "three")
    with Steps(dormouse, "three") as steps, Ends(dormouse, *of(dormouse, "three")) as ends:
        eventually("all may be evicted", lambda: all_told(dormouse, *of(dormouse, "three"), before), 90)
        eventually("they are gone", lambda: ends.gone() >= before, 60)
        dormouse.ready("three", 3)
        eventually("as many pods", lambda: len(dormouse.pods("three")) == 3)
    assert ends.left() == [2, 2, 2], "the two others served whenever one was told to go"
    assert steps.errors == []
    steps.check()


def test_the_only_worker_is_evicted_and_no_call_fails(dormouse: Dormouse) -> None:
    """5.O6. Of one, with its sessions, under so many callers that one always asks; and of none, where there is nothing to evict
    and the function wakes as ever."""
    ended, took = threading.Event(), list[float]()

    def ask(number: int) -> None:
        while not ended.is_set():
            began = time.monotonic()
            dormouse.call("one", 0, session=f"asking-{number}", timeout=30)
            took.append(time.monotonic() - began)
            time.sleep(0.2)

    with Steps(dormouse, "one") as steps:
        asking = [dormouse.pool.submit(ask, number) for number in range(ASKING)]
        try:
            [pod] = workers(dormouse, "one")
            eventually("it may be evicted", lambda: evict(dormouse, dormouse.space, pod))
            replaced(dormouse, "one", pod, 1)
        finally:
            ended.set()
        for each in asking:
            each.result()
    assert steps.errors == []
    assert max(took) < 15, "nobody waits for its grace period, of 25 s"
    steps.check()
    dormouse.asleep("none")
    assert dormouse.call("none", 3) == 3


def test_gateways_and_operator_are_evicted(dormouse: Dormouse) -> None:
    """5.O6. Gateways one at a time. The operator's eviction lets go of the budgets, and the next operator takes them up again."""
    gateways = (SYSTEM, "dormouse.dev/part=gateway")
    before = names(dormouse, *gateways)
    with Ends(dormouse, *gateways) as ends:
        eventually("all may be evicted", lambda: all_told(dormouse, *gateways, before), 90)
        eventually("it was seen", lambda: ends.told() >= before)
    assert ends.left() == [1, 1], "the other served whenever one was told to go"
    [operator] = names(dormouse, SYSTEM, "dormouse.dev/part=operator")
    assert evict(dormouse, SYSTEM, operator)
    there = f"pod/{operator}"
    dormouse.cluster.kubectl("wait", "--for=delete", there, "-n", SYSTEM, "--timeout=60s")  # by then it has let go of the budgets
    settled(dormouse)
    eventually("budgets are as they should be", lambda: set(widths(dormouse).values()) == {1})
    with Steps(dormouse, "three") as steps:
        time.sleep(1)
    assert steps.errors == []


def test_gateways_are_replaced_and_no_caller_is_refused(dormouse: Dormouse) -> None:
    """5.O6. kube-proxy hears that they go later than they do. Two callers connect anew for each call, two stay connected; in a pod as many,
    and two that call now and then."""
    inside = CALLING.format(target=f"{GATEWAY}.{SYSTEM}.svc.cluster.local:8001", model=f"{dormouse.space}/one", session="inside")
    dormouse.cluster.apply(pod_of("caller", inside, dormouse.cluster), namespace=dormouse.space)
    eventually("it calls", lambda: answered(dormouse) > 0, 60)
    ended, codes = threading.Event(), []

    def run(stays: bool) -> None:
        caller = Dormouse(dormouse.cluster, dormouse.address, dormouse.space)
        while not ended.is_set():
            try:
                caller.call("one", 0, session="0", timeout=30)
            except grpc.RpcError as error:
                codes.append(f"{stays=}: {error.code().name}: {error.details()}")
            else:
                codes.append("OK")
            if not stays:
                caller.close()
                caller = Dormouse(dormouse.cluster, dormouse.address, dormouse.space)
            time.sleep(0.05)
        caller.close()

    gateway, labels = f"deployment/{GATEWAY}", "dormouse.dev/part=gateway"
    callers = [dormouse.pool.submit(run, stays) for stays in (True, True, False, False)]
    try:
        dormouse.cluster.kubectl("rollout", "restart", gateway, "-n", SYSTEM)
        dormouse.cluster.kubectl("rollout", "status", gateway, "-n", SYSTEM, "--timeout=100s")
        eventually("the old ones are gone", lambda: len(dormouse.cluster.get("pods", "", SYSTEM, "-l", labels)) == PARTS["gateway"], 60)
    finally:
        ended.set()
        for each in callers:
            each.result()
    assert set(codes) == {"OK"}, [code for code in codes if code != "OK"]
    now = answered(dormouse)
    eventually("it still calls", lambda: answered(dormouse) > now)
    dormouse.cluster.kubectl("delete", "pod", "caller", "-n", dormouse.space, "--wait=false")


def answered(dormouse: Dormouse) -> int:
    """How many calls of the pod were answered. None failed."""
    lines = dormouse.cluster.kubectl("logs", "caller", "-n", dormouse.space).splitlines()
    assert [line for line in lines if line.startswith("FAILED")] == []
    return max((int(line.split()[1]) for line in lines if line.startswith("ANSWERED")), default=0)


def widths(dormouse: Dormouse) -> dict[str, object]:
    found = dormouse.cluster.get("poddisruptionbudgets")
    return {each["metadata"]["name"]: each["spec"]["maxUnavailable"] for each in found}


def test_a_drain_where_workers_fit_nowhere_else_ends_one_by_one(dormouse: Dormouse) -> None:
    """5.O6. The node takes no new pod while the workers are evicted, as a drain does it: each eviction waits for the one before, none for
    ever, and the sessions of the last are there when there is a node again."""
    if not dormouse.cluster.own:
        pytest.skip("another's nodes are not ours to close")
    with Steps(dormouse, "three") as steps:
        pass
    [node] = [each["metadata"]["name"] for each in dormouse.cluster.get("nodes")]
    before = workers(dormouse, "three")
    dormouse.cluster.kubectl("cordon", node)
    try:
        with Ends(dormouse, *of(dormouse, "three")) as ends:
            eventually("all may be evicted", lambda: all_told(dormouse, *of(dormouse, "three"), before), 90)
            began = time.monotonic()
            eventually("they are gone", lambda: not before & set(dormouse.pods("three")), 60)
            print(f"the last one went after {time.monotonic() - began:.0f} s")
            assert time.monotonic() - began < 5 + 15, "it waited for a taker until it was killed"
            eventually("their ends were seen", lambda: ends.gone() >= before)
        assert ends.at_once() == 1, "a second one at once"
    finally:
        dormouse.cluster.kubectl("uncordon", node)
    settled(dormouse)
    steps.check()
    eventually("budgets are as they should be", lambda: set(widths(dormouse).values()) == {1})


def test_the_only_node_is_drained(dormouse: Dormouse) -> None:
    """5.O6. `kubectl drain`, with everything of the installation on that node, etcd too: it ends, and after it every acknowledged step is
    there and every function answers."""
    if not dormouse.cluster.own:
        pytest.skip("another's nodes are not ours to drain")
    [node] = [each["metadata"]["name"] for each in dormouse.cluster.get("nodes")]
    with contextlib.ExitStack() as calls:
        running = [calls.enter_context(Steps(dormouse, name)) for name in ("one", "three")]
        began = time.monotonic()
        try:
            dormouse.cluster.kubectl("drain", node, "--delete-emptydir-data", "--force", "--timeout=150s", timeout=180)
            print(f"drained in {time.monotonic() - began:.0f} s")
            left = dormouse.cluster.get("pods")
            assert [pod["metadata"]["name"] for pod in left if pod["spec"].get("nodeName")] == []
        finally:
            dormouse.cluster.kubectl("uncordon", node)
        settled(dormouse)
    for steps in running:
        assert all(steps.counts.values())
        steps.check()
    assert dormouse.call("none", 3) == 3
    eventually("budgets are as they should be", lambda: set(widths(dormouse).values()) == {1})


@pytest.mark.slow
def test_two_nodes_of_three_are_drained_in_parallel_and_workers_leave_one_at_a_time(dormouse: Dormouse) -> None:
    """5.O6. With the only operator on one of them, whose eviction opens no budget: another takes its place. On three nodes alone
    (`tests/cluster/cluster up --nodes 3`)."""
    nodes = {each["metadata"]["name"] for each in dormouse.cluster.get("nodes")}
    if not dormouse.cluster.own or len(nodes) < 3:
        pytest.skip("it takes three nodes, and such that are ours to drain")
    [store] = placed(dormouse, "etcd")
    dormouse.cluster.kubectl("cordon", store)
    if placed(dormouse, "operator") == [store]:
        dormouse.cluster.kubectl("delete", "pod", "-n", SYSTEM, "-l", "dormouse.dev/part=operator")
    settled(dormouse)
    drained = sorted(nodes - {store})
    assert placed(dormouse, "operator")[0] in drained
    before = workers(dormouse, "three")
    dormouse.patch("three", {"maxConcurrency": 7})  # new workers, on the nodes that will be drained
    eventually("they are others", lambda: not before & set(dormouse.pods("three")) and len(dormouse.pods("three")) == 3, 90)
    settled(dormouse)
    dormouse.cluster.kubectl("uncordon", store)
    seen: set[object] = set()
    try:
        with Steps(dormouse, "three") as steps, Ends(dormouse, *of(dormouse, "three")) as ends:
            words = ("--delete-emptydir-data", "--force", "--timeout=150s")
            drains = [
                dormouse.pool.submit(lambda node=node: dormouse.cluster.kubectl("drain", node, *words, timeout=180)) for node in drained
            ]
            while not all(each.done() for each in drains):
                seen |= set(widths(dormouse).values())
                time.sleep(0.1)
            for each in drains:
                each.result()
        assert len(ends.left()) == 3
        assert ends.left() == [2, 2, 2], "the two others served whenever one was told to go"
        assert "100%" not in seen, "no budget was opened"
        assert steps.errors == []
        steps.check()
    finally:
        for node in nodes:
            dormouse.cluster.kubectl("uncordon", node)
    settled(dormouse)


def placed(dormouse: Dormouse, part: str) -> list[str]:
    """The nodes of a part's pods."""
    return [str(pod["spec"].get("nodeName", "")) for pod in dormouse.cluster.get("pods", "", SYSTEM, "-l", f"dormouse.dev/part={part}")]
