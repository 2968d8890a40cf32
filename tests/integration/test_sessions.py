"""Two workers' sessions on real etcd: handoff and failover under traffic, with every step accounted for."""

import asyncio
import random
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from dormouse_core import transactions
from dormouse_core.callkeys import CallKey
from dormouse_core.errors import DataLoss, Unavailable
from dormouse_core.keys import Function, Keys
from dormouse_core.seams import Put, Txn
from dormouse_core.sessions.names import session_key, shard_of
from dormouse_kit.clock import SystemClock
from dormouse_kit.etcd import EtcdStore
from dormouse_proto import state_pb2
from dormouse_testing.etcd_server import EtcdServer
from dormouse_worker.sessions import Answer, Outcome, Ran, Sessions, SessionSettings, StateInfo, Step

SHARDS = 8
F = Function("ns", "count", "uid")
STATES = [StateInfo("sum", "sum", "sum", "INT64", (1,), None, np.zeros(1, np.int64))]


class Counter:
    """Adds one, a moment later; answers with the count."""

    def run(
        self, call: Any, states: dict[str, np.ndarray], step: int, start: bool, end: bool, done: Callable[[Outcome], None], deadline: float
    ) -> None:
        total = states["sum"] + 1
        asyncio.get_running_loop().call_later(0.002, done, Ran(b"%d" % total[0], {"sum": total}))


class Scene:
    """A function in a real store with its leader's writes, and two workers."""

    def __init__(self, endpoint: str, installation: str) -> None:
        self.endpoint = endpoint
        self.keys = Keys(installation)
        self.store = EtcdStore([endpoint])
        self.workers: dict[str, Sessions] = {}
        self.stores: dict[str, EtcdStore] = {}
        self.leader_new = self.function_new = 0

    async def lead(self) -> None:
        leader, function = self.keys.leader, self.keys.function(F.namespace, F.name)
        revision = (await self.store.txn(Txn((), (Put(leader, b"l"), Put(function, b"f"))))).revision
        self.leader_new = self.function_new = revision

    async def start(self, name: str) -> Sessions:
        self.stores[name] = EtcdStore([self.endpoint])
        sessions = Sessions(
            F,
            SessionSettings(SHARDS, "v1"),
            STATES,
            self.stores[name],
            SystemClock(),
            Counter(),
            worker=name,
            address="a:1",
            instance=name,
            revision="r",
            keys=self.keys,
        )
        await sessions.start()
        self.workers[name] = sessions
        return sessions

    async def entries(self) -> dict[int, tuple[str, int, int]]:
        """shard -> (owner, mod, epoch)"""
        found = {}
        for item in (await self.store.list(self.keys.shards(F))).items:
            entry = state_pb2.ShardEntry.FromString(item.value)
            found[int(item.key.rpartition("/")[2])] = (entry.owner, item.mod_revision, entry.epoch)
        return found

    async def assign(self, target: str) -> None:
        txn = transactions.assign(self.keys, F, target, list(range(SHARDS)), function_new=self.function_new, leader_new=self.leader_new)
        assert (await self.store.txn(txn)).succeeded

    async def plan(self, target: str) -> None:
        for shard, (_, mod, _) in (await self.entries()).items():
            txn = transactions.plan(self.keys, F, shard, target, shard_mod=mod, leader_new=self.leader_new)
            assert (await self.store.txn(txn)).succeeded

    async def fail_over(self, target: str) -> None:
        seen = {shard: (mod, epoch) for shard, (_, mod, epoch) in (await self.entries()).items()}
        assert (await self.store.txn(transactions.failover(self.keys, F, target, seen, leader_new=self.leader_new))).succeeded

    async def owned_by(self, name: str) -> float:
        """Seconds until `name` owns every shard."""
        began = time.monotonic()
        async with asyncio.timeout(60):
            while True:
                if self.workers[name].report().shards == SHARDS:
                    break
                await asyncio.sleep(0.002)
        return time.monotonic() - began

    async def close(self) -> None:
        for sessions in self.workers.values():
            await sessions.close()
        for store in [self.store, *self.stores.values()]:
            await store.close()


class Caller:
    """Counts up in a session of its own and insists that no step is missing and none happened twice."""

    def __init__(self, scene: Scene, n: int) -> None:
        self.scene = scene
        self.session = session_key("", f"caller {n}")
        self.count = 0
        self.retries = 0
        self.stop = False

    async def run(self) -> None:
        while not self.stop:
            self.count += 1
            key = CallKey(time.time_ns() // 1000, f"g-{self.session}-{self.count}")
            while True:
                answer = await self._send(key)
                if not isinstance(answer.error, Unavailable):
                    break
                self.retries += 1
                await asyncio.sleep(0.01)
            assert answer.error is None, answer.error
            assert (answer.reply, answer.step) == (b"%d" % self.count, self.count)

    async def _send(self, key: CallKey) -> Answer:
        owner, mod, _ = (await self.scene.entries())[shard_of(self.session, SHARDS)]
        worker = self.scene.workers.get(owner)
        if worker is None:
            return Answer(None, 0, Unavailable("the owner is dead"))
        answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        worker.submit(Step(self.session, key, b"d", False, False, True, None, answered.set_result, rev=mod))
        try:
            async with asyncio.timeout(2):
                return await answered
        except TimeoutError:
            return Answer(None, 0, Unavailable("the owner died"))


async def further(callers: list[Caller], tasks: "list[asyncio.Task[None]]", steps: int = 3) -> None:
    """Returns when each caller has gone so many steps on."""
    before = [caller.count for caller in callers]
    async with asyncio.timeout(60):
        while any(caller.count < count + steps for caller, count in zip(callers, before, strict=True)):
            for task in tasks:
                if task.done():
                    task.result()
            await asyncio.sleep(0.02)


async def test_handoff_and_failover_lose_and_repeat_nothing(etcd_server: EtcdServer, installation: str) -> None:
    scene = Scene(etcd_server.endpoint, installation)
    try:
        await scene.lead()
        first = await scene.start("a-1")
        await scene.assign("a-1")
        await scene.owned_by("a-1")
        callers = [Caller(scene, n) for n in range(16)]
        tasks = [asyncio.create_task(caller.run()) for caller in callers]
        await further(callers, tasks)

        await scene.start("b-1")
        await scene.plan("b-1")
        handoff = await scene.owned_by("b-1")
        assert first.report().shards == 0
        await further(callers, tasks)

        # The owner is cut off in the middle of its work, as by SIGKILL: what it sent may land, nothing more comes.
        await scene.start("c-1")
        dead = scene.workers.pop("b-1")
        for task in [*dead._tasks, dead.registration._task]:
            assert task is not None
            task.cancel()
        await scene.fail_over("c-1")
        failover = await scene.owned_by("c-1")
        await further(callers, tasks)

        for caller in callers:
            caller.stop = True
        async with asyncio.timeout(60):
            await asyncio.gather(*tasks)
        print(f"handoff of {SHARDS} shards {handoff * 1000:.0f} ms, failover {failover * 1000:.0f} ms after the leader's write")
        print(f"{sum(c.count for c in callers)} steps, {sum(c.retries for c in callers)} retries")
        assert {owner for owner, _, _ in (await scene.entries()).values()} == {"c-1"}
    finally:
        await scene.close()


async def test_a_stalled_store_costs_time_and_nothing_else(own_etcd: EtcdServer) -> None:
    scene = Scene(own_etcd.endpoint, "stall")
    try:
        await scene.lead()
        await scene.start("a-1")
        await scene.assign("a-1")
        await scene.owned_by("a-1")
        callers = [Caller(scene, n) for n in range(4)]
        tasks = [asyncio.create_task(caller.run()) for caller in callers]
        await further(callers, tasks)
        own_etcd.freeze()
        await asyncio.sleep(0.7 + random.random() * 0.3)
        own_etcd.thaw()
        await further(callers, tasks)
        for caller in callers:
            caller.stop = True
        async with asyncio.timeout(60):
            await asyncio.gather(*tasks)
        assert not scene.workers["a-1"].lost.is_set()
    finally:
        await scene.close()


async def test_broken_records_as_large_as_a_request_and_many_at_once_are_begun_again(etcd_server: EtcdServer, installation: str) -> None:
    scene = Scene(etcd_server.endpoint, installation)
    try:
        await scene.lead()
        worker = await scene.start("a")
        await scene.assign("a")
        await scene.owned_by("a")
        sizes = [1_450_000] + [100] * 70
        names = {f"broken {n}": size for n, size in enumerate(sizes)}

        async def step(name: str, start: bool) -> Answer:
            answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
            key = CallKey(time.time_ns() // 1000, f"g-{name}-{start}")
            worker.submit(Step(session_key("", name), key, b"d", start, False, True, None, answered.set_result))
            return await asyncio.wait_for(answered, 60)

        for name, size in names.items():
            session = session_key("", name)
            key = scene.keys.state(F, shard_of(session, SHARDS), session)
            await scene.store.txn(Txn((), (Put(key, b"\x01" + bytes(size)),)))
        refused = await asyncio.gather(*(step(name, False) for name in names))
        assert all(isinstance(answer.error, DataLoss) for answer in refused)
        begun = await asyncio.gather(*(step(name, True) for name in names), step("innocent", True))
        assert [answer.error for answer in begun] == [None] * (len(names) + 1)
        copies = (await scene.store.list(scene.keys.data(F) + "quarantine/")).items
        assert sorted(len(copy.value) - 1 for copy in copies) == sorted(sizes)
    finally:
        await scene.close()
