"""A former leader that does not know it, and entries of the store that cannot be read: what the leader does, on simulated time."""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import pytest
from dormouse_core import entries
from dormouse_core.seams import Put, Txn, Wanted
from dormouse_operator import writes
from dormouse_operator.leading import Leader
from dormouse_proto import control_pb2, state_pb2
from dormouse_testing.leader_scene import Scene, simulated
from dormouse_testing.leader_world import KEYS

GARBAGE = b"\xff\xff\xff"


@contextmanager
def recorded(leader: Leader, *, obeyed: bool = True) -> Iterator[list[str]]:
    """What this leader orders of its provider and of workers."""
    orders: list[str] = []
    parts, links = leader._parts, leader._links
    apply, send = parts.provider.apply, links.send

    class Provider:
        async def apply(self, wanted: Wanted) -> None:
            orders.append(f"{wanted.count} workers")
            if obeyed:
                await apply(wanted)

        observe = parts.provider.observe

    async def sent(worker: str, order: control_pb2.WorkerOrder) -> bool:
        if order.WhichOneof("order") == "no_taker":
            orders.append(f"no taker for {worker}")
        return await send(worker, order)

    parts.provider, links.send = Provider(), sent  # type: ignore[method-assign, misc]
    yield orders


async def two_leaders(s: Scene) -> tuple[list[str], list[str]]:
    """The second leads, the first goes on as if it did, while the function is scaled up, and down to nothing: nobody takes its shards."""
    await s.awake(2)
    old, old_task = s.leader, s._task
    await s.lead()
    with recorded(old, obeyed=False) as ordered, recorded(s.leader) as by_the_leader:
        await s.scale(3)
        await s.world.until(lambda: len(s.world.living()) >= 3 and s.owned_by(*s.world.living()))
        await s.scale(0)
        await s.world.until(lambda: not s.world.living(), 60)
    assert old_task is not None
    old_task.cancel()
    return ordered, by_the_leader


def test_a_former_leader_orders_nothing_of_providers_and_workers() -> None:
    async def story(s: Scene) -> None:
        ordered, by_the_leader = await two_leaders(s)
        assert ordered == []
        assert by_the_leader

    simulated(story)


def test_negative_control_without_asking_the_store_it_would(monkeypatch: pytest.MonkeyPatch) -> None:
    async def yes(self: writes.Writer) -> bool:
        return True

    monkeypatch.setattr(writes.Writer, "leads", yes)

    async def story(s: Scene) -> None:
        ordered, _ = await two_leaders(s)
        assert ordered

    simulated(story)


async def garble(s: Scene) -> tuple[int, int]:
    """One shard's entry, and another's plan, hold garbage; the leader that follows reads them first thing. The numbers of both."""
    one, other = 3, 5
    function = s.world.living()[0].function
    await s.world.store.txn(Txn((), (Put(KEYS.shard(function, one), GARBAGE), Put(KEYS.move(function, other), GARBAGE))))
    await s.stop_leading()
    await s.lead()
    return one, other


def entry_of(s: Scene, key: str) -> bytes | None:
    item = s.world.store.etcd.item(key)
    return None if item is None else item.value


def story_of(garbled: Callable[[Scene], Awaitable[tuple[int, int]]]) -> Callable[[Scene], Awaitable[None]]:
    async def story(s: Scene) -> None:
        workers = await s.awake(2)
        function = workers[0].function
        before = s.world.store.etcd.item(KEYS.shard(function, 3))
        assert before is not None
        epoch = state_pb2.ShardEntry.FromString(before.value).epoch
        one, other = await garbled(s)
        shard, move = KEYS.shard(function, one), KEYS.move(function, other)
        await s.world.until(lambda: entry_of(s, shard) != GARBAGE and entry_of(s, move) is None, 10.0)
        mended = state_pb2.ShardEntry.FromString(entry_of(s, shard) or b"")
        assert mended.owner in {worker.name for worker in workers}
        assert mended.epoch > epoch, "epochs rise"
        assert s.owned_by(*workers)

    return story


def test_a_shard_entry_and_a_plan_that_cannot_be_read_are_mended() -> None:
    simulated(story_of(garble))


def test_while_they_are_watched_too() -> None:
    async def watched(s: Scene) -> tuple[int, int]:
        function = s.world.living()[0].function
        await s.world.store.txn(Txn((), (Put(KEYS.shard(function, 3), GARBAGE), Put(KEYS.move(function, 5), GARBAGE))))
        return 3, 5

    simulated(story_of(watched))


def test_negative_control_an_entry_that_raises_where_it_is_read_ends_the_leader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entries, "parse", lambda kind, item: kind.FromString(item.value))

    async def story(s: Scene) -> None:
        await s.awake(2)
        await garble(s)
        assert s._task is not None
        assert s._task.done(), "it leads no more, and the next one would end the same way"

    simulated(story)


def test_a_function_whose_entry_cannot_be_read_keeps_its_workers() -> None:
    async def story(s: Scene) -> None:
        await s.awake(2)
        key = KEYS.function("ns", "fn")
        good = entry_of(s, key)
        assert good is not None
        await s.world.store.txn(Txn((), (Put(key, GARBAGE),)))
        await s.stop_leading()
        await s.lead()
        await s.world.clock.sleep(30)
        assert len(s.world.living()) == 2, "an entry that cannot be read does not say that there is no function"
        await s.world.store.txn(Txn((), (Put(key, good),)))
        await s.world.until(lambda: s.phase() == "Ready", 10.0)

    simulated(story)
