"""Tombstones that are owed: of sessions that were deleted while the store was full.

A full store takes deletions and nothing else, so a record can go then and its tombstone cannot be left. The shard's entry goes with the
record (`transactions.erase`): without it nobody owns the shard, and whatever was on its way to its owner fails. The tombstones are written
when the store has room, and the shard is given away again only then. A leader that ends before that takes the debt along: then a copy of a
call of a deleted session, if one is still under way, begins it anew.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from dormouse_core.errors import Unavailable
from dormouse_core.keys import Function, Keys
from dormouse_core.limits import TXN_OPS
from dormouse_core.seams import Clock, Compare, CreatedIs, ModIs, Put, Store, StoreError, Txn

EVERY = 1.0  # seconds
MOST = 20_000  # some 10 MB
PART = TXN_OPS - 2  # in one transaction, which also compares the leader and the function

Told = Callable[[Function, int, Sequence[str]], Awaitable[None]]


@dataclass(slots=True)
class _Shard:
    function: Function
    tombstones: dict[str, tuple[int, bytes]] = field(default_factory=dict)  # by the record's key: its mod as it was read, the tombstone


class Owed:
    """One leader's debts. `shards`: by the function's uid; nobody may be given them yet. `told(function, shard, sessions)`: written."""

    def __init__(self, store: Store, clock: Clock, keys: Keys, leader_new: int, told: Told) -> None:
        self.shards: dict[tuple[str, int], _Shard] = {}
        self._store = store
        self._clock = clock
        self._keys = keys
        self._leader_new = leader_new
        self._told = told

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
            await self.pay()
            await self._clock.sleep(EVERY)

    async def pay(self) -> None:
        """What the store takes now; the rest stays owed."""
        try:
            for (_, shard), one in list(self.shards.items()):
                keys = list(one.tombstones)
                for at in range(0, len(keys), PART):
                    if not await self._write(one, shard, keys[at : at + PART]):
                        break
                    self.forgive(one.function, shard, keys[at : at + PART])
        except StoreError:
            return

    async def _write(self, one: _Shard, shard: int, keys: Sequence[str]) -> bool:
        name = self._keys.function(one.function.namespace, one.function.name)
        _, items = await self._store.get([name, *keys])
        if name not in items:
            return True  # the function is gone
        compares: list[Compare] = [CreatedIs(self._keys.leader, self._leader_new), CreatedIs(name, items[name].create_revision)]
        writes: list[Put] = []
        for key in keys:
            mod, tombstone = one.tombstones[key]
            found = items[key].mod_revision if key in items else 0
            if found in (0, mod):  # mod: what was to take it away had no answer, and has not landed
                compares.append(ModIs(key, found))
                writes.append(Put(key, tombstone))
        if not (await self._store.txn(Txn(tuple(compares), tuple(writes)))).succeeded:
            return False
        prefix = self._keys.states(one.function, shard)
        await self._told(one.function, shard, [key.removeprefix(prefix) for key in keys])
        return True
