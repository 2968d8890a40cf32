"""The weights that lie beside an ONNX model, given to ONNX Runtime so that nobody else can change them afterwards.

ONNX Runtime maps them. A mapping of the file itself would show what is written into it later: the model would answer with weights that it
was not proved with, and a file that is truncated would end the worker (SIGBUS). So they are copied first, into a folder of this process's
own that is removed as soon as the session is made: what is mapped then has no name, and nobody else can open it. While the model is loaded
that takes their size once, and what the runtime makes of them; read into memory they take it twice.

They are read into memory where they are small, or where no disk has room for a copy.
"""

import contextlib
import fcntl
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

from dormouse_kit import contents, log

PREFIX = "dormouse-weights-"
SMALL_BYTES = 16 << 20
"""Less is read into memory: a copy would gain nothing."""
LEFT = 0.2
"""Of the disk, which a copy leaves free: a node evicts pods when less than a tenth is."""
IN_MEMORY = frozenset({"tmpfs", "ramfs"})
"""File systems where a copy takes memory all the same."""


@contextlib.contextmanager
def held(path: pathlib.Path, options: Any) -> Iterator[pathlib.Path]:
    """The model that a session is to be made of, within this context. Weights that lead out of the model's folder are left to ONNX Runtime,
    which refuses them. OSError: they cannot be read."""
    names = beside(path)
    size = sum((path.parent / name).stat().st_size for name in names)
    with contextlib.ExitStack() as stack:
        copy = _copied(path, names, size, stack) if size >= SMALL_BYTES else None
        if copy is None and names:
            data = [(path.parent / name).read_bytes() for name in names]
            options.add_external_initializers_from_files_in_memory(names, data, [len(each) for each in data])
        yield copy or path


def beside(path: pathlib.Path) -> list[str]:
    folder = path.parent.resolve()
    return [
        name for name in sorted(contents.externals(path)) if (folder / name).resolve().is_relative_to(folder) and (folder / name).is_file()
    ]


def _copied(path: pathlib.Path, names: list[str], size: int, stack: contextlib.ExitStack) -> pathlib.Path | None:
    """The model's file in a folder of its own with its weights; None: there is no room."""
    try:
        place = pathlib.Path(tempfile.gettempdir())
        _sweep(place)
        if not _has_room(place, size + path.stat().st_size):
            return None
        folder = pathlib.Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        lock = os.open(folder, os.O_RDONLY)
        stack.callback(os.close, lock)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for name in (path.name, *names):
            to = folder / name
            if to.parent != folder:
                to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path.parent / name, to)
    except OSError as error:
        # What cannot be read is told when it is read into memory.
        log.event("the weights are read into memory: they could not be copied", error=error)
        return None
    return folder / path.name


def named(text: str) -> str:
    """What ONNX Runtime says of a copy, without where that lay."""
    return re.sub(rf"[^\s\"']*/{PREFIX}[^/\s]*/", "", text)


def _has_room(place: pathlib.Path, size: int) -> bool:
    if _kind(place) in IN_MEMORY:
        return False
    usage = shutil.disk_usage(place)
    return usage.free - size >= LEFT * usage.total


def _kind(place: pathlib.Path) -> str:
    """Of its file system; '': not known."""
    device = place.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines():
        words = line.split()
        if words[2] == number:
            return words[words.index("-") + 1]
    return ""


def _sweep(place: pathlib.Path) -> None:
    """Removes what processes left that were killed while they loaded: nobody locks it."""
    for folder in place.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            if folder.is_symlink() or folder.stat().st_uid != os.geteuid():
                continue
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)
