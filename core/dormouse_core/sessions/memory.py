"""What a worker keeps of its sessions while it owns them: a shard's memory, a session's memory, and replies too large for a record.

All of it is a copy of what the store has, or was asked for and can be refused. Losing it costs a read.
"""

import enum
from collections import OrderedDict
from collections.abc import Sequence

from dormouse_proto import state_pb2

from dormouse_core import lifetimes, limits, records
from dormouse_core.errors import DormouseError
from dormouse_core.limits import KEPT_REPLY_MEMORY_BYTES
from dormouse_core.records import Body, Glance
from dormouse_core.sessions.boundary import States, Step
from dormouse_core.sessions.ownership import Ownership


class Phase(enum.Enum):
    IDLE = "the next step may have its turn"
    LOADING = "the record is being read"
    RUNNING = "a step runs or commits"


class Session:
    """One session: its record as last read or written here, and the steps that wait for their turn, oldest key first."""

    __slots__ = (
        "base",
        "body",
        "broken",
        "confirmed",
        "dropped",
        "floor_mod",
        "floor_us",
        "key",
        "phase",
        "queue",
        "read",
        "shard",
        "state_bytes",
        "state_key",
        "states",
        "stored",
        "tensor_bytes",
        "tensors",
        "trouble",
        "used",
    )

    def __init__(self, key: str, state_key: str, shard: "Shard") -> None:
        self.key = key
        self.state_key = state_key
        self.shard = shard
        self.queue: list[Step] = []  # short; an empty deque would take 600 bytes in each of a million idle sessions
        self.phase = Phase.LOADING
        self.dropped = False  # no longer its shard's: whoever still holds it must not use it
        self.used = 0.0
        self.base = 0  # the record's mod_revision, 0: there is none
        self.body: Body | None = None
        self.trouble: DormouseError | None = None  # why the record could not be decoded
        self.broken = b""  # its bytes then, for quarantine
        self.floor_mod = 0  # the shard's floor, read together with the record: what a commit that creates compares
        self.floor_us = 0
        self.states: States = {}
        self.state_bytes = 0
        self.tensors: Sequence[state_pb2.Tensor] | None = None
        """Of the record as it was read, where this revision would write others: what is noted of an alarm leaves them (rule
        *state-version*). None: what it would write is what the record has, or it sets no alarm."""
        self.tensor_bytes = 0
        self.stored = 0  # bytes of the record
        self.read = False  # it was read since its last commit: until then it slept
        self.confirmed: Step | None = None  # the record was read after this step arrived (rule *confirmed-no*)


class Shard:
    """One shard: whether it is mine, its sessions, and the steps that wait until that is known."""

    __slots__ = (
        "entry_key",
        "floor_key",
        "floor_mod",
        "floor_us",
        "large",
        "move",
        "move_known",
        "moving",
        "number",
        "own",
        "parked",
        "removing",
        "running",
        "sessions",
        "stopped_us",
        "waiting",
    )

    def __init__(self, number: int, entry_key: str, floor_key: str) -> None:
        self.number = number
        self.entry_key = entry_key
        self.floor_key = floor_key
        self.own = Ownership()
        self.sessions: dict[str, Session] = {}
        self.running: dict[Session, float] = {}  # steps that run or commit: since when, on the monotonic clock
        self.waiting: list[Step] = []
        self.move: tuple[str, int] | None = None  # planned next owner, the plan's mod_revision
        self.move_known = 0
        self.moving = False  # a plan moves it
        self.parked = False  # that plan waits for `running` to become empty
        self.large: set[bytes] = set()  # write ids of its steps whose replies `LargeReplies` has
        self.removing = False  # records are being removed: sessions that would be created wait, for the floor changes
        self.floor_mod = 0  # of the newest floor that this worker read or wrote; a read of an older one is old news
        self.floor_us = 0
        self.stopped_us = 0  # since when it has not been served for a planned move, wall time; 0: it is


def glance_of(session: Session) -> Glance | None:
    """Of the record as the session's memory has it; None: there is none."""
    if session.base == 0:
        return None
    if session.body is None:
        return lifetimes.broken(session.stored)
    return records.glance_of(session.body, session.stored)


class LargeReplies:
    """Replies too large to be kept in a record; the oldest go first (rule *large-replies*).

    Each lies under the write id of its step, which the record keeps beside the call's key. A caller's key and a step's number are not
    enough: a session that is begun again by a caller that numbers its calls has the same key at the same step, in another life.
    """

    def __init__(self, limit: int = KEPT_REPLY_MEMORY_BYTES) -> None:
        self.bytes = 0
        self._limit = limit
        self._replies: OrderedDict[bytes, tuple[Shard, bytes]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._replies)

    def add(self, shard: Shard, write_id: bytes, reply: bytes) -> None:
        self._remove(write_id)
        if len(reply) > self._limit:
            return
        self._replies[write_id] = (shard, reply)
        shard.large.add(write_id)
        self.bytes += len(reply)
        while self.bytes > self._limit:
            self._remove(next(iter(self._replies)))

    def get(self, write_id: bytes) -> bytes | None:
        found = self._replies.get(write_id)
        return None if found is None else found[1]

    def forget(self, shard: Shard) -> None:
        """The shard's fence has changed: its memory is empty."""
        for write_id in list(shard.large):
            self._remove(write_id)

    def _remove(self, write_id: bytes) -> None:
        found = self._replies.pop(write_id, None)
        if found is not None:
            shard, reply = found
            shard.large.discard(write_id)
            self.bytes -= len(reply)


def is_large(reply: bytes) -> bool:
    return len(reply) > limits.KEPT_REPLY_BYTES
