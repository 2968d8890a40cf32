"""Nodes of three that are away for a while and come back with all that ran on them: one that is cut off from the others, one that stands
still, and two at once, with the majority of etcd. Callers at a gateway of a node that stays send each step once, and again under its key
where it failed. On three nodes alone (`tests/cluster/cluster up --nodes 3`)."""

import time
from collections.abc import Callable, Iterator

import pytest
from dormouse_testing.cluster import nodes, three_nodes, walking
from dormouse_testing.cluster.client import Cluster, eventually
from dormouse_testing.cluster.functions import Dormouse
from dormouse_testing.cluster.layout import Node

SESSIONS = 10
COMMON = 4  # of these also walked by a caller on the node that is cut off
GAP = 15.0  # seconds without an acknowledged step, at most
WAKE = 30.0  # seconds until a function that slept answers
IN_FLIGHT = 1.0  # seconds after the cut in which an answer may still come that was on its way

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def dormouse(alone: Cluster) -> Iterator[Dormouse]:
    if reason := three_nodes.unfit(alone):
        pytest.skip(reason)
    with three_nodes.installed_on_three(alone, "test-node-away") as found:
        yield found


def truth(dormouse: Dormouse, name: str, *walks: walking.Walk) -> None:
    """Each session counts what was acknowledged, at each gateway; more only by steps of which nobody can say whether they ran."""
    for session, (least, most) in walking.totals(*walks).items():
        one, other = three_nodes.counted(dormouse, name, session)
        assert one == other
        assert least <= one <= most, session


def test_a_node_that_is_cut_off_acknowledges_nothing_and_nothing_forks_when_it_is_back(dormouse: Dormouse) -> None:
    """The node of the leader, a gateway, a member of etcd and the only worker, all of which run on. A caller there walks sessions that are
    walked elsewhere meanwhile."""
    node = three_nodes.worst(dormouse)
    assert three_nodes.lead_on(dormouse, node)
    three_nodes.only_there(dormouse, "cut", node)
    machine = three_nodes.machine(dormouse, node)
    here, there = three_nodes.gateway(dormouse, node), three_nodes.gateway(dormouse, node, elsewhere=True)
    sessions = [f"cut-{i}" for i in range(SESSIONS)]
    with (
        walking.inside(machine, here, dormouse.space, "cut", sessions[:COMMON]) as beyond,
        walking.at(dormouse, there, "cut", sessions, again=True) as walk,
    ):
        eventually("both are answered", lambda: len(walk.answers) > SESSIONS and len(beyond.answers) > COMMON, 30)
        nodes.isolate(machine)
        began = time.monotonic()
        try:
            woken = three_nodes.wake(dormouse, there)
            time.sleep(max(began + 25 - time.monotonic(), 0))
        finally:
            back = time.monotonic()
            nodes.rejoin(machine)
        eventually("who was cut off is answered", lambda: len(beyond.between(back)) > 2 * COMMON, 90)
    print(f"{node}: {walk.gap():.1f} s without a step, {walk.longest():.1f} s of one session; {woken:.1f} s to wake")
    print(f"beyond: {len(beyond.between(0, back))} answers before, {len(beyond.between(back))} after; {_told(beyond)}; else {_told(walk)}")
    three_nodes.well(dormouse, "cut")
    assert beyond.between(began + IN_FLIGHT, back) == []
    assert [each for each in walk.failures if each.session not in sessions[:COMMON]] == []
    truth(dormouse, "cut", walk, beyond)
    assert walk.gap() <= GAP
    assert woken <= WAKE
    dormouse.delete("cut")


def _paused(machine: Node) -> None:
    """As a virtual machine that its host stops: its network is silent, too."""
    nodes.isolate(machine)
    nodes.freeze(machine)


def _resumed(machine: Node) -> None:
    nodes.rejoin(machine)
    nodes.thaw(machine)


@pytest.mark.parametrize("seconds", [20, 60])
@pytest.mark.parametrize(
    ("how", "stop", "go_on"), [("still", nodes.freeze, nodes.thaw), ("paused", _paused, _resumed)], ids=["still", "paused"]
)
def test_a_node_that_stops_for_a_while_costs_no_acknowledged_step(
    dormouse: Dormouse, how: str, stop: Callable[[Node], None], go_on: Callable[[Node], None], seconds: int
) -> None:
    """The node of the leader, a gateway, a member of etcd and the only worker. `still`: its processes are stopped; `paused`: its network is
    silent, too."""
    name = f"{how}{seconds}"
    node = three_nodes.worst(dormouse)
    assert three_nodes.lead_on(dormouse, node)
    three_nodes.only_there(dormouse, name, node)
    machine = three_nodes.machine(dormouse, node)
    there = three_nodes.gateway(dormouse, node, elsewhere=True)
    with walking.at(dormouse, there, name, [f"{name}-{i}" for i in range(SESSIONS)], again=True) as walk:
        time.sleep(3)
        began = time.monotonic()
        stop(machine)
        try:
            woken = dormouse.pool.submit(three_nodes.wake, dormouse, there)
            time.sleep(max(began + seconds - time.monotonic(), 0))
        finally:
            back = time.monotonic()
            go_on(machine)
        eventually("steps go on", lambda: len(walk.between(back + 1)) > 3 * SESSIONS, 60)
    print(
        f"{name}: {walk.gap():.1f} s without a step, {walk.longest():.1f} s of one session; {woken.result():.1f} s to wake; {_told(walk)}"
    )
    three_nodes.well(dormouse, name)
    truth(dormouse, name, walk)
    assert walk.failures == []
    assert walk.gap() <= GAP
    assert woken.result() <= WAKE
    dormouse.delete(name)


def test_steps_go_on_by_themselves_after_two_members_of_three_were_lost_at_once(dormouse: Dormouse) -> None:
    """Power cuts of the two nodes but one that has a gateway and the worker. No majority of etcd for half a minute."""
    node = three_nodes.worst(dormouse)
    three_nodes.only_there(dormouse, "quorum", node)
    everybody, gone = dormouse.cluster.nodes, three_nodes.others(dormouse, node)
    names = [machine.name for machine in gone]
    before = three_nodes.restarts(dormouse, *names)
    here = three_nodes.gateway(dormouse, node)
    with walking.at(dormouse, here, "quorum", [f"quorum-{i}" for i in range(SESSIONS)], again=True) as walk:
        time.sleep(3)
        began = time.monotonic()
        for machine in gone:
            nodes.lose(three_nodes.layout(dormouse), machine)
        try:
            time.sleep(max(began + 30 - time.monotonic(), 0))
        finally:
            back = time.monotonic()
            for machine in gone:
                nodes.start(three_nodes.layout(dormouse), machine, [other for other in everybody if other != machine])
        eventually("steps go on", lambda: len(walk.between(back)) > 3 * SESSIONS, 180)
    print(
        f"quorum: {walk.between(back)[0].at - back:.1f} s after both were started again; {walk.gap():.1f} s without a step; {_told(walk)}"
    )
    three_nodes.started_again(dormouse, before, *names)
    three_nodes.well(dormouse, "quorum")
    truth(dormouse, "quorum", walk)
    assert walk.between(began + IN_FLIGHT, back) == []
    dormouse.delete("quorum")


def _told(walk: walking.Walk) -> dict[str, int]:
    """What failed, and how often."""
    texts = [each.text[:120] for each in walk.failures]
    return {text: texts.count(text) for text in sorted(set(texts))}
