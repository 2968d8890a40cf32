"""An object's status: what it says of the function, whose times it keeps, and when it says something else."""

from typing import Any

import pytest
from dormouse_operator.kubernetes.api.http import Object
from dormouse_operator.kubernetes.objects.object_entries import seconds, timestamp
from dormouse_operator.kubernetes.settings import ClusterSettings
from dormouse_operator.kubernetes.telling.statuses import Said, build_status, differs, news
from dormouse_proto import control_pb2
from dormouse_testing.cluster_objects import NOW
from hypothesis import given
from hypothesis import strategies as st

ACCEPTED = Said("Accepted", "True", "Accepted", "The object is valid.")
READY = Said("Ready", "True", "Ready", "It serves.")
TAKEN = "A Service named f exists."


def function(**status: Any) -> Object:
    found: Object = {"metadata": {"namespace": "ns", "name": "f", "uid": "u", "generation": 3}, "spec": {}}
    return {**found, "status": status} if status else found


def told(*conditions: Said, **fields: Any) -> control_pb2.FunctionStatus:
    made = control_pb2.FunctionStatus(phase="Ready", replicas=1, ready_replicas=1, revision="r1", reason="one call", **fields)
    for each in conditions or (READY,):
        made.conditions.add(type=each.type, status=each.status, reason=each.reason, message=each.message)
    return made


def built(found: Object, what: control_pb2.FunctionStatus | None = None, *said: Said, now: float = NOW) -> Object:
    return build_status(found, what, said, ClusterSettings(), now, found["metadata"]["generation"])


def condition(status: Object, kind: str) -> Object:
    [found] = [each for each in status["conditions"] if each["type"] == kind]
    return dict(found)


# ------------------------------------------------------------------------------------------------------------------ what it says


def test_a_status_says_how_the_function_is_and_how_it_is_reached() -> None:
    status = built(function(), told(sessions=5, hibernated_bytes=9), ACCEPTED)
    assert status["hibernatedBytes"] == 9
    assert {name: status[name] for name in ("phase", "replicas", "readyReplicas", "sessions", "revision", "observedGeneration")} == {
        "phase": "Ready", "replicas": 1, "readyReplicas": 1, "sessions": 5, "revision": "r1", "observedGeneration": 3,
    }  # fmt: skip
    before = told(wanted_revision="r2")
    assert (built(function(), before)["revision"], built(function(), before)["wantedRevision"]) == ("r1", "r2")
    assert status["url"] == "grpc://f.ns.svc.cluster.local:8001"
    assert status["selector"] == "dormouse.dev/part=worker,dormouse.dev/uid=u", "what kubectl scale and an autoscaler ask for"
    assert [each["type"] for each in status["conditions"]] == ["Accepted", "Ready"]


@pytest.mark.parametrize(
    ("said", "phase", "ready"),
    [
        ((ACCEPTED,), "Verifying", ("Unknown", "Verifying")),
        ((Said("Accepted", "False", "Invalid", "spec.runtime: x"),), "Failed", ("False", "Invalid")),
        ((ACCEPTED, Said("NameTaken", "True", "NameTaken", TAKEN)), "Failed", ("False", "NameTaken")),
    ],
)
def test_a_function_that_the_registry_does_not_have_is_not_ready_and_says_why(
    said: tuple[Said, ...], phase: str, ready: tuple[str, str]
) -> None:
    status = built(function(), None, *said)
    found = condition(status, "Ready")
    assert (status["phase"], (found["status"], found["reason"])) == (phase, ready)


@pytest.mark.parametrize(
    ("said", "ready", "phase"),
    [
        (Said("Accepted", "False", "ChangeRefused", "spec.sessions: x"), "False", "Serving"),
        (Said("Applied", "False", "NotAllowed", "spec.workers: x"), "False", "Serving"),
        (Said("Applied", "False", "Retrying", "The API server did not answer."), "True", "Ready"),
        (Said("Scheduled", "False", "Waiting", "No node has room."), "True", "Ready"),
    ],
)
def test_a_spec_that_is_refused_is_not_ready_whatever_serves(said: Said, ready: str, phase: str) -> None:
    """What could not be asked just now, and a pod more that waits for a node, say nothing of the spec."""
    status = built(function(), told(), said)
    found = condition(status, "Ready")
    assert (found["status"], status["phase"]) == (ready, phase)
    assert ready == "True" or (found["reason"], found["message"]) == (said.reason, said.message)


def test_what_is_on_its_way_is_not_bad() -> None:
    assert not Said("RolledOut", "False", "Progressing", "").bad
    assert not Said("Ready", "False", "Verifying", "").bad
    assert not Said("NameTaken", "False", "Free", "").bad
    assert Said("ModelReady", "False", "ModelInvalid", "").bad
    assert Said("NameTaken", "True", "NameTaken", "").bad
    assert not Said("Batching", "False", "Dependent", "").bad, "a property of the model"
    assert Said("Batching", "False", "Contradicted", "").bad, "but not what the manifest says"


# ------------------------------------------------------------------------------------------------------------------ times


def test_a_conditions_time_is_kept_while_its_status_is_and_also_by_another_operator() -> None:
    """The time is read from the object, so it does not matter who wrote it."""
    first = built(function(), told(Said("Ready", "False", "Verifying", "It loads.")))
    same = built(function(**first), told(Said("Ready", "False", "Failed", "It does not load.")), now=NOW + 50)
    assert condition(same, "Ready")["lastTransitionTime"] == timestamp(NOW)
    other = built(function(**same), told(READY), now=NOW + 90)
    assert condition(other, "Ready")["lastTransitionTime"] == timestamp(NOW + 90)


def test_the_time_since_when_it_sleeps_is_kept_and_goes_when_it_wakes() -> None:
    asleep = control_pb2.FunctionStatus(phase="Asleep", asleep_since_us=int(NOW * 1e6))
    first = built(function(), asleep)
    assert seconds(first["asleepSince"]) == int(NOW)
    asleep.asleep_since_us += 30_000_000  # as another leader sees it
    assert built(function(**first), asleep)["asleepSince"] == first["asleepSince"]
    assert built(function(**first), told())["asleepSince"] is None


CONDITIONS = st.builds(
    Said,
    st.sampled_from(["Ready", "ModelReady", "RolledOut"]),
    st.sampled_from(["True", "False", "Unknown"]),
    st.sampled_from(["Ready", "Failed", "Progressing"]),
    st.sampled_from(["It serves.", "It does not load."]),
)
STATES = st.builds(
    lambda conditions, sessions, phase, asleep: (conditions, {"sessions": sessions, "asleep_since_us": asleep}, phase),
    st.lists(CONDITIONS, max_size=3, unique_by=lambda each: each.type),
    st.integers(0, 3),
    st.sampled_from(["Ready", "Asleep"]),
    st.sampled_from([0, int(NOW * 1e6)]),
)


@given(st.lists(STATES, min_size=1, max_size=6))
def test_a_status_that_was_written_is_not_written_again_however_long_it_stays(states: list[Any]) -> None:
    found, now = function(), NOW
    for conditions, fields, phase in states:
        what = told(*conditions, **fields)
        what.phase = phase
        wanted = built(found, what, ACCEPTED, now=now)
        found = function(**{name: value for name, value in wanted.items() if value is not None})
        again = built(found, what, ACCEPTED, now=now + 1_000)
        assert again == wanted
        assert not differs(found, again)
        assert news(found, again) == []
        now += 7


@pytest.mark.parametrize("change", [{"phase": "Asleep"}, {"ready_replicas": 2}, {"sessions": 9}, {"revision": "r2"}])
def test_negative_control_whatever_changes_is_a_difference(change: Any) -> None:
    found = function(**built(function(), told(), ACCEPTED))
    what = told()
    for name, value in change.items():
        setattr(what, name, value)
    assert differs(found, built(found, what, ACCEPTED))
    assert differs(found, built(found, what, ACCEPTED), steadily=True) is ("sessions" not in change)
