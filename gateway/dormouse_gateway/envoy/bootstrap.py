"""What Envoy is started with: the port, the filters, the two clusters that do not come by xDS. A pure function of the
settings, of the families of addresses that this machine has, and of the clock's offset that only tests set.

The listener is static, but it opens only when its scoped routes are there, and these come from the agent, which says
nothing before its first full listing of the store: a gateway that starts without agent or etcd is not ready, instead
of answering for functions that it does not know. `initial_fetch_timeout: 0s` is what makes Envoy wait for ever.

Each limit that Envoy has by default is either raised here on purpose or named with the reason for its value.
"""

import importlib.resources
import json
from typing import Any

from dormouse_core import addresses, headernames, limits, modelnames, shedding
from dormouse_kit.clock import offset_for_tests
from dormouse_kit.families import wildcard

from dormouse_gateway.paths import UNARY
from dormouse_gateway.settings import FRAME, UNIX, GatewaySettings

Json = dict[str, Any]

TYPE = "type.googleapis.com/"
ENTRY = "+"  # the scope that every call enters with; its one cluster is the relay
RELAY_CLUSTER = "relay"
OPENING, MESSAGES = "dormouse.opening", "dormouse.messages"  # filters for streams alone
READ_BYTES = 16 * limits.KIB
MANY_FRAMES = 1_000_000  # more than one for each call that a connection carries, resets of calls that ended meanwhile included
MANY = 100_000  # where Envoy wants a number and we mean "not this one": the relay and the workers have the limits


def extension(name: str, message: str, **content: Any) -> Json:
    return {"name": name, "typed_config": {"@type": TYPE + message, **content}}


def socket_address(text: str, key: str) -> Json:
    host, port = addresses.parse(text, key)
    return {"socket_address": {"address": host, "port_value": port}}


def listening(text: str) -> Json:
    """Where callers connect: 0.0.0.0 is IPv6's wildcard, too, where this machine has an address of it that callers reach."""
    host, port = addresses.parse(text, "listen")
    host = wildcard(host)
    return {"socket_address": {"address": host, "port_value": port, **({"ipv4_compat": True} if host == "::" else {})}}


def peer_address(text: str, key: str) -> Json:
    """Of a part of ours: IP:port or unix:PATH."""
    return {"pipe": {"path": text.removeprefix(UNIX)}} if text.startswith(UNIX) else socket_address(text, key)


def host_name(text: str) -> str:
    """What Envoy calls the host at this address, in an override header."""
    return text.removeprefix(UNIX)


# The agent runs beside its Envoy: nothing cuts it off, and one that is busy or has no processor for some seconds must not lose all the
# streams that it carries. One that stands still for longer is ended by its probe.
AGENT_STANDSTILL_SECONDS = 10


def http2(*, answers_in: int = 2, **options: Any) -> Json:
    """Protocol options of a cluster that speaks HTTP/2.

    Keepalive of 1 s with `answers_in` seconds to answer: a peer that is frozen or cut off resets its calls, which sends them to the relay.
    """
    name = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    protocol = {
        "max_concurrent_streams": MANY,
        "initial_stream_window_size": limits.MIB,
        "initial_connection_window_size": 16 * limits.MIB,
        # All callers' calls to this host share the connection. Envoy's own guards (10,000 and 1,000 frames) would end it when one caller
        # resets many calls at once.
        "max_outbound_frames": MANY_FRAMES,
        "max_outbound_control_frames": MANY_FRAMES,
        "connection_keepalive": {"interval": "1s", "timeout": f"{answers_in}s"},
        **options,
    }
    return {
        name: {
            "@type": TYPE + name,
            "common_http_protocol_options": {"idle_timeout": "0s"},
            "explicit_http_config": {"http2_protocol_options": protocol},
        }
    }


def circuit_breakers() -> Json:
    """Envoy's own are 1,024 calls: at 1,025 held calls it would answer 'overflow' though the relay has room."""
    raised = dict.fromkeys(("max_connections", "max_pending_requests", "max_requests", "max_retries"), MANY)
    return {"thresholds": [{"priority": "DEFAULT", **raised}, {"priority": "HIGH", **raised}]}


def static_cluster(name: str, endpoint: Json) -> Json:
    """One of the agent's."""
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "circuit_breakers": circuit_breakers(),
        "typed_extension_protocol_options": http2(answers_in=AGENT_STANDSTILL_SECONDS),
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": {"address": endpoint}}]}]},
    }


def script(name: str) -> str:
    return importlib.resources.files(__package__).joinpath(name).read_text()


def metadata_source() -> str:
    """metadata.lua behind the limits and the texts that it needs."""
    head = {
        "METADATA_BYTES": limits.METADATA_BYTES,
        "ENTRY_BYTES": limits.METADATA_ENTRY_BYTES,
        "HEAVY_BYTES": limits.METADATA_HEAVY_BYTES,
        "TABLE_BYTES": limits.HPACK_TABLE_BYTES,
        "HOPS": json.dumps(headernames.HOPS),
        "CAME_BACK": json.dumps(addresses.CAME_BACK),
    }
    return "".join(f"local {name} = {value}\n" for name, value in head.items()) + script("metadata.lua")


def opening_source(settings: GatewaySettings) -> str:
    """opening.lua behind the limits that it needs: of each thread."""
    head = (
        f"local OPENED, LEAST = {settings.max_streams // settings.concurrency}, {limits.CONNECTION_OPENED_STREAMS}\n"
        f"local SECONDS = {limits.OPENING_SECONDS}\n"
    )
    return head + script("opening.lua")


def messages_source(settings: GatewaySettings) -> str:
    """messages.lua behind the limits that it needs."""
    unary = ", ".join(f"[{json.dumps(path)}] = true" for path in UNARY)
    largest = settings.max_message_bytes + limits.MESSAGE_OVERHEAD_BYTES  # what is larger, the relay refuses unread
    head = f"local UNARY = {{{unary}}}\nlocal LARGE, LARGEST = {limits.MESSAGE_LARGE_BYTES}, {largest}\n"
    return head + script("messages.lua")


def lua_source(settings: GatewaySettings) -> str:
    """router.lua behind the settings that it needs; JSON's strings are Lua's for these characters."""
    own = ", ".join(f"[{json.dumps(name)}] = true" for name in sorted(settings.own_names))
    head = (
        f"local DEFAULT_NAMESPACE = {json.dumps(settings.default_namespace)}\n"
        f"local RELAY = {json.dumps(host_name(settings.relay))}\n"
        f"local OWN_NAMES = {{{own}}}\n"
        f"local SESSION_ID_CHARACTERS, TENANT_CHARACTERS = {limits.SESSION_ID_CHARACTERS}, {limits.TENANT_CHARACTERS}\n"
        f"local MESSAGE_FIELDS, MODEL_NAME_BYTES = {limits.MESSAGE_FIELDS}, {modelnames.LONGEST}\n"
        f"local APART = {round(limits.CLOCK_SKEW_SECONDS * 1e6)}\n"
        f"local TEST_CLOCK_OFFSET = {round(offset_for_tests() * 1e6)}\n"
    )
    return head + script("router.lua")


def early_mutations(settings: GatewaySettings) -> list[Json]:
    def put(key: str, value: str) -> Json:
        return {"append": {"header": {"key": key, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}}

    return [
        *({"remove": name} for name in headernames.GATEWAYS),
        {"remove_on_match": {"key_matcher": {"prefix": "x-envoy-"}}},
        put(headernames.FN, ENTRY),
        put(headernames.MAX_MESSAGE, str(settings.max_message_bytes)),  # whoever answers holds requests and replies to it
        put(headernames.CONNECTION, "%CONNECTION_ID%"),
        put(headernames.SIZE, "%REQUEST_HEADERS_BYTES%"),
        put(headernames.WIRE, "%DOWNSTREAM_HEADER_BYTES_RECEIVED%"),
    ]


def local_replies(settings: GatewaySettings) -> Json:
    """Codes and texts of the errors that Envoy makes itself; its own are UNKNOWN, UNIMPLEMENTED or name no cause."""

    def mapper(condition: Json, code: int, text: str) -> Json:
        status = {"header": {"key": "grpc-status", "value": str(code)}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
        return {"filter": condition, "headers_to_add": [status], "body_format_override": {"text_format_source": {"inline_string": text}}}

    def flags(*names: str) -> Json:
        return {"response_flag_filter": {"flags": list(names)}}

    def code_is(code: int) -> Json:
        return {"status_code_filter": {"comparison": {"op": "EQ", "value": {"default_value": code, "runtime_key": f"dormouse.{code}"}}}}

    limit = settings.max_message_bytes
    stalled = (
        f"the call made no progress: an unfinished message may pause for {limits.MESSAGE_STALL_SECONDS} s, and for less while the gateway "
        "is short of memory, as may a call with much metadata"
    )
    return {
        "mappers": [
            mapper(code_is(413), 8, f"the message is larger than the gateway's limit of {limit} bytes (maxMessageBytes)"),
            mapper(flags("UO"), 8, "the gateway has too many calls under way to %REQ(dormouse-function)%"),
            mapper(flags("SI"), 8, stalled),
            mapper(flags("UH", "NC"), 14, "the gateway has no host to send the call to; try again"),
            mapper(flags("NR"), 14, "the gateway has no route for the call yet; try again"),
            mapper(flags("UF"), 14, "the gateway could not connect to its agent or to a worker; try again"),
            mapper(flags("UC", "UR", "LR", "UPE"), 14, "the connection broke while the call ran; its outcome is not known"),
            mapper(code_is(503), 8, "the gateway is short of memory; try again later"),  # the overload manager's, which has no flag
        ]
    }


def connection_manager(settings: GatewaySettings) -> Json:
    ads = {"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "0s"}
    fragment = {"name": headernames.FN, "index": 0, "element_separator": "\u0001"}
    return {
        "stat_prefix": "gateway",
        "codec_type": "HTTP2",
        "scoped_routes": {
            "name": "functions",
            "scope_key_builder": {"fragments": [{"header_value_extractor": fragment}]},
            "rds_config_source": ads,
            "scoped_rds": {"scoped_rds_config_source": ads},
        },
        "http2_protocol_options": {
            # nghttp2, the default, ends the connection, with everybody's calls on it, for one header of more than 64 KiB.
            "use_oghttp2_codec": True,
            "max_concurrent_streams": limits.CONNECTION_CALLS,
            "initial_stream_window_size": limits.MIB,
            "initial_connection_window_size": 16 * limits.MIB,
            "max_outbound_frames": MANY,  # flood guards of 10,000 and 1,000 frames close connections of honest, busy clients
            "max_outbound_control_frames": MANY,
            # A header that HTTP forbids resets its own call. By default it ends the connection, with the calls of everybody who shares it.
            "override_stream_error_on_invalid_http_message": True,
        },
        "common_http_protocol_options": {"idle_timeout": "0s", "max_headers_count": limits.METADATA_HARD_ENTRIES},
        # metadata.lua refuses what is beyond limits.METADATA_BYTES, with a code and a text; Envoy would reset it without either.
        "max_request_headers_kb": limits.METADATA_HARD_BYTES // limits.KIB,
        "stream_idle_timeout": "0s",  # held calls are silent for as long as they are held; some routes have one (resources.entry)
        "stream_flush_timeout": f"{limits.UNREAD_SECONDS}s",  # by default as the one above: without end
        "request_timeout": "0s",
        "request_headers_timeout": "10s",  # headers come in one piece from an honest client
        "drain_timeout": "5s",
        "use_remote_address": True,
        "generate_request_id": True,
        "preserve_external_request_id": True,
        "server_header_transformation": "PASS_THROUGH",
        "local_reply_config": local_replies(settings),
        "early_header_mutation_extensions": [
            extension(
                "envoy.http.early_header_mutation.header_mutation",
                "envoy.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation",
                mutations=early_mutations(settings),
            )
        ],
        "http_filters": [
            extension(
                OPENING,
                "envoy.extensions.filters.http.lua.v3.Lua",
                default_source_code={"inline_string": opening_source(settings)},
            ),
            extension(
                "dormouse.metadata",
                "envoy.extensions.filters.http.lua.v3.Lua",
                default_source_code={"inline_string": metadata_source()},
            ),
            extension(
                "envoy.filters.http.buffer",
                "envoy.extensions.filters.http.buffer.v3.Buffer",
                max_request_bytes=settings.max_message_bytes + FRAME,
            ),
            extension(
                "envoy.filters.http.lua",
                "envoy.extensions.filters.http.lua.v3.Lua",
                default_source_code={"inline_string": lua_source(settings)},
            ),
            extension(
                MESSAGES,
                "envoy.extensions.filters.http.lua.v3.Lua",
                default_source_code={"inline_string": messages_source(settings)},
            ),
            extension("envoy.filters.http.router", "envoy.extensions.filters.http.router.v3.Router", suppress_envoy_headers=True),
        ],
    }


def listener(settings: GatewaySettings) -> Json:
    name = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
    manager = extension("envoy.filters.network.http_connection_manager", name, **connection_manager(settings))
    return {
        "name": "callers",
        "address": listening(settings.listen),
        # Read at once: calls in it that are refused are freed only after it, and callers on the same thread wait as long.
        "per_connection_buffer_limit_bytes": READ_BYTES,
        "filter_chains": [{"filters": [manager]}],
    }


def overload(settings: GatewaySettings, *, told: bool = True) -> Json:
    """What Envoy does as its heap fills: each step harms fewer than the next.

    1. Calls that hold memory without progress have less and less time: those whose message is unfinished, and those with much metadata
       (the routes with an idle timeout, resources.entry), and those whose caller does not read the end of the reply. Nobody else has such a
       timer.
    2. The calls and streams that hold most are reset, as long as it is nearly full (`dormouse_core.shedding`).
    3. New calls are refused.
    """
    heap = extension(
        "envoy.resource_monitors.fixed_heap",
        "envoy.extensions.resource_monitors.fixed_heap.v3.FixedHeapConfig",
        max_heap_size_bytes=settings.max_heap_bytes or limits.ENVOY_HEAP_BYTES,  # the starter has sized it
    )
    connections = extension(
        "envoy.resource_monitors.global_downstream_max_connections",
        "envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
        max_active_downstream_connections=50_000,
    )

    def action(name: str, trigger: Json, **more: Any) -> Json:
        return {"name": f"envoy.overload_actions.{name}", "triggers": [{"name": "envoy.resource_monitors.fixed_heap", **trigger}], **more}

    def between(begin: float, end: float) -> Json:
        return {"scaled": {"scaling_threshold": begin, "saturation_threshold": end}}

    timers = {
        "@type": TYPE + "envoy.config.overload.v3.ScaleTimersOverloadActionConfig",
        "timer_scale_factors": [
            {"timer": "HTTP_DOWNSTREAM_STREAM_IDLE", "min_timeout": f"{limits.PRESSED_STALL_SECONDS}s"},
            {"timer": "HTTP_DOWNSTREAM_STREAM_FLUSH", "min_timeout": f"{limits.PRESSED_UNREAD_SECONDS}s"},
        ],
    }
    # Envoy's own: once for each change, and beyond the second nothing changes.
    by_heap = {"name": heap["name"], **between(limits.RESET_HEAP_FRACTION, limits.RESET_ALL_HEAP_FRACTION)}
    return {
        "refresh_interval": "0.1s",
        "resource_monitors": [heap, connections, *([shedding.monitor(settings.pressure)] if told else [])],
        "actions": [
            action("reduce_timeouts", between(0.5, 0.65), typed_config=timers),
            shedding.action(None if told else by_heap),
            action("stop_accepting_requests", {"threshold": {"value": 0.95}}),
        ],
        "buffer_factory_config": shedding.TRACKED,
    }


def bootstrap(settings: GatewaySettings, *, told: bool = True) -> Json:
    """Envoy's whole bootstrap, in the JSON form of its documentation. `told`: it can be told how short of memory it is, by a file."""
    ads = {"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "0s"}
    again = {"retry_back_off": {"base_interval": "0.1s", "max_interval": "0.5s"}}  # by default up to 30 s after the agent came back
    agent = {"envoy_grpc": {"cluster_name": "agent", "max_receive_message_length": 256 * limits.MIB, "retry_policy": again}}
    return {
        "node": {"id": settings.name, "cluster": "dormouse"},
        "admin": {"address": {"pipe": {"path": settings.admin, "mode": 0o600}}},
        "dynamic_resources": {
            "ads_config": {
                "api_type": "DELTA_GRPC",
                "transport_api_version": "V3",
                "set_node_on_first_message_only": True,
                "grpc_services": [agent],
            },
            "cds_config": ads,
        },
        "static_resources": {
            "clusters": [
                static_cluster("agent", peer_address(settings.xds, "xds")),
                static_cluster(RELAY_CLUSTER, peer_address(settings.relay, "relay")),
            ],
            "listeners": [listener(settings)],
        },
        "layered_runtime": {
            "layers": [
                {
                    "name": "dormouse",
                    "static_layer": {
                        # Callers whose deadlines pass within a second cancel many streams: Envoy would take 500 of them for an attack
                        # and close the connection, with every good call on it.
                        "overload.premature_reset_total_stream_count": 1_000_000_000,
                        "envoy.reloadable_features.grpc_timeout_returns_deadline_exceeded": True,
                        "envoy.reloadable_features.fixed_heap_use_allocated": True,
                    },
                }
            ]
        },
        "overload_manager": overload(settings, told=told),
    }
