"""Pods' statuses as the kubelet and the scheduler write them, and what each says of the worker: reason, sentence and code."""

import json

import pytest
from dormouse_core.errors import Code
from dormouse_operator.kubernetes.api.http import Object
from dormouse_operator.kubernetes.pods import problems
from dormouse_operator.kubernetes.pods.problems import MUTE_ENDS, Verdict, judge, lacks_room
from dormouse_testing.cluster_objects import NOW, container, deployment, ended, forbidden, pod, timestamp, unschedulable, waits
from hypothesis import given
from hypothesis import strategies as st

IMAGE = "the image registry/image:1 cannot be pulled: "
NOT_FOUND = 'rpc error: code = NotFound desc = failed to pull and unpack image "registry/image:1": not found'
TOLD = json.dumps({"code": 9, "reason": "ModelInvalid", "message": "m.onnx: no such operator"})
OOM = "the worker was killed again and again: it used more memory than its limit; raise spec.workers.resources.limits.memory"
MUTE = "the worker ended with exit code 1 3 times or more and gave no reason"
CONFIG = 'secret "keys" not found'


def verdict(state: Object, restarts: int = 0, last: Object | None = None) -> Verdict:
    return judge(pod(containers=[container(state, restarts=restarts, last=last)]), NOW)


def said(found: Verdict) -> tuple[str, str]:
    assert found.problem is not None
    assert (found.exited, found.problem.code, found.waiting) == (True, Code.UNAVAILABLE, "")
    return found.problem.reason, found.problem.message


# ------------------------------------------------------------------------------------------------------------------ a container


@pytest.mark.parametrize(
    ("reason", "message", "expected"),
    [
        ("ErrImagePull", NOT_FOUND, ("ImageUnavailable", IMAGE + NOT_FOUND)),
        ("ImagePullBackOff", f'Back-off pulling image "registry/image:1": ErrImagePull: {NOT_FOUND}',
         ("ImageUnavailable", IMAGE + NOT_FOUND)),
        ("ImagePullBackOff", 'Back-off pulling image "registry/image:1"', ("ImageUnavailable", IMAGE + "ImagePullBackOff")),
        ("ErrImageNeverPull", 'Container image "registry/image:1" is not present with pull policy of Never',
         ("ImageUnavailable", IMAGE + 'Container image "registry/image:1" is not present with pull policy of Never')),
        ("InvalidImageName", 'Failed to apply default image tag "A": couldn\'t parse image name',
         ("ImageUnavailable", IMAGE + 'Failed to apply default image tag "A": couldn\'t parse image name')),
        ("CreateContainerConfigError", CONFIG, ("WorkerFailed", "the worker's container cannot be made: " + CONFIG)),
        ("RunContainerError", "", ("WorkerFailed", "the worker's container cannot be made: RunContainerError")),
    ],
)  # fmt: skip
def test_a_container_that_cannot_be_made_is_a_problem_at_once(reason: str, message: str, expected: tuple[str, str]) -> None:
    found = verdict(waits(reason, message))
    assert said(found) == expected
    assert found.problem is not None
    assert not found.problem.mute, "no call did it, and none waits for it"


def test_both_texts_of_one_image_that_is_not_there_are_one_sentence() -> None:
    """The kubelet alternates between them; each would be written to the status again."""
    texts = (waits("ErrImagePull", NOT_FOUND), waits("ImagePullBackOff", f'Back-off pulling image "x": ErrImagePull: {NOT_FOUND}'))
    assert len({said(verdict(each)) for each in texts}) == 1


STARTS = ({"running": {"startedAt": "x"}}, waits("ContainerCreating"), waits("PodInitializing"), {}, {"waiting": {}})


@pytest.mark.parametrize("state", STARTS)
def test_what_runs_or_is_being_made_is_no_problem(state: Object) -> None:
    assert verdict(state) == Verdict()


@pytest.mark.parametrize("state", [ended(message=TOLD), waits("CrashLoopBackOff")])
def test_a_reason_that_the_worker_left_is_taken_at_its_first_end(state: Object) -> None:
    problem = verdict(state, last=ended(message=TOLD)).problem
    assert problem is not None
    assert (problem.code, problem.reason, problem.message) == (Code.FAILED_PRECONDITION, "ModelInvalid", "m.onnx: no such operator")


@given(st.text(max_size=20) | st.sampled_from(["[]", "null", "{}", '{"code": "x"}', '{"code": 9, "reason": "A"}', "1"]))
def test_a_message_that_is_none_of_ours_is_no_reason(message: str) -> None:
    assert verdict(ended(message=message)) == Verdict(exited=True)


@pytest.mark.parametrize(("last", "expected"), [(ended("OOMKilled", code=137), OOM), (ended(), MUTE)])
def test_an_end_without_a_reason_is_a_problem_from_the_third_on_and_stays_one(last: Object, expected: str) -> None:
    """As the kubelet counts: `restartCount` rises when the container is started again, not when it has ended. What was said at the third
    end is not taken back while the kubelet waits to start it again."""
    for ends in range(1, 6):
        problem = None if ends < MUTE_ENDS else ("WorkerFailed", expected)
        for state in (last, waits("CrashLoopBackOff", "back-off 20s restarting failed container=worker pod=f-r1_ns(uid)")):
            found = verdict(state, restarts=ends - 1, last=last)
            assert found.exited
            assert (said(found) if found.problem is not None else None) == problem, ends
            assert found.problem is None or found.problem.mute
        assert verdict({"running": {}}, restarts=ends, last=last) == Verdict(), "it runs again: let us see"


def test_the_workers_container_is_judged_and_no_other() -> None:
    """A sidecar that a mesh puts in the pod."""
    sidecar = container(waits("ImagePullBackOff"), name="mesh")
    assert judge(pod(containers=[sidecar, container({"running": {}})]), NOW) == Verdict()
    assert judge(pod(containers=[sidecar, container(waits("ErrImagePull"))]), NOW).problem is not None


def test_a_sentence_has_a_length_and_one_line() -> None:
    _, message = said(verdict(waits("CreateContainerError", "no\n  way " * 200)))
    assert (len(message), message[-3:], "\n" in message) == (500, "...", False)


# ------------------------------------------------------------------------------------------------------------------ a node


@pytest.mark.parametrize(("since", "problem"), [(1.0, False), (119.0, False), (121.0, True)])
def test_a_node_is_waited_for_two_minutes_and_then_it_is_a_problem(since: float, problem: bool) -> None:
    found = judge(pod(conditions=[unschedulable(since)], phase="Pending", node=""), NOW)
    text = "no node can run the worker: 0/3 nodes are available: 3 Insufficient memory."
    if problem:
        assert said(found) == ("Unschedulable", text)
    else:
        assert found == Verdict(waiting=text)


@pytest.mark.parametrize(
    ("message", "room"),
    [
        ("0/3 nodes are available: 3 Insufficient memory.", True),
        ("0/1 nodes are available: 1 Too many pods.", True),
        ("0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector.", False),
        ("0/3 nodes are available: 3 node(s) had untolerated taint {a: b}.", False),
    ],
)
def test_a_pod_lacks_room_alone_where_some_node_would_do(message: str, room: bool) -> None:
    assert lacks_room(pod(conditions=[unschedulable(1.0, message)], phase="Pending", node="")) is room


def test_a_claim_that_is_not_there_is_no_wait_for_a_node() -> None:
    message = '0/1 nodes are available: persistentvolumeclaim "weights" not found. not found'
    found = judge(pod(conditions=[unschedulable(1.0, message)], phase="Pending", node=""), NOW)
    assert said(found) == ("VolumeUnavailable", 'a volume of the worker is missing: persistentvolumeclaim "weights" not found')


def test_a_pod_that_the_scheduler_has_not_seen_yet_is_no_problem() -> None:
    assert judge(pod(phase="Pending", node=""), NOW) == Verdict()
    assert judge(pod(phase="Pending", conditions=[{"type": "PodScheduled", "status": "True"}]), NOW) == Verdict()


# ------------------------------------------------------------------------------------------------------------------ its end


@pytest.mark.parametrize(("phase", "expected"), [("Failed", True), ("Succeeded", True), ("Running", False), ("Pending", False)])
def test_a_pod_that_was_evicted_is_finished(phase: str, expected: bool) -> None:
    assert problems.finished(pod(phase=phase)) is expected


@pytest.mark.parametrize(("after", "expected"), [(-10.0, False), (29.0, False), (31.0, True)])
def test_a_pod_is_lost_half_a_minute_after_it_should_have_ended(after: float, expected: bool) -> None:
    """Its node does not answer. deletionTimestamp is when its grace period is over."""
    assert problems.lost(pod(deletionTimestamp=timestamp(NOW - after)), NOW) is expected
    assert not problems.lost(pod(), NOW)


# ------------------------------------------------------------------------------------------------------------------ a Deployment

QUOTA = 'pods "f-r1-abc-{}" is forbidden: exceeded quota: none, requested: pods=1, used: pods=0, limited: pods=0'
WEBHOOK = 'admission webhook "guard.example" denied the request: no image of this registry'


@pytest.mark.parametrize(
    ("message", "reason", "text"),
    [
        (QUOTA.format("1"), "QuotaExceeded", "it is forbidden: exceeded quota: none, requested: pods=1, used: pods=0, limited: pods=0"),
        (WEBHOOK, "PodRefused", WEBHOOK),
        ('pods "x" is forbidden: violates PodSecurity "restricted:latest"', "PodRefused",
         'it is forbidden: violates PodSecurity "restricted:latest"'),
    ],
)  # fmt: skip
def test_a_pod_that_the_cluster_refuses_says_who_refuses_it(message: str, reason: str, text: str) -> None:
    problem = problems.refused(deployment(1, conditions=[forbidden(message)]))
    assert problem is not None
    assert (problem.code, problem.reason) == (Code.UNAVAILABLE, reason)
    assert problem.message == f"the cluster refuses the worker's pod: {text}"


def test_each_try_has_another_pod_and_the_sentence_stays() -> None:
    first, second = (problems.refused(deployment(1, conditions=[forbidden(QUOTA.format(n))])) for n in "12")
    assert first == second


@pytest.mark.parametrize(
    "condition",
    [{"type": "Available", "status": "False"}, {**forbidden(QUOTA), "status": "False"}, {"type": "Progressing"}],
)
def test_a_deployment_that_may_make_pods_is_not_refused(condition: Object) -> None:
    assert problems.refused(deployment(1, conditions=[condition])) is None
    assert problems.refused(deployment(1)) is None
