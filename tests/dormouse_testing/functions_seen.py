"""A small world of one function for the coordinator's decisions: what is in the store, who lives, and what an action changes."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from dormouse_core.coordination import Action, Assign, Cancel, Failover, NoTaker, Plan
from dormouse_core.observations import FunctionSeen, MoveSeen, ShardSeen, WorkerSeen
from dormouse_core.seams import Instance
from dormouse_proto import control_pb2, state_pb2

OLD, NEW = "revision-old", "revision-new"


def entry(*, shards: int = 8, revision: str = NEW, proved: str = NEW, deleting: bool = False) -> state_pb2.FunctionEntry:
    return state_pb2.FunctionEntry(
        namespace="ns", name="fn", uid="uid-1", revision=revision, proved_revision=proved, shards=shards, deleting=deleting
    )


def report(
    *, ready: bool = True, draining: bool = False, state_bytes: int = 0, sessions: int = 0, in_flight: int = 0
) -> control_pb2.WorkerReport:
    made = control_pb2.WorkerReport(ready=ready, draining=draining, state_bytes=state_bytes, sessions=sessions, in_flight=in_flight)
    made.metadata.platform = "onnxruntime_onnx"
    return made


def worker(
    name: str,
    *,
    revision: str = NEW,
    draining: bool = False,
    gone: bool = False,
    elsewhere: bool = False,
    heard: bool = True,
    said: control_pb2.WorkerReport | None = None,
) -> WorkerSeen:
    heard_report = (said or report(draining=draining)) if heard and not gone else None
    return WorkerSeen(
        name, f"127.0.0.1:{name}", revision, f"i-{name}", draining=draining, elsewhere=elsewhere, gone=gone, report=heard_report
    )


def instance(name: str, *, revision: str = NEW, exited: bool = False, stopping: bool = False, problem: str = "") -> Instance:
    why = state_pb2.Problem(code=9, reason="ModelInvalid", message=problem) if problem else None
    return Instance(name, "ns/fn", "uid-1", revision, 0.0, stopping=stopping, exited=exited, problem=why)


@dataclass
class World:
    """The truth; `seen` is a snapshot of it. mods rise with every write, as revisions do."""

    entry: state_pb2.FunctionEntry = field(default_factory=entry)
    workers: dict[str, WorkerSeen] = field(default_factory=dict)
    shards: dict[int, ShardSeen] = field(default_factory=dict)
    moves: dict[int, MoveSeen] = field(default_factory=dict)
    stopped: dict[int, float] = field(default_factory=dict)
    instances: list[Instance] | None = field(default_factory=list)
    told: set[str] = field(default_factory=set)
    mod: int = 10

    def seen(self) -> FunctionSeen:
        return FunctionSeen(
            self.entry, 5, 5, dict(self.workers), dict(self.shards), dict(self.moves), dict(self.stopped),
            None if self.instances is None else tuple(self.instances),
        )  # fmt: skip

    def add(self, *workers: WorkerSeen) -> None:
        for w in workers:
            self.workers[w.name] = w

    def own(self, owner: str, shards: Iterable[int]) -> None:
        for shard in shards:
            self._put(shard, owner)

    def change(self, name: str, **changes: object) -> None:
        self.workers[name] = replace(self.workers[name], **changes)  # type: ignore[arg-type]  # the test names real fields

    def die(self, name: str) -> None:
        del self.workers[name]

    def apply(self, action: Action) -> None:
        """As the transaction would: it compares what is there now, so an action on what has changed since does nothing."""
        match action:
            case Assign(target, shards, _):
                if target in self.workers and all(s not in self.shards for s in shards):
                    self.own(target, shards)
            case Failover(target, shards, _):
                if target in self.workers:
                    self.own(target, shards)
            case Plan(target, shards, _):
                for shard in shards:
                    self.mod += 1
                    self.moves[shard] = MoveSeen(target, self.mod)
            case Cancel(shards, _):
                for shard in shards:
                    self.moves.pop(shard, None)
            case NoTaker(name, _):
                self.told.add(name)

    def hand_off(self, shard: int) -> bool:
        """What a living owner does with a plan; False: it must not."""
        move, owner = self.moves.get(shard), self.shards[shard].owner
        if move is None or owner not in self.workers or move.target not in self.workers:
            return False
        self._put(shard, move.target)
        return True

    def _put(self, shard: int, owner: str) -> None:
        self.mod += 1
        before = self.shards.get(shard)
        self.shards[shard] = ShardSeen(owner, 1 if before is None else before.epoch + 1, self.mod)
        self.moves.pop(shard, None)
        self.stopped.pop(shard, None)
