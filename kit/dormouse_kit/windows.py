"""A file's bytes by index and slice, read when they are asked for.

Not mapped: a file that somebody truncates under a mapping ends the process that looks at it (SIGBUS). Here it is an OSError.
"""

import os

WHOLE = 1 << 16
"""A slice of at most so many bytes is read at once; a longer one is a window again."""
BLOCK = 1 << 12
CHUNK = 1 << 20


class Window:
    """Bytes `start` to `end` of an open file, which must stay open as long as its windows are used."""

    __slots__ = ("_at", "_block", "_file", "_start", "end")

    def __init__(self, file: int, start: int = 0, end: int | None = None) -> None:
        """`file`: its descriptor."""
        self._file, self._start = file, start
        self.end = os.fstat(file).st_size if end is None else end
        self._at, self._block = 0, b""

    def __len__(self) -> int:
        return self.end - self._start

    def __getitem__(self, wanted: int | slice) -> "int | memoryview | Window":
        """OSError: the file is shorter by now. IndexError: beyond the window."""
        if isinstance(wanted, slice):
            first, last, _ = wanted.indices(len(self))
            if last - first <= WHOLE:
                return memoryview(self._read(self._start + first, max(0, last - first)))
            return Window(self._file, self._start + first, self._start + last)
        if not 0 <= wanted < len(self):
            raise IndexError(wanted)
        at = self._start + wanted
        if not self._at <= at < self._at + len(self._block):
            self._at, self._block = at, self._read(at, min(BLOCK, self.end - at))
        return self._block[at - self._at]

    def find(self, wanted: bytes) -> int:
        """The index of the first; -1: none."""
        at, before = self._start, b""
        while at < self.end:
            chunk = before + self._read(at, min(CHUNK, self.end - at))
            found = chunk.find(wanted)
            if found >= 0:
                return at - len(before) + found - self._start
            at += len(chunk) - len(before)
            before = chunk[-len(wanted) + 1 :]
        return -1

    def _read(self, at: int, size: int) -> bytes:
        parts = []
        while size > 0:
            part = os.pread(self._file, size, at)
            if not part:
                raise OSError("the file was truncated while it was read")
            parts.append(part)
            at, size = at + len(part), size - len(part)
        return b"".join(parts)
