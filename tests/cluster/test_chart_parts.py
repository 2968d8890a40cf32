"""The chart without a cluster, part by part: what ends a process, who may dial whom, what is encrypted, where pods run."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dormouse_gateway import settings as gateway_settings
from dormouse_operator.kubernetes import options
from dormouse_testing.cluster.charts import Object, Rendered, containers, render

PARTS = {"gateway": "Deployment", "operator": "Deployment", "etcd": "StatefulSet"}
HEALTHY = "/readyz"
"""No learner's, and no alarm but CORRUPT fails it."""
ALONE = "/health?serializable=true&exclude=NOSPACE"
"""What a member answers by itself: one without a majority is not better for being killed."""
LABEL = "dormouse.dev/part"


@pytest.fixture(scope="module")
def default(helm: str) -> Rendered:
    return render(helm)


@pytest.fixture(scope="module")
def single(helm: str) -> Rendered:
    return render(helm, "singleNode=true")


@pytest.fixture(scope="module")
def three(helm: str) -> Rendered:
    """With three members of etcd, pods placed and pulled as somebody says."""
    words = [f"{part}.{word}" for part in PARTS for word in ("nodeSelector.disk=ssd", "tolerations[0].key=t", "priorityClassName=high")]
    words += [f"{part}.affinity.nodeAffinity.x=y" for part in PARTS]
    return render(helm, "etcd.replicas=3", "image.pullSecrets[0].name=registry", *words)


def pod(rendered: Rendered, part: str) -> Object:
    found: Object = rendered.one(PARTS[part], f"dormouse-{part}")["spec"]["template"]
    return found


def container(rendered: Rendered, part: str, name: str = "") -> Object:
    [found] = [each for each in containers(pod(rendered, part)) if each["name"] == (name or part)]
    return found


# ------------------------------------------------------------------------------------------------------------- probes


def seconds(probe: Object) -> int:
    """Until it gives up."""
    return int(probe.get("periodSeconds", 10) * probe.get("failureThreshold", 3))


def test_what_hangs_or_is_deaf_is_started_anew_and_what_waits_is_not(default: Rendered) -> None:
    """The operator's probe is answered by the loop that does the work."""
    operator, agent, envoy = container(default, "operator"), container(default, "gateway", "agent"), container(default, "gateway", "envoy")
    for probe in ("startupProbe", "livenessProbe"):
        assert operator[probe]["httpGet"] == {"path": "/healthz", "port": "metrics"}
    assert operator["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "metrics"}
    assert seconds(operator["livenessProbe"]) == 30
    assert seconds(operator["startupProbe"]) == 60
    assert agent["livenessProbe"]["httpGet"] == {"path": "/metrics", "port": "metrics"}
    assert seconds(agent["livenessProbe"]) == 60
    assert envoy["readinessProbe"]["tcpSocket"] == {"port": "grpc"}, "it opens when the first full set of routes is there"
    assert "readinessProbe" not in agent, "a gateway serves on while its agent or etcd is away"
    assert "livenessProbe" not in envoy
    etcd = container(default, "etcd")
    paths = {probe: etcd[probe]["httpGet"]["path"] for probe in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert paths == {"startupProbe": ALONE, "readinessProbe": HEALTHY, "livenessProbe": ALONE}
    assert seconds(etcd["livenessProbe"]) == 60
    assert seconds(etcd["startupProbe"]) == 300, "a large store is read first"
    for each in (operator, agent, etcd):
        assert each["livenessProbe"]["timeoutSeconds"] == 5, "a busy node is no hang"


# ------------------------------------------------------------------------------------------------------------- lives


def test_gateways_are_replaced_one_by_one_and_none_is_missed(default: Rendered) -> None:
    gateway = default.one("Deployment", "dormouse-gateway")
    assert gateway["spec"]["strategy"] == {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
    budget = default.one("PodDisruptionBudget", "dormouse-gateway")["spec"]
    assert (budget["maxUnavailable"], budget["unhealthyPodEvictionPolicy"]) == (1, "AlwaysAllow")
    left = pod(default, "gateway")["spec"]["terminationGracePeriodSeconds"]
    assert left - gateway_arguments(default).drain_seconds >= 20, "for what follows the drain: agent and Envoy end"


def test_members_of_etcd_start_together_and_leave_one_at_a_time(three: Rendered) -> None:
    """None is ready without a majority: after a power cut one that waited for the first would wait for ever."""
    etcd = three.one("StatefulSet", "dormouse-etcd")["spec"]
    assert (etcd["podManagementPolicy"], etcd["serviceName"]) == ("Parallel", "dormouse-etcd-peers")
    peers = three.one("Service", "dormouse-etcd-peers")["spec"]
    assert (peers["clusterIP"], peers["publishNotReadyAddresses"]) == ("None", True)
    budget = three.one("PodDisruptionBudget", "dormouse-etcd")["spec"]
    assert (budget["maxUnavailable"], budget["unhealthyPodEvictionPolicy"]) == (1, "AlwaysAllow"), "two that are away may go"
    for number in range(3):
        member = three.one("Service", f"dormouse-etcd-{number}")["spec"]
        assert member["selector"]["statefulset.kubernetes.io/pod-name"] == f"dormouse-etcd-{number}"
        assert "publishNotReadyAddresses" not in member, "clients ask those that are ready"


def test_a_configuration_that_changed_starts_the_operator_anew(default: Rendered, three: Rendered, helm: str) -> None:
    def mark(rendered: Rendered) -> str:
        return str(pod(rendered, "operator")["metadata"]["annotations"]["dormouse.dev/configuration"])

    assert mark(default) == mark(render(helm, "gateway.replicas=3"))
    assert mark(default) != mark(render(helm, "workers.policy.secrets={a}"))


def test_pods_are_spread_placed_and_pulled_as_the_values_say(default: Rendered, single: Rendered, three: Rendered, helm: str) -> None:
    for rendered, parts in (
        (single, ["gateway", "operator"]),
        (default, ["gateway", "operator", "etcd"]),
        (three, ["gateway", "operator", "etcd"]),
    ):
        for part in PARTS:
            spread = [each["topologyKey"] for each in pod(rendered, part)["spec"].get("topologySpreadConstraints", ())]
            assert spread == (["kubernetes.io/hostname"] if part in parts else []), part
    for part in ("gateway", "operator"):
        [constraint] = pod(default, part)["spec"]["topologySpreadConstraints"]
        assert constraint["matchLabelKeys"] == ["pod-template-hash"], "those that are on their way out do not count"
    for part in PARTS:
        spec = pod(three, part)["spec"]
        assert (spec["nodeSelector"], spec["tolerations"], spec["priorityClassName"]) == ({"disk": "ssd"}, [{"key": "t"}], "high")
        assert spec["affinity"] == {"nodeAffinity": {"x": "y"}}
    pulled = {name: each["spec"].get("imagePullSecrets") for name, each in three.pods()}
    ours = [{"name": "registry"}]
    assert pulled == {"dormouse-gateway": ours, "dormouse-operator": ours, "dormouse-test": ours, "dormouse-etcd": ours}
    other = render(helm, "image.pullSecrets[0].name=registry", "etcd.image.pullSecrets[0].name=another")
    assert pod(other, "etcd")["spec"]["imagePullSecrets"] == [{"name": "another"}, {"name": "registry"}], "it has our image, too"


# ------------------------------------------------------------------------------------------------------------- what a pod is and has


@pytest.mark.parametrize("values", [(), ("singleNode=true", "etcd.persistence.enabled=false")], ids=["on volumes", "in memory"])
def test_pods_have_what_they_mount_and_files_that_their_user_may_read(helm: str, values: tuple[str, ...]) -> None:
    rendered = render(helm, *values)
    claims = {each["metadata"]["name"] for each in rendered.one("StatefulSet", "dormouse-etcd")["spec"].get("volumeClaimTemplates", ())}
    for name, each in rendered.pods():
        spec = each["spec"]
        security = spec["securityContext"]
        assert security["fsGroup"] == security["runAsGroup"] == security["runAsUser"], "a volume is its user's, and no root's group is"
        assert spec["enableServiceLinks"] is False, "the names of others' Services are no variables of ours"
        volumes = {volume["name"]: volume for volume in spec.get("volumes", ())}
        used = {mount["name"] for one in containers(each) for mount in one.get("volumeMounts", ())}
        assert used == volumes.keys() | (claims if name == "dormouse-etcd" else set()), name
        for one in containers(each):
            for mount in one.get("volumeMounts", ()):
                volume = volumes.get(mount["name"], {})
                if "secret" in volume:
                    assert volume["secret"]["defaultMode"] == 0o440, "its group's, and nobody else's"
                if "secret" in volume or "configMap" in volume:
                    assert mount["readOnly"] is True, (name, mount)


def test_etcd_answers_nobody_in_the_clear_and_no_member_that_it_does_not_know(default: Rendered) -> None:
    [text] = [word for word in container(default, "etcd", "members")["args"] if word.startswith("--etcd=")]
    words = json.loads(text.removeprefix("--etcd="))
    for name in ("listen-client-urls", "advertise-client-urls", "listen-peer-urls", "initial-advertise-peer-urls"):
        assert words[name].startswith("https://"), name
    files = {"cert-file": "/etc/etcd/tls.crt", "key-file": "/etc/etcd/tls.key"}
    assert words["client-transport-security"] == files
    assert words["peer-transport-security"] == {**files, "trusted-ca-file": "/etc/etcd/ca.crt", "client-cert-auth": True}
    assert words["initial-cluster-token"] == "system/dormouse-etcd", "members of two releases never join"
    assert words["listen-metrics-urls"].endswith(":2381"), "which shows no keys"
    assert words["bcrypt-cost"] == 4
    assert words["auth-token"] == "simple"
    mounts = {
        part: {each["name"]: each["mountPath"] for each in container(default, "etcd", part)["volumeMounts"]} for part in ("members", "etcd")
    }
    assert mounts["etcd"].items() <= mounts["members"].items(), "it writes and reads what etcd reads"
    assert mounts["members"].keys() - mounts["etcd"].keys() == {"formed", "users"}, "root's password is not etcd's to know"
    assert container(default, "etcd")["args"] == ["--config-file=/run/etcd/etcd.json"]
    assert "--out=/run/etcd/etcd.json" in container(default, "etcd", "members")["args"]


def gateway_arguments(rendered: Rendered) -> gateway_settings.GatewaySettings:
    return gateway_settings.parse(container(rendered, "gateway", "agent")["args"], "gateway")


def test_a_gateway_listens_for_callers_and_scrapers_alone_and_takes_pods_for_workers(default: Rendered) -> None:
    taken = gateway_arguments(default)
    assert (taken.xds, taken.admin) == ("unix:/run/dormouse/xds.sock", "/run/dormouse/envoy.sock")
    assert taken.pods, "an address of its own is no worker's"
    assert taken.node == "$(NODE_NAME)"
    assert (taken.metrics, taken.metrics_host) == (9090, "0.0.0.0"), "scrapers come from other pods"
    assert {"localhost", "127.0.0.1"} <= taken.own_names
    assert (taken.store_ca, taken.store_password_file) == ("/etc/dormouse/tls/ca.crt", "/etc/dormouse/users/gateway")


def test_the_operator_takes_the_options_that_it_is_given(default: Rendered, tmp_path: Path) -> None:
    given = container(default, "operator")["args"]
    kept = default.one("ConfigMap", "dormouse-operator")["data"]["secrets.json"]
    texts = {"functions.json": "{}", "secrets.json": kept, "ca.crt": "CA", "operator": "password", "gateway": "another", "workers": "W"}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    moved = [f"{word.partition('=')[0]}={tmp_path / Path(word).name}" if "=/etc/dormouse" in word else word for word in given]
    taken = options.parse(moved)
    assert (taken.listen, taken.control, taken.metrics) == ("$(POD_IP):9002", "0.0.0.0:9003", 9090)
    assert (taken.store_user, taken.gateway_password(), taken.functions.store_ca) == ("root", "another", "CA")
    assert taken.functions.store_secret == b"W"
    assert taken.keeping is not None
    first = container(default, "operator", "secrets")
    assert first["args"] == [word for word in given if word.startswith("--secrets")], "it makes them before the operator starts"
    found = {each["name"]: each["valueFrom"]["fieldRef"]["fieldPath"] for each in container(default, "operator")["env"]}
    here = {"POD_NAME": "metadata.name", "POD_IP": "status.podIP", "POD_NAMESPACE": "metadata.namespace"}
    assert found == {**here, "NODE_NAME": "spec.nodeName"}
    assert taken.node == "$(NODE_NAME)"


# ------------------------------------------------------------------------------------------------------------- who dials whom, who may what


def peers(rule: Object) -> Iterator[str]:
    for each in rule.get("from", [{"podSelector": {"matchLabels": {LABEL: "everybody"}}}]):
        yield each["podSelector"]["matchLabels"][LABEL] if "podSelector" in each else "scrapers"


def allowed(rendered: Rendered) -> set[tuple[str, str, str]]:
    """(part, port, who)."""
    found = set()
    for policy in rendered.all("NetworkPolicy"):
        spec = policy["spec"]
        assert spec["policyTypes"] == ["Ingress"]
        for rule in spec["ingress"]:
            for port in rule["ports"]:
                assert port["protocol"] == "TCP"
                found |= {(spec["podSelector"]["matchLabels"][LABEL], port["port"], who) for who in peers(rule)}
    return found


ALLOWED = {
    ("gateway", "grpc", "everybody"),
    ("gateway", 8003, "worker"),
    ("operator", "agents", "gateway"),
    ("etcd", "client", "operator"),
    ("etcd", "client", "gateway"),
    ("etcd", "client", "etcd"),
    ("etcd", "client", "worker"),
    ("etcd", "peer", "etcd"),
}


def test_nobody_dials_a_part_but_those_that_need_it_and_scrapers_their_port_where_there_are_any(default: Rendered, helm: str) -> None:
    assert allowed(default) == ALLOWED
    scraped = render(helm, "networkPolicies.scrapers[0].namespaceSelector.matchLabels.team=metrics")
    assert allowed(scraped) == ALLOWED | {(part, "metrics", "scrapers") for part in PARTS}
    assert not render(helm, "networkPolicies.enabled=false").all("NetworkPolicy")


def test_peers_are_this_releases_own_and_workers_this_installations(default: Rendered) -> None:
    rules = [rule for policy in default.all("NetworkPolicy") for rule in policy["spec"]["ingress"] if "from" in rule]
    for each in (peer for rule in rules for peer in rule["from"]):
        labels = each["podSelector"]["matchLabels"]
        if labels[LABEL] == "worker":
            assert (labels["dormouse.dev/installation"], each["namespaceSelector"]) == ("default", {})
        else:
            assert labels["app.kubernetes.io/instance"] == "dormouse"
            assert "namespaceSelector" not in each


def test_rights_are_the_operators_alone_and_reach_one_budget_of_its_namespace(default: Rendered, helm: str) -> None:
    for rendered in (default, render(helm, "namespaces={a,b}")):
        roles = {
            (each["kind"], each["metadata"].get("namespace"), each["metadata"]["name"])
            for kind in ("Role", "ClusterRole")
            for each in rendered.all(kind)
            if "-functions-" not in each["metadata"]["name"]  # added to Kubernetes' own, and bound to nobody
        }
        bound = set[Any]()
        for binding in [*rendered.all("RoleBinding"), *rendered.all("ClusterRoleBinding")]:
            assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "dormouse-operator", "namespace": "system"}]
            role = binding["roleRef"]
            if role["name"] != "system:auth-delegator":
                bound.add((role["kind"], binding["metadata"].get("namespace"), role["name"]))
        assert bound == roles
        own = rendered.one("Role", "dormouse-operator-system")["rules"]
        assert [rule["resourceNames"] for rule in own if "poddisruptionbudgets" in rule["resources"]] == [["dormouse-gateway"]]


def test_envoys_guard_against_overload_goes_by_the_memory_of_its_own_container(default: Rendered) -> None:
    """Its starter reads the container's limit (`test_the_heap_follows_the_memory_that_there_is`), and nobody tells it another."""
    envoy = container(default, "gateway", "envoy")
    assert envoy["resources"]["limits"]["memory"] == "1Gi"
    assert envoy["command"][-1] == "dormouse_gateway.envoy"
    assert not [word for word in envoy["args"] if word.startswith("--max-heap-bytes")]
