"""A common limit of time: a test that hangs fails with the stacks of its threads and tasks, and does not keep the others from running.

The alarm comes again, for what hangs after its test has failed: a fixture's end, an example that Hypothesis tries again.
"""

import asyncio
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

LIMIT = 150.0
"""Seconds of a whole test, fixtures included. The slowest takes some seconds; a machine of several developers is slow."""
AGAIN = 5.0
LAST = 3
"""The alarm that ends the run: what catches everything, or hangs again and again, is not got out of in another way."""
HERE = Path(__file__).parent


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    if not item.path.is_relative_to(HERE) or threading.current_thread() is not threading.main_thread():
        return (yield)
    alarms = 0

    def alarm(number: int, frame: FrameType | None) -> None:
        nonlocal alarms
        alarms += 1
        text = f"{item.nodeid} hangs: it has run for {LIMIT + (alarms - 1) * AGAIN:g} s\n{stacks(frame)}"
        if alarms >= LAST:
            capture = item.config.pluginmanager.getplugin("capturemanager")
            if capture is not None:
                capture.suspend()  # what is written goes where pytest itself writes
            os.write(2, text.encode())
            os._exit(1)
        pytest.fail(text, pytrace=False)

    before = signal.signal(signal.SIGALRM, alarm)
    signal.setitimer(signal.ITIMER_REAL, LIMIT, AGAIN)
    try:
        return (yield)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def stacks(frame: FrameType | None) -> str:
    """Of this thread, of the others, and of the tasks of the event loop that runs in this one."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    frames = {**sys._current_frames(), threading.get_ident(): frame}
    parts = [f"thread {names.get(ident, ident)}:\n" + "".join(traceback.format_stack(each)) for ident, each in frames.items() if each]
    loop = asyncio._get_running_loop()
    for task in asyncio.all_tasks(loop) if loop is not None else ():
        parts.append(f"task {task.get_name()}:\n" + "".join(awaiting(task.get_coro())))
    return "\n".join(parts)


def awaiting(coroutine: Any) -> Iterator[str]:
    """From the outermost to the one that waits; `Task.get_stack` has the outermost alone."""
    while coroutine is not None:
        frame = getattr(coroutine, "cr_frame", None) or getattr(coroutine, "gi_frame", None)
        if frame is not None:
            yield "".join(traceback.format_stack(frame, 1))
        coroutine = getattr(coroutine, "cr_await", None) or getattr(coroutine, "gi_yieldfrom", None)
