"""What a function's pods may ask for: strict unless the installation says otherwise, and never what is Dormouse's own."""

from typing import Any

import msgspec
import pytest
from dormouse_core import policies
from dormouse_core.policies import NotAllowed, Own, Policy
from dormouse_core.spec import Workers, spec_from_json
from dormouse_operator.kubernetes.objects import names
from dormouse_operator.kubernetes.objects.manifests import build_all, proved
from dormouse_operator.kubernetes.settings import ClusterSettings
from dormouse_testing.cluster_objects import PERMISSIVE, entry
from dormouse_testing.manifests import Data, onnx, python

OWN = Own("system", "dormouse:1", ("dormouse-*", "data-dormouse-etcd-*", "sh.helm.release.*", "etcd-tls"))
DIGEST = f"sha256:{'0' * 64}"


def found(workers: Data, policy: Policy | None = None, *, namespace: str = "team", uri: str = "file://m.onnx") -> list[str]:
    spec = spec_from_json(entry(onnx(workers=workers, model={"uri": uri})).spec)
    return list(policies.refusals(policy or Policy(), OWN, namespace, spec))


def secret_in(place: str, name: str) -> Data:
    """The ways to a Secret's content."""
    return {
        "env": {"env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": name, "key": "password"}}}]},
        "envFrom": {"envFrom": [{"secretRef": {"name": name}}]},
        "volumes": {"volumes": [{"name": "v", "mountPath": "/v", "secret": {"secretName": name}}]},
        "imagePullSecrets": {"imagePullSecrets": [{"name": name}]},
    }[place]


def config_map_in(place: str, name: str) -> Data:
    return {
        "env": {"env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": name, "key": "spec.json"}}}]},
        "envFrom": {"envFrom": [{"configMapRef": {"name": name}}]},
        "volumes": {"volumes": [{"name": "v", "mountPath": "/v", "configMap": {"name": name}}]},
    }[place]


SECRETS = ("env", "envFrom", "volumes", "imagePullSecrets")
CONFIG_MAPS = ("env", "envFrom", "volumes")
ASKED: dict[str, tuple[Data, str]] = {
    "serviceAccounts": ({"serviceAccountName": "admin"}, "spec.workers.serviceAccountName: the service account"),
    "priorityClasses": ({"priorityClassName": "system-node-critical"}, "spec.workers.priorityClassName: the priority class"),
    "runtimeClasses": ({"runtimeClassName": "runc-privileged"}, "spec.workers.runtimeClassName: the runtime class"),
    "schedulers": ({"schedulerName": "mine"}, "spec.workers.schedulerName: the scheduler"),
    "users": ({"securityContext": {"runAsUser": 1000}}, "spec.workers.securityContext.runAsUser: \"1000\" found"),
    "secrets": (secret_in("env", "token"), "spec.workers.env[0].valueFrom.secretKeyRef: the Secret"),
    "claims": (
        {"volumes": [{"name": "v", "mountPath": "/v", "persistentVolumeClaim": {"claimName": "database"}}]},
        "spec.workers.volumes[0]: the claim",
    ),
    "images": ({"image": "evil.example/worker:1"}, "spec.workers.image:"),
    "labels": ({"labels": {"app": "shop"}}, "spec.workers.labels:"),
    "annotations": ({"annotations": {"k8s.v1.cni.cncf.io/networks": "other"}}, "spec.workers.annotations:"),
    "tolerations": ({"tolerations": [{"key": "node-role.kubernetes.io/control-plane", "operator": "Exists"}]}, "spec.workers.tolerations:"),
}  # fmt: skip


@pytest.mark.parametrize("field", ASKED)
def test_what_a_creator_could_reach_is_refused_unless_the_policy_allows_it(field: str) -> None:
    workers, told = ASKED[field]
    [said] = found(workers)
    assert said.startswith(told)
    assert said.endswith(f"the installation allows none (workers.policy.{field})")
    assert found(workers, PERMISSIVE) == []
    alone = msgspec.convert({field: ["*"], "configMaps": []}, Policy)
    assert found(workers, alone) == [], "one field of the policy decides it"


def test_every_field_of_the_policy_is_asked() -> None:
    decided = {*ASKED, "configMaps", "imageDigests"}
    assert {each.encode_name for each in msgspec.structs.fields(Policy)} == decided


def test_every_field_of_a_functions_pods_is_judged_or_harms_its_own_pods_alone() -> None:
    """A new field of `spec.workers` is put in one of the two."""
    judged = {
        "image", "env", "envFrom", "tolerations", "affinity", "labels", "annotations", "imagePullSecrets", "serviceAccountName",
        "priorityClassName", "runtimeClassName", "schedulerName", "securityContext", "volumes",
    }  # fmt: skip
    own_alone = {"resources", "nodeSelector", "topologySpreadConstraints"}
    assert set(Workers.__struct_encode_fields__) == judged | own_alone


def test_every_id_of_a_pod_is_asked_about_and_the_usual_scheduler_is_not() -> None:
    ids = {"runAsUser": 1, "runAsGroup": 2, "fsGroup": 3, "supplementalGroups": [4, 5]}
    said = found({"securityContext": {**ids, "fsGroupChangePolicy": "Always"}, "schedulerName": "default-scheduler"})
    assert [each.partition(" found")[0].rpartition(" ")[2] for each in said] == ['"1"', '"2"', '"3"', '"4"', '"5"']
    assert len(found({"securityContext": ids}, Policy(users=("1", "2", "3", "4*")))) == 1


@pytest.mark.parametrize("uri", ["pvc://database/x.onnx", "configmap://settings/x.onnx"])
def test_a_models_place_is_named_too(uri: str) -> None:
    [said] = found({}, Policy(config_maps=()), uri=uri)
    assert said.startswith("spec.model.uri: the c" if uri.startswith("pvc") else "spec.model.uri: the ConfigMap")
    assert found({}, PERMISSIVE, uri=uri) == []


# ------------------------------------------------------------------------------------------------------------------ Dormouse's own


@pytest.mark.parametrize("place", SECRETS)
def test_another_functions_user_in_the_store_is_refused_whatever_the_policy(place: str) -> None:
    [said] = found(secret_in(place, names.secret("victim")), PERMISSIVE)
    assert said.endswith('the Secret "victim-store" found, it is Dormouse\'s own: no function may name it')
    assert found(secret_in(place, "restore"), PERMISSIVE) == []


@pytest.mark.parametrize("place", CONFIG_MAPS)
def test_another_functions_spec_is_refused_whatever_the_policy(place: str) -> None:
    [said] = found(config_map_in(place, names.deployment("victim", entry(onnx()).revision)), PERMISSIVE)
    assert "it is Dormouse's own" in said
    assert found(config_map_in(place, "settings"), PERMISSIVE) == []


def test_another_functions_spec_is_no_model() -> None:
    [said] = found({}, PERMISSIVE, uri=f"configmap://{names.deployment('victim', entry(onnx()).revision)}/spec.json")
    assert said.startswith("spec.model.uri: the ConfigMap")


@pytest.mark.parametrize("name", ["dormouse-etcd-passwords", "sh.helm.release.v1.dormouse.v1", "etcd-tls"])
def test_what_the_installation_consists_of_is_refused_in_its_namespace_whatever_the_policy(name: str) -> None:
    for place in SECRETS:
        assert "it is Dormouse's own" in found(secret_in(place, name), PERMISSIVE, namespace="system")[0]
        assert found(secret_in(place, name), PERMISSIVE) == [], "elsewhere it is somebody else's"


def test_nor_its_volumes_and_accounts() -> None:
    claim = {"volumes": [{"name": "v", "mountPath": "/v", "persistentVolumeClaim": {"claimName": "data-dormouse-etcd-0"}}]}
    for workers in (claim, {"serviceAccountName": "dormouse-operator"}):
        assert "it is Dormouse's own" in found(workers, PERMISSIVE, namespace="system")[0]
    assert "it is Dormouse's own" in found({}, PERMISSIVE, namespace="system", uri="pvc://data-dormouse-etcd-0/m.onnx")[0]


# ------------------------------------------------------------------------------------------------------------------ patterns


def test_a_pattern_with_a_namespace_holds_there_alone_and_is_told_there_alone() -> None:
    policy = Policy(secrets=("team/aws-*", "shared"))
    assert found(secret_in("env", "aws-keys"), policy) == []
    assert found(secret_in("env", "shared"), policy, namespace="other") == []
    [said] = found(secret_in("env", "aws-keys"), policy, namespace="other")
    assert said.endswith("the installation allows shared (workers.policy.secrets)")


@pytest.mark.parametrize(
    ("pattern", "image", "allowed"),
    [
        ("registry.example/*", "registry.example/a/b:1", True),
        ("registry.example/*", "registry.example.evil/a:1", False),
        ("registry.example/*", "registryxexample/a:1", False),
        ("registry.example/a", "registry.example/a:1", False),
        ("[ab]", "a", False),
        ("registry.example/*", "evil.example/registry.example/a", False),
    ],
)
def test_a_star_stands_for_any_characters_and_nothing_else_for_others(pattern: str, image: str, allowed: bool) -> None:
    assert (found({"image": image}, Policy(images=(pattern,))) == []) is allowed


def test_an_image_can_be_held_to_its_digest() -> None:
    policy = Policy(images=("r/*",), image_digests=True)
    assert found({"image": f"r/a@{DIGEST}"}, policy) == found({"image": f"r/a:1@{DIGEST}"}, policy) == []
    for image in ("r/a:1", "r/a@sha256:00", f"r/a@{DIGEST}0"):
        [said] = found({"image": image}, policy)
        assert "name@sha256:... is allowed" in said
    assert found({"image": OWN.image}, policy) == [], "the installation's own is its values' to pin"


def test_a_toleration_of_every_taint_needs_the_star() -> None:
    every: Data = {"tolerations": [{"operator": "Exists"}]}
    assert "a toleration of every taint" in found(every, Policy(tolerations=("gpu",)))[0]
    assert found(every, Policy(tolerations=("*",))) == []
    assert found({"tolerations": [{"key": "gpu"}]}, Policy(tolerations=("gpu",))) == []


@pytest.mark.parametrize("kind", ["podAffinity", "podAntiAffinity"])
@pytest.mark.parametrize("scope", [{"namespaceSelector": {}}, {"namespaces": ["shop"]}])
def test_nobody_elses_pods_are_kept_off_a_node(kind: str, scope: Data) -> None:
    term: Data = {"topologyKey": "topology.kubernetes.io/zone", "labelSelector": {}, **scope}
    for rules in (
        {"requiredDuringSchedulingIgnoredDuringExecution": [term]},
        {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1, "podAffinityTerm": term}]},
    ):
        [said] = found({"affinity": {kind: rules}}, PERMISSIVE)
        assert said.startswith(f"spec.workers.affinity.{kind}.")
    del term[next(iter(scope))]
    assert found({"affinity": {kind: {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}}) == []


def test_what_every_function_may_have() -> None:
    assert found({"serviceAccountName": "default", "nodeSelector": {"disk": "ssd"}, "resources": {"limits": {"cpu": 1}}}) == []
    assert found({"env": [{"name": "A", "value": "a"}, {"name": "B", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}]}) == []
    assert found({"volumes": [{"name": "v", "mountPath": "/v", "emptyDir": {}}], "image": OWN.image}) == []
    assert found(config_map_in("volumes", "code")) == []


@pytest.mark.parametrize("odd", [{"secretRef": "name"}, {"secretRef": {"name": ["a-store"]}}, {"secretRef": {}}])
def test_what_is_no_name_is_allowed_by_no_name(odd: Any) -> None:
    assert found({"envFrom": [odd]}, Policy(secrets=("name", "a-*"))) != []


# ------------------------------------------------------------------------------------------------------------------ where it is asked

THIEF: Data = secret_in("volumes", "victim-store")


def sources(manifests: list[Data]) -> set[str]:
    pods = [each["spec"]["template"]["spec"] for each in manifests if each["kind"] == "Deployment"]
    return {volume["secret"]["secretName"] for pod in pods for volume in pod["volumes"] if "secret" in volume}


def test_nothing_is_made_of_a_function_that_asks_for_what_it_may_not_have() -> None:
    with pytest.raises(NotAllowed, match="victim-store"):
        build_all(entry(python(workers=THIEF)), ClusterSettings(policy=PERMISSIVE))


def test_negative_control_without_the_policy_its_pod_has_anothers_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policies, "check", lambda *_: None)
    assert "victim-store" in sources(build_all(entry(python(workers=THIEF)), ClusterSettings()))


def test_what_was_proved_under_an_older_policy_does_not_stand_in_the_way_of_what_mends_it() -> None:
    before, mended = entry(python(workers={"serviceAccountName": "admin"})), entry(python(maxConcurrency=7))
    mended.proved_spec, mended.proved_revision = before.spec, before.revision
    assert proved(mended) is not None
    made = build_all(mended, ClusterSettings())
    assert [each["metadata"]["labels"][names.REVISION] for each in made if each["kind"] == "Deployment"] == [mended.revision]
    made = build_all(mended, ClusterSettings(policy=PERMISSIVE))
    assert len([each for each in made if each["kind"] == "Deployment"]) == 2
