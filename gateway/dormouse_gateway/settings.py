"""What one gateway is told at its start. The agent and Envoy's starter take the same options, so that both agree on ports and limits."""

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from dormouse_core import addresses, limits
from dormouse_kit.etcd.options import add_store_options

FRAME = 5  # gRPC's prefix of a message: flag and length
UNIX = addresses.UNIX


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    listen: str = "127.0.0.1:8001"
    """Where callers connect, IP:port."""
    relay: str = "127.0.0.1:8002"
    """Where the agent's relay listens, IP:port or unix:PATH: Envoy names it in every function's endpoints. With a Unix socket workers have
    such addresses too, and only then."""
    calls: str = ""
    """Where workers connect with the calls that their steps make, IP:port or unix:PATH; '': nowhere."""
    xds: str = "unix:/run/dormouse/xds.sock"
    """The agent's xDS server, a Unix socket: nobody but this gateway's Envoy is to read or feed it."""
    admin: str = "/run/dormouse/envoy.sock"
    """Envoy's admin, the path of a Unix socket."""
    metrics: int = 9090
    """The agent's port for Prometheus; 0: none."""
    metrics_host: str = "127.0.0.1"
    pods: bool = False
    """Workers are pods: an address of the own machine is none of theirs."""
    name: str = "gateway"
    """This agent's name in the store; two agents of one name would share an entry."""
    node: str = ""
    """The node that this gateway runs on, for the leader, who tells by it which nodes live; '': not told."""
    installation: str = "default"
    default_namespace: str = "default"
    """The namespace of a function that `model_name` names without one."""
    own_names: frozenset[str] = field(default_factory=frozenset)
    """Authorities of the gateway itself, lower case, without port: they never name a function."""
    max_message_bytes: int = limits.MESSAGE_BYTES
    """Of one request or reply, without gRPC's five bytes."""
    max_held: int = limits.HELD_CALLS
    """Calls that wait in the relay, a function."""
    max_held_bytes: int = limits.HELD_BYTES
    """Bodies of all calls in the relay."""
    max_streams: int = limits.HELD_STREAMS
    """Streams of all kinds that are open in the relay."""
    max_heap_bytes: int = 0
    """What Envoy's heap may hold; as it fills, Envoy sheds what `bootstrap.overload` says. 0: by the memory that there is
    (`envoy.heap_bytes`)."""
    concurrency: int = 2
    """Envoy's worker threads."""
    log_level: str = "warning"
    drain_seconds: float = 30.0
    """How long a stopping gateway waits for running calls."""
    min_drain_seconds: float = 0.0
    """How long it serves whoever still comes, also where no call is under way: a node's kube-proxy or a load balancer goes on sending new
    connections until it has heard that this gateway goes."""
    store: tuple[str, ...] = ("127.0.0.1:2379",)
    store_ca: str = ""
    store_cert: str = ""
    store_key: str = ""
    store_user: str = ""
    store_password_file: str = ""

    @property
    def pressure(self) -> str:
        """The file by which Envoy's starter tells it how short of memory it is."""
        return f"{self.admin}.pressure"

    @property
    def workers(self) -> addresses.Rule:
        """What an entry may give as a worker's address."""
        own = {self.listen, self.relay, self.xds, f"{UNIX}{self.admin}", *self.store, *([self.calls] if self.calls else [])}
        return addresses.Rule(frozenset(own), pods=self.pods, sockets=self.sockets)

    def __post_init__(self) -> None:
        for key in ("listen", "relay"):
            if key == "listen" or not self.sockets:
                addresses.parse(getattr(self, key), key)
        if self.calls and not self.calls.startswith(UNIX):
            addresses.parse(self.calls, "calls")
        if not self.xds.startswith("unix:"):
            raise ValueError(f"xds: {self.xds!r} found, unix:PATH is allowed")
        if not 1 <= self.max_message_bytes <= limits.MESSAGE_BYTES_MAX:
            raise ValueError(f"max_message_bytes: {self.max_message_bytes} found, 1 to {limits.MESSAGE_BYTES_MAX} are allowed")
        if not 0 <= self.min_drain_seconds <= self.drain_seconds:
            raise ValueError(f"min_drain_seconds: {self.min_drain_seconds} found, 0 to drain_seconds ({self.drain_seconds}) are allowed")
        for own in self.own_names:
            if not re.fullmatch(r"[a-z0-9.-]+", own):
                raise ValueError(f"own_names: {own!r} found, a host name in lower case, without port, is allowed")
        for path in (self.xds.removeprefix(UNIX), self.relay.removeprefix(UNIX), self.calls.removeprefix(UNIX), self.admin):
            if len(path.encode()) > 107:
                raise ValueError(f"{path!r}: {len(path.encode())} bytes found, a Unix socket's path has at most 107")

    @property
    def sockets(self) -> bool:
        """One machine: whatever is not for callers listens on Unix sockets, which no other user of the machine may open."""
        return self.relay.startswith(UNIX)


def parse(arguments: Sequence[str] | None, program: str) -> GatewaySettings:
    """Settings from the command line; exits with a readable message when one is wrong."""
    default = GatewaySettings()
    parser = argparse.ArgumentParser(prog=program)
    add_store_options(parser)
    parser.add_argument("--installation", default=default.installation, help="the name of this installation in the store")
    parser.add_argument("--listen", default=default.listen, metavar="IP:PORT", help="where callers connect")
    parser.add_argument(
        "--listen-relay", dest="relay", default=default.relay, metavar="IP:PORT|unix:PATH", help="where the agent's relay listens"
    )
    parser.add_argument(
        "--listen-calls",
        dest="calls",
        default=default.calls,
        metavar="IP:PORT|unix:PATH",
        help="where workers call functions for their steps",
    )
    parser.add_argument("--xds", default=default.xds, metavar="unix:PATH", help="where Envoy asks the agent for its configuration")
    parser.add_argument("--admin", default=default.admin, metavar="PATH", help="the Unix socket of Envoy's admin interface")
    parser.add_argument("--metrics", type=int, default=default.metrics, metavar="PORT", help="the agent's port for Prometheus; 0: none")
    parser.add_argument("--metrics-host", default=default.metrics_host, help="the address where --metrics listens")
    parser.add_argument("--name", default=default.name, help="this agent's name in the store; no two may have one name")
    parser.add_argument("--node", default=default.node, help="the node that this gateway runs on")
    parser.add_argument("--pods", action="store_true", help="workers are pods: no worker has an address of this machine")
    parser.add_argument("--default-namespace", default=default.default_namespace, help="of a function that is named without one")
    parser.add_argument(
        "--own-name",
        action="append",
        default=[],
        metavar="HOST",
        help="a host name of the gateway, which never names a function; may be given several times",
    )
    parser.add_argument("--max-message-bytes", type=int, default=default.max_message_bytes, help="the largest request or reply")
    parser.add_argument("--max-held", type=int, default=default.max_held, help="calls of one function that may wait here")
    parser.add_argument("--max-held-bytes", type=int, default=default.max_held_bytes, help="bytes of all waiting calls together")
    parser.add_argument("--max-streams", type=int, default=default.max_streams, help="streams that may be open here")
    parser.add_argument(
        "--max-heap-bytes", type=int, default=default.max_heap_bytes, help="the limit of Envoy's heap; 0: from the memory limit"
    )
    parser.add_argument("--concurrency", type=int, default=default.concurrency, help="Envoy's worker threads")
    parser.add_argument("--log-level", default=default.log_level, help="the level of Envoy's log")
    parser.add_argument(
        "--drain-seconds", type=float, default=default.drain_seconds, help="how long a stopping gateway waits for running calls"
    )
    parser.add_argument("--min-drain-seconds", type=float, default=default.min_drain_seconds, help="how long it serves new connections")
    options = vars(parser.parse_args(arguments))
    options["own_names"] = frozenset(name.lower() for name in options.pop("own_name"))
    options["store"] = tuple(options["store"] or default.store)
    try:
        return GatewaySettings(**options)
    except ValueError as wrong:
        parser.error(str(wrong))
