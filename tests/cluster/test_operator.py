"""What operators go through: others beside them, an API server that is not heard, credentials that change, rights that are lost, names that
are used again, and the end of a namespace."""

import base64
import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import grpc
import pytest
from dormouse_testing.cluster.between import between
from dormouse_testing.cluster.callers import Inside, pod
from dormouse_testing.cluster.client import eventually
from dormouse_testing.cluster.functions import CODE, OPERATOR, RELEASE, STORE, SYSTEM, Dormouse, counter, echo
from dormouse_testing.cluster.laptops import Laptop, Tokens, laptop
from dormouse_testing.cluster.layout import API_PORT, HOST_IP, ClusterError
from dormouse_testing.cluster.processes import alive

OTHER = """
import kopf

@kopf.on.event("dormouse.dev", "v1alpha1", "inferencefunctions")
def seen(**_):
    pass
"""
MODELS = """
from typing import ClassVar
from dormouse import Handler, State, Tensor

class Other(Handler):
    inputs: ClassVar = [Tensor("add", "INT64", [1])]
    outputs: ClassVar = [Tensor("total", "INT64", [1])]
    states: ClassVar = [State("count", "INT64", [1]), State("last", "FP32", [2])]

    def step(self, inputs, state, ctx):
        assert state["last"].shape == (2,)
        state["count"] += 1
        state["last"] += 0.5
        return {"total": state["count"] + 1_000_000}
"""
OTHER_MODEL: dict[str, Any] = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "other"}, "data": {"other.py": MODELS}}


@pytest.fixture(scope="module")
def base(dormouse: Dormouse) -> Dormouse:
    """With a function that serves all the time, which nobody's trouble may touch."""
    dormouse.apply(OTHER_MODEL, counter("steady", minReplicas=1))
    dormouse.ready("steady", 1)
    return dormouse


@pytest.fixture
def own(base: Dormouse) -> Dormouse:
    if not base.cluster.own:
        pytest.skip("another's cluster is not ours to disturb")
    return base


@pytest.fixture(autouse=True)
def unharmed(base: Dormouse) -> Iterator[None]:
    """Around every test: the steady function counts on, and nothing of the installation was started anew that the test did not end."""
    before = base.restarts()
    base.call("steady", 1, session="throughout")
    yield
    if not base.cluster.exists("statefulset", f"{RELEASE}-etcd", SYSTEM):
        return  # the last test
    assert base.call("steady", 0, session="throughout") > 0
    after = base.restarts()
    assert {name: count for name, count in after.items() if count != before.get(name, 0)} == {}


def handled(dormouse: Dormouse, name: str, seconds: float = 60.0, *, by: Laptop | None = None) -> None:
    """A function is made, changed and deleted, and each is taken up in time. (Its pods may take longer: scheduler, controllers and kubelet
    back off too.) `by`: no operator runs in the cluster but this."""
    stored = by.stored if by is not None else dormouse.stored
    dormouse.apply(echo(name))
    eventually("it is taken", lambda: dormouse.status(name).get("replicas") == 1, seconds)
    dormouse.patch(name, {"replicas": 2})
    eventually("it is changed", lambda: dormouse.status(name).get("replicas") == 2, seconds)
    dormouse.delete(name)
    eventually("it is gone", lambda: not [key for key in stored() if f"/{name}" in key], seconds)


def operators(dormouse: Dormouse) -> list[Inside]:
    pods = dormouse.cluster.get("pods", "", SYSTEM, "-l", "dormouse.dev/part=operator")
    return [Inside(dormouse.cluster, SYSTEM, p["metadata"]["name"]) for p in pods if "deletionTimestamp" not in p["metadata"]]


def logs(dormouse: Dormouse) -> str:
    """What the operator said of late."""
    return dormouse.cluster.kubectl("logs", "-n", SYSTEM, OPERATOR, "--since=5m")


def leaders(dormouse: Dormouse) -> list[str]:
    return [each.name for each in operators(dormouse) if each.metric("dormouse_leading") == 1]


@contextlib.contextmanager
def without_operator(dormouse: Dormouse) -> Iterator[None]:
    """None in the cluster; afterwards one again."""
    dormouse.cluster.kubectl("scale", OPERATOR, "-n", SYSTEM, "--replicas=0")
    try:
        eventually("no operator runs", lambda: not dormouse.cluster.get("pods", "", SYSTEM, "-l", "dormouse.dev/part=operator"))
        yield
    finally:
        dormouse.cluster.kubectl("scale", OPERATOR, "-n", SYSTEM, "--replicas=1")
        dormouse.cluster.kubectl("rollout", "status", OPERATOR, "-n", SYSTEM, "--timeout=60s")


# ------------------------------------------------------------------------------------------------------------------ others beside it

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


# ------------------------------------------------------------------------------------------------------------------ not heard


@contextlib.contextmanager
def black_hole(dormouse: Dormouse, pod: str) -> Iterator[None]:
    """Packets between the pod and the API server are dropped, both ways; no reset, no answer."""
    assert dormouse.cluster.layout is not None
    address = dormouse.cluster.get("pod", pod, SYSTEM)["status"]["podIP"]
    table = [*dormouse.cluster.layout.node(1).inside, "iptables", "-w", "-t", "mangle"]
    rules = [
        ["FORWARD", "-p", "tcp", "-s", address, "-d", HOST_IP, "--dport", str(API_PORT), "-j", "DROP"],
        ["FORWARD", "-p", "tcp", "-d", address, "-s", HOST_IP, "--sport", str(API_PORT), "-j", "DROP"],
    ]
    for rule in rules:
        subprocess.run([*table, "-I", *rule], check=True)
    try:
        yield
    finally:
        for rule in rules:
            subprocess.run([*table, "-D", *rule], check=True)


@contextlib.contextmanager
def frozen_api_server(dormouse: Dormouse) -> Iterator[None]:
    """It stands still: connections open, the kernel acknowledges, nobody answers."""
    assert dormouse.cluster.layout is not None
    pid = alive(dormouse.cluster.layout.run / "host-apiserver.pid")
    assert pid
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def stepping(dormouse: Dormouse) -> Iterator[None]:
    """Steps of the steady function all the while, each answered in time and counted once."""
    count, ended = 0, False
    session = str(time.monotonic_ns())

    def steps() -> int:
        nonlocal count
        while not ended:
            count += 1
            assert dormouse.call("steady", 1, session=session, timeout=5) == count
            time.sleep(0.1)
        return count

    running: Future[int] = dormouse.pool.submit(steps)
    try:
        yield
    finally:
        ended = True
        assert running.result() > 5


EVENT_AGE = 'dormouse_event_age_seconds{watch="kubernetes-functions"}'


@pytest.mark.parametrize("seconds", [20, pytest.param(60, marks=pytest.mark.slow)])
def test_an_api_server_in_a_black_hole(own: Dormouse, seconds: int) -> None:
    """5.O3. The data path goes on; how long the operator has heard nothing is a metric; what happened meanwhile and what comes after is
    handled within a minute, by the same process."""
    [operator] = operators(own)
    with black_hole(own, operator.name), stepping(own):
        own.apply(echo("meanwhile"))
        time.sleep(seconds)
        assert operator.metric(EVENT_AGE) > seconds - 10
        assert operator.metric("dormouse_kubernetes_list_age_seconds") > 0
        assert own.status("meanwhile") == {}
    began = time.monotonic()
    eventually("what was made meanwhile is taken", lambda: own.status("meanwhile").get("replicas") == 1, 60)
    print(f"handled {time.monotonic() - began:.1f} s after {seconds} s of a black hole")
    handled(own, "afterwards", 60)
    own.delete("meanwhile")
    assert operator.metric(EVENT_AGE) < 60


@pytest.mark.parametrize("seconds", [10, pytest.param(60, marks=pytest.mark.slow)])
def test_an_api_server_that_stands_still(own: Dormouse, seconds: int) -> None:
    with frozen_api_server(own), stepping(own):
        time.sleep(seconds)
    eventually("it answers", lambda: own.cluster.kubectl("get", "--raw", "/readyz") == "ok")
    handled(own, "thawed", 60)


def test_connections_that_are_reset_during_the_first_list(own: Dormouse, tmp_path: Path) -> None:
    """5.O3. An operator that starts meanwhile does not end, and takes up its work when it can read a list to its end."""
    assert own.cluster.layout is not None
    with between(own.cluster.layout) as api, without_operator(own):
        tokens = Tokens(own.cluster, tmp_path / "access", api.url)
        tokens.renew()
        api.resets = True
        with laptop(own.cluster, tmp_path / "laptop", tokens.kubeconfig) as alone:
            eventually("many answers were reset", lambda: api.reset > 20, 60)
            assert alone.health()[0] == 200
            own.apply(echo("during"))
            api.resets = False
            eventually("it is taken", lambda: own.status("during").get("replicas") == 1, 60)
            own.delete("during")
            handled(own, "after-resets", 60, by=alone)
            assert alone.leads


# ------------------------------------------------------------------------------------------------------------------ credentials


@pytest.mark.parametrize("idle", [0, pytest.param(75, marks=pytest.mark.slow)])
def test_a_service_accounts_token_that_is_replaced_and_revoked(own: Dormouse, tmp_path: Path, idle: int) -> None:
    """5.O4. Twice, in the file; the one before is refused from then on. A leader that has been idle since handles the next change, too: its
    watch was opened anew meanwhile, with the new token."""
    with without_operator(own):
        tokens = Tokens(own.cluster, tmp_path / "access")
        tokens.renew()
        with laptop(own.cluster, tmp_path / "laptop", tokens.kubeconfig) as alone:
            eventually("it leads", lambda: alone.leads, 60)
            handled(own, "first", 20, by=alone)
            for name in ("second", "third"):
                tokens.renew()
                time.sleep(idle)
                handled(own, name, 40, by=alone)
            assert alone.leads
            assert alone.health()[0] == 200


@pytest.mark.slow
def test_passwords_that_are_replaced_in_their_secrets(own: Dormouse) -> None:
    """5.O4. The gateways' password, then root's: the kubelet brings the files, each part reads them by itself, nobody is started anew."""
    chosen, inside, place = f"{RELEASE}-etcd-users", Inside(own.cluster, SYSTEM, OPERATOR), "/etc/dormouse/users"
    before = {name: base64.b64decode(text).decode() for name, text in own.cluster.get("secret", chosen, SYSTEM)["data"].items()}
    after = {name: f"another-{name}-{time.monotonic_ns()}" for name in before}
    users = {"gateway": "dormouse-gateway/default", "operator": "root"}
    read = f"print(open('{place}/operator').read())"

    def enters(name: str, password: str) -> bool:
        return inside.python(LOG_IN, STORE, users[name], password).strip() == "in"

    for name in users:
        assert enters(name, before[name])
        own.cluster.kubectl("patch", "secret", chosen, "-n", SYSTEM, "--type=merge", "-p", json.dumps({"stringData": {name: after[name]}}))
        if name == "operator":  # as the documents say: in etcd when the file is there
            eventually("the file is there", lambda: inside.python(read).strip() == after["operator"], 150)
            inside.python(SET_PASSWORD, STORE, before[name], after[name])
        eventually(f"{name} has the new one", lambda name=name: enters(name, after[name]), 150)  # type: ignore[misc]
        assert not enters(name, before[name])
    eventually("gateways are in", lambda: own.call("steady", 0, session="throughout") > 0)
    handled(own, "rotated", 60)
    own.apply(echo("routed", minReplicas=1))
    own.ready("routed", 1)
    assert own.call("routed", 3) == 3, "gateways heard of a function that was made afterwards"
    own.delete("routed")


LOG_IN = """
    import asyncio, sys
    from pathlib import Path
    from dormouse_core.seams import StoreError
    from dormouse_kit.etcd import EtcdStore, TlsFiles

    async def ask():
        store = EtcdStore([sys.argv[1]], tls=TlsFiles(Path("/etc/dormouse/tls/ca.crt")), user=sys.argv[2], password=sys.argv[3])
        try:
            await store.get(["/dormouse/default/leader"])
            print("in")
        except StoreError as error:
            print(error)
        await store.close()

    asyncio.run(ask())
"""
SET_PASSWORD = """
    import asyncio, sys
    from pathlib import Path
    from dormouse_kit.etcd import TlsFiles
    from dormouse_kit.etcd.users import Users

    async def change():
        users = Users([sys.argv[1]], sys.argv[2], tls=TlsFiles(Path("/etc/dormouse/tls/ca.crt")))
        await users._as_root("UserChangePassword", name="root", password=sys.argv[3])
        await users.close()

    asyncio.run(change())
"""


# ------------------------------------------------------------------------------------------------------------------ what Envoy refuses

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


def test_what_envoy_refuses_is_told_and_harms_no_other(base: Dormouse) -> None:
    """5.O5. A worker's address that passes for one and that Envoy does not take: the function's condition says it, the gateways count it,
    every other function is served, and it heals when the entry goes."""
    base.apply(echo("refused", minReplicas=1))
    base.ready("refused", 1)
    found = base.cluster.get("ifn", "refused", base.space)
    [operator] = operators(base)
    gateways = base.cluster.get("pods", "", SYSTEM, "-l", "dormouse.dev/part=gateway")
    inside = [Inside(base.cluster, SYSTEM, pod["metadata"]["name"], "agent") for pod in gateways]
    before = sum(each.metric("dormouse_xds_nacks_total") for each in inside)
    key = f"/dormouse/default/map/{base.space}/refused/{found['metadata']['uid']}/workers/bad"
    try:
        operator.python(REGISTER, STORE, key, "[fe80::1%nowhere]:9000", found["status"]["revision"])
        message = base.reason("refused", "Routed", "RouteRefused")
        assert "fe80::1%nowhere" in message
        assert sum(each.metric("dormouse_xds_nacks_total") for each in inside) > before
        base.apply(echo("made-meanwhile", minReplicas=1))
        base.ready("made-meanwhile", 1)
        assert base.call("made-meanwhile", 3) == 3
        assert base.call("steady", 0, session="throughout") > 0
    finally:
        operator.python(REGISTER, STORE, key, "", "")
    eventually("its route is taken again", lambda: base.condition("refused", "Routed").get("status") == "True")
    assert base.call("refused", 4) == 4
    base.delete("refused", "made-meanwhile")


# ------------------------------------------------------------------------------------------------------------------ the same name again


GONE = (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


@pytest.mark.parametrize(
    "pause",
    [0.0, pytest.param(1.0, marks=pytest.mark.slow), pytest.param(10.0, marks=pytest.mark.slow), None],
    ids=["at-once", "1s", "10s", "operator-away"],
)
def test_another_function_under_the_same_name(base: Dormouse, pause: float | None) -> None:
    """5.O7. With another model and other state, while callers step sessions of the old one all the time: whoever is answered by the new one
    is never answered by the old one again, and the new one begins where it begins. `pause` None: the operator is away at the delete."""
    name = "again"
    base.apply(counter(name, minReplicas=2))
    base.ready(name, 2)
    sessions = [f"s{number}" for number in range(8)]
    for session in sessions:
        assert base.call(name, 10, session=session) == 10
    uid = base.cluster.get("ifn", name, base.space)["metadata"]["uid"]
    ended = False

    def step(session: str) -> list[int]:
        """Every total that this session was given; its errors are those of a function that is not there."""
        totals = []
        while not ended:
            try:
                totals.append(base.call(name, 1, session=session, timeout=20))
            except grpc.RpcError as error:
                if error.code() not in GONE:
                    raise
            time.sleep(0.05)
        return totals

    calls = [base.pool.submit(step, session) for session in sessions]
    time.sleep(0.5)
    other = counter(name, model={"uri": "configmap://other"}, handler="other:Other", sessions={"shards": 8})
    if pause is None:
        with without_operator(base):
            base.delete(name)
            base.apply(other)
            time.sleep(2.0)
    else:
        base.delete(name)
        time.sleep(pause)
        base.apply(other)
    eventually("the new one answers", lambda: fresh(base, name), 90)
    time.sleep(1.0)
    ended = True
    for call in calls:
        totals = call.result()
        old = [total for total in totals if total < 1_000_000]
        new = totals[len(old) :]
        assert old == list(range(11, 11 + len(old))), "a step was lost, ran twice, or came late"
        assert new == list(range(1_000_001, 1_000_001 + len(new)))
    eventually("nothing of the old one is stored", lambda: not any(uid in key for key in base.stored()), 60)
    assert base.condition(name, "ModelReady")["status"] == "True"
    base.delete(name)
    eventually("nothing of it runs", lambda: not base.pods(name))


def fresh(dormouse: Dormouse, name: str) -> bool:
    try:
        return dormouse.call(name, 1, session="fresh", timeout=20) > 1_000_000
    except grpc.RpcError:
        return False


# ------------------------------------------------------------------------------------------------------------------ the end

KINDS = "services,deployments,configmaps,secrets,poddisruptionbudgets,networkpolicies,ifn"


def objects(dormouse: Dormouse, space: str) -> dict[str, str]:
    """kind/name -> uid@generation of everything that is not a pod."""
    return {
        f"{each['kind']}/{each['metadata']['name']}": f"{each['metadata']['uid']}@{each['metadata'].get('generation')}"
        for each in dormouse.cluster.get(KINDS, "", space)
    }


def going(dormouse: Dormouse, space: str) -> None:
    """Three functions, of which one serves and one has sessions. Kubernetes looks again at a namespace that goes when half of its pods'
    longest grace period is over, however soon they end: a short one shortens the test."""
    short: dict[str, Any] = {"timeouts": {"step": "1s"}}
    dormouse.cluster.apply(CODE, echo("one", replicas=1, **short), counter("two", replicas=1, **short), echo("three"), namespace=space)
    there = Dormouse(dormouse.cluster, dormouse.address, space)
    for name in ("one", "two"):
        there.ready(name, 1)
    assert there.call("two", 1, session="s") == 1
    there.close()


def foreign(dormouse: Dormouse, space: str) -> None:
    """Somebody's objects under the names that the functions' own have elsewhere."""
    service: dict[str, Any] = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "one"}, "spec": {"ports": [{"port": 1}]}}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "two-store"}}
    budget = {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": "one", "labels": {"app.kubernetes.io/managed-by": "dormouse"}},
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": {"app": "one"}}},
    }
    dormouse.cluster.apply(service, secret, budget, namespace=space)


def test_a_namespace_goes_when_the_operator_has_lost_its_rights(base: Dormouse) -> None:
    """5.O1. Nothing waits for it. It deletes nothing for want of a list, says what it lacks, and goes on by itself when it has its rights
    again: what was stored of the namespace goes then."""
    binding = f"{SYSTEM}-{RELEASE}-operator"
    kept = base.cluster.get("clusterrolebinding", binding)
    with base.cluster.namespace("stays") as stays, base.cluster.namespace("goes") as space:
        foreign(base, stays)
        going(base, space)
        before = objects(base, stays)
        base.cluster.kubectl("delete", "clusterrolebinding", binding)
        try:
            began = time.monotonic()
            base.cluster.kubectl("delete", "namespace", space, "--timeout=60s")
            assert time.monotonic() - began < 60
            assert base.call("steady", 0, session="throughout") > 0
            eventually("it says what it lacks", lambda: "cannot be listed" in logs(base), 45)
        finally:
            base.cluster.apply({**kept, "metadata": {name: kept["metadata"][name] for name in ("name", "labels", "annotations")}})
        eventually("nothing of it is stored", lambda: not [key for key in base.stored() if f"/{space}/" in key], 90)
        handled(base, "with-rights", 60)
        assert objects(base, stays) == before
        base.cluster.kubectl("create", "namespace", space)  # for the end of `namespace`


@pytest.mark.slow
def test_the_operators_own_namespace_goes(base: Dormouse) -> None:
    """5.O1, and the last test of this file: the operator, etcd and functions in one namespace that is deleted, all at once. What is not in
    it stays as it was: other functions' objects, and somebody's of the same names."""
    with base.cluster.namespace("stays") as stays:
        foreign(base, stays)
        going(base, SYSTEM)
        before = (objects(base, stays), objects(base, base.space))
        began = time.monotonic()
        try:
            base.cluster.kubectl("delete", "namespace", SYSTEM, "--timeout=60s")
            took = time.monotonic() - began
            assert took < 60
            print(f"gone after {took:.0f} s")
            assert (objects(base, stays), objects(base, base.space)) == before
        finally:
            # What Helm would have removed, had its record not gone with the namespace; and the namespace, for whoever installed.
            chosen = ["-l", f"app.kubernetes.io/instance={RELEASE}"]
            base.cluster.kubectl("delete", "clusterrole,clusterrolebinding", *chosen, "--ignore-not-found")
            with contextlib.suppress(ClusterError):
                base.cluster.kubectl("create", "namespace", SYSTEM)
