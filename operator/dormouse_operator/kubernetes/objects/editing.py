"""Whether somebody edited an object that a function consists of.

What the API server makes of a manifest (defaults, what it allots) cannot be told from an edit by looking once. So the content of the
server's answer to our last write is remembered, or of the object as this process first saw it, and whatever differs from that is an edit. A
digest of it is kept with the copy, whose large parts are dropped.
"""

import hashlib
import json
from typing import Any

from dormouse_operator.kubernetes.api.http import Object
from dormouse_operator.kubernetes.objects.names import OURS

CONTENT = "content"
RESTARTED = "kubectl.kubernetes.io/restartedAt"
"""`kubectl rollout restart` writes it into a Deployment's template: an order, which is carried out."""
_CHANGING = ("replicas", "maxUnavailable")  # the provider's and `budgets`' to say


def content(found: Object) -> str:
    """A digest of what an object says, without status, versions and what else changes by itself."""
    if CONTENT in found:
        return str(found[CONTENT])
    spec = {name: part for name, part in (found.get("spec") or {}).items() if name not in _CHANGING}
    if restarted(found):
        template = spec["template"]
        metadata = {**template["metadata"], "annotations": {**template["metadata"]["annotations"]}}
        del metadata["annotations"][RESTARTED]
        if not metadata["annotations"]:
            del metadata["annotations"]
        spec["template"] = {**template, "metadata": metadata}
    labels = {name: text for name, text in found["metadata"].get("labels", {}).items() if name.startswith(OURS)}
    text = json.dumps([spec, found.get("data"), labels], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def restarted(found: Object) -> str:
    """When somebody last asked for all of a Deployment's pods to be started anew; '': never."""
    template: dict[str, Any] = (found.get("spec") or {}).get("template") or {}
    return str(((template.get("metadata") or {}).get("annotations") or {}).get(RESTARTED, ""))


def with_content(found: Object, trimmed: Object) -> Object:
    return {**trimmed, CONTENT: content(found)}


def edited(before: Object | None, after: Object | None) -> bool:
    """Between two sights of one object, by whomever."""
    if before is None or after is None or before["metadata"].get("uid") != after["metadata"].get("uid"):
        return False
    return content(before) != content(after)
