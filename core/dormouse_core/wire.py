"""What a ModelInferRequest would become, counted on the wire before any of it is built.

Two bytes on the wire can become an object of 350: 15 MiB of empty inputs are 1.3 GB in protobuf's library, and every one of them is
refused afterwards. So who reads a message counts first, and stops at the first field too many: the count costs what the limit is, whatever
was sent. A message too short to hold that many fields is not counted at all.

Field numbers and wire types are those of `proto/inference.proto`; a test compares them.
"""

from collections.abc import Iterator

from dormouse_core.errors import InvalidArgument, ResourceExhausted
from dormouse_core.limits import MESSAGE_DIMENSIONS, MESSAGE_ELEMENTS, MESSAGE_FIELDS, MESSAGE_INTEGERS

Field = tuple[int, int, int, int, int]
"""Its number and wire type; where it begins, where its value begins, where it ends."""

SHORT = 2 * MESSAGE_FIELDS
"""Bytes of a message that cannot hold more fields than are allowed: a tag and a length or value are two."""

_VARINT, _FIXED64, _SIZED, _FIXED32 = 0, 1, 2, 5
_ROUTING = frozenset({1, 2, 3, 4})  # model_name, model_version, id, parameters
_INPUTS, _OUTPUTS = 5, 6
_SHAPE, _PARAMETERS, _CONTENTS = 3, 4, 5  # of an input
_OUTPUT_PARAMETERS = 2
_FIXED_CONTENTS = frozenset({6, 7})  # fp32_contents, fp64_contents: as large in memory as on the wire
_BYTES_CONTENTS = 8
_CONTINUED = bytes(range(128, 256))
_PIECE = 1 << 20  # bytes looked at at once


def routing(message: bytes) -> bytes:
    """The fields of `message` that routing needs (model_name, model_version, id, parameters), as a message of their own.

    InvalidArgument: no message on its uppermost level, which is all that is looked at. ResourceExhausted: too many fields there.
    """
    if len(message) <= SHORT:
        return message
    count = _Count()
    return b"".join(message[begin:end] for number, _, begin, _, end in count.fields(message, 0, len(message)) if number in _ROUTING)


def check(message: bytes) -> None:
    """Raises before it would be expensive to build `message`: ResourceExhausted, too many fields, dimensions or elements; InvalidArgument,
    no message."""
    if len(message) <= SHORT:
        return
    count = _Count()
    for number, kind, _, begin, end in count.fields(message, 0, len(message)):
        if kind == _SIZED and number == _INPUTS:
            _check_input(count, message, begin, end)
        elif kind == _SIZED and number == _OUTPUTS:
            for inner, inner_kind, _, at, stop in count.fields(message, begin, end):
                if inner == _OUTPUT_PARAMETERS and inner_kind == _SIZED:
                    count.all(message, at, stop)
        elif kind == _SIZED and number == _PARAMETERS:
            count.all(message, begin, end)


def _check_input(count: "_Count", message: bytes, begin: int, end: int) -> None:
    dimensions = 0
    for number, kind, _, at, stop in count.fields(message, begin, end):
        if number == _SHAPE:
            dimensions += 1 if kind == _VARINT else _varints(message, at, stop, MESSAGE_DIMENSIONS)
            if dimensions > MESSAGE_DIMENSIONS:
                raise ResourceExhausted(
                    f"inputs.shape: more than {MESSAGE_DIMENSIONS} dimensions found, at most {MESSAGE_DIMENSIONS} are allowed"
                )
        elif kind == _SIZED and number == _PARAMETERS:
            count.all(message, at, stop)
        elif kind == _SIZED and number == _CONTENTS:
            _check_contents(count, message, at, stop)


def _check_contents(count: "_Count", message: bytes, begin: int, end: int) -> None:
    for number, kind, _, at, stop in count.elements(message, begin, end):
        if kind == _SIZED and number != _BYTES_CONTENTS and number not in _FIXED_CONTENTS:
            count.integers(_varints(message, at, stop, MESSAGE_INTEGERS))


def _varints(message: bytes, begin: int, end: int, most: int) -> int:
    """How many varints lie there, and if they are more than `most`, at least that many: each ends in a byte without its highest bit."""
    found = 0
    while begin < end and found <= most:
        found += len(message[begin : min(end, begin + _PIECE)].translate(None, _CONTINUED))
        begin += _PIECE
    return found


class _Count:
    """What one message holds so far."""

    def __init__(self) -> None:
        self._fields = 0
        self._elements = 0
        self._integers = 0

    def fields(self, message: bytes, begin: int, end: int) -> Iterator[Field]:
        """Those that lie there on one level, each of which counts."""
        for found in _fields(message, begin, end):
            self._fields += 1
            if self._fields > MESSAGE_FIELDS:
                raise ResourceExhausted(
                    f"the message: more than {MESSAGE_FIELDS} inputs, outputs, parameters, raw_input_contents and fields in them found, "
                    f"at most {MESSAGE_FIELDS} are allowed"
                )
            yield found

    def elements(self, message: bytes, begin: int, end: int) -> Iterator[Field]:
        """The same for typed contents, whose fields are elements, or packed arrays of them."""
        for found in _fields(message, begin, end):
            self._elements += 1
            if self._elements > MESSAGE_ELEMENTS:
                raise ResourceExhausted(
                    f"inputs.contents: more than {MESSAGE_ELEMENTS} elements found that are fields of their own (BYTES, or not packed), "
                    f"at most {MESSAGE_ELEMENTS} are allowed"
                )
            yield found

    def integers(self, more: int) -> None:
        self._integers += more
        if self._integers > MESSAGE_INTEGERS:
            raise ResourceExhausted(
                f"inputs.contents: more than {MESSAGE_INTEGERS} integers or BOOLs found, at most {MESSAGE_INTEGERS} are allowed; "
                "raw_input_contents may hold more"
            )

    def all(self, message: bytes, begin: int, end: int) -> None:
        for _ in self.fields(message, begin, end):
            pass


def _fields(message: bytes, begin: int, end: int) -> Iterator[Field]:
    while begin < end:
        found = _field(message, begin, end)
        yield found
        begin = found[4]


def _field(message: bytes, first: int, end: int) -> Field:
    tag, at = _varint(message, first, end)
    kind = tag & 7
    if kind == _SIZED:
        size, at = _varint(message, at, end)
        stop = at + size
    elif kind == _VARINT:
        _, stop = _varint(message, at, end)
    elif kind == _FIXED64:
        stop = at + 8
    elif kind == _FIXED32:
        stop = at + 4
    else:
        raise InvalidArgument(f"the message is not an inference.ModelInferRequest: wire type {kind} found at byte {first}")
    if stop > end:
        raise InvalidArgument(f"the message is not an inference.ModelInferRequest: the field at byte {first} ends beyond its end")
    return tag >> 3, kind, first, at, stop


def _varint(message: bytes, at: int, end: int) -> tuple[int, int]:
    """The value and where it ends."""
    if at < end and message[at] < 0x80:  # most are
        return message[at], at + 1
    value = shift = 0
    while at < end and shift < 70:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise InvalidArgument(f"the message is not an inference.ModelInferRequest: no varint found at byte {at}")
