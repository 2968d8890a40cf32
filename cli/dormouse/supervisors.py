"""Worker supervisors, as `dormouse up` keeps them for the operator: started, restarted at growing intervals, listed, stopped.

They are children of `up`, not of the operator: an operator that is killed and comes back finds its workers in the list. This is a kubelet's
job and no more: how many should run, and of what, is the operator's.
"""

import asyncio
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from signal import Signals

from dormouse_core import workerfile
from dormouse_core.backoff import Backoff
from dormouse_core.errors import FailedPrecondition, tellable
from dormouse_core.plain import plain
from dormouse_core.spec import environments
from dormouse_core.workerfile import WorkerFile
from dormouse_kit import contents, log
from dormouse_kit.processes import Child, python
from dormouse_proto import control_pb2, state_pb2

BACKOFF = Backoff(1.0, 60.0)  # before a restart
LOOK = 1.0  # seconds between looks at the files of a model that did not load
HEALTHY = 60.0  # seconds of running after which the next failure counts as the first
MUTE_FAILURES = 3  # ends without a reason that are taken as accidents before they are called a problem


@dataclass(slots=True)
class _Supervisor:
    instance: str
    file: WorkerFile
    grace: float
    started_us: int
    child: Child | None = None
    task: asyncio.Task[None] | None = None
    stopping: bool = False
    kill_at: float = math.inf  # monotonic seconds; set when it is stopped
    exit_code: int | None = None
    failures: int = 0
    problem: state_pb2.Problem | None = None
    stamp: contents.Stamp | None = None  # of the model's files, before the last try
    wanted: asyncio.Event = field(default_factory=asyncio.Event)  # set to end a back-off early, or because `kill_at` changed


Command = Callable[[str, Path, Path, Path], list[str]]  # instance, spec file, admin socket, reason file


class Supervisors:
    """`sockets`, `specs`, `reasons`: folders of ours. `command`: how a supervisor is started."""

    def __init__(self, sockets: Path, specs: Path, reasons: Path, command: Command) -> None:
        self._sockets = sockets
        self._specs = specs
        self._reasons = reasons
        self._command = command
        self._all: dict[str, _Supervisor] = {}
        self._count = 0
        self._told: set[tuple[str, str]] = set()
        self._closing = False

    def start(self, instance: str, spec: str, grace: float) -> None:
        """Starting one that runs is no error; one that is between two tries is started now. InvalidArgument: the spec is none.
        FailedPrecondition: `up` is stopping, or the instance is, whose the name and the spec's file are until it has ended."""
        if self._closing:
            raise FailedPrecondition("`dormouse up` is stopping")
        file = workerfile.load(spec)
        known = self._all.get(instance)
        if known is not None:
            if known.stopping:
                raise FailedPrecondition(f"{instance} is stopping; another can have its name once it has ended")
            known.wanted.set()
            return
        self._tell(file)
        path = self._specs / f"{instance}.json"
        path.touch(mode=0o600)
        path.write_text(spec)
        supervisor = _Supervisor(instance, file, grace, int(time.time() * 1e6))
        self._all[instance] = supervisor
        supervisor.task = asyncio.create_task(self._run(supervisor, path), name=f"supervisor {instance}")

    def _tell(self, file: WorkerFile) -> None:
        """Once for each revision."""
        told = environments.told(file.spec)
        if told and (file.uid, file.revision) not in self._told:
            self._told.add((file.uid, file.revision))
            log.warning(told, function=file.function.label)

    def stop(self, instance: str) -> None:
        """SIGTERM now, SIGKILL after the grace period; it leaves the list when it has ended."""
        supervisor = self._all.get(instance)
        if supervisor is None or supervisor.stopping:
            return
        supervisor.stopping = True
        supervisor.kill_at = time.monotonic() + supervisor.grace
        supervisor.wanted.set()
        if supervisor.child is not None:
            log.event("stopping a worker", instance=instance)
            supervisor.child.signal(Signals.SIGTERM)

    def list(self) -> list[control_pb2.Instance]:
        return [
            control_pb2.Instance(
                instance=s.instance,
                namespace=s.file.namespace,
                function=s.file.name,
                uid=s.file.uid,
                revision=s.file.revision,
                stopping=s.stopping,
                exited=s.child is None and s.exit_code is not None,
                exit_code=s.exit_code or 0,
                problem=s.problem,
                pid=s.child.pid if s.child else 0,
                started_us=s.started_us,
            )
            for s in self._all.values()
        ]

    async def close(self, grace: float) -> None:
        """Ends them all together, within `grace` seconds, also those that are stopping and were given longer."""
        self._closing = True
        tasks = [s.task for s in self._all.values() if s.task is not None]
        for s in list(self._all.values()):
            self.stop(s.instance)
            s.kill_at = min(s.kill_at, time.monotonic() + grace)
            s.wanted.set()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, s: _Supervisor, spec: Path) -> None:
        try:
            while not s.stopping:
                try:
                    await self._once(s, spec)
                except OSError as error:  # as where the machine has no process left to give
                    log.warning("a worker could not be started", instance=s.instance, error=str(error))
                    s.failures += 1
                if s.stopping:
                    break
                pause = BACKOFF.after(s.failures)
                log.event("a worker's supervisor ended", instance=s.instance, code=s.exit_code, again_in=pause)
                await self._rest(s, pause)
                s.wanted.clear()
        finally:
            if s.child is not None:
                await s.child.kill()
            _remove(spec)
            self._all.pop(s.instance, None)

    async def _rest(self, s: _Supervisor, pause: float) -> None:
        """Between two tries. What was mended is tried at once: the model's files are looked at, not read, each second."""
        until = time.monotonic() + pause
        while (left := until - time.monotonic()) > 0:
            try:
                async with asyncio.timeout(min(left, LOOK)):
                    await s.wanted.wait()
                return
            except TimeoutError:
                if await asyncio.to_thread(_stamp, s.file) != s.stamp:
                    log.event("the model's files changed; the worker starts again", instance=s.instance)
                    return

    async def _once(self, s: _Supervisor, spec: Path) -> None:
        reason = self._reasons / f"{s.instance}.json"
        _remove(reason)
        self._count += 1
        admin = self._sockets / f"w{self._count}.sock"  # short, and never one that a process of before may still hold
        began = time.monotonic()
        s.stamp = await asyncio.to_thread(_stamp, s.file)
        environment = {**os.environ, **environments.plain(s.file.spec.workers)}
        s.child = await Child.start(s.instance, self._command(s.instance, spec, admin, reason), env=environment)
        log.event("started a worker", instance=s.instance, pid=s.child.pid)
        try:
            if s.stopping:
                s.child.signal(Signals.SIGTERM)
            s.exit_code = await self._ended(s)
        finally:
            if s.child.returncode is None:
                await s.child.kill()
            s.child = None
            _remove(admin)
            _remove(calls(admin))
            _remove(pressure(admin))
        s.failures = 1 if time.monotonic() - began > HEALTHY else s.failures + 1
        s.problem = _read(reason)
        _remove(reason)
        if s.problem is None and s.failures >= MUTE_FAILURES and not s.stopping:
            text = f"the worker's supervisor ended with {_code(s.exit_code)} {s.failures} times in a row and gave no reason"
            s.problem = state_pb2.Problem(code=14, reason="WorkerFailed", message=text, revision=s.file.revision, mute=True)

    async def _ended(self, s: _Supervisor) -> int:
        assert s.child is not None
        ended = asyncio.ensure_future(s.child.wait())
        while not ended.done():
            left = s.kill_at - time.monotonic()
            if left <= 0:
                log.warning("a worker did not end in time and is killed", instance=s.instance)
                return await s.child.kill()
            waiting = asyncio.ensure_future(s.wanted.wait())
            await asyncio.wait({ended, waiting}, timeout=left if math.isfinite(left) else None, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            s.wanted.clear()
        return ended.result()


def _stamp(file: WorkerFile) -> contents.Stamp | None:
    """None: its model is not there, or not on this machine."""
    path = contents.place(file.spec, file.model_root)
    try:
        return None if path is None else contents.stamp(path, contents.beside(file.spec), file.files)
    except OSError:
        return None


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)


def _read(reason: Path) -> state_pb2.Problem | None:
    """What the supervisor left as its reason; None: nothing, or nothing readable."""
    try:
        data = json.loads(reason.read_text())
        return state_pb2.Problem(code=int(data["code"]), reason=plain(str(data["reason"])), message=tellable(str(data["message"])))
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None


def _code(code: int | None) -> str:
    return f"signal {Signals(-code).name}" if code is not None and code < 0 else f"code {code}"


def worker_command(instance: str, spec: Path, admin: Path, reason: Path) -> list[str]:
    """The worker's own command line."""
    options = ["--spec", os.fspath(spec), "--instance", instance, "--admin", os.fspath(admin), "--reason", os.fspath(reason)]
    return [*python("dormouse_worker"), "--listen", f"unix:{calls(admin)}", *options]


def pressure(admin: Path) -> Path:
    """By which the worker tells its Envoy of its memory."""
    return admin.with_name(f"{admin.name}.pressure")


def calls(admin: Path) -> Path:
    """Where a worker takes calls, and the leader's orders: beside its admin socket."""
    return admin.with_name(f"{admin.stem}-calls.sock")
