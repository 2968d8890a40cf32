"""What the demo and `make examples` share: the whole system in a folder of its own, told apart from others by that folder, and sentences
that are checked."""

import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent


class Untrue(Exception):
    """A sentence of the story that does not hold."""


def check(true: bool, sentence: str) -> None:
    if not true:
        raise Untrue(sentence)


BEGAN = time.monotonic()


def say(text: str) -> None:
    print(f"{time.monotonic() - BEGAN:6.1f} s  {text}", flush=True)


class Place(Protocol):
    """Where a use is shown: on this machine (`System`), or on a cluster."""

    @property
    def address(self) -> str:
        """host:port of the gateway."""

    def asleep(self, name: str) -> Any:
        """Returns once the function sleeps and no worker is left. Untrue: it does not."""

    def workers(self, name: str) -> int:
        """How many workers the function has."""

    def aimed(self, name: str, session: str | None = None) -> tuple[str, Callable[[], None]]:
        """Who serves the function's session, or any of its workers, and what kills it without a warning. Untrue: nobody serves."""

    def kept(self, name: str) -> tuple[float, int] | None:
        """When the function's first session expires, in seconds of the epoch, and how many bytes its record takes. None: not known here."""

    def steps(self, name: str) -> dict[str, int] | None:
        """How many steps each session of the function has made, by its id. Asking wakes nobody. None: not known here."""


class System:
    """`dormouse up` in a folder, and the `dormouse` command beside it."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.dormouse = str(pathlib.Path(sys.executable).with_name("dormouse"))
        self.log = (folder / "up.log").open("w")
        self.process = subprocess.Popen(
            [self.dormouse, "up", str(folder), "--port", "0"], stdout=self.log, stderr=subprocess.STDOUT, start_new_session=True
        )

    @property
    def port(self) -> int:
        """The gateway's, once it runs: one that was chosen here might be another program's by then."""
        return int(json.loads((self.folder / ".dormouse" / "run.json").read_text())["gateway"].rpartition(":")[2])

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def command(self, *words: str) -> str:
        done = subprocess.run([self.dormouse, *words, "--dir", str(self.folder)], capture_output=True, text=True, timeout=60)
        if done.returncode != 0:
            raise Untrue(f"`dormouse {' '.join(words)}` failed: {done.stderr.strip()}")
        return done.stdout

    def get(self, name: str, *more: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.command("get", name, "-o", "json", *more))
        return found

    def wait(self, what: str, name: str, true: Any, seconds: float = 120.0) -> dict[str, Any]:
        """Until `true(status of name)`; Untrue with `what` after `seconds`."""
        until = time.monotonic() + seconds
        while True:
            if self.process.poll() is not None:
                raise Untrue(f"`dormouse up` left with {self.process.returncode}")
            status: dict[str, Any] = {}
            with contextlib.suppress(Untrue):  # it may not listen yet; the deadline decides
                status = self.get(name)
                if true(status):
                    return status
            if time.monotonic() > until:
                raise Untrue(f"{what}: not within {seconds:g} s ({status.get('phase', 'no answer')} {status.get('message', '')})".rstrip())
            time.sleep(0.1)

    def asleep(self, name: str) -> dict[str, Any]:
        return self.wait(f"{name} sleeps", name, lambda s: s.get("phase") == "Asleep" and not s.get("readyReplicas"))

    def ready(self, name: str, count: int) -> None:
        self.wait(f"{name} has {count} workers", name, lambda s: s.get("readyReplicas", 0) == count)

    def processes(self) -> list[int]:
        """Every process of this system: the folder's path is on its command line or in its environment."""
        mark = str(self.folder).encode()
        found = []
        for entry in pathlib.Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                with contextlib.suppress(OSError):
                    if mark in (entry / "cmdline").read_bytes():
                        found.append(int(entry.name))
        return found

    def serving(self) -> dict[str, int]:
        """By worker the process that serves: the child of the worker's supervisor."""
        found = {}
        for pid in self.processes():
            with contextlib.suppress(OSError):
                words = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                if b"--instance" in words:
                    children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
                    if children:
                        found[words[words.index(b"--instance") + 1].decode()] = int(children[0])
        return found

    def sessions(self, name: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.command("sessions", name, "-o", "json"))
        return found

    def owner(self, name: str, session: str = "") -> tuple[str, int]:
        """The worker that owns the function's session of this id (or its first), and the process that serves it."""
        owner = next((s.get("owner", "") for s in self.sessions(name) if session == "" or s["session"].endswith(f":{session}")), "")
        for worker, pid in self.serving().items():
            if owner.startswith(worker):
                return owner, pid
        raise Untrue(f"no process of the worker that owns {name}'s session {session} found: {owner or 'nobody owns it'}")

    def moved(self, name: str, former: str) -> str:
        """Who owns the session, once it is not `former`."""
        until = time.monotonic() + 60
        while True:
            with contextlib.suppress(Untrue):  # nobody, for a moment
                if (owner := self.owner(name)[0]) != former:
                    return owner
            if time.monotonic() > until:
                raise Untrue(f"worker {former} was killed and another owns the session: not within 60 s")

    def server(self, name: str, session: str | None = None) -> tuple[str, int]:
        """The worker that owns this session of the function, or, without one, any of its workers; and the process that serves."""
        if session is not None:
            return self.owner(name, session)
        specs = self.folder / ".dormouse" / "specs"
        served = {w: p for w, p in self.serving().items() if json.loads((specs / f"{w}.json").read_text())["name"] == name}
        check(bool(served), f"{name} has a worker that can be killed")
        return next(iter(served.items()))

    def workers(self, name: str) -> int:
        return len(self.get(name).get("calls", {}))

    def aimed(self, name: str, session: str | None = None) -> tuple[str, Callable[[], None]]:
        worker, pid = self.server(name, session)
        return worker, lambda: os.kill(pid, signal.SIGKILL)

    def kept(self, name: str) -> tuple[float, int] | None:
        session = self.sessions(name)[0]
        return int(session["expiresUs"]) / 1e6, int(session["bytes"])

    def steps(self, name: str) -> dict[str, int]:
        return {each["session"].rpartition(":")[2]: int(each["step"]) for each in self.sessions(name)}

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)
        self.process.wait(60)
        check(self.process.returncode == 0, f"`dormouse up` left with {self.process.returncode} after Ctrl-C")


def laid(folder: pathlib.Path, names: Sequence[str]) -> None:
    """Puts these functions' manifests, and what they name, into `folder`."""
    for name in names:
        manifest = (HERE / f"{name}.yaml").read_text()
        (folder / f"{name}.yaml").write_text(manifest)
        for part in set(re.findall(r"file://([^/,}\s\"]+)", manifest)):
            shutil.copytree(HERE / part, folder / part, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))


@contextlib.contextmanager
def system(*names: str) -> Iterator[System]:
    """The system with these functions of the examples, and nothing else; afterwards nothing is left of it."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="dormouse-demo-"))
    laid(folder, names)
    running = System(folder)
    try:
        yield running
    except BaseException:
        print((folder / "up.log").read_text()[-6000:], file=sys.stderr)
        raise
    finally:
        if running.process.poll() is None:
            running.process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                running.process.wait(30)
        for pid in running.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        running.log.close()
        shutil.rmtree(folder, ignore_errors=True)
