"""What was used, read out of the store: a function's records and totals at one revision, so that what a removal moves from one to the other
is in the sum once. Reading wakes nobody."""

from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field

from dormouse_core import records, usages
from dormouse_core.errors import DataLoss, FailedPrecondition, InvalidArgument, NotFound, Unavailable
from dormouse_core.keys import Function, Keys, function_of
from dormouse_core.seams import Clock, Compacted, Item, Store, StoreError
from dormouse_core.usages import SECOND_US, Totals, Usage
from dormouse_kit import log, scanning
from dormouse_proto import control_pb2, state_pb2
from google.protobuf.message import DecodeError

from dormouse_operator.view import View

TRIES = 3
ROWS = 500
"""In one message."""
MOST_TENANTS = 20_000
"""That are kept apart while a function is summed."""


@dataclass(slots=True)
class Sum:
    """`unsettled`: byte-microseconds since sessions' last steps, by tenant. `unread`: records and totals that cannot be read."""

    totals: Totals = field(default_factory=dict)
    unsettled: dict[str | None, int] = field(default_factory=dict)
    unread: int = 0


async def of_function(store: Store, clock: Clock, keys: Keys, function: Function, now_us: int, *, ended: bool = False) -> Sum:
    """`ended`: its sessions end now, and with them what is unsettled counts. StoreError: it cannot be read; Compacted: again
    and again the store dropped the revision that was being read."""
    for attempt in range(TRIES):
        try:
            found = await _once(store, clock, keys, function, now_us)
        except Compacted:
            if attempt == TRIES - 1:
                raise
        else:
            for tenant, unsettled in found.unsettled.items() if ended else ():
                usages.add(found.totals, tenant, Usage(hibernated_us=unsettled))
            return found
    raise AssertionError("unreachable")


async def _once(store: Store, clock: Clock, keys: Keys, function: Function, now_us: int) -> Sum:
    found, revision = Sum(), 0
    async for page in scanning.pages(store, clock, keys.usages(function)):
        revision = page.revision
        for item in page.items:
            totals = usages.decode(item.value)
            if totals is None:
                found.unread += 1
                log.warning("usage cannot be read, and is left out", function=function.label, key=item.key)
            else:
                usages.include(found.totals, totals)
        _bound(found)
    prefix = keys.states(function)
    async for page in scanning.pages(store, clock, prefix, revision=revision):
        for item in page.items:
            _add(found, item, prefix, now_us)
        _bound(found)
    return found


def _bound(found: Sum) -> None:
    if len(found.totals) > MOST_TENANTS:
        found.totals = usages.bounded(found.totals)
        for tenant in found.unsettled.keys() - found.totals.keys():
            found.unsettled[usages.OTHERS] = found.unsettled.get(usages.OTHERS, 0) + found.unsettled.pop(tenant)


def _add(found: Sum, item: Item, prefix: str, now_us: int) -> None:
    try:
        glance, usage = records.used(item.value)
    except (DataLoss, FailedPrecondition):
        found.unread += 1
        return
    if usage is not None:
        tenant = usages.tenant_of(_session(item, prefix))
        usages.add(found.totals, tenant, usage)
        found.unsettled[tenant] = found.unsettled.get(tenant, 0) + _unsettled(glance, usage, now_us)


def _unsettled(glance: records.Glance, usage: Usage, now_us: int) -> int:
    return 0 if glance.tombstone else usages.unsettled_us(usage, glance.expires_us, glance.size, now_us)


def _session(item: Item, prefix: str) -> str:
    """What follows the shard in a record's key; always text, whatever a function's worker wrote for a key."""
    return item.key[len(prefix) :].partition("/")[2].encode(errors="replace").decode()


# ------------------------------------------------------------------------------------------------------------------ for people


class Reader:
    """Answers `Control.Usage`. `now_us`: the time, as well as it is known."""

    def __init__(self, store: Store, clock: Clock, keys: Keys, view: View) -> None:
        self._store = store
        self._clock = clock
        self._keys = keys
        self._view = view

    async def rows(self, request: control_pb2.UsageRequest, now_us: int) -> AsyncIterator[control_pb2.UsageResponse]:
        """InvalidArgument, NotFound: as the request says; FailedPrecondition: what was used by then is not known. Unavailable: the store
        does not answer, and then nothing is said of the function: it is not known, which is not zero."""
        by = request.by or "function"
        if by not in ("function", "tenant", "session"):
            raise InvalidArgument(f'by: "{by}" found, function, tenant and session are allowed')
        if request.since and not usages.is_day(request.since):
            raise InvalidArgument(f'since: "{request.since}" found, a day as in 2026-01-31 (UTC) is allowed')
        if request.since and by == "session":
            raise InvalidArgument("since: not with by session: days are kept of functions and tenants alone")
        if by == "session" and not request.name:
            raise InvalidArgument("name: none found, by session one function is required")
        try:
            found = 0
            async for function, created_us, ended in self._functions(request):
                found += 1
                if by == "session":
                    if ended is None:
                        async for response in self._sessions(function, now_us):
                            yield response
                    continue
                sum_ = ended or await of_function(self._store, self._clock, self._keys, function, now_us)
                since_us = 0
                if request.since:
                    since_us = await self._less(sum_, function, created_us, request.since)
                for response in _responses(function, sum_, ended.at_us if ended else 0, by, now_us, since_us):
                    yield response
        except StoreError as error:
            raise Unavailable(f"the store does not answer, so what was used is not known: {error}") from error
        if request.name and not found:
            raise NotFound(f"no function {request.namespace}/{request.name}, and none of this name was deleted lately")

    async def _functions(self, request: control_pb2.UsageRequest) -> AsyncGenerator[tuple[Function, int, "Ended | None"], None]:
        """Those that are there, those that are gone with their sessions kept, and those that were deleted."""

        def wanted(namespace: str, name: str) -> bool:
            return request.namespace in ("", namespace) and request.name in ("", name)

        for registered in sorted(self._view.functions.values(), key=lambda each: each.function.path):
            if wanted(registered.function.namespace, registered.function.name):
                yield function_of(registered.entry), registered.entry.created_us, None
        for item in (await self._store.list(self._keys.retaineds)).items:
            namespace, _, name = item.key.removeprefix(self._keys.retaineds).partition("/")
            if wanted(namespace, name) and (store_id := _store_id(item)):
                yield Function(namespace, name, store_id), 0, None
        async for page in scanning.pages(self._store, self._clock, self._keys.deleted_usages):
            for item in page.items:
                namespace, name, uid = item.key.removeprefix(self._keys.deleted_usages).split("/")
                if wanted(namespace, name) and (ended := _ended(item)) is not None:
                    yield Function(namespace, name, uid), 0, ended

    async def _less(self, found: Sum, function: Function, created_us: int, day: str) -> int:
        """Takes away what was used before `day`; returns from when on it counts."""
        key = self._keys.usage_history(function, day)
        item = (await self._store.get([key]))[1].get(key)
        began = _ended(item) if item is not None else None
        if began is None:
            if created_us and created_us >= usages.day_us(day):
                return created_us
            raise FailedPrecondition(f"since: what {function.label} had used by {day} is not known: it was not written down that day")
        before = began.totals
        for tenant, usage in list(found.totals.items()):
            found.totals[tenant] = usages.less(usage, before.get(tenant, usages.NOTHING))
        return began.at_us

    async def _sessions(self, function: Function, now_us: int) -> AsyncIterator[control_pb2.UsageResponse]:
        prefix = self._keys.states(function)
        async for page in scanning.pages(self._store, self._clock, prefix):
            response = control_pb2.UsageResponse(at_us=now_us)
            for item in page.items:
                try:
                    glance, usage = records.used(item.value)
                except (DataLoss, FailedPrecondition):
                    continue
                session = _session(item, prefix)
                row = _row(function, usage or usages.NOTHING, 0)
                row.session, row.tenant = session, usages.tenant_of(session)
                row.unsettled_byte_seconds = _unsettled(glance, usage, now_us) // SECOND_US if usage is not None else 0
                response.rows.append(row)
            yield response


@dataclass(slots=True)
class Ended(Sum):
    """A sum that was written down. `at_us`: when."""

    at_us: int = 0


def _store_id(item: Item) -> str:
    """Of kept sessions; '': it cannot be read."""
    try:
        return str(state_pb2.Retained.FromString(item.value).store_id)
    except DecodeError:
        return ""


def _ended(item: Item) -> Ended | None:
    try:
        found = state_pb2.UsageAt.FromString(item.value)
    except DecodeError:
        return None
    return Ended(usages.of_message(found.totals), at_us=found.at_us)


def is_before(item: Item, time_us: int) -> bool:
    """Whether a sum was written down before then; False also of one that cannot be read."""
    found = _ended(item)
    return found is not None and found.at_us < time_us


def _row(function: Function, usage: Usage, deleted_us: int) -> control_pb2.UsageRow:
    row = control_pb2.UsageRow(namespace=function.namespace, name=function.name, uid=function.uid, deleted_us=deleted_us)
    row.usage.CopyFrom(usages.message(usage))
    return row


def _responses(function: Function, found: Sum, deleted_us: int, by: str, now_us: int, since_us: int) -> list[control_pb2.UsageResponse]:
    if by == "function":
        row = _row(function, usages.whole(found.totals), deleted_us)
        row.unsettled_byte_seconds = sum(found.unsettled.values()) // SECOND_US
        rows = [row]
    else:
        rows = []
        for tenant, usage in sorted(found.totals.items(), key=lambda each: (each[0] is None, each[0] or "")):
            row = _row(function, usage, deleted_us)
            row.tenant, row.others = tenant or "", tenant is None
            row.unsettled_byte_seconds = found.unsettled.get(tenant, 0) // SECOND_US
            rows.append(row)
    return [
        control_pb2.UsageResponse(rows=rows[at : at + ROWS], at_us=now_us, since_us=since_us) for at in range(0, max(1, len(rows)), ROWS)
    ]
