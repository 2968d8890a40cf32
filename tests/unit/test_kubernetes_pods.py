"""Every pod that is made of a valid function passes Pod Security's `restricted`, and what a function sets replaces nothing of it."""

import copy
import math
import posixpath
from dataclasses import replace
from typing import Any

import pytest
from dormouse_core.errors import InvalidArgument
from dormouse_core.limits import TERMINATION_GRACE_SECONDS
from dormouse_core.policies import Policy
from dormouse_core.spec import Workers, spec_from_json
from dormouse_operator.kubernetes.objects.pod import PORT, build_pod_template
from dormouse_operator.kubernetes.settings import ClusterSettings, Defaults
from dormouse_testing.cluster_objects import PERMISSIVE, entry
from dormouse_testing.manifests import Data, onnx, python
from hypothesis import given, settings
from hypothesis import strategies as st

URIS = (
    "file://m.onnx", "https://h/m.onnx", "s3://b/m/", "gs://b/m.onnx", "hf://o/r@v1/m.onnx", "pvc://claim/m.onnx", "pvc://claim/",
    "configmap://name/m.onnx", "configmap://name",
)  # fmt: skip
APP_ARMOR = "container.apparmor.security.beta.kubernetes.io/worker"
RESERVED = ("/etc/dormouse", "/mnt/model", "/var/lib/dormouse", "/tmp", "/dev", "/proc", "/sys")
VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}


def template(manifest: Data, chosen: ClusterSettings | None = None) -> Data:
    found = entry(manifest)
    return build_pod_template(found, spec_from_json(found.spec), chosen or ClusterSettings(policy=PERMISSIVE), store={})


# ------------------------------------------------------------------------------------------------------------------ the standard


def faults(pod: Data) -> set[str]:
    """What `restricted`, with the `baseline` that it includes, refuses (https://kubernetes.io/docs/concepts/security/pod-security-standards)."""
    spec, whole = pod["spec"], pod["spec"].get("securityContext", {})
    containers = [*spec["containers"], *spec.get("initContainers", ()), *spec.get("ephemeralContainers", ())]
    found = {name for name in ("hostNetwork", "hostPID", "hostIPC") if spec.get(name)}
    found |= {f"volume {kind}" for volume in spec.get("volumes", ()) for kind in volume if kind != "name" and kind not in VOLUMES}
    found |= {
        name
        for name, profile in (pod["metadata"].get("annotations") or {}).items()
        if name.startswith("container.apparmor.security.beta.kubernetes.io/")
        and not (profile == "runtime/default" or profile.startswith("localhost/"))
    }
    found |= {"sysctls"} if whole.get("sysctls") else set()
    for context in (whole, *(each.get("securityContext", {}) for each in containers)):
        seccomp, armor = context.get("seccompProfile", {}).get("type"), context.get("appArmorProfile", {}).get("type")
        found |= {"seccompProfile"} if seccomp not in (None, "RuntimeDefault", "Localhost") else set()
        found |= {"appArmorProfile"} if armor not in (None, "RuntimeDefault", "Localhost") else set()
        found |= {name for name in ("seLinuxOptions", "windowsOptions", "privileged") if context.get(name)}
        found |= {"procMount"} if context.get("procMount", "Default") != "Default" else set()
        found |= {"runAsUser"} if context.get("runAsUser") == 0 else set()
        found |= {"runAsNonRoot"} if context.get("runAsNonRoot", True) is not True else set()
    for each in containers:
        context = each.get("securityContext", {})
        capabilities = context.get("capabilities", {})
        found |= {"allowPrivilegeEscalation"} if context.get("allowPrivilegeEscalation") is not False else set()
        found |= {"drop"} if "ALL" not in capabilities.get("drop", ()) else set()
        found |= {"add"} if set(capabilities.get("add", ())) - {"NET_BIND_SERVICE"} else set()
        found |= {"runAsNonRoot"} if not (context.get("runAsNonRoot") or whole.get("runAsNonRoot")) else set()
        found |= {"seccompProfile"} if not (context.get("seccompProfile") or whole.get("seccompProfile")) else set()
        found |= {"hostPort"} if any(port.get("hostPort") for port in each.get("ports", ())) else set()
        probes = (each.get(name, {}) for name in ("startupProbe", "readinessProbe", "livenessProbe"))
        found |= {"host"} if any(probe.get("httpGet", {}).get("host") for probe in probes) else set()
    return found


def house_faults(pod: Data, step: float) -> set[str]:
    """What we promise beyond the standard."""
    spec, [worker] = pod["spec"], pod["spec"]["containers"]
    probe, ready = {"path": "/probe", "port": PORT}, {"path": "/probe?ready=1", "port": PORT}
    kept = {
        "readOnlyRootFilesystem": worker["securityContext"].get("readOnlyRootFilesystem") is True,
        "automountServiceAccountToken": spec.get("automountServiceAccountToken") is False,
        "shareProcessNamespace": spec.get("shareProcessNamespace") is True,
        "grace": spec.get("terminationGracePeriodSeconds") == math.ceil(step + TERMINATION_GRACE_SECONDS),
        "probes": all(worker[name]["httpGet"] == probe for name in ("startupProbe", "livenessProbe"))
        and worker["readinessProbe"]["httpGet"] == ready,
        "mounts": {mount["name"] for mount in worker["volumeMounts"]} == {volume["name"] for volume in spec["volumes"]},
        "folders": not [
            mount["mountPath"]
            for mount in worker["volumeMounts"]
            if not mount["name"].startswith("dormouse-")
            and f"{posixpath.normpath('/' + mount['mountPath'].lstrip('/'))}/".startswith(("//", *(f"{path}/" for path in RESERVED)))
        ],
    }
    return {name for name, holds in kept.items() if not holds}


# ------------------------------------------------------------------------------------------------------------------ every valid function

TEXT = st.text("abz09", min_size=1, max_size=5)
PATHS = st.lists(st.sampled_from([".", "..", "", "tmp", "etc", "dormouse", "mnt", "model", "proc", "sys", "x"]), max_size=4)
SOURCES = st.sampled_from(
    [{"persistentVolumeClaim": {"claimName": "c"}}, {"secret": {"secretName": "s"}}, {"configMap": {"name": "c"}}, {"emptyDir": {}}]
)
OBJECTS = st.dictionaries(TEXT, TEXT, max_size=2)
VOLUME = st.builds(lambda path, source: {"mountPath": "/" + "/".join(path), **source}, PATHS, SOURCES)
ANNOTATIONS = st.dictionaries(st.sampled_from(["a", APP_ARMOR]), st.sampled_from(["", "b", "unconfined", "runtime/default"]), max_size=2)
ENV = st.one_of(st.builds(lambda v: {"value": v}, TEXT), st.just({"valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}))
IDS = st.integers(1, 2**31 - 1)
WORKERS = st.fixed_dictionaries(
    {},
    optional={
        "image": TEXT,
        "labels": OBJECTS,
        "annotations": ANNOTATIONS,
        "nodeSelector": OBJECTS,
        "serviceAccountName": TEXT,
        "priorityClassName": TEXT,
        "runtimeClassName": TEXT,
        "schedulerName": TEXT,
        "securityContext": st.fixed_dictionaries(
            {}, optional={"runAsUser": IDS, "runAsGroup": IDS, "fsGroup": IDS, "supplementalGroups": st.lists(IDS, max_size=2)}
        ),
        "affinity": OBJECTS,
        "tolerations": st.lists(OBJECTS, max_size=2),
        "topologySpreadConstraints": st.lists(OBJECTS, max_size=2),
        "envFrom": st.lists(OBJECTS, max_size=2),
        "imagePullSecrets": st.lists(OBJECTS, max_size=2),
        "resources": st.fixed_dictionaries({}, optional={"limits": OBJECTS, "requests": OBJECTS}),
        "env": st.dictionaries(st.sampled_from(["A", "POD_IP", "TMPDIR", "PATH"]), ENV, max_size=3).map(
            lambda found: [{"name": name, **each} for name, each in found.items()]
        ),
        "volumes": st.lists(VOLUME, max_size=2).map(lambda found: [{"name": f"v{n}", **each} for n, each in enumerate(found)]),
    },
)
CHOSEN = st.builds(
    ClusterSettings, policy=st.just(PERMISSIVE), store_auth=st.booleans(), store_ca=st.sampled_from(["", "PEM"]),
    image_pull_secrets=st.sampled_from([(), ("pull",)]),
)  # fmt: skip
STEPS = st.integers(1, 24 * 3600 * 1000)


@settings(max_examples=250, deadline=None)
@given(st.sampled_from(URIS), WORKERS, STEPS, CHOSEN)
def test_a_pod_of_any_valid_function_is_restricted_or_is_refused_by_us(uri: str, workers: Data, step: int, chosen: ClusterSettings) -> None:
    refused = ""
    try:
        found = template(onnx(model={"uri": uri}, workers=workers, timeouts={"step": f"{step}ms"}), chosen)
    except InvalidArgument as error:
        refused = str(error)
    if refused:
        assert refused.startswith("spec.workers.")
        return
    assert faults(found) == set()
    assert house_faults(found, step / 1000) == set()


@pytest.mark.parametrize("uri", [*URIS, None])
def test_a_pod_is_restricted_wherever_its_model_lies(uri: str | None) -> None:
    found = template(python() if uri is None else onnx(model={"uri": uri}))
    assert (faults(found), house_faults(found, 60.0)) == (set(), set())


BREACHES: dict[str, tuple[list[Any], Any]] = {
    "hostNetwork": (["spec", "hostNetwork"], True),
    "volume hostPath": (["spec", "volumes", 0, "hostPath"], {"path": "/"}),
    "runAsNonRoot": (["spec", "securityContext", "runAsNonRoot"], False),
    "runAsUser": (["spec", "securityContext", "runAsUser"], 0),
    "seccompProfile": (["spec", "securityContext", "seccompProfile"], {"type": "Unconfined"}),
    "privileged": (["spec", "containers", 0, "securityContext", "privileged"], True),
    "allowPrivilegeEscalation": (["spec", "containers", 0, "securityContext", "allowPrivilegeEscalation"], None),
    "drop": (["spec", "containers", 0, "securityContext", "capabilities"], {}),
    "add": (["spec", "containers", 0, "securityContext", "capabilities", "add"], ["SYS_ADMIN"]),
    "hostPort": (["spec", "containers", 0, "ports", 0, "hostPort"], 80),
    APP_ARMOR: (["metadata", "annotations", APP_ARMOR], "unconfined"),
    "readOnlyRootFilesystem": (["spec", "containers", 0, "securityContext", "readOnlyRootFilesystem"], False),
    "automountServiceAccountToken": (["spec", "automountServiceAccountToken"], None),
    "shareProcessNamespace": (["spec", "shareProcessNamespace"], False),
    "grace": (["spec", "terminationGracePeriodSeconds"], 30),
    "probes": (["spec", "containers", 0, "livenessProbe", "httpGet", "path"], "/"),
}


@pytest.mark.parametrize("breach", BREACHES)
def test_negative_control_each_breach_is_found(breach: str) -> None:
    (*path, last), value = BREACHES[breach]
    pod = node = copy.deepcopy(template(onnx()))
    for key in path:
        node = node[key]
    node[last] = value
    assert faults(pod) | house_faults(pod, 60.0) == {breach}


# ------------------------------------------------------------------------------------------------------------------ what a function sets


def test_a_function_does_not_take_off_its_confinement() -> None:
    for profile in ("runtime/default", "localhost/stricter"):
        assert faults(template(onnx(workers={"annotations": {APP_ARMOR: profile}}))) == set()
    with pytest.raises(InvalidArgument, match=r"spec\.workers\.annotations: .*'unconfined' found, runtime/default or localhost"):
        template(onnx(workers={"annotations": {APP_ARMOR: "unconfined"}}))


def test_what_a_function_sets_replaces_none_of_our_labels_and_variables() -> None:
    theirs = {"app.kubernetes.io/managed-by": "me", "mine": "yes"}
    env = [{"name": name, "value": "theirs"} for name in ("POD_NAME", "POD_IP", "TMPDIR", "MINE")]
    found = template(onnx(workers={"labels": theirs, "env": env}))
    labels, [worker] = found["metadata"]["labels"], found["spec"]["containers"]
    assert (labels["app.kubernetes.io/managed-by"], labels["mine"]) == ("dormouse", "yes")
    assert [each["name"] for each in worker["env"] if each.get("value") == "theirs"] == ["MINE"]
    assert len({each["name"] for each in worker["env"]}) == len(worker["env"])


def test_a_variable_has_a_value_or_a_source_and_not_both() -> None:
    found = template(onnx(workers={"env": [{"name": "A", "valueFrom": {"fieldRef": {}}}, {"name": "B", "value": ""}]}))
    assert found["spec"]["containers"][0]["env"][:2] == [{"name": "A", "valueFrom": {"fieldRef": {}}}, {"name": "B", "value": ""}]


PLATFORM = Defaults(
    node_selector={"pool": "gpu"},
    tolerations=[{"key": "gpu", "operator": "Exists"}],
    priority_class_name="batch",
    runtime_class_name="gvisor",
    scheduler_name="volcano",
)


def test_where_a_function_says_nothing_its_pods_have_what_the_platform_says_whatever_the_policy_allows() -> None:
    settings = ClusterSettings(defaults=PLATFORM, models_size="20Gi", image_pull_secrets=("mirror",), policy=Policy(config_maps=()))
    found = pod_of(onnx(), settings)
    assert found["nodeSelector"] == {"pool": "gpu"}
    assert found["tolerations"] == PLATFORM.tolerations
    assert (found["priorityClassName"], found["runtimeClassName"], found["schedulerName"]) == ("batch", "gvisor", "volcano")
    assert found["imagePullSecrets"] == [{"name": "mirror"}]
    assert {"name": "dormouse-models", "emptyDir": {"sizeLimit": "20Gi"}} in found["volumes"]
    own = {
        "nodeSelector": {"a": "b"},
        "tolerations": [{"key": "mine"}],
        "priorityClassName": "p",
        "runtimeClassName": "r",
        "schedulerName": "s",
    }
    found = pod_of(onnx(workers=own), replace(settings, policy=PERMISSIVE))
    assert {name: found[name] for name in own} == {**own, "tolerations": [{"key": "mine"}, *PLATFORM.tolerations]}
    assert "runtimeClassName" not in pod_of(onnx(), ClusterSettings()), "nobody has said anything"


def test_a_pod_is_nobodys_root_whoever_says_whom_it_runs_as() -> None:
    given = {"runAsUser": 1000, "fsGroup": 2000, "supplementalGroups": [3000], "fsGroupChangePolicy": "Always"}
    both = pod_of(onnx(workers={"securityContext": given}), ClusterSettings(policy=PERMISSIVE))["securityContext"]
    assert both == {**given, "runAsGroup": 65532, "runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    chosen = pod_of(onnx(), ClusterSettings(ids={"runAsGroup": 0}))["securityContext"]
    assert "runAsUser" not in chosen, "OpenShift gives each namespace ids of its own and refuses others"
    assert (chosen["runAsGroup"], chosen["runAsNonRoot"]) == (0, True)


def pod_of(manifest: Data, settings: ClusterSettings) -> Any:
    return build_pod_template(entry(manifest), spec_from_json(entry(manifest).spec), settings, store={})["spec"]


def test_whatever_a_function_may_set_is_in_its_pod() -> None:
    """A field of `spec.workers` that nobody reads would be a promise that is not kept."""
    given: Data = {
        "image": "i:1", "serviceAccountName": "sa", "priorityClassName": "pc", "nodeSelector": {"a": "node"},
        "tolerations": [{"key": "taint"}], "affinity": {"podAffinity": {}}, "topologySpreadConstraints": [{"maxSkew": 7}],
        "labels": {"l": "label"}, "annotations": {"n": "note"}, "imagePullSecrets": [{"name": "pull"}], "envFrom": [{"prefix": "P"}],
        "env": [{"name": "E", "value": "v"}], "resources": {"limits": {"cpu": 3}},
        "volumes": [{"name": "w", "mountPath": "/w", "emptyDir": {}}], "runtimeClassName": "rc", "schedulerName": "s",
        "securityContext": {"runAsUser": 7, "supplementalGroups": [8]},
    }  # fmt: skip
    assert set(given) == set(Workers.__struct_encode_fields__)
    plain = template(onnx())
    for name, value in given.items():
        assert template(onnx(workers={name: value})) != plain, name


@pytest.mark.parametrize(
    ("timeouts", "misses"), [({}, 18), ({"step": "1s"}, 7), ({"step": "10m", "hang": "30s"}, 12), ({"hang": "10m"}, 126)]
)
def test_the_kubelet_is_more_patient_than_the_supervisor(timeouts: dict[str, str], misses: int) -> None:
    """A step that may hold the interpreter silences the liveness probe too."""
    probe = template(onnx(timeouts=timeouts))["spec"]["containers"][0]["livenessProbe"]
    assert (probe["periodSeconds"], probe["failureThreshold"]) == (5, misses)
