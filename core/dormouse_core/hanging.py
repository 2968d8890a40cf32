"""Whether a worker hangs, from what its supervisor sees: a step that may run is not a hang.

The interpreter is probed each second, through the path on which calls come. A step that holds it (in native code, or by blocking in an
async step) silences the probe for as long as it runs; that is allowed for as long as a step may. What tells it from an interpreter that
hangs: a step is under way, and the process runs, which Envoy's own threads show by answering their admin socket. A stopped process
(SIGSTOP, a frozen cgroup) answers neither, and nothing is renewed in its name.

Imports nothing: it runs in the supervisor.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

from dormouse_core.limits import LEASE_KEEPALIVE_SECONDS, PROBE_MISSES

OVERDUE_SECONDS = 1.5 * LEASE_KEEPALIVE_SECONDS
"""A lease that its holder has not renewed for this long is renewed from outside, if it may be: in time for two tries."""


def verdict(*, misses: int, unhealthy: bool, held: float | None, limit: float, still: int) -> str:
    """Why the worker is to be killed; "": it is not.

    `misses`: probes in a row that were not answered with good news; `unhealthy`: the last was answered, with bad news (a run is over its
    limit). `held`: seconds since the latest of the steps that run began; None: none runs. `limit`: how long a step may hold the
    interpreter. `still`: looks in a row at which the process itself did not answer.
    """
    if misses < PROBE_MISSES:
        return ""
    if unhealthy:
        return f"a run is over its step limit at {misses} probes in a row"
    if still >= PROBE_MISSES:
        return f"the process does not respond: neither its interpreter nor its Envoy answered {still} probes in a row"
    if held is None:
        return f"the interpreter did not answer {misses} probes in a row, and no step runs"
    if held > limit:
        return f"a step has held the interpreter for {held:.1f} s ({limit:g} s are allowed: timeouts.hang)"
    return ""


class Run(NamedTuple):
    """One run that is under way when the worker is killed for one that holds its interpreter."""

    calls: tuple[str, ...]
    thread: int
    """Native id of the thread that it has for itself; 0: it has none."""
    on_loop: bool
    """The event loop was in its code when it was last heard of."""


def blamed(runs: Sequence[Run], waits: Collection[int]) -> list[str]:
    """The calls that are told the cause and not sent again; the others ran beside them and are. `waits`: threads that wait for the
    interpreter, so that they do not hold it. Where nobody can be told from the others, it is all of them: better than to kill one worker
    after another."""
    on_loop = [run for run in runs if run.on_loop]
    others = [run for run in runs if run.thread not in waits]
    return [call for run in on_loop or others or runs for call in run.calls]


def may_renew(*, now: float, renewed: float, held: float | None, limit: float) -> bool:
    """Whether the lease may be renewed in the worker's name, provided that its process answers right now.

    `renewed`: when the worker itself last did (monotonic seconds). Only a step that may run is a reason, and only where the worker's own
    renewal is overdue."""
    return now - renewed > OVERDUE_SECONDS and held is not None and held <= limit
