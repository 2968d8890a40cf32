"""The Python side of the child process: what pyvoy imports inside Envoy, as `dormouse_worker.child:app`.

The model is loaded while this module is imported, before Envoy listens. pyvoy makes its event loop afterwards, by
`uvloop.new_event_loop`; that is where our task factory and our own start are put in. What goes wrong is told to the supervisor with a
reason, and the process ends: Envoy alone would go on without an application.
"""

import asyncio
import gc
import json
import os
import pathlib
import socket
import traceback
from typing import Any

import uvloop
from dormouse_core import workerfile
from dormouse_core.errors import Code, DormouseError, text_of
from dormouse_kit import log

from dormouse_worker import loading
from dormouse_worker.asgi import task_factory
from dormouse_worker.link import FD, SETTINGS, Link
from dormouse_worker.models import ModelInvalid, ModelUnavailable
from dormouse_worker.settings import Settings
from dormouse_worker.worker import Worker

GC_THRESHOLD = 20_000
"""Calls make no cycles, so looking for them after every 700 new objects is work for nothing."""
FAILED = 70
"""Exit status after a problem was told."""


def problem(error: BaseException) -> dict[str, Any]:
    """What the leader writes into the function's entry, and callers are told."""
    if isinstance(error, ModelInvalid):
        return {"code": int(Code.FAILED_PRECONDITION), "reason": "ModelInvalid", "message": error.message}
    if isinstance(error, ModelUnavailable):
        return {"code": int(Code.UNAVAILABLE), "reason": "ModelUnavailable", "message": error.message}
    message = error.message if isinstance(error, DormouseError) else text_of(error)
    return {"code": int(Code.UNAVAILABLE), "reason": "WorkerFailed", "message": message}


def fail(link: Link, error: BaseException) -> None:
    if not isinstance(error, DormouseError):
        traceback.print_exception(error)
    link.send({"problem": problem(error)})
    os._exit(FAILED)


def start() -> Worker:
    """Loads everything that needs no event loop, and has the rest started on the one that pyvoy will make."""
    log.setup("worker")
    link = Link(socket.socket(fileno=int(os.environ[FD])))
    try:
        settings = Settings(**json.loads(os.environ[SETTINGS]))
        file = None
        if settings.standalone:
            loaded = loading.standalone(pathlib.Path(settings.standalone), settings.name, settings.max_batch)
        else:
            file = workerfile.load(pathlib.Path(settings.spec).read_bytes())
            loaded = loading.from_file(file)
        worker = Worker(loaded, settings, link)
    except BaseException as error:
        fail(link, error)
        raise

    async def run() -> None:
        link.sock.setblocking(False)
        member = None
        if file is not None:
            from dormouse_worker.membership import Membership  # brings grpc with it, whose loop is this one

            member = Membership(file, loaded, worker=settings.worker, address=settings.advertise, instance=settings.instance)
        await worker.run(member)

    original = uvloop.new_event_loop
    tasks: list[asyncio.Task[None]] = []

    def ended(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            fail(link, task.exception() or AssertionError())

    def new_event_loop() -> uvloop.Loop:
        loop = original()
        loop.set_task_factory(task_factory)

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
