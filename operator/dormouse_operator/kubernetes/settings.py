"""What a cluster's installation says of the functions' own objects; everything else about a function is in its entry."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dormouse_core.policies import Own, Policy


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    installation: str = "default"
    """Chooses the keys in the store and the labels of objects. One cluster and one store may have several."""
    namespaces: tuple[str, ...] = ()
    """Where functions are served; empty: everywhere."""
    claim: str = ""
    """The ClusterRole by which this installation serves all namespaces; empty: it serves some, or nobody says."""
    system_namespace: str = "dormouse"
    """Where the gateway and the operator run: the only ones that may dial workers."""
    image: str = "dormouse:latest"
    """Workers' image unless a function says otherwise."""
    image_pull_policy: str = "IfNotPresent"
    image_pull_secrets: tuple[str, ...] = ()
    gateway: str = "dormouse-gateway.dormouse.svc.cluster.local"
    """The DNS name to which functions' Services lead."""
    gateway_port: int = 8001
    cluster_domain: str = "cluster.local"
    resources: Mapping[str, Any] = field(default_factory=dict)
    """Of a worker whose function sets none: as in a pod's spec."""
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
