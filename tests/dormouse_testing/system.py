"""The whole system for tests: `dormouse up` as a subprocess, the `dormouse` command, and who is left when it stopped."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from dormouse_core.errors import DormouseError

from dormouse_testing import told
from dormouse_testing.ports import free_port
from dormouse_testing.workers import Client

DORMOUSE = Path(sys.executable).with_name("dormouse")


class System:
    """Started by entering it, stopped by SIGINT when it is left. `folder` holds manifests and models, and the data."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        self.port = free_port()
        self._options = options
        self._log = folder / "up.log"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    def client(self) -> Client:
        return Client(self.address)

    def start(self) -> None:
        with self._log.open("ab") as log:
            command = [DORMOUSE, "up", self.folder, "--port", str(self.port), *self._options]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)

    def run(self, *words: str, stdin: str = "", timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
        """`dormouse words...` on this system, whatever it answers."""
        command = [DORMOUSE, *words, "--dir", self.folder]
        return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=timeout)

    def command(self, *words: str, stdin: str = "") -> str:
        """The same; it must succeed."""
        done = self.run(*words, stdin=stdin)
        assert done.returncode == 0, f"dormouse {' '.join(words)}: {done.stderr}\n{self.log[-3000:]}"
        return done.stdout

    def get(self, name: str, *, owners: bool = False) -> dict[str, Any]:
        return told.status(self.folder, name, owners=owners)

    def wait(self, name: str, true: Callable[[dict[str, Any]], bool], seconds: float = 60.0) -> dict[str, Any]:
        """Until the status of the function `name` is `true`."""
        limit = time.monotonic() + seconds
        status: dict[str, Any] = {}
        refusal = ""
        while True:
            assert self.process is not None
            assert self.process.poll() is None, f"dormouse up left with {self.process.returncode}:\n{self.log[-3000:]}"
            try:
                status = self.get(name)
                if true(status):
                    return status
            except DormouseError as error:
                refusal = str(error)
            assert time.monotonic() < limit, f"{name} after {seconds:g} s: {status or refusal}\n{self.log[-3000:]}"
            time.sleep(0.1)

    def until(self, true: Callable[[], object], seconds: float = 60.0) -> None:
        told.until(true, seconds, lambda: self.log)

    def wait_proved(self, name: str) -> None:
        self.wait(name, lambda s: any(c["type"] == "ModelReady" and c["status"] == "True" for c in s["conditions"]))

    def processes(self) -> list[int]:
        """Every living process with the folder's path on its command line."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                with contextlib.suppress(OSError):
                    if os.fsencode(self.folder) in (entry / "cmdline").read_bytes():
                        found.append(int(entry.name))
        return found

    def process_of(self, worker: str) -> int:
        """The process that serves as `worker`: the child of its instance's supervisor."""
        for pid in self.processes():
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                if b"--instance" in words and worker.startswith(words[words.index(b"--instance") + 1].decode()):
                    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
                    if children:
                        return int(children[0])
        raise AssertionError(f"no process of worker {worker}")

    def stop(self, seconds: float = 60.0) -> int:
        """SIGINT, as Ctrl-C; the exit status."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        return self.process.wait(seconds)

    def __enter__(self) -> "System":
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self.stop()
        finally:
            for pid in self.processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def manifest(name: str, **spec: Any) -> str:
    """An InferenceFunction as JSON, which is YAML too."""
    return json.dumps({"apiVersion": "dormouse.dev/v1alpha1", "kind": "InferenceFunction", "metadata": {"name": name}, "spec": spec})
