"""Two or three HTTP/1.1 requests, by hand: the standard library's client would be half of the supervisor's memory."""

import contextlib
import socket

from dormouse_worker.bootstrap import STAT_PREFIX


def get(host: str, port: int, path: str, timeout: float) -> int:
    """The status of GET at a TCP port; 0: no answer in time."""
    try:
        with socket.create_connection((host, port), timeout) as sock:
            return _exchange(sock, "GET", path)[0]
    except (OSError, ValueError):
        return 0


def post(admin: str, path: str) -> bool:
    """Whether Envoy's admin interface, a Unix socket, did what it was asked for."""
    return _admin(admin, "POST", path)[0] == 200


def active(admin: str) -> int:
    """Requests that Envoy's listener has not finished; 0 where it does not say."""
    _, body = _admin(admin, "GET", f"/stats?filter=^http\\.{STAT_PREFIX}\\.downstream_rq_active$")
    with contextlib.suppress(ValueError):
        return int(body.rpartition(":")[2])
    return 0


def _admin(admin: str, method: str, path: str) -> tuple[int, str]:
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(2.0)
            sock.connect(admin)
            return _exchange(sock, method, path)
    except (OSError, ValueError):
        return 0, ""


def _exchange(sock: socket.socket, method: str, path: str) -> tuple[int, str]:
    sock.sendall(f"{method} {path} HTTP/1.1\r\nhost: worker\r\nconnection: close\r\ncontent-length: 0\r\n\r\n".encode())
    data = b""
    while chunk := sock.recv(65536):
        data += chunk
    head, _, body = data.partition(b"\r\n\r\n")
    if b"transfer-encoding: chunked" in head.lower():
        parts = body.split(b"\r\n")
        body = b"".join(parts[1::2])
    return int(head.split(b" ", 2)[1]), body.decode()
