"""What the control groups of this process allow it: version 2, and version 1 where a machine still has it."""

import os
import pathlib
from collections.abc import Callable

CGROUP = pathlib.Path("/sys/fs/cgroup")
SELF = pathlib.Path("/proc/self/cgroup")


def memory_limit(cgroup: pathlib.Path = CGROUP, own: pathlib.Path = SELF) -> int | None:
    """The container's memory in bytes: the tightest limit from the process's own group up to the root. None: it has none."""
    found: list[float] = []
    for line in read(own).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            found += levels(cgroup, path, lambda folder: _bytes(folder / "memory.max"))
        elif "memory" in controllers.split(","):
            found += levels(cgroup / "memory", path, lambda folder: _bytes(folder / "memory.limit_in_bytes"))
    return int(min(found)) if found else None


def machine_memory() -> int:
    """Bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def levels(root: pathlib.Path, path: str, value_of: Callable[[pathlib.Path], float | None]) -> list[float]:
    """What `value_of` finds in the control group at `path` below `root` and in those above it."""
    # Inside a container the path may be the host's and not exist below the mount: then the mount itself is the container's group.
    folder = root / path.lstrip("/")
    if ".." in pathlib.PurePosixPath(path).parts or not folder.is_dir():
        folder = root
    found = []
    while True:
        value = value_of(folder)
        if value is not None:
            found.append(value)
        if folder == root:
            return found
        folder = folder.parent


def read(path: pathlib.Path) -> str:
    """The file's text, '' where it is not there."""
    try:
        return path.read_text()
    except OSError:
        return ""


def _bytes(file: pathlib.Path) -> float | None:
    text = read(file).strip()
    return int(text) if text.isdigit() else None
