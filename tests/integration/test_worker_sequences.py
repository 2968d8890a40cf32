"""A real worker and a real etcd: models made for Triton's implicit state, with the manifest that `dormouse init` proposes; states with
initial values, variable sizes and every datatype, across a SIGKILL and a sleep at zero.
"""

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import yaml
from dormouse.initial import manifest
from dormouse_core import records
from dormouse_core.keys import Function as Identity
from dormouse_core.keys import Keys
from dormouse_core.tensors import DATATYPES, encode_raw
from dormouse_kit.etcd import EtcdStore
from dormouse_proto import inference_pb2
from dormouse_testing import models, sequence_models
from dormouse_testing.etcd_server import EtcdServer
from dormouse_testing.workers import WorkerProcess, give_shards, outputs_of, patient, request_of, spec_file

SHARDS = 8


class Function:
    """One function whose only worker is ours to kill and to start."""

    def __init__(self, folder: Path, etcd: EtcdServer, installation: str) -> None:
        self.folder = folder
        self._etcd = etcd
        self._installation = installation
        self._names: list[str] = []
        self._workers: list[WorkerProcess] = []

    def start(self, spec: dict[str, Any]) -> None:
        if "sessions" in spec:
            spec["sessions"]["shards"] = SHARDS
        path = spec_file(self.folder, spec, self._etcd.endpoint, installation=self._installation)
        worker = WorkerProcess(self.folder, "--spec", str(path), instance=f"w{len(self._workers)}")
        self._workers.append(worker)
        worker.start()
        worker.wait_ready()
        self._own()

    def _own(self) -> None:
        self._names.append(give_shards(self._etcd.endpoint, self._installation, SHARDS, besides=self._names))

    def kill(self) -> None:
        """SIGKILL for the process that serves; its supervisor starts the next."""
        os.kill(self._workers[-1].child, signal.SIGKILL)
        self._own()

    def sleep_and_wake(self, spec: dict[str, Any]) -> None:
        """No worker at all, then a new one."""
        self._workers[-1].kill()
        self.start(spec)

    def records(self) -> dict[str, list[tuple[str, str, list[int]]]]:
        """Session -> (name, datatype, shape) of each tensor that the store has of it."""

        async def read() -> dict[str, list[tuple[str, str, list[int]]]]:
            store = EtcdStore([self._etcd.endpoint])
            found = (await store.list(Keys(self._installation).states(Identity("tests", "fn", "uid-1")))).items
            await store.close()
            return {
                item.key.rpartition("/")[2]: [(t.name, t.datatype, list(t.shape)) for t in records.decode(item.value).tensors]
                for item in found
            }

        return asyncio.run(read())

    def close(self) -> None:
        for worker in self._workers:
            worker.kill()

    def send(self, message: inference_pb2.ModelInferRequest, session: str = "") -> dict[str, np.ndarray]:
        metadata = [("dormouse-session", session)] if session else []
        with self._workers[-1].client() as client:
            return outputs_of(patient(lambda: client.infer(message, metadata)))

    def sequence(self, ident: int | str, value: int, *, start: bool = False, end: bool = False) -> list[int]:
        message = request_of("fn", INPUT=np.array([[value]], np.int64))
        if isinstance(ident, int):
            message.parameters["sequence_id"].int64_param = ident
        else:
            message.parameters["sequence_id"].string_param = ident
        message.parameters["sequence_start"].bool_param = start
        message.parameters["sequence_end"].bool_param = end
        found = self.send(message)
        return [*found["OUTPUT"].reshape(-1).tolist(), *found["ID"].reshape(-1).tolist()]


@pytest.fixture
def function(tmp_path: Path, etcd_server: EtcdServer, installation: str) -> Iterator[Function]:
    made = Function(tmp_path, etcd_server, installation)
    yield made
    made.close()


def proposed(model: Path) -> dict[str, Any]:
    spec: dict[str, Any] = yaml.safe_load(manifest("fn", model, f"file://{model.name}"))["spec"]
    return spec


def test_tritons_implicit_state_with_the_proposed_manifest(function: Function) -> None:
    """OUTPUT is [state, start, end, ready], then CORRID. The worker is killed and put to sleep in the middle of a sequence."""
    spec = proposed(sequence_models.accumulate(function.folder / "m.onnx"))
    assert spec["sessions"]["controls"] == {"start": "START", "end": "END", "ready": "READY", "correlationId": "CORRID"}
    function.start(spec)
    assert function.sequence(7, 5, start=True) == [5, 1, 0, 1, 7]
    assert function.sequence(8, 1, start=True) == [1, 1, 0, 1, 8]
    assert function.sequence(7, 1) == [6, 0, 0, 1, 7]
    function.kill()
    assert function.sequence(7, 1) == [7, 0, 0, 1, 7]
    function.sleep_and_wake(spec)
    assert function.sequence(7, 1, end=True) == [8, 0, 1, 1, 7]
    assert function.sequence(8, 1) == [2, 0, 0, 1, 8]
    assert function.sequence(7, 3, start=True) == [3, 1, 0, 1, 7], "a new sequence under an old id"
    with pytest.raises(grpc.RpcError) as raised:
        function.sequence("seven", 3, start=True)
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "CORRID" in raised.value.details()


def test_a_state_that_grows(function: Function) -> None:
    """Case 2.O1: the declared first shape is the first shape; what grew is back after a kill and after zero."""
    spec = proposed(sequence_models.growing(function.folder / "m.onnx"))
    state = spec["sessions"]["states"][0]
    assert state["initial"] == {"shape": [1, 32, 0, 1]}, "one that grows begins empty, unless told otherwise"
    state["initial"] = {"shape": [1, 32, 2, 1]}
    function.start(spec)

    def seen(more: int) -> list[int]:
        message = request_of("fn", INPUT=np.ones((1, 32, more, 1), np.float32))
        return function.send(message, "s")["SEEN"].reshape(-1).tolist()

    assert seen(3) == [1, 32, 2, 1]
    assert seen(1) == [1, 32, 5, 1]
    function.kill()
    assert seen(2) == [1, 32, 6, 1]
    function.sleep_and_wake(spec)
    assert seen(1) == [1, 32, 8, 1]


def test_many_states(function: Function) -> None:
    """Case 11.O10: the caches of a streaming zipformer are served, and are back after a kill."""
    path, states = models.caches(function.folder / "m.onnx", 97)
    function.start({"runtime": "onnx", "model": {"uri": f"file://{path.name}"}, "sessions": {"states": states}})

    def step() -> list[float]:
        return function.send(request_of("fn", x=np.ones((1, 4), np.float32)), "s")["y"].reshape(-1).tolist()

    assert [step(), step()] == [[1.0] * 4, [2.0] * 4]
    function.kill()
    assert step() == [3.0] * 4
    assert [[name for name, _, _ in found] for found in function.records().values()] == [[state["input"] for state in states]]


def test_an_initial_value_from_a_file(function: Function) -> None:
    spec = proposed(sequence_models.remembering(function.folder / "m.onnx", sequence_models.FLOAT, ["b", 3]))
    spec["sessions"]["states"][0]["initial"] = {"file": "first.npy"}
    np.save(function.folder / "first.npy", np.array([[1.5, -0.0, np.nan]], np.float32), allow_pickle=False)
    function.start(spec)
    found = function.send(request_of("fn", x=np.zeros((1, 3), np.float32)), "s")["y"]
    assert found.tobytes() == np.array([[1.5, -0.0, np.nan]], np.float32).tobytes()


@pytest.mark.parametrize("same", [False, True])
def test_pairs_are_paired_by_name(function: Function, same: bool) -> None:
    """Case 2.O2. `same`: both states of one datatype and shape of numbers, so that a swap would stay silent."""
    kinds = {"length": sequence_models.FLOAT, "channel": sequence_models.FLOAT} if same else {}
    spec = proposed(sequence_models.pairs(function.folder / "m.onnx", **kinds))
    assert len(spec["sessions"]["states"]) == 2
    function.start(spec)
    x = np.arange(4, dtype=np.float32).reshape(1, 1, 2, 2)
    for step in (1, 2, 3):
        found = function.send(request_of("fn", x=x), "s")["y"].reshape(-1).tolist()
        assert found == [0, step, 2 * step, 3 * step, step]
        if step == 2:
            function.kill()
    (tensors,) = function.records().values()
    length = ("cache_last_channel_len", "FP32" if same else "INT64", [1, 1])
    assert sorted(tensors) == [("cache_last_channel", "FP32" if same else "FP16", [1, 1, 2, 2]), length]


def patterns(datatype: str) -> tuple[list[int], np.ndarray]:
    """A shape and values that something might change: every bit pattern of 16 bits, NaNs with payloads, NULs, invalid UTF-8."""
    kind = DATATYPES[datatype]
    if datatype == "BYTES":
        elements = [b"", b"a\0b", "é\U0001f400".encode(), b"x" * 70_000, b"\0", b"7"]
        return [1, 6], np.array([*elements, None], object)[:-1].reshape(1, 6)
    if datatype == "BOOL":
        return [1, 2], np.array([[True, False]])
    if kind.itemsize == 2:
        return [1, 65536], np.arange(65536, dtype=np.uint16).view(kind.dtype).reshape(1, -1)
    raw = np.random.default_rng(1).bytes(64 * max(1, kind.itemsize))
    return [1, 64], np.frombuffer(raw, kind.dtype).reshape(1, 64)


ONNX = {"BOOL": 9, "INT8": 3, "INT16": 5, "INT32": 6, "INT64": 7, "UINT8": 2, "UINT16": 4, "UINT32": 12, "UINT64": 13,
        "FP16": 10, "BF16": 16, "FP32": 1, "FP64": 11, "BYTES": 8}  # fmt: skip


@pytest.mark.parametrize("datatype", ["FP16", "BF16", "BYTES", "FP64", "BOOL"])
def test_a_state_of_any_datatype_keeps_every_bit(function: Function, datatype: str) -> None:
    """Case 1.O2's second half, and its like: in from a caller, into the record, over a kill, back to a caller."""
    shape, values = patterns(datatype)
    spec = proposed(sequence_models.remembering(function.folder / "m.onnx", ONNX[datatype], ["b", *shape[1:]]))
    function.start(spec)
    message = inference_pb2.ModelInferRequest(model_name="fn")
    message.inputs.add(name="x", datatype=datatype, shape=shape)
    message.raw_input_contents.append(encode_raw(values, datatype))
    function.send(message, "s")
    function.kill()
    assert encode_raw(function.send(message, "s")["y"], datatype) == message.raw_input_contents[0]
    assert encode_raw(function.send(message, "s")["y"], datatype) == message.raw_input_contents[0], "in memory, too"


HANDLER = """
import dormouse

TYPES = {types!r}

class Mine(dormouse.Handler):
    inputs = [dormouse.Tensor("x_" + t, t, [-1], optional=True) for t in TYPES]
    outputs = [dormouse.Tensor("y_" + t, t, [-1]) for t in TYPES] + [dormouse.Tensor("given", "BYTES", [-1])]

    def step(self, inputs, state, ctx):
        found = {{"y_" + t: inputs.get("x_" + t, []) for t in TYPES}}
        return {{**found, "given": sorted(inputs)}}
"""


def test_a_handler_is_given_every_bit(function: Function) -> None:
    """Case 7.O6 and its like: a caller's bits reach a handler and come back; what was left out or is empty stays so."""
    (function.folder / "code").mkdir()
    (function.folder / "code" / "mine.py").write_text(HANDLER.format(types=list(ONNX)))
    function.start({"runtime": "python", "handler": "mine:Mine", "model": {"uri": "file://code"}})
    message = inference_pb2.ModelInferRequest(model_name="fn")
    sent = {}
    for datatype in ONNX:
        values = patterns(datatype)[1].reshape(-1)
        if datatype == "BYTES":
            values = np.array([*values, b"\xff\xfe", None], object)[:-1]
        elif datatype == "UINT8":
            values = values[:0]
        sent[datatype] = encode_raw(values, datatype)
        message.inputs.add(name=f"x_{datatype}", datatype=datatype, shape=values.shape)
        message.raw_input_contents.append(sent[datatype])
    found = function.send(message)
    assert {datatype: encode_raw(found[f"y_{datatype}"], datatype) for datatype in ONNX} == sent
    assert len(found["given"]) == len(ONNX)
    typed = inference_pb2.ModelInferRequest(model_name="fn")
    elements = [*patterns("BYTES")[1].reshape(-1), b"\xff\xfe"]
    typed.inputs.add(name="x_BYTES", datatype="BYTES", shape=[len(elements)]).contents.bytes_contents.extend(elements)
    assert function.send(typed)["y_BYTES"].tolist() == elements
    del message.inputs[:], message.raw_input_contents[:]
    found = function.send(message)
    assert found["given"].shape == (0,)
    assert all(found[f"y_{datatype}"].shape == (0,) for datatype in ONNX)
