"""Steps that hold the interpreter of a real worker: those that may run are no hang; one that may not is told why; a stopped one moves."""

import asyncio
import json
import os
import re
import signal
import textwrap
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from conftest import unavailable
from dormouse_core.keys import Function, Keys
from dormouse_kit.etcd import EtcdStore
from dormouse_proto import state_pb2
from dormouse_testing import models
from dormouse_testing.etcd_server import EtcdServer
from dormouse_testing.streams_system import missing
from dormouse_testing.system import System, manifest
from dormouse_testing.workers import WorkerProcess, give_shards, outputs_of, patient, request_of, spec_file

SECONDS = 5.0
"""Longer than a lease and what etcd takes to see its end, and longer than three missed probes."""
HOLDS = {
    "native": "ctypes.PyDLL(None).usleep(int(1e6 * max(0, end - time.monotonic())))",
    "sleep": "time.sleep(max(0, end - time.monotonic()))",
    "regex": "[re.match('(a+)+$', 'a' * n + 'b') for n in range(22, 40) if time.monotonic() < end]",
    "sort": "(lambda v: [sorted(v) for _ in range(99) if time.monotonic() < end])([random.random() for _ in range(6_000_000)])",
}
HANDLER = """
    import asyncio, ctypes, random, re, time
    import dormouse
    class Mine(dormouse.Handler):
        inputs = [dormouse.Tensor("x", "FP32", [1])]
        outputs = [dormouse.Tensor("y", "FP32", [1])]
        states = [dormouse.State("sum", "FP32", [1])]
        {kind} step(self, inputs, state, ctx):
            state["sum"] += inputs["x"]
            if 5 < inputs["x"][0] < 10:
                {nap}(float(inputs["x"][0]) - 5)
            if inputs["x"][0] >= 10:
                end = time.monotonic() + float(inputs["x"][0]) - 10
                {hold}
            return {{"y": state["sum"]}}
"""
Start = Callable[..., WorkerProcess]


def handler(folder: Path, hold: str, kind: str = "def") -> dict[str, Any]:
    (folder / "handlers").mkdir(exist_ok=True)
    nap = "time.sleep" if kind == "def" else "await asyncio.sleep"
    (folder / "handlers" / "mine.py").write_text(textwrap.dedent(HANDLER).format(kind=kind, hold=hold, nap=nap))
    return {"runtime": "python", "model": {"uri": "file://handlers"}, "handler": "mine:Mine", "sessions": {"shards": 8}}


@pytest.fixture
def start(tmp_path: Path, etcd_server: EtcdServer, installation: str) -> Iterator[Start]:
    """start(spec) -> a ready worker of tests/fn that owns every shard."""
    running: list[WorkerProcess] = []

    def begin(spec: dict[str, Any]) -> WorkerProcess:
        path = spec_file(tmp_path, spec, etcd_server.endpoint, installation=installation)
        worker = WorkerProcess(tmp_path, "--spec", str(path))
        running.append(worker)
        worker.__enter__()
        give_shards(etcd_server.endpoint, installation, 8)
        return worker

    yield begin
    for worker in running:
        worker.kill()


def number(value: float) -> np.ndarray:
    return np.array([value], np.float32)


def entries(endpoint: str, installation: str) -> dict[str, state_pb2.WorkerEntry]:
    """The workers' entries in the store, by name."""
    return asyncio.run(_entries(endpoint, installation))


async def _entries(endpoint: str, installation: str) -> dict[str, state_pb2.WorkerEntry]:
    keys, function = Keys(installation), Function("tests", "fn", "uid-1")
    store = EtcdStore([endpoint])
    try:
        found = (await store.list(keys.workers(function))).items
        return {item.key.removeprefix(keys.workers(function)): state_pb2.WorkerEntry.FromString(item.value) for item in found}
    finally:
        await store.close()


def leases(endpoint: str, installation: str) -> list[int]:
    """Of the workers' entries."""

    async def read() -> list[int]:
        store = EtcdStore([endpoint])
        try:
            return [item.lease for item in (await store.list(Keys(installation).workers(Function("tests", "fn", "uid-1")))).items]
        finally:
            await store.close()

    return asyncio.run(read())


def remaining(endpoint: str, lease: int) -> int:
    """Whole seconds that a lease has left; -1: none, it has ended."""
    asked = urllib.request.Request(f"http://{endpoint}/v3/lease/timetolive", data=json.dumps({"ID": str(lease)}).encode())
    with urllib.request.urlopen(asked, timeout=20) as reply:
        return int(json.loads(reply.read()).get("TTL", 0))


def children(worker: WorkerProcess) -> list[str]:
    """Of the supervisor: the worker's process, and while its lease is kept from outside, the keeper."""
    assert worker.process is not None
    return Path(f"/proc/{worker.process.pid}/task/{worker.process.pid}/children").read_text().split()


def until(true: Callable[[], bool], seconds: float = 60.0) -> None:
    limit = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < limit
        time.sleep(0.02)


def broken(folder: Path, module: str, name: str, instead: str) -> Path:
    """A folder for PYTHONPATH with which supervisor and child, processes of their own, find `instead` in place of a part."""
    (folder / "broken").mkdir()
    text = f"import {module} as module\nmodule.{name} = {instead}\n"
    (folder / "broken" / "sitecustomize.py").write_text(text)
    return folder / "broken"


@pytest.mark.parametrize(
    ("hold", "kind"),
    [
        ("native", "def"),
        ("sleep", "async def"),
        pytest.param("regex", "def", marks=pytest.mark.slow),
        pytest.param("sort", "def", marks=pytest.mark.slow),
    ],
)
def test_a_step_that_may_run_is_no_hang(
    start: Start, tmp_path: Path, etcd_server: EtcdServer, installation: str, hold: str, kind: str
) -> None:
    """11.O3. Answered by the worker that began, which keeps its lease and its sessions; others wait and are answered by it too."""
    worker = start(handler(tmp_path, HOLDS[hold], kind))
    with worker.client() as client:
        assert patient(lambda: client.step(number(1), "a")).tolist() == [1]
        child, before = worker.child, entries(etcd_server.endpoint, installation)
        answers: list[float] = []
        other = threading.Thread(target=lambda: answers.append(float(client.step(number(2), "b", timeout=40)[0])))
        held = client.stub.ModelInfer.future(request_of("fn", x=number(10 + SECONDS)), metadata=[("dormouse-session", "a")], timeout=40)
        time.sleep(0.5)
        other.start()
        assert held.code() is grpc.StatusCode.OK, worker.log
        other.join()
        assert answers == [2]
        assert client.step(number(1), "a").tolist() == [12 + SECONDS], "the step was committed"
        assert worker.child == child
        assert entries(etcd_server.endpoint, installation) == before
    assert "is killed" not in worker.log


@pytest.mark.slow
def test_without_a_keeper_of_the_lease_the_held_worker_loses_its_sessions(
    start: Start, tmp_path: Path, etcd_server: EtcdServer, installation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control: the supervisor knows that the step may run, but nobody renews."""
    monkeypatch.setenv("PYTHONPATH", str(broken(tmp_path, "dormouse_worker.process.keeping", "keep", "lambda *_: None")))
    worker = start(handler(tmp_path, HOLDS["native"]))
    with worker.client() as client:
        patient(lambda: client.step(number(1), "a"))
        before = entries(etcd_server.endpoint, installation)
        held = client.stub.ModelInfer.future(request_of("fn", x=number(10 + SECONDS)), metadata=[("dormouse-session", "a")], timeout=40)
        until(lambda: not entries(etcd_server.endpoint, installation))
        assert not held.done(), "a leader would give its shards away under the step that runs"
        assert before


@pytest.mark.slow
def test_without_marks_a_step_that_may_run_is_a_hang(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control of the verdict."""
    monkeypatch.setenv("PYTHONPATH", str(broken(tmp_path, "dormouse_worker.process.marks", "Marks.begin", "lambda *_: None")))
    worker = start(handler(tmp_path, HOLDS["native"]))
    with worker.client() as client:
        patient(lambda: client.step(number(1), "a"))
        began = time.monotonic()
        held = client.stub.ModelInfer.future(request_of("fn", x=number(10 + 30)), metadata=[("dormouse-session", "a")], timeout=40)
        assert held.code() is grpc.StatusCode.UNAVAILABLE
        assert time.monotonic() - began < 15
    assert "is killed: the interpreter did not answer 3 probes in a row, and no step runs" in worker.log


@pytest.mark.parametrize("busy", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_stopped_process_loses_its_lease_in_its_time(
    start: Start, tmp_path: Path, etcd_server: EtcdServer, installation: str, busy: bool
) -> None:
    """Also while a step holds its interpreter, which is what its lease is renewed for: not in the name of a process that stands still."""
    worker = start(handler(tmp_path, HOLDS["native"]))
    with worker.client() as client:
        patient(lambda: client.step(number(1), "a"))
        before = entries(etcd_server.endpoint, installation)
        if busy:
            # Kept: gRPC cancels a call whose future nobody holds, and a cancelled step may not have begun.
            held = client.stub.ModelInfer.future(request_of("fn", x=number(10 + 50)), metadata=[("dormouse-session", "a")], timeout=60)
            until(lambda: len(children(worker)) == 2)
            assert not held.done()
            time.sleep(1.0)  # by now its lease is renewed from outside
            assert entries(etcd_server.endpoint, installation) == before
        [lease] = leases(etcd_server.endpoint, installation)
        os.kill(worker.child, signal.SIGSTOP)
        began = time.monotonic()
        time.sleep(0.5)  # for what was on its way
        left = []
        while not left or left[-1] > 0:
            left.append(remaining(etcd_server.endpoint, lease))
            time.sleep(0.05)
        assert left == sorted(left, reverse=True), "nobody renews it"
        until(lambda: before.keys().isdisjoint(entries(etcd_server.endpoint, installation)))
        assert time.monotonic() - began < 15, "3 s, and what etcd and a busy machine take to see it"
        until(lambda: "is killed: the process does not respond" in worker.log)


@pytest.mark.slow
def test_without_asking_the_process_a_stopped_one_keeps_its_lease(
    start: Start, tmp_path: Path, etcd_server: EtcdServer, installation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control: while a step may run, the marks alone look the same."""
    monkeypatch.setenv("PYTHONPATH", str(broken(tmp_path, "dormouse_worker.process.probing", "alive", "lambda *_: True")))
    worker = start(handler(tmp_path, HOLDS["native"]))
    with worker.client() as client:
        patient(lambda: client.step(number(1), "a"))
        before = entries(etcd_server.endpoint, installation)
        held = client.stub.ModelInfer.future(request_of("fn", x=number(10 + 50)), metadata=[("dormouse-session", "a")], timeout=60)
        until(lambda: len(children(worker)) == 2)
        assert not held.done()
        assert worker.process is not None
        os.kill(worker.process.pid, signal.SIGSTOP)  # else it would end the child, for its probes
        os.kill(worker.child, signal.SIGSTOP)
        try:
            time.sleep(5.0)
            assert entries(etcd_server.endpoint, installation) == before
        finally:
            os.kill(worker.process.pid, signal.SIGCONT)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["def", "async def"])
def test_a_step_that_may_not_hold_it_any_longer_is_told_in_the_entry(
    start: Start, tmp_path: Path, etcd_server: EtcdServer, installation: str, kind: str
) -> None:
    """Before the kill; with the call that holds it, and no other: neither one that waits for its turn nor one that runs beside it."""
    worker = start({**handler(tmp_path, HOLDS["native"], kind), "timeouts": {"hang": "5s"}})
    with worker.client() as client:
        patient(lambda: client.step(number(1), "a"))
        [name] = entries(etcd_server.endpoint, installation)
        calls = [f"{time.time_ns() // 1000:016d}-g-test-{n}" for n in range(3)]
        began = time.monotonic()
        sent = []
        for value, session, call in zip((6.5, 10 + 50, 1), "baa", calls, strict=True):
            metadata = [("dormouse-session", session), ("dormouse-call", call)]
            sent.append(client.stub.ModelInfer.future(request_of("fn", x=number(value)), metadata=metadata, timeout=60))
            time.sleep(0.2)
        assert {call.code() for call in sent} == {grpc.StatusCode.UNAVAILABLE}
        assert 5 < time.monotonic() - began < 10
        killed = entries(etcd_server.endpoint, installation)[name].killed
        assert list(killed.calls) == calls[1:2]
        assert f"worker {name} was killed: a step has held the interpreter for " in killed.cause
        assert "(5 s are allowed: timeouts.hang)" in killed.cause


@pytest.fixture
def system(tmp_path: Path) -> Iterator[System]:
    """One machine's system with two workers of `fn`, which may hold its interpreter for 5 s."""
    if reason := missing():
        unavailable(reason)
    spec = handler(tmp_path, HOLDS["native"])
    (tmp_path / "fn.yaml").write_text(manifest("fn", **spec, replicas=2, timeouts={"hang": "5s"}))
    with System(tmp_path) as running:
        running.wait("fn", lambda status: status["readyReplicas"] == 2)
        yield running


def test_the_caller_is_told_the_cause_at_once_and_no_second_worker_is_killed(system: System) -> None:
    """11.O3. Through the gateway: Envoy sends it, its worker is killed, the relay finds the word. The session is as it was before, and who
    ran or waited beside it is answered."""
    with system.client() as client:
        assert client.step(number(1), "a", timeout=60).tolist() == [1]
        for n in range(4):
            client.step(number(1), f"n{n}", timeout=60)
        beside = [
            client.stub.ModelInfer.future(request_of("fn", x=number(6.5)), metadata=[("dormouse-session", f"n{n}")], timeout=60)
            for n in range(4)
        ]
        time.sleep(0.2)
        began = time.monotonic()
        with pytest.raises(grpc.RpcError) as raised:
            client.step(number(10 + 60), "a", timeout=60)
        assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED, raised.value
        assert re.search(r"worker \S+ was killed: a step has held the interpreter for \d+\.\d s \(5 s are", raised.value.details())
        assert 5 < time.monotonic() - began < 30
        assert client.step(number(1), "a", timeout=60).tolist() == [2]
        assert [outputs_of(call.result())["y"].tolist() for call in beside] == [[7.5]] * 4
    assert len(re.findall(r"supervisor  worker \S+ is killed", system.log)) == 1


@pytest.mark.slow
def test_a_leader_leaves_a_worker_that_is_silent_where_it_is(system: System) -> None:
    """Its reports stop with its interpreter. Nothing is moved, and calls to it wait and are answered by it."""
    with system.client() as client:
        for n in range(8):
            client.step(number(1), f"s{n}", timeout=30)
        before = system.get("fn", owners=True)["owners"]
        held = [client.stub.ModelInfer.future(request_of("fn", x=number(10 + 4.5)), metadata=[("dormouse-session", "a")], timeout=40)]
        time.sleep(0.3)
        held += [
            client.stub.ModelInfer.future(request_of("fn", x=number(1)), metadata=[("dormouse-session", f"s{n}")], timeout=40)
            for n in range(8)
        ]
        assert {call.code() for call in held} == {grpc.StatusCode.OK}
        assert system.get("fn", owners=True)["owners"] == before
    assert "is killed" not in system.log


@pytest.mark.slow
def test_a_model_that_runs_for_long_is_no_hang(start: Start, tmp_path: Path, etcd_server: EtcdServer, installation: str) -> None:
    """ONNX Runtime gives the interpreter back while it runs."""
    layers = 60
    nodes = [models.node("MatMul", [f"x{n}" if n else "x", "x"], [f"x{n + 1}" if n < layers - 1 else "y"]) for n in range(layers)]
    models.write(tmp_path / "long.onnx", nodes, [("x", models.FLOAT, [1, "n", "n"])], [("y", models.FLOAT, [1, "n", "n"])])
    worker = start({"runtime": "onnx", "model": {"uri": "file://long.onnx"}})
    child, before = worker.child, entries(etcd_server.endpoint, installation)
    with worker.client() as client:
        size, began = 500, time.monotonic()
        while time.monotonic() - began < SECONDS:
            size, began = min(2 * size, 1900), time.monotonic()
            assert client.infer(request_of("fn", x=np.zeros((1, size, size), np.float32)), timeout=100).outputs
            if size == 1900:
                break
    assert worker.child == child
    assert entries(etcd_server.endpoint, installation) == before
    assert "is killed" not in worker.log
