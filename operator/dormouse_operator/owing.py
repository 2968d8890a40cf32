"""Tombstones that are owed: of sessions that were deleted while the store was full (rule *owed-tombstones*).

A full store takes deletions and nothing else, so a record can go then and its tombstone cannot be left. The shard's entry goes with the
record (`transactions.erase`): without it nobody owns the shard, and whatever was on its way to its owner fails. The tombstones are written
when the store has room, together with an entry that names nobody, and the shard is given away again only then.

A leader that ends before that takes the tombstones along. What it owed can be seen, though: every shard that was ever given away has a
floor, so one with a floor and without an entry has lost its entry. The next leader cannot name the sessions; it raises the floor beyond
whatever was called until now, so that a copy of a call is refused, and for a minute new sessions of that shard are, too.
"""

from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field

from dormouse_core import lifetimes, transactions
from dormouse_core.errors import Unavailable
from dormouse_core.keys import Function, Keys, number
from dormouse_core.limits import TXN_OPS
from dormouse_core.seams import Clock, Compare, CreatedIs, Delete, ModIs, Put, Store, StoreError, Txn
from dormouse_kit import log

EVERY = 1.0  # seconds
MOST = 20_000  # some 10 MB
PART = (
    TXN_OPS - 4
) // 2  # in one transaction, which also compares the leader, the function, the shard's floor and entry; each is two writes

Told = Callable[[Function, int, Sequence[str]], Awaitable[None]]


@dataclass(slots=True)
class _Shard:
    function: Function
    tombstones: dict[str, tuple[int, bytes]] = field(default_factory=dict)  # by the record's key: its mod as it was read, the tombstone


@dataclass(slots=True)
class _Doubted:
    """Shards without an entry, of which it is not known yet whether they ever had one. `created`: the function's create_revision."""

    function: Function
    created: int
    shards: set[int]


class Owed:
    """One leader's debts. `shards`: by the function's uid. `told(function, shard, sessions)`: written. `best_us`: the wall clock, as good
    as it is known, in microseconds."""

    def __init__(
        self, store: Store, clock: Clock, keys: Keys, leader_new: int, told: Told, best_us: Callable[[], int] | None = None
    ) -> None:
        self.shards: dict[tuple[str, int], _Shard] = {}
        self._doubted: dict[str, _Doubted] = {}  # by uid
        self._best_us = best_us or (lambda: int(clock.now() * 1e6))
        self._store = store
        self._clock = clock
        self._keys = keys
        self._leader_new = leader_new
        self._told = told

    def __contains__(self, shard: tuple[str, int], /) -> bool:
        """Nobody may be given it yet."""
        doubted = self._doubted.get(shard[0])
        return shard in self.shards or (doubted is not None and shard[1] in doubted.shards)

    def doubt(self, function: Function, created: int, shards: Collection[int]) -> None:
        """These have no entry: a leader before this one may owe tombstones there, beside what this one will."""
        if others := {shard for shard in shards if (function.uid, shard) not in self.shards}:
            self._doubted.setdefault(function.uid, _Doubted(function, created, set())).shards.update(others)

    def owe(self, function: Function, shard: int, tombstones: dict[str, tuple[int, bytes]]) -> None:
        """To be called before the records go. Unavailable: too many are owed already."""
        if sum(len(one.tombstones) for one in self.shards.values()) >= MOST:
            raise Unavailable(f"the store is full, and {MOST} sessions were deleted: ask again when it has room")
        self.shards.setdefault((function.uid, shard), _Shard(function)).tombstones.update(tombstones)

    def forgive(self, function: Function, shard: int, keys: Sequence[str]) -> None:
        """The records did not go."""
        one = self.shards.get((function.uid, shard))
        if one is not None:
            for key in keys:
                one.tombstones.pop(key, None)
            if not one.tombstones:
                del self.shards[function.uid, shard]

    async def run(self) -> None:
        while True:
            await self.settle()
            await self.pay()
            await self._clock.sleep(EVERY)

    async def settle(self) -> None:
        """Finds out which shards lost their entries under a leader before this one, and makes them nobody's; what fails is tried again."""
        for uid, one in list(self._doubted.items()):
            try:
                floors = await self._floors(one.function)
                one.shards &= floors.keys()
                inherited = sorted(one.shards)
                for at in range(0, len(inherited), transactions.MAX_SHARDS):
                    await self._settle(one, {shard: floors[shard] for shard in inherited[at : at + transactions.MAX_SHARDS]})
                if not one.shards:
                    del self._doubted[uid]
            except StoreError:
                return
            except Exception as error:  # of ours, or of what a worker of the function wrote: the others are settled all the same
                log.warning(
                    "deletions that a former leader left unfinished could not be finished; tried again",
                    function=one.function.label,
                    raised=error,
                )

    async def _floors(self, function: Function) -> dict[int, int]:
        prefix = self._keys.floors(function)
        items = (await self._store.list(prefix)).items
        found = ((number(item.key.removeprefix(prefix)), item.mod_revision) for item in items)
        return {shard: mod for shard, mod in found if shard is not None}

    async def _settle(self, one: _Doubted, floors: dict[int, int]) -> None:
        """Where a comparison fails, some have an entry already, or a floor has changed: one by one."""
        floor_us = lifetimes.highest_us(self._best_us())
        txn = transactions.disown(self._keys, one.function, floors, floor_us, function_new=one.created, leader_new=self._leader_new)
        if (await self._store.txn(txn)).succeeded:
            one.shards -= floors.keys()
            log.warning("finished deletions that a former leader left unfinished", function=one.function.label, shards=len(floors))
        elif len(floors) > 1:
            for shard, mod in floors.items():
                await self._settle(one, {shard: mod})
        else:
            (shard,) = floors
            name, entry = self._keys.function(one.function.namespace, one.function.name), self._keys.shard(one.function, shard)
            _, items = await self._store.get([name, entry])
            if entry in items or name not in items or items[name].create_revision != one.created:
                one.shards.discard(shard)

    async def pay(self) -> None:
        """What the store takes now; the rest stays owed."""
        try:
            for (uid, shard), one in list(self.shards.items()):
                if uid in self._doubted:
                    continue  # the entry comes with the last tombstone, and what is inherited comes first
                keys = list(one.tombstones)
                for at in range(0, len(keys), PART):
                    if not await self._write(one, shard, keys[at : at + PART], last=at + PART >= len(keys)):
                        break
                    self.forgive(one.function, shard, keys[at : at + PART])
        except StoreError:
            return

    async def _write(self, one: _Shard, shard: int, keys: Sequence[str], *, last: bool) -> bool:
        name, entry = self._keys.function(one.function.namespace, one.function.name), self._keys.shard(one.function, shard)
        floor = self._keys.floor(one.function, shard)
        _, items = await self._store.get([name, entry, floor, *keys])
        if name not in items:
            return True  # the function is gone
        compares: list[Compare] = [CreatedIs(self._keys.leader, self._leader_new), CreatedIs(name, items[name].create_revision)]
        writes: list[Put | Delete] = []
        if floor in items:
            # Written anew as it is: a copy of this that comes late, when records and entry are gone for the next time, must not land.
            compares.append(ModIs(floor, items[floor].mod_revision))
            writes.append(Put(floor, items[floor].value))
        for key in keys:
            mod, tombstone = one.tombstones[key]
            found = items[key].mod_revision if key in items else 0
            if found in (0, mod):  # mod: what was to take it away had no answer, and has not landed
                compares.append(ModIs(key, found))
                writes += (Put(key, tombstone), Delete(self._keys.alarm_of(one.function, key)))
        if last and entry not in items:
            compares.append(ModIs(entry, 0))
            writes.append(transactions.nobodys(self._keys, one.function, shard))
        if not (await self._store.txn(Txn(tuple(compares), tuple(writes)))).succeeded:
            return False
        prefix = self._keys.states(one.function, shard)
        await self._told(one.function, shard, [key.removeprefix(prefix) for key in keys])
        return True
