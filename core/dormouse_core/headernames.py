"""The metadata that Dormouse reads and writes: each name once. Lua's are compared with these (tests/unit/test_headers.py).

gRPC calls it metadata where a caller sees it; on the wire these are headers.
"""

# What a caller may send. Whoever reads them is `gateway/naming.py`, router.lua and `worker/calls.py`.
FUNCTION = "dormouse-function"
SESSION = "dormouse-session"
TENANT = "dormouse-tenant"
IDEMPOTENCY_KEY = "dormouse-idempotency-key"
FIRST_MESSAGE = "dormouse-first-message"
"""The number of a reopened stream's first message."""

# What a gateway adds; a caller's own are removed by Envoy before anything reads them.
CALL = "dormouse-call"
"""The call's key, the same at each of its tries."""
FN = "dormouse-fn"
"""Whose route Envoy takes: namespace/name, or the entry's."""
UID = "dormouse-uid"
REV = "dormouse-rev"
"""The newest revision of the map that who sends the call has seen."""
OWNER = "dormouse-owner"
"""Addresses: try n of Envoy's goes to the n-th."""
ALONE = "dormouse-alone"
"""Nothing is to be joined to this call; `errors.Again.CLEARED`: and it is run only where the worker was cleared for it."""
CONNECTION = "dormouse-connection"
"""Envoy's number of the caller's connection."""
SIZE = "dormouse-size"
"""Bytes of all names and values, as Envoy counts them."""
WIRE = "dormouse-wire"
"""The bytes that they came in."""
HEAVY = "dormouse-heavy"
WHOLE = "dormouse-whole"
"""HEAVY and WHOLE: metadata.lua and router.lua choose the entry's routes by them."""
BEGINS = "dormouse-begins"
"""A message begins, and its size follows (messages.lua)."""
MAX_MESSAGE = "dormouse-max-message"
"""Bytes of a message that the installation allows."""
HOPS = "dormouse-hops"
"""Whether Envoy sent it on, or a relay (`addresses`): a call that comes back to a gateway is refused."""

# What a worker says at the gateways' port for workers, when a step of its calls another function; there alone.
WORKER = "dormouse-worker"
"""namespace/name/worker: whose step calls."""
PROOF = "dormouse-proof"
"""By which a gateway knows that it is that worker (`childcalls.proves`)."""
PATH = "dormouse-path"
"""The functions whose steps wait for the call (`childcalls.Path`); goes on to the worker that answers."""

# What a reply has.
STEP = "dormouse-step"
BY = "dormouse-by"
AGAIN = "dormouse-again"
"""`errors.Again`: the call was not run here, and why."""
DECOUPLED = "dormouse-decoupled"
"""There may be several responses."""
BROKEN = "dormouse-broken"
"""It is not a worker's: why none came. Within a gateway only."""

CALLERS = frozenset({FUNCTION, SESSION, TENANT, IDEMPOTENCY_KEY, FIRST_MESSAGE})
"""Each may be given once."""
GATEWAYS = (ALONE, CALL, CONNECTION, FN, OWNER, REV, UID, AGAIN, SIZE, WIRE, HEAVY, WHOLE, BEGINS, WORKER, PROOF, PATH)
"""Reach Lua, the relay and the workers only if the gateway made them."""
