"""A simple leader: gives the shards of dead workers away, moves shards for balance and for no reason, removes old records and deletes
sessions.

It uses the same pure planner and the same transactions as the real coordinator, and the real leader's sweeper and deleter. Now and then
another leader is elected while this one's transactions are on their way.
"""

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dormouse_core import placement, transactions
from dormouse_core.errors import DormouseError
from dormouse_core.keys import Function
from dormouse_core.placement import Give, Move
from dormouse_core.seams import Delete, Item, Put, StoreError, Txn
from dormouse_core.spec import parse_manifest, spec_to_json
from dormouse_operator.counting import Counts
from dormouse_operator.deleting import Deleter
from dormouse_operator.owing import Owed
from dormouse_operator.sweeping import Sweeper
from dormouse_operator.view import View
from dormouse_proto import control_pb2, state_pb2

from dormouse_testing.leader_world import manifest

if TYPE_CHECKING:
    from dormouse_testing.sessions_sim.world import World

TICK = 0.3


class Leader:
    def __init__(self, world: "World") -> None:
        self.world = world

    async def begin(self) -> None:
        from dormouse_testing.sessions_sim.world import FUNCTION, KEYS

        self.keys, self.function = KEYS, FUNCTION
        self.store = self.world.client("leader")
        self.view = self._sees()
        self.owed: Owed | None = None
        self.world.etcd.txn(Txn((), (Put(KEYS.function(FUNCTION.namespace, FUNCTION.name), b"f"), Put(KEYS.leader, b"1"))))
        self._elected()

    def _elected(self) -> None:
        leader = self.world.etcd.item(self.keys.leader)
        function = self.world.etcd.item(self.keys.function(self.function.namespace, self.function.name))
        assert leader is not None
        assert function is not None
        self.leader_new, self.function_new = leader.create_revision, function.create_revision
        clock, keys = self.world.clock, self.keys
        self.sweeper = Sweeper(
            self.store,
            clock,
            keys,
            self.view,
            Counts(self.view),
            leader_new=self.leader_new,
            removal_wait=self.world.shape.removal_wait,
        )
        self.owed = Owed(self.store, clock, keys, self.leader_new, self._told)
        self.owed.doubt(self.function, self.function_new, range(self.world.shape.shards))
        self.deleter = Deleter(self.store, clock, keys, self.leader_new, self._told, self.owed)

    async def lead(self) -> None:
        rng = self.world.rng
        while True:
            await asyncio.sleep(TICK * rng.uniform(0.5, 1.5))
            try:
                await self._tick()
            except StoreError as error:
                self.world.trace(f"leader: {error}")
            if self.world.troubled and rng.random() < 0.02:
                self.world.trace("another leader")
                self.world.etcd.txn(Txn((), (Delete(self.keys.leader),)))
                self.world.etcd.txn(Txn((), (Put(self.keys.leader, b"2"),)))
                if rng.random() < 0.5:
                    await self._tick_blindly()
                self._elected()

    async def _tick_blindly(self) -> None:
        try:
            await self._tick()  # as the leader that it is no more: every write must fail
        except StoreError:
            return

    async def _tick(self) -> None:
        keys, f, rng = self.keys, self.function, self.world.rng
        listing = await self.store.list(keys.map(f))
        items = {item.key: item for item in listing.items}
        ready: list[str] = []
        leaving: list[str] = []
        owners: dict[int, str] = {}
        entries: dict[int, tuple[int, int]] = {}
        moves: dict[int, str] = {}
        for key, item in items.items():
            tail = key.rpartition("/")[2]
            if key.startswith(keys.workers(f)):
                state = state_pb2.WorkerEntry.FromString(item.value).state
                (ready if state == state_pb2.WorkerEntry.State.READY else leaving).append(tail)
            elif key.startswith(keys.shards(f)):
                entry = state_pb2.ShardEntry.FromString(item.value)
                owners[int(tail)] = entry.owner
                entries[int(tail)] = (item.mod_revision, entry.epoch)
            elif key.startswith(keys.moves(f)):
                moves[int(tail)] = state_pb2.Move.FromString(item.value).target
        seen = placement.Placement(self.world.shape.shards, ready, leaving, owners, moves)
        for transition in placement.plan(seen):
            match transition:
                case Give(shard, target):
                    await self._give(shard, target, entries)
                case Move(shard, _, target):
                    await self._write(transactions.plan(keys, f, shard, target, shard_mod=entries[shard][0], leader_new=self.leader_new))
                case placement.Cancel(shard):
                    await self._write(transactions.cancel(keys, f, shard, shard_mod=entries[shard][0], leader_new=self.leader_new))
        if self.world.troubled and ready and entries and rng.random() < self.world.shape.restless:
            shard, target = rng.choice(sorted(entries)), rng.choice(ready)
            if rng.random() < 0.5:
                await self._give(shard, target, entries)  # believes the owner dead: wrongly, or it missed its deadline
            elif target != owners[shard]:
                await self._write(transactions.plan(keys, f, shard, target, shard_mod=entries[shard][0], leader_new=self.leader_new))
        if self.world.shape.removal_wait:
            await self.sweeper.once()
        if self.world.troubled and rng.random() < (self.world.shape.deletes if self.world.full_since is None else 0.5):
            await self._delete()
        assert self.owed is not None
        if rng.random() < 0.3:  # once a second
            await self.owed.settle()
            await self.owed.pay()

    async def _give(self, shard: int, target: str, entries: dict[int, tuple[int, int]]) -> None:
        if shard in entries:
            txn = transactions.failover(self.keys, self.function, target, {shard: entries[shard]}, leader_new=self.leader_new)
        elif self._owes(shard):
            self.world.trace(f"leader gives shard {shard} to nobody: tombstones are owed")
            return
        else:
            txn = transactions.assign(self.keys, self.function, target, [shard], function_new=self.function_new, leader_new=self.leader_new)
        await self._write(txn)

    def _owes(self, shard: int) -> bool:
        return self.owed is not None and (self.function.uid, shard) in self.owed

    async def _write(self, txn: Txn) -> None:
        result = await self.store.txn(txn)
        self.world.trace(f"leader {'did' if result.succeeded else 'failed'} {[w.key.rpartition('map/')[2] for w in txn.writes]}")

    def _sees(self) -> View:
        """The real sweeper's copy of the map: it has not heard of any worker, so it reads each time whether the shard's owner lives."""
        view = View(self.keys, self.world.clock, lambda uid: None)
        text = manifest(shards=self.world.shape.shards)
        entry = state_pb2.FunctionEntry(
            namespace=self.function.namespace,
            name=self.function.name,
            uid=self.function.uid,
            spec=spec_to_json(parse_manifest(text).spec),
            shards=self.world.shape.shards,
        )
        view.function_changed("", None, Item("", entry.SerializeToString(), 1, 1))
        return view

    async def _delete(self) -> None:
        """Somebody deletes a session; its owner is told, or not."""
        seen = self.view.seen(self.function.uid)
        assert seen is not None
        session = f"/i:{self.world.rng.randrange(self.world.shape.sessions) + 1}"
        request = control_pb2.DeleteSessionsRequest(session=session)
        try:
            await self.deleter.delete(seen, request)
            self.world.trace(f"deleted {session}")
        except DormouseError as error:
            self.world.trace(f"not deleted {session}: {error.message}")

    async def _told(self, function: Function, shard: int, sessions: Sequence[str]) -> None:
        if self.world.rng.random() < 0.5:
            return
        for process in self.world.instances.values():
            if process is not None and process.ready:
                process.sessions.hear(control_pb2.WorkerOrder.Limits(replaced=sessions))
