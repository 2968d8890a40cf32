"""Case 2.O4: sessions that are stepped together, in batches, join, end and fail at random, and each keeps its own state."""

import asyncio
import random
from pathlib import Path

import grpc
import grpc.aio
import numpy as np
import pytest
from dormouse_proto import inference_pb2
from dormouse_testing import models
from dormouse_testing.etcd_server import EtcdServer
from dormouse_testing.workers import WorkerProcess, give_shards, metric_of, request_of, spec_file

SESSIONS = 64
SHARDS = 8
INFER = "/inference.GRPCInferenceService/ModelInfer"
STATES = {"states": [{"input": "s", "output": "t", "shape": [-1, 1], "batchAxis": 0, "initial": "zeros"}], "shards": SHARDS}


def adding(path: Path) -> None:
    """t = s + x, y = t; fails with its whole batch where `at` is out of bounds."""
    nodes = [
        models.node("Gather", ["nothing", "at"], ["zero"], axis=0),
        models.node("Add", ["s", "x"], ["sum"]),
        models.node("Add", ["sum", "zero"], ["t"]),
        models.node("Identity", ["t"], ["y"]),
    ]
    inputs: list[models.Value] = [("x", models.FLOAT, ["n", 1]), ("at", models.INT64, ["n", 1]), ("s", models.FLOAT, ["n", 1])]
    outputs: list[models.Value] = [("y", models.FLOAT, ["n", 1]), ("t", models.FLOAT, ["n", 1])]
    models.write(path, nodes, inputs, outputs, {"nothing": np.zeros(4, np.float32)})


def step(sequence: int, secret: int, *, start: bool, end: bool, fail: bool) -> bytes:
    request = request_of("fn", x=np.array([[secret]], np.float32), at=np.array([[99 if fail else 0]], np.int64))
    for name, value in (("sequence_start", start), ("sequence_end", end)):
        request.parameters[name].bool_param = value
    request.parameters["sequence_id"].int64_param = sequence
    encoded: bytes = request.SerializeToString()
    return encoded


async def crowd(address: str, rounds: int) -> int:
    """Steps of all sessions at once, `rounds` times; how many failed, as they were meant to."""
    failed = 0
    async with grpc.aio.insecure_channel(address) as channel:
        infer = channel.unary_unary(INFER)

        async def live(number: int) -> None:
            nonlocal failed
            rng = random.Random(number)
            sequence, secret, done = number, 0, 0
            for turn in range(rounds):
                if done == 0:
                    sequence, secret = sequence + SESSIONS, rng.randrange(1, 1000)
                fail = number % 8 == 0 and turn % 10 == 9  # eight sessions of the 64, each tenth step
                end = done > 0 and rng.random() < 0.02
                try:
                    reply = await infer(step(sequence, secret, start=done == 0, end=end, fail=fail), timeout=20)
                except grpc.aio.AioRpcError:
                    assert fail, "no step fails for another's sake"
                    failed += 1
                    continue
                assert not fail
                done += 1
                (raw,) = inference_pb2.ModelInferResponse.FromString(reply).raw_output_contents
                assert np.frombuffer(raw, np.float32) == secret * done, (sequence, secret, done)
                if end:
                    done = 0

        await asyncio.gather(*(live(number) for number in range(SESSIONS)))
    return failed


@pytest.mark.parametrize("rounds", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_each_state_is_its_own(tmp_path: Path, etcd_server: EtcdServer, installation: str, rounds: int) -> None:
    adding(tmp_path / "adding.onnx")
    spec = {"runtime": "onnx", "model": {"uri": "file://adding.onnx"}, "sessions": STATES}
    path = spec_file(tmp_path, spec, etcd_server.endpoint, installation=installation)
    worker = WorkerProcess(tmp_path, "--spec", str(path))
    try:
        worker.start()
        worker.wait_ready()
        give_shards(etcd_server.endpoint, installation, SHARDS)
        asyncio.run(owned(worker.address))
        assert asyncio.run(crowd(worker.address, rounds)) == SESSIONS // 8 * rounds // 10
        assert metric_of(worker.address, "dormouse_worker_rows_total") > 2 * metric_of(worker.address, "dormouse_worker_runs_total")
    finally:
        worker.kill()


async def owned(address: str) -> None:
    """Until the worker has taken over each of its shards."""
    async with grpc.aio.insecure_channel(address) as channel:
        for number in range(8 * SHARDS):
            for _ in range(500):
                try:
                    await channel.unary_unary(INFER)(step(-1 - number, 1, start=True, end=True, fail=False), timeout=5)
                    break
                except grpc.aio.AioRpcError as error:
                    if error.code() is not grpc.StatusCode.UNAVAILABLE:
                        raise
                    await asyncio.sleep(0.02)
