"""How long a session's record lies in the store, and how many sessions live: rule *removal*, without a clock and without I/O.

A record is over when its session was ended (a tombstone: its expiry is its end) or has expired. It is removed a while later, the *removal
wait*: so long its keys are needed to recognise a call that was held, or that a caller sends again. Removal raises the shard's floor to the
record's newest timestamp, and no call at or below the floor begins a session (rule *floor*).

What is needed of a million stored sessions is how many live, what they take and when the next is due, so a `Tally` keeps two histograms and
not a million entries: by expiry, in steps of `ttl`/256, and by due time, in steps of a quarter of the wait. A session counts as live until
the end of its step, and is removed at the end of its step: never too early.
"""

import heapq
from collections.abc import Iterable, Mapping

import msgspec
from dormouse_proto import state_pb2
from google.protobuf.message import DecodeError

from dormouse_core import usages
from dormouse_core.limits import CLOCK_AHEAD_SECONDS, REMOVAL_WAIT_MARGIN_SECONDS, REMOVAL_WAIT_SECONDS
from dormouse_core.records import Glance
from dormouse_core.records import used as usage_in
from dormouse_core.seams import Item
from dormouse_core.usages import Usage

NEVER_US = 1 << 62
SHORTEST_STEP_US = 1_000
SHORTEST_DUE_STEP_US = 1_000_000
SHARD_OPS = 2
"""Comparisons that a transaction makes for each shard from which it removes records, and writes beside those of records: of its entry and
its floor; of its floor and its usage."""


def removal_wait(setting: float | None, hold: float) -> float:
    """Seconds from a record's end to its removal. `setting`: the installation's own word, which counts as it is; `hold`: the function's
    `timeouts.hold`, for so long a gateway may send a call again."""
    return max(REMOVAL_WAIT_SECONDS, hold + REMOVAL_WAIT_MARGIN_SECONDS) if setting is None else setting


def due_us(glance: Glance, wait_us: int) -> int:
    """From when on the record may be removed. Its newest timestamp may be ahead of the clock that ended it."""
    return max(glance.expires_us, glance.newest_us) + wait_us


def broken(size: int) -> Glance:
    """A record that cannot be read counts as a session that lives: nobody removes it by himself (rule *quarantine*)."""
    return Glance(False, 0, NEVER_US, size)


def floor_us(item: Item | None, now_us: int) -> int:
    """The shard's floor, 0 where there is none. One that cannot be read counts as the highest that it can have been at `now_us`, when it
    was met first: for a minute new sessions of the shard are refused as too old. The next removal writes it right."""
    if item is None:
        return 0
    try:
        return int(state_pb2.Floor.FromString(item.value).timestamp_us)
    except DecodeError:
        return highest_us(now_us)


def highest_us(now_us: int) -> int:
    """No call that was made until `now_us` has a later timestamp."""
    return now_us + int(CLOCK_AHEAD_SECONDS * 1e6)


def raised(floor: int, gone: Iterable[Glance]) -> int:
    """The floor once `gone` are removed."""
    return max(floor, *(glance.newest_us for glance in gone), 0)


class Due(msgspec.Struct, frozen=True):
    """A record whose time is over, as it was read: `mod` is its mod_revision."""

    mod: int
    glance: Glance
    usage: Usage | None = None
    """The session's, up to its end."""


def due(item: Item, glance: Glance) -> Due:
    _, usage = usage_in(item.value)
    if usage is not None and not glance.tombstone:
        usage = usages.settled(usage, glance.expires_us, glance.size, glance.expires_us)
    return Due(item.mod_revision, glance, usage)


def used(gone: Mapping[str, Due], prefix: str) -> list[tuple[str, Usage]]:
    """What sessions whose records (below `prefix`) go have used, by tenant."""
    found = ((key, one.usage) for key, one in gone.items())
    return [(usages.tenant_of(key[len(prefix) :]), usage) for key, usage in found if usage is not None]


class Tally:
    """The records of one shard, or of several: how many, how large, how many live, when the next is due."""

    __slots__ = ("_due", "_due_step", "_expiry", "_heap", "_passed", "_step", "bytes", "live", "live_bytes", "records", "wait_us")

    def __init__(self, ttl_us: int, wait_us: int) -> None:
        self.records = 0
        self.bytes = 0
        self.live = 0
        self.live_bytes = 0
        self.wait_us = wait_us
        self._step = max(ttl_us // 256, SHORTEST_STEP_US)
        self._due_step = max(wait_us // 4, SHORTEST_DUE_STEP_US)
        self._expiry: dict[int, list[int]] = {}  # end of the step, in steps -> sessions that were not ended, bytes of their records
        self._due: dict[int, int] = {}  # end of the step, in steps -> records
        self._heap: list[int] = []  # of `_expiry`'s keys; may have some that are gone
        self._passed = 0

    def add(self, glance: Glance) -> None:
        self._change(glance, 1)

    def remove(self, glance: Glance) -> None:
        self._change(glance, -1)

    def stays(self, before: Glance, after: Glance) -> bool:
        """Whether a record that was `before` and is `after` counts in the same steps: nearly always. Then `resize` does."""
        if before.tombstone or after.tombstone or before.expires_us // -self._step != after.expires_us // -self._step:
            return False
        return due_us(before, self.wait_us) // -self._due_step == due_us(after, self.wait_us) // -self._due_step

    def resize(self, glance: Glance, by: int) -> None:
        """A live record, now `glance`, has `by` bytes more."""
        at = -(-glance.expires_us // self._step)
        self.bytes += by
        self._expiry[at][1] += by
        if at > self._passed:
            self.live_bytes += by

    def change(self, before: Glance | None, after: Glance | None) -> None:
        if before is not None:
            self._change(before, -1)
        if after is not None:
            self._change(after, 1)

    def include(self, other: "Tally", sign: int = 1) -> None:
        """Adds all that `other` counts, or takes it away. Both have the same steps."""
        self.records += sign * other.records
        self.bytes += sign * other.bytes
        for at, (sessions, size) in other._expiry.items():
            self._live(at, sign * sessions, sign * size)
        for at, records in other._due.items():
            self._due_at(at, sign * records)

    def advance(self, now_us: int) -> None:
        """Sessions that have expired by now live no more. An unknown time is no time: then it is not called."""
        passed = now_us // self._step
        last = -1
        while self._heap and self._heap[0] <= passed:
            at = heapq.heappop(self._heap)
            found = self._expiry.get(at)
            if found is not None and at > self._passed and at != last:
                self.live -= found[0]
                self.live_bytes -= found[1]
            last = at
        self._passed = max(self._passed, passed)

    def outlived(self, time_us: int) -> tuple[int, int]:
        """Of what counts as live: the sessions, and bytes of their records, that had expired if it were `time_us`."""
        past = [found for at, found in self._expiry.items() if self._passed < at <= time_us // self._step]
        return sum(sessions for sessions, _ in past), sum(size for _, size in past)

    def earliest_us(self) -> int | None:
        """When the next removal is due: everything in its step is then; None: there is nothing to remove."""
        at = min(self._due, default=None)
        return None if at is None else at * self._due_step

    def _change(self, glance: Glance, sign: int) -> None:
        self.records += sign
        self.bytes += sign * glance.size
        if not glance.tombstone:
            self._live(-(-glance.expires_us // self._step), sign, sign * glance.size)
        if glance.expires_us < NEVER_US:
            self._due_at(-(-due_us(glance, self.wait_us) // self._due_step), sign)

    def _live(self, at: int, sessions: int, size: int) -> None:
        found = self._expiry.get(at)
        if found is None:
            found = self._expiry[at] = [0, 0]
            heapq.heappush(self._heap, at)
        found[0] += sessions
        found[1] += size
        if at > self._passed:
            self.live += sessions
            self.live_bytes += size
        if found[0] == 0:
            del self._expiry[at]

    def _due_at(self, at: int, records: int) -> None:
        left = self._due.get(at, 0) + records
        if left:
            self._due[at] = left
        else:
            self._due.pop(at, None)


Batch = dict[int, dict[str, Due]]
"""What one transaction removes: shard -> key of a record -> the record as it was read."""


def waves(due: Mapping[int, Mapping[str, Due]], quarantined: Mapping[str, tuple[str, ...]], most: int) -> list[list[Batch]]:
    """`due`, by shard, in transactions of at most `most` operations, as few as its shards allow. `quarantined`: the broken copies that go
    with a record, by its key.

    A shard costs two operations (its entry and its floor are compared, its floor and its usage written), a record one and one for each
    broken copy. The transactions of a wave have no shard in common, so they may be under way together; the waves follow each other, for a
    removal raises the floors that the next one compares.
    """
    found: list[list[Batch]] = []
    room: list[int] = []  # in each wave's last transaction
    for shard, records in due.items():
        for number, (part, size) in enumerate(_parts(records, quarantined, most - SHARD_OPS)):
            if number == len(found):
                found.append([])
                room.append(0)
            if room[number] < size + SHARD_OPS:
                found[number].append({})
                room[number] = most
            found[number][-1][shard] = part
            room[number] -= size + SHARD_OPS
    return found


def rest(read: float) -> float:
    """Seconds that an owner's sweeper rests after a round in which it read for `read` seconds: so it reads for at most half of the time,
    whatever its shards hold. The time that removals took does not count: they are the work that must not fall behind, and the less the
    slower the store is."""
    return read


def _parts(records: Mapping[str, Due], quarantined: Mapping[str, tuple[str, ...]], most: int) -> list[tuple[dict[str, Due], int]]:
    """One shard's records in parts of at most `most` operations, and how many each takes."""
    parts: list[tuple[dict[str, Due], int]] = []
    for key, one in records.items():
        needed = 1 + len(quarantined.get(key, ()))
        if not parts or parts[-1][1] + needed > most:
            parts.append(({}, 0))
        part, size = parts[-1]
        part[key] = one
        parts[-1] = (part, size + needed)
    return parts
