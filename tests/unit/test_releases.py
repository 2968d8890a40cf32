"""Workers of older releases: spoken with, or refused with the reason and the cure."""

import pytest
from dormouse_core import lifecycle, releases
from dormouse_core.autoscaling import Decision
from dormouse_core.errors import Code
from dormouse_core.keys import Function, Keys
from dormouse_core.lifecycle import Prove, Report
from dormouse_core.seams import Item
from dormouse_operator.view import View
from dormouse_proto import control_pb2, state_pb2
from dormouse_testing.clock import ManualClock
from dormouse_testing.functions_seen import NEW, World, entry, instance, worker

KEYS = Keys("t")
F = Function("ns", "fn", "uid-1")


class Links:
    def __init__(self) -> None:
        self.followed: dict[str, str] = {}

    def follow(self, name: str, address: str) -> None:
        self.followed[name] = address

    def drop(self, name: str) -> None:
        self.followed.pop(name, None)

    def gone(self, name: str) -> bool:
        return False

    def report(self, name: str) -> None:
        return None


def seen_of(speaks: int) -> tuple[View, Links]:
    view, links = View(KEYS, ManualClock(), lambda uid: None), Links()
    view.links = links  # type: ignore[assignment]
    made = entry(proved="")
    key = KEYS.function("ns", "fn")
    view.function_changed(key, None, Item(key, made.SerializeToString(), 5, 5))
    view.instances = [instance("i-a")]
    key = KEYS.worker(F, "a")
    found = state_pb2.WorkerEntry(address="10.0.0.1:9000", revision=NEW, state=state_pb2.WorkerEntry.READY, instance="i-a", speaks=speaks)
    view.map_changed(key, None, Item(key, found.SerializeToString(), 6, 6))
    return view, links


def test_one_from_before_it_was_said_is_spoken_with() -> None:
    view, links = seen_of(0)
    assert links.followed == {"a": "10.0.0.1:9000"}
    found = view.seen("uid-1")
    assert found is not None
    assert (list(found.workers), list(found.outdated)) == (["a"], [])


def test_one_that_is_too_old_gets_no_call_and_no_shard_and_its_function_says_so_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(releases, "LEAST", 1)
    view, links = seen_of(0)
    assert links.followed == {}
    assert view.refused() == [control_pb2.AgentOrder.Try(worker="a", address="10.0.0.1:9000")], "gateways are told"
    found = view.seen("uid-1")
    assert found is not None
    assert list(found.workers) == []
    [step] = [each for each in lifecycle.live(found, Decision(1, "by load")) if isinstance(each, Report)]
    assert (step.problem.code, step.problem.reason, step.problem.revision) == (Code.FAILED_PRECONDITION, "WorkerTooOld", NEW)
    assert step.problem.message == (
        "worker i-a is not used: it is of an older release than this one speaks with (it speaks version 0, 1 and above are understood); "
        "name a newer image in spec.workers.image, or none"
    )
    view.functions["uid-1"].entry.problem.CopyFrom(step.problem)
    again = view.seen("uid-1")
    assert again is not None
    assert not [each for each in lifecycle.live(again, Decision(1, "by load")) if isinstance(each, Report)], "once"


def test_a_newer_one_that_loads_the_model_ends_the_problem() -> None:
    world = World(entry=entry(proved=""), instances=[instance("i-b")])
    world.entry.problem.reason = releases.REASON
    world.add(worker("b"))
    assert any(isinstance(each, Prove) for each in lifecycle.live(world.seen(), Decision(1, "by load")))


def test_what_this_release_says_it_speaks_with() -> None:
    assert releases.SPEAKS >= releases.LEAST
