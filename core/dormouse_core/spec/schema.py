"""The CustomResourceDefinition, made from the types and the rules.

The API server accepts *structural* schemas only (Kubernetes' documentation, "Specifying a structural schema"): every node says its type, no
$ref, no anyOf that chooses between types. And it refuses a CEL rule whose cost it cannot bound, so everything that rules walk over has a
maximal length.

One field has two types, `initial` ("zeros" or an object). The schema leaves it open (`x-kubernetes-preserve-unknown-fields`), and Dormouse
checks it when it reads the object. Empty lists and objects are not written as defaults: they would fill every stored object with noise.
"""

from typing import Any

from msgspec import NODEFAULT, Struct, inspect

from dormouse_core.spec import durations
from dormouse_core.spec.canonical import to_builtins
from dormouse_core.spec.durations import Duration
from dormouse_core.spec.objects import GROUP, KIND, VERSION, FunctionSpec
from dormouse_core.spec.rules import RULES, Rule
from dormouse_core.spec.status import UNSEEN, Status

PLURAL = "inferencefunctions"
COLUMNS: tuple[tuple[str, str, str, str, int], ...] = (
    ("Phase", "string", ".status.phase", "What the function is doing.", 0),
    ("Ready", "string", '.status.conditions[?(@.type=="Ready")].status', "Whether the spec that was applied is ready.", 0),
    ("Workers", "integer", ".status.readyReplicas", "Workers that are ready.", 0),
    ("Sessions", "integer", ".status.sessions", "Sessions in workers' memory.", 0),
    ("Asleep", "date", ".status.asleepSince", "How long it has had no worker.", 0),
    ("URL", "string", ".status.url", "Where to call it.", 0),
    ("Revision", "string", ".status.revision", "The revision that is served.", 1),
    ("Wanted", "string", ".status.wantedRevision", "The revision that was applied.", 1),
)
"""Name, type, path, description, and the priority: 0 is always shown, 1 by `kubectl get -o wide`."""

Node = dict[str, Any]


def custom_resource_definition() -> Node:
    """The whole object, as `crds/inferencefunctions.yaml` holds it."""
    columns = [
        {"name": name, "type": kind, "jsonPath": path, "description": text} | ({"priority": priority} if priority else {})
        for name, kind, path, text, priority in COLUMNS
    ]
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {"plural": PLURAL, "singular": KIND.lower(), "kind": KIND, "listKind": f"{KIND}List", "shortNames": ["ifn"]},
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "additionalPrinterColumns": columns,
                    "subresources": {
                        "status": {},
                        "scale": {
                            "specReplicasPath": ".spec.askedReplicas",
                            "statusReplicasPath": ".status.replicas",
                            "labelSelectorPath": ".status.selector",
                        },
                    },
                    "schema": {"openAPIV3Schema": root()},
                }
            ],
        },
    }


def root() -> Node:
    node: Node = {
        "type": "object",
        "description": "A model or a Python handler that sleeps to zero and wakes up remembering.",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": {**node_of(FunctionSpec), "description": "What the function is and how it runs."},
            "status": {**node_of(Status), "description": "What the operator says of it.", "default": {"observedGeneration": UNSEEN}},
        },
    }
    for rule in RULES:
        if rule.cel:
            _at(node, rule.at).setdefault("x-kubernetes-validations", []).append(validation(rule))
    return node


def validation(rule: Rule) -> Node:
    told = {"rule": rule.cel, "message": rule.allowed}
    if rule.field.startswith("metadata"):  # the schema may not describe metadata, so no path leads there
        told["message"] = f"{rule.field}: {rule.allowed}"
    elif rule.field:
        told["fieldPath"] = f".{rule.field}"
    if rule.changes:
        told["reason"] = "FieldValueForbidden"
    return told


def _at(node: Node, at: str) -> Node:
    for step in at.split(".") if at else ():
        node = node["properties"][step.removesuffix("[]")]
        if step.endswith("[]"):
            node = node["items"]
    return node


def node_of(kind: type) -> Node:
    """The schema of one of the types."""
    return _node(inspect.type_info(kind), {})


def _node(node: inspect.Type, extra: dict[str, Any]) -> Node:
    match node:
        case inspect.Metadata():
            return {**(node.extra_json_schema or {}), **_node(node.type, {**extra, **(node.extra or {})})} | _kept(node)
        case inspect.UnionType():
            members = [member for member in node.types if not isinstance(member, inspect.NoneType)]
            return _node(members[0], extra) if len(members) == 1 else {"x-kubernetes-preserve-unknown-fields": True}
        case inspect.StructType():
            return _struct(node)
        case inspect.CustomType() if node.cls is Duration:
            return _duration(extra)
        case inspect.LiteralType():
            return {"type": "string", "enum": list(node.values)}
        case inspect.StrType():
            return _told(type="string", pattern=node.pattern, minLength=node.min_length, maxLength=node.max_length)
        case inspect.BoolType():
            return {"type": "boolean"}
        case inspect.IntType():
            return _told(type="integer", format="int64", minimum=node.ge, maximum=node.le)
        case inspect.ListType():
            return _list(node, extra)
        case inspect.DictType() if isinstance(node.value_type, inspect.AnyType):
            return {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
        case inspect.DictType():
            return _told(type="object", additionalProperties=_node(node.value_type, {}), maxProperties=node.max_length)
        case _:
            raise TypeError(f"no schema for the type {node!r}")


def _kept(node: inspect.Metadata) -> Node:
    """The outermost description is about the field, an inner one about its type."""
    told = node.extra_json_schema or {}
    return {"description": told["description"]} if "description" in told else {}


def _told(**told: Any) -> Node:
    return {name: item for name, item in told.items() if item is not None}


def _duration(extra: dict[str, Any]) -> Node:
    node: Node = {"type": "string", "pattern": durations.PATTERN, "maxLength": durations.MAX_LENGTH}
    low, high = extra.get("minimum"), extra.get("maximum")
    if low is not None and high is not None:
        rule = f"duration(self) >= duration('{low}') && duration(self) <= duration('{high}')"
        node["x-kubernetes-validations"] = [{"rule": rule, "message": f"{low} to {high} is allowed"}]
    return node


def _list(node: inspect.ListType, extra: dict[str, Any]) -> Node:
    told = _told(type="array", items=_node(node.item_type, {}), minItems=node.min_length, maxItems=node.max_length)
    if "map_key" in extra:
        told |= {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [extra["map_key"]]}
    elif "set" in extra:
        told["x-kubernetes-list-type"] = "set"
    return told


def _struct(node: inspect.StructType) -> Node:
    properties: Node = {}
    for field in node.fields:
        inner = _node(field.type, {})
        default = default_of(field)
        if default is not None and inner.get("type") and default not in ([], {}, ""):
            inner["default"] = default
        elif isinstance(_default(field), Struct) and any("default" in part for part in inner["properties"].values()):
            inner["default"] = {}  # so that the defaults of its fields are filled in where the whole is absent
        properties[field.encode_name] = inner
    told = {"type": "object", "properties": properties}
    required = [field.encode_name for field in node.fields if field.required]
    return told | ({"required": required} if required else {})


def default_of(field: inspect.Field) -> Any:
    """A field's default as JSON; None where it has none, or where its parts have their own."""
    default = _default(field)
    return None if isinstance(default, Struct) else to_builtins(default)


def _default(field: inspect.Field) -> Any:
    if field.default is not NODEFAULT:
        return field.default
    return field.default_factory() if field.default_factory is not NODEFAULT else None
