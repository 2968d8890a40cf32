"""What a function used, read out of the store: records and totals so that what a removal moves from one to the other is in the sum once. A
small function is read at one revision, a large one shard by shard: the leader has the store drop revisions that are seconds old. Reading
wakes nobody."""

from dataclasses import dataclass, field

from dormouse_core import records, usages
from dormouse_core.errors import DataLoss, FailedPrecondition
from dormouse_core.keys import Function, Keys
from dormouse_core.limits import MIB
from dormouse_core.seams import Clock, Compacted, Item, Store, StoreError
from dormouse_core.usages import SECOND_US, Totals, Usage
from dormouse_kit import log, scanning
from dormouse_proto import state_pb2
from google.protobuf.message import DecodeError

TRIES = 4
AT_ONCE_BYTES = 8 * MIB
"""Of records that are read at one revision: half a second's."""
LATE_US = 15 * 60 * SECOND_US
"""A sum that was written down later after its day began says nothing of the day's beginning."""
MOST_TENANTS = 20_000
"""That are kept apart while a function is summed."""


@dataclass(slots=True)
class Sum:
    """`unsettled`: byte-microseconds since sessions' last steps, by tenant. `unread`: records and totals that cannot be read."""

    totals: Totals = field(default_factory=dict)
    unsettled: dict[str | None, int] = field(default_factory=dict)
    unread: int = 0


async def of_function(store: Store, clock: Clock, keys: Keys, function: Function, shards: int, now_us: int, *, ended: bool = False) -> Sum:
    """`ended`: its sessions end now, and with them what is unsettled counts. StoreError: it cannot be read."""
    found = await _at_once(store, clock, keys, function, now_us)
    if found is None:
        found = await _workers(store, clock, keys, function)
        for shard in range(shards):
            _include(found, await _shard(store, clock, keys, function, shard, now_us))
    for tenant, unsettled in found.unsettled.items() if ended else ():
        usages.add(found.totals, tenant, Usage(hibernated_us=unsettled))
    return found


async def _at_once(store: Store, clock: Clock, keys: Keys, function: Function, now_us: int) -> Sum | None:
    """All at one revision, in few requests. None: there is too much of it, or the store has dropped that revision meanwhile."""
    found, revision, size = Sum(), 0, 0
    try:
        async for page in scanning.pages(store, clock, keys.usages(function)):
            revision = page.revision
            for item in page.items:
                _total(found, item, function)
            _bound(found)
        prefix = keys.states(function)
        async for page in scanning.pages(store, clock, prefix, revision=revision):
            size += sum(len(item.value) + scanning.ITEM_BYTES for item in page.items)
            if size > AT_ONCE_BYTES:
                return None
            for item in page.items:
                _add(found, item, prefix, now_us)
            _bound(found)
    except Compacted:
        return None
    return found


async def _workers(store: Store, clock: Clock, keys: Keys, function: Function) -> Sum:
    """What workers count, and the total of former ones, at one revision: a fold moves from the ones to the other."""
    for attempt in range(TRIES):
        found = Sum()
        revision, total = await _read(store, keys.usage_of_former(function))
        try:
            async for page in scanning.pages(store, clock, keys.usages_of_workers(function), revision=revision):
                for item in page.items:
                    _total(found, item, function)
        except Compacted:
            if attempt == TRIES - 1:
                raise
            continue
        if total is not None:
            _total(found, total, function)
        _bound(found)
        return found
    raise AssertionError("unreachable")


async def _shard(store: Store, clock: Clock, keys: Keys, function: Function, shard: int, now_us: int) -> Sum:
    """A removal moves from records to their shard's total. So either all is read at one revision, or, where the store does not keep that
    one for as long as it takes, page by page: then it counts if the total is the same before and after."""
    prefix, total_key = keys.states(function), keys.usage(function, shard)
    for attempt in range(TRIES):
        moving = attempt % 2 == 1
        found = Sum()
        revision, total = await _read(store, total_key)
        if total is not None:
            _total(found, total, function)
        pages = scanning.pages(store, clock, keys.states(function, shard), revision=0 if moving else revision, moving=moving)
        try:
            async for page in pages:
                for item in page.items:
                    _add(found, item, prefix, now_us)
                _bound(found)
        except Compacted:
            continue
        if not moving or _mod((await _read(store, total_key))[1]) == _mod(total):
            return found
    raise StoreError(f"sessions of shard {shard} are removed faster than they are read")


async def _read(store: Store, key: str) -> tuple[int, Item | None]:
    """One key as a listing, whose revision can be read at."""
    listing = await store.list(key, limit=1)
    return listing.revision, next((item for item in listing.items if item.key == key), None)


def _mod(item: Item | None) -> int:
    return 0 if item is None else item.mod_revision


def _total(found: Sum, item: Item, function: Function) -> None:
    totals = usages.decode(item.value)
    if totals is None:
        found.unread += 1
        log.warning("usage cannot be read, and is left out", function=function.label, key=item.key)
    else:
        usages.include(found.totals, totals)


def _include(found: Sum, part: Sum) -> None:
    usages.include(found.totals, part.totals)
    for tenant, unsettled in part.unsettled.items():
        found.unsettled[tenant] = found.unsettled.get(tenant, 0) + unsettled
    found.unread += part.unread
    _bound(found)


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
        tenant = usages.tenant_of(session_of(item, prefix))
        usages.add(found.totals, tenant, usage)
        found.unsettled[tenant] = found.unsettled.get(tenant, 0) + unsettled(glance, usage, now_us)


def unsettled(glance: records.Glance, usage: Usage, now_us: int) -> int:
    return 0 if glance.tombstone else usages.unsettled_us(usage, glance.expires_us, glance.size, now_us)


def session_of(item: Item, prefix: str) -> str:
    """What follows the shard in a record's key; always text, whatever a function's worker wrote for a key."""
    return item.key[len(prefix) :].partition("/")[2].encode(errors="replace").decode()


# ----------------------------------------------------------------------------------------------------------------- written down


@dataclass(slots=True)
class Ended(Sum):
    """A sum that was written down. `at_us`: when; `created_us`: when that began which it is of, 0: not known."""

    at_us: int = 0
    created_us: int = 0


def written_down(item: Item) -> Ended | None:
    """None: it cannot be read."""
    try:
        found = state_pb2.UsageAt.FromString(item.value)
    except DecodeError:
        return None
    return Ended(usages.of_message(found.totals), at_us=found.at_us, created_us=found.created_us)


def retained(keys: Keys, item: Item) -> tuple[Function, int] | None:
    """Whose sessions are kept, as the function that they lie under, and its shards. None: it cannot be read."""
    namespace, _, name = item.key.removeprefix(keys.retaineds).partition("/")
    try:
        found = state_pb2.Retained.FromString(item.value)
    except DecodeError:
        return None
    return (Function(namespace, name, found.store_id), found.shards) if found.store_id and "/" not in found.store_id else None


def is_before(item: Item, time_us: int) -> bool:
    """Whether a sum was written down before then; False also of one that cannot be read."""
    found = written_down(item)
    return found is not None and found.at_us < time_us
