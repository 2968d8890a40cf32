"""Drives the session machine (`dormouse_core.sessions`), which knows which shards are this worker's, what state each session has, which
step runs next, and when a step is acknowledged. This side has the store, the runner, the clock, the lease and the loops.

The contract: a step that was acknowledged is in the store, on top of the step before it, exactly once; a step that was not run and will
never be committed is refused with `Unavailable.again`; anything else ends in an error that says that the outcome is not known. Safety rests
on the store's comparisons alone (the fence and each record's own revision), never on a clock or a lease.

    sessions = Sessions(function, settings, states, store, clock, runner, worker=..., address=..., instance=..., revision=..., keys=...)
    sessions.on_change = report_soon
    await sessions.start()            # registers, then owns what the map says
    sessions.submit(step)             # never raises, never blocks; answers by step.answer
    sessions.cancel(step)             # the caller went away: not run if it has not begun
    await sessions.drain()            # returns when no shard is owned; sessions.no_taker() when nobody can take them
    await sessions.close()            # revokes the lease
    sessions.lost                     # an asyncio.Event: the lease ended for good; the process ends, or registers under a new name

A stateless function's worker needs the first part alone: `WorkerRegistration` with start(), drain(), close() and `lost`.
"""

from dormouse_core.sessions.boundary import Answer, Failed, Outcome, Ran, SessionSettings, StateInfo, States, Step

from dormouse_worker.sessions.driver import Sessions
from dormouse_worker.sessions.ports import Runner, SessionsReport
from dormouse_worker.sessions.registration import WorkerRegistration

__all__ = [
    "Answer",
    "Failed",
    "Outcome",
    "Ran",
    "Runner",
    "SessionSettings",
    "Sessions",
    "SessionsReport",
    "StateInfo",
    "States",
    "Step",
    "WorkerRegistration",
]
