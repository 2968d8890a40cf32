"""etcd's data model in memory: what one etcd (or a cluster that is never wrong) does with requests. No asyncio, no faults, no network.

Exact where the session protocol depends on it, and checked against the real one by `tests/integration/test_store.py`: one revision a
transaction, none for one that changes nothing; create_revision begins again after a delete; compaction makes older reads and watches
fail; a lease's end deletes its keys at one revision; a put without a lease detaches the key; a key at most once in a transaction.
"""

import copy
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from dormouse_core.seams import (
    Clock,
    Compacted,
    Compare,
    CreatedIs,
    Delete,
    Event,
    Item,
    Listing,
    ModIs,
    Put,
    StoreError,
    Txn,
    TxnResult,
    Write,
)

K = TypeVar("K")
MAX_OPERATIONS = 128
MAX_REQUEST_BYTES = 1_572_864  # 1.5 MiB


_FILES = ("revision", "compacted", "leases", "_keys", "_versions", "_history")


def refused(message: str) -> StoreError:
    return StoreError(f"etcdserver: {message}", definite=True)


@dataclass(slots=True)
class _Lease:
    ttl: int
    deadline: float
    keys: set[str] = field(default_factory=set)


class Ordered(dict[K, None]):
    """A set in the order of insertion: a plain set's differs from run to run, and a simulation's history with it."""

    def add(self, key: K) -> None:
        self[key] = None

    def discard(self, key: K) -> None:
        self.pop(key, None)


class MemoryEtcd:
    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.revision = 1
        self.compacted = 0
        self.starts = 0  # on a copy: what was on its way before arrives nowhere
        self.leases: dict[int, _Lease] = {}
        self.listeners = Ordered[Callable[[], None]]()  # called after each change
        self._next_lease = 7_000_001  # not among the files: etcd makes ids of the time, and gives none twice on a copy either
        self._keys: list[str] = []  # sorted; of every key that has a version
        self._versions: dict[str, list[tuple[int, Item | None]]] = {}
        self._history: list[Event] = []

    # ------------------------------------------------------------------------------------------------------------- a restored copy

    def copy(self) -> dict[str, Any]:
        """Everything that is in its files now."""
        return copy.deepcopy({name: getattr(self, name) for name in _FILES})

    def restore(self, files: dict[str, Any]) -> None:
        """Starts it on a copy. Connections break with that: `MemoryStore.break_watches` for each client."""
        for name, value in copy.deepcopy(files).items():
            setattr(self, name, value)
        self.starts += 1

    # ---------------------------------------------------------------------------------------------------------------- reads

    def item(self, key: str, revision: int = 0) -> Item | None:
        self.expire()
        versions = self._versions.get(key)
        if not versions:
            return None
        at = len(versions) if not revision else bisect_right(versions, revision, key=lambda version: version[0])
        return versions[at - 1][1] if at else None

    def get(self, keys: Sequence[str]) -> tuple[int, dict[str, Item]]:
        self.expire()
        return self.revision, {key: item for key in keys if (item := self.item(key)) is not None}

    def range(self, prefix: str, start: str = "", limit: int = 0, revision: int = 0, keys_only: bool = False) -> Listing:
        self.expire()
        if revision and revision < self.compacted:
            raise Compacted("etcdserver: mvcc: required revision has been compacted", definite=True)
        if revision > self.revision:
            raise Compacted("etcdserver: mvcc: required revision is a future revision", definite=True)
        found = [item for key in self._under(prefix, start) if (item := self.item(key, revision)) is not None]
        items = found[: limit or None]
        if keys_only:
            items = [Item(item.key, b"", item.mod_revision, item.create_revision, item.lease) for item in items]
        return Listing(revision or self.revision, tuple(items), len(items) < len(found), len(found))

    def events(self, prefix: str, revision: int) -> list[Event]:
        """Changes under `prefix` from `revision` on."""
        self.expire()
        if revision < self.compacted:
            raise Compacted(f"watch of {prefix!r} from {revision}: compacted up to {self.compacted}", definite=True)
        if revision > self.revision + 1:
            raise Compacted(f"watch of {prefix!r} from {revision}: the store is at {self.revision}", definite=True)
        begin = bisect_left(self._history, revision, key=lambda event: event.mod_revision)
        return [event for event in self._history[begin:] if event.key.startswith(prefix)]

    def _under(self, prefix: str, start: str = "") -> Sequence[str]:
        begin = bisect_left(self._keys, prefix) if start < prefix else bisect_right(self._keys, start)
        end = begin
        while end < len(self._keys) and self._keys[end].startswith(prefix):
            end += 1
        return self._keys[begin:end]

    # --------------------------------------------------------------------------------------------------------------- writes

    def txn(self, txn: Txn) -> TxnResult:
        self.expire()
        self._check(txn)
        if not all(map(self._holds, txn.compares)):
            return TxnResult(False, self.revision)
        self._apply(txn.writes)
        return TxnResult(True, self.revision)

    def compact(self, revision: int) -> None:
        if revision > self.revision:
            raise Compacted("etcdserver: mvcc: required revision is a future revision", definite=True)
        if revision <= self.compacted:
            raise Compacted("etcdserver: mvcc: required revision has been compacted", definite=True)
        self.compacted = revision
        self._history = self._history[bisect_left(self._history, revision, key=lambda event: event.mod_revision) :]
        for key in list(self._versions):
            versions = self._versions[key]
            keep = max(bisect_right(versions, revision, key=lambda version: version[0]) - 1, 0)
            versions = versions[keep:]
            if versions[0][1] is None and versions[0][0] <= revision:
                versions = versions[1:]
            if versions:
                self._versions[key] = versions
            else:
                del self._versions[key]
                self._keys.remove(key)

    def _check(self, txn: Txn) -> None:
        if len(txn.compares) > MAX_OPERATIONS or len(txn.writes) > MAX_OPERATIONS:
            raise refused("too many operations in txn request")
        if any(not operation.key for operation in txn.compares):
            raise refused("key is not provided")
        size = sum(len(compare.key) + 16 for compare in txn.compares)
        puts: set[str] = set()
        for write in txn.writes:
            if not write.key and not (isinstance(write, Delete) and write.prefix):
                raise refused("key is not provided")
            size += len(write.key) + 16
            if isinstance(write, Put):
                size += len(write.value)
                if write.key in puts:
                    raise refused("duplicate key given in txn request")
                puts.add(write.key)
        for write in txn.writes:
            if isinstance(write, Delete) and any(put.startswith(write.key) if write.prefix else put == write.key for put in puts):
                raise refused("duplicate key given in txn request")
        if size > MAX_REQUEST_BYTES:
            raise refused("request is too large")
        # Only a transaction whose compares hold reaches its puts' leases.
        if all(map(self._holds, txn.compares)):
            for write in txn.writes:
                if isinstance(write, Put) and write.lease and write.lease not in self.leases:
                    raise refused("requested lease not found")

    def _holds(self, compare: Compare) -> bool:
        item = self.item(compare.key)
        if isinstance(compare, ModIs):
            return (item.mod_revision if item else 0) == compare.revision
        if isinstance(compare, CreatedIs):
            return (item.create_revision if item else 0) == compare.revision
        return item is not None

    def _apply(self, writes: Sequence[Write]) -> None:
        revision = self.revision + 1
        before = len(self._history)
        for write in writes:
            if isinstance(write, Put):
                old = self._current(write.key)
                item = Item(write.key, write.value, revision, old.create_revision if old else revision, write.lease)
                self._set(write.key, revision, item, old)
            else:
                for key in self._under(write.key) if write.prefix else [write.key]:
                    if (old := self._current(key)) is not None:
                        self._set(key, revision, None, old)
        if len(self._history) > before:
            self.revision = revision
            for listener in list(self.listeners):
                listener()

    def _current(self, key: str) -> Item | None:
        versions = self._versions.get(key)
        return versions[-1][1] if versions else None

    def _set(self, key: str, revision: int, item: Item | None, old: Item | None) -> None:
        if old is not None and old.lease in self.leases:
            self.leases[old.lease].keys.discard(key)
        if item is not None and item.lease:
            self.leases[item.lease].keys.add(key)
        if key not in self._versions:
            self._versions[key] = []
            insort(self._keys, key)
        self._versions[key].append((revision, item))
        self._history.append(Event(key, revision, item))

    # --------------------------------------------------------------------------------------------------------------- leases

    def grant(self, ttl: int) -> int:
        self.expire()
        if ttl <= 0:
            raise refused("invalid lease TTL")
        lease = self._next_lease
        self._next_lease += 1
        self.leases[lease] = _Lease(ttl, self.clock.monotonic() + ttl)
        return lease

    def keep_alive(self, lease: int) -> int:
        self.expire()
        found = self.leases.get(lease)
        if found is None:
            return 0
        found.deadline = self.clock.monotonic() + found.ttl
        return found.ttl

    def revoke(self, lease: int) -> None:
        ended = self.leases.pop(lease, None)
        if ended is not None and ended.keys:
            self._apply([Delete(key) for key in sorted(ended.keys)])

    def left(self, lease: int) -> float:
        """Seconds until `lease` ends; 0 or less: it has."""
        found = self.leases.get(lease)
        return found.deadline - self.clock.monotonic() if found else 0.0

    def expire(self) -> None:
        """Ends every lease whose time is over."""
        now = self.clock.monotonic()
        for lease in [lease for lease, state in self.leases.items() if state.deadline <= now]:
            self.revoke(lease)
