"""Options of our gRPC channels and servers: no default limit is left by accident.

gRPC's defaults fit small, evenly spread messages. Here a message may have 16 MiB (4 MiB by default), a cold function makes thousands of
calls arrive at once (grpcio cancels what passes 1,000 requests that are not yet accepted: 246 of 3,000 in a measurement), and a retry by
the library would repeat what must not be repeated. Two channels to one address share a connection and its back-off unless each has its
own pool.
"""

from typing import Final

from dormouse_core.limits import MESSAGE_BYTES, MESSAGE_OVERHEAD_BYTES, METADATA_BYTES

Options = list[tuple[str, int | str]]

UNLIMITED: Final = -1
# The gateway's Envoy refuses a call of more than METADATA_BYTES, and every hop behind it takes more than that.
# gRPC's own 8 KiB, from where it refuses some calls and others not, would refuse a caller's long token only where it comes this way.
_TAKEN: Final = 2 * METADATA_BYTES
_METADATA: Final[Options] = [("grpc.max_metadata_size", _TAKEN), ("grpc.absolute_max_metadata_size", _TAKEN)]
MANY: Final = 100_000
# Behind gRPC's name for it is the time that an attempt to connect may take, the peer's first SETTINGS frame included. A peer that is alive
# but busy needs more than 100 ms for that, and every call that waits for the connection fails with it; one that is cut off is found as
# late as by a keepalive.
CONNECT_MS: Final = 2_000


def channel_options(*, message_bytes: int = MESSAGE_BYTES, keepalive: bool = True) -> Options:
    """A channel to one of our own parts. `keepalive`: a frozen or unreachable peer resets its calls after 1 s + 2 s.

    The peer must allow pings so often: `server_options` does, Envoy does; etcd does not (docs/decisions/0010-store-client.md).
    """
    options: Options = [
        ("grpc.enable_retries", 0),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.max_receive_message_length", message_bytes + MESSAGE_OVERHEAD_BYTES),
        ("grpc.max_send_message_length", message_bytes + MESSAGE_OVERHEAD_BYTES),
        ("grpc.min_reconnect_backoff_ms", CONNECT_MS),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1_000),
        ("grpc.enable_http_proxy", 0),  # a proxy of the environment is meant for the internet, not for the next pod
        *_METADATA,
    ]
    if keepalive:
        options += [
            ("grpc.keepalive_time_ms", 1_000),
            ("grpc.keepalive_timeout_ms", 2_000),
            ("grpc.http2.ping_timeout_ms", 2_000),  # without it grpcio 1.85 waits a minute, whatever the line above says
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.max_pings_without_data", 0),
        ]
    return options


def server_options(*, message_bytes: int = MESSAGE_BYTES, concurrent_streams: int = 20_000) -> Options:
    """A server of ours: pings each second are welcome, and a burst of held calls is not refused by the library."""
    return [
        ("grpc.so_reuseport", 0),  # a second process on the same port is an error, not a share of the calls
        ("grpc.max_receive_message_length", message_bytes + MESSAGE_OVERHEAD_BYTES),
        ("grpc.max_send_message_length", message_bytes + MESSAGE_OVERHEAD_BYTES),
        ("grpc.max_concurrent_streams", concurrent_streams),
        ("grpc.server.max_pending_requests", MANY),
        ("grpc.server.max_pending_requests_hard_limit", MANY),
        ("grpc.http2.min_ping_interval_without_data_ms", 500),
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.keepalive_time_ms", 5_000),
        ("grpc.keepalive_timeout_ms", 5_000),
        ("grpc.http2.ping_timeout_ms", 5_000),
        *_METADATA,
    ]
