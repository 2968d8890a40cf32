"""Our Open Inference Protocol is the one that Triton's client puts on the wire: names, numbers, types, services."""

import json
import pathlib
import subprocess

import pytest
from dormouse_proto import envoy, inference_pb2

ROOT = pathlib.Path(__file__).resolve().parents[2]
CLIENT = ROOT / ".venv-client" / "bin" / "python"

DUMP = """
import json, sys
def fields(message):
    out = {f.name: [f.number, f.type, f.is_repeated, f.message_type.name if f.message_type else f.enum_type.name if f.enum_type else ""]
           for f in message.fields}
    return {"fields": out, "nested": {n.name: fields(n) for n in message.nested_types}}
def dump(files):
    messages = {n: fields(m) for file in files for n, m in file.message_types_by_name.items()}
    enums = {n: {v.name: v.number for v in e.values} for file in files for n, e in file.enum_types_by_name.items()}
    services = {n: {m.name: [m.input_type.full_name, m.output_type.full_name, m.client_streaming, m.server_streaming] for m in s.methods}
                for file in files for n, s in file.services_by_name.items()}
    return {"messages": messages, "enums": enums, "services": services}
"""


@pytest.fixture(scope="module")
def theirs():
    if not CLIENT.exists():
        pytest.fail("the caller's environment is missing: make setup")
    code = (
        DUMP
        + "from tritonclient.grpc import service_pb2 as s, model_config_pb2 as m\nprint(json.dumps(dump([s.DESCRIPTOR, m.DESCRIPTOR])))"
    )
    return json.loads(subprocess.run([CLIENT, "-c", code], capture_output=True, text=True, check=True).stdout)


@pytest.fixture(scope="module")
def ours():
    space: dict = {}
    exec(DUMP, space)
    return json.loads(json.dumps(space["dump"]([inference_pb2.DESCRIPTOR])))


def subset(mine: dict, full: dict, where: str) -> None:
    for name, field in mine["fields"].items():
        assert full["fields"].get(name) == field, f"{where}.{name}"
    for name, nested in mine["nested"].items():
        subset(nested, full["nested"][name], f"{where}.{name}")


def test_every_field_of_ours_is_tritons(ours, theirs):
    for name, message in ours["messages"].items():
        subset(message, theirs["messages"][name], name)


def test_the_messages_of_an_inference_are_whole(ours, theirs):
    for name in ("ModelInferRequest", "ModelInferResponse", "InferParameter", "InferTensorContents", "ModelStreamInferResponse"):
        assert ours["messages"][name] == theirs["messages"][name]


def test_services_and_enums(ours, theirs):
    for name, method in ours["services"]["GRPCInferenceService"].items():
        assert theirs["services"]["GRPCInferenceService"][name] == method, name
    assert ours["enums"]["DataType"] == theirs["enums"]["DataType"]


def test_our_stubs_and_tritons_names_live_in_one_process(tmp_path):
    """The default pool is free for whoever registers package `inference` there."""
    from google.protobuf import descriptor_pb2, descriptor_pool

    foreign = descriptor_pb2.FileDescriptorProto(name="foreign_inference.proto", package="inference")
    foreign.message_type.add(name="ModelInferRequest")
    assert descriptor_pool.Default().AddSerializedFile(foreign.SerializeToString()) is not None
    assert inference_pb2.ModelInferRequest(model_name="m").model_name == "m"


def test_envoys_messages_resolve_any_within_themselves():
    policy = {"@type": envoy.TYPE_URL + "envoy.extensions.load_balancing_policies.override_host.v3.OverrideHost"}
    policies = [{"typed_extension_config": {"name": "owner", "typed_config": policy}}]
    cluster = envoy.from_dict("envoy.config.cluster.v3.Cluster", {"name": "c", "load_balancing_policy": {"policies": policies}})
    assert cluster.load_balancing_policy.policies[0].typed_extension_config.typed_config.type_url == policy["@type"]
    with pytest.raises(KeyError):
        envoy.message("envoy.config.cluster.v3.NoSuchThing")
