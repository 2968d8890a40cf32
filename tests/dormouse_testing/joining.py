"""Members of etcd as the chart starts them, on loopback: the program that runs before etcd, then etcd with what that wrote."""

import json
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

from dormouse_testing.etcd_server import EtcdServer
from dormouse_testing.ports import free_port

SECONDS = 30.0


class Joined(EtcdServer):
    """`cluster`: all that there are to be. `password_file`: root's; None: etcd has no users. `formed`: what the operator would have written
    is in `folder.parent / "formed"`."""

    def __init__(self, folder: Path, name: str, program: str = "") -> None:
        super().__init__(folder)
        self.path = program or self.path
        self.name = name
        self.metrics_port = free_port()
        self.cluster: list[Joined] = [self]
        self.password_file: Path | None = None
        self.joining: subprocess.Popen[bytes] | None = None

    @classmethod
    def of(cls, folder: Path, size: int = 3, program: str = "") -> "list[Joined]":
        found = [cls(folder / f"e-{number}", f"e-{number}", program) for number in range(size)]
        for each in found:
            each.cluster = found
        return found

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def formed(self) -> Path:
        return self.folder.parent / "formed"

    def command(self) -> list[str]:
        client = f"http://{self.endpoint}"
        etcd = {
            "name": self.name, "data-dir": str(self.data), "listen-client-urls": client, "advertise-client-urls": client,
            "listen-peer-urls": self.peer, "initial-advertise-peer-urls": self.peer, "initial-cluster-token": "test",
            "listen-metrics-urls": f"http://127.0.0.1:{self.metrics_port}", "log-level": "warn", "bcrypt-cost": 4,
        }  # fmt: skip
        return [
            sys.executable, "-P", "-m", "dormouse_operator.kubernetes.members", f"--name={self.name}", f"--data={self.data}",
            *(f"--member={each.name}={each.peer}" for each in self.cluster), *(f"--store={each.endpoint}" for each in self.cluster),
            f"--etcd={json.dumps(etcd)}", f"--out={self.folder / 'etcd.json'}", f"--formed={self.formed}", "--formed-secret=etcd-formed",
            *([f"--store-password-file={self.password_file}"] if self.password_file else []),
        ]  # fmt: skip

    def begin(self) -> None:
        """The program, in the background."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "etcd.json").unlink(missing_ok=True)
        with (self.folder / "joining").open("wb") as log:
            self.joining = subprocess.Popen(self.command(), stdout=log, stderr=log)

    def said(self) -> str:
        return (self.folder / "joining").read_text()

    def join(self) -> None:
        """The program to its end, and etcd is launched."""
        self.begin()
        assert self.joining is not None
        assert self.joining.wait(SECONDS) == 0, self.said()
        self.launch()

    def launch(self) -> None:
        assert self.process is None
        with (self.folder / "log").open("ab") as log:
            words = [self.path, f"--config-file={self.folder / 'etcd.json'}"]
            self.process = subprocess.Popen(words, stdout=log, stderr=log, env={**os.environ, "ETCD_UNSUPPORTED_ARCH": ""})

    def cut_short(self) -> None:
        """The program and etcd, whichever runs."""
        if self.joining is not None and self.joining.poll() is None:
            self.joining.kill()
            self.joining.wait(20)
        self.kill()

    def wipe(self) -> None:
        self.cut_short()
        shutil.rmtree(self.folder, ignore_errors=True)

    def ready_for_clients(self) -> bool:
        """What the chart's readiness probe sees."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/readyz", timeout=5) as reply:
                return bool(reply.status == 200)
        except (urllib.error.URLError, OSError):
            return False
