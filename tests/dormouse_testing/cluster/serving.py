"""Web servers on the host that pods of our own cluster reach, by TLS; one of them serves files, with a certificate that they can be told
to trust."""

import contextlib
import http.server
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from dormouse_testing.cluster.layout import HOST_IP


class Secured(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, handler: type[http.server.BaseHTTPRequestHandler], certificate: Path, key: Path) -> None:
        super().__init__((HOST_IP, 0), handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)

    @property
    def url(self) -> str:
        return f"https://{HOST_IP}:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Whoever breaks off may."""


S = TypeVar("S", bound=Secured)


@contextlib.contextmanager
def serving(server: S) -> Iterator[S]:
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Files(Secured):
    """Serves what is in `files` by path, with the query or without; 404 for the rest. Has the headers that a reader of buckets needs."""

    def __init__(self, folder: Path) -> None:
        self.files: dict[str, bytes] = {}
        self.certificate = folder / "cert.pem"
        key = folder / "key.pem"
        words = ["-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=files", "-days", "2", "-addext", f"subjectAltName=IP:{HOST_IP}"]
        words += ["-addext", "basicConstraints=critical,CA:FALSE"]  # rustls takes no authority for a server
        subprocess.run(["openssl", "req", *words, "-out", self.certificate, "-keyout", key], check=True, capture_output=True)
        super().__init__(_Handler, self.certificate, key)


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Files)
        body = self.server.files.get(self.path, self.server.files.get(self.path.partition("?")[0]))
        if body is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", '"e"')
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, text: str, *words: object) -> None:
        """Tests look at what became of it."""


def files(folder: Path) -> contextlib.AbstractContextManager[Files]:
    return serving(Files(folder))
