"""Prometheus' text of this process, on a port of its own."""

from threading import Thread
from wsgiref.simple_server import WSGIServer

from prometheus_client import REGISTRY, CollectorRegistry, start_http_server

from dormouse_kit.families import wildcard


class Served:
    """`port`: the bound one, where 0 was asked for."""

    def __init__(self, server: WSGIServer, thread: Thread) -> None:
        self._server, self._thread = server, thread
        self.port: int = server.server_port

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def serve(port: int, *, host: str = "127.0.0.1", registry: CollectorRegistry = REGISTRY) -> Served:
    """Serves ``GET /metrics`` from a thread of its own until `close`. Loopback unless told otherwise; `port` 0: a free one."""
    server, thread = start_http_server(port, addr=wildcard(host), registry=registry)
    return Served(server, thread)
