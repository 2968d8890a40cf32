"""Everything that runs while this process leads: copies of the store, streams to workers, one loop for each function, the provider's list.

A leader begins knowing nothing: no function's loop runs before the registry and the map are listed in full, and what agents and workers
have not said yet is unknown. It ends with the process: a leader that lost its lease must not have a task left that still believes in it.
"""

import asyncio
import contextlib
from collections.abc import Callable, Sequence

from dormouse_core import addresses
from dormouse_core.autoscaling import Decision
from dormouse_core.errors import DormouseError, NotFound
from dormouse_core.giving import Places
from dormouse_core.keys import Function, Keys
from dormouse_core.observations import FunctionSeen
from dormouse_core.seams import Clock, Instance, Item, Provider, Store, Wanted
from dormouse_core.starts import Starts
from dormouse_core.strangers import Serves
from dormouse_kit import log
from dormouse_proto import control_pb2, state_pb2

from dormouse_operator import metrics, status
from dormouse_operator.alarms import AlarmWatch
from dormouse_operator.cancelling import Canceller
from dormouse_operator.counting import Counts
from dormouse_operator.deleting import Deleter
from dormouse_operator.demands import Demands
from dormouse_operator.function_entries import FunctionEntries
from dormouse_operator.functions import FunctionLoop, LoopParts
from dormouse_operator.links import Dialer, Links
from dormouse_operator.mirror import Mirror
from dormouse_operator.orphans import Orphans
from dormouse_operator.owing import Owed
from dormouse_operator.space import Space
from dormouse_operator.sweeping import Sweeper
from dormouse_operator.timekeeping import Timekeeper
from dormouse_operator.usage_keeping import UsageKeeper
from dormouse_operator.usage_rows import Reader
from dormouse_operator.view import View, Vouch
from dormouse_operator.writes import Writer

OBSERVE = 0.5  # seconds between looks at the provider's list
RESTART = 1.0  # after a function's loop ended in an error of ours


class Leader:
    """`leader_new`: the create_revision of this leader's election key; `name`: what workers are told. `looked(uid)` is called after every
    look at a function, and when it is gone. `space`: how full the store is; None: nobody looks. `rule`, `vouch`: which workers' entries are
    believed. `serves`: as `strangers` asks it."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        keys: Keys,
        provider: Provider,
        dialer: Dialer,
        *,
        leader_new: int,
        name: str,
        entries: FunctionEntries | None = None,
        looked: Callable[[str], None] = lambda uid: None,
        space: Space | None = None,
        removal_wait: float | None = None,
        rule: addresses.Rule | None = None,
        vouch: Vouch = lambda function, entry, waited: "",
        serves: Serves = lambda namespace: True,
    ) -> None:
        self.space = space
        self.store = store
        self.clock = clock
        self.keys = keys
        self.entries = entries or FunctionEntries(store, keys, clock, leader_new)
        self.view = View(keys, clock, self._changed, self.entries.ending, rule=rule, vouch=vouch, serves=serves)
        self.demands = Demands(clock, self._changed)
        self.registry = Mirror(store, clock, keys.functions, self.view.function_changed)
        self._maps = Mirror(store, clock, keys.maps, self._map_changed)
        self._gateways = Mirror(store, clock, keys.gateways, self._gateway_changed)
        self.timekeeper = Timekeeper(clock, self.view.uid_of)
        self._links = Links(dialer, clock, name, leader_new, self._heard, self._worker_changed, self.timekeeper.worker)
        self.view.links = self._links
        self.counts = Counts(
            self.view,
            lambda: space.used if space is not None else None,
            lambda: space.shared if space is not None else None,
            clock.monotonic,
        )
        self.sweeper = Sweeper(
            store,
            clock,
            keys,
            self.view,
            self.counts,
            leader_new=leader_new,
            removal_wait=removal_wait,
            now_us=self.timekeeper.skew.now_us,
        )
        self._alarms = AlarmWatch(store, clock, keys, self.view, self.demands, self.timekeeper.skew.now_us)
        self._owed = Owed(store, clock, keys, leader_new, self._replaced, self.timekeeper.skew.best_us)
        self.deleter = Deleter(store, clock, keys, leader_new, self._replaced, self._owed)
        self.canceller = Canceller(store, clock, keys, leader_new, self._replaced)
        self._orphans = Orphans(store, clock, keys, self.view, leader_new)
        self._provider = provider
        skew = self.timekeeper.skew
        self._usage = UsageKeeper(store, clock, keys, self.view, leader_new, skew.now_us, skew.best_us)
        self.usage = Reader(store, clock, keys, self.view)
        writer = Writer(store, keys, leader_new, self._owed, self._usage)
        self.starts = Starts()
        self._parts = LoopParts(clock, self.view, self.demands, provider, writer, self.registry, self._maps, self.starts, Places(), looked)
        self._looked = looked
        self._loops: dict[str, FunctionLoop] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._times = status.Times()
        self._ready = asyncio.Event()

    async def run(self) -> None:
        """Never returns by itself; cancel it to stop leading."""
        mirrors = {"functions": self.registry, "map": self._maps, "gateways": self._gateways}
        for name, mirror in mirrors.items():
            metrics.age(name, lambda mirror=mirror: self.clock.monotonic() - mirror.heard_at)  # type: ignore[misc]  # a default binds it
        try:
            async with asyncio.TaskGroup() as group:
                for mirror in mirrors.values():
                    group.create_task(mirror.run())
                for mirror in mirrors.values():
                    await mirror.listed.wait()
                self._doubt()
                await self._owed.settle()
                self._ready.set()
                metrics.LEADING.set(1)
                log.event("leading", functions=len(self.view.functions))
                group.create_task(self._observe())
                group.create_task(self.sweeper.run())
                group.create_task(self._alarms.run())
                group.create_task(self._orphans.run())
                group.create_task(self._owed.run())
                group.create_task(self._usage.run())
                group.create_task(self.timekeeper.run())
                for uid in list(self.view.functions):
                    self._changed(uid)
        finally:
            metrics.LEADING.set(0)
            metrics.USAGE.only(set())  # the next leader's go on; both together would be counted twice
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._links.close()

    def _doubt(self) -> None:
        """What a leader before this one owed."""
        for uid, registered in self.view.functions.items():
            seen = self.view.seen(uid)
            if seen is not None:
                missing = set(range(seen.entry.shards)) - seen.shards.keys()
                self._owed.doubt(registered.function, registered.created, missing)

    async def listed(self, running: asyncio.Task[None]) -> None:
        """Until this leader knows what the store holds, or `running` failed: people and agents are answered from then on."""
        waiting = asyncio.ensure_future(self._ready.wait())
        await asyncio.wait({waiting, running}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()

    # ------------------------------------------------------------------------------------------------------------------ news

    def _changed(self, uid: str) -> None:
        if not self._ready.is_set():
            return
        loop = self._loops.get(uid)
        if loop is not None:
            loop.nudge()
        elif uid in self.view.functions:
            loop = self._loops[uid] = FunctionLoop(uid, self._parts)
            task = asyncio.create_task(self._keep(loop), name=f"function {uid}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _keep(self, loop: FunctionLoop) -> None:
        """One function's trouble stays with it: an error of ours in its loop is logged, and its loop begins anew."""
        label = ""
        try:
            while loop.uid in self.view.functions:
                label = self.view.functions[loop.uid].function.label
                try:
                    await loop.run()
                except Exception as error:
                    log.warning("a function's loop failed; it starts again", function=label, error=repr(error))
                    await self.clock.sleep(RESTART)
        finally:
            self._loops.pop(loop.uid, None)
        self.demands.forget(loop.uid)
        self.starts.only(loop.uid, ())
        self._times.forget(loop.uid)
        self.counts.forget(loop.uid)
        self.view.starving.forget(loop.uid)
        self._looked(loop.uid)
        if not any(r.function.label == label for r in self.view.functions.values()):
            with contextlib.suppress(KeyError):
                metrics.forget(label)

    def _map_changed(self, key: str, before: Item | None, after: Item | None) -> None:
        self.view.map_changed(key, before, after)
        parts = key.removeprefix(self.keys.maps).split("/", 4)
        if after is None and len(parts) == 5 and parts[3] == "workers":
            self.demands.worker_left(parts[2], parts[4])
            self.timekeeper.forget(parts[4], parts[2])

    def _gateway_changed(self, key: str, before: Item | None, after: Item | None) -> None:
        self.view.gateway_changed(key, before, after)
        if after is None:
            self.demands.forget_agent(key.removeprefix(self.keys.gateways))
            self.timekeeper.forget(key.removeprefix(self.keys.gateways), None)

    def _heard(self, worker: str, report: control_pb2.WorkerReport) -> None:
        uid = self.view.uid_of(worker)
        if uid is not None:
            self.view.heard(worker, report)
            self.demands.worker(uid, worker, report)
            registered = self.view.functions.get(uid)
            if registered is not None and registered.entry.shards:
                self._order(worker, self.counts.heard(uid, worker, report))
                if (figures := self.counts.figures(uid)) is not None:
                    metrics.counted(registered.function.label, figures.sessions, figures.hibernated)

    def _order(self, worker: str, order: control_pb2.WorkerOrder) -> None:
        """Without waiting for it. One that is lost is made again at the next report."""
        task = asyncio.create_task(self._send(worker, order), name=f"order to {worker}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _send(self, worker: str, order: control_pb2.WorkerOrder) -> None:
        await self._links.send(worker, order)

    async def _replaced(self, function: Function, shard: int, sessions: Sequence[str]) -> None:
        """The leader has written these sessions' records: their owner forgets what it has of them, and they are counted again."""
        self.sweeper.forget(function.uid)
        self._alarms.forget(function.uid)
        owner = self.view.owner(function.uid, shard)
        if owner in self.view.workers(function.uid) and (report := self.view.report(owner)) is not None:
            order = self.counts.heard(function.uid, owner, report)
            order.limits.replaced.extend(sessions)
            await self._links.send(owner, order)

    def _worker_changed(self, worker: str) -> None:
        uid = self.view.uid_of(worker)
        if uid is not None:
            self._changed(uid)

    # ------------------------------------------------------------------------------------------------------------------ the provider

    async def _observe(self) -> None:
        while True:
            before, after = self.view.instances, await self._provider.observe()
            self.view.instances = after
            self.view.starving.instances(after, self.clock.now())
            self.view.judge_again()
            known = (before is None) == (after is None)
            for uid in _differ(before, after) if known else list(self.view.functions):
                self._changed(uid)
            for uid in self.starts.look(after, self.view.registered(), self.clock.monotonic()):
                self._changed(uid)
            strangers, orphans = self.view.strangers(), self.view.orphans()
            if (strangers or orphans) and not await self._parts.writer.leads():
                strangers, orphans = [], []
            for stranger in strangers:
                await self._dismiss(stranger)
            for worker in orphans:
                order = control_pb2.WorkerOrder(no_taker=control_pb2.WorkerOrder.NoTaker())
                await self._links.send(worker, order)
            await self.clock.sleep(OBSERVE)

    async def _dismiss(self, stranger: Instance) -> None:
        """An instance of a function that the complete registry does not have (`strangers`): deleted while nobody led."""
        namespace, _, name = stranger.function.partition("/")
        log.event("an instance belongs to no function; it is stopped", instance=stranger.name, function=stranger.function, uid=stranger.uid)
        entry = state_pb2.FunctionEntry(namespace=namespace, name=name, uid=stranger.uid)
        try:
            await self._provider.apply(Wanted(entry, stranger.revision, 0))
        except DormouseError as error:
            log.warning("could not stop the instance", instance=stranger.name, error=error.message)

    # ------------------------------------------------------------------------------------------------------------------ for people

    async def delete(self, namespace: str, name: str) -> None:
        """Returns when the deletion has begun. NotFound: no such function."""
        await self.registry.wait_for(await self.entries.delete(namespace, name))
        with contextlib.suppress(NotFound):
            self.deletion_began(self.find(namespace, name).entry.uid)

    def deletion_began(self, uid: str) -> None:
        """A full store takes no mark, so the registry does not tell of it."""
        self._changed(uid)

    def find(self, namespace: str, name: str) -> FunctionSeen:
        """NotFound: no such function."""
        for uid, registered in self.view.functions.items():
            if registered.function.namespace == namespace and registered.function.name == name:
                seen = self.view.seen(uid)
                assert seen is not None
                return seen
        raise NotFound(f"no function {namespace}/{name}")

    def status(self, namespace: str, name: str, *, owners: bool = False) -> control_pb2.FunctionStatus:
        return self._status(self.find(namespace, name), owners)

    def status_of(self, uid: str) -> control_pb2.FunctionStatus | None:
        """None: no such function, or this leader has not looked at it yet."""
        loop, seen = self._loops.get(uid), self.view.seen(uid)
        return self._status(seen, owners=False) if seen is not None and loop is not None and loop.decided else None

    def statuses(self, namespace: str, *, owners: bool = False) -> list[control_pb2.FunctionStatus]:
        found = [self.view.seen(uid) for uid, r in self.view.functions.items() if namespace in ("", r.function.namespace)]
        return sorted((self._status(seen, owners) for seen in found if seen is not None), key=lambda s: (s.namespace, s.name))

    def _status(self, seen: FunctionSeen, owners: bool) -> control_pb2.FunctionStatus:
        loop = self._loops.get(seen.entry.uid)
        decision = loop.decision if loop else Decision(0, "not decided yet", valid=False)
        figures = self.counts.figures(seen.entry.uid)
        waits = self.starts.waits(seen.entry.uid) or (loop.gives_way if loop else "")
        return status.status(seen, decision, self._times, int(self.clock.now() * 1_000_000), figures, owners=owners, waits=waits)


def _differ(before: Sequence[Instance] | None, after: Sequence[Instance] | None) -> set[str]:
    """The functions whose instances changed."""
    return {uid for uid, *_ in set(map(_mark, before or ())) ^ set(map(_mark, after or ()))}


def _mark(i: Instance) -> tuple[str, str, bool, bool, float]:
    return i.uid, i.name, i.stopping, i.exited, i.starved
