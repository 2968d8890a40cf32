"""An operator that runs outside of the cluster, as on somebody's laptop: from this tree, as a process of this machine.

It stands in node1's network, so that it reaches the store past the policies as the node does, and asks the cluster's DNS. Only of our own
cluster.
"""

import base64
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from dormouse_testing.cluster.callers import total
from dormouse_testing.cluster.client import Cluster
from dormouse_testing.cluster.functions import KEYS, RELEASE, STORE, SYSTEM
from dormouse_testing.cluster.layout import API_PORT, HOST_IP

PORTS = {"listen": 19002, "control": 19003, "metrics": 19090}
BECOME = 'mount --bind "$1" /etc/resolv.conf && shift && exec "$@"'


class Laptop:
    def __init__(self, cluster: Cluster, folder: Path, kubeconfig: Path, **settings: Any) -> None:
        assert cluster.layout is not None
        self._node = cluster.layout.node(1)
        self._folder = folder
        self._log = folder / "laptop.log"
        (folder / "resolv.conf").write_text(f"nameserver {HOST_IP}\n")
        for secret, name in (("tls", "ca.crt"), ("passwords", "operator"), ("passwords", "gateway"), ("passwords", "workers")):
            (folder / name).write_bytes(base64.b64decode(cluster.get("secret", f"{RELEASE}-etcd-{secret}", SYSTEM)["data"][name]))
        functions = cluster.get("configmap", f"{RELEASE}-operator", SYSTEM)["data"]["functions.json"]
        (folder / "functions.json").write_text(json.dumps({**json.loads(functions), **settings}))
        words = [
            sys.executable, "-m", "dormouse_operator", "--kubernetes", f"--store={STORE}", f"--store-ca={folder}/ca.crt",
            "--store-user=root", f"--store-password-file={folder}/operator", f"--gateway-password-file={folder}/gateway",
            f"--workers-secret-file={folder}/workers", "--name=laptop",
            f"--listen={self._node.ip}:{PORTS['listen']}", f"--control=127.0.0.1:{PORTS['control']}",
            f"--metrics={PORTS['metrics']}", f"--functions={folder}/functions.json",
        ]  # fmt: skip
        environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()} | {"KUBECONFIG": str(kubeconfig)}
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self._become, *words],
                stdout=log, stderr=log, env=environment, start_new_session=True,
            )  # fmt: skip

    @property
    def _become(self) -> list[str]:
        return [*self._node.inside, "unshare", "--mount", "sh", "-ec", BECOME, "sh", str(self._folder / "resolv.conf")]

    def stored(self) -> list[str]:
        """As `Dormouse.stored`, while no operator runs in the cluster."""
        program = KEYS.format(endpoint=STORE, prefix="/dormouse/default/", ca=self._folder / "ca.crt", password=self._folder / "operator")
        done = subprocess.run([*self._become, sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30)
        return done.stdout.split()

    @property
    def log(self) -> str:
        return self._log.read_text()

    @property
    def leads(self) -> bool:
        return self.process.poll() is None and self.metric("dormouse_leading") == 1

    def metric(self, name: str) -> float:
        """0 where it does not answer (yet)."""
        return total(self._ask("metrics")[1], name)

    def health(self) -> tuple[int, str]:
        """The answer to the kubelet's question; 0: none."""
        return self._ask("healthz")

    def ready(self) -> tuple[int, str]:
        """The same, of whether it does its work."""
        return self._ask("readyz")

    def _ask(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://{self._node.ip}:{PORTS['metrics']}/{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


@contextlib.contextmanager
def laptop(cluster: Cluster, folder: Path, kubeconfig: Path, **settings: Any) -> Iterator[Laptop]:
    """`settings`: what of the installation's own file of settings is otherwise."""
    folder.mkdir(parents=True, exist_ok=True)
    found = Laptop(cluster, folder, kubeconfig, **settings)
    try:
        yield found
        assert found.process.poll() is None, found.log[-4000:]
    except BaseException:
        print(found.log[-8000:])
        raise
    finally:
        found.end()


class Tokens:
    """The operator's service account, by tokens that end when the Secret that each is bound to is deleted. `kubeconfig` names the file, or,
    with `program`, a program that logs in, as those of clouds do."""

    def __init__(self, cluster: Cluster, folder: Path, server: str = f"https://{HOST_IP}:{API_PORT}", *, program: bool = False) -> None:
        assert cluster.layout is not None
        folder.mkdir(parents=True, exist_ok=True)
        self._cluster = cluster
        self._bound = ""
        self._file = folder / "token"
        self.kubeconfig = folder / "kubeconfig"
        found = {
            "clusters": [{"name": "c", "cluster": {"server": server, "certificate-authority": str(cluster.layout.pki / "ca.crt")}}],
            "users": [{"name": "u", "user": self._program() if program else {"tokenFile": "token"}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }
        self.kubeconfig.write_text(yaml.safe_dump(found))

    def _program(self) -> dict[str, Any]:
        version = "client.authentication.k8s.io/v1"
        says = f'{{"apiVersion": "{version}", "kind": "ExecCredential", "status": {{"token": "%s"}}}}'
        words = ["-c", f"""printf '{says}' "$(cat '{self._file}')" """]
        return {"exec": {"apiVersion": version, "command": "sh", "args": words, "interactiveMode": "Never"}}

    def renew(self) -> None:
        """A new token in the file, whole at any moment; the one before is good for nothing from now on."""
        kubectl, before = self._cluster.kubectl, self._bound
        self._bound = name = f"token-{time.monotonic_ns()}"
        kubectl("create", "secret", "generic", name, "-n", SYSTEM)
        bound = ["--bound-object-kind=Secret", f"--bound-object-name={name}", "--duration=10m"]
        made = self._file.with_suffix(".new")
        made.write_text(kubectl("create", "token", f"{RELEASE}-operator", "-n", SYSTEM, *bound))
        old = self._file.read_text() if self._file.exists() else ""
        made.replace(self._file)
        if old:
            kubectl("delete", "secret", before, "-n", SYSTEM)
            deadline = time.monotonic() + 30  # the API server remembers for ten seconds whom it knew
            while self._known(old):
                assert time.monotonic() < deadline, "the old token is still good"
                time.sleep(0.5)

    def _known(self, token: str) -> bool:
        review = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}}
        said = yaml.safe_load(self._cluster.kubectl("create", "-f", "-", "-o", "yaml", stdin=yaml.safe_dump(review)))
        return bool(said["status"].get("authenticated"))
