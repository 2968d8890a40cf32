"""Sessions as they lie in the store, a page at a time, joined with who owns them now. Reading wakes nobody."""

from dormouse_core import records
from dormouse_core.errors import DataLoss, FailedPrecondition, InvalidArgument, NotFound, Unavailable
from dormouse_core.keys import Function, Keys, function_of
from dormouse_core.lifetimes import NEVER_US
from dormouse_core.observations import FunctionSeen
from dormouse_core.seams import Compacted, Item, Store, StoreError
from dormouse_core.sessions.names import shard_of
from dormouse_proto import control_pb2, state_pb2

DEFAULT_LIMIT = 100
MAX_LIMIT = 1000


async def page(store: Store, keys: Keys, seen: FunctionSeen, request: control_pb2.SessionsRequest) -> control_pb2.SessionsResponse:
    """One session when `request.session` names one, else the next page. `page` is "revision:rest of the last key".

    All pages of one listing are of one revision while the store still has it; after compaction the listing goes on at the present one, so
    a session that was written meanwhile shows its new step, and none is shown twice.
    """
    function = function_of(seen.entry)
    if not seen.entry.shards:
        raise FailedPrecondition(f"{function.label} is stateless: it has no sessions")
    try:
        if request.session:
            return await _one(store, keys, function, seen, request.session)
        return await _many(store, keys, function, seen, request)
    except StoreError as error:
        raise Unavailable(f"the store does not answer: {error}") from error


async def _one(store: Store, keys: Keys, function: Function, seen: FunctionSeen, session: str) -> control_pb2.SessionsResponse:
    if "/" not in session:
        raise InvalidArgument(f'session: "{session}" found, tenant/i:NUMBER or tenant/s:NAME is allowed, as the list shows it')
    if not session.isascii():
        raise InvalidArgument(f'session: "{session}" found, percent-encoded text is allowed, as the list shows it')
    shard = shard_of(session, seen.entry.shards)
    key = keys.state(function, shard, session)
    revision, items = await store.get([key])
    if key not in items:
        raise NotFound(f"{function.label} has no session {session}")
    info = _info(items[key], shard, session, seen, tensors=True)
    return control_pb2.SessionsResponse(sessions=[info], revision=revision)


async def _many(
    store: Store, keys: Keys, function: Function, seen: FunctionSeen, request: control_pb2.SessionsRequest
) -> control_pb2.SessionsResponse:
    prefix = keys.states(function)
    limit = min(max(request.limit or DEFAULT_LIMIT, 1), MAX_LIMIT)
    at, _, rest = request.page.partition(":")
    if request.page and not at.isdigit():
        raise InvalidArgument(f'page: "{request.page}" found, the "next" of the page before is allowed')
    start = prefix + rest if rest else ""
    try:
        listing = await store.list(prefix, start=start, limit=limit, revision=int(at or 0))
    except Compacted:
        # The store no longer has that revision, which much that is written soon drops: the rest is read as it is now.
        listing = await store.list(prefix, start=start, limit=limit)
    found = []
    for item in listing.items:
        shard, _, session = item.key.removeprefix(prefix).partition("/")
        found.append(_info(item, int(shard), session, seen, tensors=False))
    last = listing.items[-1].key.removeprefix(prefix) if listing.items else ""
    revision = int(at or 0) or listing.revision
    return control_pb2.SessionsResponse(sessions=found, next=f"{revision}:{last}" if listing.more else "", revision=revision)


def _info(item: Item, shard: int, session: str, seen: FunctionSeen, *, tensors: bool) -> control_pb2.SessionInfo:
    entry = seen.shards.get(shard)
    owner = seen.workers.get(entry.owner) if entry else None
    info = control_pb2.SessionInfo(
        session=session, shard=shard, bytes=len(item.value), owner=owner.name if owner is not None and not owner.gone else ""
    )
    try:
        record = records.decode(item.value)
    except (DataLoss, FailedPrecondition) as error:
        info.state_version = f"unreadable: {error.message}"
        return info
    info.step = record.body.step
    info.expires_us = record.body.expires_us if record.body.expires_us < NEVER_US else 0
    info.ended = record.body.tombstone
    info.state_version = record.body.state_version
    for alarm in record.body.alarms:
        info.alarms.add(
            name=alarm.name,
            due_us=alarm.due_us,
            next_us=0 if alarm.failed else alarm.next_us,
            tries=alarm.tries,
            error=alarm.error,
        )
    if tensors:
        info.tensors.extend(state_pb2.TensorMetadata(name=t.name, datatype=t.datatype, shape=t.shape) for t in record.tensors)
    return info
