"""What a function consists of is kept as it should be, whoever edits it, and goes with it, however it is deleted."""

import json
from collections.abc import Callable
from typing import Any

from dormouse_testing.cluster.client import eventually
from dormouse_testing.cluster.functions import Dormouse, echo

KINDS = "deployments,services,configmaps,secrets,poddisruptionbudgets,networkpolicies"


def objects(dormouse: Dormouse, name: str) -> dict[str, Any]:
    """kind/name -> the object, of those that carry the function's label."""
    found = dormouse.cluster.get(KINDS, "", dormouse.space, "-l", f"dormouse.dev/function={name}")
    return {f"{each['kind']}/{each['metadata']['name']}": each for each in found}


def said(found: dict[str, Any]) -> dict[str, Any]:
    """What each says, but for what changes by itself."""
    return {
        name: ({**each.get("spec", {}), "replicas": None, "maxUnavailable": None}, each.get("data"), each["metadata"]["labels"])
        for name, each in found.items()
    }


def put_back(dormouse: Dormouse, before: dict[str, Any], name: str, kind: str, changes: list[dict[str, Any]]) -> None:
    words = ["patch", *kind.split("/"), "-n", dormouse.space, "--type=json", "-p", json.dumps(changes)]
    dormouse.cluster.kubectl(*words)
    same: Callable[[], bool] = lambda: said(objects(dormouse, name)) == before  # noqa: E731
    eventually(f"{kind} is put back", same, 30)


def test_an_edit_of_what_a_function_consists_of_is_put_back(dormouse: Dormouse) -> None:
    dormouse.apply(echo("edited", minReplicas=1))
    dormouse.ready("edited", 1)
    before = said(objects(dormouse, "edited"))
    chosen = {kind: next(name for name in before if name.startswith(f"{kind}/")) for kind in ("Deployment", "ConfigMap", "NetworkPolicy")}
    add = {"op": "add", "path": "/spec/template/spec/containers/0/env/-", "value": {"name": "EDITED", "value": "1"}}
    put_back(dormouse, before, "edited", chosen["Deployment"], [add])
    put_back(dormouse, before, "edited", chosen["ConfigMap"], [{"op": "replace", "path": "/data", "value": {"spec.json": "{}"}}])
    put_back(dormouse, before, "edited", chosen["NetworkPolicy"], [{"op": "replace", "path": "/spec/ingress", "value": [{}]}])
    put_back(dormouse, before, "edited", "Service/edited", [{"op": "replace", "path": "/spec/externalName", "value": "elsewhere.example"}])
    hidden = {"op": "remove", "path": "/metadata/labels/dormouse.dev~1installation"}
    put_back(dormouse, before, "edited", "Service/edited", [hidden])
    assert dormouse.call("edited", 1) == 1
    dormouse.delete("edited")


def test_a_function_that_is_deleted_without_its_dependents_takes_them_along(dormouse: Dormouse) -> None:
    dormouse.apply(echo("orphans"))
    dormouse.asleep("orphans")
    assert objects(dormouse, "orphans")
    dormouse.cluster.kubectl("delete", "ifn", "orphans", "-n", dormouse.space, "--cascade=orphan")
    eventually("nothing of it is left", lambda: not objects(dormouse, "orphans"), 60)
