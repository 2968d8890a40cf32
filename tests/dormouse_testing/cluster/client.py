"""What a test holds in its hands: kubectl and helm of one cluster, and what it takes to install the chart there."""

import contextlib
import json
import os
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from dormouse_testing.cluster import images, lifecycle
from dormouse_testing.cluster.layout import ROOT, ClusterError, Layout, Node

CHART = ROOT / "deploy" / "helm" / "dormouse"
RESTRICTED = "pod-security.kubernetes.io/enforce=restricted"
T = TypeVar("T")
IMAGES = ("DORMOUSE_IMAGE", "ETCD_IMAGE", "MODELS_IMAGE")  # name:tag, where the cluster is not ours


@dataclass(slots=True)
class Cluster:
    """`layout` None: a cluster that KUBECONFIG names."""

    kubeconfig: Path
    layout: Layout | None = None
    volumes: list[Path] = field(default_factory=list)
    going: list[str] = field(default_factory=list)

    @property
    def own(self) -> bool:
        return self.layout is not None

    @property
    def nodes(self) -> list[Node]:
        return lifecycle.current_nodes(self.layout) if self.layout else []

    def run(self, *command: str, stdin: str | None = None, timeout: float = 120.0) -> str:
        """Standard output. ClusterError with the program's last words."""
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, env=self.environment(), timeout=timeout)
        if done.returncode:
            raise ClusterError(f"{' '.join(command[:4])} …: {(done.stderr or done.stdout).strip()}")
        return done.stdout

    def kubectl(self, *words: str, stdin: str | None = None, timeout: float = 120.0) -> str:
        return self.run(*self.command(*words), stdin=stdin, timeout=timeout)

    def command(self, *words: str) -> list[str]:
        """The command line of kubectl, to be run in `environment`."""
        return [*([self.layout.kube] if self.layout else []), "kubectl", *words]

    def environment(self) -> dict[str, str]:
        return {**os.environ, "KUBECONFIG": str(self.kubeconfig)}

    @contextlib.contextmanager
    def shell(self) -> Iterator[dict[str, str]]:
        """An environment in which `kubectl` and `helm` are this cluster's."""
        with tempfile.TemporaryDirectory() as folder:
            if self.layout:
                for name, program in (("kubectl", [str(self.layout.kube), "kubectl"]), ("helm", [str(self.layout.bin / "helm")])):
                    file = Path(folder, name)
                    file.write_text(f'#!/bin/sh\nexec {shlex.join(program)} "$@"\n')
                    file.chmod(0o755)
            yield {**self.environment(), "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}

    def helm(self, *words: str, timeout: float = 300.0) -> str:
        return self.run(str(self.layout.bin / "helm") if self.layout else "helm", *words, timeout=timeout)

    def get(self, kind: str, name: str = "", namespace: str = "", *words: str) -> Any:
        """One object, or the items of a list."""
        where = ["-n", namespace] if namespace else ["-A"] if not name else []
        found = json.loads(self.kubectl("get", kind, *([name] if name else []), *where, "-o", "json", *words))
        return found if name else found["items"]

    def exists(self, kind: str, name: str, namespace: str = "") -> bool:
        return bool(self.kubectl("get", kind, name, *(["-n", namespace] if namespace else []), "--ignore-not-found", "-o", "name").strip())

    def apply(self, *manifests: dict[str, Any], namespace: str = "default") -> None:
        self.kubectl("apply", "-n", namespace, "-f", "-", stdin="\n---\n".join(json.dumps(manifest) for manifest in manifests))

    @contextlib.contextmanager
    def namespace(self, name: str) -> Iterator[str]:
        """A new one under Pod Security `restricted`, which goes at the end with all that is in it. That takes five seconds or more, and
        who needs to know waits by `settle`."""
        self.kubectl("create", "namespace", name)
        self.kubectl("label", "namespace", name, RESTRICTED)
        try:
            yield name
        finally:
            self.kubectl("delete", "namespace", name, "--ignore-not-found", "--wait=false")
            self.going.append(f"namespace/{name}")

    def settle(self) -> None:
        """Every `namespace` that had its end is gone."""
        going, self.going = self.going, []
        if going:
            self.kubectl("wait", "--for=delete", *going, "--timeout=110s")

    def volume(self, name: str, size: str = "1Gi") -> None:
        """An empty volume on node1's disk, for a claim to find: our own cluster makes none by itself."""
        if not self.layout:
            return  # such a cluster has a storage class
        node = self.layout.node(1)
        folder = node.home / "volumes" / name
        shutil.rmtree(folder, ignore_errors=True)  # of a run on this cluster that was killed
        folder.mkdir(parents=True)
        self.volumes.append(folder)
        terms = [{"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [node.name]}]}]
        spec = {
            "capacity": {"storage": size},
            "accessModes": ["ReadWriteOnce"],
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": "",
            "local": {"path": str(folder)},
            "nodeAffinity": {"required": {"nodeSelectorTerms": terms}},
        }
        self.apply({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": spec})

    def chart_values(self) -> list[str]:
        """`--set`s that make the chart use this cluster's images, and let the tests' functions ask for what they need."""
        names = (images.DORMOUSE, images.ETCD) if self.layout else tuple(os.environ[name] for name in IMAGES[:2])
        words = []
        for prefix, image in zip(("image", "etcd.image"), names, strict=True):
            repository, _, tag = image.rpartition(":")
            words += ["--set", f"{prefix}.repository={repository},{prefix}.tag={tag}"]
        for asked in ("images", "labels", "annotations"):
            words += ["--set", f"workers.policy.{asked}={{*}}"]
        words += ["--set", "workers.policy.claims={weights}"]
        if self.layout:
            words += ["--set", "image.pullPolicy=Never,etcd.image.pullPolicy=Never"]
        return words

    @property
    def models_image(self) -> str:
        """The project's image with the examples' models below /models."""
        return images.MODELS if self.layout else os.environ["MODELS_IMAGE"]

    @contextlib.contextmanager
    def reached(self, service: str, namespace: str, port: int) -> Iterator[str]:
        """host:port at which this process reaches a Service: its own address on our cluster, a port-forward to elsewhere."""
        if self.layout:
            yield f"{self.get('service', service, namespace)['spec']['clusterIP']}:{port}"
            return
        words = ["kubectl", "port-forward", "-n", namespace, f"service/{service}", f":{port}"]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=self.environment()) as forward:
            try:
                assert forward.stdout
                said = forward.stdout.readline()  # Forwarding from 127.0.0.1:40123 -> 8001
                yield said.split()[2]
            finally:
                forward.terminate()

    def close(self) -> None:
        self.settle()
        for folder in self.volumes:
            shutil.rmtree(folder, ignore_errors=True)


def eventually(what: str, look: Callable[[], T], seconds: float = 60.0) -> T:
    """What `look` returns once it is true; ClusterErrors on the way count as not yet."""
    deadline = time.monotonic() + seconds
    problem = ""
    while time.monotonic() < deadline:
        try:
            if found := look():
                return found
        except ClusterError as error:
            problem = f" ({error})"
        time.sleep(0.2)
    raise AssertionError(f"{what}: not after {seconds:g} s{problem}")
