"""A simple leader: gives the shards of dead workers away, moves shards for balance and for no reason, and removes old records.

It uses the same pure planner and the same transactions as the real coordinator. Now and then another leader is elected while this one's
transactions are on their way.
"""

import asyncio
from typing import TYPE_CHECKING

from dormouse_core import placement, transactions
from dormouse_core.placement import Give, Move
from dormouse_core.records import decode  # the real one, whatever a control puts in its place
from dormouse_core.seams import Delete, Put, StoreError, Txn
from dormouse_proto import state_pb2

if TYPE_CHECKING:
    from dormouse_testing.sessions_sim.world import World

TICK = 0.3


class Leader:
    def __init__(self, world: "World") -> None:
        self.world = world
        self.may_remove = False

    async def begin(self) -> None:
        from dormouse_testing.sessions_sim.world import FUNCTION, KEYS

        self.keys, self.function = KEYS, FUNCTION
        self.store = self.world.client("leader")
        self.world.etcd.txn(Txn((), (Put(KEYS.function(FUNCTION.namespace, FUNCTION.name), b"f"), Put(KEYS.leader, b"1"))))
        self._elected()

    def _elected(self) -> None:
        leader = self.world.etcd.item(self.keys.leader)
        function = self.world.etcd.item(self.keys.function(self.function.namespace, self.function.name))
        assert leader is not None
        assert function is not None
        self.leader_new, self.function_new = leader.create_revision, function.create_revision

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
            await self._remove(entries)

    async def _give(self, shard: int, target: str, entries: dict[int, tuple[int, int]]) -> None:
        if shard in entries:
            txn = transactions.failover(self.keys, self.function, target, {shard: entries[shard]}, leader_new=self.leader_new)
        else:
            txn = transactions.assign(self.keys, self.function, target, [shard], function_new=self.function_new, leader_new=self.leader_new)
        await self._write(txn)

    async def _write(self, txn: Txn) -> None:
        result = await self.store.txn(txn)
        self.world.trace(f"leader {'did' if result.succeeded else 'failed'} {[w.key.rpartition('map/')[2] for w in txn.writes]}")

    async def _remove(self, entries: dict[int, tuple[int, int]]) -> None:
        """Rule 9, for whatever shard: the fence and the records' own revisions protect a living owner."""
        keys, f = self.keys, self.function
        now_us = int(self.world.clock.now() * 1e6)
        wait_us = int(self.world.shape.removal_wait * 1e6)
        for shard, (mod, _) in entries.items():
            floor_key = keys.floor(f, shard)
            _, items = await self.store.get([floor_key])
            floor = items.get(floor_key)
            floor_us = state_pb2.Floor.FromString(floor.value).timestamp_us if floor else 0
            gone: dict[str, int] = {}
            for item in (await self.store.list(keys.states(f, shard))).items:
                body = decode(item.value).body
                over = body.tombstone or body.expires_us < now_us
                if over and max(body.newest_us, 0 if body.tombstone else body.expires_us) + wait_us < now_us:
                    gone[item.key] = item.mod_revision
                    floor_us = max(floor_us, body.newest_us)
            if gone:
                await self._write(
                    transactions.remove(
                        keys,
                        f,
                        shard,
                        gone,
                        shard_mod=mod,
                        floor_mod=floor.mod_revision if floor else 0,
                        floor_us=floor_us,
                        leader_new=self.leader_new,
                    )
                )
