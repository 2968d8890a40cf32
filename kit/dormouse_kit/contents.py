"""What a model consists of, as one digest: the same bytes under the same names have the same, wherever they lie.

A file is it and the files that its weights lie in; a folder is everything in it but hidden files, what Python compiles beside its modules,
and what `ignoring` leaves out. A model of one file has that file's own SHA-256. `spec.model.sha256` is this digest.
"""

import functools
import hashlib
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from dormouse_core import modeluris
from dormouse_core.errors import InvalidArgument
from dormouse_core.externals import external_files
from dormouse_core.spec import FunctionSpec, Initial

from dormouse_kit import ignoring
from dormouse_kit.windows import Window

COMPILED = "__pycache__"
SHOWN = 12  # characters of a digest, for people
NAMES_SHOWN = 5

SETTLED = 0.05
"""Seconds after a change within which a file may change again without another time: file systems' clocks tick each 1 to 10 ms."""


class Changed(OSError):
    """A file is being written: what was read is neither what it was nor what it will be."""


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


def some(names: Sequence[str]) -> str:
    """Names of files, for people."""
    return ", ".join(names[:NAMES_SHOWN]) + (", ..." if len(names) > NAMES_SHOWN else "")


def digest(path: Path, more: Iterable[str] = ()) -> str:
    """64 hex characters. `more`: names of files beside a model of one file that belong to it. OSError: it cannot be read, or changed while
    it was."""
    return digest_of(read(path, more), path)


def read(path: Path, more: Iterable[str] = (), only: Collection[str] = ()) -> dict[str, str]:
    """The SHA-256 of each file, by its name within the model. `only`: of a folder, those names and no others. OSError: as `digest`."""
    before = stamp(path, more, only)
    found = {name: _file(file) for name, file in files(path, more, only)}
    if stamp(path, more, only) != before:
        raise Changed(f"{path.name} changed while it was read")
    return found


def digest_of(found: Mapping[str, str], path: Path) -> str:
    """Of several files, the SHA-256 of what `sha256sum` prints of them, in the order of their names."""
    if len(found) == 1 and path.is_file():
        return next(iter(found.values()))
    return hashlib.sha256("".join(_line(name, found[name]) for name in sorted(found)).encode(errors="surrogateescape")).hexdigest()


def _line(name: str, digest: str) -> str:
    escaped = name.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    return f"{'' if escaped == name else chr(92)}{digest}  {escaped}\n"


def stamp(path: Path, more: Iterable[str] = (), only: Collection[str] = ()) -> Stamp:
    """Name, device, inode, size and times of each file: what differs once something was written. OSError: it is not there."""
    stats = [(name, file.stat()) for name, file in files(path, more, only)]
    return tuple((name, s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for name, s in stats)


def seal(stamp: Stamp, now: float) -> str:
    """A stamp as short text, for where its content was read: files that have it still need not be read again. Empty: they changed just
    `now` (wall time), and could change again unseen."""
    if max((changed for *_, changed in stamp), default=0) > (now - SETTLED) * 1e9:
        return ""
    return hashlib.sha256(repr(stamp).encode()).hexdigest()[:32]


def files(path: Path, more: Iterable[str] = (), only: Collection[str] = ()) -> list[tuple[str, Path]]:
    """The files of a model and their names within it, in the order of those. One that a model names and that is not there is left out: it
    does not load, which says so better."""
    if path.is_dir() and only:
        return sorted((name, path / name) for name in only if (path / name).is_file())
    if path.is_dir():
        ignored = ignoring.read(path)
        named = ((os.path.relpath(each, path), each) for each in _walk(path, frozenset()))
        return sorted((name, each) for name, each in named if not ignored(name))
    beside = {name: path.parent / name for name in {*externals(path), *more}}
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


def externals(path: Path) -> frozenset[str]:
    found = path.stat()
    return _externals(path, (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns))


@functools.lru_cache(maxsize=64)
def _externals(path: Path, times: tuple[int, ...]) -> frozenset[str]:
    """`times`: of the file, which is looked into once for each."""
    with path.open("rb") as file:
        return external_files(Window(file.fileno()))


def _file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
