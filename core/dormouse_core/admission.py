"""Whether a session may begin: `maxCount`, `maxBytes`, and the room that is left in the store. Sessions that exist are not asked, but for
one thing: near the store's end, those of a namespace that has more than its share stop before everybody's would.

How full the store is, the leader says once a second, and what it says is as old as the last compaction: history is told from keys only
once it is dropped, after `COMPACT_SECONDS` or a tenth of the quota (`COMPACT_FRACTION`). What a worker has written itself since then, it
adds; so the store is passed by what others begin meanwhile.

A worker counts the sessions of its own shards exactly; of the others it knows what the leader told it last. So with one worker the limits
are exact, and with several they may be passed by what the others begin between two reports. What is not known refuses nobody: while a
function has enough records to be at its limit, a call that would begin one waits until it is known.
"""

from collections import deque
from collections.abc import Mapping
from math import inf

import msgspec

from dormouse_core.errors import Again, DormouseError, ResourceExhausted, Unavailable
from dormouse_core.limits import (
    STORE_FIGURE_SECONDS,
    STORE_FULL_FRACTION,
    STORE_ROOM_FRACTION,
    STORE_SHARED_FRACTION,
    STORE_STOP_FRACTION,
)

MARK_SECONDS = 0.1
MARKED_SECONDS = 2 * STORE_FIGURE_SECONDS  # an idle store's figure is as old as its last compaction


class Store:
    """How full the store is. It is full above one fraction and has room again below a lower one, so that refusals do not flap.

    `now` is monotonic seconds, everywhere."""

    def __init__(self) -> None:
        self.full = False
        self.over_share = False
        self._told: float | None = None
        self._heard = 0.0
        self._quota = 0
        self._grown = 0  # bytes by which this worker's own writes made records grow
        self._marks: deque[tuple[float, int]] = deque([(-inf, 0)])  # the last write of each tenth of a second: when, how much it was then
        self._marking = -inf  # the first write of the latest
        self._counted = 0  # of it, what is in `_told`

    def wrote(self, size: int, now: float) -> None:
        """A write of this worker made the records larger by `size` bytes; negative: smaller."""
        self._grown += size
        if now - self._marking < MARK_SECONDS:
            self._marks.pop()
        else:
            self._marking = now
        self._marks.append((now, self._grown))
        while len(self._marks) > 1 and now - self._marks[1][0] > MARKED_SECONDS:
            self._marks.popleft()

    def hear(self, used: float | None, now: float, *, age: float = 0.0, quota: int = 0, over_share: bool = False) -> None:
        """Of `quota` bytes so much was `used` `age` seconds ago; None: not known. `over_share`: the function's namespace has more than its
        share."""
        self._told, self._heard, self._quota, self.over_share = used, now, quota, over_share
        self._counted = next((grown for at, grown in reversed(self._marks) if at <= now - age), self._marks[0][1])
        self._judge()

    @property
    def used(self) -> float | None:
        """With what this worker wrote since it was so; None: not known."""
        if self._told is None or not self._quota:
            return self._told
        return self._told + max(self._grown - self._counted, 0) / self._quota

    def refuses(self, now: float) -> bool:
        self._judge()
        return self.full and self._known(now)

    def _judge(self) -> None:
        used = self.used
        if used is None or used < STORE_ROOM_FRACTION:
            self.full = False
        elif used > STORE_FULL_FRACTION:
            self.full = True

    def over(self, fraction: float, now: float) -> bool:
        """More than `fraction` of the quota is in use, and this namespace has more than its share."""
        used = self.used
        return self.over_share and used is not None and used > fraction and self._known(now)

    def _known(self, now: float) -> bool:
        return now - self._heard <= STORE_FIGURE_SECONDS


def over_share(stored: Mapping[str, int], namespace: str, quota: int) -> bool:
    """Whether `namespace` has more than its share of what sessions may take. `stored`: bytes of live sessions' records, by namespace, of
    all that have functions with sessions; `quota`: the store's, in bytes. A namespace that is alone shares with nobody."""
    return len(stored) > 1 and stored.get(namespace, 0) > STORE_FULL_FRACTION * quota / len(stored)


class Found(msgspec.Struct, frozen=True):
    """What is known when a session wants to begin.

    `sessions`, `bytes`: of this worker's shards, with those that begin right now. `counted`: all of its shards' records are in them.
    `ceiling`: while they are not, at most so many records can there be in the whole function; None: not known. `others_*`: other workers'.
    `doubted_*`: of `sessions` and `bytes`, what may have expired: by a clock for which nobody vouches.
    """

    sessions: int
    bytes: int
    counted: bool
    ceiling: int | None
    others_sessions: int = 0
    others_bytes: int = 0
    doubted_sessions: int = 0
    doubted_bytes: int = 0


def refusal(found: Found, max_count: int, max_bytes: int | None, store: Store, now: float) -> DormouseError | None:
    """Why the session may not begin; None: it may. Unavailable with `again`: what decides is not known yet; ask again soon."""
    if store.over(STORE_SHARED_FRACTION, now):
        return ResourceExhausted(f"new sessions are refused: {_over(store)}")
    if store.refuses(now):
        used = f"{store.used or 0:.0%}"
        text = (
            f"new sessions are refused: {used} of the store's quota is in use, at most {STORE_FULL_FRACTION:.0%} are allowed for them; "
            "end or delete sessions"
        )
        return ResourceExhausted(text)
    sessions = found.sessions + found.others_sessions
    if sessions >= max_count:
        if sessions - found.doubted_sessions < max_count:
            return _counting("it is not known which of them have expired")
        return ResourceExhausted(f"spec.sessions.maxCount: {sessions} sessions found, at most {max_count} are allowed")
    size = found.bytes + found.others_bytes
    if max_bytes is not None and size >= max_bytes:
        if size - found.doubted_bytes < max_bytes:
            return _counting("it is not known which of them have expired")
        return ResourceExhausted(f"spec.sessions.maxBytes: {size} bytes of state found, new sessions are allowed below {max_bytes}")
    if not found.counted and (max_bytes is not None or found.ceiling is None or found.ceiling >= max_count):
        return _counting("not all have been seen")
    return None


def _counting(why: str) -> Unavailable:
    return Unavailable(f"the function's sessions are being counted, {why}; the call may be sent again", Again.COUNTING)


def stop(store: Store, now: float) -> DormouseError | None:
    """Why a step of a session that exists, and that goes on after it, is not run. None: it is."""
    return ResourceExhausted(f"the step is refused: {_over(store)}") if store.over(STORE_STOP_FRACTION, now) else None


def _over(store: Store) -> str:
    return f"{store.used or 0:.0%} of the store's quota is in use, and this namespace has more than its share; end or delete sessions"
