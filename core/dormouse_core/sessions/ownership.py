"""Whether one shard is this worker's: a state machine of rules *fence*, *handoff* and *newest-map*.

A worker owns a shard after a linearizable read of its entry as its own, and remembers the entry's mod_revision: the **fence**, which every
commit compares. The watch only hints: it makes the worker read, or stop. What is known of an entry only gets newer: an observation older
than one that was seen counts for nothing, so a late read or a watch that lags cannot take a worker back in time.

Any change of the fence, even back to the same owner, empties the shard's memory: in between somebody else may have written.

    unknown --seen mine--> reading --read mine--> owned --move due--> stopping --quiet--> handing over --handed--> lost
"""

import enum


class Status(enum.Enum):
    UNKNOWN = "nothing is known of the entry"
    READING = "a read of the entry is under way, or due"
    OWNED = "read as my own: steps run"
    STOPPING = "a planned move is due: no step starts, running ones end"
    HANDING = "the handoff is sent, its outcome not known"
    LOST = "another's, or nobody's"


class Event(enum.Enum):
    SEEN_MINE = "the watch shows the entry as mine, newer than known"
    SEEN_OTHER = "the watch shows it as another's or deleted, newer than known"
    ASKED = "a caller's map is newer than what is known here"
    READ_MINE = "a linearizable read shows it as mine"
    READ_OTHER = "a linearizable read shows it as another's or absent"
    MOVE_DUE = "a planned move, and no step of the shard runs for long any more"
    MOVE_GONE = "the plan was taken back"
    QUIET = "no step of the shard runs or commits"
    HANDED = "the handoff is in the store"
    LEFT = "this worker leaves, or its lease ended: it takes no further step"


TABLE: dict[Status, dict[Event, Status]] = {
    Status.UNKNOWN: {
        Event.SEEN_MINE: Status.READING,
        Event.SEEN_OTHER: Status.LOST,
        Event.ASKED: Status.READING,
        Event.READ_MINE: Status.OWNED,
        Event.READ_OTHER: Status.LOST,
    },
    Status.READING: {
        Event.SEEN_MINE: Status.READING,
        Event.SEEN_OTHER: Status.LOST,
        Event.ASKED: Status.READING,
        Event.READ_MINE: Status.OWNED,
        Event.READ_OTHER: Status.LOST,
    },
    Status.OWNED: {
        Event.SEEN_MINE: Status.READING,
        Event.SEEN_OTHER: Status.LOST,
        Event.READ_MINE: Status.OWNED,
        Event.READ_OTHER: Status.LOST,
        Event.MOVE_DUE: Status.STOPPING,
        Event.MOVE_GONE: Status.OWNED,
    },
    Status.STOPPING: {
        Event.SEEN_MINE: Status.READING,
        Event.SEEN_OTHER: Status.LOST,
        Event.READ_MINE: Status.STOPPING,
        Event.READ_OTHER: Status.LOST,
        Event.MOVE_GONE: Status.OWNED,
        Event.QUIET: Status.HANDING,
    },
    Status.HANDING: {
        Event.SEEN_MINE: Status.READING,
        Event.SEEN_OTHER: Status.LOST,
        Event.READ_MINE: Status.OWNED,  # the handoff failed: the owner goes on serving
        Event.READ_OTHER: Status.LOST,
        Event.HANDED: Status.LOST,
    },
    Status.LOST: {
        Event.SEEN_MINE: Status.READING,
        Event.SEEN_OTHER: Status.LOST,
        Event.ASKED: Status.READING,
        Event.READ_MINE: Status.OWNED,
        Event.READ_OTHER: Status.LOST,
    },
}


HOLDING = frozenset({Status.READING, Status.STOPPING, Status.HANDING})  # steps wait for what comes out of it; in OWNED they start
MINE = frozenset({Status.OWNED, Status.STOPPING, Status.HANDING})  # running steps may still commit

for _row in TABLE.values():
    _row[Event.LEFT] = Status.LOST


class OutOfOrder(Exception):
    """An event that the table does not foresee in this state: an error of the machine, never a caller's fault."""


class Ownership:
    """One shard's entry as this worker knows it. `fence` is valid while the status is in MINE."""

    __slots__ = ("epoch", "fence", "known", "read_at", "status")

    def __init__(self) -> None:
        self.status = Status.UNKNOWN
        self.fence = 0
        self.epoch = 0
        self.known = 0  # the revision as of which the entry is known: of its newest change that the watch showed, of the newest read
        self.read_at = 0  # the store's revision at the last linearizable read

    def seen(self, mine: bool, mod: int) -> bool:
        """The watch (mod: of the entry, or of its deletion). True: the shard's memory must be emptied."""
        if mod <= self.known:
            return False
        self.known = mod
        return self._apply(Event.SEEN_MINE if mine else Event.SEEN_OTHER)

    def read(self, mine: bool, mod: int, epoch: int, at: int) -> bool:
        """A linearizable read at revision `at` (mod 0: absent). True: the shard's memory must be emptied.

        What counts is when it was read, not how old the entry is: a store that was restored and written since shows an older one than was
        seen, and it is what is so.
        """
        self.read_at = max(self.read_at, at)
        if at < self.known:
            # The watch has seen a newer entry than this read. If that one is mine, the status is READING still and is read again.
            return False
        self.known = at
        if not mine:
            return self._apply(Event.READ_OTHER)
        emptied = self.status in MINE and self.fence != mod
        if emptied and self.status is not Status.OWNED:
            self.status = Status.OWNED  # a new fence: the move that was under way belonged to the old one
        else:
            self._apply(Event.READ_MINE)
        self.fence = mod
        self.epoch = epoch
        return emptied

    def asked(self) -> None:
        self._apply(Event.ASKED)

    def moving(self, event: Event) -> bool:
        """MOVE_DUE, MOVE_GONE, QUIET, HANDED or LEFT. True: the shard's memory must be emptied."""
        return self._apply(event)

    def behind(self, rev: int, watched: int) -> bool:
        """Whether a caller whose map is of revision `rev` may know better than the watch, complete up to `watched`, and the last read."""
        return rev > watched and rev > self.read_at

    def _apply(self, event: Event) -> bool:
        was = self.status
        try:
            self.status = TABLE[was][event]
        except KeyError:
            raise OutOfOrder(f"{event.name} in {was.name}") from None
        return was in MINE and self.status not in MINE
