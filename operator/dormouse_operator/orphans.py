"""Removes what lies in the store of functions that are long gone: their map and their data.

A deleted function's purge does that, and takes its name last. This is for what it could not see: keys that somebody restored, that a build
before this one left, or that were written for a uid whose entry was replaced. It looks when this process begins to lead and each hour.
Sessions that are kept for the next function of a name (rule *retained*) are nobody's on purpose: while there are such, nothing of that name
is removed.
"""

from dormouse_core.keys import Function, Keys
from dormouse_core.seams import Clock, CreatedIs, Delete, ModIs, Store, StoreError, Txn
from dormouse_kit import log
from dormouse_proto import state_pb2
from google.protobuf.message import DecodeError

from dormouse_operator.view import View

EVERY = 3600.0  # seconds
RETRY = 60.0
PAUSE = 0.01  # between two functions
DELETE_TIMEOUT = 30.0


class Orphans:
    def __init__(self, store: Store, clock: Clock, keys: Keys, view: View, leader_new: int) -> None:
        self._store = store
        self._clock = clock
        self._keys = keys
        self._view = view
        self._leader_new = leader_new

    async def run(self) -> None:
        """The registry must have been listed in full."""
        while True:
            try:
                await self.once()
                wait = EVERY
            except StoreError as error:
                log.event("the store could not be searched for keys of deleted functions; tried again", error=str(error))
                wait = RETRY
            await self._clock.sleep(wait)

    async def once(self) -> None:
        for root in (self._keys.maps, self._keys.datas):
            start = ""
            while True:
                listing = await self._store.list(root, start=start, limit=1, keys_only=True)
                if not listing.items:
                    break
                parts = listing.items[0].key[len(root) :].split("/", 3)
                start = root + "/".join(parts[:3]) + "0"  # behind every key of this function: "0" follows "/"
                if len(parts) == 4 and not self._registered(parts[2]):
                    await self._look(Function(*parts[:3]))
                await self._clock.sleep(PAUSE)

    def _registered(self, part: str) -> bool:
        """As a uid, or as the store id of a function's sessions."""
        functions = self._view.functions
        return part in functions or any(each.entry.store_id == part for each in functions.values())

    async def _look(self, function: Function) -> None:
        """Removes everything of `function` unless it is registered after all, its sessions are kept, or a worker of it lives."""
        key, retained = (of(function.namespace, function.name) for of in (self._keys.function, self._keys.retained))
        _, items = await self._store.get([key, retained])
        entry = items.get(key)
        ids = set[str]() if entry is None else _ids(entry.value)
        if retained in items or ids is None or function.uid in ids:
            return
        if (await self._store.list(self._keys.workers(function), limit=1, keys_only=True)).items:
            return  # its lease ends with it; the next look finds none
        guards = (CreatedIs(self._keys.leader, self._leader_new), ModIs(key, entry.mod_revision if entry else 0), ModIs(retained, 0))
        for prefix in (self._keys.map(function), self._keys.data(function)):
            result = await self._store.txn(Txn(guards, (Delete(prefix, prefix=True),)), timeout=DELETE_TIMEOUT)
            if not result.succeeded:
                return
        log.event("removed the keys that a deleted function left in the store", function=function.label, uid=function.uid)


def _ids(value: bytes) -> set[str] | None:
    """The uid and the store id of an entry. None: it cannot be read, so nobody knows whose it is."""
    try:
        entry = state_pb2.FunctionEntry.FromString(value)
    except DecodeError:
        return None
    return {str(entry.uid), str(entry.store_id)}
