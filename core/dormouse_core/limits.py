"""Every limit of Dormouse, and every limit from below that it must respect: one table, from which `docs/reference/limits.md` is written.

A limit that is found out in production is an outage; one that is checked when a function is created is a sentence. So each row says where
the number comes from and what checks it. Other modules use the constants; nobody writes these numbers twice.
"""

from collections.abc import Sequence
from dataclasses import dataclass

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

# ------------------------------------------------------------------------------------------------------------- names and identities
FUNCTION_NAME_CHARACTERS = 52  # 63 for a derived name, less "-" and a ten-character suffix (ReplicaSet's hash)
NAMESPACE_CHARACTERS = 63
SESSION_ID_CHARACTERS = 128
TENANT_CHARACTERS = 128
IDEMPOTENCY_KEY_CHARACTERS = 128
CLOCK_AHEAD_SECONDS = 60.0

# ------------------------------------------------------------------------------------------------------------------------ messages
MESSAGE_BYTES = 16 * MIB
MESSAGE_BYTES_MAX = 64 * MIB
MESSAGE_OVERHEAD_BYTES = 64 * KIB
CLIENT_MESSAGE_BYTES = 4 * MIB

# --------------------------------------------------------------------------------------------------------------------- the store
RECORD_BYTES = 1 * MIB
RECORD_OVERHEAD_BYTES = 32 * KIB
STATE_BYTES = RECORD_BYTES - RECORD_OVERHEAD_BYTES
TXN_BYTES = 1 * MIB
TXN_OPS = 120
ETCD_REQUEST_BYTES = 3 * MIB // 2
ETCD_TXN_OPS = 128
ETCD_QUOTA_BYTES = 2 * GIB
STORE_FULL_FRACTION = 0.7
COMPACT_SECONDS = 10.0
FAILOVER_SHARDS = 60

# ------------------------------------------------------------------------------------------------------------------------ sessions
KEPT_KEYS = 8
KEPT_REPLY_BYTES = 16 * KIB
KEPT_REPLY_MEMORY_BYTES = 64 * MIB
REMOVAL_WAIT_SECONDS = 600.0
SHARDS_MAX = 4096
STATES_MAX = 32
TENSOR_DIMENSIONS = 16
SESSIONS_MAX = 1_000_000_000

# --------------------------------------------------------------------------------------------------------------- liveness and time
LEASE_SECONDS = 3
LEASE_KEEPALIVE_SECONDS = 1.0
PROBE_SECONDS = 1.0
PROBE_MISSES = 3
HANDOFF_DEADLINE_SECONDS = 2.0
HANDOFF_QUIET_SECONDS = 0.1
TERMINATION_GRACE_SECONDS = 30.0

# ----------------------------------------------------------------------------------------------------------------- holds and scale
HELD_CALLS = 10_000
HELD_BYTES = 1 * GIB
REPLICAS_MAX = 1_000
CONCURRENCY_MAX = 10_000
BATCH_SIZE_MAX = 1_024
ENVOY_CIRCUIT_BREAKER = 1_024

# ----------------------------------------------------------------------------------------------------------------------- manifests
MANIFEST_BYTES = 256 * KIB
MANIFEST_NODES = 20_000


@dataclass(frozen=True, slots=True)
class Limit:
    """A row of the table. `names`: the constants that the row is about."""

    what: str
    names: tuple[str, ...]
    unit: str
    source: str
    check: str


TABLE: Sequence[tuple[str, Sequence[Limit]]] = ()
