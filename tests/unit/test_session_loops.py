"""The loops of a worker's sessions on a store in memory and simulated time: one behaviour at a time. Histories under faults are in
tests/simulation."""

import asyncio
import re
from typing import Any

import numpy as np
import pytest
from dormouse_core import records, steps
from dormouse_core.errors import (
    Aborted,
    Again,
    Code,
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
)
from dormouse_core.seams import Delete, Put, Txn
from dormouse_core.sessions import groups
from dormouse_core.sessions.names import session_key, shard_of
from dormouse_proto import state_pb2
from dormouse_testing.clock import SimClock
from dormouse_testing.memory_store import FULL, FULL_APPLIED, REFUSED, REPLY_LOST, REQUEST_LOST, Fault, MemoryStore
from dormouse_testing.session_worker import SHARDS, Adder, F, K, Worker, again, error, give, make, simulated, state_key, times
from dormouse_worker.sessions import Ran, SessionSettings, StateInfo, registration

# --------------------------------------------------------------------------------------------------------------------- the hot path


@simulated
async def test_a_session_in_memory_costs_no_read() -> None:
    async with Worker(MemoryStore(SimClock())) as w:
        await w.own()
        assert (await w.call("a", 1)).reply == b"1"
        reads, writes = w.store.calls["get"], w.store.calls["txn"]
        answers = [await w.call("a", 1) for _ in range(5)]
        assert [a.reply for a in answers] == [b"2", b"3", b"4", b"5", b"6"]
        assert [a.step for a in answers] == [2, 3, 4, 5, 6]
        assert (w.store.calls["get"], w.store.calls["txn"]) == (reads, writes + 5)


@simulated
async def test_calls_that_arrive_out_of_the_order_of_their_keys_meet_no_horizon() -> None:
    """Twenty calls in flight to one session, delivered youngest first: each runs, though a record keeps only eight keys."""
    async with Worker(MemoryStore(SimClock())) as w:
        await w.own()
        await w.call("a", 0)
        w.runner.hold = True
        first = w.submit("a", 1)
        await asyncio.sleep(0.01)
        ages = [next(times) for _ in range(20)]
        answers = [w.submit("a", 1, at) for at in reversed(ages)]
        w.runner.hold = False
        w.runner.release()
        await first
        assert [a.error for a in await asyncio.gather(*answers)] == [None] * 20


@simulated
async def test_steps_of_many_sessions_share_reads_and_a_commit() -> None:
    async with Worker(MemoryStore(SimClock())) as w:
        await w.own()
        reads, writes = w.store.calls["get"], w.store.calls["txn"]
        answers = await asyncio.gather(*(w.submit(f"s{n}", n) for n in range(40)))
        assert [a.reply for a in answers] == [b"%d" % n for n in range(40)]
        assert (w.store.calls["get"], w.store.calls["txn"]) == (reads + 1, writes + 1)


@simulated
async def test_a_group_closes_before_it_has_too_many_compares_or_bytes() -> None:
    async with Worker(MemoryStore(SimClock())) as w:
        await w.own()
        sizes: list[tuple[int, int]] = []
        w.store.hook = lambda method, request: (
            sizes.append((len(request.compares), len(request.writes))) if isinstance(request, Txn) else None
        )
        await asyncio.gather(*(w.submit(f"s{n}", 1) for n in range(300)))
        await asyncio.gather(*(w.submit(f"s{n}", 1) for n in range(300)))
        assert sum(writes for _, writes in sizes) == 600
        assert max(compares for compares, _ in sizes) == 120
        sizes.clear()
        w.runner.reply = b"x" * (steps.KEPT_REPLY_BYTES - 10)
        await asyncio.gather(*(w.submit(f"s{n}", 1) for n in range(100)))
        assert len(sizes) == 2, "100 records of 16 KiB are two groups of 1 MiB"


@simulated
async def test_at_most_two_commits_are_in_flight_and_the_rest_gathers() -> None:
    store = MemoryStore(SimClock())
    async with Worker(store) as w:
        await w.own()
        await asyncio.gather(*(w.submit(f"s{n}", 1) for n in range(10)))
        store.hook = lambda method, request: Fault(request_delay=0.05) if method == "txn" else None
        before = store.calls["txn"]
        answers = []
        for n in range(10):
            answers.append(w.submit(f"s{n}", 1))
            await asyncio.sleep(0.001)
        assert store.calls["txn"] == before + groups.IN_FLIGHT
        await asyncio.gather(*answers)
        assert store.calls["txn"] == before + 3


@simulated
async def test_steps_of_one_session_run_one_at_a_time_in_the_order_of_arrival() -> None:
    async with Worker(MemoryStore(SimClock())) as w:
        await w.own()
        w.runner.hold = True
        answers = [w.submit("a", n) for n in (1, 10, 100)]
        for expected in (1, 2, 3):
            await asyncio.sleep(0.1)
            assert len(w.runner.runs) == expected
            report = w.sessions.report()
            assert (report.running, report.queued) == (1, 3 - expected)
            w.runner.release()
        assert [(await a).reply for a in answers] == [b"1", b"11", b"111"]


# ------------------------------------------------------------------------------------------------------------------------ refusals


@simulated
async def test_what_is_not_mine_is_refused_unless_the_caller_knows_better() -> None:
    store = MemoryStore(SimClock())
    store.watch_delay = 5.0
    async with Worker(store) as w:
        assert again(await w.call("a", 1)) is Again.NOT_MINE
        shard = shard_of(session_key("", "a"), SHARDS)
        revision = await give(store, shard, w.name)
        assert again(await w.call("a", 1, rev=revision - 1)) is Again.NOT_MINE, "the watch has not seen it"
        assert (await w.call("a", 1, rev=revision)).reply == b"1", "a newer map: the entry is read"
        reads = store.calls["get"]
        other = next(name for name in "bcdefgh" if shard_of(session_key("", name), SHARDS) != shard)
        for _ in range(3):
            assert again(await w.call(other, 1, rev=revision)) is Again.NOT_MINE
        assert store.calls["get"] == reads + 1, "what was read at that revision is not read again"


@simulated
async def test_a_cancelled_step_is_not_run() -> None:
    async with Worker(MemoryStore(SimClock())) as w:
        await w.own()
        w.runner.hold = True
        first = w.submit("a", 1)
        step = make("a", 10, 0, pytest.fail)
        w.sessions.submit(step)
        w.sessions.cancel(step)
        await asyncio.sleep(0.1)
        w.runner.release()
        assert (await first).reply == b"1"
        await asyncio.sleep(0.1)
        assert len(w.runner.runs) == 1
        assert (w.sessions.report().running, w.sessions.report().queued) == (0, 0)


@simulated
async def test_a_step_whose_deadline_passed_in_the_queue_is_not_run() -> None:
    async with Worker(MemoryStore(SimClock())) as w:
        await w.own()
        w.runner.hold = True
        first = w.submit("a", 1)
        late = w.submit("a", 10, deadline=SimClock().monotonic() + 1)
        await asyncio.sleep(2)
        w.runner.release()
        assert isinstance(error(await late), DeadlineExceeded)
        assert (await first).reply == b"1"
        assert len(w.runner.runs) == 1


class Timed(Adder):
    """`until`: the deadlines with which steps were run, in seconds from then."""

    def __init__(self) -> None:
        super().__init__()
        self.until: list[float] = []

    def run(self, call: Any, states: Any, step: int, start: bool, end: bool, done: Any, deadline: float) -> None:
        self.until.append(deadline - SimClock().monotonic())
        super().run(call, states, step, start, end, done, deadline)


@simulated
async def test_a_step_may_run_for_the_functions_limit_from_its_turn_or_until_its_callers_deadline() -> None:
    runner = Timed()
    async with Worker(MemoryStore(SimClock()), runner=runner, settings=SessionSettings(SHARDS, "v1", ttl=1000.0, step_limit=30.0)) as w:
        await w.own()
        runner.hold = True
        steps = [w.submit("a", 1), w.submit("a", 1), w.submit("b", 1, deadline=SimClock().monotonic() + 10)]
        await asyncio.sleep(5)
        runner.release()
        await asyncio.sleep(1)
        runner.release()
        await asyncio.gather(*steps)
        assert runner.until == pytest.approx([30.0, 10.0, 30.0])


@simulated
async def test_a_runner_that_raises_fails_its_step_and_no_other() -> None:
    class Raises(Adder):
        def run(self, call: Any, *more: Any) -> None:
            if call == 13:
                raise RuntimeError("no")
            super().run(call, *more)

    async with Worker(MemoryStore(SimClock()), runner=Raises()) as w:
        await w.own()
        await w.call("a", 1)
        assert isinstance(error(await w.call("a", 13)), Internal)
        assert (await w.call("a", 1)).reply == b"2"


@simulated
async def test_an_answer_that_cannot_be_given_harms_no_other_session_of_its_group() -> None:
    async with Worker(MemoryStore(SimClock())) as w:
        await w.own()
        gone = make("a", 1, 0, lambda answer: 1 // 0)
        w.sessions.submit(gone)
        assert (await w.call("b", 1)).reply == b"1"
        assert (await w.call("a", 1)).reply == b"2", "it is committed"


@simulated
async def test_a_step_that_fails_leaves_the_state_as_it_was() -> None:
    async with Worker(MemoryStore(SimClock())) as w:
        await w.own()
        await w.call("a", 1)
        assert isinstance(error(await w.call("a", Internal("the handler raised"))), Internal)
        assert (await w.call("a", 1)).reply == b"2"


@simulated
async def test_no_session_without_start_and_ends() -> None:
    async with Worker(MemoryStore(SimClock())) as w:
        await w.own()
        assert "must specify the START flag" in str(error(await w.call("a", 1, create=False)))
        assert w.sessions.report().sessions == 0, "a name that was guessed takes no memory"
        assert (await w.call("a", 1, start=True)).reply == b"1"
        assert (await w.call("a", 2, create=False, end=True)).reply == b"3"
        assert isinstance(error(await w.call("a", 1, create=False)), InvalidArgument)
        assert (await w.call("a", 5, start=True)).reply == b"5"
        assert w.runner.runs[-1][1:] == (1, True)


@simulated
async def test_no_such_session_is_said_only_after_a_read_behind_the_fence() -> None:
    """The memory holds a tombstone; meanwhile another owner has begun the session again, and this worker's watch has not seen it."""
    store = MemoryStore(SimClock())
    store.watch_delay = 60.0
    other_store = store.client()
    async with Worker(store) as w, Worker(other_store, "w-2") as other:
        shard = shard_of(session_key("", "a"), SHARDS)
        revision = await give(store, shard, "w-1")
        await w.call("a", 1, start=True, rev=revision)
        await w.call("a", 1, end=True)
        revision = await give(store, shard, "w-2", 2)
        assert (await other.call("a", 1, start=True, rev=revision)).reply == b"1"
        assert again(await w.call("a", 1, create=False)) is Again.NOT_MINE


# ------------------------------------------------------------------------------------------------------------------ kept replies


@simulated
async def test_a_retry_gets_the_kept_reply_also_from_the_next_owner() -> None:
    store = MemoryStore(SimClock())
    async with Worker(store) as w, Worker(store.client(), "w-2") as other:
        await w.own()
        assert (await w.call("a", 5, 77)).reply == b"5"
        repeated = await w.call("a", 5, 77)
        assert (repeated.reply, repeated.step, repeated.kept) == (b"5", 1, True)
        assert isinstance(error(await w.call("a", 6, 77)), InvalidArgument)
        await other.own()
        assert (await other.call("a", 5, 77)).reply == b"5"
        assert len(w.runner.runs) == 1
        assert not other.runner.runs
        assert w.sessions.report().kept_replies == 1


@simulated
async def test_a_large_reply_is_kept_in_memory_and_gone_with_it() -> None:
    store = MemoryStore(SimClock())
    async with Worker(store) as w, Worker(store.client(), "w-2") as other:
        await w.own()
        w.runner.reply = b"x" * 20_000
        first = await w.call("a", 5, 77)
        assert (await w.call("a", 5, 77)).reply == first.reply
        await other.own()
        gone = await other.call("a", 5, 77)
        assert gone.error is not None
        assert gone.error.code is Code.ALREADY_EXISTS


@simulated
async def test_old_keys_are_refused_when_they_are_no_longer_kept() -> None:
    async with Worker(MemoryStore(SimClock())) as w:
        await w.own()
        for at in range(100, 110):
            await w.call("a", 1, at)
        assert isinstance(error(await w.call("a", 1, 100)), Aborted)
        assert (await w.call("a", 1, 103)).kept


# --------------------------------------------------------------------------------------------------------------- unknown outcomes


@simulated
async def test_a_commit_whose_reply_is_lost_is_acknowledged_after_reading() -> None:
    async with Worker(MemoryStore(SimClock())) as w:
        await w.own()
        w.store.fault("txn", REPLY_LOST)
        assert (await w.call("a", 1)).reply == b"1"
        assert (await w.call("a", 1)).reply == b"2"


@simulated
async def test_a_commit_that_never_arrived_is_sent_again() -> None:
    async with Worker(MemoryStore(SimClock())) as w:
        await w.own()
        w.store.fault("txn", REQUEST_LOST, times=3)
        assert (await w.call("a", 1)).reply == b"1"
        assert len(w.runner.runs) == 1


@simulated
async def test_a_commit_that_lands_late_is_recognised_whichever_copy_lands() -> None:
    async with Worker(MemoryStore(SimClock())) as w:
        await w.own()
        await w.call("a", 1)
        w.store.fault("txn", Fault(request_delay=5.01))
        assert (await w.call("a", 1)).reply == b"2"
        await asyncio.sleep(10)
        assert (await w.call("a", 1)).reply == b"3"


@simulated
async def test_a_group_is_sorted_session_by_session() -> None:
    """One record was written by another: its session is dropped, the others of the group commit."""
    async with Worker(MemoryStore(SimClock())) as w:
        await w.own()
        names = [f"s{n}" for n in range(6)]
        await asyncio.gather(*(w.submit(name, 1) for name in names))
        item = w.store.etcd.item(state_key("s3"))
        assert item is not None
        await w.store.txn(Txn((), (Put(item.key, item.value),)))
        answers = await asyncio.gather(*(w.submit(name, 1) for name in names))
        assert again(answers[3]) is Again.DROPPED
        assert [a.reply for n, a in enumerate(answers) if n != 3] == [b"2"] * 5
        assert (await w.call("s3", 1)).reply == b"2"


@simulated
async def test_a_lost_shard_takes_only_its_sessions_out_of_a_group() -> None:
    store = MemoryStore(SimClock())
    store.watch_delay = 60.0
    async with Worker(store) as w:
        for shard in range(SHARDS):
            revision = await give(store, shard, w.name)
        names = [f"s{n}" for n in range(8)]
        await asyncio.gather(*(w.submit(name, 1, rev=revision) for name in names))
        lost = shard_of(session_key("", "s0"), SHARDS)
        await give(store, lost, "other", 2)
        answers = await asyncio.gather(*(w.submit(name, 1) for name in names))
        for name, answer in zip(names, answers, strict=True):
            if shard_of(session_key("", name), SHARDS) == lost:
                assert again(answer) is Again.DROPPED
            else:
                assert answer.reply == b"2"
        assert w.sessions.report().shards == SHARDS - 1


@simulated
async def test_a_refused_commit_leaves_the_state_as_it_was() -> None:
    async with Worker(MemoryStore(SimClock())) as w:
        await w.own()
        await w.call("a", 1)
        w.store.fault("txn", REFUSED)
        assert again(await w.call("a", 1, 50)) is None
        assert (await w.call("a", 1, 60)).reply == b"2"


@simulated
async def test_what_a_full_store_refuses_is_read_before_anybody_is_told() -> None:
    """etcd applies what was proposed before its quota was reached, and says that it is full."""
    async with Worker(MemoryStore(SimClock())) as w:
        await w.own()
        await w.call("a", 1)
        w.store.fault("txn", FULL)
        refused = await w.call("a", 1, 50)
        assert "the step is not committed: the store is full" in str(refused.error)
        w.store.fault("txn", FULL_APPLIED)
        assert (await w.call("a", 1, 60)).reply == b"2", "it was written, and is acknowledged"
        w.store.fault("txn", REQUEST_LOST)
        w.store.fault("txn", FULL)
        assert "is not known" in str((await w.call("a", 1, 70)).error), "its first copy may land yet"
        assert (await w.call("a", 1, 80)).reply == b"3"


@simulated
async def test_a_floor_that_rose_before_a_session_was_created_stops_it() -> None:
    async with Worker(MemoryStore(SimClock())) as w:
        await w.own()
        w.runner.hold = True
        answer = w.submit("a", 1)
        await asyncio.sleep(0.1)
        floor = state_pb2.Floor(timestamp_us=1 << 50).SerializeToString()
        await w.store.txn(Txn((), (Put(K.floor(F, shard_of(session_key("", "a"), SHARDS)), floor),)))
        w.runner.hold = False
        w.runner.release()
        assert isinstance(error(await answer), Aborted), "it may have been created, ended and removed"
        assert isinstance(error(await w.call("a", 1)), Aborted), "older than the floor now"


@simulated
async def test_a_store_that_is_away_refuses_what_it_cannot_read_and_holds_what_it_cannot_commit() -> None:
    async with Worker(MemoryStore(SimClock())) as w:
        await w.own()
        await w.call("a", 1)
        w.store.down = True
        held = w.submit("a", 1)
        assert again(await w.call("b", 1)) is Again.DROPPED
        await asyncio.sleep(1.5)
        assert not held.done()
        w.store.down = False
        assert (await held).reply == b"2"


# ------------------------------------------------------------------------------------------------------------------------- records


@simulated
async def test_a_broken_record_is_data_loss_and_a_start_puts_it_into_quarantine() -> None:
    async with Worker(MemoryStore(SimClock())) as w:
        await w.own()
        key = state_key("a")
        revision = (await w.store.txn(Txn((), (Put(key, b"\x01broken record"),)))).revision
        for _ in range(2):
            assert isinstance(error(await w.call("a", 1)), DataLoss)
        assert (await w.call("a", 7, start=True)).reply == b"7"
        shard = shard_of(session_key("", "a"), SHARDS)
        kept = w.store.etcd.item(K.quarantine(F, shard, session_key("", "a"), revision))
        assert kept is not None
        assert kept.value == b"\x01broken record"
        assert (await w.call("a", 1)).reply == b"8"


@simulated
async def test_a_record_of_another_state_version_is_left_alone_unless_it_is_accepted() -> None:
    store = MemoryStore(SimClock())
    async with Worker(store) as w:
        await w.own()
        await w.call("a", 1)
    revision = store.etcd.item(state_key("a"))
    newer = Worker(store.client(), "w-2", settings=SessionSettings(SHARDS, "v2"))
    async with newer as w:
        await w.own()
        assert isinstance(error(await w.call("a", 1)), FailedPrecondition)
        assert store.etcd.item(state_key("a")) == revision
    async with Worker(store.client(), "w-3", settings=SessionSettings(SHARDS, "v2", accepts=frozenset({"v1"}))) as w:
        await w.own()
        assert (await w.call("a", 1)).reply == b"2"
        item = store.etcd.item(state_key("a"))
        assert item is not None
        assert records.decode(item.value).body.state_version == "v2"


@simulated
async def test_a_record_over_1_mib_is_refused_after_the_step_and_not_committed() -> None:
    infos = [StateInfo("s", "sum", "sum", "INT64", (-1,), None, np.zeros(1, np.int64))]
    w = Worker(MemoryStore(SimClock()))
    w.sessions.machine.turns._infos = infos
    async with w:
        await w.own()
        await w.call("a", 1)

        def grow(call: Any, states: Any, step: int, start: bool, end: bool, done: Any, deadline: float) -> None:
            done(Ran(b"big", {"sum": np.zeros(size // 8, np.int64)}))

        w.sessions._runner = type("R", (), {"run": staticmethod(grow)})()
        grown = w.sessions._runner
        size = 1_600_000
        assert isinstance(error(await w.call("a", 1)), ResourceExhausted)
        w.sessions._runner = w.runner
        assert (await w.call("a", 1)).reply == b"2"
        w.sessions._runner = grown
        text = str(error(await w.call("a", 1)))
        found = re.fullmatch(r"the session's record would take (\d+) bytes, at most 1048576 are allowed", text)
        assert found is not None, text
        size -= 8 * ((int(found[1]) - 1_048_576) // 8)
        assert isinstance(error(await w.call("a", 1)), ResourceExhausted)
        size -= 8
        assert (await w.call("a", 1)).reply == b"big", "a step that was refused has left no key in the record"


@simulated
async def test_a_step_whose_outcome_cannot_be_written_down_fails_and_the_session_goes_on() -> None:
    async with Worker(MemoryStore(SimClock())) as w:
        await w.own()
        await w.call("a", 1)

        def other(call: Any, states: Any, step: int, start: bool, end: bool, done: Any, deadline: float) -> None:
            done(Ran(b"odd", {"another": np.zeros(1, np.int64)}))

        w.sessions._runner = type("R", (), {"run": staticmethod(other)})()
        assert isinstance(error(await asyncio.wait_for(w.call("a", 1), 10)), Internal)
        w.sessions._runner = w.runner
        assert (await w.call("a", 1)).reply == b"2"


@simulated
async def test_an_idle_session_leaves_memory_and_comes_back() -> None:
    w = Worker(MemoryStore(SimClock()), settings=SessionSettings(SHARDS, "v1", evict_after=5.0))
    async with w:
        await w.own()
        await w.call("a", 1)
        assert (w.sessions.report().sessions, w.sessions.report().state_bytes) == (1, 8)
        await asyncio.sleep(7)
        assert (w.sessions.report().sessions, w.sessions.report().state_bytes) == (0, 0)
        assert (await w.call("a", 1)).reply == b"2"


# -------------------------------------------------------------------------------------------------------------- moves and leaving


async def plan(store: MemoryStore, shard: int, target: str) -> None:
    await store.txn(Txn((), (Put(K.move(F, shard), state_pb2.Move(target=target).SerializeToString()),)))


@simulated
async def test_a_handoff_waits_for_the_running_step_and_refuses_what_waited() -> None:
    store = MemoryStore(SimClock())
    async with Worker(store) as w, Worker(store.client(), "w-2") as other:
        await w.own()
        shard = shard_of(session_key("", "a"), SHARDS)
        w.runner.hold = True
        running = w.submit("a", 1)
        await asyncio.sleep(0.05)
        await plan(store, shard, "w-2")
        await asyncio.sleep(0.03)
        assert [number for number, _ in w.sessions.report().stopped] == [shard], "the step is young: it is waited for"
        waiting = w.submit("a", 10)
        w.runner.release()
        assert (await running).reply == b"1"
        assert again(await waiting) is Again.NOT_MINE
        await asyncio.sleep(0.1)
        assert (await other.call("a", 10)).reply == b"11"
        assert not w.sessions.report().stopped


@simulated
async def test_a_long_step_does_not_stop_the_shard_before_it_ends() -> None:
    store = MemoryStore(SimClock())
    async with Worker(store) as w, Worker(store.client(), "w-2"):
        await w.own()
        shard = shard_of(session_key("", "a"), SHARDS)
        w.runner.hold = True
        running = w.submit("a", 1)
        await asyncio.sleep(0.5)
        await plan(store, shard, "w-2")
        await asyncio.sleep(3)
        assert not w.sessions.report().stopped
        w.runner.release()
        await running
        await asyncio.sleep(0.3)
        assert w.sessions.report().shards == SHARDS - 1


@simulated
async def test_a_handoff_to_a_worker_that_is_gone_leaves_the_owner_serving() -> None:
    store = MemoryStore(SimClock())
    async with Worker(store) as w:
        await w.own()
        for shard in range(SHARDS):
            await plan(store, shard, "nobody")
        await asyncio.sleep(3)
        assert (await w.call("a", 1)).reply == b"1"
        assert w.sessions.report().shards == SHARDS


@simulated
async def test_a_handoff_whose_outcome_is_lost_is_settled_by_reading() -> None:
    store = MemoryStore(SimClock())
    for fault in (REPLY_LOST, REQUEST_LOST):
        async with (
            Worker(store.client(), "w-1" + str(fault.lose_reply)) as w,
            Worker(store.client(), "w-2" + str(fault.lose_reply)) as other,
        ):
            await w.own(0)
            w.store.fault("txn", fault)
            await plan(store, 0, other.name)
            await asyncio.sleep(2)
            assert w.sessions.report().shards == 0
            assert other.sessions.report().shards == 1


@simulated
async def test_a_plan_that_is_taken_back_while_stopped() -> None:
    store = MemoryStore(SimClock())
    async with Worker(store) as w, Worker(store.client(), "w-2"):
        await w.own()
        shard = shard_of(session_key("", "a"), SHARDS)
        w.runner.hold = True
        running = w.submit("a", 1)
        await asyncio.sleep(0.02)
        await plan(store, shard, "w-2")
        await asyncio.sleep(0.05)
        waiting = w.submit("b" if shard_of(session_key("", "b"), SHARDS) == shard else "a", 10)
        assert w.sessions.report().stopped
        await store.txn(Txn((), (Delete(K.move(F, shard)),)))
        await asyncio.sleep(0.05)
        assert not w.sessions.report().stopped
        w.runner.hold = False
        w.runner.release()
        await asyncio.gather(running, waiting)
        assert w.sessions.report().shards == SHARDS


@simulated
async def test_a_plan_that_comes_after_one_was_taken_back_is_followed_though_the_shard_is_never_without_a_step() -> None:
    store = MemoryStore(SimClock())
    async with Worker(store) as w, Worker(store.client(), "w-2"):
        await w.own()
        first, second = [name for name in (f"s{n}" for n in range(40)) if shard_of(session_key("", name), SHARDS) == 0][:2]
        w.runner.hold = True
        old = w.submit(first, 1)
        await asyncio.sleep(0.02)
        await plan(store, 0, "w-2")
        await asyncio.sleep(0.05)
        assert w.sessions.report().stopped
        await store.txn(Txn((), (Delete(K.move(F, 0)),)))
        await asyncio.sleep(0.05)
        await plan(store, 0, "w-2")
        await asyncio.sleep(0.05)
        young = w.submit(second, 1)
        await asyncio.sleep(0.02)
        w.runner.held.pop(0)()
        await old
        await asyncio.sleep(0.05)
        assert w.sessions.report().stopped
        w.runner.release()
        await young
        await asyncio.sleep(0.3)
        assert w.sessions.report().shards == SHARDS - 1


@simulated
async def test_a_drain_hands_over_and_a_drain_without_taker_commits_and_leaves() -> None:
    store = MemoryStore(SimClock())
    async with Worker(store) as w, Worker(store.client(), "w-2") as other:
        await w.own()
        await w.call("a", 1)
        drain = asyncio.create_task(w.sessions.drain())
        await asyncio.sleep(0.1)
        item = store.etcd.item(K.worker(F, "w-1"))
        assert item is not None
        assert state_pb2.WorkerEntry.FromString(item.value).state == state_pb2.WorkerEntry.State.DRAINING
        assert (await w.call("a", 1)).reply == b"2", "served until it is moved"
        for shard in range(SHARDS):
            await plan(store, shard, "w-2")
        await asyncio.wait_for(drain, 5)
        assert (await other.call("a", 1)).reply == b"3"
        other.runner.hold = True
        running, waiting = other.submit("a", 1), other.submit("a", 1)
        await asyncio.sleep(0.1)
        drain = asyncio.create_task(other.sessions.drain())
        other.sessions.no_taker()
        await asyncio.sleep(1)
        assert not drain.done()
        other.runner.release()
        await asyncio.wait_for(drain, 5)
        assert (await running).reply == b"4"
        assert again(await waiting) is Again.DRAINING
        assert again(await other.call("a", 1)) is Again.DRAINING
        assert store.etcd.item(K.worker(F, "w-2")) is None, "as long as it stands, callers come again and again"


@simulated
async def test_a_lease_that_ended_is_lost_for_good_and_its_silence_takes_no_new_steps() -> None:
    store = MemoryStore(SimClock())
    async with Worker(store) as w:
        await w.own()
        await w.call("a", 1)
        store.down = True
        await asyncio.sleep(5)
        assert again(await w.call("a", 1)) is Again.DROPPED
        assert not w.sessions.lost.is_set(), "nobody has said so"
        store.down = False
        await asyncio.sleep(2)
        assert w.sessions.lost.is_set()
        assert w.sessions.report().shards == 0
        assert isinstance(error(await w.call("a", 1)), Unavailable)


@simulated
async def test_a_drain_does_not_wait_for_a_store_that_does_not_come_back() -> None:
    """Asked to leave while the store is away, or before it went; with a step that runs, which is not acknowledged. Others stay."""
    for begun in (False, True):
        store = MemoryStore(SimClock())
        async with Worker(store) as w, Worker(store.client(), "w-2") as stays:
            await w.own()
            await w.call("a", 1)
            w.runner.hold = True
            running = w.submit("a", 1)
            await asyncio.sleep(0.1)
            drain = asyncio.create_task(w.sessions.drain()) if begun else None
            await asyncio.sleep(0.5)
            store.down = stays.store.down = True
            w.runner.release()
            await asyncio.sleep(5)
            drain = drain or asyncio.create_task(w.sessions.drain())
            assert not w.sessions.lost.is_set()
            await asyncio.sleep(registration.FORSAKEN_SECONDS)
            assert w.sessions.lost.is_set()
            assert not running.done() or running.result().error is not None
            await asyncio.sleep(20)
            assert not stays.sessions.lost.is_set()
            drain.cancel()


@simulated
async def test_a_drain_ends_where_the_store_is_full_so_that_nobody_is_told_of_it() -> None:
    """No shard can be handed over either. With a step that runs, which is waited for."""
    store = MemoryStore(SimClock())
    async with Worker(store) as w:
        await w.own()
        await w.call("a", 1)
        store.hook = lambda method, request: FULL if method == "txn" and isinstance(request, Txn) and request.writes else None
        w.runner.hold = True
        running = w.submit("a", 1)
        await asyncio.sleep(0.1)
        drain = asyncio.create_task(w.sessions.drain())
        await asyncio.sleep(registration.FORSAKEN_SECONDS + 1)
        assert not drain.done()
        w.runner.release()
        await asyncio.wait_for(drain, 1)
        assert "the store is full" in str((await running).error)
        assert again(await w.call("a", 1)) is Again.DRAINING


@simulated
async def test_registration_settles_lost_outcomes_and_refuses_a_name_that_is_taken() -> None:
    store = MemoryStore(SimClock())
    store.fault("txn", REPLY_LOST)
    async with Worker(store) as w:
        assert store.etcd.item(K.worker(F, w.name)) is not None
        with pytest.raises(Unavailable, match="taken"):
            await Worker(store.client()).sessions.start()
    assert store.etcd.item(K.worker(F, "w-1")) is None, "the lease is revoked"
    store.fault("txn", REQUEST_LOST, times=2)
    store.fault("grant", REQUEST_LOST)
    async with Worker(store, "w-9"):
        assert store.etcd.item(K.worker(F, "w-9")) is not None


@simulated
async def test_a_compacted_watch_lists_anew() -> None:
    store = MemoryStore(SimClock())
    async with Worker(store) as w:
        await w.own(0)
        store.break_watches()
        await give(store, 1, w.name)
        revision = await give(store, 0, "other", 2)
        await store.compact(revision)
        await asyncio.sleep(1)
        assert {s.number for s in w.sessions.machine.owned()} == {1}
