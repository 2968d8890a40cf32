"""What the tests of streams share: the system that they run on, and looks at it."""

import contextlib
import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dormouse_testing import models, stream_clients
from dormouse_testing.places import connected
from dormouse_testing.system import System, manifest
from dormouse_testing.up import missing as missing_etcd
from dormouse_testing.workers import metric_of

STATES = {"states": [{"input": "state", "output": "stateN", "shape": [-1, 1], "batchAxis": 0, "initial": "zeros"}]}
HANDLERS = """
import pathlib
import time

import dormouse
import numpy as np

RAN = pathlib.Path(__file__).with_name(".ran")

class Slow(dormouse.Handler):
    inputs = [dormouse.Tensor("x", "FP32", [1, 1])]
    outputs = [dormouse.Tensor("y", "FP32", [1, 1])]
    states = [dormouse.State("sum", "FP32", [1, 1])]

    def step(self, inputs, state, ctx):
        with RAN.open("a") as file:
            file.write(f"{ctx.session} {ctx.step}\\n")
        time.sleep(float(inputs["x"][0, 0]))
        state["sum"] += 1
        return {"y": state["sum"].copy()}

class Talk(dormouse.Handler):
    '''Says as many numbers as it is told, and goes on counting where it stopped. 13 is unlucky.'''
    inputs = [dormouse.Tensor("n", "INT64", [1])]
    outputs = [dormouse.Tensor("y", "INT64", [1])]
    states = [dormouse.State("said", "INT64", [1])]

    def step(self, inputs, state, ctx):
        for number in range(int(inputs["n"][0])):
            state["said"] += 1
            yield {"y": state["said"].copy()}
            if int(inputs["n"][0]) == 13 and number == 5:
                raise ValueError("no luck")
            time.sleep(0.02)

class Shout(dormouse.Handler):
    inputs = [dormouse.Tensor("n", "INT64", [1])]
    outputs = [dormouse.Tensor("y", "UINT8", [-1])]

    async def step(self, inputs, state, ctx):
        for _ in range(int(inputs["n"][0])):
            yield {"y": np.zeros(1 << 20, np.uint8)}
"""
THREADS = len(os.sched_getaffinity(0))  # steps of a sync handler that run at once
NAP = {
    "runtime": "python",
    "model": {"uri": "file://handlers"},
    "handler": "handlers:Slow",
    "sessions": {},
    "scaleToZeroAfter": "3s",
}
X: dict[str, Any] = {"name": "x"}
N: dict[str, Any] = {"name": "n", "datatype": "INT64", "shape": [1]}


def missing() -> str:
    """Why the tests cannot run here; '' if they can."""
    return missing_etcd() or stream_clients.missing()


@contextlib.contextmanager
def streams_system(folder: Path) -> Iterator[System]:
    """Functions of each kind, proved. `sleepy` and `drowsy` sleep after three seconds, the others stay awake."""
    models.counter(folder / "counter.onnx", 1)
    models.identity(folder / "wide.onnx", models.FLOAT, ("n", "w"))
    (folder / "handlers").mkdir()
    (folder / "handlers" / "handlers.py").write_text(HANDLERS)
    onnx = {"runtime": "onnx", "model": {"uri": "file://counter.onnx"}, "sessions": STATES}
    python = {"runtime": "python", "model": {"uri": "file://handlers"}}
    awake = {"scaleToZeroAfter": "10m"}
    for name, spec in {
        "counter": {**onnx, **awake},
        "sleepy": {**onnx, "scaleToZeroAfter": "3s"},
        "wide": {"runtime": "onnx", "model": {"uri": "file://wide.onnx"}, **awake},
        "drowsy": {"runtime": "onnx", "model": {"uri": "file://wide.onnx"}, "scaleToZeroAfter": "3s"},
        "slow": {**python, "handler": "handlers:Slow", "sessions": {}, **awake},
        "talk": {**python, "handler": "handlers:Talk", "sessions": {}, **awake},
        "shout": {**python, "handler": "handlers:Shout", **awake},
    }.items():
        (folder / f"{name}.yaml").write_text(manifest(name, **spec))
    with System(folder) as started:
        for name in ("counter", "sleepy", "wide", "drowsy", "slow", "talk", "shout"):
            started.wait_proved(name)
        yield started


def ran(system: System) -> list[str]:
    path = system.folder / "handlers" / ".ran"
    return path.read_text().splitlines() if path.exists() else []


def owners(system: System, name: str) -> set[str]:
    return set(system.get(name, owners=True)["owners"].values())


def scale(system: System, name: str, count: int) -> None:
    system.command("scale", name, str(count))
    system.wait(name, lambda status: status["readyReplicas"] == count)
    system.until(lambda: len(owners(system, name)) == count)


def kill_an_owner(system: System, name: str) -> None:
    """SIGKILL to a worker that owns shards; one that died just before may still stand beside some."""

    def killed() -> bool:
        for worker in owners(system, name):
            with contextlib.suppress(AssertionError, ProcessLookupError):
                os.kill(system.process_of(worker), signal.SIGKILL)
                return True
        return False

    system.until(killed)


def pid_of(system: System, word: str) -> int:
    """The process with `word` alone on its command line, or as its program."""
    for pid in system.processes():
        with contextlib.suppress(OSError):  # it has ended meanwhile
            words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
            if word in words or words[0].endswith(f"/{word}"):
                return pid
    raise AssertionError(f"no process of {word}")


def agents(system: System, name: str) -> float:
    """The agent's series of that name, summed over its labels."""
    port = json.loads((system.folder / ".dormouse" / "run.json").read_text())["metrics"]["gateway"]
    return metric_of(f"127.0.0.1:{port}", name)


def workers(system: System, function: str) -> list[str]:
    """Addresses of the workers that started and still answer."""
    found = []
    for address in re.findall(rf"worker ready worker=\S+ function=default/{function} address=(\S+)", system.log):
        with contextlib.suppress(OSError), connected(address, 1):
            found.append(address)
    return found


def settles(read: Callable[[], float], seconds: float = 20.0) -> float:
    """What `read` says once it is 0, or after `seconds`."""
    limit = time.monotonic() + seconds
    while (found := read()) and time.monotonic() < limit:
        time.sleep(0.05)
    return found
