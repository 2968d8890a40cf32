"""What manifests say: what the API server refuses, what no pod can have, what Envoy refuses; and that an odd one harms no other."""

import json
from typing import Any

import grpc
import pytest
from dormouse_testing.cluster.callers import Inside
from dormouse_testing.cluster.client import eventually
from dormouse_testing.cluster.functions import RELEASE, STORE, SYSTEM, Dormouse, counter, echo
from dormouse_testing.cluster.layout import ClusterError
from dormouse_testing.cluster.operators import operators

STATE: dict[str, Any] = {"input": "s", "output": "sN", "shape": [-1, 4], "batchAxis": 0}
ONNX = {"runtime": "onnx", "model": {"uri": "file://m.onnx"}, "handler": None}


@pytest.mark.parametrize(
    ("name", "spec", "field"),
    [
        ("a" * 53, {}, "metadata.name"),
        ("dots.are-no-label", {}, "metadata.name"),
        ("f", {"runtime": "tensorflow"}, "spec.runtime"),
        ("f", {"replicas": -1}, "spec.replicas"),
        ("f", {"replicas": "two"}, "spec.replicas"),
        ("f", {"handler": None}, "spec.handler"),
        ("f", {"maxReplicas": 1, "minReplicas": 2}, "spec.minReplicas"),
        ("f", {"model": {"uri": "ftp://host/m"}}, "spec.model.uri"),
        ("f", {"model": {"uri": "file://../etc/shadow"}}, "spec.model.uri"),
        ("f", {"scaleToZeroAfter": "soon"}, "spec.scaleToZeroAfter"),
        ("f", {"sessions": {"shards": 5000}}, "spec.sessions.shards"),
        ("f", {"sessions": {"shards": 0}}, "spec.sessions.shards"),
        ("f", {**ONNX, "sessions": {"states": []}}, "spec.sessions"),
        ("f", {"timeouts": {"step": "25h"}}, "spec.timeouts.step"),
        ("f", {"timeouts": {"hold": "9999999999999999h"}}, "spec.timeouts.hold"),
        ("f", {**ONNX, "sessions": {"states": [{**STATE, "shape": [-1, 1 << 30]}]}}, "spec.sessions"),
        ("f", {"workers": {"labels": {"dormouse.dev/part": "gateway"}}}, "spec.workers.labels"),
        ("f", {"workers": {"hostNetwork": True}}, "hostNetwork"),
    ],
)
def test_an_invalid_manifest_is_refused_by_the_api_server_with_the_field(
    base: Dormouse, name: str, spec: dict[str, Any], field: str
) -> None:
    with pytest.raises(ClusterError) as found:
        base.apply(echo(name, **spec))
    assert field in str(found.value)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"runtime": "onnx", "model": {"uri": "file://m.onnx"}, "handler": None}, "spec.runtime"),
        ({"sessions": {"shards": 17}}, "spec.sessions.shards"),
        ({"sessions": None}, "spec.sessions"),
    ],
)
def test_what_may_not_change_does_not(base: Dormouse, change: dict[str, Any], field: str) -> None:
    with pytest.raises(ClusterError, match=f"{field}: Forbidden"):
        base.patch("steady", change)


def test_an_object_of_an_older_schema_gets_a_condition_and_harms_no_other(base: Dormouse) -> None:
    """Let in while the definition asked for nothing."""
    kubectl = base.cluster.kubectl
    definition = base.cluster.get("crd", "inferencefunctions.dormouse.dev")
    open_schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    lax = [{"op": "replace", "path": "/spec/versions/0/schema/openAPIV3Schema", "value": open_schema}]
    strict = [{**lax[0], "value": definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]}]
    kubectl("patch", "crd", definition["metadata"]["name"], "--type=json", "-p", json.dumps(lax))
    bad = [echo("old-runtime", runtime="tensorflow"), echo("old-shape", sessions="many"), {**echo("old-empty"), "spec": {}}]
    try:
        eventually("the lax definition is served", lambda: base.apply(*bad) is None)  # type: ignore[func-returns-value]
    finally:
        kubectl("patch", "crd", definition["metadata"]["name"], "--type=json", "-p", json.dumps(strict))
    for name in ("old-runtime", "old-shape", "old-empty"):
        assert "spec" in base.reason(name, "Accepted", "Invalid")
    assert base.call("echo", 7) == 7
    assert base.refused("old-runtime", 5.0)[0] == grpc.StatusCode.NOT_FOUND
    base.delete("old-runtime", "old-shape", "old-empty")


def test_odd_but_valid_values_harm_no_other(base: Dormouse) -> None:
    """5.O5. The longest name, one shard, the longest limits, empty lists, labels at their longest, unicode where it may be; then new
    gateways (Envoy and agent) read them all."""
    longest = "f" * 52
    lists: dict[str, Any] = {
        name: [] for name in ("env", "envFrom", "volumes", "tolerations", "topologySpreadConstraints", "imagePullSecrets")
    }
    odd = echo(
        longest,
        timeouts={"step": "24h", "hold": "24h"},
        workers={"labels": {"a" * 63: "b" * 63}, "annotations": {"x": "größe\n'\"{}😀"}, "nodeSelector": {}, **lists},
    )
    odd["metadata"]["annotations"] = {"example.org/size": "größe 😀"}
    sessions = {"shards": 1, "ttl": "87600h", "evictAfter": "8760h", "accepts": []}
    base.apply(odd, counter("one-shard", sessions=sessions, batching={}, maxReplicas=1000, scaleToZeroAfter="720h"))
    base.cluster.kubectl("rollout", "restart", f"deployment/{RELEASE}-gateway", "-n", SYSTEM)
    base.cluster.kubectl("rollout", "status", f"deployment/{RELEASE}-gateway", "-n", SYSTEM, "--timeout=100s")
    assert base.call(longest, 3) == 3
    assert base.call("one-shard", 4, session="a") == 4
    assert base.call("echo", 5) == 5
    base.delete(longest, "one-shard")


def test_what_a_pod_cannot_have_gets_a_condition_and_harms_no_other(base: Dormouse) -> None:
    """5.O5. Labels that the schema lets in and no pod may carry."""
    for name, labels in (("label-value", {"size": "größe"}), ("label-key", {"größe": "x"})):
        base.apply(echo(name, workers={"labels": labels}))
        assert "größe" in base.reason(name, "Applied", "Invalid")
        code, text = base.refused(name, 10.0)
        assert code == grpc.StatusCode.FAILED_PRECONDITION, text
        assert "größe" in text
    assert base.call("echo", 6) == 6
    base.patch("label-value", {"workers": {"labels": None}})
    eventually("it heals when it is mended", lambda: base.condition("label-value", "Applied").get("status") == "True")
    base.delete("label-value", "label-key")


REGISTER = """
    import asyncio, sys
    from pathlib import Path
    from dormouse_core.seams import Delete, Put, Txn
    from dormouse_kit.etcd import EtcdStore, TlsFiles
    from dormouse_proto import state_pb2

    async def put():
        store = EtcdStore([sys.argv[1]], tls=TlsFiles(Path("/etc/dormouse/tls/ca.crt")), user="root",
                          password=Path("/etc/dormouse/users/operator").read_text())
        entry = state_pb2.WorkerEntry(address=sys.argv[3], revision=sys.argv[4], state=state_pb2.WorkerEntry.READY, instance="bad")
        change = Put(sys.argv[2], entry.SerializeToString()) if sys.argv[3] else Delete(sys.argv[2])
        await store.txn(Txn((), (change,)))
        await store.close()

    asyncio.run(put())
"""


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize(
    ("address", "why"), [("[fe80::1%nowhere]:9000", "in its shortest form"), ("", "its function has no pod of the name in the entry")]
)
def test_an_address_that_is_not_its_workers_is_told_and_harms_no_other(base: Dormouse, address: str, why: str) -> None:
    """5.O5. One that no worker can have, and (empty) that of another function's pod, written with the function's rights: nobody connects to
    it, Envoy never sees it, the log says it, and every function is served."""
    base.apply(echo("refused", minReplicas=1))
    base.ready("refused", 1)
    found = base.cluster.get("ifn", "refused", base.space)
    [operator] = operators(base)
    inside = [Inside(base.cluster, SYSTEM, pod["metadata"]["name"], "agent") for pod in base.gateways()]
    before = sum(each.metric("dormouse_xds_nacks_total") for each in inside)
    [other] = base.cluster.get("pods", "", base.space, "-l", "dormouse.dev/function=steady")
    key = f"/dormouse/default/map/{base.space}/refused/{found['metadata']['uid']}/workers/bad"
    try:
        operator.python(REGISTER, STORE, key, address or f"{other['status']['podIP']}:9000", found["status"]["wantedRevision"])
        eventually("the operator refuses the entry", lambda: any(why in line for line in refused(base, operator.name)))
        base.apply(echo("made-meanwhile", minReplicas=1))
        base.ready("made-meanwhile", 1)
        assert base.call("made-meanwhile", 3) == 3
        assert [base.call("refused", n) for n in range(20)] == list(range(20))
        assert base.call("steady", 0, session="throughout") > 0
        assert sum(each.metric("dormouse_xds_nacks_total") for each in inside) == before
    finally:
        operator.python(REGISTER, STORE, key, "", "")
    base.delete("refused", "made-meanwhile")


def refused(base: Dormouse, pod: str) -> list[str]:
    """What the operator has said of the entry in the last half minute."""
    lines = base.cluster.kubectl("logs", "-n", SYSTEM, pod, "--since=30s").splitlines()
    return [line for line in lines if "a worker's entry is refused" in line and "worker=bad" in line]
