"""What becomes of a commit, and what its worker makes of it."""

from collections.abc import Iterator

from dormouse_testing.session_model import promises
from dormouse_testing.session_model.rules import Instance
from dormouse_testing.session_model.states import (
    ABANDONED,
    LANDED,
    WAITED,
    Cache,
    Item,
    Run,
    State,
    Txn,
    add,
    bag,
    drop_session,
    drop_shard,
    put,
    spend,
    take,
    with_worker,
)
from dormouse_testing.session_model.store import Successor, apply, compares_hold


def groups(instance: Instance, state: State) -> Iterator[Successor]:
    """A worker sends everything that ran meanwhile in one transaction."""
    for worker, it in enumerate(state.workers):
        items = tuple(run.item for run in it.runs if run is not None and not run.sent)
        if items:
            runs = tuple(None if run is None else Run(True, run.item) for run in it.runs)
            after = with_worker(state, worker, it._replace(runs=runs))
            yield True, f"w{worker} sends {_names(items)} in one commit", add(after, Txn("commit", worker, it.incarnation, items, WAITED))


def landings(instance: Instance, state: State, index: int, txn: Txn) -> Iterator[Successor]:
    """A commit that is on its way: it lands, fails its compares, is given up on, or is doubled."""
    items: tuple[Item, ...] = txn.payload
    waited = txn.status == WAITED
    label = f"the commit of w{txn.worker} {_names(items)}"
    if compares_hold(instance, state, items):
        after = apply(instance, take(state, index), items)
        if waited:
            revisions = tuple(record.version if (record := after.records[item.session]) else 0 for item in items)
            after = add(after, Txn("commit", txn.worker, txn.incarnation, (items, revisions), LANDED))
        yield True, f"{label} lands" + ("" if waited else " late"), after
    elif waited:
        yield True, f"{label} fails its compare", _failed(instance, take(state, index), txn)
    if waited and state.budget.timeout:
        after = state._replace(txns=bag((*state.txns[:index], txn._replace(status=ABANDONED), *state.txns[index + 1 :])))
        yield False, f"w{txn.worker} gives up on {_names(items)}", spend(_given_up(instance, after, txn.worker, items), "timeout")
    if state.budget.duplicate:
        yield False, f"{label} is doubled on the way", spend(add(state, txn._replace(status=ABANDONED)), "duplicate")


def learned(instance: Instance, state: State, index: int, txn: Txn) -> Iterator[Successor]:
    """The answer to a commit that landed reaches its worker, or does not."""
    items, revisions = txn.payload
    outs = [(f"w{txn.worker} learns of its commit", take(state, index))]
    for item, revision in zip(items, revisions, strict=True):
        outs = [(text + more, after) for text, now in outs for more, after in _committed(instance, now, txn.worker, item, revision)]
    for text, after in outs:
        yield "(answer lost)" not in text, text, after
    if state.budget.timeout:
        after = _given_up(instance, take(state, index), txn.worker, items)
        yield False, f"w{txn.worker} never learns of its commit", spend(after, "timeout")


def outcomes_read(instance: Instance, state: State) -> Iterator[Successor]:
    """A worker reads entry and record of a step whose outcome it did not learn."""
    for worker, it in enumerate(state.workers):
        for session, run in enumerate(it.runs):
            if run is None or not run.sent or _under_way(state, worker, run.item):
                continue
            for text, after in _settle(instance, state, worker, session, run.item):
                yield "(answer lost)" not in text, text, after


def _settle(instance: Instance, state: State, worker: int, session: int, item: Item) -> promises.Answers:
    record = state.records[session]
    shard = instance.shard[session]
    moved = instance.rules.fence and state.entries[shard][1] != item.fence
    if (record.identity == item.record.identity if record is not None else False) if item.record else record is None:
        return _committed(instance, state, worker, item, record.version if record else 0, f"w{worker} reads its own write")
    if not moved and (record.version if record else 0) == item.base and _floor_stands(instance, state, item):
        it = state.workers[worker]
        return [(f"w{worker} reads that nothing changed, sends again", add(state, Txn("commit", worker, it.incarnation, (item,), WAITED)))]
    dropped = drop_shard(instance, state, worker, shard, None) if moved else drop_session(state, worker, session)
    if instance.rules.key_looked_up:
        for kept, nonce in record.kept if record else ():
            if kept == item.position:
                return promises.acknowledge(instance, dropped, session, kept, nonce, f"w{worker} reads its call among the kept keys")
        # A record that was removed meanwhile may have held it: then the shard's floor is at or above it.
        maker = instance.maker(session, item.position)
        remembered = record.horizons.of(maker) if record else state.floors[shard][0]
        if instance.stamps[session][item.position] <= remembered:
            return [(f"w{worker} reads that its call is older than what is remembered: not known", dropped)]
    promises.again(instance, state, item)
    return [(f"w{worker} reads that it will not be committed", dropped)]


def _floor_stands(instance: Instance, state: State, item: Item) -> bool:
    return not instance.rules.floor or item.base != 0 or state.floors[instance.shard[item.session]][1] == item.floor


def _under_way(state: State, worker: int, item: Item) -> bool:
    mine = [txn for txn in state.txns if txn.kind == "commit" and txn.worker == worker and txn.status in (WAITED, LANDED)]
    return any(item in (txn.payload[0] if txn.status == LANDED else txn.payload) for txn in mine)


def _committed(instance: Instance, state: State, worker: int, item: Item, revision: int, label: str = "") -> promises.Answers:
    it = state.workers[worker]
    session = item.session
    if it.runs[session] == Run(True, item):
        cache = None if item.record is None else Cache(item.record._replace(version=revision), item.record.identity, 0, 0)
        it = it._replace(caches=put(it.caches, session, cache), runs=put(it.runs, session, None))
        state = with_worker(state, worker, it)
    return promises.acknowledge(instance, state, session, item.position, item.nonce, label)


def _failed(instance: Instance, state: State, txn: Txn) -> State:
    """Failed compares are an unknown outcome: they are read about. Without that rule, what ran is dropped."""
    if instance.rules.outcome_read:
        return state
    for item in txn.payload:
        it = state.workers[txn.worker]
        if it.incarnation == txn.incarnation and it.runs[item.session] == Run(True, item):
            shard = instance.shard[item.session]
            if instance.rules.fence and state.entries[shard][1] != item.fence:
                state = drop_shard(instance, state, txn.worker, shard, None)
            else:
                state = drop_session(state, txn.worker, item.session)
    return state


def _given_up(instance: Instance, state: State, worker: int, items: tuple[Item, ...]) -> State:
    if not instance.rules.outcome_read:
        for item in items:
            if state.workers[worker].runs[item.session] == Run(True, item):
                state = drop_session(state, worker, item.session)
    return state


def _names(items: tuple[Item, ...]) -> str:
    return ", ".join(f"s{item.session} call {item.position}" for item in items)
