"""One node: its network, its cgroup, containerd, kubelet, proxy and judge of policies; and what may happen to it."""

import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

from dormouse_testing.cluster import control_plane
from dormouse_testing.cluster.layout import BRIDGE, HOST_IP, PODS, SERVICES, Layout, Node
from dormouse_testing.cluster.processes import FREEZER, attempt, run, spawn, until

CGROUPS = Path("/sys/fs/cgroup")
PAUSE = "localhost/pause:1"
JUDGE = "100"  # the netfilter queue that `kube policies` reads

# oom_score_adj: root may lack CAP_SYS_RESOURCE, and runc then dies on the pause container's -998.
CONTAINERD = """\
version = 2
root = "{home}/containerd"
state = "{state}"
[grpc]
  address = "{socket}"
[plugins."io.containerd.internal.v1.opt"]
  path = "{home}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{home}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    options = {{Root = "{state}/runc"}}
"""


def start(layout: Layout, node: Node, others: list[Node]) -> None:
    """A new node, or one that was lost: its disk, with the images, is as it was."""
    _configure(layout, node)
    _cgroups(node)
    _network(node, others)
    spawn(layout, "containerd", ["containerd", "-c", str(node.home / "containerd.toml")], node)
    until(f"containerd of {node.name} answers", lambda: attempt("ctr", "-a", node.socket, "version"))
    run("ctr", "-a", node.socket, "-n", "k8s.io", "images", "import", layout.images / "pause.tar")
    spawn(layout, "kubelet", [
        layout.kube, "kubelet", f"--config={node.home}/kubelet.json", f"--kubeconfig={layout.kubeconfig_of(node.name)}",
        f"--hostname-override={node.name}", f"--root-dir={node.home}/kubelet", f"--cert-dir={node.home}/kubelet/pki",
        f"--node-ip={node.ip}",
    ], node)  # fmt: skip
    control_plane.start_proxy(layout, node)
    _judge(layout, node)


def lose(layout: Layout, node: Node) -> None:
    """A power cut: the disk is left, nothing else. Pods go with it."""
    attempt("ip", "link", "del", node.name)  # not only down: unsent TCP goodbyes would keep the namespace for minutes
    thaw(node)  # a frozen process does not die
    group = FREEZER / node.name
    while processes := _processes(group):
        for pid in processes:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.05)
    for file in node.state.glob("io.containerd.runtime.v2.task/*/*/address"):
        Path(file.read_text().removeprefix("unix://")).unlink(missing_ok=True)
    mounts = re.findall(rf" ({re.escape(str(node.home))}/[^ ]*) ", Path("/proc/mounts").read_text())
    for mount in sorted(mounts, reverse=True):
        attempt("umount", "-l", mount)
    attempt("ip", "netns", "del", node.name)
    for controller in CGROUPS.iterdir():
        if (controller / node.name).exists():
            attempt("find", controller / node.name, "-depth", "-type", "d", "-exec", "rmdir", "{}", "+")
    shutil.rmtree(node.state, ignore_errors=True)
    for file in layout.run.glob(f"{node.name}-*.pid"):
        file.unlink()


def forget(node: Node) -> None:
    """Of its disk, what is only one run's: volumes with the passwords of its etcd, above all. Images stay."""
    for name in ("kubelet", "leases", "pod-logs", "opt", "cni", "volumes"):
        shutil.rmtree(node.home / name, ignore_errors=True)


def isolate(node: Node) -> None:
    """A partition: its processes run on."""
    run("ip", "link", "set", node.name, "down")


def rejoin(node: Node) -> None:
    run("ip", "link", "set", node.name, "up")


def freeze(node: Node) -> None:
    """A paused machine."""
    (FREEZER / node.name / "freezer.state").write_text("FROZEN")


def thaw(node: Node) -> None:
    state = FREEZER / node.name / "freezer.state"
    if state.exists():
        state.write_text("THAWED")


def _processes(group: Path) -> list[int]:
    """Also of groups below it, any of which may go while it is looked at: containerd clears up until it is killed itself."""
    return [int(pid) for folder, _, _ in os.walk(group) for pid in _words(Path(folder, "cgroup.procs"))]


def _words(file: Path) -> list[str]:
    try:
        return file.read_text().split()
    except OSError:
        return []


def _configure(layout: Layout, node: Node) -> None:
    for name in ("cni", "kubelet", "pod-logs"):
        (node.home / name).mkdir(parents=True, exist_ok=True)
    paths = {"home": node.home, "state": node.state, "socket": node.socket, "pause": PAUSE}
    (node.home / "containerd.toml").write_text(CONTAINERD.format(**paths))
    # ipMasq false: other nodes see a pod's own address, which NetworkPolicies need; the routes make it reachable.
    # dataDir: leases lie in one place of the machine otherwise, and outlive the cluster.
    ipam = {"type": "host-local", "dataDir": f"{node.home}/leases", "ranges": [[{"subnet": node.pods}]], "routes": [{"dst": "0.0.0.0/0"}]}
    bridge = {"type": "bridge", "bridge": "cni0", "isGateway": True, "ipMasq": False, "hairpinMode": True, "ipam": ipam}
    plugins = [bridge, {"type": "portmap", "capabilities": {"portMappings": True}}]
    (node.home / "cni" / "10-bridge.conflist").write_text(json.dumps({"cniVersion": "0.4.0", "name": "pods", "plugins": plugins}))
    (node.home / "kubelet.json").write_text(json.dumps(_kubelet(layout, node)))


def _kubelet(layout: Layout, node: Node) -> dict[str, object]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": False}, "webhook": {"enabled": True}, "x509": {"clientCAFile": f"{layout.pki}/ca.crt"},
        },
        "authorization": {"mode": "Webhook"},
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{node.name}",
        "failCgroupV1": False,
        "failSwapOn": False,
        "containerRuntimeEndpoint": f"unix://{node.socket}",
        "podLogsDir": f"{node.home}/pod-logs",
        "clusterDNS": [HOST_IP],
        "clusterDomain": "cluster.local",
        "resolvConf": "",
        "nodeLeaseDurationSeconds": 8,  # renewed each quarter of it, so that a grace of a few seconds is safe
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
    }  # fmt: skip


def _cgroups(node: Node) -> None:
    """One for each controller. cpuset's starts empty and must be filled before a process can enter. Its weight is sixteen
    processes': as one among the host's, a node with all its pods would get no more than each of them, and a busy host starve it."""
    for controller in CGROUPS.iterdir():
        if (controller / "cgroup.procs").exists() and controller.name != "unified" and not controller.is_symlink():
            (controller / node.name).mkdir(exist_ok=True)
    for name in ("cpuset.cpus", "cpuset.mems"):
        (CGROUPS / "cpuset" / node.name / name).write_text((CGROUPS / "cpuset" / name).read_text())
    (CGROUPS / "cpu" / node.name / "cpu.shares").write_text(str(16 * 1024))


def _network(node: Node, others: list[Node]) -> None:
    """A link to the host's bridge, and a route for each other node's pods. No default route: nothing of a pod leaves this machine."""
    run("ip", "netns", "add", node.name)
    run("ip", "link", "add", node.name, "type", "veth", "peer", "name", "eth0", "netns", node.name)
    run("ip", "link", "set", node.name, "master", BRIDGE, "up")
    inside = node.inside
    run(*inside, "ip", "addr", "add", f"{node.ip}/24", "dev", "eth0")
    run(*inside, "ip", "link", "set", "lo", "up")
    run(*inside, "ip", "link", "set", "eth0", "up")
    run(*inside, "ip", "route", "add", SERVICES, "via", HOST_IP)
    run(*inside, "sysctl", "-qw", "net.ipv4.ip_forward=1")
    for other in others:
        run(*inside, "ip", "route", "add", other.pods, "via", other.ip)
    run("ip", "route", "replace", node.pods, "via", node.ip)


def _judge(layout: Layout, node: Node) -> None:
    """The first packet of a connection from or to a pod waits in a queue until the judge has looked at it.

    The node's own root is let through: kubelet's probes must pass any policy.
    """
    append = [*node.inside, "iptables", "-w", "-t", "mangle", "-A", "POSTROUTING"]
    run(*append, "-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED", "-j", "RETURN")
    run(*append, "-m", "owner", "--uid-owner", "0", "-j", "RETURN")
    for protocol in ("tcp", "udp"):
        for side in ("-s", "-d"):
            run(*append, "-p", protocol, side, PODS, "-j", "NFQUEUE", "--queue-num", JUDGE)
    spawn(layout, "policies", [layout.kube, "policies", f"--kubeconfig={layout.kubeconfig}", f"--node={node.name}"], node)
