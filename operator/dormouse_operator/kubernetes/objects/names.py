"""Names, labels and annotations of what a function consists of in a cluster.

A function's name has at most 52 characters, so that `-` and ten more fit into Kubernetes' 63. Labels under `dormouse.dev/` are ours alone:
`spec.workers.labels` may not set them, so that no function can pass its pods off as another's, or as a gateway.
"""

import hashlib

from dormouse_core.spec.objects import API_VERSION, KIND
from dormouse_proto import state_pb2

MANAGED_BY = "app.kubernetes.io/managed-by"
MANAGER = "dormouse"
OURS = ("app.kubernetes.io/", "dormouse.dev/")
"""What our labels begin with."""
INSTALLATION = "dormouse.dev/installation"
FUNCTION = "dormouse.dev/function"
UID = "dormouse.dev/uid"
REVISION = "dormouse.dev/revision"
PART = "dormouse.dev/part"
"""`worker`, `gateway` or `operator`: what network policies go by."""

APPLIED = "dormouse.dev/applied"
"""Annotation: a digest of what was applied. An object that carries it as wanted is not written again."""
TRIED = "dormouse.dev/tried"
"""Annotation: when a Deployment that may not make pods was last nudged."""
REFRESH = "dormouse.dev/refresh"
"""Annotation of an InferenceFunction: with another value the model's content is read again, as a new revision."""
COST = "controller.kubernetes.io/pod-deletion-cost"


def service(function: str) -> str:
    """The function's own name, so that the authority of a call names it."""
    return function


def workers_service(function: str, uid: str) -> str:
    """The headless one. The digest keeps it apart from the Service of a function that is called like it."""
    return f"{function}-w-{hashlib.sha256(uid.encode()).hexdigest()[:8]}"


def deployment(function: str, revision: str) -> str:
    """Also of the ConfigMap with its workers' spec file."""
    return f"{function}-{revision[:6]}"


def budget(function: str) -> str:
    return function


def secret(function: str) -> str:
    return f"{function}-store"


def policy(function: str) -> str:
    return f"{function}-workers"


def labels(entry: state_pb2.FunctionEntry, installation: str) -> dict[str, str]:
    """Of everything that belongs to one function, as it is now."""
    return {
        "app.kubernetes.io/name": "dormouse-function",
        "app.kubernetes.io/instance": entry.name,
        MANAGED_BY: MANAGER,
        INSTALLATION: installation,
        FUNCTION: entry.name,
        UID: entry.uid,
    }


def pod_labels(entry: state_pb2.FunctionEntry, installation: str) -> dict[str, str]:
    return {**labels(entry, installation), REVISION: entry.revision, PART: "worker"}


def selector(uid: str) -> dict[str, str]:
    """Chooses all pods of a function, of whatever revision. The uid alone: a function of the same name that came later has another."""
    return {UID: uid, PART: "worker"}


def owner(entry: state_pb2.FunctionEntry) -> dict[str, object]:
    """The InferenceFunction: the garbage collector removes what belongs to it after it is gone. No finalizer waits for us."""
    return {"apiVersion": API_VERSION, "kind": KIND, "name": entry.name, "uid": entry.uid, "controller": True}
