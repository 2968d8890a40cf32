"""A worker takes up a call: its kept reply, a refusal, or a run and its commit."""

from collections.abc import Iterator

from dormouse_testing.session_model import promises
from dormouse_testing.session_model.rules import END, START, STEP, Instance
from dormouse_testing.session_model.states import (
    WAITED,
    Cache,
    Execution,
    Horizons,
    Item,
    Record,
    Run,
    State,
    Txn,
    add,
    drop_shard,
    put,
    with_worker,
)
from dormouse_testing.session_model.store import Successor


def load(instance: Instance, state: State, session: int) -> Cache:
    record = state.records[session]
    if record is not None and not instance.rules.keys_in_record:
        record = record._replace(kept=())
    floor = state.floors[instance.shard[session]]
    return Cache(record, state.ghosts[session].base, floor[1], floor[0])


def deliveries(instance: Instance, state: State) -> Iterator[Successor]:
    """Every copy on its way, to every worker that could take it."""
    seen: set[tuple[int, int]] = set()
    for index, copy in enumerate(state.network):
        if copy in seen:
            continue
        seen.add(copy)
        session, position = copy
        rest = state._replace(network=state.network[:index] + state.network[index + 1 :])
        for worker, it in enumerate(state.workers):
            if it.runs[session] is not None:
                continue
            if it.fences[instance.shard[session]] is None:
                if instance.alive:
                    yield True, f"w{worker} does not own it, the attempt ends", rest
                continue
            label = f"w{worker} takes up s{session} call {position}"
            for text, after in _turn(instance, state, rest, worker, session, position, label):
                yield "(answer lost)" not in text, text, after
        if instance.alive and position != state.clients[session][0]:
            yield True, "an old attempt ends", rest


def _turn(instance: Instance, before: State, state: State, worker: int, session: int, position: int, label: str) -> promises.Answers:
    """`before`: with the copy still on its way; `state`: without it."""
    rules = instance.rules
    it = state.workers[worker]
    shard = instance.shard[session]
    kind, stamp = instance.calls[session][position], instance.stamps[session][position]
    maker = instance.maker(session, position)
    cache = it.caches[session]
    fresh = cache is None or (cache.record is None and not rules.absence_remembered)
    if fresh or cache is None:
        cache = load(instance, state, session)
        it = it._replace(caches=put(it.caches, session, cache))
        state = with_worker(state, worker, it)
    record = cache.record
    for kept, nonce in record.kept if record else ():
        if kept == position:
            return promises.acknowledge(instance, state, session, position, nonce, f"{label}: kept reply")
    if record is not None and rules.horizon and stamp <= record.horizons.of(maker):
        return promises.unknown(instance, state, session, position, f"{label}: refused, older than the kept keys")
    if record is None and rules.floor and stamp <= cache.floor_stamp:
        return promises.unknown(instance, state, session, position, f"{label}: refused, older than the floor")
    live = record is not None and record.live
    if not live and kind in (STEP, END):
        if rules.absence_confirmed:
            if state.entries[shard][1] != it.fences[shard]:
                return [(f"{label}: it has lost the shard", drop_shard(instance, state, worker, shard, None))]
            if not fresh:
                cache = load(instance, state, session)
                state = with_worker(state, worker, it._replace(caches=put(it.caches, session, cache)))
                if cache.record is not None and cache.record.live:
                    return [(f"{label}: read again, it lives", state._replace(network=before.network))]
        return promises.absent(instance, state, session, position, f"{label}: no such session")
    if kind == START and record is not None and rules.start_order and stamp < record.newest:
        return promises.unknown(instance, state, session, position, f"{label}: refused, a start older than the newest step")
    item = _run(instance, state, worker, session, position, cache)
    if instance.group:
        return [(f"{label}: runs", with_worker(state, worker, it._replace(runs=put(it.runs, session, Run(False, item)))))]
    state = with_worker(state, worker, it._replace(runs=put(it.runs, session, Run(True, item))))
    state = add(state, Txn("commit", worker, it.incarnation, (item,), WAITED))
    if not rules.reply_after_commit:
        return promises.acknowledge(instance, state, session, position, item.nonce, f"{label}, sends its commit, acknowledges")
    return [(f"{label}, sends its commit", state)]


def _run(instance: Instance, state: State, worker: int, session: int, position: int, cache: Cache) -> Item:
    rules = instance.rules
    it = state.workers[worker]
    record = cache.record
    kind, stamp = instance.calls[session][position], instance.stamps[session][position]
    nonce = worker + 10 * it.incarnation
    following: Record | None = None
    if kind != END or rules.tombstone:
        kept = (*(record.kept if record else ()), (position, nonce))
        inherited = cache.floor_stamp if rules.floor_inherited else 0
        horizons = record.horizons if record else Horizons(inherited, (), inherited)
        while len(kept) > instance.kept:
            kept, horizons = _evict(instance, session, kept, horizons)
        newest = max(record.newest if record else 0, stamp) if rules.start_order or rules.floor else 0
        following = Record(0, (position, nonce), kept, horizons, newest, kind != END)
    fence = it.fences[instance.shard[session]]
    assert fence is not None
    floor = cache.floor_version if rules.floor and record is None else 0
    return Item(session, fence, record.version if record else 0, floor, following, cache.ghost_base, position, nonce)


def _evict(instance: Instance, session: int, kept: tuple[Execution, ...], horizons: Horizons) -> tuple[tuple[Execution, ...], Horizons]:
    """Of the maker of the oldest commit, the lowest timestamp."""
    stamps = instance.stamps[session]
    maker = instance.maker(session, kept[0][0])
    out = min((k for k in kept if instance.maker(session, k[0]) == maker), key=lambda k: stamps[k[0]])
    if instance.rules.horizon:
        horizons = horizons.raised(maker, stamps[out[0]], instance.remembered)
    return tuple(k for k in kept if k is not out), horizons
