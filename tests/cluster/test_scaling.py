"""Who scales functions from outside: an HPA, and what `kubectl scale` and KEDA write through the scale subresource."""

import json
from typing import Any

import grpc
import pytest
from dormouse_testing.cluster import external_metrics
from dormouse_testing.cluster.client import eventually
from dormouse_testing.cluster.functions import Dormouse, echo
from dormouse_testing.cluster.layout import ClusterError

# Down as soon as up, where Kubernetes waits five minutes.
SOON = {"scaleDown": {"stabilizationWindowSeconds": 0, "policies": [{"type": "Pods", "value": 9, "periodSeconds": 1}]}}


def scale_of(dormouse: Dormouse, name: str) -> dict[str, Any]:
    where = f"/apis/dormouse.dev/v1alpha1/namespaces/{dormouse.space}/inferencefunctions/{name}/scale"
    found: dict[str, Any] = json.loads(dormouse.cluster.kubectl("get", "--raw", where))
    return found


def scale(dormouse: Dormouse, name: str, count: int) -> None:
    dormouse.cluster.kubectl("scale", "ifn", name, f"--replicas={count}", "-n", dormouse.space)


def autoscaler(name: str) -> dict[str, Any]:
    metric = {"metric": {"name": external_metrics.METRIC}, "target": {"type": "AverageValue", "averageValue": "10"}}
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": name},
        "spec": {
            "scaleTargetRef": {"apiVersion": "dormouse.dev/v1alpha1", "kind": "InferenceFunction", "name": name},
            "minReplicas": 1,
            "maxReplicas": 4,
            "metrics": [{"type": "External", "external": metric}],
            "behavior": SOON,
        },
    }


def conditions(dormouse: Dormouse, name: str) -> dict[str, str]:
    found = dormouse.cluster.get("hpa", name, dormouse.space).get("status", {}).get("conditions", [])
    return {each["type"]: each["reason"] for each in found}


def test_an_hpa_scales_a_function_that_names_no_number_and_lets_it_sleep(dormouse: Dormouse) -> None:
    if not dormouse.cluster.own:
        pytest.skip("another's cluster may have external metrics of its own")
    dormouse.apply(echo("h"))
    dormouse.asleep("h")
    found = scale_of(dormouse, "h")
    assert (found["spec"], found["status"]["replicas"]) == ({"replicas": 1}, 0)
    with external_metrics.served(dormouse.cluster) as waiting:
        dormouse.apply(autoscaler("h"))
        eventually("it is scaled", lambda: conditions(dormouse, "h").get("ScalingActive") == "ValidMetricFound", 60)
        assert conditions(dormouse, "h")["AbleToScale"] in ("ReadyForNewScale", "SucceededGetScale", "ScaleDownStabilized")
        dormouse.phase("h", "Asleep", seconds=1)
        waiting.value = 25
        dormouse.ready("h", 3)
        found = scale_of(dormouse, "h")
        assert (found["spec"], found["status"]["replicas"]) == ({"replicas": 3}, 3)
        pods = dormouse.cluster.get("pods", "", dormouse.space, "-l", found["status"]["selector"])
        assert len(pods) == 3, "the selector is of its workers' pods"
        waiting.value = 0
        dormouse.asleep("h")
        assert scale_of(dormouse, "h")["spec"] == {"replicas": 1}
        dormouse.cluster.kubectl("delete", "hpa", "h", "-n", dormouse.space)
    dormouse.delete("h")


@pytest.mark.slow
def test_what_a_number_through_the_scale_subresource_means(dormouse: Dormouse) -> None:
    """As KEDA writes it, too: 0 where it sees no work, 1 or more where it does."""
    dormouse.apply(echo("k", maxReplicas=2))
    dormouse.asleep("k")
    scale(dormouse, "k", 2)
    dormouse.ready("k", 2)
    scale(dormouse, "k", 0)
    dormouse.asleep("k")
    assert dormouse.call("k", 1) == 1, "0 is asleep, not stopped: a call wakes it"
    with pytest.raises(ClusterError, match="askedReplicas"):
        scale(dormouse, "k", 1001)
    assert scale_of(dormouse, "k")["spec"].get("replicas", 0) == 0, "what was refused changed nothing"
    dormouse.patch("k", {"replicas": 0})
    dormouse.phase("k", "Stopped")
    scale(dormouse, "k", 2)
    code, text = dormouse.refused("k")
    assert (code, "is stopped: spec.replicas is 0" in text) == (grpc.StatusCode.UNAVAILABLE, True), text
    dormouse.patch("k", {"replicas": None})
    dormouse.ready("k", 2)
    dormouse.delete("k")
