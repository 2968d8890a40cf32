"""Reads the keys out of a snapshot of etcd, without an etcd: its file is a bbolt database, in which the bucket `key` has every change since
the last compaction by its revision. The newest change of a key is what the store holds.

The format is bbolt's, version 2 (go.etcd.io/bbolt, `internal/common/page.go`, `meta.go`, `bucket.go`), and etcd's (`server/storage/mvcc`:
a revision is 8 bytes, `_`, 8 bytes; `t` behind it says that the key was deleted). etcd has not changed either since 3.0. The digest behind
the database is compared first, so that a file that was cut off or damaged is told as such; a page that leads out of the file, or to one
that was read before, is an error whatever the digest says.
"""

import hashlib
import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aetcd.rpc import kv_pb2
from dormouse_core.errors import InvalidArgument
from google.protobuf.message import DecodeError

from dormouse_kit.etcd.snapshots import BLOCK, DIGEST

MAGIC: Final = 0xED0CDAED
VERSION: Final = 2
CHUNK: Final = 1 << 20
_PAGE: Final = struct.Struct("<QHHI")  # id, flags, count, overflow
_META: Final = struct.Struct("<IIIIQQQQQQ")  # magic, version, page size, flags, root page, root sequence, freelist, pages, txid, checksum
_BRANCH: Final = struct.Struct("<IIQ")  # where its key is from here, the key's size, the page
_LEAF: Final = struct.Struct("<IIII")  # flags, where its key is from here, the key's size, the value's
_BUCKET: Final = struct.Struct("<QQ")  # root page; 0: the page follows
_IS_BRANCH, _IS_LEAF, _LEAF_IS_BUCKET = 0x01, 0x02, 0x01
_REVISION: Final = 17
_TOMBSTONE: Final = b"t"


class NoSnapshot(InvalidArgument):
    """The file is no whole snapshot of etcd."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A key as the snapshot has it. `lease`: 0: it is under none."""

    key: str
    value: bytes
    lease: int


class Database:
    """A snapshot's keys below `prefix`. A context manager; `newest` is the revision that it holds."""

    def __init__(self, path: Path, prefix: str) -> None:
        """NoSnapshot: it is none, or is damaged."""
        self._path = path
        try:
            with path.open("rb") as file:
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise NoSnapshot(
                f"{path}: {getattr(error, 'strerror', None) or 'an empty file'} found, a snapshot of etcd is required"
            ) from error
        self.newest = 0
        self._places: dict[bytes, tuple[int, int]] = {}
        try:
            self._check()
            self._read(prefix.encode())
        except (struct.error, DecodeError, RecursionError) as error:
            self._data.close()
            raise NoSnapshot(f"{path}: it is no database of etcd: {error}") from error
        except NoSnapshot:
            self._data.close()
            raise

    def __enter__(self) -> "Database":
        return self

    def __exit__(self, *_: object) -> None:
        self._data.close()

    def __len__(self) -> int:
        return len(self._places)

    def keys(self) -> list[str]:
        """In order."""
        return sorted(key.decode("utf-8", "surrogateescape") for key in self._places)

    def get(self, key: str) -> Stored:
        at, size = self._places[key.encode("utf-8", "surrogateescape")]
        found = kv_pb2.KeyValue.FromString(self._data[at : at + size])
        return Stored(key, bytes(found.value), found.lease)

    # -------------------------------------------------------------------------------------------------------------- the file

    def _check(self) -> None:
        size = len(self._data) - DIGEST
        if size <= 0 or size % BLOCK:
            raise NoSnapshot(
                f"{self._path}: {len(self._data)} bytes found, blocks of {BLOCK} and a digest of {DIGEST} are required: it was cut off, or "
                "is no snapshot (a member's own file has no digest: take a snapshot)"
            )
        digest = hashlib.sha256()
        for at in range(0, size, CHUNK):
            digest.update(self._data[at : min(at + CHUNK, size)])
        if digest.digest() != self._data[size:]:
            raise NoSnapshot(f"{self._path}: its SHA-256 is not the one at its end: it was damaged")
        self._size = size

    def _read(self, prefix: bytes) -> None:
        self._page_size, root = self._meta()
        bucket = self._bucket(root, b"key")
        if bucket is None:
            raise NoSnapshot(f"{self._path}: a database without the bucket `key` found, etcd's is required")
        for revision, at, size in self._leaves(bucket):
            if len(revision) not in (_REVISION, _REVISION + 1):
                raise NoSnapshot(f"{self._path}: a revision of {len(revision)} bytes found, {_REVISION} are required")
            self.newest = max(self.newest, int.from_bytes(revision[:8], "big"))
            key = bytes(kv_pb2.KeyValue.FromString(self._data[at : at + size]).key)
            if not key.startswith(prefix):
                continue
            if revision[_REVISION:] == _TOMBSTONE:
                self._places.pop(key, None)
            else:
                self._places[key] = at, size

    def _meta(self) -> tuple[int, tuple[int, int]]:
        """The size of a page, and the root bucket as (page, where an inline page is)."""
        found: list[tuple[int, int, int]] = []
        first = self._meta_at(0)
        sizes = [first[1]] if first else [1 << n for n in range(9, 17)]
        for at in (0, *sizes):
            if (meta := self._meta_at(at)) is not None:
                found.append(meta)
        if not found:
            raise NoSnapshot(f"{self._path}: no page of bbolt's version {VERSION} found, a database of etcd is required")
        _, size, root = max(found)
        return size, (root, 0)

    def _meta_at(self, at: int) -> tuple[int, int, int] | None:
        """(transaction, size of a page, the root's page)."""
        begin = at + _PAGE.size
        if begin + _META.size > self._size:
            return None
        magic, version, size, _, root, _, _, _, txid, checksum = _META.unpack_from(self._data, begin)
        if (magic, version) != (MAGIC, VERSION) or size < BLOCK or size & (size - 1):
            return None
        if _fnv(self._data[begin : begin + _META.size - 8]) != checksum:
            return None
        return txid, size, root

    def _bucket(self, root: tuple[int, int], name: bytes) -> tuple[int, int] | None:
        for key, at, size in self._leaves(root, buckets=True):
            if key == name and size >= _BUCKET.size:
                page, _ = _BUCKET.unpack_from(self._data, at)
                return page, 0 if page else at + _BUCKET.size
        return None

    def _leaves(self, root: tuple[int, int], *, buckets: bool = False) -> Iterator[tuple[bytes, int, int]]:
        """(key, where its value is, the value's size), in the order of the keys."""
        page, inline = root
        ahead = [inline or self._at(page)]
        seen: set[int] = set()
        while ahead:
            at = ahead.pop()
            if at in seen:
                raise NoSnapshot(f"{self._path}: a page leads to one before it")
            seen.add(at)
            _, flags, count, _ = _PAGE.unpack_from(self._data, at)
            begin = at + _PAGE.size
            if flags & _IS_BRANCH:
                pages = [_BRANCH.unpack_from(self._data, begin + n * _BRANCH.size)[2] for n in range(count)]
                ahead += [self._at(each) for each in reversed(pages)]
            elif flags & _IS_LEAF:
                for n in range(count):
                    here = begin + n * _LEAF.size
                    kind, where, key_size, value_size = _LEAF.unpack_from(self._data, here)
                    if here + where + key_size + value_size > self._size:
                        raise NoSnapshot(f"{self._path}: a page leads out of the file")
                    if bool(kind & _LEAF_IS_BUCKET) == buckets:
                        key = here + where
                        yield self._data[key : key + key_size], key + key_size, value_size
            else:
                raise NoSnapshot(f"{self._path}: a page of kind {flags:#x} found where keys are")

    def _at(self, page: int) -> int:
        at = page * self._page_size
        if not 0 < at <= self._size - _PAGE.size:
            raise NoSnapshot(f"{self._path}: page {page} is not in the file")
        return at


def _fnv(data: bytes) -> int:
    """64 bits of FNV-1a, bbolt's checksum of a meta page."""
    found = 0xCBF29CE484222325
    for byte in data:
        found = (found ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return found
