"""Functions on a cluster: what they say, what is left, and what pods go through meanwhile."""

import itertools
import json
import subprocess
import time
from typing import Any

import grpc
import pytest
from dormouse_core.spec.objects import VERSION
from dormouse_proto import health_pb2, health_pb2_grpc, inference_pb2, inference_pb2_grpc, reflection_pb2
from dormouse_testing import pages
from dormouse_testing.cluster.callers import Inside
from dormouse_testing.cluster.client import eventually
from dormouse_testing.cluster.functions import CRD, SYSTEM, Dormouse, counter, echo
from dormouse_testing.cluster.layout import ROOT, ClusterError


@pytest.fixture(scope="module")
def both(dormouse: Dormouse) -> Dormouse:
    dormouse.apply(counter("sums"), echo("echo"))
    dormouse.asleep("sums")
    dormouse.asleep("echo")
    return dormouse


def test_the_first_function_of_the_documents_works_as_it_stands(dormouse: Dormouse) -> None:
    dormouse.cluster.kubectl("apply", "-n", dormouse.space, "-f", str(ROOT / "examples" / "kubernetes" / "hello.yaml"))
    dormouse.phase("hello", "Ready")
    assert [dormouse.call("hello", 5, session="7") for _ in range(3)] == [5, 10, 15]
    dormouse.delete("hello")


# ------------------------------------------------------------------------------------------------------------------ what it says


def test_everything_that_is_shown_is_documented(dormouse: Dormouse) -> None:
    said = dormouse.cluster.kubectl("explain", "ifn.spec.sessions.shards")
    assert "How many parts the sessions are spread over" in said
    table = dormouse.cluster.kubectl("get", "ifn", "-n", dormouse.space)
    assert (
        table.split("\n")[0].split() == ["NAME", "PHASE", "READY", "WORKERS", "SESSIONS", "ASLEEP", "URL"]
        or "No resources" in table
        or not table
    )


@pytest.mark.parametrize(("pace", "awake"), [(0.25, 10.0), pytest.param(2.0, 300.0, marks=pytest.mark.slow)])
def test_scrapes_and_probes_do_not_keep_a_function_awake_nor_wake_it(both: Dormouse, pace: float, awake: float) -> None:
    """3.O3. Everything that is not an inference, each `pace` seconds, while the function falls asleep on time and for `awake` seconds
    after: answered all the while, also asleep, and counted as no call of anybody's."""
    assert both.call("echo", 1) == 1
    inference = inference_pb2_grpc.GRPCInferenceServiceStub(both.channel)
    health = health_pb2_grpc.HealthStub(both.channel)
    metadata = [("dormouse-function", f"{both.space}/echo")]
    statistics = inference_pb2.ModelStatisticsRequest(name="echo")
    calls = inference.ModelStatistics(statistics, timeout=20, metadata=metadata).model_stats[0].inference_count
    began, asleep = time.monotonic(), 0.0
    while not asleep or time.monotonic() - asleep < awake:
        assert asleep or time.monotonic() - began < 3 + 30, "it did not fall asleep on time"
        assert inference.ServerLive(inference_pb2.ServerLiveRequest(), timeout=20).live
        assert inference.ServerReady(inference_pb2.ServerReadyRequest(), timeout=20).ready
        assert inference.ModelReady(inference_pb2.ModelReadyRequest(name="echo"), timeout=20, metadata=metadata).ready
        described = inference.ModelMetadata(inference_pb2.ModelMetadataRequest(name="echo"), timeout=20, metadata=metadata)
        assert described.inputs[0].name == "add"
        assert health.Check(health_pb2.HealthCheckRequest(), timeout=20).status == health_pb2.HealthCheckResponse.SERVING
        assert "inference.GRPCInferenceService" in reflected(both)
        scrape(both)
        time.sleep(pace)
        found = both.cluster.get("deployments", "", both.space, "-l", "dormouse.dev/function=echo")
        if not asleep and not any(each["spec"]["replicas"] for each in found):
            asleep = time.monotonic()
        assert not asleep or not any(each["spec"]["replicas"] for each in found), "a probe woke it"
    print(f"asleep after {asleep - began:.1f} s")
    assert both.status("echo")["phase"] == "Asleep"
    [stats] = inference.ModelStatistics(statistics, timeout=20, metadata=metadata).model_stats
    assert stats.inference_count in (0, calls), "a probe counts as a call"


def gateways(dormouse: Dormouse) -> list[Inside]:
    return [Inside(dormouse.cluster, SYSTEM, pod["metadata"]["name"], "agent") for pod in dormouse.gateways()]


def reflected(dormouse: Dormouse) -> list[str]:
    method = dormouse.channel.stream_stream(
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    [answer] = method(iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=20)
    return [service.name for service in answer.list_services_response.service]


def scrape(dormouse: Dormouse) -> None:
    """Of the workers' metrics through the API server, from the node; and of a gateway's, from its pod."""
    for pod in dormouse.pods("echo"):
        try:
            dormouse.cluster.kubectl("get", "--raw", f"/api/v1/namespaces/{dormouse.space}/pods/{pod}:9000/proxy/metrics", timeout=2)
        except (ClusterError, subprocess.TimeoutExpired):
            continue  # the policy closes the worker to this way, or the pod is going
    assert gateways(dormouse)[0].metric("dormouse_functions") > 0


# ------------------------------------------------------------------------------------------------------------------ pods


@pytest.fixture
def steps(both: Dormouse) -> Any:
    """One call after the other on a session, which is checked to count each once."""
    count = itertools.count(1)
    return lambda: _same(both.call("sums", 1, session="steps"), next(count))


def _same(found: int, expected: int) -> int:
    assert found == expected, "a step was lost or ran twice"
    return found


def test_a_session_outlives_its_owners_pod_scaling_and_zero(both: Dormouse, steps: Any) -> None:
    steps()
    [owner] = both.pods("sums")
    both.cluster.kubectl("delete", "pod", owner, "-n", both.space, "--wait=false")
    for _ in range(20):
        steps()
    for count in (3, 1):
        both.patch("sums", {"replicas": count})
        both.ready("sums", count)
        for _ in range(10):
            steps()
    both.patch("sums", {"replicas": None})
    both.asleep("sums")
    steps()
    both.asleep("sums")


def test_a_revision_that_does_not_load_harms_nobody_also_at_zero(both: Dormouse) -> None:
    """7.O3. The revision that was proved is woken, with its sessions, until another is; then nothing of the old ones is left."""
    both.apply(counter("kept"))
    both.phase("kept", "Ready", "Asleep")
    assert both.call("kept", 1, session="a") == 1
    both.asleep("kept")
    both.cluster.kubectl("wait", "ifn/kept", "-n", both.space, "--for=condition=Ready", "--timeout=20s")
    both.patch("kept", {"handler": "counter:Nothing"})
    with pytest.raises(ClusterError, match="timed out"):
        both.cluster.kubectl("wait", "ifn/kept", "-n", both.space, "--for=condition=Ready", "--timeout=5s")
    both.reason("kept", "ModelReady", "ModelInvalid")
    both.reason("kept", "Ready", "ModelInvalid")
    both.cluster.kubectl("wait", "ifn/kept", "-n", both.space, "--for=condition=Serving", "--timeout=0")
    assert both.call("kept", 1, session="a") == 2
    both.phase("kept", "Asleep")
    assert both.call("kept", 1, session="a") == 3
    both.patch("kept", {"handler": "counter:Counter", "maxConcurrency": 8})
    both.cluster.kubectl("wait", "ifn/kept", "-n", both.space, "--for=condition=Ready", "--timeout=60s")
    assert both.call("kept", 1, session="a") == 4
    eventually("one Deployment is left", lambda: len(deployments(both, "kept")) == 1)
    both.delete("kept")


def deployments(dormouse: Dormouse, name: str) -> list[Any]:
    found: list[Any] = dormouse.cluster.get("deployments", "", dormouse.space, "-l", f"dormouse.dev/function={name}")
    return found


def test_a_call_that_eats_memory_is_told_so_and_whoever_looks_at_the_function_too(both: Dormouse) -> None:
    """The pods stay, their workers serve again before anybody looks, and the kernel leaves nobody in the container to say a word."""
    limit = {"resources": {"requests": {"cpu": "10m"}, "limits": {"memory": "512Mi"}}}
    both.apply(echo("hungry", replicas=2, workers=limit))
    both.ready("hungry", 2)
    assert not both.condition("hungry", "OutOfMemory")
    pods = set(both.pods("hungry"))
    code, text = both.refused("hungry", 60.0, add=-2000)
    assert (code, "memory" in text) == (grpc.StatusCode.RESOURCE_EXHAUSTED, True), text
    assert "used more memory than" in both.reason("hungry", "OutOfMemory", "OOMKilled")
    [event] = [e for e in both.cluster.get("events", "", both.space) if e["reason"] == "OOMKilled"]
    assert event["type"] == "Warning"
    assert set(both.pods("hungry")) == pods
    assert both.call("hungry", 0, timeout=60) == 0
    assert both.condition("hungry", "OutOfMemory")["status"] == "True", "it serves again, and what was is told for a while"
    both.delete("hungry")


def test_stopped_is_stopped(both: Dormouse) -> None:
    both.patch("echo", {"replicas": 0})
    both.phase("echo", "Stopped")
    code, text = both.refused("echo", 5.0)
    assert (code, "replicas" in text) == (grpc.StatusCode.UNAVAILABLE, True), text
    both.patch("echo", {"replicas": None})
    eventually("it is called again", lambda: both.begin("echo", 1, timeout=20).exception() is None)


def test_what_a_worker_has_is_its_own_functions(both: Dormouse) -> None:
    """A pod as issue and documents say: no token, no root, nothing to write to but its own; and policies that close it."""
    both.call("echo", 1)
    pod = both.cluster.get("pods", "", both.space, "-l", "dormouse.dev/function=echo")[0]
    spec = pod["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["containers"][0]["securityContext"]["readOnlyRootFilesystem"] is True
    policy = both.cluster.get("networkpolicy", "echo-workers", both.space)["spec"]
    assert policy["policyTypes"] == ["Ingress"]
    assert policy["podSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()


def test_a_worker_that_is_told_to_go_while_it_starts_goes_at_once(both: Dormouse) -> None:
    """At whatever moment of its start. As process 1 of its container it would not hear a SIGTERM before Python has a handler for it, and
    stay for its grace period of 80 s."""
    both.apply(echo("early", replicas=1))
    for number in range(5):
        [pod] = eventually("there is one worker", lambda: both.pods("early") if len(both.pods("early")) == 1 else [])
        time.sleep(0.2 * number)
        began = time.monotonic()
        both.cluster.kubectl("delete", "pod", pod, "-n", both.space, "--wait=false")
        eventually("it is gone", lambda pod=pod: pod not in both.pods("early"), 40)  # type: ignore[misc]
        print(f"told {0.2 * number:.1f} s after it was made: gone after {time.monotonic() - began:.1f} s")
    both.delete("early")


def test_delete_while_creating(both: Dormouse) -> None:
    for _ in range(3):
        both.apply(counter("brief"))
        both.delete("brief")
    eventually("nothing of it is left", lambda: not left_of(both, "brief"), 60)


def left_of(dormouse: Dormouse, name: str) -> list[str]:
    kinds = "deployments,pods,services,configmaps,secrets,poddisruptionbudgets,networkpolicies"
    found = dormouse.cluster.get(kinds, "", dormouse.space, "-l", f"dormouse.dev/function={name}")
    return [f"{each['kind']} {each['metadata']['name']}" for each in found] + [k for k in dormouse.stored() if f"/{name}" in k]


# --------------------------------------------------------------------------------------------------------- a next version of it

NEXT = "v1beta1"


def test_a_next_version_of_the_object_comes_beside_this_one_and_goes_again(dormouse: Dormouse) -> None:
    """As `docs/operating-kubernetes.md` says: served first, then stored, every object written anew; and all of it back. The operator, which
    knows this version alone, goes on with both."""
    crd = dormouse.cluster.get("crd", CRD)
    dormouse.apply(counter("before", minReplicas=1))
    dormouse.ready("before", 1)
    total = dormouse.call("before", 1, session="s")
    defined(dormouse, crd, served=NEXT, stored=VERSION)
    try:
        eventually("it is served", lambda: spec_of(dormouse, "before", NEXT) == spec_of(dormouse, "before", VERSION))
        made = {**counter("since"), "apiVersion": f"dormouse.dev/{NEXT}"}
        dormouse.apply(made)
        dormouse.phase("since", "Ready", "Asleep")
        assert dormouse.call("since", 2, session="s") == 2
        assert spec_of(dormouse, "since", VERSION) == spec_of(dormouse, "since", NEXT)
        for stored in (NEXT, VERSION):
            defined(dormouse, crd, served=NEXT, stored=stored)
            eventually("every object is written anew", lambda: written_anew(dormouse, stored))  # noqa: B023
            total += 1
            assert dormouse.call("before", 1, session="s") == total
            dormouse.patch("since", {"maxConcurrency": 7 if stored == NEXT else 8})
            eventually("a change is heard", lambda: heard(dormouse, "since"), 60)
    finally:
        dormouse.cluster.kubectl("replace", "-f", "-", stdin=json.dumps(bare(dormouse, crd)))
        eventually("kubectl has forgotten it", lambda: NEXT not in dormouse.cluster.kubectl("api-resources", "--api-group=dormouse.dev"))
    assert dormouse.call("since", 2, session="s") == 4
    dormouse.delete("before", "since")


def defined(dormouse: Dormouse, crd: dict[str, Any], *, served: str, stored: str) -> None:
    """The definition with a second version that is like the first, and which of them is stored."""
    [first] = crd["spec"]["versions"]
    versions = [{**first, "name": name, "storage": name == stored} for name in (VERSION, served)]
    found = bare(dormouse, crd)
    found["spec"] = {**found["spec"], "versions": versions}
    dormouse.cluster.kubectl("replace", "-f", "-", stdin=json.dumps(found))
    path = f"/apis/dormouse.dev/{served}/inferencefunctions?limit=1"
    eventually("it is served", lambda: dormouse.cluster.kubectl("get", "--raw", path))


def written_anew(dormouse: Dormouse, version: str) -> bool:
    """As the page shows it. An object that was changed meanwhile is refused, and so all are written once more."""
    with dormouse.cluster.shell() as environment:
        try:
            pages.run("The next version of the object", 0, namespace=SYSTEM, environment=environment, **{NEXT: version})
        except AssertionError as error:
            print(error)
            return False
    return True


def bare(dormouse: Dormouse, crd: dict[str, Any]) -> dict[str, Any]:
    now = dormouse.cluster.get("crd", CRD)["metadata"]["resourceVersion"]
    return {**{name: part for name, part in crd.items() if name != "status"}, "metadata": {**crd["metadata"], "resourceVersion": now}}


def spec_of(dormouse: Dormouse, name: str, version: str) -> Any:
    return dormouse.cluster.get(f"inferencefunctions.{version}.dormouse.dev", name, dormouse.space)["spec"]


def heard(dormouse: Dormouse, name: str) -> bool:
    found = dormouse.cluster.get("ifn", name, dormouse.space)
    return bool(found["status"].get("observedGeneration") == found["metadata"]["generation"])
