"""Counts the records of this worker's shards, and removes those whose time is over (rule *removal*).

A round does both: it reads every record of the shards that are due once, then removes what is due of all of them together, in as few
transactions as etcd's limits allow. A shard is due when it was acquired, when its count says that something is to be removed, and when
somebody else has written there. Where that is less than a request for each, all are read as one range, at one revision
(`scanning.as_one`). Between two rounds the sweeper rests as long as the last one read (`lifetimes.rest`). How late a record is removed is
in `docs/operating.md`.

Each removal compares the entry and the floor of every shard that it touches, and every record, so it never takes a record that a step has
written meanwhile. One that is refused is made again shard by shard: what has changed in one shard keeps no other's records. A step that
runs or waits keeps its record all the same: it would only be refused. While a removal is under way, sessions that would be *created* in its
shards wait for the few milliseconds: their commits compare the floors, which the removal raises (rule *floor*).
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from dormouse_core import lifetimes, records, transactions, usages
from dormouse_core.errors import DataLoss, FailedPrecondition
from dormouse_core.keys import Function, Keys, number
from dormouse_core.lifetimes import Batch, Due, Tally
from dormouse_core.limits import TXN_OPS
from dormouse_core.seams import Clock, Item, Store, StoreError
from dormouse_core.sessions.census import Census
from dormouse_core.sessions.memory import Phase, Session, Shard
from dormouse_core.sessions.ownership import Status
from dormouse_kit import log, scanning

TICK_SECONDS = 0.25
TOGETHER = 4  # shards that are read, or removals that are under way, at the same time
RETRY_SECONDS = 1.0
CREATING_SECONDS = 0.1  # a removal waits so long for sessions that are being created; beyond, they are created on the floor that it makes
MOST_A_ROUND = 20_000  # removals, the shards alike; what is left is due still, and read again


class Told(Protocol):
    def created(self, shard: Shard) -> None:
        """A removal has ended: sessions that are to be created go on."""

    def forget(self, session: Session) -> None:
        """Its record is another by now, or gone."""


class Sweeper:
    """`now_us`: the wall clock in microseconds; None: it cannot be trusted now, and then nothing is over."""

    def __init__(
        self,
        function: Function,
        store: Store,
        clock: Clock,
        keys: Keys,
        census: Census,
        told: Told,
        now_us: Callable[[], int | None],
    ) -> None:
        self.removed = 0
        self._function = function
        self._store = store
        self._clock = clock
        self._keys = keys
        self._census = census
        self._told = told
        self._now_us = now_us
        self._news = asyncio.Event()
        self._said = ""

    def wake(self) -> None:
        """A shard was acquired, or somebody else has written."""
        self._news.set()

    async def run(self) -> None:
        while True:
            self._news.clear()
            try:
                read = await self.once()
                self._said = ""
                wait = max(TICK_SECONDS, lifetimes.rest(read))
            except StoreError as error:
                if str(error) != self._said:
                    self._said = str(error)
                    log.event("records could not be counted or removed; tried again", function=self._function.label, error=self._said)
                wait = RETRY_SECONDS
            try:
                async with asyncio.timeout(wait):
                    await self._news.wait()
            except TimeoutError:
                pass

    async def once(self) -> float:
        """Counts and sweeps what is due now; returns the seconds for which it read. StoreError: the store did not let it."""
        owned = [shard for shard in self._census.owned() if shard.own.status is Status.OWNED]
        new = [shard for shard in owned if self._census.of(shard).tally is None]
        self._census.check()
        if new:
            self._census.ceiling = None
        if owned and self._census.ceiling is None:  # also where the last try failed, and what was new has gone since
            listing = await self._store.list(self._keys.states(self._function), limit=1, keys_only=True)
            self._census.ceiling = listing.count
        due = new or [shard for shard in owned if self._is_due(shard)]
        return await self._round(due) if due else 0.0

    def _is_due(self, shard: Shard) -> bool:
        count = self._census.of(shard)
        if count.recount:
            return True
        earliest, now_us = count.tally.earliest_us() if count.tally else None, self._now_us()
        return earliest is not None and now_us is not None and earliest <= now_us

    # ------------------------------------------------------------------------------------------------------------------ a round

    async def _round(self, shards: Sequence[Shard]) -> float:
        seen = {shard.number: _Seen(shard, shard.own.fence, self._census.tally()) for shard in shards}
        for shard in shards:
            self._census.of(shard).changes = []
        try:
            began = self._clock.monotonic()
            await self._read(seen)
            read = self._clock.monotonic() - began
            await self._remove_all(seen)
            for one in seen.values():
                if one.failed is None and one.is_owned():
                    self._census.install(one.shard, one.tally, one.revision)
            self._census.check()
            for one in seen.values():
                if one.failed is not None:  # what became of it is not known: it is counted again
                    raise one.failed
            return read
        finally:
            for shard in shards:
                self._census.of(shard).changes = None

    async def _read(self, seen: Mapping[int, "_Seen"]) -> None:
        states, found = self._keys.states, list(seen.values())
        most = max(1, MOST_A_ROUND // len(found))
        counted, total = self._census.counted_shards, self._census.total
        if scanning.as_one(len(found), self._census.shards, counted, total.records, total.bytes):
            await self._scan(states(self._function), seen, most, scanning.BYTES_PER_SECOND)
            return
        rate = scanning.BYTES_PER_SECOND / min(TOGETHER, len(found))
        for at in range(0, len(found), TOGETHER):
            part = found[at : at + TOGETHER]
            scans = [self._scan(states(self._function, one.shard.number), {one.shard.number: one}, most, rate) for one in part]
            for one, outcome in zip(part, await asyncio.gather(*scans, return_exceptions=True), strict=True):
                one.failed = outcome  # its own trouble: the others are swept all the same

    async def _scan(self, prefix: str, seen: Mapping[int, "_Seen"], most: int, rate: float) -> None:
        base = self._keys.states(self._function)
        async for page in scanning.pages(self._store, self._clock, prefix, rate):
            for item in page.items:
                shard = number(item.key[len(base) :].partition("/")[0])
                if shard is not None and (one := seen.get(shard)) is not None:
                    self._look(item, one, most)
            for one in seen.values():
                one.revision = page.revision
            await asyncio.sleep(0)

    def _look(self, item: Item, seen: "_Seen", most: int) -> None:
        try:
            glance = records.glance(item.value)
        except (DataLoss, FailedPrecondition):
            glance = lifetimes.broken(len(item.value))
        seen.tally.add(glance)
        now_us = self._now_us()
        if now_us is not None and lifetimes.due_us(glance, seen.tally.wait_us) <= now_us and len(seen.due) < most:
            seen.due[item.key] = lifetimes.due(item, glance)

    # ---------------------------------------------------------------------------------------------------------------- removals

    async def _remove_all(self, seen: Mapping[int, "_Seen"]) -> None:
        due = {shard: one.due for shard, one in seen.items() if one.due and one.failed is None}
        if not due:
            return
        copies = await scanning.quarantined(self._store, self._keys, self._function, due)
        for wave in lifetimes.waves(due, copies, TXN_OPS):
            for at in range(0, len(wave), TOGETHER):
                part = wave[at : at + TOGETHER]
                removals = [self._remove(batch, seen, copies) for batch in part]
                for batch, outcome in zip(part, await asyncio.gather(*removals, return_exceptions=True), strict=True):
                    for shard in batch if outcome is not None else ():
                        seen[shard].failed = outcome

    async def _remove(self, batch: Batch, seen: Mapping[int, "_Seen"], copies: Mapping[str, tuple[str, ...]]) -> None:
        shards = [seen[number].shard for number in batch if seen[number].failed is None and seen[number].is_owned()]
        if not shards:
            return
        usages_of = (self._keys.usage(self._function, shard.number) for shard in shards)
        _, found = await self._store.get([*(shard.floor_key for shard in shards), *usages_of])
        for shard in shards:
            shard.removing = True
        try:
            await self._created(shards)
            removed = await self._commit(batch, {shard: seen[shard.number] for shard in shards}, found, copies)
        finally:
            for shard in shards:
                shard.removing = False
                self._told.created(shard)
        if not removed and len(shards) > 1:
            for shard in shards:
                await self._remove({shard.number: batch[shard.number]}, seen, copies)

    async def _created(self, shards: Sequence[Shard]) -> None:
        """Until no step that creates a record runs or commits in the shards."""
        until = self._clock.monotonic() + CREATING_SECONDS
        while any(session.base == 0 for shard in shards for session in shard.running) and self._clock.monotonic() < until:
            await self._clock.sleep(0.005)

    async def _commit(
        self, batch: Batch, shards: Mapping[Shard, "_Seen"], found: Mapping[str, Item], copies: Mapping[str, tuple[str, ...]]
    ) -> bool:
        """`found`: the shards' floors and usage. False: the store refused it, for something has changed."""
        now_us = self._now_us()
        if now_us is None:
            return True
        gone: dict[Shard, dict[str, Due]] = {}
        removals: dict[Shard, transactions.Removal] = {}
        for shard, one in shards.items():
            free = {key: due for key, due in batch[shard.number].items() if self._is_free(self._session(shard, key), due.mod)}
            if not free or not one.is_owned():
                continue
            gone[shard] = free
            floor, usage = found.get(shard.floor_key), found.get(self._keys.usage(self._function, shard.number))
            used = lifetimes.used(free, self._keys.states(self._function, shard.number))
            removals[shard] = transactions.Removal(
                shard.number,
                {key: due.mod for key, due in free.items()},
                shard_mod=one.fence,
                floor_mod=floor.mod_revision if floor else 0,
                floor_us=lifetimes.raised(lifetimes.floor_us(floor, now_us), (due.glance for due in free.values())),
                quarantined=[copy for key in free for copy in copies.get(key, ())],
                usage=usages.folded(usage.value if usage else None, used) if used else None,
            )
        if not gone:
            return True
        sessions = [session for shard, free in gone.items() for key in free if (session := self._session(shard, key)) is not None]
        try:
            result = await self._store.txn(transactions.remove(self._keys, self._function, removals.values()))
        except StoreError:
            self._lost_sight(gone, sessions)
            raise
        if not result.succeeded:
            if len(shards) == 1:
                self._lost_sight(gone, sessions)  # looked at again by the round that follows
            return False
        for shard, free in gone.items():
            shard.floor_mod, shard.floor_us = result.revision, removals[shard].floor_us
            self.removed += len(free)
            for due in free.values():
                self._census.changed(shard, result.revision, due.glance, None)
        for session in sessions:
            self._told.forget(session)
        return True

    def _session(self, shard: Shard, key: str) -> Session | None:
        return shard.sessions.get(key[len(self._keys.states(self._function, shard.number)) :])

    def _is_free(self, session: Session | None, mod: int) -> bool:
        return session is None or (session.phase is Phase.IDLE and not session.queue and session.base == mod)

    def _lost_sight(self, shards: Iterable[Shard], sessions: Iterable[Session]) -> None:
        for shard in shards:
            self._census.doubt(shard)
        for session in sessions:
            self._told.forget(session)


@dataclass(slots=True)
class _Seen:
    """What a round knows of a shard. `revision`: at which it was read; `failed`: why it is not known what became of it."""

    shard: Shard
    fence: int
    tally: Tally
    revision: int = 0
    due: dict[str, Due] = field(default_factory=dict)
    failed: BaseException | None = None

    def is_owned(self) -> bool:
        return self.shard.own.status is Status.OWNED and self.shard.own.fence == self.fence
