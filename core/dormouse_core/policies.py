"""What a function's pods may ask for: the policy of an installation, and what nobody's policy allows.

Whoever may create an InferenceFunction has the operator create pods in its namespace, with the operator's right to. So what such a pod may
name (Secrets, service accounts, priority classes, ...) is the installation's to say, not the creator's; by default it names ConfigMaps and
nothing else. Dormouse's own objects are refused whatever the policy says: another function's user in the store, and in the installation's
namespace everything that the installation itself consists of.

`refusals` is asked before anything becomes a pod (`dormouse_operator.kubernetes.objects.pod`). On one machine nothing of it has an effect.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from dormouse_core import modeluris
from dormouse_core.errors import InvalidArgument
from dormouse_core.spec import FunctionSpec, Workers
from dormouse_core.spec.validation import shown

STORE_SECRET = re.compile(r".*-store")
"""The Secret with a function's password in the store: `names.secret`."""
SPEC_CONFIG_MAP = re.compile(r".*-[0-9a-f]{6}")
"""The ConfigMap with a function's spec, and so with its environment: `names.deployment`."""
_DIGEST = re.compile(r"[^@]+@sha256:[0-9a-f]{64}")
_AT = "spec.workers"
_CLUSTER_WIDE = ("priorityClasses", "runtimeClasses", "schedulers")
"""Whose names are no names in a namespace."""


class NotAllowed(InvalidArgument):
    """The spec is well-formed; the policy of the installation refuses it."""


class Policy(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """`workers.policy` of the chart. Each field is a list of patterns, in which * stands for any characters; an empty list allows none.

    In the first five a pattern with a slash is namespace/name; without one it holds in every namespace.
    """

    service_accounts: tuple[str, ...] = ()
    """Beside `default`."""
    priority_classes: tuple[str, ...] = ()
    runtime_classes: tuple[str, ...] = ()
    """Another runtime may isolate less than the cluster's own, or cost more."""
    schedulers: tuple[str, ...] = ()
    """Beside default-scheduler. Another may go by no quota and no taint."""
    users: tuple[str, ...] = ()
    """User and group ids: with a volume that has others' files, a pod reads and writes what its ids may."""
    secrets: tuple[str, ...] = ()
    """In env, envFrom, volumes and imagePullSecrets."""
    config_maps: tuple[str, ...] = ("*",)
    """In env, envFrom, volumes and spec.model.uri."""
    claims: tuple[str, ...] = ()
    """Persistent volume claims, in volumes and spec.model.uri."""
    images: tuple[str, ...] = ()
    """Beside the installation's own."""
    image_digests: bool = False
    """Whether an image of a function's own must be pinned: name@sha256:..."""
    labels: tuple[str, ...] = ()
    """Names of labels: with another Service's labels a pod gets its calls."""
    annotations: tuple[str, ...] = ()
    """Names of annotations: networks, clouds and meshes act on them."""
    tolerations: tuple[str, ...] = ()
    """Keys of taints. A toleration without a key, of every taint, needs the pattern *."""


@dataclass(frozen=True, slots=True)
class Own:
    """What belongs to the installation. `reserved`: patterns of names of any kind in `namespace` that no function's pods may name."""

    namespace: str = ""
    image: str = ""
    reserved: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Named:
    """An object that the spec names. `kind`: as people say it; `field`: of the policy, as the chart writes it."""

    path: str
    kind: str
    name: str
    field: str


def check(policy: Policy, own: Own, namespace: str, spec: FunctionSpec) -> None:
    """NotAllowed, with every fault."""
    found = list(refusals(policy, own, namespace, spec))
    if found:
        raise NotAllowed("\n".join(found))


def refusals(policy: Policy, own: Own, namespace: str, spec: FunctionSpec) -> Iterator[str]:
    """Why the pods of a function in `namespace` may not be made, as sentences in the manifest's words; none: they may."""
    allowed: Mapping[str, Sequence[str]] = msgspec.to_builtins(policy)
    for named in _objects(spec):
        if _is_own(named, own, namespace):
            yield f"{named.path}: the {named.kind} {shown(named.name)} found, it is Dormouse's own: no function may name it"
        elif not _matches(allowed[named.field], named.name, namespace):
            yield _refused(named.path, f"the {named.kind} {shown(named.name)}", named.field, allowed[named.field], namespace)
    workers = spec.workers
    ids = _ids(workers)
    for field, path, names in (
        ("labels", f"{_AT}.labels", list(workers.labels)),
        ("annotations", f"{_AT}.annotations", list(workers.annotations)),
        ("tolerations", f"{_AT}.tolerations", [_text(each.get("key")) for each in workers.tolerations]),
        *(("users", path, [number]) for path, number in ids),
    ):
        for name in names:
            if not _matches(allowed[field], name):
                yield _refused(path, shown(name) if name else "a toleration of every taint", field, allowed[field])
    yield from _image(policy, own, workers)
    yield from _affinity(workers.affinity)


def _image(policy: Policy, own: Own, workers: Workers) -> Iterator[str]:
    image = workers.image
    if image is None or image == own.image:
        return
    if not _matches(policy.images, image):
        yield _refused(f"{_AT}.image", shown(image), "images", policy.images)
    elif policy.image_digests and not _DIGEST.fullmatch(image):
        yield f"{_AT}.image: {shown(image)} found, name@sha256:... is allowed (workers.policy.imageDigests)"


def _affinity(affinity: Mapping[str, Any] | None) -> Iterator[str]:
    """Required anti-affinity holds in both directions: with other namespaces in it, it keeps their pods off a node or a whole zone."""
    for kind in ("podAffinity", "podAntiAffinity"):
        for path, node in _walk((affinity or {}).get(kind), f"{_AT}.affinity.{kind}"):
            for field in ("namespaces", "namespaceSelector"):
                if node.get(field) is not None:
                    yield f"{path}.{field}: other namespaces found, a function's own namespace is allowed: leave it out"


def _walk(node: Any, path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """All objects in `node`."""
    if isinstance(node, Mapping):
        yield path, node
        for name, each in node.items():
            yield from _walk(each, f"{path}.{name}")
    elif isinstance(node, list):
        for index, each in enumerate(node):
            yield from _walk(each, f"{path}[{index}]")


# ------------------------------------------------------------------------------------------------------------------ what is named


def _objects(spec: FunctionSpec) -> Iterator[_Named]:
    workers = spec.workers
    if spec.model is not None:
        model = modeluris.parse(spec.model.uri)
        if model.scheme == "pvc":
            yield _Named("spec.model.uri", "claim", model.place, "claims")
        elif model.scheme == "configmap":
            yield _Named("spec.model.uri", "ConfigMap", model.place, "configMaps")
    for n, variable in enumerate(workers.env):
        yield from _sources(variable.value_from, f"{_AT}.env[{n}].valueFrom", "secretKeyRef", "configMapKeyRef")
    for n, group in enumerate(workers.env_from):
        yield from _sources(group, f"{_AT}.envFrom[{n}]", "secretRef", "configMapRef")
    for n, volume in enumerate(workers.volumes):
        path = f"{_AT}.volumes[{n}]"
        for kind, field, source, name in (
            ("Secret", "secrets", volume.secret, "secretName"),
            ("ConfigMap", "configMaps", volume.config_map, "name"),
            ("claim", "claims", volume.persistent_volume_claim, "claimName"),
        ):
            if source is not None:
                yield _Named(path, kind, _text(source.get(name)), field)
    for n, each in enumerate(workers.image_pull_secrets):
        yield _Named(f"{_AT}.imagePullSecrets[{n}]", "Secret", _text(each.get("name")), "secrets")
    if workers.service_account_name not in (None, "default"):
        yield _Named(f"{_AT}.serviceAccountName", "service account", _text(workers.service_account_name), "serviceAccounts")
    if workers.priority_class_name is not None:
        yield _Named(f"{_AT}.priorityClassName", "priority class", workers.priority_class_name, "priorityClasses")
    if workers.runtime_class_name is not None:
        yield _Named(f"{_AT}.runtimeClassName", "runtime class", workers.runtime_class_name, "runtimeClasses")
    if workers.scheduler_name not in (None, "default-scheduler"):
        yield _Named(f"{_AT}.schedulerName", "scheduler", _text(workers.scheduler_name), "schedulers")


def _ids(workers: Workers) -> Iterator[tuple[str, str]]:
    """(path, id) of every user and group that the pods would have."""
    given = workers.security_context
    if given is None:
        return
    for name, number in (("runAsUser", given.run_as_user), ("runAsGroup", given.run_as_group), ("fsGroup", given.fs_group)):
        if number is not None:
            yield f"{_AT}.securityContext.{name}", str(number)
    for n, number in enumerate(given.supplemental_groups):
        yield f"{_AT}.securityContext.supplementalGroups[{n}]", str(number)


def _sources(source: Mapping[str, Any] | None, path: str, secret: str, config_map: str) -> Iterator[_Named]:
    for key, kind, field in ((secret, "Secret", "secrets"), (config_map, "ConfigMap", "configMaps")):
        named = (source or {}).get(key)
        if named is not None:
            yield _Named(f"{path}.{key}", kind, _text(named.get("name") if isinstance(named, Mapping) else None), field)


def _text(value: Any) -> str:
    """What is no text names nothing that a pattern but * matches; the API server refuses it later."""
    return value if isinstance(value, str) else ""


# ------------------------------------------------------------------------------------------------------------------ judging


def _is_own(named: _Named, own: Own, namespace: str) -> bool:
    if named.field in _CLUSTER_WIDE:
        return False
    if namespace == own.namespace and _matches(own.reserved, named.name):
        return True
    pattern = {"secrets": STORE_SECRET, "configMaps": SPEC_CONFIG_MAP}.get(named.field)
    return pattern is not None and pattern.fullmatch(named.name) is not None


def _matches(patterns: Collection[str], name: str, namespace: str = "") -> bool:
    """`namespace`: where patterns may say one."""
    return any(_pattern(each).fullmatch(f"{namespace}/{name}" if namespace and "/" in each else name) for each in patterns)


def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(".*".join(map(re.escape, text.split("*"))), re.DOTALL)


def _refused(path: str, found: str, field: str, allowed: Iterable[str], namespace: str = "") -> str:
    """Of patterns for other namespaces it tells nothing."""
    own = [each for each in allowed if not namespace or "/" not in each or _pattern(each.partition("/")[0]).fullmatch(namespace)]
    return f"{path}: {found} found, the installation allows {', '.join(own) or 'none'} (workers.policy.{field})"
