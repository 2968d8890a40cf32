"""Where a part listens: HOST:PORT, or unix:PATH as on one machine."""

import http.client
import socket

UNIX = "unix:"


def connected(address: str, timeout: float = 5.0) -> socket.socket:
    if not address.startswith(UNIX):
        host, _, port = address.rpartition(":")
        return socket.create_connection((host, int(port)), timeout)
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(timeout)
    try:
        sock.connect(address.removeprefix(UNIX))
    except OSError:
        sock.close()
        raise
    return sock


def page(address: str, path: str = "/metrics") -> str:
    """What it answers by HTTP/1.1."""
    connection = http.client.HTTPConnection("part")
    connection.sock = connected(address)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        assert response.status == 200, response.status
        return response.read().decode()
    finally:
        connection.close()
