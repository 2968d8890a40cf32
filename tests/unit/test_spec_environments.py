"""What of `spec.workers` one machine has, and what it says of the rest."""

from typing import Any

import pytest
from dormouse_core.spec import environments, parse_manifest
from dormouse_core.spec.objects import Workers
from dormouse_testing.manifests import onnx

GIVEN: dict[str, Any] = {
    "image": "a/b:c",
    "resources": {"limits": {"cpu": 3}},
    "envFrom": [{"configMapRef": {"name": "c"}}],
    "nodeSelector": {"a": "b"},
    "tolerations": [{"key": "k"}],
    "affinity": {"nodeAffinity": {}},
    "topologySpreadConstraints": [{"maxSkew": 2}],
    "labels": {"a": "b"},
    "annotations": {"a": "b"},
    "imagePullSecrets": [{"name": "s"}],
    "serviceAccountName": "s",
    "priorityClassName": "p",
    "volumes": [{"name": "v", "mountPath": "/data", "emptyDir": {}}],
}


@pytest.mark.parametrize("name", GIVEN)
def test_whatever_one_machine_does_not_have_is_told(name: str) -> None:
    spec = parse_manifest(onnx(workers={name: GIVEN[name]})).spec
    assert environments.told(spec) == f"no effect on one machine: spec.workers.{name}"


def test_no_field_is_forgotten() -> None:
    assert {*GIVEN, "env"} == set(Workers.__struct_encode_fields__)


def test_values_are_had_and_references_are_told() -> None:
    env = [{"name": "A", "value": "1"}, {"name": "B", "valueFrom": {"secretKeyRef": {}}}, {"name": "C"}]
    spec = parse_manifest(onnx(workers={"env": env})).spec
    assert environments.plain(spec.workers) == {"A": "1", "C": ""}
    assert environments.told(spec) == "no effect on one machine: spec.workers.env[1].valueFrom (B)"
    assert environments.told(parse_manifest(onnx(workers={"env": env[:1]})).spec) == ""
