"""The autoscaler: a table of situations, and properties over any history. No clock, no sleep: `now` is an argument."""

import pytest
from dormouse_core.autoscaling import SETTLE, Autoscaler, Decision, Scaling, Workers
from dormouse_core.demand import STABLE_WINDOW, Averages, Measured
from hypothesis import given
from hypothesis import strategies as st

CALM = Averages(0.0, 0.0)


def measured(
    concurrency: float = 0.0,
    panic: float | None = None,
    *,
    rps: float = 0.0,
    sessions: float = 0.0,
    running: int = 0,
    held: int = 0,
    live_sessions: int = 0,
    idle: float = 0.0,
    watched: float = 1000.0,
) -> Measured:
    return Measured(
        concurrency=Averages(concurrency, concurrency if panic is None else panic),
        rps=Averages(rps, rps),
        sessions=Averages(sessions, sessions),
        running=running,
        held=held,
        live_sessions=live_sessions,
        idle=idle,
        watched=watched,
    )


def decide(scaling: Scaling, seen: Measured, workers: Workers, unknown: tuple[str, ...] = (), now: float = 0.0) -> Decision:
    return Autoscaler().decide(scaling, seen, workers, unknown, now)


@pytest.mark.parametrize(
    ("seen", "workers", "wanted"),
    [
        pytest.param(measured(), Workers(0), 0, id="asleep stays asleep"),
        pytest.param(measured(held=1), Workers(0), 1, id="the first held call wakes at once"),
        pytest.param(measured(held=100), Workers(0), 7, id="as many as the held calls need"),
        pytest.param(measured(held=1000), Workers(0), 10, id="at most maxReplicas"),
        pytest.param(measured(idle=59.9), Workers(1), 1, id="idle, not long enough"),
        pytest.param(measured(idle=60.0), Workers(1), 0, id="idle long enough"),
        pytest.param(measured(idle=60.0), Workers(3), 0, id="from several to zero"),
        pytest.param(measured(concurrency=0.001, running=1), Workers(1), 1, id="one long call is demand"),
        pytest.param(measured(running=1, idle=0.0), Workers(1), 1, id="running without an average yet"),
        pytest.param(measured(concurrency=16.0, running=16), Workers(1), 1, id="exactly the target"),
        pytest.param(measured(concurrency=16.1, running=17), Workers(1), 2, id="a little over the target"),
        pytest.param(measured(concurrency=40.0, running=40), Workers(3), 3, id="steady"),
        pytest.param(measured(concurrency=20.0, running=20), Workers(3), 2, id="down with the load"),
        pytest.param(measured(concurrency=5.0, panic=64.0, running=64), Workers(1), 4, id="panic: the short window decides"),
        pytest.param(measured(concurrency=5.0, panic=31.0, running=31), Workers(1), 2, id="twice the target is panic"),
        pytest.param(measured(concurrency=33.0, panic=8.0, running=8), Workers(3), 3, id="a quiet moment takes nothing away"),
        pytest.param(measured(concurrency=30.0), Workers(0), 0, id="an average of the past wakes nobody"),
    ],
)
def test_wanted(seen: Measured, workers: Workers, wanted: int) -> None:
    decision = decide(Scaling(), seen, workers)
    assert decision.wanted == wanted, decision.reason
    assert decision.valid
    assert decision.reason


@pytest.mark.parametrize(
    ("scaling", "seen", "workers", "wanted"),
    [
        pytest.param(Scaling(replicas=3), measured(idle=900), Workers(1), 3, id="fixed"),
        pytest.param(Scaling(replicas=0), measured(held=9), Workers(0), 0, id="stopped: a held call does not wake it"),
        pytest.param(Scaling(minimum=2), measured(idle=900), Workers(2), 2, id="minReplicas"),
        pytest.param(Scaling(minimum=2), measured(), Workers(0), 2, id="minReplicas from nothing"),
        pytest.param(Scaling(maximum=2), measured(concurrency=99, running=99), Workers(2), 2, id="maxReplicas"),
        pytest.param(Scaling(maximum=2), measured(concurrency=99, running=99), Workers(5), 2, id="maxReplicas lowered"),
        pytest.param(Scaling(metric="rps", target=100), measured(rps=250, running=1), Workers(1), 3, id="rps"),
        pytest.param(Scaling(metric="rps", target=100), measured(held=500), Workers(0), 1, id="rps: held calls wake one"),
        pytest.param(Scaling(metric="sessions", target=10), measured(sessions=35, running=1), Workers(4), 4, id="sessions"),
        pytest.param(Scaling(metric="sessions", target=10), measured(sessions=35, idle=61), Workers(4), 0, id="sessions sleep, too"),
        pytest.param(Scaling(memory_only=True), measured(live_sessions=2, idle=900), Workers(1), 1, id="Memory sessions keep it awake"),
        pytest.param(Scaling(memory_only=True), measured(live_sessions=0, idle=900), Workers(1), 0, id="Memory, all expired"),
        pytest.param(Scaling(scale_to_zero_after=2), measured(concurrency=30, idle=2), Workers(2), 0, id="sooner than the window"),
        pytest.param(Scaling(scale_to_zero_after=0), measured(running=1), Workers(1), 1, id="running work, where it sleeps at once"),
    ],
)
def test_wanted_by_spec(scaling: Scaling, seen: Measured, workers: Workers, wanted: int) -> None:
    decision = decide(scaling, seen, workers)
    assert decision.wanted == wanted, decision.reason


@pytest.mark.parametrize(
    ("scaling", "seen", "workers", "wanted", "told"),
    [
        pytest.param(Scaling(asked=1), measured(idle=61), Workers(1), 0, "no work for", id="1, before anybody asked: it sleeps"),
        pytest.param(Scaling(asked=0), measured(idle=61), Workers(3), 0, "no work for", id="0: it sleeps"),
        pytest.param(Scaling(asked=0), measured(held=1), Workers(0), 1, "calls held", id="0: a call wakes it"),
        pytest.param(Scaling(asked=0), measured(concurrency=30, running=30), Workers(1), 2, "concurrency", id="0 with work: by the load"),
        pytest.param(Scaling(asked=3), measured(), Workers(0), 3, "scale subresource asks for 3;", id="3: awake, without a call"),
        pytest.param(
            Scaling(asked=3), measured(concurrency=99, running=99), Workers(3), 7, "concurrency", id="3, and the load asks for more"
        ),
        pytest.param(Scaling(asked=3, minimum=5), measured(idle=900), Workers(5), 5, "minReplicas is 5", id="less than minReplicas"),
        pytest.param(Scaling(asked=1, minimum=1), measured(idle=900), Workers(1), 1, "minReplicas is 1", id="1 is minReplicas' to say"),
        pytest.param(Scaling(asked=30), measured(), Workers(0), 10, "asks for 30, maxReplicas is 10", id="more than maxReplicas"),
        pytest.param(
            Scaling(asked=5, replicas=2), measured(), Workers(2), 2, "the 5 that the scale", id="replicas goes first, and says so"
        ),
        pytest.param(Scaling(asked=5, replicas=0), measured(held=1), Workers(0), 0, "replicas is set to 0", id="stopped stays stopped"),
    ],
)
def test_what_is_asked_for_through_the_scale_subresource(
    scaling: Scaling, seen: Measured, workers: Workers, wanted: int, told: str
) -> None:
    decision = decide(scaling, seen, workers)
    assert (decision.wanted, decision.valid) == (wanted, True), decision.reason
    assert told in decision.reason


def test_what_is_not_known_takes_nothing_away() -> None:
    decision = decide(Scaling(), measured(idle=900), Workers(2), unknown=("gateway a has a lease but is not heard",))
    assert (decision.wanted, decision.valid) == (2, False)
    assert "gateway a" in decision.reason


def test_what_is_not_known_does_not_keep_from_waking() -> None:
    decision = decide(Scaling(), measured(held=1), Workers(0), unknown=("gateway a has a lease but is not heard",))
    assert decision.wanted == 1


def test_a_new_leader_watches_before_it_takes_away() -> None:
    seen = measured(concurrency=1.0, running=1, watched=10.0)
    assert decide(Scaling(), seen, Workers(4)).wanted == 4
    assert decide(Scaling(), measured(idle=10, watched=10), Workers(1)).wanted == 1
    assert decide(Scaling(scale_to_zero_after=5), measured(idle=5, watched=5), Workers(1)).wanted == 0


def test_a_burst_at_zero_orders_once_however_long_the_start_takes() -> None:
    """knative/serving#13284: start takes 20 s, the backlog grows all the while."""
    scaler, scaling = Autoscaler(), Scaling(target=10, maximum=50)
    wanted = [scaler.decide(scaling, measured(held=1), Workers(0), (), 0.0).wanted]
    for second in range(1, 21):
        held = min(200 + 50 * second, 5000)
        workers = Workers(0, starting=wanted[-1])
        wanted.append(scaler.decide(scaling, measured(concurrency=held, panic=held, held=held), workers, (), float(second)).wanted)
    assert wanted[0] == 1
    assert wanted[2] == 30
    assert set(wanted[2:]) == {30}, "no second wave while the first starts"


def test_the_next_wave_comes_when_the_first_has_started() -> None:
    scaler, scaling = Autoscaler(), Scaling(target=10, maximum=50)
    assert scaler.decide(scaling, measured(held=20), Workers(0), (), 0.0).wanted == 2
    assert scaler.decide(scaling, measured(held=90), Workers(0, 2), (), SETTLE + 1).wanted == 2
    assert scaler.decide(scaling, measured(90, running=90), Workers(2, 0), (), SETTLE + 2).wanted == 9


def test_a_start_that_hangs_does_not_hold_up_others_for_ever() -> None:
    scaler, scaling = Autoscaler(), Scaling(target=10, maximum=50)
    scaler.decide(scaling, measured(held=10), Workers(0), (), 0.0)
    assert scaler.decide(scaling, measured(held=90), Workers(0, 1), (), STABLE_WINDOW).wanted == 1
    assert scaler.decide(scaling, measured(held=90), Workers(0, 1), (), STABLE_WINDOW + 1).wanted == 9


def test_panic_takes_nothing_away_until_a_stable_window_has_passed() -> None:
    scaler, scaling = Autoscaler(), Scaling()
    assert scaler.decide(scaling, measured(10, 100, running=100), Workers(1), (), 0.0).wanted == 7
    quiet = measured(10, 1, running=1)
    assert scaler.decide(scaling, quiet, Workers(7), (), STABLE_WINDOW).wanted == 7
    assert scaler.decide(scaling, quiet, Workers(7), (), STABLE_WINDOW + 1).wanted == 1


situations = st.builds(
    measured,
    st.floats(0, 1000),
    st.floats(0, 1000),
    rps=st.floats(0, 1000),
    sessions=st.floats(0, 1000),
    running=st.integers(0, 50),
    held=st.integers(0, 200),
    live_sessions=st.integers(0, 5),
    idle=st.floats(0, 200),
    watched=st.floats(0, 200),
)
scalings = st.builds(
    Scaling,
    minimum=st.integers(0, 3),
    maximum=st.integers(3, 20),
    asked=st.integers(0, 30),
    metric=st.sampled_from(["concurrency", "rps", "sessions"]),
    target=st.floats(1, 100),
    scale_to_zero_after=st.floats(0, 120),
    memory_only=st.booleans(),
)
workers_seen = st.builds(Workers, st.integers(0, 25), st.integers(0, 25))
histories = st.lists(st.tuples(situations, workers_seen, st.booleans(), st.floats(0.1, 30)), min_size=1, max_size=12)


@given(scalings, histories)
def test_in_any_history(scaling: Scaling, history: list[tuple[Measured, Workers, bool, float]]) -> None:
    scaler, now = Autoscaler(), 0.0
    for seen, workers, blind, step in history:
        now += step
        decision = scaler.decide(scaling, seen, workers, ("something",) if blind else (), now)
        assert scaling.minimum <= scaling.least <= decision.wanted <= scaling.maximum
        if blind:
            assert decision.wanted >= min(workers.all, scaling.maximum), "not known, and yet taken away"
            assert not decision.valid
        if seen.running or seen.held:
            assert decision.wanted >= 1, "work was left without a worker"
        if not decision.valid:
            assert decision.wanted >= min(workers.all, scaling.maximum)
