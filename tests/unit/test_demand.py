"""Demand from integrals: what is lost on the way is in the next report, and what was before the leader is not demand."""

import math

from dormouse_core.demand import PANIC_WINDOW, STABLE_WINDOW, Demand, Series
from dormouse_proto import control_pb2
from hypothesis import given
from hypothesis import strategies as st


def worker(calls: int = 0, seconds: float = 0.0, in_flight: int = 0, sessions: int = 0, kept: int = 0) -> control_pb2.WorkerReport:
    return control_pb2.WorkerReport(calls=calls, concurrency_seconds=seconds, in_flight=in_flight, sessions=sessions, kept_replies=kept)


def agent(held: int = 0, seconds: float = 0.0, arrived: int = 0) -> control_pb2.FunctionDemand:
    return control_pb2.FunctionDemand(held=held, held_seconds=seconds, arrived=arrived)


def test_concurrency_is_the_slope_of_the_integrals() -> None:
    demand = Demand(0.0)
    for second in range(121):
        demand.worker("a", worker(calls=second * 10, seconds=second * 3.0, in_flight=3), float(second))
        demand.worker("b", worker(calls=second * 5, seconds=second * 1.0, in_flight=1), float(second))
    seen = demand.measure(120.0)
    assert math.isclose(seen.concurrency.stable, 4.0, rel_tol=0.01)
    assert math.isclose(seen.concurrency.panic, 4.0, rel_tol=0.01)
    assert math.isclose(seen.rps.stable, 15.0, rel_tol=0.01)
    assert seen.running == 4


def test_a_step_up_shows_in_the_panic_window_first() -> None:
    demand = Demand(0.0)
    total = 0.0
    for second in range(100):
        total += 1.0 if second < 94 else 50.0
        demand.worker("a", worker(seconds=total), float(second))
    seen = demand.measure(99.0)
    assert seen.concurrency.panic > 40
    assert seen.concurrency.stable < 7


def test_the_first_report_sets_the_base_line() -> None:
    demand = Demand(0.0)
    demand.worker("old", worker(calls=1_000_000, seconds=1e6), 1.0)
    assert demand.measure(1.0).concurrency.stable == 0.0
    demand.worker("old", worker(calls=1_000_010, seconds=1e6 + 2.0), 2.0)
    assert math.isclose(demand.measure(2.0).concurrency.stable, 1.0)


def test_a_lost_report_loses_nothing() -> None:
    every, second = Demand(0.0), Demand(0.0)
    for t in range(57):
        every.worker("a", worker(seconds=t * 2.0), float(t))
        if t % 7 == 0:
            second.worker("a", worker(seconds=t * 2.0), float(t))
    assert math.isclose(every.measure(56.0).concurrency.stable, second.measure(56.0).concurrency.stable, rel_tol=0.05)


def test_held_calls_are_concurrency_and_work() -> None:
    demand = Demand(0.0)
    demand.agent("g", agent(held=0), 0.0)
    demand.agent("g", agent(held=8, seconds=8.0, arrived=8), 10.0)
    seen = demand.measure(10.0)
    assert (seen.held, seen.idle) == (8, 0.0)
    assert seen.concurrency.stable > 0


def test_a_function_off_an_agents_list_holds_nothing() -> None:
    demand = Demand(0.0)
    demand.agent("g", agent(held=8), 1.0)
    demand.agent("g", None, 2.0)
    assert demand.measure(2.0).held == 0


def test_idle_counts_from_the_last_work() -> None:
    demand = Demand(0.0)
    demand.worker("a", worker(calls=5, seconds=1.0), 1.0)
    demand.worker("a", worker(calls=6, seconds=1.1), 2.0)
    for t in range(3, 30):
        demand.worker("a", worker(calls=6, seconds=1.1), float(t))
    assert demand.measure(29.0).idle == 27.0


def test_one_long_call_is_work_all_the_time() -> None:
    demand = Demand(0.0)
    for t in range(100):
        demand.worker("a", worker(calls=0, seconds=float(t), in_flight=1), float(t))
    assert demand.measure(100.0).idle == 0.0


def test_what_waits_in_a_worker_is_work_and_runs() -> None:
    demand = Demand(0.0)
    waiting = control_pb2.WorkerReport(queued=3)
    demand.worker("a", waiting, 50.0)
    assert demand.measure(60.0).running == 3
    demand.worker("a", worker(), 61.0)
    assert demand.measure(70.0).idle == 10.0
    demand.worker("a", waiting, 80.0)
    demand.worker("a", worker(), 90.0)
    assert demand.measure(100.0).idle == 20.0, "also where nobody asked in between"


def test_a_call_that_a_gateway_saw_come_is_work_however_short_it_was() -> None:
    demand = Demand(0.0)
    demand.agent("a", agent(arrived=5), 1.0)
    demand.agent("a", agent(arrived=6), 30.0)
    assert demand.measure(31.0).idle == 1.0


def test_a_kept_reply_is_work_and_no_call() -> None:
    demand = Demand(0.0)
    demand.worker("a", worker(), 1.0)
    demand.worker("a", worker(kept=1), 5.0)
    seen = demand.measure(5.0)
    assert seen.idle == 0.0
    assert seen.rps.stable == 0.0


def test_a_dead_workers_share_stays_in_the_average_and_its_level_goes() -> None:
    demand = Demand(0.0)
    demand.worker("a", worker(), 0.0)
    demand.worker("a", worker(seconds=30.0, in_flight=3, sessions=4), 10.0)
    demand.forget_worker("a")
    seen = demand.measure(11.0)
    assert (seen.running, seen.live_sessions) == (0, 0)
    assert seen.concurrency.stable > 2


def test_what_a_new_leader_has_not_seen_is_busy_until_it_came() -> None:
    assert Demand(100.0).measure(130.0).idle == 30.0


def test_sessions_are_a_level() -> None:
    demand = Demand(0.0)
    for t in range(130):
        demand.worker("a", worker(sessions=10), float(t))
    assert math.isclose(demand.measure(129.0).sessions.stable, 10.0, rel_tol=0.01)


@given(st.lists(st.tuples(st.floats(0.01, 5), st.floats(0, 100)), min_size=1, max_size=300))
def test_an_average_is_never_above_the_highest_rate_nor_below_nothing(steps: list[tuple[float, float]]) -> None:
    series, now = Series(0.0), 0.0
    for seconds, rate in steps:
        now += seconds
        series.add(now, seconds * rate)
    highest = max(rate for _, rate in steps)
    for window in (PANIC_WINDOW, STABLE_WINDOW):
        assert -1e-6 <= series.average(now, window) <= highest + 1e-6


@given(st.lists(st.floats(0.01, 5), min_size=2, max_size=400), st.floats(0, 100))
def test_a_steady_rate_is_its_own_average(steps: list[float], rate: float) -> None:
    series, now = Series(0.0), 0.0
    for seconds in steps:
        now += seconds
        series.add(now, seconds * rate)
    for window in (PANIC_WINDOW, STABLE_WINDOW):
        expected = rate * min(1.0, now) if now < 1.0 else rate
        assert math.isclose(series.average(now, window), expected, rel_tol=1e-6, abs_tol=1e-6)


def test_history_is_bounded() -> None:
    series = Series(0.0)
    for t in range(100_000):
        series.add(t / 10, 1.0)
    assert len(series._points) < 10 * STABLE_WINDOW + 10
