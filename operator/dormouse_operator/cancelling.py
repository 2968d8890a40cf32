"""Cancels one alarm of a session, whoever owns the shard and whether or not anybody does: the record is written without it, as a deletion
writes it (`deleting`), with the same comparisons. Nobody is woken for it. An alarm's step that runs meanwhile either commits first, and
then there is no such alarm any more, or it fails the comparison of the record, and its alarm is gone when it is looked at again."""

import secrets

from dormouse_core import alarms, records, transactions
from dormouse_core.errors import DataLoss, FailedPrecondition, InvalidArgument, NotFound, Unavailable
from dormouse_core.keys import Function, Keys, function_of
from dormouse_core.observations import FunctionSeen
from dormouse_core.seams import Clock, Full, Item, Store, StoreError
from dormouse_core.sessions.names import shard_of
from dormouse_core.spec import spec_from_json
from dormouse_kit import log
from dormouse_proto import control_pb2, state_pb2

from dormouse_operator.owing import Told

ATTEMPTS = 50  # a session that is stepped all the time wins against it now and then


class Canceller:
    """`told(function, shard, sessions)`: their records were replaced."""

    def __init__(self, store: Store, clock: Clock, keys: Keys, leader_new: int, told: Told) -> None:
        self._store = store
        self._clock = clock
        self._keys = keys
        self._leader_new = leader_new
        self._told = told

    async def cancel(self, seen: FunctionSeen, request: control_pb2.CancelAlarmRequest) -> None:
        """NotFound: there is no such session, or it has no such alarm. FailedPrecondition, DataLoss: its record cannot be read.
        Unavailable: whether it is cancelled is not known; asking again is safe."""
        function, session = function_of(seen.entry), request.session
        sessions = spec_from_json(seen.entry.spec).sessions
        if not seen.entry.shards or sessions is None:
            raise FailedPrecondition(f"{function.label} is stateless: it has no sessions")
        if "/" not in session or not session.isascii():
            text = f'session: "{session}" found, tenant/i:NUMBER or tenant/s:NAME is allowed, percent-encoded, as the list shows it'
            raise InvalidArgument(text)
        shard = shard_of(session, seen.entry.shards)
        try:
            for _ in range(ATTEMPTS):
                if await self._once(function, shard, session, request.alarm, sessions.ttl.microseconds):
                    log.event("alarm cancelled", function=function.label, shard=shard, alarm=request.alarm)
                    await self._told(function, shard, [session])
                    return
        except StoreError as error:
            raise Unavailable(f"the store does not answer, so whether the alarm is cancelled is not known: {error}") from error
        raise Unavailable(f"the session is written all the time, or this operator no longer leads: ask again ({ATTEMPTS} attempts)")

    async def _once(self, function: Function, shard: int, session: str, name: str, ttl_us: int) -> bool:
        """False: something has changed meanwhile."""
        key, entry = self._keys.state(function, shard, session), self._keys.shard(function, shard)
        _, items = await self._store.get([key, entry])
        if key not in items:
            raise NotFound(f"{function.label} has no session {session}")
        value = self._without(items[key], name, ttl_us)
        if value is None:
            raise NotFound(f'the session {session} of {function.label} has no alarm "{name}"')
        due_us = alarms.earliest(records.decode(value).body.alarms)
        txn = transactions.silence(
            self._keys,
            function,
            shard,
            (key, items[key].mod_revision, value),
            due_us,
            shard_mod=items[entry].mod_revision if entry in items else 0,
            leader_new=self._leader_new,
        )
        try:
            return (await self._store.txn(txn)).succeeded
        except Full as full:
            found = (await self._store.get([key]))[1].get(key)
            if found is not None and found.value == value:
                return True  # it was written as the store became full
            raise Unavailable(
                f"the alarm is not cancelled: the store is full, and takes no change until it has room again ({full})"
            ) from full

    def _without(self, item: Item, name: str, ttl_us: int) -> bytes | None:
        now_us, found = int(self._clock.now() * 1e6), False

        def edit(record: state_pb2.Record) -> None:
            nonlocal found
            found = alarms.without(record, name, now_us, ttl_us)

        try:
            value = records.edited(item.value, b"cancelled/" + secrets.token_bytes(12), edit)
        except (DataLoss, FailedPrecondition) as error:
            raise type(error)(f"no alarm of the session can be cancelled: {error.message}") from error
        return value if found else None
