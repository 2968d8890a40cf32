"""What Dormouse's loops are given instead of reaching for it: a store, a clock, a transport, a provider.

The real ones live in `dormouse_kit`, `dormouse_gateway`, `dormouse_operator`; the simulation passes simulated ones, and the same loops run.
Nothing here does I/O.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from dormouse_proto import state_pb2

from dormouse_core import headernames

# ------------------------------------------------------------------------------------------------------------------------ clock


class Clock(Protocol):
    """Time as an argument."""

    def now(self) -> float:
        """Wall time in seconds since the epoch. May jump; nothing that must be safe depends on it."""

    def monotonic(self) -> float:
        """Seconds that never go back. For deadlines, windows and ages."""

    async def sleep(self, seconds: float) -> None: ...


# ------------------------------------------------------------------------------------------------------------------------ store


class StoreError(Exception):
    """The store did not answer, or answered no. For a write: **the outcome is unknown** unless `definite` is set."""

    def __init__(self, message: str, definite: bool = False) -> None:
        super().__init__(message)
        self.definite = definite


class Unreached(StoreError):
    """No member of the store could be reached in the time given, so nothing was asked: `definite`. It may answer in a moment."""

    def __init__(self, message: str) -> None:
        super().__init__(message, definite=True)


class Compacted(StoreError):
    """The history that a watch or a listing asked for is gone, or the store has another one by now: list again, and watch from there."""


class Rewound(StoreError):
    """The store was restored to an earlier revision, or is another one (`dormouse_core.histories`): nothing that was remembered of it
    holds. What was asked may have been done, in the new history."""


class Full(StoreError):
    """The store refuses whatever would make it larger: its quota is reached (etcd's NOSPACE). Reads, deletions and renewals of leases go
    on. The operator makes room (`dormouse_core.storage`).

    It may have been written all the same: etcd applies what was proposed before the quota was reached, and answers this. So it is not
    `definite`; but nothing is under way any more, and a read tells (rule *full-store*)."""


@dataclass(frozen=True, slots=True)
class ModIs:
    """Compare: `key`'s mod_revision equals `revision`; 0: the key is absent."""

    key: str
    revision: int


@dataclass(frozen=True, slots=True)
class CreatedIs:
    """Compare: `key`'s create_revision equals `revision`."""

    key: str
    revision: int


@dataclass(frozen=True, slots=True)
class Exists:
    """Compare: `key` is there (create_revision > 0)."""

    key: str


Compare = ModIs | CreatedIs | Exists


@dataclass(frozen=True, slots=True)
class Put:
    key: str
    value: bytes
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Delete:
    """Deletes one key, or with `prefix` every key that begins with it."""

    key: str
    prefix: bool = False


Write = Put | Delete


@dataclass(frozen=True, slots=True)
class Txn:
    """If every compare holds, all writes happen at once; else nothing does. Not repeated by any client library (rule *read-outcome*)."""

    compares: tuple[Compare, ...]
    writes: tuple[Write, ...]


@dataclass(frozen=True, slots=True)
class TxnResult:
    succeeded: bool
    revision: int  # the response header's: the mod_revision of everything that was written


@dataclass(frozen=True, slots=True)
class Item:
    key: str
    value: bytes
    mod_revision: int
    create_revision: int
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Listing:
    """What one linearizable read saw at `revision`. `more`: the limit cut it; go on behind the last key at this revision. `count`: of all
    that the read was about, whatever the limit."""

    revision: int
    items: tuple[Item, ...]
    more: bool = False
    count: int = 0


@dataclass(frozen=True, slots=True)
class Event:
    """A change of one key. `item` is None where the key was deleted; `mod_revision` is the change's."""

    key: str
    mod_revision: int
    item: Item | None


@dataclass(frozen=True, slots=True)
class WatchBatch:
    """Events in the order of the store's history; `revision` is known to be complete up to here. May have no events (progress)."""

    revision: int
    events: tuple[Event, ...] = ()


class Store(Protocol):
    """etcd's v3 model. Reads are linearizable. Every method may raise StoreError; `timeout` is in seconds.

    `on_rewound` is called, with the reason, when the store turns out to have another history (`Rewound`), before the caller that found out
    is told: the error reaches one caller, and the whole process has to begin again. The first request of a new connection finds out.
    """

    on_rewound: Callable[[str], None]

    async def get(self, keys: Sequence[str], *, timeout: float = 5.0) -> tuple[int, dict[str, Item]]:
        """Several keys in one transaction, so all at one revision: (revision, the items that exist by key)."""

    async def list(
        self,
        prefix: str,
        *,
        start: str = "",
        limit: int = 0,
        revision: int = 0,
        keys_only: bool = False,
        timeout: float = 5.0,
    ) -> Listing:
        """Every key that begins with `prefix`, in key order, behind `start` (exclusive); `limit` 0: all; `revision` 0: now."""

    async def txn(self, txn: Txn, *, timeout: float = 5.0) -> TxnResult: ...

    def watch(self, prefix: str, revision: int) -> AsyncGenerator[WatchBatch, None]:
        """Every change of keys under `prefix` from `revision` on. Raises Compacted or StoreError; then list anew.

        The first batch may have no events: the watch stands. One that is alive but silent says so: a batch without events at least each
        10 seconds. Whoever leaves it early closes it: ``async with aclosing(store.watch(…)) as batches``.
        """

    async def grant(self, ttl: int) -> int:
        """A new lease of `ttl` seconds."""

    async def keep_alive(self, lease: int, *, timeout: float = 1.0) -> int:
        """The lease's time to live in seconds after this; 0: it has ended, for good."""

    async def revoke(self, lease: int) -> None: ...

    async def compact(self, revision: int) -> None: ...


@dataclass(frozen=True, slots=True)
class MemberSeen:
    """One member of the store's cluster, as it describes itself. Not linearizable: each says what it knows."""

    endpoint: str
    member: int  # its id; two endpoints may lead to one member
    leads: bool
    revision: int
    size: int  # bytes of its file: what the quota is compared with. Only defragmentation lowers it
    used: int  # bytes of it that hold keys and their history; the rest is free for what is written next
    full: bool  # the alarm NOSPACE is raised, here or on another member
    quota: int = 0  # bytes; 0: it does not say
    version: str = ""


class StoreMembers(Protocol):
    """What keeps a store of several members in shape. Every method may raise StoreError."""

    async def look(self) -> tuple[Sequence[MemberSeen], Sequence[str]]:
        """Every member that answers, once, and the endpoints that do not."""

    async def compact(self, revision: int) -> None:
        """Drops the history before `revision`. Returns when its space is free. Nothing happens where that was done before."""

    async def count_free(self) -> bool:
        """Makes full members count what was compacted as free. False: there is nothing left to do it with, so what is free is not known."""
        ...

    async def defragment(self, endpoint: str) -> None:
        """Gives free space of that member's file back. The member answers nothing meanwhile."""

    async def disarm(self) -> None:
        """Takes NOSPACE back for every member. A member that is still full raises it again at the next write."""


# -------------------------------------------------------------------------------------------------------------------- transport


@dataclass(frozen=True, slots=True)
class Reply:
    """A unary call's whole answer. `message` is the encoded response, empty unless `code` is 0. Metadata keys are lower case."""

    code: int
    message: bytes = b""
    details: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def again(self) -> str:
        """Why the worker refused without running it (`dormouse_core.errors.Again`), or ''."""
        return self.metadata.get(headernames.AGAIN, "")


Part = Callable[[bytes], Awaitable[None]]


class Transport(Protocol):
    """How the relay reaches a worker."""

    async def call(self, address: str, method: str, message: bytes, metadata: Mapping[str, str], *, timeout: float | None) -> Reply:
        """A unary gRPC call of `method` ("/package.Service/Method") at `address`. Never raises for a status.

        A connection that cannot be made or that breaks is UNAVAILABLE with the metadata `dormouse-broken: connect` (nothing was sent) or
        `dormouse-broken: reset` (it may have run). asyncio's cancellation cancels the call.
        """

    async def stream(
        self, address: str, method: str, message: bytes, metadata: Mapping[str, str], part: Part, *, timeout: float | None
    ) -> Reply:
        """The same for one message that is answered by several: `part` is awaited with each, in their order. The reply's own is empty."""


# --------------------------------------------------------------------------------------------------------------------- provider


@dataclass(frozen=True, slots=True)
class Instance:
    """One worker as its provider sees it: a pod, or a local supervisor. `name` is what WorkerEntry.instance says."""

    name: str
    function: str  # namespace/name
    uid: str
    revision: str
    started: float  # wall time
    stopping: bool = False
    exited: bool = False
    problem: state_pb2.Problem | None = None
    unplaced: bool = False
    """It does not run because no place has room for it: no node, or not the namespace's quota."""
    room: Literal["", "node", "namespace"] = ""
    """Whose room it lacks, where it lacks nothing else, and where there would be enough if others went."""
    limit: str = ""
    """Of the namespace's room, in the cluster's words; empty: it does not say."""
    node: str = ""  # where it runs; empty: not known, or there is one machine
    lost: bool = False
    """Its node is lost (`dormouse_core.nodeloss`): it does not count as running, whatever its provider was last told of it."""
    starved: float = 0.0  # wall time at which the kernel last ended all of it for want of memory; 0: it has not, as far as is known


@dataclass(frozen=True, slots=True)
class Wanted:
    """How many workers of one revision should run. `victims`: instances that cost least to stop, cheapest first (a hint)."""

    function: state_pb2.FunctionEntry
    revision: str
    count: int
    victims: tuple[str, ...] = ()


class Provider(Protocol):
    """What "start a worker" means. Level-triggered: `apply` may be repeated, and one that changes nothing writes nothing."""

    async def observe(self) -> Sequence[Instance] | None:
        """Every instance of this installation; None: not known now, which never means none."""

    async def apply(self, wanted: Wanted) -> None:
        """Raises Unavailable with a readable reason when it cannot."""
