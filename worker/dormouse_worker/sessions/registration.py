"""A worker makes itself known, stays known, and leaves.

The entry ``map/{F}/workers/{worker}`` lies under a lease of 3 s that is kept alive each second. It is how gateways find a worker and how
the leader knows that a shard's owner lives. **Nothing that must be safe depends on it**: a worker whose lease has ended without its knowing
fails the fence at its next commit.

A name is registered once. When the lease has ended, the name is dead, whatever the worker thinks of itself: `lost` is set, and the process
ends or registers under a new name (rule *new-names*). Between "no answer for a whole lease time" and "the store says that it ended" the
worker does not know; it then takes no new steps (`lapsed`), so that their callers look for another owner instead of waiting here.

A step that holds this interpreter also holds the renewal. The supervisor then renews in its place (`dormouse_worker.process.keeping`), and
says when.

One that is asked to leave while the store does not answer has nobody to hand over to and nothing that it could commit: it counts its lease
as lost after `FORSAKEN_SECONDS`, rather than wait until it is killed.
"""

import asyncio
from collections.abc import Callable

from dormouse_core import releases, transactions
from dormouse_core.errors import Unavailable
from dormouse_core.keys import Function, Keys
from dormouse_core.limits import LEASE_KEEPALIVE_SECONDS, LEASE_SECONDS
from dormouse_core.seams import Clock, Full, Store, StoreError, Txn
from dormouse_kit import log
from dormouse_proto import state_pb2

RETRY_SECONDS = 0.2
FORSAKEN_SECONDS = 10.0
TRIES = 25


class WorkerRegistration:
    def __init__(
        self, function: Function, store: Store, clock: Clock, *, worker: str, address: str, instance: str, revision: str, keys: Keys
    ) -> None:
        self.function = function
        self.worker = worker
        self.lost = asyncio.Event()
        self.lapsed = False
        self.on_lost: Callable[[], None] = lambda: None
        self.on_renewed: Callable[[int, float], None] = lambda lease, at: None
        """Called with the lease and when its renewal was asked for (monotonic seconds), after each that succeeded."""
        self.on_written: Callable[[str, bytes, int], None] = lambda key, entry, lease: None
        """Called with my entry's key, my entry and its lease, before they are written."""
        self.kept: Callable[[], float] = lambda: 0.0
        """When the lease was last renewed from outside, in my name (monotonic seconds): a step may hold this interpreter for longer."""
        self._store = store
        self._clock = clock
        self._keys = keys
        self._entry = state_pb2.WorkerEntry(
            address=address,
            revision=revision,
            state=state_pb2.WorkerEntry.State.READY,
            instance=instance,
            store_id=function.store_id,
            speaks=releases.SPEAKS,
        )
        self._lease = 0
        self._renewed = 0.0  # when the last successful renewal was *sent*: the lease runs from no earlier than that
        self._leaving = False
        self._task: asyncio.Task[None] | None = None

    def proves(self, calls: bytes) -> None:
        """What my entry is to say, by which gateways know me (`childcalls.shown`). Before `start`."""
        self._entry.calls = calls

    async def start(self) -> None:
        """Registers. Unavailable: the store did not let it; nothing stays behind for longer than the lease. A full store is waited for: it
        heals by itself, and another process of this worker would be refused like this one."""
        error: StoreError | None = None
        attempt = 0
        while attempt < TRIES:
            if error is not None:
                await self._clock.sleep(RETRY_SECONDS)
            attempt += 1
            try:
                if not self._lease:
                    self._renewed = self._clock.monotonic()
                    self._lease = await self._store.grant(LEASE_SECONDS)
                if await self._write(transactions.register(self._keys, self.function, self.worker, self._entry, self._lease)):
                    break
            except StoreError as failure:
                if isinstance(failure, Full):
                    attempt = 0
                    if not isinstance(error, Full):
                        log.warning("the store is full; the worker registers once it has room", worker=self.worker)
                error = failure
                if failure.definite or isinstance(failure, Full):
                    self._lease = 0  # it has ended meanwhile; another copy of the transaction ends with it
        else:
            raise Unavailable(f"the store did not register {self.worker}: {error}") from error
        self.on_renewed(self._lease, self._renewed)
        self._task = asyncio.create_task(self._keep(), name=f"lease of {self.worker}")
        self._task.add_done_callback(self._ended)

    async def _write(self, txn: Txn) -> bool:
        """Whether my entry lies there under my lease. An unknown outcome is settled by reading. Full: it does not."""
        key = self._keys.worker(self.function, self.worker)
        self.on_written(key, self._entry.SerializeToString(), self._lease)
        full: Full | None = None
        try:
            if (await self._store.txn(txn)).succeeded:
                return True
        except StoreError as error:
            if error.definite:
                raise
            full = error if isinstance(error, Full) else None
        _, items = await self._store.get([key])
        if full is not None and (key not in items or items[key].value != self._entry.SerializeToString()):
            raise full
        if key not in items:
            return False
        if items[key].lease != self._lease:
            raise Unavailable(f"the name {self.worker} is taken: a worker's name is new for every process")
        return items[key].value == self._entry.SerializeToString()

    def forsake(self, why: str) -> None:
        """The store has another history (`dormouse_core.histories`): what this worker knows of it, its own entry included, is of one that
        is gone. Its name ends; the next process begins afresh under another."""
        if not self.lost.is_set():
            log.warning("the worker restarts under a new name", worker=self.worker, reason=why)
            self.lapsed = True
            self.lost.set()
            self.on_lost()

    async def drain(self) -> bool:
        """Says that this worker wants no shards and no new callers. Does not return before the store knows, or the lease is lost. False:
        the store has been full for `FORSAKEN_SECONDS`, so nobody knows, and no shard can be handed over."""
        self._leaving = True
        self._entry.state = state_pb2.WorkerEntry.State.DRAINING
        txn = transactions.change(self._keys, self.function, self.worker, self._entry, self._lease)
        began = self._clock.monotonic()
        while not self.lost.is_set():
            try:
                if await self._write(txn):
                    return True
            except Full:
                if self._clock.monotonic() - began > FORSAKEN_SECONDS:
                    log.warning("the store is full; the worker leaves without telling it", worker=self.worker)
                    return False
            except StoreError:
                pass  # asked again: without this entry the leader keeps giving shards to a worker that leaves
            await self._clock.sleep(RETRY_SECONDS)
        return True

    async def close(self) -> None:
        """Revokes the lease, so that nobody waits for it to end. A store that does not answer ends it by itself. Safe to call again."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        lease, self._lease = self._lease, 0
        if lease and not self.lost.is_set():
            try:
                await self._store.revoke(lease)
            except StoreError:
                return

    def _ended(self, task: "asyncio.Task[None]") -> None:
        """The lease has ended, or the loop that keeps it alive has, which comes to the same in 3 s."""
        if not task.cancelled():
            if (error := task.exception()) is not None:
                log.warning("the lease cannot be kept", worker=self.worker, error=repr(error))
            self.lapsed = True
            self.lost.set()
            self.on_lost()

    async def _keep(self) -> None:
        while True:
            sent = self._clock.monotonic()
            try:
                left = await self._store.keep_alive(self._lease)
            except StoreError:
                wait = RETRY_SECONDS
            else:
                if left <= 0:
                    return
                self._renewed = sent
                self.on_renewed(self._lease, sent)
                wait = LEASE_KEEPALIVE_SECONDS
            silence = self._clock.monotonic() - max(self._renewed, self.kept())
            self.lapsed = silence > LEASE_SECONDS
            if self._leaving and silence > FORSAKEN_SECONDS:
                log.warning("the store does not answer; the worker leaves without telling it", worker=self.worker)
                return
            await self._clock.sleep(wait)
