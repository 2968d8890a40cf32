"""What becomes of pods whose node is lost (`dormouse_core.nodeloss`).

The scheduler does not know yet that the node is lost, and without its pod the node looks the emptiest: a replacement would be bound to it
again and again. So the pod stays where it is and others are ordered beside it; the even spread of a function's pods over nodes
(`topologySpreadConstraints` of their template) then prefers nodes without one.

* A pod that is bound to a lost node all the same, which its kubelet never took, stays for the same reason: but only while the node then has
  no more than one above the node that lives and has most. An even spread asks for no more. What is over is deleted by force, at growing
  intervals (`AGAIN`), and no others are ordered beside it: where nothing but the lost node fits, there is one beside each that was lost.
* Once as many others are ready as are wanted, the Deployment is told to have no more, and loses those that are stranded: they cost least.
* A stranded pod that is told to go is deleted by force. Its kubelet, which would have to say that it has ended, says nothing; what may run
  on there has no lease.
* Where the cluster refuses one more pod (a quota), a stranded one makes room for it, by force: rather a replacement that may be bound to
  the lost node again than none. One that was bound there since does so at the same growing intervals.

Pure functions of what is there, and when a place was last tried; `losing` does what they say.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from dormouse_core.backoff import Backoff
from dormouse_core.nodeloss import NodeLoss, Part

from dormouse_operator.kubernetes.api.http import Object, key_of
from dormouse_operator.kubernetes.objects import names
from dormouse_operator.kubernetes.objects.pod import CONTAINER
from dormouse_operator.kubernetes.pods import problems

AGAIN = Backoff(2.0, 30.0)
"""Seconds for which pods that were bound to a lost node stay before they are deleted, so that others may be bound elsewhere."""

Place = tuple[str, str]
"""Of a Deployment: its function's uid and its revision."""


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
    again: tuple[tuple[Place, tuple[Object, ...]], ...] = ()
    """Pods of a place that are to be deleted by force when `Again` says so."""


@dataclass(slots=True)
class Split:
    """A Deployment's pods that nobody has told to go: which stay on lost nodes, which are too many there, and all others."""

    kept: list[Object] = field(default_factory=list)
    over: list[Object] = field(default_factory=list)
    others: list[Object] = field(default_factory=list)

    @property
    def stranded(self) -> list[Object]:
        return self.kept + self.over


class Again:
    """When the pods of a place that were bound to a lost node are deleted, so that others come: later each time."""

    def __init__(self) -> None:
        self._tries: dict[Place, tuple[int, float, float]] = {}  # tries, when the next is due, when there was last something to try

    def due(self, places: Iterable[Place], now: float) -> set[Place]:
        """`places`: those that have such pods now; `now`: monotonic seconds."""
        # Between a deletion and the next pod's node there is nothing to try: that is no reason to begin anew.
        self._tries = {place: each for place, each in self._tries.items() if now - each[2] <= AGAIN.longest}
        found = set()
        for place in places:
            tries, at, _ = self._tries.get(place, (0, now + AGAIN.after(1), now))
            if now >= at:
                found.add(place)
                tries, at = tries + 1, now + AGAIN.after(tries + 2)
            self._tries[place] = tries, at, now
        return found


def relief(pods: Iterable[Object], deployments: Iterable[Object], nodes: NodeLoss) -> Relief:
    if not nodes.lost:
        return Relief()
    pods = list(pods)
    forced = [pod for pod in pods if "deletionTimestamp" in pod["metadata"] and lost(pod, nodes)]
    splits = split(pods, nodes)
    shrunk, again = [], []
    for deployment in deployments:
        where = place(deployment)
        found = splits.get(where, Split())
        if not found.stranded or "deletionTimestamp" in deployment["metadata"]:
            continue
        replicas = int(deployment["spec"]["replicas"])
        wanted = replicas - len(found.kept)
        if 0 < wanted <= sum(ready(pod) for pod in found.others):
            shrunk.append(Shrink(deployment, wanted, tuple(found.stranded)))
        elif found.over:
            again.append((where, tuple(found.over)))
        elif problems.refused(deployment) is not None and replicas > len(found.kept) + len(found.others):
            first = min(found.kept, key=lambda pod: (not taken(pod), key_of(pod)))
            if taken(first):
                forced.append(first)
            else:
                again.append((where, (first,)))
    return Relief(tuple(forced), tuple(shrunk), tuple(again))


def split(pods: Iterable[Object], nodes: NodeLoss) -> dict[Place, Split]:
    """By place."""
    found: defaultdict[Place, Split] = defaultdict(Split)
    left: defaultdict[tuple[Place, str], list[Object]] = defaultdict(list)
    for pod in pods:
        if "deletionTimestamp" in pod["metadata"] or problems.finished(pod):
            continue
        if lost(pod, nodes):
            left[place(pod), pod["spec"]["nodeName"]].append(pod)
        else:
            found[place(pod)].others.append(pod)
    for (where, _), there in left.items():
        living = Counter(node for pod in found[where].others if (node := pod["spec"].get("nodeName", "")))
        most = max(sum(map(taken, there)), 1 + max(living.values(), default=0))
        there.sort(key=lambda pod: (not taken(pod), pod["metadata"]["creationTimestamp"], key_of(pod)))
        found[where].kept += there[:most]
        found[where].over += there[most:]
    return dict(found)


def place(found: Object) -> Place:
    """Of a pod or a Deployment."""
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


def beside(pods: Iterable[Object], wanted: Place, nodes: NodeLoss) -> Split:
    """Of one Deployment, where any node is lost."""
    if not nodes.lost:
        return Split()
    return split((pod for pod in pods if place(pod) == wanted), nodes).get(wanted, Split())
