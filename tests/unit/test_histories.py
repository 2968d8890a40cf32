"""A store that was restored to an earlier revision is noticed, and a store that is only busy is not."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from dormouse_core.errors import Again, Code
from dormouse_core.histories import History
from dormouse_core.seams import Put, Reply, Rewound, StoreError, Txn
from dormouse_testing import simloop
from dormouse_testing.clock import SimClock
from dormouse_testing.memory_etcd import MemoryEtcd
from dormouse_testing.memory_store import MemoryStore
from dormouse_testing.relaying import RESET, Sent, Sim, good
from dormouse_testing.session_worker import Worker
from hypothesis import given
from hypothesis import strategies as st


def known(revision: int = 90) -> History:
    history = History()
    assert history.answered(7, revision, 0) == ""
    return history


def test_a_lower_revision_and_another_cluster_are_another_history() -> None:
    assert "its revision is 60, before it was 90" in known().answered(7, 60, 90)
    assert "its cluster ID is 8, before it was 7" in known().answered(8, 200, 90)


def test_it_is_said_once() -> None:
    history = known()
    assert history.answered(7, 60, 90)
    assert history.answered(7, 61, history.revision) == ""


def test_answers_that_overtake_each_other_are_no_other_history() -> None:
    history = known(90)
    assert history.answered(7, 95, 90) == ""
    assert history.answered(7, 93, 90) == "", "it was asked before 95 was known"


def test_what_a_watch_showed_is_known_too() -> None:
    history = known(90)
    history.seen(99)
    assert history.answered(7, 95, history.revision)


def test_a_store_that_was_restored_and_written_past_what_is_known_is_noticed_by_a_key() -> None:
    history = known()
    history.wrote("/record", 90)
    assert history.answered(7, 150, history.revision) == "", "its revision tells nothing"
    assert "/record has revision 58, but it was written with 90" in history.found(58, 7, 150)


@pytest.mark.parametrize("mod", [0, 90, 120], ids=["absent", "as written", "written since"])
def test_a_key_that_others_deleted_or_wrote_says_nothing(mod: int) -> None:
    history = known()
    history.wrote("/record", 90)
    assert history.found(mod, 7, 150) == ""


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=30))
def test_in_one_history_nothing_is_ever_said(moves: list[tuple[int, int]]) -> None:
    """Each request is sent when `sent` is known and answered later: at any revision from the present one of its sending on."""
    history, now, waiting = History(), 1, []
    for grows, answers in moves:
        waiting.append((history.revision, now))
        now += grows
        for _ in range(min(answers, len(waiting))):
            sent, _ = waiting.pop()
            assert history.answered(7, now, sent) == ""
        while len(waiting) > 2:
            sent, at_least = waiting.pop(0)
            assert history.answered(7, at_least if at_least >= sent else now, sent) == ""


# ------------------------------------------------------------------------------------------------------------------- a worker's sessions


def restored(body: Callable[[MemoryStore, MemoryEtcd, Worker], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        store = MemoryStore(SimClock())
        async with Worker(store) as worker:
            store.on_rewound = worker.sessions.registration.forsake
            await worker.own()
            await body(store, store.etcd, worker)

    simloop.run(main())


async def restore_under(store: MemoryStore, etcd: MemoryEtcd, worker: Worker) -> None:
    """Three steps, a copy, three steps more under a new fence, and back to the copy."""
    for _ in range(3):
        await worker.call("a", 1)
    files = etcd.copy()
    await worker.own()
    for _ in range(3):
        await worker.call("a", 1)
    await asyncio.sleep(1)
    etcd.restore(files)
    store.break_watches()


def test_a_worker_ends_when_its_store_was_restored() -> None:
    """So that its successor begins afresh; nothing more is answered from what it remembers."""

    async def body(store: MemoryStore, etcd: MemoryEtcd, worker: Worker) -> None:
        await restore_under(store, etcd, worker)
        await asyncio.sleep(2)
        assert worker.sessions.lost.is_set()
        answer = await worker.call("a", 1)
        assert answer.error is not None
        assert getattr(answer.error, "again", None) in (Again.NOT_MINE, Again.DROPPED), "sent to the next owner"

    restored(body)


def test_negative_control_without_it_the_worker_would_serve_on_from_a_history_that_is_gone() -> None:
    async def body(store: MemoryStore, etcd: MemoryEtcd, worker: Worker) -> None:
        store.notices = False
        await restore_under(store, etcd, worker)
        reads = store.calls["get"] + store.calls["list"]
        waiting = worker.submit("a", 1)
        await asyncio.sleep(20)
        assert not worker.sessions.lost.is_set()
        assert not waiting.done() or (await waiting).error is not None, "it does not answer"
        assert store.calls["get"] + store.calls["list"] - reads < 500, "but it does not spin"
        waiting.cancel()

    restored(body)


# -------------------------------------------------------------------------------------------------------------------------- a gateway


def test_a_gateway_follows_a_store_that_was_restored_and_written_since() -> None:
    """Its watch would go on from a revision that the store has again, in another history."""

    async def main() -> None:
        async with Sim().running() as sim:
            stays = await sim.world.function("stays", shards=4)
            await asyncio.sleep(1)
            files = sim.store.etcd.copy()
            await sim.world.function("gone")
            await sim.world.register(stays, None, name="w", address="10.0.0.1:9000")
            await asyncio.sleep(1)
            assert sim.table.labels() == {"default/stays", "default/gone"}
            sim.store.etcd.restore(files)
            writer = MemoryStore(sim.clock, etcd=sim.store.etcd)
            for _ in range(20):
                await writer.txn(Txn((), (Put("/past/what/was/known", b""),)))
            sim.store.break_watches()
            await asyncio.sleep(2)
            assert sim.table.labels() == {"default/stays"}
            function = sim.table.function(stays.label)
            assert function is not None
            assert function.workers == {}

    simloop.run(main())


async def _call(store: MemoryStore) -> str:
    try:
        await store.get(["/a"])
    except Rewound:
        return "rewound"
    except StoreError:
        return "away"
    return ""


def test_the_store_tells_one_caller_and_the_process() -> None:
    async def main() -> None:
        store = MemoryStore(SimClock())
        told: list[str] = []
        store.on_rewound = told.append
        files = store.etcd.copy()
        await store.txn(Txn((), (Put("/a", b"1"),)))
        assert await _call(store) == ""
        store.etcd.restore(files)
        assert [await _call(store) for _ in range(3)] == ["rewound", "", ""]
        assert len(told) == 1

    simloop.run(main())


@pytest.mark.parametrize("noticed", [True, False])
def test_a_held_call_does_not_trust_what_was_read_before(noticed: bool) -> None:
    """False: the negative control. What it read is of a later revision than the map, of a history that is gone."""

    async def main() -> None:
        async with Sim().running() as sim:
            address = "10.0.0.1:9000"
            function = await sim.world.function("steps", shards=8)
            await sim.world.register(function, None, name="w", address=address)
            await sim.world.own(function, "w", list(range(8)))
            await asyncio.sleep(1)
            if noticed:
                sim.store.on_rewound = lambda why: sim.relay._reads.rewound()
            files = sim.store.etcd.copy()
            for _ in range(50):
                await sim.world.store.txn(Txn((), (Put("/others", b""),)))

            async def dies(sent: Sent) -> Reply:
                await sim.world.unregister(function, "w")
                return RESET

            sim.workers.behave[address] = dies
            calling = asyncio.ensure_future(sim.call("steps", 1, timeout=30))
            await asyncio.sleep(2)
            sim.workers.behave[address] = good
            sim.store.etcd.restore(files)
            sim.store.break_watches()
            assert (await calling).code == (Code.OK if noticed else Code.DEADLINE_EXCEEDED)

    simloop.run(main())
