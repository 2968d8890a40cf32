"""The leader's view of every function: the store's map and registry as the mirrors copy them, with what workers and the provider say.

The mirrors call `map_changed` and `function_changed` for every key; parsing happens there, once a change, so that a snapshot is a copy of
dictionaries. A value that does not parse is one item's trouble: it is logged and left out, as if it were not there.
"""

import itertools
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from dormouse_core import addresses, entries, releases
from dormouse_core.keys import Function, Keys, function_of, named, number
from dormouse_core.observations import FunctionSeen, MoveSeen, ShardSeen, WorkerSeen
from dormouse_core.reaching import Reaches
from dormouse_core.seams import Clock, Instance, Item
from dormouse_core.starving import Starving
from dormouse_core.strangers import Serves, strangers
from dormouse_kit import log
from dormouse_proto import control_pb2, state_pb2

from dormouse_operator.function_entries import marked
from dormouse_operator.links import Links

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
    claims: dict[str, "_Claim"] = field(default_factory=dict)  # every worker's entry, whether it is believed or not
    stopped: dict[tuple[str, int], float] = field(default_factory=dict)  # (worker, shard) -> since when, monotonic


@dataclass(slots=True)
class _Claim:
    """A worker's entry as it stands in the store."""

    function: Function
    entry: state_pb2.WorkerEntry
    created: int
    since: float  # monotonic: first seen with this address
    ruled: str = ""  # by `addresses.Rule`
    refusal: str | None = ""  # as `addresses.vouched`


Vouch = Callable[[Function, state_pb2.WorkerEntry, float], str | None]
"""Of a worker's entry, and the seconds since it was first seen: as `addresses.vouched`."""
MOST_REFUSED = 1000  # entries that gateways are told of
SECONDS_BETWEEN = 60.0  # between two lines of the log about entries of one function that are refused


class View:
    """`changed(uid)` is called when a function's snapshot may differ; `links` are opened and dropped as workers come and go. `ending`: uids
    of functions that are being deleted although their entries do not say so. `rule`, `vouch`: which workers' entries are believed; others
    are as if they were not there. `serves`: where an instance that is not registered is a stranger."""

    def __init__(
        self,
        keys: Keys,
        clock: Clock,
        changed: Callable[[str], None],
        ending: Collection[str] = (),
        *,
        rule: addresses.Rule | None = None,
        vouch: Vouch = lambda function, entry, waited: "",
        serves: Serves = lambda namespace: True,
    ) -> None:
        self._rule = rule
        self._serves = serves
        self._vouch = vouch
        self._told: dict[str, float] = {}  # uid -> when the log last said that an entry of it is refused
        self._keys = keys
        self._ending = ending
        self._clock = clock
        self._changed = changed
        self._maps: dict[str, _Map] = {}
        self._uid_of_worker: dict[str, str] = {}
        self.functions: dict[str, Registered] = {}  # by uid
        self.gateways: dict[str, str] = {}  # agent -> address, for those with a lease
        self.gateway_nodes: dict[str, str] = {}  # agent -> node, for those of them that say it
        self.unreadable: set[str] = set()  # keys of functions' entries that cannot be read: whose they are is not known
        self._instances: Sequence[Instance] | None = None
        self._instances_of: dict[str, list[Instance]] = {}  # by uid
        self._wait_for_a_node: set[str] = set()  # uids
        self.links: Links | None = None
        self.reaches = Reaches()
        self.starving = Starving()

    @property
    def instances(self) -> Sequence[Instance] | None:
        """Of all functions; None: not known."""
        return self._instances

    @instances.setter
    def instances(self, found: Sequence[Instance] | None) -> None:
        self._instances = found
        self._instances_of = {}
        for instance in found or ():
            self._instances_of.setdefault(instance.uid, []).append(instance)
        self._wait_for_a_node = {instance.uid for instance in found or () if instance.room == "node" and not instance.stopping}

    def wait_for_a_node(self, besides: str) -> bool:
        """Whether a worker of another function finds no room on any node."""
        return bool(self._wait_for_a_node - {besides})

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
            function = function_of(new)
            self.functions[new.uid] = Registered(function, new, after.mod_revision, after.create_revision)
            self._changed(new.uid)

    def gateway_changed(self, key: str, before: Item | None, after: Item | None) -> None:
        agent = key.removeprefix(self._keys.gateways)
        if after is None:
            self.gateways.pop(agent, None)
            self.gateway_nodes.pop(agent, None)
        else:
            try:
                entry = entries.parse(state_pb2.GatewayEntry, after)
                self.gateways[agent], self.gateway_nodes[agent] = entry.address, entry.node
            except entries.Unreadable as error:
                log.warning("an entry cannot be read", key=key, error=str(error))
                self.gateway_nodes.pop(agent, None)
                self.gateways[agent] = ""  # an agent all the same: what it holds is unknown until it is heard
        for table in self._maps.values():
            for claim in table.claims.values():
                claim.ruled = self._ruled(claim.entry)

    def map_changed(self, key: str, before: Item | None, after: Item | None) -> None:
        parts = key.removeprefix(self._keys.maps).split("/", 4)
        if len(parts) != 5:
            log.warning("an unknown key is ignored", key=key)
            return
        namespace, function, uid, kind, name = parts
        table = self._maps.setdefault(uid, _Map())
        try:
            if kind == "workers":
                self._worker_changed(Function(namespace, function, uid), table, name, after)
            elif kind == "shards":
                _put(table.shards, _number(name), after, _shard)
            elif kind == "moves":
                _put(table.moves, _number(name), after, _move)
        except entries.Unreadable as error:
            log.warning("an entry cannot be read", key=key, error=str(error))
        if not (table.claims or table.shards or table.moves):
            self._maps.pop(uid, None)
            self._told.pop(uid, None)
        self._changed(uid)

    def _worker_changed(self, function: Function, table: _Map, name: str, after: Item | None) -> None:
        if after is None:
            table.claims.pop(name, None)
            self._leave(table, name)
            return
        if not named(name):
            raise entries.Unreadable(f"{name!r} is not a worker's name")
        entry = entries.parse(state_pb2.WorkerEntry, after)
        before = table.claims.get(name)
        same = before is not None and (before.entry.address, before.entry.instance) == (entry.address, entry.instance)
        since = before.since if before is not None and same else self._clock.monotonic()
        if before is not None and not same:
            self._leave(table, name)
        table.claims[name] = _Claim(function, entry, after.create_revision, since, self._ruled(entry))
        self._judge(table, name)
        if entry.killed.why == state_pb2.WorkerEntry.Killed.MEMORY and name in table.workers:
            self.starving.worker(function.uid, name, self._clock.now())

    def _ruled(self, entry: state_pb2.WorkerEntry) -> str:
        return "" if self._rule is None else self._rule.refusal(entry.address, self.gateways.values())

    def _judge(self, table: _Map, name: str) -> None:
        """Believes an entry or does not: nobody connects to what is not believed, and its function has a worker less."""
        assert self.links is not None
        claim = table.claims[name]
        refusal = (
            releases.refusal(claim.entry) or claim.ruled or self._vouch(claim.function, claim.entry, self._clock.monotonic() - claim.since)
        )
        claim.refusal = refusal
        if refusal == "":
            table.workers[name] = (claim.entry, claim.created)
            self._uid_of_worker[name] = claim.function.uid
            self.links.follow(name, claim.entry.address)
            return
        self._leave(table, name)
        now = self._clock.monotonic()
        if refusal and now - self._told.get(claim.function.uid, -SECONDS_BETWEEN) >= SECONDS_BETWEEN:
            self._told[claim.function.uid] = now
            log.warning("a worker's entry is refused", function=claim.function.label, worker=name, reason=refusal)

    def _leave(self, table: _Map, name: str) -> None:
        """There is no such worker, or no longer."""
        assert self.links is not None
        if table.workers.pop(name, None) is None:
            return
        self._uid_of_worker.pop(name, None)
        for key in [k for k in table.stopped if k[0] == name]:
            del table.stopped[key]
        self.links.drop(name)

    def judge_again(self, *, believed: bool = True) -> None:
        """To be called when a pod changed, and now and then. `believed`: those too that are."""
        for uid, table in self._maps.items():
            before = set(table.workers)
            for name in [name for name in table.claims if believed or name not in table.workers]:
                self._judge(table, name)
            if before != table.workers.keys():
                self._changed(uid)

    def refused(self) -> list[control_pb2.AgentOrder.Try]:
        """Entries that gateways are not to believe. One that is not judged yet is none."""
        found = (
            control_pb2.AgentOrder.Try(worker=name, address=claim.entry.address)
            for table in self._maps.values()
            for name, claim in table.claims.items()
            if claim.refusal
        )
        return list(itertools.islice(found, MOST_REFUSED))

    # ------------------------------------------------------------------------------------------------------------ from workers

    def uid_of(self, worker: str) -> str | None:
        return self._uid_of_worker.get(worker)

    def workers(self, uid: str) -> Collection[str]:
        """The names of the function's workers whose leases live."""
        return self._maps.get(uid, _EMPTY).workers.keys()

    def registered(self) -> set[tuple[str, str]]:
        """The uid and the instance of every worker whose lease lives: it has loaded its model."""
        return {(uid, entry.instance) for uid, table in self._maps.items() for entry, _ in table.workers.values()}

    def leased(self) -> set[tuple[str, str]]:
        """The uid and the instance of every entry of a worker, whether it is believed or not."""
        return {(uid, claim.entry.instance) for uid, table in self._maps.items() for claim in table.claims.values()}

    def reporting(self) -> set[tuple[str, str]]:
        """The same of those whose reports come."""
        found = ((uid, name, entry.instance) for uid, table in self._maps.items() for name, (entry, _) in table.workers.items())
        return {(uid, instance) for uid, name, instance in found if self.report(name) is not None}

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
        instances = None if self.instances is None else tuple(self._instances_of.get(uid, ()))
        return FunctionSeen(
            entry=marked(registered.entry) if uid in self._ending else registered.entry,
            entry_mod=registered.mod,
            entry_created=registered.created,
            workers={name: self._worker(name, entry, created, registered.entry) for name, (entry, created) in table.workers.items()},
            shards=dict(table.shards),
            moves=dict(table.moves),
            stopped=stopped,
            instances=instances,
            starved=self.starving.of(uid, self._clock.now()),
            outdated=[releases.problem(claim.entry) for claim in table.claims.values() if releases.refusal(claim.entry)],
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
        return [] if self.unreadable else strangers(self.instances or (), self.functions, self._serves)

    def _worker(self, name: str, entry: state_pb2.WorkerEntry, created: int, function: state_pb2.FunctionEntry) -> WorkerSeen:
        assert self.links is not None
        return WorkerSeen(
            name=name,
            address=entry.address,
            revision=entry.revision,
            instance=entry.instance,
            draining=entry.state == state_pb2.WorkerEntry.DRAINING,
            created=created,
            elsewhere=(entry.store_id or function.uid) != (function.store_id or function.uid),
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


def _number(name: str) -> int:
    found = number(name)
    if found is None:
        raise entries.Unreadable(f"{name!r} is not a shard's number")
    return found


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
