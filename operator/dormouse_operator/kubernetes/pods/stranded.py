"""What becomes of pods whose node is lost (`dormouse_core.nodeloss`).

The scheduler does not know yet that the node is lost, and without its pod the node looks the emptiest: a replacement would be bound to it
again and again. So the pod stays where it is and others are ordered beside it; the even spread of a function's pods over nodes
(`topologySpreadConstraints` of their template) then prefers nodes without one.

* Once as many others are ready as are wanted, the Deployment is told to have no more, and loses those that are stranded: they cost least.
* A stranded pod that is told to go is deleted by force. Its kubelet, which would have to say that it has ended, says nothing; what may run
  on there has no lease.
* Where the cluster refuses one more pod (a quota), a stranded one makes room for it, by force: rather a replacement that may be bound to
  the lost node again than none.

A pure function of what is there; `losing` does what it says.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from dormouse_core.nodeloss import NodeLoss, Part

from dormouse_operator.kubernetes.api.http import Object, key_of
from dormouse_operator.kubernetes.objects import names
from dormouse_operator.kubernetes.objects.pod import CONTAINER
from dormouse_operator.kubernetes.pods import problems


@dataclass(frozen=True, slots=True)
class Shrink:
    """The Deployment is to have `count` pods; `victims` first."""

    deployment: Object
    count: int
    victims: tuple[Object, ...]


@dataclass(frozen=True, slots=True)
class Relief:
    forced: tuple[Object, ...] = ()
    shrunk: tuple[Shrink, ...] = ()


def relief(pods: Iterable[Object], deployments: Iterable[Object], nodes: NodeLoss) -> Relief:
    if not nodes.lost:
        return Relief()
    stranded: dict[tuple[str, str], list[Object]] = {}
    others: dict[tuple[str, str], list[Object]] = {}
    forced = []
    for pod in pods:
        gone, going = lost(pod, nodes), "deletionTimestamp" in pod["metadata"]
        if gone and going:
            forced.append(pod)
        elif not going and not problems.finished(pod):
            (stranded if gone else others).setdefault(place(pod), []).append(pod)
    shrunk = []
    for deployment in deployments:
        left = stranded.get(place(deployment), [])
        if not left or "deletionTimestamp" in deployment["metadata"]:
            continue
        rest = others.get(place(deployment), [])
        replicas = int(deployment["spec"]["replicas"])
        wanted = replicas - len(left)
        if 0 < wanted <= sum(ready(pod) for pod in rest):
            shrunk.append(Shrink(deployment, wanted, tuple(left)))
        elif problems.refused(deployment) is not None and replicas > len(left) + len(rest):
            forced.append(min(left, key=key_of))
    return Relief(tuple(forced), tuple(shrunk))


def place(found: Object) -> tuple[str, str]:
    """Uid and revision, of a pod or a Deployment."""
    labels = found["metadata"].get("labels", {})
    return str(labels.get(names.UID, "")), str(labels.get(names.REVISION, ""))


def part(pod: Object) -> Part:
    return place(pod)[0], pod["metadata"]["name"]


def lost(pod: Object, nodes: NodeLoss) -> bool:
    return nodes.strands(pod.get("spec", {}).get("nodeName", ""), part(pod))


def ready(pod: Object) -> bool:
    return any(c.get("type") == "Ready" and c.get("status") == "True" for c in pod["status"].get("conditions") or ())


def was_ready(pod: Object) -> bool:
    """By its kubelet's last word, which stays when Kubernetes calls the node NotReady and its pods' condition `Ready` False."""
    return any(c["name"] == CONTAINER and c.get("ready") for c in pod["status"].get("containerStatuses") or ())


def taken(pod: Object) -> bool:
    """Its node's kubelet has said something of it."""
    return bool(pod["status"].get("startTime"))


def among(pods: Iterable[Object], wanted: tuple[str, str], nodes: NodeLoss) -> int:
    """How many pods of one Deployment stay on lost nodes until others are ready."""
    if not nodes.lost:
        return 0
    left = (pod for pod in pods if place(pod) == wanted and "deletionTimestamp" not in pod["metadata"] and not problems.finished(pod))
    return sum(lost(pod, nodes) for pod in left)
