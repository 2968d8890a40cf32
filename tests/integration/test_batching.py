"""Batching is invisible: models whose rows depend on each other, or whose first axis is no batch, called by 32 at once at a real worker.

Every answer is the model's own to the call alone. Cases 11.O1 and 11.O2, and what the default refused before.
"""

import asyncio
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import msgspec
import numpy as np
import onnxruntime
import pytest
from dormouse_core import workerfile
from dormouse_core.limits import BATCHING_TOLERANCE_FP32
from dormouse_proto import inference_pb2
from dormouse_testing import models
from dormouse_testing.etcd_server import EtcdServer
from dormouse_testing.hostile_models import longer_than
from dormouse_testing.models import FLOAT, INT64, node, write
from dormouse_testing.onnx_calls import load
from dormouse_testing.system import System, manifest
from dormouse_testing.workers import WorkerProcess, give_shards, metric_of, outputs_of, patient, request_of, spec_file
from google.protobuf.json_format import MessageToDict

CALLERS = 32
CALLS = 800
INFER = "/inference.GRPCInferenceService/ModelInfer"
Draw = Callable[[np.random.Generator], dict[str, np.ndarray]]


def centred(path: Path) -> Path:
    """y = x - mean of x over time, its first axis."""
    nodes = [node("ReduceMean", ["x"], ["mean"], axes=[0], keepdims=1), node("Sub", ["x", "mean"], ["y"])]
    return write(path, nodes, [("x", FLOAT, ["time", 4])], [("y", FLOAT, ["time", 4])])


def softmax(path: Path) -> Path:
    return write(path, [node("Softmax", ["x"], ["y"], axis=0)], [("x", FLOAT, [None])], [("y", FLOAT, [None])])


def cumulated(path: Path) -> Path:
    shape = ["seq", "batch", 2]
    return write(path, [node("CumSum", ["x", "first"], ["y"])], [("x", FLOAT, shape)], [("y", FLOAT, shape)], {"first": np.array(0)})


def detector(path: Path) -> Path:
    """Where x is above 0: as many rows as there are findings."""
    nodes = [node("Greater", ["x", "zero"], ["above"]), node("NonZero", ["above"], ["at"]), node("Transpose", ["at"], ["hits"])]
    return write(path, nodes, [("x", FLOAT, ["?", 4])], [("hits", INT64, ["?", 2])], {"zero": np.array(0, np.float32)})


def quantised(path: Path) -> Path:
    """An int8 model with dynamic quantisation, as onnxruntime.quantization makes them."""
    nodes = [
        node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"]),
        node("MatMulInteger", ["q", "w", "zero", "wzero"], ["product"]),
        node("Cast", ["product"], ["real"], to=FLOAT),
        node("Mul", ["real", "scale"], ["y"]),
    ]
    weights = np.random.default_rng(1).integers(-100, 100, (8, 3)).astype(np.int8)
    return write(path, nodes, [("x", FLOAT, ["n", 8])], [("y", FLOAT, ["n", 3])], {"w": weights, "wzero": np.array(0, np.int8)})


def two_axes(path: Path) -> Path:
    """Two inputs whose first axes have nothing to do with each other: y = 2 a, z = 2 b."""
    nodes = [node("Add", ["a", "a"], ["y"]), node("Add", ["b", "b"], ["z"])]
    return write(path, nodes, [("a", FLOAT, [None, 2]), ("b", FLOAT, [None, 2])], [("y", FLOAT, [None, 2]), ("z", FLOAT, [None, 2])])


def _drawn(**shapes: Callable[[np.random.Generator], Sequence[int]]) -> Draw:
    def draw(rng: np.random.Generator) -> dict[str, np.ndarray]:
        return {name: rng.standard_normal(shape(rng)).astype(np.float32) for name, shape in shapes.items()}

    return draw


def _detected(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """A's detections among calls that have none."""
    return {"x": np.array([[1, 1, 0, 0]] if rng.random() < 0.3 else [[0, 0, 0, 0]], np.float32)}


MODELS: dict[str, tuple[Callable[[Path], Path], Draw, str]] = {
    "a mean over time": (centred, _drawn(x=lambda rng: (int(rng.integers(1, 9)), 4)), "Dependent"),
    "a softmax over all": (softmax, _drawn(x=lambda rng: (int(rng.integers(1, 9)),)), "Dependent"),
    "a sum over time": (cumulated, _drawn(x=lambda rng: (int(rng.choice([3, 100])), int(rng.integers(1, 3)), 2)), "Independent"),
    "a detector": (detector, _detected, "Dependent"),
    "dynamic quantisation": (quantised, _drawn(x=lambda rng: (int(rng.integers(1, 3)), 8)), "Dependent"),
    "two axes": (two_axes, _drawn(a=lambda rng: (int(rng.integers(0, 5)), 2), b=lambda rng: (int(rng.integers(0, 5)), 2)), "Independent"),
    "rows without end": (models.double, _drawn(x=lambda rng: (int(rng.choice([0, 1, 2, 100])), 4)), "Independent"),
}


async def crowd(address: str, calls: Sequence[bytes]) -> list[bytes]:
    """The replies, in the calls' order; CALLERS at once."""
    replies: list[bytes] = [b""] * len(calls)
    async with grpc.aio.insecure_channel(address) as channel:
        infer = channel.unary_unary(INFER)

        async def caller(first: int) -> None:
            for index in range(first, len(calls), CALLERS):
                replies[index] = await infer(calls[index], timeout=30)

        await asyncio.gather(*map(caller, range(CALLERS)))
    return replies


def same(found: np.ndarray, alone: np.ndarray) -> bool:
    if found.shape != alone.shape or found.dtype.kind != "f":
        return np.array_equal(found, alone)
    return bool(np.allclose(found, alone, rtol=0, atol=BATCHING_TOLERANCE_FP32 * np.max(np.abs(alone), initial=0.0)))


@pytest.mark.parametrize("name", MODELS)
def test_every_caller_gets_what_it_gets_alone(tmp_path: Path, name: str) -> None:
    make, draw, reason = MODELS[name]
    path = make(tmp_path / "m.onnx")
    rng = np.random.default_rng(0)
    calls = [draw(rng) for _ in range(CALLS)]
    direct = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    with WorkerProcess(tmp_path, "--standalone", str(path), "--name", "m") as worker:
        replies = asyncio.run(crowd(worker.address, [request_of("m", **call).SerializeToString() for call in calls]))
        runs = metric_of(worker.address, "dormouse_worker_runs_total")
        told = worker.log
    names = [output.name for output in direct.get_outputs()]
    wrong = 0
    for call, reply in zip(calls, replies, strict=True):
        found = outputs_of(inference_pb2.ModelInferResponse.FromString(reply))
        wrong += not all(same(found[key], alone) for key, alone in zip(names, direct.run(names, call), strict=True))
    assert wrong == 0
    assert f"reason={reason}" in told
    assert runs == CALLS if reason == "Dependent" else runs < CALLS, "those that can run together do"


# ------------------------------------------------------------------------------------------------------------------------ sessions

SHARDS = 4
HIDDEN = 3
STATES = {
    "states": [{"input": "h", "output": "hn", "shape": [1, -1, HIDDEN], "batchAxis": 1, "initial": "zeros"}],
    "shards": SHARDS,
}


def recurrent(path: Path) -> Path:
    """Sequence-first, as PyTorch exports it: x [T, N, 2], its state [1, N, 3]."""
    rng = np.random.default_rng(2)
    constants: dict[str, np.ndarray] = {
        "w": rng.standard_normal((1, 3 * HIDDEN, 2)).astype(np.float32),
        "r": rng.standard_normal((1, 3 * HIDDEN, HIDDEN)).astype(np.float32),
        "one": np.array([1]),
    }
    nodes = [node("GRU", ["x", "w", "r", "", "", "h"], ["all", "hn"], hidden_size=HIDDEN), node("Squeeze", ["all", "one"], ["y"])]
    inputs = [("x", FLOAT, ["T", "N", 2]), ("h", FLOAT, [1, "N", HIDDEN])]
    return write(path, nodes, inputs, [("y", FLOAT, ["T", "N", HIDDEN]), ("hn", FLOAT, [1, "N", HIDDEN])], constants)


@pytest.mark.parametrize("batching", [{}, {"axes": {"x": 1}}, {"axes": {}}], ids=["by default", "as said", "none, as said"])
def test_a_step_of_a_recurrent_model_has_as_many_frames_as_it_likes(
    tmp_path: Path, etcd_server: EtcdServer, installation: str, batching: dict[str, Any]
) -> None:
    path = recurrent(tmp_path / "m.onnx")
    spec = {"runtime": "onnx", "model": {"uri": "file://m.onnx"}, "sessions": STATES, "batching": batching}
    file = spec_file(tmp_path, spec, etcd_server.endpoint, installation=installation)
    rng = np.random.default_rng(0)
    direct = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    with WorkerProcess(tmp_path, "--spec", str(file)) as worker:
        give_shards(etcd_server.endpoint, installation, SHARDS)
        with worker.client() as client:
            patient(lambda: client.infer(frame_of(1000, np.zeros((1, 1, 2), np.float32), True)))
        memory = {session: np.zeros((1, 1, HIDDEN), np.float32) for session in range(1, 25)}
        for turn in range(6):
            frames = {session: rng.standard_normal((int(rng.choice([1, 3])), 1, 2)).astype(np.float32) for session in memory}
            calls = [frame_of(session, x, turn == 0).SerializeToString() for session, x in frames.items()]
            replies = asyncio.run(crowd(worker.address, calls))
            for (session, x), reply in zip(frames.items(), replies, strict=True):
                y, memory[session] = direct.run(["y", "hn"], {"x": x, "h": memory[session]})
                assert same(outputs_of(inference_pb2.ModelInferResponse.FromString(reply))["y"], y)
        runs = metric_of(worker.address, "dormouse_worker_runs_total")
    assert runs == 1 + 6 * 24 if batching == {"axes": {}} else runs < 6 * 24


def frame_of(session: int, x: np.ndarray, start: bool) -> inference_pb2.ModelInferRequest:
    request = request_of("fn", x=x)
    request.parameters["sequence_id"].int64_param = session
    request.parameters["sequence_start"].bool_param = start
    return request


# ------------------------------------------------------------------------------------------------------------------------ the wake


def test_a_wake_does_not_repeat_the_experiment_and_another_file_does(tmp_path: Path, etcd_server: EtcdServer) -> None:
    path = centred(tmp_path / "m.onnx")
    spec = {"runtime": "onnx", "model": {"uri": "file://m.onnx"}}
    file = spec_file(tmp_path, spec, etcd_server.endpoint, installation="wakes")
    proved = load(path, max_batch_size=None).signature.batching
    known = msgspec.structs.replace(workerfile.load(file.read_bytes()), batching=MessageToDict(proved))
    looked = []
    for instance, text in (("first", None), ("woken", workerfile.dump(known)), ("changed", workerfile.dump(known))):
        if text is not None:
            file.write_bytes(text)
        if instance == "changed":
            models.double(path)
        with WorkerProcess(tmp_path, "--spec", str(file), instance=instance) as worker:
            looked.append(re.findall(r" batching .*reason=(\w+)", worker.log))
    assert looked == [["Dependent"], [], ["Independent"]]


# ---------------------------------------------------------------------------------------------------- what is found while it serves


def test_what_a_worker_finds_while_it_serves_is_told_and_known_to_the_next_ones(tmp_path: Path) -> None:
    """Longer sequences than the experiment tried are mixed: `dormouse get`, status and log say so in one sentence, and neither a worker
    beside the first nor one that wakes tries them again."""
    longer_than(64)(tmp_path / "m.onnx")
    (tmp_path / "fn.json").write_text(manifest("fn", runtime="onnx", model={"uri": "file://m.onnx"}, replicas=1))
    found = 'Calls of some sizes run alone: x [1,80]: the output "y" of a call differs when another call\'s rows run with it.'
    rng = np.random.default_rng(0)

    def call() -> None:
        frames = [rng.standard_normal((1, 80)).astype(np.float32) for _ in range(4 * CALLERS)]
        replies = asyncio.run(crowd(running.address, [request_of("fn", x=x).SerializeToString() for x in frames]))
        for x, reply in zip(frames, replies, strict=True):
            assert same(outputs_of(inference_pb2.ModelInferResponse.FromString(reply))["y"], x - x.mean())

    def reason(status: dict[str, Any]) -> str:
        return "".join(c["reason"] for c in status["conditions"] if c["type"] == "Batching")

    with System(tmp_path) as running:
        running.wait("fn", lambda status: status["readyReplicas"] == 1 and reason(status) == "Independent")
        call()
        status = running.wait("fn", lambda status: reason(status) == "SomeAlone", 30)
        assert [c["message"].endswith(found) for c in status["conditions"] if c["type"] == "Batching"] == [True]
        assert found in running.command("get", "fn")

        def by() -> list[str]:
            return re.findall(rf"(operator|worker default/fn) .*{re.escape(found[:50])}", running.log)

        running.until(lambda: set(by()) == {"operator", "worker default/fn"})
        running.command("scale", "fn", "2")
        running.wait("fn", lambda status: status["readyReplicas"] == 2)
        call()
        running.command("scale", "fn", "0")
        running.wait("fn", lambda status: status["phase"] == "Stopped")
        running.command("scale", "fn", "1")
        running.wait("fn", lambda status: status["readyReplicas"] == 1)
        call()
        assert by().count("worker default/fn") == 1, "nobody had to find it out again"
