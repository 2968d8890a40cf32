"""Records are removed when their time is over, and not before: by their owner, on a store in memory and simulated time."""

import asyncio
from typing import Any

import pytest
from dormouse_core import lifetimes, records, steps, transactions
from dormouse_core.callkeys import CALLERS
from dormouse_core.errors import Aborted, ResourceExhausted, Unavailable
from dormouse_core.limits import SESSION_OVERHEAD_BYTES
from dormouse_core.seams import Put, Txn
from dormouse_core.sessions.census import Census
from dormouse_core.sessions.memory import Phase
from dormouse_core.sessions.names import session_key, shard_of
from dormouse_proto import control_pb2, state_pb2
from dormouse_testing.clock import SimClock, Trusted
from dormouse_testing.memory_store import REFUSED, REPLY_LOST, REQUEST_LOST, Fault, MemoryStore
from dormouse_testing.session_worker import SHARDS, F, K, give, simulated
from dormouse_testing.timed_worker import TimedWorker, now_us, state_key, stored
from dormouse_worker.sessions import SessionSettings
from dormouse_worker.sessions.removal import Sweeper


def brief(**more: Any) -> SessionSettings:
    return SessionSettings(SHARDS, "v1", **{"ttl": 10.0, "removal_wait": 10.0, "evict_after": 600.0, **more})


def floor(store: MemoryStore, name: str) -> int:
    item = store.etcd.item(K.floor(F, shard_of(session_key("", name), SHARDS)))
    return 0 if item is None else state_pb2.Floor.FromString(item.value).timestamp_us


@pytest.mark.parametrize("evict_after", [600.0, 1.0], ids=["in memory", "only stored"])
def test_ended_and_expired_sessions_are_removed_after_their_time_and_not_before(evict_after: float) -> None:
    @simulated
    async def play() -> None:
        store = MemoryStore(SimClock())
        async with TimedWorker(store, settings=brief(evict_after=evict_after)) as w:
            await w.own()
            for n in range(20):
                await w.call(f"ended{n}", 1, start=True)
                await w.call(f"ended{n}", 1, end=True)
                await w.call(f"idle{n}", 1, start=True)
            began = now_us()
            await asyncio.sleep(9.0)
            assert len(stored(store)) == 40
            await asyncio.sleep(6.0)
            assert sorted(stored(store)) == sorted(state_key(f"idle{n}") for n in range(20)), "ended: 10 s after their end"
            await asyncio.sleep(3.0)
            assert len(stored(store)) == 20, "10 s after they expired, not after their last step"
            await asyncio.sleep(7.0)
            assert not stored(store)
            report = w.sessions.report()
            assert (report.sessions, report.stored_sessions, report.hibernated_bytes, report.removed) == (0, 0, 0, 40)
            late = await w.call("ended0", 1, at=began - 5_000_000)
            assert isinstance(late.error, Aborted), "a copy that is older than what was removed"
            assert (await w.call("ended0", 7)).reply == b"7"

    play()


@simulated
async def test_a_session_that_is_stepped_is_never_removed() -> None:
    store = MemoryStore(SimClock())
    async with TimedWorker(store, settings=brief(ttl=3.0, removal_wait=1.0, evict_after=1.0)) as w:
        await w.own()
        for n in range(30):
            assert (await w.call("a", 1)).reply == b"%d" % (n + 1)
            await asyncio.sleep(2.0)


@simulated
async def test_a_record_is_not_removed_while_its_step_runs() -> None:
    store = MemoryStore(SimClock())
    async with TimedWorker(store, settings=brief(ttl=2.0, removal_wait=1.0, step_limit=60.0)) as w:
        await w.own()
        await w.call("a", 1, start=True)
        await asyncio.sleep(2.5)
        w.runner.hold = True
        begins_anew = w.submit("a", 5)
        await asyncio.sleep(20.0)
        assert state_key("a") in stored(store)
        w.runner.hold = False
        w.runner.release()
        assert (await begins_anew).reply == b"5"


def test_negative_control_a_removal_that_does_not_look_at_running_steps_has_them_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sweeper, "_is_free", lambda self, session, mod: True)

    @simulated
    async def play() -> None:
        store = MemoryStore(SimClock())
        async with TimedWorker(store, settings=brief(ttl=2.0, removal_wait=1.0)) as w:
            await w.own()
            await w.call("a", 1, start=True)
            await asyncio.sleep(2.5)
            w.runner.hold = True
            begins_anew = w.submit("a", 5)
            await asyncio.sleep(20.0)
            w.runner.hold = False
            w.runner.release()
            assert isinstance((await begins_anew).error, Unavailable)

    play()


def begun_beside_a_key_from_ahead() -> list[int]:
    """When sessions of a shard were refused in which a session was ended under a caller's key from 30 s ahead, in seconds after its end."""
    refused = []

    @simulated
    async def play() -> None:
        async with TimedWorker(MemoryStore(SimClock()), settings=SessionSettings(1, "v1", ttl=600.0, removal_wait=2.0)) as w:
            await give(w.store, 0, w.name)
            await asyncio.sleep(0.5)
            await w.call("ahead", 1, at=now_us() + 30_000_000, start=True, end=True, call_id="c-own", by=(CALLERS, now_us()))
            for second in range(40):
                if (await w.call(f"s{second}", 1, start=True)).error is not None:
                    refused.append(second)
                await asyncio.sleep(1.0)
            assert w.sessions.report().removed == 1

    play()
    return refused


def test_the_removal_of_a_key_from_ahead_refuses_nobody_in_its_shard() -> None:
    """It raises the floor to the newest timestamp, so it waits until that is past."""
    assert begun_beside_a_key_from_ahead() == []


def test_negative_control_counted_from_the_end_alone_it_would(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifetimes, "due_us", lambda glance, wait_us: glance.expires_us + wait_us)
    assert len(begun_beside_a_key_from_ahead()) > 20


def crowd(removals: list[int]) -> None:
    @simulated
    async def play() -> None:
        store = MemoryStore(SimClock())
        store.hook = lambda method, request: Fault(request_delay=0.02, reply_delay=0.02) if method == "txn" else None
        async with TimedWorker(store, settings=SessionSettings(1, "v1", ttl=3.0, removal_wait=0.5)) as w:
            await give(store, 0, w.name)
            await asyncio.sleep(0.5)
            answers = []
            for n in range(600):
                answers.append(w.submit(f"s{n}", 1, start=True, end=True))
                await asyncio.sleep(0.02)
            refused = [answer.error for answer in await asyncio.gather(*answers) if answer.error is not None]
            removals.append(w.sessions.report().removed)
            assert not refused, (len(refused), refused[0])

    play()


def test_sessions_that_begin_while_others_of_their_shard_are_removed_are_not_refused() -> None:
    removals: list[int] = []
    crowd(removals)
    assert removals[0] > 300


def test_negative_control_without_their_wait_for_the_removal_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    async def at_once(self: Sweeper, shards: Any) -> None:
        for shard in shards:
            shard.removing = False

    monkeypatch.setattr(Sweeper, "_created", at_once)
    with pytest.raises(AssertionError, match="written by another"):
        crowd([])


@simulated
async def test_a_session_that_begins_again_at_the_moment_of_its_removal_begins_once() -> None:
    store = MemoryStore(SimClock())
    store.hook = lambda method, request: Fault(request_delay=0.02, reply_delay=0.02) if method == "txn" else None
    async with TimedWorker(store, settings=SessionSettings(1, "v1", ttl=3.0, removal_wait=0.5)) as w:
        await give(store, 0, w.name)
        await asyncio.sleep(0.5)
        again = 0

        async def whole(n: int) -> None:
            """One life of one of 67 sessions, by a caller that sends again, as gateways do, where it is told that nothing was committed."""
            nonlocal again
            at = now_us()
            while True:
                answer = await w.submit(f"s{n % 67}", 7, at=at, call_id=f"g-x-{n}", start=True, end=True)
                if not isinstance(answer.error, Unavailable) or not answer.error.again:
                    break
                again += 1
                await asyncio.sleep(0.002)
            assert answer.error is None, answer.error
            assert (answer.reply, answer.kept) == (b"7", False)

        lives = []
        for n in range(600):
            lives.append(asyncio.create_task(whole(n)))
            await asyncio.sleep(0.02 + 0.0001 * (n % 37))
        await asyncio.gather(*lives)
        assert w.sessions.report().removed > 100
        await asyncio.sleep(5.0)
        assert not stored(store)


@simulated
async def test_removals_whose_outcome_is_lost_or_refused_are_looked_at_again() -> None:
    store = MemoryStore(SimClock())
    async with TimedWorker(store, settings=brief(removal_wait=1.0)) as w:
        await w.own()
        for fault in (REPLY_LOST, REQUEST_LOST, REFUSED):
            for n in range(40):
                await w.call(f"s{n}", 1, start=True, end=True)
            store.fault("txn", fault)
            await asyncio.sleep(20.0)
            assert not stored(store)
            assert (w.sessions.report().stored_sessions, w.sessions.census.total.records) == (0, 0)
            assert (await w.call("s0", 3, start=True, end=True)).reply == b"3"


def latest(latency: float) -> float:
    """Seconds after it was due at which the last of 300 records in 64 shards is gone, if each request to the store takes `latency` seconds
    meanwhile."""
    seconds: list[float] = []

    @simulated
    async def play() -> None:
        store = MemoryStore(SimClock())
        async with TimedWorker(store, settings=SessionSettings(64, "v1", ttl=60.0, removal_wait=10.0)) as w:
            for shard in range(64):
                await give(store, shard, w.name)
            await asyncio.sleep(1.0)
            for n in range(300):
                assert (await w.call(f"s{n}", 1, start=True, end=True)).error is None
            ended = now_us()
            store.hook = lambda method, request: Fault(request_delay=latency / 2, reply_delay=latency / 2)
            while stored(store):  # noqa: ASYNC110
                await asyncio.sleep(0.1)
            seconds.append((now_us() - ended) / 1e6 - 10.0)

    play()
    return seconds[0]


def test_with_a_slow_store_records_are_removed_a_few_requests_late_however_many_shards_they_are_in() -> None:
    assert latest(0.5) < 2.5 + 8.0, "the step, and at most two rounds of some requests"


def test_negative_control_with_a_transaction_for_each_shard_they_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    real = lifetimes.waves

    def apart(due: Any, *more: Any) -> Any:
        return [wave for shard, one in due.items() for wave in real({shard: one}, *more)]

    monkeypatch.setattr(lifetimes, "waves", apart)
    assert latest(0.5) > 25.0


@simulated
async def test_what_has_changed_in_one_shard_keeps_no_records_of_another() -> None:
    store = MemoryStore(SimClock())
    async with TimedWorker(store, settings=brief(removal_wait=1.0)) as w:
        await w.own()
        for n in range(40):
            await w.call(f"s{n}", 1, start=True, end=True)
        w.store.watch_delay = 1000.0
        w.store.break_watches()
        moved = shard_of(session_key("", "s0"), SHARDS)
        await give(store, moved, "another")
        await asyncio.sleep(3.0)
        assert {key for key in stored(store) if not key.startswith(K.states(F, moved))} == set()
        assert state_key("s0") in stored(store)


@simulated
async def test_a_stale_owner_removes_nothing() -> None:
    store = MemoryStore(SimClock())
    async with TimedWorker(store, settings=brief(removal_wait=1.0)) as w:
        await w.own()
        await w.call("a", 1, start=True)
        w.store.watch_delay = 1000.0
        w.store.break_watches()
        await give(store, shard_of(session_key("", "a"), SHARDS), "another")
        await asyncio.sleep(60.0)
        assert state_key("a") in stored(store)


@simulated
async def test_a_floor_that_cannot_be_read_stops_nobody() -> None:
    store = MemoryStore(SimClock())
    async with TimedWorker(store, settings=brief(removal_wait=1.0)) as w:
        await w.own()
        await w.call("a", 1, start=True, end=True)
        shard = shard_of(session_key("", "a"), SHARDS)
        await store.txn(Txn((), (Put(K.floor(F, shard), b"\xff\xff"),)))
        await asyncio.sleep(10.0)
        assert not stored(store)
        assert now_us() < floor(store, "a") < now_us() + 60_000_000, "it may have been as high as a key can be ahead"
        assert isinstance((await w.call("a", 1)).error, Aborted)
        await asyncio.sleep(60.0)
        assert (await w.call("a", 1)).reply == b"1"


@simulated
async def test_broken_records_stay_and_their_copies_go_with_the_session_that_replaced_them() -> None:
    store = MemoryStore(SimClock())
    async with TimedWorker(store, settings=brief(removal_wait=1.0, evict_after=1.0)) as w:
        await w.own()
        for name in ("a", "b"):
            await store.txn(Txn((), (Put(state_key(name), b"\x01garbage"),)))
        assert (await w.call("a", 1, start=True)).reply == b"1"
        copies = lambda: store.etcd.range(K.data(F) + "quarantine/").items  # noqa: E731
        assert len(copies()) == 1
        await asyncio.sleep(60.0)
        assert list(stored(store)) == [state_key("b")]
        assert not copies()


async def ended_after_eight_replies(store: MemoryStore) -> None:
    async with TimedWorker(store, settings=brief(ttl=1000.0, removal_wait=1000.0)) as w:
        await w.own()
        w.runner.reply = b"." * 1900
        for i in range(8):
            await w.call("a", 1, start=i == 0, end=i == 7)


def test_negative_control_with_all_its_replies_a_tombstone_is_eight_times_as_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "slim", lambda kept, but=None: tuple(kept))

    @simulated
    async def play() -> None:
        store = MemoryStore(SimClock())
        await ended_after_eight_replies(store)
        assert len(stored(store)[state_key("a")].value) > 8 * 1900

    play()


@simulated
async def test_a_tombstone_is_slim() -> None:
    store = MemoryStore(SimClock())
    async with TimedWorker(store, settings=brief(ttl=1000.0, removal_wait=1000.0)) as w:
        await w.own()
        w.runner.reply = b"." * 1900
        for i in range(8):
            last = now_us() + i
            await w.call("a", 1, at=last, start=i == 0, end=i == 7)
        record = records.decode(stored(store)[state_key("a")].value)
        assert record.body.tombstone
        assert not record.tensors
        assert [kept.reply is not None for kept in record.body.kept] == [False] * 7 + [True]
        assert len(stored(store)[state_key("a")].value) < 1900 + 8 * 100
        again = await w.call("a", 1, at=last, end=True, call_id=f"g-w-1-{w.calls}")
        assert again.kept
        assert again.reply == b"8" + w.runner.reply


# ------------------------------------------------------------------------------------------------------------------------- limits


@simulated
async def test_beyond_max_count_a_session_is_refused_and_no_other_harmed() -> None:
    store = MemoryStore(SimClock())
    async with TimedWorker(store, settings=brief(ttl=30.0, max_count=3)) as w:
        await w.own()
        answers = await asyncio.gather(*(w.call(f"s{n}", 1, start=True) for n in range(10)))
        refused = [a.error for a in answers if a.error is not None]
        assert len(refused) == 7, "also those that begin at the same moment"
        assert isinstance(refused[0], ResourceExhausted)
        assert str(refused[0]) == "spec.sessions.maxCount: 3 sessions found, at most 3 are allowed"
        (live,) = {n for n in range(10) if answers[n].error is None and n < 1} or {0}
        assert (await w.call(f"s{live}", 1)).reply == b"2"
        assert (await w.call(f"s{live}", 1, start=True)).reply == b"1", "one that lives may begin again"
        assert (await w.call(f"s{live}", 1, end=True)).error is None
        assert (await w.call("later", 1, start=True)).error is None, "an ended one does not count"
        await asyncio.sleep(30.3)
        assert len(stored(store)) >= 3
        assert (await w.call("much later", 1, start=True)).error is None, "nor one that has expired and is not removed yet"


class Vouched(Trusted):
    """A clock that is good only while somebody says so."""

    good = True

    def now_us(self) -> int | None:
        return super().now_us() if self.good else None


@pytest.mark.parametrize("limits", [{"max_count": 3}, {"max_bytes": 400}])
def test_a_place_that_may_be_free_is_waited_for_until_the_time_is_known(limits: dict[str, int]) -> None:
    """A leader that begins says no time for 3 s, and nothing expires until then: new sessions were refused for those that had expired."""

    @simulated
    async def play() -> None:
        time = Vouched(SimClock())
        async with TimedWorker(MemoryStore(SimClock()), settings=brief(ttl=10.0, removal_wait=100.0, **limits), time=time) as w:
            await w.own()
            errors = [(await w.call(f"s{n}", 1, start=True)).error for n in range(9)]
            assert (errors[0], type(errors[-1])) == (None, ResourceExhausted)
            time.good = False
            await asyncio.sleep(5.0)
            assert isinstance((await w.call("new", 1, start=True)).error, ResourceExhausted), "whatever the time is"
            await asyncio.sleep(5.3)
            error = (await w.call("new", 1, start=True)).error
            assert isinstance(error, Unavailable)
            assert error.again == "counting"
            time.good = True
            assert (await w.call("new", 1, start=True)).error is None

    play()


@pytest.mark.parametrize("limits", [{"max_count": 3}, {"max_bytes": 400}, {}])
def test_negative_control_without_asking_sessions_begin_beyond_every_limit(monkeypatch: pytest.MonkeyPatch, limits: dict[str, int]) -> None:
    monkeypatch.setattr(Census, "refusal", lambda *_: None)

    @simulated
    async def play() -> None:
        store = MemoryStore(SimClock())
        async with TimedWorker(store, settings=brief(ttl=1000.0, **limits)) as w:
            await w.own()
            w.sessions.hear(control_pb2.WorkerOrder.Limits(store_used=0.99))
            for n in range(10):
                assert (await w.call(f"s{n}", 1, start=True)).error is None

    play()


@simulated
async def test_counts_survive_restarts_and_moves() -> None:
    store = MemoryStore(SimClock())
    async with TimedWorker(store, settings=brief(ttl=1000.0, max_count=3)) as w:
        await w.own()
        for n in range(3):
            await w.call(f"s{n}", 1, start=True)
    async with TimedWorker(store, "w-2", settings=brief(ttl=1000.0, max_count=3)) as w:
        answer = None
        for shard in range(SHARDS):
            await give(store, shard, w.name)
        while answer is None or (isinstance(answer.error, Unavailable) and answer.error.again == "counting"):
            answer = await w.call("fourth", 1, start=True)
            await asyncio.sleep(0.001)
        assert isinstance(answer.error, ResourceExhausted), "also before everything is counted"
        await asyncio.sleep(1.0)
        assert isinstance((await w.call("fourth", 1, start=True)).error, ResourceExhausted)
        assert (await w.call("s1", 1)).reply == b"2"
        assert (w.sessions.report().stored_sessions, w.sessions.report().counted) == (3, True)


@simulated
async def test_what_the_store_holds_at_most_is_asked_again_where_that_failed_and_the_shard_has_gone() -> None:
    store = MemoryStore(SimClock())
    async with TimedWorker(store, settings=brief(ttl=1000.0)) as w:
        await w.own(0)
        await asyncio.sleep(0.5)
        store.fault("list", REFUSED)
        await give(store, 1, w.name)
        await asyncio.sleep(0.1)
        assert w.sessions.census.ceiling is None, "its read failed"
        await give(store, 1, "w-2", 2)
        await asyncio.sleep(2.0)
        assert w.sessions.census.ceiling == 0
        name = next(f"s{n}" for n in range(100) if shard_of(session_key("", f"s{n}"), SHARDS) == 0)
        assert (await w.call(name, 1, start=True)).error is None, "though nobody has said what others have"


@simulated
async def test_sessions_that_come_with_their_shards_are_not_counted_as_others_too() -> None:
    store = MemoryStore(SimClock())
    names = {shard: next(f"s{n}" for n in range(1000) if shard_of(session_key("", f"s{n}"), SHARDS) == shard) for shard in range(SHARDS)}
    mine, theirs = list(range(SHARDS // 2)), list(range(SHARDS // 2, SHARDS))
    settings = brief(ttl=1000.0, max_count=SHARDS + 1, max_bytes=1_000_000)
    async with TimedWorker(store, "w-2", settings=settings) as other:
        await other.own(*theirs)
        other.sessions.hear(control_pb2.WorkerOrder.Limits())
        for shard in theirs:
            await other.call(names[shard], 1, start=True)
    async with TimedWorker(store, settings=settings) as w:
        await w.own(*mine)
        w.sessions.hear(control_pb2.WorkerOrder.Limits(others_sessions=len(theirs), others_bytes=1000))
        for shard in mine:
            await w.call(names[shard], 1, start=True)
        w.sessions.hear(control_pb2.WorkerOrder.Limits(others_sessions=len(theirs), others_bytes=1000))
        for shard in theirs:
            await give(store, shard, w.name)
        await asyncio.sleep(0.5)
        assert w.sessions.report().stored_sessions == SHARDS
        assert (await w.call("one more", 1, start=True)).error is None
        w.sessions.hear(control_pb2.WorkerOrder.Limits(others_sessions=0))
        assert isinstance((await w.call("too many", 1, start=True)).error, ResourceExhausted)


@pytest.mark.parametrize("told", [True, False])
def test_after_a_wake_a_worker_of_several_waits_until_it_knows_of_the_others(told: bool) -> None:
    """Each of two counted its own half of as many as are allowed, had not heard of the other's, and took more. `told` False: as it was."""

    @simulated
    async def play() -> None:
        store = MemoryStore(SimClock())
        mine, theirs = list(range(SHARDS // 2)), list(range(SHARDS // 2, SHARDS))
        settings = brief(ttl=1000.0, max_count=4)
        async with TimedWorker(store, settings=settings) as w:
            await w.own()
            for n in range(4):
                assert (await w.call(f"s{n}", 1, start=True)).error is None
        async with TimedWorker(store, "w-2", settings=settings) as w:
            await w.own(*mine)
            name = next(f"new{n}" for n in range(1000) if shard_of(session_key("", f"new{n}"), SHARDS) in mine)
            w.sessions.hear(control_pb2.WorkerOrder.Limits(others_unknown=told))
            await asyncio.sleep(1.0)
            here = w.sessions.report().stored_sessions
            assert (here, w.sessions.report().counted) == (here, True)
            assert 0 < here < 4
            error = (await w.call(name, 1, start=True)).error
            if not told:
                assert error is None
                return
            assert isinstance(error, Unavailable)
            assert error.again == "counting"
            w.sessions.hear(control_pb2.WorkerOrder.Limits(others_sessions=4 - here))
            w.sessions.hear(control_pb2.WorkerOrder.Limits(others_unknown=True))
            assert isinstance((await w.call(name, 1, start=True)).error, ResourceExhausted), "what was known stays so"
            for shard in theirs:
                await give(store, shard, w.name)
            await asyncio.sleep(1.0)
            w.sessions.hear(control_pb2.WorkerOrder.Limits(others_sessions=7))
            assert str((await w.call(name, 1, start=True)).error).startswith("spec.sessions.maxCount: 4 sessions found"), "all are its own"

    play()


@simulated
async def test_max_bytes() -> None:
    store = MemoryStore(SimClock())
    async with TimedWorker(store, settings=brief(ttl=1000.0, max_bytes=1000)) as w:
        await w.own()
        w.runner.reply = b"." * 400
        assert (await w.call("a", 1, start=True)).error is None
        assert (await w.call("b", 1, start=True)).error is None
        size = sum(len(item.value) for item in stored(store).values())
        w.runner.reply = b"." * 1000
        assert (await w.call("a", 1)).error is None
        size = sum(len(item.value) for item in stored(store).values())
        error = (await w.call("c", 1, start=True)).error
        assert str(error) == f"spec.sessions.maxBytes: {size} bytes of state found, new sessions are allowed below 1000"
        assert (await w.call("b", 1)).error is None


@simulated
async def test_other_workers_sessions_and_the_stores_size_count() -> None:
    store = MemoryStore(SimClock())
    async with TimedWorker(store, settings=brief(ttl=1000.0, max_count=3)) as w:
        await w.own(*{shard_of(session_key("", name), SHARDS) for name in "abc"})
        await w.call("a", 1, start=True)
        w.sessions.hear(control_pb2.WorkerOrder.Limits(others_sessions=2))
        assert isinstance((await w.call("b", 1, start=True)).error, ResourceExhausted)
        w.sessions.hear(control_pb2.WorkerOrder.Limits(store_used=0.75))
        text = "new sessions are refused: 75% of the store's quota is in use, at most 70% are allowed for them; end or delete sessions"
        assert str((await w.call("b", 1, start=True)).error) == text
        assert (await w.call("a", 1)).error is None
        w.sessions.hear(control_pb2.WorkerOrder.Limits(store_used=0.68))
        assert isinstance((await w.call("b", 1, start=True)).error, ResourceExhausted), "it does not flap"
        w.sessions.hear(control_pb2.WorkerOrder.Limits(store_used=0.6))
        assert (await w.call("b", 1, start=True)).error is None
        w.sessions.hear(control_pb2.WorkerOrder.Limits(store_used=0.75))
        await asyncio.sleep(15.0)
        assert (await w.call("c", 1, start=True)).error is None, "what was heard so long ago is not known"


@simulated
async def test_sessions_begun_since_the_stores_size_was_told_count() -> None:
    """Whatever a burst begins between two reports; those that were there before do not count."""
    store = MemoryStore(SimClock())
    async with TimedWorker(store, settings=brief(ttl=1000.0)) as w:
        await w.own()
        for n in range(10):
            assert (await w.call(f"before{n}", 1, start=True)).error is None
        size = sum(len(item.value) for item in stored(store).values()) // 10
        await asyncio.sleep(3.0)
        w.sessions.hear(control_pb2.WorkerOrder.Limits(store_used=0.5, store_age=1.0, store_quota=100 * size))
        errors = [(await w.call(f"s{n}", 1, start=True)).error for n in range(100)]
        begun = errors.index(next(error for error in errors if error is not None))
        assert 18 <= begun <= 22, "from 50 % to 70 %, of records of much the same size"
        assert all(isinstance(error, ResourceExhausted) for error in errors[begun:])
        assert (await w.call("s0", 1)).error is None


@simulated
async def test_a_namespace_over_its_share_begins_nothing_and_then_stops_before_everybody_does() -> None:
    store = MemoryStore(SimClock())
    async with TimedWorker(store, settings=brief(ttl=1000.0)) as w:
        await w.own()
        await w.call("a", 1, start=True)
        w.sessions.hear(control_pb2.WorkerOrder.Limits(store_used=0.5, over_share=True))
        assert isinstance((await w.call("b", 1, start=True)).error, ResourceExhausted)
        assert (await w.call("a", 1)).error is None
        w.sessions.hear(control_pb2.WorkerOrder.Limits(store_used=0.9, over_share=True))
        before = stored(store)
        assert isinstance((await w.call("a", 1)).error, ResourceExhausted)
        assert isinstance((await w.call("a", 1, start=True)).error, ResourceExhausted)
        assert stored(store) == before, "what is refused was not run"
        assert (await w.call("a", 1, end=True)).error is None, "what makes room is taken"
        w.sessions.hear(control_pb2.WorkerOrder.Limits(store_used=0.5))
        assert (await w.call("b", 1, start=True)).error is None


@simulated
async def test_negative_control_without_a_bound_memory_grows_with_the_sessions() -> None:
    store = MemoryStore(SimClock())
    async with TimedWorker(store, settings=brief(ttl=1000.0, memory_bytes=0)) as w:
        await w.own()
        for n in range(200):
            await w.call(f"s{n}", 1, start=True)
        assert w.sessions.report().memory_bytes > 200_000


@simulated
async def test_memory_is_bounded_by_bytes_and_the_longest_idle_leave_first() -> None:
    store = MemoryStore(SimClock())
    async with TimedWorker(store, settings=brief(ttl=1000.0, memory_bytes=100_000)) as w:
        await w.own()
        for n in range(200):
            await w.call(f"s{n}", 1, start=True)
            await w.call("busy", 1)
            await asyncio.sleep(0.01)
            assert w.sessions.report().memory_bytes <= 100_000 + 3_000
        held = {key for shard in w.sessions.machine.shards for key in shard.sessions}
        assert session_key("", "busy") in held
        assert session_key("", "s199") in held
        assert session_key("", "s0") not in held
        report = w.sessions.report()
        # Each has 4 bytes of state; its record and its kept replies are some hundred more.
        assert len(held) * (SESSION_OVERHEAD_BYTES + 4) < report.memory_bytes < len(held) * (SESSION_OVERHEAD_BYTES + 1024)
        assert report.hibernated_bytes == sum(len(i.value) for i in stored(store).values()) - w.sessions.machine.turns.stored_bytes
        assert report.hibernated_bytes > 10_000
        assert (await w.call("s0", 1)).reply == b"2"
        assert (await w.call("busy", 1)).reply == b"201"


# -------------------------------------------------------------------------------------------------------------------- the counting


@simulated
async def test_the_count_stays_exact() -> None:
    """Commits, ends, expiries, removals, evictions and counts that happen meanwhile: against what lies in the store."""
    store = MemoryStore(SimClock())
    store.hook = lambda method, request: Fault(request_delay=0.01, reply_delay=0.005)
    async with TimedWorker(store, settings=brief(ttl=4.0, removal_wait=2.0, evict_after=1.0)) as w:
        await w.own()
        for n in range(400):
            w.submit(f"s{n * 7 % 61}", 1, end=n % 5 == 0)
            if n % 90 == 0:
                for shard in w.sessions.machine.shards:
                    w.sessions.census.doubt(shard)
            await asyncio.sleep(0.03)
        await asyncio.sleep(1.0)
        items = stored(store).values()
        total = w.sessions.census.total
        assert (total.records, total.bytes) == (len(items), sum(len(item.value) for item in items))
        live = [r for item in items if not (r := records.glance(item.value)).tombstone and r.expires_us > now_us()]
        w.sessions.report()
        assert abs(total.live - len(live)) <= 1, "an expired one counts for up to ttl/256 longer"
        assert all(s.phase is not Phase.LOADING for shard in w.sessions.machine.shards for s in shard.sessions.values())


def test_a_removal_never_takes_a_record_that_was_written_since() -> None:
    txn = transactions.remove(K, F, [transactions.Removal(1, {"a": 5, "b": 6}, shard_mod=3, floor_mod=4, floor_us=9, quarantined=["q"])])
    assert {(c.key, c.revision) for c in txn.compares} == {  # type: ignore[union-attr]
        (K.shard(F, 1), 3),
        (K.floor(F, 1), 4),
        ("a", 5),
        ("b", 6),
    }
    assert [w.key for w in txn.writes] == ["a", "b", "q", K.floor(F, 1)]


def test_the_wait_is_longer_than_a_call_may_be_held_unless_the_installation_says_otherwise() -> None:
    assert lifetimes.removal_wait(None, 300.0) == 600.0
    assert lifetimes.removal_wait(None, 3600.0) == 3660.0
    assert lifetimes.removal_wait(10.0, 300.0) == 10.0
