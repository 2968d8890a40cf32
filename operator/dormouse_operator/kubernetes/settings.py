"""What a cluster's installation says of the functions' own objects; everything else about a function is in its entry."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from dormouse_core.policies import Own, Policy

USER = 65532


class Defaults(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """What functions' pods have where `spec.workers` says nothing: the platform's own, which its policy does not ask about."""

    node_selector: dict[str, str] = {}
    tolerations: list[dict[str, Any]] = []
    """Beside a function's own: whoever runs the platform lets its pods onto its nodes."""
    priority_class_name: str = ""
    runtime_class_name: str = ""
    scheduler_name: str = ""


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    installation: str = "default"
    """Chooses the keys in the store and the labels of objects. One cluster and one store may have several."""
    namespaces: tuple[str, ...] = ()
    """Where functions are served; empty: everywhere, or where `namespace_selector` says."""
    namespace_selector: str = ""
    """Labels of the namespaces where functions are served, as the API server reads a selector; with it `namespaces` is empty."""
    claim: str = ""
    """The ClusterRole by which this installation serves namespaces that are not listed: all, or those that labels choose; empty: none."""
    system_namespace: str = "dormouse"
    """Where the gateway and the operator run: the only ones that may dial workers."""
    image: str = "dormouse:latest"
    """Workers' image unless a function says otherwise."""
    image_pull_policy: str = "IfNotPresent"
    image_pull_secrets: tuple[str, ...] = ()
    gateway: str = "dormouse-gateway.dormouse.svc.cluster.local"
    """The DNS name to which functions' Services lead."""
    gateway_port: int = 8001
    gateway_calls: str = ""
    """Where workers call functions for their steps, host:port; empty: nowhere."""
    cluster_domain: str = "cluster.local"
    resources: Mapping[str, Any] = field(default_factory=dict)
    """Of a worker whose function sets none: as in a pod's spec."""
    defaults: Defaults = field(default_factory=Defaults)
    models_size: str = ""
    """The most that the folder of fetched models may hold, as Kubernetes writes it; empty: what the node has."""
    ids: Mapping[str, int] = field(default_factory=lambda: {"runAsUser": USER, "runAsGroup": USER, "fsGroup": USER})
    """As in a pod's securityContext; what is absent the platform chooses."""
    policy: Policy = field(default_factory=Policy)
    """What functions' pods may ask for."""
    reserved: tuple[str, ...] = ()
    """Patterns of names in `system_namespace` that no function's pods may name: what the installation itself consists of."""
    fair_shares: bool = True
    """Whether a namespace that has more than its share of the store is refused new sessions before the store is full."""
    removal_wait: float | None = None
    """Seconds from a session's end to its removal; None: see `lifetimes.removal_wait`."""
    network_policies: bool = True
    """Whether a policy for each function closes its workers to all but the gateway and the operator."""
    ingress_from: Sequence[Mapping[str, Any]] = ()
    """Further peers that may reach workers' port, as in a NetworkPolicy: a Prometheus, for one."""
    egress_to: Sequence[Mapping[str, Any]] = ()
    """All that workers may dial, as `egress` of a NetworkPolicy; empty: it is not narrowed."""
    store: tuple[str, ...] = ("127.0.0.1:2379",)
    """etcd, as workers reach it: host:port."""
    store_ca: str = ""
    """PEM; empty: no TLS."""
    store_cert: str = ""
    """PEM of a client certificate for workers, where etcd asks for one."""
    store_key: str = ""
    store_auth: bool = True
    """Whether each function has an etcd user of its own."""
    store_secret: bytes = b""
    """What functions' passwords are derived from, so that they need not be kept."""

    @property
    def own(self) -> Own:
        return Own(self.system_namespace, self.image, self.reserved)

    @property
    def tls(self) -> bool:
        return bool(self.store_ca or self.store_cert)
