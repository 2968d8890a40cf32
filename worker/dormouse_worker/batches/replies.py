"""From arrays to an encoded ModelInferResponse, by hand.

Protobuf's own encoder builds an object a reply; the bytes before the contents are nearly always the same, so they are kept. Contents are
raw, the entries in the order of the outputs. Field numbers are those of `proto/inference.proto`; a test decodes with the generated classes.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from dormouse_core.errors import ResourceExhausted
from dormouse_core.tensors import encode_raw

from dormouse_worker.models.signatures import Signature

_KEPT = 4096
_RAW = b"\x32"  # raw_output_contents


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


class Wanted(Protocol):
    """What of a request decides how its reply looks."""

    @property
    def id(self) -> str: ...
    @property
    def reply_bytes(self) -> int: ...
    @property
    def rows(self) -> int: ...
    @property
    def outputs(self) -> tuple[int, ...]: ...


class Encoder:
    """Encodes the replies of one function."""

    def __init__(self, name: str, signature: Signature) -> None:
        self._name = field(1, name.encode()) + field(2, b"1")
        self._specs = signature.outputs
        self._heads: dict[tuple[Any, ...], bytes] = {}

    def encode(self, request: Wanted, outputs: Sequence[np.ndarray]) -> bytes:
        """One reply, or ResourceExhausted: larger than the request allows.

        `outputs` has an array for each output of the signature, of which the request wants some."""
        shapes = tuple(outputs[index].shape for index in request.outputs)
        parts = [self._head(request.outputs, shapes)]
        for index in request.outputs:
            raw = encode_raw(outputs[index], self._specs[index].datatype)
            parts += (_RAW, varint(len(raw)), raw)
        return self._finish(parts, request)

    def encode_rows(self, requests: Sequence[Wanted], outputs: Sequence[np.ndarray]) -> list[bytes]:
        """The replies of a batch, whose rows lie one behind the other in `outputs`. Each output is turned into bytes once."""
        cuts: list[tuple[bytes, int, tuple[int, ...]]] = []
        for array, spec in zip(outputs, self._specs, strict=True):
            if spec.datatype == "BYTES" or spec.axis:
                return self._encode_each(requests, outputs)
            raw = encode_raw(array, spec.datatype)
            cuts.append((raw, len(raw) // array.shape[0], array.shape[1:]))
        heads: dict[tuple[tuple[int, ...], int], tuple[bytes, list[bytes]]] = {}
        replies: list[bytes] = []
        at = 0
        for request in requests:
            rows = request.rows
            wanted = request.outputs
            found = heads.get((wanted, rows))
            if found is None:
                head = self._head(wanted, tuple((rows, *cuts[index][2]) for index in wanted))
                found = heads[wanted, rows] = head, [_RAW + varint(rows * cuts[index][1]) for index in wanted]
            parts = [found[0]]
            for index, tag in zip(wanted, found[1], strict=True):
                raw, size, _ = cuts[index]
                parts += (tag, raw[at * size : (at + rows) * size])
            at += rows
            replies.append(self._finish(parts, request))
        return replies

    def _encode_each(self, requests: Sequence[Wanted], outputs: Sequence[np.ndarray]) -> list[bytes]:
        replies: list[bytes] = []
        at = 0
        for request in requests:
            following = at + request.rows
            rows = slice(at, following)
            cut = [array[(slice(None),) * (spec.axis or 0) + (rows,)] for array, spec in zip(outputs, self._specs, strict=True)]
            replies.append(self.encode(request, cut))
            at = following
        return replies

    def _finish(self, parts: list[bytes], request: Wanted) -> bytes:
        if request.id:  # the order of fields is free; at the end it leaves the rest the same for all
            parts.append(field(3, request.id.encode()))
        reply = b"".join(parts)
        if len(reply) > request.reply_bytes:
            raise ResourceExhausted(f"reply: {len(reply)} bytes found, at most {request.reply_bytes} are allowed (maxMessageBytes)")
        return reply

    def _head(self, wanted: tuple[int, ...], shapes: tuple[tuple[int, ...], ...]) -> bytes:
        """Names, datatypes and shapes. Nearly always one that was made before."""
        head = self._heads.get((wanted, shapes))
        if head is None:
            parts = [self._name]
            for index, shape in zip(wanted, shapes, strict=True):
                spec = self._specs[index]
                packed = b"".join(map(varint, shape))
                parts.append(
                    field(5, field(1, spec.name.encode()) + field(2, spec.datatype.encode()) + (field(3, packed) if packed else b""))
                )
            if len(self._heads) >= _KEPT:
                self._heads.clear()
            head = self._heads[wanted, shapes] = b"".join(parts)
        return head
