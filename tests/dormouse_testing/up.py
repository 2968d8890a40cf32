"""`dormouse up` as a process under test: real etcd, Envoy, agent, operator, workers, in a folder of the test's own."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from dormouse import parts
from dormouse_kit.processes import find_etcd
from onnx import TensorProto, helper

from dormouse_testing import told

DOUBLE = """
apiVersion: dormouse.dev/v1alpha1
kind: InferenceFunction
metadata: {name: double}
spec:
  runtime: onnx
  model: {uri: "file://double.onnx"}
  scaleToZeroAfter: 3s
"""
TOTAL = """
apiVersion: dormouse.dev/v1alpha1
kind: InferenceFunction
metadata: {name: total}
spec:
  runtime: onnx
  model: {uri: "file://total.onnx"}
  sessions:
    states: [{input: s, output: t, shape: [-1, 1], batchAxis: 0}]
  scaleToZeroAfter: 3s
"""


def save_models(folder: Path) -> None:
    """double: y = 2x, stateless. total: y = x + the sum of the session's xs before."""
    _save(folder / "double.onnx", [helper.make_node("Add", ["x", "x"], ["y"])], {"x": 4}, {"y": 4})
    nodes = [helper.make_node("Add", ["x", "s"], ["t"]), helper.make_node("Identity", ["t"], ["y"])]
    _save(folder / "total.onnx", nodes, {"x": 1, "s": 1}, {"y": 1, "t": 1})


def save_wide(path: Path, numbers: int) -> None:
    """y = 2x, and a state of so many numbers."""
    nodes = [helper.make_node("Add", ["x", "s"], ["t"]), helper.make_node("Add", ["x", "x"], ["y"])]
    _save(path, nodes, {"x": 1, "s": numbers}, {"y": 1, "t": numbers})


def save_triple(path: Path) -> None:
    """y = 3x, for what said y = 2x."""
    _save(path, [helper.make_node("Add", ["x", "x"], ["z"]), helper.make_node("Add", ["z", "x"], ["y"])], {"x": 4}, {"y": 4})


def _save(path: Path, nodes: list[Any], inputs: dict[str, int], outputs: dict[str, int]) -> None:
    def values(tensors: dict[str, int]) -> list[Any]:
        return [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", size]) for name, size in tensors.items()]

    graph = helper.make_graph(nodes, "g", values(inputs), values(outputs))
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def row(*numbers: float) -> np.ndarray[Any, Any]:
    return np.array([numbers], dtype=np.float32)


class Up:
    """The running system. `log` is everything that its parts wrote."""

    def __init__(self, folder: Path, *more: str, program: Sequence[str] = ("-m", "dormouse.main"), cwd: Path | None = None) -> None:
        self.folder = folder
        self._path = folder / f"up-{len(list(folder.glob('up-*.log')))}.log"
        self._log = self._path.open("ab")
        self.dormouse = [sys.executable, "-m", "dormouse.main"]
        self.process = subprocess.Popen(
            [sys.executable, *program, "up", str(folder), "--port", "0", *more],
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=cwd,
        )

    @property
    def log(self) -> str:
        return self._path.read_text()

    @property
    def run(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / ".dormouse" / "run.json").read_text())
        return found

    @property
    def sockets(self) -> Path:
        """The folder of its Unix sockets."""
        return Path(str(self.run["control"]).removeprefix("unix:")).parent

    @property
    def store(self) -> str:
        """The endpoint of its own etcd."""
        return f"unix:{self.sockets / parts.STORE}"

    @property
    def gateway(self) -> str:
        return str(self.run["gateway"])

    def wait_ready(self, seconds: float = 60.0) -> None:
        self.until(lambda: "  ready " in self.log or self.process.poll() is not None, seconds)
        assert self.process.poll() is None, self.log

    def command(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run([*self.dormouse, *words, "--dir", str(self.folder)], capture_output=True, text=True, timeout=60)
        assert not check or done.returncode == 0, done.stderr
        return done

    def get(self, name: str, *, owners: bool = False) -> dict[str, Any]:
        return told.status(self.folder, name, owners=owners)

    def until_phase(self, name: str, *phases: str, seconds: float = 60.0) -> None:
        self.until(lambda: self.get(name)["phase"] in phases, seconds)

    def until(self, true: Callable[[], object], seconds: float = 60.0) -> None:
        told.until(true, seconds, lambda: self.log)

    def part(self, name: str) -> int:
        """The pid of the latest process of a part."""
        lines = [line for line in self.log.splitlines() if f"started part={name} " in line]
        return int(lines[-1].rpartition("pid=")[2])

    def supervisors(self) -> dict[str, int]:
        """instance -> pid, of all that ever started."""
        lines = [line for line in self.log.splitlines() if "started a worker" in line]
        return {line.partition("instance=")[2].split()[0]: int(line.rpartition("pid=")[2]) for line in lines}

    def kill_worker(self, worker: str) -> None:
        """SIGKILL to the worker's own process, which is the supervisor's child."""
        (instance,) = [i for i in self.supervisors() if worker.startswith(i)]
        for child in children(self.supervisors()[instance]):
            os.kill(child, signal.SIGKILL)

    def stop(self, number: signal.Signals = signal.SIGINT) -> int:
        self.process.send_signal(number)
        return self.process.wait(60)

    def nobody_left(self) -> None:
        """Returns when none of its processes is there any more: what is killed with another takes a moment to be gone."""
        self.until(lambda: not processes_of(self.folder), 30)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._log.close()


def children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in text.split()]


def processes_of(folder: Path) -> list[str]:
    """Command lines of every process that names `folder`."""
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            with contextlib.suppress(OSError):
                line = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if str(folder) in line and int(path.name) != os.getpid():
                    found.append(line)
    return found


@contextlib.contextmanager
def system(folder: Path, *more: str) -> Iterator[Up]:
    up = Up(folder, *more)
    try:
        yield up
    finally:
        up.close()


def missing() -> str:
    """Why `dormouse up` cannot run here; '' if it can."""
    return "" if find_etcd(wheel=False) else "no etcd 3.4.22+ or 3.5.6+ on PATH"
