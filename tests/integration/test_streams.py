"""`ModelStreamInfer` on the whole system, by the unmodified tritonclient: many sequences on one stream, what it outlives, how it ends."""

import asyncio
import os
import signal
import statistics
import time
from collections.abc import Iterator
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from conftest import unavailable
from dormouse_proto import inference_pb2
from dormouse_testing.http2 import Connection
from dormouse_testing.stream_clients import TritonStream, triton_stream
from dormouse_testing.streams_system import NAP, X, agents, kill_an_owner, missing, pid_of, scale, settles, streams_system
from dormouse_testing.system import System, manifest
from dormouse_testing.workers import outputs_of, request_of


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    if reason := missing():
        unavailable(reason)
    with streams_system(tmp_path_factory.mktemp("streams")) as started:
        yield started


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
            kill_an_owner(system, "counter")
            go_on("counter", 20)
            scale(system, "counter", 3)
        for count in (1, 3):
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
        system.wait("sleepy", lambda status: status["phase"] == "Asleep")
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


# ---------------------------------------------------------------------------------------------- opened again under a caller's keys


def stepped(client: TritonStream, numbers: range, *, sequence: int, keys: str = "") -> list[float]:
    """Steps of equal content: what the counter answers to each."""
    found = []
    for number in numbers:
        key = f"{keys}-{number}" if keys else ""
        client.do("send", model="counter", data=[1], sequence=sequence, start=number == 0, key=key, **X)
        answer = client.do("answer")
        assert "error" not in answer, answer
        found.append(answer["outputs"]["y"][0])
    return found


def test_a_stream_that_is_opened_again_runs_what_was_not_answered_and_nothing_twice(system: System) -> None:
    """Five of eight are answered when it breaks; the caller is not sure of the fifth and sends it again."""
    for sequence, kind in ((91, "number"), (92, "own")):
        job = f"{kind}-{os.getpid()}"
        headers = [{"dormouse-idempotency-key": job, "dormouse-first-message": str(first)} for first in (0, 4)]
        keys = job if kind == "own" else ""
        with triton_stream(system.address, headers=None if keys else headers[0]) as client:
            assert stepped(client, range(5), sequence=sequence, keys=keys) == [1, 2, 3, 4, 5]
        with triton_stream(system.address, headers=None if keys else headers[1]) as client:
            assert stepped(client, range(4, 8), sequence=sequence, keys=keys) == [5, 6, 7, 8]


def test_with_a_wrong_first_number_it_would_be_answered_with_earlier_replies(system: System) -> None:
    """Why the number must be given: the control of the test above. Nothing runs, and nothing in the answers is an error."""
    headers = {"dormouse-idempotency-key": f"trap-{os.getpid()}", "dormouse-first-message": "0"}
    with triton_stream(system.address, headers=headers) as client:
        assert stepped(client, range(1), sequence=93) == [1]
        assert stepped(client, range(1, 4), sequence=93) == [2, 3, 4]
    with triton_stream(system.address, headers={**headers, "dormouse-first-message": "1"}) as client:
        assert stepped(client, range(1, 4), sequence=93) == [2, 3, 4], "meant as the fifth to the seventh"


def test_a_streams_key_without_the_first_number_ends_the_stream(system: System) -> None:
    with triton_stream(system.address, headers={"dormouse-idempotency-key": "job"}) as client:
        found = client.do("answer")  # without any message; one that is sent may come after the end
        assert "dormouse-first-message: absent beside dormouse-idempotency-key" in found["error"]


def test_a_unary_calls_key_may_be_a_parameter(system: System) -> None:
    request = request_of("counter", x=np.ones((1, 1), np.float32))
    request.parameters["sequence_id"].int64_param = 95
    request.parameters["sequence_start"].bool_param = True
    with system.client() as client:
        client.infer(request)
        request.parameters["sequence_start"].bool_param = False
        request.parameters["dormouse_idempotency_key"].string_param = f"unary-{os.getpid()}"
        replies = [client.infer(request), client.infer(request)]
        del request.parameters["dormouse_idempotency_key"]
        replies.append(client.infer(request, [("dormouse-idempotency-key", f"unary-{os.getpid()}")]))
        replies.append(client.infer(request))
    assert [float(outputs_of(reply)["y"][0, 0]) for reply in replies] == [2, 2, 2, 3]


# --------------------------------------------------------------------------------------------------------------- never half-closed


def test_ping_pong_that_is_never_half_closed(system: System) -> None:
    with triton_stream(system.address) as client:
        client.do("send", model="wide", ident="large", size=3 * (1 << 18), **X)  # 3 MiB
        found = client.do("answer")
        assert (found["id"], len(found["outputs"]["y"])) == ("large", 16)
        found = client.do("turns", model="counter", sequence=5, count=100, **X)
        assert found["values"] == [float(number + 1) for number in range(100)]
        assert found["p50"] < 500, "ms; each reply comes long before it would have been given up"
    assert streams_open(system) == 0


def test_a_first_message_that_comes_byte_by_byte(system: System) -> None:
    """Case 1.O6. Each byte is a DATA frame of its own; then a hundred messages more, each after the reply to the one before. The stream is
    never half-closed."""
    headers = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/inference.GRPCInferenceService/ModelStreamInfer"),
               (b":authority", b"x"), (b"content-type", b"application/grpc"), (b"te", b"trailers")]  # fmt: skip
    took = []
    with Connection(system.address) as connection:
        stream = connection.open(headers)
        for number in range(101):
            request = request_of("counter", x=np.ones((1, 1), np.float32))
            request.parameters["sequence_id"].int64_param = 7
            request.parameters["sequence_start"].bool_param = number == 0
            body = request.SerializeToString()
            began = time.monotonic()
            connection.send(stream, b"\0" + len(body).to_bytes(4, "big") + body, 1 if number == 0 else len(body) + 5)
            found = inference_pb2.ModelStreamInferResponse.FromString(connection.message(stream))
            took.append(time.monotonic() - began)
            assert np.frombuffer(found.infer_response.raw_output_contents[0], np.float32) == number + 1.0
    assert statistics.median(took) < 0.5
    assert streams_open(system) == 0


@pytest.mark.parametrize("seconds", [4, pytest.param(60, marks=pytest.mark.slow)])
def test_a_stream_that_is_silent_before_its_first_message(system: System, seconds: int) -> None:
    with triton_stream(system.address) as client:
        time.sleep(seconds)
        assert client.do("turns", model="counter", sequence=6000 + seconds, count=10, **X)["values"][-1] == 10.0
    assert streams_open(system) == 0


@pytest.mark.slow
async def test_three_thousand_open_streams(system: System) -> None:
    """Case 3.O5. Envoy's own limit is 1,024 requests a cluster: 'overflow' though there is room."""
    await asyncio.to_thread(scale, system, "counter", 2)
    options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.aio.insecure_channel(system.address, options=options) for _ in range(6)]
    method = "/inference.GRPCInferenceService/ModelStreamInfer"
    calls: list[Any] = [channels[number % 6].stream_stream(method)() for number in range(3000)]

    at_once = asyncio.Semaphore(200)  # how many are open is asked, not how many are stepped in one moment

    async def step(number: int, expected: float, start: bool) -> None:
        async with at_once:
            await stepped(number, expected, start)

    async def stepped(number: int, expected: float, start: bool) -> None:
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
    return settles(lambda: agents(system, "dormouse_relay_streams"))


# ------------------------------------------------------------------------------------------------------------------------ errors


def test_errors_are_in_the_stream_with_tritons_words(system: System) -> None:
    with triton_stream(system.address) as client:
        client.do("send", model="counter", data=[1], ident="lost", sequence=991, **X)
        found = client.do("answer")
        text = "inference request for sequence 991 to model 'counter' must specify the START flag on the first request of the sequence"
        assert (found["error"], found["status"]) == (text, None)
        client.do("send", model="nobody", data=[1], ident="x", **X)
        assert "function default/nobody not found" in client.do("answer")["error"]
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


def test_an_agent_that_stands_still_for_some_seconds_loses_no_stream(system: System) -> None:
    with triton_stream(system.address) as client:
        assert client.do("turns", model="counter", sequence=970, count=3, **X)["values"] == [1.0, 2.0, 3.0]
        agent = pid_of(system, "dormouse_gateway")
        os.kill(agent, signal.SIGSTOP)
        try:
            time.sleep(4.5)  # longer than a worker may take to answer a ping
        finally:
            os.kill(agent, signal.SIGCONT)
        assert client.do("turns", model="counter", sequence=970, count=2, first=3, **X)["values"] == [4.0, 5.0]


def test_an_agent_that_dies_ends_its_streams_and_the_next_stream_goes_on(system: System) -> None:
    """Envoy's own text where nothing was answered yet; behind an answer it can only reset the stream."""
    with triton_stream(system.address) as client, triton_stream(system.address) as silent:
        assert client.do("turns", model="counter", sequence=960, count=3, **X)["values"] == [1.0, 2.0, 3.0]
        system.until(lambda: agents(system, "dormouse_relay_streams") == 2)
        os.kill(pid_of(system, "dormouse_gateway"), signal.SIGKILL)
        assert client.do("answer")["status"] in ("StatusCode.INTERNAL", "StatusCode.UNAVAILABLE")
        found = silent.do("answer")
        assert found["status"] == "StatusCode.UNAVAILABLE"
        assert "the connection broke while the call ran; its outcome is not known" in found["error"]
    with triton_stream(system.address) as client:
        assert client.do("turns", model="counter", sequence=960, count=2, first=3, **X)["values"] == [4.0, 5.0]
