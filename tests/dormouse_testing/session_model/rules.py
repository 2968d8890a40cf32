"""The rules of the protocol, each of which can be taken away, and the instances on which they are tried."""

from dataclasses import dataclass, field
from typing import NamedTuple


@dataclass(frozen=True)
class Rules:
    """The defaults are the protocol. The names are those of `tests/model/README.md`."""

    fence: bool = True
    """A commit compares the entry of its shard with the one that the worker acquired."""
    fence_every_shard: bool = True
    """A group commit compares the entry of every shard that it touches."""
    record_compare: bool = True
    """A commit compares each record's own mod_revision."""
    reply_after_commit: bool = True
    """Nothing is acknowledged before its commit is known."""
    keys_in_record: bool = True
    """The kept keys lie in the record, not in a worker's memory."""
    horizon: bool = True
    """An unkept key at or below the highest evicted one is not run."""
    horizons_apart: bool = True
    """Each maker of keys has a horizon of its own."""
    start_order: bool = True
    """A start older than the newest step is refused."""
    tombstone: bool = True
    """An end leaves a record with its keys."""
    floor: bool = True
    """A removal raises the shard's floor; a commit that creates a record compares it."""
    floor_inherited: bool = True
    """A created record begins with the floor as its horizon."""
    removal: str = "fenced"
    """"fenced", or "bare": a time to live that deletes without a comparison."""
    leader_compare: bool = True
    """A leader's write compares what it read."""
    move_compare: bool = True
    """A handoff compares the plan."""
    process_identity: bool = True
    """A worker's name is new for every process."""
    absence_remembered: bool = False
    """Taken away when true: that there is no such session is answered from memory."""
    absence_confirmed: bool = True
    """"No such session" comes from a read behind the fence, made after the call arrived."""
    outcome_read: bool = True
    """An outcome that was not learned is settled by reading."""
    key_looked_up: bool = True
    """Before a worker says that a step will not be committed, it looks for the step's key in the record."""
    entry_before_record: bool = True
    """A record is read after the shard's entry."""
    failover: bool = True
    """The shards of a dead process are given to another."""


PROMISES = frozenset(
    {
        "fork",  # a step commits on another state than the last committed one
        "lost",  # an acknowledged step is not in the state that the next one commits on
        "twice",  # a call takes effect a second time
        "uncommitted",  # a call is acknowledged that was never committed
        "reply differs",  # a call is answered with another execution's reply
        "false absence",  # "no such session", but it lives
        "false again",  # "will not be committed", but it is, or may be
        "false refusal",  # a call whose caller waits, and which did not run, is refused as too old
        "late start",  # a start wipes out a step that was issued after it and acknowledged
        "epoch",  # an epoch is put over one that is as high
        "stale move",  # a shard is handed to a target that is no longer the planned one
    }
)


class Budget(NamedTuple):
    """How many faults of each kind may happen."""

    crash: int = 0
    reassign: int = 0
    timeout: int = 0
    move: int = 0
    removal: int = 0
    duplicate: int = 0
    stale: int = 0
    give_up: int = 0


CALLER = -1
"""The maker of keys whose timestamps are the caller's own."""

START, STEP, END, MESSAGE = "start", "step", "end", "message"
"""Kinds of call. A message may begin its session, as metadata `dormouse-session` allows; a step may not."""


@dataclass(frozen=True)
class Instance:
    """What is explored. `calls`: for each session, the calls of its client, which waits for each answer."""

    calls: tuple[tuple[str, ...], ...]
    rules: Rules = field(default_factory=Rules)
    budget: Budget = field(default_factory=Budget)
    workers: int = 2
    leaders: int = 1
    shard: tuple[int, ...] = (0,)
    """The shard of each session."""
    stamps: tuple[tuple[int, ...], ...] = ()
    """The timestamp in each call's key; by default the order of issue."""
    makers: tuple[tuple[int, ...], ...] = ()
    """Who made each call's key: a gateway by its number, or CALLER; by default one gateway for all."""
    copies: int = 2
    """How often a call may be sent."""
    kept: int = 2
    """Keys that a record keeps."""
    remembered: int = 2
    """Gateways of which a record keeps a horizon; the lowest of more is folded into one for all others."""
    group: bool = False
    """Commits of several sessions go together."""
    alive: bool = False
    """For the liveness search: attempts never run out, and an attempt that reaches the wrong worker ends."""
    promises: frozenset[str] = PROMISES

    def __post_init__(self) -> None:
        if not self.stamps:
            object.__setattr__(self, "stamps", tuple(tuple(range(1, len(calls) + 1)) for calls in self.calls))
        if not self.makers:
            object.__setattr__(self, "makers", tuple((0,) * len(calls) for calls in self.calls))
        object.__setattr__(self, "sessions", len(self.calls))
        object.__setattr__(self, "shards", max(self.shard) + 1)

    sessions: int = field(init=False)
    shards: int = field(init=False)

    def maker(self, session: int, position: int) -> int:
        """Whose horizon speaks of this call's key."""
        return self.makers[session][position] if self.rules.horizons_apart else 0
