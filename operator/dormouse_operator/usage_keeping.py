"""What the leader does for usage beside reading it (`dormouse_operator.usage_sums`): folds what workers that are gone counted, sums each
function now and then for Prometheus, writes the sums down once a day, and removes what is older than USAGE_DAYS.

A sum reads every record of its function, so this rests for twenty times as long as it read."""

from collections.abc import Mapping

from dormouse_core import transactions, usages
from dormouse_core.keys import Function, Keys, named
from dormouse_core.limits import USAGE_DAYS, USAGE_EACH_DAYS
from dormouse_core.seams import Clock, CreatedIs, Delete, Full, Item, ModIs, Put, Store, StoreError, Txn
from dormouse_core.usages import SECOND_US
from dormouse_kit import log, scanning

from dormouse_operator import metrics, usage_sums
from dormouse_operator.view import View

EVERY = 10.0  # seconds
REST_FACTOR = 20.0
TOGETHER = 40  # workers that are folded at once: two comparisons each
OLD_EVERY = 3600.0
DAY_US = 24 * 3600 * SECOND_US


class UsageKeeper:
    """One leader's."""

    def __init__(self, store: Store, clock: Clock, keys: Keys, view: View, leader_new: int) -> None:
        self.owed: dict[str, bytes] = {}
        """What deleted functions have used that a full store did not take: by key."""
        self._store = store
        self._clock = clock
        self._keys = keys
        self._view = view
        self._leader_new = leader_new
        self._days: dict[str, str] = {}  # by uid: the last day that is known to be written
        self._looked_for_old: float | None = None

    async def run(self) -> None:
        while True:
            began = self._clock.monotonic()
            await self.once()
            await self._clock.sleep(max(EVERY, REST_FACTOR * (self._clock.monotonic() - began)))

    async def once(self) -> None:
        """One function's trouble stays with it."""
        for uid, registered in list(self._view.functions.items()):
            function = registered.function
            try:
                await self.fold(function)
                now_us = int(self._clock.now() * SECOND_US)
                found = await usage_sums.of_function(self._store, self._clock, self._keys, function, now_us)
                metrics.USAGE.put(function, found.totals, self._clock.now())
                await self._write_day(uid, function, found, now_us)
            except StoreError as error:
                log.event("what a function used could not be summed; tried again", function=function.label, error=str(error))
            except Exception as error:  # of ours, or of what a worker of the function wrote
                log.warning("what a function used could not be summed; tried again", function=function.label, raised=error)
        metrics.USAGE.only({registered.function.label for registered in self._view.functions.values()})
        self._days = {uid: day for uid, day in self._days.items() if uid in self._view.functions}
        try:
            await self._pay()
            await self._remove_old()
        except StoreError:
            return

    async def fold(self, function: Function) -> None:
        """Adds what workers that are gone have left to the totals of former ones, in the transaction that removes it."""
        prefix = self._keys.usages_of_workers(function)
        async for page in scanning.pages(self._store, self._clock, prefix):
            left = {item.key.removeprefix(prefix): item for item in page.items}
            names = [name for name in left if named(name)]
            for at in range(0, len(names), TOGETHER):
                await self._fold(function, {name: left[name] for name in names[at : at + TOGETHER]})

    async def _fold(self, function: Function, left: Mapping[str, Item]) -> None:
        total_key = self._keys.usage_of_former(function)
        entries = {name: self._keys.worker(function, name) for name in left}
        _, items = await self._store.get([total_key, *entries.values()])
        gone = [name for name in left if entries[name] not in items]
        if not gone:
            return
        total = items.get(total_key)
        used = [each for name in gone for each in (usages.decode(left[name].value) or {}).items()]
        txn = transactions.fold(
            self._keys,
            function,
            {name: left[name].mod_revision for name in gone},
            usages.folded(total.value if total else None, used),
            usage_mod=total.mod_revision if total else 0,
            leader_new=self._leader_new,
        )
        await self._store.txn(txn)  # refused: something has changed, and the next round looks again

    async def keep(self, function: Function, guards: tuple[CreatedIs | ModIs, ...]) -> bool:
        """As `writes.DeletedUsage`. Asked again it changes nothing: a deletion that is tried again has fewer records to sum. A full store
        takes it later; until then it is this leader's debt, and in the log."""
        key = self._keys.deleted_usage(function)
        try:
            if key in self.owed or key in (await self._store.get([key]))[1]:
                return True
            now_us = int(self._clock.now() * SECOND_US)
            totals = (await usage_sums.of_function(self._store, self._clock, self._keys, function, now_us, ended=True)).totals
            value = usages.at(totals, now_us)
            try:
                return (await self._store.txn(Txn((*guards, ModIs(key, 0)), (Put(key, value),)))).succeeded
            except Full:
                whole = usages.whole(totals)
                log.warning("a full store takes no usage of a deleted function; written later", function=function.label, steps=whole.steps)
                self.owed[key] = value
                return True
        except StoreError as error:
            log.event("what a deleted function used could not be summed; tried again", function=function.label, error=str(error))
            return False

    async def _write_day(self, uid: str, function: Function, found: usage_sums.Sum, now_us: int) -> None:
        day = usages.day_of(now_us)
        if self._days.get(uid) == day:
            return
        key = self._keys.usage_history(function, day)
        compares = (CreatedIs(self._keys.leader, self._leader_new), ModIs(key, 0))
        written = await self._store.txn(Txn(compares, (Put(key, usages.at(found.totals, now_us)),)))
        if written.succeeded or key in (await self._store.get([key]))[1]:  # else this process no longer leads
            self._days[uid] = day

    async def _pay(self) -> None:
        for key, value in list(self.owed.items()):
            await self._store.txn(Txn((CreatedIs(self._keys.leader, self._leader_new), ModIs(key, 0)), (Put(key, value),)))
            del self.owed[key]

    async def _remove_old(self) -> None:
        """Of days by the key, of deleted functions by what they say."""
        now = self._clock.monotonic()
        if self._looked_for_old is not None and now - self._looked_for_old < OLD_EVERY:
            return
        before_us = int(self._clock.now() * SECOND_US) - USAGE_DAYS * DAY_US
        old: list[str] = []
        day = usages.day_of(before_us)
        each = usages.day_of(before_us + (USAGE_DAYS - min(USAGE_EACH_DAYS, USAGE_DAYS)) * DAY_US)
        async for page in scanning.pages(self._store, self._clock, self._keys.usage_histories):
            old += [item.key for item in page.items if not usages.is_kept(item.key.rpartition("/")[2], each, day)]
        async for page in scanning.pages(self._store, self._clock, self._keys.deleted_usages):
            old += [item.key for item in page.items if usage_sums.is_before(item, before_us)]
        for key in old:
            await self._store.txn(Txn((CreatedIs(self._keys.leader, self._leader_new),), (Delete(key),)))
        self._looked_for_old = now
