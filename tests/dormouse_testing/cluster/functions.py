"""Dormouse installed on a cluster, its functions by kubectl, and calls through the gateway's Service."""

import contextlib
import json
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import grpc
from dormouse_core import headernames
from dormouse_proto import inference_pb2, inference_pb2_grpc

from dormouse_testing.cluster.client import CHART, Cluster, eventually
from dormouse_testing.cluster.layout import ClusterError

RELEASE = "dormouse"
SYSTEM = "dormouse-system"
CRD = "inferencefunctions.dormouse.dev"
ANY_USER = "podSecurity.runAsUser=1000650000,podSecurity.runAsGroup=0,podSecurity.fsGroup=1000650000"
"""As OpenShift would choose: a user that no image knows, in the group 0. `test_install.py` has the chart's own."""
GATEWAY = f"{RELEASE}-gateway"
STORE = f"{RELEASE}-etcd-0.{SYSTEM}.svc.cluster.local:2379"
OPERATOR = f"deployment/{RELEASE}-operator"
OPTIONS = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]

COUNTER = """
import time
from typing import ClassVar
from dormouse import Handler, State, Tensor

class Counter(Handler):
    inputs: ClassVar = [Tensor("add", "INT64", [1])]
    outputs: ClassVar = [Tensor("total", "INT64", [1])]
    states: ClassVar = [State("sum", "INT64", [1])]

    def step(self, inputs, state, ctx):
        state["sum"] += inputs["add"]
        return {"total": state["sum"].copy()}

class Echo(Handler):
    inputs: ClassVar = [Tensor("add", "INT64", [1])]
    outputs: ClassVar = [Tensor("total", "INT64", [1])]

    def step(self, inputs, state, ctx):
        eaten = b"x" * (max(0, -int(inputs["add"][0])) << 20)
        time.sleep(max(0, int(inputs["add"][0])) / 1000)
        return {"total": inputs["add"]}
"""
CODE: dict[str, Any] = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "code"}, "data": {"counter.py": COUNTER}}


def counter(name: str, **spec: Any) -> dict[str, Any]:
    """Stateful: the sum of what a session was given."""
    return _function(name, {"handler": "counter:Counter", "sessions": {"shards": 16}, **spec})


def echo(name: str, **spec: Any) -> dict[str, Any]:
    """Stateless: sleeps as many ms as it is given, or takes as many MiB as that is below zero, and gives it back."""
    return _function(name, {"handler": "counter:Echo", **spec})


def _function(name: str, spec: dict[str, Any]) -> dict[str, Any]:
    common = {"runtime": "python", "model": {"uri": "configmap://code"}, "scaleToZeroAfter": "3s"}
    return {
        "apiVersion": "dormouse.dev/v1alpha1",
        "kind": "InferenceFunction",
        "metadata": {"name": name},
        "spec": {**common, **spec},
    }


def _request(name: str, add: int) -> Any:
    message = inference_pb2.ModelInferRequest(model_name=name)
    message.inputs.add(name="add", datatype="INT64", shape=[1])
    message.raw_input_contents.append(struct.pack("<q", add))
    return message


@dataclass(slots=True)
class Dormouse:
    """`space`: the namespace of the functions."""

    cluster: Cluster
    address: str
    space: str
    channel: grpc.Channel = field(init=False)
    pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(64))

    def __post_init__(self) -> None:
        self.channel = grpc.insecure_channel(self.address, options=OPTIONS)

    def close(self) -> None:
        self.pool.shutdown()
        self.channel.close()

    def said(self) -> str:
        """What the operator said, now and before it was started anew, for who looks into a failure."""
        told = ""
        for words in ((), ("--previous",)):
            with contextlib.suppress(ClusterError):
                told += self.cluster.kubectl("logs", "-n", SYSTEM, OPERATOR, "--tail=150", *words)
        return told

    # ------------------------------------------------------------------------------------------------------------------ objects

    def apply(self, *manifests: dict[str, Any]) -> None:
        self.cluster.apply(*manifests, namespace=self.space)

    def delete(self, *names: str) -> None:
        self.cluster.kubectl("delete", "ifn", *names, "-n", self.space, "--ignore-not-found", "--wait=false")

    def patch(self, name: str, spec: dict[str, Any]) -> None:
        words = ["ifn", name, "-n", self.space, "--type=merge", "-p", json.dumps({"spec": spec})]
        self.cluster.kubectl("patch", *words)

    def status(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.cluster.get("ifn", name, self.space).get("status", {})
        return found

    def condition(self, name: str, kind: str) -> dict[str, Any]:
        return next((c for c in self.status(name).get("conditions", []) if c["type"] == kind), {})

    def reason(self, name: str, kind: str, reason: str, seconds: float = 30.0) -> str:
        """The condition's message, once it has this reason."""

        def look() -> str:
            found = self.condition(name, kind)
            return str(found["message"]) if found.get("reason") == reason else ""

        return eventually(f"{kind} of {name} has the reason {reason}", look, seconds)

    def phase(self, name: str, *phases: str, seconds: float = 120.0) -> None:
        eventually(f"{name} is {' or '.join(phases)}", lambda: self.status(name).get("phase") in phases, seconds)

    def ready(self, name: str, count: int, seconds: float = 120.0) -> None:
        eventually(f"{name} has {count} workers", lambda: self.status(name).get("readyReplicas") == count, seconds)

    def asleep(self, name: str, seconds: float = 120.0) -> None:
        """And no pod is left."""
        self.phase(name, "Asleep", seconds=seconds)
        eventually(f"no pod of {name} is left", lambda: not self.pods(name), seconds)

    def pods(self, name: str) -> list[str]:
        found = self.cluster.get("pods", "", self.space, "-l", f"dormouse.dev/function={name}")
        return [pod["metadata"]["name"] for pod in found]

    # ------------------------------------------------------------------------------------------------------------------ calls

    def call(self, name: str, add: int = 1, *, session: str = "", key: str = "", timeout: float | None = 60.0) -> int:
        """The total that the function answers. `key`: the call's idempotency key."""
        more = {headernames.SESSION: session, headernames.IDEMPOTENCY_KEY: key}
        metadata = [*self._metadata(name), *((header, value) for header, value in more.items() if value)]
        stub = inference_pb2_grpc.GRPCInferenceServiceStub(self.channel)
        reply = stub.ModelInfer(_request(name, add), timeout=timeout, metadata=metadata)
        return int(struct.unpack("<q", reply.raw_output_contents[0])[0])

    def raw(self, name: str, add: int, done: Callable[[Any], None]) -> Any:
        """A call without a thread of its own; `done(future)` when it has ended."""
        future = inference_pb2_grpc.GRPCInferenceServiceStub(self.channel).ModelInfer.future(
            _request(name, add), timeout=120.0, metadata=self._metadata(name)
        )
        future.add_done_callback(done)
        return future

    def _metadata(self, name: str) -> list[tuple[str, str]]:
        return [("dormouse-function", f"{self.space}/{name}")]

    def begin(self, name: str, add: int = 1, *, session: str = "", timeout: float | None = 60.0) -> "Future[int]":
        return self.pool.submit(self.call, name, add, session=session, timeout=timeout)

    def refused(self, name: str, timeout: float | None = 60.0, add: int = 0) -> tuple[grpc.StatusCode, str]:
        """The status of a call that must fail."""
        try:
            total = self.call(name, add, timeout=timeout)
        except grpc.RpcError as error:
            return error.code(), str(error.details())
        raise AssertionError(f"{name} answered {total}")

    # ------------------------------------------------------------------------------------------------------------------ the system

    def restarts(self) -> dict[str, int]:
        """pod/container of the installation -> how often it was started again."""
        return {
            f"{pod['metadata']['name']}/{container['name']}": container["restartCount"]
            for pod in self.cluster.get("pods", "", SYSTEM)
            for container in pod["status"].get("containerStatuses", [])
        }

    def gateways(self) -> list[dict[str, Any]]:
        """Pods that were not told to go: one that was serves on for a while."""
        found = self.cluster.get("pods", "", SYSTEM, "-l", "dormouse.dev/part=gateway")
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def stored(self, prefix: str = "/dormouse/default/") -> list[str]:
        """What the store holds below `prefix`, asked from the operator's pod as root, but for what was used: that outlives its function."""
        program = KEYS.format(endpoint=STORE, prefix=prefix, ca="/etc/dormouse/tls/ca.crt", password="/etc/dormouse/users/operator")
        return self.cluster.kubectl("exec", "-n", SYSTEM, OPERATOR, "--", "python3", "-c", program).split()


KEYS = """
import asyncio
from pathlib import Path
from dormouse_kit.etcd import EtcdStore, TlsFiles

async def ask():
    store = EtcdStore(["{endpoint}"], tls=TlsFiles(Path("{ca}")), user="root", password=Path("{password}"))
    listing = await store.list("{prefix}", keys_only=True)
    used = ("{prefix}usage-of-deleted/", "{prefix}usage-history/")
    print(*[item.key for item in listing.items if not item.key.startswith(used)])
    await store.close()

asyncio.run(ask())
"""


def clear(cluster: Cluster, space: str = "") -> None:
    """No function and no worker is left in `space`, or anywhere. A namespace that still has workers when it is deleted goes when half of
    their grace period is over, however soon they end."""
    where = ["-n", space] if space else ["-A"]
    with contextlib.suppress(ClusterError):
        cluster.kubectl("delete", "ifn", "--all", *where, "--timeout=30s")
        cluster.kubectl("wait", "--for=delete", "pods", "-l", "dormouse.dev/function", *where, "--timeout=60s")


@contextlib.contextmanager
def installation(cluster: Cluster, *values: str) -> Iterator[None]:
    """The chart with etcd without a volume, and nothing of it left afterwards."""
    if cluster.exists("crd", CRD):
        raise ClusterError(f"{CRD} is there already: this installs, uninstalls and removes it")
    words = [
        word
        for value in ("singleNode=true", "gateway.replicas=2", "etcd.persistence.enabled=false", ANY_USER, *values)
        for word in ("--set", value)
    ]
    with contextlib.ExitStack() as ends:
        # Last: while a kind goes, the end of a namespace waits for who still counts it among the kinds to look through.
        ends.callback(cluster.kubectl, "delete", "crd", CRD, "--ignore-not-found")
        ends.callback(cluster.settle)
        ends.enter_context(cluster.namespace(SYSTEM))
        ends.callback(cluster.helm, "uninstall", RELEASE, "-n", SYSTEM, "--ignore-not-found", "--wait")
        ends.callback(clear, cluster)
        cluster.helm("install", RELEASE, str(CHART), "-n", SYSTEM, *cluster.chart_values(), *words, "--wait", "--timeout", "180s")
        yield


@contextlib.contextmanager
def functions(cluster: Cluster, space: str) -> Iterator[Dormouse]:
    """A namespace of functions, or `default`, with the code of `counter` and `echo`; nothing of it is left afterwards."""
    made = contextlib.nullcontext() if space == "default" else cluster.namespace(space)
    with made, cluster.reached(GATEWAY, SYSTEM, 8001) as address, contextlib.closing(Dormouse(cluster, address, space)) as dormouse:
        dormouse.apply(CODE)
        try:
            yield dormouse
        finally:
            if space == "default":
                clear(cluster, space)
                cluster.kubectl("delete", "configmap", CODE["metadata"]["name"], "-n", space, "--ignore-not-found")


@contextlib.contextmanager
def installed(cluster: Cluster, space: str, *values: str) -> Iterator[Dormouse]:
    with installation(cluster, *values), functions(cluster, space) as dormouse:
        yield dormouse
