"""Free loopback ports."""

import random
import socket

_RANGE = range(12_000, 30_000)  # below those that Linux gives to outgoing connections and to whoever binds port 0
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
