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

from dormouse_core.backoff import Backoff
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
PRESSED_SECONDS = 1.0  # history is dropped at once where the quota would be reached within this time at the present rate
SETTLE_SECONDS = 0.3  # until compacted space counts as free: etcd writes its pages each 0.1 s
PATIENCE_SECONDS = 3.0  # for which one that does not lead leaves an alarm to the leader
FULL_SECONDS = 2.0  # between looks at a store that is full for good
STEADY_SECONDS = 30.0  # free space that nothing took for one to two times this long is given back
SPACING_SECONDS = 60.0  # between defragmentations that no alarm asks for
DISARM = Backoff(1.0, 60.0)  # between two disarmings. An alarm that comes again at once is not fought


def retention(quota: int) -> int:
    """Seconds of history that etcd is to keep by itself, for when no operator runs (`--auto-compaction-retention`; it takes twice as long
    until it drops some). The chart's template computes the same."""
    return min(max(quota // BACKSTOP_BYTES, 1), int(COMPACT_SECONDS))


@dataclass(frozen=True, slots=True)
class Compact:
    revision: int


@dataclass(frozen=True, slots=True)
class CountFree:
    """Makes members count what was compacted as free."""


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

    action: Compact | CountFree | Defragment | Disarm | None
    why: str
    again: float


@dataclass(frozen=True, slots=True)
class Used:
    """Fraction of the quota, in bytes, that keys and about a second of their history took `age` seconds ago."""

    fraction: float
    age: float
    quota: int


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
    _revisions: deque[tuple[float, int]] = field(default_factory=deque)
    _revision: int = 0
    _compacted: int = 0
    _compacted_at: float | None = None
    _settling_at: float = 0.0  # the first of the compactions that followed each other at once
    _least: int | None = None  # bytes in use: the least since the last compaction
    _used: tuple[float, int, int] | None = None  # when it was so, bytes in use, the quota
    _written: tuple[float, int] | None = None  # the last look: when, bytes in use
    _rate: float = 0.0  # by how many bytes a second those in use grew until the last look
    _counted: tuple[float, int, bool] | None = None  # the last `CountFree`: when, the compacted revision, whether it was done
    _free: dict[int, _Free] = field(default_factory=dict)
    _copied: dict[int, int] = field(default_factory=dict)  # by member: the compacted revision at its last defragmentation
    _defragmented_at: float | None = None
    _defragmented_for: float = 0.0
    _failed: bool = False
    _alarmed_at: float | None = None
    _disarmed_at: float | None = None
    _disarms: int = 1  # one soon after the other

    def used(self, now: float) -> Used | None:
        """None: not known."""
        if self._used is None:
            return None
        at, used, quota = self._used
        return Used(used / quota, now - at, quota)

    def look(self, now: float, members: Sequence[MemberSeen], missing: Sequence[str], *, leading: bool) -> Step:
        """`members`: those that answered, `missing`: the endpoints that did not."""
        if not members:
            self._used = None
            return Step(None, "no member of the store answers", LOOK_SECONDS[1])
        self.found = quota = min(member.quota or self.quota for member in members)
        self._note(now, members, max(member.used for member in members))
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
        self._compacted = max(self._compacted, revision)
        if self._compacted_at is None or self._settled(now):
            self._settling_at, self._least = now, None
        self._compacted_at = now

    def counted(self, now: float, *, done: bool) -> None:
        """`CountFree` was asked for; not `done`: what of the files is free is not known."""
        self._counted = now, self._compacted, done

    def defragmented(self, now: float, member: int, seconds: float, *, done: bool = True) -> None:
        """`Defragment` was asked for, and took so long; not `done`: it failed, or goes on without us."""
        self._defragmented_at, self._defragmented_for, self._failed = now, seconds, not done
        if not done:
            return
        self._copied[member] = self._compacted
        self._free.pop(member, None)

    def disarmed(self, now: float) -> None:
        """`Disarm` was done."""
        soon = self._disarmed_at is not None and now - self._disarmed_at < 2 * DISARM.longest
        self._disarms = self._disarms + 1 if soon else 1
        self._disarmed_at = now

    def _note(self, now: float, members: Sequence[MemberSeen], used: int) -> None:
        revision = max(member.revision for member in members)
        if revision < self._revision:  # the store was restored to an earlier one
            self._revisions.clear()
            self._copied.clear()
            self._compacted, self._counted = 0, None
        self._revision = revision
        if not self._revisions or now - self._revisions[-1][0] >= LOOK_SECONDS[0] / 2:
            self._revisions.append((now, revision))
        while len(self._revisions) > 1 and now - self._revisions[1][0] >= COMPACT_SECONDS:
            self._revisions.popleft()
        before, self._written = self._written, (now, used)
        self._rate = max(used - before[1], 0) / (now - before[0]) if before is not None and now > before[0] else 0.0
        for member in members:
            self._free.setdefault(member.member, _Free(now, member.size - member.used)).seen(now, member.size - member.used)

    def _settled(self, now: float) -> bool:
        return self._compacted_at is not None and now - self._settling_at >= SETTLE_SECONDS

    # ------------------------------------------------------------------------------------------------------------------ history

    def _history(self, now: float, used: int, quota: int, *, leading: bool) -> Step:
        if (self._compacted_at is None or self._settled(now)) and (self._least is None or used <= self._least):
            self._least, self._used = used, None if self._compacted_at is None else (now, used, quota)
        base = used if self._least is None else self._least
        tenth = int(COMPACT_FRACTION * quota) * (1 if leading else 2)  # one that does not lead only stands in for a leader
        written = used - base
        pressed = PRESSED_SECONDS if leading else PRESSED_SECONDS / 2
        if self._compacted_at is None and leading:
            revision, why = self._revision_before(now, HISTORY_SECONDS), "which revisions are old is not known yet"
        elif written >= tenth or quota - used < pressed * self._rate:
            # History is kept for watches that lag and listings in pages, as long as there is room for it.
            kept = HISTORY_SECONDS if used < quota / 2 else LOOK_SECONDS[0] if used < DEFRAGMENT_FRACTION * quota else 0.0
            why = f"{written} bytes were written, {tenth} may be; {self._rate:.0f} a second, and {quota - used} are left"
            revision = self._revision_before(now, kept)
        elif leading and self._compacted_at is not None and now - self._compacted_at >= COMPACT_SECONDS:
            revision, why = self._revision_before(now, COMPACT_SECONDS), f"{COMPACT_SECONDS:g} s passed"
        else:
            revision, why = 0, "nothing is due"
        again = self._pace(tenth - written, quota - used)
        if revision > self._compacted:
            return Step(Compact(revision), why, LOOK_SECONDS[0])
        return Step(None, why, again)

    def _revision_before(self, now: float, seconds: float) -> int:
        """The newest revision that is at least so old; 0: none was seen."""
        return next((revision for at, revision in reversed(self._revisions) if now - at >= seconds), 0)

    def _pace(self, left: int, room: int) -> float:
        """So that the next look comes when half of what may still be written has been, at the present rate, or of the `room` in a burst."""
        least, most = LOOK_SECONDS
        most = min(max(room / 2 / BURST, least), most)
        return min(max(left / self._rate / 2, least), most) if self._rate else most

    # -------------------------------------------------------------------------------------------------------------------- files

    def _shrink(self, now: float, members: Sequence[MemberSeen], quota: int) -> Step | None:
        """A defragmentation that no alarm asks for: because the file nears the quota, or because it gives back at least as much as it has
        to copy, and nothing took that space for a while."""
        tenth = COMPACT_FRACTION * quota
        for member in _in_order(members):
            if member.leads and member.used > DEFRAGMENT_BYTES:
                continue  # it takes longer than a lease lasts: every worker would have to begin again
            free, steady = member.size - member.used, self._free[member.member].steady
            near = member.size >= DEFRAGMENT_FRACTION * quota and free >= tenth
            worth = steady >= max(member.used, tenth)
            if not (near or worth):
                continue
            # Each member counts by itself what became free, and when: another's turn comes although it does not say so yet.
            large = member.used + max(member.used, tenth)
            if member.leads and not near and any(not other.leads and other.size >= large for other in members):
                return None
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
        self._used = now, used, quota
        assert self._alarmed_at is not None
        if not leading and now - self._alarmed_at < PATIENCE_SECONDS:
            return Step(None, "the store is full; the leader makes room", LOOK_SECONDS[1])
        if self._revision > self._compacted:
            return Step(Compact(self._revision), "the store is full", LOOK_SECONDS[0])
        if self._compacted_at is not None and now - self._compacted_at < SETTLE_SECONDS:
            return Step(None, "the store is full; its history is being dropped", LOOK_SECONDS[0])
        room = ROOM_FRACTION * quota
        large = [member for member in _in_order(members) if member.size >= room]
        gains = [member for member in large if member.used < room]
        # etcd counts what was compacted as free with the next write, and writes are refused now. So a file may have free space that nobody
        # sees. To copy it for nothing costs whatever lives by a lease: its member answers nothing meanwhile.
        unseen = [member for member in large if member.used >= room and self._copied.get(member.member, 0) < self._compacted]
        if unseen and not gains:
            if self._counted is None or self._counted[1] != self._compacted:
                return Step(CountFree(), "the store is full; what is free has to be counted", LOOK_SECONDS[0])
            at, _, done = self._counted
            if done and now - at < SETTLE_SECONDS:
                return Step(None, "the store is full; what is free is being counted", LOOK_SECONDS[0])
            gains = [] if done or not self._rested(now) else unseen
        if gains and (not self._failed or self._rested(now)):
            member = gains[0]
            why = f"the store is full; {member.endpoint}'s file has {member.size} bytes, of which {member.used} hold keys"
            return Step(Defragment(member.endpoint, member.member), why, LOOK_SECONDS[0])
        if used >= room:
            why = f"the store is full: keys take {used} of {quota} bytes; delete functions or sessions, or raise etcd's quota"
            return Step(None, why, FULL_SECONDS)
        if any(member.size >= room for member in members):
            return Step(None, "the store is full; a defragmentation failed and is tried again", FULL_SECONDS)
        if self._disarmed_at is not None and now - self._disarmed_at < DISARM.after(self._disarms):
            why = (
                f"the store raised its alarm again at once, with {used} of {quota} bytes taken; check that etcd has the quota that the "
                "operator was given (--store-quota)"
            )
            return Step(None, why, LOOK_SECONDS[1])
        return Step(Disarm(), f"the store has room again: keys take {used} of {quota} bytes", LOOK_SECONDS[0])


def _in_order(members: Sequence[MemberSeen]) -> list[MemberSeen]:
    """The one that leads etcd's cluster last: while it stands still the others choose another."""
    return sorted(members, key=lambda member: (member.leads, member.used - member.size))
