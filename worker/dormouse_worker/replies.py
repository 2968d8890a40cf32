"""From arrays to an encoded ModelInferResponse, by hand.

Protobuf's own encoder builds an object a reply; the bytes before the contents are nearly always the same, so they are kept. Contents are
raw, the entries in the order of the outputs. Field numbers are those of `proto/inference.proto`; a test decodes with the generated classes.
"""

from collections.abc import Sequence

import numpy as np
from dormouse_core.tensors import encode_raw

from dormouse_worker.signatures import Signature

_KEPT = 4096


def varint(value: int) -> bytes:
    if value < 0:
        value += 1 << 64
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def field(number: int, value: bytes) -> bytes:
    """A length-delimited field."""
    return varint(number << 3 | 2) + varint(len(value)) + value


class Encoder:
    def __init__(self, name: str, signature: Signature) -> None:
        self._name = field(1, name.encode()) + field(2, b"1")
        self._specs = signature.outputs
        self._heads: dict[tuple[tuple[int, ...], str, tuple[tuple[int, ...], ...]], bytes] = {}
        self._lengths: dict[int, bytes] = {}

    def encode(self, wanted: Sequence[int], ident: str, outputs: Sequence[np.ndarray]) -> bytes:
        """`outputs`: one array for each output of the signature, of which `wanted` are sent; `ident` is the request's id."""
        parts = [b""]
        shapes = []
        for index in wanted:
            array = outputs[index]
            shapes.append(array.shape)
            raw = encode_raw(array, self._specs[index].datatype)
            length = self._lengths.get(len(raw))
            if length is None:
                length = self._kept_length(len(raw))
            parts += (length, raw)
        key = (tuple(wanted), ident, tuple(shapes))
        head = self._heads.get(key)
        if head is None:
            head = self._head(*key)
            if not ident:  # ids are the caller's and seldom come twice
                if len(self._heads) >= _KEPT:
                    self._heads.clear()
                self._heads[key] = head
        parts[0] = head
        return b"".join(parts)

    def _head(self, wanted: tuple[int, ...], ident: str, shapes: tuple[tuple[int, ...], ...]) -> bytes:
        parts = [self._name]
        if ident:
            parts.append(field(3, ident.encode()))
        for index, shape in zip(wanted, shapes, strict=True):
            spec = self._specs[index]
            packed = b"".join(varint(size) for size in shape)
            tensor = field(1, spec.name.encode()) + field(2, spec.datatype.encode()) + (field(3, packed) if packed else b"")
            parts.append(field(5, tensor))
        return b"".join(parts)

    def _kept_length(self, size: int) -> bytes:
        if len(self._lengths) >= _KEPT:
            self._lengths.clear()
        found = self._lengths[size] = varint(6 << 3 | 2) + varint(size)
        return found
