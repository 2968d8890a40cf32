"""The process that outlives a worker's crash.

A worker's child (Envoy with Python in it) can die, hang, or be told to leave; the supervisor starts the next at once, ends a hung one, and
turns SIGTERM into a drain (a bare SIGTERM to Envoy cuts its calls). It imports nothing heavy, holds no model and no lease, and has one
thread and no event loop: a handful of file descriptors in one `select`.

The child dies with its supervisor (PR_SET_PDEATHSIG). A child that ended before it was ready is not tried again: its reason is written
down and the supervisor leaves, so that the reason reaches the function's condition, and callers are refused with it. But one that was
killed gave no reason: its machine may have been short of memory for a moment. It is tried again, and callers wait.
"""

import ctypes
import json
import os
import secrets
import select
import signal
import socket
import sys
import time
from dataclasses import dataclass
from typing import Any, NoReturn

from dormouse_worker import bootstrap, probing
from dormouse_worker.link import FD, SETTINGS, Link

UNAVAILABLE = 14
KILLS = 3
"""Children in a row that were killed before they were ready; then that is the reason."""
_PR_SET_PDEATHSIG = 1


@dataclass(slots=True)
class Options:
    """From the command line. Times are in seconds."""

    host: str
    port: int
    advertise: str
    instance: str
    admin: str
    reason: str
    child: dict[str, Any]
    """What the child is told, beside its name and address."""
    start_limit: float = 300.0
    """A child that is not ready by then has failed."""
    probe_every: float = 1.0
    probe_timeout: float = 1.0
    probe_misses: int = 3
    drain_limit: float = 10.0
    """How long Envoy may take to end its connections, after the worker has drained."""


class Child:
    """One child process."""

    def __init__(self, options: Options) -> None:
        self.name = f"{options.instance}-{secrets.token_hex(4)}"
        self.ready = False
        self.drained = False
        self.problem: dict[str, Any] | None = None
        self.misses = 0
        self.since = time.monotonic()
        ours, theirs = socket.socketpair()
        self.link = Link(ours)
        settings = {
            **options.child,
            "worker": self.name,
            "instance": options.instance,
            "host": options.host,
            "port": options.port,
            "advertise": options.advertise,
        }
        environment = bootstrap.environment({**os.environ, FD: str(theirs.fileno()), SETTINGS: json.dumps(settings)})
        arguments = bootstrap.command(bootstrap.bootstrap(options.host, options.port, options.admin))
        self.pid = _spawn(arguments, environment, theirs.fileno())
        theirs.close()
        self.pidfd = os.pidfd_open(self.pid)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        """The exit status; negative: the signal. Closes what belongs to the child."""
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        while data := self._rest():
            self.hear(data)
        os.close(self.pidfd)
        self.link.sock.close()
        return status

    def _rest(self) -> bytes:
        try:
            return self.link.sock.recv(65536, socket.MSG_DONTWAIT)
        except OSError:
            return b""

    def hear(self, data: bytes) -> None:
        for message in self.link.feed(data):
            self.ready = self.ready or bool(message.get("ready"))
            self.drained = self.drained or bool(message.get("drained"))
            self.problem = message.get("problem", self.problem)


def _spawn(arguments: list[str], environment: dict[str, str], keep: int) -> int:
    """fork and exec. No thread runs here, so what happens between the two is safe."""
    libc = ctypes.CDLL(None, use_errno=True)
    parent = os.getpid()
    os.set_inheritable(keep, True)
    pid = os.fork()
    if pid:
        return pid
    try:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the line above
            os._exit(1)
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        os.execve(arguments[0], arguments, environment)  # noqa: S606  # Envoy, not a shell
    except BaseException as error:
        os.write(2, f"worker: {arguments[0]} does not start: {error}\n".encode())
    os._exit(127)


class Supervisor:
    def __init__(self, options: Options) -> None:
        self._options = options
        self._asked = False
        self._told = False
        self._wake, write = socket.socketpair()
        for end in (self._wake, write):
            end.setblocking(False)
        self._write = write  # kept open: signals wake the select through it
        signal.set_wakeup_fd(write.fileno())
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)

    def run(self) -> int:
        """The exit status of the whole."""
        quick = killed = 0
        while True:
            child = Child(self._options)
            status = self._watch(child)
            if self._asked:
                return 0
            mute = not child.ready and child.problem is None
            killed = killed + 1 if mute and status < 0 else 0
            if not child.ready and not 0 < killed < KILLS:
                times = f", {KILLS} times in a row" if killed else ""
                self._report(child.problem or _failed(f"the worker ended with status {status} before it was ready{times}"))
                return 1
            # A restarted worker is a new one. The first is started at once; one that dies again and again waits longer and longer.
            quick = quick + 1 if time.monotonic() - child.since < 10 else 0
            say(f"worker {child.name} ended with status {status}; the next one starts")
            if quick > 1:
                self._pause(min(5.0, 0.1 * 2**quick))

    def _watch(self, child: Child) -> int:
        """Until the child has ended: its exit status."""
        options = self._options
        next_probe = 0.0
        while True:
            now = time.monotonic()
            if not child.ready and now - child.since > options.start_limit:
                child.problem = child.problem or _failed(f"the worker was not ready after {options.start_limit:g} s")
                child.kill()
                return child.wait()
            wait = max(0.0, next_probe - now) if child.ready else 1.0
            watched: list[int | socket.socket] = [child.pidfd, child.link.sock, self._wake]
            readable, _, _ = select.select(watched, [], [], wait)
            if child.link.sock in readable:
                child.hear(child._rest())
            if child.pidfd in readable:
                return child.wait()
            if self._wake in readable and self._wake.recv(64):
                self._asked = True
            if self._asked and not child.ready:
                child.kill()
                return child.wait()
            if self._asked and not self._told:
                self._told = True
                child.link.send({"drain": True})
            if child.drained:
                self._asked = True
                return self._quit(child)
            now = time.monotonic()
            if child.ready and now >= next_probe:
                next_probe = now + options.probe_every
                self._probe(child)

    def _probe(self, child: Child) -> None:
        good = probing.get(self._options.host, self._options.port, "/probe", self._options.probe_timeout) == 200
        child.misses = 0 if good else child.misses + 1
        if child.misses >= self._options.probe_misses:
            say(f"worker {child.name} did not answer {child.misses} probes of its inference path; it is killed")
            child.kill()

    def _quit(self, child: Child) -> int:
        """Ends Envoy without cutting a connection's last answer."""
        admin = self._options.admin
        end = time.monotonic() + self._options.drain_limit
        probing.post(admin, "/drain_listeners?graceful&skip_exit")
        while time.monotonic() < end and probing.active(admin):
            time.sleep(0.02)
        if not probing.post(admin, "/quitquitquit"):
            child.kill()
        if not select.select([child.pidfd], [], [], 5.0)[0]:
            child.kill()
        return child.wait()

    def _pause(self, seconds: float) -> None:
        if select.select([self._wake], [], [], seconds)[0] and self._wake.recv(64):
            self._asked = True

    def _report(self, problem: dict[str, Any]) -> None:
        say(f"{problem['reason']}: {problem['message']}")
        path = self._options.reason
        if path:
            try:
                with open(path, "w") as file:
                    json.dump(problem, file)
            except OSError as error:
                say(f"the reason cannot be written: {error}")


def _failed(message: str) -> dict[str, Any]:
    return {"code": UNAVAILABLE, "reason": "WorkerFailed", "message": message}


def say(text: str) -> None:
    """One line, in the form of `dormouse_kit.log`, which is too heavy to import here."""
    now = time.time()
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
    print(f"{stamp}.{int(now * 1000) % 1000:03d}Z supervisor  {text}", file=sys.stderr, flush=True)


def main(options: Options) -> NoReturn:
    sys.exit(Supervisor(options).run())
