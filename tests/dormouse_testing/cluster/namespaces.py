"""Namespaces that go, and what is in them: functions, and what is somebody else's."""

from typing import Any

from dormouse_testing.cluster.functions import CODE, Dormouse, counter, echo

SHORT: dict[str, Any] = {"timeouts": {"step": "1s"}}
"""Kubernetes looks again at a namespace that goes when half of its pods' longest grace period is over, however soon they end: a short one
shortens the test."""
KINDS = "services,deployments,configmaps,secrets,poddisruptionbudgets,networkpolicies,ifn"


def objects(dormouse: Dormouse, space: str) -> dict[str, str]:
    """kind/name -> uid@generation of everything that is not a pod."""
    return {
        f"{each['kind']}/{each['metadata']['name']}": f"{each['metadata']['uid']}@{each['metadata'].get('generation')}"
        for each in dormouse.cluster.get(KINDS, "", space)
    }


def going(dormouse: Dormouse, space: str, **spec: Any) -> None:
    """Three functions, of which one serves and one has sessions."""
    dormouse.cluster.apply(CODE, echo("one", replicas=1, **spec), counter("two", replicas=1, **spec), echo("three"), namespace=space)
    there = Dormouse(dormouse.cluster, dormouse.address, space)
    for name in ("one", "two"):
        there.ready(name, 1)
    assert there.call("two", 1, session="s") == 1
    there.close()


def foreign(dormouse: Dormouse, space: str) -> None:
    """Somebody's objects under the names that the functions' own have elsewhere."""
    service: dict[str, Any] = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "one"}, "spec": {"ports": [{"port": 1}]}}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "two-store"}}
    budget = {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": "one", "labels": {"app.kubernetes.io/managed-by": "dormouse"}},
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": {"app": "one"}}},
    }
    dormouse.cluster.apply(service, secret, budget, namespace=space)
