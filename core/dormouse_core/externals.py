"""Which further files an ONNX model's weights lie in, read from its bytes.

A model over 2 GiB cannot be one message of protobuf, so its tensors may name a file beside it (onnx.proto: `TensorProto.external_data`, the
entry `location`). Those bytes belong to the model as much as its own. The wire format is walked as far as tensors can be, and what a tensor
holds is passed over; no model is loaded for it.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol


class Buffer(Protocol):
    """`bytes`, or what reads them from a file when they are asked for."""

    def __len__(self) -> int: ...
    def __getitem__(self, wanted: Any, /) -> Any: ...
    def find(self, wanted: bytes, /) -> int: ...


SEARCHED = 1 << 26
"""Bytes up to which a model is searched first. In a larger one the walk, which passes over weights, reads less."""
ENTRY_BYTES = 1 << 12
"""A path is no longer; what is, is no entry."""

# Field numbers of onnx.proto -> the message in which to look further.
_GRAPH: Mapping[str, Mapping[int, str]] = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
_KEY, _VALUE = 1, 2


def external_files(model: Buffer) -> frozenset[str]:
    """Paths as the tensors of `model` name them, relative to the model's folder. What is not protobuf names none from there on."""
    if len(model) <= SEARCHED and model.find(b"location") < 0:  # in most models: one pass at memory's speed instead of a walk
        return frozenset()
    found: set[str] = set()
    waiting = [("model", 0, len(model))]
    while waiting:
        kind, start, end = waiting.pop()
        if kind == "entry":
            entry = {number: bytes(model[first:last]) for number, first, last in _parts(model, start, end) if last - first <= ENTRY_BYTES}
            if entry.get(_KEY) == b"location":
                found.add(entry.get(_VALUE, b"").decode("utf-8", "replace"))
            continue
        inner = _GRAPH[kind]
        waiting += [(inner[number], first, last) for number, first, last in _parts(model, start, end) if number in inner]
    return frozenset(found)


def _parts(data: Buffer, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number, start and end of each length-delimited field. Ends at what is not one."""
    while at < end:
        tag, at = _varint(data, at, end)
        wire = tag & 7
        if wire == 2:
            size, at = _varint(data, at, end)
            if at + size > end:
                return
            yield tag >> 3, at, at + size
            at += size
        elif wire == 0:
            _, at = _varint(data, at, end)
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
        else:
            return


def _varint(data: Buffer, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 64:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    return 0, end + 1
