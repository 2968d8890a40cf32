"""Whether a session may begin: `maxCount`, `maxBytes`, and the room that is left in the store. Sessions that exist are never asked.

A worker counts the sessions of its own shards exactly; of the others it knows what the leader told it last. So with one worker the limits
are exact, and with several they may be passed by what the others begin between two reports. What is not known refuses nobody.
"""

import msgspec

from dormouse_core.errors import Again, DormouseError, ResourceExhausted, Unavailable
from dormouse_core.limits import STORE_FIGURE_SECONDS, STORE_FULL_FRACTION, STORE_ROOM_FRACTION


class Store:
    """How full the store is. It is full above one fraction and has room again below a lower one, so that refusals do not flap."""

    def __init__(self) -> None:
        self.used: float | None = None
        self.full = False
        self._heard = 0.0

    def hear(self, used: float | None, now: float) -> None:
        """`now`: monotonic seconds."""
        self.used, self._heard = used, now
        if used is None or used < STORE_ROOM_FRACTION:
            self.full = False
        elif used > STORE_FULL_FRACTION:
            self.full = True

    def refuses(self, now: float) -> bool:
        return self.full and now - self._heard <= STORE_FIGURE_SECONDS


class Found(msgspec.Struct, frozen=True):
    """What is known when a session wants to begin.

    `sessions`, `bytes`: of this worker's shards, with those that begin right now. `counted`: all of its shards' records are in them.
    `ceiling`: while they are not, at most so many records can there be in the whole function; None: not known. `others_*`: other workers'.
    """

    sessions: int
    bytes: int
    counted: bool
    ceiling: int | None
    others_sessions: int = 0
    others_bytes: int = 0


def refusal(found: Found, max_count: int, max_bytes: int | None, store: Store, now: float) -> DormouseError | None:
    """Why the session may not begin; None: it may. Unavailable with `again`: the count that decides is not complete; ask again soon."""
    if store.refuses(now):
        used = f"{store.used or 0:.0%}"
        text = f"new sessions are refused: {used} of the store's quota found in use, at most {STORE_FULL_FRACTION:.0%} are allowed for them"
        return ResourceExhausted(text)
    sessions = found.sessions + found.others_sessions
    if sessions >= max_count:
        return ResourceExhausted(f"spec.sessions.maxCount: {sessions} sessions found, at most {max_count} are allowed")
    size = found.bytes + found.others_bytes
    if max_bytes is not None and size >= max_bytes:
        return ResourceExhausted(f"spec.sessions.maxBytes: {size} bytes of state found, new sessions are allowed below {max_bytes}")
    if not found.counted and (max_bytes is not None or found.ceiling is None or found.ceiling >= max_count):
        return Unavailable("the function's sessions are being counted; the call may be sent again", Again.BUSY)
    return None
