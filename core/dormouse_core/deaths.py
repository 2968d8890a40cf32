"""Whose death a call may be: what a worker died of, and what becomes of the calls that ran in it.

A call whose worker dies is sent again under its key, and it is nearly always innocent: a node is lost, somebody kills a pod. But a call can
be what kills: its model wants more memory than there is, or crashes in native code. Sent again it would be the next worker's death, with
everything else that runs there.

So a call is convicted, and only by a worker that died while it ran there with nothing else. That is known in two ways. A supervisor that
outlives its worker says what it died of, which calls ran, and whether nothing else was there. Where the kernel ends a whole container for
want of memory (`memory.oom.group`), nobody is left to say anything, and it looks as if a node were lost: a connection breaks. Then it is
known of a call for which the worker was cleared before (`dormouse_core.clearing`), as it is for every call from its second death on.

Imports nothing but numbers: it runs in the supervisor, too.
"""

import signal
from collections.abc import Mapping, Sequence

from dormouse_core.limits import LOST_WORKERS

HELD, MEMORY, CRASH = range(3)
"""`WorkerEntry.Killed.Why`. HELD: its supervisor killed it, for a step that held the interpreter."""

FEWEST = 2
"""Deaths before a call is suspect. One may be chance, also where nothing ran beside it: a lost node, or what an earlier call did to the
memory."""

_CRASHES = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT}


def why(number: int, starved: bool) -> int | None:
    """Why a worker that the signal `number` ended has died; None: somebody killed it, which is no call's doing.

    `starved`: the kernel has killed in its control group for want of memory while it lived.
    """
    if number == signal.SIGKILL:
        return MEMORY if starved else None
    return CRASH if number in _CRASHES else None


def witnessed(known: Mapping[str, bool], broke: Sequence[tuple[str, bool]], tried: bool) -> list[bool | None]:
    """Of each worker that died under a call, the last one last: whether it is known that nothing else ran there. None, as the first: of
    Envoy's own try that failed nobody tells whether a worker died.

    `known`: workers of which a supervisor said that they died of themselves under it, and whether it ran alone there. `broke`: workers
    whose connections broke while it ran in them, and whether they were cleared for it. `tried`: Envoy's own try failed.
    """
    names = {name for name, _ in broke}
    spare = [found for name, found in known.items() if name not in names]
    alone: list[bool | None] = []
    if tried:
        alone.append(spare.pop(0) if spare else None)
    for name, cleared in broke:  # one that began at the address of another since then has its own name
        word = known[name] if name in known else spare.pop(0) if spare else False
        alone.append(cleared or word)
    return [*spare, *alone]


def suspect(alone: Sequence[bool | None]) -> bool:
    """Whether a call is sent on only to a worker that is cleared for it. `alone`: as `witnessed` says."""
    return len(alone) >= FEWEST


def guilty(alone: Sequence[bool | None]) -> bool:
    """Whether a call is what its workers die of. `alone`: as `witnessed` says.

    LOST_WORKERS are lost only where workers cannot be cleared: those of an earlier version, or that always run something long. Then it ends
    there, whoever's doing it was.
    """
    return (len(alone) - alone.count(None) >= FEWEST and alone[-1] is True) or len(alone) >= LOST_WORKERS


def text(worker: str, number: int, reason: int) -> str:
    if reason == MEMORY:
        return f"worker {worker} was killed by the kernel: it used more memory than its limit allows"
    return f"worker {worker} crashed ({signal.Signals(number).name})"
