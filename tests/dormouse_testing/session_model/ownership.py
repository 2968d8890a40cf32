"""Who owns which shard: acquisitions, handoffs, crashes, and the leader's writes."""

from collections.abc import Iterator

from dormouse_testing.session_model.promises import broken
from dormouse_testing.session_model.rules import Instance
from dormouse_testing.session_model.states import (
    ABANDONED,
    LANDED,
    WAITED,
    State,
    Txn,
    Worker,
    add,
    bag,
    drop_session,
    drop_shard,
    name,
    put,
    spend,
    take,
    with_worker,
)
from dormouse_testing.session_model.store import Successor
from dormouse_testing.session_model.turns import load


def workers(instance: Instance, state: State) -> Iterator[Successor]:
    for worker, it in enumerate(state.workers):
        me = name(instance, worker, it.incarnation)
        for shard, (owner, version, _) in enumerate(state.entries):
            if owner == me and it.fences[shard] != version:
                if instance.rules.entry_before_record:
                    after = drop_shard(instance, state, worker, shard, version)
                else:
                    after = with_worker(state, worker, it._replace(fences=put(it.fences, shard, version)))
                yield True, f"w{worker} acquires shard {shard} at {version}", after
            yield from _handoff(instance, state, worker, shard)
        if state.budget.removal and instance.rules.removal == "fenced":
            yield from _removals(instance, state, worker)
        if state.budget.crash and (any(fence is not None for fence in it.fences) or any(it.runs)):
            yield False, f"w{worker} crashes and starts again", _crashed(instance, state, worker)


def _handoff(instance: Instance, state: State, worker: int, shard: int) -> Iterator[Successor]:
    it = state.workers[worker]
    target, plan = state.moves[shard]
    fence = it.fences[shard]
    busy = any(it.runs[session] for session in range(instance.sessions) if instance.shard[session] == shard)
    if target is not None and fence is not None and not busy:
        txn = Txn("handoff", worker, it.incarnation, (shard, fence, target, plan), ABANDONED)
        if txn not in state.txns:
            yield True, f"w{worker} sends the handoff of shard {shard} to {target}", add(state, txn)


def handoff_lands(instance: Instance, state: State, index: int, txn: Txn) -> Iterator[Successor]:
    shard, fence, target, plan = txn.payload
    _, version, epoch = state.entries[shard]
    after = take(state, index)
    if version == fence and (not instance.rules.move_compare or state.moves[shard][1] == plan):
        if state.moves[shard][0] != target:
            broken(instance, "stale move", f"a handoff to {target}, but the planned owner is {state.moves[shard][0]} by now")
        after = after._replace(entries=put(after.entries, shard, (target, version + 1, epoch + 1)))
        after = after._replace(moves=put(after.moves, shard, (None, state.moves[shard][1] + 1)))
        yield True, f"the handoff of shard {shard} to {target} lands", after
    else:
        yield True, "a handoff fails its compare", after


def _removals(instance: Instance, state: State, worker: int) -> Iterator[Successor]:
    it = state.workers[worker]
    for session, record in enumerate(state.records):
        fence = it.fences[instance.shard[session]]
        if fence is not None and it.runs[session] is None and record is not None:
            payload = (session, fence, record.version, record.newest, state.ghosts[session].base)
            after = add(drop_session(state, worker, session), Txn("removal", worker, it.incarnation, payload, ABANDONED))
            yield False, f"w{worker} sends the removal of s{session}", spend(after, "removal")


def _crashed(instance: Instance, state: State, worker: int) -> State:
    it = state.workers[worker]
    nothing = (None,) * instance.sessions
    state = with_worker(state, worker, Worker((None,) * instance.shards, nothing, nothing, it.incarnation + 1))
    txns = []
    for txn in state.txns:
        if txn.worker == worker and txn.status == LANDED:
            continue
        txns.append(txn._replace(status=ABANDONED) if txn.worker == worker and txn.status == WAITED else txn)
    return spend(state._replace(txns=bag(txns)), "crash")


def early_reads(instance: Instance, state: State) -> Iterator[Successor]:
    """A record that is read before the shard's entry, where that rule is taken away."""
    for worker, it in enumerate(state.workers):
        for session in range(instance.sessions):
            if it.fences[instance.shard[session]] is None and it.caches[session] is None:
                after = with_worker(state, worker, it._replace(caches=put(it.caches, session, load(instance, state, session))))
                yield True, f"w{worker} reads the record of s{session} before the entry", spend(after, "stale")


def leaders(instance: Instance, state: State) -> Iterator[Successor]:
    for shard, (owner, version, epoch) in enumerate(state.entries):
        names = [name(instance, worker, it.incarnation) for worker, it in enumerate(state.workers)]
        dead = instance.rules.process_identity and instance.rules.failover and owner not in names
        if instance.rules.leader_compare:
            if state.budget.reassign or dead:
                for target in names:
                    if target == owner:
                        continue
                    after = state._replace(entries=put(state.entries, shard, (target, version + 1, epoch + 1)))
                    if state.moves[shard][0] is not None:
                        after = after._replace(moves=put(state.moves, shard, (None, state.moves[shard][1] + 1)))
                    label = f"the leader gives shard {shard} to {target} (entry {version + 1})"
                    yield dead, label, after if dead else spend(after, "reassign")
        elif state.budget.reassign:
            yield from _uncompared(instance, state, shard)
        if state.budget.move:
            for target in names:
                if target != owner and state.moves[shard][0] != target:
                    after = state._replace(moves=put(state.moves, shard, (target, state.moves[shard][1] + 1)))
                    yield False, f"the leader plans shard {shard} for {target}", spend(after, "move")


def _uncompared(instance: Instance, state: State, shard: int) -> Iterator[Successor]:
    """Several leaders that read, and then put whatever the entry is by then."""
    entry = state.entries[shard]
    for leader, read in enumerate(state.leaders):
        if read[shard] != entry:
            yield True, f"leader {leader} reads shard {shard}", state._replace(leaders=put(state.leaders, leader, put(read, shard, entry)))
        known = read[shard]
        if known is None:
            continue
        owner, _, epoch = known
        for target in range(instance.workers):
            if target == owner:
                continue
            if epoch + 1 <= entry[2]:
                broken(instance, "epoch", f"leader {leader} puts epoch {epoch + 1} over epoch {entry[2]}")
            after = state._replace(entries=put(state.entries, shard, (target, entry[1] + 1, epoch + 1)))
            after = after._replace(leaders=put(after.leaders, leader, put(read, shard, None)))
            yield False, f"leader {leader} gives shard {shard} to {target}, epoch {epoch + 1}", spend(after, "reassign")
