"""Power cuts of one node of three, under calls of an unmodified client at a gateway of another: the node that has the leader, a gateway, a
member of etcd and the only worker of a stateful function, and each node in turn. On three nodes alone (`tests/cluster/cluster up --nodes
3`)."""

import contextlib
import itertools
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import grpc
import pytest
from dormouse_testing import pages
from dormouse_testing.cluster import nodes
from dormouse_testing.cluster.client import Cluster, eventually
from dormouse_testing.cluster.functions import OPERATOR, SYSTEM, Dormouse, counter, installed

SESSIONS = 10
PAUSE = 0.5  # seconds between the steps of a session: 20 calls/s in all
GAP = 15.0  # seconds without an acknowledged step, at most
WAKE = 30.0  # seconds until a function that slept answers
BLIND = 45.0  # seconds for which a node is away in the negative control
BLINDED = """
import runpy, sys
from dormouse_core import nodeloss
nodeloss.NODE_SILENT_SECONDS = nodeloss.NODE_UNTAKEN_SECONDS = 1e9
sys.argv[0] = "dormouse_operator"
runpy.run_module("dormouse_operator", run_name="__main__", alter_sys=True)
"""
LEADER = """
import asyncio
from pathlib import Path
from dormouse_kit.etcd import EtcdStore, TlsFiles
from dormouse_proto import state_pb2

async def ask():
    hosts = [f"dormouse-etcd-{i}.dormouse-system.svc.cluster.local:2379" for i in range(3)]
    store = EtcdStore(hosts, tls=TlsFiles(Path("/etc/dormouse/tls/ca.crt")), user="root", password=Path("/etc/dormouse/users/operator"))
    _, found = await store.get(["/dormouse/default/leader"])
    print(*[state_pb2.Leader.FromString(item.value).name for item in found.values()])
    await store.close()

asyncio.run(ask())
"""


@pytest.fixture(scope="module")
def dormouse(alone: Cluster) -> Iterator[Dormouse]:
    """Three members, two operators, two gateways, and a function that sleeps."""
    if not alone.own or len(alone.nodes) < 3:
        pytest.skip("it takes three nodes, and such that are ours to lose")
    values = ("singleNode=false", "etcd.persistence.acceptLoss=true")  # as many of each part as the chart makes by itself
    with installed(alone, "test-node-loss", *values) as found:
        found.apply(counter("sleeper"))
        eventually("it is proved", lambda: found.condition("sleeper", "Ready").get("status") == "True", 60)
        found.asleep("sleeper")
        yield found


def placed(dormouse: Dormouse, part: str) -> dict[str, str]:
    """Its pods' nodes."""
    found = dormouse.cluster.get("pods", "", SYSTEM, "-l", f"dormouse.dev/part={part}")
    return {pod["metadata"]["name"]: pod["spec"].get("nodeName", "") for pod in found if "deletionTimestamp" not in pod["metadata"]}


def leader(dormouse: Dormouse) -> str:
    pod = next(iter(placed(dormouse, "operator")))
    return dormouse.cluster.kubectl("exec", "-n", SYSTEM, pod, "-c", "operator", "--", "python3", "-c", LEADER).strip()


def whole(dormouse: Dormouse) -> bool:
    """Every pod of the installation is ready."""
    pods = dormouse.cluster.get("pods", "", SYSTEM)
    ready = [any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", [])) for pod in pods]
    return len(pods) == 7 and all(ready)


def lead_on(dormouse: Dormouse, node: str) -> bool:
    """Whether the leader is there, for which another may have to go."""
    for _ in range(3):
        operators = placed(dormouse, "operator")
        if node not in operators.values():
            return False
        name = leader(dormouse)
        if operators.get(name) == node:
            return True
        dormouse.cluster.kubectl("delete", "pod", "-n", SYSTEM, name, "--wait=true")
        eventually("all parts are there", lambda: whole(dormouse), 90)
    return False


def worst(dormouse: Dormouse) -> str:
    """The node of an operator and a gateway; there is one, of three nodes, two operators and two gateways."""
    both = set(placed(dormouse, "operator").values()) & set(placed(dormouse, "gateway").values())
    return sorted(both)[0]


@dataclass(slots=True)
class Answer:
    at: float
    total: int


class Callers:
    """Steps on ten sessions, 20 each second in all, at one gateway. Every answer must be the one after the one before."""

    def __init__(self, dormouse: Dormouse, gateway: str, name: str, run: str) -> None:
        self._caller = Dormouse(dormouse.cluster, f"{gateway}:8001", dormouse.space)
        self._name, self._ended = name, threading.Event()
        self.answers: dict[str, list[Answer]] = {f"{run}-{i}": [] for i in range(SESSIONS)}
        self.errors: list[str] = []

    def __enter__(self) -> "Callers":
        self._threads = [threading.Thread(target=self._walk, args=(session,)) for session in self.answers]
        for thread in self._threads:
            thread.start()
        return self

    def _walk(self, session: str) -> None:
        while not self._ended.is_set():
            try:
                total = self._caller.call(self._name, 1, session=session, timeout=None)
            except grpc.RpcError as error:
                self.errors.append(f"{time.monotonic():.1f} {error.code().name}: {error.details()}")
            else:
                self.answers[session].append(Answer(time.monotonic(), total))
            self._ended.wait(PAUSE)

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()
        self._caller.close()

    def gap(self) -> tuple[float, float]:
        """The longest time without an answer of anybody, and without one of one session."""
        everybody = sorted(answer.at for answers in self.answers.values() for answer in answers)
        return _gap(everybody), max(_gap([a.at for a in answers]) for answers in self.answers.values())

    def check(self) -> None:
        """No call failed, and each acknowledged step counted once."""
        assert self.errors == []
        for answers in self.answers.values():
            assert [answer.total for answer in answers] == list(range(1, len(answers) + 1))


def _gap(times: list[float]) -> float:
    return max(after - before for before, after in itertools.pairwise(times))


def wake(dormouse: Dormouse, gateway: str) -> float:
    """Seconds until a function that slept answers."""
    caller = Dormouse(dormouse.cluster, f"{gateway}:8001", dormouse.space)
    began = time.monotonic()
    caller.call("sleeper", 1, session=f"{began}", timeout=200)
    caller.close()
    return time.monotonic() - began


def lost(dormouse: Dormouse, name: str, node: str, seconds: float) -> tuple[Callers, float]:
    """The calls, and how long a function that slept took to wake, when the node that has the only worker of `name` goes. It comes back."""
    cluster = dormouse.cluster
    assert cluster.layout is not None
    machine = next(each for each in cluster.nodes if each.name == node)
    others = [each for each in cluster.nodes if each != machine]
    for other in others:
        cluster.kubectl("cordon", other.name)
    dormouse.apply(counter(name, minReplicas=1, maxReplicas=1))
    dormouse.ready(name, 1)
    for other in others:
        cluster.kubectl("uncordon", other.name)
    dormouse.asleep("sleeper")
    eventually("all parts are there", lambda: whole(dormouse), 90)
    before = restarts(dormouse, node)
    gateway = next(pod["status"]["podIP"] for pod in dormouse.gateways() if pod["spec"]["nodeName"] != node)
    with Callers(dormouse, gateway, name, node) as callers:
        time.sleep(3)
        began = time.monotonic()
        nodes.lose(cluster.layout, machine)
        try:
            woken = wake(dormouse, gateway)
            time.sleep(max(began + seconds - time.monotonic(), 0))
            left = on(dormouse, node)
            with cluster.shell() as environment:
                print(*pages.run("Lose a node", 0, namespace=SYSTEM, environment=environment, NODE=node))
        finally:
            nodes.start(cluster.layout, machine, others)
        eventually("its parts were started again", lambda: again(before, restarts(dormouse, node)), 120)
    gap, one = callers.gap()
    print(f"{node}: {gap:.1f} s without a step, {one:.1f} s of one session; {woken:.1f} s to wake; left {left}; errors {callers.errors}")
    eventually("all parts are back", lambda: whole(dormouse), 120)
    eventually("one worker, none more", lambda: len(dormouse.pods(name)) == 1 and dormouse.status(name).get("readyReplicas") == 1, 60)
    if seconds < BLIND:
        assert left == [], "they went by force, before Kubernetes knew"
        callers.check()
        for each in dormouse.gateways():
            with contextlib.closing(Dormouse(cluster, f"{each['status']['podIP']}:8001", dormouse.space)) as asking:
                for session, answers in callers.answers.items():
                    assert asking.call(name, 0, session=session) == answers[-1].total, f"at {each['metadata']['name']}"
    dormouse.delete(name)
    return callers, woken


def on(dormouse: Dormouse, node: str) -> list[str]:
    """Workers' pods on it."""
    pods = dormouse.cluster.get("pods", "", dormouse.space, "-l", "dormouse.dev/function")
    return [pod["metadata"]["name"] for pod in pods if pod["spec"].get("nodeName") == node]


def restarts(dormouse: Dormouse, node: str) -> dict[str, int]:
    """How often the containers of the installation's pods there were started again."""
    pods = [pod for pod in dormouse.cluster.get("pods", "", SYSTEM) if pod["spec"].get("nodeName") == node]
    return {
        f"{pod['metadata']['name']}/{each['name']}": each["restartCount"]
        for pod in pods
        for each in pod["status"].get("containerStatuses", [])
    }


def again(before: dict[str, int], after: dict[str, int]) -> bool:
    """Until then their statuses are those of before the power cut."""
    return all(after.get(each, 0) > count for each, count in before.items())


@pytest.mark.slow
def test_the_node_of_the_leader_a_gateway_a_member_and_the_only_worker_is_lost(dormouse: Dormouse) -> None:
    """Steps go on within 15 s, a function that slept wakes within 30 s, no call at a surviving gateway fails, no acknowledged step is lost,
    and nothing is doubled when the node comes back."""
    node = worst(dormouse)
    assert lead_on(dormouse, node)
    callers, woken = lost(dormouse, "worst", node, 20)
    assert callers.gap()[0] <= GAP
    assert woken <= WAKE


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 2, 3])
def test_each_node_in_turn_is_lost(dormouse: Dormouse, number: int) -> None:
    """With the only worker, and the leader where an operator is."""
    node = f"node{number}"
    print(f"{node} leads: {lead_on(dormouse, node)}")
    callers, woken = lost(dormouse, f"turn{number}", node, 20)
    assert callers.gap()[0] <= GAP
    assert woken <= WAKE


@pytest.mark.slow
def test_negative_control_without_the_rule_nothing_happens_until_kubernetes_knows(dormouse: Dormouse) -> None:
    """The last one here: its operators do not look for lost nodes."""
    command = ["python3", "-P", "-c", BLINDED]
    patch = [{"op": "replace", "path": "/spec/template/spec/containers/0/command", "value": command}]
    dormouse.cluster.kubectl("patch", "-n", SYSTEM, OPERATOR, "--type=json", "-p", json.dumps(patch))
    dormouse.cluster.kubectl("rollout", "status", "-n", SYSTEM, OPERATOR, "--timeout=100s")
    eventually("the old ones are gone", lambda: whole(dormouse), 90)
    node = worst(dormouse)
    assert lead_on(dormouse, node)
    callers, _ = lost(dormouse, "blind", node, BLIND)
    assert callers.gap()[0] > 40
