"""What a session's record remembers of callers' keys that it keeps no more: their times, and six bytes of a digest of each id.

A horizon alone refuses every call that is older than some key that was forgotten, also one that never ran: a call that comes late, to a
session that others call meanwhile. A **mark** takes 14 bytes where a kept key takes a hundred, and says of such a call that it is not that
one. Only where a mark is dropped, after 256 of them or ten minutes, its time goes into the horizon.

Two ids may have the same six bytes, once in 10^12 calls of a session that has as many marks as there may be: the call is refused, as one is
that ran. It is never the other way round.
"""

from hashlib import sha256

import msgspec

from dormouse_core.limits import KEY_MARK_SECONDS, MARKED_KEYS

_TIME, _PRINT = 8, 6


class Marks(msgspec.Struct, frozen=True):
    """`times`: microseconds, 8 bytes each, the oldest first; `prints`: of the ids, 6 bytes each, in the same order."""

    times: bytes = b""
    prints: bytes = b""

    def __len__(self) -> int:
        return len(self.times) // _TIME

    def has(self, ident: str, timestamp_us: int) -> bool:
        """Whether this id was forgotten under this time or a later one. Under an earlier one: the caller gave the id to another call, as
        one does that numbers its calls and begins again. 0: whichever time it had."""
        if not self.prints:
            return False
        wanted = _print(ident)
        at = self.prints.find(wanted)
        while at >= 0:
            place, inside = divmod(at, _PRINT)  # inside: the end of one and the beginning of the next
            if not inside and self._time(place) >= timestamp_us:
                return True
            at = self.prints.find(wanted, at + 1)
        return False

    def _time(self, place: int) -> int:
        return int.from_bytes(self.times[place * _TIME : (place + 1) * _TIME])

    @property
    def newest_us(self) -> int:
        """0: there is none."""
        return int.from_bytes(self.times[-_TIME:])

    def added(self, timestamp_us: int, ident: str) -> "Marks":
        time = timestamp_us.to_bytes(_TIME)
        at = len(self)
        while at and self.times[(at - 1) * _TIME : at * _TIME] > time:
            at -= 1
        times = self.times[: at * _TIME] + time + self.times[at * _TIME :]
        return Marks(times, self.prints[: at * _PRINT] + _print(ident) + self.prints[at * _PRINT :])

    def shed(self, now_us: int) -> tuple["Marks", int]:
        """Without those that are too many or too old, and the newest time of these: the horizon is not to be below it. `now_us`: the
        newest of the gateways' times that the session knows; where it is wrong, marks go early or late, which costs refusals or bytes."""
        limit = max(0, now_us - int(KEY_MARK_SECONDS * 1e6)).to_bytes(_TIME)
        drop = max(0, len(self) - MARKED_KEYS)
        while drop < len(self) and self.times[drop * _TIME : (drop + 1) * _TIME] < limit:
            drop += 1
        if not drop:
            return self, 0
        return Marks(self.times[drop * _TIME :], self.prints[drop * _PRINT :]), self._time(drop - 1)


def read(times: bytes, prints: bytes) -> Marks | None:
    """As they were written; None: nobody of ours wrote them so."""
    if len(times) % _TIME or len(times) // _TIME != len(prints) // _PRINT or len(prints) % _PRINT:
        return None
    return Marks(times, prints)


def _print(ident: str) -> bytes:
    return sha256(ident.encode()).digest()[:_PRINT]


NONE = Marks()
BYTES = MARKED_KEYS * (_TIME + _PRINT)
