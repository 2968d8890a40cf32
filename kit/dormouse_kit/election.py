"""One leader among several processes: whoever put the leader's key under a lease of its own.

Leading is not a fact about now but a claim that expires: by the time a leader acts, its lease may have ended and another may lead. So
nothing unsafe hangs on `lost`: every write of a leader compares the key's create_revision (`election`, rule *leader-compares*), and the
store refuses the writes of a former one. `lost` is for stopping in time: it is set when the store says that the lease has ended, and also
when by the own clock no keepalive has been confirmed for a lease's length, because a leader cut off from the store must assume that another
leads.
"""

import asyncio
from contextlib import aclosing

from dormouse_core.limits import LEASE_SECONDS
from dormouse_core.seams import Clock, ModIs, Put, Store, StoreError, Txn

from dormouse_kit import log

RETRY = 1.0  # seconds between attempts while the store is away


class Election:
    """One candidate. `campaign` until leading, then wait for `lost`; one object serves one term."""

    def __init__(self, store: Store, clock: Clock, key: str, value: bytes, ttl: int = LEASE_SECONDS) -> None:
        self.store = store
        self.clock = clock
        self.key = key
        self.value = value
        self.ttl = ttl
        self.election = 0  # the key's create_revision: "my election key"; 0: not leading yet
        self.lost = asyncio.Event()
        self._lease = 0
        self._confirmed = 0.0  # when the last confirmed keepalive was *sent*: the lease lasts at least ttl from there
        self._keeping: asyncio.Task[None] | None = None

    @property
    def leading(self) -> bool:
        """By the own clock, too: right after a pause of this process, before `lost` could be set."""
        return self.election != 0 and not self.lost.is_set() and self._left() > 0

    async def campaign(self) -> int:
        """Returns `election` when this candidate leads. Waits as long as another does, or as the store is away."""
        assert self._keeping is None, "one object serves one term"
        while True:
            try:
                if await self._try():
                    break
            except StoreError as error:
                log.warning("could not stand for election; tried again", key=self.key, error=error)
                await self.clock.sleep(RETRY)
        self._keeping = asyncio.create_task(self._keep(), name="election keepalive")
        log.event("leading", key=self.key, election=self.election)
        return self.election

    async def resign(self) -> None:
        """Stops leading, and lets the next lead at once. Never raises for the store: then the lease runs out."""
        self.lost.set()
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait({self._keeping})
        if self._lease:
            try:
                await self.store.revoke(self._lease)
            except StoreError as error:
                log.warning("the store does not answer; the lease of a leader that resigned runs out by itself", key=self.key, error=error)

    async def _try(self) -> bool:
        revision, found = await self.store.get([self.key])
        if self.key in found:
            await self._deleted(revision + 1)
            return False
        sent = self.clock.monotonic()
        lease = await self.store.grant(self.ttl)
        try:
            result = await self.store.txn(Txn((ModIs(self.key, 0),), (Put(self.key, self.value, lease),)))
            won = result.revision if result.succeeded else 0
        except StoreError:
            # Outcome unknown: the key's lease tells whose it is. If it is not ours yet, it never will be, because the revoked lease makes
            # the store refuse what lands late.
            item = (await self.store.get([self.key]))[1].get(self.key)
            won = item.create_revision if item is not None and item.lease == lease else 0
        if not won:
            await self.store.revoke(lease)
            return False
        self._lease, self._confirmed, self.election = lease, sent, won
        return True

    async def _deleted(self, revision: int) -> None:
        """Returns when the key is deleted at or after `revision`."""
        async with aclosing(self.store.watch(self.key, revision)) as batches:
            async for batch in batches:
                if any(event.key == self.key and event.item is None for event in batch.events):
                    return

    async def _keep(self) -> None:
        """Whatever ends the keeping ends the term, an error of our own included."""
        try:
            reason = await self._kept()
            log.warning("no longer leading", key=self.key, election=self.election, reason=reason)
        except Exception as error:
            log.warning("no longer leading", key=self.key, election=self.election, raised=error)
        finally:
            self.lost.set()

    async def _kept(self) -> str:
        """Keeps the lease alive. Returns why it is lost."""
        while (left := self._left()) > 0:
            sent = self.clock.monotonic()
            try:
                alive = await self.store.keep_alive(self._lease, timeout=min(1.0, left))
            except StoreError:
                await self.clock.sleep(min(0.1, max(self._left(), 0.0)))
                continue
            if not alive:
                return "the lease has ended"
            self._confirmed = sent
            await self.clock.sleep(self.ttl / 3)
        return f"no keepalive was confirmed for {self.ttl} s"

    def _left(self) -> float:
        """Seconds that the lease lasts at least."""
        return self._confirmed + self.ttl - self.clock.monotonic()
