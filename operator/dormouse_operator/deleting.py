"""Deletes one session, or all of a tenant's: their records become tombstones without content and replies, and broken copies of them go.

A tombstone and not a removal, because a removal raises the shard's floor to the record's newest timestamp, and calls of its neighbours
that are under way would be refused as too old. The leader writes it, whoever owns the shard and whether or not anybody does: it compares
its election key, the shard's entry and the record. An owner's next commit to that session fails its own comparison, and the owner, which is
told, reads the record again; until then it can repeat a reply that it gave before, and acknowledge nothing.

A record that cannot be read (it does not verify, or is of a newer build) is deleted like any other. Its keys are not known, so what was
called before the deletion is refused as too old.

A full store takes no tombstone, and to delete is how one gets out of it: then the records themselves go, and the tombstones are owed
(`dormouse_operator.owing`).
"""

import secrets
from collections.abc import Sequence
from urllib.parse import quote

import msgspec
from dormouse_core import records, steps, transactions, usages
from dormouse_core.errors import DataLoss, FailedPrecondition, InvalidArgument, NotFound, Unavailable
from dormouse_core.keys import Function, Keys, function_of
from dormouse_core.limits import TENANT_CHARACTERS
from dormouse_core.observations import FunctionSeen
from dormouse_core.records import Body
from dormouse_core.seams import Clock, CreatedIs, Delete, Full, Item, Store, StoreError, Txn
from dormouse_core.sessions.names import shard_of
from dormouse_kit import log
from dormouse_proto import control_pb2

from dormouse_operator.owing import Owed, Told

PAGE = 16  # records read and replaced at once: of the largest, 16 MiB
ATTEMPTS = 50  # a session that is stepped all the time wins against the deletion now and then


class Deleter:
    """`told(function, shard, sessions)`: their records were replaced."""

    def __init__(self, store: Store, clock: Clock, keys: Keys, leader_new: int, told: Told, owed: Owed) -> None:
        self._store = store
        self._owed = owed
        self._clock = clock
        self._keys = keys
        self._leader_new = leader_new
        self._told = told

    async def delete(self, seen: FunctionSeen, request: control_pb2.DeleteSessionsRequest) -> int:
        """How many sessions were deleted. NotFound: there is no such session. Unavailable: some may be left; asking again is safe."""
        function = function_of(seen.entry)
        if not seen.entry.shards:
            raise FailedPrecondition(f"{function.label} is stateless: it has no sessions")
        which = request.WhichOneof("which")
        if which is None:
            raise InvalidArgument("session or tenant: none found, one of them is required")
        try:
            if which == "session":
                return await self._one(function, seen.entry.shards, request.session)
            return await self._tenant(function, seen.entry.shards, request.tenant)
        except StoreError as error:
            raise Unavailable(f"the store does not answer, so whether all is deleted is not known: {error}") from error

    async def _one(self, function: Function, shards: int, session: str) -> int:
        if "/" not in session or not session.isascii():
            text = f'session: "{session}" found, tenant/i:NUMBER or tenant/s:NAME is allowed, percent-encoded, as the list shows it'
            raise InvalidArgument(text)
        shard = shard_of(session, shards)
        key = self._keys.state(function, shard, session)
        for _ in range(ATTEMPTS):
            item = (await self._store.get([key]))[1].get(key)
            if item is None or not _has_content(item):
                await self._clear(self._keys.quarantined(function, shard, session))
                raise NotFound(f"{function.label} has no session {session}")
            if await self._replace(function, shard, [item]):
                await self._clear(self._keys.quarantined(function, shard, session))
                log.event("session deleted", function=function.label, shard=shard)
                return 1
        raise Unavailable(f"the session is written all the time, or this operator no longer leads: ask again ({ATTEMPTS} attempts)")

    async def _tenant(self, function: Function, shards: int, tenant: str) -> int:
        if len(tenant) > TENANT_CHARACTERS:
            raise InvalidArgument(f"tenant: {len(tenant)} characters found, at most {TENANT_CHARACTERS} are allowed")
        part = quote(tenant, safe="")
        deleted = 0
        for shard in range(shards):
            prefix = f"{self._keys.states(function, shard)}{part}/"
            start = ""
            while True:
                listing = await self._store.list(prefix, start=start, limit=PAGE)
                content = [item for item in listing.items if _has_content(item)]
                if content:
                    deleted += await self._replace_all(function, shard, content)
                if not listing.more:
                    break
                start = listing.items[-1].key
            await self._clear(self._keys.quarantined(function, shard, part))
        log.event("a tenant's sessions deleted", function=function.label, count=deleted)
        return deleted

    async def _replace_all(self, function: Function, shard: int, items: list[Item]) -> int:
        """Together, or where one was written meanwhile, one by one."""
        if await self._replace(function, shard, items):
            return len(items)
        deleted = 0
        for item in items:
            deleted += await self._again(function, shard, item.key)
        return deleted

    async def _again(self, function: Function, shard: int, key: str) -> int:
        for _ in range(ATTEMPTS):
            item = (await self._store.get([key]))[1].get(key)
            if item is None or not _has_content(item):
                return 0
            if await self._replace(function, shard, [item]):
                return 1
        raise Unavailable(f"a session is written all the time, or this operator no longer leads: ask again ({ATTEMPTS} attempts)")

    async def _replace(self, function: Function, shard: int, items: Sequence[Item]) -> bool:
        entry_key = self._keys.shard(function, shard)
        entry = (await self._store.get([entry_key]))[1].get(entry_key)
        now_us = int(self._clock.now() * 1e6)
        tombstones = {item.key: (item.mod_revision, tombstone(item.value, now_us)) for item in items}
        txn = transactions.replace(
            self._keys, function, shard, tombstones, shard_mod=entry.mod_revision if entry else 0, leader_new=self._leader_new
        )
        try:
            if not (await self._store.txn(txn)).succeeded:
                return False
        except Full:
            if not await self._erase(function, shard, tombstones, entry) and not await self._written(tombstones):
                return False
        prefix = self._keys.states(function, shard)
        await self._told(function, shard, [item.key.removeprefix(prefix) for item in items])
        return True

    async def _erase(self, function: Function, shard: int, tombstones: dict[str, tuple[int, bytes]], entry: Item | None) -> bool:
        self._owed.owe(function, shard, tombstones)
        read = {key: mod for key, (mod, _) in tombstones.items()}
        txn = transactions.erase(
            self._keys, function, shard, read, shard_mod=entry.mod_revision if entry else 0, leader_new=self._leader_new
        )
        if (await self._store.txn(txn)).succeeded:
            return True
        self._owed.forgive(function, shard, list(tombstones))
        return False

    async def _written(self, tombstones: dict[str, tuple[int, bytes]]) -> bool:
        """Whether a store that said it was full took them all the same."""
        _, items = await self._store.get(list(tombstones))
        return all(key in items and items[key].value == value for key, (_, value) in tombstones.items())

    async def _clear(self, prefix: str) -> None:
        await self._store.txn(Txn((CreatedIs(self._keys.leader, self._leader_new),), (Delete(prefix, prefix=True),)))


def tombstone(data: bytes, now_us: int) -> bytes:
    """The record that is left of `data`: its keys without their replies, so that a copy of a call that ran does not run again."""
    try:
        body = records.decode(data).body
        usage = body.usage
        if usage is not None and not body.tombstone:
            usage = usages.settled(usage, body.expires_us, len(data), now_us)
        body = msgspec.structs.replace(body, tombstone=True, kept=steps.slim(body.kept), expires_us=now_us, alarms=(), usage=usage)
    except (DataLoss, FailedPrecondition):
        body = Body("", True, 0, (), now_us, now_us, now_us)
    return records.encode(body, (), b"deleted/" + secrets.token_bytes(12))


def _has_content(item: Item) -> bool:
    try:
        record = records.decode(item.value)
    except (DataLoss, FailedPrecondition):
        return True
    return not record.body.tombstone or any(kept.reply is not None for kept in record.body.kept)
