"""What every process of Dormouse needs to touch the world: the store, the clock, logging, metrics, processes, gRPC options."""

import os

# gRPC stops its threads around each fork unless told otherwise, and writes a line to stderr where it cannot. Our children exec at once.
# It reads this when it is first imported; children inherit it.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
