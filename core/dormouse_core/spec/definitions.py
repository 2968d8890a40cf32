"""What of our fields a cluster's definition lacks: the API server drops those without a word, from what people apply and from statuses."""

from typing import Any

from dormouse_core.spec import schema

OPEN = "x-kubernetes-preserve-unknown-fields"
Node = dict[str, Any]


def lacks(served: Node, ours: Node | None = None) -> list[str]:
    """Paths below `spec` and `status` of fields that are in `ours` (by default this release's) and not in `served`, the schema by which the
    server keeps objects. The outermost alone: what is below one that is lacked is lacked, too."""
    ours = schema.root() if ours is None else ours
    found: list[str] = []
    for part in ("spec", "status"):
        _compare(part, ours["properties"][part], served.get("properties", {}).get(part, {}), found)
    return found


def _compare(path: str, ours: Node, served: Node, found: list[str]) -> None:
    if served.get(OPEN) and not served.get("properties"):
        return  # it keeps whatever comes
    if "items" in ours:
        _compare(f"{path}[]", ours["items"], served.get("items", {}), found)
    for name, node in ours.get("properties", {}).items():
        there = served.get("properties", {}).get(name)
        if there is None:
            found.append(f"{path}.{name}")
        else:
            _compare(f"{path}.{name}", node, there, found)


def schema_of(document: Node, group: str, version: str, kind: str) -> Node | None:
    """The kind's schema in an OpenAPI v3 document of the API server; None: it is not in there."""
    wanted = {"group": group, "version": version, "kind": kind}
    for node in document.get("components", {}).get("schemas", {}).values():
        if wanted in node.get("x-kubernetes-group-version-kind", ()):
            return dict(node)
    return None
