"""What the API server does with a CustomResourceDefinition, as far as a test can tell without one.

`schema_faults`: the rules of structural schemas, and what bounds the cost of CEL. `value_faults`: whether an object satisfies a schema
(without CEL). `with_defaults`: the object as stored: nulls dropped, unknown fields pruned, defaults filled in from the top down.

Source: Kubernetes' documentation of custom resources ("Specifying a structural schema", "Defaulting", "Validation rules") and
`apiextensions-apiserver/pkg/apis/apiextensions/validation`.
"""

import re
from collections.abc import Iterator
from typing import Any

Node = dict[str, Any]

FORBIDDEN = ("$ref", "allOf", "anyOf", "oneOf", "not", "definitions", "dependencies", "patternProperties", "uniqueItems", "id", "readOnly")
TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "boolean": bool,
    "number": (int, float),
}
REASONS = {"FieldValueRequired", "FieldValueForbidden", "FieldValueInvalid", "FieldValueDuplicate"}


def schema_faults(root: Node) -> list[str]:
    """Why the API server would refuse this openAPIV3Schema; empty: it would not."""
    faults = [] if root.get("type") == "object" else ["root: the type is not object"]
    if "default" in root or "default" in root.get("properties", {}).get("metadata", {}):
        faults.append("root: a default at the root or in metadata")
    return faults + [
        fault for path, node, bounded, correlated in _walk(root, "", True, True) for fault in _node(path, node, bounded, correlated)
    ]


def _walk(node: Node, path: str, bounded: bool, correlated: bool) -> Iterator[tuple[str, Node, bool, bool]]:
    """Every node; whether all lists and maps above it are bounded, and whether an old value can be found for it."""
    yield path, node, bounded, correlated
    for name, inner in node.get("properties", {}).items():
        yield from _walk(inner, f"{path}.{name}", bounded, correlated)
    if "items" in node:
        mapped = node.get("x-kubernetes-list-type") == "map"
        yield from _walk(node["items"], f"{path}[]", bounded and "maxItems" in node, correlated and mapped)
    if isinstance(node.get("additionalProperties"), dict):
        yield from _walk(node["additionalProperties"], f"{path}{{}}", bounded and "maxProperties" in node, correlated)


def _node(path: str, node: Node, bounded: bool, correlated: bool) -> Iterator[str]:
    open_ = node.get("x-kubernetes-preserve-unknown-fields") or node.get("x-kubernetes-int-or-string")
    if not node.get("type") and not open_:
        yield f"{path}: no type"
    for name in FORBIDDEN:
        if name in node:
            yield f"{path}: {name} is not structural here"
    if node.get("additionalProperties") is False or ("additionalProperties" in node and "properties" in node):
        yield f"{path}: additionalProperties beside properties, or false"
    if node.get("type") == "array" and "items" not in node:
        yield f"{path}: a list without items"
    for name in node.get("required", ()):
        if name not in node.get("properties", {}):
            yield f"{path}: {name} is required and not described"
    if "pattern" in node:
        re.compile(node["pattern"])
    if "default" in node:
        if not node.get("type"):
            yield f"{path}: a default without a type"
        yield from (f"{path}: default: {fault}" for fault in value_faults(node, with_defaults(node, node["default"])))
    yield from _list_type(path, node)
    for rule in node.get("x-kubernetes-validations", ()):
        yield from _rule(path, node, rule, bounded, correlated)


def _list_type(path: str, node: Node) -> Iterator[str]:
    items, kind = node.get("items", {}), node.get("x-kubernetes-list-type")
    if kind == "map":
        for key in node.get("x-kubernetes-list-map-keys", ()):
            described = items.get("properties", {}).get(key, {})
            if described.get("type") not in ("string", "integer", "boolean"):
                yield f"{path}: the list's key {key} is not described as a scalar"
            if key not in items.get("required", ()) and "default" not in described:
                yield f"{path}: the list's key {key} is neither required nor has a default"
        if not node.get("x-kubernetes-list-map-keys"):
            yield f"{path}: a map list without keys"
    elif kind == "set" and items.get("type") not in ("string", "integer", "boolean"):
        yield f"{path}: a set of what is not scalar"


def _rule(path: str, node: Node, rule: Node, bounded: bool, correlated: bool) -> Iterator[str]:
    if not rule.get("rule") or "\n" in rule.get("message", "") or not 0 < len(rule.get("message", "")) <= 2048:
        yield f"{path}: a rule without text, or a message that is empty, over 2,048 characters or over a line"
    if rule.get("reason", "FieldValueInvalid") not in REASONS:
        yield f"{path}: {rule['reason']} is no reason"
    if not bounded:
        yield f"{path}: a rule inside a list or map without a maximum: its cost is unbounded"
    if "oldSelf" in rule["rule"] and not correlated:
        yield f"{path}: a rule about changes where the old value cannot be found"
    if "fieldPath" in rule:
        at = node
        for name in rule["fieldPath"].lstrip(".").split("."):
            at = at.get("properties", {}).get(name, {})
        if not at:
            yield f"{path}: fieldPath {rule['fieldPath']} leads nowhere"
    for name in re.findall(r"self\.(\w+)\.(?:all|exists|exists_one|filter|map)\(", rule["rule"]):
        inner = node.get("properties", {}).get(name, {})
        if "maxItems" not in inner and "maxProperties" not in inner:
            yield f"{path}: a rule walks over {name}, which has no maximum: its cost is unbounded"
    for name in re.findall(r"self\.(\w+)\.(?:matches|startsWith|contains)\(", rule["rule"]):
        if "maxLength" not in node.get("properties", {}).get(name, {}):
            yield f"{path}: a rule reads {name}, which has no maximal length: its cost is unbounded"


# -------------------------------------------------------------------------------------------------------------------------- values


def with_defaults(node: Node, value: Any) -> Any:
    """`value` as the API server stores it."""
    if isinstance(value, dict) and "properties" in node:
        known = {name: item for name, item in value.items() if item is not None and name in node["properties"]}
        for name, inner in node["properties"].items():
            if name not in known and "default" in inner:
                known[name] = inner["default"]
        return {name: with_defaults(node["properties"][name], item) for name, item in known.items()}
    if isinstance(value, list) and "items" in node:
        return [with_defaults(node["items"], item) for item in value]
    return value


def value_faults(node: Node, value: Any, path: str = "") -> list[str]:
    """Why the API server would refuse `value` here, CEL apart."""
    kind = node.get("type")
    if kind is None:
        return []
    if not isinstance(value, TYPES[kind]) or (isinstance(value, bool) and kind != "boolean"):
        return [f"{path}: no {kind}"]
    faults = []
    if "enum" in node and value not in node["enum"]:
        faults.append(f"{path}: not of the enum")
    if isinstance(value, str) and "pattern" in node and not re.fullmatch(node["pattern"], value, re.ASCII):
        faults.append(f"{path}: does not match")
    size = len(value) if isinstance(value, str | list | dict) else value
    for low, high in (("minimum", "maximum"), ("minLength", "maxLength"), ("minItems", "maxItems"), ("minProperties", "maxProperties")):
        if (low in node and size < node[low]) or (high in node and size > node[high]):
            faults.append(f"{path}: out of bounds")
    if isinstance(value, list):
        keys = node.get("x-kubernetes-list-map-keys")
        names = [item.get(keys[0]) if keys and isinstance(item, dict) else item for item in value]
        if node.get("x-kubernetes-list-type") in ("map", "set") and len(set(map(str, names))) != len(names):
            faults.append(f"{path}: a duplicate")
        faults += [fault for index, item in enumerate(value) for fault in value_faults(node["items"], item, f"{path}[{index}]")]
    if isinstance(value, dict):
        faults += [f"{path}.{name}: required" for name in node.get("required", ()) if name not in value]
        others = node.get("additionalProperties")
        for name, item in value.items():
            inner = node.get("properties", {}).get(name, others)
            if isinstance(inner, dict):
                faults += value_faults(inner, item, f"{path}.{name}")
    return faults
