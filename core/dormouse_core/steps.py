"""What becomes of one step when its turn comes, and of its session when it ran: the rules of `docs/sessions.md` as functions.

The owner of a shard holds each session's record as it last read or wrote it (`records.Body`). `admit` looks at that body and a call and
says one of three things: run, repeat a kept reply, or refuse. `advance` makes the next body of a step that ran. `resolve` says what became
of a write whose outcome was not learned. None of them knows a clock, a store or a tensor.

Why a horizon: a record keeps only the last few keys. Without it a copy of a call that arrives after its key was evicted would run a second
time. Evicting a key raises its maker's horizon to its timestamp, and an unkept key at or below its maker's horizon is refused, not run. A
wrong clock can therefore cost a refusal, never a second effect; and since each gateway's timestamps rise, clocks of gateways that differ
cost nothing (`docs/decisions/0115-clocks.md`). Callers' timestamps do not rise, and steps' calls come late by as long as the step took
before: such a key leaves a mark first, which refuses that key alone (`dormouse_core.marks`).
"""

import enum
from collections.abc import Iterable
from typing import Protocol
from urllib.parse import unquote

import msgspec

from dormouse_core import records
from dormouse_core.callkeys import ANYBODY, CALLERS, CallKey
from dormouse_core.errors import Aborted, Code, DataLoss, DormouseError, FailedPrecondition, InvalidArgument
from dormouse_core.limits import KEPT_KEYS, KEPT_REPLY_BYTES, KEY_MAKERS
from dormouse_core.records import Body, Horizons, Kept
from dormouse_core.usages import Usage


class Call(Protocol):
    """What the rules look at in a call."""

    @property
    def session(self) -> str: ...  # dormouse_core.sessions.names.session_key
    @property
    def key(self) -> CallKey: ...
    @property
    def digest(self) -> bytes: ...
    @property
    def start(self) -> bool: ...
    @property
    def end(self) -> bool: ...
    @property
    def create(self) -> bool: ...


# -------------------------------------------------------------------------------------------------------------------- decisions


class Run(msgspec.Struct, frozen=True):
    """Run it; `begins`: on the initial state, as the session's first step."""

    begins: bool


class Repeat(msgspec.Struct, frozen=True):
    """It is committed already; its reply, if the record still has it, is in `kept`."""

    kept: Kept


class Refuse(msgspec.Struct, frozen=True):
    """Not run. `confirm`: the answer says something about the record as it is now, so it may be given only from a read that compared the
    fence and was made after the call arrived (rule *confirmed-no*); the others hold for every later version of the record too."""

    error: DormouseError
    confirm: bool = False


Decision = Run | Repeat | Refuse

_CONTINUE = Run(begins=False)
_BEGIN = Run(begins=True)


def is_too_old(body: Body, key: CallKey) -> bool:
    """Whether an unkept key may be one that was kept and evicted: then whether it ran is not known (rule *horizon*)."""
    known, maker = body.known(), key.maker
    if key.timestamp_us <= known.of(maker):
        return True
    return maker == CALLERS and known.marks.has(key.id, 0 if key.of_step else key.timestamp_us)


def is_live(body: Body | None, now_us: int | None) -> bool:
    """Whether there is a session."""
    return body is not None and not is_over(body, now_us)


def is_over(body: Body, now_us: int | None) -> bool:
    """Whether the session has ended or expired. `now_us`: the reference time; None: not known, and then nothing expires."""
    return body.tombstone or (now_us is not None and now_us >= body.expires_us)


def admit(
    body: Body | None, trouble: DormouseError | None, floor_us: int, call: Call, now_us: int | None, versions: frozenset[str], model: str
) -> Decision:
    """Decides about `call` when its turn comes.

    `body` is the record (None: absent, or it cannot be decoded); `trouble` why the record, or its tensors alone, cannot be read;
    `floor_us` the shard's floor; `now_us` the reference time where this process's clock is known to be good, else None
    (`clocks.Skew.now_us`); `versions` the state versions that this worker reads; `model` the function's name, for texts.
    """
    key = call.key
    if trouble is not None and body is None:
        if call.start and isinstance(trouble, DataLoss):
            return _BEGIN  # the broken bytes go to quarantine first (rule *quarantine*)
        return Refuse(trouble, confirm=True)  # a newer build's record: nobody here can read which calls it contains
    if body is None:
        if key.timestamp_us <= floor_us:
            return Refuse(too_old(key))
        return _BEGIN if call.create else Refuse(_missing(call, model), confirm=True)
    for kept in body.kept:
        if kept.id == key.id:
            if kept.digest != call.digest:
                return Refuse(InvalidArgument(f"the call {key.id!r} was made before with different content: a key names one request"))
            return Repeat(kept)
    if is_too_old(body, key):
        return Refuse(too_old(key))
    if is_over(body, now_us):
        if not call.create:
            return Refuse(_missing(call, model), confirm=True)
    elif call.start:
        pass  # what it was, and whether it can be read here, does not matter: the caller asks for another
    elif trouble is not None:
        return Refuse(trouble, confirm=True)
    elif body.state_version not in versions:
        known = ", ".join(sorted(versions))
        text = f"the session's state has version {body.state_version!r}, this revision of the function reads {known}"
        return Refuse(FailedPrecondition(text), confirm=True)
    else:
        return _CONTINUE
    if call.start and _is_late(body.known(), key):
        return Refuse(Aborted("sequence_start is older than the newest step of this session"))
    return _BEGIN


def _is_late(known: Horizons, key: CallKey) -> bool:
    """A start that was issued before the newest step, by the gateways' time of both; a caller's own timestamps order its own keys beside
    (rule *late-start*)."""
    return key.arrived_us < known.newest_us or (key.maker == CALLERS and key.timestamp_us < known.newest_caller_us)


def _missing(call: Call, model: str) -> InvalidArgument:
    # Triton's own words: clients look for them.
    sequence = unquote(call.session.partition("/")[2].partition(":")[2])
    return InvalidArgument(
        f"inference request for sequence {sequence} to model '{model}' must specify the START flag on the first request of the sequence"
    )


def too_old(key: CallKey) -> Aborted:
    return Aborted(f"the call {key.id!r} is older than the calls that this session remembers: whether it was run is not known")


def gone(kept: Kept) -> DormouseError:
    return DormouseError(f"step {kept.step} is committed, its reply is no longer kept", Code.ALREADY_EXISTS)


# ---------------------------------------------------------------------------------------------------------------------- effects


def advance(
    body: Body | None,
    trouble: DormouseError | None,
    floor_us: int,
    call: Call,
    begins: bool,
    reply: bytes,
    now_us: int,
    ttl_us: int,
    state_version: str,
    write_id: bytes,
    usage: Usage | None = None,
) -> Body:
    """The record's next body, once `call` ran with `reply`; `write_id`: of the write that is to carry it; `usage`: with this step's.
    `now_us`: this process's best guess at the time (`clocks.Skew.best_us`); where it is behind the gateway's, the session lives by the
    gateway's."""
    key = call.key
    maker = key.maker
    arrived = key.arrived_us
    timestamp = key.timestamp_us
    step = 1 if begins or body is None else body.step + 1
    if len(reply) <= KEPT_REPLY_BYTES:
        new = records.keep(timestamp, key.id, call.digest, reply, step, made_by=maker)
    else:
        new = records.keep(timestamp, key.id, call.digest, None, step, write_id, made_by=maker)
    if body is not None:
        kept, known = remember(body.kept, body.known(), new)
        newest = body.newest_us
    else:
        # A created record starts with the floor as horizon (rule *floor*); one that replaces a broken record knows no key before its own.
        kept, known = (new,), records.common(floor_us if trouble is None else max(floor_us, timestamp, arrived))
        newest = floor_us
    known = Horizons(
        known.common_us,
        known.makers,
        known.callers_us,
        max(known.newest_us, arrived),
        max(known.newest_caller_us, timestamp) if maker == CALLERS else known.newest_caller_us,
        known.marks,
    )
    newest = max(newest, timestamp, arrived)
    now_us = max(now_us, arrived)
    if call.end:
        # Its end is its expiry. Its keys stay until it is removed (rule *tombstone*); only the newest reply is likely to be asked for.
        return Body(state_version, True, step, slim(kept, new), known.highest_us, newest, now_us, known, usage=usage)
    return Body(state_version, False, step, kept, known.highest_us, newest, now_us + ttl_us, known, usage=usage)


def remember(kept: tuple[Kept, ...], known: Horizons, new: Kept) -> tuple[tuple[Kept, ...], Horizons]:
    """Adds `new`; evicts keys over eight, raising their makers' horizons; then the oldest replies over 16 KiB.

    Evicted is, of the maker of the oldest commit, the lowest timestamp: so a maker whose clock is behind does not lose its keys to the
    others, and calls of one maker that overtook each other raise its horizon as little as they can. A new key may be the one evicted: its
    retry is refused, which is safe. Of callers' keys it is the oldest commit: they leave a mark, and the horizon stays where it is.
    """
    kept = (*kept, new)
    while len(kept) > KEPT_KEYS:
        maker = kept[0].maker
        out = kept[0]
        if maker == CALLERS:
            kept, known = kept[1:], marked(known, out)
            continue
        for k in kept:
            if k.timestamp_us < out.timestamp_us and k.maker == maker:
                out = k
        kept = kept[1:] if out is kept[0] else tuple([k for k in kept if k is not out])
        known = raised(known, maker, out.timestamp_us)
    total = 0
    for k in kept:
        if k.reply is not None:
            total += len(k.reply)
    if total > KEPT_REPLY_BYTES:
        slimmer = list(kept)
        for i, k in enumerate(slimmer):
            if total <= KEPT_REPLY_BYTES:
                break
            if k.reply is not None and k is not new:
                total -= len(k.reply)
                slimmer[i] = _slim(k)
        kept = tuple(slimmer)
    return kept, known


def raised(known: Horizons, maker: str, timestamp_us: int) -> Horizons:
    """The horizons, once a key of `maker`, which is not CALLERS, was evicted. Over KEY_MAKERS gateways the lowest horizon is folded into
    the common one; a maker that comes back from there begins at it, for its own may have been anywhere below."""
    if maker == ANYBODY:
        every = tuple((name, max(horizon, timestamp_us)) for name, horizon in known.makers)
        above = max(known.common_us, timestamp_us), every, max(known.callers_us, timestamp_us)
        return Horizons(*above, known.newest_us, known.newest_caller_us, known.marks)
    common = known.common_us
    if len(known.makers) == 1 and known.makers[0][0] == maker:  # one gateway: nearly always
        only = ((maker, max(known.makers[0][1], timestamp_us)),)
        return Horizons(common, only, known.callers_us, known.newest_us, known.newest_caller_us, known.marks)
    others = [pair for pair in known.makers if pair[0] != maker]
    makers = sorted([*others, (maker, max(known.of(maker), timestamp_us))], key=lambda pair: pair[1])
    while len(makers) > KEY_MAKERS:
        common = max(common, makers.pop(0)[1])
    return Horizons(common, tuple(makers), known.callers_us, known.newest_us, known.newest_caller_us, known.marks)


def marked(known: Horizons, out: Kept) -> Horizons:
    """The same, once a caller's key was evicted."""
    marks, dropped = known.marks.added(out.timestamp_us, out.id).shed(known.newest_us)
    return msgspec.structs.replace(known, marks=marks, callers_us=max(known.callers_us, dropped))


def slim(kept: Iterable[Kept], but: Kept | None = None) -> tuple[Kept, ...]:
    """The keys without their replies; `but`: the one that keeps its own."""
    return tuple(k if k is but or k.reply is None else _slim(k) for k in kept)


def _slim(kept: Kept) -> Kept:
    return records.keep(kept.timestamp_us, kept.id, kept.digest, None, kept.step, kept.write_id, made_by=kept.maker)


# --------------------------------------------------------------------------------------------------------------------- outcomes


class Resolution(enum.Enum):
    """What became of a write whose outcome was not learned, or whose transaction failed a compare (rule *read-outcome*)."""

    COMMITTED = "the record has my write id"
    LANDED = "another step was written on top, and the record keeps this call's key: it is committed"
    RESEND = "nothing it compares has changed: it may still land, so the same write is sent again"
    LOST = "the shard's entry is not the one that I own, and the write has not landed: it never can now"
    DROPPED = "the record, or the floor that it was created on, is another, and the write has not landed: it never can now"
    UNKNOWN = "the record was written or removed by another, and the call's key may have been forgotten since: it may have been committed"
    ERASED = "record and entry are gone: deleted while the store was full, and the tombstone that would tell is owed still"


def resolve(
    call: Call,
    *,
    write_id: bytes,
    fence: int,
    base: int,
    floor: int | None,
    seen_fence: int,
    seen_base: int,
    seen: records.Record | None,
    seen_floor: int,
    seen_floor_us: int,
) -> Resolution:
    """What became of the write that was to make `call` durable.

    `fence`, `base`, `floor` and their `seen_` likes are mod_revisions, 0 where absent; `floor` None: the write does not create. `seen` is
    the record (None: absent, or it cannot be read), `seen_floor_us` the shard's floor. All `seen` come from one transaction made after the
    write was given up on.

    LOST and DROPPED are promises: nobody may be told "not committed" of a call that is. A record that is as the write found it has not been
    written; any other may have been written by it first and by somebody else then, so the kept keys are asked, and where they may have
    forgotten (at or below the horizon, or the floor of a record that is gone) the outcome is not known.
    """
    if seen is not None and seen.write_id == write_id:
        return Resolution.COMMITTED
    if not seen_base and not seen_fence:
        # `transactions.erase`: it may have been written before, and no floor tells yet (rule *owed-tombstones*).
        return Resolution.ERASED
    if seen_base == base and (floor is None or seen_floor == floor):
        return Resolution.RESEND if seen_fence == fence else Resolution.LOST
    if seen is None:
        if seen_base or call.key.timestamp_us <= seen_floor_us:
            return Resolution.UNKNOWN
    elif kept_of(seen.body, call) is not None:
        return Resolution.LANDED
    elif is_too_old(seen.body, call.key):
        return Resolution.UNKNOWN
    return Resolution.DROPPED if seen_fence == fence else Resolution.LOST


def kept_of(body: Body, call: Call) -> Kept | None:
    """The kept entry of `call` itself, not of another request under its key."""
    return next((kept for kept in body.kept if kept.id == call.key.id and kept.digest == call.digest), None)
