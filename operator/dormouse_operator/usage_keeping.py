"""What the leader does for usage beside reading it (`dormouse_operator.usage_sums`): folds what workers that are gone counted, sums each
function now and then for Prometheus, writes the sums down once a day, and removes what is older than USAGE_DAYS.

A sum reads every record of its function, so this rests for twenty times as long as it read; but not when a day begins."""

import asyncio
from collections.abc import Callable, Mapping

from dormouse_core import transactions, usages
from dormouse_core.keys import Function, Keys, function_of, named
from dormouse_core.limits import USAGE_DAYS, USAGE_EACH_DAYS
from dormouse_core.observations import FunctionSeen
from dormouse_core.seams import Clock, CreatedIs, Delete, Full, Item, ModIs, Put, Store, StoreError, Txn
from dormouse_core.usages import SECOND_US
from dormouse_kit import log, scanning

from dormouse_operator import metrics, usage_sums
from dormouse_operator.usage_sums import LATE_US
from dormouse_operator.view import Registered, View

EVERY = 10.0  # seconds
REST_FACTOR = 20.0
TOGETHER = 40  # workers that are folded at once: two comparisons each
OLD_EVERY = 3600.0
DAY_US = 24 * 3600 * SECOND_US


class UsageKeeper:
    """One leader's. `now_us`: the reference time; None: it is not known, and then no day begins and nothing is old enough to be removed.
    `best_us`: the wall clock, as good as it is known."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        keys: Keys,
        view: View,
        leader_new: int,
        now_us: Callable[[], int | None] | None = None,
        best_us: Callable[[], int] | None = None,
    ) -> None:
        self.owed: dict[str, tuple[int, bytes]] = {}
        """What deleted functions have used that a full store did not take: by key, with the mod_revision of what is there."""
        self._store = store
        self._clock = clock
        self._keys = keys
        self._view = view
        self._leader_new = leader_new
        self._best_us = best_us or (lambda: int(clock.now() * SECOND_US))
        self._now_us = now_us or self._best_us
        self._days: dict[str, str] = {}  # by data path: the last day that is known to be written
        self._looked_for_old: float | None = None

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._sum())
            group.create_task(self._begin_days())

    async def _sum(self) -> None:
        while True:
            began = self._clock.monotonic()
            await self.once()
            await self._clock.sleep(max(EVERY, REST_FACTOR * (self._clock.monotonic() - began)))

    async def _begin_days(self) -> None:
        """Beside the sums, which rest for long."""
        while True:
            try:
                await self.begin_day()
            except StoreError as error:
                log.event("a day's usage could not be written down; tried again", error=str(error))
            await self._clock.sleep(EVERY)

    async def once(self) -> None:
        """One function's trouble stays with it. Of one that is being deleted the last sum stands: its records go."""
        for registered in list(self._view.functions.values()):
            function = registered.function
            if registered.entry.deleting:
                continue
            try:
                await self.fold(function)
                now_us, shards = self._best_us(), registered.entry.shards
                found = await usage_sums.of_function(self._store, self._clock, self._keys, function, shards, now_us)
                if self._deleting(registered):
                    continue  # since: the sum may lack what is gone
                metrics.USAGE.put(function, found.totals, now_us / SECOND_US)
            except StoreError as error:
                log.event("what a function used could not be summed; tried again", function=function.label, error=str(error))
            except Exception as error:  # of ours, or of what a worker of the function wrote
                log.warning("what a function used could not be summed; tried again", function=function.label, raised=error)
        metrics.USAGE.only({registered.function.label for registered in self._view.functions.values()})
        try:
            await self._remove_old()  # first: a full store takes no payment, and this makes room
            await self._pay()
        except StoreError:
            return

    def _deleting(self, registered: Registered) -> bool:
        now = self._view.functions.get(registered.function.uid)
        return now is None or now.entry.deleting

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

    async def keep(self, seen: FunctionSeen, guards: tuple[CreatedIs | ModIs, ...]) -> bool:
        """As `writes.DeletedUsage`. Asked again it changes nothing: a deletion that is tried again has fewer records to sum. But what was
        written before the function's entry is of an earlier life, which a restore has undone. A full store takes it later; until then it
        is this leader's debt, and in the log."""
        function = function_of(seen.entry)
        key = self._keys.deleted_usage(function)
        try:
            there = (await self._store.get([key]))[1].get(key)
            if key in self.owed or (there is not None and there.mod_revision > seen.entry_created):
                return True
            totals = await self._all_of(function, seen.entry.shards, there)
            mod = there.mod_revision if there else 0
            value = usages.at(totals, self._best_us(), 0 if function.store_id else seen.entry.created_us)
            try:
                return (await self._store.txn(Txn((*guards, ModIs(key, mod)), (Put(key, value),)))).succeeded
            except Full:
                whole = usages.whole(totals)
                log.warning("a full store takes no usage of a deleted function; written later", function=function.label, steps=whole.steps)
                self.owed[key] = mod, value
                return True
        except StoreError as error:
            log.event("what a deleted function used could not be summed; tried again", function=function.label, error=str(error))
            return False

    async def _all_of(self, function: Function, shards: int, earlier: Item | None) -> usages.Totals:
        """Not less than at its `earlier` end: a snapshot may be of the middle of one, when records were gone."""
        now_us = self._best_us()
        totals = (await usage_sums.of_function(self._store, self._clock, self._keys, function, shards, now_us, ended=True)).totals
        before = usage_sums.written_down(earlier) if earlier is not None else None
        if before is not None and usages.whole(before.totals).steps > usages.whole(totals).steps:
            return before.totals
        return totals

    async def begin_day(self) -> None:
        """Writes down what each function has used when a day begins. Later than LATE_US nothing is written: it would not be that."""
        now_us = self._now_us()
        if now_us is None or now_us - usages.day_us(usages.day_of(now_us)) > LATE_US:
            return
        day = usages.day_of(now_us)
        for registered in list(self._view.functions.values()):
            entry = registered.entry
            if not entry.deleting and (entry.store_id or entry.created_us < usages.day_us(day)):
                await self._write_day(function_of(entry), entry.shards, day, registered)
        for item in (await self._store.list(self._keys.retaineds)).items:
            if (kept := usage_sums.retained(self._keys, item)) is not None:
                await self._write_day(*kept, day)
        self._days = {path: written for path, written in self._days.items() if written == day}

    async def _write_day(self, function: Function, shards: int, day: str, registered: Registered | None = None) -> None:
        if self._days.get(function.data_path) == day:
            return
        key = self._keys.usage_history(function, day)
        try:
            if key not in (await self._store.get([key]))[1]:
                found = await usage_sums.of_function(self._store, self._clock, self._keys, function, shards, self._best_us())
                if registered is not None and self._deleting(registered):
                    return  # since: the sum may lack what is gone
                now_us = self._now_us()  # whatever was used until then may be in the sum
                if now_us is None or usages.day_of(now_us) != day:
                    return
                compares = (CreatedIs(self._keys.leader, self._leader_new), ModIs(key, 0))
                await self._store.txn(Txn(compares, (Put(key, usages.at(found.totals, now_us)),)))
                if key not in (await self._store.get([key]))[1]:
                    return  # this process no longer leads
            self._days[function.data_path] = day
        except StoreError as error:
            log.event("a day's usage could not be written down; tried again", function=function.label, error=str(error))
        except Exception as error:  # of ours, or of what a worker of the function wrote
            log.warning("a day's usage could not be written down; tried again", function=function.label, raised=error)

    async def _pay(self) -> None:
        for key, (mod, value) in list(self.owed.items()):
            await self._store.txn(Txn((CreatedIs(self._keys.leader, self._leader_new), ModIs(key, mod)), (Put(key, value),)))
            del self.owed[key]

    async def _remove_old(self) -> None:
        """Of days by the key, of deleted functions by what they say."""
        now = self._clock.monotonic()
        if self._looked_for_old is not None and now - self._looked_for_old < OLD_EVERY:
            return
        if (now_us := self._now_us()) is None:
            return
        before_us = now_us - USAGE_DAYS * DAY_US
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
