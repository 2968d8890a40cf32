"""How many workers of which revision, proofs, problems, victims, deletion."""

from dataclasses import replace

import pytest
from dormouse_core import lifecycle, limits, separate
from dormouse_core.autoscaling import Autoscaler, Decision, Scaling, Workers
from dormouse_core.demand import Averages, Measured
from dormouse_core.errors import Code
from dormouse_core.lifecycle import Forsake, Prove, Purge, Report, Scale, Separate
from dormouse_operator.functions import more
from dormouse_proto import state_pb2
from dormouse_testing.functions_seen import NEW, OLD, World, entry, instance, report, worker

AUTO_0, AUTO_1, AUTO_2 = (Decision(n, "by load") for n in range(3))
STOPPED = Decision(0, "replicas is set to 0", fixed=True)


def live(world: World, decision: Decision) -> list[lifecycle.Step]:
    return lifecycle.live(world.seen(), decision)


def scales(world: World, decision: Decision) -> list[tuple[str, int]]:
    return [(s.revision, s.count) for s in live(world, decision) if isinstance(s, Scale)]


def test_an_unproved_revision_is_tried_by_one_worker_whatever_the_demand() -> None:
    for decision in (AUTO_0, AUTO_2, Decision(5, "fixed", fixed=True)):
        assert scales(World(entry=entry(proved="")), decision) == [(NEW, 1)]


def test_a_stopped_function_is_not_even_tried() -> None:
    assert scales(World(entry=entry(proved="")), STOPPED) == []


def test_a_worker_that_loaded_the_model_proves_it() -> None:
    world = World(entry=entry(proved=""), instances=[instance("i-a")])
    world.add(worker("a"))
    (step,) = live(world, AUTO_0)
    assert isinstance(step, Prove)
    assert step.metadata.platform == "onnxruntime_onnx"


@pytest.mark.parametrize("silent", [worker("a", heard=False), worker("a", said=report(ready=False)), worker("a", revision=OLD)])
def test_others_do_not_prove_it(silent: lifecycle.WorkerSeen) -> None:
    world = World(entry=entry(proved=""), instances=[instance("i-a")])
    world.add(silent)
    assert not any(isinstance(s, Prove) for s in live(world, AUTO_0))


def test_a_proved_function_scales_by_its_decision() -> None:
    assert scales(World(), AUTO_0) == []
    assert scales(World(), AUTO_2) == [(NEW, 2)]
    assert scales(World(instances=[instance("i-a"), instance("i-b")]), AUTO_2) == []
    assert scales(World(instances=[instance("i-a"), instance("i-b")]), AUTO_0) == [(NEW, 0)]
    assert scales(World(instances=[instance("i-a", stopping=True)]), AUTO_1) == [(NEW, 1)]


def test_beside_workers_out_of_reach_as_many_run_and_those_go_first() -> None:
    world = World(instances=[instance(f"i-{name}") for name in "abc"])
    far = {"unreachable": limits.UNREACHABLE_SECONDS}
    world.add(worker("a"), replace(worker("b"), **far), worker("c", said=report(state_bytes=9)))
    (step,) = live(world, Decision(3, "by load"))
    assert isinstance(step, Scale)
    assert (step.count, step.reason) == (4, "by load; in place of workers that serve nobody: 1")
    (fewer,) = live(world, AUTO_1)
    assert isinstance(fewer, Scale)
    assert (fewer.count, fewer.victims[0]) == (2, "i-b")
    assert scales(world, STOPPED) == [(NEW, 0)]
    for name in "ac":
        world.workers[name] = replace(world.workers[name], **far)
    assert scales(world, AUTO_1) == [(NEW, 2)], "at most as many as are wanted"


def test_workers_that_keep_sessions_elsewhere_are_replaced_and_go_when_others_serve_or_need_the_place() -> None:
    world = World(entry=entry(proved=""), instances=[instance("i-a")])
    world.add(worker("a", elsewhere=True))
    (step,) = live(world, AUTO_1)
    assert isinstance(step, Scale)
    assert (step.count, step.victims) == (2, ("i-a",)), "it proves nothing, and one is started beside it"
    world.instances = [instance("i-a"), replace(instance("i-b"), unplaced=True)]
    (step,) = live(world, AUTO_1)
    assert isinstance(step, Scale)
    assert (step.count, step.victims[0]) == (1, "i-a")
    world.instances = [instance("i-a"), instance("i-b")]
    world.add(worker("b", elsewhere=True))
    assert scales(world, AUTO_1) == [], "an image that knows no store id is not started again and again"
    world.entry = entry()
    world.add(worker("b"))
    (step,) = live(world, AUTO_1)
    assert isinstance(step, Scale)
    assert (step.count, step.victims[0]) == (1, "i-a")


def test_an_old_revision_stays_while_the_new_ones_worker_is_out_of_reach() -> None:
    world = World(instances=[instance("i-a", revision=OLD), instance("i-b")])
    world.add(worker("a", revision=OLD), worker("b"))
    assert (OLD, 0) in scales(world, AUTO_1)
    world.workers["b"] = replace(world.workers["b"], unreachable=limits.UNREACHABLE_SECONDS)
    assert OLD not in {revision for revision, _ in scales(world, AUTO_1)}


def test_an_unknown_provider_is_asked_for_nothing() -> None:
    world = World(instances=None)
    assert live(world, AUTO_2) == []
    assert lifecycle.unknown(world.seen()) == ("the provider does not answer",)


def test_workers_with_a_lease_and_no_stream_are_unknown() -> None:
    world = World()
    world.add(worker("a", heard=False), worker("b"), worker("c", gone=True))
    assert lifecycle.unknown(world.seen()) == ("worker a has a lease but is not heard",)


def test_an_instance_without_a_serving_worker_is_starting() -> None:
    world = World(instances=[instance(f"i-{n}") for n in "abc"] + [instance("i-d", revision=OLD), instance("i-e", stopping=True)])
    world.add(worker("a"), worker("b", gone=True), worker("d", revision=OLD))
    assert lifecycle.count(world.seen()) == Workers(ready=1, starting=2)
    assert lifecycle.coming(world.seen(), {}, 0.0)


def test_a_worker_that_the_provider_does_not_have_is_not_ordered_again_and_again() -> None:
    """Registered under no instance, and not heard: what is not known takes nothing away, and it adds nothing either."""
    world, autoscaler = World(instances=[instance("i-a")]), Autoscaler()
    world.add(worker("a"), worker("orphan", heard=False))
    none = Averages(0.0, 0.0)
    measured = Measured(none, none, none, running=0, held=0, live_sessions=0, idle=0.0, watched=1000.0)
    for second in range(30):
        seen = world.seen()
        decision = autoscaler.decide(Scaling(minimum=1), measured, lifecycle.count(seen), lifecycle.unknown(seen), float(second))
        for _, count in scales(world, decision):
            world.instances = [instance("i-a"), *(instance(f"i-{number}") for number in range(1, count))]
            world.add(*(worker(str(number)) for number in range(1, count)))
    assert len(world.instances or ()) == 1


def test_a_draining_workers_instance_is_not_coming() -> None:
    world = World(instances=[instance("i-a", stopping=True)])
    world.add(worker("a", draining=True))
    assert lifecycle.count(world.seen()) == Workers(ready=0, starting=0)
    assert not lifecycle.coming(world.seen(), {"a": 0.0}, 0.0)


def test_until_its_provider_says_that_a_draining_worker_goes_it_is_not_known_that_none_comes() -> None:
    """Evicted: its store entry says that it drains before its pod does, and only with that is another in its place."""
    world = World(instances=[instance("i-a")])
    world.add(worker("a", draining=True))
    drains = lifecycle.draining(world.seen(), {}, 7.0)
    assert drains == {"a": 7.0} == lifecycle.draining(world.seen(), drains, 8.0)
    assert lifecycle.coming(world.seen(), drains, 7.0 + limits.SUCCESSOR_SECONDS - 0.1)
    assert not lifecycle.coming(world.seen(), drains, 7.0 + limits.SUCCESSOR_SECONDS), "it says that no other comes, or nothing at all"
    world.instances = [instance("i-a", stopping=True), instance("f-r/0")]
    assert lifecycle.coming(world.seen(), drains, 60.0)


def test_one_whose_room_another_of_the_function_still_has_is_not_waited_for_by_that_one() -> None:
    """A namespace's quota counts a pod until it has ended."""
    next_one = replace(instance("f-r/0"), unplaced=True, room="namespace")
    world = World(instances=[instance("i-a", stopping=True), next_one])
    world.add(worker("a", draining=True))
    assert not lifecycle.coming(world.seen(), {"a": 0.0}, 0.0)
    world.instances = [instance("i-a", stopping=True), replace(next_one, room="node")]
    assert lifecycle.coming(world.seen(), {"a": 0.0}, 0.0), "a node may come"


def test_an_instance_between_two_tries_is_starting_but_nobody_waits_for_it() -> None:
    world = World(instances=[instance("i-a", exited=True)])
    assert lifecycle.count(world.seen()) == Workers(ready=0, starting=1)
    assert not lifecycle.coming(world.seen(), {}, 0.0)


# ---------------------------------------------------------------------------------------------------------------------- problems


def failed(proved: str = "", serving: bool = False) -> World:
    world = World(entry=entry(proved=proved), instances=[instance("i-a", exited=True, problem="opset 99 found, 21 is allowed")])
    if serving:
        world.add(worker("old", revision=OLD))
    return world


def test_a_failed_instance_is_reported_once_with_its_revision() -> None:
    world = failed()
    (step,) = live(world, AUTO_0)
    assert isinstance(step, Report)
    assert (step.problem.reason, step.problem.revision) == ("ModelInvalid", NEW)
    world.entry.problem.CopyFrom(step.problem)
    assert live(world, AUTO_0) == []


def test_old_workers_go_on_serving_a_revision_that_fails() -> None:
    world = failed(proved=OLD, serving=True)
    world.instances = [*(world.instances or []), instance("i-old", revision=OLD)]
    assert scales(world, AUTO_0) == []


def kept(instances: int = 0) -> World:
    """A new revision that fails beside one that was proved and can be started."""
    world = failed(proved=OLD)
    world.entry.problem.CopyFrom(state_pb2.Problem(code=9, reason="ModelInvalid", message="opset 99", revision=NEW))
    world.entry.proved_spec = b"{}"
    world.instances = [*(world.instances or []), *(instance(f"i-{n}", revision=OLD) for n in range(instances))]
    world.add(*(worker(f"{n}", revision=OLD) for n in range(instances)))
    return world


def test_beside_a_revision_that_fails_the_proved_one_scales_sleeps_and_is_woken() -> None:
    assert scales(kept(1), AUTO_1) == []
    assert scales(kept(1), AUTO_2) == [(OLD, 2)]
    assert scales(kept(2), AUTO_0) == [(OLD, 0)]
    assert scales(kept(), AUTO_0) == []
    assert scales(kept(), AUTO_1) == [(OLD, 1)]
    assert set(scales(kept(1), STOPPED)) == {(OLD, 0), (NEW, 0)}
    assert lifecycle.count(kept(2).seen()) == Workers(ready=2), "the autoscaler's own count is of those that serve"


def test_negative_control_without_its_spec_the_proved_one_is_not_woken() -> None:
    world = kept()
    world.entry.ClearField("proved_spec")
    assert scales(world, AUTO_1) == []


def gone_from_its_place(code: Code = Code.FAILED_PRECONDITION) -> World:
    """Beside a revision that fails, the proved one cannot be started again: its bytes were edited."""
    world = kept()
    world.entry.problem.message = "opset 99 found, 21 is allowed"
    changed = instance("i-old", revision=OLD, exited=True, problem="other bytes")
    assert changed.problem is not None
    changed.problem.code = int(code)
    world.instances = [*(world.instances or []), changed]
    return world


def test_a_proved_revision_whose_content_is_gone_is_not_waited_for() -> None:
    """While the wanted one has a problem. Its callers are told that instead of being held."""
    (step,) = [s for s in live(gone_from_its_place(), AUTO_1) if isinstance(s, Forsake)]
    assert "other bytes" in step.reason
    serving = gone_from_its_place()
    serving.add(worker("old", revision=OLD))
    for world in (serving, gone_from_its_place(Code.UNAVAILABLE), kept()):
        assert not [s for s in live(world, AUTO_1) if isinstance(s, Forsake)], "one that serves, or may come, is waited for"


def test_a_ready_worker_clears_the_problem() -> None:
    world = failed(proved=NEW)
    world.entry.problem.CopyFrom(state_pb2.Problem(code=14, reason="ModelUnavailable", message="404"))
    world.add(worker("a"))
    assert isinstance(live(world, AUTO_1)[0], Prove)


def test_a_proved_function_with_a_problem_does_not_sleep() -> None:
    """Its callers are refused without being held, so nothing would wake it when the cause is gone."""
    world = failed(proved=NEW)
    world.entry.problem.CopyFrom(state_pb2.Problem(code=14, reason="ModelUnavailable", message="404"))
    assert lifecycle.wanted_of_target(world.seen(), AUTO_0)[0] == 1
    assert lifecycle.wanted_of_target(world.seen(), STOPPED)[0] == 0


# ---------------------------------------------------------------------------------------------------------------------- rollouts


def rollout(new: int, *, proved: str = NEW) -> World:
    world = World(entry=entry(proved=proved))
    world.instances = [instance(f"i-old-{n}", revision=OLD) for n in range(2)] + [instance(f"i-new-{n}") for n in range(new)]
    world.add(*(worker(f"old-{n}", revision=OLD) for n in range(2)), *(worker(f"new-{n}") for n in range(new)))
    return world


def test_a_rollout_starts_new_ones_before_it_drops_old_ones() -> None:
    assert scales(rollout(0, proved=OLD), AUTO_2) == [(NEW, 1)]
    assert scales(rollout(1), AUTO_2) == [(NEW, 2)]
    assert scales(rollout(2), AUTO_2) == [(OLD, 0)]


def test_a_function_that_should_sleep_drops_both() -> None:
    assert set(scales(rollout(1), AUTO_0)) == {(NEW, 0), (OLD, 0)}


def test_new_ones_that_registered_and_are_not_ready_replace_nobody() -> None:
    world = rollout(2)
    world.change("new-1", report=report(ready=False))
    assert scales(world, AUTO_2) == []


# ---------------------------------------------------------------------------------------------------------------------- victims


def test_the_cheapest_to_move_goes_first_and_what_is_not_heard_is_dear() -> None:
    world = World(instances=[instance(f"i-{n}") for n in ("big", "small", "starting", "mute")] + [instance("i-broken", exited=True)])
    world.add(
        worker("big", said=report(state_bytes=900, sessions=9)),
        worker("small", said=report(state_bytes=10, sessions=50)),
        worker("mute", heard=False),
    )
    (step,) = live(world, AUTO_1)
    assert isinstance(step, Scale)
    assert step.victims == ("i-broken", "i-starting", "i-small", "i-big", "i-mute")


# ---------------------------------------------------------------------------------------------------------------------- deletion


def test_a_deleted_function_loses_workers_then_everything_else() -> None:
    world = World(entry=entry(deleting=True), instances=[instance("i-a"), instance("i-old", revision=OLD)])
    world.add(worker("a"))
    assert sorted(scales(world, AUTO_2)) == [(NEW, 0), (OLD, 0)]
    world.instances = [instance("i-a", stopping=True)]
    assert live(world, AUTO_2) == []
    world.instances = []
    assert live(world, AUTO_2) == [], "a worker whose lease lives may still write"
    world.die("a")
    assert [type(s) for s in live(world, AUTO_2)] == [Purge]


def test_a_deleted_function_is_not_purged_on_what_is_not_known() -> None:
    assert live(World(entry=entry(deleting=True), instances=None), AUTO_0) == []


def looked(name: str, key: str) -> lifecycle.WorkerSeen:
    said = report()
    said.metadata.batching.key = key
    return worker(name, said=said)


@pytest.mark.parametrize(
    ("keys", "written"),
    [((), None), (("kept",), None), (("other",), "other"), (("kept", "other"), None), (("other", "kept"), None), (("", ""), "")],
)
def test_what_is_kept_with_the_proof_is_what_a_worker_has_loaded(keys: tuple[str, ...], written: str | None) -> None:
    """Another model file under the same uri, another runtime. Workers that disagree do not have it written in turns, for ever."""
    world = World(instances=[instance(f"i-{n}") for n in range(len(keys))])
    world.entry.metadata.batching.key = "kept"
    world.add(*(looked(str(n), key) for n, key in enumerate(keys)))
    proofs = [step for step in live(world, Decision(len(keys), "by load")) if isinstance(step, Prove)]
    assert [step.metadata.batching.key for step in proofs] == ([] if written is None else [written])


def batching(key: str = "kept", *forms: str) -> state_pb2.Batching:
    return state_pb2.Batching(key=key, rows=32, reason="Independent", message="Why.", alone=[form(each) for each in forms])


def form(name: str) -> state_pb2.Batching.Form:
    return state_pb2.Batching.Form(key=name.encode(), why=f"x [{name}]: differs")


def served_by(kept: state_pb2.Batching, **found: state_pb2.Batching) -> World:
    """A proved function, and workers by what they found."""
    world = World(instances=[instance(f"i-{name}") for name in found])
    world.entry.metadata.batching.CopyFrom(kept)
    for name, each in found.items():
        said = report()
        said.metadata.batching.CopyFrom(each)
        world.add(worker(name, said=said))
    return world


def entry_steps(world: World) -> list[lifecycle.Step]:
    return [step for step in live(world, Decision(len(world.workers), "by load")) if not isinstance(step, Scale)]


def test_calls_that_a_worker_found_to_run_alone_are_kept_with_the_proof_and_told_to_the_others() -> None:
    world = served_by(batching("kept", "5"), a=batching("kept", "5"), b=batching("kept", "5", "7"))
    (step,) = entry_steps(world)
    assert isinstance(step, Separate)
    assert (step.worker, step.forms) == ("b", ("x [7]: differs",))
    assert step.batching == batching("kept", "5", "7")
    assert lifecycle.uninformed(world.seen()) == []
    world.entry.metadata.batching.CopyFrom(step.batching)
    assert entry_steps(world) == [], "and not written again"
    assert lifecycle.uninformed(world.seen()) == ["a"]


def test_a_worker_that_knows_less_of_them_takes_nothing_away() -> None:
    """One that started meanwhile reports the experiment alone; one that proves the revision again keeps what is known."""
    assert entry_steps(served_by(batching("kept", "5"), a=batching())) == []
    world = served_by(batching("kept", "5"), a=batching())
    world.entry.problem.message = "it was away"
    (step,) = entry_steps(world)
    assert isinstance(step, Prove)
    assert step.metadata.batching == batching("kept", "5")


def test_another_model_has_forms_of_its_own() -> None:
    (step,) = entry_steps(served_by(batching("kept", "5"), a=batching("other", "7")))
    assert isinstance(step, Prove)
    assert step.metadata.batching == batching("other", "7")
    world = served_by(batching("kept", "5"), a=batching(), b=batching("other", "7"))
    assert entry_steps(world) == []
    assert lifecycle.uninformed(world.seen()) == ["a"]


def test_an_entry_keeps_some_forms_and_workers_find_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "FORMS_KEPT", 2)
    (step,) = entry_steps(served_by(batching("kept", "5"), a=batching("kept", "7", "8")))
    assert isinstance(step, Separate)
    assert (step.forms, step.batching) == (("x [7]: differs",), batching("kept", "5", "7"))
    assert entry_steps(served_by(batching("kept", "5", "7"), a=batching("kept", "8"))) == []
    (step,) = entry_steps(served_by(batching(), a=batching("kept", "x" * 2000)))
    assert isinstance(step, Separate)
    assert [len(each.why) for each in step.batching.alone] == [limits.FORM_CHARACTERS]
    assert separate.joined(batching("kept", "5"), batching("another", "7", "8", "9")) == batching("another", "7", "8")


def test_a_worker_that_does_not_say_what_it_loaded_takes_nothing_away() -> None:
    world = World(instances=[instance("i-a")])
    world.entry.metadata.batching.key = "kept"
    said = report()
    said.ClearField("metadata")
    world.add(worker("a", said=said))
    assert not any(isinstance(step, Prove) for step in live(world, AUTO_1))


# ------------------------------------------------------------------------------------------------------------------ lost nodes


def test_an_instance_on_a_lost_node_counts_for_nothing_and_another_is_ordered() -> None:
    world = World(instances=[replace(instance("i-1"), lost=True)])
    assert lifecycle.count(world.seen()) == Workers(ready=0, starting=0)
    assert not lifecycle.coming(world.seen(), {}, 0.0)
    assert scales(world, AUTO_1) == [(NEW, 1)]
    world.instances = [replace(instance("i-1"), lost=True), instance("i-2")]
    assert scales(world, AUTO_1) == []


def test_negative_control_one_on_a_silent_node_that_is_not_lost_counts_as_starting() -> None:
    world = World(instances=[instance("i-1")])
    assert lifecycle.count(world.seen()) == Workers(ready=0, starting=1)
    assert scales(world, AUTO_1) == []


def test_where_nobody_is_to_run_lost_ones_are_stopped_too() -> None:
    world = World(instances=[replace(instance("i-1"), lost=True)])
    world.entry.proved_revision = world.entry.revision
    assert scales(world, AUTO_0) == [(NEW, 0)]
    world.entry.deleting = True
    assert scales(world, AUTO_0) == [(NEW, 0)]
    world.instances = [replace(instance("i-1"), lost=True, stopping=True)]
    assert scales(world, AUTO_0) == []


def test_one_that_is_lost_is_no_reason_to_start_fewer() -> None:
    world = World(instances=[replace(instance("i-1"), lost=True)])
    [step] = [s for s in live(world, AUTO_2) if isinstance(s, Scale)]
    assert more(world.seen(), step) == 2


def test_lost_ones_of_a_superseded_revision_are_stopped() -> None:
    world = World(entry=entry(proved=NEW), instances=[replace(instance("i-0", revision=OLD), lost=True), instance("i-1")])
    world.add(worker("1"))
    assert (OLD, 0) in scales(world, AUTO_1)


def test_when_its_node_comes_back_the_surplus_goes_and_it_is_who_serves_nobody() -> None:
    world = World(instances=[instance("i-1"), instance("i-2")])
    world.add(worker("2"))
    [step] = [s for s in live(world, AUTO_1) if isinstance(s, Scale)]
    assert (step.count, step.victims[0]) == (1, "i-1")
