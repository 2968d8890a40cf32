"""The parts of two versions of Dormouse beside each other on one machine, as in a rolling upgrade: every part a process that is started
with the code of either version. A provider of our own plays `dormouse up` to the operator, and starts workers of the version that it is
told.
"""

import io
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
from dormouse.supervisors import Supervisors
from dormouse.up import ProviderService
from dormouse_proto import control_pb2_grpc

from dormouse_testing import up
from dormouse_testing.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("cli", "core", "gateway", "kit", "operator", "proto", "worker")
NOW = "now"


def checked_out(commit: str, folder: Path, paths: Sequence[str] = PACKAGES) -> Path | None:
    """What `commit` has of `paths`, in `folder`; None: this clone's history does not have it."""
    done = subprocess.run(["git", "-C", str(ROOT), "archive", commit, *paths], capture_output=True)
    if done.returncode:
        return None
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder


class Versions:
    """`code`: by version, where it lies. `folder`: short, for sockets; it gets the models, and each process's log. `gateways`: by version,
    where callers find it."""

    def __init__(self, code: Mapping[str, Path], folder: Path, endpoint: str) -> None:
        self.folder = folder
        self.gateways: dict[str, str] = {}
        self.workers = NOW
        """The version of the next worker that is started."""
        self.versions: dict[str, str] = {}
        """instance -> version."""
        self._code = code
        self._store = endpoint
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        up.save_models(folder)
        for name in ("sockets", "specs", "reasons"):
            (folder / name).mkdir()
        self.supervisors = Supervisors(folder / "sockets", folder / "specs", folder / "reasons", self._worker)

    # ------------------------------------------------------------------------------------------------------------------- parts
    def _python(self, version: str, module: str) -> list[str]:
        path = ":".join(str(self._code[version] / package) for package in PACKAGES)
        return ["/usr/bin/env", f"PYTHONPATH={path}", sys.executable, "-P", "-m", module]

    def _start(self, name: str, command: list[str]) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self._running[name] = subprocess.Popen(command, stdout=log, stderr=log)

    def operator(self, version: str) -> None:
        command = self._python(version, "dormouse_operator")
        command += ["--local", "--store", self._store, "--installation", "versions", "--name", f"operator-{version}"]
        command += ["--control", self._control(version), "--provider", f"unix:{self.folder}/provider.sock"]
        command += ["--listen", f"127.0.0.1:{free_port()}", "--metrics", str(free_port()), "--model-root", str(self.folder)]
        self._start(f"operator-{version}", command)

    def gateway(self, version: str) -> str:
        """Where it will listen."""
        listen = f"127.0.0.1:{free_port()}"
        options = ["--store", self._store, "--installation", "versions", "--name", f"gateway-{version}", "--listen", listen]
        options += ["--listen-relay", f"127.0.0.1:{free_port()}", "--metrics", str(free_port()), "--own-name", "127.0.0.1"]
        options += ["--xds", f"unix:{self.folder}/xds-{version}.sock", "--admin", f"{self.folder}/envoy-{version}.sock"]
        for part in ("dormouse_gateway", "dormouse_gateway.envoy"):
            self._start(f"{part}-{version}", [*self._python(version, part), *options, "--drain-seconds", "3"])
        return listen

    def _worker(self, instance: str, spec: Path, admin: Path, reason: Path) -> list[str]:
        self.versions[instance] = self.workers
        options = ["--listen", f"127.0.0.1:{free_port()}", "--spec", str(spec), "--instance", instance, "--admin", str(admin)]
        return [*self._python(self.workers, "dormouse_worker"), *options, "--reason", str(reason)]

    def of(self, version: str, function: str = "") -> list[str]:
        """Instances that run."""
        mine = {i.instance for i in self.supervisors.list() if i.pid and not i.stopping}
        return [i for i, its in self.versions.items() if its == version and i in mine and f".{function}" in i]

    def kill_worker(self, instance: str) -> None:
        pid = next(i.pid for i in self.supervisors.list() if i.instance == instance)
        for child in up.children(pid):
            os.kill(child, signal.SIGKILL)

    def stop(self, name: str) -> None:
        process = self._running.pop(name)
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    # ----------------------------------------------------------------------------------------------------------------- control
    def _control(self, version: str) -> str:
        return f"unix:{self.folder}/control-{version}.sock"

    async def ask(self, version: str, method: str, request: Any) -> Any:
        """Of the operator of that version, which leads."""
        async with grpc.aio.insecure_channel(self._control(version)) as channel:
            return await getattr(control_pb2_grpc.ControlStub(channel), method)(request, timeout=40, wait_for_ready=True)

    @asynccontextmanager
    async def provider(self) -> Any:
        server = grpc.aio.server()
        control_pb2_grpc.add_ProviderServicer_to_server(ProviderService(self.supervisors), server)
        server.add_insecure_port(f"unix:{self.folder}/provider.sock")
        await server.start()
        try:
            yield self
        finally:
            await self.supervisors.close(5)
            await server.stop(0.1)
            for name in list(self._running):
                self.stop(name)

    def logs(self) -> Iterator[str]:
        for path in sorted(self.folder.glob("*.log")):
            yield f"--- {path.name}\n{path.read_text()[-3000:]}"
