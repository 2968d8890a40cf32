"""Where one machine's system keeps its things: ``DIR/.dormouse``.

A Unix socket's path has at most 107 bytes, and a folder may lie deep; and Envoy is told such paths in a list with commas. So sockets lie in
`.dormouse` where that fits, and in a folder of the system's temporary folder where it does not; ``run.json`` says where, and who runs.

Whoever may write here may read every session and run code as this user. So each folder must be this user's own and a real one (a link could
lead a removal elsewhere), and is closed to all others.
"""

import contextlib
import fcntl
import json
import os
import re
import shlex
import shutil
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TextIO

from dormouse_core.errors import FailedPrecondition, InvalidArgument, Unavailable

NAME = ".dormouse"
TEMPORARY = "dormouse-"
LONGEST_SOCKET = 107  # bytes of sun_path, without the closing NUL
SOCKET_NAME_ROOM = 24  # the longest name of a socket of ours
PLAIN = re.compile(r"[A-Za-z0-9_./-]+")  # a path that can stand in a header, between commas


@dataclass(frozen=True, slots=True)
class Run:
    """A running system, as its `run.json` says."""

    pid: int
    control: str  # unix:PATH
    gateway: str  # host:port where callers connect
    metrics: dict[str, int]  # part -> port
    store: list[str] = field(default_factory=list)  # etcd's endpoints


class Home:
    """The folder of one system."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory.absolute()
        self.root = self.directory / NAME

    @property
    def etcd(self) -> Path:
        return self.root / "etcd"

    @property
    def specs(self) -> Path:
        return self.root / "specs"

    @property
    def reasons(self) -> Path:
        return self.root / "reasons"

    @property
    def run_file(self) -> Path:
        return self.root / "run.json"

    def prepare(self) -> None:
        """InvalidArgument: `directory` is no folder, or nothing can be written there."""
        if not self.directory.is_dir():
            raise InvalidArgument(f"{self.directory}: no such folder")
        try:
            for folder in (self.root, self.specs, self.reasons):
                folder.mkdir(mode=0o700, exist_ok=True)
                own(folder)
                folder.chmod(0o700)
            if self.etcd.is_symlink() or self.etcd.exists():
                own(self.etcd)
        except OSError as error:
            raise InvalidArgument(f"{self.root}: {error.strerror}") from error

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """FailedPrecondition: another `dormouse up` runs here. The kernel releases the lock with the process, however it ends."""
        with _opened(self.root / "lock") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                pid = file.read().strip()
                raise FailedPrecondition(f"{self.directory}: `dormouse up` runs here already, pid {pid}") from None
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            self._sweep()
            yield

    def _sweep(self) -> None:
        """Removes what a run that was killed left behind: its sockets outside of `.dormouse`, its workers' files."""
        for folder in (self.specs, self.reasons):
            for file in folder.iterdir():
                file.unlink()
        try:
            sockets = Path(Run(**json.loads(self.run_file.read_text())).control.removeprefix("unix:")).parent
        except (OSError, ValueError, TypeError, AttributeError, RecursionError):
            return  # it ended in good order
        if sockets.parent == Path(tempfile.gettempdir()) and sockets.name.startswith(TEMPORARY):
            shutil.rmtree(sockets, ignore_errors=True)
        self.forget_run()

    @contextlib.contextmanager
    def sockets(self) -> Iterator[Path]:
        """A folder for sockets, emptied before."""
        folder = self.root / "s"
        if folder.is_symlink():
            folder.unlink()
        shutil.rmtree(folder, ignore_errors=True)
        if len(os.fsencode(folder)) + 1 + SOCKET_NAME_ROOM <= LONGEST_SOCKET and PLAIN.fullmatch(str(folder)):
            folder.mkdir(mode=0o700)
        else:
            folder = Path(tempfile.mkdtemp(prefix=TEMPORARY))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def write_run(self, run: Run) -> None:
        part = self.run_file.with_suffix(".part")
        part.unlink(missing_ok=True)
        with part.open("x") as file:  # never through a link
            file.write(json.dumps(asdict(run)))
        part.rename(self.run_file)

    def forget_run(self) -> None:
        self.run_file.unlink(missing_ok=True)

    def read_run(self) -> Run:
        """Unavailable: nothing runs here, with how to start it."""
        if self.root.is_symlink() or self.root.exists():
            own(self.root)
        try:
            run = Run(**json.loads(self.run_file.read_text()))
            os.kill(run.pid, 0)
        except (OSError, ValueError, TypeError, RecursionError):  # not written, or left behind by one that was killed
            start = f"start it with: dormouse up {shlex.quote(os.fspath(self.directory))}"
            raise Unavailable(f"nothing runs in {self.directory}; {start}, or name a folder where it runs: --dir, DORMOUSE_DIR") from None
        return run


def _opened(path: Path) -> TextIO:
    """To read and append, made where it is not there. InvalidArgument: it is a link, or cannot be opened."""
    try:
        return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600), "a+")
    except OSError as error:
        found = "a link found, a file is required" if path.is_symlink() else error.strerror
        raise InvalidArgument(f"{path}: {found}") from error


def own(folder: Path) -> None:
    """InvalidArgument: it is no folder of this user's own. OSError: it cannot be looked at."""
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise InvalidArgument(f"{folder}: {'a link' if stat.S_ISLNK(found.st_mode) else 'no folder'} found, a folder is required")
    if found.st_uid != os.geteuid():
        raise InvalidArgument(f"{folder}: it belongs to user {found.st_uid}, a folder of user {os.geteuid()} (yours) is required")


def find(given: str | None) -> Home:
    """The system that a command is meant for: `--dir`, $DORMOUSE_DIR, or this folder or the nearest one above that has a `.dormouse`."""
    chosen = given or os.environ.get("DORMOUSE_DIR")
    if chosen:
        return Home(Path(chosen))
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / NAME).is_dir():
            return Home(folder)
    return Home(here)
