"""Triton's sequence controls in the real runtime: values, datatypes and shapes, alone and in a batch; what a model must offer."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dormouse_core import spec as specs
from dormouse_core.errors import InvalidArgument
from dormouse_core.tensors import decode_raw
from dormouse_proto import inference_pb2
from dormouse_testing import models, sequence_models
from dormouse_testing.onnx_calls import load
from dormouse_testing.workers import request_of
from dormouse_worker.batches.batching import Batcher
from dormouse_worker.batches.replies import Encoder
from dormouse_worker.batches.requests import Decoder
from dormouse_worker.models.controls import ControlSpec
from dormouse_worker.models.refusals import ModelInvalid
from dormouse_worker.runtimes.onnx import OnnxRuntime
from dormouse_worker.sessions import Outcome, Ran

CONTROLS = specs.Controls(start="START", end="END", ready="READY", correlation_id="CORRID")
BATCHED = specs.StateSpec(input="INPUT_STATE", output="OUTPUT_STATE", shape=[-1, 1], batch_axis=0)
ALONE = specs.StateSpec(input="INPUT_STATE", output="OUTPUT_STATE", shape=[1])


class Sessions:
    """Keeps states in a dict: a session's side of the batcher."""

    def __init__(self, runtime: OnnxRuntime) -> None:
        signature = runtime.signature
        self._decoder = Decoder(signature, ("m",))
        self._batcher = Batcher(runtime, Encoder("m", signature), delay=0.0, step_limit=10.0)
        self._batcher.warm_up(runtime.example())
        self._control = next(control for control in signature.controls if control.kind == "id")
        self._shape = tuple(1 if size == -1 else size for size in signature.states[0].shape)
        self.states: dict[int | str, dict[str, np.ndarray]] = {}

    async def step(self, *steps: tuple[int | str, int, bool, bool]) -> list[tuple[list[Any], Any]]:
        """(session, input, start, end) of several sessions at once: each one's OUTPUT and ID."""
        outcomes: list[asyncio.Future[Outcome]] = []
        for session, value, start, end in steps:
            request = self._decoder.decode(request_of("m", INPUT=np.full(self._shape, value, np.int64)).SerializeToString())
            request.correlation = self._control.id(session)
            states = self.states.get(session, {"INPUT_STATE": np.full(self._shape, 1000, np.int64)})
            future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
            outcomes.append(future)
            self._batcher.run(request, states, 1, start, end, future.set_result, float("inf"))
        found = []
        for (session, *_), outcome in zip(steps, await asyncio.gather(*outcomes), strict=True):
            assert isinstance(outcome, Ran), outcome
            self.states[session] = outcome.states
            reply = inference_pb2.ModelInferResponse.FromString(outcome.reply)
            values = {t.name: decode_raw(t.datatype, t.shape, raw) for t, raw in zip(reply.outputs, reply.raw_output_contents, strict=True)}
            found.append((values["OUTPUT"].reshape(-1).tolist(), values["ID"].reshape(-1).tolist()[0]))
        return found


FLAG_TYPES = {"FP32": models.FLOAT, "INT32": sequence_models.INT32, "BOOL": models.BOOL}
ID_TYPES = {"UINT64": 13, "INT64": 7, "UINT32": 12, "INT32": 6, "BYTES": 8}


@pytest.mark.parametrize("flag", FLAG_TYPES)
@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("batched", [False, True])
async def test_flags_in_every_datatype_and_shape(tmp_path: Path, flag: str, flat: bool, batched: bool) -> None:
    path = sequence_models.accumulate(tmp_path / "m.onnx", FLAG_TYPES[flag], batched=batched, flat=flat)
    runtime = load(path, BATCHED if batched else ALONE, controls=CONTROLS)
    assert [t.name for t in runtime.signature.inputs] == ["INPUT"], "callers send no control"
    assert runtime.signature.max_batch == (8 if batched else 0)
    sessions = Sessions(runtime)
    assert await sessions.step((1, 5, True, False), (2, 7, True, False)) == [([5, 1, 0, 1], 1), ([7, 1, 0, 1], 2)]
    assert await sessions.step((1, 1, False, False), (2, 1, False, True)) == [([6, 0, 0, 1], 1), ([8, 0, 1, 1], 2)]


@pytest.mark.parametrize("datatype", ID_TYPES)
async def test_ids_in_every_datatype(tmp_path: Path, datatype: str) -> None:
    path = sequence_models.accumulate(tmp_path / "m.onnx", corrid=ID_TYPES[datatype])
    sessions = Sessions(load(path, BATCHED, controls=CONTROLS))
    found = await sessions.step((7, 1, True, False), (2**31 - 1, 1, True, False))
    assert [of for _, of in found] == ([b"7", b"2147483647"] if datatype == "BYTES" else [7, 2**31 - 1])


def test_ids_that_do_not_fit_are_told() -> None:
    def control(datatype: str) -> ControlSpec:
        return ControlSpec("id", "CORRID", datatype, 2)

    assert control("UINT64").id(-1) == 2**64 - 1, "the same bits, as in Triton"
    assert control("UINT64").values([2**64 - 1]).tolist() == [[2**64 - 1]]
    assert control("INT64").id(-(2**63)) == -(2**63)
    assert control("BYTES").id("é") == "é".encode()
    for datatype, session in (("UINT32", -1), ("UINT32", 2**32), ("INT32", 2**31), ("INT64", "a"), ("UINT64", "7")):
        with pytest.raises(InvalidArgument, match="CORRID"):
            control(datatype).id(session)


def test_a_control_is_not_a_callers_input(tmp_path: Path) -> None:
    runtime = load(sequence_models.accumulate(tmp_path / "m.onnx"), BATCHED, controls=CONTROLS)
    message = request_of("m", INPUT=np.zeros((1, 1), np.int64), START=np.zeros((1, 1), np.int32))
    with pytest.raises(InvalidArgument, match="sequence control"):
        Decoder(runtime.signature, ("m",)).decode(message.SerializeToString())


@pytest.mark.parametrize(
    ("controls", "word"),
    [
        (specs.Controls(start="NOPE"), "controls.start: the model has no input 'NOPE'"),
        (specs.Controls(start="CORRID"), "controls.start: the model's 'CORRID' is UINT64"),
        (specs.Controls(correlation_id="START"), ""),
        (specs.Controls(end="INPUT"), "controls.end: the model's 'INPUT' is INT64"),
    ],
)
def test_what_the_model_must_offer(tmp_path: Path, controls: specs.Controls, word: str) -> None:
    path = sequence_models.accumulate(tmp_path / "m.onnx")
    if not word:  # INT32 is a control's datatype, for an id too
        assert load(path, BATCHED, controls=controls).signature.controls[0].name == "START"
        return
    with pytest.raises(ModelInvalid) as raised:
        load(path, BATCHED, controls=controls)
    assert word in raised.value.message


def test_a_control_of_another_shape(tmp_path: Path) -> None:
    nodes = [models.node("Add", ["START", "INPUT_STATE"], ["OUTPUT_STATE"]), models.node("Identity", ["OUTPUT_STATE"], ["y"])]
    values: list[Any] = [("START", models.FLOAT, ["n", 2]), ("INPUT_STATE", models.FLOAT, ["n", 2])]
    path = models.write(tmp_path / "m.onnx", nodes, values, [("y", models.FLOAT, ["n", 2]), ("OUTPUT_STATE", models.FLOAT, ["n", 2])])
    state = specs.StateSpec(input="INPUT_STATE", output="OUTPUT_STATE", shape=[-1, 2], batch_axis=0)
    with pytest.raises(ModelInvalid, match=r"\[N,1\] and \[N\]"):
        load(path, state, controls=specs.Controls(start="START"))
