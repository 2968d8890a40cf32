"""The kinds of objects that the operator reads or writes, and where the API server has them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Kind:
    version: str
    """apiVersion: `v1`, `apps/v1`"""
    name: str
    plural: str

    def path(self, namespace: str = "", name: str = "", part: str = "") -> str:
        """`namespace` empty: all of them. `part`: a subresource."""
        root = f"/api/{self.version}" if "/" not in self.version else f"/apis/{self.version}"
        within = f"/namespaces/{namespace}" if namespace else ""
        return root + within + f"/{self.plural}" + (f"/{name}" if name else "") + (f"/{part}" if part else "")


FUNCTIONS = Kind("dormouse.dev/v1alpha1", "InferenceFunction", "inferencefunctions")
PODS = Kind("v1", "Pod", "pods")
NAMESPACES = Kind("v1", "Namespace", "namespaces")
EVENTS = Kind("v1", "Event", "events")
STATEFUL_SETS = Kind("apps/v1", "StatefulSet", "statefulsets")
DEPLOYMENTS = Kind("apps/v1", "Deployment", "deployments")
SERVICES = Kind("v1", "Service", "services")
CONFIG_MAPS = Kind("v1", "ConfigMap", "configmaps")
SECRETS = Kind("v1", "Secret", "secrets")
BUDGETS = Kind("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets")
CLUSTER_ROLES = Kind("rbac.authorization.k8s.io/v1", "ClusterRole", "clusterroles")
POLICIES = Kind("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies")

APPLIED = (DEPLOYMENTS, SERVICES, CONFIG_MAPS, SECRETS, BUDGETS, POLICIES)
"""Of which a function consists."""


def kind_of(manifest: Mapping[str, Any]) -> Kind:
    return next(kind for kind in APPLIED if (kind.version, kind.name) == (manifest["apiVersion"], manifest["kind"]))
