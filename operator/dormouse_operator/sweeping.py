"""Counts the sessions of functions that sleep, and removes those whose time is over, without waking anybody (rule 9).

A function without workers has no owner that could do it. When it has fallen asleep its records are read once, page by page; from then on
the next due time is known, and until then it costs a comparison a second. Each removal compares the leader's election key, the shard's
entry, its floor and every record: a leader that no longer leads, or a shard that found an owner meanwhile, removes nothing.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from dormouse_core import lifetimes, records, transactions
from dormouse_core.errors import DataLoss, FailedPrecondition
from dormouse_core.keys import Function, Keys
from dormouse_core.lifetimes import Due, Tally
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
TOGETHER = 4  # shards from which records are removed at the same time
SHORTEST_REST = 0.5
RETRY = 5.0  # after a scan that failed
MOST = TXN_OPS - 4  # deletions in one transaction: it also compares the leader, entry and floor, and writes the floor
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
                    log.event("sessions could not be swept", function=registered.function.label, error=str(error))
                    state.rest_until = self._clock.monotonic() + RETRY

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
        shards = list(scanned.due.items())
        for at in range(0, len(shards), TOGETHER):
            part = shards[at : at + TOGETHER]
            outcomes = await asyncio.gather(*(self._remove_all(function, *one) for one in part), return_exceptions=True)
            for (_, due), outcome in zip(part, outcomes, strict=True):
                if isinstance(outcome, BaseException):
                    raise outcome
                for key in outcome:
                    scanned.tally.remove(due[key].glance)
        state.rest_until = self._clock.monotonic() + max(SHORTEST_REST, REST_FACTOR * read)
        if self._view.workers(function.uid):
            return  # it has woken: its owners count
        state.tally = scanned.tally
        if (now_us := self._now_us()) is not None:
            state.tally.advance(now_us)
        self._counts.asleep(function.uid, Figures(state.tally.live, state.tally.live_bytes, state.tally.bytes))

    def _look(self, item: Item, base: str, scanned: _Scanned) -> None:
        try:
            glance = records.glance(item.value)
        except (DataLoss, FailedPrecondition):
            glance = lifetimes.broken(len(item.value))
        scanned.tally.add(glance)
        now_us = self._now_us()
        if now_us is None or lifetimes.due_us(glance, scanned.tally.wait_us) > now_us or scanned.found >= MOST_A_SCAN:
            return
        shard = item.key[len(base) :].partition("/")[0]
        if shard.isdigit():
            scanned.found += 1
            scanned.due.setdefault(int(shard), {})[item.key] = Due(item.mod_revision, glance)

    async def _remove_all(self, function: Function, shard: int, due: Mapping[str, Due]) -> list[str]:
        """The keys that were removed."""
        gone: list[str] = []
        copies = await scanning.quarantined(self._store, self._keys, function, shard, due)
        for batch in lifetimes.batches(due, copies, MOST):
            if not await self._remove(function, shard, batch, copies):
                break  # looked at again in the next scan
            gone += batch
        return gone

    async def _remove(self, function: Function, shard: int, batch: Mapping[str, Due], copies: Mapping[str, tuple[str, ...]]) -> bool:
        entry_key, floor_key = self._keys.shard(function, shard), self._keys.floor(function, shard)
        _, items = await self._store.get([entry_key, floor_key])
        now_us = self._now_us()
        if now_us is None or await self._is_owned(function, items.get(entry_key)):
            return False
        entry, floor = items.get(entry_key), items.get(floor_key)
        txn = transactions.remove(
            self._keys,
            function,
            shard,
            {key: one.mod for key, one in batch.items()},
            shard_mod=entry.mod_revision if entry else 0,
            floor_mod=floor.mod_revision if floor else 0,
            floor_us=lifetimes.raised(lifetimes.floor_us(floor, now_us), (one.glance for one in batch.values())),
            leader_new=self._leader_new,
            quarantined=[copy for key in batch for copy in copies.get(key, ())],
        )
        result = await self._store.txn(txn)
        if result.succeeded:
            metrics.REMOVED.inc(len(batch))
        return result.succeeded

    async def _is_owned(self, function: Function, entry: Item | None) -> bool:
        """By a worker whose lease lives: then it is the owner's to remove. An entry that cannot be read has no owner."""
        if entry is None:
            return False
        try:
            owner = self._keys.worker(function, state_pb2.ShardEntry.FromString(entry.value).owner)
        except DecodeError:
            return False
        return owner in (await self._store.get([owner]))[1]
