"""What is seen of one function at one moment: the only input of `coordination` and `lifecycle`, so that a decision can be printed,
tested and repeated.

A worker that has a lease and has not been heard is not a worker without work: `report` is None and whoever decides must treat what it
would have said as unknown.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dormouse_proto import control_pb2, state_pb2

from dormouse_core import limits
from dormouse_core.seams import Instance


@dataclass(frozen=True, slots=True)
class WorkerSeen:
    """A worker whose lease lives."""

    name: str
    address: str
    revision: str
    instance: str
    draining: bool = False  # by its own entry
    created: int = 0  # create_revision of its entry
    elsewhere: bool = False  # it keeps sessions under another store id than the function: what it saved nobody else would find
    gone: bool = False  # its control stream broke and a new one was refused: the process is dead, whatever the lease says
    report: control_pb2.WorkerReport | None = None  # the latest; None: not heard, or not lately
    unreachable: float = 0.0  # seconds for which more than half of the gateways could not connect to it; 0: they can, or that is not known

    @property
    def serving(self) -> bool:
        """It takes calls, as far as is known. One that has just registered has loaded its model and needs no report to say so."""
        if self.draining or self.gone or self.elsewhere:
            return False
        return self.report is None or (self.report.ready and not self.report.draining)

    @property
    def cut_off(self) -> bool:
        """It lives and is heard, and gateways cannot send it calls. One that is not heard either is judged by its lease: it may be busy."""
        return self.report is not None and not self.gone and self.unreachable >= limits.UNREACHABLE_SECONDS

    @property
    def heard_ready(self) -> bool:
        return self.serving and self.report is not None


@dataclass(frozen=True, slots=True)
class ShardSeen:
    owner: str
    epoch: int
    mod: int


@dataclass(frozen=True, slots=True)
class MoveSeen:
    target: str
    mod: int


@dataclass(frozen=True, slots=True)
class End:
    """Of a worker that the kernel ended for want of memory. `name`: its own, or its instance's. `at`: wall time in seconds."""

    name: str
    at: float
    container: bool
    """All of its container ended with it, and nobody in it could say so."""


@dataclass(frozen=True, slots=True)
class FunctionSeen:
    """One function: its entry, its part of the map, its workers' reports, its instances."""

    entry: state_pb2.FunctionEntry
    entry_mod: int
    entry_created: int
    workers: Mapping[str, WorkerSeen] = field(default_factory=dict)
    shards: Mapping[int, ShardSeen] = field(default_factory=dict)
    moves: Mapping[int, MoveSeen] = field(default_factory=dict)
    stopped: Mapping[int, float] = field(default_factory=dict)  # shard -> when its owner said it stopped, monotonic; of the present entry
    instances: Sequence[Instance] | None = None  # of this uid; None: the provider does not say now
    starved: Sequence[End] = ()  # what the kernel lately ended for want of memory, the latest last

    outdated: Sequence[state_pb2.Problem] = ()  # of workers of releases that are spoken with no more

    @property
    def proved(self) -> bool:
        """A worker of the target revision has loaded the model. From then on nothing goes back to another revision."""
        return self.entry.proved_revision == self.entry.revision

    @property
    def serving_revision(self) -> str:
        """The revision whose workers answer calls: the wanted one, or while it is not proved the one that was."""
        return self.entry.revision if self.proved or not self.entry.proved_spec else self.entry.proved_revision

    @property
    def served_revision(self) -> str:
        """The revision whose answers callers get: one that a worker has loaded. Empty: there is none yet."""
        return self.serving_revision if self.proved or self.entry.proved_spec else ""

    def of(self, revision: str) -> list[WorkerSeen]:
        return [w for w in self.workers.values() if w.revision == revision]

    def of_target(self) -> list[WorkerSeen]:
        return self.of(self.entry.revision)
