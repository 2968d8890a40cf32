"""Group commit: makes steps of many sessions durable in one transaction, and finds out what became of it.

What is ready when a commit can be sent goes with it; at most two are in flight, so that the next batch runs meanwhile. A group compares the
entry of every shard that it touches and the base of every record (rule *compare-all*), and closes before it has more than 120 comparisons
or writes, or 1 MiB (rule *fits-in-one*). A step that begins a session whose record is broken waits for the copy of those bytes
first, in a transaction of its own: the record and the copy together can be more than a request may have (rule *quarantine*).

A timeout and a failed compare both mean: unknown. The transaction may have landed, may land later, or one session's compare may have failed
the others. So entries, records and floors are read in one transaction and the sessions are sorted one by one (`steps.resolve`). Those that
may still land are sent again, under the same write ids: whichever copy lands, it is recognised. No session's next step starts before that
(rule *read-outcome*).

A store that cannot be reached is waited for, as long as a step's caller waits (rule *held*): nothing was sent, so whoever gives up is told
that nothing is committed. Before each try and after it everybody is looked at of whom no copy was sent: who is in the group, and who waits
for his turn behind those that are in flight. So what waits is what runs already, at most the worker's `maxConcurrency`, and for a try's
time those whose callers have gone.
"""

from collections import deque
from collections.abc import Sequence
from typing import Protocol

from dormouse_core import lifetimes, records, steps, transactions
from dormouse_core.backoff import Backoff
from dormouse_core.errors import Again, DeadlineExceeded, DormouseError, Unavailable
from dormouse_core.limits import TXN_BYTES, TXN_OPS
from dormouse_core.records import Body, Kept
from dormouse_core.seams import Clock, Delete, Full, Item, Put, StoreError, Txn, Unreached
from dormouse_core.sessions.boundary import States, Step
from dormouse_core.sessions.commands import Get, Outbox, Plan, Start, Transact, Wait
from dormouse_core.sessions.memory import Session, Shard
from dormouse_core.steps import Resolution

IN_FLIGHT = 2
TIMEOUT_SECONDS = 5.0
AGAIN = Backoff(0.05, 1.0)
UNREACHED_SECONDS = 0.05  # the client itself waited for a connection


class Pending:
    """A step that ran and is not yet known to be committed."""

    __slots__ = ("alarm", "body", "data", "fence", "floor_mod", "notes", "quarantine", "reply", "session", "states", "step", "write_id")

    def __init__(self, session: Session, step: Step, body: Body, states: States, data: bytes, write_id: bytes, reply: bytes) -> None:
        self.session = session
        self.step = step
        self.body = body
        self.states = states
        self.data = data
        self.write_id = write_id
        self.reply = reply
        self.fence = session.shard.own.fence
        self.floor_mod = session.floor_mod if session.base == 0 else None  # None: nothing is created
        self.quarantine: Put | None = None
        self.alarm: Put | Delete | None = None
        """When the session's earliest alarm is due, where it is another now: written with the record."""
        self.notes = False
        """It is no step, but what is noted of one in the record."""


class Outcomes(Protocol):
    def committed(self, pending: Pending, revision: int) -> None: ...

    def landed(self, pending: Pending, kept: Kept) -> None:
        """It is committed, and the record has gone on since: what is known of the session is old."""

    def refused(self, pending: Pending, error: DormouseError, drop: bool) -> None:
        """It is not acknowledged. `drop`: what is known of the session may not be what the store has, or will have."""

    def entry_read(self, shard: Shard, item: Item | None, revision: int) -> None: ...


class Groups:
    def __init__(self, clock: Clock, outcomes: Outcomes, out: Outbox) -> None:
        self.in_flight = 0
        self._clock = clock
        self._outcomes = outcomes
        self._out = out
        self._ready: list[Pending] = []
        self._to_copy: deque[tuple[Pending, Put]] = deque()  # the first is being copied

    @property
    def busy(self) -> bool:
        return bool(self._ready) or self.in_flight > 0 or bool(self._to_copy)

    def add(self, pending: Pending) -> None:
        if pending.quarantine is None:
            self._ready.append(pending)
        else:
            self._to_copy.append((pending, pending.quarantine))
            if len(self._to_copy) == 1:
                self._out.append(Start(self._copy(), "quarantine"))

    def flush(self) -> None:
        """To be called once everything that ended together was added."""
        while self._ready and self.in_flight < IN_FLIGHT:
            group = self._take()
            if group:
                self.in_flight += 1
                self._out.append(Start(self._commit(group), "commit"))

    def _take(self) -> list[Pending]:
        """The next group, in the order in which the steps ended. Steps whose shard or session is gone by now are refused on the way."""
        group: list[Pending] = []
        late: list[Pending] = []
        shards: set[int] = set()
        created: set[int] = set()
        compares = writes = size = taken = 0
        for pending in self._ready:
            session = pending.session
            shard = session.shard.number
            if session.dropped:
                taken += 1
                late.append(pending)
                continue
            needed = 1 + (shard not in shards) + (pending.floor_mod is not None and shard not in created)
            length = len(pending.data) + 512
            puts = 1 + (pending.alarm is not None)
            if group and (compares + needed > TXN_OPS or writes + puts > TXN_OPS or size + length > TXN_BYTES):
                break
            taken += 1
            compares += needed
            writes += puts
            size += length
            shards.add(shard)
            if pending.floor_mod is not None:
                created.add(shard)
            group.append(pending)
        del self._ready[:taken]
        for pending in late:
            self._outcomes.refused(pending, dropped("its shard has moved"), True)
        return group

    def _copy(self) -> Plan[None]:
        """Lets the first step be committed once the broken record that it replaces is in quarantine: one at a time, for they are large."""
        pending, copy = self._to_copy[0]
        try:
            refusal = yield from self._preserved(pending, copy)
        finally:
            self._to_copy.popleft()
            if self._to_copy:
                self._out.append(Start(self._copy(), "quarantine"))
        if refusal is not None:
            error, drop = refusal
            self._outcomes.refused(pending, error, drop)
        else:
            self._ready.append(pending)
            self.flush()

    def _preserved(self, pending: Pending, copy: Put) -> Plan[tuple[DormouseError, bool] | None]:
        session = pending.session
        shard = session.shard
        txn = transactions.preserve((shard.entry_key, pending.fence), (session.state_key, session.base), copy)
        keys = [shard.entry_key, session.state_key, copy.key]
        waits = AGAIN.pauses()
        while not session.dropped:
            full: Full | None = None
            try:
                if (yield Transact(txn, TIMEOUT_SECONDS)).succeeded:
                    return None
            except Unreached as error:
                self._look_behind(error)
                if (refusal := self._late(pending, error)) is not None:
                    return refusal, False
                yield Wait(UNREACHED_SECONDS)
                if (refusal := self._late(pending, error)) is not None:
                    return refusal, False
                continue
            except StoreError as error:
                if error.definite:
                    return _refusal(error, False), False
                full = error if isinstance(error, Full) else None
            try:
                revision, items = yield Get(keys)
            except StoreError:
                revision, items = 0, {}
            if copy.key in items:
                return None
            if revision:
                entry, record = items.get(shard.entry_key), items.get(session.state_key)
                if entry is None or entry.mod_revision != pending.fence:
                    self._outcomes.entry_read(shard, entry, revision)
                    return dropped("its shard has moved"), True
                if record is None or record.mod_revision != session.base:
                    return dropped("its record was written by another process"), True
                if full is not None:
                    return _refusal(full, False), False
            yield Wait(next(waits))
        return dropped("its shard has moved"), True

    def _commit(self, group: list[Pending]) -> Plan[None]:
        try:
            yield from self._committed(group)
        finally:
            self.in_flight -= 1
            self.flush()

    def _committed(self, group: list[Pending]) -> Plan[None]:
        waits = AGAIN.pauses()
        may_land = False  # an earlier copy may be on its way still
        away: Unreached | None = None  # while the store is
        while group:
            try:
                result = yield Transact(_transaction(group), TIMEOUT_SECONDS)
                if away is not None:
                    self._look_behind(away)  # that try may itself have waited for a connection
                    away = None
                if result.succeeded:
                    for pending in group:
                        self._outcomes.committed(pending, result.revision)
                    return
            except StoreError as error:
                if isinstance(error, Unreached):
                    away = error
                    self._look_behind(error)
                    if not may_land:
                        group = self._waited_for(group, error)
                        yield Wait(UNREACHED_SECONDS)
                        self._look_behind(error)
                        group = self._waited_for(group, error)
                        continue
                if error.definite and not isinstance(error, Unreached):
                    for pending in group:
                        self._outcomes.refused(pending, _refusal(error, may_land), may_land)
                    return
                if isinstance(error, Full):
                    # It may have been written, but is not under way any more: what is found unwritten stays so.
                    for pending in (yield from self._sort(group)):
                        self._outcomes.refused(pending, _refusal(error, may_land), may_land)
                    return
                may_land = True
                yield Wait(next(waits))
            group = yield from self._sort(group)

    def _waited_for(self, group: Sequence[Pending], error: Unreached) -> list[Pending]:
        """Of those of which no copy was ever sent, the ones that somebody waits for. The others are told that they are not committed."""
        waited: list[Pending] = []
        for pending in group:
            if pending.session.dropped:
                self._outcomes.refused(pending, dropped("its shard has moved"), True)
            elif (refusal := self._late(pending, error)) is not None:
                self._outcomes.refused(pending, refusal, False)
            else:
                waited.append(pending)
        return waited

    def _look_behind(self, error: Unreached) -> None:
        """The same of those that wait for their turn. The one whose broken record is being copied is looked at there."""
        ready, self._ready = self._ready, []  # who is told goes on at once, and may add to it
        behind = [pending for pending, _ in self._to_copy][1:]
        self._ready[:0] = self._waited_for(ready, error)
        gone = set(behind) - set(self._waited_for(behind, error))
        self._to_copy = deque(each for each in self._to_copy if each[0] not in gone)

    def _late(self, pending: Pending, error: Unreached) -> DeadlineExceeded | None:
        if not pending.step.cancelled and self._clock.monotonic() < pending.step.deadline:
            return None
        return DeadlineExceeded(f"the step is not committed: its caller waited no longer for the store ({error})")

    def _sort(self, group: Sequence[Pending]) -> Plan[list[Pending]]:
        """Finds out what became of each; returns those that may still land, to be sent again."""
        shards = list(dict.fromkeys(pending.session.shard for pending in group))
        keys = [shard.entry_key for shard in shards]
        keys += [pending.session.state_key for pending in group]
        keys += [shard.floor_key for shard in shards]
        waits = AGAIN.pauses()
        while True:
            try:
                revision, items = yield Get(keys)
                break
            except StoreError as error:
                if isinstance(error, Unreached):
                    self._look_behind(error)
                yield Wait(next(waits))
        again: list[Pending] = []
        for pending in group:
            session = pending.session
            record = items.get(session.state_key)
            seen = records.readable(record.value) if record else None
            match _resolve(pending, seen, items, int(self._clock.now() * 1e6)):
                case Resolution.COMMITTED:
                    assert record is not None
                    self._outcomes.committed(pending, record.mod_revision)
                case Resolution.LANDED:
                    kept = steps.kept_of(seen.body, pending.step) if seen else None
                    assert kept is not None
                    self._outcomes.landed(pending, kept)
                case Resolution.UNKNOWN:
                    self._outcomes.refused(pending, steps.too_old(pending.step.key), True)
                case Resolution.ERASED:
                    text = "whether the step is committed is not known: its record and its shard's entry are gone from the store"
                    self._outcomes.refused(pending, Unavailable(text), True)
                case Resolution.RESEND:
                    again.append(pending)
                case Resolution.LOST:
                    self._outcomes.refused(pending, dropped("its shard has moved"), True)
                case Resolution.DROPPED:
                    self._outcomes.refused(pending, dropped("its record was written by another process"), True)
        for shard in shards:
            entry = items.get(shard.entry_key)
            if entry is None or entry.mod_revision != shard.own.fence:
                self._outcomes.entry_read(shard, entry, revision)
        return again


def _transaction(group: Sequence[Pending]) -> Txn:
    fences: dict[str, int] = {}
    floors: dict[str, int] = {}
    bases: list[tuple[str, int]] = []
    writes: list[Put | Delete] = []
    for pending in group:
        session = pending.session
        shard = session.shard
        # Two fences of one shard never meet in a group: a new fence drops every session of the old one before it is taken.
        fences[shard.entry_key] = pending.fence
        bases.append((session.state_key, session.base))
        if pending.floor_mod is not None:
            floors[shard.floor_key] = pending.floor_mod
        writes.append(Put(session.state_key, pending.data))
        if pending.alarm is not None:
            writes.append(pending.alarm)
    return transactions.commit(fences, bases, floors, writes)


def _resolve(pending: Pending, seen: records.Record | None, items: dict[str, Item], now_us: int) -> Resolution:
    session = pending.session
    record = items.get(session.state_key)
    entry = items.get(session.shard.entry_key)
    floor = items.get(session.shard.floor_key)
    return steps.resolve(
        pending.step,
        write_id=pending.write_id,
        fence=pending.fence,
        base=session.base,
        floor=pending.floor_mod,
        seen_fence=entry.mod_revision if entry else 0,
        seen_base=record.mod_revision if record else 0,
        seen=seen,
        seen_floor=floor.mod_revision if floor else 0,
        seen_floor_us=lifetimes.floor_us(floor, now_us),
    )


def _refusal(error: StoreError, may_land: bool) -> Unavailable:
    if may_land:
        return Unavailable(f"whether the step is committed is not known: its first copy had no answer, and the next was refused: {error}")
    if isinstance(error, Full):
        return Unavailable(f"the step is not committed: the store is full, and takes no step until it has room again ({error})")
    return Unavailable(f"the step is not committed, the store refused it: {error}")


def dropped(why: str) -> Unavailable:
    return Unavailable(f"the step will not be committed: {why}; it may be sent again", Again.DROPPED)
