"""How many CPUs this process may really use.

`os.cpu_count()` says what the host has. A container with a quota of one CPU on a host of 64 that makes 64 threads is throttled most of the
time. So: the quota of the cgroup (v2 `cpu.max`, v1 `cpu.cfs_quota_us`), rounded up, of every level from the process's own up to the root,
and never more than the CPUs that the process may run on.
"""

import math
import os
import pathlib

from dormouse_kit.cgroups import CGROUP, SELF, levels, read


def available(cgroup: pathlib.Path = CGROUP, own: pathlib.Path = SELF, affinity: int | None = None) -> int:
    """At least 1. The arguments are for tests."""
    if affinity is None:
        affinity = len(os.sched_getaffinity(0))
    found = quota(cgroup, own)
    return max(1, affinity if found is None else min(affinity, math.ceil(found)))


def quota(cgroup: pathlib.Path, own: pathlib.Path) -> float | None:
    """The tightest quota in CPUs; None: no quota."""
    found: list[float] = []
    for line in read(own).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            found += levels(cgroup, path, _v2)
        elif "cpu" in controllers.split(","):
            found += levels(cgroup / "cpu", path, _v1) or levels(cgroup / controllers, path, _v1)
    return min(found, default=None)


def _v2(folder: pathlib.Path) -> float | None:
    fields = read(folder / "cpu.max").split()
    return int(fields[0]) / int(fields[1]) if len(fields) == 2 and fields[0] != "max" else None


def _v1(folder: pathlib.Path) -> float | None:
    limit, period = read(folder / "cpu.cfs_quota_us"), read(folder / "cpu.cfs_period_us")
    return int(limit) / int(period) if limit and period and int(limit) > 0 else None
