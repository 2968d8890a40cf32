"""What cannot be had, and what goes away in the middle: callers are told by the hold limit, the condition says why within half a minute,
and everything heals by itself when the cause is gone, without anybody's restart."""

import hashlib
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from dormouse_testing import models
from dormouse_testing.cluster import control_plane
from dormouse_testing.cluster.client import eventually
from dormouse_testing.cluster.functions import CODE, GATEWAY, OPERATOR, SYSTEM, Dormouse, echo
from dormouse_testing.cluster.layout import Timing
from dormouse_testing.cluster.serving import files

HOLD = {"timeouts": {"hold": "12s"}}
NOBODY = "localhost/nobody-has-this:1"

pytestmark = pytest.mark.usefixtures("unharmed")


def hopeless(dormouse: Dormouse, name: str, reason: str, *cause: str) -> None:
    """3.O1: a call without a deadline is answered with the cause by the hold limit (12 s), one with 5 s too or by its deadline; the
    condition says it within half a minute."""
    eventually("it is known", lambda: dormouse.condition(name, "Accepted"))
    began = time.monotonic()
    patient = dormouse.pool.submit(dormouse.refused, name, None)
    code, text = dormouse.refused(name, 5.0)
    assert time.monotonic() - began < 10
    assert code == grpc.StatusCode.DEADLINE_EXCEEDED or (code == grpc.StatusCode.UNAVAILABLE and all(word in text for word in cause)), text
    code, text = patient.result()
    assert time.monotonic() - began < 20
    assert code == grpc.StatusCode.UNAVAILABLE
    assert all(word in text for word in cause), text
    message = dormouse.reason(name, "ModelReady", reason, max(1.0, began + 30 - time.monotonic()))
    assert all(word in message for word in cause), message
    code, text = dormouse.refused(name, 30.0)
    assert code == grpc.StatusCode.UNAVAILABLE
    assert all(word in text for word in cause), text


def heals(dormouse: Dormouse, name: str, seconds: float = 90.0) -> None:
    """The next calls are refused or held until one is answered."""
    began = time.monotonic()
    while True:
        try:
            assert dormouse.call(name, 9, timeout=30) == 9
            break
        except grpc.RpcError:
            if time.monotonic() - began > seconds:
                raise
            time.sleep(0.5)
    eventually("its condition says so", lambda: dormouse.condition(name, "ModelReady").get("status") == "True")
    dormouse.delete(name)


def test_an_image_that_cannot_be_had(base: Dormouse) -> None:
    base.apply(echo("no-image", workers={"image": NOBODY}, **HOLD))
    hopeless(base, "no-image", "ImageUnavailable", NOBODY)
    base.patch("no-image", {"workers": {"image": None}})
    heals(base, "no-image")


def test_a_model_that_is_not_there(base: Dormouse, tmp_path: Path) -> None:
    """404, until the file is there: it is fetched by itself, and proved. One with another digest is told as what it is."""
    if not base.cluster.own:
        pytest.skip("pods of another cluster do not reach this process")
    model = models.write(
        tmp_path / "model.onnx",
        [models.node("Identity", ["add"], ["total"])],
        [("add", models.INT64, ["n"])],
        [("total", models.INT64, ["n"])],
    ).read_bytes()
    with files(tmp_path) as server:
        base.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "trust"}, "data": {"ca": server.certificate.read_text()}})
        workers = {
            "env": [{"name": "SSL_CERT_FILE", "value": "/trust/ca"}],
            "volumes": [{"name": "trust", "mountPath": "/trust", "configMap": {"name": "trust"}}],
        }
        url = f"{server.url}/model.onnx?secret=1"
        onnx = {"runtime": "onnx", "handler": None, "workers": workers, **HOLD}
        base.apply(echo("no-model", model={"uri": url, "sha256": hashlib.sha256(model).hexdigest()}, **onnx))
        hopeless(base, "no-model", "ModelUnavailable", "404", f"{server.url}/model.onnx")
        assert "secret" not in base.condition("no-model", "ModelReady")["message"]
        server.files["/model.onnx?secret=1"] = model
        heals(base, "no-model", 150)
        base.apply(echo("another", model={"uri": url, "sha256": "0" * 64}, **onnx))
        assert "sha256" in base.reason("another", "ModelReady", "ModelInvalid", 60)
        base.delete("another")


def test_a_config_map_that_comes_later(base: Dormouse) -> None:
    base.apply(echo("no-volume", model={"uri": "configmap://later"}, **HOLD))
    hopeless(base, "no-volume", "VolumeUnavailable", "later")
    base.apply({**CODE, "metadata": {"name": "later"}})
    heals(base, "no-volume", 150)


def test_a_quota_of_no_pods(base: Dormouse) -> None:
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}}
    base.apply(quota)
    try:
        base.apply(echo("no-quota", **HOLD))
        hopeless(base, "no-quota", "QuotaExceeded", "quota")
    finally:
        base.cluster.kubectl("delete", "resourcequota", "none", "-n", base.space)
    heals(base, "no-quota")


# ------------------------------------------------------------------------------------------------------------------ in mid-wake


def gone(dormouse: Dormouse, part: str) -> None:
    """Every pod of it, at once."""
    words = ["-n", SYSTEM, "-l", f"dormouse.dev/part={part}", "--grace-period=0", "--force"]
    dormouse.cluster.kubectl("delete", "pods", *words)


@pytest.mark.parametrize(
    ("what", "wait"),
    [("operator", 0.1), ("operator", 0.8), ("API server", 0.1), pytest.param("API server", 0.8, marks=pytest.mark.slow)],
)
def test_a_wake_goes_on_when_what_makes_it_restarts(base: Dormouse, what: str, wait: float) -> None:
    """The call is held through it and answered."""
    if what == "API server" and base.cluster.layout is None:
        pytest.skip("another's API server is not ours to end")
    base.asleep("echo")
    calls = [base.begin("echo", number) for number in range(1, 21)]
    time.sleep(wait)
    if what == "operator":
        gone(base, "operator")
    elif base.cluster.layout is not None:
        control_plane.restart_api_server(base.cluster.layout, Timing(), away=3.0)
    assert [call.result() for call in calls] == list(range(1, 21))
    base.cluster.kubectl("rollout", "status", OPERATOR, "-n", SYSTEM, "--timeout=60s")


def test_a_gateway_that_goes_in_the_middle_of_a_wake(base: Dormouse) -> None:
    """Its callers' connections break; who calls again is answered by the other one, and the function wakes all the same."""
    base.asleep("echo")
    calls = [base.begin("echo", number) for number in range(1, 21)]
    time.sleep(0.5)
    [one, _] = [p["metadata"]["name"] for p in base.gateways()]
    base.cluster.kubectl("delete", "pod", one, "-n", SYSTEM, "--grace-period=0", "--force")
    for number, call in enumerate(calls, 1):
        error = call.exception()
        assert error is None or (isinstance(error, grpc.RpcError) and error.code() == grpc.StatusCode.UNAVAILABLE), error
        if error is not None:
            assert retried(lambda number=number: base.call("echo", number, timeout=20)) == number  # type: ignore[misc]
    base.cluster.kubectl("rollout", "status", f"deployment/{GATEWAY}", "-n", SYSTEM, "--timeout=60s")


def retried(call: Callable[[], int]) -> int:
    """As callers do it: UNAVAILABLE is called again, for a while."""
    until = time.monotonic() + 30
    while True:
        try:
            return call()
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.UNAVAILABLE or time.monotonic() > until:
                raise
            time.sleep(0.2)
