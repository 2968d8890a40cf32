"""Hands a shard over to its planned next owner (rule *handoff*).

    serve on, until the steps under way have ended or are under 100 ms old  (at most the function's step limit)
    stop: no step starts, running ones end and commit                       (the leader's deadline of 2 s runs from here)
    hand over, in one transaction: my fence, this plan, the target alive

Only steps that ran already when the plan was seen are waited for: where every step takes 150 ms, some step of a busy shard has always run
for more than 100 ms, and waiting for a moment without one would last to the limit.

A handoff that fails its compare, or whose outcome is not learned, is settled by reading: if the entry is still mine, the shard is served
on. The transaction may land late all the same. Then the next commit fails the fence, and nothing is lost.
"""

import asyncio
from collections.abc import Callable, Iterable
from typing import Protocol

from dormouse_core import transactions
from dormouse_core.keys import Function, Keys
from dormouse_core.limits import HANDOFF_QUIET_SECONDS
from dormouse_core.ownership import Event, Status
from dormouse_core.seams import Clock, Item, Store, StoreError

from dormouse_worker.sessions.memory import Shard

POLL_SECONDS = 0.01
RETRY_SECONDS = 0.5  # between two attempts of one plan that failed: its target is not there


class Listener(Protocol):
    def stopped(self, shard: Shard) -> None: ...

    def resumed(self, shard: Shard) -> None:
        """Served again: what waited runs."""

    def handed_over(self, shard: Shard) -> None: ...

    def entry_read(self, shard: Shard, item: Item | None, revision: int) -> None: ...

    def move_read(self, shard: Shard, item: Item | None, revision: int) -> None: ...


class Mover:
    def __init__(
        self, function: Function, store: Store, clock: Clock, keys: Keys, listener: Listener, spawn: Callable[..., "asyncio.Task[None]"]
    ) -> None:
        self.step_limit = 60.0
        self._function = function
        self._store = store
        self._clock = clock
        self._keys = keys
        self._listener = listener
        self._spawn = spawn

    def consider(self, shard: Shard) -> None:
        """To be called when a shard becomes owned, or its plan changes."""
        if shard.move is not None and shard.own.status is Status.OWNED and (shard.mover is None or shard.mover.done()):
            shard.mover = self._spawn(self._move(shard), f"move of shard {shard.number}")

    async def _move(self, shard: Shard) -> None:
        while shard.move is not None and shard.own.status is Status.OWNED:
            await self._wait_for_old_steps(shard)
            if shard.move is None or shard.own.status is not Status.OWNED:
                continue
            shard.own.moving(Event.MOVE_DUE)
            shard.stopped_us = int(self._clock.now() * 1e6)
            self._listener.stopped(shard)
            tried = await self._wait_for_quiet(shard)
            if tried is None:
                continue
            shard.own.moving(Event.QUIET)
            await self._hand_over(shard, *tried)
            if shard.move == tried and shard.own.status is Status.OWNED:
                await self._clock.sleep(RETRY_SECONDS)

    async def _wait_for_old_steps(self, shard: Shard) -> None:
        began = self._clock.monotonic()
        while shard.move is not None and shard.own.status is Status.OWNED:
            waited = self._clock.monotonic() - began
            if waited >= self.step_limit or not _any_older(shard.running.values(), min(began, began + waited - HANDOFF_QUIET_SECONDS)):
                return
            await self._clock.sleep(POLL_SECONDS)

    async def _wait_for_quiet(self, shard: Shard) -> tuple[str, int] | None:
        """The plan as it stands when the last step has ended; None: the shard is not to be handed over any more."""
        shard.quiet = asyncio.Event()
        try:
            while shard.running and shard.own.status is Status.STOPPING:
                shard.quiet.clear()
                await shard.quiet.wait()
        finally:
            shard.quiet = None
        return shard.move if shard.own.status is Status.STOPPING else None

    async def _hand_over(self, shard: Shard, target: str, move_mod: int) -> None:
        own = shard.own
        txn = transactions.handoff(
            self._keys, self._function, shard.number, target, shard_mod=own.fence, move_mod=move_mod, epoch=own.epoch
        )
        try:
            if (await self._store.txn(txn)).succeeded:
                if own.status is Status.HANDING:
                    own.moving(Event.HANDED)
                    self._listener.handed_over(shard)
                return
        except StoreError:
            pass  # unknown: the read below tells what is so now
        move_key = self._keys.move(self._function, shard.number)
        while own.status is Status.HANDING:
            try:
                revision, items = await self._store.get([shard.entry_key, move_key])
            except StoreError:
                await self._clock.sleep(RETRY_SECONDS)
                continue
            self._listener.move_read(shard, items.get(move_key), revision)
            self._listener.entry_read(shard, items.get(shard.entry_key), revision)


def _any_older(since: Iterable[float], limit: float) -> bool:
    return any(start < limit for start in since)
