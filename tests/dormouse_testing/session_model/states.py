"""One state of the model: nested tuples, so that it can be hashed. Ghosts are what the checker knows and no process does."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from dormouse_testing.session_model.rules import CALLER, Budget, Instance

Execution = tuple[int, int]
"""One run of a call: its position among its session's calls, and the process that ran it."""
Identity = tuple[Any, int]
"""What a record holds: the last execution, or ("none", n) where there is no record for the nth time."""


class Horizons(NamedTuple):
    """At or below its maker's, an unkept key is not run."""

    common: int
    """Of every gateway that is not among `makers`."""
    makers: tuple[tuple[int, int], ...]
    callers: int

    def of(self, maker: int) -> int:
        return self.callers if maker == CALLER else dict(self.makers).get(maker, self.common)

    def raised(self, maker: int, stamp: int, remembered: int) -> "Horizons":
        """A key of `maker` was evicted."""
        if maker == CALLER:
            return self._replace(callers=max(self.callers, stamp))
        others = [pair for pair in self.makers if pair[0] != maker]
        makers = sorted([*others, (maker, max(self.of(maker), stamp))], key=lambda pair: (pair[1], pair[0]))
        common = self.common
        while len(makers) > remembered:
            common = max(common, makers.pop(0)[1])
        return Horizons(common, tuple(makers), self.callers)


class Record(NamedTuple):
    version: int
    """Its mod_revision; 0 in a commit that is on its way."""
    identity: Identity
    kept: tuple[Execution, ...]
    horizons: Horizons
    newest: int
    live: bool
    """False: a tombstone."""


class Item(NamedTuple):
    """One session's part of a commit."""

    session: int
    fence: int
    base: int
    """The record's version that it was built on; 0: it creates."""
    floor: int
    record: Record | None
    """None: it deletes, where there are no tombstones."""
    ghost_base: Identity
    position: int
    nonce: int


class Cache(NamedTuple):
    """A session in a worker's memory."""

    record: Record | None
    ghost_base: Identity
    floor_version: int
    floor_stamp: int


class Run(NamedTuple):
    sent: bool
    item: Item


class Worker(NamedTuple):
    fences: tuple[int | None, ...]
    """By shard; None: not owned."""
    caches: tuple[Cache | None, ...]
    runs: tuple[Run | None, ...]
    incarnation: int


WAITED, ABANDONED, LANDED = "waited for", "abandoned", "landed"


class Txn(NamedTuple):
    """A message to the store, or, once it landed, its answer. `kind`: commit, handoff or removal."""

    kind: str
    worker: int
    incarnation: int
    payload: Any
    status: str


class Ghost(NamedTuple):
    """The truth about a session."""

    base: Identity
    applied: tuple[Execution, ...]
    acknowledged: tuple[Execution, ...]
    version: int


class State(NamedTuple):
    entries: tuple[tuple[int, int, int], ...]
    """By shard: owner, mod_revision, epoch."""
    moves: tuple[tuple[int | None, int], ...]
    """By shard: planned owner, mod_revision."""
    floors: tuple[tuple[int, int], ...]
    """By shard: timestamp, mod_revision."""
    records: tuple[Record | None, ...]
    ghosts: tuple[Ghost, ...]
    workers: tuple[Worker, ...]
    txns: tuple[Txn, ...]
    network: tuple[tuple[int, int], ...]
    """Copies of calls on their way: session, position."""
    clients: tuple[tuple[int, int], ...]
    """By session: the call that its client waits for, and how often it was sent."""
    leaders: tuple[tuple[tuple[int, int, int] | None, ...], ...]
    """By leader and shard: the entry as it read it, where leaders write without comparing."""
    budget: Budget


def put(row: tuple[Any, ...], index: int, value: Any) -> tuple[Any, ...]:
    return (*row[:index], value, *row[index + 1 :])


def bag(items: Iterable[Any]) -> tuple[Any, ...]:
    """In one order, whichever way they came together."""
    return tuple(sorted(items, key=hash))


def name(instance: Instance, worker: int, incarnation: int) -> int:
    """What the map calls a process."""
    return worker + 10 * incarnation if instance.rules.process_identity else worker


def initial(instance: Instance) -> State:
    nobody = Worker((None,) * instance.shards, (None,) * instance.sessions, (None,) * instance.sessions, 0)
    return State(
        entries=((name(instance, 0, 0), 1, 1),) * instance.shards,
        moves=((None, 0),) * instance.shards,
        floors=((0, 0),) * instance.shards,
        records=(None,) * instance.sessions,
        ghosts=(Ghost(("none", 0), (), (), 0),) * instance.sessions,
        workers=(nobody,) * instance.workers,
        txns=(),
        network=bag((session, 0) for session in range(instance.sessions)),
        clients=((0, 1),) * instance.sessions,
        leaders=((None,) * instance.shards,) * instance.leaders,
        budget=instance.budget,
    )


def spend(state: State, what: str) -> State:
    return state._replace(budget=state.budget._replace(**{what: getattr(state.budget, what) - 1}))


def with_worker(state: State, index: int, worker: Worker) -> State:
    return state._replace(workers=put(state.workers, index, worker))


def with_ghost(state: State, session: int, ghost: Ghost) -> State:
    return state._replace(ghosts=put(state.ghosts, session, ghost))


def with_record(state: State, session: int, record: Record | None) -> State:
    return state._replace(records=put(state.records, session, record))


def add(state: State, txn: Txn) -> State:
    return state._replace(txns=bag((*state.txns, txn)))


def take(state: State, index: int) -> State:
    return state._replace(txns=state.txns[:index] + state.txns[index + 1 :])


def drop_session(state: State, worker: int, session: int) -> State:
    """Out of the worker's memory, with whatever ran."""
    it = state.workers[worker]
    return with_worker(state, worker, it._replace(caches=put(it.caches, session, None), runs=put(it.runs, session, None)))


def drop_shard(instance: Instance, state: State, worker: int, shard: int, fence: int | None) -> State:
    """The shard's memory is emptied; `fence`: the one that it has from now on."""
    it = state.workers[worker]
    caches = tuple(None if instance.shard[s] == shard else cache for s, cache in enumerate(it.caches))
    runs = tuple(None if instance.shard[s] == shard else run for s, run in enumerate(it.runs))
    return with_worker(state, worker, it._replace(fences=put(it.fences, shard, fence), caches=caches, runs=runs))
