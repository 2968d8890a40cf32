"""Counts the sessions of functions that sleep, and removes those whose time is over, without waking anybody.

A function without workers has no owner that could do it. When it has fallen asleep its records are read once, page by page; from then on
the next due time is known, and until then it costs a comparison a second. Each removal compares the leader's election key, the shard's
entry, its floor and every record: a leader that no longer leads, or a shard that found an owner meanwhile, removes nothing (rule
*removal*).
"""

import asyncio
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from dormouse_core import lifetimes, records, transactions, usages
from dormouse_core.errors import DataLoss, FailedPrecondition
from dormouse_core.keys import Function, Keys, number
from dormouse_core.lifetimes import Batch, Due, Tally
from dormouse_core.limits import TXN_OPS
from dormouse_core.seams import Clock, Item, Store, StoreError
from dormouse_core.spec import spec_from_json
from dormouse_kit import log, scanning
from dormouse_proto import state_pb2
from google.protobuf.message import DecodeError

from dormouse_operator import metrics
from dormouse_operator.counting import Counts, Figures
from dormouse_operator.view import Registered, View

TICK = 1.0  # seconds
REST_FACTOR = 4.0  # between two scans of a function: so many times as long as the last read, its removals not counted
TOGETHER = 4  # removals that are under way at the same time
SHORTEST_REST = 0.5
RETRY = 5.0  # after a scan that failed
FAILED = 60.0  # and after one that raised what is no trouble of the store's
MOST = TXN_OPS - 1  # operations of a removal: it also compares the leader
MOST_A_SCAN = 20_000  # removals in one scan; what is left is due still


@dataclass(slots=True)
class _Asleep:
    mod: int  # of the function's entry: its hold may be another after a change
    wait_us: int
    tally: Tally | None = None
    rest_until: float = 0.0


@dataclass(slots=True)
class _Scanned:
    tally: Tally
    due: dict[int, dict[str, Due]] = field(default_factory=dict)
    found: int = 0


class Sweeper:
    """`now_us`: the wall clock in microseconds; None: it cannot be trusted now, and then nothing is over. `removal_wait`: see
    `lifetimes.removal_wait`."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        keys: Keys,
        view: View,
        counts: Counts,
        *,
        leader_new: int,
        removal_wait: float | None,
        now_us: Callable[[], int | None] | None = None,
    ) -> None:
        self._store = store
        self._clock = clock
        self._keys = keys
        self._view = view
        self._counts = counts
        self._leader_new = leader_new
        self._removal_wait = removal_wait
        self._now_us = now_us or (lambda: int(clock.now() * 1e6))
        self._asleep: dict[str, _Asleep] = {}

    async def run(self) -> None:
        while True:
            await self.once()
            await self._clock.sleep(TICK)

    async def once(self) -> None:
        """Scans every sleeping function that is due. One function's trouble stays with it."""
        for uid in self._asleep.keys() - self._view.functions.keys():
            del self._asleep[uid]
        for uid, registered in list(self._view.functions.items()):
            if not registered.entry.shards or registered.entry.deleting or self._view.workers(uid):
                self._asleep.pop(uid, None)
                continue
            state = self._asleep.get(uid)
            if state is None or state.mod != registered.mod:
                state = self._asleep[uid] = _Asleep(registered.mod, self._wait_us(registered))
            if self._is_due(state):
                try:
                    await self._scan(registered, state)
                except StoreError as error:
                    log.event("expired sessions could not be removed; tried again", function=registered.function.label, error=str(error))
                    state.rest_until = self._clock.monotonic() + RETRY
                except Exception as error:  # of ours, or of what a worker of the function wrote: the others are swept all the same
                    log.warning("expired sessions could not be removed; tried again", function=registered.function.label, raised=error)
                    state.rest_until = self._clock.monotonic() + FAILED
            elif state.tally is not None:
                self._tell(uid, state.tally)

    def forget(self, uid: str) -> None:
        """Somebody wrote its records: they are counted again."""
        self._asleep.pop(uid, None)

    def _wait_us(self, registered: Registered) -> int:
        hold = spec_from_json(registered.entry.spec).timeouts.hold.seconds
        return int(lifetimes.removal_wait(self._removal_wait, hold) * 1e6)

    def _is_due(self, state: _Asleep) -> bool:
        if self._clock.monotonic() < state.rest_until:
            return False
        if state.tally is None:
            return True
        earliest, now_us = state.tally.earliest_us(), self._now_us()
        return earliest is not None and now_us is not None and earliest <= now_us

    # ------------------------------------------------------------------------------------------------------------------ a scan

    async def _scan(self, registered: Registered, state: _Asleep) -> None:
        began = self._clock.monotonic()
        function = registered.function
        sessions = spec_from_json(registered.entry.spec).sessions
        ttl_us = sessions.ttl.microseconds if sessions else 0
        scanned = _Scanned(Tally(ttl_us, state.wait_us))
        base = self._keys.states(function)
        async for page in scanning.pages(self._store, self._clock, base):
            for item in page.items:
                self._look(item, base, scanned)
            await asyncio.sleep(0)
        read = self._clock.monotonic() - began
        for one in await self._remove_all(function, scanned.due):
            scanned.tally.remove(one.glance)
        state.rest_until = self._clock.monotonic() + max(SHORTEST_REST, REST_FACTOR * read)
        if self._view.workers(function.uid):
            return  # it has woken: its owners count
        state.tally = scanned.tally
        self._tell(function.uid, state.tally)

    def _tell(self, uid: str, tally: Tally) -> None:
        """What lives now: sessions expire also while nothing is due to be removed."""
        if (now_us := self._now_us()) is not None:
            tally.advance(now_us)
        self._counts.asleep(uid, Figures(tally.live, tally.live_bytes, tally.bytes))

    def _look(self, item: Item, base: str, scanned: _Scanned) -> None:
        try:
            glance = records.glance(item.value)
        except (DataLoss, FailedPrecondition):
            glance = lifetimes.broken(len(item.value))
        scanned.tally.add(glance)
        now_us = self._now_us()
        if now_us is None or lifetimes.due_us(glance, scanned.tally.wait_us) > now_us or scanned.found >= MOST_A_SCAN:
            return
        shard = number(item.key[len(base) :].partition("/")[0])
        if shard is not None:
            scanned.found += 1
            scanned.due.setdefault(shard, {})[item.key] = lifetimes.due(item, glance)

    async def _remove_all(self, function: Function, due: Mapping[int, Mapping[str, Due]]) -> list[Due]:
        """What was removed. What was not is looked at again in the next scan."""
        gone: list[Due] = []
        if not due:
            return gone
        copies = await scanning.quarantined(self._store, self._keys, function, due)
        for wave in lifetimes.waves(due, copies, MOST):
            for at in range(0, len(wave), TOGETHER):
                removals = [self._remove(function, batch, copies) for batch in wave[at : at + TOGETHER]]
                for outcome in await asyncio.gather(*removals, return_exceptions=True):
                    if isinstance(outcome, BaseException):
                        raise outcome
                    gone += outcome
        return gone

    async def _remove(self, function: Function, batch: Batch, copies: Mapping[str, tuple[str, ...]]) -> list[Due]:
        kinds = (self._keys.shard, self._keys.floor, self._keys.usage)
        entries, floors, usages_of = ({shard: key(function, shard) for shard in batch} for key in kinds)
        _, items = await self._store.get([*entries.values(), *floors.values(), *usages_of.values()])
        owned = await self._owned(function, {shard: items.get(key) for shard, key in entries.items()})
        now_us = self._now_us()
        batch = {shard: due for shard, due in batch.items() if shard not in owned}
        if now_us is None or not batch:
            return []
        removals: list[transactions.Removal] = []
        for shard, due in batch.items():
            entry, floor, usage = (items.get(key[shard]) for key in (entries, floors, usages_of))
            used = lifetimes.used(due, self._keys.states(function, shard))
            removals.append(
                transactions.Removal(
                    shard,
                    {key: one.mod for key, one in due.items()},
                    shard_mod=entry.mod_revision if entry else 0,
                    floor_mod=floor.mod_revision if floor else 0,
                    floor_us=lifetimes.raised(lifetimes.floor_us(floor, now_us), (one.glance for one in due.values())),
                    quarantined=[copy for key in due for copy in copies.get(key, ())],
                    usage=usages.folded(usage.value if usage else None, used) if used else None,
                )
            )
        result = await self._store.txn(transactions.remove(self._keys, function, removals, leader_new=self._leader_new))
        if result.succeeded:
            gone = [one for due in batch.values() for one in due.values()]
            metrics.REMOVED.inc(len(gone))
            return gone
        if len(batch) == 1:
            return []
        return [one for shard, due in batch.items() for one in await self._remove(function, {shard: due}, copies)]

    async def _owned(self, function: Function, entries: Mapping[int, Item | None]) -> Collection[int]:
        """Shards whose owner's lease lives: what is due there is the owner's to remove. An entry that cannot be read has no owner."""
        owners: dict[int, str] = {}
        for shard, entry in entries.items():
            if entry is None:
                continue
            try:
                owners[shard] = self._keys.worker(function, state_pb2.ShardEntry.FromString(entry.value).owner)
            except DecodeError:
                continue
        alive = (await self._store.get(list(dict.fromkeys(owners.values()))))[1] if owners else {}
        return {shard for shard, owner in owners.items() if owner in alive}
