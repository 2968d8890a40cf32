"""Whose death a call may be: what a worker died of, and what becomes of the calls that ran in it.

A call whose worker dies is sent again under its key, and it is nearly always innocent: a node is lost, somebody kills a pod. But a call can
be what kills: its model wants more memory than there is, or crashes in native code. Sent again it would be the next worker's death, with
everything else that runs there. So a supervisor that outlives its worker says what it died of and which calls ran, and a call under which
two have died of themselves is sent no more. After the first it runs alone: rows of others that would be joined to it are not their callers'
fault.

Where the kernel ends a whole container for want of memory (`memory.oom.group`), nobody is left to say anything, and it looks as if a node
were lost: a connection breaks. Two of those prove nothing. From the second on the call is in a worker with no other one of its kind, and
the third is taken for its doing.

Imports nothing: it runs in the supervisor, too.
"""

import signal
from collections.abc import Sequence

HELD, MEMORY, CRASH = range(3)
"""`WorkerEntry.Killed.Why`. HELD: its supervisor killed it, for a step that held the interpreter."""

MOST = 2
"""Workers that may die of themselves while a call runs in them; one more where others ran beside it each time, or where nobody says why."""

_CRASHES = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT}


def why(number: int, starved: bool) -> int | None:
    """Why a worker that the signal `number` ended has died; None: somebody killed it, which is no call's doing.

    `starved`: the kernel has killed in its control group for want of memory while it lived.
    """
    if number == signal.SIGKILL:
        return MEMORY if starved else None
    return CRASH if number in _CRASHES else None


def guilty(alone: Sequence[bool], lost: int = 0) -> bool:
    """Whether a call is what its workers die of. `alone`: of each that has died of itself under it, the last one last, whether it ran alone
    there. `lost`: workers whose connections broke while it ran in them, also those of which somebody said why.

    Where others ran beside it they are as suspect as it is: they were sent again together. From then on each is `apart`, so what dies once
    more was its doing.
    """
    return max(len(alone), lost) > MOST or (len(alone) == MOST and alone[-1])


def apart(known: int, lost: int) -> bool:
    """Whether a call is to be in no worker together with another of which this holds: one of them may be what their workers died of.
    `known`: workers that died of themselves under it; `lost` as in `guilty`."""
    return max(known, lost) >= MOST


def text(worker: str, number: int, reason: int) -> str:
    if reason == MEMORY:
        return f"worker {worker} was killed by the kernel: it used more memory than its limit allows"
    return f"worker {worker} crashed ({signal.Signals(number).name})"
