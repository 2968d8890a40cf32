"""Programs in the background: each has a session, a log and a file with its process id, by which it is ended and by nothing else."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from dormouse_testing.cluster.layout import ClusterError, Layout, Node

FREEZER = Path("/sys/fs/cgroup/freezer")

_STARTED: list[subprocess.Popen[bytes]] = []
"""Kept, or Python warns of each that it forgets while it runs. They outlive this process; their files are what they are ended by."""


def run(*command: str | Path, stdin: str | None = None, quiet: bool = False) -> str:
    """Standard output. ClusterError with the program's last words when it fails."""
    done = subprocess.run([os.fspath(word) for word in command], input=stdin, capture_output=True, text=True)
    if done.returncode and not quiet:
        words = (done.stderr or done.stdout).strip().splitlines()[-5:]
        raise ClusterError(f"{Path(os.fspath(command[0])).name} failed: {' | '.join(words) or done.returncode}")
    return done.stdout


def attempt(*command: str | Path) -> bool:
    return subprocess.run([os.fspath(word) for word in command], capture_output=True).returncode == 0


def spawn(layout: Layout, name: str, command: Sequence[str], node: Node | None = None) -> None:
    """Starts `command` for the host, or for `node`: in its network and its cgroup, so that it dies with the node."""
    where = node.name if node else "host"
    layout.log.mkdir(parents=True, exist_ok=True)
    layout.run.mkdir(parents=True, exist_ok=True)
    if node:
        join = f'echo $$ >{FREEZER / node.name}/cgroup.procs && exec "$@"'
        command = ["sh", "-c", join, "sh", *node.inside, *command]
    with open(layout.log / f"{where}-{name}.log", "ab") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    _STARTED.append(process)
    (layout.run / f"{where}-{name}.pid").write_text(f"{process.pid} {started(process.pid)}\n")


def started(pid: int) -> str:
    """When the process began, in the kernel's ticks: with it an id is not mistaken for a later process of the same number. '' where it
    is gone, also where it only waits to be buried. While a thread of it still ends, it holds its ports."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        buried = fields[0] == "Z" and len(os.listdir(f"/proc/{pid}/task")) == 1
    except OSError:
        return ""
    return "" if buried else fields[19]


def alive(file: Path) -> int:
    """The process id in `file`, or 0 where that very process is gone."""
    try:
        pid, began = file.read_text().split()
    except (OSError, ValueError):
        return 0
    return int(pid) if started(int(pid)) == began else 0


def end(files: Sequence[Path], grace: float = 0.0) -> None:
    """SIGTERM, and after `grace` SIGKILL; at once SIGKILL where grace is 0."""
    for file in files:
        if pid := alive(file):
            os.kill(pid, signal.SIGTERM if grace else signal.SIGKILL)
    deadline = time.monotonic() + grace
    while any(map(alive, files)) and time.monotonic() < deadline:
        time.sleep(0.05)
    for file in files:
        if pid := alive(file):
            os.kill(pid, signal.SIGKILL)
    for file in files:
        while alive(file):  # its ports are its own until it is gone
            time.sleep(0.01)
        file.unlink(missing_ok=True)


def until(what: str, ready: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            raise ClusterError(f"{what}: not after {seconds:g} s")
        time.sleep(0.1)
