"""A term of leadership: campaign, lead, end. The same on one machine and in a cluster.

Losing the lease ends the term and not the process: it is a candidate again at once. A process that exits is started again later each time,
on Kubernetes after minutes (CrashLoopBackOff), and a start takes processor time, for want of which the lease was lost. Each term has a
loop, a client of the store and copies of its own, and whatever task is left of a term is cancelled with its loop: nothing of a former
leader is left. An error of ours still ends the process.

A leader whose clock is off (`timekeeping`) resigns and stands back, so that another candidate leads. Where none does, it is the only one
there is: then a leader with a wrong clock is better than none, and it leads again, without resigning for its clock for a while.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any, Protocol

from dormouse_core.errors import DormouseError
from dormouse_core.seams import Clock, Store, StoreError
from dormouse_core.workerfile import StoreAccess
from dormouse_kit import log
from dormouse_kit.election import Election
from dormouse_kit.etcd import TlsFiles

from dormouse_operator.leading import Leader

# No exit codes:
CLOCK = -1  # resigned because its clock is off
LOST = -2  # the lease is lost, the store did not answer, or something keeps this operator from leading
STAND_BACK = 5.0
"""Seconds for which a leader that resigned leaves the election to others: several times what a candidate needs."""
ALONE = 600.0
"""Seconds for which one that nobody followed does not resign again."""


class Reached(Protocol):
    """How an operator reaches the store: its settings' part of it."""

    @property
    def store(self) -> tuple[str, ...]: ...
    @property
    def store_ca(self) -> str: ...
    @property
    def store_cert(self) -> str: ...
    @property
    def store_key(self) -> str: ...
    @property
    def store_user(self) -> str: ...
    @property
    def store_password_file(self) -> str: ...


class Listening(Protocol):
    async def stop(self) -> None: ...


async def campaigned(election: Election, stop: asyncio.Event) -> bool:
    """Whether the election was won before the stop."""
    return await first(election.campaign(), stop)


async def lead(
    leader: Leader,
    election: Election,
    stop: asyncio.Event,
    serve: Callable[[], Awaitable[Listening]],
    others: Iterable[Callable[[], Coroutine[Any, Any, None]]] = (),
    *,
    alone: bool = False,
) -> int:
    """The exit code, CLOCK or LOST. `serve`: called when the leader knows what the store holds. `others`: run from then on as long as it
    leads, and end it when they end. `alone`: nobody else led when this one resigned for its clock."""
    leading = asyncio.create_task(leader.run())
    try:
        await leader.listed(leading)
        listening = await serve()
    except (DormouseError, StoreError) as error:
        leading.cancel()
        await asyncio.gather(leading, return_exceptions=True)
        log.warning("cannot lead", error=str(error))
        return LOST if isinstance(error, StoreError) else 1
    off = asyncio.create_task(_off(leader, alone))
    ends = {asyncio.create_task(stop.wait()), asyncio.create_task(election.lost.wait()), leading, off}
    ends |= {asyncio.create_task(other()) for other in others}
    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    resigned = off.done()
    await listening.stop()
    for task in ends:
        task.cancel()
    outcomes = await asyncio.gather(*ends, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            log.warning("leading failed", error=repr(outcome))
            return LOST if _passing(outcome) and not stop.is_set() else 1
    if stop.is_set():
        return 0
    if resigned:
        return CLOCK
    lost = election.lost.is_set()
    log.warning("the lease is lost; another may lead" if lost else "this operator leads no more; what keeps it from it was said")
    return LOST


def _passing(error: Exception) -> bool:
    """The store did not answer: no error of ours, and nothing that a new process would mend."""
    if isinstance(error, ExceptionGroup):
        return error.split(StoreError)[1] is None
    return isinstance(error, StoreError)


async def _off(leader: Leader, alone: bool) -> None:
    if alone:
        await leader.clock.sleep(ALONE)
    await leader.timekeeper.off.wait()


async def followed(store: Store, clock: Clock, key: str, stop: asyncio.Event) -> bool:
    """After a resignation: whether another leads within STAND_BACK. Also true at the stop. Time stands still while the store is away."""
    limit = clock.monotonic() + STAND_BACK
    found = False
    while not found and not stop.is_set() and clock.monotonic() < limit:
        await clock.sleep(0.2)
        try:
            found = key in (await store.get([key]))[1]
        except StoreError:
            limit = clock.monotonic() + STAND_BACK
    return found or stop.is_set()


def again(run: Callable[[bool], Coroutine[Any, Any, int]]) -> int:
    """Runs terms, each on a loop of its own, until one says how the process ends. `run(alone)` as `lead`, CLOCK: nobody followed."""
    alone = False
    while (code := asyncio.run(run(alone))) in (CLOCK, LOST):
        alone = code == CLOCK
        log.event("a candidate again", after="a clock that is off" if alone else "a term that ended")
    return code


def access(s: Reached) -> StoreAccess:
    """As workers of one machine have it: they read the password where we do."""
    file = str(Path(s.store_password_file).absolute()) if s.store_password_file else ""
    return StoreAccess(endpoints=list(s.store), ca=s.store_ca, cert=s.store_cert, key=s.store_key, user=s.store_user, password_file=file)


def password(s: Reached) -> Path | str:
    return Path(s.store_password_file) if s.store_password_file else ""


def tls(s: Reached) -> TlsFiles | None:
    if not (s.store_ca or s.store_cert):
        return None
    return TlsFiles(*(Path(path) if path else None for path in (s.store_ca, s.store_cert, s.store_key)))


async def first(work: Coroutine[Any, Any, object], stop: asyncio.Event) -> bool:
    """Whether `work` was done before the stop."""
    doing = asyncio.create_task(work)
    ending = asyncio.create_task(stop.wait())
    await asyncio.wait((doing, ending), return_when=asyncio.FIRST_COMPLETED)
    ending.cancel()
    if not doing.done():
        doing.cancel()
        await asyncio.gather(doing, return_exceptions=True)
        return False
    doing.result()
    return True
