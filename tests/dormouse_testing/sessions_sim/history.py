"""What must be true of every history, judged from outside: the versions of each record in the store, and what clients were told.

The model under test appends each call's number to its session's state, so a state *is* the list of the calls that made it. Every version
that lands in the store must be its predecessor plus one call that never had an effect before, or a beginning that was allowed to begin.
Every acknowledgement must name a version that was in the store before it.
"""

import copy
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from dormouse_core.records import decode  # the real one, whatever a control puts in its place
from dormouse_core.seams import Event

NUMBER = struct.Struct(">I")
ALARMS = 1 << 24
"""Numbers from here on are of alarms' steps: of the alarm that call n set, ALARMS + n."""


class Violation(AssertionError):
    """A promise was broken. `kind` is what the controls look for."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f"{kind}: {text}")
        self.kind = kind


@dataclass(frozen=True)
class Call:
    """One logical call of a client; every copy of it has the same key. Numbers rise with the time of issue within a session."""

    number: int
    session: str
    timestamp_us: int
    start: bool
    end: bool
    create: bool
    gateway: int = 0
    issued_us: int = 0
    """By a clock that is right."""
    same: str = ""
    """Calls of a session in which this is the same are made under one key with one content: what one of them did, the others are told."""


@dataclass
class Version:
    revision: int
    chain: tuple[int, ...] | None  # None: a tombstone
    call: int | None  # whose step made it
    reply: bytes | None
    expires_us: int
    step: int


@dataclass
class _Session:
    versions: list[Version | None] = field(default_factory=list)  # None: removed
    applied: dict[int, Version] = field(default_factory=dict)
    acked: dict[int, bytes] = field(default_factory=dict)
    unnamed: list[tuple[tuple[int, ...], Version]] = field(default_factory=list)
    """Tombstones whose own key was evicted at once (a key older than all others), with the chain that they ended."""
    kept: set[str] = field(default_factory=set)  # ids of the keys in the last version

    @property
    def last(self) -> Version | None:
        return self.versions[-1] if self.versions else None


def chain_of(data: bytes) -> tuple[int, ...]:
    return tuple(number for (number,) in NUMBER.iter_unpack(data))


class History:
    def __init__(
        self, clock_slack_us: int, removal_wait_us: int, ttl_us: int = 0, content: Callable[[bytes], bytes] = lambda reply: reply
    ) -> None:
        """`removal_wait_us`: 0: no record is removed. `content`: the chain that a reply has in it."""
        self._content = content
        self._ttl_us = ttl_us
        self.calls: dict[int, Call] = {}
        self.sessions: dict[str, _Session] = {}
        self._slack_us = clock_slack_us
        self._wait_us = removal_wait_us
        self._landed: set[bytes] = set()  # write ids
        self._denied: set[bytes] = set()  # write ids of steps that were refused with `dormouse-again`
        self._writes: dict[object, list[bytes]] = {}  # by copy of a call
        self._never: dict[int, str] = {}  # calls of which a client was told that they have no effect: what it was told
        self.steps = 0  # that were committed
        self._before = 0  # calls up to here were made before the store was restored: what their clients know is of another history
        self.sets: Callable[[int], bool] = lambda number: False  # whether the step of this call sets an alarm
        self.order: Callable[[int], int] = lambda number: number  # when a call was made, beside others

    def of(self, session: str) -> _Session:
        return self.sessions.setdefault(session, _Session())

    # -------------------------------------------------------------------------------------------------------------- the store

    def landed(self, session: str, event: Event, now_us: int, *, erased: bool = False) -> None:
        """`erased`: the shard's entry went with the record: somebody deleted the session while the store was full."""
        it = self.of(session)
        if event.item is None and erased:
            it.versions.append(None)
        elif event.item is None:
            if it.last is not None and it.last.chain is not None and it.last.expires_us > now_us + self._slack_us:
                # Only without tombstones: the end of a session.
                it.unnamed.append((it.last.chain, Version(event.mod_revision, None, None, None, 0, it.last.step + 1)))
            last = it.last
            self._check_alarms(session, last, "is removed")
            if self._wait_us and last is not None and last.expires_us + self._wait_us > now_us + self._slack_us:
                raise Violation("removed-early", f"the record of {session} is removed while its time is not over: {last}")
            it.versions.append(None)
        if event.item is None:
            return
        record = decode(event.item.value)
        if record.write_id.startswith(b"deleted/"):
            it.kept = {kept.id for kept in record.body.kept}
            it.versions.append(Version(event.mod_revision, None, None, None, record.body.expires_us, record.body.step))
            return
        self._landed.add(record.write_id)
        self.steps += 1
        if record.write_id in self._denied:
            raise Violation("false-again", f"a step of {session} is committed that was refused as one that never will be")
        before = it.last
        new = [kept for kept in record.body.kept if before is None or kept.id not in it.kept]
        it.kept = {kept.id for kept in record.body.kept}
        chain = None if record.body.tombstone else chain_of(record.tensors[0].data)
        replied = chain_of(self._content(new[0].reply or b"")) if new else ()
        if before is not None and chain and chain == before.chain and record.body.step == before.step and not new:
            before.expires_us, before.revision = record.body.expires_us, event.mod_revision  # what is noted of an alarm: no step
            return
        number = chain[-1] if chain else (replied[-1] if replied else None)
        reply = self._content(new[0].reply) if new and new[0].reply is not None else None
        version = Version(event.mod_revision, chain, number, reply, record.body.expires_us, record.body.step)
        it.versions.append(version)
        if number is None:
            it.unnamed.append(((before and before.chain) or (), version))
            return
        call = self.calls[number]
        if number in self._never:
            raise Violation("applied-later", f"call {number} of {session} takes effect, and its client was told: {self._never[number]}")
        if number in it.applied:
            raise Violation("twice", f"call {number} of {session} takes effect a second time")
        it.applied[number] = version
        self._check_chain(session, call, before, version, now_us)
        later = [n for n in it.acked if self.order(n) > self.order(number)]
        if call.start and later:
            raise Violation("late-start", f"start {number} of {session} takes effect after call {later[0]}, issued later, was acknowledged")

    def _check_chain(self, session: str, call: Call, before: Version | None, version: Version, now_us: int) -> None:
        live = before is not None and before.chain is not None
        chain = version.chain
        if chain is None:  # a tombstone: only its reply tells what it was made of
            if version.reply is None:
                return
            chain = chain_of(version.reply)
        if live and before is not None and chain == (*(before.chain or ()), call.number):
            return
        if chain == (call.number,):
            over = before is None or before.chain is None or self._expired(before, now_us)
            if not call.start:
                self._check_alarms(session, before, "begins anew")
            if call.start or (over and call.create):
                return
            raise Violation("lost", f"call {call.number} of {session} begins anew over {before}")
        raise Violation("fork", f"call {call.number} of {session} makes {chain} out of {before and before.chain}")

    def _check_alarms(self, session: str, version: Version | None, what: str) -> None:
        if left := self.pending(version):
            raise Violation("alarm-lost", f"{session} {what} while alarms of it have not run: {left}")

    def pending(self, version: Version | None) -> list[int]:
        """The alarms of a session, by their numbers, that have not run."""
        chain = set((version.chain if version else None) or ())
        return [ALARMS + number for number in chain if self.sets(number) and ALARMS + number not in chain]

    def _expired(self, version: Version, now_us: int) -> bool:
        """By what its record says, and not before its time, whatever clock wrote it."""
        issued = self.calls[version.call].issued_us if version.call is not None else 0
        return version.expires_us <= now_us + self._slack_us and issued + self._ttl_us <= now_us + self._slack_us

    # ------------------------------------------------------------------------------------------------------------------ workers

    def written(self, copy: object, write_id: bytes) -> None:
        """A worker tries to commit this copy of a call."""
        self._writes.setdefault(copy, []).append(write_id)

    def denied(self, copy: object, call: Call) -> None:
        """A worker refused this copy with `dormouse-again`: it has not committed it, and never will (rule *again*)."""
        for write_id in self._writes.get(copy, ()):
            self._denied.add(write_id)
            if write_id in self._landed:
                raise Violation("false-again", f"call {call.number} of {call.session} is committed and refused as one that never will be")

    # ------------------------------------------------------------------------------------------------------------------ clients

    def acknowledged(self, call: Call, reply: bytes) -> None:
        if call.number <= self._before:
            return
        it = self.of(call.session)
        reply = self._content(reply)
        version = it.applied.get(call.number) or self._alike(it, call) or self._name(it, call, chain_of(reply))
        if version is None:
            raise Violation("ack-uncommitted", f"call {call.number} of {call.session} is acknowledged and not in the store")
        expected = version.reply
        if version.chain is not None:
            expected = b"".join(NUMBER.pack(n) for n in version.chain)
        if expected is not None and reply != expected:
            raise Violation(
                "reply-differs", f"call {call.number} of {call.session} is answered {chain_of(reply)}, made {chain_of(expected)}"
            )
        it.acked[call.number] = reply

    def _alike(self, it: _Session, call: Call) -> Version | None:
        """The newest version that a call under the same key has made."""
        return next((it.applied[n] for n in reversed(it.applied) if call.same and self.calls[n].same == call.same), None)

    def said_committed(self, call: Call) -> None:
        """The client was told that it is committed and that its reply is no longer kept."""
        it = self.of(call.session)
        if call.number > self._before and call.number not in it.applied and not it.unnamed and self._alike(it, call) is None:
            raise Violation("ack-uncommitted", f"call {call.number} of {call.session} is said to be committed and is not in the store")

    def _name(self, it: _Session, call: Call, chain: tuple[int, ...]) -> Version | None:
        """The unnamed tombstone that this acknowledgement speaks of."""
        for i, (ended, version) in enumerate(it.unnamed):
            if call.end and chain in ((*ended, call.number), (call.number,)):
                del it.unnamed[i]
                it.applied[call.number] = version
                return version
        return None

    def said_missing(self, call: Call, versions_at_arrival: int, now_us: int) -> None:
        """The client was told that there is no such session."""
        it = self.of(call.session)
        if call.number <= self._before:
            return
        if call.number in it.applied:
            raise Violation("reply-differs", f"call {call.number} of {call.session} is committed and answered 'no such session'")
        seen: list[Version | None] = list(it.versions[max(versions_at_arrival - 1, 0) :]) if versions_at_arrival else [None, *it.versions]
        if all(v is not None and v.chain is not None and v.expires_us > now_us + self._slack_us for v in seen):
            raise Violation("false-missing", f"call {call.number} of {call.session} is answered 'no such session', but it lives")

    def said_never(self, call: Call, text: str) -> None:
        """The client was told that the call has no effect, and nothing of it is under way."""
        if call.number in self.of(call.session).applied and call.number > self._before:
            raise Violation("applied-later", f"call {call.number} of {call.session} has taken effect, and its client was told: {text}")
        self._never[call.number] = text

    # ---------------------------------------------------------------------------------------------------------- a restored store

    def copy(self) -> dict[str, _Session]:
        return copy.deepcopy(self.sessions)

    def restore(self, sessions: dict[str, _Session]) -> None:
        """The store is as it was. What clients were told since is void, and what they are told of calls that they have made by now."""
        self.sessions = copy.deepcopy(sessions)
        self._before = max((number for number in self.calls if number < ALARMS), default=0)
        self._never.clear()

    def before(self, call: Call) -> bool:
        """Whether the call was made before the store was restored."""
        return call.number <= self._before

    def refused_as_old(self, call: Call) -> None:
        if call.number not in self.of(call.session).applied:
            raise Violation("false-refusal", f"call {call.number} of {call.session} is fresh, unapplied, and refused as too old")
