"""How much of its memory a worker's sessions may take, and replies that nobody reads: a part of the container's limit, or of the machine's
memory where there is none; and how much a run takes.
"""

import contextlib
import pathlib
import re

from dormouse_core.limits import REPLY_MEMORY_BYTES, REPLY_MEMORY_FRACTION, SESSION_MEMORY_FRACTION, SESSION_MEMORY_UNLIMITED_FRACTION
from dormouse_kit.cgroups import CGROUP, SELF, levels, machine_memory, memory_limit, read


def for_sessions(cgroup: pathlib.Path = CGROUP, own: pathlib.Path = SELF, machine: int | None = None) -> int:
    """Bytes. The arguments are for tests."""
    if machine is None:
        machine = machine_memory()
    found = memory_limit(cgroup, own)
    if found is None or found >= machine:
        return int(machine * SESSION_MEMORY_UNLIMITED_FRACTION)
    return int(found * SESSION_MEMORY_FRACTION)


def for_replies(cgroup: pathlib.Path = CGROUP, own: pathlib.Path = SELF, machine: int | None = None) -> int:
    """Bytes of replies that wait to be read. The arguments are for tests."""
    found = memory_limit(cgroup, own)
    whole = machine if machine is not None else machine_memory()
    part = REPLY_MEMORY_FRACTION * (found if found is not None and found < whole else whole)
    return max(int(part), REPLY_MEMORY_BYTES)


def kills(cgroup: pathlib.Path = CGROUP, own: pathlib.Path = SELF) -> int | None:
    """How often the kernel has killed in the process's own control group for want of memory (v2 `memory.events`, v1 `memory.oom_control`);
    None: it does not say."""
    for line in read(own).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            found = levels(cgroup, path, lambda folder: _kills(folder / "memory.events"))
        elif "memory" in controllers.split(","):
            found = levels(cgroup / "memory", path, lambda folder: _kills(folder / "memory.oom_control"))
        else:
            continue
        if found:
            return int(found[0])
    return None


def _kills(file: pathlib.Path) -> float | None:
    for line in read(file).splitlines():
        name, _, value = line.partition(" ")
        if name == "oom_kill" and value.isdigit():
            return int(value)
    return None


def room() -> int:
    """Bytes that this process may still take."""
    free = _status(pathlib.Path("/proc/meminfo"), "MemAvailable")
    most = memory_limit()
    return free if most is None else max(0, min(free, most - resident()))


def resident() -> int:
    """Bytes of this process now, without mapped files: the kernel may drop those."""
    return _without_files("VmRSS")


def peak(forget: bool = False) -> int:
    """The most that they were since the last `forget`, which a kernel may refuse: then since the process began. What was read of mapped
    files since then counts as if it had been there."""
    found = _without_files("VmHWM")
    if forget:
        with contextlib.suppress(OSError):
            pathlib.Path("/proc/self/clear_refs").write_text("5")
    return found


def _without_files(name: str) -> int:
    status = pathlib.Path("/proc/self/status")
    return max(0, _status(status, name) - _status(status, "RssFile"))


def _status(file: pathlib.Path, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", read(file), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0
