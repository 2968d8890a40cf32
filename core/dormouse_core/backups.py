"""What of a snapshot is written back, in which order and in what portions. Pure.

What lies under a lease is of processes that were there when the snapshot was taken, and plans name them: neither is restored. A shard's
entry is, as it was: its owner is gone, or finds that its entry is another one (rule *fence*), and epochs go on from there. A function's
entry is marked as restored, so that its sessions are kept even where its object has another uid by now (rule *retained*).

Functions come last: nobody is told of one whose sessions are not all there. A restore that ends half way leaves the leader's key, which
nobody leads beside, and is made again.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from dormouse_proto import state_pb2
from google.protobuf.message import DecodeError

from dormouse_core.keys import Keys
from dormouse_core.limits import TXN_BYTES, TXN_OPS
from dormouse_core.seams import Put

RESTORING = "restore"
"""The leader's name while a snapshot is written back: from then on a run that comes after removes what is there, unasked."""
LOOKING = "restore-look"
"""The leader's name while a restore looks whether anything is there: nothing is removed yet."""
OVERHEAD = 32
"""Bytes of a put beside its key and value, at most."""


class Found(Protocol):
    """A key of a snapshot."""

    @property
    def value(self) -> bytes: ...
    @property
    def lease(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Ordered:
    """Which keys are restored. `records`: sessions, among the first; for people."""

    first: tuple[str, ...]
    last: tuple[str, ...]
    records: int


def ordered(keys: Keys, found: Iterable[str]) -> Ordered:
    """Of the keys in a snapshot, in their order: data, then the map, then what is kept and functions."""
    data: list[str] = []
    shards: list[str] = []
    last: list[str] = []
    for key in found:
        if key.startswith(keys.datas):
            data.append(key)
        elif key.startswith((keys.usage_histories, keys.deleted_usages)):
            shards.append(key)
        elif key.startswith(keys.maps):
            if _kind(keys, key) == "shards":
                shards.append(key)
        elif key.startswith((keys.functions, keys.retaineds)):
            last.append(key)
    records = sum(key.removeprefix(keys.datas).split("/", 4)[3:4] == ["state"] for key in data)
    return Ordered((*data, *shards), tuple(sorted(last, reverse=True)), records)


def replaced(keys: Keys, key: str) -> bool:
    """Whether a restore that replaces what is there removes `key`, of the map: not what living workers have under their leases."""
    return _kind(keys, key) != "workers"


def written(keys: Keys, key: str, found: Found) -> Put | None:
    """None: not restored, since it was under a lease."""
    if found.lease:
        return None
    return Put(key, _marked(found.value) if key.startswith(keys.functions) else found.value)


def portions(puts: Iterable[Put]) -> Iterator[list[Put]]:
    """As many at once as a transaction takes beside its comparison."""
    part: list[Put] = []
    size = 0
    for put in puts:
        one = len(put.key) + len(put.value) + OVERHEAD
        if part and (len(part) >= TXN_OPS or size + one > TXN_BYTES):
            yield part
            part, size = [], 0
        part.append(put)
        size += one
    if part:
        yield part


def _kind(keys: Keys, key: str) -> str:
    parts = key.removeprefix(keys.maps).split("/", 4)
    return parts[3] if len(parts) == 5 else ""


def _marked(value: bytes) -> bytes:
    try:
        entry = state_pb2.FunctionEntry.FromString(value)
    except DecodeError:
        return value  # as it was: unreadable there, and no worse here
    entry.restored = True
    return bytes(entry.SerializeToString())
