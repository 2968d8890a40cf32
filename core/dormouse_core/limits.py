"""Every limit of Dormouse, and every limit from below that it must respect: one table, from which `docs/reference/limits.md` is written.

A limit that is found out in production is an outage; one that is checked when a function is created is a sentence. So each row says where
the number comes from and what checks it. Other modules use the constants: nobody writes these numbers twice, nor gives a name from here to
a constant of his own. The chart cannot import; `tests/unit/test_limits.py` compares its numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB


@dataclass(frozen=True, slots=True)
class Limit:
    """A row. `name`: the constant below with the value, in `unit`. `source`: why this number. `check`: who notices, and what happens."""

    name: str
    what: str
    unit: str
    source: str
    check: str


# -------------------------------------------------------------------------------------------------------------------------- names

FUNCTION_NAME_CHARACTERS = 52
NAMESPACE_CHARACTERS = 63
SESSION_ID_CHARACTERS = 128
TENANT_CHARACTERS = 128
IDEMPOTENCY_KEY_CHARACTERS = 128

NAMES = (
    Limit("FUNCTION_NAME_CHARACTERS", "a function's name", "characters", "Kubernetes: 63 for a name, 11 go to derived ones", "at creation"),
    Limit("NAMESPACE_CHARACTERS", "a namespace", "characters", "Kubernetes: a DNS label", "at creation"),
    Limit("SESSION_ID_CHARACTERS", "a session's id", "characters", "Triton: string correlation ids", "each call: INVALID_ARGUMENT"),
    Limit("TENANT_CHARACTERS", "`dormouse-tenant`", "characters", "our own", "each call: INVALID_ARGUMENT"),
    Limit("IDEMPOTENCY_KEY_CHARACTERS", "`dormouse-idempotency-key`", "characters", "our own", "each call: INVALID_ARGUMENT"),
)

# ----------------------------------------------------------------------------------------------------------------------- messages

MESSAGE_BYTES = 16 * MIB
MESSAGE_BYTES_MAX = 64 * MIB
MESSAGE_OVERHEAD_BYTES = 64 * KIB
MESSAGE_FIELDS = 16_384
MESSAGE_DIMENSIONS = 64
MESSAGE_ELEMENTS = 262_144
MESSAGE_INTEGERS = 4_194_304
METADATA_BYTES = 64 * KIB
METADATA_ENTRY_BYTES = 32
METADATA_HEAVY_BYTES = 8 * KIB
METADATA_HARD_BYTES = 2 * MIB
METADATA_HARD_ENTRIES = 16_384
HPACK_TABLE_BYTES = 4 * KIB + 512
CONNECTION_CALLS = 10_000
MESSAGE_STALL_SECONDS = 30
PRESSED_STALL_SECONDS = 1
UNREAD_SECONDS = 120
PRESSED_UNREAD_SECONDS = 5
MESSAGE_LARGE_BYTES = 8 * KIB
UNFINISHED_BYTES = 256 * MIB
UNFINISHED_CONNECTION_BYTES = 128 * MIB
STREAM_WINDOW_BYTES = 64 * KIB
RESET_HEAP_FRACTION = 0.8
RESET_ALL_HEAP_FRACTION = 0.9
RESET_BYTES = 16 * KIB
ENVOY_HEAP_FRACTION = 0.75
ENVOY_HEAP_MACHINE_FRACTION = 0.25
ENVOY_HEAP_BYTES = 4 * GIB
CLIENT_MESSAGE_BYTES = 4 * MIB
ENVOY_CIRCUIT_BREAKER = 1_024
STREAM_MESSAGES = 256
STREAM_BYTES = 4 * MIB
STREAMED_BYTES = 64 * MIB

MESSAGES = (
    Limit(
        "MESSAGE_BYTES",
        "a request or reply, by default",
        "bytes",
        "our own; `dormouse up --max-message`, the chart's `gateway.maxMessageBytes`",
        "each call: RESOURCE_EXHAUSTED",
    ),
    Limit(
        "MESSAGE_BYTES_MAX",
        "the highest setting of it",
        "bytes",
        "our own: a message is buffered to find its session",
        "start of the gateway; where no gateway says less, each call of a worker: RESOURCE_EXHAUSTED",
    ),
    Limit(
        "MESSAGE_OVERHEAD_BYTES",
        "what a buffer holds beyond the message",
        "bytes",
        "Envoy: a body over its buffer is never retried",
        "by construction",
    ),
    Limit(
        "MESSAGE_FIELDS",
        "inputs, outputs, parameters and raw contents of a request, and the fields in them",
        "fields",
        "our own: two bytes on the wire can be 350 in memory",
        "each call: RESOURCE_EXHAUSTED",
    ),
    Limit("MESSAGE_DIMENSIONS", "dimensions of an input", "dimensions", "NumPy's", "each call: RESOURCE_EXHAUSTED"),
    Limit(
        "MESSAGE_ELEMENTS",
        "elements of BYTES in a request, and of typed contents that are not packed",
        "elements",
        "our own: each is an object in memory",
        "each call: RESOURCE_EXHAUSTED",
    ),
    Limit(
        "MESSAGE_INTEGERS",
        "integers and BOOLs in the typed contents of a request; raw contents may hold more",
        "elements",
        "our own: one byte on the wire can be eight in memory, twice",
        "each call: RESOURCE_EXHAUSTED",
    ),
    Limit(
        "METADATA_BYTES",
        "a call's metadata: names, values, and what HTTP/2 counts for each entry",
        "bytes",
        "our own: below what each hop takes, a worker's Envoy being the narrowest with 96 KiB",
        "each call: RESOURCE_EXHAUSTED",
    ),
    Limit("METADATA_ENTRY_BYTES", "of which an entry counts beyond its name and value", "bytes", "HTTP/2: RFC 9113, 6.5.2", "as above"),
    Limit(
        "METADATA_HEAVY_BYTES",
        "size of metadata from which on a call goes by the relay, and is ended if it is silent while the gateway is short of memory",
        "bytes",
        "gRPC: the metadata that its servers take by default",
        "each call under pressure: RESOURCE_EXHAUSTED",
    ),
    Limit(
        "METADATA_HARD_BYTES",
        "size of metadata from which on a call is reset without a message",
        "bytes",
        "our own: a connection holds one unfinished set of headers",
        "each call: INTERNAL",
    ),
    Limit(
        "METADATA_HARD_ENTRIES",
        "entries of metadata from which on it is reset, too",
        "entries",
        "our own: each takes 260 bytes",
        "each call: INTERNAL",
    ),
    Limit(
        "HPACK_TABLE_BYTES",
        "what a call's compressed headers may bring beyond twice their bytes on the wire",
        "bytes",
        "HTTP/2: the table that a sender begins with, each of its entries once",
        "each call: RESOURCE_EXHAUSTED",
    ),
    Limit(
        "CONNECTION_CALLS",
        "calls at once on a caller's connection",
        "calls",
        "our own: what the relay holds of a function",
        "HTTP/2's settings: the client's library waits",
    ),
    Limit(
        "MESSAGE_STALL_SECONDS",
        "a pause in an unfinished unary message",
        "seconds",
        "our own: it holds memory for nothing",
        "Envoy: RESOURCE_EXHAUSTED",
    ),
    Limit(
        "PRESSED_STALL_SECONDS",
        "the same where Envoy's heap is filled to 65 %",
        "seconds",
        "our own: longer than honest networks pause",
        "Envoy: RESOURCE_EXHAUSTED",
    ),
    Limit(
        "UNREAD_SECONDS",
        "in which a caller must read the last 1 MiB of a reply that waits for it in the gateway",
        "seconds",
        "our own: honest callers read more than 9 KB in a second",
        "Envoy: the call is reset",
    ),
    Limit(
        "PRESSED_UNREAD_SECONDS",
        "the same where Envoy's heap is filled to 65 %",
        "seconds",
        "our own: longer than honest networks take for it",
        "Envoy: the call is reset",
    ),
    Limit(
        "MESSAGE_LARGE_BYTES",
        "a stream's message for which the relay makes room before it comes; a message of `Watch` or of reflection is smaller",
        "bytes",
        "our own: 4,096 streams hold 32 MiB of smaller ones",
        "the relay reads it when it has room; of `Watch` and reflection: RESOURCE_EXHAUSTED",
    ),
    Limit(
        "UNFINISHED_BYTES",
        "room for such messages that are not whole; where it is short, the oldest loses its own after PRESSED_STALL_SECONDS",
        "bytes",
        "our own: they hold memory for nothing",
        "the relay: the next message waits; the oldest's stream RESOURCE_EXHAUSTED",
    ),
    Limit(
        "UNFINISHED_CONNECTION_BYTES",
        "the same of one connection; its oldest loses its own after MESSAGE_STALL_SECONDS",
        "bytes",
        "our own: two messages of the largest",
        "the relay: the stream RESOURCE_EXHAUSTED",
    ),
    Limit(
        "STREAM_WINDOW_BYTES",
        "of a call to the relay that may be sent before the relay reads them",
        "bytes",
        "HTTP/2's own; gRPC's library would let it grow",
        "HTTP/2's flow control",
    ),
    Limit(
        "RESET_HEAP_FRACTION",
        "fraction of Envoy's heap from which on the calls and streams that hold most of it are reset, as long as it is so full",
        "",
        "our own",
        "Envoy: the call is reset",
    ),
    Limit(
        "RESET_ALL_HEAP_FRACTION",
        "fraction of it from which on all that hold RESET_BYTES or more are reset, the largest first",
        "",
        "our own: below 95 %, from which on every call is refused",
        "Envoy: the call is reset",
    ),
    Limit("RESET_BYTES", "RESET_BYTES: what holds less is not reset", "bytes", "our own", "as above"),
    Limit(
        "ENVOY_HEAP_FRACTION",
        "fraction of its container's memory that Envoy's heap may take",
        "",
        "measured: it passes its limit by a tenth for a moment",
        "Envoy's overload manager",
    ),
    Limit("ENVOY_HEAP_MACHINE_FRACTION", "fraction of the machine's memory, where there is no container", "", "our own", "as above"),
    Limit("ENVOY_HEAP_BYTES", "and at most", "bytes", "our own", "as above"),
    Limit(
        "CLIENT_MESSAGE_BYTES",
        "a reply that a client takes, by default",
        "bytes",
        "gRPC: `grpc.max_receive_message_length`",
        "the client: RESOURCE_EXHAUSTED",
    ),
    Limit(
        "ENVOY_CIRCUIT_BREAKER",
        "requests to one cluster, by default",
        "requests",
        "Envoy: circuit breakers",
        "raised by the gateway's own configuration",
    ),
    Limit(
        "STREAM_MESSAGES",
        "unanswered messages of one stream",
        "messages",
        "our own: memory",
        "by construction: the stream is not read further",
    ),
    Limit(
        "STREAM_BYTES", "their sum, the last one not counted", "bytes", "our own: memory", "by construction: the stream is not read further"
    ),
    Limit(
        "STREAMED_BYTES",
        "all responses to one step of a streaming handler",
        "bytes",
        "our own: they are kept",
        "each step: RESOURCE_EXHAUSTED",
    ),
)

# ------------------------------------------------------------------------------------------------------------------------- store

RECORD_BYTES = 1 * MIB
RECORD_OVERHEAD_BYTES = 32 * KIB
STATE_BYTES = RECORD_BYTES - RECORD_OVERHEAD_BYTES
TXN_BYTES = 1 * MIB
TXN_OPS = 120
FAILOVER_SHARDS = 60
STORE_FULL_FRACTION = 0.7
STORE_ROOM_FRACTION = 0.65
STORE_SHARED_FRACTION = 0.35
STORE_STOP_FRACTION = 0.85
STORE_FIGURE_SECONDS = 10.0
COMPACT_SECONDS = 10.0
COMPACT_FRACTION = 0.1
HISTORY_SECONDS = 1.0
BACKSTOP_BYTES = 200 * MIB
DEFRAGMENT_FRACTION = 0.8
DEFRAGMENT_BYTES = 32 * MIB
ROOM_FRACTION = 0.95
ETCD_REQUEST_BYTES = 3 * MIB // 2
ETCD_TXN_OPS = 128
ETCD_QUOTA_BYTES = 2 * GIB
ETCD_QUOTA_BYTES_MAX = 8 * GIB

STORE = (
    Limit(
        "RECORD_BYTES",
        "a session's record",
        "bytes",
        "etcd's request, with room for the rest of the transaction",
        "each step: RESOURCE_EXHAUSTED",
    ),
    Limit(
        "RECORD_OVERHEAD_BYTES",
        "of which keys, kept replies and names of states may take",
        "bytes",
        "kept keys and replies below",
        "as the next",
    ),
    Limit(
        "STATE_BYTES",
        "of which state tensors",
        "bytes",
        "what is left",
        "at creation with 1 byte an element; where shapes are fixed, exactly and with the names, at the model's loading: ModelReady=False",
    ),
    Limit("TXN_BYTES", "a group commit's records", "bytes", "etcd's request", "the group closes"),
    Limit("TXN_OPS", "comparisons, puts or reads of a transaction", "operations", "etcd's, with room", "the group closes"),
    Limit(
        "FAILOVER_SHARDS",
        "shards in one failover transaction",
        "shards",
        "two writes each within a transaction's operations",
        "several transactions",
    ),
    Limit(
        "STORE_FULL_FRACTION",
        "fraction of etcd's quota from which on new sessions are refused",
        "",
        "our own: what exists must be able to go on",
        "each new session: RESOURCE_EXHAUSTED",
    ),
    Limit(
        "STORE_SHARED_FRACTION",
        "fraction of it from which on a namespace that has more than its share is refused new sessions; a share is the fraction above, "
        "divided by the number of namespaces that have functions with sessions",
        "",
        "our own: half of what sessions may take is for anybody, the other half for namespaces that have less than their share",
        "each new session: RESOURCE_EXHAUSTED",
    ),
    Limit(
        "STORE_STOP_FRACTION",
        "fraction of it from which on the steps of such a namespace are refused, except those that end a session",
        "",
        "our own: sessions that grow would stop everybody's at the quota",
        "each step: RESOURCE_EXHAUSTED",
    ),
    Limit(
        "STORE_ROOM_FRACTION", "fraction of it below which new sessions are accepted again", "", "our own: it does not flap", "the worker"
    ),
    Limit(
        "STORE_FIGURE_SECONDS",
        "age of the store's size beyond which it counts as unknown",
        "seconds",
        "our own: what is not known refuses nobody",
        "the worker",
    ),
    Limit(
        "COMPACT_SECONDS",
        "time between compactions of the history, at most",
        "seconds",
        "etcd's quota counts history",
        "the leader; etcd itself where nobody leads",
    ),
    Limit(
        "COMPACT_FRACTION",
        "fraction of etcd's quota; when it has been written since the last compaction, the next comes at once",
        "",
        "our own: history must not fill the store",
        "the leader; at twice this every operator process",
    ),
    Limit(
        "HISTORY_SECONDS",
        "history that such a compaction leaves while less than half of the quota is taken",
        "seconds",
        "our own: watches that lag, listings in pages",
        "the leader",
    ),
    Limit(
        "BACKSTOP_BYTES",
        "etcd's quota for each second of history that etcd keeps by itself, where nobody compacts: 1 to 10 s",
        "bytes",
        "etcd: `--auto-compaction-retention`",
        "etcd, as `dormouse up` and the chart start it",
    ),
    Limit(
        "DEFRAGMENT_FRACTION",
        "fraction of etcd's quota from which on a member's file is defragmented if a tenth of the quota is free in it",
        "",
        "etcd's quota counts free space of the file",
        "the leader, one member at a time",
    ),
    Limit(
        "DEFRAGMENT_BYTES",
        "keys in the file of a member that leads etcd's cluster, or is alone, up to which it is defragmented while the store has room",
        "bytes",
        "our own: nobody's lease is renewed meanwhile",
        "the leader; beyond it only a full store is",
    ),
    Limit(
        "ROOM_FRACTION",
        "fraction of etcd's quota below which every member's file must be before NOSPACE is cleared",
        "",
        "our own: etcd would raise it again at once",
        "every operator process",
    ),
    Limit("ETCD_REQUEST_BYTES", "a request", "bytes", "etcd: `--max-request-bytes`, default", "kept under by the rows above"),
    Limit(
        "ETCD_TXN_OPS",
        "comparisons, puts or reads of a transaction",
        "operations",
        "etcd: `--max-txn-ops`, default; each counted by itself",
        "kept under by the rows above",
    ),
    Limit(
        "ETCD_QUOTA_BYTES",
        "the file of all keys and their history",
        "bytes",
        "our own, and etcd's default: `dormouse up --etcd-quota`, the chart's `etcd.quotaBytes`",
        "etcd, from there on: UNAVAILABLE",
    ),
    Limit("ETCD_QUOTA_BYTES_MAX", "the highest of it", "bytes", "etcd: what it advises", "start of `dormouse up`; the chart"),
)

# ----------------------------------------------------------------------------------------------------------------------- sessions

KEPT_KEYS = 8
KEPT_REPLY_BYTES = 16 * KIB
KEPT_REPLY_MEMORY_BYTES = 64 * MIB
KEY_MAKERS = 8
MARKED_KEYS = 256
KEY_MARK_SECONDS = 600.0
CLOCK_AHEAD_SECONDS = 60.0
REMOVAL_WAIT_SECONDS = 600.0
REMOVAL_WAIT_MARGIN_SECONDS = 60.0
REPLY_MEMORY_FRACTION = 0.125
REPLY_MEMORY_BYTES = 3 * MESSAGE_BYTES_MAX
SESSION_MEMORY_FRACTION = 0.5
SESSION_MEMORY_UNLIMITED_FRACTION = 0.25
SESSION_OVERHEAD_BYTES = 2 * KIB
SHARDS_MAX = 4_096
STATES_MAX = 128
TENSOR_DIMENSIONS = 16
SESSIONS_MAX = 1_000_000_000

SESSIONS = (
    Limit("KEPT_KEYS", "call keys that a session remembers", "keys", "our own", "a repeat of an older call: ABORTED"),
    Limit(
        "KEPT_REPLY_BYTES",
        "replies that a session's record keeps",
        "bytes",
        "our own: every step writes them",
        "the oldest go: ALREADY_EXISTS, also to a step that is run again and calls the session; one that is larger alone is kept in its "
        "owner's memory",
    ),
    Limit("KEPT_REPLY_MEMORY_BYTES", "larger replies that a worker keeps in memory", "bytes", "our own", "the oldest goes: ALREADY_EXISTS"),
    Limit(
        "KEY_MAKERS",
        "gateways' processes whose keys have a horizon of their own in a session",
        "processes",
        "our own: every step writes them",
        "the oldest share one: at most a refusal, ABORTED",
    ),
    Limit(
        "MARKED_KEYS",
        "callers' keys with a timestamp, and keys of steps' calls, of which a session knows that it forgot them",
        "keys",
        "our own: 14 bytes each in every step's write",
        "a call whose key is older than one that was dropped: ABORTED, also where it never ran",
    ),
    Limit(
        "KEY_MARK_SECONDS",
        "how long it knows it",
        "seconds",
        "our own: a session that is seldom called writes no more than before",
        "the same",
    ),
    Limit(
        "CLOCK_AHEAD_SECONDS",
        "how far ahead the timestamp of a caller's own key may be",
        "seconds",
        "our own",
        "each call: INVALID_ARGUMENT; a gateway's key: tried again elsewhere",
    ),
    Limit(
        "REMOVAL_WAIT_SECONDS",
        "from a session's end or expiry to its removal, at least and by default",
        "seconds",
        "our own: longer than callers repeat; `dormouse up --removal-wait`, the chart's `removalWait`",
        "a repeat of an older call: ABORTED",
    ),
    Limit(
        "REMOVAL_WAIT_MARGIN_SECONDS",
        "by how much that wait passes `timeouts.hold`, unless it is set",
        "seconds",
        "our own: a call that was held may be repeated",
        "by construction",
    ),
    Limit(
        "REPLY_MEMORY_FRACTION",
        "fraction of a worker's memory, or of the machine's, for replies that wait to be read; from four fifths of it on the "
        "largest are dropped",
        "",
        "our own: the model and its sessions have the rest",
        "Envoy in the worker: the call is reset",
    ),
    Limit("REPLY_MEMORY_BYTES", "and at least", "bytes", "three times the largest reply: two are below four fifths of it", "as above"),
    Limit(
        "SESSION_MEMORY_FRACTION",
        "fraction of the container's memory limit that sessions may take",
        "",
        "our own: the rest is the model's",
        "the longest idle sessions leave memory; their records stay",
    ),
    Limit(
        "SESSION_MEMORY_UNLIMITED_FRACTION",
        "fraction of the machine's memory that they may take where the worker has no memory limit",
        "",
        "our own: a machine has several workers",
        "the longest idle sessions leave memory; their records stay",
    ),
    Limit(
        "SESSION_OVERHEAD_BYTES",
        "what a session in memory counts beside its state and its kept replies",
        "bytes",
        "measured",
        "by construction",
    ),
    Limit("SHARDS_MAX", "`spec.sessions.shards`", "shards", "an owner is named for each in every gateway", "at creation"),
    Limit("STATES_MAX", "states that a manifest names", "states", "the API server bounds the cost of rules", "at creation"),
    Limit("TENSOR_DIMENSIONS", "their dimensions", "dimensions", "the API server bounds the cost of rules", "at creation"),
    Limit("SESSIONS_MAX", "`spec.sessions.maxCount`", "sessions", "our own", "at creation"),
)

# --------------------------------------------------------------------------------------------------------------- liveness and time

LEASE_SECONDS = 3
LEASE_KEEPALIVE_SECONDS = 1.0
CLOCK_SKEW_SECONDS = 5.0
CLOCK_TRUST_SECONDS = 3600.0
PROBE_SECONDS = 1.0
PROBE_MISSES = 3
HANDOFF_DEADLINE_SECONDS = 2.0
SUCCESSOR_SECONDS = 2.0
HANDOFF_QUIET_SECONDS = 0.1
TERMINATION_GRACE_SECONDS = 20.0
UNREACHABLE_SECONDS = 5.0
UNREACHABLE_FAILOVER_SECONDS = 15.0
CLEAR_SECONDS = 5.0
CLEARED_SECONDS = 2.0
CLEAR_ASKS = 3
LOST_WORKERS = 8
NODE_SILENT_SECONDS = 2.0
NODE_UNTAKEN_SECONDS = 5.0
NODE_FORGOTTEN_SECONDS = 60.0

LIVENESS = (
    Limit("LEASE_SECONDS", "a worker's, an agent's and the leader's lease", "seconds", "our own: silence this long is death", "etcd"),
    Limit("LEASE_KEEPALIVE_SECONDS", "time between its renewals", "seconds", "three tries within a lease", "its holder"),
    Limit(
        "CLOCK_SKEW_SECONDS",
        "a process's wall clock from the median of all",
        "seconds",
        "our own: no expiry, and no order, hangs on less",
        "itself: it does not serve, a leader does not lead",
    ),
    Limit(
        "CLOCK_TRUST_SECONDS",
        "how long a measured clock is trusted without a leader that measures again",
        "seconds",
        "monotonic clocks drift by under 200 µs a second",
        "itself: then no session expires until one leads",
    ),
    Limit("PROBE_SECONDS", "time between probes of the inference path", "seconds", "our own", "the supervisor"),
    Limit("PROBE_MISSES", "probes missed in a row before the worker is killed", "probes", "our own", "the supervisor"),
    Limit("HANDOFF_DEADLINE_SECONDS", "from a shard's stop to its failover", "seconds", "our own", "the leader"),
    Limit(
        "SUCCESSOR_SECONDS",
        "from a worker's word that it drains until it may be told that no other comes, while its provider does not say that it goes",
        "seconds",
        "our own: the API server's watch may be so much later than the store's",
        "the leader",
    ),
    Limit(
        "HANDOFF_QUIET_SECONDS",
        "age of a running step from which on a handoff waits for its end before it begins",
        "seconds",
        "our own: a handoff waits for long steps",
        "its owner",
    ),
    Limit(
        "UNREACHABLE_SECONDS",
        "time that more than half of the gateways cannot reach a living worker before its shards are planned away",
        "seconds",
        "our own: longer than a connection takes and than a restart in place",
        "the leader",
    ),
    Limit(
        "UNREACHABLE_FAILOVER_SECONDS",
        "the same before the shards that it has not handed over fail over",
        "seconds",
        "our own: what it runs can answer nobody",
        "the leader",
    ),
    Limit(
        "NODE_SILENT_SECONDS",
        "silence of a worker without a lease, which was ready, after which its node counts as lost where nothing else on it answers",
        "seconds",
        "our own: two tries to connect, beside the end of its lease",
        "the leader",
    ),
    Limit(
        "NODE_UNTAKEN_SECONDS",
        "the same of a worker that was not ready yet, or of a node's kubelet, that says nothing of a pod that it was given",
        "seconds",
        "our own: a kubelet takes a pod within one, on a busy node within three; so does its network",
        "the leader",
    ),
    Limit(
        "NODE_FORGOTTEN_SECONDS",
        "time for which a lost node is remembered of which nothing is seen",
        "seconds",
        "our own: longer than Kubernetes takes to call it NotReady",
        "the leader",
    ),
    Limit(
        "CLEAR_SECONDS",
        "time that a worker waits, admitting nothing, until nothing runs in it, for a call under which two workers died",
        "seconds",
        "our own: longer than most steps; then it is open for as long as it was closed",
        "the worker: the call goes to another",
    ),
    Limit(
        "CLEARED_SECONDS", "time that it is kept clear for a call that does not come", "seconds", "our own: many round trips", "the worker"
    ),
    Limit(
        "CLEAR_ASKS",
        "asks in vain before such a call is sent to a worker that is not cleared",
        "asks",
        "our own: where steps are long, an innocent call is answered all the same",
        "the relay",
    ),
    Limit(
        "LOST_WORKERS",
        "workers that may die while one call runs in them, whatever runs beside it",
        "workers",
        "our own: more than a call meets by chance, for workers that cannot be cleared",
        "the relay: UNAVAILABLE",
    ),
    Limit(
        "TERMINATION_GRACE_SECONDS",
        "beyond `timeouts.step`, from a worker's SIGTERM to its SIGKILL",
        "seconds",
        "our own: to hand over, to commit and to end connections",
        "`dormouse up`; the kubelet (`terminationGracePeriodSeconds`)",
    ),
)

# ------------------------------------------------------------------------------------------------------------------ holds and scale

HELD_CALLS = 10_000
HELD_BYTES = 1 * GIB
WAITING_FUNCTIONS = 3
CONNECTION_HELD_FRACTION = 0.25
HELD_STREAMS = 10_000
KEPT_FRACTION = 0.25
OPENING_SECONDS = 16
CONNECTION_OPENED_STREAMS = 16
CONNECTION_STREAMS = 4_096
CONNECTION_WATCHES = 1_024
CONNECTION_REFLECTIONS = 64
REPLICAS_MAX = 1_000
STARTS = 64
STARTS_A_NODE = 4
STARTS_A_NODE_CALLED = 8
START_TURN_SECONDS = 60.0
START_ORDER_SECONDS = 60.0
REPLACED = 32
REPLACED_A_NODE = 4
REPLACE_TURN_SECONDS = 120.0
REPLACE_BEGIN_SECONDS = 30.0
GIVE_WAY_SECONDS = 15.0
GIVE_WAY_NODE_SECONDS = 150.0
PLACE_SECONDS = 15.0
CONCURRENCY_MAX = 10_000
BATCH_SIZE_MAX = 1_024
BATCH_SIZE = 32
BATCHING_SECONDS = 5.0
BATCHING_BYTES = 64 * MIB
FORMS_KEPT = 64
FORM_CHARACTERS = 300
BATCHING_TOLERANCE_FP16 = 2e-3
BATCHING_TOLERANCE_BF16 = 2e-2
BATCHING_TOLERANCE_FP32 = 1e-5
BATCHING_TOLERANCE_FP64 = 1e-11
BATCHING_TOLERANCES = {
    "FP16": BATCHING_TOLERANCE_FP16,
    "BF16": BATCHING_TOLERANCE_BF16,
    "FP32": BATCHING_TOLERANCE_FP32,
    "FP64": BATCHING_TOLERANCE_FP64,
}

SCALE = (
    Limit("HELD_CALLS", "calls of a function that wait in a gateway", "calls", "our own", "each call: RESOURCE_EXHAUSTED"),
    Limit(
        "HELD_BYTES",
        "bodies of waiting calls in a gateway, and replies that wait for their caller; of several namespaces, those for one leave room for "
        "all others",
        "bytes",
        "our own",
        "each call: RESOURCE_EXHAUSTED",
    ),
    Limit(
        "WAITING_FUNCTIONS",
        "functions whose HELD_CALLS a gateway has room for together; of several namespaces, those for one leave room for all others",
        "functions",
        "our own: beside others one namespace may still hold a function's",
        "each call: RESOURCE_EXHAUSTED",
    ),
    Limit(
        "CONNECTION_HELD_FRACTION",
        "fraction of these that one connection may take",
        "",
        "our own: no caller takes all",
        "each call: RESOURCE_EXHAUSTED",
    ),
    Limit(
        "HELD_STREAMS",
        "streams, watches and reflections that are open in a gateway; of several namespaces, those of one leave room for all others",
        "streams",
        "measured: each takes 36 KiB of Envoy and 31 KiB of the agent",
        "each stream: RESOURCE_EXHAUSTED",
    ),
    Limit(
        "KEPT_FRACTION",
        "fraction of these, and of waiting calls and their bytes, that is kept in equal shares for the namespaces that have functions; of "
        "the rest one has at most as much as is left, and calls of functions that are not known have together at most as much as is kept",
        "",
        "our own: the last of many namespaces has a share, the first of two has half",
        "each stream, each call: RESOURCE_EXHAUSTED",
    ),
    Limit(
        "OPENING_SECONDS",
        "as many streams as may be open are let in at once, a share by each of Envoy's threads, and then as many in this time; beyond "
        "that, those of connections that have not had an equal share",
        "seconds",
        "measured: to refuse one takes the agent most of a millisecond, and this is a third of its time",
        "Envoy: RESOURCE_EXHAUSTED",
    ),
    Limit(
        "CONNECTION_OPENED_STREAMS",
        "what a connection may open in it in any case",
        "streams",
        "our own: who opens few is let in",
        "by construction",
    ),
    Limit("CONNECTION_STREAMS", "`ModelStreamInfer` on one connection", "streams", "our own", "each stream: RESOURCE_EXHAUSTED"),
    Limit("CONNECTION_WATCHES", "`Health/Watch` on one connection", "streams", "our own", "each stream: RESOURCE_EXHAUSTED"),
    Limit("CONNECTION_REFLECTIONS", "reflection on one connection", "streams", "our own", "each stream: RESOURCE_EXHAUSTED"),
    Limit("REPLICAS_MAX", "`replicas`, `minReplicas`, `maxReplicas`", "workers", "our own", "at creation"),
    Limit(
        "STARTS",
        "workers of all functions that start together",
        "workers",
        "our own: the store and the API server serve all of them. Half of it for functions that nobody calls",
        "the leader",
    ),
    Limit(
        "STARTS_A_NODE",
        "the same for each node, of functions that nobody calls: to be proved, or in reserve",
        "workers",
        "our own: who starts takes the processor time of who serves",
        "the leader, of the nodes that it knows together",
    ),
    Limit(
        "STARTS_A_NODE_CALLED",
        "the same, of functions that are called too",
        "workers",
        "our own: twice as many, so that who is called need not wait for who is not",
        "the leader, of the nodes that it knows together",
    ),
    Limit(
        "START_TURN_SECONDS",
        "how long a worker that starts counts as one",
        "seconds",
        "our own: an image may be pulled for minutes",
        "the leader",
    ),
    Limit("START_ORDER_SECONDS", "how long who waits for its turn is remembered since it last asked", "seconds", "our own", "the leader"),
    Limit(
        "REPLACED",
        "functions whose workers are replaced together, one after the other of each, by an installation's new image",
        "functions",
        "our own: as many as start of functions that nobody calls",
        "the leader",
    ),
    Limit("REPLACED_A_NODE", "the same for each node", "functions", "our own: the same", "the leader, of the nodes that it knows together"),
    Limit(
        "REPLACE_TURN_SECONDS",
        "how long one of them keeps others waiting",
        "seconds",
        "our own: an image may be pulled for minutes, and one that does not start replaces so few",
        "the leader",
    ),
    Limit(
        "REPLACE_BEGIN_SECONDS",
        "how long one of them whose turn has come may not begin",
        "seconds",
        "our own: an operator that has just begun to lead 10,000 functions looks at all of them in about that time",
        "the leader",
    ),
    Limit(
        "GIVE_WAY_SECONDS",
        "how long the cluster's quota refuses a worker of a new revision before one that serves gives it its place",
        "seconds",
        "our own: other room is found in seconds, or not at all",
        "the leader",
    ),
    Limit(
        "GIVE_WAY_NODE_SECONDS",
        "the same where no node has room, until the revision is proved",
        "seconds",
        "our own: a node that is added on demand comes in two minutes",
        "the leader",
    ),
    Limit(
        "PLACE_SECONDS",
        "how long a worker may find no place though one was given to it",
        "seconds",
        "our own: a refused pod is tried again each three seconds",
        "the leader: the one before comes back",
    ),
    Limit("CONCURRENCY_MAX", "`maxConcurrency`", "calls", "our own", "at creation"),
)

_TOLERATED = "of the output's largest value: rounding follows the number of rows"
_REFUTED = "the experiment at a model's first loading: no joining"

BATCHING = (
    Limit("BATCH_SIZE_MAX", "`batching.maxBatchSize`", "rows", "our own", "at creation"),
    Limit("BATCH_SIZE", "rows of several calls that run together, where it is absent", "rows", "our own", "by construction"),
    Limit(
        "BATCHING_SECONDS",
        "processor time of the experiment whether rows may be joined; three times it by the clock",
        "seconds",
        "our own: the first start waits for it",
        _REFUTED,
    ),
    Limit("BATCHING_BYTES", "inputs of its largest run, and of any joined run", "bytes", "our own: memory", _REFUTED),
    Limit("FORMS_KEPT", "forms of calls that run alone, kept with the proof", "forms", "our own", "each worker finds the others by itself"),
    Limit("FORM_CHARACTERS", "what is kept of why, for each", "characters", "our own; it is kept in etcd", "cut off"),
    Limit("BATCHING_TOLERANCE_FP64", "how far a joined FP64 output may be from the same alone", "", _TOLERATED, _REFUTED),
    Limit("BATCHING_TOLERANCE_FP32", "FP32", "", _TOLERATED, _REFUTED),
    Limit("BATCHING_TOLERANCE_FP16", "FP16", "", _TOLERATED, _REFUTED),
    Limit("BATCHING_TOLERANCE_BF16", "BF16 (integers, BOOL and BYTES are equal)", "", _TOLERATED, _REFUTED),
)

# ---------------------------------------------------------------------------------------------------------------------- credentials

CERTIFICATE_DAYS = 365
AUTHORITY_DAYS = 3_650
AUTHORITY_RENEWAL_DAYS = 1_095
AUTHORITY_TRUSTED_DAYS = 30
PASSWORD_DAYS = 365
CREDENTIAL_SPREAD_SECONDS = 600.0

CREDENTIALS = (
    Limit("CERTIFICATE_DAYS", "a server certificate of the chart's etcd", "days", "our own", "the operator replaces it after two thirds"),
    Limit("AUTHORITY_DAYS", "its authority", "days", "our own: who trusts it reads it from a file, at a start or a connection", "as below"),
    Limit(
        "AUTHORITY_RENEWAL_DAYS",
        "until its end when another follows it",
        "days",
        "our own: longer than a server certificate",
        "the operator makes it, and trusts both",
    ),
    Limit(
        "AUTHORITY_TRUSTED_DAYS",
        "from when another authority is trusted to when it issues, where nobody asks for it sooner",
        "days",
        "our own: as long a release can be rolled back to one that knows the authority before alone",
        "the operator",
    ),
    Limit("PASSWORD_DAYS", "a password of the chart's etcd", "days", "our own", "the operator replaces it"),
    Limit(
        "CREDENTIAL_SPREAD_SECONDS",
        "from what is written into a Secret to when every pod has it",
        "seconds",
        "the kubelet looks each minute or so; a function's Secret follows the operator's",
        "until then what was before stays valid",
    ),
)

# ----------------------------------------------------------------------------------------------------------------------- manifests

MANIFEST_BYTES = 256 * KIB
MANIFEST_NODES = 20_000

CONTENT_LIST_BYTES = 16 * KIB

MANIFESTS = (
    Limit("MANIFEST_BYTES", "a manifest", "bytes", "our own; it is kept in etcd", "at creation"),
    Limit("MANIFEST_NODES", "values in it once YAML's aliases are written out", "values", "our own: aliases multiply", "at creation"),
    Limit(
        "CONTENT_LIST_BYTES",
        "the names of a model folder's files, with 24 bytes for each",
        "bytes",
        "our own: sixteen lists are in a function's entry",
        "at a revision's proof: beyond it whatever is in the folder counts as content",
    ),
)

CALL_DEPTH = 8
SESSION_CALLS = KEPT_KEYS
WAITING_STEPS = 64

CALLS_OF_STEPS = (
    Limit(
        "CALL_DEPTH",
        "functions in a path of calls of steps (`ctx.call`), each of which waits for the next",
        "functions",
        "our own: each has threads and places of its own in a worker",
        "each such call: INVALID_ARGUMENT",
    ),
    Limit(
        "SESSION_CALLS",
        "calls of one session that a step makes",
        "calls",
        "KEPT_KEYS: a step that is run again makes all of them again, and each must still be known",
        "each such call: RESOURCE_EXHAUSTED",
    ),
    Limit(
        "WAITING_STEPS",
        "steps of a handler that is not `async` that wait in a worker for calls of theirs, beside those that run; for each place in a path",
        "steps",
        "our own: each has a thread",
        "the next step waits",
    ),
)

# ---------------------------------------------------------------------------------------------------------------------- usage

USAGE_TENANTS = 100
USAGE_SERIES_TENANTS = 1_000
USAGE_SECONDS = 5
USAGE_IDLE_SECONDS = 60
USAGE_DAYS = 400
USAGE_EACH_DAYS = 62

USAGE = (
    Limit(
        "USAGE_TENANTS",
        "whose usage a function's totals name; of more, the smallest are counted together, as others",
        "tenants",
        "our own: totals of 40 shards fit into one transaction",
        "each time that totals are written",
    ),
    Limit(
        "USAGE_SERIES_TENANTS",
        "that the operator's metrics name, of all functions together; the use of more is in their functions' series of others",
        "tenants",
        "our own: eleven series each, and a scrape makes all of them",
        "the operator, each time that it summed a function",
    ),
    Limit(
        "USAGE_SECONDS",
        "between two times that a worker writes down what it counts beside steps; so much of it is lost where it is killed",
        "seconds",
        "our own",
        "the worker",
    ),
    Limit("USAGE_IDLE_SECONDS", "the same where it counted nothing but its own seconds", "seconds", "our own", "the worker"),
    Limit(
        "USAGE_EACH_DAYS",
        "for which what was used by each day is kept; then by the first day of each month, for USAGE_DAYS",
        "days",
        "our own: two months",
        "the operator removes it",
    ),
    Limit("USAGE_DAYS", "for which the usage of a deleted function is kept", "days", "our own: a year's bills", "the operator removes it"),
)

# --------------------------------------------------------------------------------------------------------------------- alarms

ALARMS = 100
ALARM_NAME_CHARACTERS = 128
ALARM_REQUEST_BYTES = 64 * KIB
ALARM_AHEAD_DAYS = 3_653
ALARM_AGAIN_SECONDS = 1.0
ALARM_RETRY_SECONDS = 3600.0
ALARM_TRIES = 30
ALARM_ERROR_CHARACTERS = 500
ALARM_ROOM_BYTES = 512
ALARM_BLOCKED_SECONDS = 600.0
ALARMS_TOGETHER = 64

ALARMS_OF_SESSIONS = (
    Limit(
        "ALARMS",
        "alarms that a session has, given-up ones too",
        "alarms",
        "our own: every step writes them",
        "the step: RESOURCE_EXHAUSTED",
    ),
    Limit("ALARM_NAME_CHARACTERS", "an alarm's name", "characters", "our own", "`ctx.alarm`: INVALID_ARGUMENT"),
    Limit(
        "ALARM_REQUEST_BYTES",
        "an alarm's inputs, as a request",
        "bytes",
        "our own: every step writes them",
        "`ctx.alarm`: RESOURCE_EXHAUSTED",
    ),
    Limit("ALARM_AHEAD_DAYS", "from now to when an alarm is due", "days", "our own: ten years", "`ctx.alarm`: INVALID_ARGUMENT"),
    Limit(
        "ALARM_AGAIN_SECONDS",
        "from a step of an alarm to the soonest alarm that it sets, and from its first failure to the next try",
        "seconds",
        "our own: one that sets itself again at once would take the worker",
        "the alarm is due then",
    ),
    Limit(
        "ALARM_RETRY_SECONDS", "between two tries of an alarm's step that fails; they double", "seconds", "our own", "it waits no longer"
    ),
    Limit("ALARM_TRIES", "tries of an alarm's step that fails: 19 hours", "tries", "our own", "it is given up, listed and logged"),
    Limit("ALARM_ERROR_CHARACTERS", "what is kept of its last error", "characters", "our own; it is kept in etcd", "cut off"),
    Limit(
        "ALARM_ROOM_BYTES",
        "of a session's record, what is kept free for each alarm to run: its tries are noted there",
        "bytes",
        "our own: one that cannot be noted is not run",
        "the step: RESOURCE_EXHAUSTED; an error that needs more is not kept",
    ),
    Limit(
        "ALARM_BLOCKED_SECONDS",
        "between two looks at alarms whose record a worker cannot read or finds full, or the store does not let change",
        "seconds",
        "our own: each look wakes the function",
        "said in the log each time",
    ),
    Limit(
        "ALARMS_TOGETHER", "alarms that a worker runs side by side", "alarms", "our own: callers' steps run beside them", "the next waits"
    ),
)

TABLE: Sequence[tuple[str, Sequence[Limit]]] = (
    ("Names", NAMES),
    ("Messages", MESSAGES),
    ("The store", STORE),
    ("Sessions", SESSIONS),
    ("Calls of steps", CALLS_OF_STEPS),
    ("Usage", USAGE),
    ("Alarms", ALARMS_OF_SESSIONS),
    ("Liveness and time", LIVENESS),
    ("Holds and scale", SCALE),
    ("Batching", BATCHING),
    ("Credentials", CREDENTIALS),
    ("Manifests", MANIFESTS),
)


def shown(limit: Limit) -> str:
    """The row's value as a person reads it: "1 MiB", "52 characters", "3 s"."""
    value = globals()[limit.name]
    if limit.unit == "bytes":
        for size, unit in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
            if value >= size:
                return f"{value / size:g} {unit}"
    if limit.unit == "seconds":
        return f"{value:g} s"
    return f"{value:,} {limit.unit}".strip()
