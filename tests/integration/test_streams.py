"""`ModelStreamInfer` on the whole system, by the unmodified tritonclient: many sequences on one stream, streams that outlive what happens,
cancels and deadlines at every point, handlers that stream.
"""

import asyncio
import json
import os
import signal
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from conftest import unavailable
from dormouse_proto import inference_pb2
from dormouse_testing import models, stream_clients
from dormouse_testing.stream_clients import TritonStream, triton_stream
from dormouse_testing.system import System, manifest
from dormouse_testing.up import missing
from dormouse_testing.workers import Client, request_of

STATES = {"states": [{"input": "state", "output": "stateN", "shape": [-1, 1], "batchAxis": 0, "initial": "zeros"}]}
HANDLERS = """
import pathlib
import time

import dormouse
import numpy as np

RAN = pathlib.Path(__file__).with_name("ran")

class Slow(dormouse.Handler):
    inputs = [dormouse.Tensor("x", "FP32", [1, 1])]
    outputs = [dormouse.Tensor("y", "FP32", [1, 1])]
    states = [dormouse.State("sum", "FP32", [1, 1])]

    def step(self, inputs, state, ctx):
        with RAN.open("a") as file:
            file.write(f"{ctx.session} {ctx.step}\\n")
        time.sleep(float(inputs["x"][0, 0]))
        state["sum"] += 1
        return {"y": state["sum"].copy()}

class Talk(dormouse.Handler):
    '''Says as many numbers as it is told, and goes on counting where it stopped. 13 is unlucky.'''
    inputs = [dormouse.Tensor("n", "INT64", [1])]
    outputs = [dormouse.Tensor("y", "INT64", [1])]
    states = [dormouse.State("said", "INT64", [1])]

    def step(self, inputs, state, ctx):
        for number in range(int(inputs["n"][0])):
            state["said"] += 1
            yield {"y": state["said"].copy()}
            if int(inputs["n"][0]) == 13 and number == 5:
                raise ValueError("no luck")
            time.sleep(0.02)

class Shout(dormouse.Handler):
    inputs = [dormouse.Tensor("n", "INT64", [1])]
    outputs = [dormouse.Tensor("y", "UINT8", [-1])]

    async def step(self, inputs, state, ctx):
        for _ in range(int(inputs["n"][0])):
            yield {"y": np.zeros(1 << 20, np.uint8)}
"""
THREADS = len(os.sched_getaffinity(0))  # steps of a sync handler that run at once
NAP = {
    "runtime": "python",
    "model": {"uri": "file://handlers"},
    "handler": "handlers:Slow",
    "sessions": {},
    "scaleToZeroAfter": "3s",
}
X: dict[str, Any] = {"name": "x"}
N: dict[str, Any] = {"name": "n", "datatype": "INT64", "shape": [1]}


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    if reason := missing() or stream_clients.missing():
        unavailable(reason)
    folder = tmp_path_factory.mktemp("streams")
    models.counter(folder / "counter.onnx", 1)
    models.identity(folder / "wide.onnx", models.FLOAT, ("n", "w"))
    (folder / "handlers").mkdir()
    (folder / "handlers" / "handlers.py").write_text(HANDLERS)
    onnx = {"runtime": "onnx", "model": {"uri": "file://counter.onnx"}, "sessions": STATES}
    python = {"runtime": "python", "model": {"uri": "file://handlers"}}
    awake = {"scaleToZeroAfter": "10m"}
    for name, spec in {
        "counter": {**onnx, **awake},
        "sleepy": {**onnx, "scaleToZeroAfter": "3s"},
        "wide": {"runtime": "onnx", "model": {"uri": "file://wide.onnx"}, **awake},
        "slow": {**python, "handler": "handlers:Slow", "sessions": {}, **awake},
        "talk": {**python, "handler": "handlers:Talk", "sessions": {}, **awake},
        "shout": {**python, "handler": "handlers:Shout", **awake},
    }.items():
        (folder / f"{name}.yaml").write_text(manifest(name, **spec))
    with System(folder) as started:
        for name in ("counter", "sleepy", "wide", "slow", "talk", "shout"):
            started.wait_proved(name)
        yield started


def ran(system: System) -> list[str]:
    path = system.folder / "handlers" / "ran"
    return path.read_text().splitlines() if path.exists() else []


def owners(system: System, name: str) -> set[str]:
    return set(system.get(name, "--owners")["owners"].values())


def scale(system: System, name: str, count: int) -> None:
    system.command("scale", name, str(count))
    system.wait(name, lambda status: status["readyReplicas"] == count)
    limit = time.monotonic() + 30
    while len(owners(system, name)) != count:
        assert time.monotonic() < limit
        time.sleep(0.05)


# ------------------------------------------------------------------------------------------------------------------------ order


def test_many_sequences_on_one_stream_over_three_workers(system: System) -> None:
    scale(system, "counter", 3)
    with triton_stream(system.address) as client:
        found = client.do("interleave", model="counter", sequences=200, **X)
    assert found == {"right": 200, "wrong": {}, "errors": []}


def test_while_shards_move(system: System) -> None:
    scale(system, "counter", 3)
    with triton_stream(system.address) as client:
        for turn, count in enumerate((1, 3)):
            client.begin("interleave", model="counter", sequences=200, base=1000 * (turn + 1), **X)
            system.command("scale", "counter", str(count))
            assert client.result() == {"right": 200, "wrong": {}, "errors": []}
        scale(system, "counter", 3)


def test_from_zero(system: System) -> None:
    system.wait("sleepy", lambda status: status["phase"] == "Asleep")
    with triton_stream(system.address) as client:
        found = client.do("interleave", model="sleepy", sequences=200, **X)
    assert found == {"right": 200, "wrong": {}, "errors": []}


# ------------------------------------------------------------------------------------------------------------- what it outlives


def test_a_stream_outlives_its_owners_death_a_handoff_and_a_sleep(system: System) -> None:
    with triton_stream(system.address) as client:
        done = 0

        def go_on(model: str, count: int) -> None:
            nonlocal done
            found = client.do("turns", model=model, sequence=77, count=count, first=done, **X)
            assert "wrong" not in found, found
            assert found["values"] == [float(number + 1) for number in range(done, done + count)]
            done += count

        scale(system, "counter", 3)
        go_on("counter", 20)
        for _ in range(3):  # one of them is the session's
            os.kill(system.process_of(next(iter(owners(system, "counter")))), signal.SIGKILL)
            go_on("counter", 20)
            scale(system, "counter", 3)
        for count in (1, 2, 1, 3):
            system.command("scale", "counter", str(count))
            go_on("counter", 50)
            scale(system, "counter", count)
            go_on("counter", 10)

        done = 0
        go_on("sleepy", 5)
        system.wait("sleepy", lambda status: status["phase"] == "Asleep")
        go_on("sleepy", 5)
        client.do("stop")


def test_a_silent_stream_keeps_nobody_awake(system: System) -> None:
    with triton_stream(system.address) as client:
        assert "values" in client.do("turns", model="sleepy", sequence=78, count=3, **X)
        system.wait("sleepy", lambda status: status["phase"] == "Asleep", 30)
        assert client.do("turns", model="sleepy", sequence=78, count=1, first=3, **X)["values"] == [4.0]


@pytest.mark.slow
def test_a_step_that_runs_on_a_stream_is_demand_until_it_ends(system: System) -> None:
    """Ten seconds, where three without a call are enough to sleep."""
    system.command("apply", "-f", "-", stdin=manifest("nap", **NAP))
    system.wait_proved("nap")
    with triton_stream(system.address) as client:
        client.do("send", model="nap", data=[10], sequence=1, start=True, **X)
        assert client.do("answer")["outputs"]["y"] == [1.0]
        system.wait("nap", lambda status: status["phase"] == "Asleep", 30)


# --------------------------------------------------------------------------------------------------------------- never half-closed


def test_ping_pong_that_is_never_half_closed(system: System) -> None:
    with triton_stream(system.address) as client:
        client.do("send", model="wide", ident="large", size=3 * (1 << 18), **X)  # 3 MiB
        found = client.do("answer")
        assert (found["id"], len(found["outputs"]["y"])) == ("large", 16)
        found = client.do("turns", model="counter", sequence=5, count=100, **X)
        assert found["values"] == [float(number + 1) for number in range(100)]
    assert streams_open(system) == 0


@pytest.mark.slow
def test_a_stream_that_is_silent_for_a_minute_first(system: System) -> None:
    with triton_stream(system.address) as client:
        time.sleep(60)
        assert client.do("turns", model="counter", sequence=6, count=10, **X)["values"][-1] == 10.0


@pytest.mark.slow
async def test_three_thousand_open_streams(system: System) -> None:
    """Envoy's own limit is 1,024 requests a cluster: 'overflow' though there is room."""
    await asyncio.to_thread(scale, system, "counter", 2)
    options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.aio.insecure_channel(system.address, options=options) for _ in range(6)]
    method = "/inference.GRPCInferenceService/ModelStreamInfer"
    calls = [channels[number % 6].stream_stream(method)() for number in range(3000)]

    async def step(number: int, expected: float, start: bool) -> None:
        request = request_of("counter", x=np.ones((1, 1), np.float32))
        request.parameters["sequence_id"].int64_param = 100_000 + number
        request.parameters["sequence_start"].bool_param = start
        await calls[number].write(request.SerializeToString())
        found = inference_pb2.ModelStreamInferResponse.FromString(await calls[number].read())
        assert found.error_message == ""
        assert np.frombuffer(found.infer_response.raw_output_contents[0], np.float32) == expected

    for turn in range(3):
        await asyncio.gather(*(step(number, turn + 1.0, turn == 0) for number in range(3000)))
    for call in calls:
        await call.done_writing()
    assert {await call.code() for call in calls} == {grpc.StatusCode.OK}
    for channel in channels:
        await channel.close()
    assert await asyncio.to_thread(streams_open, system) == 0


def streams_open(system: System) -> float:
    """By the agent's own count, once it has seen what the client did."""
    port = json.loads((system.folder / ".dormouse" / "run.json").read_text())["metrics"]["gateway"]
    limit = time.monotonic() + 5
    while True:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as page:
            lines = page.read().decode().splitlines()
        count = float(next(line for line in lines if line.startswith("dormouse_relay_streams ")).rpartition(" ")[2])
        if count == 0 or time.monotonic() > limit:
            return count
        time.sleep(0.05)


# ------------------------------------------------------------------------------------------------------------------------ errors


def test_errors_are_in_the_stream_with_tritons_words(system: System) -> None:
    with triton_stream(system.address) as client:
        client.do("send", model="counter", data=[1], ident="lost", sequence=991, **X)
        found = client.do("answer")
        text = "inference request for sequence 991 to model 'counter' must specify the START flag on the first request of the sequence"
        assert (found["error"], found["status"]) == (text, None)
        client.do("send", model="nobody", data=[1], ident="x", **X)
        assert "there is no function default/nobody" in client.do("answer")["error"]
        assert client.do("turns", model="counter", sequence=992, count=1, **X)["values"] == [1.0], "the stream goes on"


def test_or_its_status_where_that_is_asked_for(system: System) -> None:
    with triton_stream(system.address, headers={"triton_grpc_error": "true"}) as client:
        assert client.do("turns", model="counter", sequence=993, count=1, **X)["values"] == [1.0]
        client.do("send", model="counter", data=[1], ident="lost", sequence=994, **X)
        found = client.do("answer")
        assert found["status"] == "StatusCode.INVALID_ARGUMENT"
        assert "must specify the START flag" in found["error"]


def test_compressed_messages(system: System) -> None:
    for number, compression in enumerate(("gzip", "deflate")):
        with triton_stream(system.address, compression=compression) as client:
            assert client.do("turns", model="counter", sequence=950 + number, count=3, **X)["values"] == [1.0, 2.0, 3.0]


def test_a_message_that_is_too_large_ends_its_stream(system: System) -> None:
    with triton_stream(system.address) as client:
        client.do("send", model="wide", size=17 * (1 << 18), **X)
        found = client.do("answer")
        assert found["status"] == "StatusCode.RESOURCE_EXHAUSTED", found
        assert "larger than max" in found["error"]


def test_an_agent_that_dies_ends_its_streams_and_the_next_stream_goes_on(system: System) -> None:
    """Envoy's own text where nothing was answered yet; behind an answer it can only reset the stream."""
    with triton_stream(system.address) as client, triton_stream(system.address) as silent:
        assert client.do("turns", model="counter", sequence=960, count=3, **X)["values"] == [1.0, 2.0, 3.0]
        os.kill(pid_of(system, "dormouse_gateway"), signal.SIGKILL)
        assert client.do("answer")["status"] in ("StatusCode.INTERNAL", "StatusCode.UNAVAILABLE")
        found = silent.do("answer")
        assert found["status"] == "StatusCode.UNAVAILABLE"
        assert "the connection broke while the call ran; its outcome is not known" in found["error"]
    with triton_stream(system.address) as client:
        assert client.do("turns", model="counter", sequence=960, count=2, first=3, **X)["values"] == [4.0, 5.0]


def pid_of(system: System, word: str) -> int:
    """The process with `word` alone on its command line, or as its program."""
    for pid in system.processes():
        words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        if word in words or words[0].endswith(f"/{word}"):
            return pid
    raise AssertionError(f"no process of {word}")


# -------------------------------------------------------------------------------------------------------------- cancels, deadlines


def test_what_was_cancelled_on_a_stream_is_not_computed(system: System) -> None:
    """Ten steps of a second each, of ten sessions on two threads: two run when the stream is stopped, and those alone."""
    before = len(ran(system))
    with triton_stream(system.address) as client:
        for number in range(10):
            client.do("send", model="slow", data=[1], sequence=300 + number, start=True, **X)
        time.sleep(0.3)
        assert client.do("stop", cancel=True)["took"] < 1
    with triton_stream(system.address) as client:
        began = time.monotonic()
        client.do("send", model="slow", data=[0], sequence=320, start=True, **X)
        assert client.do("answer")["outputs"]["y"] == [1.0]
        assert time.monotonic() - began < 2.5
    assert len(ran(system)) - before <= THREADS + 1


def test_a_late_unary_call_is_not_computed(system: System) -> None:
    before = len(ran(system))
    with system.client() as client:
        began = time.monotonic()
        late = [client.stub.ModelInfer.future(slow(1, 400 + number), timeout=0.1) for number in range(20)]
        assert {call.exception().code() for call in late} == {grpc.StatusCode.DEADLINE_EXCEEDED}
        assert step(client, 0, 430) == 1
        assert time.monotonic() - began < 2.5
    assert len(ran(system)) - before <= THREADS + 1


def test_a_cancelled_step_is_wholly_committed_or_not_at_all_and_its_key_tells(system: System) -> None:
    with system.client() as client:
        for number in range(6):
            sequence = 500 + number
            key = f"cancelled-{number}-{os.getpid()}"
            began = len(ran(system))
            with pytest.raises(grpc.RpcError):
                step(client, 0.25, sequence, key=key, timeout=0.04 * (number + 1))
            assert step(client, 0.25, sequence, key=key) == 1, "committed by the first copy, or run now"
            assert step(client, 0, sequence, start=False) == 2
            assert len(ran(system)) - began <= 3


def test_a_deadline_or_cancel_while_the_step_commits(system: System) -> None:
    """The store stands still while the steps commit. Their callers are told at once, and the keys tell what became of them."""
    key = f"commits-{os.getpid()}"
    headers = {"dormouse-idempotency-key": f"{key}-stream"}
    with system.client() as client, triton_stream(system.address, headers=headers) as stream:
        for sequence in (800, 801):
            assert step(client, 0, sequence) == 1
        before = len(ran(system))
        etcd = pid_of(system, "etcd")
        os.kill(etcd, signal.SIGSTOP)
        try:
            stream.do("send", model="slow", data=[0], sequence=801, **X)
            began = time.monotonic()
            with pytest.raises(grpc.RpcError) as late:
                step(client, 0, 800, start=False, key=key, timeout=0.5)
            assert late.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
            assert stream.do("stop", cancel=True)["took"] < 0.5
            assert time.monotonic() - began < 1.2
        finally:
            os.kill(etcd, signal.SIGCONT)
        assert step(client, 0, 800, start=False, key=key) == 2
        assert step(client, 0, 800, start=False) == 3
        with triton_stream(system.address, headers=headers) as again:
            again.do("send", model="slow", data=[0], sequence=801, **X)
            assert again.do("answer")["outputs"]["y"] == [2.0]
        assert step(client, 0, 801, start=False) == 3
        assert len(ran(system)) - before == 4, "nothing ran twice"


def slow(seconds: float, sequence: int, start: bool = True) -> inference_pb2.ModelInferRequest:
    request = request_of("slow", x=np.array([[seconds]], np.float32))
    request.parameters["sequence_id"].int64_param = sequence
    request.parameters["sequence_start"].bool_param = start
    return request


def step(client: Client, seconds: float, sequence: int, *, start: bool = True, key: str = "", timeout: float = 20) -> float:
    reply = client.infer(slow(seconds, sequence, start), [("dormouse-idempotency-key", key)] if key else [], timeout=timeout)
    return float(np.frombuffer(reply.raw_output_contents[0], np.float32)[0])


def test_a_streams_deadline_is_its_status(system: System) -> None:
    with triton_stream(system.address, timeout=0.5) as client:
        client.do("send", model="slow", data=[2], sequence=600, start=True, **X)
        client.do("send", model="slow", data=[0], sequence=600, **X)
        found = client.do("answer")
        assert "error" in found
        while found["status"] is None:  # steps may be told in the stream first
            found = client.do("answer")
        assert found["status"] == "StatusCode.DEADLINE_EXCEEDED"


def test_thousands_of_calls_with_deadlines_of_milliseconds_harm_nobody(system: System) -> None:
    before = system.processes()
    with system.client() as client:
        for sequence in range(700, 716):
            step(client, 0, sequence)
        futures = []
        for number in range(3000):
            request = slow(0, 700 + number % 16, False)
            futures.append(client.stub.ModelInfer.future(request, timeout=0.001 * (1 + number % 4)))
            if len(futures) >= 64:
                futures.pop(0).exception()
        for future in futures:
            future.exception()
        for sequence in range(700, 716):
            assert step(client, 0, sequence, start=False) >= 2
    assert before == system.processes()


# ------------------------------------------------------------------------------------------------------------------ in parts


def words(client: TritonStream, count: int) -> list[Any]:
    """[value, final] of the next `count` responses, or an error's text."""
    found = [client.do("answer") for _ in range(count)]
    return [each.get("error") or [*each["outputs"].get("y", [None]), each["parameters"]["triton_final_response"]] for each in found]


def test_a_handler_that_streams(system: System) -> None:
    with triton_stream(system.address) as client:
        client.do("send", model="talk", data=[3], ident="a", sequence=1, start=True, final=True, **N)
        assert words(client, 4) == [[1, False], [2, False], [3, False], [None, True]]
        client.do("send", model="talk", data=[2], ident="b", sequence=1, **N)
        client.do("send", model="talk", data=[1], ident="c", sequence=1, final=True, **N)
        assert words(client, 4) == [[4, False], [5, False], [6, False], [None, True]]
        client.do("send", model="talk", data=[13], ident="d", sequence=1, **N)
        assert words(client, 7) == [*([number, False] for number in range(7, 13)), "ValueError: no luck"]
        client.do("send", model="talk", data=[1], ident="e", sequence=1, final=True, **N)
        assert words(client, 2) == [[7, False], [None, True]], "what a failed step said has not happened"


def test_only_the_last_response_acknowledges(system: System) -> None:
    """The worker dies after a part: the caller is told so, and the session goes on where it was."""
    with triton_stream(system.address) as client:
        client.do("send", model="talk", data=[1], sequence=2, start=True, final=True, **N)
        assert words(client, 2) == [[1, False], [None, True]]
        client.do("send", model="talk", data=[500], sequence=2, **N)
        assert words(client, 1) == [[2, False]]
        os.kill(system.process_of(next(iter(owners(system, "talk")))), signal.SIGKILL)
        while not isinstance(found := words(client, 1)[0], str):
            pass
        assert "after a part of the reply was sent; whether the step is committed is not known" in found
        client.do("send", model="talk", data=[1], sequence=2, final=True, **N)
        assert words(client, 2) == [[2, False], [None, True]]


def test_a_repeated_call_gets_all_its_responses_again(system: System) -> None:
    headers = {"dormouse-idempotency-key": f"again-{os.getpid()}"}
    for _ in range(2):
        with triton_stream(system.address, headers=headers) as client:
            client.do("send", model="talk", data=[3], sequence=3, start=True, final=True, **N)
            assert words(client, 4) == [[1, False], [2, False], [3, False], [None, True]]


def test_a_unary_call_of_it_is_refused_and_its_config_says_why(system: System) -> None:
    with system.client() as client:
        request = request_of("talk", n=np.array([1]))
        request.parameters["sequence_id"].int64_param = 4
        with pytest.raises(grpc.RpcError) as refused:
            client.infer(request)
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert "doesn't support models with decoupled transaction policy" in refused.value.details()
        asked = inference_pb2.ModelConfigRequest(name="talk")
        assert client.stub.ModelConfig(asked, timeout=5).config.model_transaction_policy.decoupled


def test_a_slow_reader_slows_the_handler_and_fills_no_memory(system: System) -> None:
    """400 MiB to a caller that reads the first response and then waits."""
    with system.client() as client:
        pid = system.process_of(system.get("shout")["workers"][0])
        before = resident(pid)
        call = client.stub.ModelStreamInfer(iter([request_of("shout", n=np.array([400]))]))
        next(call)
        time.sleep(2)
        assert resident(pid) - before < 150
        assert 1 + sum(1 for _ in call) == 400


def resident(pid: int) -> float:
    """MiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024
