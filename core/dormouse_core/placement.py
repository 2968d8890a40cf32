"""Which worker should own which shard, and by which steps to get there.

Each ready worker's quota is the floor or the ceiling of its even share. Owners keep their shards up to quota; a surplus owner gives away
its lowest rendezvous weight first, and the receiver is the worker under its quota with the highest weight for that shard. So a join moves
only the joiner's share and a leave only the leaver's.

The result is a list of transitions, each safe by itself: whoever applies them does one transaction each, may stop after any of them, and
plans again from what it then sees. `check` states what holds after every one.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b


@dataclass(frozen=True, slots=True)
class Give:
    """`shard` has no live owner: it goes to `target` at once (`assign` where it has no entry, else `failover`)."""

    shard: int
    target: str


@dataclass(frozen=True, slots=True)
class Move:
    """`shard` is asked of its live `source` for `target` (`plan`; the owner hands it over)."""

    shard: int
    source: str
    target: str


@dataclass(frozen=True, slots=True)
class Cancel:
    """The planned move of `shard` is taken back: its owner keeps it."""

    shard: int


Transition = Give | Move | Cancel


@dataclass(frozen=True, slots=True)
class Placement:
    """What was observed. Names that are neither in `ready` nor in `leaving` are dead.

    `ready`: may get shards (registered, not draining, of the target revision, heard by the leader). `leaving`: alive, gives its shards away
    (draining, or of an older revision). `owners`: what the entries say, shards without an entry left out. `moves`: planned, not yet done.
    """

    shards: int
    ready: Sequence[str]
    leaving: Collection[str]
    owners: Mapping[int, str]
    moves: Mapping[int, str]

    def live_owner(self, shard: int) -> str | None:
        owner = self.owners.get(shard)
        return owner if owner is not None and (owner in self.ready or owner in self.leaving) else None


def weight(shard: int, worker: str) -> int:
    """Rendezvous weight (Thaler and Ravishankar, 1998): every observer computes the same order of workers for a shard."""
    return int.from_bytes(blake2b(f"{shard}/{worker}".encode(), digest_size=8).digest())


def quotas(shards: int, held: Mapping[str, int]) -> dict[str, int]:
    """Even shares of `shards` for the workers in `held` (name -> shards that it has): the ceiling goes to those that have most already."""
    if not held:
        return {}
    share, extra = divmod(shards, len(held))
    order = sorted(held, key=lambda worker: (-held[worker], worker))
    return {worker: share + (i < extra) for i, worker in enumerate(order)}


def plan(seen: Placement) -> list[Transition]:
    """What to do, in order; [] when all is well or nobody can take a shard. Gives come first: those shards are served by nobody."""
    if not seen.ready:
        return []
    ready = frozenset(seen.ready)
    # Where each shard is headed: a planned move that can still happen counts as done, so that planning again does not undo it.
    heading: dict[int, str] = {}
    homeless: list[int] = []
    for shard in range(seen.shards):
        owner = seen.live_owner(shard)
        if owner is None:
            homeless.append(shard)
        elif seen.moves.get(shard) in ready:
            heading[shard] = seen.moves[shard]
        else:
            heading[shard] = owner
    held = dict.fromkeys(sorted(ready), 0)
    for target in heading.values():
        if target in held:
            held[target] += 1
    quota = quotas(seen.shards, held)
    transitions: list[Transition] = []
    for shard in homeless:
        target = _receiver(shard, held, quota)
        held[target] += 1
        transitions.append(Give(shard, target))
    surplus = [shard for shard, target in heading.items() if target not in ready]
    for worker in held:
        over = held[worker] - quota[worker]
        if over > 0:
            # A shard that is only on its way here is turned away before one that is here already.
            theirs = sorted((s for s, t in heading.items() if t == worker), key=lambda s: (seen.owners[s] == worker, weight(s, worker)))
            surplus += theirs[:over]
            held[worker] -= over
    for shard in sorted(surplus):
        heading[shard] = _receiver(shard, held, quota)
        held[heading[shard]] += 1
    for shard, target in sorted(heading.items()):
        owner = seen.owners[shard]
        if target != owner:
            if seen.moves.get(shard) != target:
                transitions.append(Move(shard, owner, target))
        elif shard in seen.moves:
            transitions.append(Cancel(shard))
    return transitions


def _receiver(shard: int, held: Mapping[str, int], quota: Mapping[str, int]) -> str:
    return max((w for w in held if held[w] < quota[w]), key=lambda w: weight(shard, w))


def apply(seen: Placement, transition: Transition) -> Placement:
    """What is observed after `transition` alone: for checking plans step by step."""
    owners, moves = dict(seen.owners), dict(seen.moves)
    match transition:
        case Give(shard, target):
            owners[shard] = target
            moves.pop(shard, None)
        case Move(shard, _, target):
            moves[shard] = target
        case Cancel(shard):
            del moves[shard]
    return Placement(seen.shards, seen.ready, seen.leaving, owners, moves)


def check(before: Placement, transition: Transition) -> None:
    """The invariant of every transition. AssertionError says which part broke."""
    match transition:
        case Give(shard, target):
            assert before.live_owner(shard) is None, f"shard {shard} is taken from its live owner {before.owners[shard]}"
            assert target in before.ready, f"shard {shard} goes to {target}, which is not ready"
        case Move(shard, source, target):
            assert before.live_owner(shard) == source, f"shard {shard} is asked of {source}, which does not own it"
            assert target in before.ready, f"shard {shard} is to go to {target}, which is not ready"
            assert target != source
        case Cancel(shard):
            assert shard in before.moves
            assert before.live_owner(shard) in before.ready, f"shard {shard} would stay with a worker that leaves"
