"""What a cluster says of functions, pods and Deployments, for tests without one: in the shapes that its controllers write."""

from collections.abc import Sequence
from typing import Any

from dormouse_core import spec as specs
from dormouse_core.policies import Policy
from dormouse_operator.function_entries import with_spec
from dormouse_operator.kubernetes.api.http import Object
from dormouse_operator.kubernetes.objects import names
from dormouse_operator.kubernetes.objects.object_entries import timestamp
from dormouse_proto import state_pb2

from dormouse_testing.clock import ManualClock
from dormouse_testing.manifests import Data

NOW = ManualClock().now()
ANY = ("*",)
PERMISSIVE = Policy(
    service_accounts=ANY, priority_classes=ANY, secrets=ANY, claims=ANY, images=ANY, labels=ANY, annotations=ANY, tolerations=ANY,
    runtime_classes=ANY, schedulers=ANY, users=ANY,
)  # fmt: skip
"""Lets a function's pods ask for everything but what is Dormouse's own."""


def entry(manifest: Data, uid: str = "u") -> state_pb2.FunctionEntry:
    """As the registry has the function of `manifest`."""
    wanted = specs.parse_manifest(manifest)
    made = state_pb2.FunctionEntry(namespace=wanted.metadata.namespace, name=wanted.metadata.name, uid=uid, created_us=1)
    return with_spec(made, wanted.spec)


def container(state: Object, *, restarts: int = 0, last: Object | None = None, name: str = "worker") -> Object:
    """A container's status. `state`, `last`: as in `state` and `lastState`."""
    return {"name": name, "state": state, "lastState": last or {}, "restartCount": restarts}


def ended(reason: str = "Error", *, code: int = 1, message: str = "", ago: float = 1.0) -> Object:
    return {"terminated": {"reason": reason, "exitCode": code, "message": message, "finishedAt": timestamp(NOW - ago)}}


def waits(reason: str, message: str = "") -> Object:
    return {"waiting": {"reason": reason, "message": message}}


def pod(
    name: str = "f-r1",
    *,
    containers: Sequence[Object] = (),
    conditions: Sequence[Object] = (),
    phase: str = "Running",
    age: float = 10.0,
    node: str = "node",
    revision: str = "r1",
    function_uid: str = "u",
    **metadata: Any,
) -> Object:
    """One of the function "f" in the namespace "ns". `age`: seconds before NOW when it was made."""
    labels = {names.FUNCTION: "f", names.UID: function_uid, names.REVISION: revision}
    found: Object = {
        "metadata": {
            "name": name,
            "namespace": "ns",
            "uid": f"uid-{name}",
            "labels": labels,
            "creationTimestamp": timestamp(NOW - age),
            "resourceVersion": "1",
            **metadata,
        },
        "spec": {"nodeName": node, "containers": [{"name": "worker", "image": "registry/image:1"}]},
        "status": {"phase": phase, "conditions": list(conditions), "containerStatuses": list(containers)},
    }
    return found


def deployment(
    replicas: int,
    *,
    revision: str = "r1",
    function_uid: str = "u",
    age: float = 100.0,
    conditions: Sequence[Object] = (),
    **metadata: Any,
) -> Object:
    """Of the same function."""
    labels = {names.FUNCTION: "f", names.UID: function_uid, names.REVISION: revision}
    return {
        "metadata": {
            "name": names.deployment("f", revision),
            "namespace": "ns",
            "uid": f"uid-{revision}",
            "labels": labels,
            "creationTimestamp": timestamp(NOW - age),
            "resourceVersion": "1",
            **metadata,
        },
        "spec": {"replicas": replicas},
        "status": {"conditions": list(conditions)},
    }


def unschedulable(since: float, message: str = "0/3 nodes are available: 3 Insufficient memory.") -> Object:
    """The condition of a pod. `since`: seconds before NOW."""
    return {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": message,
        "lastTransitionTime": timestamp(NOW - since),
    }


def forbidden(message: str) -> Object:
    """The condition of a Deployment whose pods are refused."""
    return {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": message}
