"""The CustomResourceDefinition: current, structural, and of one mind with what Dormouse itself accepts."""

import copy
import importlib.util
import pathlib
import re
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import yaml
from dormouse_core.spec import InvalidManifest, parse_manifest, schema
from dormouse_testing.manifests import Data, manifest, onnx, stateful
from dormouse_testing.structural import schema_faults, value_faults, with_defaults

ROOT = pathlib.Path(__file__).parents[2]
Node = dict[str, Any]


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    place = importlib.util.spec_from_file_location("generate_reference", ROOT / "tools/generate_reference.py")
    assert place is not None
    assert place.loader is not None
    module = importlib.util.module_from_spec(place)
    place.loader.exec_module(module)
    return module


def test_committed_files_are_current(generator: ModuleType) -> None:
    for name, make in generator.FILES.items():
        assert (ROOT / name).read_text(encoding="utf-8") == make(), f"{name} is stale: run `make generate`"


def test_the_file_is_the_definition() -> None:
    assert yaml.safe_load((ROOT / "crds/inferencefunctions.yaml").read_text()) == schema.custom_resource_definition()


def test_the_definition_names_what_kubectl_needs() -> None:
    spec = schema.custom_resource_definition()["spec"]
    (version,) = spec["versions"]
    assert (spec["scope"], spec["names"]["shortNames"], spec["names"]["plural"]) == ("Namespaced", ["ifn"], "inferencefunctions")
    scale = version["subresources"]["scale"]
    assert scale["specReplicasPath"] == ".spec.askedReplicas"
    asked = version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["askedReplicas"]
    assert asked["default"] == 1, "without a number an HPA cannot read it (FailedGetScale), and 0 tells it not to scale (ScalingDisabled)"
    for column in version["additionalPrinterColumns"]:
        assert reached(column["jsonPath"]), column
    for path in version["subresources"]["scale"].values():
        assert reached(path), path


def reached(path: str) -> Node:
    """A path may choose one of a list's items."""
    node = schema.root()
    for name in re.sub(r"\[\?\([^)]*\)\]", "[]", path).strip(".").split("."):
        node = node["properties"].get(name.removesuffix("[]"), {})
        node = node["items"] if name.endswith("[]") else node
    return node


def test_the_schema_is_structural_and_its_rules_are_bounded() -> None:
    assert schema_faults(schema.root()) == []


def spec_of(root: Node) -> Node:
    properties: Node = root["properties"]["spec"]["properties"]
    return properties


def no_type(root: Node) -> None:
    del spec_of(root)["replicas"]["type"]


def any_of(root: Node) -> None:
    spec_of(root)["replicas"]["anyOf"] = [{"type": "integer"}, {"type": "string"}]


def reference(root: Node) -> None:
    spec_of(root)["model"] = {"$ref": "#/definitions/Model"}


def wrong_default(root: Node) -> None:
    spec_of(root)["maxReplicas"]["default"] = 0


def unbounded_list(root: Node) -> None:
    del spec_of(root)["workers"]["properties"]["volumes"]["maxItems"]


def unbounded_text(root: Node) -> None:
    del spec_of(root)["model"]["properties"]["uri"]["maxLength"]


def optional_key(root: Node) -> None:
    spec_of(root)["workers"]["properties"]["env"]["items"]["required"] = []


def lost_path(root: Node) -> None:
    root["properties"]["spec"]["x-kubernetes-validations"][0]["fieldPath"] = ".modle"


def old_value_in_a_set(root: Node) -> None:
    rule = {"rule": "self == oldSelf", "message": "does not change"}
    spec_of(root)["sessions"]["properties"]["accepts"]["items"]["x-kubernetes-validations"] = [rule]


def undescribed(root: Node) -> None:
    root["properties"]["spec"]["required"] = ["runtme"]


def free_and_fixed(root: Node) -> None:
    spec_of(root)["batching"]["additionalProperties"] = {"type": "string"}


DAMAGES = [
    no_type,
    any_of,
    reference,
    wrong_default,
    unbounded_list,
    unbounded_text,
    optional_key,
    lost_path,
    old_value_in_a_set,
    undescribed,
    free_and_fixed,
]


@pytest.mark.parametrize("damage", DAMAGES, ids=[damage.__name__ for damage in DAMAGES])
def test_a_damaged_schema_is_noticed(damage: Callable[[Node], None]) -> None:
    root = copy.deepcopy(schema.root())
    damage(root)
    assert len(schema_faults(root)) >= 1


def descriptions(node: Node, path: str) -> list[str]:
    """Paths of fields that `kubectl explain` would have nothing to say about."""
    missing = []
    for name, inner in node.get("properties", {}).items():
        if not inner.get("description"):
            missing.append(f"{path}.{name}")
        missing += descriptions(inner.get("items", inner), f"{path}.{name}")
    return missing


def test_every_field_is_explained() -> None:
    assert descriptions(reached("spec"), "spec") + descriptions(reached("status"), "status") == []


# ------------------------------------------------------------------------------------------------------------------ of one mind

ACCEPTED: list[Data] = [
    onnx(),
    onnx(replicas=0, batching={"maxBatchSize": 1}, timeouts={"hold": "0ms"}, workers={"env": [{"name": "A"}], "image": "a/b:c"}),
    stateful({"initial": {"shape": [2, 1, 128]}}, shards=4096, ttl="1h30m", accepts=["a"]),
    manifest(
        {
            "runtime": "python",
            "handler": "a.b:C",
            "sessions": {},
            "workers": {"volumes": [{"name": "v", "mountPath": "/v", "emptyDir": {}}]},
        }
    ),
]

REFUSED: list[Data] = [
    manifest({}),
    onnx(runtime="x"),
    onnx(model={"uri": "ftp://a"}),
    onnx(model={"uri": "file://a b"}),
    onnx(model={"uri": "file://" + "a" * 2048}),
    onnx(model={"uri": "file://a", "sha256": "A" * 64}),
    onnx(model={}),
    onnx(handler="a.B"),
    onnx(replicas=-1),
    onnx(replicas=True),
    onnx(replicas="3"),
    onnx(maxReplicas=0),
    onnx(retryStateless="yes"),
    onnx(scaleMetric="cpu"),
    onnx(batching={"maxQueueDelay": 5}),
    onnx(timeouts={"step": "1d"}),
    onnx(workers={"labels": {"a": 1}}),
    onnx(workers={"labels": {f"k{n}": "" for n in range(65)}}),
    onnx(workers={"env": [{"name": "A"}, {"name": "A"}]}),
    onnx(workers={"env": [{"value": "A"}]}),
    onnx(workers={"volumes": [{"name": "V", "mountPath": "/v", "emptyDir": {}}]}),
    onnx(workers={"volumes": [{"name": "v", "mountPath": "v", "emptyDir": {}}]}),
    onnx(workers={"tolerations": ["a"]}),
    stateful(shards=0),
    stateful(shards=4097),
    stateful(maxBytes=0),
    stateful(stateVersion=""),
    stateful(accepts=["a", "a"]),
    stateful({"shape": [1] * 17}),
    stateful({"shape": [1] * 17}),
    stateful({"shape": [-2]}),
    stateful({"batchAxis": -1}),
    stateful({"input": ""}),
    stateful(*[{"input": f"i{n}", "output": f"o{n}"} for n in range(129)]),
]


@pytest.mark.parametrize("data", ACCEPTED)
def test_what_we_accept_the_schema_accepts_with_the_same_defaults(data: Data) -> None:
    stored = with_defaults(schema.root(), {"spec": data["spec"]})
    assert value_faults(schema.root(), stored) == []
    assert parse_manifest({**data, **stored}) == parse_manifest(data)


def test_the_schema_fills_in_the_defaults_that_rules_read() -> None:
    stored = with_defaults(schema.root(), {"spec": stateful()["spec"]})["spec"]
    assert (stored["minReplicas"], stored["maxReplicas"], stored["scaleMetric"], stored["sessions"]["durability"]) == (
        0,
        10,
        "concurrency",
        "Committed",
    )
    assert stored["timeouts"] == {"step": "1m", "hold": "5m"}
    assert "workers" not in stored


@pytest.mark.parametrize("data", REFUSED)
def test_what_the_schema_refuses_we_refuse(data: Data) -> None:
    assert value_faults(schema.root(), with_defaults(schema.root(), {"spec": data["spec"]})) != []
    with pytest.raises(InvalidManifest):
        parse_manifest(data)
