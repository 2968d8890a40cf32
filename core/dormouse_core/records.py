"""How a session's record lies in the store (the table of `docs/architecture.md`, key ``data/{D}/state/{shard}/{session}``).

    1 byte   format number: 1, or 2 where it has alarms, for a build that does not know these would write it without them
    4 bytes  CRC32C of what follows, big-endian
    the rest a protobuf dormouse.state.v1.Record

A record that does not verify is `DataLoss` and nobody removes it by itself (rule *quarantine*); one of a format that this build does not
know was written by a newer build and is left untouched (rule *state-version*).

One record is written for every step, so writing is cheap on purpose: a kept key is serialised once, when its step is committed, and its
bytes are appended from then on. That is sound because concatenated protobuf messages are merged, repeated fields one after the other
(https://protobuf.dev/programming-guides/encoding/#last-one-wins).
"""

from collections.abc import Callable, Iterable, Sequence

import google_crc32c
import msgspec
from dormouse_proto import state_pb2

from dormouse_core import usages
from dormouse_core.callkeys import ANYBODY, CALLERS, maker_of
from dormouse_core.errors import DataLoss, FailedPrecondition
from dormouse_core.limits import KEPT_KEYS, KEPT_REPLY_BYTES
from dormouse_core.marks import BYTES as MARK_BYTES
from dormouse_core.marks import NONE, Marks
from dormouse_core.marks import read as read_marks
from dormouse_core.usages import Usage

FORMAT = 1
FORMAT_ALARMS = 2
_FORMATS = (FORMAT, FORMAT_ALARMS)
_HEAD = 5


class Kept(msgspec.Struct, frozen=True):
    """A key whose step is in the record. `reply` None: it was too large to keep here (rule *large-replies*). `encoded`: this, as a part of
    a Record. `write_id`: where one reply alone was too large, the write that made the step; a key and a step number can occur in two lives
    of a session, a write id cannot. b'' otherwise."""

    timestamp_us: int
    id: str
    digest: bytes
    reply: bytes | None
    step: int
    encoded: bytes
    write_id: bytes = b""
    maker: str = ""
    """Whose clock made the timestamp (`callkeys`)."""


class Horizons(msgspec.Struct, frozen=True):
    """What a record remembers of keys that it keeps no more: an unkept key at or below its maker's horizon is not run (rule *horizon*).

    `makers`: of gateways, the lowest first, at most KEY_MAKERS; `common_us`: of every other gateway. `newest_us`: the newest of the
    gateways' times; `newest_caller_us`: of callers' own timestamps. Both order starts (rule *late-start*). `marks`: of callers' keys above
    `callers_us` that are kept no more.
    """

    common_us: int
    makers: tuple[tuple[str, int], ...]
    callers_us: int
    newest_us: int
    newest_caller_us: int
    marks: Marks = NONE

    def of(self, maker: str) -> int:
        if maker == CALLERS:
            return self.callers_us
        for name, horizon in self.makers:
            if name == maker:
                return horizon
        return self.common_us

    @property
    def highest_us(self) -> int:
        highest = max(self.common_us, self.callers_us, self.marks.newest_us)
        for _, horizon in self.makers:
            if horizon > highest:
                highest = horizon
        return highest


class Alarm(msgspec.Struct, frozen=True):
    """A step that a step of the session asked for, at a time (`alarms`). The fields are those of `state.proto`."""

    name: str
    due_us: int
    id: str
    request: bytes
    next_us: int
    tries: int = 0
    error: str = ""
    failed: bool = False
    time_us: int = 0


class Body(msgspec.Struct, frozen=True):
    """A record without its tensors: what the rules about keys, order and expiry look at. Immutable; each step makes the next one."""

    state_version: str
    tombstone: bool
    step: int
    kept: tuple[Kept, ...]  # in the order of their commits
    horizon_us: int
    """The highest of `horizons`."""
    newest_us: int
    """The newest timestamp of any maker."""
    expires_us: int
    horizons: Horizons | None = None
    """None: a build that knew only the two above wrote it; they hold for every maker."""
    usage: Usage | None = None
    """None: a build that did not count it wrote this."""
    alarms: tuple[Alarm, ...] = ()

    def known(self) -> Horizons:
        return self.horizons or common(self.horizon_us, self.newest_us)


class Record(msgspec.Struct, frozen=True):
    body: Body
    tensors: tuple[state_pb2.Tensor, ...]
    write_id: bytes


def common(horizon_us: int, newest_us: int = 0) -> Horizons:
    """One horizon for every maker."""
    return Horizons(horizon_us, (), horizon_us, newest_us, newest_us)


def keep(
    timestamp_us: int, ident: str, digest: bytes, reply: bytes | None, step: int, write_id: bytes = b"", *, made_by: str | None = None
) -> Kept:
    """`made_by`: where the id does not say it."""
    maker = maker_of(ident) if made_by is None else made_by
    message = state_pb2.KeptKey(timestamp_us=timestamp_us, id=ident, digest=digest, step=step, write_id=write_id)
    if reply is None:
        message.reply_gone = True
    else:
        message.reply = reply
    if made_by and ident.startswith("c-"):
        message.maker = made_by
    return Kept(timestamp_us, ident, digest, reply, step, state_pb2.Record(kept=(message,)).SerializeToString(), write_id, maker)


def encode(body: Body, tensors: Iterable[state_pb2.Tensor], write_id: bytes) -> bytes:
    record = state_pb2.Record(
        state_version=body.state_version,
        write_id=write_id,
        tombstone=body.tombstone,
        tensors=tensors,
        step=body.step,
        horizon_us=body.horizon_us,
        newest_us=body.newest_us,
        expires_us=body.expires_us,
        horizons=None if body.horizons is None else _horizons(body.horizons),
        alarms=[_alarm(alarm) for alarm in body.alarms],
    )
    if body.usage is not None:
        usages.put(record.usage, body.usage)
    return _framed(record.SerializeToString() + b"".join([kept.encoded for kept in body.kept]), bool(body.alarms))


def _framed(message: bytes, alarms: bool) -> bytes:
    checksum: int = google_crc32c.value(message)
    return bytes((FORMAT_ALARMS if alarms else FORMAT,)) + checksum.to_bytes(4, "big") + message


def _alarm(it: Alarm) -> state_pb2.Alarm:
    return state_pb2.Alarm(**msgspec.structs.asdict(it))


def _read_alarm(it: state_pb2.Alarm) -> Alarm:
    return Alarm(it.name, it.due_us, it.id, it.request, it.next_us, it.tries, it.error, it.failed, it.time_us)


def _parse(data: bytes) -> state_pb2.Record:
    if len(data) < _HEAD:
        raise DataLoss(f"the session's record is {len(data)} bytes long, at least {_HEAD} are required")
    if data[0] not in _FORMATS:
        raise FailedPrecondition(f"the session's record has format {data[0]}, this worker reads formats up to {FORMAT_ALARMS}")
    message = data[_HEAD:]
    if google_crc32c.value(message) != int.from_bytes(data[1:_HEAD], "big"):
        raise DataLoss("the session's record fails its checksum")
    try:
        return state_pb2.Record.FromString(message)
    except Exception as error:  # upb's DecodeError is not public; a checksum that holds over garbage is a writer's fault
        raise DataLoss(f"the session's record does not parse: {error}") from error


def decode(data: bytes) -> Record:
    """DataLoss: the bytes do not verify. FailedPrecondition: a format of a newer build."""
    parsed = _parse(data)
    known = parsed.HasField("horizons")
    body = Body(
        state_version=parsed.state_version,
        tombstone=parsed.tombstone,
        step=parsed.step,
        kept=tuple(_read_kept(kept, known) for kept in parsed.kept),
        horizon_us=parsed.horizon_us,
        newest_us=parsed.newest_us,
        expires_us=parsed.expires_us,
        horizons=_read_horizons(parsed.horizons) if known else None,
        usage=_read_usage(parsed),
        alarms=tuple(map(_read_alarm, parsed.alarms)),
    )
    return Record(body, tuple(parsed.tensors), parsed.write_id)


def edited(data: bytes, write_id: bytes, edit: Callable[[state_pb2.Record], None]) -> bytes:
    """The record with a change, by who need not know all that is in it: what this build does not know stays. Errors as `decode`."""
    parsed = _parse(data)
    edit(parsed)
    parsed.write_id = write_id
    return _framed(parsed.SerializeToString(), bool(parsed.alarms))


def _read_kept(it: state_pb2.KeptKey, known: bool) -> Kept:
    maker = it.maker or _maker(it.id, known)
    return keep(it.timestamp_us, it.id, it.digest, None if it.reply_gone else it.reply, it.step, it.write_id, made_by=maker)


def _maker(ident: str, known: bool) -> str:
    maker = maker_of(ident)
    return ANYBODY if maker == CALLERS and not known else maker


def _horizons(it: Horizons) -> state_pb2.Horizons:
    return state_pb2.Horizons(
        common_us=it.common_us,
        makers=[state_pb2.Horizons.Maker(name=name, horizon_us=horizon) for name, horizon in it.makers],
        callers_us=max(it.callers_us, it.marks.newest_us),
        newest_us=it.newest_us,
        newest_caller_us=it.newest_caller_us,
        mark_times=it.marks.times,
        mark_prints=it.marks.prints,
        below_marks_us=it.callers_us if it.marks.times else 0,
    )


def _read_horizons(it: state_pb2.Horizons) -> Horizons:
    makers = tuple((maker.name, maker.horizon_us) for maker in it.makers)
    marks = NONE if not it.mark_times else read_marks(it.mark_times, it.mark_prints)
    if not marks:  # none, or in a form of a newer build: `callers_us` is above them all
        return Horizons(it.common_us, makers, it.callers_us, it.newest_us, it.newest_caller_us)
    return Horizons(it.common_us, makers, it.below_marks_us, it.newest_us, it.newest_caller_us, marks)


class Glance(msgspec.Struct, frozen=True):
    """What counting and removal look at in a record. `size`: of the whole of it, in bytes."""

    tombstone: bool
    newest_us: int
    expires_us: int
    size: int


def glance(data: bytes) -> Glance:
    """A record without its tensors and keys, at a fifth of what `decode` costs. DataLoss and FailedPrecondition as there."""
    return glance_of(_parse(data), len(data))


def used(data: bytes) -> tuple[Glance, Usage | None]:
    """A glance at a record, and the usage in it; None: it has none. DataLoss and FailedPrecondition as in `decode`."""
    parsed = _parse(data)
    return glance_of(parsed, len(data)), _read_usage(parsed)


def _read_usage(parsed: state_pb2.Record) -> Usage | None:
    return usages.read(parsed.usage) if parsed.HasField("usage") else None


def glance_of(body: "Body | state_pb2.Record", size: int) -> Glance:
    return Glance(body.tombstone, body.newest_us, body.expires_us, size)


def readable(data: bytes) -> Record | None:
    """None: the bytes do not verify, or are of a newer build: what they say is not known."""
    try:
        return decode(data)
    except (DataLoss, FailedPrecondition):
        return None


def size_bound(tensor_bytes: int, tensors: Sequence[str]) -> int:
    """The most that a record with these tensors can take, kept keys included: what is refused before it runs (rule *fits-in-one*)."""
    return _HEAD + tensor_bytes + sum(len(name) + 128 for name in tensors) + KEPT_OVERHEAD


# Kept replies, eight keys with ids and digests, marks, the scalars, horizons and usage.
KEPT_OVERHEAD = KEPT_REPLY_BYTES + KEPT_KEYS * 512 + MARK_BYTES + 1024
