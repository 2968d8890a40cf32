"""What the supervisor does at the store for a child whose interpreter is held: keeps its lease, and leaves word of why it is killed.

Both run in a process forked for it, which shares the supervisor's memory and ends with it: etcd or a resolver may be slow, and the
supervisor is one thread that must not wait. The keeper looks again before each renewal: the child's step must be allowed to run, and the
process itself must run, which its Envoy shows by answering the admin socket. So a process that is stopped is renewed at most once more, and
loses its shards when the lease ends, as does everything when the keeper dies. Safety hangs on none of it: commits compare shard entries.
"""

import base64
import os
import signal
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from dormouse_core import deaths, hanging

from dormouse_worker.process import probing
from dormouse_worker.process.jsonstore import JsonStore, Refused
from dormouse_worker.process.marks import Marks

EVERY = 0.7
"""Seconds between two renewals."""
RETRY = 0.1
GLANCE = 0.2
GLANCES = 6
"""As many as it takes until all threads but one are known to wait; a machine may be so busy that they seldom come to ask."""
ASKS = 2
ALIVE = 0.5
"""Seconds for Envoy's main thread to answer; it does nothing else."""


def keep(access: Mapping[str, Any], admin: str, marks: Marks, say: Callable[[str], None]) -> None:
    """Renews the lease while the child may hold its interpreter and runs; returns when it renews by itself again, or may not any more."""
    store = JsonStore(access)
    lease = marks.lease
    due = 0.0
    while hanging.may_renew(now=(now := time.monotonic()), renewed=marks.renewed_at, held=marks.held_for(now), limit=marks.limit):
        if now >= due and probing.alive(admin, ALIVE):
            sent = time.monotonic()
            try:
                if store.keep_alive(lease) <= 0:
                    say("the lease of a worker whose interpreter is held has ended")
                    return
            except (OSError, ValueError, Refused) as error:
                say(f"the lease of a worker whose interpreter is held cannot be renewed: {error}")
            else:
                marks.kept(sent)
                due = sent + EVERY
        time.sleep(RETRY)


def leave_word(
    access: Mapping[str, Any],
    registered: Mapping[str, Any],
    pid: int,
    runs: Sequence[hanging.Run],
    cause: str,
    why: int = deaths.HELD,
    alone: bool = False,
) -> None:
    """Writes into the worker's entry which calls it dies for: whoever would send them again reads it there. `why`: of `deaths`; of a step
    that holds the interpreter it is known which of them it is. `alone`: nothing else was in the worker."""
    if why == deaths.HELD:
        calls = hanging.blamed(runs, waiting(pid, {run.thread for run in runs} - {0}))
    else:
        calls = [call for run in runs for call in run.calls]
    entry = base64.b64decode(registered["entry"]) + killed(calls, cause, why, alone)
    JsonStore(access).change(registered["key"], entry, int(registered["lease"]))


def waiting(pid: int, threads: Collection[int]) -> set[int]:
    """Those of a process's threads that wait for its interpreter: Python has them ask for it every 5 ms (`sys.setswitchinterval`), so they
    go to sleep and wake up all the time. What holds it computes, or sleeps in one piece."""
    before = {thread: _sleeps(pid, thread) for thread in threads}
    found: set[int] = set()
    for _ in range(GLANCES):
        if len(found) + 1 >= len(before) or not any(before.values()):  # it has died: none of its threads is there
            break
        time.sleep(GLANCE)
        found = {thread for thread, count in before.items() if _sleeps(pid, thread) - count >= ASKS}
    return found


def _sleeps(pid: int, thread: int) -> int:
    """How often it has gone to sleep by itself, since it began; 0: not known."""
    try:
        with open(f"/proc/{pid}/task/{thread}/status") as file:
            return int(file.read().rpartition("\nvoluntary_ctxt_switches:")[2].split(maxsplit=1)[0])
    except (OSError, ValueError, IndexError):
        return 0


def killed(calls: list[str], cause: str, why: int = deaths.HELD, alone: bool = False) -> bytes:
    """`WorkerEntry.killed` on the wire, to be appended to an entry: protobuf's library would be most of the supervisor's memory."""
    body = b"".join(b"\n" + _sized(call.encode()) for call in calls) + b"\x12" + _sized(cause.encode())
    return b"\x42" + _sized(body + (bytes([0x18, why]) if why else b"") + (b"\x20\x01" if alone else b""))


def _sized(data: bytes) -> bytes:
    """Behind its length as a varint."""
    size, number = b"", len(data)
    while number > 0x7F:
        size += bytes([number & 0x7F | 0x80])
        number >>= 7
    return size + bytes([number]) + data


class Errand:
    """A process that does one thing and ends; it is killed with the supervisor, or when it is not wanted any more."""

    def __init__(self, what: Callable[[], None], die_with_parent: Callable[[int], None]) -> None:
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid:
            self.pidfd = os.pidfd_open(self.pid)
            return
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            die_with_parent(parent)
            what()
            os._exit(0)
        except BaseException as error:
            os.write(2, f"supervisor: {error!r}\n".encode())
        os._exit(1)

    def end(self) -> None:
        os.kill(self.pid, signal.SIGKILL)  # not reaped yet, so the pid is still its own
        self.reap()

    def reap(self) -> None:
        os.waitpid(self.pid, 0)
        os.close(self.pidfd)
