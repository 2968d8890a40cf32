"""Operators beside others, deaf and frozen: one leads, and who cannot work says so."""

import contextlib
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dormouse_testing.cluster.between import between
from dormouse_testing.cluster.callers import pod
from dormouse_testing.cluster.client import eventually
from dormouse_testing.cluster.functions import CRD, OPERATOR, RELEASE, SYSTEM, Dormouse, counter, echo
from dormouse_testing.cluster.laptops import Tokens, laptop
from dormouse_testing.cluster.layout import ROOT
from dormouse_testing.cluster.operators import handled, leaders, operators, without_operator

pytestmark = pytest.mark.usefixtures("unharmed")

OTHER = """
import kopf

@kopf.on.event("dormouse.dev", "v1alpha1", "inferencefunctions")
def seen(**_):
    pass
"""
PEERING: dict[str, Any] = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "clusterkopfpeerings.kopf.dev"},
    "spec": {
        "scope": "Cluster",
        "group": "kopf.dev",
        "names": {"kind": "ClusterKopfPeering", "plural": "clusterkopfpeerings", "singular": "clusterkopfpeering"},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "properties": {"status": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
                    }
                },
            }
        ],
    },
}
DEFAULT = {"apiVersion": "kopf.dev/v1", "kind": "ClusterKopfPeering", "metadata": {"name": "default"}}


@contextlib.contextmanager
def another_operator(dormouse: Dormouse) -> Iterator[None]:
    """Somebody else's, by kopf with its defaults, over our kind: it peers through the default object, at the priority that all have."""
    cluster, name = dormouse.cluster, "other-operator"
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}}
    every = ["get", "list", "watch", "patch", "create"]
    rules = [
        {"apiGroups": ["kopf.dev"], "resources": ["clusterkopfpeerings"], "verbs": every},
        {"apiGroups": ["apiextensions.k8s.io"], "resources": ["customresourcedefinitions"], "verbs": every[:3]},
        {"apiGroups": [""], "resources": ["namespaces"], "verbs": every[:3]},
        {"apiGroups": ["dormouse.dev"], "resources": ["inferencefunctions"], "verbs": every[:3]},
    ]
    rbac = "rbac.authorization.k8s.io"
    role = {"apiVersion": f"{rbac}/v1", "kind": "ClusterRole", "metadata": {"name": name}, "rules": rules}
    binding = {
        "apiVersion": f"{rbac}/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": name},
        "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": dormouse.space}],
    }
    code = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"handler.py": OTHER}}
    made = pod(name, "", cluster)
    made["spec"] |= {"serviceAccountName": name, "automountServiceAccountToken": True}
    made["spec"]["volumes"] = [{"name": "code", "configMap": {"name": name}}]
    made["spec"]["containers"][0] |= {
        "command": ["python3", "-m", "kopf", "run", "--all-namespaces", "/code/handler.py"],
        "volumeMounts": [{"name": "code", "mountPath": "/code"}],
    }
    try:
        cluster.apply(PEERING)
        cluster.kubectl("wait", "--for=condition=Established", "crd/clusterkopfpeerings.kopf.dev", "--timeout=30s")
        cluster.apply(DEFAULT)
        cluster.apply(account, role, binding, code, made, namespace=dormouse.space)
        eventually("the other operator peers", lambda: cluster.get("clusterkopfpeerings", "default").get("status"), 60)
        yield
        assert cluster.get("pod", name, dormouse.space)["status"]["phase"] == "Running"
    finally:
        cluster.kubectl("delete", "pod", name, "-n", dormouse.space, "--ignore-not-found", "--wait=false")
        cluster.kubectl("delete", "clusterrole,clusterrolebinding", name, "--ignore-not-found")
        cluster.kubectl("delete", "crd", "clusterkopfpeerings.kopf.dev", "--ignore-not-found")


def test_others_beside_it_do_not_stop_it(own: Dormouse, tmp_path: Path) -> None:
    """5.O2. Another kopf operator with the default peering, two of ours in the cluster and one more from outside: reconciling goes on, one
    leads, and when that one goes another does."""
    with another_operator(own):
        handled(own, "beside", 20)
        own.cluster.kubectl("scale", OPERATOR, "-n", SYSTEM, "--replicas=2")
        try:
            own.cluster.kubectl("rollout", "status", OPERATOR, "-n", SYSTEM, "--timeout=60s")
            with laptop(own.cluster, tmp_path, own.cluster.kubeconfig) as third:
                eventually("the third is up", lambda: third.health()[0] == 200)
                [leader] = eventually("one leads", lambda: leaders(own))
                assert not third.leads
                handled(own, "three", 20)
                assert (leaders(own), third.leads) == ([leader], False)
                own.cluster.kubectl("delete", "pod", leader, "-n", SYSTEM, "--grace-period=0", "--force")
                eventually("another leads", lambda: len(leaders(own)) + third.leads == 1)
                handled(own, "next", 30)
                assert len(leaders(own)) + third.leads == 1
        finally:
            own.cluster.kubectl("scale", OPERATOR, "-n", SYSTEM, "--replicas=1")
            eventually("one is left", lambda: len(operators(own)) == 1)
    eventually("it leads", lambda: len(leaders(own)) == 1)


@pytest.mark.slow
def test_a_deaf_operator_handles_what_it_can_and_fails_its_probe(own: Dormouse, tmp_path: Path) -> None:
    """5.O2. Its watch of functions stays open and brings nothing: changes are found by the complete lists, and the probe says what is wrong
    until it hears again."""
    assert own.cluster.layout is not None
    with between(own.cluster.layout) as api, without_operator(own):
        tokens = Tokens(own.cluster, tmp_path / "access", api.url)
        tokens.renew()
        with laptop(own.cluster, tmp_path / "laptop", tokens.kubeconfig) as alone:
            eventually("it leads", lambda: alone.leads, 60)
            handled(own, "heard", 20, by=alone)
            api.deaf = True
            began, number = time.monotonic(), 0
            while alone.health()[0] != 503:
                assert time.monotonic() - began < 300, "it did not notice"
                number += 1
                own.apply(echo(f"unheard-{number}"))
                eventually("a list finds it", lambda: own.status(f"unheard-{number}").get("replicas") == 1, 45)  # noqa: B023
                own.delete(f"unheard-{number}")
            print(f"503 after {time.monotonic() - began:.0f} s: {alone.health()[1]}")
            assert "lost changes" in alone.health()[1]
            assert alone.metric("dormouse_kubernetes_missed_total") >= 3
            api.deaf = False
            eventually("it hears again", lambda: alone.health()[0] == 200, 90)
            handled(own, "again", 20, by=alone)


@pytest.mark.slow
def test_a_frozen_operator_is_started_anew(own: Dormouse) -> None:
    """5.O2. A process that stands still does not answer the probe: the kubelet needs no other word."""
    [operator] = operators(own)
    assert own.cluster.layout is not None
    found = own.cluster.get("pod", operator.name, SYSTEM)["status"]["containerStatuses"][0]["containerID"].rpartition("/")[2]
    words = ["ctr", "-a", str(own.cluster.layout.node(1).socket), "-n", "k8s.io", "tasks", "kill", "-s", "SIGSTOP", found]
    subprocess.run(words, check=True)

    def count() -> int:
        return int(own.cluster.get("pod", operator.name, SYSTEM)["status"]["containerStatuses"][0]["restartCount"])

    before, began = count(), time.monotonic()
    eventually("it is started anew", lambda: count() == before + 1, 120)
    print(f"started anew after {time.monotonic() - began:.0f} s")
    eventually("it leads", lambda: len(leaders(own)) == 1)
    handled(own, "thawed")
    own.cluster.kubectl("delete", "pod", operator.name, "-n", SYSTEM)
    eventually("the next leads", lambda: len(leaders(own)) == 1)


def test_a_second_installation_that_serves_all_namespaces_keeps_out_and_says_so(own: Dormouse, tmp_path: Path) -> None:
    """It has come later than the claim of the one that is there, and touches nothing: neither the objects nor the store."""
    tokens = Tokens(own.cluster, tmp_path)
    tokens.renew()
    with laptop(own.cluster, tmp_path, tokens.kubeconfig, claim="another-dormouse-operator") as second:
        eventually("it says so", lambda: "Another installation serves all namespaces" in second.ready()[1])
        assert second.ready()[0] == 503
        assert second.health()[0] == 200
        assert not second.leads
        handled(own, "undisputed", 60)
        assert f"ClusterRole {SYSTEM}-" in second.log
        said = [each["message"] for each in own.cluster.get("events", "", SYSTEM) if each["reason"] == "ServedByAnother"]
        assert len(said) == 1
        assert "touches nothing" in said[0]


@contextlib.contextmanager
def namespaces(dormouse: Dormouse, count: int) -> Iterator[list[str]]:
    """So many empty ones."""
    names = [f"of-many-{number}" for number in range(count)]
    many = [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}} for name in names]
    dormouse.cluster.apply(*many)
    try:
        yield names
    finally:
        dormouse.cluster.kubectl("delete", "namespace", *names, "--wait=false")


def test_of_a_dozen_listed_namespaces_each_is_served(own: Dormouse, tmp_path: Path) -> None:
    """Each has seven watches: 91, where requests have 64 connections."""
    tokens = Tokens(own.cluster, tmp_path)
    with namespaces(own, 12) as more, without_operator(own):
        tokens.renew()
        served = {"namespaces": [*more, own.space], "claim": ""}
        with laptop(own.cluster, tmp_path, tokens.kubeconfig, **served) as alone:
            eventually("it leads", lambda: alone.leads, 60)
            own.apply(echo("of-many"))
            handled(own, "among-many", 60, by=alone)
            assert own.call("of-many", 1) == 1, "it wakes"
            own.delete("of-many")


@pytest.mark.slow
def test_namespaces_are_served_by_their_labels_as_they_are_now(own: Dormouse, tmp_path: Path) -> None:
    """What is in one that matches no more goes on as it was, with its sessions; it is said; and changes are taken when it matches again."""
    kubectl, tokens = own.cluster.kubectl, Tokens(own.cluster, tmp_path)
    kubectl("create", "clusterrole", "of-labels", "--verb=list,watch", "--resource=namespaces")
    kubectl("create", "clusterrolebinding", "of-labels", "--clusterrole=of-labels", f"--serviceaccount={SYSTEM}:{RELEASE}-operator")
    try:
        with without_operator(own):
            tokens.renew()
            served = {"namespaceSelector": {"matchLabels": {"team": "a"}}, "claim": ""}
            with laptop(own.cluster, tmp_path, tokens.kubeconfig, **served) as alone:
                eventually("it leads", lambda: alone.leads, 60)
                own.apply(counter("labelled", minReplicas=1))
                eventually("it is said of what it goes on with", lambda: "do not match namespaceSelector" in alone.log, 30)
                kubectl("label", "namespace", own.space, "team=a")
                own.ready("labelled", 1)
                assert own.call("labelled", 1, session="s") == 1
                kubectl("label", "namespace", own.space, "team-")
                eventually("it is said", lambda: alone.log.count("do not match namespaceSelector") == 2, 30)
                own.patch("labelled", {"minReplicas": 2})
                assert own.call("labelled", 1, session="s") == 2
                handled_before = own.status("labelled")["observedGeneration"]
                kubectl("label", "namespace", own.space, "team=a")
                eventually("changes are taken", lambda: own.status("labelled")["observedGeneration"] > handled_before, 60)
                own.ready("labelled", 2)
                assert own.call("labelled", 1, session="s") == 3
                own.delete("labelled")
    finally:
        kubectl("delete", "clusterrole/of-labels", "clusterrolebinding/of-labels")
        kubectl("label", "namespace", own.space, "team-")


@pytest.mark.slow
def test_a_definition_that_is_older_than_the_operator_is_told_with_what_it_lacks(own: Dormouse) -> None:
    """The operator looks each minute. What is dropped is put back at the end, from this tree."""
    [operator] = operators(own)
    assert operator.metric("dormouse_kubernetes_definition_lacks") == 0
    path = "/spec/versions/0/schema/openAPIV3Schema/properties/status/properties/wantedRevision"
    try:
        own.cluster.kubectl("patch", "crd", CRD, "--type=json", "-p", json.dumps([{"op": "remove", "path": path}]))
        eventually("it is noticed", lambda: operator.metric("dormouse_kubernetes_definition_lacks") == 1, 90)
        assert "drops status.wantedRevision, whatever is applied" in own.said()
        said = [each["message"] for each in own.cluster.get("events", "", SYSTEM) if each["reason"] == "DefinitionOutdated"]
        assert len(said) == 1
    finally:
        own.cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(ROOT / "crds" / "inferencefunctions.yaml"))
    eventually("it is mended", lambda: operator.metric("dormouse_kubernetes_definition_lacks") == 0, 90)
