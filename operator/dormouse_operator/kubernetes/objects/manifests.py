"""What a function consists of in a cluster: pure functions from its entry and the installation's settings to manifests.

Each manifest is complete and the same for the same arguments, so that "nothing changed" is a comparison of digests. Nothing here depends on
how many workers there are: a Deployment is made with none, and how many it has is the provider's to say, as a budget's width is `budgets`'.
"""

import base64
import contextlib
import hashlib
import hmac
import json
from typing import Any

import msgspec
from dormouse_core import workerfile
from dormouse_core.modeluris import IMAGE_ROOT
from dormouse_core.policies import NotAllowed
from dormouse_core.spec import FunctionSpec, run, spec_from_json
from dormouse_core.workerfile import StoreAccess, WorkerFile
from dormouse_proto import state_pb2

from dormouse_operator.kubernetes.objects import names
from dormouse_operator.kubernetes.objects.pod import PORT, build_pod_template, has_secret
from dormouse_operator.kubernetes.objects.volumes import SPEC_FILE, STORE_FOLDER
from dormouse_operator.kubernetes.settings import ClusterSettings

Manifest = dict[str, Any]


def build_all(entry: state_pb2.FunctionEntry, settings: ClusterSettings) -> list[Manifest]:
    """Everything, in the order in which it has to be there. InvalidArgument: the function's spec cannot become a pod."""
    made = build_revision(entry, settings)
    before = proved(entry)
    if before is not None:
        # A policy that refuses what was proved under an older one does not stand in the way of the revision that mends it.
        with contextlib.suppress(NotAllowed):
            made += build_revision(before, settings)
    if has_secret(settings):
        made.insert(0, build_secret(entry, settings))
    if settings.network_policies:
        made.insert(0, build_network_policy(entry, settings))
    return [*made, build_service(entry, settings), build_workers_service(entry, settings), build_budget(entry, settings)]


def build_revision(entry: state_pb2.FunctionEntry, settings: ClusterSettings) -> list[Manifest]:
    spec = spec_from_json(entry.spec)
    return [build_config_map(entry, spec, settings), build_deployment(entry, spec, settings)]


def proved(entry: state_pb2.FunctionEntry) -> state_pb2.FunctionEntry | None:
    """The function as it was when it was last proved, where that is another: until the new revision is proved, calls wake this one."""
    if not entry.proved_spec:
        return None
    before = state_pb2.FunctionEntry()
    before.CopyFrom(entry)
    before.spec, before.revision = entry.proved_spec, entry.proved_revision
    return before


def build_deployment(entry: state_pb2.FunctionEntry, spec: FunctionSpec, settings: ClusterSettings) -> Manifest:
    """One for each revision: a new one starts beside the old one, and shards move before the old one ends."""
    chosen = {**names.selector(entry.uid), names.REVISION: entry.revision}
    return _object(
        entry,
        settings,
        "apps/v1",
        "Deployment",
        names.deployment(entry.name, entry.revision),
        {
            "replicas": 0,
            "selector": {"matchLabels": chosen},
            # Its template changes within a revision with the installation's image or store, or the store id: pod by pod, nobody missing.
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "revisionHistoryLimit": 1,
            "template": build_pod_template(entry, spec, settings, store=_started_with(entry, spec, settings)),
        },
        labels={names.REVISION: entry.revision},
    )


def _gateway(spec: FunctionSpec, settings: ClusterSettings) -> str:
    """Where a handler's workers call functions: a model calls nobody."""
    return settings.gateway_calls if spec.runtime == "python" else ""


def _started_with(entry: state_pb2.FunctionEntry, spec: FunctionSpec, settings: ClusterSettings) -> dict[str, Any]:
    """What of the spec file is no part of the revision: workers read it at their start, and what they read may have changed since."""
    found: dict[str, Any] = msgspec.to_builtins(store_access(entry, settings))
    if settings.removal_wait is not None:
        found["removalWait"] = settings.removal_wait
    if entry.store_id:
        found["storeId"] = entry.store_id
    if gateway := _gateway(spec, settings):
        found["gateway"] = gateway
    return found


def build_config_map(entry: state_pb2.FunctionEntry, spec: FunctionSpec, settings: ClusterSettings) -> Manifest:
    """The workers' spec file. Fields that no worker goes by are left at their defaults, so that scaling changes no worker's file."""
    file = WorkerFile(
        installation=settings.installation,
        namespace=entry.namespace,
        name=entry.name,
        uid=entry.uid,
        store_id=entry.store_id,
        revision=entry.revision,
        spec=run(spec),
        store=store_access(entry, settings),
        model_root=IMAGE_ROOT,
        removal_wait=settings.removal_wait,
        gateway=_gateway(spec, settings),
        batching=workerfile.batching_of(entry, entry.revision),
    )
    name = names.deployment(entry.name, entry.revision)
    manifest = _object(entry, settings, "v1", "ConfigMap", name, None, labels={names.REVISION: entry.revision})
    return {**manifest, "data": {SPEC_FILE: workerfile.dump(file).decode()}}


def build_secret(entry: state_pb2.FunctionEntry, settings: ClusterSettings) -> Manifest:
    """What a worker needs to be let into the store, as its own function's user."""
    data = {"ca.crt": settings.store_ca, "tls.crt": settings.store_cert, "tls.key": settings.store_key}
    if settings.store_auth:
        data["password"] = store_password(entry, settings)
    manifest = _object(entry, settings, "v1", "Secret", names.secret(entry.name), None)
    return {**manifest, "type": "Opaque", "data": {key: base64.b64encode(text.encode()).decode() for key, text in data.items() if text}}


def build_service(entry: state_pb2.FunctionEntry, settings: ClusterSettings) -> Manifest:
    """The function's name in DNS. It leads to the gateway, which reads the name from the call's authority."""
    return _object(
        entry,
        settings,
        "v1",
        "Service",
        names.service(entry.name),
        {
            "type": "ExternalName",
            "externalName": settings.gateway,
            "ports": [{"name": "grpc", "port": settings.gateway_port, "protocol": "TCP"}],
        },
    )


def build_workers_service(entry: state_pb2.FunctionEntry, settings: ClusterSettings) -> Manifest:
    """Headless: every worker's address in DNS, for scrapers and for people. Calls do not go this way."""
    return _object(
        entry,
        settings,
        "v1",
        "Service",
        names.workers_service(entry.name, entry.uid),
        {
            "clusterIP": "None",
            "selector": names.selector(entry.uid),
            "ports": [{"name": "grpc", "port": PORT, "targetPort": PORT, "protocol": "TCP"}],
        },
    )


def build_budget(entry: state_pb2.FunctionEntry, settings: ClusterSettings) -> Manifest:
    """One worker at a time may be evicted, also the only one: its shards are handed over or hibernate, and a call wakes the function
    elsewhere. `minAvailable: 1` over one worker would make its node impossible to drain; how more than one never do: see `budgets`."""
    return _object(
        entry,
        settings,
        "policy/v1",
        "PodDisruptionBudget",
        names.budget(entry.name),
        {"maxUnavailable": 1, "selector": {"matchLabels": names.selector(entry.uid)}, "unhealthyPodEvictionPolicy": "AlwaysAllow"},
    )


def build_network_policy(entry: state_pb2.FunctionEntry, settings: ClusterSettings) -> Manifest:
    """Nobody but the gateway and the operator dials a worker: it trusts what they say of a call. Where the installation says so, a worker
    dials nothing but the store and what else it names."""
    system = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": settings.system_namespace}}}
    parts = {"podSelector": {"matchExpressions": [{"key": names.PART, "operator": "In", "values": ["gateway", "operator"]}]}}
    return _object(
        entry,
        settings,
        "networking.k8s.io/v1",
        "NetworkPolicy",
        names.policy(entry.name),
        {
            "podSelector": {"matchLabels": names.selector(entry.uid)},
            "policyTypes": ["Ingress", *(["Egress"] if settings.egress_to else [])],
            "ingress": [{"from": [{**system, **parts}, *settings.ingress_from], "ports": [{"port": PORT, "protocol": "TCP"}]}],
            **({"egress": list(settings.egress_to)} if settings.egress_to else {}),
        },
    )


# ------------------------------------------------------------------------------------------------------------------------ the store


def store_user(entry: state_pb2.FunctionEntry, settings: ClusterSettings) -> str:
    """Also the role's name."""
    return f"{user_prefix(settings)}{entry.uid}"


def user_prefix(settings: ClusterSettings) -> str:
    return f"dormouse/{settings.installation}/"


def store_password(entry: state_pb2.FunctionEntry, settings: ClusterSettings) -> str:
    """Derived, not kept: an operator that has just started knows every function's password without reading a Secret."""
    return hmac.new(settings.store_secret, store_user(entry, settings).encode(), hashlib.sha256).hexdigest()


def store_access(entry: state_pb2.FunctionEntry, settings: ClusterSettings) -> StoreAccess:
    """As it stands in the workers' spec file: paths of the Secret's files, no secrets."""
    return StoreAccess(
        endpoints=list(settings.store),
        ca=f"{STORE_FOLDER}/ca.crt" if settings.store_ca else "",
        cert=f"{STORE_FOLDER}/tls.crt" if settings.store_cert else "",
        key=f"{STORE_FOLDER}/tls.key" if settings.store_key else "",
        user=store_user(entry, settings) if settings.store_auth else "",
        password_file=f"{STORE_FOLDER}/password" if settings.store_auth else "",
    )


# ------------------------------------------------------------------------------------------------------------------------ all of them


def digest(manifest: Manifest) -> str:
    """Of what a manifest says, without the annotation that keeps it and without how many pods there are."""
    text = json.dumps({**manifest, "metadata": {**manifest["metadata"], "annotations": None}}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _object(
    entry: state_pb2.FunctionEntry,
    settings: ClusterSettings,
    version: str,
    kind: str,
    name: str,
    spec: dict[str, Any] | None,
    *,
    labels: dict[str, str] | None = None,
) -> Manifest:
    metadata = {
        "name": name,
        "namespace": entry.namespace,
        "labels": {**names.labels(entry, settings.installation), **(labels or {})},
        "ownerReferences": [names.owner(entry)],
    }
    manifest: Manifest = {"apiVersion": version, "kind": kind, "metadata": metadata}
    return manifest if spec is None else {**manifest, "spec": spec}
