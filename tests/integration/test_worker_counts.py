"""Case 9.O1: what a worker counts under a code is what its callers saw; an error is no success, a refused attempt is no call."""

import re
import textwrap
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from dormouse_proto import inference_pb2
from dormouse_testing.etcd_server import EtcdServer
from dormouse_testing.workers import Client, WorkerProcess, give_shards, metric_of, outputs_of, patient, request_of, spec_file

HANDLER = """
    import asyncio
    import dormouse
    from dormouse_core.errors import ResourceExhausted

    class Mine(dormouse.Handler):
        inputs = [dormouse.Tensor("mode", "INT64", [1])]
        outputs = [dormouse.Tensor("y", "INT64", [1])]

        async def step(self, inputs, state, ctx):
            mode = int(inputs["mode"][0])
            if mode == 1:
                raise ValueError("no")
            if mode == 2:
                raise ResourceExhausted("too much")
            if mode == 3:
                with open(__file__ + ".begun", "a") as file:
                    file.write("x")
                await asyncio.sleep(4.0)
            return {"y": inputs["mode"]}
"""


@pytest.fixture
def worker(tmp_path: Path, etcd_server: EtcdServer, installation: str) -> Iterator[WorkerProcess]:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "mine.py").write_text(textwrap.dedent(HANDLER))
    spec = {"runtime": "python", "handler": "mine:Mine", "model": {"uri": "file://code"}}
    path = spec_file(tmp_path, spec, etcd_server.endpoint, installation=installation)
    with WorkerProcess(tmp_path, "--spec", str(path)) as process:
        yield process


def counted(worker: WorkerProcess) -> dict[str, int]:
    text = urllib.request.urlopen(f"http://{worker.address}/metrics", timeout=20).read().decode()
    return {code: int(float(n)) for code, n in re.findall(r'dormouse_worker_calls_total{code="(\w+)"} (\S+)', text)}


def mode(number: int) -> inference_pb2.ModelInferRequest:
    return request_of("fn", mode=np.array([number], np.int64))


def seen(client: Client, request: inference_pb2.ModelInferRequest) -> str:
    try:
        client.infer(request)
        return "OK"
    except grpc.RpcError as error:
        return str(error.code().name)


def test_codes_are_those_that_callers_saw(worker: WorkerProcess) -> None:
    with worker.client() as client:
        for _ in range(10):
            assert seen(client, mode(0)) == "OK"
            assert seen(client, mode(1)) == "INTERNAL"
            assert seen(client, mode(2)) == "RESOURCE_EXHAUSTED"
            assert seen(client, request_of("fn", nope=np.array([1], np.int64))) == "INVALID_ARGUMENT"
        late = [client.stub.ModelInfer.future(mode(3), timeout=2.0) for _ in range(10)]  # enough to come there, less than it takes
        gone = [client.stub.ModelInfer.future(mode(3), timeout=60) for _ in range(10)]
        begun, limit = worker.folder / "code" / "mine.py.begun", time.monotonic() + 30
        while not begun.exists() or len(begun.read_text()) < 20:
            assert time.monotonic() < limit
            time.sleep(0.02)
        for call in gone:
            call.cancel()
        assert {call.code() for call in late} == {grpc.StatusCode.DEADLINE_EXCEEDED}
        while sum(counted(worker).values()) < 60 and time.monotonic() < limit:
            time.sleep(0.05)
        found = counted(worker)
        (stats,) = client.stub.ModelStatistics(inference_pb2.ModelStatisticsRequest(name="fn")).model_stats
    assert {code: found.get(code) for code in ("OK", "INTERNAL", "RESOURCE_EXHAUSTED", "INVALID_ARGUMENT")} == dict.fromkeys(
        ("OK", "INTERNAL", "RESOURCE_EXHAUSTED", "INVALID_ARGUMENT"), 10
    )
    assert found.get("DEADLINE_EXCEEDED", 0) + found.get("CANCELLED", 0) == 20, found
    assert sum(found.values()) == 60
    assert (stats.inference_stats.success.count, stats.inference_stats.fail.count) == (10, 50)


SUM = """
    import asyncio
    import dormouse

    class Mine(dormouse.Handler):
        inputs = [dormouse.Tensor("seconds", "FP32", [1])]
        outputs = [dormouse.Tensor("y", "INT64", [1])]
        states = [dormouse.State("sum", "INT64", [1])]

        async def step(self, inputs, state, ctx):
            await asyncio.sleep(float(inputs["seconds"][0]))
            state["sum"] += 1
            return {"y": state["sum"].copy()}
"""


def test_a_step_that_lost_its_fence_and_was_sent_on_counts_once(tmp_path: Path, etcd_server: EtcdServer, installation: str) -> None:
    """Ten steps run when their shards become another worker's. None is acknowledged by the first; the second runs each, and counts it."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "mine.py").write_text(textwrap.dedent(SUM))
    spec = {"runtime": "python", "handler": "mine:Mine", "model": {"uri": "file://code"}, "sessions": {"shards": 8}}
    path = spec_file(tmp_path, spec, etcd_server.endpoint, installation=installation)
    workers = [WorkerProcess(tmp_path, "--spec", str(path), instance=f"w{n}") for n in range(2)]
    try:
        workers[0].start()
        workers[0].wait_ready()
        first = give_shards(etcd_server.endpoint, installation, 8)
        workers[1].start()
        workers[1].wait_ready()
        with workers[0].client() as client, workers[1].client() as other, ThreadPoolExecutor(10) as pool:

            def step(at: Client, session: int, seconds: float) -> int:
                request = request_of("fn", seconds=np.array([seconds], np.float32))
                metadata = [("dormouse-session", f"s{session}"), ("dormouse-idempotency-key", f"key-{session}-{seconds}")]
                return int(outputs_of(at.infer(request, metadata, 60))["y"][0])

            def lost(session: int) -> bool:
                with pytest.raises(grpc.RpcError) as refused:
                    step(client, session, 4)
                error: Any = refused.value
                told = [*(error.initial_metadata() or ()), *(error.trailing_metadata() or ())]
                return error.code() is grpc.StatusCode.UNAVAILABLE and "dormouse-again" in dict(told)

            sessions = range(10)
            assert [patient(lambda n=n: step(client, n, 0)) for n in sessions] == [1] * 10  # type: ignore[misc]
            before = counted(workers[0])["OK"], metric_of(workers[0].address, "dormouse_worker_refusals_total")
            running = [pool.submit(lost, session) for session in sessions]
            limit = time.monotonic() + 30
            while metric_of(workers[0].address, "dormouse_worker_active_calls") < 10:
                assert time.monotonic() < limit
            give_shards(etcd_server.endpoint, installation, 8, besides=[first])
            assert all(each.result() for each in running)
            assert list(pool.map(lambda n: patient(lambda: step(other, n, 4)), sessions)) == [2] * 10
            assert sum(counted(workers[0]).values()) == before[0]
            assert metric_of(workers[0].address, "dormouse_worker_refusals_total") - before[1] == 10
            assert counted(workers[1]) == {"OK": 10}
    finally:
        for worker in workers:
            worker.kill()
