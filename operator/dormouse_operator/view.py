"""The leader's view of every function: the store's map and registry as the mirrors copy them, with what workers and the provider say.

The mirrors call `map_changed` and `function_changed` for every key; parsing happens there, once a change, so that a snapshot is a copy of
dictionaries. A value that does not parse is one item's trouble: it is logged and left out, as if it were not there.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from dormouse_core import entries
from dormouse_core.keys import Function, Keys
from dormouse_core.observations import FunctionSeen, MoveSeen, ShardSeen, WorkerSeen
from dormouse_core.reaching import Reaches
from dormouse_core.seams import Clock, Instance, Item
from dormouse_kit import log
from dormouse_proto import control_pb2, state_pb2

from dormouse_operator.links import Links
from dormouse_operator.registering import marked

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Registered:
    """A function as its entry says."""

    function: Function
    entry: state_pb2.FunctionEntry
    mod: int
    created: int


@dataclass(slots=True)
class _Map:
    """map/{F}/ of one uid. Workers are as their entries say; what their streams say is joined when a snapshot is taken."""

    workers: dict[str, tuple[state_pb2.WorkerEntry, int]] = field(default_factory=dict)
    shards: dict[int, ShardSeen] = field(default_factory=dict)
    moves: dict[int, MoveSeen] = field(default_factory=dict)
    stopped: dict[tuple[str, int], float] = field(default_factory=dict)  # (worker, shard) -> since when, monotonic


class View:
    """`changed(uid)` is called when a function's snapshot may differ; `links` are opened and dropped as workers come and go. `ending`: uids
    of functions that are being deleted although their entries do not say so."""

    def __init__(self, keys: Keys, clock: Clock, changed: Callable[[str], None], ending: Collection[str] = ()) -> None:
        self._keys = keys
        self._ending = ending
        self._clock = clock
        self._changed = changed
        self._maps: dict[str, _Map] = {}
        self._uid_of_worker: dict[str, str] = {}
        self.functions: dict[str, Registered] = {}  # by uid
        self.gateways: dict[str, str] = {}  # agent -> address, for those with a lease
        self.unreadable: set[str] = set()  # keys of functions' entries that cannot be read: whose they are is not known
        self.instances: Sequence[Instance] | None = None
        self.links: Links | None = None
        self.reaches = Reaches()

    # ------------------------------------------------------------------------------------------------------------ from the store

    def function_changed(self, key: str, before: Item | None, after: Item | None) -> None:
        old = None if before is None else _entry(before)
        new = None if after is None else _entry(after)
        if after is not None and new is None:
            self.unreadable.add(key)
        else:
            self.unreadable.discard(key)
        if old is not None and (new is None or new.uid != old.uid):
            self.functions.pop(old.uid, None)
            self._changed(old.uid)
        if new is not None and after is not None:
            function = Function(new.namespace, new.name, new.uid)
            self.functions[new.uid] = Registered(function, new, after.mod_revision, after.create_revision)
            self._changed(new.uid)

    def gateway_changed(self, key: str, before: Item | None, after: Item | None) -> None:
        agent = key.removeprefix(self._keys.gateways)
        if after is None:
            self.gateways.pop(agent, None)
        else:
            try:
                self.gateways[agent] = entries.parse(state_pb2.GatewayEntry, after).address
            except entries.Unreadable as error:
                log.warning("an entry cannot be read", key=key, error=str(error))
                self.gateways[agent] = ""  # an agent all the same: what it holds is unknown until it is heard

    def map_changed(self, key: str, before: Item | None, after: Item | None) -> None:
        parts = key.removeprefix(self._keys.maps).split("/", 4)
        if len(parts) != 5:
            log.warning("a key that is none of ours", key=key)
            return
        _, _, uid, kind, name = parts
        table = self._maps.setdefault(uid, _Map())
        try:
            if kind == "workers":
                self._worker_changed(uid, table, name, after)
            elif kind == "shards":
                _put(table.shards, int(name), after, _shard)
            elif kind == "moves":
                _put(table.moves, int(name), after, _move)
        except (entries.Unreadable, ValueError) as error:
            log.warning("an entry cannot be read", key=key, error=str(error))
        if not (table.workers or table.shards or table.moves):
            self._maps.pop(uid, None)
        self._changed(uid)

    def _worker_changed(self, uid: str, table: _Map, name: str, after: Item | None) -> None:
        assert self.links is not None
        if after is None:
            table.workers.pop(name, None)
            self._uid_of_worker.pop(name, None)
            for key in [k for k in table.stopped if k[0] == name]:
                del table.stopped[key]
            self.links.drop(name)
            return
        entry = entries.parse(state_pb2.WorkerEntry, after)
        table.workers[name] = (entry, after.create_revision)
        self._uid_of_worker[name] = uid
        self.links.follow(name, entry.address)

    # ------------------------------------------------------------------------------------------------------------ from workers

    def uid_of(self, worker: str) -> str | None:
        return self._uid_of_worker.get(worker)

    def workers(self, uid: str) -> Collection[str]:
        """The names of the function's workers whose leases live."""
        return self._maps.get(uid, _EMPTY).workers.keys()

    def owner(self, uid: str, shard: int) -> str:
        """'': nobody, as far as is known."""
        found = self._maps.get(uid, _EMPTY).shards.get(shard)
        return found.owner if found else ""

    def report(self, worker: str) -> control_pb2.WorkerReport | None:
        """The latest that still says something of now."""
        return self.links.report(worker) if self.links is not None else None

    def heard(self, worker: str, report: control_pb2.WorkerReport) -> None:
        """Notes since when a shard is stopped: from the first report that said so, by this leader's clock (workers' clocks may be off)."""
        uid = self._uid_of_worker.get(worker)
        table = self._maps.get(uid) if uid else None
        if table is None:
            return
        now = self._clock.monotonic()
        stopped = {s.shard for s in report.stopped}
        for key in [k for k in table.stopped if k[0] == worker and k[1] not in stopped]:
            del table.stopped[key]
        for shard in stopped:
            table.stopped.setdefault((worker, shard), now)

    # ------------------------------------------------------------------------------------------------------------ snapshots

    def seen(self, uid: str) -> FunctionSeen | None:
        registered = self.functions.get(uid)
        if registered is None:
            return None
        table = self._maps.get(uid, _EMPTY)
        stopped = {
            shard: since
            for (worker, shard), since in table.stopped.items()
            if shard in table.shards and table.shards[shard].owner == worker
        }
        instances = None if self.instances is None else tuple(i for i in self.instances if i.uid == uid)
        return FunctionSeen(
            entry=marked(registered.entry) if uid in self._ending else registered.entry,
            entry_mod=registered.mod,
            entry_created=registered.created,
            workers={name: self._worker(name, entry, created) for name, (entry, created) in table.workers.items()},
            shards=dict(table.shards),
            moves=dict(table.moves),
            stopped=stopped,
            instances=instances,
        )

    def tries(self) -> list[control_pb2.AgentOrder.Try]:
        """Workers that a gateway does not reach: every gateway is to try them."""
        found = []
        for name in self.reaches.to_try(self._clock.monotonic()):
            table = self._maps.get(self._uid_of_worker.get(name, ""))
            if table is not None and name in table.workers:
                found.append(control_pb2.AgentOrder.Try(worker=name, address=table.workers[name][0].address))
        return found

    def orphans(self) -> list[str]:
        """Draining workers of functions that are not registered: nobody else will tell them that nobody takes their shards."""
        if self.unreadable:
            return []
        return [
            name
            for uid, table in self._maps.items()
            if uid not in self.functions
            for name, (entry, _) in table.workers.items()
            if entry.state == state_pb2.WorkerEntry.DRAINING
        ]

    def strangers(self) -> list[Instance]:
        """Instances of functions that are not registered. Only to be asked when the registry's copy is complete; while an entry of it
        cannot be read, nobody is a stranger."""
        if self.unreadable:
            return []
        return [i for i in self.instances or () if i.uid not in self.functions and not i.stopping]

    def _worker(self, name: str, entry: state_pb2.WorkerEntry, created: int) -> WorkerSeen:
        assert self.links is not None
        return WorkerSeen(
            name=name,
            address=entry.address,
            revision=entry.revision,
            instance=entry.instance,
            draining=entry.state == state_pb2.WorkerEntry.DRAINING,
            created=created,
            gone=self.links.gone(name),
            report=self.links.report(name),
            unreachable=self.reaches.seconds(name, self.gateways.keys(), self._clock.monotonic()),
        )


_EMPTY = _Map()


def _entry(item: Item) -> state_pb2.FunctionEntry | None:
    try:
        return entries.parse(state_pb2.FunctionEntry, item)
    except entries.Unreadable as error:
        log.warning("a function's entry cannot be read", key=item.key, error=str(error))
        return None


def _put(table: dict[int, T], shard: int, item: Item | None, parse: Callable[[Item], T]) -> None:
    if item is None:
        table.pop(shard, None)
    else:
        table[shard] = parse(item)


def _shard(item: Item) -> ShardSeen:
    try:
        entry = entries.parse(state_pb2.ShardEntry, item)
    except entries.Unreadable as error:
        # Nobody's, so it is given to a worker. Every epoch took a revision of its own, so the revision is above all that there were.
        log.warning("an entry cannot be read", key=item.key, error=str(error))
        return ShardSeen("", item.mod_revision, item.mod_revision)
    return ShardSeen(entry.owner, entry.epoch, item.mod_revision)


def _move(item: Item) -> MoveSeen:
    try:
        return MoveSeen(entries.parse(state_pb2.Move, item).target, item.mod_revision)
    except entries.Unreadable as error:
        log.warning("an entry cannot be read", key=item.key, error=str(error))
        return MoveSeen("", item.mod_revision)  # to nobody, so it is taken back
