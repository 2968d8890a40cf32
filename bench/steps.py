"""Steps a second of one worker: every step committed to a real etcd before it is answered.

    python bench/steps.py [--seconds 3] [--rounds 3] [--shards 64] [--width 64]

64 callers that wait, each with a session of its own, over 64 shards; the state is FP32[64]. The worker is alone on core 0, etcd and the
load generator share core 1. Beside it in the same rounds, the same network without sessions: what the path costs before any state is kept.
A run before each measurement warms up and is not counted.
"""

import argparse
import os
import pathlib
import statistics
import sys
import tempfile
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "tests"))

import http2_load as load
import numpy as np
from dormouse_testing import models
from dormouse_testing.etcd_server import EtcdServer
from dormouse_testing.workers import WorkerProcess, give_shards, request_of, spec_file
from dormouse_worker.process.bootstrap import INFER

GOAL = 8_000


def pin(pid: int, core: int) -> None:
    for thread in os.listdir(f"/proc/{pid}/task"):
        os.sched_setaffinity(int(thread), {core})


def cpu(pid: int) -> float:
    """Seconds of CPU that a process has used."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shards", type=int, default=64)
    parser.add_argument("--callers", type=int, default=64)
    parser.add_argument("--width", type=int, default=64)
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    first, second = cores[0], cores[-1]
    os.sched_setaffinity(0, {second})
    spec: dict[str, Any] = {
        "runtime": "onnx",
        "model": {"uri": "file://counter.onnx"},
        "sessions": {
            "states": [{"input": "state", "output": "stateN", "shape": [-1, options.width], "batchAxis": 0}],
            "shards": options.shards,
        },
        "maxConcurrency": 10_000,
    }
    row = np.ones((1, options.width), np.float32)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        models.counter(folder / "counter.onnx", options.width)
        models.rows(folder / "plain.onnx", options.width, options.width)
        with EtcdServer(folder / "etcd") as etcd:
            path = spec_file(folder, spec, etcd.endpoint)
            stateful = WorkerProcess(folder, "--spec", str(path), instance="stateful")
            plain = WorkerProcess(folder, "--standalone", str(folder / "plain.onnx"), "--name", "plain", instance="plain")
            try:
                stateful.start()
                give_shards(etcd.endpoint, "default", options.shards)
                stateful.wait_ready()
                plain.start()
                plain.wait_ready()
                measure(options, stateful, plain, etcd, row, first)
            finally:
                stateful.kill()
                plain.kill()


def measure(
    options: argparse.Namespace, stateful: WorkerProcess, plain: WorkerProcess, etcd: EtcdServer, row: np.ndarray, core: int
) -> None:
    assert etcd.process is not None
    for worker in (stateful, plain):
        pin(worker.child, core)
    message = request_of("fn", x=row).SerializeToString()
    steps = [load.Caller(INFER, message, [("dormouse-session", f"caller-{n}")]) for n in range(options.callers)]
    calls = [load.Caller(INFER, request_of("plain", x=row).SerializeToString(), []) for _ in range(options.callers)]
    found: dict[str, list[float]] = {"steps": [], "calls": []}
    print(
        "| round | what | a second | p50 ms | p99 ms | failed | worker µs | etcd cores |\n| --- | --- | --- | --- | --- | --- | --- | --- |"
    )
    for number in range(1, options.rounds + 1):
        for what, worker, callers in (("steps", stateful, steps), ("calls", plain, calls)):
            load.run("127.0.0.1", worker.port, callers, 0.5)
            before, etcd_before = cpu(worker.child), cpu(etcd.process.pid)
            result = load.run("127.0.0.1", worker.port, callers, options.seconds)
            spent, etcd_spent = cpu(worker.child) - before, cpu(etcd.process.pid) - etcd_before
            found[what].append(result.rate)
            micros = spent / max(1, result.ok) * 1e6
            print(
                f"| {number} | {what} | {result.rate:.0f} | {result.quantile(0.5):.2f} | {result.quantile(0.99):.2f} | {result.failed} "
                f"| {micros:.0f} | {etcd_spent / result.seconds:.2f} |",
                flush=True,
            )
    median = statistics.median(found["steps"])
    ratio = median / statistics.median(found["calls"])
    print(f"\nsteps: {median:.0f}/s, {median / GOAL:.2f} of the {GOAL}/s to reach; {ratio:.2f} of the same path without sessions")


if __name__ == "__main__":
    main()
