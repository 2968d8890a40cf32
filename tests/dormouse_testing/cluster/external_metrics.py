"""A metrics API of one number, for HorizontalPodAutoscalers: a fake, on the host, of what KEDA or a Prometheus adapter serves.

It stands in for who measures; the autoscaler that reads it, and the API server between them, are real.
"""

import contextlib
import json
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from dormouse_testing.cluster.client import Cluster
from dormouse_testing.cluster.layout import HOST_IP

GROUP, VERSION, METRIC = "external.metrics.k8s.io", "v1beta1", "waiting"
PLACE = "kube-system"
NAME = "one-metric"


@dataclass(slots=True)
class Metric:
    value: int = 0


@contextlib.contextmanager
def served(cluster: Cluster) -> Iterator[Metric]:
    """The metric `waiting` of every namespace. Gone from the API server at the end, or no namespace could be deleted."""
    assert cluster.layout is not None
    metric = Metric()
    server = ThreadingHTTPServer((HOST_IP, 0), _handler(metric))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cluster.layout.pki / "apiserver.crt", cluster.layout.pki / "apiserver.key")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    objects = _objects(server.server_address[1])
    try:
        cluster.apply(*objects, namespace=PLACE)
        yield metric
    finally:
        cluster.kubectl("delete", "-n", PLACE, "--ignore-not-found", "-f", "-", stdin="\n---\n".join(map(json.dumps, reversed(objects))))
        server.shutdown()
        thread.join()
        server.server_close()


def _handler(metric: Metric) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0].strip("/").split("/")
            if path == ["apis", GROUP, VERSION]:
                kind = {"name": METRIC, "singularName": "", "namespaced": True, "kind": "ExternalMetricValueList", "verbs": ["get"]}
                self._answer(
                    200, {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": f"{GROUP}/{VERSION}", "resources": [kind]}
                )
            elif path[:4] == ["apis", GROUP, VERSION, "namespaces"] and path[5:] == [METRIC]:
                item = {"metricName": METRIC, "metricLabels": {}, "timestamp": "2026-01-01T00:00:00Z", "value": str(metric.value)}
                self._answer(200, {"kind": "ExternalMetricValueList", "apiVersion": f"{GROUP}/{VERSION}", "metadata": {}, "items": [item]})
            else:
                self._answer(404, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404})

        def _answer(self, status: int, body: object) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    return Handler


def _objects(port: int) -> list[dict[str, object]]:
    service = {"metadata": {"name": NAME}, "spec": {"ports": [{"port": 443, "targetPort": port}]}}
    place = {"metadata": {"name": NAME, "labels": {"kubernetes.io/service-name": NAME}}, "addressType": "IPv4"}
    api = {
        "group": GROUP,
        "version": VERSION,
        "groupPriorityMinimum": 100,
        "versionPriority": 100,
        "insecureSkipTLSVerify": True,
        "service": {"name": NAME, "namespace": PLACE},
    }
    return [
        {"apiVersion": "v1", "kind": "Service", **service},
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            **place,
            "endpoints": [{"addresses": [HOST_IP]}],
            "ports": [{"port": port}],
        },
        {"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": {"name": f"{VERSION}.{GROUP}"}, "spec": api},
    ]
