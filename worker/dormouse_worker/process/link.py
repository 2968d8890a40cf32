"""Supervisor and child talk over a socket pair that the child inherits: one JSON object a line.

Up: ``{"ready": true}``, ``{"drained": true}``, ``{"problem": {"code", "reason", "message"}}``,
``{"registered": {"key", "entry", "lease"}}`` (the worker's entry in the store, in base64). Down: ``{"drain": true}``. Not over the
serving port, where anybody who reaches a worker could drain it. Imports nothing heavy: it runs in the supervisor too.
"""

import json
import socket
from typing import Any

FD = "DORMOUSE_LINK_FD"
SETTINGS = "DORMOUSE_WORKER"
LONGEST = 1 << 20
"""Bytes of a message."""


class Link:
    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._rest = b""

    def send(self, message: dict[str, Any]) -> None:
        """A peer that is gone is not told."""
        try:
            self.sock.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            return

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """The messages that `data` completes. What is none is left out: a handler's code has the socket too."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > LONGEST:
            self._rest = b""
        return [message for line in lines if (message := _message(line)) is not None]


def _message(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
