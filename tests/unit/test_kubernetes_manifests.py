"""What a function consists of in a cluster: the same for the same arguments, its owner's, under names that fit, and no word too many."""

import base64
import json
from dataclasses import replace

import pytest
from dormouse_core import workerfile
from dormouse_core.spec import SCALING_FIELDS
from dormouse_operator.kubernetes.api.kinds import APPLIED, BUDGETS, CONFIG_MAPS, DEPLOYMENTS, POLICIES, SECRETS, SERVICES, Kind, kind_of
from dormouse_operator.kubernetes.objects import names
from dormouse_operator.kubernetes.objects.manifests import Manifest, build_all, digest
from dormouse_operator.kubernetes.settings import ClusterSettings
from dormouse_proto import state_pb2
from dormouse_testing.cluster_objects import PERMISSIVE, entry
from dormouse_testing.manifests import Data, onnx, python, stateful
from hypothesis import given, settings
from hypothesis import strategies as st

CHOSEN = ClusterSettings(store_secret=b"root", store_ca="CA", policy=PERMISSIVE)
SCALED = {
    "replicas": 3, "minReplicas": 2, "maxReplicas": 7, "askedReplicas": 4, "scaleMetric": "rps", "scaleTarget": 5, "scaleToZeroAfter": "7m",
}  # fmt: skip


def of(kind: Kind, found: state_pb2.FunctionEntry, chosen: ClusterSettings = CHOSEN) -> list[Manifest]:
    return [each for each in build_all(found, chosen) if kind_of(each) is kind]


def named(manifest: Data, name: str, namespace: str = "ns") -> Data:
    return {**manifest, "metadata": {"name": name, "namespace": namespace}}


def digests(found: state_pb2.FunctionEntry, chosen: ClusterSettings = CHOSEN) -> dict[tuple[str, str], str]:
    return {(each["kind"], each["metadata"]["name"]): digest(each) for each in build_all(found, chosen)}


def test_a_workers_file_says_what_was_found_when_its_revision_was_proved() -> None:
    found = entry(onnx())
    (before,) = of(CONFIG_MAPS, found)
    found.proved_revision = found.revision
    found.metadata.batching.CopyFrom(state_pb2.Batching(key="k", rows=32, axes={"x": 0, "y": 1}, reason="Independent", message="m"))
    (after,) = of(CONFIG_MAPS, found)
    assert workerfile.load(before["data"]["spec.json"]).batching is None
    assert workerfile.load(after["data"]["spec.json"]).batching == {
        "key": "k", "rows": 32, "axes": {"x": 0, "y": 1}, "reason": "Independent", "message": "m"
    }  # fmt: skip
    assert of(DEPLOYMENTS, found)[0]["spec"]["template"] == of(DEPLOYMENTS, entry(onnx()))[0]["spec"]["template"], "no pod is restarted"
    found.proved_revision = "another"
    assert of(CONFIG_MAPS, found)[0] == before, "another revision's proof is none of this one's"


# ------------------------------------------------------------------------------------------------------------------ the same


def test_the_same_arguments_give_the_same_manifests() -> None:
    assert build_all(entry(stateful()), CHOSEN) == build_all(entry(stateful()), replace(CHOSEN))
    assert digests(entry(stateful())) == digests(entry(stateful()))


def test_the_order_of_fields_and_the_way_a_duration_is_written_change_nothing() -> None:
    one, other = onnx(timeouts={"step": "60s", "hold": "5m"}), onnx(timeouts={"hold": "300s", "step": "1m"})
    assert digests(entry(one)) == digests(entry(other))


@settings(max_examples=50, deadline=None)
@given(st.sets(st.sampled_from(sorted(SCALED)), min_size=1))
def test_scaling_changes_nothing_of_what_is_there(fields: set[str]) -> None:
    """Neither a worker's file nor a template: no worker is started anew, none is written again."""
    scaled = {name: SCALED[name] for name in fields if name != "minReplicas" or "maxReplicas" in fields}
    assert digests(entry(onnx(**scaled))) == digests(entry(onnx()))


def test_every_field_that_only_scales_is_among_those() -> None:
    assert set(SCALED) == SCALING_FIELDS


@pytest.mark.parametrize("more", [{"maxConcurrency": 5}, {"timeouts": {"step": "9s"}}, {"workers": {"image": "i"}}])
def test_negative_control_what_runs_is_another_revision(more: Data) -> None:
    assert digests(entry(onnx(**more))).keys() != digests(entry(onnx())).keys()


def test_a_digest_is_of_all_that_a_manifest_says_but_what_keeps_it() -> None:
    [made] = of(DEPLOYMENTS, entry(onnx()))
    kept = {**made, "metadata": {**made["metadata"], "annotations": {names.APPLIED: "x"}}}
    assert digest(kept) == digest(made)
    relabelled = {**made, "metadata": {**made["metadata"], "labels": {}}}
    assert digest(relabelled) != digest(made)


def test_another_store_starts_workers_anew_and_another_password_changes_the_secret_alone() -> None:
    """A worker reads the store's address when it starts; the Secret's files it reads whenever they change."""
    found = entry(onnx())
    before = digests(found)
    moved = digests(found, replace(CHOSEN, store=("etcd:2379",)))
    assert {kind for (kind, name), text in moved.items() if before[kind, name] != text} == {"Deployment", "ConfigMap"}
    renewed = digests(found, replace(CHOSEN, store_ca="CA2", store_secret=b"root2"))
    assert {kind for (kind, name), text in renewed.items() if before[kind, name] != text} == {"Secret"}


@pytest.mark.parametrize("wait", [60.0, 3600.0])
def test_another_removal_wait_starts_workers_anew(wait: float) -> None:
    """A worker reads it when it starts, so that one which runs would keep the other."""
    found = entry(stateful())
    before, after = digests(found), digests(found, replace(CHOSEN, removal_wait=wait))
    assert {kind for (kind, name), text in after.items() if before[kind, name] != text} == {"Deployment", "ConfigMap"}


def test_another_store_id_starts_workers_anew() -> None:
    """A worker that runs would go on keeping sessions where nobody looks for them."""
    found = entry(stateful())
    before = digests(found)
    found.store_id = "u1"
    after = digests(found)
    assert {kind for (kind, name), text in after.items() if before[kind, name] != text} == {"Deployment", "ConfigMap"}


def test_a_handlers_workers_are_told_where_gateways_take_their_calls_and_a_models_are_not() -> None:
    there = replace(CHOSEN, gateway_calls="gateway-calls.system.svc:8003")
    for found, told in ((entry(python()), there.gateway_calls), (entry(onnx()), "")):
        [config] = of(CONFIG_MAPS, found, there)
        [text] = config["data"].values()
        assert workerfile.load(text).gateway == told
        before, after = digests(found), digests(found, there)
        anew = {kind for (kind, name), digested in after.items() if before[kind, name] != digested}
        assert anew == ({"Deployment", "ConfigMap"} if told else set()), "a worker reads it when it starts"


# ------------------------------------------------------------------------------------------------------------------ whose they are


def test_everything_belongs_to_its_function_and_nothing_holds_it_back() -> None:
    """Owned, so that the garbage collector removes it; without a finalizer, so that a namespace goes without us."""
    found = entry(named(onnx(), "f"), uid="the-uid")
    made = build_all(found, CHOSEN)
    assert {kind_of(each) for each in made} == set(APPLIED)
    for each in made:
        metadata = each["metadata"]
        assert metadata["ownerReferences"] == [
            {"apiVersion": "dormouse.dev/v1alpha1", "kind": "InferenceFunction", "name": "f", "uid": "the-uid", "controller": True}
        ]
        assert metadata["namespace"] == "ns"
        assert metadata["labels"].items() >= names.labels(found, "default").items()
        assert "finalizers" not in json.dumps(each)


def test_a_deployment_is_made_with_no_replicas_and_chooses_its_own_pods() -> None:
    [made] = of(DEPLOYMENTS, entry(onnx(minReplicas=3)))
    spec = made["spec"]
    assert spec["replicas"] == 0
    chosen = spec["selector"]["matchLabels"]
    assert chosen.items() <= spec["template"]["metadata"]["labels"].items()
    assert {names.UID, names.REVISION} <= set(chosen)
    assert spec["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}


def test_two_functions_of_one_name_choose_different_pods() -> None:
    """An object that was deleted and made again under its name."""
    [old], [new] = (of(DEPLOYMENTS, entry(onnx(), uid=uid)) for uid in ("old", "new"))
    assert not old["spec"]["selector"]["matchLabels"].items() <= new["spec"]["template"]["metadata"]["labels"].items()


# ------------------------------------------------------------------------------------------------------------------ what they say


def decoded(found: state_pb2.FunctionEntry, chosen: ClusterSettings) -> dict[str, str]:
    [made] = of(SECRETS, found, chosen)
    return {name: base64.b64decode(text).decode() for name, text in made["data"].items()}


def test_a_secret_holds_what_the_settings_say_and_nothing_else() -> None:
    found = entry(onnx())
    tls = ClusterSettings(store_ca="CA", store_cert="CERT", store_key="KEY", store_auth=False)
    assert decoded(found, tls) == {"ca.crt": "CA", "tls.crt": "CERT", "tls.key": "KEY"}
    assert set(decoded(found, ClusterSettings(store_secret=b"root"))) == {"password"}
    assert of(SECRETS, found, ClusterSettings(store_auth=False)) == []


def test_a_functions_password_is_its_own_and_is_derived() -> None:
    one, other = (decoded(entry(onnx(), uid=uid), CHOSEN)["password"] for uid in ("one", "other"))
    assert len({one, other, decoded(entry(onnx(), uid="one"), replace(CHOSEN, installation="i"))["password"]}) == 3
    assert one == decoded(entry(onnx(), uid="one"), CHOSEN)["password"]


def test_a_workers_file_has_paths_of_secrets_and_no_secret() -> None:
    found = entry(onnx())
    chosen = replace(CHOSEN, store_cert="CERTIFICATE", store_key="PRIVATE")
    password = decoded(found, chosen)["password"]
    [made] = of(CONFIG_MAPS, found, chosen)
    text = made["data"]["spec.json"]
    others = json.dumps([each for each in build_all(found, chosen) if kind_of(each) is not SECRETS])
    assert not any(secret in others for secret in (password, "PRIVATE", "root"))
    file = workerfile.load(text)
    assert (file.uid, file.revision, file.model_root) == (found.uid, found.revision, "/models")
    assert (file.store.user, file.store.password) == ("dormouse/default/u", "")
    assert file.store.password_file == "/etc/dormouse/store/password"
    assert file.store.key == "/etc/dormouse/store/tls.key"


def test_a_policy_lets_in_gateway_and_operator_and_whom_the_settings_name() -> None:
    peer = {"namespaceSelector": {"matchLabels": {"team": "metrics"}}}
    [made] = of(POLICIES, entry(onnx()), replace(CHOSEN, system_namespace="sys", ingress_from=[peer]))
    assert made["spec"]["policyTypes"] == ["Ingress"]
    assert made["spec"]["podSelector"]["matchLabels"] == names.selector("u")
    [rule] = made["spec"]["ingress"]
    ours, theirs = rule["from"]
    assert rule["ports"] == [{"port": 9000, "protocol": "TCP"}]
    assert ours["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "sys"}
    assert ours["podSelector"]["matchExpressions"] == [{"key": names.PART, "operator": "In", "values": ["gateway", "operator"]}]
    assert theirs == peer
    assert of(POLICIES, entry(onnx()), replace(CHOSEN, network_policies=False)) == []


def test_a_policy_narrows_what_workers_dial_where_the_settings_say_so() -> None:
    store: Data = {"to": [{"podSelector": {}}], "ports": [{"port": 2379, "protocol": "TCP"}]}
    [made] = of(POLICIES, entry(onnx()), replace(CHOSEN, egress_to=(store,)))
    assert (made["spec"]["policyTypes"], made["spec"]["egress"]) == (["Ingress", "Egress"], [store])
    [plain] = of(POLICIES, entry(onnx()))
    assert "egress" not in plain["spec"], "with the type and without a rule it would reach nothing"


def test_a_budget_lets_one_worker_go_also_the_only_one() -> None:
    [made] = of(BUDGETS, entry(onnx(minReplicas=1)))
    assert made["spec"] == {
        "maxUnavailable": 1,
        "selector": {"matchLabels": names.selector("u")},
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
    }


def test_a_functions_service_leads_to_the_gateway_and_its_workers_have_one_of_their_own() -> None:
    entrance, workers = of(SERVICES, entry(named(onnx(), "f")), replace(CHOSEN, gateway="g.sys.svc", gateway_port=81))
    assert entrance["metadata"]["name"] == "f"
    assert (entrance["spec"]["type"], entrance["spec"]["externalName"]) == ("ExternalName", "g.sys.svc")
    assert [port["port"] for port in entrance["spec"]["ports"]] == [81]
    assert workers["spec"]["clusterIP"] == "None"
    assert workers["spec"]["selector"] == names.selector("u")
