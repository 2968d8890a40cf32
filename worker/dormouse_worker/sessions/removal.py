"""Counts the records of this worker's shards, and removes those whose time is over (rule 9).

A scan does both: it reads every record once, all at one revision, and removes what is due. A shard is scanned when it was acquired, when
its count says that something is due, and when somebody else has written there; where that is so of most shards, all are read together.
Between two rounds the sweeper rests as long as a round took.

Each removal compares the shard's entry, its floor and every record, so it never takes a record that a step has written meanwhile. A step
that runs or waits keeps its record all the same: it would only be refused. While a removal is under way, sessions that would be *created*
in that shard wait for the few milliseconds: their commits compare the floor, which the removal raises.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence

from dormouse_core import lifetimes, records, transactions
from dormouse_core.errors import DataLoss, FailedPrecondition
from dormouse_core.keys import Function, Keys
from dormouse_core.lifetimes import Due, Tally
from dormouse_core.limits import TXN_OPS
from dormouse_core.ownership import Status
from dormouse_core.seams import Clock, Item, Store, StoreError
from dormouse_kit import log, scanning

from dormouse_worker.sessions.census import Census
from dormouse_worker.sessions.memory import Phase, Session, Shard
from dormouse_worker.sessions.turns import Turns

TICK_SECONDS = 0.25
REST_FACTOR = 1.0
TOGETHER = 4  # shards from which records are removed at the same time
RETRY_SECONDS = 1.0
CREATING_SECONDS = 0.1  # a removal waits so long for sessions that are being created; beyond, they are created on the floor that it makes
MOST_A_SCAN = 20_000  # removals of one shard in one scan; what is left is due still, and scanned again
MOST = TXN_OPS - 3  # deletions in one transaction: it also compares entry and floor, and writes the floor


class Sweeper:
    """`now_us`: the wall clock in microseconds; None: it cannot be trusted now, and then nothing is over."""

    def __init__(
        self,
        function: Function,
        store: Store,
        clock: Clock,
        keys: Keys,
        census: Census,
        turns: Turns,
        now_us: Callable[[], int | None],
    ) -> None:
        self.removed = 0
        self._function = function
        self._store = store
        self._clock = clock
        self._keys = keys
        self._census = census
        self._turns = turns
        self._now_us = now_us
        self._news = asyncio.Event()
        self._said = ""

    def wake(self) -> None:
        """A shard was acquired, or somebody else has written."""
        self._news.set()

    async def run(self) -> None:
        while True:
            self._news.clear()
            began = self._clock.monotonic()
            try:
                await self.once()
                self._said = ""
                wait = max(TICK_SECONDS, REST_FACTOR * (self._clock.monotonic() - began))
            except StoreError as error:
                if str(error) != self._said:
                    self._said = str(error)
                    log.event("records could not be counted or removed", function=self._function.label, error=self._said)
                wait = RETRY_SECONDS
            try:
                async with asyncio.timeout(wait):
                    await self._news.wait()
            except TimeoutError:
                pass

    async def once(self) -> None:
        """Scans what is to be counted or swept now. StoreError: the store did not let it; asked again later."""
        owned = [shard for shard in self._census.owned() if shard.own.status is Status.OWNED]
        new = [shard for shard in owned if self._census.of(shard).tally is None]
        self._census.check()
        if new:
            self._census.ceiling = None
            listing = await self._store.list(self._keys.states(self._function), limit=1, keys_only=True)
            self._census.ceiling = listing.count
        due = new or [shard for shard in owned if self._is_due(shard)]
        if 2 * len(due) >= self._census.shards and len(due) > 1:
            await self._scan(due, self._keys.states(self._function))
            return
        trouble: StoreError | None = None
        for shard in due:
            try:
                await self._scan([shard], self._keys.states(self._function, shard.number))
            except StoreError as error:  # its own trouble: the others are swept all the same
                trouble = error
        if trouble is not None:
            raise trouble

    def _is_due(self, shard: Shard) -> bool:
        count = self._census.of(shard)
        if count.recount:
            return True
        earliest, now_us = count.tally.earliest_us() if count.tally else None, self._now_us()
        return earliest is not None and now_us is not None and earliest <= now_us

    # ------------------------------------------------------------------------------------------------------------------- a scan

    async def _scan(self, shards: Sequence[Shard], prefix: str) -> None:
        fences = {shard: shard.own.fence for shard in shards}
        tallies = {shard.number: self._census.tally() for shard in shards}
        due: dict[int, dict[str, Due]] = {shard.number: {} for shard in shards}
        for shard in shards:
            self._census.of(shard).changes = []
        base = self._keys.states(self._function)
        revision = 0
        try:
            async for page in scanning.pages(self._store, self._clock, prefix):
                revision = page.revision
                for item in page.items:
                    number = item.key[len(base) :].partition("/")[0]
                    if number.isdigit() and int(number) in tallies:
                        self._look(item, tallies[int(number)], due[int(number)])
                await asyncio.sleep(0)
            failed: dict[Shard, BaseException] = {}
            sweeps = [shard for shard in shards if due[shard.number]]
            for at in range(0, len(sweeps), TOGETHER):
                part = sweeps[at : at + TOGETHER]
                removals = [self._remove_all(shard, fences[shard], due[shard.number]) for shard in part]
                for shard, outcome in zip(part, await asyncio.gather(*removals, return_exceptions=True), strict=True):
                    if outcome is not None:
                        failed[shard] = outcome  # what became of it is not known: it is counted again
            for shard in shards:
                if shard not in failed and shard.own.status is not Status.LOST and shard.own.fence == fences[shard]:
                    self._census.install(shard, tallies[shard.number], revision)
            self._census.check()
            for error in failed.values():
                raise error
        finally:
            for shard in shards:
                self._census.of(shard).changes = None

    def _look(self, item: Item, tally: Tally, due: dict[str, Due]) -> None:
        try:
            glance = records.glance(item.value)
        except (DataLoss, FailedPrecondition):
            glance = lifetimes.broken(len(item.value))
        tally.add(glance)
        now_us = self._now_us()
        if now_us is not None and lifetimes.due_us(glance, tally.wait_us) <= now_us and len(due) < MOST_A_SCAN:
            due[item.key] = Due(item.mod_revision, glance)

    # ----------------------------------------------------------------------------------------------------------------- a removal

    async def _remove_all(self, shard: Shard, fence: int, due: Mapping[str, Due]) -> None:
        copies = await scanning.quarantined(self._store, self._keys, self._function, shard.number, due)
        for batch in lifetimes.batches(due, copies, MOST):
            if shard.own.status is not Status.OWNED or shard.own.fence != fence:
                return
            shard.removing = True
            try:
                await self._created(shard)
                await self._remove(shard, fence, batch, copies)
            finally:
                shard.removing = False
                self._turns.created(shard)

    async def _created(self, shard: Shard) -> None:
        """Until no step that creates a record runs or commits in the shard."""
        until = self._clock.monotonic() + CREATING_SECONDS
        while any(session.base == 0 for session in shard.running) and self._clock.monotonic() < until:
            await self._clock.sleep(0.005)

    async def _remove(self, shard: Shard, fence: int, batch: Mapping[str, Due], copies: Mapping[str, tuple[str, ...]]) -> None:
        prefix = self._keys.states(self._function, shard.number)
        _, items = await self._store.get([shard.floor_key])
        floor = items.get(shard.floor_key)
        now_us = self._now_us()
        gone = {key: one for key, one in batch.items() if self._is_free(shard.sessions.get(key[len(prefix) :]), one.mod)}
        if not gone or now_us is None or shard.own.status is not Status.OWNED or shard.own.fence != fence:
            return
        raised = lifetimes.raised(lifetimes.floor_us(floor, now_us), (one.glance for one in gone.values()))
        txn = transactions.remove(
            self._keys,
            self._function,
            shard.number,
            {key: one.mod for key, one in gone.items()},
            shard_mod=fence,
            floor_mod=floor.mod_revision if floor else 0,
            floor_us=raised,
            quarantined=[copy for key in gone for copy in copies.get(key, ())],
        )
        sessions = [session for key in gone if (session := shard.sessions.get(key[len(prefix) :])) is not None]
        try:
            result = await self._store.txn(txn)
        except StoreError:
            self._lost_sight(shard, sessions)
            raise
        if not result.succeeded:
            self._lost_sight(shard, sessions)  # looked at again by the scan that follows
            return
        shard.floor_mod, shard.floor_us = result.revision, raised
        self.removed += len(gone)
        for one in gone.values():
            self._census.changed(shard, result.revision, one.glance, None)
        for session in sessions:
            self._turns.forget(session)

    def _is_free(self, session: Session | None, mod: int) -> bool:
        return session is None or (session.phase is Phase.IDLE and not session.queue and session.base == mod)

    def _lost_sight(self, shard: Shard, sessions: Sequence[Session]) -> None:
        self._census.doubt(shard)
        for session in sessions:
            self._turns.forget(session)
