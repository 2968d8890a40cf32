"""Which worker should own which shard, and what has to be written for it.

Reading order (rules *failover* and *handoff*):

1. A shard that has no entry is assigned; one whose owner is dead (no lease, or a broken stream and a refused new one) fails over, at once.
2. A shard whose owner lives moves only by its owner's hand: the coordinator plans, the owner hands off. Only when the owner said that it
   stopped and two seconds passed without a handoff does the coordinator take the shard away.
3. Receivers are the workers of the target revision once that revision is proved, the old ones before. So a wobble of a new revision never
   brings an old one back; calls are held meanwhile.
4. While the target revision is not proved, or fewer of its workers are ready than are wanted, healthy owners of the old one keep what
   they have.
5. An owner that the leader hears and gateways do not reach is planned away like one that drains, to one that they reach, if there is one;
   what it has not handed over some time later fails over: it can answer nobody.
6. A draining worker whose shards nobody can take, and nobody is coming to take, is told so.

Every action is a comparison with what was read (`dormouse_core.transactions`), so a decision made on an old snapshot does nothing
(rule *leader-compares*).
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from dormouse_core import choosing, limits, placement
from dormouse_core.observations import FunctionSeen, WorkerSeen

HANDOFF_DEADLINE = limits.HANDOFF_DEADLINE_SECONDS  # from the stop that the owner reported (rule *handoff*)


@dataclass(frozen=True, slots=True)
class Assign:
    """Shards that never had an owner."""

    target: str
    shards: tuple[int, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Failover:
    """Shards whose owner is dead or did not hand off in time."""

    target: str
    shards: tuple[int, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """Shards that their owners are asked to hand to `target`."""

    target: str
    shards: tuple[int, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Cancel:
    """Plans that lead nowhere any more; the owners stay."""

    shards: tuple[int, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class NoTaker:
    """Tell a draining worker to commit everything and leave."""

    worker: str
    reason: str


Action = Assign | Failover | Plan | Cancel | NoTaker


def receivers(seen: FunctionSeen) -> list[WorkerSeen]:
    """Who may be given shards, in the order of their names."""
    able = sorted((w for w in seen.workers.values() if w.serving), key=lambda w: w.name)
    found = choosing.receivers(able, seen.entry.revision, is_proved=seen.proved)
    return [w for w in found if not w.cut_off] or found  # where none is reached, nothing is gained by a move


def coordinate(seen: FunctionSeen, now: float, *, wanted: int, coming: bool) -> list[Action]:
    """What to do about a function's shards.

    `wanted`: workers of the target revision that should run; `coming`: one of them is being started, so a drain may wait for it.
    """
    if seen.entry.deleting:
        return _leave(seen, "the function is being deleted")
    if not seen.entry.shards:
        return _leave(seen, "a stateless function has nothing to hand over")
    takers = receivers(seen)
    if not takers:
        waits = coming and wanted > 0
        return _cancel_all(seen) + ([] if waits else _leave(seen, "no worker can take its shards and none is coming"))
    ready = [w.name for w in takers]
    view = placement.Placement(
        shards=seen.entry.shards,
        ready=ready,
        leaving=frozenset(w.name for w in seen.workers.values() if not w.gone) - frozenset(ready),
        owners={shard: entry.owner for shard, entry in seen.shards.items()},
        moves={shard: move.target for shard, move in seen.moves.items()},
    )
    rolled = seen.proved and len(takers) >= wanted
    gathered: dict[tuple[type[Action], str, str], list[int]] = defaultdict(list)
    for step in placement.plan(view):
        for kind, target, reason in _translate(seen, step, frozenset(ready), rolled):
            gathered[kind, target, reason].append(step.shard)
    for shard, target, reason in (*_overdue(seen, frozenset(ready), now), *_forsaken(seen, frozenset(ready))):
        gathered[Failover, target, reason].append(shard)
    return [_action(kind, target, tuple(shards), reason) for (kind, target, reason), shards in gathered.items()]


def _action(kind: type[Action], target: str, shards: tuple[int, ...], reason: str) -> Action:
    if kind is Cancel:
        return Cancel(shards, reason)
    assert kind is not NoTaker
    return kind(target, shards, reason)  # type: ignore[call-arg, arg-type]  # Assign, Failover, Plan: the same three fields


def _translate(seen: FunctionSeen, step: placement.Transition, ready: frozenset[str], rolled: bool) -> list[tuple[type[Action], str, str]]:
    match step:
        case placement.Give(shard, target):
            entry = seen.shards.get(shard)
            if entry is None:
                return [(Assign, target, "it has never had an owner")]
            if entry.owner in seen.workers:
                return [(Failover, target, f"{entry.owner} broke its control stream and refuses a new one")]
            return [(Failover, target, f"the lease of {entry.owner} is gone" if entry.owner else "its entry names no owner")]
        case placement.Move(_, source, target):
            owner = seen.workers[source]
            if owner.draining or (owner.report is not None and owner.report.draining):
                return [(Plan, target, f"{source} is draining")]
            if owner.cut_off and source not in ready:
                return [(Plan, target, f"more than half of the gateways cannot connect to {source}")]
            if owner.report is not None and owner.report.clock_off:
                return [(Plan, target, f"the clock of {source} is off")]
            if source in ready:
                return [(Plan, target, "an even share for every worker")]
            if owner.elsewhere:
                return [(Plan, target, f"{source} keeps sessions under another store id")]
            if owner.serving and rolled:
                return [(Plan, target, f"{source} runs an older revision")]
            # A healthy owner of the old revision keeps what it has until enough new ones are ready; one that is not ready now is judged
            # by its supervisor and its lease.
            return []
        case placement.Cancel(shard):
            named = seen.moves[shard].target
            return [(Cancel, "", f"{named} should no longer take it" if named else "its plan cannot be read")]


def _overdue(seen: FunctionSeen, ready: frozenset[str], now: float) -> list[tuple[int, str, str]]:
    """Planned shards whose owner stopped serving them and did not hand them over in time."""
    found = []
    for shard, since in sorted(seen.stopped.items()):
        move, entry = seen.moves.get(shard), seen.shards.get(shard)
        if move is None or entry is None or move.target not in ready or entry.owner not in seen.workers or seen.workers[entry.owner].gone:
            continue
        if now - since >= HANDOFF_DEADLINE:
            found.append((shard, move.target, f"{entry.owner} stopped {HANDOFF_DEADLINE:g} s ago and has not handed it over"))
    return found


def _forsaken(seen: FunctionSeen, ready: frozenset[str]) -> list[tuple[int, str, str]]:
    """Planned shards whose owner no gateway's call can reach, and which it still has: it runs something, for nobody."""
    found = []
    for shard, move in sorted(seen.moves.items()):
        entry = seen.shards.get(shard)
        owner = None if entry is None else seen.workers.get(entry.owner)
        if owner is None or not owner.cut_off or owner.unreachable < limits.UNREACHABLE_FAILOVER_SECONDS or owner.name in ready:
            continue
        if move.target in ready and shard not in seen.stopped:
            found.append((shard, move.target, f"gateways have not reached {owner.name} for {limits.UNREACHABLE_FAILOVER_SECONDS:g} s"))
    return found


def _cancel_all(seen: FunctionSeen) -> list[Action]:
    """Nobody can receive: a plan would make its owner stop for a handoff that must fail. Owners that live go on."""
    living = tuple(sorted(s for s in seen.moves if s in seen.shards and seen.shards[s].owner in seen.workers))
    return [Cancel(living, "no worker can take it")] if living else []


def _leave(seen: FunctionSeen, reason: str) -> list[Action]:
    return [NoTaker(w.name, reason) for w in _draining(seen)]


def _draining(seen: FunctionSeen) -> Iterable[WorkerSeen]:
    return sorted((w for w in seen.workers.values() if w.draining and not w.gone), key=lambda w: w.name)


def next_deadline(seen: FunctionSeen) -> float | None:
    """When the next handoff runs out, monotonic; None: nobody stopped."""
    due = [since + HANDOFF_DEADLINE for shard, since in seen.stopped.items() if shard in seen.moves]
    return min(due, default=None)
