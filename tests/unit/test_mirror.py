"""A copy of a prefix of the store follows it, also when the store came back without its data and counts from one again."""

import asyncio

from dormouse_core.seams import Put, Txn
from dormouse_operator.mirror import Mirror
from dormouse_testing import simloop
from dormouse_testing.clock import SimClock
from dormouse_testing.memory_etcd import MemoryEtcd
from dormouse_testing.memory_store import MemoryStore


def test_a_store_that_came_back_without_its_data() -> None:
    async def main() -> None:
        clock = SimClock()
        store = MemoryStore(clock)
        for key in ("/f/a", "/f/a", "/f/b"):
            await store.txn(Txn((), (Put(key, b"old"),)))
        mirror = Mirror(store, clock, "/f/", lambda key, before, after: None)
        running = asyncio.create_task(mirror.run())
        await asyncio.sleep(1)
        assert (set(mirror.items), mirror.revision) == ({"/f/a", "/f/b"}, store.etcd.revision)
        store.down = True
        store.etcd = MemoryEtcd(clock)
        store.down = False
        another = MemoryStore(clock, etcd=store.etcd)
        await another.txn(Txn((), (Put("/f/b", b"new"),)))
        await asyncio.sleep(1)
        assert {key: item.value for key, item in mirror.items.items()} == {"/f/b": b"new"}
        assert mirror.revision == store.etcd.revision
        assert store.calls["list"] <= 3, "it does not list again and again"
        await another.txn(Txn((), (Put("/f/c", b"new"),)))
        await asyncio.sleep(1)
        assert set(mirror.items) == {"/f/b", "/f/c"}
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    simloop.run(main())
