"""One function whose object is changed faster than its workers start, in a namespace with a quota: time in ticks, the real decisions."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from random import Random

from dormouse_core import coordination, lifecycle
from dormouse_core.autoscaling import Decision
from dormouse_core.coordination import Failover
from dormouse_core.giving import GivingWay, Places
from dormouse_core.lifecycle import Prove, Report, Scale
from dormouse_core.seams import Instance
from dormouse_proto import state_pb2

from dormouse_testing.functions_seen import World, entry, instance, worker

LONGEST_START, LONGEST_END = 8, 6  # ticks
TICK_SECONDS = 2.0
HOLD_SECONDS = 300.0


@dataclass
class Pod:
    name: str
    revision: str
    left: int  # ticks until it is ready, or gone
    stopping: bool = False


@dataclass
class Overtaking:
    """`wanted` workers; `quota`: pods that the namespace takes, ending ones too. A revision named bad-... never loads its model,
    one named hangs-... neither loads nor ends."""

    random: Random
    wanted: int
    quota: int
    world: World = field(default_factory=lambda: World(entry=entry(proved="", revision="r0")))
    pods: dict[str, Pod] = field(default_factory=dict)
    desired: dict[str, int] = field(default_factory=dict)
    made: int = 0
    now: float = 0.0
    giving: GivingWay = field(default_factory=lambda: GivingWay(Places()))
    failovers: list[Failover] = field(default_factory=list)
    last: bool = True  # the last worker may go
    others: Callable[[], int] = lambda: 0
    """Pods of other functions under the same quota."""

    def evict(self, name: str) -> None:
        pod = self.pods[name]
        pod.stopping, pod.left = True, self.random.randint(1, LONGEST_END)
        if (at := name.removeprefix("i-")) in self.world.workers:
            self.world.change(at, draining=True)

    def change(self, revision: str) -> None:
        """As `function_entries.with_spec` writes it."""
        found = state_pb2.FunctionEntry()
        found.CopyFrom(self.world.entry)
        found.ClearField("problem")
        if found.proved_revision == found.revision:
            found.proved_spec = b"{}"
        found.revision = revision
        if found.proved_revision == revision:
            found.ClearField("proved_spec")
        self.world.entry = found

    def tick(self) -> None:
        self.now += TICK_SECONDS
        for pod in list(self.pods.values()):
            self._live(pod)
        self._make()
        self._observe()
        self._decide()

    @property
    def running(self) -> int:
        """Pods that are not on their way out, and such that are ordered."""
        return sum(self.desired.values())

    @property
    def ready(self) -> int:
        return sum(each.serving for each in self.world.workers.values())

    def ready_of(self, revision: str) -> int:
        return sum(each.serving and each.revision == revision for each in self.world.workers.values())

    def _live(self, pod: Pod) -> None:
        name = pod.name.removeprefix("i-")
        pod.left = max(pod.left - 1, 0)
        if pod.stopping:
            owns = any(shard.owner == name for shard in self.world.shards.values())
            if pod.left == 0 and (name not in self.world.workers or not owns or name in self.world.told):
                self.world.workers.pop(name, None)
                del self.pods[pod.name]
        elif pod.left == 0 and name not in self.world.workers and not pod.revision.startswith(("bad", "hangs")):
            self.world.add(replace(worker(name), revision=pod.revision))

    def _make(self) -> None:
        for revision, count in sorted(self.desired.items()):
            running = [pod for pod in self.pods.values() if pod.revision == revision and not pod.stopping]
            for _ in range(count - len(running)):
                if len(self.pods) + self.others() < self.quota:
                    self.made += 1
                    name = f"i-w{self.made}"
                    self.pods[name] = Pod(name, revision, self.random.randint(1, LONGEST_START))

    def _observe(self) -> None:
        found = []
        for pod in self.pods.values():
            failed = pod.revision.startswith("bad") and pod.left == 0 and not pod.stopping
            found.append(instance(pod.name, revision=pod.revision, stopping=pod.stopping, exited=failed, problem="bad" if failed else ""))
        for revision, count in self.desired.items():
            there = sum(pod.revision == revision and not pod.stopping for pod in self.pods.values())
            found += [
                Instance(f"{revision}/{n}", "ns/fn", "uid-1", revision, 0.0, unplaced=True, room="namespace") for n in range(count - there)
            ]
        self.world.instances = found

    def _decide(self) -> None:
        for _ in range(10):
            seen = self.world.seen()
            way = self.giving.look(seen, self.wanted, rivals=False, last=self.last, hold=HOLD_SECONDS, now=self.now)
            for step in lifecycle.live(seen, Decision(self.wanted, "by load"), way):
                if isinstance(step, Scale):
                    self._scale(step)
                elif isinstance(step, Prove):
                    self.world.entry.proved_revision = self.world.entry.revision
                    self.world.entry.metadata.CopyFrom(step.metadata)
                    self.world.entry.ClearField("proved_spec")
                    self.world.entry.ClearField("problem")
                    break
                elif isinstance(step, Report):
                    self.world.entry.problem.CopyFrom(step.problem)
                    break
            else:
                break
        seen = self.world.seen()
        wanted, _ = lifecycle.wanted_of_target(seen, Decision(self.wanted, "by load"))
        for action in coordination.coordinate(seen, 0.0, wanted=wanted, coming=lifecycle.coming(seen, {}, 0.0, self.giving.way)):
            if isinstance(action, Failover):
                self.failovers.append(action)
            self.world.apply(action)
        for shard in list(self.world.moves):
            self.world.hand_off(shard)

    def _scale(self, step: Scale) -> None:
        self.desired[step.revision] = step.count
        running = [pod.name for pod in self.pods.values() if pod.revision == step.revision and not pod.stopping]
        order = [name for name in step.victims if name in running] + [name for name in running if name not in step.victims]
        for name in order[: max(len(running) - step.count, 0)]:
            self.evict(name)
        self._observe()
