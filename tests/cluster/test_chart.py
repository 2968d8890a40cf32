"""The chart without a cluster: what it renders to, for many values, and what its schema refuses."""

import argparse
import fnmatch
import itertools
import json
import re
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from dormouse import main
from dormouse_core import storage
from dormouse_core.claims import Claim
from dormouse_core.limits import CERTIFICATE_DAYS, PASSWORD_DAYS
from dormouse_core.policies import Policy
from dormouse_gateway import settings as gateway_settings
from dormouse_operator.kubernetes import options, secret_options
from dormouse_operator.kubernetes.members import __main__ as members
from dormouse_operator.kubernetes.members import admitting, restarting
from dormouse_operator.kubernetes.settings import ClusterSettings, Defaults
from dormouse_operator.kubernetes.watching.claiming import own_claim
from dormouse_testing.cluster.charts import Object, Refused, Rendered, containers, render
from dormouse_testing.cluster.client import CHART
from dormouse_testing.cluster.layout import ROOT

EXTERNAL = ("etcd.enabled=false", "etcd.external.endpoints={etcd-0.example:2379,etcd-1.example:2379}")
SECURED = (*EXTERNAL, "etcd.external.tlsSecret=etcd-tls", "etcd.external.usersSecret=etcd-users")
MATRIX = [
    tuple(value for value in chosen if value)
    for chosen in itertools.product(
        ("", "singleNode=true"),
        ("", "etcd.persistence.enabled=false,etcd.persistence.acceptLoss=true"),
        ("", "networkPolicies.enabled=false"),
        ("", "namespaces={a,b}"),
    )
] + [
    EXTERNAL,
    SECURED,
    ("backup.enabled=true",),
    (*SECURED, "backup.enabled=true", "backup.to=s3://b/x"),
    ("crds.install=false", "operator.replicas=3", "gateway.service.type=LoadBalancer"),
]


@pytest.fixture(scope="session")
def default(helm: str) -> Rendered:
    return render(helm)


@pytest.mark.parametrize("values", MATRIX, ids=lambda values: ",".join(values) or "default")
def test_pods_of_any_values_are_restricted(helm: str, values: tuple[str, ...]) -> None:
    pods = list(render(helm, *values).pods())
    assert len(pods) == (3 if "etcd.enabled=false" in values else 4) + 2 * ("backup.enabled=true" in values)
    for name, pod in pods:
        security = pod["spec"]["securityContext"]
        assert security["runAsNonRoot"] is True, name
        assert security["runAsUser"] == security["runAsGroup"] == security["fsGroup"] == 65532, name
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert pod["spec"].get("automountServiceAccountToken") is False or name.endswith("-operator"), name
        assert pod["spec"].get("shareProcessNamespace") is True or name.endswith("-test"), "or a SIGTERM at its start is lost"
        for container in containers(pod):
            inner = container["securityContext"]
            assert inner["allowPrivilegeEscalation"] is False, name
            assert inner["readOnlyRootFilesystem"] is True, name
            assert inner["capabilities"] == {"drop": ["ALL"]}, name
            assert container["resources"]["limits"]["memory"], name


def aggregated(role: Object) -> bool:
    """Kubernetes adds it to its own roles; it is bound to nobody."""
    return any(name.startswith("rbac.authorization.k8s.io/aggregate-to-") for name in role["metadata"]["labels"])


def test_who_may_edit_a_namespace_may_make_functions_there_and_who_may_view_it_sees_them(default: Rendered, helm: str) -> None:
    """And no more: neither writes a status, which is the operator's, nor what a function consists of."""
    roles = {role["metadata"]["name"]: role for role in default.all("ClusterRole") if aggregated(role)}
    assert set(roles) == {"system-dormouse-functions-edit", "system-dormouse-functions-view"}
    found = set[tuple[str, str, str]]()
    for role in roles.values():
        for label, value in role["metadata"]["labels"].items():
            if label.startswith("rbac"):
                assert value == "true"
                to = label.rpartition("-")[2]
                found |= {(to, each, verb) for rule in role["rules"] for each in rule["resources"] for verb in rule["verbs"]}
        assert {group for rule in role["rules"] for group in rule["apiGroups"]} == {"dormouse.dev"}
    objects, scale, status = "inferencefunctions", "inferencefunctions/scale", "inferencefunctions/status"
    reads, writes = {"get", "list", "watch"}, {"create", "delete", "deletecollection", "patch", "update"}
    expected = {(to, objects, verb) for to in ("edit", "admin") for verb in reads | writes}
    expected |= {(to, scale, verb) for to in ("edit", "admin") for verb in ("get", "patch", "update")}
    expected |= {("view", objects, verb) for verb in reads} | {("view", scale, "get"), ("view", status, "get")}
    assert found == expected
    assert not [role for role in render(helm, "roles.aggregate=false").all("ClusterRole") if aggregated(role)]


def test_ids_are_the_values_or_the_platforms(default: Rendered, helm: str) -> None:
    """Of the parts and of functions' pods alike."""
    absent = render(helm, "podSecurity.runAsUser=null", "podSecurity.runAsGroup=0", "podSecurity.fsGroup=null")
    for _, pod in absent.pods():
        assert pod["spec"]["securityContext"] == {"runAsNonRoot": True, "runAsGroup": 0, "seccompProfile": {"type": "RuntimeDefault"}}
    assert operator_settings(absent).ids == {"runAsGroup": 0}
    older = render(helm, "podSecurity=null", "roles=null", "workers.defaults=null", "workers.modelsSize=null")
    assert operator_settings(older) == operator_settings(default), "`helm upgrade --reuse-values` from a release without them"


def test_what_the_platform_says_of_functions_pods_reaches_the_operator(helm: str) -> None:
    words = (
        "nodeSelector.pool=gpu",
        "tolerations[0].key=gpu",
        "priorityClassName=batch",
        "runtimeClassName=gvisor",
        "schedulerName=volcano",
    )
    given = render(
        helm, *(f"workers.defaults.{word}" for word in words), "workers.defaults.imagePullSecrets[0].name=m", "workers.modelsSize=5Gi"
    )
    found = operator_settings(given)
    assert found.defaults == Defaults(
        node_selector={"pool": "gpu"}, tolerations=[{"key": "gpu"}], priority_class_name="batch", runtime_class_name="gvisor",
        scheduler_name="volcano",
    )  # fmt: skip
    assert (found.image_pull_secrets, found.models_size) == (("m",), "5Gi")


@pytest.mark.parametrize("values", MATRIX, ids=lambda values: ",".join(values) or "default")
def test_every_selector_finds_the_pods_that_it_is_for(helm: str, values: tuple[str, ...]) -> None:
    """Services, budgets and policies go by labels; each finds pods of one part, with the ports that it names."""
    rendered = render(helm, *values)
    pods = [(name, pod) for name, pod in rendered.pods() if not name.endswith(("-test", "-backup", "-restore"))]
    for each in rendered.objects:
        spec = each.get("spec", {})
        match each["kind"]:
            case "Service":
                chosen, ports = spec["selector"], [port["targetPort"] for port in spec["ports"]]
                chosen = {key: value for key, value in chosen.items() if key != "statefulset.kubernetes.io/pod-name"}
            case "NetworkPolicy":
                chosen, ports = spec["podSelector"]["matchLabels"], [port["port"] for rule in spec["ingress"] for port in rule["ports"]]
            case "PodDisruptionBudget":
                chosen, ports = spec["selector"]["matchLabels"], []
            case _:
                continue
        found = [(name, pod) for name, pod in pods if chosen.items() <= pod["metadata"]["labels"].items()]
        assert len(found) == 1, (each["kind"], each["metadata"]["name"])
        there = [port for container in containers(found[0][1]) for port in container.get("ports", [])]
        assert set(ports) <= {port[key] for port in there for key in ("name", "containerPort")}, (each["kind"], each["metadata"]["name"])


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("gateway.replicas=0", "gateway/replicas"),
        ("gateway.maxMessageBytes=67108865", "maxMessageBytes"),
        ("gateway.service.type=ExternalName", "service/type"),
        ("gateway.ownNames={Upper.Example}", "ownNames"),
        ("gateway.replica=2", "replica"),
        ("etcd.replicas=2", "etcd/replicas"),
        ("etcd.persistence.enabled=false", "etcd.persistence.enabled: false found with 3 members .etcd.replicas., true is allowed"),
        ("singleNode=yes", "singleNode"),
        ("operator.replicas=0", "operator/replicas"),
        ("etcd.quotaBytes=9000000000", "quotaBytes"),
        ("etcd.persistence.size=lots", "size"),
        ("etcd.enabled=false", "endpoints"),
        ("etcd.external.endpoints={nowhere}", "endpoints"),
        ("etcd.enabled=false,etcd.external.endpoints=null", "endpoints"),
        ("etcd.external.endpoints={etcd-0.example:2379}", "endpoints"),
        ("etcd.external.usersSecret=etcd-users", "usersSecret"),
        ("etcd.persistence.size=10ki", "size"),
        ("workers.resources.limits.memory=lots", "workers/resources/limits/memory"),
        ("operator.resources.requests.cpu=-1", "operator/resources/requests/cpu"),
        ("installation=Has Space", "installation"),
        ("namespaces={Upper}", "namespaces"),
        ("namespaceSelector.labels.a=b", "namespaceSelector"),
        ("namespaceSelector.matchExpressions[0].key=a", "operator"),
        ("namespaceSelector.matchExpressions[0].key=a,namespaceSelector.matchExpressions[0].operator=Like", "operator"),
        ("namespaces={a},namespaceSelector.matchLabels.a=b", "namespaceSelector"),
        ("image.pullPolicy=Sometimes", "pullPolicy"),
        ("networkPolicies.callers[0].podSelectors.a=b", "callers"),
        ("workers.policy.secrets=*", "workers/policy/secrets"),
        ("workers.policy.hostPath={*}", "hostPath"),
        ("image.digest=sha256:1", "image/digest"),
        ("etcd.certificates.existingSecret=Not A Name", "certificates/existingSecret"),
        ("etcd.certificates.days=0", "certificates/days"),
        ("etcd.users.days=-1", "users/days"),
        ("etcd.users.secret=x", "secret"),
        ("podSecurity.runAsUser=0", "podSecurity/runAsUser"),
        ("podSecurity.user=1", "user"),
        ("workers.defaults.hostNetwork=true", "hostNetwork"),
        ("workers.modelsSize=much", "modelsSize"),
        ("networkPolicies.workers.reach[0].host=x", "workers/reach"),
        ("unknown=1", "unknown"),
        ("backup.schedule=nightly", "backup/schedule"),
        ("backup.to=ftp://b/x", "backup/to"),
        ("backup.keep=0", "backup/keep"),
        ("backup.from=../x.db", "backup/from"),
        ("gateway.minDrainSeconds=31", "gateway.minDrainSeconds: 31 found, at most gateway.drainSeconds .30."),
    ],
)
def test_wrong_values_are_refused_by_name(helm: str, value: str, told: str) -> None:
    with pytest.raises(Refused, match=told):
        render(helm, value)


@pytest.mark.parametrize("value", ["2Gi", "512Mi", "10Ki", "1.5G", "1e9", "1073741824", "100m"])
def test_quantities_are_taken_as_kubernetes_writes_them(helm: str, value: str) -> None:
    render(helm, f"workers.resources.limits.memory={value}", f"etcd.persistence.size={value}")


def test_every_value_is_in_the_schema_and_the_other_way_round() -> None:
    def compare(values: Object, schema: Object, at: str) -> None:
        fields = schema["properties"]
        assert set(fields) - {"global"} == set(values), at
        for name, value in values.items():
            if isinstance(value, dict) and "properties" in fields[name]:
                compare(value, fields[name], f"{at}.{name}")

    compare(yaml.safe_load((CHART / "values.yaml").read_text()), json.loads((CHART / "values.schema.json").read_text()), "")


def test_the_definition_is_the_generated_one_and_outlives_the_release(default: Rendered, helm: str) -> None:
    found = default.one("CustomResourceDefinition", "inferencefunctions.dormouse.dev")
    assert found["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
    assert found == yaml.safe_load((ROOT / "crds" / "inferencefunctions.yaml").read_text())
    assert not render(helm, "crds.install=false").all("CustomResourceDefinition")


@pytest.mark.parametrize("values", [(), ("singleNode=true",), SECURED], ids=["default", "a single node", "etcd elsewhere"])
def test_rendered_twice_it_is_the_same_byte_for_byte_and_makes_no_secret(helm: str, values: tuple[str, ...]) -> None:
    """As Argo CD renders it, without a cluster, at every sync: nothing in it may be made up, nor looked up."""
    once = render(helm, *values)
    assert once.text == render(helm, *values).text
    assert not once.all("Secret"), "the operator makes them"


def test_no_template_makes_anything_up() -> None:
    """Control for the one above: what would differ, between two renderings or with a cluster and without. How many members there are is
    looked up to leave as many where nothing else is said, and to refuse fewer; who renders without a cluster says how many."""
    told = {path.name: path.read_text() for path in (CHART / "templates").rglob("*") if path.is_file()}
    for word in (
        "rand[A-Z]",
        "genCA",
        "genSignedCert",
        "genSelfSignedCert",
        "genPrivateKey",
        "uuidv4",
        "now ",
        "derivePassword",
        "htpasswd",
    ):
        assert not [name for name, text in told.items() if re.search(rf"\b{word}", text)], word
    assert sorted(name for name, text in told.items() if re.search(r"\blookup\b", text)) == ["_helpers.tpl", "statefulset.yaml"]


def test_what_holds_sessions_outlives_the_release(default: Rendered) -> None:
    """The operator's Secrets are no part of the release, and so are not removed with it."""
    etcd = default.one("StatefulSet", "dormouse-etcd")
    assert etcd["spec"]["persistentVolumeClaimRetentionPolicy"] == {"whenDeleted": "Retain", "whenScaled": "Retain"}


def test_the_gateway_takes_the_options_that_it_is_given(default: Rendered) -> None:
    """Agent and Envoy read the same command line, and read it to the end."""
    pod = default.one("Deployment", "dormouse-gateway")["spec"]["template"]
    agent, envoy = containers(pod)
    assert agent["args"] == envoy["args"]
    assert agent["restartPolicy"] == "Always"
    taken = gateway_settings.parse(agent["args"], "gateway")
    assert taken.store == tuple(f"dormouse-etcd-{number}.system.svc.cluster.local:2379" for number in range(3))
    assert taken.store_user == "dormouse-gateway/default"
    assert {"dormouse-gateway.system", "dormouse-gateway.system.svc.cluster.local"} <= taken.own_names
    assert taken.listen.endswith(":8001")
    assert taken.calls.endswith(":8003")
    service = default.one("Service", "dormouse-gateway-calls")["spec"]
    assert (service["type"], [(port["port"], port["targetPort"]) for port in service["ports"]]) == ("ClusterIP", [(8003, 8003)])
    assert operator_settings(default).gateway_calls == "dormouse-gateway-calls.system.svc.cluster.local:8003"
    assert taken.relay.startswith("127.0.0.1:"), "nobody but this pod's Envoy may reach the relay"
    assert pod["spec"]["terminationGracePeriodSeconds"] > taken.drain_seconds >= taken.min_drain_seconds > 0


def test_an_etcd_that_keeps_nobody_apart_is_for_who_says_that_there_is_one_tenant(default: Rendered, helm: str) -> None:
    for rendered, said in ((default, False), (render(helm, *SECURED, "etcd.external.oneTenant=true"), True)):
        (operator,) = rendered.one("Deployment", "dormouse-operator")["spec"]["template"]["spec"]["containers"]
        assert ("--store-one-tenant" in operator["args"]) is said


@pytest.mark.parametrize("quota", [2147483648, 16777216, 8589934592, 419430400])
def test_a_full_etcd_heals_and_is_not_ended(helm: str, quota: int) -> None:
    """6.O4: its probes take a full etcd for alive, it drops history where no operator runs, and the operator knows its quota."""
    rendered = render(helm, f"etcd.quotaBytes={quota}")
    _, etcd = containers(rendered.one("StatefulSet", "dormouse-etcd")["spec"]["template"])
    given = joining(rendered).etcd
    assert (given["quota-backend-bytes"], given["auto-compaction-retention"]) == (quota, f"{storage.retention(quota)}s")
    assert given["auto-compaction-mode"] == "periodic"
    for probe in ("startupProbe", "livenessProbe"):
        assert "exclude=NOSPACE" in etcd[probe]["httpGet"]["path"]
    assert etcd["readinessProbe"]["httpGet"]["path"] == "/readyz", "which no alarm but CORRUPT fails"
    _, operator = containers(rendered.one("Deployment", "dormouse-operator")["spec"]["template"])
    assert f"--store-quota={quota}" in operator["args"]


def test_backups_are_off_by_default_and_each_job_takes_the_options_that_it_is_given(default: Rendered, helm: str) -> None:
    assert not default.all("CronJob")
    assert not default.all("PersistentVolumeClaim")
    for values, place in ((("backup.keep=3",), "/backups/"), (("backup.to=s3://b/x", "backup.replace=true"), "s3://b/x/")):
        rendered = render(helm, "backup.enabled=true", *values)
        for name in ("backup", "restore"):
            job = rendered.one("CronJob", f"dormouse-{name}")
            (container,) = containers(job["spec"]["jobTemplate"]["spec"]["template"])
            taken = main.parser().parse_args(container["args"])
            assert (taken.command, taken.file, taken.installation, taken.store_user) == (name, place, "default", "root")
            assert taken.store == [f"dormouse-etcd-{number}.system.svc.cluster.local:2379" for number in range(3)]
            assert job["spec"]["suspend"] is (name == "restore"), "nobody's store is replaced by a clock"
        restore = render(helm, "backup.enabled=true", *values, "backup.from=one.db").one("CronJob", "dormouse-restore")
        (container,) = containers(restore["spec"]["jobTemplate"]["spec"]["template"])
        assert main.parser().parse_args(container["args"]).file == f"{place}one.db"
        policy = rendered.one("NetworkPolicy", "dormouse-etcd")
        peers = [peer["podSelector"]["matchLabels"]["dormouse.dev/part"] for peer in policy["spec"]["ingress"][0]["from"]]
        assert peers == ["operator", "gateway", "backup", "etcd", "worker"]
    claim = render(helm, "backup.enabled=true").one("PersistentVolumeClaim", "dormouse-backups")
    assert claim["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    assert not render(helm, "backup.enabled=true", "backup.claim.existing=mine").all("PersistentVolumeClaim")
    assert not rendered.all("PersistentVolumeClaim"), "a bucket needs none"


@pytest.mark.parametrize("values", [("backup.enabled=true",), ("backup.enabled=true", "backup.replace=true", "backup.to=s3://b/x")])
def test_a_release_from_before_there_were_backups_takes_them_on_with_its_own_values(
    helm: str, tmp_path: Path, values: tuple[str, ...]
) -> None:
    """As `helm upgrade --reuse-values` does, which takes the former chart's defaults; what they lack is as in a new release."""
    former = shutil.copytree(CHART, tmp_path / "chart")
    kept = yaml.safe_load((CHART / "values.yaml").read_text())
    del kept["backup"]
    (former / "values.yaml").write_text(yaml.safe_dump(kept))
    for kind in ("CronJob", "PersistentVolumeClaim"):
        assert render(helm, *values, chart=former).all(kind) == render(helm, *values).all(kind)


def test_rights_are_small(default: Rendered) -> None:
    rules = [rule for role in default.all("ClusterRole") if not aggregated(role) for rule in role["rules"]]
    assert rules
    for rule in rules:
        assert "*" not in rule["verbs"] + rule["resources"] + rule["apiGroups"]
        if "secrets" in rule["resources"]:
            assert not {"list", "watch"} & set(rule["verbs"]), "whoever can list Secrets has them all"
    [claim] = [role for role in default.all("ClusterRole") if not aggregated(role)]
    labels = claim["metadata"]["labels"]
    assert (labels["dormouse.dev/serves"], labels["dormouse.dev/installation"]) == ("all-namespaces", "default")
    assert claim["metadata"]["name"] == operator_settings(default).claim
    accounts = [pod["spec"].get("serviceAccountName") for _, pod in default.pods()]
    assert [account for account in accounts if account] == ["dormouse-operator"]


def test_no_function_may_name_what_the_release_consists_of(default: Rendered, helm: str) -> None:
    """In the release's own namespace, whatever the policy: its Secrets, ConfigMaps, volumes, accounts, and Helm's record of them all."""
    for rendered, more in (
        (
            default,
            [
                "dormouse-etcd-tls",
                "dormouse-etcd-authority",
                "dormouse-etcd-passwords",
                "data-dormouse-etcd-0",
                "sh.helm.release.v1.dormouse.v3",
            ],
        ),
        (render(helm, *SECURED), ["etcd-tls", "etcd-users"]),
    ):
        own = operator_settings(rendered).own
        made = [each for kind in ("ConfigMap", "ServiceAccount") for each in rendered.all(kind)]
        assert made
        for name in (*(each["metadata"]["name"] for each in made), *more):
            assert any(fnmatch.fnmatchcase(name, pattern) for pattern in own.reserved), name
        assert (own.namespace, own.image) == ("system", "dormouse:0.1.0")


def test_the_policy_is_strict_unless_the_values_say_otherwise(default: Rendered, helm: str) -> None:
    assert operator_settings(default).policy == Policy()
    words = ("secrets={team/aws-*}", "images={registry.example/*}", "imageDigests=true", "configMaps=null")
    changed = operator_settings(render(helm, *(f"workers.policy.{word}" for word in words))).policy
    assert changed == Policy(secrets=("team/aws-*",), images=("registry.example/*",), image_digests=True)


def test_images_are_pinned_by_digest_where_the_values_say_so(helm: str) -> None:
    digests = {name: f"sha256:{number * 64}" for name, number in (("image", "1"), ("etcd.image", "2"))}
    rendered = render(helm, *(f"{name}.digest={digest}" for name, digest in digests.items()))
    images = {container["image"] for _, pod in rendered.pods() for container in containers(pod)}
    assert images == {f"dormouse:0.1.0@{digests['image']}", f"quay.io/coreos/etcd:v3.6.16@{digests['etcd.image']}"}
    assert operator_settings(rendered).image == f"dormouse:0.1.0@{digests['image']}"


def test_where_functions_are_not_to_call_each_other_nothing_listens_for_it(helm: str) -> None:
    values = ("networkPolicies.workers.egress=true", "gateway.calls=")
    on, off = (render(helm, values[0], values[1] + value) for value in ("true", "false"))
    for rendered, calls in ((on, True), (off, False)):
        pod = rendered.one("Deployment", "dormouse-gateway")["spec"]["template"]
        assert (gateway_settings.parse(containers(pod)[0]["args"], "gateway").calls != "") is calls
        assert (operator_settings(rendered).gateway_calls != "") is calls
        assert any(service["metadata"]["name"] == "dormouse-gateway-calls" for service in rendered.all("Service")) is calls
        assert ("8003" in json.dumps(rendered.objects)) is calls


def test_what_workers_dial_is_narrowed_where_the_values_say_so(default: Rendered, helm: str) -> None:
    assert operator_settings(default).egress_to == ()
    on, cidr = "networkPolicies.workers.egress=true", "networkPolicies.workers.reach[0].ipBlock.cidr=203.0.113.0/24"
    rendered = render(helm, on, cidr)
    store, gateways, dns, reach = operator_settings(rendered).egress_to
    [to] = store["to"]
    assert to["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "system"}
    etcd = rendered.one("StatefulSet", "dormouse-etcd")["spec"]["template"]["metadata"]["labels"]
    assert to["podSelector"]["matchLabels"].items() <= etcd.items()
    assert store["ports"] == [{"port": 2379, "protocol": "TCP"}]
    assert {port["protocol"]: port["port"] for port in dns["ports"]} == {"UDP": 53, "TCP": 53}
    assert dns["to"][0]["podSelector"]["matchLabels"] == {"k8s-app": "kube-dns"}
    assert gateways["ports"] == [{"port": 8003, "protocol": "TCP"}]
    gateway = rendered.one("Deployment", "dormouse-gateway")["spec"]["template"]["metadata"]["labels"]
    assert gateways["to"][0]["podSelector"]["matchLabels"].items() <= gateway.items()
    assert reach == {"to": [{"ipBlock": {"cidr": "203.0.113.0/24"}}]}
    elsewhere = operator_settings(render(helm, on, *EXTERNAL)).egress_to
    assert elsewhere[0] == {"ports": [{"port": 2379, "protocol": "TCP"}]}


def test_values_of_an_older_release_are_taken(default: Rendered, helm: str) -> None:
    """`helm upgrade --reuse-values`: what is new is absent, and as strict and as open as by default."""
    absent = ("workers.policy=null", "etcd.fairShares=null", "networkPolicies.workers=null", "image.digest=null", "etcd.image.digest=null")
    assert operator_settings(render(helm, *absent)) == operator_settings(default)
    [agent] = [
        each["args"] for _, pod in render(helm, "gateway.maxStreams=null").pods() for each in containers(pod) if each["name"] == "agent"
    ]
    assert not [word for word in agent if word.startswith("--max-streams")]
    assert operator_settings(render(helm, "etcd.fairShares=false")).fair_shares is False


def joining(rendered: Rendered) -> argparse.Namespace:
    """What the program that runs before etcd takes from its command line."""
    first, _ = containers(rendered.one("StatefulSet", "dormouse-etcd")["spec"]["template"])
    return members.parse([word.replace("$(POD_NAME)", "dormouse-etcd-0") for word in first["args"]])


def operator_settings(rendered: Rendered) -> ClusterSettings:
    """As the operator reads them."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        file.write(rendered.one("ConfigMap", "dormouse-operator")["data"]["functions.json"])
        file.flush()
        return options.parse(["--kubernetes", "--functions", file.name]).functions


def test_how_many_of_each_part_the_defaults_and_one_line_for_a_single_node_make(default: Rendered, helm: str) -> None:
    """What a release from before had in its values stays: `helm upgrade --reuse-values`."""
    single, two = (
        render(helm, "singleNode=true"),
        render(helm, "singleNode=true", "operator.replicas=2", "gateway.replicas=3", "etcd.replicas=3"),
    )
    former = render(helm, "singleNode=null", "operator.replicas=1", "gateway.replicas=2", "etcd.replicas=1")
    for rendered, counts in ((default, (3, 2, 2)), (single, (1, 1, 1)), (two, (3, 2, 3)), (former, (1, 1, 2))):
        parts = (("StatefulSet", "etcd"), ("Deployment", "operator"), ("Deployment", "gateway"))
        found = tuple(rendered.one(kind, f"dormouse-{part}")["spec"]["replicas"] for kind, part in parts)
        assert found == counts
        services = [each["metadata"]["name"] for each in rendered.all("Service") if re.search("-etcd-[0-9]", each["metadata"]["name"])]
        assert len(services) == counts[0]
        assert bool(rendered.all("PodDisruptionBudget", "dormouse-etcd")) is (counts[0] > 1)
        assert (kept(rendered).members is not None) is (counts[0] > 1), "the operator looks after members where there are several"


def test_a_member_of_several_that_loses_its_data_with_its_pod_is_somebodys_decision(helm: str) -> None:
    lost = "etcd.persistence.enabled=false"
    with pytest.raises(Refused, match=r"Set singleNode=true or etcd\.replicas=1"):
        render(helm, lost, "etcd.replicas=3")
    for meant in ("singleNode=true", "etcd.replicas=1", "etcd.persistence.acceptLoss=true"):
        assert render(helm, lost, meant).one("StatefulSet", "dormouse-etcd")
    budget = render(helm, lost, "etcd.persistence.acceptLoss=true").one("PodDisruptionBudget", "dormouse-etcd")["spec"]
    assert budget["unhealthyPodEvictionPolicy"] == "IfHealthyBudget", (
        "a drain takes none of two that are not ready: either may have all there is"
    )


def test_members_of_etcd_start_again_for_what_is_etcds_and_not_for_a_release_of_dormouse(helm: str) -> None:
    """Our image is in etcd's pods, too: each release of it is another template, for which Kubernetes replaces none by itself. The operator
    has them go where the annotation is another."""

    def told(*words: str) -> str:
        found = render(helm, *words).one("StatefulSet", "dormouse-etcd")["spec"]
        assert found["updateStrategy"] == {"type": "OnDelete", "rollingUpdate": None}, "or no release before could be upgraded"
        digest = found["template"]["metadata"]["annotations"][restarting.DIGEST]
        assert isinstance(digest, str)
        assert digest
        return digest

    before = told()
    for same in (
        "image.tag=next",
        f"image.digest=sha256:{'0' * 64}",
        "etcd.replicas=1",
        "singleNode=true",
        "image.pullSecrets[0].name=x",
        "gateway.replicas=5",
    ):
        assert told(*same.split(" ")) == before, same
    others = (
        "etcd.image.tag=v3.6.17",
        "etcd.quotaBytes=4294967296",
        "etcd.resources.limits.memory=3Gi",
        "etcd.nodeSelector.disk=fast",
        "podSecurity.runAsUser=7",
    )
    assert len({before, *map(told, others)}) == 1 + len(others)


def test_the_operator_may_let_members_go_and_read_what_they_are_to_be(default: Rendered) -> None:
    pods = kept(default).pods
    assert pods is not None
    assert (pods.name, pods.selector) == (
        "dormouse-etcd",
        "app.kubernetes.io/instance=dormouse,app.kubernetes.io/name=dormouse,dormouse.dev/part=etcd",
    )
    rules = default.one("Role", "dormouse-operator-system")["rules"]
    assert {"apiGroups": ["apps"], "resources": ["statefulsets"], "resourceNames": ["dormouse-etcd"], "verbs": ["get"]} in rules
    names = [f"dormouse-etcd-{number}" for number in range(3)]
    assert {"apiGroups": [""], "resources": ["pods/eviction"], "resourceNames": names, "verbs": ["create"]} in rules


def test_that_there_was_a_cluster_is_remembered_in_what_the_members_see(default: Rendered) -> None:
    """And what the operator may write, and nobody's function may name."""
    pod = default.one("StatefulSet", "dormouse-etcd")["spec"]["template"]["spec"]
    wanted = kept(default).members
    assert wanted is not None
    [volume] = [each for each in pod["volumes"] if each["name"] == "formed"]
    assert volume["secret"] == {"secretName": wanted.secret, "optional": True, "defaultMode": 0o440}
    [mount] = [each["mountPath"] for each in pod["initContainers"][0]["volumeMounts"] if each["name"] == "formed"]
    assert str(joining(default).formed) == f"{mount}/{admitting.KEY}"
    assert joining(default).formed_secret == wanted.secret, "which it tells people"
    rules = default.one("Role", "dormouse-operator-system")["rules"]
    assert [rule["verbs"] for rule in rules if wanted.secret in rule.get("resourceNames", ())] == [["get"]], "and create"
    labels = default.one("StatefulSet", "dormouse-etcd")["spec"]["template"]["metadata"]["labels"]
    assert dict(pair.split("=") for pair in wanted.selector.split(",")).items() <= labels.items()


def test_who_serves_namespaces_by_their_labels_claims_not_all_of_them(helm: str) -> None:
    expression = "namespaceSelector.matchExpressions[0]"
    words = (f"{expression}.key=env", f"{expression}.operator=NotIn", f"{expression}.values={{test,dev}}")
    rendered = render(helm, "namespaceSelector.matchLabels.team=a", "installation=of-a", *words)
    settings = operator_settings(rendered)
    assert (settings.namespace_selector, settings.namespaces) == ("team=a,env notin (test,dev)", ())
    [role] = [role for role in rendered.all("ClusterRole") if not aggregated(role)]
    labels = role["metadata"]["labels"]
    assert (labels["dormouse.dev/serves"], labels["dormouse.dev/installation"]) == ("chosen-namespaces", "of-a")
    assert own_claim(replace(settings, installation="of-a")) == Claim(role["metadata"]["name"], "of-a", everywhere=False)
    rules = rendered.one("NetworkPolicy", "dormouse-etcd")["spec"]["ingress"][0]["from"]
    assert rules[-1]["namespaceSelector"] == {}, "what goes on in a namespace whose labels stop matching keeps its sessions"


def test_rights_end_at_the_namespaces_that_are_served(helm: str) -> None:
    rendered = render(helm, "namespaces={a,b}")
    assert not [role for role in rendered.all("ClusterRole") if not aggregated(role)], (
        "it is the claim of who serves all namespaces, or chooses them"
    )
    assert operator_settings(rendered).claim == ""
    assert {role["metadata"].get("namespace", "") for role in rendered.all("Role")} == {"a", "b", ""}
    [own] = [role["rules"] for role in rendered.all("Role") if "namespace" not in role["metadata"]]
    assert {(resource, verb) for rule in own for resource in rule["resources"] for verb in rule["verbs"]} == {
        ("pods", "get"), ("pods", "list"), ("poddisruptionbudgets", "get"), ("poddisruptionbudgets", "patch"),
        ("events", "create"), ("statefulsets", "get"), ("pods/eviction", "create"),
        ("secrets", "get"), ("secrets", "create"), ("secrets", "update"), ("secrets", "delete"),
    }  # fmt: skip
    assert [binding["roleRef"]["name"] for binding in rendered.all("ClusterRoleBinding")] == ["system:auth-delegator"]
    rules = rendered.one("NetworkPolicy", "dormouse-etcd")["spec"]["ingress"][0]["from"]
    assert rules[-1]["namespaceSelector"]["matchExpressions"][0]["values"] == ["a", "b"]


def test_only_the_gateways_port_is_open_to_callers(default: Rendered, helm: str) -> None:
    policies = {each["metadata"]["name"]: each["spec"]["ingress"] for each in default.all("NetworkPolicy")}
    assert set(policies) == {"dormouse-gateway", "dormouse-operator", "dormouse-etcd"}
    open_to_all = [
        (name, port["port"]) for name, rules in policies.items() for rule in rules if "from" not in rule for port in rule["ports"]
    ]
    assert open_to_all == [("dormouse-gateway", "grpc")]
    narrowed = render(helm, "networkPolicies.callers[0].namespaceSelector.matchLabels.team=speech").one("NetworkPolicy", "dormouse-gateway")
    assert narrowed["spec"]["ingress"][0]["from"] == [{"namespaceSelector": {"matchLabels": {"team": "speech"}}}]


@pytest.mark.parametrize("members", [1, 3])
def test_members_of_etcd_know_each_other_and_their_certificate_names_them(helm: str, members: int) -> None:
    rendered = render(helm, f"etcd.replicas={members}")
    peers = joining(rendered).urls
    assert list(peers) == [f"dormouse-etcd-{number}" for number in range(members)]
    certificates = kept(rendered).certificates
    gateway = containers(rendered.one("Deployment", "dormouse-gateway")["spec"]["template"])[0]["args"]
    clients = [each.removeprefix("--store=").rsplit(":", 1)[0] for each in gateway if each.startswith("--store=")]
    assert len(clients) == members
    for host in [*clients, *(url.removeprefix("https://").rsplit(":", 1)[0] for url in peers.values())]:
        assert host in certificates.hosts
        service = host.split(".")[0 if host in clients else 1]
        assert rendered.one("Service", service)
    wanted = dict(pair.split("=") for pair in certificates.members.split(",") if pair)
    labels = rendered.one("StatefulSet", "dormouse-etcd")["spec"]["template"]["metadata"]["labels"]
    assert bool(wanted) == (members == 3)
    assert wanted.items() <= labels.items(), "whom a new authority waits for"
    assert len(rendered.all("PodDisruptionBudget", "dormouse-etcd")) == (members == 3), "a budget over one member would never let it go"


def test_an_etcd_elsewhere(helm: str) -> None:
    rendered = render(helm, *SECURED)
    assert not rendered.all("StatefulSet")
    assert "secrets.json" not in rendered.one("ConfigMap", "dormouse-operator")["data"], "nobody keeps what is another's"
    for name in ("dormouse-gateway", "dormouse-operator"):
        pod = rendered.one("Deployment", name)["spec"]["template"]
        arguments = containers(pod)[0]["args"]
        assert [each for each in arguments if each.startswith("--store=")] == ["--store=etcd-0.example:2379", "--store=etcd-1.example:2379"]
        assert "--store-ca=/etc/dormouse/tls/ca.crt" in arguments
        sources = {volume["secret"]["secretName"] for volume in pod["spec"]["volumes"] if "secret" in volume}
        assert sources == {"etcd-tls", "etcd-users"}
        assert not [each for each in arguments if each.startswith("--store-cert")]
    certified = render(helm, *SECURED, "etcd.external.clientCertificate=true")
    for name in ("dormouse-gateway", "dormouse-operator"):
        arguments = containers(certified.one("Deployment", name)["spec"]["template"])[0]["args"]
        assert {"--store-cert=/etc/dormouse/tls/tls.crt", "--store-key=/etc/dormouse/tls/tls.key"} <= set(arguments)
    plain = render(helm, *EXTERNAL).one("Deployment", "dormouse-gateway")["spec"]["template"]
    assert not [each for each in containers(plain)[0]["args"] if "-ca=" in each or "-user" in each]


def test_a_part_sees_its_own_password_only_and_no_key_but_etcds(default: Rendered, helm: str) -> None:
    """The operator reads them from the API server. The authority's key is in no pod's volume."""
    seen = {
        name: {volume["secret"]["secretName"]: {i["key"] for i in volume["secret"].get("items", ())} for volume in pod["spec"]["volumes"]
               if "secret" in volume}
        for name, pod in default.pods() if "volumes" in pod["spec"]
    }  # fmt: skip
    assert seen == {
        "dormouse-etcd": {"dormouse-etcd-tls": set(), "dormouse-etcd-formed": set(), "dormouse-etcd-passwords": {"operator"}},
        "dormouse-gateway": {"dormouse-etcd-tls": {"ca.crt"}, "dormouse-etcd-passwords": {"gateway"}},
        "dormouse-operator": {},
    }
    volumes = render(helm, *SECURED).one("Deployment", "dormouse-operator")["spec"]["template"]["spec"]["volumes"]
    users = next(volume["secret"] for volume in volumes if volume["name"] == "users")
    assert {item["key"] for item in users["items"]} == {"operator", "gateway"}


@pytest.mark.parametrize("values", [(), ("namespaces={a,b}",)])
def test_the_operator_reaches_the_secrets_that_it_keeps_by_name(helm: str, values: tuple[str, ...]) -> None:
    """Only `create` knows no names in Kubernetes."""
    rendered = render(helm, *values)
    wanted = kept(rendered)
    own = {wanted.certificates.secret, wanted.certificates.authority, wanted.passwords.secret}
    before = {wanted.certificates.before, wanted.passwords.before}
    rights = set[tuple[str, str]]()
    for rule in rendered.one("Role", "dormouse-operator-system")["rules"]:
        if "secrets" in rule["resources"]:
            rights |= {(verb, name) for verb in rule["verbs"] for name in rule.get("resourceNames", ["*"])}
    expected = {("create", "*")} | {(verb, name) for name in own for verb in ("get", "update")}
    assert wanted.members is not None
    expected |= {("get", wanted.members.secret)}
    assert rights == expected | {(verb, name) for name in before for verb in ("get", "delete")}


def test_secrets_of_somebody_else_are_mounted_and_read_and_never_written(helm: str) -> None:
    theirs = ("etcd.certificates.existingSecret=theirs", "etcd.users.existingSecret=users")
    rendered = render(helm, "singleNode=true", *theirs)
    wanted = kept(rendered)
    assert (wanted.certificates.secret, wanted.certificates.authority, wanted.certificates.before) == ("theirs", "", "")
    assert (wanted.passwords.secret, wanted.passwords.ours, wanted.passwords.before) == ("users", False, "")
    for rule in rendered.one("Role", "dormouse-operator-system")["rules"]:
        if "secrets" in rule["resources"]:
            assert (rule["verbs"], set(rule["resourceNames"])) == (["get"], {"theirs", "users"})
    mounted = {v["secret"]["secretName"] for _, pod in rendered.pods() for v in pod["spec"].get("volumes", ()) if "secret" in v}
    assert mounted == {"theirs", "users", "dormouse-etcd-formed"}
    rules = render(helm, *theirs).one("Role", "dormouse-operator-system")["rules"]
    rights = {(*rule["verbs"], *rule.get("resourceNames", ())) for rule in rules if "secrets" in rule["resources"]}
    assert rights == {("get", "theirs", "users", "dormouse-etcd-formed"), ("create",)}, "of several members it is remembered that they were"
    assert {"theirs", "users"} <= set(operator_settings(rendered).own.reserved), "no function may name them"


def test_lifetimes_are_the_values_and_those_of_the_limits_by_default(default: Rendered, helm: str) -> None:
    assert (kept(default).certificates.days, kept(default).passwords.days) == (CERTIFICATE_DAYS, PASSWORD_DAYS)
    absent = kept(render(helm, "etcd.certificates=null", "etcd.users=null"))
    assert absent == kept(default), "`helm upgrade --reuse-values` from a release without them"
    changed = kept(render(helm, "etcd.certificates.days=30", "etcd.users.days=0"))
    assert (changed.certificates.days, changed.passwords.days) == (30, 0)


def kept(rendered: Rendered) -> secret_options.Wanted:
    """As the operator reads it."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        file.write(rendered.one("ConfigMap", "dormouse-operator")["data"]["secrets.json"])
        file.flush()
        found = secret_options.read(file.name)
    assert "app.kubernetes.io/instance" not in found.labels, "Argo CD would prune what has it"
    return found


def test_names_fit_whatever_the_release_is_called(helm: str) -> None:
    rendered = render(helm, release="a" * 53, namespace="n" * 63)
    assert all(
        len(each["metadata"]["name"]) <= 63 for each in rendered.objects if each["kind"] not in ("ClusterRole", "ClusterRoleBinding")
    )
    assert rendered.one("Deployment", f"{'a' * 40}-gateway")
