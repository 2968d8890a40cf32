"""The agent's Prometheus series. Labels are few on purpose: a function's name is one, a session's never."""

from prometheus_client import Counter, Gauge, Histogram

CALLS = Counter("dormouse_relay_calls_total", "Calls that the relay answered", ["method", "code"])
HELD = Gauge("dormouse_relay_held", "Calls that wait in the relay now", ["function"])
HOLD_SECONDS = Histogram(
    "dormouse_relay_hold_seconds",
    "How long a call waited in the relay before it was sent or answered; calls that never waited are not counted",
    buckets=(0.01, 0.03, 0.1, 0.3, 0.6, 1, 2, 5, 10, 30, 100, 300),
)
RESENDS = Counter("dormouse_relay_resends_total", "Calls that the relay sent again", ["reason"])
READS = Counter("dormouse_relay_reads_total", "Linearizable reads of a function's map", ["outcome"])
STREAMS = Gauge("dormouse_relay_streams", "Streams that are open")
BODIES = Gauge("dormouse_relay_body_bytes", "Bytes of requests in the relay now, and of replies that wait for their caller")
PUSHES = Counter("dormouse_xds_pushes_total", "Responses sent to Envoy", ["type"])
NACKS = Counter("dormouse_xds_nacks_total", "Responses that Envoy refused")
ENVOYS = Gauge("dormouse_xds_envoys", "Envoys that are connected")
UNREADABLE = Counter("dormouse_watch_unreadable_total", "Entries of the store that this release could not read")
WATCH_AGE = Gauge("dormouse_watch_age_seconds", "Seconds since the store was last heard")
FUNCTIONS = Gauge("dormouse_functions", "Functions in the routing table")
CLOCK_DEVIATION = Gauge("dormouse_clock_deviation_seconds", "This gateway's clock minus the median of all clocks; NaN: not known")
LEADER = Gauge("dormouse_leader_connected", "1 while the stream to the leader is up")
