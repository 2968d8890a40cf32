"""What a handler makes in its own model folder is not of the model: its names go into `.dormouseignore`, before they are there.

A cache, a log or a database beside the code would else be taken for the model's content at the next `apply`, and for a changed one at the
wake after that. Whether a person or a handler made a file cannot be told from the file; but Python tells of each that is opened, made or
renamed, in the process that does it (audit events). Only new names count: who changes a file that came with the model changes the model.

Files that a library in another language or a child process makes are not seen, unless they are in a folder that the handler made.
"""

import os
import pathlib
import sys
import threading
from collections.abc import Callable, Collection
from typing import Any

from dormouse_kit import contents, ignoring

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
BESIDE_SQLITE = ("", "-journal", "-wal", "-shm")


class Written:
    def __init__(self, folder: pathlib.Path, listed: Collection[str]) -> None:
        """`listed`: the names of what came with the model. A handler that removes one and makes it again has changed it."""
        self._folder = os.path.realpath(folder)
        self._listed = frozenset(listed)
        self._known: set[str] = set()
        self._lock = threading.RLock()

    def watch(self) -> None:
        """From now on, for as long as this process lives."""
        sys.addaudithook(self.heard)

    def heard(self, event: str, given: tuple[Any, ...]) -> None:
        """An audit event of Python. What is raised here would fail what the handler does."""
        found = _EVENTS.get(event)
        if found is None:
            return
        try:
            for path, folder in found(given):
                self._note(path, folder)
        except Exception:  # noqa: S110 - a name that cannot be noted; the handler goes on
            pass

    def _note(self, path: Any, folder: bool) -> None:
        if not isinstance(path, str | bytes | os.PathLike):
            return  # a descriptor
        text = os.path.abspath(os.fsdecode(path))
        if os.path.lexists(text):
            return  # no new one
        parent, last = os.path.split(text)
        name = os.path.relpath(os.path.join(os.path.realpath(parent), last), self._folder)
        parts = name.split(os.sep)
        if any(part.startswith(".") or part == contents.COMPILED for part in parts) or name in self._listed:
            return  # outside (".."), or hidden, or the model's
        line = ignoring.escape(name) + ("/" if folder else "")
        with self._lock:
            if len(line) > folder and line not in self._known and not ignoring.read(pathlib.Path(self._folder))(name):
                self._known.add(line)
                self._append(line)

    def _append(self, line: str) -> None:
        file = os.path.join(self._folder, ignoring.NAME)
        descriptor = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            size = os.fstat(descriptor).st_size
            ended = not size or os.pread(descriptor, 1, size - 1) == b"\n"
            os.write(descriptor, f"{'' if ended else chr(10)}{line}\n".encode(errors="surrogateescape"))
        finally:
            os.close(descriptor)


def _opened(given: tuple[Any, ...]) -> list[tuple[Any, bool]]:
    path, _, flags = given
    return [(path, False)] if flags & WRITES else []


def _database(given: tuple[Any, ...]) -> list[tuple[Any, bool]]:
    (path,) = given
    text = os.fsdecode(path).removeprefix("file:").partition("?")[0]
    return [] if text in ("", ":memory:") else [(text + ending, False) for ending in BESIDE_SQLITE]


_EVENTS: dict[str, Callable[[tuple[Any, ...]], list[tuple[Any, bool]]]] = {
    "open": _opened,
    "os.rename": lambda given: [(given[1], os.path.isdir(given[0]))],
    "os.link": lambda given: [(given[1], False)],
    "os.symlink": lambda given: [(given[1], os.path.isdir(given[0]))],
    "os.mkdir": lambda given: [(given[0], True)],
    "sqlite3.connect": _database,
}
