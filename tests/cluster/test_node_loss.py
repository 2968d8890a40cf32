"""Power cuts of one node of three, under calls of an unmodified client at a gateway of another: the node that has the leader, a gateway, a
member of etcd and the only worker of a stateful function, and each node in turn. On three nodes alone (`tests/cluster/cluster up --nodes
3`)."""

import json
import time
from collections.abc import Iterator

import pytest
from dormouse_testing import pages
from dormouse_testing.cluster import nodes, three_nodes, walking
from dormouse_testing.cluster.client import Cluster, eventually
from dormouse_testing.cluster.functions import OPERATOR, SYSTEM, Dormouse

SESSIONS = 10
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

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def dormouse(alone: Cluster) -> Iterator[Dormouse]:
    if reason := three_nodes.unfit(alone):
        pytest.skip(reason)
    with three_nodes.installed_on_three(alone, "test-node-loss") as found:
        yield found


def lost(dormouse: Dormouse, name: str, node: str, seconds: float) -> tuple[walking.Walk, float]:
    """The calls, and how long a function that slept took to wake, when the node that has the only worker of `name` goes. It comes back."""
    layout, machine = three_nodes.layout(dormouse), three_nodes.machine(dormouse, node)
    three_nodes.only_there(dormouse, name, node)
    before = three_nodes.restarts(dormouse, node)
    gateway = three_nodes.gateway(dormouse, node, elsewhere=True)
    with walking.at(dormouse, gateway, name, [f"{node}-{i}" for i in range(SESSIONS)]) as walk:
        time.sleep(3)
        began = time.monotonic()
        nodes.lose(layout, machine)
        try:
            woken = three_nodes.wake(dormouse, gateway)
            time.sleep(max(began + seconds - time.monotonic(), 0))
            left = three_nodes.workers_on(dormouse, node)
            with dormouse.cluster.shell() as environment:
                print(*pages.run("Lose a node", 0, namespace=SYSTEM, environment=environment, NODE=node))
        finally:
            nodes.start(layout, machine, three_nodes.others(dormouse, node))
    three_nodes.started_again(dormouse, before, node)
    print(f"{node}: {walk.gap():.1f} s without a step, {walk.longest():.1f} s of one session; {woken:.1f} s to wake; left {left}")
    three_nodes.well(dormouse, name)
    if seconds < BLIND:
        assert left == [], "they went by force, before Kubernetes knew"
        assert walk.failures == []
        for session, (least, most) in walking.totals(walk).items():
            assert three_nodes.counted(dormouse, name, session) == [least, least] == [most, most]
    dormouse.delete(name)
    return walk, woken


def test_the_node_of_the_leader_a_gateway_a_member_and_the_only_worker_is_lost(dormouse: Dormouse) -> None:
    """Steps go on within 15 s, a function that slept wakes within 30 s, no call at a surviving gateway fails, no acknowledged step is lost,
    and nothing is doubled when the node comes back."""
    node = three_nodes.worst(dormouse)
    assert three_nodes.lead_on(dormouse, node)
    walk, woken = lost(dormouse, "worst", node, 20)
    assert walk.gap() <= GAP
    assert woken <= WAKE


@pytest.mark.parametrize("number", [1, 2, 3])
def test_each_node_in_turn_is_lost(dormouse: Dormouse, number: int) -> None:
    """With the only worker, and the leader where an operator is."""
    node = f"node{number}"
    print(f"{node} leads: {three_nodes.lead_on(dormouse, node)}")
    walk, woken = lost(dormouse, f"turn{number}", node, 20)
    assert walk.gap() <= GAP
    assert woken <= WAKE


def test_negative_control_without_the_rule_nothing_happens_until_kubernetes_knows(dormouse: Dormouse) -> None:
    """The last one here: its operators do not look for lost nodes."""
    command = ["python3", "-P", "-c", BLINDED]
    patch = [{"op": "replace", "path": "/spec/template/spec/containers/0/command", "value": command}]
    dormouse.cluster.kubectl("patch", "-n", SYSTEM, OPERATOR, "--type=json", "-p", json.dumps(patch))
    dormouse.cluster.kubectl("rollout", "status", "-n", SYSTEM, OPERATOR, "--timeout=100s")
    eventually("the old ones are gone", lambda: three_nodes.whole(dormouse), 90)
    node = three_nodes.worst(dormouse)
    assert three_nodes.lead_on(dormouse, node)
    walk, _ = lost(dormouse, "blind", node, BLIND)
    assert walk.gap() > 40
