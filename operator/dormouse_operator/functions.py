"""One loop for each function: take a snapshot, decide, write, until nothing is left to do; then wait for news or for the next tick.

The order within one round matters: the registry first (a proved revision changes who may receive shards), then the number of workers (a
worker that was just ordered is a taker that is coming), then the shards. A round never acts on a copy older than its own last write.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace

from dormouse_core import coordination, editions, lifecycle, retaining, separate
from dormouse_core.autoscaling import Autoscaler, Decision, Scaling
from dormouse_core.backoff import Backoff
from dormouse_core.coordination import Assign, Cancel, Failover, NoTaker, Plan
from dormouse_core.errors import DormouseError
from dormouse_core.giving import GivingWay, Places, Way
from dormouse_core.observations import FunctionSeen
from dormouse_core.seams import Clock, Provider, Wanted
from dormouse_core.spec import spec_from_json
from dormouse_core.starts import Starts
from dormouse_kit import log
from dormouse_proto import control_pb2, state_pb2

from dormouse_operator import metrics
from dormouse_operator.demands import Demands
from dormouse_operator.mirror import Mirror
from dormouse_operator.view import View
from dormouse_operator.writes import Writer

TICK = 1.0  # seconds between looks at a function that has workers or calls
CALM_TICK = 10.0  # and at one that sleeps; news wakes it at once
RETRY = Backoff(0.1, TICK)  # after writes that did not succeed
Written = lifecycle.Prove | lifecycle.Separate | lifecycle.Report | lifecycle.Forsake
"""Steps that change the function's entry."""
_WRITTEN = {
    Assign: "shards assigned",
    Failover: "shards failed over",
    Plan: "moves of shards planned",
    Cancel: "moves of shards cancelled",
}


@dataclass(slots=True)
class LoopParts:
    """What every function's loop shares."""

    clock: Clock
    view: View
    demands: Demands
    provider: Provider
    writer: Writer
    registry: Mirror
    maps: Mirror
    starts: Starts
    places: Places
    looked: Callable[[str], None]
    """Called with the uid after every look at a function."""


class FunctionLoop:
    """The life of one uid under one leader."""

    def __init__(self, uid: str, parts: LoopParts) -> None:
        self.uid = uid
        self.decision = Decision(0, "not decided yet", valid=False)
        self.decided = False
        self._parts = parts
        self._autoscaler = Autoscaler()
        self._giving = GivingWay(parts.places)
        self._news = asyncio.Event()
        self._told: set[str] = set()  # draining workers that know that nobody takes their shards
        self._drains: dict[str, float] = {}  # workers -> when they were first seen to drain, monotonic
        self._said: tuple[object, ...] = ()
        self._refused = ""
        self._called = False
        self._in_memory_only = False  # sessions that live nowhere else

    @property
    def gives_way(self) -> str:
        """Why it has fewer workers than are wanted, or none of the wanted revision; '': no place was given."""
        return self._giving.way.reason

    def nudge(self) -> None:
        self._news.set()

    async def run(self) -> None:
        """Until the function is gone from the registry."""
        failures = 0
        while True:
            self._news.clear()
            seen = self._parts.view.seen(self.uid)
            if seen is None:
                return
            settled = await self._round(seen)
            self._parts.looked(self.uid)
            failures = 0 if settled else failures + 1
            await self._wait(self._until_next(seen) if settled else RETRY.after(failures))

    async def _wait(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._news.wait()
        except TimeoutError:
            pass

    def _until_next(self, seen: FunctionSeen) -> float:
        busy = bool(seen.workers or seen.instances or self.decision.wanted or seen.entry.deleting)
        tick = TICK if busy else CALM_TICK
        due = coordination.next_deadline(seen)
        return tick if due is None else max(0.0, min(tick, due - self._parts.clock.monotonic()))

    # ------------------------------------------------------------------------------------------------------------------ a round

    async def _round(self, seen: FunctionSeen) -> bool:
        """False: something could not be done and should be tried again soon."""
        settled = True
        self._decide(seen)
        steps = lifecycle.live(seen, self.decision, self._way(seen))
        self._parts.starts.only(self.uid, {step.revision for step in steps if isinstance(step, lifecycle.Scale) and more(seen, step) > 0})
        for step in steps:
            match step:
                case lifecycle.Prove() | lifecycle.Separate() | lifecycle.Report() | lifecycle.Forsake():
                    if not await self._write_entry(seen, step):
                        return False
                    return await self._again()
                case lifecycle.Scale():
                    settled = await self._scale(seen, step) and settled
                case lifecycle.Purge():
                    return await self._purge(seen)
        seen = self._parts.view.seen(self.uid) or seen
        await self._inform(seen)
        return await self._shards(seen) and settled

    async def _again(self) -> bool:
        seen = self._parts.view.seen(self.uid)
        return True if seen is None else await self._round(seen)

    def _way(self, seen: FunctionSeen) -> Way:
        """What is given up for want of room. The last worker is not, whose sessions nobody else would have."""
        before, rivals = self._giving.way, self._parts.view.wait_for_a_node(self.uid)
        now = self._parts.clock.monotonic()
        last, hold = not self._in_memory_only, spec_from_json(seen.entry.proved_spec or seen.entry.spec).timeouts.hold.seconds
        way = self._giving.look(seen, self.decision.wanted, rivals=rivals, last=last, hold=hold, now=now)
        if way.reason and way.reason != before.reason:
            text = "a new revision is held back" if way.held_back else "workers wait" if way.closed else "a worker gives its place"
            log.event(text, function=label(seen), revision=seen.entry.revision, why=way.reason)
        return way

    def _decide(self, seen: FunctionSeen) -> None:
        now = self._parts.clock.monotonic()
        scaling = scaling_of(seen.entry)
        unknown = lifecycle.unknown(seen) + self._parts.demands.unknown(self._parts.view.gateways)
        measured = self._parts.demands.measure(self.uid)
        self._called = bool(measured.held or measured.running)
        self._in_memory_only = scaling.memory_only and bool(measured.live_sessions)
        self.decision = self._autoscaler.decide(scaling, measured, lifecycle.count(seen), unknown, now)
        self.decided = True
        metrics.decided(label(seen), self.decision, lifecycle.count(seen))

    # ------------------------------------------------------------------------------------------------------------------ registry

    async def _write_entry(self, seen: FunctionSeen, step: Written) -> bool:
        entry = state_pb2.FunctionEntry()
        entry.CopyFrom(seen.entry)
        if isinstance(step, lifecycle.Prove):
            entry.proved_revision = entry.revision
            entry.metadata.CopyFrom(step.metadata)
            entry.metadata.ClearField("files")
            entry.ClearField("problem")
            entry.ClearField("proved_spec")
            editions.remember(entry, entry.revision, step.metadata.content, step.metadata.seal, step.metadata.files)
            log.event("revision proved", function=label(seen), revision=entry.revision, why=step.reason)
        elif isinstance(step, lifecycle.Separate):
            entry.metadata.batching.CopyFrom(step.batching)
        elif isinstance(step, lifecycle.Forsake):
            entry.ClearField("proved_spec")
            log.warning("an older revision cannot be started again", function=label(seen), revision=entry.proved_revision, why=step.reason)
        else:
            entry.problem.CopyFrom(step.problem)
            log.warning("the function cannot be served", function=label(seen), reason=step.problem.reason, message=step.problem.message)
        revision = await self._parts.writer.entry(seen, entry)
        if isinstance(step, lifecycle.Separate) and revision:
            for why in step.forms:
                log.warning(separate.sentence(why), function=label(seen), worker=step.worker)
        return revision > 0 and await self._parts.registry.wait_for(revision)

    async def _purge(self, seen: FunctionSeen) -> bool:
        kept = retaining.retains(seen.entry)
        writer, now_us = self._parts.writer, int(self._parts.clock.now() * 1_000_000)
        revision = await (writer.retain(seen, now_us) if kept else writer.purge(seen))
        if not revision:
            return False
        log.event("function deleted; its sessions are kept" if kept else "function deleted", function=label(seen), uid=self.uid)
        return await self._parts.registry.wait_for(revision)

    # ------------------------------------------------------------------------------------------------------------------ workers

    async def _scale(self, seen: FunctionSeen, step: lifecycle.Scale) -> bool:
        lacking, starts = more(seen, step), self._parts.starts
        if lacking > 0:
            called = self._called and step.revision == seen.serving_revision
            granted = starts.ask(self.uid, step.revision, lacking, called=called, now=self._parts.clock.monotonic())
            if not granted:
                return True  # who looks at all of them says when
            step = replace(step, count=step.count - lacking + granted)
        try:
            return await self._order(seen, step)
        finally:
            starts.seen(self.uid, step.revision)

    async def _order(self, seen: FunctionSeen, step: lifecycle.Scale) -> bool:
        if self._said != (step.revision, step.count):
            self._said = (step.revision, step.count)
            log.event("workers wanted", function=label(seen), count=step.count, revision=step.revision, why=step.reason)
        if not await self._parts.writer.leads():
            return False
        try:
            await self._parts.provider.apply(Wanted(seen.entry, step.revision, step.count, step.victims))
            self._parts.view.instances = await self._parts.provider.observe()
            self._parts.starts.look(self._parts.view.instances, self._parts.view.registered(), self._parts.clock.monotonic())
        except DormouseError as error:
            if error.message != self._refused:
                self._refused = error.message
                log.warning("could not scale workers", function=label(seen), count=step.count, error=error.message)
            return False
        self._refused = ""
        return True

    async def _inform(self, seen: FunctionSeen) -> None:
        """Tells workers of forms whose calls run alone. What they hear can only be true, whoever leads: the store is not asked before."""
        assert self._parts.view.links is not None
        for worker in lifecycle.uninformed(seen):
            await self._parts.view.links.send(worker, control_pb2.WorkerOrder(batching=seen.entry.metadata.batching))

    # ------------------------------------------------------------------------------------------------------------------ shards

    async def _shards(self, seen: FunctionSeen) -> bool:
        wanted, _ = lifecycle.wanted_of_target(seen, self.decision)
        now = self._parts.clock.monotonic()
        self._drains = lifecycle.draining(seen, self._drains, now)
        actions = coordination.coordinate(seen, now, wanted=wanted, coming=lifecycle.coming(seen, self._drains, now, self._giving.way))
        actions = self._parts.writer.allowed(seen, actions)
        written = [a for a in actions if not isinstance(a, NoTaker)]
        for action in written:
            log.event(
                _WRITTEN[type(action)],
                function=label(seen),
                shards=len(action.shards),
                target=getattr(action, "target", None),
                why=action.reason,
            )
            metrics.shards(label(seen), action)
        for told in actions:
            if isinstance(told, NoTaker):
                await self._no_taker(seen, told)
        self._told &= seen.workers.keys()
        if not written:
            return True
        revision = await self._parts.writer.shards(seen, written)
        return revision > 0 and await self._parts.maps.wait_for(revision)

    async def _no_taker(self, seen: FunctionSeen, action: NoTaker) -> None:
        if action.worker in self._told or not await self._parts.writer.leads():
            return
        order = control_pb2.WorkerOrder(no_taker=control_pb2.WorkerOrder.NoTaker())
        assert self._parts.view.links is not None
        if await self._parts.view.links.send(action.worker, order):
            self._told.add(action.worker)
            log.event("told a worker that no other can take its shards", function=label(seen), worker=action.worker, why=action.reason)


def more(seen: FunctionSeen, step: lifecycle.Scale) -> int:
    """How many workers it starts; below 0: stops."""
    return step.count - sum(i.revision == step.revision and not i.stopping and not i.lost for i in seen.instances or ())


def label(seen: FunctionSeen) -> str:
    return f"{seen.entry.namespace}/{seen.entry.name}"


def scaling_of(entry: state_pb2.FunctionEntry) -> Scaling:
    spec = spec_from_json(entry.spec)
    target = min(spec.scale_target, spec.max_concurrency) if spec.scale_metric == "concurrency" else spec.scale_target
    return Scaling(
        replicas=spec.replicas,
        minimum=min(spec.min_replicas, spec.max_replicas),
        maximum=spec.max_replicas,
        asked=spec.asked_replicas,
        metric=spec.scale_metric,
        target=float(target),
        scale_to_zero_after=spec.scale_to_zero_after.seconds,
        memory_only=spec.sessions is not None and spec.sessions.durability == "Memory",
    )
