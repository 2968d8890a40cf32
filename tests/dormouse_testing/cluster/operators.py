"""The operators of an installation: who runs, who leads, and whether what is asked is done."""

import contextlib
from collections.abc import Iterator

from dormouse_testing.cluster.callers import Inside
from dormouse_testing.cluster.client import eventually
from dormouse_testing.cluster.functions import OPERATOR, SYSTEM, Dormouse, echo
from dormouse_testing.cluster.laptops import Laptop

LABEL = "dormouse.dev/part=operator"


def handled(dormouse: Dormouse, name: str, seconds: float = 60.0, *, by: Laptop | None = None) -> None:
    """A function is made, changed and deleted, and each is taken up in time. (Its pods may take longer: scheduler, controllers and kubelet
    back off too.) `by`: no operator runs in the cluster but this."""
    stored = by.stored if by is not None else dormouse.stored
    dormouse.apply(echo(name))
    eventually("it is taken", lambda: dormouse.status(name).get("replicas") == 1, seconds)
    dormouse.patch(name, {"replicas": 2})
    eventually("it is changed", lambda: dormouse.status(name).get("replicas") == 2, seconds)
    dormouse.delete(name)
    eventually("it is gone", lambda: not [key for key in stored() if f"/{name}" in key], seconds)


def operators(dormouse: Dormouse) -> list[Inside]:
    pods = dormouse.cluster.get("pods", "", SYSTEM, "-l", LABEL)
    return [Inside(dormouse.cluster, SYSTEM, pod["metadata"]["name"]) for pod in pods if "deletionTimestamp" not in pod["metadata"]]


def leaders(dormouse: Dormouse) -> list[str]:
    return [each.name for each in operators(dormouse) if each.metric("dormouse_leading") == 1]


@contextlib.contextmanager
def without_operator(dormouse: Dormouse) -> Iterator[None]:
    """None in the cluster; afterwards one again."""
    dormouse.cluster.kubectl("scale", OPERATOR, "-n", SYSTEM, "--replicas=0")
    try:
        eventually("no operator runs", lambda: not dormouse.cluster.get("pods", "", SYSTEM, "-l", LABEL))
        yield
    finally:
        dormouse.cluster.kubectl("scale", OPERATOR, "-n", SYSTEM, "--replicas=1")
        dormouse.cluster.kubectl("rollout", "status", OPERATOR, "-n", SYSTEM, "--timeout=60s")
