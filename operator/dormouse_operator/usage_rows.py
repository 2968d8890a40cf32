"""Answers people who ask what was used (`Control.Usage`): by function, tenant or session, in all or since a day. What is not known is said
of the function that it is about, and keeps nobody from the others'."""

from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass

from dormouse_core import records, usages
from dormouse_core.errors import DataLoss, DormouseError, FailedPrecondition, InvalidArgument, NotFound, Unavailable
from dormouse_core.keys import Function, Keys, function_of
from dormouse_core.seams import Clock, Store, StoreError
from dormouse_core.usages import SECOND_US, Usage
from dormouse_kit import scanning
from dormouse_proto import control_pb2

from dormouse_operator.usage_sums import LATE_US, Ended, Sum, of_function, retained, session_of, unsettled, written_down
from dormouse_operator.view import View

ROWS = 500
"""In one message."""


@dataclass(frozen=True, slots=True)
class Of:
    """`created_us`: when its usage began; 0: not known. `entry_new`: the create_revision of its entry. `ended`: it was deleted."""

    function: Function
    shards: int
    created_us: int
    entry_new: int = 0
    ended: Ended | None = None


class Reader:
    """Answers `Control.Usage`. `now_us`: the time, as well as it is known."""

    def __init__(self, store: Store, clock: Clock, keys: Keys, view: View) -> None:
        self._store = store
        self._clock = clock
        self._keys = keys
        self._view = view

    async def rows(self, request: control_pb2.UsageRequest, now_us: int) -> AsyncIterator[control_pb2.UsageResponse]:
        """InvalidArgument, NotFound: as the request says. A row's `unknown` says why nothing is known of its function, which is not zero.
        Unavailable: the store does not answer."""
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
            async for of in self._functions(request):
                found += 1
                if by != "session":
                    for response in await self._of(of, by, request.since, now_us):
                        yield response
                elif of.ended is None:
                    async for response in self._sessions(of.function, now_us):
                        yield response
        except StoreError as error:
            raise Unavailable(f"the store does not answer, so what was used is not known: {error}") from error
        if request.name and not found:
            raise NotFound(f"no function {request.namespace}/{request.name}, and none of this name was deleted lately")

    async def _of(self, of: Of, by: str, since: str, now_us: int) -> list[control_pb2.UsageResponse]:
        deleted_us = of.ended.at_us if of.ended else 0
        if of.ended and since and deleted_us < usages.day_us(since):
            return []
        try:
            found = of.ended or await of_function(self._store, self._clock, self._keys, of.function, of.shards, now_us)
            if of.entry_new and (ended := await self._end(of)) is not None:
                found, deleted_us = ended, ended.at_us
            since_us = await self._less(found, of, by, since) if since else 0
        except (StoreError, DormouseError) as error:
            text = error.message if isinstance(error, DormouseError) else f"the store does not answer: {error}"
            row = _row(of.function, usages.NOTHING, deleted_us)
            row.ClearField("usage")
            row.unknown = text
            return [control_pb2.UsageResponse(rows=[row], at_us=now_us)]
        return _responses(of.function, found, deleted_us, by, now_us, since_us)

    async def _end(self, of: Of) -> Ended | None:
        """Of a function whose deletion is under way: looked for after its records were summed, since they go from then on."""
        key = self._keys.deleted_usage(of.function)
        item = (await self._store.get([key]))[1].get(key)
        return written_down(item) if item is not None and item.mod_revision > of.entry_new else None

    async def _functions(self, request: control_pb2.UsageRequest) -> AsyncGenerator[Of, None]:
        """Those that are there, those that are gone with their sessions kept, and those that were deleted. One whose deletion is under way
        is one of these already; what is written of an earlier life of one that was restored is in its own."""

        def wanted(namespace: str, name: str) -> bool:
            return request.namespace in ("", namespace) and request.name in ("", name)

        there: set[str] = set()
        for registered in sorted(self._view.functions.values(), key=lambda each: each.function.path):
            function, entry = function_of(registered.entry), registered.entry
            if not wanted(function.namespace, function.name):
                continue
            there.add(self._keys.deleted_usage(function))
            yield Of(function, entry.shards, 0 if function.store_id else entry.created_us, registered.created)
        for item in (await self._store.list(self._keys.retaineds)).items:
            kept = retained(self._keys, item)
            if kept is not None and wanted(kept[0].namespace, kept[0].name):
                yield Of(*kept, 0)
        async for page in scanning.pages(self._store, self._clock, self._keys.deleted_usages, moving=True):
            for item in page.items:
                namespace, name, uid = item.key.removeprefix(self._keys.deleted_usages).split("/")
                if wanted(namespace, name) and item.key not in there and (ended := written_down(item)) is not None:
                    yield Of(Function(namespace, name, uid), 0, ended.created_us, ended=ended)

    async def _less(self, found: Sum, of: Of, by: str, day: str) -> int:
        """Takes away what was used before `day`; returns from when on it counts. FailedPrecondition: that is not known."""
        start_us = usages.day_us(day)
        if of.created_us >= start_us:
            return of.created_us
        key = self._keys.usage_history(of.function, day)
        item = (await self._store.get([key]))[1].get(key)
        began = written_down(item) if item is not None else None
        if began is None or began.at_us - start_us > LATE_US:
            raise FailedPrecondition(f"since: what it had used by {day} is not known: it was not written down when that day began")
        if by == "function":
            found.totals = {"": usages.less(usages.whole(found.totals), usages.whole(began.totals))}
        else:
            found.totals = usages.since(found.totals, began.totals)
        return began.at_us

    async def _sessions(self, function: Function, now_us: int) -> AsyncIterator[control_pb2.UsageResponse]:
        prefix = self._keys.states(function)
        async for page in scanning.pages(self._store, self._clock, prefix, moving=True):
            response = control_pb2.UsageResponse(at_us=now_us)
            for item in page.items:
                try:
                    glance, usage = records.used(item.value)
                except (DataLoss, FailedPrecondition):
                    continue
                session = session_of(item, prefix)
                row = _row(function, usage or usages.NOTHING, 0)
                row.session, row.tenant = session, usages.tenant_of(session)
                row.unsettled_byte_seconds = unsettled(glance, usage, now_us) // SECOND_US if usage is not None else 0
                response.rows.append(row)
            yield response


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
        waiting: dict[str | None, int] = {}
        for tenant, bytes_us in found.unsettled.items():
            named = tenant if tenant in found.totals else usages.OTHERS
            waiting[named] = waiting.get(named, 0) + bytes_us
        for tenant, usage in sorted(found.totals.items(), key=lambda each: (each[0] is None, each[0] or "")):
            row = _row(function, usage, deleted_us)
            row.tenant, row.others = tenant or "", tenant is None
            row.unsettled_byte_seconds = waiting.get(tenant, 0) // SECOND_US
            rows.append(row)
    for row in rows:
        row.since_us = since_us
    return [control_pb2.UsageResponse(rows=rows[at : at + ROWS], at_us=now_us) for at in range(0, max(1, len(rows)), ROWS)]
