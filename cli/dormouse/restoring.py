"""Writes a snapshot back into a store (`dormouse_core.backups`), beside living workers and gateways too: they notice by themselves.

It holds the leader's key meanwhile, under no lease: no operator may lead over half of the functions, and a restore that is cut short leaves
it so until it is made again. While it looks whether anything is there, the key says so: a run that comes after looks too. Each transaction
compares its revision: of two restores the one that came last goes on, and what was sent before the key was written again, and lands late,
does nothing.
"""

import asyncio
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final, Protocol, TypeVar

from dormouse_core import backups
from dormouse_core.backoff import Backoff
from dormouse_core.errors import Aborted, FailedPrecondition, InvalidArgument, Unavailable
from dormouse_core.keys import Keys
from dormouse_core.limits import TXN_OPS
from dormouse_core.seams import Clock, Delete, Full, ModIs, Put, Store, StoreError, Txn, Write
from dormouse_proto import state_pb2
from google.protobuf.message import DecodeError

TOGETHER: Final = 4
ATTEMPTS: Final = 8
AGAIN: Final = Backoff(0.2, 5.0)
REMOVE_SECONDS: Final = 600.0
PAGE: Final = 1000
FULL: Final = "the store is full ({}): give it a larger quota, and run it again"
NOTHING: Final = "nothing was removed or written, but the leader's key may be held: run it again"
TAKEN: Final = "another restore was begun, or somebody took the leader's key away: nothing more is written"

T = TypeVar("T")


class Snapshot(Protocol):
    """What is written back."""

    def keys(self) -> Sequence[str]: ...
    def get(self, key: str, /) -> backups.Found: ...


@dataclass(frozen=True, slots=True)
class Restored:
    functions: int
    sessions: int


class Restoring:
    """One restore."""

    def __init__(self, store: Store, clock: Clock, keys: Keys, snapshot: Snapshot) -> None:
        self._store = store
        self._clock = clock
        self._keys = keys
        self._snapshot = snapshot
        self._token = secrets.token_hex(8)
        self._mod = 0  # of the leader's key, which is ours
        self._begun = False

    async def run(self, *, replace: bool) -> Restored:
        """InvalidArgument: the snapshot has nothing of this installation. FailedPrecondition: an operator leads, something is there and may
        not be replaced, or the store is full. Aborted: somebody took the leader's key away. Unavailable: the store does not answer; what
        was begun is finished by another run."""
        found = backups.ordered(self._keys, self._snapshot.keys())
        if not (found.first or found.last):
            raise InvalidArgument(f"the snapshot has nothing of the installation {self._keys.installation}")
        try:
            await self._begin(replace=replace)
            await self._remove_sessions()
            await self._claim(backups.RESTORING)  # again: a removal that lands late fails
            await self._write(found.first)
            await self._write(found.last)
            await self._remove_others(found.last)
            await self._release()
        except StoreError as error:
            text = "the restore is not finished, and nobody leads until it is: run it again" if self._begun else NOTHING
            raise Unavailable(f"the store does not answer: {error}; {text}") from error
        functions = sum(key.startswith(self._keys.functions) for key in found.last)
        return Restored(functions, found.records)

    # -------------------------------------------------------------------------------------------------------- the leader's key

    async def _begin(self, *, replace: bool) -> None:
        """What fails in here has changed nothing, and the key is given back."""
        try:
            self._begun = await self._claim(backups.LOOKING)
            if self._begun:
                return
            if not replace:
                await self._refuse_what_is_there()
            await self._claim(backups.RESTORING)
            self._begun = True
        except BaseException:
            await self._give_back()
            raise

    async def _claim(self, word: str) -> bool:
        """Whether a restore has begun to remove and to write, and has not ended: its word stays then."""
        key = self._keys.leader
        for attempt in range(ATTEMPTS):
            item = (await self._store.get([key]))[1].get(key)
            leader = _leader(item.value) if item is not None else None
            found, _, token = (leader or "").partition(" ")
            if self._mod and token != self._token:
                raise Aborted(TAKEN)
            if item is not None and found not in (backups.LOOKING, backups.RESTORING):
                raise FailedPrecondition(
                    f"an operator leads ({leader or 'its entry cannot be read'}): stop every operator, restore, and start them again"
                )
            value = state_pb2.Leader(name=f"{backups.RESTORING if found == backups.RESTORING else word} {self._token}").SerializeToString()
            try:
                result = await self._store.txn(Txn((ModIs(key, item.mod_revision if item else 0),), (Put(key, value),)))
            except Full as error:
                raise FailedPrecondition(FULL.format(error)) from error
            except StoreError as error:
                await self._pause(error, attempt)
                continue
            if result.succeeded:
                self._mod = result.revision
                return found == backups.RESTORING
        raise Aborted("operators, or other restores, take the leader's key all the time: stop them")

    async def _give_back(self) -> None:
        """The key, if it says that we look. StoreError: it may still be there, and the next run takes it, and looks too."""
        key = self._keys.leader
        item = (await self._store.get([key]))[1].get(key)
        if item is not None and _leader(item.value) == f"{backups.LOOKING} {self._token}":
            self._mod = item.mod_revision
            await self._release()

    async def _release(self) -> None:
        await self._all([[Delete(self._keys.leader)]], last=True)

    async def _refuse_what_is_there(self) -> None:
        keys = self._keys
        for prefix in (keys.functions, keys.retaineds, keys.datas, keys.maps):
            if (await self._store.list(prefix, limit=1, keys_only=True)).items:
                raise FailedPrecondition(
                    f"the store has functions or sessions of the installation {keys.installation} already: --replace removes them first"
                )

    # -------------------------------------------------------------------------------------------------------------- writes

    async def _remove_sessions(self) -> None:
        """The mark first: it speaks of functions that the snapshot may lack (`absences`). Then owners, so that nobody commits any more.
        Functions stay until they are written again: a call is told to wait, not that there is no such function."""
        await self._all([[Delete(self._keys.written)]])
        await self._remove(self._keys.maps, lambda key: backups.replaced(self._keys, key))
        keys = self._keys
        prefixes = (keys.datas, keys.retaineds, keys.usage_histories, keys.deleted_usages)
        await self._all([[Delete(prefix, prefix=True)] for prefix in prefixes])

    async def _remove_others(self, kept: Iterable[str]) -> None:
        known = set(kept)
        await self._remove(self._keys.functions, lambda key: key not in known)

    async def _remove(self, prefix: str, which: Callable[[str], bool]) -> None:
        start = ""
        while True:
            listing = await self._store.list(prefix, start=start, limit=PAGE, keys_only=True)
            await self._all([[Delete(key) for key in part] for part in _batched([i.key for i in listing.items if which(i.key)], TXN_OPS)])
            if not listing.more:
                return
            start = listing.items[-1].key

    async def _write(self, names: Sequence[str]) -> None:
        puts = (put for key in names if (put := backups.written(self._keys, key, self._snapshot.get(key))) is not None)
        for parts in _batched(backups.portions(puts), TOGETHER):
            await self._all(parts)

    async def _all(self, parts: Iterable[Sequence[Write]], *, last: bool = False) -> None:
        await asyncio.gather(*(self._one(Txn((ModIs(self._keys.leader, self._mod),), tuple(part)), last=last) for part in parts))

    async def _one(self, txn: Txn, *, last: bool) -> None:
        """Each may be applied twice: it writes what is so for as long as the key is ours."""
        for attempt in range(ATTEMPTS):
            try:
                result = await self._store.txn(txn, timeout=REMOVE_SECONDS)
            except Full as error:
                raise FailedPrecondition(FULL.format(error)) from error
            except StoreError as error:
                await self._pause(error, attempt)
                continue
            if result.succeeded or (last and attempt):
                return
            raise Aborted(TAKEN)

    async def _pause(self, error: StoreError, attempt: int) -> None:
        if error.definite or attempt == ATTEMPTS - 1:
            raise error
        await self._clock.sleep(AGAIN.after(attempt + 1))


def _batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    rest = iter(items)
    while part := list(islice(rest, size)):
        yield part


def _leader(value: bytes) -> str | None:
    try:
        return str(state_pb2.Leader.FromString(value).name)
    except DecodeError:
        return None
