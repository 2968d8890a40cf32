"""A cluster's figures, on the one that runs here (`tests/cluster/cluster up`) or on one that is started for it.

    python bench/cluster.py [--rounds 20] [--held 500] [--idle 100]

`wake`: from zero to the first answer through the gateway's Service, and where the time goes: when the operator wanted a worker, when the
API server told of the Deployment, the pod and its node, when containerd began the sandbox and had started the container (where the cluster
is our own, so that its log can be read), when the worker reached the store and when it was ready. `held`: so many calls at once at zero.
`idle`: so many functions that sleep: the operator's memory, its share of a core, and objects whose resourceVersion moved in a minute.
"""

import argparse
import datetime
import pathlib
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "tests"))

from dormouse_testing.cluster import holding
from dormouse_testing.cluster.functions import OPERATOR, SYSTEM, Dormouse, echo, installed
from dormouse_testing.cluster.layout import ClusterError

SPACE = "bench"
GOALS = {"p50": 2.0, "p95": 3.5}
MOMENTS = ("wanted", "deployment", "pod", "node", "sandbox", "container", "store", "ready", "answer")
MEANING = {
    "wanted": "hold, report, decide",
    "deployment": "patch, watch",
    "pod": "controllers make the pod",
    "node": "schedule",
    "sandbox": "kubelet: volumes",
    "container": "sandbox, container",
    "store": "process: interpreter, model, until the network policy knows the pod",
    "ready": "registration",
    "answer": "route, call",
}
KINDS = "ifn,deployments,services,configmaps,secrets,poddisruptionbudgets,networkpolicies"


class Watch:
    """When the API server first told of each thing: (moment) -> wall time."""

    def __init__(self, dormouse: Dormouse, name: str) -> None:
        assert dormouse.cluster.layout is not None
        self.seen: dict[str, float] = {}
        base = [dormouse.cluster.layout.kube, "kubectl", f"--kubeconfig={dormouse.cluster.kubeconfig}", "get", "-n", SPACE]
        select = ["-l", f"dormouse.dev/function={name}", "-w", "-o"]
        deployments = [*base, "deployments", *select, 'jsonpath={.spec.replicas}{"\\n"}']
        pods = [*base, "pods", *select, 'jsonpath={.metadata.deletionTimestamp}|{.spec.nodeName}{"\\n"}']
        self._processes = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for words in (deployments, pods)]
        for process, read in zip(self._processes, (self._deployment, self._pod), strict=True):
            threading.Thread(target=self._read, args=(process, read), daemon=True).start()

    def _read(self, process: "subprocess.Popen[str]", read: object) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            assert callable(read)
            read(line.strip())

    def _deployment(self, line: str) -> None:
        if line == "1":
            self.seen.setdefault("deployment", time.time())

    def _pod(self, line: str) -> None:
        going, _, node = line.partition("|")
        if not going:
            self.seen.setdefault("pod", time.time())
            if node:
                self.seen.setdefault("node", time.time())

    def close(self) -> None:
        for process in self._processes:
            process.terminate()
            process.wait()


def at(text: str) -> float:
    return datetime.datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def said(lines: str, pattern: str, since: float) -> float:
    """When a log first said so; 0: never."""
    for line in lines.splitlines():
        stamp, _, text = line.partition(" ")
        if re.search(pattern, text) and at(stamp) >= since:
            return at(stamp)
    return 0.0


def containerd(dormouse: Dormouse, pod: str) -> dict[str, float]:
    """When node1's containerd was asked for the pod's sandbox, and when its container ran."""
    assert dormouse.cluster.layout is not None
    seen: dict[str, float] = {}
    for line in (dormouse.cluster.layout.log / "node1-containerd.log").read_text().splitlines():
        stamp = re.match(r'time="([^"]+)"', line)
        if stamp and f"Name:{pod}," in line and "RunPodSandbox" in line:
            seen.setdefault("sandbox", at(stamp[1]))
        elif stamp and "sandbox" in seen and "StartContainer" in line and "returns successfully" in line:
            seen.setdefault("container", at(stamp[1]))
    return seen


def wake(dormouse: Dormouse, rounds: int) -> None:
    dormouse.apply(echo("wake", scaleToZeroAfter="1s"))
    dormouse.phase("wake", "Ready", "Asleep")
    took: list[float] = []
    steps: dict[str, list[float]] = {moment: [] for moment in MOMENTS}
    for _ in range(rounds):
        dormouse.asleep("wake")
        time.sleep(2.0)
        watch = Watch(dormouse, "wake")
        time.sleep(1.0)
        watch.seen.clear()
        began = time.time()
        dormouse.call("wake", 0)
        answered = time.time()
        seen = {**watch.seen, "answer": answered}
        watch.close()
        [pod] = dormouse.pods("wake")
        operator = dormouse.cluster.kubectl("logs", "-n", SYSTEM, OPERATOR, "--since=30s")
        worker = dormouse.cluster.kubectl("logs", "-n", SPACE, pod, "--timestamps")
        seen["wanted"] = said(operator, r"workers wanted function=bench/wake count=1", began)
        seen["store"] = said(worker, "store connected", began)
        seen |= containerd(dormouse, pod)
        seen["ready"] = said(worker, r"\bready\b|serving", began) or answered
        took.append(answered - began)
        before = began
        for moment in MOMENTS:
            if seen.get(moment):
                steps[moment].append(max(0.0, seen[moment] - before))
                before = max(before, seen[moment])
    p50, p95 = statistics.median(took), sorted(took)[min(len(took) - 1, int(0.95 * len(took)))]
    print(
        f"zero to first answer: p50 {p50:.2f} s ({p50 / GOALS['p50']:.2f} of the goal), p95 {p95:.2f} s ({p95 / GOALS['p95']:.2f}),",
        end=" ",
    )
    print(f"{min(took):.2f} to {max(took):.2f}, {rounds} rounds")
    for moment in MOMENTS:
        if steps[moment]:
            print(f"  {statistics.median(steps[moment]):5.2f} s  {MEANING[moment]}")
    dormouse.delete("wake")


def held(dormouse: Dormouse, count: int) -> None:
    dormouse.apply(echo("held"))
    dormouse.phase("held", "Ready", "Asleep")
    dormouse.asleep("held")
    time.sleep(2.0)
    began, done = time.monotonic(), threading.Semaphore(0)
    futures = [dormouse.raw("held", 0, lambda _: done.release()) for _ in range(count)]
    for _ in futures:
        done.acquire()
    right = sum(future.exception() is None for future in futures)
    print(f"{count} calls at once at zero: {right} answered after {time.monotonic() - began:.2f} s")
    dormouse.delete("held")


def idle(dormouse: Dormouse, count: int) -> None:
    names = [f"idle-{number}" for number in range(count)]
    for first in range(0, count, 10):
        some = names[first : first + 10]
        dormouse.apply(*(echo(name, scaleToZeroAfter="0ms") for name in some))
        for name in some:
            dormouse.asleep(name, 240)
    time.sleep(10)
    pid = operator_pid()
    versions, cpu, began = moving(dormouse), seconds(pid), time.monotonic()
    time.sleep(60)
    share = (seconds(pid) - cpu) / (time.monotonic() - began)
    after = moving(dormouse)
    moved = [key for key, version in versions.items() if after.get(key) != version]
    pss = next(int(line.split()[1]) for line in pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines() if line[:4] == "Pss:")
    print(
        f"{count} functions asleep: the operator holds {pss / 1024:.0f} MB (goal 150) and takes {share:.1%} of a core (goal 2 %);", end=" "
    )
    print(f"of {len(versions)} objects {len(moved)} moved in a minute {moved[:5] or ''}")


def moving(dormouse: Dormouse) -> dict[tuple[str, str], str]:
    found = dormouse.cluster.get(KINDS, "", SPACE)
    return {(each["kind"], each["metadata"]["name"]): each["metadata"]["resourceVersion"] for each in found}


def operator_pid() -> int:
    for folder in pathlib.Path("/proc").iterdir():
        if folder.name.isdigit() and b"dormouse_operator\0--kubernetes" in (folder / "cmdline").read_bytes():
            return int(folder.name)
    raise SystemExit("no operator's process on this machine")


def seconds(pid: int) -> float:
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


@contextmanager
def system() -> Iterator[Dormouse]:
    with holding.cluster() as cluster:
        holding.bring_images(cluster)
        with installed(cluster, SPACE) as dormouse:
            yield dormouse


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--held", type=int, default=500)
    parser.add_argument("--idle", type=int, default=100)
    options = parser.parse_args()
    try:
        with system() as dormouse:
            if options.rounds:
                wake(dormouse, options.rounds)
            if options.held:
                held(dormouse, options.held)
            if options.idle:
                idle(dormouse, options.idle)
    except (holding.Unavailable, ClusterError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
