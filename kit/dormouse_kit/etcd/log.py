"""Whose log it is that lies on an etcd member's disk, read without etcd: the first records of each of its files say so."""

import struct
from pathlib import Path
from typing import Final

from dormouse_core.members import Own

_METADATA: Final = 1
_MOST: Final = 4096
_VARINT, _BYTES = 0, 2


def has_log(data: Path) -> bool:
    """Whether there is what etcd takes for its data: it makes the folder whole, and looks for nothing else."""
    return any(_files(data))


def own(data: Path) -> Own | None:
    """Who wrote the log in etcd's folder; None: there is none, or it is not understood."""
    for file in reversed(_files(data)):
        try:
            with file.open("rb") as opened:
                return _own(opened.read(_MOST))
        except (OSError, ValueError, LookupError, struct.error):
            continue
    return None


def _files(data: Path) -> list[Path]:
    return sorted((data / "member" / "wal").glob("*.wal"))


def _own(head: bytes) -> Own:
    """Records, each after its length (the low 56 bits) and padded to 8 bytes."""
    at = 0
    while True:
        (word,) = struct.unpack_from("<Q", head, at)
        size, padding = word & ((1 << 56) - 1), (word >> 56) & 7 if word >> 63 else 0
        record = _fields(head[at + 8 : at + 8 + size])
        if record[1] == _METADATA:
            found = _fields(_bytes(record[3]))
            return Own(f"{_number(found[2]):x}", _number(found[1]))
        at += 8 + size + padding


def _fields(message: bytes) -> dict[int, int | bytes]:
    """Of a protobuf message: those that are numbers or bytes."""
    found: dict[int, int | bytes] = {}
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        value, at = _varint(message, at)
        if key & 7 == _VARINT:
            found[key >> 3] = value
        elif key & 7 == _BYTES:
            found[key >> 3] = message[at : at + value]
            at += value
        else:
            raise ValueError(f"wire type {key & 7}")
    return found


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = message[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("a number without an end")


def _number(value: int | bytes) -> int:
    if isinstance(value, bytes):
        raise ValueError("bytes found, a number is allowed")
    return value


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("a number found, bytes are allowed")
    return value
