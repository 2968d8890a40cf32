"""Just enough HTTP/2 (RFC 9113) to send what no client library would: any header, any body cut into any frames. No flow control: bodies
stay under the first window of 64 KiB, and a connection is used for a few calls.
"""

import socket
import struct
from collections.abc import Sequence
from types import TracebackType

from dormouse_testing.places import connected

_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GOAWAY = 0, 1, 3, 4, 6, 7
_END_STREAM, _END_HEADERS, _ACK = 1, 4, 1
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
Headers = Sequence[tuple[bytes, bytes]]


class Connection:
    def __init__(self, address: str, timeout: float = 20.0) -> None:
        self._socket = connected(address, timeout)
        if self._socket.family != socket.AF_UNIX:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._bytes = b""
        self._stream = -1
        self._socket.sendall(PREFACE + frame(_SETTINGS, 0, 0, b""))

    def call(self, headers: Headers, chunks: Sequence[bytes]) -> str:
        """One request to its end: "answered", "reset", or "closed" (then the connection is of no more use). Raises TimeoutError."""
        self._stream += 2
        stream = self._stream
        try:
            self._socket.sendall(frame(_HEADERS, _END_HEADERS, stream, b"".join(literal(*header) for header in headers)))
            for number, chunk in enumerate(chunks):
                self._socket.sendall(frame(_DATA, _END_STREAM if number == len(chunks) - 1 else 0, stream, chunk))
            return self._until_end(stream)
        except (ConnectionError, EOFError):
            return "closed"

    def open(self, headers: Headers) -> int:
        """A stream whose write side stays open; its number."""
        self._stream += 2
        self._socket.sendall(frame(_HEADERS, _END_HEADERS, self._stream, b"".join(literal(*header) for header in headers)))
        return self._stream

    def send(self, stream: int, body: bytes, size: int, *, end: bool = False) -> None:
        """`body` in DATA frames of at most `size` bytes, each a packet of its own. `end`: with the last the write side closes."""
        for begin in range(0, len(body), size):
            last = end and begin + size >= len(body)
            self._socket.sendall(frame(_DATA, _END_STREAM if last else 0, stream, body[begin : begin + size]))

    def message(self, stream: int) -> bytes:
        """The next gRPC message, without its prefix. EOFError: the stream ended."""
        found = b""
        while len(found) < 5 or len(found) < 5 + int.from_bytes(found[1:5], "big"):
            kind, flags, of, payload = self._read()
            self._reply(kind, flags, payload)
            if of == stream and kind == _DATA:
                found += payload
            elif of == stream and (kind == _RESET or flags & _END_STREAM):
                raise EOFError(payload)
        return found[5:]

    def frames(self, stream: int) -> list[str]:
        """What the stream's answer came in, to its end: HEADERS and DATA. EOFError: it was reset."""
        found: list[str] = []
        while True:
            kind, flags, of, payload = self._read()
            self._reply(kind, flags, payload)
            if of != stream:
                continue
            if kind == _RESET:
                raise EOFError(payload)
            if kind in (_DATA, _HEADERS):
                found.append("DATA" if kind == _DATA else "HEADERS")
                if flags & _END_STREAM:
                    return found

    def left(self, stream: int) -> bool:
        """Whether the stream was answered, and its connection told to open no more (GOAWAY). EOFError: it was closed without either."""
        answered = told = False
        while not (answered and told):
            kind, flags, of, payload = self._read()
            self._reply(kind, flags, payload)
            told = told or kind == _GOAWAY
            if of == stream and kind == _RESET:
                return False
            answered = answered or (of == stream and kind in (_DATA, _HEADERS) and bool(flags & _END_STREAM))
        return True

    def _reply(self, kind: int, flags: int, payload: bytes) -> None:
        if kind == _SETTINGS and not flags & _ACK:
            self._socket.sendall(frame(_SETTINGS, _ACK, 0, b""))
        elif kind == _PING and not flags & _ACK:
            self._socket.sendall(frame(_PING, _ACK, 0, payload))

    def _until_end(self, stream: int) -> str:
        while True:
            kind, flags, of, payload = self._read()
            self._reply(kind, flags, payload)
            if kind == _GOAWAY:
                return "closed"
            if of == stream and kind == _RESET:
                return "reset"
            if of == stream and kind in (_DATA, _HEADERS) and flags & _END_STREAM:
                return "answered"

    def _read(self) -> tuple[int, int, int, bytes]:
        head = self._take(9)
        length = int.from_bytes(head[:3], "big")
        kind, flags, stream = struct.unpack(">BBI", head[3:])
        return kind, flags, stream & 0x7FFFFFFF, self._take(length)

    def _take(self, count: int) -> bytes:
        while len(self._bytes) < count:
            more = self._socket.recv(65536)
            if not more:
                raise EOFError
            self._bytes += more
        found, self._bytes = self._bytes[:count], self._bytes[count:]
        return found

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._socket.close()


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """One frame (RFC 9113, 4.1)."""
    return len(payload).to_bytes(3, "big") + struct.pack(">BBI", kind, flags, stream) + payload


def literal(name: bytes, value: bytes) -> bytes:
    """A header field without indexing and without Huffman coding (RFC 7541, 6.2.2)."""
    return b"\0" + length(name) + length(value)


def length(text: bytes) -> bytes:
    """`text` behind its length (RFC 7541, 5.1)."""
    size = len(text)
    if size < 127:
        return bytes([size]) + text
    out = bytearray([127])
    size -= 127
    while size > 127:
        out.append(size & 127 | 128)
        size >>= 7
    return bytes([*out, size]) + text
