"""The faults of the store in memory, on simulated time. That it behaves as etcd does is `tests/integration/test_store.py`'s business."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing

import pytest
from dormouse_core.seams import Compacted, ModIs, Put, StoreError, Txn, WatchBatch
from dormouse_testing import simloop
from dormouse_testing.clock import ManualClock, SimClock
from dormouse_testing.memory_store import FULL, FULL_APPLIED, REFUSED, REPLY_LOST, REQUEST_LOST, Fault, MemoryStore

TXN = Txn((ModIs("a", 0),), (Put("a", b"1"),))


def simulate(main: Callable[[MemoryStore], Awaitable[None]]) -> None:
    async def run() -> None:
        await main(MemoryStore(SimClock()))

    simloop.run(run())


@pytest.mark.parametrize(
    ("fault", "definite", "applied"),
    [
        (REQUEST_LOST, False, False),
        (REPLY_LOST, False, True),
        (REFUSED, True, False),
        (FULL, False, False),
        (FULL_APPLIED, False, True),
        (Fault(reply_delay=6), False, True),
        (Fault(request_delay=6), False, False),
    ],
)
def test_what_the_caller_knows_and_what_happened(fault: Fault, definite: bool, applied: bool) -> None:
    async def main(store: MemoryStore) -> None:
        store.fault("txn", fault)
        with pytest.raises(StoreError) as caught:
            await store.txn(TXN)
        assert caught.value.definite is definite
        assert (store.etcd.item("a") is not None) is applied
        if not applied:
            await asyncio.sleep(2)
            assert (store.etcd.item("a") is not None) is (fault.request_delay == 6), "a late one lands though its caller has gone"

    simulate(main)


def test_a_fault_is_for_as_many_calls_as_it_was_asked_for() -> None:
    async def main(store: MemoryStore) -> None:
        store.fault("get", REQUEST_LOST, times=2)
        for _ in range(2):
            with pytest.raises(StoreError):
                await store.get(["a"])
        assert await store.get(["a"]) == (1, {})
        assert store.calls == {"get": 3}

    simulate(main)


def test_a_cancelled_callers_transaction_still_lands() -> None:
    async def main(store: MemoryStore) -> None:
        store.fault("txn", Fault(request_delay=3))
        sending = asyncio.create_task(store.txn(TXN))
        await asyncio.sleep(1)
        sending.cancel()
        await asyncio.wait({sending})
        await asyncio.sleep(3)
        assert store.etcd.item("a") is not None

    simulate(main)


def test_the_hook_sees_every_request() -> None:
    async def main(store: MemoryStore) -> None:
        seen: list[tuple[str, object]] = []

        def hook(method: str, request: object) -> Fault | None:
            seen.append((method, request))
            return REPLY_LOST if method == "txn" else None

        store.hook = hook
        with pytest.raises(StoreError):
            await store.txn(TXN)
        await store.get(["a"])
        assert seen == [("txn", TXN), ("get", ["a"])]

    simulate(main)


def test_down_is_one_clients_affair_and_breaks_its_watches() -> None:
    async def main(store: MemoryStore) -> None:
        other = store.client()

        async def follow() -> None:
            async with aclosing(other.watch("a", 1)) as batches:
                async for _ in batches:
                    pass

        watching = asyncio.create_task(follow())
        await asyncio.sleep(1)
        other.down = True
        with pytest.raises(StoreError):
            await watching
        with pytest.raises(StoreError):
            await other.txn(TXN)
        assert (await store.txn(TXN)).succeeded
        other.down = False
        assert (await other.get(["a"]))[1]

    simulate(main)


def test_a_delayed_watch_sees_later_and_nothing_is_left_out() -> None:
    async def main(store: MemoryStore) -> None:
        late = store.client()
        late.watch_delay = 2.0
        seen: list[tuple[float, bytes]] = []
        clock = store.clock
        began = clock.monotonic()

        async def follow() -> None:
            async with aclosing(late.watch("a", 1)) as batches:
                async for batch in batches:
                    seen.extend((clock.monotonic() - began, event.item.value) for event in batch.events if event.item)

        watching = asyncio.create_task(follow())
        for value in (b"1", b"2", b"3"):
            await asyncio.sleep(1)
            await store.txn(Txn((), (Put("a", value),)))
        await asyncio.sleep(10)
        assert [value for _, value in seen] == [b"1", b"2", b"3"]
        assert seen[0][0] == pytest.approx(3)
        watching.cancel()
        await asyncio.wait({watching})

    simulate(main)


def test_a_watch_that_fell_behind_a_compaction_says_so() -> None:
    async def main(store: MemoryStore) -> None:
        late = store.client()
        late.watch_delay = 5.0

        async def follow() -> None:
            async with aclosing(late.watch("a", 1)) as batches:
                async for _ in batches:
                    pass

        watching = asyncio.create_task(follow())
        for _ in range(4):
            await asyncio.sleep(1)
            last = (await store.txn(Txn((), (Put("a", b""),)))).revision
        await store.compact(last)
        with pytest.raises(Compacted):
            await watching

    simulate(main)


def test_a_silent_watch_says_that_it_is_alive() -> None:
    async def main(store: MemoryStore) -> None:
        began = store.clock.monotonic()
        async with aclosing(store.watch("a", 1)) as batches:
            assert [await anext(batches) for _ in range(3)] == [WatchBatch(0)] * 3
        assert 9 <= store.clock.monotonic() - began <= 20

    simulate(main)


def test_a_lease_ends_by_the_given_clock_without_anybody_calling() -> None:
    async def main(store: MemoryStore) -> None:
        lease = await store.grant(3)
        await store.txn(Txn((), (Put("a", b"", lease),)))
        async with aclosing(store.watch("a", store.etcd.revision + 1)) as batches:
            began = store.clock.monotonic()
            async for batch in batches:
                if batch.events:
                    break
        assert store.clock.monotonic() - began == pytest.approx(3)

    simulate(main)


async def test_on_a_manual_clock() -> None:
    clock = ManualClock()
    store = MemoryStore(clock)
    lease = await store.grant(3)
    await store.txn(Txn((), (Put("a", b"", lease),)))
    clock.advance(2.9)
    assert await store.keep_alive(lease) == 3
    clock.advance(2.9)
    assert (await store.get(["a"]))[1]
    clock.advance(0.2)
    assert (await store.get(["a"]))[1] == {}
    assert await store.keep_alive(lease) == 0
    await store.close()
