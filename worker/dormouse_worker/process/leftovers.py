"""Processes that a handler's process started and left behind: they end with it.

A worker that died is replaced by another in the same place. What the first one had started (a pool's processes, a server of its own)
belongs to nobody then: it takes memory in the same container, and may hold a port or a file that the next one wants. So the supervisor
adopts whatever the worker leaves, and ends it: SIGTERM, a moment, SIGKILL. Imports nothing heavy.
"""

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Collection

PATIENCE = 1.0
"""Seconds from SIGTERM to SIGKILL."""
LOOK = 0.02
_PR_SET_CHILD_SUBREAPER = 36


def adopt() -> None:
    """From now on, a process whose parent has died becomes this one's child, if it descends from it."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def reap(own: Collection[int]) -> None:
    """Of adopted processes that have ended nothing stays; those of `own` are waited for elsewhere."""
    with contextlib.suppress(ChildProcessError):
        while (found := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None and found.si_pid not in own:
            os.waitpid(found.si_pid, 0)


def end() -> int:
    """Ends every child of this process. How many there were."""
    seen: set[int] = set()
    until = time.monotonic() + PATIENCE
    while left := _children():
        late = time.monotonic() >= until
        for pid in left:
            if late or pid not in seen:
                os.kill(pid, signal.SIGKILL if late else signal.SIGTERM)  # not reaped yet, so the pid is still its own
        seen.update(left)
        reap(())
        time.sleep(LOOK)
    return len(seen)


def _children() -> list[int]:
    """Those that still run; their own, once orphaned, come later."""
    reap(())
    with contextlib.suppress(OSError), open(f"/proc/self/task/{os.getpid()}/children") as file:
        return [int(word) for word in file.read().split()]
    return []
