"""The store: which transactions succeed, what they change, and which can never succeed any more."""

from collections.abc import Iterator, Sequence

from dormouse_testing.session_model.promises import broken, check_applied
from dormouse_testing.session_model.rules import Instance
from dormouse_testing.session_model.states import ABANDONED, Item, State, Txn, put, take, with_ghost, with_record

Successor = tuple[bool, str, State]
"""Whether it happens by itself in the end (fair), or is a fault; what happens; the state behind it."""


def compares_hold(instance: Instance, state: State, items: Sequence[Item]) -> bool:
    rules = instance.rules
    for index, item in enumerate(items):
        shard = instance.shard[item.session]
        fenced = rules.fence and (rules.fence_every_shard or index == 0)
        if fenced and state.entries[shard][1] != item.fence:
            return False
        if rules.record_compare:
            record = state.records[item.session]
            if (record.version if record else 0) != item.base:
                return False
            if rules.floor and item.base == 0 and state.floors[shard][1] != item.floor:
                return False
    return True


def apply(instance: Instance, state: State, items: Sequence[Item]) -> State:
    for item in items:
        s = item.session
        ghost = state.ghosts[s]
        check_applied(instance, ghost, item)
        version = ghost.version + 1
        if item.record is None:
            record = None
            base = ("none", (ghost.base[1] if ghost.base[0] == "none" else 0) + version)
        else:
            record = item.record._replace(version=version)
            base = record.identity
        applied = ghost.applied
        if item.position not in dict(applied):
            applied = tuple(sorted((*applied, (item.position, item.nonce))))
        state = with_record(state, s, record)
        state = with_ghost(state, s, ghost._replace(base=base, applied=applied, version=version))
    return state


def removal_lands(instance: Instance, state: State, index: int, txn: Txn) -> Iterator[Successor]:
    session, fence, version, stamp, ghost_base = txn.payload
    shard = instance.shard[session]
    after = take(state, index)
    record = state.records[session]
    fenced = not instance.rules.fence or state.entries[shard][1] == fence
    if fenced and record is not None and (not instance.rules.record_compare or record.version == version):
        ghost = state.ghosts[session]
        if ghost_base != ghost.base:
            promise = "lost" if ghost.base in ghost.acknowledged else "fork"
            broken(instance, promise, f"the record of session {session} is removed at {ghost.base}, it was read at {ghost_base}")
        after = _without_record(after, session)
        if instance.rules.floor:
            floor, mod = after.floors[shard]
            after = after._replace(floors=put(after.floors, shard, (max(floor, stamp), mod + 1)))
        yield True, f"the removal of s{session} lands", after
    elif instance.alive:
        yield True, f"the removal of s{session} fails", after


def bare_removals(instance: Instance, state: State) -> Iterator[Successor]:
    """A time to live of the store's own."""
    for session, record in enumerate(state.records):
        if record is not None:
            after = _without_record(state, session)
            yield False, f"the store removes s{session}", after._replace(budget=state.budget._replace(removal=state.budget.removal - 1))


def _without_record(state: State, session: int) -> State:
    ghost = state.ghosts[session]
    version = ghost.version + 1
    return with_ghost(with_record(state, session, None), session, ghost._replace(base=("none", version), version=version))


def tidy(instance: Instance, state: State) -> State:
    """Without abandoned transactions that can never succeed: they are one state less each."""
    if any(txn.status == ABANDONED for txn in state.txns):
        kept = tuple(txn for txn in state.txns if txn.status != ABANDONED or not _dead(instance, state, txn))
        if len(kept) != len(state.txns):
            return state._replace(txns=kept)
    return state


def _dead(instance: Instance, state: State, txn: Txn) -> bool:
    rules = instance.rules
    if txn.kind == "commit":
        return any(never(instance, state, item) for item in txn.payload)
    if txn.kind == "handoff":
        shard, fence, _, plan = txn.payload
        return state.entries[shard][1] > fence or (rules.move_compare and state.moves[shard][1] > plan)
    session, fence, version, _, _ = txn.payload
    record = state.records[session]
    passed = rules.fence and state.entries[instance.shard[session]][1] > fence
    return passed or (rules.record_compare and (record is None or record.version != version))


def never(instance: Instance, state: State, item: Item) -> bool:
    """What the item compares has gone by: revisions only rise."""
    rules = instance.rules
    shard = instance.shard[item.session]
    if rules.fence and rules.fence_every_shard and state.entries[shard][1] > item.fence:
        return True
    if not rules.record_compare:
        return False
    record = state.records[item.session]
    if item.base:
        return record is None or record.version != item.base
    return rules.floor and state.floors[shard][1] > item.floor
