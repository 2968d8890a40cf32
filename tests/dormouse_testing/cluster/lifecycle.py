"""A cluster comes up, and goes without a trace but its caches."""

import functools
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dormouse_testing.cluster import certificates, control_plane, images, nodes, tools
from dormouse_testing.cluster.layout import CLAIM, ClusterError, Layout, Node, Timing
from dormouse_testing.cluster.processes import alive, attempt, end, run, until


def prepare(layout: Layout) -> None:
    """Everything that is made once: packages, binaries, the pause image."""
    if reason := tools.impossible():
        raise ClusterError(reason)
    tools.install()
    tools.build(layout)
    images.pause(layout)


def up(layout: Layout, count: int, timing: Timing | None = None) -> list[Node]:
    prepare(layout)
    if running(layout):
        raise ClusterError("the cluster is up already")
    _claim(layout)
    clear(layout)
    chosen = [layout.node(number) for number in range(1, count + 1)]
    try:
        certificates.make(layout, chosen)
        control_plane.network_up(layout)
        control_plane.start(layout, timing or Timing())
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda node: nodes.start(layout, node, [other for other in chosen if other != node]), chosen))
        for node in chosen:
            until(f"{node.name} is ready", functools.partial(ready, layout, node))
    except BaseException:
        down(layout)
        raise
    return chosen


def ready(layout: Layout, node: Node) -> bool:
    path = '-o=jsonpath={.status.conditions[?(@.type=="Ready")].status}'
    return run(layout.kube, "kubectl", f"--kubeconfig={layout.kubeconfig}", "get", "node", node.name, path, quiet=True) == "True"


def running(layout: Layout) -> bool:
    return alive(layout.run / "host-apiserver.pid") != 0


def current_nodes(layout: Layout) -> list[Node]:
    """Those with a namespace of their own now."""
    return [node for node in layout.known_nodes() if Path("/run/netns", node.name).exists()]


def down(layout: Layout) -> None:
    """Safe to call again, and after a crash."""
    for node in layout.known_nodes():
        nodes.lose(layout, node)
        attempt("ip", "route", "del", node.pods)
    end(list(layout.run.glob("host-*.pid")))
    control_plane.network_down(layout)
    clear(layout)
    _sweep(layout)
    if CLAIM.exists() and CLAIM.read_text() == str(layout.home):
        CLAIM.unlink()


def clear(layout: Layout) -> None:
    """What a run left on disk and the next may not meet. `up` clears it, too: a run that was killed with its machine had no `down`."""
    for node in layout.known_nodes():
        nodes.forget(node)
    layout.remove("etcd", "run")
    (layout.home / "Corefile").unlink(missing_ok=True)


def _claim(layout: Layout) -> None:
    """One cluster a machine. One that crashed is cleared away, one that runs is respected."""
    if CLAIM.exists():
        other = Layout(Path(CLAIM.read_text()))
        if running(other):
            raise ClusterError(f"a cluster of {other.home} runs on this machine; there can be one at a time")
        down(other)
    CLAIM.write_text(str(layout.home))


def _sweep(layout: Layout) -> None:
    """What kubelet, containerd and CNI keep in places that cannot be chosen."""
    logs = Path("/var/log/containers")
    if logs.exists():
        for link in logs.iterdir():
            if link.is_symlink() and str(link.readlink()).startswith(f"{layout.home}/"):
                link.unlink()
    for pattern in ("pods-*", "cni-loopback-*"):
        for file in Path("/var/lib/cni/results").glob(pattern):
            file.unlink()
    Path("/var/lib/kubelet/device-plugins/kubelet.sock").unlink(missing_ok=True)
    for folder in ("/var/lib/cni/results", "/var/lib/kubelet/device-plugins", "/var/log/containers", "/run/containerd/s"):
        attempt("rmdir", "-p", folder)


def purge(layout: Layout) -> None:
    """After `down`: the nodes' disks too, with every image in them."""
    for node in layout.known_nodes():
        shutil.rmtree(node.home, ignore_errors=True)
