"""The control plane, on the host: etcd, API server, controllers, scheduler, a proxy so that the host reaches Services, and DNS."""

import time

from dormouse_testing.cluster.layout import API_PORT, BRIDGE, HOST_IP, PODS, SERVICES, STORE_PORT, Layout, Node, Timing
from dormouse_testing.cluster.processes import attempt, end, run, spawn, until

# What kubelet and kube-proxy change for the whole machine, and `down` puts back.
KERNEL = ("net.ipv4.ip_forward", "vm.overcommit_memory", "kernel.panic", "kernel.panic_on_oops", "net.ipv4.conf.all.route_localnet")
COREFILE = """\
.:53 {{
  bind {host}
  kubernetes cluster.local {{
    kubeconfig {kubeconfig} here
    ttl 1
  }}
}}
"""


def network_up(layout: Layout) -> None:
    layout.run.mkdir(parents=True, exist_ok=True)
    (layout.run / "kernel").write_text(run("sysctl", *KERNEL))
    run("sysctl", "-qw", "net.ipv4.ip_forward=1")
    run("ip", "link", "add", BRIDGE, "type", "bridge")
    run("ip", "addr", "replace", f"{HOST_IP}/24", "dev", BRIDGE)
    run("ip", "link", "set", BRIDGE, "up")
    # A Service or pod that kube-proxy or a node does not know (yet) would go out by the machine's default route.
    run("ip", "route", "replace", SERVICES, "dev", BRIDGE)
    run("ip", "route", "replace", "blackhole", PODS)


def network_down(layout: Layout) -> None:
    attempt(layout.kube, "proxy", "--cleanup")
    for iptables in ("iptables", "ip6tables"):  # kubelet's chain, which kube-proxy's clean-up leaves
        for rule in (("-D", "INPUT", "-j"), ("-D", "OUTPUT", "-j"), ("-F",), ("-X",)):
            attempt(iptables, "-w", *rule, "KUBE-FIREWALL")
    attempt("sysctl", "-qp", layout.run / "kernel")
    attempt("ip", "link", "del", BRIDGE)
    attempt("ip", "route", "del", "blackhole", PODS)


def start(layout: Layout, timing: Timing) -> None:
    store = [f"http://127.0.0.1:{port}" for port in (STORE_PORT, STORE_PORT + 10)]
    spawn(layout, "etcd", [
        layout.kube, "etcd", "--data-dir", str(layout.home / "etcd"), "--unsafe-no-fsync", "--log-level", "warn",
        "--listen-client-urls", store[0], "--advertise-client-urls", store[0],
        "--listen-peer-urls", store[1], "--initial-advertise-peer-urls", store[1], "--initial-cluster", f"default={store[1]}",
    ])  # fmt: skip
    start_api_server(layout, timing)
    until("the API server is ready", lambda: api_ready(layout))
    pki = layout.pki
    spawn(layout, "controllers", [
        layout.kube, "controllers", f"--kubeconfig={layout.kubeconfig_of('controllers')}", "--use-service-account-credentials",
        f"--service-account-private-key-file={pki}/accounts.key", f"--root-ca-file={pki}/ca.crt",
        f"--cluster-signing-cert-file={pki}/ca.crt", f"--cluster-signing-key-file={pki}/ca.key", "--leader-elect=false",
        f"--node-monitor-grace-period={timing.grace}", "--node-monitor-period=1s",
        "--horizontal-pod-autoscaler-sync-period=2s",
    ])  # fmt: skip
    spawn(layout, "scheduler", [layout.kube, "scheduler", f"--kubeconfig={layout.kubeconfig_of('scheduler')}", "--leader-elect=false"])
    start_proxy(layout, None)
    (layout.home / "Corefile").write_text(COREFILE.format(host=HOST_IP, kubeconfig=layout.kubeconfig))
    spawn(layout, "dns", [str(layout.bin / "coredns"), "-conf", str(layout.home / "Corefile")])


def start_api_server(layout: Layout, timing: Timing) -> None:
    pki = layout.pki
    spawn(layout, "apiserver", [
        layout.kube, "apiserver", f"--etcd-servers=http://127.0.0.1:{STORE_PORT}", f"--secure-port={API_PORT}",
        f"--bind-address={HOST_IP}", f"--advertise-address={HOST_IP}", f"--service-cluster-ip-range={SERVICES}",
        f"--tls-cert-file={pki}/apiserver.crt", f"--tls-private-key-file={pki}/apiserver.key", f"--client-ca-file={pki}/ca.crt",
        f"--service-account-key-file={pki}/accounts.pub", f"--service-account-signing-key-file={pki}/accounts.key",
        "--service-account-issuer=https://kubernetes.default.svc", "--authorization-mode=Node,RBAC", "--allow-privileged=true",
        f"--kubelet-client-certificate={pki}/admin.crt", f"--kubelet-client-key={pki}/admin.key",
        "--kubelet-preferred-address-types=InternalIP",
        f"--requestheader-client-ca-file={pki}/ca.crt", "--requestheader-allowed-names=aggregator",
        "--requestheader-username-headers=X-Remote-User", "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        f"--proxy-client-cert-file={pki}/aggregator.crt", f"--proxy-client-key-file={pki}/aggregator.key",
        f"--default-not-ready-toleration-seconds={timing.toleration}", f"--default-unreachable-toleration-seconds={timing.toleration}",
    ])  # fmt: skip


def api_ready(layout: Layout) -> bool:
    return attempt(layout.kube, "kubectl", f"--kubeconfig={layout.kubeconfig}", "get", "--raw", "/readyz")


def restart_api_server(layout: Layout, timing: Timing, *, away: float = 0.0) -> None:
    """Ends it at once, and starts it again after `away` seconds."""
    end([layout.run / "host-apiserver.pid"])
    time.sleep(away)
    start_api_server(layout, timing)
    until("the API server is ready", lambda: api_ready(layout))


def start_proxy(layout: Layout, node: Node | None) -> None:
    """kube-proxy. The host's claims to be node1's: it waits half a minute for a Node object of its own name."""
    spawn(layout, "proxy", [
        layout.kube, "proxy", f"--kubeconfig={layout.kubeconfig_of('proxy')}", "--proxy-mode=iptables", f"--cluster-cidr={PODS}",
        f"--hostname-override={node.name if node else 'node1'}",
        # The connection tracking limits are the whole machine's: a network namespace cannot set them.
        "--conntrack-max-per-core=0", "--conntrack-tcp-timeout-established=0s", "--conntrack-tcp-timeout-close-wait=0s",
    ], node)  # fmt: skip
