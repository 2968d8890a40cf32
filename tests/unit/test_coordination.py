"""Who owns which shard: a table of situations, every interruption of a plan, and negative controls for the rules that keep it safe."""

from collections import Counter
from dataclasses import replace

import pytest
from dormouse_core import coordination, limits
from dormouse_core.coordination import HANDOFF_DEADLINE, Action, Assign, Cancel, Failover, NoTaker, Plan, coordinate
from dormouse_core.observations import MoveSeen
from dormouse_testing.functions_seen import NEW, OLD, World, entry, report, worker
from hypothesis import given, settings
from hypothesis import strategies as st


def act(world: World, now: float = 0.0, *, wanted: int = 1, coming: bool = False) -> list[Action]:
    return coordinate(world.seen(), now, wanted=wanted, coming=coming)


def settle(world: World, *, wanted: int = 1) -> None:
    """Everything is applied and handed off until nothing is left to do."""
    for _ in range(100):
        actions = act(world, wanted=wanted)
        for action in actions:
            world.apply(action)
        moved = [world.hand_off(shard) for shard in list(world.moves)]
        if not actions and not any(moved):
            return
    raise AssertionError("it never settles")


def owners(world: World) -> Counter[str]:
    return Counter(s.owner for s in world.shards.values())


def test_the_first_worker_is_assigned_every_shard_at_once() -> None:
    world = World()
    world.add(worker("a"))
    assert act(world) == [Assign("a", tuple(range(8)), "it has never had an owner")]


def test_a_worker_that_has_just_registered_is_not_waited_for() -> None:
    world = World()
    world.add(worker("a", heard=False))
    assert [type(a) for a in act(world)] == [Assign]


def test_a_worker_that_keeps_sessions_elsewhere_is_given_none_and_gives_away_what_it_has() -> None:
    world = World()
    world.add(worker("a", elsewhere=True))
    assert act(world) == [], "its sessions would begin without what was kept"
    world.own("a", range(4))
    world.add(worker("b"))
    settle(world)
    assert owners(world) == {"b": 8}


def test_waking_fails_every_shard_over_at_once() -> None:
    world = World()
    world.own("dead", range(8))
    world.add(worker("a"))
    (action,) = act(world)
    assert isinstance(action, Failover)
    assert (action.target, action.shards) == ("a", tuple(range(8)))
    assert "dead" in action.reason


def test_a_lost_lease_fails_over_only_its_own() -> None:
    world = World()
    world.add(worker("a"), worker("b"), worker("c"))
    settle(world, wanted=3)
    lost = {s for s, e in world.shards.items() if e.owner == "b"}
    world.die("b")
    moved = {s for a in act(world, wanted=3) for s in a.shards}  # type: ignore[union-attr]  # none is a NoTaker
    assert moved == lost


def test_a_refused_stream_fails_over_before_the_lease_ends() -> None:
    world = World()
    world.add(worker("a"), worker("b"))
    settle(world, wanted=2)
    world.change("b", gone=True, report=None)
    actions = act(world, wanted=2)
    assert {type(a) for a in actions} == {Failover}
    assert all(a.target == "a" and "refuses" in a.reason for a in actions if isinstance(a, Failover))


@pytest.mark.parametrize("heard", [True, False])
def test_silence_or_a_missed_probe_is_settled_by_the_lease(heard: bool) -> None:
    world = World()
    world.add(worker("a"), worker("b"))
    settle(world, wanted=2)
    world.change("b", report=report(ready=False) if heard else None)
    assert act(world, wanted=2) == []


def test_a_join_moves_only_the_joiners_share() -> None:
    world = World()
    world.add(worker("a"), worker("b"))
    settle(world, wanted=2)
    world.add(worker("c"))
    planned = [s for a in act(world, wanted=3) for s in a.shards if isinstance(a, Plan)]  # type: ignore[union-attr]
    assert len(planned) == 2
    settle(world, wanted=3)
    assert sorted(owners(world).values()) == [2, 3, 3]


def test_a_draining_owner_is_planned_away_and_never_failed_over() -> None:
    world = World()
    world.add(worker("a"), worker("b"))
    settle(world, wanted=2)
    world.change("b", draining=True)
    actions = act(world, now=100.0, wanted=1)
    assert {type(a) for a in actions} == {Plan}
    settle(world)
    assert owners(world) == {"a": 8}


def test_the_deadline_runs_from_the_stop() -> None:
    world = World()
    world.add(worker("a"), worker("b"))
    world.own("a", range(8))
    for action in act(world, wanted=2):
        world.apply(action)
    shard = min(world.moves)
    assert act(world, now=1000.0, wanted=2) == [], "an owner that has not stopped is still serving"
    world.stopped[shard] = 1000.0
    deadline = 1000.0 + limits.HANDOFF_DEADLINE_SECONDS
    assert act(world, now=deadline - 0.01, wanted=2) == []
    (action,) = act(world, now=deadline, wanted=2)
    assert isinstance(action, Failover)
    assert action.shards == (shard,)
    assert coordination.next_deadline(world.seen()) == deadline


def test_a_plan_to_a_worker_that_died_is_made_anew() -> None:
    world = World()
    world.add(worker("a"), worker("b"))
    world.own("a", range(8))
    for action in act(world, wanted=2):
        world.apply(action)
    world.die("b")
    assert {type(a) for a in act(world)} == {Cancel}
    world.add(worker("c"))
    assert all(isinstance(a, Plan | Cancel) and getattr(a, "target", "c") == "c" for a in act(world, wanted=2))


def cut(world: World, name: str, seconds: float) -> None:
    world.workers[name] = replace(world.workers[name], unreachable=seconds)


def test_an_owner_that_gateways_do_not_reach_is_planned_away_and_fails_over_late() -> None:
    world = World()
    world.add(worker("a"), worker("b"))
    settle(world, wanted=2)
    lost = tuple(shard for shard, entry in world.shards.items() if entry.owner == "a")
    cut(world, "a", limits.UNREACHABLE_SECONDS - 0.1)
    assert act(world, wanted=2) == []
    cut(world, "a", limits.UNREACHABLE_SECONDS)
    (plan,) = act(world, wanted=2)
    assert plan == Plan("b", lost, "more than half of the gateways cannot connect to a")
    world.apply(plan)
    assert act(world, wanted=2) == []
    cut(world, "a", limits.UNREACHABLE_FAILOVER_SECONDS)
    world.stopped = dict.fromkeys(lost, 5.0)
    assert act(world, 5.0 + HANDOFF_DEADLINE - 0.01, wanted=2) == [], "what is being handed over has its own deadline"
    world.stopped.clear()
    (failover,) = act(world, wanted=2)
    assert failover == Failover("b", lost, "gateways have not reached a for 15 s")
    world.apply(failover)
    assert act(world, wanted=2) == []
    cut(world, "a", 0)
    settle(world, wanted=2)
    assert owners(world) == {"a": 4, "b": 4}


def off(world: World, *names: str) -> None:
    for name in names:
        said = report(ready=False)
        said.clock_off = True
        world.change(name, report=said)


def test_an_owner_whose_clock_is_off_is_planned_away_and_gets_its_share_back() -> None:
    world = World()
    world.add(worker("a"), worker("b"))
    settle(world, wanted=2)
    lost = tuple(shard for shard, entry in world.shards.items() if entry.owner == "a")
    off(world, "a")
    assert act(world, wanted=2) == [Plan("b", lost, "the clock of a is off")]
    settle(world, wanted=2)
    assert owners(world) == {"b": 8}
    world.change("a", report=report())
    settle(world, wanted=2)
    assert owners(world) == {"a": 4, "b": 4}


def test_where_every_clock_is_off_owners_keep_what_they_have_and_none_leaves() -> None:
    world = World()
    world.add(worker("a"), worker("b"))
    settle(world, wanted=2)
    off(world, "a", "b")
    assert act(world, wanted=2, coming=True) == act(world, wanted=2) == []
    assert owners(world) == {"a": 4, "b": 4}


def test_where_no_owner_is_reached_or_it_is_not_heard_it_keeps_what_it_has() -> None:
    world = World()
    world.add(worker("a"), worker("b"))
    settle(world, wanted=2)
    for name in ("a", "b"):
        cut(world, name, 60)
    assert act(world, wanted=2) == []
    cut(world, "b", 0)
    world.workers["a"] = replace(world.workers["a"], report=None)
    assert act(world, wanted=2) == [], "it may be busy: its lease decides"


def test_one_that_drains_hands_over_to_one_out_of_reach_if_there_is_no_other() -> None:
    world = World()
    world.add(worker("a", draining=True), worker("b"))
    world.own("a", range(8))
    cut(world, "b", 60)
    (plan,) = act(world)
    assert plan == Plan("b", tuple(range(8)), "a is draining")


def test_nobody_can_take_and_nobody_is_coming() -> None:
    world = World()
    world.add(worker("a"))
    settle(world)
    world.change("a", draining=True)
    assert act(world, wanted=0) == [NoTaker("a", "no worker can take its shards and none is coming")]


def test_a_drain_waits_for_a_worker_that_is_coming() -> None:
    world = World()
    world.add(worker("a"))
    settle(world)
    world.change("a", draining=True)
    assert act(world, wanted=1, coming=True) == []
    assert act(world, wanted=0, coming=True) == act(world, wanted=0), "one that starts though none is wanted is not waited for"
    world.add(worker("b"))
    assert {type(a) for a in act(world, wanted=1)} == {Plan}


def test_a_draining_worker_with_a_plan_to_nowhere_is_told_both() -> None:
    world = World()
    world.add(worker("a"))
    settle(world)
    world.moves[3] = MoveSeen("dead", 99)
    world.change("a", draining=True)
    assert [type(a) for a in act(world, wanted=0)] == [Cancel, NoTaker]


def test_stateless_and_deleted_functions_have_nothing_to_hand_over() -> None:
    for changed in (entry(shards=0), entry(deleting=True)):
        world = World(entry=changed)
        world.add(worker("a", draining=True), worker("b"))
        assert [a.worker for a in act(world) if isinstance(a, NoTaker)] == ["a"]
        assert len(act(world)) == 1


# ---------------------------------------------------------------------------------------------------------------------- rollouts


def rollout(*, proved: str) -> World:
    world = World(entry=entry(revision=OLD, proved=OLD))
    world.add(worker("old-1", revision=OLD), worker("old-2", revision=OLD))
    settle(world, wanted=2)
    world.entry = entry(revision=NEW, proved=proved)
    return world


def test_old_owners_keep_their_shards_until_enough_new_ones_are_ready() -> None:
    world = rollout(proved=NEW)
    world.add(worker("new-1"))
    assert act(world, wanted=2) == []
    world.add(worker("new-2"))
    assert {type(a) for a in act(world, wanted=2)} == {Plan}
    settle(world, wanted=2)
    assert owners(world) == {"new-1": 4, "new-2": 4}


def test_a_dead_old_owners_shards_go_to_the_new_revision() -> None:
    world = rollout(proved=NEW)
    world.add(worker("new-1"))
    world.die("old-2")
    actions = act(world, wanted=2)
    assert {(type(a), getattr(a, "target", "")) for a in actions} == {(Failover, "new-1")}


def test_a_draining_old_owner_moves_to_the_new_revision_at_once() -> None:
    world = rollout(proved=NEW)
    world.add(worker("new-1"))
    world.change("old-1", draining=True)
    assert {(type(a), getattr(a, "target", "")) for a in act(world, wanted=2)} == {(Plan, "new-1")}


def test_a_new_worker_that_has_not_proved_its_revision_takes_nothing_from_the_healthy() -> None:
    world = rollout(proved=OLD)
    world.add(worker("new-1", heard=False))
    assert act(world, wanted=1) == []


def test_while_the_new_revision_is_not_proved_the_old_one_serves() -> None:
    world = rollout(proved=OLD)
    world.die("old-2")
    actions = act(world, wanted=1)
    assert {(type(a), getattr(a, "target", "")) for a in actions} == {(Failover, "old-1")}


def test_a_proved_revision_that_wobbles_never_brings_the_old_one_back() -> None:
    """knative/serving#12078: weeks after a rollout the old revision answered again."""
    world = rollout(proved=NEW)
    world.add(worker("new-1"), worker("new-2"))
    settle(world, wanted=2)
    world.die("new-1")
    world.die("new-2")
    assert act(world, wanted=2, coming=True) == act(world, wanted=2) == []


def test_negative_control_without_the_proof_the_old_revision_would_come_back() -> None:
    world = rollout(proved=NEW)
    world.own("dead", range(8))
    world.entry = entry(revision=NEW, proved=OLD)
    assert any(isinstance(a, Failover) and a.target.startswith("old") for a in act(world))


# ------------------------------------------------------------------------------------------------- every interruption of a plan

names = st.sampled_from(["a", "b", "c", "d"])
events = st.one_of(
    st.tuples(st.just("join"), names, st.sampled_from([OLD, NEW])),
    st.tuples(st.just("die"), names),
    st.tuples(st.just("drain"), names),
    st.tuples(st.just("gone"), names),
    st.tuples(st.just("prove")),
    st.tuples(st.just("apply"), st.integers(0, 10)),
    st.tuples(st.just("hand"), st.integers(0, 7)),
    st.tuples(st.just("stop"), st.integers(0, 7)),
    st.tuples(st.just("wait"), st.floats(0.1, 3)),
)


@settings(max_examples=400, deadline=None)
@given(st.lists(events, max_size=40), st.integers(1, 3))
def test_after_any_interruption_it_is_safe_and_settles(history: list[tuple[object, ...]], wanted: int) -> None:
    world, now, joined = World(entry=entry(proved=OLD)), 0.0, 0
    for kind, *args in history:
        match kind:
            case "join":
                joined += 1
                world.add(worker(f"{args[0]}{joined}", revision=str(args[1])))
            case "die" | "drain" | "gone":
                for name in [n for n in world.workers if n.startswith(str(args[0]))]:
                    if kind == "die":
                        world.die(name)
                    elif kind == "drain":
                        world.change(name, draining=True)
                    else:
                        world.change(name, gone=True, report=None)
            case "prove":
                world.entry = entry(proved=NEW)
            case "wait":
                now += float(str(args[0]))
            case "hand":
                if int(str(args[0])) in world.shards:
                    world.hand_off(int(str(args[0])))
            case "stop":
                if int(str(args[0])) in world.moves:
                    world.stopped.setdefault(int(str(args[0])), now)
            case "apply":
                actions = act(world, now, wanted=wanted)
                check(world, actions, now)
                for action in actions[: int(str(args[0]))]:
                    world.apply(action)
    # From here nothing interferes: three healthy workers of the proved revision, and everybody else leaves.
    world.entry = entry(proved=NEW)
    for name in list(world.workers):
        world.die(name)
    world.stopped.clear()
    world.add(worker("x"), worker("y"), worker("z"))
    settle(world, wanted=wanted)
    assert sorted(owners(world).values()) == [2, 3, 3]
    assert not world.moves


def check(world: World, actions: list[Action], now: float) -> None:
    """What must hold of every action, whatever happened before."""
    touched: list[int] = []
    for action in actions:
        assert action.reason
        if isinstance(action, NoTaker):
            assert world.workers[action.worker].draining
            continue
        touched += action.shards
        if isinstance(action, Cancel):
            continue
        target = world.workers[action.target]
        assert target.serving
        if world.entry.proved_revision == NEW:
            assert target.revision == NEW, "a proved revision never gives a shard back to an old one"
        for shard in action.shards:
            owner = world.workers.get(world.shards[shard].owner) if shard in world.shards else None
            if isinstance(action, Failover) and owner is not None and not owner.gone:
                assert now - world.stopped[shard] >= HANDOFF_DEADLINE, "a shard was taken from a living owner"
            if isinstance(action, Plan):
                assert owner is not None
                assert not owner.gone
            if isinstance(action, Assign):
                assert shard not in world.shards
    assert len(touched) == len(set(touched)), "two actions on one shard in one round"
