"""Dormouse with the chart's own numbers on three nodes that are ours to lose: three members of etcd, two operators, two gateways, and a
function that sleeps. Where its parts are, and when all of it is well again."""

import contextlib
import time
from collections.abc import Iterator

from dormouse_testing.cluster.client import Cluster, eventually
from dormouse_testing.cluster.functions import SYSTEM, Dormouse, counter, installed
from dormouse_testing.cluster.layout import Layout, Node

PODS = 7
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


def unfit(cluster: Cluster) -> str:
    """Why a cluster does not do; '' where it does."""
    return "" if cluster.own and len(cluster.nodes) >= 3 else "it takes three nodes, and such that are ours to lose"


@contextlib.contextmanager
def installed_on_three(cluster: Cluster, space: str) -> Iterator[Dormouse]:
    with installed(cluster, space, "singleNode=false", "etcd.persistence.acceptLoss=true") as found:
        found.apply(counter("sleeper"))
        eventually("it is proved", lambda: found.condition("sleeper", "Ready").get("status") == "True", 60)
        found.asleep("sleeper")
        yield found


def layout(dormouse: Dormouse) -> Layout:
    found = dormouse.cluster.layout
    assert found is not None
    return found


def machine(dormouse: Dormouse, name: str) -> Node:
    return next(each for each in dormouse.cluster.nodes if each.name == name)


def others(dormouse: Dormouse, *names: str) -> list[Node]:
    return [each for each in dormouse.cluster.nodes if each.name not in names]


def placed(dormouse: Dormouse, part: str) -> dict[str, str]:
    """Its pods' nodes."""
    found = dormouse.cluster.get("pods", "", SYSTEM, "-l", f"dormouse.dev/part={part}")
    return {pod["metadata"]["name"]: pod["spec"].get("nodeName", "") for pod in found if "deletionTimestamp" not in pod["metadata"]}


def leader(dormouse: Dormouse) -> str:
    pod = next(iter(placed(dormouse, "operator")))
    return dormouse.cluster.kubectl("exec", "-n", SYSTEM, pod, "-c", "operator", "--", "python3", "-c", LEADER).strip()


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


def gateway(dormouse: Dormouse, node: str, *, elsewhere: bool = False) -> str:
    """The address of the gateway on `node`, or of one on another."""
    return str(next(pod["status"]["podIP"] for pod in dormouse.gateways() if (pod["spec"]["nodeName"] == node) != elsewhere))


def whole(dormouse: Dormouse) -> bool:
    """Every pod of the installation is ready."""
    pods = dormouse.cluster.get("pods", "", SYSTEM)
    ready = [any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", [])) for pod in pods]
    return len(pods) == PODS and all(ready)


def only_there(dormouse: Dormouse, name: str, node: str) -> None:
    """A function whose only worker, always awake, is on `node`; the sleeper sleeps, and all parts are well."""
    for other in others(dormouse, node):
        dormouse.cluster.kubectl("cordon", other.name)
    dormouse.apply(counter(name, minReplicas=1, maxReplicas=1))
    dormouse.ready(name, 1)
    for other in others(dormouse, node):
        dormouse.cluster.kubectl("uncordon", other.name)
    dormouse.asleep("sleeper")
    eventually("all parts are there", lambda: whole(dormouse), 90)


def wake(dormouse: Dormouse, address: str) -> float:
    """Seconds until a function that slept answers at a gateway."""
    began = time.monotonic()
    with contextlib.closing(Dormouse(dormouse.cluster, f"{address}:8001", dormouse.space)) as caller:
        caller.call("sleeper", 1, session=f"{began}", timeout=200)
    return time.monotonic() - began


def workers_on(dormouse: Dormouse, node: str) -> list[str]:
    """Workers' pods on it."""
    pods = dormouse.cluster.get("pods", "", dormouse.space, "-l", "dormouse.dev/function")
    return [pod["metadata"]["name"] for pod in pods if pod["spec"].get("nodeName") == node]


def restarts(dormouse: Dormouse, *nodes: str) -> dict[str, int]:
    """How often the containers of the installation's pods there were started again."""
    pods = [pod for pod in dormouse.cluster.get("pods", "", SYSTEM) if pod["spec"].get("nodeName") in nodes]
    return {
        f"{pod['metadata']['name']}/{each['name']}": each["restartCount"]
        for pod in pods
        for each in pod["status"].get("containerStatuses", [])
    }


def started_again(dormouse: Dormouse, before: dict[str, int], *nodes: str) -> None:
    """Until then their statuses are those of before a power cut."""

    def again() -> bool:
        after = restarts(dormouse, *nodes)
        return all(after.get(each, 0) > count for each, count in before.items())

    eventually("its parts were started again", again, 120)


def well(dormouse: Dormouse, name: str) -> None:
    """All parts are back, and `name` has one worker."""
    eventually("all parts are back", lambda: whole(dormouse), 120)
    eventually("one worker, none more", lambda: len(dormouse.pods(name)) == 1 and dormouse.status(name).get("readyReplicas") == 1, 60)


def counted(dormouse: Dormouse, name: str, session: str) -> list[int]:
    """What it counts by now, asked at each gateway."""
    found = []
    for pod in dormouse.gateways():
        with contextlib.closing(Dormouse(dormouse.cluster, f"{pod['status']['podIP']}:8001", dormouse.space)) as caller:
            found.append(caller.call(name, 0, session=session))
    return found
