"""A leader's surroundings on simulated time: a provider that starts simulated workers, their streams, gateways' agents.

A `SimWorker` does what a worker does to the map and nothing else: it registers under a lease, reports, hands over what is planned, drains.
Faults are switches on it. The leader under test is the real one, on `MemoryStore`.
"""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace

from dormouse_core import transactions
from dormouse_core.errors import Unavailable
from dormouse_core.keys import Function, Keys, function_of
from dormouse_core.seams import Instance, Put, StoreError, Txn, Wanted
from dormouse_operator.leading import Leader
from dormouse_operator.links import Refused, Stream, Unreachable
from dormouse_proto import control_pb2, state_pb2

from dormouse_testing.clock import SimClock
from dormouse_testing.memory_store import MemoryStore

KEYS = Keys("sim")
LEASE = 3
MANIFEST = """
apiVersion: dormouse.dev/v1alpha1
kind: InferenceFunction
metadata: {{name: fn, namespace: ns}}
spec:
  runtime: onnx
  model: {{uri: "file://{model}"}}
  sessions:
    shards: {shards}
    reclaimPolicy: {reclaim}
    states: [{{input: s, output: t, shape: [-1, 1], batchAxis: 0}}]
  scaleToZeroAfter: {idle}
"""


def manifest(model: str = "v1.onnx", *, shards: int = 64, idle: str = "60s", reclaim: str = "Delete") -> str:
    return MANIFEST.format(model=model, shards=shards, idle=idle, reclaim=reclaim)


@dataclass(eq=False)
class SimWorker:
    """One process. `hung`: it stops a planned shard and does not hand it over. `busy_shards`: it does not even
    stop them, since steps run. `cut`: nobody reaches it. `mute`: it reports nothing."""

    world: "World"
    name: str
    instance: str
    function: Function
    revision: str
    shards: int
    address: str
    alive: bool = True
    draining: bool = False
    hung: bool = False
    busy_shards: bool = False
    cut: bool = False
    mute: bool = False
    ready: bool = True
    in_flight: int = 0
    calls: int = 0
    busy: float = 0.0
    stopped: set[int] = field(default_factory=set)
    orders: list[str] = field(default_factory=list)
    lease: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def run(self) -> None:
        store = self.world.store.client()
        self.lease = await store.grant(LEASE)
        entry = state_pb2.WorkerEntry(
            address=self.address, revision=self.revision, state=state_pb2.WorkerEntry.READY, instance=self.instance,
            store_id=self.function.store_id,
        )  # fmt: skip
        await store.txn(transactions.register(KEYS, self.function, self.name, entry, self.lease))
        self.world.registered_at[self.name] = self.world.clock.monotonic()
        self._tasks = [asyncio.create_task(self._keep(store)), asyncio.create_task(self._hand_over(store))]

    async def _keep(self, store: MemoryStore) -> None:
        while self.alive:
            with contextlib.suppress(StoreError):
                await store.keep_alive(self.lease)
            self.busy += self.in_flight
            await asyncio.sleep(1.0)

    async def _hand_over(self, store: MemoryStore) -> None:
        """Polls, where a real worker watches: simulated time makes it cheap."""
        while self.alive:
            with contextlib.suppress(StoreError):
                moves = await store.list(KEYS.moves(self.function))
                for item in moves.items:
                    shard = int(item.key.rsplit("/", 1)[1])
                    _, found = await store.get([KEYS.shard(self.function, shard)])
                    at = found.get(KEYS.shard(self.function, shard))
                    if at is not None and (owned := state_pb2.ShardEntry.FromString(at.value)).owner == self.name:
                        await self._one(
                            store, shard, state_pb2.Move.FromString(item.value).target, at.mod_revision, item.mod_revision, owned.epoch
                        )
            await asyncio.sleep(0.05)

    async def _one(self, store: MemoryStore, shard: int, target: str, shard_mod: int, move_mod: int, epoch: int) -> None:
        if self.busy_shards:
            return
        self.stopped.add(shard)
        self.changed.set()
        if self.hung:
            return
        await store.txn(transactions.handoff(KEYS, self.function, shard, target, shard_mod=shard_mod, move_mod=move_mod, epoch=epoch))
        self.stopped.discard(shard)

    def report(self, first: bool) -> control_pb2.WorkerReport:
        made = control_pb2.WorkerReport(
            worker=self.name, uid=self.function.uid, revision=self.revision, ready=self.ready, draining=self.draining,
            in_flight=self.in_flight, calls=self.calls, concurrency_seconds=self.busy,
        )  # fmt: skip
        made.stopped.extend(control_pb2.WorkerReport.StoppedShard(shard=s, stopped_us=1) for s in sorted(self.stopped))
        if first:
            made.metadata.platform = "onnxruntime_onnx"
        return made

    async def drain(self) -> None:
        """SIGTERM: it says so in the store and leaves when told that nobody takes its shards, or when it has none."""
        self.draining = True
        store = self.world.store.client()
        entry = state_pb2.WorkerEntry(
            address=self.address, revision=self.revision, state=state_pb2.WorkerEntry.DRAINING, instance=self.instance,
            store_id=self.function.store_id,
        )  # fmt: skip
        await store.txn(transactions.change(KEYS, self.function, self.name, entry, self.lease))
        self.changed.set()
        while self.alive and "no_taker" not in self.orders and self.name in self.world.owners().values():  # noqa: ASYNC110 - it waits for the store
            await asyncio.sleep(0.05)
        if self.alive:
            self.kill()
            await store.revoke(self.lease)

    def kill(self) -> None:
        """SIGKILL: the lease lives on until it runs out."""
        self.alive = False
        self.changed.set()
        for task in self._tasks:
            task.cancel()


class SimStream:
    def __init__(self, worker: SimWorker) -> None:
        self._worker = worker

    async def send(self, order: control_pb2.WorkerOrder) -> None:
        if not self._worker.alive or self._worker.cut:
            raise Unreachable("broken")
        self._worker.orders.append(str(order.WhichOneof("order")))

    async def reports(self) -> AsyncIterator[control_pb2.WorkerReport]:
        first = True
        while True:
            self._worker.changed.clear()
            if not self._worker.alive or self._worker.cut:
                raise Unreachable("broken")
            if not self._worker.mute:
                yield self._worker.report(first)
                first = False
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._worker.changed.wait()

    async def close(self) -> None:
        return


class World:
    """`start`: seconds from the order to the worker's registration. `problem`: by revision, what starting it ends in."""

    def __init__(self, store: MemoryStore, *, start: float = 0.5) -> None:
        self.clock = SimClock()
        self.store = store
        self.start = start
        self.problem: dict[str, state_pb2.Problem] = {}
        self.workers: dict[str, SimWorker] = {}
        self.instances: dict[str, Instance] = {}
        self.registered_at: dict[str, float] = {}
        self.silent = False  # the provider does not answer
        self.ordered: list[tuple[str, int]] = []
        self._numbers = itertools.count(1)
        self._tasks: set[asyncio.Task[None]] = set()

    # -------------------------------------------------------------------------------------------------------------- Dialer

    async def open(self, address: str) -> Stream:
        await asyncio.sleep(0.001)
        found = [w for w in self.workers.values() if w.address == address]
        if any(w.cut for w in found):
            raise Unreachable("no route")
        living = [w for w in found if w.alive]
        if not living:
            raise Refused
        return SimStream(living[-1])

    # -------------------------------------------------------------------------------------------------------------- Provider

    async def observe(self) -> Sequence[Instance] | None:
        await asyncio.sleep(0.001)
        return None if self.silent else list(self.instances.values())

    async def apply(self, wanted: Wanted) -> None:
        await asyncio.sleep(0.001)
        if self.silent:
            raise Unavailable("nobody answers")
        entry = wanted.function
        self.ordered.append((wanted.revision, wanted.count))
        running = [i.name for i in self.instances.values() if (i.uid, i.revision) == (entry.uid, wanted.revision) and not i.stopping]
        first = [n for n in wanted.victims if n in running] + [n for n in running if n not in wanted.victims]
        for name in first[: max(len(running) - wanted.count, 0)]:
            self._later(self._stop(name))
        for _ in range(wanted.count - len(running)):
            name = f"i{next(self._numbers)}"
            self.instances[name] = Instance(name, f"{entry.namespace}/{entry.name}", entry.uid, wanted.revision, self.clock.now())
            self._later(self._start(name, entry))

    async def _start(self, name: str, entry: state_pb2.FunctionEntry) -> None:
        await asyncio.sleep(self.start)
        if name not in self.instances or self.instances[name].stopping:
            return
        if entry.revision in self.problem:
            self.instances[name] = replace(self.instances[name], exited=True, problem=self.problem[entry.revision])
            return
        await self.process(name, entry)

    async def process(self, instance: str, entry: state_pb2.FunctionEntry) -> SimWorker:
        """A new process of an instance: a new worker at the instance's old address."""
        number = next(self._numbers)
        function = function_of(entry)
        worker = SimWorker(self, f"w{number}", instance, function, entry.revision, entry.shards, f"host:{instance}")
        self.workers[worker.name] = worker
        await worker.run()
        return worker

    async def _stop(self, name: str) -> None:
        self.instances[name] = replace(self.instances[name], stopping=True)
        for worker in [w for w in self.workers.values() if w.instance == name and w.alive]:
            await worker.drain()
        del self.instances[name]

    def _later(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        for worker in self.workers.values():
            worker.kill()
        for task in self._tasks:
            task.cancel()

    # -------------------------------------------------------------------------------------------------------------- looking

    def living(self) -> list[SimWorker]:
        return [w for w in self.workers.values() if w.alive]

    def owners(self) -> dict[int, str]:
        """shard -> owner, as the store has it now."""
        found = {}
        for item in self.store.etcd.range(KEYS.maps, "", 0, 0, False).items:
            if "/shards/" in item.key:
                found[int(item.key.rsplit("/", 1)[1])] = state_pb2.ShardEntry.FromString(item.value).owner
        return found

    def entry(self) -> state_pb2.FunctionEntry | None:
        found = self.store.etcd.get([KEYS.function("ns", "fn")])[1]
        item = found.get(KEYS.function("ns", "fn"))
        return None if item is None else state_pb2.FunctionEntry.FromString(item.value)

    async def until(self, true: Callable[[], object], seconds: float = 30.0) -> float:
        """How long it took until `true()`; fails after `seconds`."""
        began = self.clock.monotonic()
        while not true():
            assert self.clock.monotonic() - began < seconds, "it did not come true"
            await asyncio.sleep(0.01)
        return self.clock.monotonic() - began


class SimAgent:
    """A gateway's agent: a key under a lease, and a report each second while `connected`."""

    def __init__(self, world: World, name: str = "agent") -> None:
        self.world = world
        self.name = name
        self.held: dict[str, int] = {}
        self.seconds: dict[str, float] = {}
        self.connected = True
        self.complete = True
        self.leader: Leader | None = None
        self.unreached: dict[str, float] = {}  # workers that it cannot connect to, and since when
        self.knows = False  # it says of whom it fails to reach, without being asked: calls of it wait for them
        self.wake = asyncio.Event()

    async def run(self) -> None:
        store = self.world.store.client()
        lease = await store.grant(LEASE)
        await store.txn(Txn((), (Put(KEYS.gateway(self.name), b"", lease),)))
        while True:
            with contextlib.suppress(StoreError):
                await store.keep_alive(lease)
            if self.leader is not None and self.connected:
                self.leader.demands.agent(self.report())
                self.leader.view.reaches.take(self.name, self.reaches(), self.world.clock.monotonic())
            self.wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self.wake.wait()

    def hold(self, uid: str, held: int) -> None:
        self.held[uid] = held
        self.wake.set()

    def reaches(self) -> list[control_pb2.WorkerReach]:
        """What it says of workers that it was asked to try, and of those that its calls wait for."""
        assert self.leader is not None
        named = {each.worker for each in self.leader.view.tries()} | (self.unreached.keys() if self.knows else set())
        now = self.world.clock.monotonic()
        return [
            control_pb2.WorkerReach(worker=worker, reached=worker not in self.unreached, seconds=now - self.unreached.get(worker, now))
            for worker in sorted(named)
        ]

    def cannot_reach(self, *workers: SimWorker) -> None:
        """From now on; and calls of it wait for them."""
        now = self.world.clock.monotonic()
        self.unreached = {worker.name: self.unreached.get(worker.name, now) for worker in workers}
        self.knows = True

    def report(self) -> control_pb2.AgentReport:
        for uid, held in self.held.items():
            self.seconds[uid] = self.seconds.get(uid, 0.0) + held
        demand = [
            control_pb2.FunctionDemand(namespace="ns", name="fn", uid=uid, held=held, held_seconds=self.seconds[uid])
            for uid, held in self.held.items()
        ]
        return control_pb2.AgentReport(agent=self.name, complete=self.complete, demand=demand)
