"""What was used, for whoever pays for it: counted where it happens, folded where it would be lost. Pure.

A session's usage lies in its record and is written by the transaction that commits the step which it counts. So a step is counted once or
not at all, whoever sends its call again, and whichever worker dies. When a record is removed, the same transaction adds its usage to the
totals of its shard (rule *counted-once*). What is no step (calls of functions without sessions, failures, workers' seconds) each worker
counts for itself and writes down now and then; the leader folds what workers that are gone have left.

State is paid for by bytes and seconds. In memory that is byte-microseconds, which Python's integers hold; in the store byte-seconds and a
rest, since a GiB for a year is beyond 64 bits of byte-microseconds. The time between two steps of a session counts as live where the second
found it in its worker's memory, and as hibernated where it had to be read. Up to its last step it is counted; what has passed since then is
in `unsettled`.
"""

from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime
from urllib.parse import unquote

import msgspec
from dormouse_proto import state_pb2
from google.protobuf.message import DecodeError

from dormouse_core.limits import KIB, USAGE_TENANTS

SECOND_US = 1_000_000
USAGE_BYTES = 80
"""Of one tenant's usage beside its name, about."""
BYTES = 16 * KIB
"""Of a shard's totals: a transaction that removes records of 40 shards takes theirs."""
_MOST = (1 << 63) - 1


class Usage(msgspec.Struct, frozen=True):
    """Cumulative. `live_us`, `hibernated_us`: byte-microseconds. `since_us`: in a record, the time up to which its bytes are counted."""

    steps: int = 0
    """Committed ones."""
    busy_us: int = 0
    """Time in the model or handler of `steps` and `calls`; of a run of several, each one's share by its rows."""
    bytes_in: int = 0
    """Of their messages, and `bytes_out` of their replies."""
    bytes_out: int = 0
    live_us: int = 0
    hibernated_us: int = 0
    since_us: int = 0
    calls: int = 0
    """Of a function without sessions, that succeeded."""
    failed: int = 0
    """Calls that a worker ended with an error."""
    refused: int = 0
    """Calls that a worker sent elsewhere before anything ran: one call may be refused several times."""
    repeated: int = 0
    """Copies of calls that were answered with a kept reply."""
    worker_us: int = 0
    """For which workers were registered."""


NOTHING = Usage()
OTHERS = None
"""In place of a tenant: all tenants beyond USAGE_TENANTS together."""

Totals = dict[str | None, Usage]
"""Usage by tenant; that of OTHERS under None."""


# ------------------------------------------------------------------------------------------------------------------ of a session


def stepped(
    before: Usage | None, counts_until_us: int, size: int, now_us: int, *, busy_us: int, bytes_in: int, bytes_out: int, read: bool
) -> Usage:
    """A session's usage once one more step of it is committed. `before`: as its record has it, None: not at all; `size`: of that record;
    `counts_until_us`: when that session's state ended, at the latest; `read`: this step had to read it from the store."""
    if before is None:
        return Usage(1, busy_us, bytes_in, bytes_out, since_us=now_us)
    elapsed = unsettled_us(before, counts_until_us, size, now_us)
    live, hibernated = (0, elapsed) if read else (elapsed, 0)
    return Usage(
        before.steps + 1,
        before.busy_us + busy_us,
        before.bytes_in + bytes_in,
        before.bytes_out + bytes_out,
        before.live_us + live,
        before.hibernated_us + hibernated,
        max(before.since_us, now_us),
    )


def settled(before: Usage, counts_until_us: int, size: int, now_us: int, *, read: bool = True) -> Usage:
    """The usage of a session of which a record is replaced now without a step: its bytes are counted up to then, as hibernated where it was
    `read`. A clock that goes back takes nothing away, and nothing is counted twice when it is right again; so it is with steps."""
    elapsed = unsettled_us(before, counts_until_us, size, now_us)
    live, hibernated = (0, elapsed) if read else (elapsed, 0)
    counted = {"live_us": before.live_us + live, "hibernated_us": before.hibernated_us + hibernated}
    return msgspec.structs.replace(before, **counted, since_us=max(before.since_us, now_us))


def unsettled_us(usage: Usage | None, counts_until_us: int, size: int, now_us: int) -> int:
    """Byte-microseconds since what is counted."""
    return 0 if usage is None else size * max(0, min(now_us, counts_until_us) - usage.since_us)


def tenant_of(session: str) -> str:
    """Of a session's name, as `sessions.names.session_key` made it; always text, whatever a function's worker wrote for a key."""
    return unquote(session.partition("/")[0]).encode(errors="replace").decode()


# ----------------------------------------------------------------------------------------------------------------------- totals


def plus(a: Usage, b: Usage) -> Usage:
    return Usage(
        a.steps + b.steps,
        a.busy_us + b.busy_us,
        a.bytes_in + b.bytes_in,
        a.bytes_out + b.bytes_out,
        a.live_us + b.live_us,
        a.hibernated_us + b.hibernated_us,
        0,
        a.calls + b.calls,
        a.failed + b.failed,
        a.refused + b.refused,
        a.repeated + b.repeated,
        a.worker_us + b.worker_us,
    )


def less(a: Usage, b: Usage) -> Usage:
    """What was used between `b` and the later `a`; never below nothing: totals of a store that was restored may be lower."""
    fields = [name for name in Usage.__struct_fields__ if name != "since_us"]
    return Usage(**{name: max(0, getattr(a, name) - getattr(b, name)) for name in fields})


def _covers(a: Usage, b: Usage) -> bool:
    """Whether `a` may be what `b` has become."""
    return plus(b, less(a, b)) == plus(a, NOTHING)


def since(found: Mapping[str | None, Usage], before: Mapping[str | None, Usage]) -> Totals:
    """What was used between `before` and the later `found`, by tenant. Each of the two names tenants of its own and has the rest in OTHERS:
    whose past cannot be told from that of OTHERS is counted there, in both, so that the sum is right."""
    now, then = dict(found), dict(before)
    for tenant in [tenant for tenant in now if tenant and tenant not in then] if OTHERS in then else ():
        add(now, OTHERS, now.pop(tenant))
    for tenant in [tenant for tenant in then if tenant and not _covers(now.get(tenant, NOTHING), then[tenant])]:
        add(now, OTHERS, now.pop(tenant, NOTHING))
        add(then, OTHERS, then.pop(tenant))
    return {tenant: less(usage, then.get(tenant, NOTHING)) for tenant, usage in now.items()}


def add(totals: Totals, tenant: str | None, usage: Usage) -> None:
    totals[tenant] = plus(totals.get(tenant, NOTHING), usage)


def include(totals: Totals, more: Mapping[str | None, Usage]) -> None:
    for tenant, usage in more.items():
        add(totals, tenant, usage)


def whole(totals: Mapping[str | None, Usage]) -> Usage:
    found = NOTHING
    for usage in totals.values():
        found = plus(found, usage)
    return found


def bounded(totals: Mapping[str | None, Usage], most: int = USAGE_TENANTS) -> Totals:
    """At most so many tenants, and so many bytes of their names; of more the smallest go to OTHERS, where they stay. The sum is the same.
    No tenant is not in their number: workers' seconds are there."""
    named = [tenant for tenant in totals if tenant]
    room = BYTES - sum(len(tenant.encode()) + USAGE_BYTES for tenant in named)
    if len(named) <= most and room >= 0:
        return dict(totals)
    found, left = dict(totals), len(named)
    for tenant in sorted(named, key=lambda tenant: (_weight(found[tenant]), tenant)):
        if left <= most and room >= 0:
            break
        add(found, OTHERS, found.pop(tenant))
        left, room = left - 1, room + len(tenant.encode()) + USAGE_BYTES
    return found


def counters(before: Mapping[str | None, Usage] | None, totals: Mapping[str | None, Usage], most: int) -> Totals:
    """What counters say next that said `before` (None: nothing yet), now that `totals` were summed; `most`: tenants that may be named. No
    counter goes down: whoever is named stays named, with what was said of it also where the totals fold it into OTHERS. And nobody's past
    leaves OTHERS: once that says something, nobody else is named."""
    if before is None:
        return bounded(totals, min(most, USAGE_TENANTS))
    names = {tenant for tenant in before if tenant is not None}
    if "" in totals:
        names.add("")
    if OTHERS not in before:
        more: Totals = {tenant: usage for tenant, usage in totals.items() if tenant and tenant not in names}
        room = min(most, USAGE_TENANTS) - sum(1 for tenant in names if tenant)
        names |= {tenant for tenant in bounded(more, max(0, room)) if tenant is not None}
    found: Totals = {tenant: _higher(before.get(tenant, NOTHING), totals.get(tenant, NOTHING)) for tenant in names}
    others = _higher(before.get(OTHERS, NOTHING), less(whole(totals), whole(found)))
    if OTHERS in before or others != NOTHING:
        found[OTHERS] = others
    return found


def _higher(a: Usage, b: Usage) -> Usage:
    return Usage(*map(max, msgspec.structs.astuple(a), msgspec.structs.astuple(b)))


def _weight(usage: Usage) -> tuple[int, int]:
    return usage.steps + usage.calls, usage.live_us + usage.hibernated_us


# ------------------------------------------------------------------------------------------------------------------ in the store


def put(it: state_pb2.Usage, usage: Usage) -> None:
    """Writes a session's usage into its record: as `message` does for all, at a fraction of its time: each step pays for it."""
    it.steps = min(usage.steps, _MOST)
    it.busy_us = min(usage.busy_us, _MOST)
    it.bytes_in = min(usage.bytes_in, _MOST)
    it.bytes_out = min(usage.bytes_out, _MOST)
    live, hibernated = usage.live_us, usage.hibernated_us
    if live:
        it.live_byte_seconds, it.live_rest = min(live // SECOND_US, _MOST), live % SECOND_US
    if hibernated:
        it.hibernated_byte_seconds, it.hibernated_rest = min(hibernated // SECOND_US, _MOST), hibernated % SECOND_US
    it.since_us = usage.since_us


def message(usage: Usage) -> state_pb2.Usage:
    """Numbers beyond 64 bits stay at the most that there is: sums of what somebody made up are written like any other."""
    live, live_rest = divmod(usage.live_us, SECOND_US)
    hibernated, hibernated_rest = divmod(usage.hibernated_us, SECOND_US)
    return state_pb2.Usage(
        steps=min(usage.steps, _MOST),
        busy_us=min(usage.busy_us, _MOST),
        bytes_in=min(usage.bytes_in, _MOST),
        bytes_out=min(usage.bytes_out, _MOST),
        live_byte_seconds=min(live, _MOST),
        live_rest=live_rest,
        hibernated_byte_seconds=min(hibernated, _MOST),
        hibernated_rest=hibernated_rest,
        since_us=min(usage.since_us, _MOST),
        calls=min(usage.calls, _MOST),
        failed=min(usage.failed, _MOST),
        refused=min(usage.refused, _MOST),
        repeated=min(usage.repeated, _MOST),
        worker_us=min(usage.worker_us, _MOST),
    )


def read(it: state_pb2.Usage) -> Usage:
    """Numbers below 0 count as 0: a function's worker may write any bytes below its prefixes, and no bill is reduced that way."""
    found = Usage(
        it.steps,
        it.busy_us,
        it.bytes_in,
        it.bytes_out,
        it.live_byte_seconds * SECOND_US + it.live_rest,
        it.hibernated_byte_seconds * SECOND_US + it.hibernated_rest,
        it.since_us,
        it.calls,
        it.failed,
        it.refused,
        it.repeated,
        it.worker_us,
    )
    if min(msgspec.structs.astuple(found)) < 0:
        return Usage(*(max(0, number) for number in msgspec.structs.astuple(found)))
    return found


def totals_message(totals: Mapping[str | None, Usage]) -> state_pb2.UsageTotals:
    it = state_pb2.UsageTotals()
    for tenant, usage in totals.items():
        if tenant is None:
            it.others.CopyFrom(message(usage))
        else:
            it.tenants.add(tenant=tenant, usage=message(usage))
    return it


def encode(totals: Mapping[str | None, Usage]) -> bytes:
    return bytes(totals_message(bounded(totals)).SerializeToString())


def decode(value: bytes) -> Totals | None:
    """None: it cannot be read."""
    try:
        it = state_pb2.UsageTotals.FromString(value)
    except DecodeError:
        return None
    return of_message(it)


def of_message(it: state_pb2.UsageTotals) -> Totals:
    totals: Totals = {}
    for one in it.tenants:
        add(totals, one.tenant, read(one.usage))
    if it.HasField("others"):
        add(totals, OTHERS, read(it.others))
    return totals


def folded(value: bytes | None, gone: Iterable[tuple[str | None, Usage]]) -> bytes:
    """The next value of totals (None: there are none yet) once `gone`, by tenant, are added. Totals that cannot be read begin again."""
    totals = (decode(value) if value is not None else None) or {}
    for tenant, usage in gone:
        add(totals, tenant, usage)
    return encode(totals)


def at(totals: Mapping[str | None, Usage], now_us: int, created_us: int = 0) -> bytes:
    """Totals as they were at one moment. `created_us`: when they began; 0: not known, or of a day."""
    return bytes(state_pb2.UsageAt(at_us=now_us, totals=totals_message(bounded(totals)), created_us=created_us).SerializeToString())


# ------------------------------------------------------------------------------------------------------------------------- days


def day_of(time_us: int) -> str:
    """In UTC, YYYY-MM-DD."""
    return datetime.fromtimestamp(time_us / SECOND_US, UTC).date().isoformat()


def day_us(day: str) -> int:
    """When it begins."""
    return int(datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp() * SECOND_US)


def is_kept(day: str, each: str, oldest: str) -> bool:
    """Whether what was used by a day stays written down: that of each day from `each` on, and before it of months' first days alone, from
    `oldest` on."""
    return day >= each or (day >= oldest and day.endswith("-01"))


def is_day(text: str) -> bool:
    try:
        return date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False
