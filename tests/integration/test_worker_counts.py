"""Case 9.O1: what a worker counts under a code is what its callers saw; an error is no success, a refused attempt is no call."""

import re
import textwrap
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from dormouse_proto import inference_pb2
from dormouse_testing.etcd_server import EtcdServer
from dormouse_testing.workers import Client, WorkerProcess, request_of, spec_file

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
                await asyncio.sleep(1.0)
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
    text = urllib.request.urlopen(f"http://{worker.address}/metrics", timeout=5).read().decode()
    return {code: int(float(n)) for code, n in re.findall(r'dormouse_worker_calls_total{code="(\w+)"} (\S+)', text)}


def mode(number: int) -> inference_pb2.ModelInferRequest:
    return request_of("fn", mode=np.array([number], np.int64))


def seen(client: Client, request: inference_pb2.ModelInferRequest, **options: float) -> str:
    try:
        client.infer(request, **options)
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
        late = [client.stub.ModelInfer.future(mode(3), timeout=0.3) for _ in range(10)]
        assert {call.code() for call in late} == {grpc.StatusCode.DEADLINE_EXCEEDED}
        gone = [client.stub.ModelInfer.future(mode(3), timeout=20) for _ in range(10)]
        time.sleep(0.3)
        for call in gone:
            call.cancel()
        limit = time.monotonic() + 5
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
