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
    "runtimeClassName": "r",
    "schedulerName": "s",
    "securityContext": {"runAsUser": 7},
    "volumes": [{"name": "v", "mountPath": "/data", "emptyDir": {}}],
}


@pytest.mark.parametrize("name", GIVEN)
def test_whatever_one_machine_does_not_have_is_told(name: str) -> None:
    spec = parse_manifest(onnx(workers={name: GIVEN[name]})).spec
    assert environments.told(spec) == f"no effect on one machine: spec.workers.{name}"


def test_no_field_is_forgotten() -> None:
    assert {*GIVEN, "env"} == set(Workers.__struct_encode_fields__)


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("$(A)/x:$(A)", "1/x:1"),
        ("$(LATER) $(NOBODY) $(REFERENCE)", "$(LATER) $(NOBODY) $(REFERENCE)"),
        ("$$(A) $$$(A) $$", "$(A) $1 $"),
        ("$A $(A ${A}", "$A $(A ${A}"),
    ],
)
def test_a_value_may_name_variables_before_it_as_in_a_pod(value: str, found: str) -> None:
    env = [{"name": "A", "value": "1"}, {"name": "REFERENCE", "valueFrom": {"secretKeyRef": {}}}, {"name": "B", "value": value}]
    spec = parse_manifest(onnx(workers={"env": [*env, {"name": "LATER", "value": "2"}]})).spec
    assert environments.plain(spec.workers)["B"] == found


def test_values_are_had_and_references_are_told() -> None:
    env = [{"name": "A", "value": "1"}, {"name": "B", "valueFrom": {"secretKeyRef": {}}}, {"name": "C"}]
    spec = parse_manifest(onnx(workers={"env": env})).spec
    assert environments.plain(spec.workers) == {"A": "1", "C": ""}
    assert environments.told(spec) == "no effect on one machine: spec.workers.env[1].valueFrom (B)"
    assert environments.told(parse_manifest(onnx(workers={"env": env[:1]})).spec) == ""
