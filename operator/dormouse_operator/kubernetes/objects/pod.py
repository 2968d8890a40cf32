"""A worker's pod.

It follows Pod Security's `restricted`: a plain user, no capabilities, a read-only root, the runtime's seccomp profile, no service-account
token. What a function may set is `spec.workers`, an allow-list, within the installation's policy (`dormouse_core.policies`); what it sets
never replaces what is here.

The kubelet asks the inference path, not the port: `/probe` passes when the interpreter answers and no batch is older than its step limit.
The supervisor in the pod asks it each second and replaces a hung worker within three, so the kubelet's own liveness probe is for a
supervisor that hangs itself, and patient. Waking waits for neither: a worker registers itself in the store.
"""

import hashlib
import json
import math
from typing import Any

from dormouse_core import modeluris, policies
from dormouse_core.errors import InvalidArgument
from dormouse_core.limits import TERMINATION_GRACE_SECONDS
from dormouse_core.spec import FunctionSpec, Workers, to_builtins
from dormouse_proto import state_pb2

from dormouse_operator.kubernetes.objects import names
from dormouse_operator.kubernetes.objects.volumes import MODELS_FOLDER, SPEC_FILE, SPEC_FOLDER, TMP, build_volumes
from dormouse_operator.kubernetes.settings import ClusterSettings

PORT = 9000
START_LIMIT = 330  # seconds: the supervisor's own limit is 300, and it leaves a reason
STORE_DIGEST = "dormouse.dev/store"
CONTAINER = "worker"
LIVENESS_PERIOD = 5  # seconds
LIVENESS_MISSES = 6
_APP_ARMOR = "container.apparmor.security.beta.kubernetes.io/"


def build_pod_template(
    entry: state_pb2.FunctionEntry, spec: FunctionSpec, settings: ClusterSettings, *, store: dict[str, Any]
) -> dict[str, Any]:
    """`store`: how workers reach the store, as their spec file says; a change of it starts them anew. InvalidArgument: the spec asks for
    what a pod cannot have; NotAllowed: for what a function's pod here may not have."""
    policies.check(settings.policy, settings.own, entry.namespace, spec)
    workers = spec.workers
    model = modeluris.parse(spec.model.uri) if spec.model is not None else None
    volumes, mounts = build_volumes(
        entry.name, entry.revision, model, store=has_secret(settings), asked=workers.volumes, models_size=settings.models_size
    )
    pod: dict[str, Any] = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        # The supervisor must not be process 1 of its namespace: from that one the kernel keeps a SIGTERM that it has no handler for yet,
        # and a pod that is told to go while Python starts would stay for the whole of its grace period.
        "shareProcessNamespace": True,
        "terminationGracePeriodSeconds": math.ceil(spec.timeouts.step.seconds + TERMINATION_GRACE_SECONDS),
        "securityContext": {
            **settings.ids,
            "fsGroupChangePolicy": "OnRootMismatch",
            **_identity(workers),
            "runAsNonRoot": True,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(spec, settings, mounts)],
        "volumes": volumes,
        "topologySpreadConstraints": _spread(entry, workers),
    }
    optional = {
        "nodeSelector": workers.node_selector or settings.defaults.node_selector,
        "tolerations": workers.tolerations + [each for each in settings.defaults.tolerations if each not in workers.tolerations],
        "affinity": workers.affinity,
        "imagePullSecrets": workers.image_pull_secrets or [{"name": name} for name in settings.image_pull_secrets],
        "serviceAccountName": workers.service_account_name,
        "priorityClassName": workers.priority_class_name or settings.defaults.priority_class_name,
        "runtimeClassName": workers.runtime_class_name or settings.defaults.runtime_class_name,
        "schedulerName": workers.scheduler_name or settings.defaults.scheduler_name,
    }
    pod |= {name: value for name, value in optional.items() if value}
    _check_annotations(workers.annotations)
    digest = hashlib.sha256(json.dumps(store, sort_keys=True).encode()).hexdigest()[:12]
    metadata = {
        "labels": {**workers.labels, **names.pod_labels(entry, settings.installation)},
        "annotations": {**workers.annotations, STORE_DIGEST: digest},
    }
    return {"metadata": metadata, "spec": pod}


def _check_annotations(annotations: dict[str, str]) -> None:
    """One kind of annotation is a security context in disguise: the API server makes a profile of it where the pod names none."""
    for name, profile in annotations.items():
        if name.startswith(_APP_ARMOR) and profile != "runtime/default" and not profile.startswith("localhost/"):
            raise InvalidArgument(f"spec.workers.annotations: {name}: {profile!r} found, runtime/default or localhost/PROFILE is allowed")


def _identity(workers: Workers) -> dict[str, Any]:
    """What the function says of whom its pods run as."""
    given: dict[str, Any] = to_builtins(workers.security_context) if workers.security_context is not None else {}
    return {name: value for name, value in given.items() if value is not None and value != []}


def has_secret(settings: ClusterSettings) -> bool:
    return settings.tls or settings.store_auth


def _container(spec: FunctionSpec, settings: ClusterSettings, mounts: list[Any]) -> dict[str, Any]:
    workers = spec.workers
    probe = {"httpGet": {"path": "/probe", "port": PORT}, "timeoutSeconds": 1}
    container: dict[str, Any] = {
        "name": CONTAINER,
        "image": workers.image or settings.image,
        "imagePullPolicy": settings.image_pull_policy,
        "command": ["python3", "-P", "-m", "dormouse_worker"],
        "args": [
            *("--spec", f"{SPEC_FOLDER}/{SPEC_FILE}", "--listen", f"0.0.0.0:{PORT}", "--advertise", f"$(POD_IP):{PORT}"),
            *("--instance", "$(POD_NAME)", "--admin", f"{TMP}/admin.sock"),
        ],
        "env": _environment(workers),
        "ports": [{"name": "grpc", "containerPort": PORT}],
        "resources": to_builtins(workers.resources) or dict(settings.resources),
        "startupProbe": {**probe, "periodSeconds": 1, "failureThreshold": START_LIMIT},
        # A worker that does not know the query, of an older image, answers as to the others.
        "readinessProbe": {**probe, "httpGet": {"path": "/probe?ready=1", "port": PORT}, "periodSeconds": 1, "failureThreshold": 3},
        "livenessProbe": {**probe, "periodSeconds": LIVENESS_PERIOD, "failureThreshold": _liveness_misses(spec), "timeoutSeconds": 5},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": mounts,
    }
    if workers.env_from:
        container["envFrom"] = workers.env_from
    return container


def _liveness_misses(spec: FunctionSpec) -> int:
    """The supervisor kills what hangs. Until then a step may hold the interpreter, and with it the probe, for as long as it may run."""
    hang = spec.timeouts.hang or spec.timeouts.step
    return math.ceil(hang.seconds / LIVENESS_PERIOD) + LIVENESS_MISSES


def _environment(workers: Workers) -> list[dict[str, Any]]:
    """The function's own, then ours, which it cannot replace."""
    ours: list[dict[str, Any]] = [
        {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        {"name": "DORMOUSE_MODELS", "value": MODELS_FOLDER},
        {"name": "TMPDIR", "value": TMP},
    ]
    taken = {variable["name"] for variable in ours}
    theirs = [to_builtins(variable) for variable in workers.env if variable.name not in taken]
    for variable in theirs:
        if "valueFrom" in variable:
            variable.pop("value", None)  # ours is "" by default, and Kubernetes takes one of the two
    return theirs + ours


def _spread(entry: state_pb2.FunctionEntry, workers: Workers) -> list[dict[str, Any]]:
    """Counted among the pods of one template only: with those of the template before counted in, a rollout ends uneven."""
    defaults = {"labelSelector": {"matchLabels": names.selector(entry.uid)}, "matchLabelKeys": ["pod-template-hash"]}
    wanted = workers.topology_spread_constraints or [
        {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway"}
    ]
    return [{**defaults, **constraint} for constraint in wanted]
