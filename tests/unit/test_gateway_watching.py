"""The table follows the store through compactions, breaks and partitions."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from dormouse_core.seams import Delete, Item, Put, Txn
from dormouse_kit import listings
from dormouse_testing import simloop
from dormouse_testing.memory_store import MemoryStore
from dormouse_testing.relaying import Sim


def simulate(body: Callable[[Sim], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        async with Sim().running() as sim:
            await body(sim)

    simloop.run(main())


def test_what_happened_while_the_history_was_compacted_is_seen() -> None:
    async def body(sim: Sim) -> None:
        gone = await sim.world.function("gone")
        stays = await sim.world.function("stays", shards=4)
        await sim.world.register(stays, None, name="dead", address="10.0.0.1:9000")
        await asyncio.sleep(1)
        assert sim.table.labels() == {gone.label, stays.label}
        sim.store.down = True
        await sim.world.store.txn(Txn((), (Delete(sim.world.keys.function("default", "gone")),)))
        await sim.world.unregister(stays, "dead")
        for _ in range(100):
            await sim.world.function("new", uid="n")
        await sim.world.store.compact(sim.store.etcd.revision)
        await asyncio.sleep(30)
        sim.store.down = False
        await asyncio.sleep(5)
        assert sim.table.labels() == {stays.label, "default/new"}
        function = sim.table.function(stays.label)
        assert function is not None
        assert function.workers == {}

    simulate(body)


@pytest.mark.parametrize("compacting", [False, True])
def test_a_listing_in_pages_is_one_listing(monkeypatch: pytest.MonkeyPatch, compacting: bool) -> None:
    """Also where its revision is compacted after each page: much is written."""
    whole = listings.whole

    async def paged(store: MemoryStore, prefix: str) -> tuple[int, list[Item]]:
        def compact(method: str, _: object) -> None:
            if compacting and method == "list":
                store.etcd.txn(Txn((), (Put("/another", b""),)))
                store.etcd.compact(store.etcd.revision)

        store.hook = compact
        return await whole(store, prefix, 3)

    monkeypatch.setattr(listings, "whole", paged)

    async def main() -> None:
        sim = Sim()
        for n in range(10):
            function = await sim.world.function(f"f{n}", shards=2)
            await sim.world.register(function, None, name="w", address="10.0.0.1:9000")
            await sim.world.own(function, "w", [0, 1])
        async with sim.running():
            assert sim.table.complete
            assert len(sim.table.labels()) == 10
            for label in sim.table.labels():
                function_ = sim.table.function(label)
                assert function_ is not None
                assert (len(function_.workers), len(function_.shards)) == (1, 2)

    simloop.run(main())


def test_the_table_is_not_complete_before_both_listings() -> None:
    async def main() -> None:
        sim = Sim()
        await sim.world.function("f")
        sim.store.down = True
        async with sim.running():
            await asyncio.sleep(60)
            assert not sim.table.complete
            assert sim.relay.demand.report() == []
            sim.store.down = False
            await asyncio.sleep(5)
            assert sim.table.complete

    simloop.run(main())
