"""Alarms in a worker's sessions: run once, in the session's order, when they are due, whoever owns the shard by then."""

import asyncio
import re
from typing import Any

import msgspec
import numpy as np
import pytest
from dormouse_core import alarms, limits, records, transactions
from dormouse_core.alarms import Cancel, Set
from dormouse_core.autoscaling import Autoscaler, Scaling, Workers
from dormouse_core.clocks import Skew
from dormouse_core.demand import Demand
from dormouse_core.errors import DeadlineExceeded, ResourceExhausted
from dormouse_core.seams import Delete, Put, Txn
from dormouse_core.sessions import groups, ringing, turns
from dormouse_core.sessions.names import session_key, shard_of
from dormouse_proto import control_pb2
from dormouse_testing import alarming
from dormouse_testing.alarming import Alarmed, alarm_key, asks, at, due, worker
from dormouse_testing.clock import SimClock, Trusted
from dormouse_testing.memory_store import MemoryStore
from dormouse_testing.session_worker import SHARDS, SUM, F, K, Worker, error, simulated, state_key
from dormouse_worker.sessions import Failed, SessionSettings, StateInfo

SHORT = SessionSettings(SHARDS, "v1", ttl=5.0, removal_wait=1.0)


async def record(store: MemoryStore, name: str) -> records.Record:
    key = state_key(name)
    return records.decode((await store.get([key]))[1][key].value)


def runner(of: Worker) -> Alarmed:
    found: Any = of.runner
    return found  # type: ignore[no-any-return]


@simulated
async def test_an_alarm_runs_once_when_it_is_due_and_its_entry_goes_with_its_commit() -> None:
    store = MemoryStore(SimClock())
    async with worker(store) as w:
        await w.own()
        began = asyncio.get_running_loop().time()
        assert (await w.call("s", asks(1, Set("later", at(5), b"10")))).reply == b"1"
        assert await due(store, "s") == at(5)
        await asyncio.sleep(4.9)
        assert runner(w).ran == []
        await asyncio.sleep(0.2)
        (alarm,) = runner(w).ran
        assert 5 <= runner(w).at[0] - began < 5.05
        assert await due(store, "s") is None
        left = await record(store, "s")
        assert (left.body.alarms, left.body.step) == ((), 2)
        await asyncio.sleep(50)
        assert runner(w).ran == [alarm]
        assert (await w.call("s", asks(0))).reply == b"11"


@simulated
async def test_an_alarm_is_part_of_its_step_a_step_that_fails_asks_for_nothing() -> None:
    store = MemoryStore(SimClock())
    async with worker(store) as w:
        await w.own()
        await w.call("s", asks(1))
        many = [Set(f"a{n}", at(1), b"1") for n in range(limits.ALARMS + 1)]
        assert isinstance(error(await w.call("s", asks(1, *many))), ResourceExhausted)
        assert await due(store, "s") is None
        await asyncio.sleep(5)
        assert runner(w).ran == []
        assert (await w.call("s", asks(0))).reply == b"1"


@simulated
async def test_alarms_run_in_the_order_in_which_they_are_due_and_among_the_calls_of_their_session() -> None:
    async with worker(MemoryStore(SimClock())) as w:
        await w.own()
        await w.call(
            "s", asks(1, Set("b", at(2), b"20"), Set("a", at(1), b"10"), Set("c", at(1), b"30"), Cancel("c"), Set("b", at(3), b"5"))
        )
        await asyncio.sleep(4)
        assert [number for _, number in runner(w).ran] == [10, 5]
        assert (await w.call("s", asks(0))).reply == b"16"


@simulated
async def test_the_next_owner_runs_what_the_one_before_did_not_also_what_was_due_while_nobody_owned_it() -> None:
    store = MemoryStore(SimClock())
    async with worker(store) as first:
        await first.own()
        await first.call("s", asks(1, Set("a", at(5), b"10"), Set("b", at(500), b"100")))
    await asyncio.sleep(60)
    async with worker(store, "w-2") as second:
        await second.own()
        await asyncio.sleep(0.5)
        assert [number for _, number in runner(second).ran] == [10]
        assert (await second.call("s", asks(0))).reply == b"11"


@simulated
async def test_an_alarm_whose_owner_dies_before_its_commit_runs_again_under_the_same_key() -> None:
    store = MemoryStore(SimClock())
    async with worker(store) as first:
        await first.own()
        await first.call("s", asks(1, Set("a", at(1), b"10")))
        runner(first).stands = True
        await asyncio.sleep(2)
        assert len(runner(first).ran) == 1
    async with worker(store, "w-2") as second:
        await second.own()
        await asyncio.sleep(1)
        assert runner(second).ran == runner(first).ran
        assert (await second.call("s", asks(0))).reply == b"11"


@simulated
async def test_a_session_that_ends_or_begins_again_has_no_alarms_any_more() -> None:
    store = MemoryStore(SimClock())
    async with worker(store) as w:
        await w.own()
        await w.call("ended", asks(1, Set("a", at(5), b"10")))
        await w.call("ended", asks(1), end=True)
        await w.call("again", asks(1, Set("a", at(5), b"10")))
        await w.call("again", asks(7), start=True)
        assert await due(store, "ended") is None
        assert await due(store, "again") is None
        await asyncio.sleep(10)
        assert runner(w).ran == []
        assert (await w.call("again", asks(0))).reply == b"7"


@simulated
async def test_a_step_that_fails_is_tried_again_and_what_the_function_does_not_take_is_kept_and_said() -> None:
    store = MemoryStore(SimClock())
    async with worker(store) as w:
        await w.own()
        runner(w).fails.add("a")
        await w.call("s", asks(1, Set("a", at(1), b"10"), Set("b", at(1), b"wrong")))
        await asyncio.sleep(5)
        assert len(runner(w).ran) == 3, "at once, after 1 s and after 3 s"
        assert len(set(runner(w).ran)) == 1, "under one key"
        left = {alarm.name: alarm for alarm in (await record(store, "s")).body.alarms}
        assert (left["a"].tries, left["a"].error) == (3, "INVALID_ARGUMENT: not this one")
        assert left["b"].error == "INVALID_ARGUMENT: inputs['x'].datatype: 'FP64' found, FP32 is expected"
        assert (await w.call("s", asks(0))).reply == b"1"
        runner(w).fails.clear()
        await asyncio.sleep(10)
        assert [alarm.name for alarm in (await record(store, "s")).body.alarms] == ["b"]
        assert (await w.call("s", asks(0))).reply == b"11"


LARGE = [*SUM, StateInfo("large", "large", "large", "UINT8", (-1,), None, np.zeros(0, np.uint8))]


async def fill(w: Worker, changes: list[Set]) -> int:
    """Sets them with a record as large as it may be; returns its bytes."""
    await w.own()
    runner(w).more = {"large": np.zeros(limits.RECORD_BYTES, np.uint8)}
    text = str(error(await w.call("s", asks(1, *changes))))
    found = re.fullmatch(
        r"the session's record would take (\d+) bytes, at most (\d+) are allowed(?:, with (\d+) kept free for its alarms)?", text
    )
    assert found is not None, text
    size, most, free = int(found[1]), int(found[2]), int(found[3] or 0)
    assert most + free == limits.RECORD_BYTES
    runner(w).more = {"large": np.zeros(limits.RECORD_BYTES - (size - most) + 1, np.uint8)}
    assert isinstance(error(await w.call("s", asks(1, *changes))), ResourceExhausted)
    runner(w).more = {"large": np.zeros(limits.RECORD_BYTES - (size - most), np.uint8)}
    assert (await w.call("s", asks(1, *changes))).reply == b"1"
    return most


@simulated
async def test_a_record_keeps_room_for_what_is_noted_of_its_alarms_whatever_their_errors() -> None:
    store = MemoryStore(SimClock())
    async with worker(store, states=LARGE) as w:
        changes = [Set(f"a{n}", at(5), b"1") for n in range(limits.ALARMS)]
        most = await fill(w, changes)
        assert most == limits.RECORD_BYTES - limits.ALARMS * limits.ALARM_ROOM_BYTES
        runner(w).fails.update(change.name for change in changes)
        runner(w).why = "é" * 5_000
        await asyncio.sleep(10)
        left = (await record(store, "s")).body.alarms
        assert {alarm.tries for alarm in left} == {3}
        assert {alarm.error for alarm in left} > {alarms.NO_ROOM}, "of the rest it is said"
        assert (await w.call("s", asks(0))).reply == b"1", "no caller's step is refused for what was noted"
        runner(w).fails.clear()
        await asyncio.sleep(20)
        assert (await record(store, "s")).body.alarms == ()
        assert (await w.call("s", asks(0))).reply == b"101"


@simulated
async def test_negative_control_without_the_room_an_alarm_is_not_run_which_is_said_and_lets_the_function_sleep() -> None:
    store, monkey = MemoryStore(SimClock()), pytest.MonkeyPatch()
    monkey.setattr(alarms, "room", lambda left: 0)
    monkey.setattr(turns, "ALARM_BLOCKED_SECONDS", 40.0)
    monkey.setattr(ringing, "ALARM_BLOCKED_SECONDS", 40.0)
    try:
        async with worker(store, states=LARGE) as w:
            assert await fill(w, [Set("a", at(5), b"1")]) == limits.RECORD_BYTES
            await asyncio.sleep(10)
            assert runner(w).ran == []
            later = await due(store, "s")
            assert later is not None
            assert at(40 - 10) < later < at(40)
            assert w.sessions.report().alarms == 0
            runner(w).more = {"large": np.zeros(1, np.uint8)}
            assert (await w.call("s", asks(0))).reply == b"1", "its callers go on, and make room"
            await asyncio.sleep(40)
            assert len(runner(w).ran) == 1
    finally:
        monkey.undo()


@simulated
async def test_an_alarm_that_is_given_up_is_kept_and_wakes_nobody() -> None:
    store = MemoryStore(SimClock())
    async with worker(store) as w:
        await w.own()
        runner(w).fails.add("a")
        monkey = pytest.MonkeyPatch()
        monkey.setattr(alarms, "ALARM_TRIES", 3)
        try:
            await w.call("s", asks(1, Set("a", at(1), b"10")))
            await asyncio.sleep(60)
        finally:
            monkey.undo()
        assert len(runner(w).ran) == 3
        (kept,) = (await record(store, "s")).body.alarms
        assert kept.failed
        assert await due(store, "s") is None


@simulated
async def test_one_that_sets_itself_again_at_once_runs_once_a_second() -> None:
    async with worker(MemoryStore(SimClock())) as w:
        await w.own()
        await w.call("s", asks(0, Set("a", at(1), b"1 again")))
        await asyncio.sleep(10.5)
        assert 9 <= len(runner(w).ran) <= 10
        assert len({key for key, _ in runner(w).ran}) == len(runner(w).ran), "each is a step of its own"


@simulated
async def test_a_pending_alarm_keeps_its_session_past_the_ttl_also_while_nobody_runs_it() -> None:
    store = MemoryStore(SimClock())
    async with worker(store, settings=SHORT) as w:
        await w.own()
        await w.call("s", asks(1, Set("a", at(20), b"10")))
        await asyncio.sleep(19)
    await asyncio.sleep(60)
    async with worker(store, "w-2", settings=SHORT) as second:
        await second.own()
        await asyncio.sleep(1)
        assert (await second.call("s", asks(0))).reply == b"11"
        left = (await record(store, "s")).body.expires_us
        assert at(4) < left <= at(5), "from here on it expires like any other"


@simulated
async def test_negative_control_without_the_rule_a_session_is_gone_with_its_alarm() -> None:
    store, monkey = MemoryStore(SimClock()), pytest.MonkeyPatch()
    monkey.setattr(alarms, "onto", lambda body, found: msgspec.structs.replace(body, alarms=found))
    try:
        async with worker(store, settings=SHORT) as w:
            await w.own()
            await w.call("s", asks(1, Set("a", at(20), b"10")))
            await asyncio.sleep(19)
            assert state_key("s") not in (await store.get([state_key("s")]))[1]
    finally:
        monkey.undo()


@simulated
async def test_a_try_is_noted_before_it_runs_and_counted_once() -> None:
    store = MemoryStore(SimClock())
    async with worker(store) as w:
        await w.own()
        await w.call("s", asks(1, Set("a", at(5), b"10")))
    await asyncio.sleep(90)
    async with worker(store, "w-2") as second:
        runner(second).fails.add("a")
        began = at(0)
        await second.own()
        await asyncio.sleep(0.5)
        (kept,) = (await record(store, "s")).body.alarms
        assert began <= kept.time_us < began + 2_000_000
        assert (kept.tries, kept.error) == (1, "INVALID_ARGUMENT: not this one"), "counted once"
        runner(second).fails.clear()
        await asyncio.sleep(5)
        assert len(runner(second).ran) == 2
        assert len({key for key, _ in runner(second).ran}) == 1
        assert (await second.call("s", asks(0))).reply == b"11"


OLD = [*SUM, StateInfo("memory", "memory", "memory", "INT64", (1,), None, np.zeros(1, np.int64))]
"""The states of the revision before: the next one drops `memory`."""


def revision(store: MemoryStore, name: str, version: str = "v1", *, old: bool = False, accepts: str = "v1") -> Worker:
    """It reads `accepts` beside its own version."""
    settings = SessionSettings(SHARDS, version, accepts=frozenset({accepts}), ttl=1000.0)
    return worker(store, name, settings=settings, states=OLD if old else SUM)


async def failed_tries(store: MemoryStore, version: str) -> tuple[records.Record, records.Record]:
    """The record as the old revision left it, and once the next one's tries have failed."""
    async with revision(store, "w-1", old=True) as first:
        runner(first).more = {"memory": np.full(1, 7)}
        await first.own()
        await first.call("s", asks(1, Set("a", at(5), b"10")))
    before = await record(store, "s")
    async with revision(store, "w-2", version) as second:
        runner(second).fails.add("a")
        await second.own()
        await asyncio.sleep(7)
        assert len(runner(second).ran) == 2
    return before, await record(store, "s")


@simulated
async def test_a_try_leaves_the_state_and_its_version_to_the_revision_before() -> None:
    """Also where a revision has other states under the version of the one before."""
    for version in ("v2", "v1"):
        store = MemoryStore(SimClock())
        before, after = await failed_tries(store, version)
        assert after.body.alarms[0].tries == 2
        assert (after.body.state_version, after.tensors) == ("v1", before.tensors)
        async with revision(store, "w-3", old=True) as rolled_back:
            runner(rolled_back).more = {"memory": np.full(1, 7)}
            await rolled_back.own()
            await asyncio.sleep(10)
            assert (await rolled_back.call("s", asks(0))).reply == b"11", "the alarm ran, on the state that it had"
            assert [tensor.name for tensor in (await record(store, "s")).tensors] == ["sum", "memory"]


@simulated
async def test_negative_control_tensors_as_the_next_revision_has_them_cost_the_one_before_its_session() -> None:
    store, monkey = MemoryStore(SimClock()), pytest.MonkeyPatch()
    monkey.setattr(turns.arrays, "unlike", lambda infos, tensors: False)
    try:
        await failed_tries(store, "v1")
    finally:
        monkey.undo()
    async with revision(store, "w-3", old=True) as rolled_back:
        await rolled_back.own()
        assert "the session's record lacks it" in str(error(await rolled_back.call("s", asks(0))))


@simulated
async def test_the_first_step_of_a_revision_that_succeeds_makes_the_record_its_own_and_what_was_read_leaves_memory() -> None:
    store = MemoryStore(SimClock())
    await failed_tries(store, "v2")
    async with revision(store, "w-3", "v2") as w:
        await w.own()
        runner(w).fails.add("a")
        await asyncio.sleep(5)
        memory = w.sessions.machine.turns
        assert memory.tensor_bytes > 0
        counted = memory.memory_bytes
        runner(w).fails.clear()
        await asyncio.sleep(20)
        left = await record(store, "s")
        assert (left.body.state_version, [tensor.name for tensor in left.tensors]) == ("v2", ["sum"])
        assert memory.tensor_bytes == 0
        assert memory.memory_bytes < counted


@simulated
async def test_one_of_which_its_workers_die_is_tried_later_each_time_and_the_function_serves_between() -> None:
    store, tries = MemoryStore(SimClock()), 0
    async with worker(store) as w:
        await w.own()
        await w.call("s", asks(1, Set("a", at(1), b"10")))
        runner(w).stands = True
        await asyncio.sleep(2)
    for n in range(40):
        async with worker(store, f"w-{n + 2}") as w:
            runner(w).stands = True  # it dies of it
            await w.own()
            await asyncio.sleep(2)
            tries += len(runner(w).ran)
            if not runner(w).ran:
                assert (await w.call("s", asks(0))).reply == b"1"
    (kept,) = (await record(store, "s")).body.alarms
    assert kept.tries == tries + 1 <= 8, "the first worker's, and after 1, 2, 4, 8, 16, 32 s"
    assert kept.error == alarms.UNFINISHED


@simulated
async def test_a_session_slept_until_its_alarms_first_try_and_what_is_noted_of_the_alarm_is_no_step() -> None:
    """The time until then is that of the record as it lay there, and that between two tries which find it in memory is no sleep."""
    store = MemoryStore(SimClock())
    async with worker(store) as first:
        await first.own()
        await first.call("s", asks(1, Set("a", at(5), b"10")))
    size, began = len((await store.get([state_key("s")]))[1][state_key("s")].value), (await record(store, "s")).body.usage
    assert began is not None
    await asyncio.sleep(80)
    async with worker(store, "w-2") as second:
        runner(second).fails.add("a")
        await second.own()
        await asyncio.sleep(0.5)
        tried = (await record(store, "s")).body
        assert tried.usage is not None
        slept = tried.alarms[0].time_us - began.since_us
        assert (tried.usage.steps, tried.usage.hibernated_us) == (1, size * slept)
        await asyncio.sleep(2)
        runner(second).fails.clear()
        await asyncio.sleep(5)
        usage = (await record(store, "s")).body.usage
        assert usage is not None
        assert (usage.steps, usage.hibernated_us) == (2, size * slept)
        assert usage.live_us >= size * 2_900_000, "the tries that followed were 1 s and 3 s later"


@simulated
async def test_ten_thousand_alarms_run_once_each() -> None:
    async with worker(MemoryStore(SimClock())) as w:
        await w.own()
        for n in range(1_000):
            await w.call(f"s{n}", asks(0, *(Set(f"a{k}", at(60), b"1") for k in range(10))))
        await asyncio.sleep(80)
        assert len(runner(w).ran) == len({key for key, _ in runner(w).ran}) == 10_000
        assert [(await w.call(f"s{n}", asks(0))).reply for n in (0, 999)] == [b"10", b"10"]


@simulated
async def test_no_more_run_side_by_side_than_the_limit_says() -> None:
    async with worker(MemoryStore(SimClock())) as w:
        await w.own()
        for n in range(2 * limits.ALARMS_TOGETHER):
            await w.call(f"s{n}", asks(0, Set("a", at(60), b"1")))
        runner(w).stands = True
        await asyncio.sleep(70)
        assert len(runner(w).ran) == limits.ALARMS_TOGETHER
        assert (await w.call("another", asks(3))).reply == b"3", "callers' steps run beside them"


class OneAtATime(Alarmed):
    """As `HandlerRunner` with one CPU: steps run one after the other, in the order in which they came; one that comes to its turn after its
    deadline is not run."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: list[tuple[Any, ...]] = []
        self.busy = False
        self.most = 0

    def run(self, *step: Any) -> None:
        self.queue.append(step)
        self.most = max(self.most, len(self.queue))
        self._next()

    def _next(self) -> None:
        loop = asyncio.get_running_loop()
        if self.busy or not self.queue:
            return
        step = self.queue.pop(0)
        if step[6] <= loop.time():
            step[5](Failed(DeadlineExceeded("before the step ran")))
            self._next()
            return
        self.busy = True
        alarm = step[0][2]
        if alarm is not None:
            alarm.began()
        loop.call_later(0.1 if alarm is None else 10.0, self._end, step)

    def _end(self, step: tuple[Any, ...]) -> None:
        self.busy = False
        super().run(*step)
        self._next()


def one_at_a_time(store: MemoryStore) -> Worker:
    w = Worker(store, "w-1", runner=OneAtATime(), settings=SessionSettings(SHARDS, "v1", ttl=1e6, step_limit=60.0))  # type: ignore[arg-type]
    w.sessions.alarmed = alarming.alarmed
    w.sessions.ringer.limit(1)
    return w


@simulated
async def test_a_caller_waits_behind_one_alarm_and_not_behind_all_that_are_due() -> None:
    async with one_at_a_time(MemoryStore(SimClock())) as w:
        await w.own()
        for n in range(30):
            await w.call(f"s{n}", asks(0, Set("a", at(20 - n / 10), b"1")))
        await asyncio.sleep(25)
        began = asyncio.get_running_loop().time()
        assert (await w.call("fresh", asks(1))).reply == b"1"
        assert asyncio.get_running_loop().time() - began <= 20.5, "one that runs, and one that waits"
        found: Any = runner(w)
        assert found.most <= 2


@simulated
async def test_an_alarm_that_waited_for_callers_steps_longer_than_a_step_may_run_is_run_and_counts_no_try() -> None:
    store = MemoryStore(SimClock())
    async with one_at_a_time(store) as w:
        await w.own()
        await w.call("s", asks(0, Set("a", at(2), b"1")))
        found: Any = runner(w)
        found.busy = True  # by callers'
        await asyncio.sleep(90)
        (kept,) = (await record(store, "s")).body.alarms
        assert kept.tries == 1
        found.busy = False
        found._next()
        await asyncio.sleep(11)
        assert len(found.ran) == 1
        assert (await record(store, "s")).body.alarms == ()


@simulated
async def test_an_alarm_that_waits_behind_a_step_of_its_own_session_keeps_no_other_back() -> None:
    async with worker(MemoryStore(SimClock())) as w:
        w.sessions.ringer.limit(1)
        await w.own()
        await w.call("long", asks(0, Set("a", at(1), b"1")))
        for n in range(3):
            await w.call(f"s{n}", asks(0, Set("a", at(2), b"1")))
        real, held = runner(w).run, []
        runner(w).run = lambda *step: held.append(step) if step[0][1] == "held" else real(*step)  # type: ignore[method-assign]
        call = w.submit("long", (1, "held", None))
        await asyncio.sleep(5)
        assert len(runner(w).ran) == 3
        real(1, *held[0][1:])
        assert (await call).reply == b"1"
        await asyncio.sleep(1)
        assert len(runner(w).ran) == 4


@simulated
async def test_what_may_not_begin_now_begins_when_it_may_and_no_look_is_lost() -> None:
    async with worker(MemoryStore(SimClock())) as w:
        ringer, seen = w.sessions.ringer, []
        ringer.on_change = lambda: seen.append(ringer.under_way)
        ringer.admits = lambda: False
        await w.own()
        for n in range(3):
            await w.call(f"s{n}", asks(0, Set("a", at(1), b"1")))
        await asyncio.sleep(5)
        assert (runner(w).ran, ringer.under_way) == ([], 0)
        assert w.sessions.report().alarms == 3, "it is work all the same"
        ringer.admits = lambda: True
        ringer.wake()
        await asyncio.sleep(0.1)
        assert len(runner(w).ran) == 3
        assert (max(seen), ringer.under_way) == (3, 0)


@simulated
async def test_alarms_that_run_or_are_due_bring_up_more_workers_as_calls_do() -> None:
    async with worker(MemoryStore(SimClock())) as w:
        w.sessions.ringer.limit(2)
        await w.own()
        for n in range(100):
            await w.call(f"s{n}", asks(0, Set("a", at(20), b"1")))
        runner(w).stands = True
        await asyncio.sleep(25)
        demand, scaler, out = Demand(0.0), Autoscaler(), None
        for second in range(70):
            found = w.sessions.report()
            assert (found.queued, found.alarms) == (0, 2 + limits.ALARMS_TOGETHER)
            report = control_pb2.WorkerReport(worker="w", in_flight=found.alarms, concurrency_seconds=found.alarm_seconds)
            demand.worker("w", report, float(second))
            out = scaler.decide(Scaling(maximum=10, target=16.0), demand.measure(float(second)), Workers(1), (), float(second))
            await asyncio.sleep(1)
        assert out is not None
        assert out.wanted == 5


@simulated
async def test_nothing_is_due_by_a_clock_that_is_not_known_to_be_right() -> None:
    async with worker(MemoryStore(SimClock()), time=Skew(SimClock(skew=7_200.0))) as w:
        await w.own()
        await w.call("s", asks(1, Set("a", at(60), b"10")))
        await asyncio.sleep(30)
        assert runner(w).ran == []
        assert w.sessions.report().alarms == 1, "by this clock it is due: not known is not none"


@pytest.mark.parametrize("many", [False, True])
def test_an_alarm_waits_for_no_list_and_of_many_only_those_are_listed_whose_shards_are_owned(
    many: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if many:
        monkeypatch.setattr("dormouse_worker.sessions.alarms.AT_ONCE", 2)
    simulated(_while_it_is_listed)(many)


async def _while_it_is_listed(many: bool) -> None:
    store, listed, owned = MemoryStore(SimClock()), [], [0, 2]
    real = store.list

    async def slow(prefix: str, **more: Any) -> Any:
        if "/alarms/" in prefix:
            listed.append(prefix)
            await asyncio.sleep(3)
        return await real(prefix, **more)

    async with worker(store) as w:
        await w.own(*owned)
        await asyncio.sleep(1)
        store.list = slow  # type: ignore[method-assign]
        names = [name for name in map(str, range(40)) if shard_of(session_key("", name), SHARDS) in owned][:10]
        began = asyncio.get_running_loop().time()
        for n, name in enumerate(names):  # while the list of each minute is made
            await w.call(name, asks(1, Set("a", at(57 + n), b"10")))
        await asyncio.sleep(70)
        assert set(listed) == {K.alarms(F)} | ({K.alarms(F, shard) for shard in owned} if many else set())
        late = [found - began - 57 - n for n, found in enumerate(runner(w).at)]
        assert len(late) == 10
        assert max(late) < 0.1


class Off(Trusted):
    """The reference time, as a worker reads it whose own clock is off, or not known to be good yet."""

    def now_us(self) -> None:  # type: ignore[override]
        return None


@simulated
async def test_a_worker_whose_clock_is_not_known_to_be_right_says_that_it_has_work_where_an_alarm_is_due() -> None:
    """Else it is let go, and woken for it again, and again."""
    store = MemoryStore(SimClock())
    async with worker(store) as w:
        await w.own()
        for n in range(3):
            await w.call(f"s{n}", asks(1, Set("a", at(10), b"10")))
    async with worker(store, "w-2", time=Off(SimClock())) as second:
        await second.own()
        await asyncio.sleep(1)
        assert second.sessions.report().alarms == 0, "none is due"
        await asyncio.sleep(20)
        assert second.sessions.report().alarms == 1
        assert runner(second).ran == []


@simulated
async def test_a_key_that_is_wrong_is_put_right_and_one_without_a_record_is_taken_away() -> None:
    store = MemoryStore(SimClock())
    await store.txn(Txn((), (Put(alarm_key("none"), b""),)))
    async with worker(store) as w:
        await w.own()
        await w.call("s", asks(1, Set("a", at(5), b"10")))
    await store.txn(Txn((), (Put(alarm_key("s"), b"\xff"),)))
    async with worker(store, "w-2") as second:
        await second.own()
        await asyncio.sleep(0.5)
        assert await due(store, "none") is None
        assert await due(store, "s") is not None
        await asyncio.sleep(6)
        assert [number for _, number in runner(second).ran] == [10]
        assert session_key("", "none") not in {s for shard in second.sessions.machine.shards for s in shard.sessions}


@simulated
async def test_a_broken_record_keeps_its_alarms_key_and_the_function_asleep_for_a_while() -> None:
    store = MemoryStore(SimClock())
    async with worker(store) as w:
        await w.own()
        await w.call("s", asks(1, Set("a", at(5), b"10")))
    await store.txn(Txn((), (Put(state_key("s"), b"\x02broken!"),)))
    await asyncio.sleep(60)
    async with worker(store, "w-2") as second:
        await second.own()
        await asyncio.sleep(1)
        later = await due(store, "s")
        assert later is not None
        assert later > at(limits.ALARM_BLOCKED_SECONDS - 10)
        assert second.sessions.report().alarms == 0
        await second.call("s", asks(7), start=True)
        assert await due(store, "s") is None, "the session has begun again"


@simulated
async def test_negative_control_an_entry_that_its_commit_leaves_there_runs_again() -> None:
    monkey = pytest.MonkeyPatch()
    real = alarms.after

    def after(body: Any, **more: Any) -> Any:
        rung, found = more["rung"], real(body, **more)
        return found if rung is None else (*found, msgspec.structs.replace(rung, next_us=more["now_us"] + 100_000))

    monkey.setattr(alarms, "after", after)
    try:
        async with worker(MemoryStore(SimClock())) as w:
            await w.own()
            await w.call("s", asks(1, Set("a", at(1), b"10")))
            await asyncio.sleep(1.5)
            assert len(runner(w).ran) > 1
    finally:
        monkey.undo()


@simulated
async def test_negative_control_a_key_that_is_not_in_the_steps_transaction_is_lost_with_its_worker() -> None:
    """The key written after the commit, by whoever lives to do it."""
    store, monkey = MemoryStore(SimClock()), pytest.MonkeyPatch()
    real = groups._transaction

    def without(group: Any) -> Txn:
        found = real(group)
        return Txn(found.compares, tuple(w for w in found.writes if "/alarms/" not in w.key))

    monkey.setattr(groups, "_transaction", without)
    try:
        async with worker(store) as w:
            await w.own()
            await w.call("s", asks(1, Set("a", at(5), b"10")))
    finally:
        monkey.undo()
    async with worker(store, "w-2") as second:
        await second.own()
        await asyncio.sleep(60)
        assert runner(second).ran == [], "nobody knows of it"


@simulated
async def test_a_group_with_alarms_is_no_larger_than_a_transaction_may_be() -> None:
    store = MemoryStore(SimClock())
    async with worker(store) as w:
        await w.own()
        calls = [w.submit(f"s{n}", asks(1, Set("a", at(60), b"10"))) for n in range(400)]
        assert all([(await call).error is None for call in calls])
        sizes = []
        real = store.txn

        async def txn(txn: Txn, timeout: float = 5.0) -> Any:
            sizes.append(len(txn.writes))
            return await real(txn, timeout=timeout)

        store.txn = txn  # type: ignore[method-assign]
        calls = [w.submit(f"s{n}", asks(1, Set("a", at(30), b"10"))) for n in range(400)]
        assert all([(await call).error is None for call in calls])
        assert limits.TXN_OPS - 1 <= max(sizes) <= limits.TXN_OPS


def test_the_key_is_deleted_where_the_last_alarm_goes() -> None:
    assert transactions.due("k", None) == Delete("k")
