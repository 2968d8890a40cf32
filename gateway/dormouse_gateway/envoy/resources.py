"""What Envoy is told of one function: its cluster, the cluster's endpoints, and the scoped route that names the owners of its shards.

Pure: a `Route` (what the routing table decided) becomes resources. A resource's version is a digest of its bytes, so that a restarted agent
sends nothing that Envoy has. `needs` orders make-before-break: a route goes out when Envoy has accepted the cluster and endpoints that it
names (else calls meet "cluster not found"), and a cluster is taken away when no route names it any more.
"""

import functools
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from dormouse_core import addresses, headernames, limits
from dormouse_proto import envoy
from google.protobuf.message import Message

from dormouse_gateway.envoy.bootstrap import (
    ENTRY,
    MESSAGES,
    OPENING,
    RELAY_CLUSTER,
    TYPE,
    Json,
    circuit_breakers,
    extension,
    host_name,
    http2,
    peer_address,
)
from dormouse_gateway.paths import INFER, UNARY
from dormouse_gateway.settings import GatewaySettings

CLUSTER = TYPE + "envoy.config.cluster.v3.Cluster"
ENDPOINTS = TYPE + "envoy.config.endpoint.v3.ClusterLoadAssignment"
SCOPE = TYPE + "envoy.config.route.v3.ScopedRouteConfiguration"
TYPES = (CLUSTER, ENDPOINTS, SCOPE)  # the order of sending; removals go the other way round

DIGITS = 90  # router.lua: two characters a shard from '!' on
NOBODY = "~~"
MAX_HOSTS = DIGITS * DIGITS

EVER = "2592000s"  # an idle timeout that only the overload manager lets pass

Name = tuple[str, str]  # type URL and resource name


NO_STREAM: Json = {
    name: {"@type": TYPE + "envoy.extensions.filters.http.lua.v3.LuaPerRoute", "disabled": True} for name in (OPENING, MESSAGES)
}
"""For the routes of unary calls, whose messages wait in Envoy until they are whole."""


@dataclass(frozen=True, slots=True)
class Resource:
    type_url: str
    name: str
    version: str
    body: bytes
    needs: tuple[tuple[Name, str], ...] = ()  # what Envoy must have accepted before, and in which version


@dataclass(frozen=True, slots=True)
class Route:
    """What Envoy should do with calls of one function. `owners`: a shard's owner by its place in `hosts`, -1: nobody; empty: stateless."""

    namespace: str
    name: str
    uid: str
    hosts: tuple[str, ...]  # ip:port or unix:path of every worker that may be dialled
    owners: tuple[int, ...] = ()
    rev: int = 0
    resend: bool = True  # a call that may have run may be sent again: by its key, or by retryStateless

    @property
    def label(self) -> str:
        return f"{self.namespace}/{self.name}"

    @property
    def cluster(self) -> str:
        """By uid: a function that was deleted and made again shares nothing with its namesake."""
        return f"{self.namespace}/{self.name}/{self.uid}"


def resource(type_url: str, name: str, content: Json, needs: tuple[tuple[Name, str], ...] = ()) -> Resource:
    return pack(type_url, name, envoy.from_dict(type_url.removeprefix(TYPE), content), needs)


def pack(type_url: str, name: str, message: Message, needs: tuple[tuple[Name, str], ...] = ()) -> Resource:
    body = message.SerializeToString(deterministic=True)
    return Resource(type_url, name, hashlib.sha256(body).hexdigest()[:16], body, needs)


@functools.lru_cache(maxsize=8192)
def cluster(name: str) -> Resource:
    """One a function, the same for its whole life; cached because making Envoy's nested messages costs a millisecond."""
    least = extension(
        "envoy.load_balancing_policies.least_request",
        "envoy.extensions.load_balancing_policies.least_request.v3.LeastRequest",
    )
    policy = extension(
        "envoy.load_balancing_policies.override_host",
        "envoy.extensions.load_balancing_policies.override_host.v3.OverrideHost",
        override_host_sources=[{"header": headernames.OWNER}],
        fallback_policy={"policies": [{"typed_extension_config": least}]},
    )
    content = {
        "name": name,
        "type": "EDS",
        "eds_cluster_config": {
            # Not 0s: one cluster whose endpoints do not come must not keep the gateway from starting.
            "eds_config": {"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "2s"},
        },
        "connect_timeout": "0.5s",
        "per_connection_buffer_limit_bytes": limits.MIB,
        "circuit_breakers": circuit_breakers(),
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
        "load_balancing_policy": {"policies": [{"typed_extension_config": policy}]},
        "typed_extension_protocol_options": http2(),
    }
    return resource(CLUSTER, name, content)


def endpoints(route: Route, relay: str) -> Resource:
    """Workers at priority 0; the relay at priority 1: there go retries, and every call while nobody is at priority 0."""

    def priority(level: int, addresses: Iterable[str]) -> Json:
        each = [{"endpoint": {"address": peer_address(text, "worker")}} for text in addresses]
        return {"priority": level, "lb_endpoints": each}

    content = {"cluster_name": route.cluster, "endpoints": [priority(0, route.hosts), priority(1, [relay])]}
    return resource(ENDPOINTS, route.cluster, content)


def shard_map(owners: Sequence[int]) -> str:
    """Two characters a shard, as router.lua's `owner` reads them."""
    return "".join(NOBODY if place < 0 else chr(33 + place // DIGITS) + chr(33 + place % DIGITS) for place in owners)


def retries(stateful: bool, resend: bool) -> Json:
    """One retry, and it goes to the relay: a step's by the second entry of the override list, a stateless call's by priority."""
    again = "connect-failure,refused-stream,retriable-headers"
    policy: Json = {
        "retry_on": f"{again},reset" if resend else again,
        "num_retries": 1,
        "retriable_headers": [{"name": headernames.AGAIN, "present_match": True}],
        "retry_back_off": {"base_interval": "0.001s", "max_interval": "0.002s"},
    }
    if not stateful:
        policy["retry_priority"] = extension(
            "envoy.retry_priorities.previous_priorities",
            "envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig",
            update_frequency=1,
        )
    return policy


def scope(route: Route, settings: GatewaySettings, needs: tuple[tuple[Name, str], ...]) -> Resource:
    metadata: Json = {"uid": route.uid, "rev": str(route.rev)}
    if route.owners:
        metadata |= {"hosts": ",".join(map(host_name, route.hosts)), "map": shard_map(route.owners)}
    elif route.hosts:
        metadata["open"] = "1"  # somebody takes calls; else they wait in the relay
    one = {
        "match": {"prefix": "/"},
        "metadata": {"filter_metadata": {"envoy.filters.http.lua": metadata}},
        "typed_per_filter_config": NO_STREAM,
        # 0s: the relay's hold and every try would count. Worker and relay enforce the limits; the caller's deadline resets the stream.
        # The idle timeout of the entry's route ends here: the message is whole.
        "route": {
            "cluster": route.cluster,
            "timeout": "0s",
            "idle_timeout": "0s",
            "retry_policy": retries(bool(route.owners), route.resend),
        },
        # Also with what goes to the relay in the end: it tells its own Envoy's word from another relay's.
        "request_headers_to_add": [
            {"header": {"key": headernames.HOPS, "value": addresses.BY_ENVOY}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
        ],
        # Smaller: larger bodies would never be retried.
        "request_body_buffer_limit": settings.max_message_bytes + limits.MESSAGE_OVERHEAD_BYTES,
    }
    return _scope(route.label, [one], needs)


def entry(settings: GatewaySettings, correction_us: int = 0) -> Resource:
    """The scope '+': every call enters here, and what router.lua does not move elsewhere goes to the relay.

    `correction_us`: what is to be added to this machine's clock for timestamps.

    A unary call goes on when its message is whole, so that unfinished ones lie nowhere but in Envoy. Until then its route has an idle
    timeout; router.lua then marks it as whole, which is another route. A call may be silent for hours once its message is whole, and a
    stream from its start: their routes have none, unless they hold much metadata. Those have one that ends nobody until the overload
    manager shortens it.

    An agent that restarts is away for some seconds: calls wait for it. A unary call that was in the relay is sent again
    under its key; the relay knows by the count of tries that it may have run. A stream is sent again only if it never
    connected.
    """
    unbuffered = {
        "envoy.filters.http.buffer": {"@type": TYPE + "envoy.extensions.filters.http.buffer.v3.BufferPerRoute", "disabled": True},
    }
    heavy, whole = ({"name": name, "present_match": True} for name in (headernames.HEAVY, headernames.WHOLE))

    def to_relay(path: Json, *headers: Json, again: str, idle: str = "0s", **more: Any) -> Json:
        policy = {
            "retry_on": again,
            "num_retries": 20,
            "retry_back_off": {"base_interval": "0.1s", "max_interval": "1s"},
        }
        return {
            "match": {**path, "headers": list(headers)},
            "route": {"cluster": RELAY_CLUSTER, "timeout": "0s", "idle_timeout": idle, "retry_policy": policy},
            "request_body_buffer_limit": settings.max_message_bytes + limits.MESSAGE_OVERHEAD_BYTES,
            **more,
        }

    once = "connect-failure,refused-stream"
    routes: list[Json] = []
    for path in UNARY:
        again = f"{once},reset" if path == INFER else once
        routes += [
            to_relay({"path": path}, whole, heavy, again=again, idle=EVER, typed_per_filter_config=NO_STREAM),
            to_relay({"path": path}, whole, again=again, typed_per_filter_config=NO_STREAM),
            to_relay({"path": path}, again=again, idle=f"{limits.MESSAGE_STALL_SECONDS}s", typed_per_filter_config=NO_STREAM),
        ]
    routes += [
        to_relay({"prefix": "/"}, heavy, again=once, idle=EVER, typed_per_filter_config=unbuffered),
        to_relay({"prefix": "/"}, again=once, typed_per_filter_config=unbuffered),
    ]
    return _scope(ENTRY, routes, (), {"clock": str(correction_us)})


def _scope(key: str, routes: list[Json], needs: tuple[tuple[Name, str], ...], metadata: Json | None = None) -> Resource:
    """`metadata`: the virtual host's, for router.lua."""
    host: Json = {
        "name": key,
        "domains": ["*"],
        "routes": routes,
        "include_request_attempt_count": True,
        "request_headers_to_remove": [headernames.HEAVY, headernames.WHOLE],
    }
    if metadata is not None:
        host["metadata"] = {"filter_metadata": {"envoy.filters.http.lua": metadata}}
    content = {
        "name": key,
        "key": {"fragments": [{"string_key": key}]},
        "route_configuration": {"name": key, "virtual_hosts": [host]},
    }
    return resource(SCOPE, key, content, needs)


def resources(route: Route, settings: GatewaySettings) -> tuple[Resource, Resource, Resource]:
    """Everything of one function, in the order of sending."""
    base, hosts = cluster(route.cluster), endpoints(route, settings.relay)
    needs = tuple(((each.type_url, each.name), each.version) for each in (base, hosts))
    return base, hosts, scope(route, settings, needs)
