"""A name that is used again or somebody else's, and the end of a namespace: nothing of the old is left, and nothing else is touched."""

import time
from typing import Any

import grpc
import pytest
from dormouse_testing.cluster.client import eventually
from dormouse_testing.cluster.functions import RELEASE, SYSTEM, Dormouse, counter, echo
from dormouse_testing.cluster.namespaces import SHORT, foreign, going, objects
from dormouse_testing.cluster.operators import handled, without_operator

pytestmark = pytest.mark.usefixtures("unharmed")

MODELS = """
from typing import ClassVar
from dormouse import Handler, State, Tensor

class Other(Handler):
    inputs: ClassVar = [Tensor("add", "INT64", [1])]
    outputs: ClassVar = [Tensor("total", "INT64", [1])]
    states: ClassVar = [State("count", "INT64", [1]), State("last", "FP32", [2])]

    def step(self, inputs, state, ctx):
        assert state["last"].shape == (2,)
        state["count"] += 1
        state["last"] += 0.5
        return {"total": state["count"] + 1_000_000}
"""
OTHER_MODEL: dict[str, Any] = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "other"}, "data": {"other.py": MODELS}}


GONE = (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


@pytest.mark.parametrize(
    "pause",
    [0.0, pytest.param(1.0, marks=pytest.mark.slow), pytest.param(10.0, marks=pytest.mark.slow), None],
    ids=["at-once", "1s", "10s", "operator-away"],
)
def test_another_function_under_the_same_name(base: Dormouse, pause: float | None) -> None:
    """5.O7. With another model and other state, while callers step sessions of the old one all the time: whoever is answered by the new one
    is never answered by the old one again, and the new one begins where it begins. `pause` None: the operator is away at the delete."""
    name = "again"
    base.apply(OTHER_MODEL, counter(name, minReplicas=2))
    base.ready(name, 2)
    sessions = [f"s{number}" for number in range(8)]
    for session in sessions:
        assert base.call(name, 10, session=session) == 10
    uid = base.cluster.get("ifn", name, base.space)["metadata"]["uid"]
    ended = False

    def step(session: str) -> list[int]:
        """Every total that this session was given; its errors are those of a function that is not there."""
        totals = []
        while not ended:
            try:
                totals.append(base.call(name, 1, session=session, timeout=20))
            except grpc.RpcError as error:
                if error.code() not in GONE:
                    raise
            time.sleep(0.05)
        return totals

    calls = [base.pool.submit(step, session) for session in sessions]
    time.sleep(0.5)
    other = counter(name, model={"uri": "configmap://other"}, handler="other:Other", sessions={"shards": 8})
    if pause is None:
        with without_operator(base):
            base.delete(name)
            base.apply(other)
            time.sleep(2.0)
    else:
        base.delete(name)
        time.sleep(pause)
        base.apply(other)
    eventually("the new one answers", lambda: fresh(base, name), 90)
    time.sleep(1.0)
    ended = True
    for call in calls:
        totals = call.result()
        old = [total for total in totals if total < 1_000_000]
        new = totals[len(old) :]
        assert old == list(range(11, 11 + len(old))), "a step was lost, ran twice, or came late"
        assert new == list(range(1_000_001, 1_000_001 + len(new)))
    eventually("nothing of the old one is stored", lambda: not any(uid in key for key in base.stored()), 60)
    # The status follows: the operator hears of a worker that answers already once it has reached it.
    eventually("its model is said to be ready", lambda: base.condition(name, "ModelReady").get("status") == "True", 30)
    base.delete(name)
    eventually("nothing of it runs", lambda: not base.pods(name))


def fresh(dormouse: Dormouse, name: str) -> bool:
    try:
        return dormouse.call(name, 1, session="fresh", timeout=20) > 1_000_000
    except grpc.RpcError:
        return False


def test_a_name_that_is_somebody_elses(base: Dormouse) -> None:
    """A Service of the function's name: left as it is, and the condition says so until it is gone."""
    service: dict[str, Any] = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "taken"}, "spec": {"ports": [{"port": 1}]}}
    base.apply(service)
    uid = base.cluster.get("service", "taken", base.space)["metadata"]["uid"]
    base.apply(echo("taken"))
    assert "taken" in base.reason("taken", "NameTaken", "NameTaken")
    assert base.cluster.get("service", "taken", base.space)["metadata"]["uid"] == uid
    base.cluster.kubectl("delete", "service", "taken", "-n", base.space)
    eventually("the name is its own", lambda: base.condition("taken", "Applied").get("status") == "True", 60)
    base.delete("taken")


def test_a_namespace_goes_while_the_operator_is_away(base: Dormouse) -> None:
    """5.O1. Nothing waits for a finalizer. The operator, when it is back, removes what was stored."""
    with base.cluster.namespace("going") as space:
        going(base, space)
        with without_operator(base):
            began = time.monotonic()
            base.cluster.kubectl("delete", "namespace", space, "--timeout=60s")
            took = time.monotonic() - began
            print(f"gone after {took:.0f} s")
            assert took < 60
        eventually("nothing of it is stored", lambda: not [key for key in base.stored() if f"/{space}/" in key], 60)


def test_a_namespace_goes_when_the_operator_has_lost_its_rights(base: Dormouse) -> None:
    """5.O1. Nothing waits for it. It deletes nothing for want of a list, says what it lacks, and goes on by itself when it has its rights
    again: what was stored of the namespace goes then."""
    binding = f"{SYSTEM}-{RELEASE}-operator"
    kept = base.cluster.get("clusterrolebinding", binding)
    with base.cluster.namespace("stays") as stays, base.cluster.namespace("goes") as space:
        foreign(base, stays)
        going(base, space, **SHORT)
        before = objects(base, stays)
        base.cluster.kubectl("delete", "clusterrolebinding", binding)
        try:
            began = time.monotonic()
            base.cluster.kubectl("delete", "namespace", space, "--timeout=60s")
            assert time.monotonic() - began < 60
            assert base.call("steady", 0, session="throughout") > 0
            eventually("it says what it lacks", lambda: "cannot be listed" in base.said(), 45)
        finally:
            base.cluster.apply({**kept, "metadata": {name: kept["metadata"][name] for name in ("name", "labels", "annotations")}})
        eventually("nothing of it is stored", lambda: not [key for key in base.stored() if f"/{space}/" in key], 90)
        handled(base, "with-rights", 60)
        assert objects(base, stays) == before
