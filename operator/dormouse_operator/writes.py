"""What the leader writes for a function. Every transaction compares the leader's election key and what the decision was made from, so a
decision that came too late, or from a leader that no longer leads, changes nothing."""

import asyncio
from collections.abc import Collection, Iterator, Sequence
from itertools import islice
from typing import Protocol

from dormouse_core import retaining, transactions
from dormouse_core.coordination import Action, Assign, Cancel, Failover, NoTaker, Plan
from dormouse_core.keys import Function, Keys, function_of
from dormouse_core.observations import FunctionSeen
from dormouse_core.seams import CreatedIs, Delete, ModIs, Put, Store, StoreError, Txn, TxnResult
from dormouse_kit import log
from dormouse_proto import state_pb2

DELETE_TIMEOUT = 30.0  # seconds; a range of many thousand records takes etcd a while


class Debts(Protocol):
    """Shards by function's uid that nobody may be given yet (`dormouse_operator.owing`)."""

    def __contains__(self, shard: tuple[str, int], /) -> bool: ...

    def doubt(self, function: Function, created: int, shards: Collection[int]) -> None:
        """Shards without an entry were not assigned."""


class NoDebts:
    def __contains__(self, shard: tuple[str, int], /) -> bool:
        return False

    def doubt(self, function: Function, created: int, shards: Collection[int]) -> None:
        return


class DeletedUsage(Protocol):
    async def keep(self, seen: FunctionSeen, guards: tuple[CreatedIs | ModIs, ...]) -> bool:
        """Writes down what a function, whose map is gone, has used. False: not yet."""


class Writer:
    """One leader's pen. `leader_new`: the create_revision of its election key."""

    def __init__(self, store: Store, keys: Keys, leader_new: int, owed: Debts | None = None, usage: "DeletedUsage | None" = None) -> None:
        """`usage`: keeps what deleted functions have used; None: nobody asks."""
        self._usage = usage
        self._owed = owed or NoDebts()
        self._store = store
        self._keys = keys
        self.leader_new = leader_new

    async def leads(self) -> bool:
        """Whether the store says that this leader leads now. To be asked right before what the store cannot guard: an order to a provider
        or to a worker. False also where the store does not answer: then it is not known."""
        try:
            _, found = await self._store.get([self._keys.leader])
        except StoreError as error:
            log.event("whether this process still leads is not known", error=str(error))
            return False
        item = found.get(self._keys.leader)
        return item is not None and item.create_revision == self.leader_new

    def allowed(self, seen: FunctionSeen, actions: Sequence[Action]) -> list[Action]:
        """`actions` without the shards that nobody may be given yet."""
        found: list[Action] = []
        for action in actions:
            if isinstance(action, Assign):
                action = Assign(action.target, tuple(s for s in action.shards if (seen.entry.uid, s) not in self._owed), action.reason)
                if not action.shards:
                    continue
            found.append(action)
        return found

    async def shards(self, seen: FunctionSeen, actions: Sequence[Action]) -> int:
        """Writes them, all at once; returns the highest revision written, 0 if nothing was. What fails is decided anew."""
        txns = [(action, txn) for action in actions for txn in self._txns(seen, action)]
        results = await asyncio.gather(*(self._one(txn) for _, txn in txns))
        for (action, _), result in zip(txns, results, strict=True):
            if isinstance(action, Assign) and result is not None and not result.succeeded:
                self._owed.doubt(_function(seen), seen.entry_created, action.shards)
        return max((r.revision for r in results if r is not None and r.succeeded), default=0)

    async def entry(self, seen: FunctionSeen, entry: state_pb2.FunctionEntry) -> int:
        """Replaces the function's entry by `entry` if it is still the one that was seen."""
        function = _function(seen)
        key = self._keys.function(function.namespace, function.name)
        result = await self._one(
            Txn((CreatedIs(self._keys.leader, self.leader_new), ModIs(key, seen.entry_mod)), (Put(key, entry.SerializeToString()),))
        )
        return result.revision if result is not None and result.succeeded else 0

    async def retain(self, seen: FunctionSeen, now_us: int) -> int:
        """Ends a function without workers, and keeps its sessions. 0: not yet; while tombstones are owed nobody may be given them."""
        function = _function(seen)
        if any((function.uid, shard) in self._owed for shard in range(seen.entry.shards)):
            return 0
        record = retaining.record(seen.entry, now_us)
        txn = transactions.retain(self._keys, function, record, entry_mod=seen.entry_mod, leader_new=self.leader_new)
        result = await self._one(txn, timeout=DELETE_TIMEOUT)
        return result.revision if result is not None and result.succeeded else 0

    async def purge(self, seen: FunctionSeen) -> int:
        """Removes a function without workers: its map, its data, then its name. Raises nothing; what is left is tried again."""
        function = _function(seen)
        key = self._keys.function(function.namespace, function.name)
        guards = (CreatedIs(self._keys.leader, self.leader_new), ModIs(key, seen.entry_mod))
        prefixes = [self._keys.map(function)]
        # Shard by shard: one range of all sessions of a large function could take the store longer than it keeps others waiting.
        prefixes += [self._keys.states(function, shard) for shard in range(seen.entry.shards)]
        prefixes.append(self._keys.data(function))
        for number, prefix in enumerate(prefixes):
            # Behind its map: from then on no owner commits and no worker counts, so that what is summed now is all there will be.
            if number == 1 and self._usage is not None and not await self._usage.keep(seen, guards):
                return 0
            result = await self._one(Txn(guards, (Delete(prefix, prefix=True),)), timeout=DELETE_TIMEOUT)
            if result is None or not result.succeeded:
                return 0
        result = await self._one(Txn(guards, (Delete(key),)))
        return result.revision if result is not None and result.succeeded else 0

    async def _one(self, txn: Txn, timeout: float = 5.0) -> TxnResult | None:
        try:
            return await self._store.txn(txn, timeout=timeout)
        except StoreError as error:
            log.event("the outcome of a write to the store is not known", error=str(error), keys=len(txn.writes))
            return None

    def _txns(self, seen: FunctionSeen, action: Action) -> Iterator[Txn]:
        keys, function = self._keys, _function(seen)
        match action:
            case Assign(target, shards, _):
                for part in _parts(shards):
                    yield transactions.assign(keys, function, target, part, function_new=seen.entry_created, leader_new=self.leader_new)
            case Failover(target, shards, _):
                for part in _parts(shards):
                    read = {shard: (seen.shards[shard].mod, seen.shards[shard].epoch) for shard in part}
                    yield transactions.failover(keys, function, target, read, leader_new=self.leader_new)
            case Plan(target, shards, _):
                for shard in shards:
                    mod = seen.shards[shard].mod
                    yield transactions.plan(keys, function, shard, target, shard_mod=mod, leader_new=self.leader_new)
            case Cancel(shards, _):
                for shard in shards:
                    yield transactions.cancel(keys, function, shard, shard_mod=seen.shards[shard].mod, leader_new=self.leader_new)
            case NoTaker():
                return


def _function(seen: FunctionSeen) -> Function:
    return function_of(seen.entry)


def _parts(shards: Sequence[int]) -> Iterator[list[int]]:
    rest = iter(shards)
    while part := list(islice(rest, transactions.MAX_SHARDS)):
        yield part
