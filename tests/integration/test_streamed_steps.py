"""Cancels and deadlines at every point, unary and on streams; handlers that stream. The whole system and the unmodified tritonclient."""

import contextlib
import os
import signal
import time
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from conftest import unavailable
from dormouse_proto import inference_pb2
from dormouse_testing.stream_clients import TritonStream, triton_stream
from dormouse_testing.streams_system import (
    THREADS,
    N,
    X,
    agents,
    kill_an_owner,
    missing,
    owners,
    pid_of,
    ran,
    settles,
    streams_system,
    workers,
)
from dormouse_testing.system import System
from dormouse_testing.workers import Client, metric_of, request_of

ONE = {"x": np.ones((1, 1), np.float32)}


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    if reason := missing():
        unavailable(reason)
    with streams_system(tmp_path_factory.mktemp("streams")) as started:
        yield started


# -------------------------------------------------------------------------------------------------------------- cancels, deadlines


def test_what_was_cancelled_on_a_stream_is_not_computed(system: System) -> None:
    """Ten steps of three seconds each, of ten sessions on two threads: two run when the stream is stopped, and those alone."""
    before = len(ran(system))
    with triton_stream(system.address) as client:
        for number in range(10):
            client.do("send", model="slow", data=[3], sequence=300 + number, start=True, **X)
        system.until(lambda: len(ran(system)) > before)
        assert client.do("stop", cancel=True)["took"] < 2, "for no step"
    with triton_stream(system.address) as client:
        began = time.monotonic()
        client.do("send", model="slow", data=[0], sequence=320, start=True, **X)
        assert client.do("answer")["outputs"]["y"] == [1.0]
        assert time.monotonic() - began < 10
    assert len(ran(system)) - before <= THREADS + 1


def test_a_late_unary_call_is_not_computed(system: System) -> None:
    before = len(ran(system))
    with system.client() as client:
        began = time.monotonic()
        late = [client.stub.ModelInfer.future(slow(1, 400 + number), timeout=0.1) for number in range(20)]
        assert {call.exception().code() for call in late} == {grpc.StatusCode.DEADLINE_EXCEEDED}
        assert step(client, 0, 430) == 1
        assert time.monotonic() - began < 8
    assert len(ran(system)) - before <= THREADS + 1


def test_a_cancelled_step_is_wholly_committed_or_not_at_all_and_its_key_tells(system: System) -> None:
    with system.client() as client:
        late = 0
        for number in range(6):
            sequence = 500 + number
            key = f"cancelled-{number}-{os.getpid()}"
            began = len(ran(system))
            try:
                step(client, 0.25, sequence, key=key, timeout=0.04 * (number + 1))
            except grpc.RpcError:
                late += 1
            assert step(client, 0.25, sequence, key=key) == 1, "committed by the first copy, or run now"
            assert step(client, 0, sequence, start=False) == 2
            assert len(ran(system)) - began <= 3
        assert late >= 4, "the last deadlines end with the steps"


def test_a_deadline_or_cancel_while_the_step_commits(system: System) -> None:
    """The store stands still while the steps commit. Their callers are told at once, and the keys tell what became of them."""
    key = f"commits-{os.getpid()}"
    headers = {"dormouse-idempotency-key": f"{key}-stream", "dormouse-first-message": "0"}
    with system.client() as client, triton_stream(system.address, headers=headers) as stream:
        for sequence in (800, 801):
            assert step(client, 0, sequence) == 1
        before, owner = len(ran(system)), owners(system, "slow")
        etcd = pid_of(system, "etcd")
        os.kill(etcd, signal.SIGSTOP)
        try:
            stream.do("send", model="slow", data=[0], sequence=801, **X)
            began = time.monotonic()
            with pytest.raises(grpc.RpcError) as late:
                step(client, 0, 800, start=False, key=key, timeout=0.5)
            assert late.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
            assert stream.do("stop", cancel=True)["took"] < 10
            assert time.monotonic() - began < 20, "the store stands still for as long as this takes"
        finally:
            os.kill(etcd, signal.SIGCONT)
        assert step(client, 0, 800, start=False, key=key) == 2
        assert step(client, 0, 800, start=False) == 3
        with triton_stream(system.address, headers=headers) as again:
            again.do("send", model="slow", data=[0], sequence=801, **X)
            assert again.do("answer")["outputs"]["y"] == [2.0]
        assert step(client, 0, 801, start=False) == 3
        # Where that took longer than a lease lasts, its worker begins again, and what was not committed runs again.
        assert len(ran(system)) - before == 4 or owners(system, "slow") != owner, "nothing ran twice"


def slow(seconds: float, sequence: int, start: bool = True) -> inference_pb2.ModelInferRequest:
    request = request_of("slow", x=np.array([[seconds]], np.float32))
    request.parameters["sequence_id"].int64_param = sequence
    request.parameters["sequence_start"].bool_param = start
    return request


def step(client: Client, seconds: float, sequence: int, *, start: bool = True, key: str = "", timeout: float = 60) -> float:
    reply = client.infer(slow(seconds, sequence, start), [("dormouse-idempotency-key", key)] if key else [], timeout=timeout)
    return float(np.frombuffer(reply.raw_output_contents[0], np.float32)[0])


def test_a_streams_deadline_is_its_status(system: System) -> None:
    with triton_stream(system.address, timeout=2) as client:
        client.do("send", model="slow", data=[3], sequence=600, start=True, **X)
        client.do("send", model="slow", data=[0], sequence=600, **X)
        found = client.do("answer")
        assert "error" in found
        while found["status"] is None:  # steps may be told in the stream first
            found = client.do("answer")
        assert found["status"] == "StatusCode.DEADLINE_EXCEEDED"


def active(address: str) -> float:
    """Calls that run there; none at a worker that has fallen asleep meanwhile."""
    with contextlib.suppress(OSError):
        return metric_of(address, "dormouse_worker_active_calls")
    return 0


def test_thousands_of_calls_with_deadlines_of_milliseconds_harm_nobody(system: System) -> None:
    """Case 1.O5. 5,000, 64 at once, half of them steps: nobody dies, no call is counted for ever, and the functions go to zero."""
    sessions = range(700, 732)
    parts = {pid_of(system, word) for word in ("etcd", "dormouse_operator", "dormouse_gateway")}
    said = len(system.log)

    def sleepy(session: int, start: bool) -> inference_pb2.ModelInferRequest:
        request = request_of("sleepy", **ONE)
        request.parameters["sequence_id"].int64_param = session
        request.parameters["sequence_start"].bool_param = start
        return request

    with system.client() as client:
        for session in sessions:
            client.infer(sleepy(session, True))
        futures: deque[Any] = deque()
        codes: Counter[str] = Counter()
        for number in range(5000):
            request = request_of("drowsy", **ONE) if number % 2 else sleepy(sessions[number // 2 % 32], False)
            futures.append(client.stub.ModelInfer.future(request, timeout=0.001 * (1 + number // 64 % 4)))
            if len(futures) >= 64:
                codes[futures.popleft().code().name] += 1
        codes.update(future.code().name for future in futures)
        assert codes.keys() <= {"OK", "DEADLINE_EXCEEDED"}, codes
        serving = [address for name in ("sleepy", "drowsy") for address in workers(system, name)]
        assert serving
        for name in ("dormouse_relay_held", "dormouse_relay_body_bytes"):
            assert settles(lambda name=name: agents(system, name)) == 0, name  # type: ignore[misc]
        assert settles(lambda: sum(map(active, serving))) == 0
        for session in sessions:
            reply = client.infer(sleepy(session, False))
            assert np.frombuffer(reply.raw_output_contents[0], np.float32) >= 2
        for name in ("sleepy", "drowsy"):
            system.wait(name, lambda status: status["phase"] == "Asleep")
    assert parts == {pid_of(system, word) for word in ("etcd", "dormouse_operator", "dormouse_gateway")}
    for death in ("the next one starts", "is started again", "supervisor ended"):  # of a worker, of Envoy, of a worker's supervisor
        assert death not in system.log[said:]


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
        kill_an_owner(system, "talk")
        while not isinstance(found := words(client, 1)[0], str):
            pass
        assert "after a part of the reply was sent; whether the step is committed is not known" in found
        client.do("send", model="talk", data=[1], sequence=2, final=True, **N)
        assert words(client, 2) == [[2, False], [None, True]]


def test_a_repeated_call_gets_all_its_responses_again(system: System) -> None:
    headers = {"dormouse-idempotency-key": f"again-{os.getpid()}", "dormouse-first-message": "0"}
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
        assert client.stub.ModelConfig(asked, timeout=20).config.model_transaction_policy.decoupled


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
