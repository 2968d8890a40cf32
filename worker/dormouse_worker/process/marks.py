"""What the child's interpreter does, readable from outside while it is held.

A step may hold the interpreter for as long as a step may run: sorting, one regular expression, native code that keeps the GIL. Nothing else
in Python runs then, neither the probe nor the renewal of the lease, so the child cannot be asked. It leaves marks instead, in memory that
it shares with its supervisor (a memfd): how many calls are in it, how many steps run, since when the latest runs, for which calls, in which
thread, which of them the event loop is in right now, and when the lease was renewed.

Written by the child under the GIL, read by the supervisor at any time: each field is 8 bytes at a multiple of 8, which no reader sees half.
`time.monotonic` is one clock for all processes of a machine. Imports nothing heavy.
"""

import mmap
import os
import struct
import threading
from collections.abc import Sequence

from dormouse_core import hanging

_RUNNING, _LATEST, _LIMIT, _LEASE, _RENEWED, _KEPT, _ON_LOOP, _INSIDE = range(0, 64, 8)
_SLOT = 512
_SLOTS = 512
_FIRST = 64
_SIZE = _FIRST + _SLOT * _SLOTS
_NUMBER = struct.Struct("=q")
_TIME = struct.Struct("=d")
_LENGTH = struct.Struct("=qq")


class Marks:
    """One child's marks. All times are monotonic seconds; 0: never."""

    def __init__(self, fd: int | None = None) -> None:
        """`fd`: the supervisor's, in the child; None: makes them."""
        self.fd = os.memfd_create("dormouse-marks", 0) if fd is None else fd
        if fd is None:
            os.ftruncate(self.fd, _SIZE)
        self._memory = mmap.mmap(self.fd, _SIZE)
        self._free = list(range(_SLOTS - 1, -1, -1))
        self._slots: dict[int, int] = {}
        self._running = 0
        self._lock = threading.Lock()

    def close(self) -> None:
        self._memory.close()
        os.close(self.fd)

    # --------------------------------------------------------------------------------------------------------------- the child
    def begin(self, token: int, now: float, calls: Sequence[str], thread: int = 0) -> None:
        """A run of `calls` (their keys; as many as fit are kept) began; `thread`: the native id of the one that it has for itself, 0: none.
        Thread-safe, as is `end`."""
        text = "\n".join(calls).encode()[: _SLOT - _LENGTH.size]
        with self._lock:
            self._running += 1
            _TIME.pack_into(self._memory, _LATEST, now)
            _NUMBER.pack_into(self._memory, _RUNNING, self._running)
            if text and self._free:
                slot = self._slots[token] = self._free.pop()
                at = _FIRST + slot * _SLOT
                self._memory[at + _LENGTH.size : at + _LENGTH.size + len(text)] = text
                _LENGTH.pack_into(self._memory, at, len(text), thread)

    def end(self, token: int) -> None:
        with self._lock:
            self._running -= 1
            _NUMBER.pack_into(self._memory, _RUNNING, self._running)
            slot = self._slots.pop(token, None)
            if slot is not None:
                _LENGTH.pack_into(self._memory, _FIRST + slot * _SLOT, 0, 0)
                self._free.append(slot)

    def on_loop(self, token: int | None) -> None:
        """The event loop is in this run's code from now on; None: in none's."""
        slot = None if token is None else self._slots.get(token)
        _NUMBER.pack_into(self._memory, _ON_LOOP, 0 if slot is None else slot + 1)

    def inside(self, calls: int) -> None:
        """So many calls, or more, have arrived and are not over, whether they run or wait, also for nobody any more. Too many is safe."""
        _NUMBER.pack_into(self._memory, _INSIDE, calls)

    def allow(self, seconds: float) -> None:
        """How long a step may hold the interpreter."""
        _TIME.pack_into(self._memory, _LIMIT, seconds)

    def renewed(self, lease: int, at: float) -> None:
        """The child has renewed its lease, and asked for that at `at`."""
        _NUMBER.pack_into(self._memory, _LEASE, lease)
        _TIME.pack_into(self._memory, _RENEWED, at)

    # ---------------------------------------------------------------------------------------------------------- the supervisor
    def held_for(self, now: float) -> float | None:
        """Seconds since the latest step began, which is the least that the interpreter may have been held for by one; None: none runs."""
        if self._number(_RUNNING) <= 0:
            return None
        return max(0.0, now - self._time(_LATEST))

    @property
    def limit(self) -> float:
        return self._time(_LIMIT)

    @property
    def lease(self) -> int:
        """0: none."""
        return self._number(_LEASE)

    @property
    def renewed_at(self) -> float:
        return self._time(_RENEWED)

    @property
    def kept_at(self) -> float:
        """When the lease was last renewed from outside."""
        return self._time(_KEPT)

    def kept(self, at: float) -> None:
        _TIME.pack_into(self._memory, _KEPT, at)

    def alone(self) -> bool:
        """One run of one call is under way, and that call is all that is in the child: others that wait to run use its memory, too."""
        calls = [call for run in self.runs() for call in run.calls]
        return len(calls) == self._number(_RUNNING) == self._number(_INSIDE) == 1

    def runs(self) -> list[hanging.Run]:
        """The runs that have calls with keys, as far as they were kept."""
        found: list[hanging.Run] = []
        on_loop = self._number(_ON_LOOP) - 1
        for slot in range(_SLOTS):
            at = _FIRST + slot * _SLOT
            length, thread = _LENGTH.unpack_from(self._memory, at)
            if 0 < length <= _SLOT - _LENGTH.size:
                text = self._memory[at + _LENGTH.size : at + _LENGTH.size + length].decode(errors="replace")
                found.append(hanging.Run(tuple(text.split("\n")), thread, slot == on_loop))
        return found

    def _number(self, at: int) -> int:
        return int(_NUMBER.unpack_from(self._memory, at)[0])

    def _time(self, at: int) -> float:
        return float(_TIME.unpack_from(self._memory, at)[0])
