"""Case 7.O1: a worker makes as many threads as it may use, by its cgroup's quota and its affinity, and is then hardly ever throttled."""

import contextlib
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import unavailable
from dormouse_testing import models
from dormouse_testing.workers import WorkerProcess, request_of

CPU = Path("/sys/fs/cgroup/cpu")
PERIOD = 100_000  # microseconds


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """An empty one of the test's own, of cgroups' version 1."""
    if os.geteuid() != 0 or not (CPU / "cpu.cfs_quota_us").exists():
        unavailable("a quota needs root and the cpu controller of cgroups' version 1")
    folder = CPU / f"dormouse-test-{os.getpid()}"
    folder.mkdir()
    yield folder
    limit = time.monotonic() + 30
    while (folder / "cgroup.procs").read_text().split() and time.monotonic() < limit:
        time.sleep(0.05)
    folder.rmdir()


def in_cgroup(folder: Path, cpus: float) -> list[str]:
    (folder / "cpu.cfs_period_us").write_text(str(PERIOD))
    (folder / "cpu.cfs_quota_us").write_text(str(int(cpus * PERIOD)))
    return ["sh", "-c", f'echo $$ >{folder}/cgroup.procs && exec "$@"', "sh"]


def on_cpus(count: int) -> list[str]:
    return ["taskset", "-c", ",".join(str(cpu) for cpu in sorted(os.sched_getaffinity(0))[:count])]


def worker(folder: Path, name: str, under: Sequence[str], hidden: int = 0) -> WorkerProcess:
    """A network whose product alone is worth more than one thread: 1,024 x 1,024. With `hidden`, worth more than the rest of a call."""
    model = folder / "wide.onnx"
    if not model.exists():
        models.rows(model, 1024, 1024, hidden)
    return WorkerProcess(folder, "--standalone", str(model), "--name", "wide", instance=name, under=under)


def computing(started: WorkerProcess) -> int:
    """Threads that share in the model's work: those that get a quarter of the busiest one's CPU time or more.

    Which threads a process has is its libraries' business (gRPC and Envoy start some of theirs late); which of them compute is ours.
    """
    request = request_of("wide", x=np.ones((32, 1024), np.float32))
    before = cpu_seconds(started.child)
    with started.client() as client:
        while True:
            for _ in range(20):
                client.infer(request)
            used = [seconds - before.get(thread, 0.0) for thread, seconds in cpu_seconds(started.child).items()]
            if max(used) > 0.5:
                return sum(seconds > max(used) / 4 for seconds in used)


def cpu_seconds(pid: int) -> dict[str, float]:
    """Thread -> how long it has run."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):  # it has ended meanwhile
            found[task.name] = int((task / "schedstat").read_text().split()[0]) / 1e9
    return found


def paced(started: WorkerProcess, calls: int = 150, rate: float = 50.0) -> list[float]:
    """ms of each call, sent at a steady rate."""
    request = request_of("wide", x=np.ones((8, 1024), np.float32))
    took = []
    with started.client() as client:
        due = time.monotonic()
        for _ in range(calls):
            time.sleep(max(0.0, due - time.monotonic()))
            due = max(due, time.monotonic()) + 1 / rate  # after a stall it does not catch up: that would be another rate
            sent = time.monotonic()
            client.infer(request)
            took.append(1000 * (time.monotonic() - sent))
    return took


def throttled(folder: Path) -> tuple[int, int]:
    """(periods, of which throttled)"""
    found = dict(line.split() for line in (folder / "cpu.stat").read_text().splitlines())
    return int(found["nr_periods"]), int(found["nr_throttled"])


def test_threads_are_as_many_as_the_quota_and_the_affinity_allow(tmp_path: Path, cgroup: Path) -> None:
    """The first worker is the negative control: with neither a quota nor an affinity of one CPU, several threads compute."""
    assert len(os.sched_getaffinity(0)) > 1, "on one core all of these are the same"

    def count(name: str, under: Sequence[str], looks: int = 1) -> int:
        """The most of several looks: where the machine is busy, one thread may do nearly all for a while."""
        with worker(tmp_path, name, under, hidden=4096) as started:
            found = max(computing(started) for _ in range(looks))
            assert "affinity" not in started.log
            return found

    assert count("all", [], looks=4) > 1
    assert count("taskset", on_cpus(1)) == 1
    assert count("1", in_cgroup(cgroup, 1)) == 1
    assert count("500m", in_cgroup(cgroup, 0.5)) == 1


@pytest.mark.parametrize("cpus", [1.0, 0.5])
def test_within_its_quota_it_is_hardly_throttled(tmp_path: Path, cgroup: Path, cpus: float) -> None:
    with worker(tmp_path, "limited", in_cgroup(cgroup, cpus)) as started:
        paced(started, 20)
        before = sum(cpu_seconds(started.child).values())
        paced(started, 50)
        cost = (sum(cpu_seconds(started.child).values()) - before) / 50
        at_first = throttled(cgroup)
        took = paced(started, rate=min(50.0, 0.4 * cpus / cost))  # how much a call computes is the machine's business
        periods, hit = (after - first for after, first in zip(throttled(cgroup), at_first, strict=True))
    assert periods > 20
    print(f"{cpus} CPUs: {hit} of {periods} periods throttled, p50 {statistics.median(took):.1f} ms, p99 {sorted(took)[-2]:.1f} ms")
    assert hit <= periods * 0.05
