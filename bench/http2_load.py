"""A closed-loop load generator whose callers differ: h2load sends everybody's same request, but each session needs a caller of its own.

Unary gRPC over cleartext HTTP/2, by hand: requests are built once, answers are judged by their DATA bytes and the END_STREAM flag (an error
has no DATA). One process on one core makes several times the calls of a worker on another.
"""

import selectors
import socket
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

DATA, HEADERS, RST, SETTINGS, PING, GOAWAY, WINDOW = 0, 1, 3, 4, 6, 7, 8
END_STREAM, END_HEADERS, ACK = 1, 4, 1


@dataclass
class Result:
    ok: int = 0
    failed: int = 0
    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        return self.ok / self.seconds

    def quantile(self, q: float) -> float:
        """In milliseconds."""
        found = sorted(self.latencies)
        return found[min(len(found) - 1, int(q * len(found)))] * 1000 if found else float("nan")


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def literal(name: bytes, value: bytes) -> bytes:
    """A header field without indexing (RFC 7541, 6.2.2); both shorter than 127 bytes."""
    return b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value


class Caller:
    """One caller: always the same request, the next when the last is answered."""

    def __init__(self, path: str, message: bytes, metadata: Sequence[tuple[str, str]]) -> None:
        fields = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", "bench"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
        ]
        self.headers = b"".join(literal(name.encode(), value.encode()) for name, value in [*fields, *metadata])
        self.body = b"\0" + struct.pack(">I", len(message)) + message
        self.began = 0.0

    def request(self, stream: int) -> bytes:
        return frame(HEADERS, END_HEADERS, stream, self.headers) + frame(DATA, END_STREAM, stream, self.body)


class Connection:
    def __init__(self, host: str, port: int, callers: Sequence[Caller]) -> None:
        self.sock = socket.create_connection((host, port))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.callers = list(callers)
        self.open: dict[int, tuple[Caller, list[int]]] = {}
        self.next = 1
        self.rest = b""
        self.received = 0
        settings = struct.pack(">HIHI", 4, (1 << 31) - 1, 1, 0)
        self.sock.sendall(
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0, settings) + frame(WINDOW, 0, 0, struct.pack(">I", 1 << 30))
        )

    def send(self, callers: Sequence[Caller], now: float) -> None:
        parts = []
        for caller in callers:
            caller.began = now
            self.open[self.next] = caller, [0]
            parts.append(caller.request(self.next))
            self.next += 2
        self.sock.sendall(b"".join(parts))

    def read(self, result: Result) -> list[Caller]:
        """The callers whose answers are complete."""
        chunk = self.sock.recv(1 << 18)
        if not chunk:
            raise ConnectionError("the server closed the connection")
        data = self.rest + chunk
        at = 0
        done: list[Caller] = []
        now = time.perf_counter()
        while at + 9 <= len(data):
            size = data[at] << 16 | data[at + 1] << 8 | data[at + 2]
            end = at + 9 + size
            if end > len(data):
                break
            kind, flags = data[at + 3], data[at + 4]
            if kind in (DATA, HEADERS, RST):
                stream = int.from_bytes(data[at + 5 : at + 9], "big")
                caller, got = self.open[stream]
                if kind == DATA:
                    got[0] += size
                    self.received += size
                if kind == RST or flags & END_STREAM:
                    del self.open[stream]
                    done.append(caller)
                    if got[0]:
                        result.ok += 1
                        result.latencies.append(now - caller.began)
                    else:
                        result.failed += 1
            elif kind == SETTINGS and not flags & ACK:
                self.sock.sendall(frame(SETTINGS, ACK, 0, b""))
            elif kind == PING and not flags & ACK:
                self.sock.sendall(frame(PING, ACK, 0, data[at + 9 : end]))
            elif kind == GOAWAY:
                raise ConnectionError("the server said GOAWAY")
            at = end
        self.rest = data[at:]
        if self.received > 1 << 28:
            self.sock.sendall(frame(WINDOW, 0, 0, struct.pack(">I", self.received)))
            self.received = 0
        return done


def run(host: str, port: int, callers: Sequence[Caller], seconds: float, connections: int = 8) -> Result:
    """Every caller calls until `seconds` have passed; what is open then is waited for, but not counted."""
    links = [Connection(host, port, callers[n::connections]) for n in range(min(connections, len(callers)))]
    selector = selectors.DefaultSelector()
    for link in links:
        selector.register(link.sock, selectors.EVENT_READ, link)
    result = Result()
    began = time.perf_counter()
    end = began + seconds
    for link in links:
        link.send(link.callers, began)
    late = Result()
    while any(link.open for link in links):
        now = time.perf_counter()
        if now > end and not result.seconds:
            result.seconds = now - began
        if now > end + 10:
            raise SystemExit(f"{sum(len(link.open) for link in links)} calls were never answered")
        for key, _ in selector.select(1.0):
            link: Connection = key.data
            done = link.read(late if result.seconds else result)
            if done and not result.seconds:
                link.send(done, time.perf_counter())
    for link in links:
        link.sock.close()
    selector.close()
    return result
