"""Pods of a test's own, and what can be reached from inside of one: the position of a caller, or of a stranger."""

import json
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dormouse_testing.cluster.client import Cluster

SECURITY = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
WAIT = "import time; time.sleep(3600)"
OPEN, REFUSED, CLOSED = "open", "refused", "closed"  # CLOSED: no answer, as of a policy that drops


def pod(name: str, program: str, cluster: Cluster, **labels: str) -> dict[str, Any]:
    """Runs a Python program in the project's image; it may live in a namespace under Pod Security `restricted`."""
    image = cluster.chart_values()[1].removeprefix("image.repository=").replace(",image.tag=", ":")
    container = {
        "name": "it",
        "image": image,
        "command": ["python3", "-uc", program],
        "securityContext": SECURITY,
        "imagePullPolicy": "IfNotPresent",
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name, **labels}},
        "spec": {
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 0,
            "securityContext": {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [container],
        },
    }


@dataclass(frozen=True, slots=True)
class Inside:
    """A running pod, by `namespace` and `name` (`deploy/x` is one, too)."""

    cluster: Cluster
    namespace: str
    name: str
    container: str = ""

    def python(self, program: str, *words: str) -> str:
        """What it printed; ClusterError when it failed."""
        chosen = ["-c", self.container] if self.container else []
        return self.cluster.kubectl(
            "exec", "-n", self.namespace, self.name, *chosen, "--", "python3", "-c", textwrap.dedent(program), *words
        )

    def dial(self, places: Sequence[str]) -> dict[str, str]:
        """host:port -> OPEN, REFUSED or CLOSED; all at once."""
        found: dict[str, str] = json.loads(self.python(DIAL, json.dumps(list(places))))
        return found

    def call(self, target: str, calls: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Unary calls, one after the other. Of a call: `method` (ModelInfer), `model`, `add`, `metadata`, `authority`, `timeout`. Of an
        answer: `code`, `details`, and where it is OK `total` of a ModelInfer, else `size`."""
        found: list[dict[str, Any]] = json.loads(self.python(CALL, target, json.dumps(list(calls))))
        return found

    def listening(self) -> set[tuple[str, int]]:
        """(address, port) of its TCP sockets that listen: `any`, `loopback` or `pod`."""
        return {(kind, int(port)) for kind, port in json.loads(self.python(LISTENING))}

    def metric(self, name: str, port: int = 9090) -> float:
        """The sum of a series over its labels; 0 where there is none."""
        return total(self.python(METRICS, str(port)), name)


def running(cluster: Cluster, namespace: str, name: str, **labels: str) -> Inside:
    """A pod that waits to be told what to try."""
    cluster.apply(pod(name, WAIT, cluster, **labels), namespace=namespace)
    cluster.kubectl("wait", "-n", namespace, "--for=condition=Ready", f"pod/{name}", "--timeout=60s")
    return Inside(cluster, namespace, name)


DIAL = """
    import json, socket, sys
    from concurrent.futures import ThreadPoolExecutor

    def dial(place):
        host, _, port = place.rpartition(":")
        try:
            socket.create_connection((host, int(port)), 2).close()
        except ConnectionRefusedError:
            return "refused"
        except OSError:
            return "closed"
        return "open"

    places = json.loads(sys.argv[1])
    with ThreadPoolExecutor(64) as pool:
        print(json.dumps(dict(zip(places, pool.map(dial, places)))))
"""

CALL = """
    import json, struct, sys
    import grpc
    from dormouse_proto import inference_pb2

    def one(target, call):
        method = call.get("method", "ModelInfer")
        message = inference_pb2.ModelInferRequest(model_name=call.get("model", ""))
        message.inputs.add(name="add", datatype="INT64", shape=[1])
        message.raw_input_contents.append(struct.pack("<q", call.get("add", 0)))
        body = message.SerializeToString() if method == "ModelInfer" else b""
        options = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]
        options += [("grpc.default_authority", call["authority"])] if "authority" in call else []
        with grpc.insecure_channel(call.get("target", target), options=options) as channel:
            send = channel.unary_unary("/inference.GRPCInferenceService/" + method)
            try:
                reply = send(body, timeout=call.get("timeout", 30), metadata=call.get("metadata", []))
            except grpc.RpcError as error:
                return {"code": error.code().name, "details": error.details()}
        if method != "ModelInfer":
            return {"code": "OK", "details": "", "size": len(reply)}
        content = inference_pb2.ModelInferResponse.FromString(reply).raw_output_contents[0]
        return {"code": "OK", "details": "", "total": struct.unpack("<q", content)[0]}

    print(json.dumps([one(sys.argv[1], call) for call in json.loads(sys.argv[2])]))
"""

CALLING = """
import struct, sys, threading, time
import grpc
from dormouse_proto import inference_pb2

TARGET, MODEL, SESSION = {target!r}, {model!r}, {session!r}
OPTIONS = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]
METADATA = [("dormouse-session", SESSION)]
message = inference_pb2.ModelInferRequest(model_name=MODEL)
message.inputs.add(name="add", datatype="INT64", shape=[1])
message.raw_input_contents.append(struct.pack("<q", 0))
BODY = message.SerializeToString()
good = 0

def call(stays, pause):
    global good
    channel = grpc.insecure_channel(TARGET, options=OPTIONS)
    while True:
        try:
            channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")(BODY, timeout=30, metadata=METADATA)
            good += 1
        except grpc.RpcError as error:
            print("FAILED", stays, pause, error.code().name, error.details(), flush=True)
        if not stays:
            channel.close()
            channel = grpc.insecure_channel(TARGET, options=OPTIONS)
        time.sleep(pause)

for stays, pause in ((True, 0.05), (True, 0.05), (True, 1.3), (True, 4.1), (False, 0.05), (False, 0.05)):
    threading.Thread(target=call, args=(stays, pause), daemon=True).start()
while True:
    time.sleep(0.5)
    print("ANSWERED", good, flush=True)
"""
"""A caller with nothing but a gRPC library, for `pod`: it says how many calls were answered, and which failed."""

LISTENING = """
    import json, pathlib

    found = []
    for name in ("tcp", "tcp6"):
        for line in pathlib.Path("/proc/net", name).read_text().splitlines()[1:]:
            words = line.split()
            address, port = words[1].split(":")
            if words[3] == "0A":
                loopback = address.endswith(("0100007F", "0" * 24 + "01000000"))
                kind = "any" if not int(address, 16) else "loopback" if loopback else "pod"
                found.append((kind, int(port, 16)))
    print(json.dumps(found))
"""

METRICS = """
    import sys, urllib.request

    print(urllib.request.urlopen(f"http://127.0.0.1:{sys.argv[1]}/metrics", timeout=5).read().decode())
"""


def total(text: str, name: str) -> float:
    """The sum of the series `name`, or of one of its label sets (`name{watch="pods"}`), in Prometheus' text."""
    lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    return sum(float(value) for series, _, value in lines if name in (series, series.partition("{")[0]))
