"""Real processes with wrong clocks on one machine: a worker, gateways, the leader. What is decided is decision 0115."""

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from conftest import unavailable
from dormouse.client import Client
from dormouse_core.errors import DormouseError
from dormouse_proto import health_pb2, health_pb2_grpc, inference_pb2, inference_pb2_grpc
from dormouse_testing import shifted
from dormouse_testing.etcd_server import EtcdServer, NoEtcd
from dormouse_testing.gateway import Gateway
from dormouse_testing.ports import free_port
from dormouse_testing.up import Up, children, missing, row, save_models
from dormouse_testing.workers import metric_of

HOUR = 3600.0
OFF = "until its clock is right"
CALL = 0.002
"""Seconds: less than any call of a step takes. Gateways that have just begun, or whose leader has, measure worse than that at first."""
TOTAL = """
apiVersion: dormouse.dev/v1alpha1
kind: InferenceFunction
metadata: {name: NAME}
spec:
  runtime: onnx
  model: {uri: "file://total.onnx"}
  sessions:
    states: [{input: s, output: t, shape: [-1, 1], batchAxis: 0}]
    ttl: 5m
  scaleToZeroAfter: 10m
"""


@dataclass
class Shifted:
    up: Up
    gateways: dict[float, Gateway]
    """By how many seconds each is ahead."""
    uncorrected: Gateway
    """Its Envoy is two seconds behind, and its agent does not know."""
    jumped: Gateway
    """Its Envoy is an hour ahead, and its agent does not know."""


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shifted]:
    if reason := missing():
        unavailable(reason)
    folder = tmp_path_factory.mktemp("clocks")
    save_models(folder)
    for name in ("ahead", "total"):
        (folder / f"{name}.yaml").write_text(TOTAL.replace("NAME", name))
    try:
        with EtcdServer(folder / "etcd") as etcd, shifted.system(folder, "--etcd-endpoints", etcd.endpoint) as up:
            up.wait_ready()
            by_offset = {offset: Gateway(etcd.endpoint, "local", sockets=True) for offset in (HOUR, 2.0, -2.0, 0.09, -0.09)}
            uncorrected, jumped = (Gateway(etcd.endpoint, "local", sockets=True) for _ in range(2))
            with contextlib.ExitStack() as stack:
                for gateway in (*by_offset.values(), uncorrected, jumped):
                    stack.callback(gateway.stop)
                for offset, gateway in by_offset.items():
                    gateway.start_agent(offset)
                    gateway.start_envoy(offset)
                uncorrected.start_agent()
                uncorrected.start_envoy(-2.0)
                jumped.start_agent()
                jumped.start_envoy(HOUR)
                for gateway in (*by_offset.values(), uncorrected, jumped):
                    gateway.wait_ready()
                yield Shifted(up, by_offset, uncorrected, jumped)
    except NoEtcd as error:
        unavailable(str(error))


def step(client: Client, function: str, sequence: int, *, start: bool = False) -> float:
    return float(client.infer(function, {"x": row(1)}, sequence_id=sequence, start=start, timeout=60).outputs["y"][0, 0])


def deviates(gateway: Gateway) -> float:
    """What its agent says; NaN: not known."""
    return metric_of(gateway.metrics, "dormouse_clock_deviation_seconds")


def corrects(gateway: Gateway) -> float:
    """What its Envoy adds to its clock, in seconds."""
    config = asyncio.run(gateway.ask("/config_dump?resource=dynamic_scoped_route_configs")) or ""
    found = re.search(r'"clock": "(-?\d+)"', config)
    return 0.0 if found is None else int(found[1]) / 1e6


def known(system: Shifted, offset: float) -> Gateway:
    """The gateway, once it knows its clock and its Envoy was told."""
    gateway = system.gateways[offset]
    system.up.until(lambda: abs(deviates(gateway) - offset) < 0.05 and abs(corrects(gateway) + offset) < 0.05)
    return gateway


# ----------------------------------------------------------------------------------------------------------------------- gateways


def serves(address: str) -> tuple[bool, bool]:
    """By its health, and by ServerReady."""
    with grpc.insecure_channel(address) as channel:
        health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
        ready = inference_pb2_grpc.GRPCInferenceServiceStub(channel).ServerReady(inference_pb2.ServerReadyRequest(), timeout=10)
    return health.status == health_pb2.HealthCheckResponse.SERVING, ready.ready


def test_a_gateway_beyond_the_bound_says_so_and_those_within_it_serve(system: Shifted) -> None:
    wrong = known(system, HOUR)
    system.up.until(lambda: serves(wrong.listen) == (False, False))
    for offset in (2.0, -2.0):
        within = known(system, offset)
        system.up.until(lambda: serves(within.listen) == (True, True))  # noqa: B023
    system.up.until(lambda: serves(system.up.gateway) == (True, True))
    with Client(wrong.listen) as late, Client(system.up.gateway) as right:  # who calls it all the same loses nothing
        assert step(right, "total", 1, start=True) == 1.0
        assert [step(client, "total", 1) for client in (late, right, late, right)] == [2.0, 3.0, 4.0, 5.0]


def test_what_envoy_stamps_right_after_its_clock_jumped_is_answered(system: Shifted) -> None:
    """Every worker refuses such a key; the relay, whose agent knows the time, stamps it again."""
    system.up.until(lambda: abs(deviates(system.jumped)) < 0.05)
    with Client(system.jumped.listen) as client:
        assert [step(client, "total", 5, start=count == 1) for count in (1, 2, 3)] == [1.0, 2.0, 3.0]


def refused(addresses: tuple[str, str], sequence: int, calls: int) -> list[str]:
    """The refusals of a caller that waits, and alternates: fresh steps, and every fifth begins the session again."""
    errors, count = [], 0.0
    with Client(addresses[0]) as one, Client(addresses[1]) as other:
        for n in range(calls):
            start = n % 5 == 0
            try:
                found = step((one, other)[n % 2], "total", sequence, start=start)
            except DormouseError as error:
                errors.append(f"{n}: {error.code.name}: {error.message}")
                continue
            count = 1.0 if start else count + 1
            assert found == count or errors
    return errors


def apart(system: Shifted, skew: float) -> float:
    """Seconds between the timestamps that the two gateways make at one moment."""
    ahead, behind = system.gateways[skew], system.gateways[-skew]
    return abs(corrects(ahead) + skew - corrects(behind) + skew)


@pytest.mark.parametrize("skew", [0.09, 2.0])
def test_two_gateways_that_differ_refuse_nothing_of_a_waiting_caller(system: Shifted, skew: float) -> None:
    addresses = (known(system, skew).listen, known(system, -skew).listen)
    for _ in range(5):  # what was measured anew on a busy machine, while they were called, may be off for a moment
        system.up.until(lambda: apart(system, skew) < CALL)
        errors = refused(addresses, round(skew * 100), 60)
        if not errors or apart(system, skew) < CALL:
            break
    assert errors == []


def test_negative_control_without_its_correction_a_gateway_that_is_behind_has_starts_refused(system: Shifted) -> None:
    assert corrects(system.uncorrected) == pytest.approx(0, abs=0.05)
    errors = refused((system.up.gateway, system.uncorrected.listen), 3, 20)
    assert errors, "every other start is two seconds older than the steps before it"
    assert all("ABORTED" in error for error in errors), errors


# ------------------------------------------------------------------------------------------------------------------------ a worker


def address_of(up: Up, worker: str) -> str:
    found = re.search(rf"worker ready worker={worker} function=default/ahead address=(\S+)", up.log)
    assert found, up.log[-3000:]
    return found[1]


def workers(up: Up) -> list[str]:
    """Of `ahead`, in the order in which they became ready."""
    return re.findall(r"worker ready worker=(\S+) function=default/ahead", up.log)


def an_hour_ahead(text: str) -> bool:
    """To a second: how exactly a clock is measured is the machine's."""
    found = re.search(r"(\d+\.\d) s ahead of the others' median", text)
    return found is not None and abs(float(found[1]) - HOUR) < 1


def owners(up: Up) -> set[str]:
    return set(up.get("ahead", owners=True)["owners"].values())


def test_a_worker_an_hour_ahead_serves_nothing_and_its_shards_move_with_all_their_sessions(system: Shifted) -> None:
    up = system.up
    sessions = range(1, 9)
    with Client(up.gateway) as client:
        for count in (1.0, 2.0, 3.0):
            assert [step(client, "ahead", n, start=count == 1) for n in sessions] == [count] * len(sessions)
        (right,) = owners(up)
        (instance,) = [i for i in up.supervisors() if right.startswith(i)]
        shifted.ahead(up.folder, worker=HOUR)
        supervisor = up.supervisors()[instance]
        for child in children(supervisor):
            os.kill(child, signal.SIGKILL)
        os.kill(supervisor, signal.SIGKILL)
        up.until(lambda: "this worker does not serve until its clock is right" in up.log)
        up.until(lambda: workers(up)[-1] != right)  # it is ready a moment later
        wrong = workers(up)[-1]
        up.until(lambda: owners(up) == {wrong})
        with grpc.insecure_channel(address_of(up, wrong)) as channel:
            stub = inference_pb2_grpc.GRPCInferenceServiceStub(channel)
            with pytest.raises(grpc.RpcError) as caught:
                stub.ModelInfer(inference_pb2.ModelInferRequest(model_name="ahead"), timeout=10)
            assert not stub.ServerReady(inference_pb2.ServerReadyRequest(), timeout=10).ready
        error = caught.value
        assert isinstance(error, grpc.Call)
        assert (error.code(), dict(error.trailing_metadata() or ()).get("dormouse-again")) == (grpc.StatusCode.UNAVAILABLE, "clock")
        assert an_hour_ahead(error.details() or ""), error.details()
        shifted.ahead(up.folder)
        up.command("scale", "ahead", "2")
        for count in (4.0, 5.0):
            assert [step(client, "ahead", n) for n in sessions] == [count] * len(sessions), "each goes on from its last step"
        up.until(lambda: wrong not in owners(up))
    up.command("delete", "ahead")


# ------------------------------------------------------------------------------------------------------------------------ the leader


def second_operator(up: Up) -> list[str]:
    """The command line of another operator beside the one that runs."""
    words = Path(f"/proc/{up.part('operator')}/cmdline").read_text().rstrip("\0").split("\0")
    for option, value in (
        ("--control", f"unix:{up.folder}/second.sock"),
        ("--listen", f"127.0.0.1:{free_port()}"),
        ("--metrics", str(free_port())),
    ):
        words[words.index(option) + 1] = value
    return [*words, "--name", "second"]


def test_a_leader_an_hour_ahead_resigns_where_two_others_agree_and_calls_go_on(system: Shifted, tmp_path: Path) -> None:
    up = system.up
    led, off = up.log.count("leading key="), up.log.count(OFF)
    path = tmp_path / "second.log"
    with path.open("ab") as log:
        second = subprocess.Popen(second_operator(up), stdout=log, stderr=log)
    try:
        up.until(lambda: "store connected" in path.read_text())  # on a slow machine it starts for longer than one that resigned stands back
        second.send_signal(signal.SIGSTOP)
        shifted.ahead(up.folder, operator=HOUR)
        os.kill(up.part("operator"), signal.SIGTERM)
        up.until(lambda: up.log.count("leading key=") > led)
        second.send_signal(signal.SIGCONT)
        with Client(up.gateway) as client:
            count, limit = 0.0, time.monotonic() + 60
            while "leading key=" not in path.read_text():
                count += 1
                assert step(client, "total", 4, start=count == 1) == count
                assert second.poll() is None, path.read_text()
                assert time.monotonic() < limit, f"{up.log[-3000:]}\nthe second:\n{path.read_text()}"
            up.until(lambda: an_hour_ahead(up.log.partition("the leader's clock is off")[2]))
            gateway = system.gateways[2.0]
            up.until(lambda: metric_of(gateway.metrics, "dormouse_leader_connected") == 1)
            limit = time.monotonic() + 3  # in which everybody meets the next
            while time.monotonic() < limit:
                count += 1
                assert step(client, "total", 4) == count
        said = [line for line in up.log.splitlines() if OFF in line]
        assert not said[off:], "what was said to the one of before is no vote with the next"
        for offset in (2.0, -2.0, 0.09, -0.09):
            assert OFF not in system.gateways[offset].log("dormouse_gateway"), offset
    finally:
        shifted.ahead(up.folder)
        second.send_signal(signal.SIGCONT)
        second.terminate()
        second.wait(60)
