"""The process that outlives a worker's crash.

A worker's child (Envoy with Python in it) can die, hang, or be told to leave; the supervisor starts the next at once, ends a hung one, and
turns SIGTERM into a drain (a bare SIGTERM to Envoy cuts its calls). It imports nothing heavy, holds no model and no lease, and has one
thread and no event loop: a handful of file descriptors in one `select`. It never waits for its child, whose standard output it reads.

A step that holds the child's interpreter silences it; that is no hang for as long as a step may run (`dormouse_core.hanging`), and the
child's lease is kept for it meanwhile (`keeping`). Beyond it the child is killed, and those who called are told why. So they are where a
child dies of itself (`dormouse_core.deaths`).

The child dies with its supervisor (PR_SET_PDEATHSIG), and what it started ends with it (`leftovers`).

A child that ended before it was ready is not tried again: its reason is written down and the supervisor leaves, so that the reason reaches
the function's condition, and callers are refused with it. But one that was killed gave no reason: its machine may have been short of memory
for a moment. It is tried again, and callers wait.
"""

import contextlib
import ctypes
import json
import os
import secrets
import select
import signal
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from dormouse_core import deaths, hanging
from dormouse_core.backoff import Backoff
from dormouse_core.limits import PROBE_MISSES, PROBE_SECONDS
from dormouse_core.plain import plain
from dormouse_kit import inotify

from dormouse_worker.process import bootstrap, keeping, leftovers, memorylimit, probing, surroundings
from dormouse_worker.process.link import FD, SETTINGS, Link
from dormouse_worker.process.marks import Marks
from dormouse_worker.process.printed import Printed, stamp

UNAVAILABLE = 14
RESTART = Backoff(0.4, 5.0)
"""Between children that ended soon one after the other; the first is started at once."""
KILLS = 3
"""Children in a row that were killed before they were ready; then that is the reason."""
STARVED = (
    "the worker used more memory than its limit before it was ready, and the kernel killed it; raise spec.workers.resources.limits.memory"
)
GLANCE = 0.25
"""Seconds between two looks at the marks of a child in which a step runs."""
WORD = 3.0
"""Seconds that the word of a killed worker may take to the store, before it is killed without."""
_PR_SET_PDEATHSIG = 1


@dataclass(slots=True)
class Options:
    """From the command line. Times are in seconds."""

    listen: str
    """HOST:PORT or unix:PATH."""
    advertise: str
    instance: str
    admin: str
    reason: str
    child: dict[str, Any]
    """What the child is told, beside its name and address."""
    label: str = "?"
    """The function, for what it prints."""
    store: Mapping[str, Any] = field(default_factory=dict)
    """How to reach the store, as in the worker's file; empty: there is none."""
    start_limit: float = 300.0
    """A child that is not ready by then has failed."""
    probe_every: float = PROBE_SECONDS
    probe_timeout: float = 1.0
    drain_limit: float = 10.0
    """How long Envoy may take to end its connections, after the worker has drained."""


class Child:
    """One child process."""

    def __init__(self, options: Options) -> None:
        self.name = f"{options.instance}-{secrets.token_hex(4)}"
        self.ready = False
        self.drained = False
        self.killed = False
        self.starved = False
        self.kills = memorylimit.kills()
        self.problem: dict[str, Any] | None = None
        self.registered: dict[str, Any] = {}
        self.probe: probing.Probe | None = None
        self.process: probing.Probe | None = None
        self.misses = 0
        self.still = 0
        self.since = time.monotonic()
        self.marks = Marks()
        self.printed = Printed(options.label)
        ours, theirs = socket.socketpair()
        self.pipe, write = os.pipe()
        self.prints = True
        os.set_blocking(self.pipe, False)
        log = os.dup(2)
        self.link = Link(ours)
        settings = {
            **options.child,
            "worker": self.name,
            "instance": options.instance,
            "listen": options.listen,
            "advertise": options.advertise,
            "admin": options.admin,
            "log": log,
            "marks": self.marks.fd,
            "before": surroundings.taken(),
        }
        environment = bootstrap.environment({**os.environ, FD: str(theirs.fileno()), SETTINGS: json.dumps(settings)})
        arguments = bootstrap.command(bootstrap.bootstrap(options.listen, options.admin, told=inotify.available()))
        self.pid = _spawn(arguments, environment, (theirs.fileno(), log, self.marks.fd), write)
        theirs.close()
        os.close(write)
        os.close(log)
        self.pidfd = os.pidfd_open(self.pid)

    def kill(self) -> None:
        self.killed = True
        os.kill(self.pid, signal.SIGKILL)

    def died_of(self) -> tuple[int, int | None]:
        """The signal that has ended it by itself, 0: none; and why, as `deaths.why`."""
        info = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOWAIT)
        if self.killed or info is None or info.si_code == os.CLD_EXITED:
            return 0, None
        kills = memorylimit.kills()
        return info.si_status, deaths.why(info.si_status, kills is not None and kills > (self.kills or 0))

    def wait(self) -> int:
        """The exit status; negative: the signal. Closes what belongs to the child."""
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        while data := self._rest():
            self.hear(data)
        while self.prints and self.read():
            pass
        self.printed.flush(time.time())
        for probe in (self.probe, self.process):
            if probe is not None and probe.sock is not None:
                probe.sock.close()
        self.marks.close()
        os.close(self.pipe)
        os.close(self.pidfd)
        self.link.sock.close()
        return status

    def _rest(self) -> bytes:
        try:
            return self.link.sock.recv(65536, socket.MSG_DONTWAIT)
        except OSError:
            return b""

    def read(self) -> bool:
        """What it printed; False: nothing more by now."""
        try:
            data = os.read(self.pipe, 65536)
        except BlockingIOError:
            return False
        self.printed.feed(data, time.time())
        self.prints = bool(data)
        return self.prints

    def hear(self, data: bytes) -> None:
        for message in self.link.feed(data):
            self.ready = self.ready or bool(message.get("ready"))
            self.drained = self.drained or bool(message.get("drained"))
            if _is(message.get("problem"), code=int, reason=str, message=str):
                self.problem = message["problem"]
            if _is(message.get("registered"), key=str, entry=str, lease=int):
                self.registered = message["registered"]


def _die_with(parent: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)


def _spawn(arguments: list[str], environment: dict[str, str], keep: tuple[int, ...], output: int) -> int:
    """fork and exec. No thread runs here, so what happens between the two is safe. The child keeps the files `keep` under their numbers,
    and prints to `output`."""
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        _die_with(parent)
        for number in keep:
            os.set_inheritable(number, True)
        os.dup2(output, 1)
        os.dup2(output, 2)
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        os.chdir(surroundings.ELSEWHERE)
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
        self._keeper: keeping.Errand | None = None
        leftovers.adopt()
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
                how = STARVED if child.starved else f"the worker ended with status {status} before it was ready"
                self._report(child.problem or _failed(f"{how}{times}"))
                return 1
            # A restarted worker is a new one. The first is started at once; one that dies again and again waits longer and longer.
            quick = quick + 1 if time.monotonic() - child.since < 10 else 0
            say(f"worker {child.name} ended with status {status}; the next one starts")
            if quick > 1:
                self._pause(RESTART.after(quick - 1))

    def _watch(self, child: Child) -> int:
        """Until the child has ended: its exit status."""
        options = self._options
        next_probe = 0.0
        while True:
            now = time.monotonic()
            if not child.ready and now - child.since > options.start_limit:
                child.problem = child.problem or _failed(f"the worker was not ready after {options.start_limit:g} s")
                child.kill()
                return self._wait(child)
            wait = max(0.0, next_probe - now) if child.ready else 1.0
            if child.ready and child.marks.held_for(now) is not None:
                wait = min(wait, GLANCE)
            if self._turn(child, wait):
                self._mourn(child)
                return self._wait(child)
            if self._asked and not child.ready:
                child.kill()
                return self._wait(child)
            if self._asked and not self._told:
                self._told = True
                child.link.send({"drain": True})
            if child.drained:
                self._asked = True
                return self._quit(child)
            now = time.monotonic()
            if child.ready:
                self._keep(child, now)
                if self._probed(child, now):
                    child.kill()
                    return self._wait(child)
                if now >= next_probe and child.probe is None:
                    leftovers.reap([child.pid, *([] if self._keeper is None else [self._keeper.pid])])
                    next_probe = now + options.probe_every
                    child.probe = probing.inference(options.listen, now + options.probe_timeout)
                    child.process = probing.process(options.admin, now + options.probe_timeout)

    def _turn(self, child: Child, wait: float) -> bool:
        """Takes what there is to read and writes what the child printed, within `wait` seconds. True: the child has ended."""
        probes = [probe for probe in (child.probe, child.process) if probe is not None and probe.sock is not None]
        now = time.monotonic()
        for probe in probes:
            wait = min(wait, max(0.0, probe.until - now))
        if child.printed.begun:
            wait = min(wait, 1.0)
        watched: list[Any] = [child.pidfd, child.link.sock, self._wake, *(probe.sock for probe in probes)]
        if child.prints:  # it may have closed its standard output
            watched.append(child.pipe)
        if self._keeper is not None:
            watched.append(self._keeper.pidfd)
        readable, writable, _ = select.select(watched, [2] if child.printed.waiting else [], [], wait)
        for probe in probes:
            if probe.sock in readable:
                probe.read()
        if child.pipe in readable:
            child.read()
        child.printed.due(time.time())
        if writable:
            _write(child.printed.take())
        if child.link.sock in readable:
            child.hear(child._rest())
        if self._keeper is not None and self._keeper.pidfd in readable:
            self._keeper.reap()
            self._keeper = None
        if self._wake in readable and self._wake.recv(64):
            self._asked = True
        return child.pidfd in readable

    # -------------------------------------------------------------------------------------------------------- a held interpreter
    def _keep(self, child: Child, now: float) -> None:
        """Has the lease renewed from outside, while the child cannot and may."""
        marks = child.marks
        if self._keeper is not None or not self._options.store or not marks.lease:
            return
        if hanging.may_renew(now=now, renewed=marks.renewed_at, held=marks.held_for(now), limit=marks.limit):
            options = self._options
            self._keeper = keeping.Errand(lambda: keeping.keep(options.store, options.admin, marks, say), _die_with)

    def _probed(self, child: Child, now: float) -> bool:
        """True: the child hangs. Whoever called is told why, where that can be known."""
        if child.probe is None or child.process is None or (status := child.probe.look(now)) is None:
            return False
        alive = child.process.look(now)
        if status != 200 and alive is None:
            return False  # in a moment
        child.probe = child.process = None
        child.misses = 0 if status == 200 else child.misses + 1
        child.still = child.still + 1 if status == 0 and alive != 200 else 0
        held = child.marks.held_for(now)
        why = hanging.verdict(misses=child.misses, unhealthy=status != 0, held=held, limit=child.marks.limit, still=child.still)
        if not why:
            if child.misses == PROBE_MISSES:
                say(f"worker {child.name} does not answer its probes: a step holds its interpreter, for {held or 0.0:.1f} s by now")
            return False
        say(f"worker {child.name} is killed: {why}")
        if status == 0 and held is not None and held > child.marks.limit:
            self._leave_word(child, f"worker {child.name} was killed: {why}")
        return True

    def _mourn(self, child: Child) -> None:
        """The child has ended: whoever would send again what ran in it is told why, if the child died of itself."""
        number, why = child.died_of()
        child.starved = why == deaths.MEMORY
        if why is not None:
            cause = deaths.text(child.name, number, why)
            say(cause)
            self._leave_word(child, cause, why)

    def _leave_word(self, child: Child, cause: str, why: int = deaths.HELD) -> None:
        """Before a kill, which sends the callers on, or as soon after a death as can be."""
        runs, alone = child.marks.runs(), child.marks.alone()
        if not (runs or why == deaths.MEMORY) or not child.registered or not self._options.store:
            return
        options = self._options
        errand = keeping.Errand(lambda: keeping.leave_word(options.store, child.registered, child.pid, runs, cause, why, alone), _die_with)
        if select.select([errand.pidfd], [], [], WORD)[0]:
            errand.reap()
        else:
            errand.end()

    # ------------------------------------------------------------------------------------------------------------------ the end
    def _wait(self, child: Child) -> int:
        """The child has ended, or is about to: its exit status, once all that it printed is written."""
        if self._keeper is not None:
            self._keeper.end()
            self._keeper = None
        status = child.wait()
        if count := leftovers.end():
            say(f"{count} processes that worker {child.name} had left behind were ended")
        end = time.monotonic() + 1.0
        while child.printed.waiting and select.select([], [2], [], max(0.0, end - time.monotonic()))[1]:
            _write(child.printed.take())
        return status

    def _quit(self, child: Child) -> int:
        """Ends Envoy without cutting a connection's last answer."""
        admin = self._options.admin
        end = time.monotonic() + self._options.drain_limit
        probing.post(admin, "/drain_listeners?graceful&skip_exit")
        while time.monotonic() < end and probing.active(admin):
            self._turn(child, 0.02)
            time.sleep(0.02)
        if not probing.post(admin, "/quitquitquit"):
            child.kill()
        end = time.monotonic() + 5.0
        while not self._turn(child, 0.2):
            if time.monotonic() > end:
                child.kill()
                break
        return self._wait(child)

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


def _is(found: Any, **fields: type) -> bool:
    """Whether it is an object with these fields."""
    return isinstance(found, dict) and all(isinstance(found.get(name), kind) for name, kind in fields.items())


def _failed(message: str) -> dict[str, Any]:
    return {"code": UNAVAILABLE, "reason": "WorkerFailed", "message": message}


def _write(data: bytes) -> None:
    with contextlib.suppress(OSError):  # nobody reads the log any more: no reason to stop serving
        os.write(2, data)


def say(text: str) -> None:
    """One line, in the form of `dormouse_kit.log`, which is too heavy to import here."""
    print(plain(f"{stamp(time.time())} supervisor  {text}"), file=sys.stderr, flush=True)


def main(options: Options) -> NoReturn:
    sys.exit(Supervisor(options).run())
