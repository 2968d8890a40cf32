"""When tools that wait for an object are satisfied: their own rules, over the object as the API server shows it."""

from typing import Any

from dormouse_operator.kubernetes.api.http import Object


def kubectl_waits(found: Object, kind: str = "Ready") -> bool:
    """Whether `kubectl wait --for=condition=KIND` goes on waiting (k8s.io/kubectl, `pkg/cmd/wait/condition.go`): a condition counts where
    its `observedGeneration`, or else the status's, is not behind the object's generation."""
    status: dict[str, Any] = found.get("status") or {}
    for condition in status.get("conditions") or ():
        if condition["type"] == kind:
            observed = condition.get("observedGeneration", status.get("observedGeneration", found["metadata"]["generation"]))
            return not (observed >= found["metadata"]["generation"] and condition["status"] == "True")
    return True


def kstatus_waits(found: Object) -> bool:
    """Whether Flux does (sigs.k8s.io/cli-utils, kstatus, its generic rules): not behind the generation, and Ready, if that is there; an
    object of which nothing is said is well."""
    status: dict[str, Any] = found.get("status") or {}
    observed = status.get("observedGeneration")
    if observed is not None and observed != found["metadata"]["generation"]:
        return True
    ready = next((c["status"] for c in status.get("conditions") or () if c["type"] == "Ready"), "True")
    return bool(ready != "True")
