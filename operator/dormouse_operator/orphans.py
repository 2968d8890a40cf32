"""Removes what lies in the store of functions that are long gone: their map and their data.

A deleted function's purge does that, and takes its name last. This is for what it could not see: keys that somebody restored, that a build
before this one left, or that were written for a uid whose entry was replaced. It looks when this process begins to lead and each hour.
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
        for root in (self._keys.maps, f"{self._keys.root}data/"):
            start = ""
            while True:
                listing = await self._store.list(root, start=start, limit=1, keys_only=True)
                if not listing.items:
                    break
                parts = listing.items[0].key[len(root) :].split("/", 3)
                start = root + "/".join(parts[:3]) + "0"  # behind every key of this function: "0" follows "/"
                if len(parts) == 4 and parts[2] not in self._view.functions:
                    await self._look(Function(*parts[:3]))
                await self._clock.sleep(PAUSE)

    async def _look(self, function: Function) -> None:
        """Removes everything of `function` unless it is registered after all, or a worker of it lives."""
        key = self._keys.function(function.namespace, function.name)
        _, items = await self._store.get([key])
        entry = items.get(key)
        if entry is not None and _uid(entry.value) in (function.uid, None):
            return
        if (await self._store.list(self._keys.workers(function), limit=1, keys_only=True)).items:
            return  # its lease ends with it; the next look finds none
        guards = (CreatedIs(self._keys.leader, self._leader_new), ModIs(key, entry.mod_revision if entry else 0))
        for prefix in (self._keys.map(function), self._keys.data(function)):
            result = await self._store.txn(Txn(guards, (Delete(prefix, prefix=True),)), timeout=DELETE_TIMEOUT)
            if not result.succeeded:
                return
        log.event("removed the keys that a deleted function left in the store", function=function.label, uid=function.uid)


def _uid(value: bytes) -> str | None:
    """None: it cannot be read, so nobody knows whose it is."""
    try:
        return str(state_pb2.FunctionEntry.FromString(value).uid)
    except DecodeError:
        return None
