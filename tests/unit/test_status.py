"""What `dormouse get` says of a function: its phase, and conditions of one sentence each."""

import itertools

import pytest
from dormouse import printing
from dormouse_core import readiness
from dormouse_core.autoscaling import Decision
from dormouse_core.spec import parse_manifest, spec_to_json
from dormouse_operator.counting import Figures
from dormouse_operator.status import Times, status
from dormouse_proto import control_pb2, state_pb2
from dormouse_testing.functions_seen import NEW, OLD, World, entry, instance, worker
from dormouse_testing.manifests import onnx

AUTO = spec_to_json(parse_manifest(onnx()).spec)
STOPPED = spec_to_json(parse_manifest(onnx(replicas=0)).spec)
PROBLEM = state_pb2.Problem(code=9, reason="ModelInvalid", message="opset 99 found", revision=NEW)


def made(*, spec: bytes = AUTO, proved: str = NEW, problem: bool = False, deleting: bool = False) -> World:
    world = World(entry=entry(proved=proved, deleting=deleting))
    world.entry.spec = spec
    if problem:
        world.entry.problem.CopyFrom(PROBLEM)
    return world


def told(world: World, wanted: int, *, fixed: bool = False, times: Times | None = None, now: int = 5) -> control_pb2.FunctionStatus:
    return status(world.seen(), Decision(wanted, "by load", fixed=fixed), times or Times(), now)


def condition(seen: control_pb2.FunctionStatus, kind: str) -> control_pb2.Condition:
    (found,) = [c for c in seen.conditions if c.type == kind]
    return found


@pytest.mark.parametrize(
    ("world", "wanted", "serving", "phase", "able"),
    [
        (made(proved=""), 0, 0, "Verifying", "False"),
        (made(), 0, 0, "Asleep", "True"),
        (made(), 1, 0, "Waking", "True"),
        (made(), 1, 1, "Ready", "True"),
        (made(problem=True), 0, 0, "Failed", "False"),
        (made(proved="", problem=True), 1, 1, "Failed", "False"),
        (made(proved=""), 1, 1, "Verifying", "False"),
        (made(spec=STOPPED), 1, 1, "Stopped", "False"),  # decided before it was stopped
        (made(spec=STOPPED), 0, 0, "Stopped", "False"),
        (made(deleting=True), 1, 1, "Deleting", "False"),
    ],
)
def test_phases(world: World, wanted: int, serving: int, phase: str, able: str) -> None:
    world.add(*(worker(f"w{n}") for n in range(serving)))
    seen = told(world, wanted, fixed=world.entry.spec == STOPPED)
    assert seen.phase == phase
    assert condition(seen, "Ready").status == able
    assert condition(seen, "Ready").reason == phase
    for c in seen.conditions:
        assert c.message.strip()


@pytest.mark.parametrize(("wanted", "serving", "phase"), [(0, 0, "Asleep"), (1, 0, "Waking"), (1, 1, "Serving")])
def test_a_revision_that_fails_beside_a_proved_one_is_a_condition_and_no_phase(wanted: int, serving: int, phase: str) -> None:
    world = made(proved=OLD, problem=True)
    world.entry.proved_spec = AUTO
    world.add(*(worker(f"w{n}", revision=OLD) for n in range(serving)))
    seen = told(world, wanted)
    assert seen.phase == phase
    assert condition(seen, "ModelReady").reason == "ModelInvalid"
    assert (condition(seen, "Ready").status, condition(seen, "Ready").reason) == ("False", "ModelInvalid")
    assert condition(seen, "Serving").status == "True"


@pytest.mark.parametrize(
    ("proved", "kept", "problem", "served"),
    [("", False, False, ""), ("", False, True, ""), (NEW, False, False, NEW), (OLD, True, False, OLD), (OLD, True, True, OLD)],
)
def test_the_revision_is_the_one_that_is_served_and_the_wanted_one_is_told_beside_it(
    proved: str, kept: bool, problem: bool, served: str
) -> None:
    world = made(proved=proved, problem=problem)
    world.entry.proved_spec = AUTO if kept else b""
    seen = told(world, 0)
    assert (seen.revision, seen.wanted_revision) == (served, NEW)
    assert (condition(seen, "RolledOut").status == "True") == (served == NEW)
    if problem and kept:
        message = condition(seen, "ModelReady").message
        assert message == f"opset 99 found (revision {NEW[:8]}; {OLD[:8]} serves)"


@pytest.mark.parametrize(
    ("proved", "problem", "kept", "wanted", "phase"),
    [
        (NEW, False, False, 0, "Asleep"),  # it is told to go, and serves until it has gone
        (OLD, False, True, 0, "Serving"),  # the new revision is being proved: it serves until then
        ("", True, False, 0, "Failed"),  # tried until its problem is gone: the worker that registered is not heard yet
        (OLD, True, True, 0, "Asleep"),  # the one before sleeps, whatever the new one's problem is
        (OLD, True, True, 1, "Serving"),
    ],
)
def test_the_phase_while_a_worker_serves(proved: str, problem: bool, kept: bool, wanted: int, phase: str) -> None:
    world = made(proved=proved, problem=problem)
    world.entry.proved_spec = AUTO if kept else b""
    world.add(worker("w0", revision=proved or NEW))
    assert told(world, wanted).phase == phase


def test_ready_is_said_of_what_was_applied_alone() -> None:
    """In every world."""
    some = (False, True)
    for drawn in itertools.product((AUTO, STOPPED), ("", OLD, NEW), some, some, some, ((), (OLD,), (NEW,), (OLD, NEW)), (0, 1)):
        _check(*drawn)


def _check(spec: bytes, proved: str, kept: bool, problem: bool, deleting: bool, workers: tuple[str, ...], wanted: int) -> None:
    world = made(spec=spec, proved=proved, problem=problem, deleting=deleting)
    world.entry.proved_spec = AUTO if kept else b""
    world.add(*(worker(f"w{n}", revision=revision) for n, revision in enumerate(workers)))
    seen = told(world, wanted)
    ready, serving = condition(seen, "Ready").status == "True", condition(seen, "Serving").status == "True"
    assert not ready or (proved == NEW and not problem and not deleting and spec == AUTO)
    assert not ready or serving, "what is ready is served"
    assert not ready or not workers or NEW in workers or not wanted
    assert seen.phase in readiness.PHASES
    assert (seen.phase == "Ready") <= ready
    assert not serving or (seen.revision and spec == AUTO and not deleting)


@pytest.mark.parametrize(
    ("proved", "status", "reason"), [(NEW, "True", "Proved"), (OLD, "Unknown", "Verifying"), ("", "Unknown", "Verifying")]
)
def test_whether_a_worker_has_loaded_the_model(proved: str, status: str, reason: str) -> None:
    found = condition(told(made(proved=proved), 0), "ModelReady")
    assert (found.status, found.reason) == (status, reason)


def test_while_workers_of_two_revisions_serve_those_of_the_proved_one_are_ready() -> None:
    world = made()
    world.add(worker("new"), worker("old", revision=OLD))
    seen = told(world, 1)
    assert (seen.ready_replicas, list(seen.workers), dict(seen.owners)) == (1, ["new"], {})


def test_the_problem_is_the_condition() -> None:
    seen = condition(told(made(problem=True), 0), "ModelReady")
    assert (seen.status, seen.reason, seen.message) == ("False", "ModelInvalid", "opset 99 found")


def test_a_rollout_is_told() -> None:
    world = made(proved=OLD)
    world.entry.proved_spec = AUTO
    world.add(worker("old", revision=OLD))
    seen = told(world, 1)
    assert (seen.phase, condition(seen, "RolledOut").status) == ("Serving", "False")
    assert list(seen.workers) == ["old"]
    message = condition(seen, "RolledOut").message
    assert message == f"Workers of revision {NEW[:8]} ready: 0 of 1. Until then workers of an older revision serve: 1."


def test_since_when_is_kept_while_nothing_changes() -> None:
    times, world = Times(), made()
    assert told(world, 0, times=times, now=10).asleep_since_us == 10
    assert told(world, 0, times=times, now=20).asleep_since_us == 10
    world.instances = [instance("i-a")]
    assert told(world, 1, times=times, now=30).asleep_since_us == 0
    assert told(world, 0, times=times, now=40).asleep_since_us == 40
    assert condition(told(world, 0, times=times, now=50), "ModelReady").since_us == 10
    times.forget("uid-2")
    assert told(world, 0, times=times, now=55).asleep_since_us == 40, "another's is kept"
    times.forget("uid-1")
    assert told(world, 0, times=times, now=60).asleep_since_us == 60


def test_its_numbers_are_workers_that_are_ready_and_what_is_counted() -> None:
    world = made()
    world.add(worker("w0"), worker("w1"), worker("w2", draining=True))
    seen = status(world.seen(), Decision(3, "by load"), Times(), 5, Figures(sessions=7, stored=70, hibernated=40))
    assert (seen.replicas, seen.ready_replicas, seen.sessions, seen.hibernated_bytes) == (3, 2, 7, 40)
    assert (seen.phase, seen.asleep_since_us) == ("Ready", 0)


def test_owners_are_live_ones_only() -> None:
    world = made()
    world.add(worker("a"), worker("b", gone=True))
    world.own("a", [0, 1])
    world.own("b", [2])
    world.own("dead", [3])
    seen = status(world.seen(), Decision(1, ""), Times(), 1, owners=True)
    assert dict(seen.owners) == {0: "a", 1: "a"}
    assert not told(world, 1).owners, "a shard each, for who asks for them"


@pytest.mark.parametrize(("rows", "reason", "status"), [(32, "Independent", "True"), (0, "Dependent", "False"), (0, "NoBatch", "False")])
def test_whether_calls_run_together_and_why(rows: int, reason: str, status: str) -> None:
    world = made()
    world.entry.metadata.batching.CopyFrom(state_pb2.Batching(rows=rows, reason=reason, message="Why."))
    found = condition(told(world, 1), "Batching")
    assert (found.status, found.reason, found.message) == (status, reason, "Why.")
    world.entry.proved_revision = OLD
    assert not [c for c in told(world, 1).conditions if c.type == "Batching"], "it is said of the revision that was proved"


def test_calls_that_run_alone_are_told_in_one_sentence_each() -> None:
    world = made()
    forms = [state_pb2.Batching.Form(key=b"5", why='x [1,5]: the output "y" differs')]
    world.entry.metadata.batching.CopyFrom(state_pb2.Batching(rows=32, reason="Independent", message="Up to 32 rows.", alone=forms))
    found = condition(told(world, 1), "Batching")
    assert (found.status, found.reason) == ("True", "SomeAlone")
    sentence = 'Up to 32 rows. Calls of some sizes run alone: x [1,5]: the output "y" differs'
    assert found.message == f"{sentence}."
    assert f"ns/fn: Batching: {sentence}." in printing.functions([told(world, 1)], "")
    world.entry.metadata.batching.alone.add(key=b"7", why="x [1,7]: differs")
    assert condition(told(world, 1), "Batching").message == f"{sentence} (and 1 more)."
    world.entry.metadata.batching.ClearField("alone")
    assert "Batching" not in printing.functions([told(world, 1)], ""), "negative control: a model that batches is no news"


def test_a_handler_has_no_batches() -> None:
    assert not [c for c in told(made(), 1).conditions if c.type == "Batching"]
