"""What a model consists of, as one digest: the same bytes under the same names have the same, wherever they lie.

A file is it and the files that its weights lie in; a folder is everything in it but hidden files and what Python compiles beside its
modules. A model of one file has that file's own SHA-256, which is the one of `spec.model.sha256`.
"""

import hashlib
import mmap
import os
from collections.abc import Iterable
from pathlib import Path

from dormouse_core import modeluris
from dormouse_core.errors import InvalidArgument
from dormouse_core.externals import external_files
from dormouse_core.spec import FunctionSpec, Initial

COMPILED = "__pycache__"
SHOWN = 12  # characters of a digest, for people

SETTLED = 0.05
"""Seconds after a change within which a file may change again without another time: file systems' clocks tick each 1 to 10 ms."""

Stamp = tuple[tuple[str, int, int, int, int, int], ...]


def place(spec: FunctionSpec, root: str) -> Path | None:
    """Where a file:// model lies below `root`; None: it lies elsewhere, or there is none."""
    if spec.model is None or not root:
        return None
    try:
        model = modeluris.parse(spec.model.uri)
    except InvalidArgument:
        return None
    return Path(root) / model.path if model.scheme == "file" else None


def beside(spec: FunctionSpec) -> list[str]:
    """The files beside the model with which sessions begin."""
    states = spec.sessions.states if spec.sessions is not None else ()
    return [state.initial.file for state in states if isinstance(state.initial, Initial) and state.initial.file is not None]


def digest(path: Path, more: Iterable[str] = ()) -> str:
    """64 hex characters. `more`: names of files beside a model of one file that belong to it. OSError: it cannot be read, or changed while
    it was."""
    before = stamp(path, more)
    found = [(name, _file(file)) for name, file in files(path, more)]
    if stamp(path, more) != before:
        raise OSError(f"{path.name} changed while it was read")
    if len(found) == 1 and path.is_file():
        return found[0][1]
    return hashlib.sha256("".join(f"{name}\0{of}\n" for name, of in found).encode(errors="surrogateescape")).hexdigest()


def stamp(path: Path, more: Iterable[str] = ()) -> Stamp:
    """Name, device, inode, size and times of each file: what differs once something was written. OSError: it is not there."""
    stats = [(name, file.stat()) for name, file in files(path, more)]
    return tuple((name, s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for name, s in stats)


def seal(stamp: Stamp, now: float) -> str:
    """A stamp as short text, for where its content was read: files that have it still need not be read again. Empty: they changed just
    `now` (wall time), and could change again unseen."""
    if max((changed for *_, changed in stamp), default=0) > (now - SETTLED) * 1e9:
        return ""
    return hashlib.sha256(repr(stamp).encode()).hexdigest()[:32]


def files(path: Path, more: Iterable[str] = ()) -> list[tuple[str, Path]]:
    """The files of a model and their names within it, in the order of those. One that a model names and that is not there is left out: it
    does not load, which says so better."""
    if path.is_dir():
        return sorted((os.path.relpath(each, path), each) for each in _walk(path, frozenset()))
    beside = {name: path.parent / name for name in {*_externals(path), *more}}
    return sorted([(path.name, path), *((name, file) for name, file in beside.items() if file.is_file() and name != path.name)])


def _walk(folder: Path, within: frozenset[Path]) -> Iterable[Path]:
    within |= {folder.resolve()}
    for each in folder.iterdir():
        if each.name.startswith(".") or each.name == COMPILED:
            continue
        if each.is_dir():
            if each.resolve() not in within:  # else a link that leads back up
                yield from _walk(each, within)
        elif each.is_file():
            yield each


def _externals(path: Path) -> frozenset[str]:
    if path.suffix != ".onnx" or not path.stat().st_size:
        return frozenset()
    with path.open("rb") as file:
        try:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as error:
            raise OSError(f"{path.name} was emptied while it was read") from error
        with data:
            return external_files(data)


def _file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
