"""gRPC on the wire, by hand: what stands between HTTP/2's bytes and a protobuf message.

A message travels as one byte of flags, four bytes of length, and its bytes
(https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md). Everything here may be wrong on arrival, since callers write it: each
function says what it found and what is allowed.
"""

import struct
import zlib
from collections.abc import Mapping
from urllib.parse import quote

from dormouse_core.errors import Code, DormouseError, InvalidArgument, ResourceExhausted, tellable

PREFIX = 5
ENCODINGS = "identity, gzip, deflate"
_length = struct.Struct(">I")
_wbits = {b"gzip": 31, b"deflate": 15}
_units = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}

Headers = Mapping[bytes, bytes]


def frame(message: bytes) -> bytes:
    return b"\0" + _length.pack(len(message)) + message


def too_large(found: int, limit: int) -> ResourceExhausted:
    return ResourceExhausted(f"message: at least {found} bytes found, at most {limit} are allowed (maxMessageBytes)")


def unframe(body: bytes, headers: Headers, limit: int) -> bytes:
    """The one message of a unary call's `body`, decompressed. `limit` is in bytes and holds for the decompressed message too.

    InvalidArgument: a body that is not exactly one message. ResourceExhausted: too large. UNIMPLEMENTED: an unknown compression.
    """
    if len(body) < PREFIX:
        raise InvalidArgument(f"message: {len(body)} bytes found, a gRPC message begins with a prefix of {PREFIX}")
    size = _length.unpack_from(body, 1)[0]
    if size > limit:
        raise too_large(size, limit)
    if size != len(body) - PREFIX:
        raise InvalidArgument(f"message: {len(body) - PREFIX} bytes follow the prefix, which says {size}; a unary call carries one message")
    flags = body[0]
    if flags == 0:
        return body[PREFIX:]
    if flags != 1:
        raise InvalidArgument(f"message: flags {flags} found, 0 or 1 (compressed) are allowed")
    return decompress(body[PREFIX:], headers.get(b"grpc-encoding", b""), limit)


def decompress(data: bytes, encoding: bytes, limit: int) -> bytes:
    """Never makes more than `limit` + 1 bytes, whatever the compressed ones claim."""
    wbits = _wbits.get(encoding)
    if wbits is None:
        name = encoding.decode("ascii", "replace") or "none"
        raise DormouseError(f"grpc-encoding: {name!r} found for a compressed message, {ENCODINGS} are supported", Code.UNIMPLEMENTED)
    machine = zlib.decompressobj(wbits)
    try:
        message = machine.decompress(data, limit + 1)
    except zlib.error as error:
        raise InvalidArgument(f"message: not valid {encoding.decode()}: {error}") from None
    if len(message) > limit:
        raise too_large(len(message), limit)
    if not machine.eof or machine.unused_data:
        raise InvalidArgument(f"message: the {encoding.decode()} data does not end where the message does")
    return message


def timeout(text: bytes) -> float:
    """Seconds of a ``grpc-timeout`` header: at most 8 digits and a unit. A malformed one is refused, as gRPC's own servers do."""
    unit = _units.get(text[-1:])
    digits = text[:-1]
    if unit is None or not digits.isdigit() or len(digits) > 8:
        raise InvalidArgument(f"grpc-timeout: {text.decode('ascii', 'replace')!r} found, 1 to 8 digits and one of H M S m u n are allowed")
    return int(digits) * unit


def status_message(text: str) -> bytes:
    """``grpc-message``: percent-encoded UTF-8, short enough for every client."""
    return quote(tellable(text), safe=" !\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~").encode("ascii")


class Reader:
    """Cuts the messages of a stream out of its chunks."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._bytes = bytearray()

    def feed(self, chunk: bytes) -> list[bytes]:
        """The messages that `chunk` completes. Compressed ones are refused: streams are between parts of Dormouse."""
        self._bytes += chunk
        messages: list[bytes] = []
        while len(self._bytes) >= PREFIX:
            size = _length.unpack_from(self._bytes, 1)[0]
            if self._bytes[0] != 0:
                raise DormouseError("message: compressed messages are not supported on this stream", Code.UNIMPLEMENTED)
            if size > self._limit:
                raise too_large(size, self._limit)
            if len(self._bytes) < PREFIX + size:
                break
            messages.append(bytes(self._bytes[PREFIX : PREFIX + size]))
            del self._bytes[: PREFIX + size]
        return messages
