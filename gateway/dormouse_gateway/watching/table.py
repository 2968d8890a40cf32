"""What the store says of functions, their workers and their shards, and what a gateway may conclude from it. Pure.

`Function` is one function at one moment, made from the watched table or from a linearizable read: both are judged by the same code. A shard
whose entry names a worker without a lease is nobody's (at zero, entries go on naming dead workers). One entry that cannot be read fails
alone: the others are routed.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from dormouse_core import addresses, choosing, deaths, spec
from dormouse_core.errors import Code, DeadlineExceeded, DormouseError, FailedPrecondition, NotFound, Unavailable
from dormouse_core.keys import Function as Identity
from dormouse_core.keys import Keys, named, number
from dormouse_core.seams import Event, Item
from dormouse_core.spec.objects import FunctionSpec
from dormouse_proto import state_pb2
from google.protobuf.message import DecodeError

from dormouse_gateway.envoy.resources import MAX_HOSTS, Route

_T = TypeVar("_T", state_pb2.WorkerEntry, state_pb2.ShardEntry, state_pb2.FunctionEntry)


@dataclass(frozen=True, slots=True)
class Worker:
    name: str
    address: str
    revision: str
    draining: bool
    killed: Mapping[str, str] = field(default_factory=dict)
    """The calls that ran when it died, or that its supervisor kills it for, by `dormouse-call`, each with the cause."""
    killed_why: int = deaths.HELD
    killed_alone: bool = False
    """Nothing else was in it."""
    instance: str = ""
    """What its provider calls it."""
    calls: bytes = field(default=b"", repr=False)
    """By which it is known when its steps call functions (`childcalls.proves`)."""


@dataclass(frozen=True, slots=True)
class Shard:
    owner: str
    mod: int


@dataclass(frozen=True, slots=True)
class Function:
    entry: state_pb2.FunctionEntry
    spec: FunctionSpec
    workers: Mapping[str, Worker]
    shards: Mapping[int, Shard]

    @property
    def label(self) -> str:
        return f"{self.entry.namespace}/{self.entry.name}"

    @property
    def stateful(self) -> bool:
        return self.entry.shards > 0

    @property
    def resend(self) -> bool:
        """A call that may have run may be sent again: a step by its key (rule *kept-keys*), a stateless call unless its spec
        forbids it."""
        return self.stateful or self.spec.retry_stateless

    @property
    def rev(self) -> int:
        """A worker whose watch is behind this reads before it refuses (rule *newest-map*)."""
        return max((shard.mod for shard in self.shards.values()), default=0)

    def owner(self, shard: int) -> Worker | None:
        entry = self.shards.get(shard)
        return None if entry is None else self.workers.get(entry.owner)

    def takers(self) -> list[Worker]:
        """Workers that take stateless calls."""
        serving = (worker for worker in self.workers.values() if not worker.draining)
        return choosing.takers(serving, self.entry.revision, self.entry.proved_revision)

    def served(self) -> bool:
        """Somebody serves, so that a problem of the wanted revision need not concern callers."""
        return any(not worker.draining for worker in self.workers.values()) if self.stateful else bool(self.takers())

    def killer(self, call: str) -> DormouseError | None:
        """What the sender of this call is told where a worker was killed for it: sent again, it would be the next one's death."""
        for worker in self.workers.values():
            if worker.killed_why == deaths.HELD and call and call in worker.killed:
                return DeadlineExceeded(f"{worker.killed[call]}; what this call changed is not committed, and it is not sent again")
        return None

    def died_under(self, call: str) -> dict[str, tuple[int, str, bool]]:
        """Workers, by name, that died of themselves while this call ran in them: why (`dormouse_core.deaths`), in words, and whether it was
        all that was in it."""
        return {
            worker.name: (worker.killed_why, worker.killed[call], worker.killed_alone and len(worker.killed) == 1)
            for worker in self.workers.values()
            if worker.killed_why != deaths.HELD and call and call in worker.killed
        }

    def refusal(self, held: bool = False) -> DormouseError | None:
        """Why no call can be served, however long it waits. While a revision that was proved can be started, a newer one's problem is no
        reason. `held`: of a call that may wait: that workers of a revision that was proved end, and nobody says why, is none either,
        for what ended them may have been other calls, and the next worker serves this one."""
        if self.entry.deleting:
            return NotFound(f"function {self.label} is being deleted")
        if self.spec.replicas == 0:
            return Unavailable(f"function {self.label} is stopped: spec.replicas is 0")
        problem = self.problem()
        if held and problem is not None and problem.mute and self.entry.proved_revision == self.entry.revision:
            return None
        if problem is not None and not self.served() and not self.entry.proved_spec:
            text = f"function {self.label} cannot be served: {problem.message} ({problem.reason})"
            return FailedPrecondition(text) if problem.code == Code.FAILED_PRECONDITION else Unavailable(text)
        return None

    def problem(self) -> state_pb2.Problem | None:
        """The wanted revision's problem, as far as the leader knows."""
        if self.entry.HasField("problem") and self.entry.problem.revision in ("", self.entry.revision):
            return self.entry.problem
        return None

    def route(self) -> Route | None:
        """What Envoy is to do with calls; None: send them all to the relay."""
        if self.entry.deleting:
            return None
        base = Route(self.entry.namespace, self.entry.name, self.entry.uid, (), (), self.rev, self.resend)
        stopped = self.spec.replicas == 0
        if not self.stateful:
            hosts = () if stopped else tuple(sorted({worker.address for worker in self.takers()}))
            return replace(base, hosts=hosts[:MAX_HOSTS])
        owners = [None if stopped else self.owner(shard) for shard in range(self.entry.shards)]
        hosts = tuple(sorted({owner.address for owner in owners if owner is not None}))[:MAX_HOSTS]
        places = {host: place for place, host in enumerate(hosts)}
        return replace(base, hosts=hosts, owners=tuple(-1 if owner is None else places.get(owner.address, -1) for owner in owners))


class Unreadable(ValueError):
    """An item of the store that this release cannot read."""


@dataclass(slots=True)
class Guard:
    """Which workers' entries are believed. `refused`: (worker, address), by the leader's word."""

    rule: addresses.Rule = field(default_factory=addresses.Rule)
    refused: frozenset[tuple[str, str]] = frozenset()


@dataclass(slots=True)
class Map:
    """``map/{F}/`` of one uid. A worker whose address the rule refuses is unreadable: nobody connects to it."""

    guard: Guard
    workers: dict[str, Worker] = field(default_factory=dict)
    shards: dict[int, Shard] = field(default_factory=dict)

    def put(self, kind: str, name: str, item: Item | None) -> None:
        """Raises Unreadable; what was known of that key is then forgotten."""
        if kind == "workers":
            self.workers.pop(name, None)
            if item is not None:
                if not named(name):
                    raise Unreadable(f"{name!r} is not a worker's name")
                self.workers[name] = _worker(name, item, self.guard.rule)
        elif kind == "shards":
            shard = number(name)
            if shard is None:
                raise Unreadable(f"{name!r} is not a shard's number")
            self.shards.pop(shard, None)
            if item is not None:
                self.shards[shard] = Shard(_parse(state_pb2.ShardEntry, item).owner, item.mod_revision)

    def believed(self) -> dict[str, Worker]:
        return {name: worker for name, worker in self.workers.items() if (name, worker.address) not in self.guard.refused}


def _worker(name: str, item: Item, rule: addresses.Rule) -> Worker:
    entry = _parse(state_pb2.WorkerEntry, item)
    if refusal := rule.refusal(entry.address):
        raise Unreadable(refusal)
    killed = dict.fromkeys(entry.killed.calls, entry.killed.cause)
    draining, word = entry.state == state_pb2.WorkerEntry.DRAINING, entry.killed
    return Worker(name, entry.address, entry.revision, draining, killed, int(word.why), word.alone, entry.instance, entry.calls)


def _parse(kind: type[_T], item: Item) -> _T:
    try:
        return kind.FromString(item.value)
    except DecodeError:
        raise Unreadable(f"it is not a {kind.__name__} of this release") from None


def function_of(item: Item, map_: Map | None) -> Function:
    """None: nothing is in its map. Raises Unreadable."""
    entry = _parse(state_pb2.FunctionEntry, item)
    try:
        workers, shards = ({}, {}) if map_ is None else (map_.believed(), dict(map_.shards))
        return Function(entry, spec.spec_from_json(entry.spec), workers, shards)
    except ValueError as wrong:
        raise Unreadable(f"its spec: {wrong}") from None


class Table:
    """The watched copy. `replace` takes a listing, `apply` a watch's events; both return the functions that changed
    and what was unreadable.
    """

    def __init__(self, keys: Keys, guard: Guard | None = None) -> None:
        self._keys = keys
        self.guard = guard or Guard()
        self._entries: dict[str, Item] = {}  # by namespace/name
        self._maps: dict[str, Map] = {}  # by namespace/name/uid
        self._views: dict[str, Function] = {}
        self._listed: set[str] = set()
        self._namespaces: frozenset[str] | None = None  # that have functions; None: to be found
        self.revision = 0  # of the maps

    @property
    def complete(self) -> bool:
        """Both listings were seen: from now on a function that is not here was not there."""
        return {self._keys.functions, self._keys.maps} <= self._listed

    def replace(self, prefix: str, items: Iterable[Item], revision: int) -> tuple[set[str], dict[str, str]]:
        before = self.labels()
        if prefix == self._keys.functions:
            self._entries.clear()
            self._namespaces = None
        else:
            self._maps.clear()
            self.revision = 0  # lower than before where the store came back without its data
        self._listed.add(prefix)
        _, unreadable = self.apply((Event(item.key, item.mod_revision, item) for item in items), prefix, revision)
        self._views.clear()
        return before | self.labels(), unreadable

    def apply(self, events: Iterable[Event], prefix: str, revision: int) -> tuple[set[str], dict[str, str]]:
        changed: set[str] = set()
        unreadable: dict[str, str] = {}
        for event in events:
            try:
                label = self._functions_event(event) if prefix == self._keys.functions else self._maps_event(event)
            except Unreadable as wrong:
                unreadable[event.key] = str(wrong)
                continue
            if label:
                changed.add(label)
        for label in changed:
            self._views.pop(label, None)
        if prefix == self._keys.maps:
            self.revision = max(self.revision, revision)
        return changed, unreadable

    def _functions_event(self, event: Event) -> str:
        label = event.key.removeprefix(self._keys.functions)
        self._namespaces = None
        if event.item is None:
            self._entries.pop(label, None)
            return label
        self._entries[label] = event.item
        function_of(event.item, None)
        return label

    def _maps_event(self, event: Event) -> str:
        parts = event.key.removeprefix(self._keys.maps).split("/")
        if len(parts) != 5 or parts[3] not in ("workers", "shards"):
            return ""
        namespace, name, uid, kind, last = parts
        path = f"{namespace}/{name}/{uid}"
        map_ = self._maps.setdefault(path, Map(self.guard))
        self._views.pop(f"{namespace}/{name}", None)
        map_.put(kind, last, event.item)
        if not map_.workers and not map_.shards:
            del self._maps[path]
        return f"{namespace}/{name}"

    def refuse(self, refused: frozenset[tuple[str, str]]) -> set[str]:
        """The leader's whole word on entries that are not their pods'. The functions that this changes."""
        differ = {worker for worker, _ in refused ^ self.guard.refused}
        self.guard.refused = refused
        changed = {path.rpartition("/")[0] for path, map_ in self._maps.items() if not differ.isdisjoint(map_.workers)} if differ else set()
        for label in changed:
            self._views.pop(label, None)
        return changed

    def labels(self) -> set[str]:
        return set(self._entries)

    def sharing(self, label: str) -> frozenset[str]:
        """The namespaces that have functions, by the label of one; none, where it is not known as one's."""
        return self.namespaces() if label in self._entries else frozenset()

    def namespaces(self) -> frozenset[str]:
        """That have functions."""
        if self._namespaces is None:
            self._namespaces = frozenset(label.partition("/")[0] for label in self._entries)
        return self._namespaces

    def function(self, label: str) -> Function | None:
        """None: not there, or not readable."""
        view = self._views.get(label)
        if view is None:
            item = self._entries.get(label)
            if item is None:
                return None
            try:
                uid = _parse(state_pb2.FunctionEntry, item).uid
                view = self._views[label] = function_of(item, self._maps.get(f"{label}/{uid}"))
            except Unreadable:
                return None
        return view


def read_map(keys: Keys, identity: Identity, items: Iterable[Item], guard: Guard) -> Map:
    """A map from one listing of ``map/{F}/``; what cannot be read is left out."""
    map_ = Map(guard)
    for item in items:
        kind, _, name = item.key.removeprefix(keys.map(identity)).partition("/")
        try:
            map_.put(kind, name, item)
        except Unreadable:
            continue
    return map_
