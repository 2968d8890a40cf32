"""Where everything of the cluster lies, and its addresses."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
RECIPES = ROOT / "tests" / "cluster"

BRIDGE = "dormouse0"
HOST_IP = "10.250.0.1"  # the host on the nodes' network: API server and DNS listen here
PODS = "10.244.0.0/16"
SERVICES = "10.96.0.0/16"
API_SERVICE = "10.96.0.1"
API_PORT = 6443
STORE_PORT = 23790  # etcd of the API server, on loopback; the next but ten is its peers'
CLAIM = Path("/run/dormouse-cluster")  # which folder's cluster runs: addresses and interfaces are the machine's, so there is one at a time


class ClusterError(Exception):
    """One readable sentence."""


@dataclass(frozen=True, slots=True)
class Timing:
    """How soon a silent node is given up; Kubernetes' own defaults unless told."""

    grace: str = "50s"
    """Silence after which a node is NotReady."""
    toleration: int = 300
    """Seconds that a pod then stays on it, unless the pod says so itself."""


@dataclass(frozen=True, slots=True)
class Node:
    """One node's names and places. `number` counts from 1."""

    number: int
    home: Path

    @property
    def name(self) -> str:
        return f"node{self.number}"

    @property
    def ip(self) -> str:
        return f"10.250.0.{10 + self.number}"

    @property
    def pods(self) -> str:
        """Its part of the pods' addresses; the controller manager's own allocation is off."""
        return f"10.244.{self.number}.0/24"

    @property
    def socket(self) -> Path:
        return self.home / "containerd.sock"

    @property
    def state(self) -> Path:
        """Of containerd; what a power cut must leave nothing of."""
        return self.home / "containerd-state"

    @property
    def inside(self) -> list[str]:
        """Put before a command that is to run in the node's network; `ip netns exec` would hide the cgroups."""
        return ["nsenter", f"--net=/run/netns/{self.name}"]


@dataclass(frozen=True, slots=True)
class Layout:
    """One cluster's folder."""

    home: Path

    @classmethod
    def here(cls) -> "Layout":
        return cls(Path(os.environ.get("CLUSTER_DIR") or ROOT / ".cache" / "cluster").resolve())

    @property
    def bin(self) -> Path:
        return self.home / "bin"

    @property
    def kube(self) -> str:
        return str(self.bin / "kube")

    @property
    def run(self) -> Path:
        """Of the running cluster, and gone with it: process ids, the kernel's settings as they were."""
        return self.home / "run"

    @property
    def log(self) -> Path:
        return self.home / "log"

    @property
    def pki(self) -> Path:
        return self.home / "pki"

    @property
    def images(self) -> Path:
        return self.home / "images"

    @property
    def kubeconfig(self) -> Path:
        return self.kubeconfig_of("admin")

    def kubeconfig_of(self, identity: str) -> Path:
        return self.pki / f"{identity}.kubeconfig"

    def node(self, number: int) -> Node:
        return Node(number, self.home / f"node{number}")

    def known_nodes(self) -> list[Node]:
        """Those that were ever started here: their disks are kept, so that images are imported once."""
        numbers = (path.name.removeprefix("node") for path in self.home.glob("node*"))
        return [self.node(number) for number in sorted(int(text) for text in numbers if text.isdigit())]

    def remove(self, *names: str) -> None:
        for name in names:
            shutil.rmtree(self.home / name, ignore_errors=True)
