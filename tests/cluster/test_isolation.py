"""Two tenants' namespaces and what one can reach of the other: the paths that a policy allows, and no others.

`home` has the functions, `away` a caller, functions of its own, and pods that pretend. Everything is tried from inside of a pod.
"""

import base64
import re
from collections.abc import Iterator
from typing import Any

import pytest
from dormouse_testing.cluster import callers
from dormouse_testing.cluster.callers import CLOSED, OPEN, REFUSED, Inside
from dormouse_testing.cluster.client import CHART, eventually
from dormouse_testing.cluster.functions import CODE, GATEWAY, OPERATOR, RELEASE, SYSTEM, Dormouse, counter, echo

AWAY = "isolation-away"
DOMAIN = "svc.cluster.local"
ENTRY = f"{GATEWAY}.{SYSTEM}.{DOMAIN}:8001"
ETCD = f"{RELEASE}-etcd-0.{SYSTEM}.{DOMAIN}"
ADMINISTRATION = (
    "RepositoryModelLoad", "RepositoryModelUnload", "TraceSetting", "LogSettings", "SystemSharedMemoryRegister",
    "SystemSharedMemoryUnregister", "SystemSharedMemoryStatus", "CudaSharedMemoryRegister", "CudaSharedMemoryUnregister",
    "CudaSharedMemoryStatus",
)  # fmt: skip


@pytest.fixture(scope="module")
def home(dormouse: Dormouse) -> Dormouse:
    dormouse.apply(counter("mine", minReplicas=1), echo("plain"))
    return dormouse


@pytest.fixture(scope="module")
def away(home: Dormouse) -> Iterator[Dormouse]:
    """The other tenant's namespace, with a function that always runs: its worker is code of the tenant's."""
    with home.cluster.namespace(AWAY) as space:
        home.cluster.apply(CODE, counter("theirs", minReplicas=1), echo("sleepy"), namespace=space)
        there = Dormouse(home.cluster, home.address, space)
        for dormouse, name in ((home, "mine"), (there, "theirs")):
            dormouse.ready(name, 1)
        there.asleep("sleepy")
        yield there
        there.close()


@pytest.fixture(scope="module")
def stranger(away: Dormouse) -> Inside:
    return callers.running(away.cluster, AWAY, "stranger")


@pytest.fixture(scope="module")
def neighbour(home: Dormouse) -> Inside:
    """In the function's own namespace, and no part of it."""
    return callers.running(home.cluster, home.space, "neighbour")


def addresses(dormouse: Dormouse, namespace: str, labels: str) -> list[str]:
    return [pod["status"]["podIP"] for pod in dormouse.cluster.get("pods", "", namespace, "-l", labels)]


def worker_of(dormouse: Dormouse, name: str) -> str:
    [address] = addresses(dormouse, dormouse.space, f"dormouse.dev/function={name}")
    return address


def inner_places(home: Dormouse) -> list[str]:
    """Everything of the installation, and the function's worker, that no caller has business with."""
    places = [f"{worker_of(home, 'mine')}:9000"]
    for part, ports in (
        ("gateway", (8002, 8003, 9090, 9901, 15000, 19000)),
        ("operator", (9002, 9003, 9090)),
        ("etcd", (2379, 2380, 2381)),
    ):
        places += [f"{address}:{port}" for address in addresses(home, SYSTEM, f"dormouse.dev/part={part}") for port in ports]
    return [*places, f"{ETCD}:2379"]


def named_in_every_way(space: str, name: str, session: str) -> list[dict[str, Any]]:
    """The same function by the three ways to name one; by the first also through the Service that carries its name."""
    session_of = [["dormouse-session", session]]
    return [
        {"authority": f"{name}.{space}", "model": name, "add": 1, "metadata": session_of},
        {"target": f"{name}.{space}.{DOMAIN}:8001", "model": name, "add": 1, "metadata": session_of},
        {"model": name, "add": 1, "metadata": [*session_of, ["dormouse-function", f"{space}/{name}"]]},
        {"model": f"{space}/{name}", "add": 1, "metadata": session_of},
    ]


# ------------------------------------------------------------------------------------------------------------------ who reaches what


def test_callers_reach_a_function_through_the_gateway_however_they_name_it(home: Dormouse, stranger: Inside) -> None:
    """8.O1. The default lets every namespace call: the policy allows it, so it works, and all names are one function and one session."""
    answers = stranger.call(ENTRY, named_in_every_way(home.space, "mine", "shared"))
    assert [each.get("total") for each in answers] == [1, 2, 3, 4], answers
    [bare] = stranger.call(ENTRY, [{"model": "mine"}])
    assert bare["code"] == "NOT_FOUND", "a bare name is of the gateway's own default namespace, not of whoever calls"


def test_nothing_else_of_the_installation_can_be_dialled(home: Dormouse, stranger: Inside, neighbour: Inside) -> None:
    """8.O1, 8.O2. Not the worker, not the relay that holds, not the agent's or Envoy's administration, not the operator, not etcd: neither
    from another namespace nor from the function's own. Negative control: the gateway's port answers the same dialling, and the ports are
    there for whom the policies let in."""
    places = inner_places(home)
    gateways = [f"{pod['status']['podIP']}:8001" for pod in home.gateways()]
    for inside in (stranger, neighbour):
        found = inside.dial([*places, *gateways])
        assert {place for place in gateways if found[place] == OPEN} == set(gateways)
        assert {place: found[place] for place in places if found[place] == OPEN} == {}
    operator = Inside(home.cluster, SYSTEM, OPERATOR).dial([f"{worker_of(home, 'mine')}:9000", f"{ETCD}:2379"])
    assert set(operator.values()) == {OPEN}


def test_a_gateway_listens_at_its_callers_port_and_for_scrapers(home: Dormouse) -> None:
    """8.O2. Also without any policy: administration is at sockets in a folder of the pod's, the relay at loopback."""
    for pod in home.gateways():
        listening = Inside(home.cluster, SYSTEM, pod["metadata"]["name"], "envoy").listening()
        assert listening == {("any", 8001), ("any", 8003), ("any", 9090), ("loopback", 8002)}


def test_pods_that_pretend_to_be_ours_get_no_further(home: Dormouse, away: Dormouse) -> None:
    """Whoever may make pods in a namespace may label them. As a gateway: no worker lets it in. As a worker: etcd's port answers, and etcd
    itself refuses who has no password."""
    part = "dormouse.dev/part"
    gateway = callers.running(home.cluster, AWAY, "as-gateway", **{part: "gateway", "app.kubernetes.io/instance": RELEASE})
    found = gateway.dial([f"{worker_of(home, 'mine')}:9000", f"{ETCD}:2379"])
    assert set(found.values()) == {CLOSED}, found
    worker = callers.running(home.cluster, AWAY, "as-worker", **{part: "worker", "dormouse.dev/installation": "default"})
    assert worker.dial([f"{ETCD}:2379", f"{worker_of(home, 'mine')}:9000"]) == {
        f"{ETCD}:2379": OPEN,
        f"{worker_of(home, 'mine')}:9000": CLOSED,
    }
    authority = base64.b64decode(home.cluster.get("secret", f"{RELEASE}-etcd-tls", SYSTEM)["data"]["ca.crt"]).decode()
    for prefix in ("/dormouse/", f"/dormouse/default/data/{home.space}/mine/"):
        said = worker.python(ASK_STORE, ETCD, authority, "", "", prefix)
        assert "user name is empty" in said, said


def test_a_tenants_worker_reaches_its_own_keys_and_no_others(home: Dormouse, away: Dormouse) -> None:
    """8.O1, by etcd: what a handler, which is the tenant's code, can do with everything that lies in its pod."""
    assert home.call("mine", 5, session="kept") == 5
    uid = away.cluster.get("ifn", "theirs", AWAY)["metadata"]["uid"]
    [pod] = away.pods("theirs")
    worker = Inside(home.cluster, AWAY, pod)
    user, secret = f"dormouse/default/{uid}", "/etc/dormouse/store/password"
    root = "/dormouse/default/"
    own = worker.python(ASK_STORE, ETCD, "", user, secret, f"{root}map/{AWAY}/theirs/{uid}/")
    assert own.startswith("found"), own
    other = home.cluster.get("ifn", "mine", home.space)["metadata"]["uid"]
    for prefix in (
        f"{root}map/{home.space}/mine/{other}/", f"{root}data/{home.space}/mine/{other}/", f"{root}data/{AWAY}/theirs/",
        f"{root}functions/", f"{root}gateways/", f"{root}leader", root, "/",
    ):  # fmt: skip
        for action in ("list", "put"):
            said = worker.python(ASK_STORE, ETCD, "", user, secret, prefix, action)
            assert "permission denied" in said, (prefix, action, said)
    found = worker.dial(inner_places(home))
    assert {place for place, how in found.items() if how == OPEN} == {
        *(f"{address}:2379" for address in [ETCD, *addresses(home, SYSTEM, "dormouse.dev/part=etcd")]),
        *(f"{pod['status']['podIP']}:8003" for pod in home.gateways()),  # for calls of steps, with the worker's proof
    }
    assert home.call("mine", 5, session="kept") == 10


ASK_STORE = """
    import asyncio, sys
    from pathlib import Path
    from dormouse_core.seams import Put, StoreError, Txn
    from dormouse_kit.etcd import EtcdStore, TlsFiles

    host, authority, user, secret, prefix, *action = sys.argv[1:]
    ca = Path("/etc/dormouse/store/ca.crt")
    if authority:
        ca = Path("/dev/shm/ca.crt")
        ca.write_text(authority)

    async def ask():
        store = EtcdStore([host + ":2379"], tls=TlsFiles(ca), user=user, password=Path(secret).read_text().strip() if secret else "")
        try:
            if action == ["put"]:
                await store.txn(Txn((), (Put(prefix + "forged", b"x"),)), timeout=3)
                print("found that it may write")
            else:
                print("found", len((await store.list(prefix, keys_only=True, timeout=3)).items))
        except StoreError as error:
            print(error)
        finally:
            await store.close()

    asyncio.run(ask())
"""


def test_callers_that_the_policy_names_and_no_others(home: Dormouse, stranger: Inside, neighbour: Inside) -> None:
    """8.O1. `networkPolicies.callers` narrowed to one namespace: from elsewhere no name leads in, also not to a call that would be held;
    there all of them do."""
    key = "networkPolicies.callers[0].namespaceSelector.matchLabels.kubernetes\\.io/metadata\\.name"
    chart = [RELEASE, str(CHART), "-n", SYSTEM, "--reuse-values", "--set", f"{key}={home.space}"]
    home.cluster.helm("upgrade", *chart, "--wait", "--timeout", "60s")
    gateways = [f"{pod['status']['podIP']}:8001" for pod in home.gateways()]
    try:
        eventually("the gateways are closed", lambda: set(stranger.dial(gateways).values()) == {CLOSED})
        ways = [{**call, "timeout": 2} for call in named_in_every_way(home.space, "mine", "narrow")]
        held = [{"model": f"{AWAY}/sleepy", "timeout": 2}]
        answers = stranger.call(ENTRY, [*ways, *held])
        assert {each["code"] for each in answers} <= {"UNAVAILABLE", "DEADLINE_EXCEEDED"}, answers
        assert [each.get("total") for each in neighbour.call(ENTRY, ways)] == [1, 2, 3, 4]
        home.asleep("plain")
        [woken] = neighbour.call(ENTRY, [{"model": f"{home.space}/plain", "add": 7}])
        assert woken.get("total") == 7, woken
    finally:
        home.cluster.helm("rollback", RELEASE, "-n", SYSTEM, "--wait", "--timeout", "60s")
    eventually("they are open again", lambda: set(stranger.dial(gateways).values()) == {OPEN})


FRONT = """
from typing import ClassVar
from dormouse import Handler, Tensor

class Front(Handler):
    inputs: ClassVar = [Tensor("add", "INT64", [1])]
    outputs: ClassVar = [Tensor("total", "INT64", [1])]

    def step(self, inputs, state, ctx):
        function = "theirs" if inputs["add"][0] >= 0 else "PLACE/mine"
        return ctx.call(function, {"add": inputs["add"]}, session="front")
"""


def test_workers_dial_the_store_and_nothing_else_where_the_values_say_so(home: Dormouse, away: Dormouse) -> None:
    """`networkPolicies.workers.egress`. Before it, as the control, and after it, a worker dials the API server and a gateway's port for
    callers; with it neither, nor a cloud's metadata, and its steps are committed as ever, and call their namespace's functions, and no
    other's, by the gateways' port for workers. On our cluster DNS is no pod."""
    code = {"front.py": FRONT.replace("PLACE", home.space)}
    handler = {"model": {"uri": "configmap://front"}, "handler": "front:Front", "minReplicas": 1}
    away.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "front"}, "data": code}, echo("front", **handler))
    away.ready("front", 1)
    assert away.call("front", 5) == 5
    status, details = away.refused("front", add=-1)
    assert (status.name, "calls functions of its own namespace" in details) == ("PERMISSION_DENIED", True), details
    [pod] = away.pods("theirs")
    worker = Inside(home.cluster, AWAY, pod)
    api = home.cluster.get("service", "kubernetes", "default")["spec"]["clusterIP"]
    shut = [f"{api}:443", *(f"{pod['status']['podIP']}:8001" for pod in home.gateways())]
    store = [f"{address}:2379" for address in addresses(home, SYSTEM, "dormouse.dev/part=etcd")]
    store += [f"{pod['status']['podIP']}:8003" for pod in home.gateways()]
    assert set(worker.dial([*shut, *store]).values()) == {OPEN}
    values = ["networkPolicies.workers.egress=true", "networkPolicies.workers.dns[0].ipBlock.cidr=0.0.0.0/0"]
    words = [word for value in values for word in ("--set", value)]
    home.cluster.helm("upgrade", RELEASE, str(CHART), "-n", SYSTEM, "--reuse-values", *words, "--wait", "--timeout", "60s")
    try:
        eventually("the worker's ways out are closed", lambda: set(worker.dial(shut).values()) == {CLOSED}, 60)
        assert set(worker.dial(store).values()) == {OPEN}
        assert worker.dial(["169.254.169.254:80"]) == {"169.254.169.254:80": CLOSED}
        assert away.call("theirs", 2, session="closed") == 2
        assert away.call("front", 6) == 11
        away.asleep("sleepy")
        assert away.call("sleepy", 3) == 3, "a worker that starts finds the store, and its own address"
    finally:
        away.delete("front")
        home.cluster.helm("rollback", RELEASE, "-n", SYSTEM, "--wait", "--timeout", "60s")
    eventually("they are open again", lambda: set(worker.dial(shut).values()) == {OPEN}, 60)


EARLY = """
import socket, time
from typing import ClassVar
from dormouse import Handler, Tensor

def open_for():
    began = last = time.monotonic()
    while time.monotonic() < began + 8:
        try:
            socket.create_connection(("PLACE", 443), 0.2).close()
            last = time.monotonic()
        except OSError:
            pass
    return round(1000 * (last - began))

FOUND = open_for()

class Early(Handler):
    inputs: ClassVar = [Tensor("add", "INT64", [1])]
    outputs: ClassVar = [Tensor("total", "INT64", [1])]

    def step(self, inputs, state, ctx):
        return {"total": inputs["add"] + FOUND}
"""


def early(api: str) -> dict[str, Any]:
    code = EARLY.replace("PLACE", api)
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "early"}, "data": {"early.py": code}}


def ways(home: Dormouse, function: str) -> list[str]:
    """The ways of a function's workers that its policy is about."""
    return list(home.cluster.get("networkpolicies", f"{function}-workers", home.space)["spec"]["policyTypes"])


def made_at(home: Dormouse, kind: str, function: str) -> str:
    """When what the function consists of was made; there is one of each kind."""
    objects = (one["metadata"] for one in home.cluster.get(kind, "", home.space))
    (own,) = (it for it in objects if re.fullmatch(f"{function}(-workers|-[0-9a-f]{{6}})", it["name"]))
    return str(own["creationTimestamp"])


@pytest.mark.slow
def test_a_new_pods_ways_out_close_as_soon_as_the_network_knows_it(away: Dormouse) -> None:
    """`networkPolicies.workers.egress`. A function's policy is made before its Deployment. Whether a pod's very first packets are judged by
    it is the network plugin's: Kubernetes asks it, our cluster's knows a pod by its address, which it hears of later. A handler dials the
    API server from its first line on, for eight seconds. Control: without the policy it gets through for as long."""
    api = away.cluster.get("service", "kubernetes", "default")["spec"]["clusterIP"]
    handler = {"model": {"uri": "configmap://early"}, "handler": "early:Early"}
    away.apply(early(api), echo("early-open", **handler))
    away.phase("early-open", "Ready", "Asleep")
    assert away.call("early-open", 0) > 7_500
    values = ["networkPolicies.workers.egress=true", "networkPolicies.workers.dns[0].ipBlock.cidr=0.0.0.0/0"]
    words = [word for value in values for word in ("--set", value)]
    away.cluster.helm("upgrade", RELEASE, str(CHART), "-n", SYSTEM, "--reuse-values", *words, "--wait", "--timeout", "60s")
    try:
        eventually("an operator with these values leads", lambda: "Egress" in ways(away, "early-open"), 60)
        away.apply(echo("early", **handler))
        away.phase("early", "Ready", "Asleep")
        for _ in range(2):
            assert away.call("early", 0) < 6_000, "milliseconds"
            away.asleep("early")
        made = {kind: made_at(away, kind, "early") for kind in ("networkpolicies", "deployments")}
        assert made["networkpolicies"] <= made["deployments"]
    finally:
        away.delete("early", "early-open")
        away.cluster.helm("rollback", RELEASE, "-n", SYSTEM, "--wait", "--timeout", "60s")


# ------------------------------------------------------------------------------------------------------------------ what a call claims


def forged(home: Dormouse, owner: str) -> list[list[str]]:
    """What only a gateway may say, about somebody else's function."""
    uid = home.cluster.get("ifn", "mine", home.space)["metadata"]["uid"]
    place = f"{home.space}/mine"
    pairs = {
        "dormouse-fn": place, "dormouse-uid": uid, "dormouse-owner": owner, "dormouse-rev": "1", "dormouse-again": "1",
        "dormouse-call": "1700000000000000-g-forged-1", "x-envoy-original-dst-host": owner, "x-envoy-original-path": "/",
        "x-envoy-decorator-operation": place, "x-forwarded-host": f"mine.{home.space}", "x-forwarded-for": "10.0.0.1",
    }  # fmt: skip
    return [[name, value] for name, value in pairs.items()]


def test_a_call_goes_where_it_is_addressed_whatever_it_claims(home: Dormouse, away: Dormouse, stranger: Inside) -> None:
    """8.O1. On the fast path, held by the relay while the function wakes, and forwarded: the namespace of a call is what it is addressed
    to. What the gateway says of a call, a caller cannot."""
    assert home.call("mine", 100, session="target") == 100
    away.asleep("sleepy")
    claims = forged(home, f"{worker_of(home, 'mine')}:9000")
    session = ["dormouse-session", "target"]
    awake, held = stranger.call(
        ENTRY,
        [
            {"model": "theirs", "add": 1, "metadata": [*claims, session, ["dormouse-function", f"{AWAY}/theirs"]]},
            {"model": "sleepy", "add": 3, "metadata": [*claims, ["dormouse-function", f"{AWAY}/sleepy"]]},
        ],
    )
    assert (awake.get("total"), held.get("total")) == (1, 3), (awake, held)
    assert home.call("mine", 0, session="target") == 100
    contradictions = stranger.call(
        ENTRY,
        [
            {"model": f"{AWAY}/theirs", "metadata": [["dormouse-function", f"{home.space}/mine"]]},
            {"model": "theirs", "metadata": [["dormouse-function", f"{home.space}/mine"], ["dormouse-function", f"{AWAY}/theirs"]]},
            {"model": "theirs", "authority": f"theirs.{AWAY}", "metadata": [["dormouse-function", f"{home.space}/mine"]]},
        ],
    )
    assert {each["code"] for each in contradictions} == {"INVALID_ARGUMENT"}, contradictions


def test_administration_is_refused_to_callers(home: Dormouse, stranger: Inside) -> None:
    """8.O2, from a caller's pod."""
    addressed = [["dormouse-function", f"{home.space}/mine"]]
    for metadata in ([], addressed):
        answers = stranger.call(ENTRY, [{"method": method, "metadata": metadata, "timeout": 5} for method in ADMINISTRATION])
        assert {each["code"] for each in answers} == {"UNIMPLEMENTED"}, answers
    index, everything = stranger.call(ENTRY, [{"method": "RepositoryIndex", "metadata": addressed}, {"method": "RepositoryIndex"}])
    assert index["code"] == "OK"
    assert 0 < index["size"] < 120, "one function's"
    assert everything["code"] == "INVALID_ARGUMENT"


def test_the_function_address_of_a_worker_refuses_administration_too(home: Dormouse) -> None:
    """Who is let in to a worker's port, as the operator is, loads and unloads nothing there."""
    operator = Inside(home.cluster, SYSTEM, OPERATOR)
    answers = operator.call(f"{worker_of(home, 'mine')}:9000", [{"method": method, "timeout": 5} for method in ADMINISTRATION])
    assert {each["code"] for each in answers} == {"UNIMPLEMENTED"}, answers
    assert REFUSED not in operator.dial([f"{worker_of(home, 'mine')}:9000"]).values()
