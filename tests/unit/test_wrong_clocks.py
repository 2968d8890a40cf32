"""What wrong clocks do to sessions, to a leader and to a gateway: each on the real loops, in simulated time."""

import asyncio

import pytest
from dormouse_core.callkeys import CALLERS, CallKey
from dormouse_core.clocks import Skew
from dormouse_core.errors import Aborted
from dormouse_core.seams import Put, Txn
from dormouse_core.sessions.names import session_key
from dormouse_gateway.envoy.bootstrap import ENTRY
from dormouse_gateway.envoy.resources import SCOPE
from dormouse_gateway.envoy.snapshot import Snapshot
from dormouse_gateway.settings import GatewaySettings
from dormouse_gateway.watching.routes import Routes
from dormouse_gateway.watching.table import Table
from dormouse_operator import terms
from dormouse_operator.timekeeping import Timekeeper
from dormouse_proto import control_pb2
from dormouse_testing import simloop
from dormouse_testing.clock import SimClock
from dormouse_testing.memory_store import MemoryStore
from dormouse_testing.session_worker import SHARDS, K, Worker, simulated
from dormouse_worker.sessions import Answer, SessionSettings, Step

HOUR = 3600.0


def now_us(skew: float = 0.0) -> int:
    return int(SimClock(skew).now() * 1e6)


async def call(worker: Worker, n: int, key: CallKey, **flags: bool) -> Answer:
    future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
    start, end = flags.get("start", False), flags.get("end", False)
    worker.sessions.submit(Step(session_key("", "s"), key, b"%d" % n, start, end, True, n, future.set_result))
    return await future


# --------------------------------------------------------------------------------------------------------------------------- expiry


@pytest.mark.parametrize("told", [True, False])
def test_a_worker_an_hour_ahead_begins_no_live_session_anew(told: bool) -> None:
    """`told`: it knows that it is wrong. Then it gets no calls at all; what is asked here is what becomes of one that slips through."""

    @simulated
    async def go() -> None:
        store = MemoryStore(SimClock())
        settings = SessionSettings(SHARDS, "v1", ttl=HOUR)
        wrong = Skew(SimClock(HOUR + 1))
        if told:
            wrong.heard(wrong.mark(), now_us(), 0, 3)
            assert wrong.off
        async with Worker(store, settings=settings) as right, Worker(store, name="w-2", settings=settings, time=wrong) as ahead:
            await right.own()
            for n in range(5):
                assert (await call(right, 1, CallKey(now_us(), f"g-a-{n}"))).step == n + 1
            await ahead.own()
            assert (await call(ahead, 1, CallKey(now_us(), "g-a-5"))).step == 6

    go()


def test_negative_control_by_its_own_clock_it_would_begin_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Skew, "now_us", lambda self: self._wall())
    with pytest.raises(AssertionError, match="1 == 6"):
        test_a_worker_an_hour_ahead_begins_no_live_session_anew(False)


def test_without_a_leader_a_session_goes_on_beyond_its_time_instead_of_beginning_anew() -> None:
    @simulated
    async def go() -> None:
        async with Worker(MemoryStore(SimClock()), settings=SessionSettings(SHARDS, "v1", ttl=1.0), time=Skew(SimClock())) as worker:
            await worker.own()
            await call(worker, 1, CallKey(now_us(), "g-a-1"))
            await asyncio.sleep(10)
            assert (await call(worker, 1, CallKey(now_us(), "g-a-2"))).step == 2

    go()


# ----------------------------------------------------------------------------------------------------------------------------- keys


def alternate(skew: float, starts: bool, corrected: bool = True) -> int:
    """How many of a waiting caller's fresh calls are refused, by two gateways of which one is `skew` seconds ahead."""
    refused = 0

    @simulated
    async def go() -> None:
        nonlocal refused
        clocks = [Skew(SimClock(skew)), Skew(SimClock(0.0))]
        for clock in clocks if corrected else ():
            clock.heard(clock.mark(), now_us(), 0, 3)
        async with Worker(MemoryStore(SimClock())) as worker:
            await worker.own()
            for n in range(120):
                key = CallKey(clocks[n % 2].best_us(), f"g-{n % 2}-{n}")
                answer = await call(worker, 1, key, start=starts and n % 3 == 0, end=starts and n % 3 == 2)
                refused += isinstance(answer.error, Aborted)
                await asyncio.sleep(0.005)

    go()
    return refused


@pytest.mark.parametrize("skew", [0.05, 0.09, 2.0, 5.0])
def test_gateways_that_differ_cost_a_waiting_caller_nothing(skew: float) -> None:
    assert alternate(skew, starts=False) == 0
    assert alternate(skew, starts=True) == 0
    assert alternate(skew, starts=False, corrected=False) == 0, "steps need no correction"


def test_negative_control_without_the_correction_starts_would_be_refused() -> None:
    assert alternate(2.0, starts=True, corrected=False) > 0


@pytest.mark.parametrize("ahead", [0.5, 30.0])
def test_a_plain_call_runs_behind_a_callers_keys_from_ahead(ahead: float) -> None:
    """Case 11.O8."""

    @simulated
    async def go() -> None:
        async with Worker(MemoryStore(SimClock())) as worker:
            await worker.own()
            for n in range(12):
                key = CallKey(now_us(ahead) + n, f"c-own-{n}", CALLERS, now_us())
                assert (await call(worker, 1, key)).step == n + 1
            answer = await call(worker, 1, CallKey(now_us(), "g-a-1"))
            assert (answer.error, answer.step) == (None, 13)
            assert (await call(worker, 1, CallKey(now_us() + 1, "g-a-2"), start=True)).step == 1

    go()


# --------------------------------------------------------------------------------------------------------------------------- leaders


def reported(keeper: Timekeeper, agents: dict[str, int]) -> control_pb2.AgentOrder:
    order = control_pb2.AgentOrder()
    for agent, offset in agents.items():
        order = keeper.agent(control_pb2.AgentReport(agent=agent, sent_us=1, offset_us=offset))
    return order


def test_a_leader_an_hour_off_resigns_and_meanwhile_misleads_nobody() -> None:
    async def main() -> None:
        keeper = Timekeeper(SimClock(HOUR), {}.get)
        running = asyncio.create_task(keeper.run())
        off = int(-HOUR * 1e6)
        async with asyncio.timeout(30):
            while not keeper.off.is_set():
                order = reported(keeper, {"a": off, "b": off})
                await asyncio.sleep(0.5)
        assert (order.reference_us, order.agreed) == (off, 2), "the two that agree are believed"
        assert keeper.skew.now_us() is None, "it removes nothing"
        running.cancel()

    simloop.run(main(), limit=60.0)


def votes_of_one_function(known: dict[str, str]) -> int:
    """How many clocks agree with the median where three gateways are right, and five workers that `known` has in a function are an hour
    ahead and name another each."""

    async def main() -> int:
        keeper = Timekeeper(SimClock(), known.get)
        for _ in range(5):
            for n in range(5):
                report = control_pb2.WorkerReport(worker=f"w{n}", uid=f"u{n}", mark=1, offset_us=int(HOUR * 1e6), reference_us=4_500_000)
                keeper.worker(report)
            for agent in ("a", "b", "c"):
                order = keeper.agent(control_pb2.AgentReport(agent=agent, sent_us=1, offset_us=0, reference_us=0))
            await asyncio.sleep(1.0)
        assert order.median_us or not order.reference_us, "agents' word of the reference goes before theirs"
        return order.agreed if not order.median_us else -order.agreed

    return int(simloop.run(main(), limit=60.0))


def test_workers_have_the_vote_of_the_function_that_the_leader_knows_them_of() -> None:
    assert votes_of_one_function({f"w{n}": "u" for n in range(5)}) == 4, "the leader's and the gateways'"
    assert votes_of_one_function({}) == 4, "of no function that is known: none"


def test_negative_control_by_their_own_word_they_would_outvote_everybody() -> None:
    assert votes_of_one_function({f"w{n}": f"u{n}" for n in range(5)}) == -5


def test_of_two_clocks_that_differ_neither_ends_a_term() -> None:
    async def main() -> None:
        keeper = Timekeeper(SimClock(HOUR), {}.get)
        running = asyncio.create_task(keeper.run())
        for _ in range(40):
            assert reported(keeper, {"a": int(-HOUR * 1e6)}).agreed == 0
            await asyncio.sleep(0.5)
        assert not keeper.off.is_set()
        running.cancel()

    simloop.run(main(), limit=60.0)


@pytest.mark.parametrize("another", [True, False])
def test_who_resigned_for_its_clock_leads_again_only_where_nobody_else_does(another: bool) -> None:
    async def main() -> None:
        clock = SimClock()
        store = MemoryStore(clock)
        if another:
            await store.txn(Txn((), (Put(K.leader, b"x"),)))
        began = clock.monotonic()
        assert await terms.followed(store, clock, K.leader, asyncio.Event()) is another
        assert (clock.monotonic() - began < 1.0) is another

    simloop.run(main(), limit=60.0)


# ------------------------------------------------------------------------------------------------------------------------- gateways


def test_envoy_is_told_of_a_correction_that_is_worth_it() -> None:
    snapshot = Snapshot()
    routes = Routes(Table(K), snapshot, GatewaySettings())
    first = snapshot.resources[SCOPE][ENTRY].version
    routes.correct(999)
    assert snapshot.resources[SCOPE][ENTRY].version == first
    routes.correct(-90_000)
    assert snapshot.resources[SCOPE][ENTRY].version != first
    routes.correct(0)
    assert snapshot.resources[SCOPE][ENTRY].version == first
