"""A stand-in for the API server of our own cluster, which passes on what it is asked and misbehaves on request: on the level of answers,
where a packet filter cannot reach because they are encrypted. It shows the API server's own certificate.
"""

import contextlib
import http.client
import http.server
import socket
import ssl
import struct

from dormouse_testing.cluster.layout import API_PORT, HOST_IP, Layout
from dormouse_testing.cluster.serving import Secured, serving

HOP = frozenset({"connection", "transfer-encoding", "content-length", "keep-alive"})
PIECE = 65536


class Between(Secured):
    """`resets`: answers to reads break off in the middle, by a reset. `deaf`: watches of functions stay open and bring nothing."""

    def __init__(self, layout: Layout) -> None:
        super().__init__(_Handler, layout.pki / "apiserver.crt", layout.pki / "apiserver.key")
        self.resets = False
        self.deaf = False
        self.reset = 0  # answers that were
        self.swallowed = 0  # bytes
        self.authority = layout.pki / "ca.crt"


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Between

    def _pass(self) -> None:
        context = ssl.create_default_context(cafile=str(self.server.authority))
        upstream = http.client.HTTPSConnection(HOST_IP, API_PORT, context=context)
        try:
            body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            upstream.request(self.command, self.path, body, {n: v for n, v in self.headers.items() if n.lower() not in HOP})
            answer = upstream.getresponse()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in HOP:
                    self.send_header(name, value)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            while piece := answer.read1(PIECE):
                self._piece(piece)
            self.wfile.write(b"0\r\n\r\n")
            self.wfile.flush()
        finally:
            upstream.close()

    def _piece(self, piece: bytes) -> None:
        watched = "watch=true" in self.path
        if self.server.deaf and watched and "inferencefunctions" in self.path:
            self.server.swallowed += len(piece)
            return
        if self.server.resets and self.command == "GET":
            self.server.reset += 1
            self.wfile.write(b"%x\r\n%s" % (len(piece), piece[: len(piece) // 2]))
            self.wfile.flush()
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            raise ConnectionResetError
        self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        self.wfile.flush()

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _pass  # noqa: N815 - as the standard library asks for them

    def log_message(self, text: str, *words: object) -> None:
        """Tests look at what became of it."""


def between(layout: Layout) -> contextlib.AbstractContextManager[Between]:
    return serving(Between(layout))
