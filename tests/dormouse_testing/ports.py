"""Free loopback ports."""

import os
import random
import socket

_WORKER, _WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]), int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
# Below those that Linux gives to outgoing connections and to whoever binds port 0; of test processes side by side, each has its own.
_RANGE = range(12_000 + _WORKER, 30_000, _WORKERS)
_given: set[int] = set()


def free_port() -> int:
    """A port that nobody listens on now, and that this process was not given before. Another process may take it before you do: bind soon,
    or bind port 0 where you can."""
    while True:
        port = random.choice(_RANGE)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in _given:
            _given.add(port)
            return port
