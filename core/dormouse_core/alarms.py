"""Alarms: steps that a step of a session asks for, at a time (rule *alarm* of `docs/sessions.md`).

An alarm lies in its session's record, and each commit that changes the record's alarms writes beside it when the earliest is due
(`keys.Keys.alarm`), in the same transaction: who runs them reads those keys and no records. When it is due its step runs in the session's
order, like a call. **The entry in the record is its key**: the step runs while the entry is there, and its commit takes the entry away. So
it is committed once, whoever dies: another copy finds no entry, or fails the comparison of the record. No kept key and no horizon is asked,
however late it is.

A session that has an alarm to run does not expire. It would otherwise, where nobody can run it in time: a function that was stopped, an
installation that was off.

Before its step runs a try is noted in the record, in a commit of its own: so one of which its worker dies counts too, and the time of the
first is that of the step's key from then on. The note is no step: the state in the record, and that state's version, stay as they are, so
that a revision whose steps all fail leaves each session to the one before it (rule *state-version*). A step that fails is tried again,
later each time. After the last try the alarm stays, with its error, for somebody to see; it keeps the session no more.
"""

from collections.abc import Sequence
from hashlib import sha256

import msgspec
from dormouse_proto import state_pb2

from dormouse_core.backoff import Backoff
from dormouse_core.callkeys import CallKey
from dormouse_core.errors import DormouseError, FailedPrecondition, InvalidArgument, ResourceExhausted
from dormouse_core.lifetimes import NEVER_US
from dormouse_core.limits import (
    ALARM_AGAIN_SECONDS,
    ALARM_AHEAD_DAYS,
    ALARM_ERROR_CHARACTERS,
    ALARM_NAME_CHARACTERS,
    ALARM_REQUEST_BYTES,
    ALARM_RETRY_SECONDS,
    ALARM_ROOM_BYTES,
    ALARM_TRIES,
    ALARMS,
)
from dormouse_core.records import Alarm, Body
from dormouse_core.usages import Usage

AGAIN = Backoff(ALARM_AGAIN_SECONDS, ALARM_RETRY_SECONDS)
_AGAIN_US = int(ALARM_AGAIN_SECONDS * 1e6)
_AHEAD_US = ALARM_AHEAD_DAYS * 86_400_000_000
_NOTE_BYTES = 24  # what is noted of a try beside its error, at most
NO_ROOM = "not kept: the record is full"
UNFINISHED = "its worker ended, or its shard moved, before the step did"


class Set(msgspec.Struct, frozen=True):
    """A handler's word: run `request` at `due_us`, under `name`."""

    name: str
    due_us: int
    request: bytes


class Cancel(msgspec.Struct, frozen=True):
    """A handler's word: the alarm of that name is not to run."""

    name: str


Change = Set | Cancel


# ------------------------------------------------------------------------------------------------------------- what is asked for


def check_name(name: object) -> str:
    """InvalidArgument: no alarm can have it."""
    if not isinstance(name, str):
        raise InvalidArgument(f"alarm: name: {type(name).__name__} found, a text is allowed")
    if not (1 <= len(name) <= ALARM_NAME_CHARACTERS and name.isascii() and name.isprintable()):
        raise InvalidArgument(f"alarm: name: {name[:80]!r} found, 1 to {ALARM_NAME_CHARACTERS} printable ASCII characters are allowed")
    return name


def check(name: object, due_us: int, request: bytes, now_us: int) -> Set:
    """What a handler asks for. InvalidArgument, ResourceExhausted: it cannot be had. What is past is due at once."""
    checked = check_name(name)
    if due_us - now_us > _AHEAD_US:
        raise InvalidArgument(f"alarm: at: {(due_us - now_us) / 86_400e6:.0f} days ahead found, at most {ALARM_AHEAD_DAYS} are allowed")
    if len(request) > ALARM_REQUEST_BYTES:
        raise ResourceExhausted(f"alarm: inputs: {len(request)} bytes found, at most {ALARM_REQUEST_BYTES} are allowed")
    return Set(checked, max(due_us, 0), request)


# --------------------------------------------------------------------------------------------------------------------- effects


def after(
    body: Body | None, *, begins: bool, end: bool, rung: Alarm | None, changes: Sequence[Change], now_us: int, write_id: bytes
) -> tuple[Alarm, ...]:
    """The alarms of the next record, once a step ran. `body`: the record before; `begins`, `end`: the step began or ended the session, and
    what another life asked for goes; `rung`: the step is this alarm's, which is consumed; `changes`: what the step asked for, in its order.

    ResourceExhausted: they are too many, and nothing of the step counts. A step of an alarm sets none that is due at once: a second later
    at the soonest, so that one that sets itself again is no loop that takes the worker.
    """
    if end:
        return ()
    left = {} if begins or body is None else {alarm.name: alarm for alarm in body.alarms if rung is None or alarm.id != rung.id}
    soonest = now_us if rung is None else now_us + _AGAIN_US
    for number, change in enumerate(changes):
        left.pop(change.name, None)
        if isinstance(change, Set):
            due_us = max(change.due_us, soonest)
            ident = sha256(write_id + number.to_bytes(4)).hexdigest()[:24]  # a write id names one write for good
            left[change.name] = Alarm(change.name, due_us, ident, change.request, due_us)
    if len(left) > ALARMS:
        raise ResourceExhausted(f"alarm: the session would have {len(left)} alarms, at most {ALARMS} are allowed")
    return tuple(left.values())


def onto(body: Body, alarms: tuple[Alarm, ...]) -> Body:
    """A record's next body with these alarms."""
    if not alarms:
        return body
    return msgspec.structs.replace(body, alarms=alarms, expires_us=body.expires_us if earliest(alarms) is None else NEVER_US)


def stepped(body: Body, now_us: int, ttl_us: int, state_version: str, usage: Usage | None = None) -> Body:
    """The next body once an alarm's step ran, but for its alarms. No caller has its key, so it takes no place among those that are kept,
    and no caller's call is refused for it."""
    changed = {"state_version": state_version, "step": body.step + 1, "expires_us": now_us + ttl_us}
    return msgspec.structs.replace(body, **changed, alarms=(), usage=usage)


def begun(body: Body, rung: Alarm, now_us: int, ttl_us: int) -> Body:
    """The next body before an alarm's step runs: the try is counted, so that one of which its worker dies is tried later each time too, and
    given up; and its key says from the first try on when that was."""
    tries = rung.tries + 1
    time_us, again_us = rung.time_us or now_us, _again_us(tries, now_us)
    over = tries >= ALARM_TRIES
    changed = msgspec.structs.replace(rung, tries=tries, error=UNFINISHED, next_us=again_us, time_us=time_us, failed=over)
    return _with(body, changed, now_us, ttl_us)


def failed(body: Body, rung: Alarm, error: str, now_us: int, ttl_us: int) -> Body:
    """The next body once the step of an alarm that has `begun` failed."""
    changed = msgspec.structs.replace(rung, error=error[:ALARM_ERROR_CHARACTERS], next_us=_again_us(rung.tries, now_us))
    return _with(body, changed, now_us, ttl_us)


def briefly(body: Body, rung: Alarm) -> Body:
    """The same without the words of its error, for a record that has no room for them."""
    return msgspec.structs.replace(
        body, alarms=tuple(msgspec.structs.replace(alarm, error=NO_ROOM) if alarm.id == rung.id else alarm for alarm in body.alarms)
    )


def room(alarms: Sequence[Alarm]) -> int:
    """Bytes that a record with these is to leave free, for what will be noted of them: what was noted already is in it."""
    return sum(max(0, ALARM_ROOM_BYTES - _noted(alarm)) for alarm in alarms if not alarm.failed)


def _noted(alarm: Alarm) -> int:
    return _NOTE_BYTES + len(alarm.error.encode()) if alarm.tries else 0


def _again_us(tries: int, now_us: int) -> int:
    return now_us + int(AGAIN.after(tries) * 1e6)


def _with(body: Body, changed: Alarm, now_us: int, ttl_us: int) -> Body:
    alarms = tuple(changed if alarm.id == changed.id else alarm for alarm in body.alarms)
    return onto(msgspec.structs.replace(body, expires_us=now_us + ttl_us, alarms=()), alarms)


def without(record: state_pb2.Record, name: str, now_us: int, ttl_us: int) -> bool:
    """Takes an alarm out of a record, as it is parsed; False: it has none of that name."""
    left = [alarm for alarm in record.alarms if alarm.name != name]
    if len(left) == len(record.alarms):
        return False
    del record.alarms[:]
    record.alarms.extend(left)
    if not record.tombstone and all(alarm.failed for alarm in left):
        record.expires_us = now_us + ttl_us
    return True


# ------------------------------------------------------------------------------------------------------------------- decisions


def earliest(alarms: Sequence[Alarm]) -> int | None:
    """When the next of them is to be tried; None: none is. This is what stands in the session's key beside the record."""
    return min((alarm.next_us for alarm in alarms if not alarm.failed), default=None) if alarms else None


def admit(body: Body | None, trouble: DormouseError | None, now_us: int, versions: frozenset[str]) -> Alarm | None:
    """The session's alarm that is to run now; None: none is due. Raises what keeps this worker from running it: the record, or its state,
    cannot be read here."""
    if trouble is not None:
        raise trouble
    if body is None or body.tombstone:
        return None
    due = min(
        (alarm for alarm in body.alarms if not alarm.failed and alarm.next_us <= now_us), key=lambda alarm: alarm.next_us, default=None
    )
    if due is not None and body.state_version not in versions:
        known = ", ".join(sorted(versions))
        raise FailedPrecondition(f"the session's state has version {body.state_version!r}, this revision of the function reads {known}")
    return due


def key_of(alarm: Alarm) -> CallKey:
    """The key of its step: the same whenever the step is run, so that the calls that the step makes are made once (`childcalls`)."""
    return CallKey(alarm.time_us, f"a-{alarm.id}")
