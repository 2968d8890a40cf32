"""When the store's history is dropped, when a member's file is made smaller, when its alarm is taken back. Pure.

etcd compares its quota with the size of each member's *file*. Every write adds to it, also one that replaces a value, until the history is
compacted; compacted space is used again, but the file becomes smaller only by a defragmentation, during which its member answers nothing.
At the quota etcd raises the alarm NOSPACE and refuses every write that is no deletion, leases included: nobody can register or be elected,
so what makes room needs neither. The alarm stays until it is taken back.

`Storage` is given looks at the members and returns one step at a time; whoever applies it looks again. So a step that is interrupted,
repeated, or made by two processes at once does no harm: the next look says what is so.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from dormouse_core.limits import (
    BACKSTOP_BYTES,
    COMPACT_FRACTION,
    COMPACT_SECONDS,
    DEFRAGMENT_BYTES,
    DEFRAGMENT_FRACTION,
    HISTORY_SECONDS,
    ROOM_FRACTION,
)
from dormouse_core.seams import MemberSeen

LOOK_SECONDS = (0.1, 1.0)  # between looks: while much is written, while nothing is
BURST = 32 << 20  # bytes a second: looks come no later than writes that begin at this rate would take half of what is free
SETTLE_SECONDS = 0.3  # until compacted space counts as free: etcd writes its pages each 0.1 s
PATIENCE_SECONDS = 3.0  # for which one that does not lead leaves an alarm to the leader
FULL_SECONDS = 2.0  # between looks at a store that is full for good
STEADY_SECONDS = 30.0  # free space that nothing took for one to two times this long is given back
SPACING_SECONDS = 60.0  # between defragmentations that no alarm asks for
DISARM_SECONDS = (1.0, 60.0)  # between two disarmings: first, longest. An alarm that comes again at once is not fought


def retention(quota: int) -> int:
    """Seconds of history that etcd is to keep by itself, for when no operator runs (`--auto-compaction-retention`; it takes twice as long
    until it drops some). The chart's template computes the same."""
    return min(max(quota // BACKSTOP_BYTES, 1), int(COMPACT_SECONDS))


@dataclass(frozen=True, slots=True)
class Compact:
    revision: int


@dataclass(frozen=True, slots=True)
class Defragment:
    endpoint: str
    member: int


@dataclass(frozen=True, slots=True)
class Disarm:
    pass


@dataclass(frozen=True, slots=True)
class Step:
    """What to do now, if anything, why, and after how many seconds to look again."""

    action: Compact | Defragment | Disarm | None
    why: str
    again: float


@dataclass(slots=True)
class _Free:
    """A member's free space: the least of this span of time, and of the one before (None: not seen for a whole one)."""

    since: float
    least: int
    before: int | None = None

    def seen(self, now: float, free: int) -> None:
        if now - self.since >= STEADY_SECONDS:
            self.since, self.before, self.least = now, self.least, free
        self.least = min(self.least, free)

    @property
    def steady(self) -> int:
        return 0 if self.before is None else min(self.before, self.least)


@dataclass(slots=True)
class Storage:
    """`quota`: etcd's, in bytes, where its members do not say it themselves (3.4 and 3.5 do not)."""

    quota: int
    found: int = 0
    """The quota by which it was last judged: what the members say, else `quota`. 0: not looked yet."""
    used: float | None = None
    """Fraction of the quota that keys and about a second of their history take; None: not known."""
    _revisions: deque[tuple[float, int]] = field(default_factory=deque)
    _revision: int = 0
    _compacted: int = 0
    _compacted_at: float | None = None
    _least: int | None = None  # bytes in use: the least since the last compaction
    _written: tuple[float, int] | None = None
    _free: dict[int, _Free] = field(default_factory=dict)
    _copied: dict[int, int] = field(default_factory=dict)  # by member: the compacted revision at its last defragmentation
    _defragmented_at: float | None = None
    _defragmented_for: float = 0.0
    _failed: bool = False
    _alarmed_at: float | None = None
    _disarmed_at: float | None = None
    _disarm_pause: float = DISARM_SECONDS[0]

    def look(self, now: float, members: Sequence[MemberSeen], missing: Sequence[str], *, leading: bool) -> Step:
        """`members`: those that answered, `missing`: the endpoints that did not."""
        if not members:
            self.used = None
            return Step(None, "no member of the store answers", LOOK_SECONDS[1])
        self.found = quota = min(member.quota or self.quota for member in members)
        self._note(now, members)
        if any(member.full for member in members):
            if self._alarmed_at is None:
                self._alarmed_at = now
            return self._full(now, members, quota, leading=leading)
        self._alarmed_at = None
        step = self._history(now, max(member.used for member in members), quota, leading=leading)
        if step.action is None and leading and not missing and self._settled(now):
            shrink = self._shrink(now, members, quota)
            if shrink is not None:
                return shrink
        return step

    def compacted(self, now: float, revision: int) -> None:
        """`Compact` was done."""
        self._compacted, self._compacted_at = max(self._compacted, revision), now
        self._least = None

    def defragmented(self, now: float, member: int, seconds: float, *, done: bool = True) -> None:
        """`Defragment` was asked for, and took so long; not `done`: it failed, or goes on without us."""
        self._defragmented_at, self._defragmented_for, self._failed = now, seconds, not done
        if not done:
            return
        self._copied[member] = self._compacted
        self._free.pop(member, None)

    def disarmed(self, now: float) -> None:
        """`Disarm` was done."""
        first, longest = DISARM_SECONDS
        soon = self._disarmed_at is not None and now - self._disarmed_at < 2 * longest
        self._disarm_pause = min(2 * self._disarm_pause, longest) if soon else first
        self._disarmed_at = now

    def _note(self, now: float, members: Sequence[MemberSeen]) -> None:
        revision = max(member.revision for member in members)
        if revision < self._revision:  # the store was restored to an earlier one
            self._revisions.clear()
            self._copied.clear()
            self._compacted = 0
        self._revision = revision
        if not self._revisions or now - self._revisions[-1][0] >= LOOK_SECONDS[0] / 2:
            self._revisions.append((now, revision))
        while len(self._revisions) > 1 and now - self._revisions[1][0] >= COMPACT_SECONDS:
            self._revisions.popleft()
        for member in members:
            self._free.setdefault(member.member, _Free(now, member.size - member.used)).seen(now, member.size - member.used)

    def _settled(self, now: float) -> bool:
        return self._compacted_at is not None and now - self._compacted_at >= SETTLE_SECONDS

    # ------------------------------------------------------------------------------------------------------------------ history

    def _history(self, now: float, used: int, quota: int, *, leading: bool) -> Step:
        if self._compacted_at is None or self._settled(now):
            self._least = used if self._least is None else min(self._least, used)
            self.used = None if self._compacted_at is None else self._least / quota
        base = used if self._least is None else self._least
        tenth = int(COMPACT_FRACTION * quota) * (1 if leading else 2)  # one that does not lead only stands in for a leader
        written = used - base
        if self._compacted_at is None and leading:
            revision, why = self._revision_before(now, HISTORY_SECONDS), "what is history is not known yet"
        elif written >= tenth:
            # History is kept for watches that lag and listings in pages, as long as there is room for it.
            kept = HISTORY_SECONDS if used < quota / 2 else LOOK_SECONDS[0] if used < DEFRAGMENT_FRACTION * quota else 0.0
            revision, why = self._revision_before(now, kept), f"{written} bytes were written, {tenth} may be"
        elif leading and self._compacted_at is not None and now - self._compacted_at >= COMPACT_SECONDS:
            revision, why = self._revision_before(now, COMPACT_SECONDS), f"{COMPACT_SECONDS:g} s passed"
        else:
            revision, why = 0, "nothing is due"
        again = self._pace(now, used, tenth - written, quota - used)
        if revision > self._compacted:
            return Step(Compact(revision), why, LOOK_SECONDS[0])
        return Step(None, why, again)

    def _revision_before(self, now: float, seconds: float) -> int:
        """The newest revision that is at least so old; 0: none was seen."""
        return next((revision for at, revision in reversed(self._revisions) if now - at >= seconds), 0)

    def _pace(self, now: float, used: int, left: int, room: int) -> float:
        """So that the next look comes when half of what may still be written has been, at the present rate, or of the `room` in a burst."""
        least, most = LOOK_SECONDS
        most = min(max(room / 2 / BURST, least), most)
        before, self._written = self._written, (now, used)
        if before is None or now <= before[0] or used <= before[1]:
            return most
        rate = (used - before[1]) / (now - before[0])
        return min(max(left / rate / 2, least), most)

    # -------------------------------------------------------------------------------------------------------------------- files

    def _shrink(self, now: float, members: Sequence[MemberSeen], quota: int) -> Step | None:
        """A defragmentation that no alarm asks for: because the file nears the quota, or because it gives back at least as much as it has
        to copy, and nothing took that space for a while."""
        for member in _in_order(members):
            if member.leads and member.used > DEFRAGMENT_BYTES:
                continue  # it takes longer than a lease lasts: every worker would have to begin again
            free, steady = member.size - member.used, self._free[member.member].steady
            near = member.size >= DEFRAGMENT_FRACTION * quota and free >= COMPACT_FRACTION * quota
            worth = steady >= max(member.used, COMPACT_FRACTION * quota)
            if not (near or worth):
                continue
            if self._defragmented_at is not None and now - self._defragmented_at < (SPACING_SECONDS if not near else LOOK_SECONDS[1]):
                return None
            why = f"{free} of {member.size} bytes of {member.endpoint}'s file are free"
            return Step(Defragment(member.endpoint, member.member), why, LOOK_SECONDS[0])
        return None

    # -------------------------------------------------------------------------------------------------------------------- alarm

    def _rested(self, now: float) -> bool:
        """A tenth of the time, at most, goes to defragmentations that may be in vain."""
        return self._defragmented_at is None or now - self._defragmented_at >= max(FULL_SECONDS, 10 * self._defragmented_for)

    def _full(self, now: float, members: Sequence[MemberSeen], quota: int, *, leading: bool) -> Step:
        used = max(member.used for member in members)
        self.used = used / quota
        assert self._alarmed_at is not None
        if not leading and now - self._alarmed_at < PATIENCE_SECONDS:
            return Step(None, "the store is full; the leader makes room", LOOK_SECONDS[1])
        if self._revision > self._compacted:
            return Step(Compact(self._revision), "the store is full", LOOK_SECONDS[0])
        if not self._settled(now):
            return Step(None, "the store is full; its history is being dropped", LOOK_SECONDS[0])
        room = ROOM_FRACTION * quota
        for member in _in_order(members):
            if member.size < room:
                continue
            # etcd 3.4 counts what was compacted as free only once something is written, which is refused now. So a file may have free
            # space that nobody sees, unless it was copied since: a try, but not all the time, for its member answers nothing meanwhile.
            unseen = self._copied.get(member.member, 0) < self._compacted
            if (member.used < room and not self._failed) or ((member.used < room or unseen) and self._rested(now)):
                why = f"the store is full; {member.endpoint}'s file has {member.size} bytes"
                return Step(Defragment(member.endpoint, member.member), why, LOOK_SECONDS[0])
        if used >= room:
            why = f"the store is full: keys take {used} of {quota} bytes; delete functions or sessions, or raise etcd's quota"
            return Step(None, why, FULL_SECONDS)
        if any(member.size >= room for member in members):
            return Step(None, "the store is full; a defragmentation failed and is tried again", FULL_SECONDS)
        if self._disarmed_at is not None and now - self._disarmed_at < self._disarm_pause:
            why = f"the store raised its alarm again at once, with {used} of {quota} bytes taken: is its quota what the operator was told?"
            return Step(None, why, LOOK_SECONDS[1])
        return Step(Disarm(), f"the store has room again: keys take {used} of {quota} bytes", LOOK_SECONDS[0])


def _in_order(members: Sequence[MemberSeen]) -> list[MemberSeen]:
    """The one that leads etcd's cluster last: while it stands still the others choose another."""
    return sorted(members, key=lambda member: (member.leads, member.used - member.size))
