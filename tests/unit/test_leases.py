"""A worker's and an agent's lease: how long each is thought to live when it is silent, and how often it says that it does."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import pytest
from dormouse_core.keys import Keys
from dormouse_gateway.leader.leading import GatewayRegistration
from dormouse_proto import state_pb2
from dormouse_testing.clock import SimClock
from dormouse_testing.memory_store import REFUSED, MemoryStore
from dormouse_testing.session_worker import F, K, simulated
from dormouse_worker.sessions import WorkerRegistration

Made = contextlib.AbstractAsyncContextManager[None]
GATEWAYS = Keys("t")


@contextlib.asynccontextmanager
async def worker(store: MemoryStore) -> AsyncIterator[None]:
    made = WorkerRegistration(F, store, SimClock(), worker="w-1", address="a:1", instance="w", revision="r", keys=K)
    await made.start()
    yield
    await made.close()


@contextlib.asynccontextmanager
async def agent(store: MemoryStore) -> AsyncIterator[None]:
    task = asyncio.create_task(GatewayRegistration(store, SimClock(), GATEWAYS, "g", "a:1").run())
    yield
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


each = pytest.mark.parametrize(("who", "key"), [(worker, K.worker(F, "w-1")), (agent, GATEWAYS.gateway("g"))], ids=["worker", "agent"])


@simulated
async def test_a_workers_entry_says_under_which_store_id_it_keeps_sessions() -> None:
    store, adopting = MemoryStore(SimClock()), replace(F, store_id="u1")
    made = WorkerRegistration(adopting, store, SimClock(), worker="w-1", address="a:1", instance="w", revision="r", keys=K)
    await made.start()
    for change in (None, made.drain):
        if change is not None:
            await change()
        item = store.etcd.item(K.worker(F, "w-1"))
        assert item is not None
        assert state_pb2.WorkerEntry.FromString(item.value).store_id == "u1"
    await made.close()


@each
@simulated
async def test_what_is_silent_is_there_for_two_to_three_seconds_more(who: Callable[[MemoryStore], Made], key: str) -> None:
    store = MemoryStore(SimClock())
    async with who(store):
        for _ in range(8):
            await asyncio.sleep(1.25)
            assert store.etcd.item(key) is not None
        store.down = True
        await asyncio.sleep(1.9)
        assert store.etcd.item(key) is not None
        await asyncio.sleep(1.2)
        assert store.etcd.item(key) is None
        store.down = False


@each
@simulated
async def test_two_renewals_of_three_may_be_lost(who: Callable[[MemoryStore], Made], key: str) -> None:
    store = MemoryStore(SimClock())
    async with who(store):
        await asyncio.sleep(0.5)
        before = store.etcd.item(key)
        assert before is not None
        for _ in range(5):
            renewals = store.calls["keep_alive"]
            await asyncio.sleep(5.0)
            assert 4 <= store.calls["keep_alive"] - renewals <= 6, "one a second"
            store.fault("keep_alive", REFUSED, 2)
            await asyncio.sleep(5.0)
        assert store.etcd.item(key) == before
