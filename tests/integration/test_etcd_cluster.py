"""Three members: the one in use is frozen, then killed; then the majority is gone."""

import asyncio
import time
from contextlib import aclosing

import pytest
from dormouse_core.seams import Put, Store, StoreError, Txn
from dormouse_kit.clock import SystemClock
from dormouse_kit.election import Election
from dormouse_kit.etcd import EtcdStore
from dormouse_testing.etcd_server import EtcdServer

WITHIN = 15.0  # seconds in which watches and writes move to another member; 2 to 4 on a machine that has nothing else to do


class Follower:
    """A watch that begins again behind what it saw, as every loop of ours does."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.values: list[bytes] = []
        self.breaks = 0

    async def run(self, revision: int) -> None:
        while True:
            try:
                async with aclosing(self.store.watch("/dormouse/cluster/", revision)) as batches:
                    async for batch in batches:
                        self.values.extend(event.item.value for event in batch.events if event.item)
                        revision = batch.revision + 1
            except StoreError:
                self.breaks += 1
                await asyncio.sleep(0.05)


async def keep(store: Store, lease: int) -> None:
    """Each second, as a worker does; returns when the lease has ended."""
    while True:
        try:
            if not await store.keep_alive(lease):
                return
            await asyncio.sleep(1)
        except StoreError:
            await asyncio.sleep(0.05)


async def write(store: Store, value: bytes) -> None:
    """Until it is acknowledged; the value is idempotent."""
    while True:
        try:
            await store.txn(Txn((), (Put("/dormouse/cluster/a", value),)), timeout=1)
        except StoreError:
            await asyncio.sleep(0.05)
        else:
            return


async def test_members_that_stop_answering(etcd_cluster: list[EtcdServer]) -> None:
    store = EtcdStore([member.endpoint for member in etcd_cluster])

    async def used() -> EtcdServer:
        connection = await store._connections.get(WITHIN)
        return next(member for member in etcd_cluster if member.endpoint == connection.endpoint)

    revision = (await store.list("/dormouse/cluster/")).revision
    keeping = asyncio.create_task(keep(store, await store.grant(3)))
    follower = Follower(store)
    following = asyncio.create_task(follower.run(revision + 1))
    try:
        for step, harm in enumerate((EtcdServer.freeze, EtcdServer.kill)):
            await write(store, b"before %d" % step)
            harmed = await used()
            await asyncio.to_thread(harm, harmed)  # it waits for the process: the lease is kept meanwhile
            began = time.monotonic()
            await write(store, b"after %d" % step)
            assert time.monotonic() - began < WITHIN
            while b"after %d" % step not in follower.values:
                assert time.monotonic() - began < WITHIN
                await asyncio.sleep(0.02)
            await asyncio.sleep(max(0.0, began + 4 - time.monotonic()))  # longer than the lease
            assert not keeping.done(), "the lease is kept, also where a new leader of the cluster had to be elected first"
            assert await used() is not harmed
            if harm is EtcdServer.freeze:
                harmed.thaw()
                await asyncio.sleep(1)
        election = Election(store, SystemClock(), "/dormouse/leader", b"me")
        await election.campaign()
        breaks = follower.breaks
        (await used()).kill()
        with pytest.raises(StoreError):
            await store.txn(Txn((), (Put("/dormouse/cluster/a", b"minority"),)), timeout=3)
        with pytest.raises(StoreError):
            await store.get(["/dormouse/cluster/a"], timeout=3)
        async with asyncio.timeout(WITHIN):
            await election.lost.wait()
        assert follower.breaks > breaks, "a watch does not stay with a member that has no leader"
        assert b"minority" not in follower.values
    finally:
        following.cancel()
        keeping.cancel()
        await asyncio.wait({following, keeping})
        await store.close()
