"""The driver of the session machine, where something raises that should not, or an event comes while another is dealt with."""

import asyncio
from typing import Any

import pytest
from dormouse_core.errors import Internal
from dormouse_core.seams import Put, Txn
from dormouse_core.sessions.commands import Changed, Tell
from dormouse_core.sessions.groups import Groups
from dormouse_core.sessions.loading import Loader
from dormouse_core.sessions.names import session_key, shard_of
from dormouse_core.sessions.turns import Turns
from dormouse_proto import state_pb2
from dormouse_testing.clock import SimClock
from dormouse_testing.memory_store import MemoryStore
from dormouse_testing.session_worker import SHARDS, Adder, F, K, Worker, error, make, simulated, state_key
from dormouse_worker.sessions import Answer, Failed


def raises(*args: Any) -> Any:
    raise RuntimeError("a bug")


async def ends(w: Worker) -> None:
    """Nothing is left of it that a drain would wait for."""
    await asyncio.wait_for(w.sessions.lost.wait(), 5)
    await asyncio.wait_for(w.sessions.drain(), 5)


@simulated
async def test_a_commit_that_fails_of_a_bug_ends_the_worker_and_no_drain_waits_for_it() -> None:
    with pytest.MonkeyPatch.context() as patch:
        async with Worker(MemoryStore(SimClock())) as w:
            await w.own()
            patch.setattr(Turns, "committed", raises)
            w.submit("a", 1)
            await ends(w)


@simulated
async def test_one_copy_of_a_broken_record_that_fails_of_a_bug_keeps_no_other_from_its_end() -> None:
    real = Groups._preserved
    with pytest.MonkeyPatch.context() as patch:
        async with Worker(MemoryStore(SimClock())) as w:
            await w.own()
            for name in "ab":
                await w.store.txn(Txn((), (Put(state_key(name), b"\x01broken"),)))
            patch.setattr(
                Groups, "_preserved", lambda self, pending, copy: (raises if pending.step.call == 1 else real)(self, pending, copy)
            )
            w.submit("a", 1, start=True)
            other = w.submit("b", 2, start=True)
            await ends(w)
            await asyncio.wait_for(other, 5)


@simulated
async def test_what_fails_at_the_end_of_a_turn_ends_the_worker() -> None:
    with pytest.MonkeyPatch.context() as patch:
        async with Worker(MemoryStore(SimClock())) as w:
            await w.own()
            patch.setattr(Loader, "_send", raises)
            waiting = w.submit("a", 1)
            await ends(w)
            assert (await asyncio.wait_for(waiting, 5)).reply is None, "its caller is told"


@simulated
async def test_what_is_behind_a_command_that_raises_is_done_all_the_same() -> None:
    async with Worker(MemoryStore(SimClock())) as w:
        told: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        w.sessions.on_change = raises
        w.sessions.machine.out += [Changed(), Tell(make("a", 1, 0, told.set_result), Answer(b"1"))]
        with pytest.raises(RuntimeError, match="a bug"):
            w.sessions._act()
        await asyncio.sleep(0)
        assert told.done(), "and without another event"
        w.sessions.on_change = lambda: None


class Keeps(Adder):
    """Runs nothing; `done` of each step is at hand."""

    def run(self, call: Any, states: Any, step: int, start: bool, end: bool, done: Any, deadline: float) -> None:
        self.held.append(lambda: done(Failed(Internal("no"))))


@simulated
async def test_a_shard_that_falls_quiet_while_its_stop_is_reported_is_handed_over() -> None:
    store = MemoryStore(SimClock())
    async with Worker(store, runner=Keeps()) as w, Worker(store.client(), "w-2"):
        await w.own()
        running = w.submit("a", 1)
        await asyncio.sleep(0.02)
        w.sessions.on_change = w.runner.release
        moved = shard_of(session_key("", "a"), SHARDS)
        await store.txn(Txn((), (Put(K.move(F, moved), state_pb2.Move(target="w-2").SerializeToString()),)))
        assert isinstance(error(await running), Internal)
        await asyncio.sleep(1)
        assert w.sessions.report().shards == SHARDS - 1
