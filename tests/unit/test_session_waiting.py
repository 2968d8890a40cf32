"""A step while the store cannot be reached: it waits as long as its caller does, and nobody is told what is not so."""

import asyncio

import pytest
from dormouse_core.errors import Again, DeadlineExceeded, DormouseError
from dormouse_core.seams import Put, Txn, Unreached
from dormouse_core.sessions import groups
from dormouse_testing.clock import SimClock
from dormouse_testing.memory_store import REFUSED, REPLY_LOST, REQUEST_LOST, UNREACHED, Fault, MemoryStore
from dormouse_testing.session_worker import Worker, again, error, simulated, state_key
from dormouse_worker.sessions import Answer


class Away:
    """From now on no transaction reaches the store, until `back`. Reads and renewals do: what is shown is the commit."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        store.hook = lambda method, _: UNREACHED if method == "txn" else None

    def back(self) -> None:
        self._store.hook = None


async def away_for(seconds: float, **options: float) -> tuple[Answer, Answer, int]:
    """What a second step of a session is told that comes while the store is away, what the one after it is told, and how often they ran."""
    async with Worker(MemoryStore(SimClock())) as w:
        await w.own()
        assert (await w.call("s", 1)).reply == b"1"
        away = Away(w.store)
        now = asyncio.get_running_loop().time()
        step = w.submit("s", 10, **{name: now + after for name, after in options.items()})
        await asyncio.sleep(seconds)
        away.back()
        return await step, await w.call("s", 100), w.sessions.report().steps


@simulated
async def test_a_step_is_held_while_the_store_cannot_be_reached() -> None:
    step, after, steps = await away_for(60.0)
    assert (step.reply, after.reply, steps) == (b"11", b"111", 3)


@simulated
async def test_a_step_whose_caller_waits_no_longer_is_not_committed_and_the_session_goes_on_without_it() -> None:
    step, after, steps = await away_for(60.0, deadline=20.0)
    assert isinstance(error(step), DeadlineExceeded)
    assert "not committed" in str(error(step))
    assert "no member could be reached" in str(error(step))
    assert (after.reply, steps) == (b"101", 2)


def test_negative_control_without_the_guard_it_is_refused_after_five_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    class Never(Unreached):
        pass

    monkeypatch.setattr(groups, "Unreached", Never)

    @simulated
    async def play() -> None:
        step, _, steps = await away_for(60.0)
        assert "the store refused it" in str(error(step))
        assert steps == 2

    play()


@simulated
async def test_one_whose_first_copy_may_have_landed_is_not_told_that_nothing_was_sent() -> None:
    for lost, total in ((REPLY_LOST, b"11"), (REQUEST_LOST, b"11")):
        async with Worker(MemoryStore(SimClock())) as w:
            await w.own()
            await w.call("s", 1)
            w.store.fault("txn", lost)
            w.store.fault("txn", UNREACHED, 3)
            w.store.fault("get", UNREACHED, 3)
            now = asyncio.get_running_loop().time()
            step = await w.call("s", 10, deadline=now + 4.0)
            assert (step.reply, step.error) == (total, None), "it waits for the outcome, whatever its deadline says"


@simulated
async def test_a_worker_that_has_lost_its_lease_meanwhile_acknowledges_nothing() -> None:
    async with Worker(MemoryStore(SimClock())) as w:
        await w.own()
        await w.call("s", 1)
        away = Away(w.store)
        step, waiting = w.submit("s", 10), w.submit("s", 100)
        await asyncio.sleep(1.0)
        w.sessions.registration.forsake("the test takes its lease")
        told = [await each for each in (step, waiting)]
        away.back()
        assert [each.reply for each in told] == [None, None]
        assert {again(each) for each in told} <= {Again.DROPPED, Again.NOT_MINE}, "both may be sent again, elsewhere"


@simulated
async def test_many_that_wait_are_answered_together_once_the_store_is_back() -> None:
    async with Worker(MemoryStore(SimClock())) as w:
        await w.own()
        away = Away(w.store)
        steps = [w.submit(f"s{n}", n) for n in range(500)]
        await asyncio.sleep(30.0)
        assert not any(step.done() for step in steps)
        away.back()
        async with asyncio.timeout(10.0):
            answers = await asyncio.gather(*steps)
        assert [answer.reply for answer in answers] == [b"%d" % n for n in range(500)]


@simulated
async def test_what_the_store_itself_refuses_is_refused_at_once() -> None:
    async with Worker(MemoryStore(SimClock())) as w:
        await w.own()
        w.store.fault("txn", REFUSED)
        began = asyncio.get_running_loop().time()
        told = error(await w.call("s", 1))
        assert isinstance(told, DormouseError)
        assert "the store refused it" in str(told)
        assert asyncio.get_running_loop().time() - began < 1.0


@simulated
async def test_behind_two_that_wait_for_ever_whoever_gives_up_is_told_so_and_is_not_committed() -> None:
    """Two groups are in flight at most: what comes behind them has callers, too."""
    async with Worker(MemoryStore(SimClock())) as w:
        await w.own()
        away = Away(w.store)
        patient = [w.submit("s0", 1)]
        await asyncio.sleep(0.1)
        patient.append(w.submit("s1", 1))
        await asyncio.sleep(0.1)
        now = asyncio.get_running_loop().time()
        behind = [w.submit(f"s{n}", 10, deadline=now + n / 100) for n in range(2, 200)]
        await asyncio.sleep(10.0)
        told = [error(step.result()) for step in behind if step.done()]
        assert [type(each) for each in told] == [DeadlineExceeded] * len(behind), "nothing of them is kept"
        away.back()
        assert [(await step).reply for step in patient] == [b"1", b"1"]
        assert [(await w.call(f"s{n}", 0)).reply for n in range(2, 200)] == [b"0"] * len(behind)


def test_negative_control_without_a_look_behind_them_they_wait_on_and_are_committed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups.Groups, "_look_behind", lambda groups, error: None)

    @simulated
    async def play() -> None:
        async with Worker(MemoryStore(SimClock())) as w:
            await w.own()
            away = Away(w.store)
            for n in range(2):
                w.submit(f"s{n}", 1)
                await asyncio.sleep(0.1)
            step = w.submit("s2", 10, deadline=asyncio.get_running_loop().time() + 1.0)
            await asyncio.sleep(60.0)
            assert not step.done()
            away.back()
            assert (await step).reply == b"10"

    play()


@simulated
async def test_behind_two_whose_outcome_is_not_known_it_is_the_same() -> None:
    async with Worker(MemoryStore(SimClock())) as w:
        await w.own()
        assert [(await w.call(f"s{n}", 1)).reply for n in range(3)] == [b"1"] * 3
        w.store.fault("txn", REQUEST_LOST, 2)
        w.store.hook = lambda method, _: UNREACHED if method == "get" else None
        patient = [w.submit("s0", 1)]
        await asyncio.sleep(0.1)
        patient.append(w.submit("s1", 1))
        await asyncio.sleep(0.1)
        late = w.submit("s2", 10, deadline=asyncio.get_running_loop().time() + 1.0)
        await asyncio.sleep(10.0)
        assert late.done()
        assert isinstance(error(late.result()), DeadlineExceeded)
        w.store.hook = None
        assert [(await step).reply for step in patient] == [b"2", b"2"]
        assert (await w.call("s2", 0)).reply == b"1"


@simulated
async def test_a_deadline_that_passes_just_before_the_next_try_counts() -> None:
    async with Worker(MemoryStore(SimClock())) as w:
        await w.own()
        away = Away(w.store)
        began = asyncio.get_running_loop().time()
        step = w.submit("s", 10, deadline=began + groups.TIMEOUT_SECONDS + groups.UNREACHED_SECONDS * 0.8)
        await asyncio.sleep(groups.TIMEOUT_SECONDS + groups.UNREACHED_SECONDS * 0.6)
        away.back()
        assert isinstance(error(await step), DeadlineExceeded)
        assert (await w.call("s", 0)).reply == b"0"


@simulated
async def test_what_waits_behind_is_looked_at_also_when_the_store_is_back() -> None:
    """The last try waits for its connection itself, and succeeds: what gave up meanwhile is not sent."""
    async with Worker(MemoryStore(SimClock())) as w:
        await w.own()
        Away(w.store)
        patient = [w.submit("s0", 1)]
        await asyncio.sleep(0.1)
        patient.append(w.submit("s1", 1))
        await asyncio.sleep(0.1)
        late = w.submit("s2", 10, deadline=asyncio.get_running_loop().time() + 6.0)
        w.store.hook = lambda method, _: Fault(request_delay=4.0) if method == "txn" else None
        await asyncio.gather(*patient)
        w.store.hook = None
        assert isinstance(error(await late), DeadlineExceeded)


@simulated
async def test_who_waits_for_the_copy_of_a_broken_record_behind_another_is_told_so_too() -> None:
    async with Worker(MemoryStore(SimClock())) as w:
        await w.own()
        for name in ("s0", "s1"):
            await w.store.txn(Txn((), (Put(state_key(name), b"\x01broken record"),)))
        away = Away(w.store)
        patient = w.submit("s0", 1, start=True)
        await asyncio.sleep(0.1)
        late = w.submit("s1", 10, start=True, deadline=asyncio.get_running_loop().time() + 1.0)
        await asyncio.sleep(10.0)
        assert late.done()
        assert isinstance(error(late.result()), DeadlineExceeded)
        away.back()
        assert (await patient).reply == b"1"
        assert (await w.call("s1", 100, start=True)).reply == b"100"
