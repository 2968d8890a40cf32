"""A real etcd in a temporary folder on loopback: started, killed, stopped, frozen by its own pid."""

import base64
import contextlib
import functools
import json
import os
import signal
import socket
import subprocess
import time
import urllib.request
from pathlib import Path
from types import TracebackType

from dormouse_kit import processes

from dormouse_testing.ports import free_port


class NoEtcd(Exception):
    """No etcd on PATH that may be killed without losing what it acknowledged."""


@functools.cache
def _program() -> str:
    found = processes.find_etcd(wheel=False)
    if found is None:
        raise NoEtcd("no etcd 3.4.22+ of 3.4 or 3.5.6+ on PATH")
    return found.path


class EtcdServer:
    """`endpoint` stays the same over restarts. `options`: more of etcd's. `tls`: they name its certificates."""

    def __init__(self, folder: Path, *options: str, tls: bool = False) -> None:
        self.path = _program()
        self.folder = folder
        self.port = free_port()
        self.peer_port = free_port()
        self.options = options
        self.scheme = "https" if tls else "http"
        self.name = "test"
        self.members: list[EtcdServer] = [self]
        self.process: subprocess.Popen[bytes] | None = None

    @classmethod
    def cluster(cls, folder: Path, size: int) -> "list[EtcdServer]":
        """Members of one cluster, not started. A majority must be launched before one of them is ready."""
        members = [cls(folder / str(number)) for number in range(size)]
        for number, member in enumerate(members):
            member.name, member.members = f"m{number}", members
        return members

    @property
    def peer(self) -> str:
        return f"http://127.0.0.1:{self.peer_port}"

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Returns when it accepts connections and there is a leader."""
        self.launch()
        self.ready()

    def launch(self) -> None:
        assert self.process is None
        self.folder.mkdir(parents=True, exist_ok=True)
        client = f"{self.scheme}://{self.endpoint}"
        command = [
            self.path, "--data-dir", str(self.folder / "data"), "--name", self.name,
            "--listen-client-urls", client, "--advertise-client-urls", client,
            "--listen-peer-urls", self.peer, "--initial-advertise-peer-urls", self.peer,
            "--initial-cluster", ",".join(f"{member.name}={member.peer}" for member in self.members),
            *self.options,
        ]  # fmt: skip
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)

    def ready(self) -> None:
        assert self.process is not None
        limit = time.monotonic() + 60
        while not self._healthy():
            if self.process.poll() is not None or time.monotonic() > limit:
                self.kill()
                raise AssertionError(f"etcd did not start:\n{(self.folder / 'log').read_text()[-2000:]}")
            time.sleep(0.02)

    def kill(self) -> None:
        """SIGKILL, as a crash."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def freeze(self) -> None:
        """SIGSTOP: connections stay open and nothing answers. Returns when every thread has stopped, which a busy machine delays."""
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGSTOP)
        limit = time.monotonic() + 10
        while any(" T " not in stat.read_text().rpartition(")")[2][:4] for stat in Path(f"/proc/{self.process.pid}/task").glob("*/stat")):
            assert time.monotonic() < limit, "etcd does not stop"
            time.sleep(0.001)

    def thaw(self) -> None:
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGCONT)

    def __enter__(self) -> "EtcdServer":
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.kill()

    def _end(self, number: signal.Signals) -> None:
        if self.process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, number)
        self.process.wait(20)
        self.process = None

    def post(self, path: str, body: dict[str, object]) -> None:
        """A call of etcd's JSON gateway, for what the seam has no method for."""
        request = urllib.request.Request(f"http://{self.endpoint}/v3/{path}", data=json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=30) as reply:
            reply.read()

    @staticmethod
    def base64(text: str) -> str:
        return base64.b64encode(text.encode()).decode()

    def _healthy(self) -> bool:
        if self.scheme == "https":  # it would want a certificate of ours: the log says the same
            return "ready to serve client requests" in (self.folder / "log").read_text()
        request = f"GET /health HTTP/1.1\r\nHost: {self.endpoint}\r\nConnection: close\r\n\r\n".encode()
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=2) as connection:
                connection.sendall(request)
                answer = b""
                while part := connection.recv(4096):
                    answer += part
        except OSError:
            return False
        return b'"health":"true"' in answer
