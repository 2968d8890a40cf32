"""Much at once: changes that overtake each other in a namespace with a quota, an image for all, two hundred functions applied together."""

import threading
import time
from collections import Counter
from typing import Any

import grpc
import pytest
from dormouse_core.replacing import most
from dormouse_operator.kubernetes.objects.replacements import being_replaced
from dormouse_testing.cluster import images
from dormouse_testing.cluster.client import CHART, eventually
from dormouse_testing.cluster.functions import RELEASE, SYSTEM, Dormouse, counter, echo
from dormouse_testing.cluster.processes import run

CHANGES, PAUSE = 10, 1.5
FUNCTIONS, AWAKE = 200, 12
NEXT = "localhost/dormouse:next"
QUOTA: dict[str, Any] = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "three"}, "spec": {"hard": {"pods": "3"}}}


def living(dormouse: Dormouse, labels: str) -> list[dict[str, Any]]:
    found = dormouse.cluster.get("pods", "", dormouse.space, "-l", labels)
    return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]


def is_ready(pod: dict[str, Any]) -> bool:
    return any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", []))


@pytest.mark.slow
def test_under_a_quota_with_no_room_a_new_revision_is_proved_in_the_place_of_the_one_that_serves(dormouse: Dormouse) -> None:
    """A session is stepped all the while: no step fails or is lost. A bad revision then gives the place back."""
    quota = {**QUOTA, "metadata": {"name": "one"}, "spec": {"hard": {"pods": "1"}}}
    dormouse.apply(quota, counter("tight", minReplicas=1))
    dormouse.ready("tight", 1)
    ended, totals = threading.Event(), [0]

    def step() -> None:
        while not ended.is_set():
            totals.append(dormouse.call("tight", 1, session="s", timeout=60))
            time.sleep(0.02)

    def serves(revision: str) -> bool:
        found = dormouse.status("tight")
        return (
            found.get("revision") == revision
            and found.get("readyReplicas") == 1
            and bool(living(dormouse, f"dormouse.dev/revision={revision}"))
        )

    stepping = dormouse.pool.submit(step)
    try:
        dormouse.patch("tight", {"maxConcurrency": 11})
        wanted = eventually("it is heard", lambda: newest(dormouse, "tight"), 30)
        began = time.monotonic()
        eventually("the new revision serves", lambda: serves(wanted), 60)
        print(f"proved under a full quota after {time.monotonic() - began:.0f} s")
        dormouse.patch("tight", {"handler": "counter:Nope"})
        dormouse.reason("tight", "ModelReady", "ModelInvalid", 60)
        eventually("the one before serves again", lambda: serves(wanted), 60)
        before = len(totals)
        eventually("and is stepped", lambda: len(totals) > before + 5, 30)
    finally:
        ended.set()
        stepping.result()
        dormouse.cluster.kubectl("delete", "resourcequota", "one", "-n", dormouse.space)
    assert totals == list(range(len(totals)))
    dormouse.delete("tight")


@pytest.mark.slow
def test_ten_changes_that_overtake_each_other_end_with_the_newest_under_a_quota(dormouse: Dormouse) -> None:
    """A session is stepped all the while: no step fails or is lost, and what lies between is not left."""
    dormouse.apply(QUOTA, counter("moved", minReplicas=1, scaleToZeroAfter="60s"))
    dormouse.ready("moved", 1)
    ended, errors, total = threading.Event(), list[str](), 0

    def step() -> None:
        nonlocal total
        while not ended.is_set():
            try:
                found = dormouse.call("moved", 1, session="s", timeout=30)
                assert found == total + 1, (found, total)
                total = found
            except grpc.RpcError as error:
                errors.append(f"{error.code().name}: {error.details()}")
                return
            time.sleep(0.02)

    stepping = dormouse.pool.submit(step)
    try:
        for number in range(CHANGES):
            dormouse.patch("moved", {"maxConcurrency": 10 + number})
            time.sleep(PAUSE)
        began = time.monotonic()
        wanted = eventually("it is heard", lambda: newest(dormouse, "moved"), 30)
        eventually("the newest serves", lambda: dormouse.status("moved").get("revision") == wanted, 90)
        eventually("and alone", lambda: len(living(dormouse, "dormouse.dev/function=moved")) == 1, 60)
        print(f"the newest of {CHANGES} changes serves alone after {time.monotonic() - began:.0f} s, {total} steps")
    finally:
        ended.set()
        stepping.result()
        dormouse.cluster.kubectl("delete", "resourcequota", "three", "-n", dormouse.space)
    assert errors == []
    assert dormouse.call("moved", 0, session="s") == total
    dormouse.delete("moved")


def newest(dormouse: Dormouse, name: str) -> str:
    """The wanted revision, once the status is of the newest spec; '': not yet."""
    found = dormouse.cluster.get("ifn", name, dormouse.space)
    current = found["status"].get("observedGeneration") == found["metadata"]["generation"]
    return str(found["status"]["wantedRevision"]) if current else ""


@pytest.mark.slow
def test_an_image_replaces_the_workers_of_a_few_functions_at_a_time_and_no_call_of_a_dozen_fails(dormouse: Dormouse) -> None:
    """And back. The next image is this one under another name."""
    cluster = dormouse.cluster
    if cluster.layout is None:
        pytest.skip("another's cluster has no second image")
    run("buildah", "tag", images.DORMOUSE, NEXT)
    images.import_image(cluster.layout, cluster.nodes, NEXT)
    names = [f"awake-{number:02}" for number in range(AWAKE)]
    small = {"resources": {"requests": {"cpu": "20m"}}}  # an operator and a gateway more must find room beside all of them
    dormouse.apply(*(echo(name, minReplicas=1, maxReplicas=1, workers=small) for name in names))
    for name in names:
        dormouse.ready(name, 1, 240)
    ended, calls, errors = threading.Event(), Counter[str](), list[str]()

    def call(name: str) -> None:
        while not ended.wait(0.5):
            try:
                assert dormouse.call(name, 1, timeout=60) == 1
                calls[name] += 1
            except grpc.RpcError as error:
                errors.append(f"{name} after {calls[name]}: {error.code().name}: {error.details()}")
                return

    def replaced(image: str) -> tuple[float, int]:
        """How long it took, and how many were being replaced together at most."""
        began, together, left = time.monotonic(), 0, set(names)
        while left:
            assert time.monotonic() - began < 300, f"{sorted(left)} are not replaced"
            found = cluster.get("deployments", "", dormouse.space)
            together = max(together, sum(map(being_replaced, found)))
            pods = living(dormouse, "dormouse.dev/function")
            left = {pod["metadata"]["labels"]["dormouse.dev/function"] for pod in pods if pod["spec"]["containers"][0]["image"] != image}
        return time.monotonic() - began, together

    calling = [dormouse.pool.submit(call, name) for name in names]
    try:
        cluster.helm("upgrade", RELEASE, str(CHART), "-n", SYSTEM, "--reuse-values", "--set", f"image.tag={NEXT.rpartition(':')[2]}")
        forth = replaced(NEXT)
        cluster.helm("rollback", RELEASE, "-n", SYSTEM)
        back = replaced(images.DORMOUSE)
        before = calls.copy()
        eventually("all are called on", lambda: errors or all(calls[name] > before[name] + 2 for name in names), 60)
    finally:
        ended.set()
        for each in calling:
            each.result()
    print(f"{AWAKE} replaced, in s, at most so many together: {forth}, and back {back}; {calls.total()} calls, failed: {errors}")
    assert errors == []
    assert 1 < forth[1] <= most(1)
    assert 1 < back[1] <= most(1)
    for part in ("operator", "gateway"):
        cluster.kubectl("rollout", "status", "-n", SYSTEM, f"deployment/{RELEASE}-{part}", "--timeout=120s")
    dormouse.delete(*names)


@pytest.mark.slow
def test_two_hundred_functions_that_are_applied_at_once_are_all_proved_and_the_operator_leads_on(dormouse: Dormouse) -> None:
    """One that sleeps is called meanwhile. Nothing of the installation is started anew."""
    dormouse.apply(echo("sleeper"))
    dormouse.asleep("sleeper")
    before, began = dormouse.restarts(), time.monotonic()
    dormouse.apply(*(echo(f"many-{number:03}") for number in range(FUNCTIONS)))
    print(f"applied in {time.monotonic() - began:.0f} s")
    most = waited = 0
    woken: list[float] = []

    def proved() -> int:
        nonlocal most, waited
        pods = living(dormouse, "dormouse.dev/function")
        most = max(most, sum(not is_ready(pod) for pod in pods))
        found = dormouse.cluster.get("ifn", "", dormouse.space)
        reasons = [c["reason"] for each in found for c in each.get("status", {}).get("conditions", [])]
        waited = max(waited, reasons.count("WaitsForTurn"))
        return reasons.count("Proved") - 1

    while (done := proved()) < FUNCTIONS:
        assert time.monotonic() - began < 900, f"{done} are proved"
        if done > 20 and len(woken) < 3:
            at = time.monotonic()
            assert dormouse.call("sleeper", 1, timeout=60) == 1
            woken.append(round(time.monotonic() - at, 1))
            time.sleep(4)  # it falls asleep
        time.sleep(1)
    print(f"{FUNCTIONS} proved after {time.monotonic() - began:.0f} s; at most {most} pods not ready, {waited} waited; woken in {woken} s")
    assert waited > FUNCTIONS / 4
    assert dormouse.restarts() == before
    dormouse.cluster.kubectl("delete", "ifn", "--all", "-n", dormouse.space, "--wait=false")
