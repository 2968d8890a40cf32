"""The Python side of the child process: what pyvoy imports inside Envoy, as `dormouse_worker.child:app`.

The model is loaded while this module is imported, before Envoy listens. pyvoy makes its event loop afterwards, by
`uvloop.new_event_loop`; that is where our task factory and our own start are put in. What goes wrong is told to the supervisor with a
reason, and the process ends: Envoy alone would go on without an application. So it does where code of a handler ends the event loop, which
SystemExit in a task or a callback does: a worker without one looks like one whose interpreter is held by a step that may run.
"""

import asyncio
import base64
import contextlib
import gc
import json
import os
import pathlib
import socket
import sys
from typing import Any, NoReturn, TextIO, cast

import uvloop
from dormouse_core import workerfile
from dormouse_core.errors import Code, DormouseError, text_of
from dormouse_kit import log

from dormouse_worker.models.refusals import ContentChanged, ModelInvalid, ModelUnavailable
from dormouse_worker.process import surroundings, unread
from dormouse_worker.process.link import FD, SETTINGS, Link
from dormouse_worker.process.marks import Marks
from dormouse_worker.serving import loading
from dormouse_worker.serving.settings import WorkerIdentity
from dormouse_worker.serving.worker import Worker
from dormouse_worker.sessions import WorkerRegistration
from dormouse_worker.transport.asgi import task_factory

GC_THRESHOLD = 20_000
"""Calls make no cycles, so looking for them after every 700 new objects is work for nothing."""
FAILED = 70
"""Exit status after a problem was told."""


def problem(error: BaseException) -> dict[str, Any]:
    """What the leader writes into the function's entry, and callers are told."""
    if isinstance(error, ModelInvalid):
        return {"code": int(Code.FAILED_PRECONDITION), "reason": "ModelInvalid", "message": error.message}
    if isinstance(error, ContentChanged):
        return {"code": int(Code.FAILED_PRECONDITION), "reason": "ContentChanged", "message": error.message}
    if isinstance(error, ModelUnavailable):
        return {"code": int(Code.UNAVAILABLE), "reason": "ModelUnavailable", "message": error.message}
    message = error.message if isinstance(error, DormouseError) else text_of(error)
    return {"code": int(Code.UNAVAILABLE), "reason": "WorkerFailed", "message": message}


def fail(link: Link, error: BaseException) -> None:
    """Tells why, with where it happened: of our own errors, where their cause was raised, in a handler's code or a model's."""
    cause = error.__cause__ if isinstance(error, DormouseError) else error
    if cause is not None:
        log.warning("the worker cannot start", error=text_of(error), raised=cause)
    link.send({"problem": problem(error)})
    end()


def end() -> NoReturn:
    """At once. A handler may have closed or replaced its streams."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(FAILED)


def keep_from_outside(registration: WorkerRegistration, marks: Marks, link: Link) -> None:
    """What the supervisor needs to renew the lease, or to leave word in the entry, while this interpreter is held."""
    registration.on_renewed = marks.renewed
    registration.kept = lambda: marks.kept_at

    def written(key: str, entry: bytes, lease: int) -> None:
        link.send({"registered": {"key": key, "entry": base64.b64encode(entry).decode(), "lease": lease}})

    registration.on_written = written


def start() -> Worker:
    """Loads everything that needs no event loop, and has the rest started on the one that pyvoy will make."""
    link = Link(socket.socket(fileno=int(os.environ[FD])))
    settings = WorkerIdentity(**json.loads(os.environ[SETTINGS]))
    surroundings.restore(settings.before, (FD, SETTINGS), settings.listen)
    for stream in (sys.stdout, sys.stderr):
        cast(TextIO, stream).reconfigure(line_buffering=True)  # type: ignore[attr-defined]
    marks = Marks(settings.marks)
    try:
        file = None if settings.standalone else workerfile.load(pathlib.Path(settings.spec).read_bytes())
        label = settings.name if file is None else file.function.label
        log.setup(f"worker {label}", stream=os.fdopen(settings.log, "w", errors="backslashreplace"))
        if file is None:
            loaded = loading.standalone(pathlib.Path(settings.standalone), settings.name, settings.max_batch)
        else:
            loaded = loading.from_file(file)
        loaded.engine.runs.marks = marks
        marks.allow(loaded.hang)
        worker = Worker(loaded, settings, link)
    except BaseException as error:
        fail(link, error)
        raise

    async def run() -> None:
        link.sock.setblocking(False)
        tasks.append(unread.watch(settings.admin))
        member = None
        if file is not None:
            from dormouse_worker.serving.membership import Membership  # brings grpc with it, whose loop is this one

            where = {"address": settings.advertise, "instance": settings.instance}
            member = Membership(file, loaded, worker=settings.worker, time=worker.skew, **where)
            keep_from_outside(member.registration, marks, link)
        await worker.run(member)

    original = uvloop.new_event_loop
    tasks: list[asyncio.Task[None]] = []

    def ended(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            fail(link, task.exception() or AssertionError())

    def new_event_loop() -> uvloop.Loop:
        loop = original()
        loop.set_task_factory(task_factory)
        run_forever = loop.run_forever

        def run_to_the_end() -> None:
            try:
                run_forever()
            except BaseException as error:
                log.warning("the worker's event loop failed", error=text_of(error), raised=error)
            else:
                if worker.drained:
                    return  # Envoy ends
                log.warning("the worker's event loop was stopped")
            end()

        loop.run_forever = run_to_the_end  # type: ignore[method-assign]

        def begin() -> None:
            task = loop.create_task(run())
            tasks.append(task)
            task.add_done_callback(ended)

        loop.call_soon(begin)
        return loop

    uvloop.new_event_loop = new_event_loop
    # What is loaded by now stays: the collector need not look at it again.
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD)
    return worker


app = start().transport
