"""A few HTTP/1.1 requests, by hand: the standard library's client would be half of the supervisor's memory."""

import contextlib
import re
import socket

from dormouse_worker.process.bootstrap import STAT_PREFIX, UNIX, parse

LINE = 65_536
"""Bytes in which a first line ends."""
ANSWER = 16 << 20
"""Bytes of a whole answer."""
_FIRST = re.compile(rb"HTTP/\d\.\d (\d{3})(?!\d)")
CONNECT = 0.2
"""Seconds. The kernel accepts for a process that stands still too, until its backlog is full."""


class Probe:
    """One GET that is under way; nobody waits for it. `status` None: no answer yet; 0: there will be none."""

    def __init__(self, family: socket.AddressFamily, address: str | tuple[str, int], path: str, until: float) -> None:
        """`until`: when it counts as unanswered, monotonic seconds."""
        self.until = until
        self.status: int | None = None
        self.sock: socket.socket | None = socket.socket(family)
        self._data = b""
        try:
            self.sock.settimeout(CONNECT)
            self.sock.connect(address)
            self.sock.sendall(_request("GET", path))
            self.sock.setblocking(False)
        except OSError:
            self._end(0)

    def read(self) -> None:
        """To be called when `sock` is readable."""
        if self.sock is None:
            return
        try:
            data = self.sock.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._data += data
        if not data or len(self._data) > LINE:
            self._end(0)
        elif b"\r\n" in self._data:
            self._end(_status(self._data))

    def look(self, now: float) -> int | None:
        """The status by now."""
        if self.status is None and now >= self.until:
            self._end(0)
        return self.status

    def _end(self, status: int) -> None:
        self.status = status
        if self.sock is not None:
            self.sock.close()
            self.sock = None


def inference(listen: str, until: float) -> Probe:
    """Asks the interpreter, through the path on which calls come."""
    if listen.startswith(UNIX):
        return Probe(socket.AF_UNIX, listen.removeprefix(UNIX), "/probe", until)
    host, port = parse(listen)
    return Probe(socket.AF_INET6 if ":" in host else socket.AF_INET, (host, port), "/probe", until)


def process(admin: str, until: float) -> Probe:
    """Asks Envoy's main thread, which no Python can hold: whether the process runs at all."""
    return Probe(socket.AF_UNIX, admin, "/ready", until)


def alive(admin: str, timeout: float) -> bool:
    """The same, waiting for it."""
    return _admin(admin, "GET", "/ready", timeout)[0] == 200


def post(admin: str, path: str) -> bool:
    """Whether Envoy's admin interface, a Unix socket, did what it was asked for."""
    return _admin(admin, "POST", path)[0] == 200


def active(admin: str) -> int:
    """Requests that Envoy's listener has not finished; 0 where it does not say."""
    _, body = _admin(admin, "GET", f"/stats?filter=^http\\.{STAT_PREFIX}\\.downstream_rq_active$")
    with contextlib.suppress(ValueError):
        return max(0, int(body.rpartition(":")[2]))
    return 0


def _admin(admin: str, method: str, path: str, timeout: float = 2.0) -> tuple[int, str]:
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(timeout)
            sock.connect(admin)
            return exchange(sock, method, path)
    except OSError:
        return 0, ""


def _request(method: str, path: str, body: bytes = b"", headers: str = "") -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nhost: worker\r\nconnection: close\r\n{headers}content-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def exchange(sock: socket.socket, method: str, path: str, body: bytes = b"", headers: str = "") -> tuple[int, str]:
    """(status, body). OSError: no answer, or none that is HTTP."""
    sock.sendall(_request(method, path, body, headers))
    data = b""
    while chunk := sock.recv(65536):
        data += chunk
        if len(data) > ANSWER:
            raise OSError(f"an answer of more than {ANSWER} bytes")
    head, _, text = data.partition(b"\r\n\r\n")
    if b"transfer-encoding: chunked" in head.lower():
        text = b"".join(text.split(b"\r\n")[1::2])
    status = _status(head)
    if not status:
        raise OSError(f"no answer in HTTP: {head[:80]!r}")
    return status, text.decode(errors="replace")


def _status(head: bytes) -> int:
    """Of an answer's first line; 0: it has none."""
    found = _FIRST.match(head)
    return int(found[1]) if found else 0
