"""The demo on Kubernetes: `helm install`, `kubectl apply`, calls by the unmodified tritonclient, and what a cluster does to pods meanwhile.

Run by ``make cluster-demo``, on the cluster that KUBECONFIG names or on a real one that it starts on this machine. Every sentence is
checked: it exits non-zero if one of them is untrue. What `kubectl get ifn` says is held against the pods at each point.
"""

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import yaml
from demo import FILES, HERE, KINDS, Caller, Untrue, check, directly, say
from dormouse_testing.cluster import holding
from dormouse_testing.cluster.client import CHART, Cluster
from dormouse_testing.cluster.layout import ClusterError

RELEASE, SYSTEM, SPACE = "dormouse", "dormouse", "default"
CRD = "inferencefunctions.dormouse.dev"
GATEWAY = f"{RELEASE}-gateway"
KEPT = {
    "pvc": f"app.kubernetes.io/instance={RELEASE},dormouse.dev/part=etcd",
    "secret": f"dormouse.dev/release={RELEASE},dormouse.dev/part=etcd",
}
KINDS_OF_OURS = "deployments,statefulsets,replicasets,pods,services,configmaps,secrets,poddisruptionbudgets,networkpolicies,serviceaccounts"
BINDINGS = "clusterroles,clusterrolebindings"


class Installed:
    """A cluster with Dormouse in it, as its user sees it: by helm and kubectl."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    def wait(self, what: str, true: Callable[[], Any], seconds: float = 120.0) -> Any:
        until = time.monotonic() + seconds
        while True:
            with contextlib.suppress(ClusterError, Untrue):  # the deadline decides
                if found := true():
                    return found
            if time.monotonic() > until:
                raise Untrue(f"{what}: not within {seconds:g} s")
            time.sleep(0.1)

    def status(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.cluster.get("ifn", name, SPACE).get("status", {})
        return found

    def pods(self, name: str) -> list[dict[str, Any]]:
        """A function's pods that are not on their way out."""
        found = self.cluster.get("pods", "", SPACE, "-l", f"dormouse.dev/function={name}")
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def reaches(self, name: str, phase: str, ready: int, seconds: float = 120.0) -> None:
        """Until the object says so and the pods agree."""

        def true() -> bool:
            status = self.status(name)
            return status.get("phase") == phase and status.get("readyReplicas") == ready and len(self.pods(name)) == ready

        self.wait(f"{name} is {phase} with {ready} workers", true, seconds)

    def table(self) -> None:
        for line in self.cluster.kubectl("get", "ifn", "-n", SPACE).splitlines():
            print(f"{'':12}{line.rstrip()}", flush=True)


def apply(cluster: Cluster, name: str) -> None:
    """The example's manifest; `file://` lies in the image of its workers."""
    manifest = yaml.safe_load((HERE / f"{name}.yaml").read_text())
    manifest["spec"]["workers"] = {"image": cluster.models_image}
    cluster.apply(manifest, namespace=SPACE)


def everything(cluster: Cluster) -> set[tuple[str, str, str]]:
    """(kind, namespace, name) of all that an installation or a function might leave."""
    found = cluster.get(KINDS_OF_OURS) + cluster.get(BINDINGS)
    return {(each["kind"], each["metadata"].get("namespace", ""), each["metadata"]["name"]) for each in found}


@contextlib.contextmanager
def release(cluster: Cluster) -> Iterator[None]:
    """`helm install` for a single node with two gateways, this cluster's images and a small disk; whatever the story leaves is removed."""
    for kind, name in (("crd", CRD), ("namespace", SYSTEM)):  # all of it goes at the end
        if cluster.exists(kind, name):
            raise ClusterError(f"{kind} {name} is there already, and the demo removes what it installs: name a cluster without Dormouse")
    values = [*cluster.chart_values(), "--set", "singleNode=true,gateway.replicas=2,etcd.persistence.size=1Gi"]
    cluster.volume(f"{SYSTEM}-demo")
    try:
        cluster.helm("install", RELEASE, str(CHART), "-n", SYSTEM, "--create-namespace", *values, "--wait", "--timeout", "180s")
        yield
    except BaseException:
        with contextlib.suppress(ClusterError):
            print(cluster.kubectl("logs", "-n", SYSTEM, f"deploy/{RELEASE}-operator", "--tail=60"), file=sys.stderr)
        raise
    finally:
        if cluster.exists("crd", CRD):
            cluster.kubectl("delete", "ifn", "vad", "filetype", "-n", SPACE, "--ignore-not-found")
        cluster.helm("uninstall", RELEASE, "-n", SYSTEM, "--ignore-not-found", "--wait")
        cluster.kubectl("delete", "crd", CRD, "--ignore-not-found")
        cluster.kubectl("delete", "namespace", SYSTEM, "--ignore-not-found")
        if cluster.own:
            cluster.kubectl("delete", "pv", f"{SYSTEM}-demo", "--ignore-not-found")


def tell(cluster: Cluster) -> None:
    before = everything(cluster)
    with release(cluster):
        say("helm install: operator, two gateways and etcd are ready")
        story(cluster, before)


def story(cluster: Cluster, before: set[tuple[str, str, str]]) -> None:
    dormouse, expected = Installed(cluster), directly()
    heard: list[float] = []

    def hear(result: dict[str, Any]) -> float:
        """Compares these windows with the model run directly; the slowest step in seconds."""
        for index, speech in zip(result["windows"], result["speech"], strict=True):
            check(index == len(heard), f"window {index} came after {len(heard)} others")
            off = abs(speech - expected[index])
            check(off <= 1e-6, f"window {index}: {speech} heard, {expected[index]} is right")
            heard.append(speech)
        return float(max(result["seconds"]))

    installed = everything(cluster)
    for name in ("vad", "filetype"):
        apply(cluster, name)
    for name in ("vad", "filetype"):
        dormouse.reaches(name, "Asleep", 0)
    say("kubectl apply: both functions were proved once and sleep; no worker's pod runs")
    dormouse.table()

    with cluster.reached(GATEWAY, SYSTEM, 8001) as address:
        host, _, port = address.rpartition(":")
        caller = Caller(int(port), host)
        first = caller.call("classify", files=FILES[:1])
        dormouse.reaches("filetype", "Ready", 1)
        say(f"filetype: the first call found zero pods and was answered after {first['seconds'][0]:.2f} s")
        kinds = caller.call("classify", files=FILES)
        check(kinds["labels"] == list(KINDS.values()), f"files recognised as {kinds['labels']}, {list(KINDS.values())} is right")
        say(f"filetype: {len(FILES)} real files recognised: {', '.join(kinds['labels'])}")

        first = caller.call("listen", **{"from": 0, "to": 1})
        hear(first)
        slowest = hear(caller.call("listen", **{"from": 1, "to": 20}))
        say(f"vad: window 0 after {first['seconds'][0]:.2f} s from zero, 1 to 19 as the model gives them; slowest {slowest * 1e3:.1f} ms")
        dormouse.table()

        listening = caller.send("listen", **{"from": 20, "to": 70, "pace": 0.1})
        time.sleep(0.5)
        owner = dormouse.pods("vad")[0]["metadata"]["name"]
        cluster.kubectl("delete", "pod", owner, "-n", SPACE, "--wait=false")
        slowest = hear(caller.result(listening))
        left = [pod["metadata"]["name"] for pod in dormouse.pods("vad")]
        check(bool(left) and owner not in left, f"{owner} was deleted; {left} serve")
        say(f"vad: kubectl delete pod {owner}, the owner, in mid-sequence: no call failed; slowest step {slowest:.2f} s")

        listening = caller.send("listen", **{"from": 70, "to": 120, "pace": 0.3})
        for count in (3, 1):
            cluster.kubectl("patch", "ifn", "vad", "-n", SPACE, "--type=merge", "-p", json.dumps({"spec": {"replicas": count}}))
            dormouse.reaches("vad", "Ready", count)
            dormouse.table()
        slowest = hear(caller.result(listening))
        say(f"vad: replicas: 3, and 1 again, meanwhile: no call failed; slowest step {slowest:.2f} s")

        cluster.kubectl("patch", "ifn", "vad", "-n", SPACE, "--type=merge", "-p", json.dumps({"spec": {"replicas": None}}))
        dormouse.reaches("vad", "Asleep", 0)
        say("vad: replicas: null, and at zero in mid-sequence")
        dormouse.table()
        woken = caller.call("listen", **{"from": 120, "to": 121})
        hear(woken)
        rest = hear(caller.call("listen", **{"from": 121, "to": len(expected), "end": True}))
        say(f"vad: woke after {woken['seconds'][0]:.2f} s, remembering; slowest step of the rest {rest * 1e3:.1f} ms")
        say(f"vad: all {len(heard)} windows within 1e-6 of the model run directly")
        for name in ("vad", "filetype"):
            dormouse.reaches(name, "Asleep", 0)
        say("both sleep again")

    cluster.kubectl("delete", "ifn", "vad", "filetype", "-n", SPACE)
    dormouse.wait("kubectl delete ifn leaves nothing", lambda: not extra(cluster, installed))
    say("kubectl delete ifn: nothing of them is left in the cluster")
    cluster.helm("uninstall", RELEASE, "-n", SYSTEM, "--wait")
    kept = [f"Secret {RELEASE}-etcd-{name}" for name in ("authority", "passwords", "tls")]
    dormouse.wait(f"helm uninstall leaves {kept}", lambda: sorted(extra(cluster, before, SYSTEM)) == kept)
    check(cluster.exists("crd", CRD), "helm uninstall took the CustomResourceDefinition, and every function with it")
    say("helm uninstall: left are the CustomResourceDefinition, etcd's volume and its Secrets, as its notes say")
    for kind, labels in KEPT.items():
        cluster.kubectl("delete", kind, "-n", SYSTEM, "-l", labels)
    cluster.kubectl("delete", "crd", CRD)
    dormouse.wait("nothing is left", lambda: not extra(cluster, before, SYSTEM))
    say("and these go by the commands of the notes: nothing is left")


def extra(cluster: Cluster, before: set[tuple[str, str, str]], *new: str) -> list[str]:
    """What there is now and was not. `new`: namespaces that came since, whose own default objects do not count."""
    own = {("ConfigMap", "kube-root-ca.crt"), ("ServiceAccount", "default")}
    found = everything(cluster) - before
    return [f"{kind} {name}" for kind, space, name in found if not (space in new and (kind, name) in own)]


def main() -> None:
    try:
        with holding.cluster() as cluster:
            say("a cluster is up")
            holding.bring_images(cluster, models=True)
            say("its node has the images of this tree")
            tell(cluster)
    except holding.Unavailable as reason:
        sys.exit(f"no cluster: {reason}")
    except (Untrue, ClusterError) as untrue:
        sys.exit(f"untrue: {untrue}")


if __name__ == "__main__":
    main()
