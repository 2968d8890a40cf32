"""What a worker's process prints, made into lines of the log. Pure: bytes in, lines out; the supervisor reads and writes.

Standard output and error of the child are one pipe to its supervisor, so that `print`, threads, native code, child processes of a handler
and the last words of a crash all come the same way, also while the interpreter is held. (Python's own log does not take it: it writes to
the real standard error.) Each line gets the time and the function's name, behind a bar, so that no text can pass for one of our own: what
ends a line for some reader, or what a terminal obeys, is written as text, as are bytes that are no UTF-8.

The pipe is always read, whatever becomes of the lines: a process that prints must not wait for whoever reads the log. Beyond
`WAITING_BYTES` lines are dropped, and counted in a line of their own.
"""

import re
import time
from collections import deque

from dormouse_core.plain import plain

LINE_BYTES = 16_384
"""A longer line is cut into several."""
WAITING_BYTES = 1 << 20
PARTIAL_SECONDS = 1.0
"""A line without an end is written after this."""
WRITE_BYTES = 4096
"""What a pipe that can be written takes without waiting (PIPE_BUF)."""
_ENDS = re.compile(rb"\r\n|[\r\n]")


class Printed:
    def __init__(self, label: str) -> None:
        self._label = label.encode()
        self._rest = b""
        self._since = 0.0
        self._lines: deque[bytes] = deque()
        self._held = 0
        self._dropped = 0

    def feed(self, data: bytes, now: float) -> None:
        """`now`: Unix time in seconds."""
        *lines, rest = _ENDS.split(self._rest + data)
        if not self._rest or lines:
            self._since = now
        self._rest = rest
        for line in lines:
            if line:
                self._add(line, now)
        while len(self._rest) > LINE_BYTES:
            cut = _whole(self._rest)
            self._add(self._rest[:cut], now)
            self._rest = self._rest[cut:]

    def due(self, now: float) -> None:
        """A line that was begun a while ago is written as it is; what was dropped is told once there is room."""
        if self._dropped and not self._lines:
            self._tell(now)
        if self._rest and now - self._since >= PARTIAL_SECONDS:
            self.flush(now)

    def flush(self, now: float) -> None:
        """The process has ended, or the line is too long."""
        if self._rest:
            self._add(self._rest, now)
            self._rest = b""

    def _add(self, line: bytes, now: float) -> None:
        while line:
            cut = _whole(line)
            text = line[:cut].decode("utf-8", "backslashreplace")
            self._put(plain(text, keep="\t").encode(), now)
            line = line[cut:]

    def _put(self, text: bytes, now: float) -> None:
        if self._held > WAITING_BYTES:
            self._dropped += 1
            return
        if self._dropped:
            self._tell(now)
        self._line(text, now)

    def _tell(self, now: float) -> None:
        self._line(b"(%d lines were printed faster than they could be written, and are dropped)" % self._dropped, now)
        self._dropped = 0

    def _line(self, text: bytes, now: float) -> None:
        line = b"%s worker %s  | %s\n" % (stamp(now).encode(), self._label, text)
        self._lines.append(line)
        self._held += len(line)

    @property
    def begun(self) -> bool:
        """There is a line without an end."""
        return bool(self._rest)

    @property
    def waiting(self) -> bool:
        """There are lines to write."""
        return bool(self._lines)

    def take(self) -> bytes:
        """The next bytes to write: at most `WRITE_BYTES`, whole lines where they fit."""
        taken = bytearray()
        while self._lines and len(taken) + len(self._lines[0]) <= WRITE_BYTES:
            taken += self._lines.popleft()
        if not taken and self._lines:
            line = self._lines.popleft()
            taken += line[:WRITE_BYTES]
            self._lines.appendleft(line[WRITE_BYTES:])
        self._held -= len(taken)
        return bytes(taken)


def _whole(data: bytes) -> int:
    """Where to cut: after at most `LINE_BYTES`, and not within a character."""
    if len(data) <= LINE_BYTES:
        return len(data)
    for cut in range(LINE_BYTES, LINE_BYTES - 4, -1):
        if data[cut] & 0xC0 != 0x80:
            return cut
    return LINE_BYTES  # no UTF-8


def stamp(now: float) -> str:
    """Of a log line, as `dormouse_kit.log` writes it."""
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(now))}.{int(now * 1000) % 1000:03d}Z"
