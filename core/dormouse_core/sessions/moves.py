"""Hands a shard over to its planned next owner (rule *handoff*).

    serve on, until the steps under way have ended or are under 100 ms old  (at most the function's step limit)
    stop: no step starts, running ones end and commit                       (the leader's deadline of 2 s runs from here)
    hand over, in one transaction: my fence, this plan, the target alive

Only steps that ran already when the plan was seen are waited for: where every step takes 150 ms, some step of a busy shard has always run
for more than 100 ms, and waiting for a moment without one would last to the limit.

A handoff that fails its compare, or whose outcome is not learned, is settled by reading: if the entry is still mine, the shard is served
on. The transaction may land late all the same. Then the next commit fails the fence, and nothing is lost.
"""

from collections.abc import Iterable
from typing import Protocol

from dormouse_core import transactions
from dormouse_core.keys import Function, Keys
from dormouse_core.limits import HANDOFF_QUIET_SECONDS
from dormouse_core.seams import Clock, Item, StoreError
from dormouse_core.sessions.commands import Get, Outbox, Plan, Quiet, Start, Transact, Wait
from dormouse_core.sessions.memory import Shard
from dormouse_core.sessions.ownership import Event, Status

POLL_SECONDS = 0.01
RETRY_SECONDS = 0.5  # between two attempts of one plan that failed: its target is not there


class Owner(Protocol):
    def stopped(self, shard: Shard) -> None: ...

    def handed_over(self, shard: Shard) -> None: ...

    def entry_read(self, shard: Shard, item: Item | None, revision: int) -> None: ...

    def move_read(self, shard: Shard, item: Item | None, revision: int) -> None: ...


class Mover:
    """`step_limit`: the longest that one step may run, in seconds."""

    def __init__(self, function: Function, clock: Clock, keys: Keys, owner: Owner, out: Outbox, step_limit: float) -> None:
        self._function = function
        self._clock = clock
        self._keys = keys
        self._owner = owner
        self._out = out
        self._step_limit = step_limit

    def consider(self, shard: Shard) -> None:
        """To be called when a shard becomes owned, or its plan changes."""
        if shard.move is not None and shard.own.status is Status.OWNED and not shard.moving:
            shard.moving = True
            self._out.append(Start(self._move(shard), f"move of shard {shard.number}"))

    def _move(self, shard: Shard) -> Plan[None]:
        while shard.move is not None and shard.own.status is Status.OWNED:
            yield from self._wait_for_old_steps(shard)
            if shard.move is None or shard.own.status is not Status.OWNED:
                continue
            shard.own.moving(Event.MOVE_DUE)
            shard.stopped_us = int(self._clock.now() * 1e6)
            self._owner.stopped(shard)
            tried = yield from self._wait_for_quiet(shard)
            if tried is None:
                continue
            shard.own.moving(Event.QUIET)
            yield from self._hand_over(shard, *tried)
            if shard.move == tried and shard.own.status is Status.OWNED:
                yield Wait(RETRY_SECONDS)
        shard.moving = False

    def _wait_for_old_steps(self, shard: Shard) -> Plan[None]:
        began = self._clock.monotonic()
        while shard.move is not None and shard.own.status is Status.OWNED:
            waited = self._clock.monotonic() - began
            if waited >= self._step_limit or not _any_older(shard.running.values(), min(began, began + waited - HANDOFF_QUIET_SECONDS)):
                return
            yield Wait(POLL_SECONDS)

    def _wait_for_quiet(self, shard: Shard) -> Plan[tuple[str, int] | None]:
        """The plan as it stands when the last step has ended; None: the shard is not to be handed over any more."""
        shard.parked = True
        while shard.running and shard.own.status is Status.STOPPING:
            yield Quiet(shard)
        shard.parked = False
        return shard.move if shard.own.status is Status.STOPPING else None

    def _hand_over(self, shard: Shard, target: str, move_mod: int) -> Plan[None]:
        own = shard.own
        txn = transactions.handoff(
            self._keys, self._function, shard.number, target, shard_mod=own.fence, move_mod=move_mod, epoch=own.epoch
        )
        try:
            if (yield Transact(txn)).succeeded:
                if own.status is Status.HANDING:
                    own.moving(Event.HANDED)
                    self._owner.handed_over(shard)
                return
        except StoreError:
            pass  # unknown: the read below tells what is so now
        move_key = self._keys.move(self._function, shard.number)
        while own.status is Status.HANDING:
            try:
                revision, items = yield Get([shard.entry_key, move_key])
            except StoreError:
                yield Wait(RETRY_SECONDS)
                continue
            self._owner.move_read(shard, items.get(move_key), revision)
            self._owner.entry_read(shard, items.get(shard.entry_key), revision)


def _any_older(since: Iterable[float], limit: float) -> bool:
    return any(start < limit for start in since)
