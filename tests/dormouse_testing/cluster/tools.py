"""The programs of the cluster: Debian's packages, and Kubernetes, Helm, CoreDNS and etcd built from Go modules."""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from dormouse_testing.cluster.layout import RECIPES, ClusterError, Layout

KUBERNETES = "v1.34.4"
PACKAGES = (
    "buildah", "conntrack", "containerd", "containernetworking-plugins", "gcc", "iproute2", "iptables", "libc6-dev", "mmdebstrap",
    "openssl", "runc",
)  # fmt: skip
PROGRAMS = ("buildah", "conntrack", "containerd", "gcc", "ip", "iptables", "mmdebstrap", "nsenter", "openssl", "runc")
CNI = Path("/usr/lib/cni/bridge")


def impossible() -> str:
    """Why this machine cannot carry the cluster; '' where it can."""
    if os.geteuid() != 0:
        return "a cluster of our own needs root (network namespaces, containerd); name another with KUBECONFIG"
    if shutil.which("apt-get") is None and missing():
        return f"not Debian, and these are missing: {', '.join(missing())}"
    if shutil.which("go") is None and not shutil.which("/usr/local/go/bin/go"):
        return "no Go toolchain to build Kubernetes with"
    if not Path("/sys/fs/cgroup/freezer/cgroup.procs").exists():
        return "the nodes of this recipe need cgroups of version 1 (Debian 12's containerd and the freezer); name a cluster with KUBECONFIG"
    return ""


def missing() -> list[str]:
    return [name for name in PROGRAMS if shutil.which(name) is None] + ([] if CNI.exists() else [str(CNI)])


def install() -> None:
    """Debian's packages, where one is missing. Their services are not started: the nodes run programs of their own."""
    if not missing():
        return
    policy = Path("/usr/sbin/policy-rc.d")
    ours = not policy.exists()
    if ours:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    try:
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for command in (["apt-get", "update", "-qq"], ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *PACKAGES]):
            subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    finally:
        if ours:
            policy.unlink()
    if missing():
        raise ClusterError(f"still missing after apt-get install: {', '.join(missing())}")


def build(layout: Layout) -> None:
    """The binaries, where their sources changed: 6 to 9 minutes the first time on two cores, seconds while Go's cache has them."""
    sources = sorted(path for pattern in ("*.go", "go.mod", "go.sum") for path in (RECIPES / "kube").rglob(pattern))
    version = "k8s.io/component-base/version"
    major, minor, _ = KUBERNETES.removeprefix("v").split(".")
    stamps = {f"{version}.gitVersion": KUBERNETES, f"{version}.gitMajor": major, f"{version}.gitMinor": minor}
    helm = "helm.sh/helm/v3/pkg/chartutil.k8sVersion"  # the Kubernetes that `helm template` takes for granted
    stamps |= {f"{helm}Major": major, f"{helm}Minor": minor}
    flags = " ".join(["-s -w", *(f"-X {name}={value}" for name, value in stamps.items())])
    digest = hashlib.sha256(flags.encode() + b"".join(path.read_bytes() for path in sources)).hexdigest()
    stamp = layout.bin / ".sources"
    if stamp.exists() and stamp.read_text() == digest:
        return
    layout.bin.mkdir(parents=True, exist_ok=True)
    go = [shutil.which("go") or "/usr/local/go/bin/go", "build", "-tags", "selinux,providerless", "-ldflags", flags, "-o", f"{layout.bin}/"]
    programs = [".", "helm.sh/helm/v3/cmd/helm", "github.com/coredns/coredns"]
    # The chart's etcd is a module of its own: Kubernetes holds to an older one, whose users are not kept apart.
    for folder, names in ((RECIPES / "kube", programs), (RECIPES / "kube" / "etcd", ["."])):
        subprocess.run([*go, *names], cwd=folder, env={**os.environ, "CGO_ENABLED": "0"}, check=True)
    stamp.write_text(digest)
