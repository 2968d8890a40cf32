"""Calls of an ONNX model without a worker around it: decoder, batcher and encoder, as in a worker."""

import asyncio
import multiprocessing
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dormouse_core import limits
from dormouse_core import spec as specs
from dormouse_core.errors import Code, InvalidArgument
from dormouse_proto import inference_pb2, state_pb2
from dormouse_worker.batches.batching import Batcher
from dormouse_worker.batches.replies import Encoder
from dormouse_worker.batches.requests import Decoder
from dormouse_worker.process import memorylimit
from dormouse_worker.runtimes.onnx import OnnxRuntime
from dormouse_worker.sessions import Failed, Outcome, Ran


def load(path: Path, *states: specs.StateSpec, controls: specs.Controls | None = None, **batching: Any) -> OnnxRuntime:
    """`batching`: fields of its spec; at most 8 rows if nothing is said."""
    runtime = OnnxRuntime(path, states, 1, controls)
    runtime.batch(specs.Batching(**(batching or {"max_batch_size": 8})), states)
    return runtime


def most_rows(path: Path, room: int, **batching: Any) -> tuple[state_pb2.Batching, int]:
    """What is found where a worker has `room` bytes of memory, and the most rows that were run at once. In a process of its own: one that
    has done much has room that it freed before, and what it takes of that is no peak."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as child:
        found, rows = child.submit(_most_rows, path, room, batching).result(60)
    return state_pb2.Batching.FromString(found), rows


def _most_rows(path: Path, room: int, batching: dict[str, Any]) -> tuple[bytes, int]:
    rows = []
    run = OnnxRuntime.run

    def counted(self: OnnxRuntime, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        rows.append(len(feeds["x"]))
        return run(self, feeds)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OnnxRuntime, "run", counted)
        patch.setattr(memorylimit, "room", lambda: room)
        patch.setattr(limits, "BATCHING_SECONDS", 1.0)
        found = load(path, **batching).signature.batching
    assert found is not None
    return found.SerializeToString(), max(rows)


async def infer(
    runtime: OnnxRuntime, *messages: inference_pb2.ModelInferRequest, states: Mapping[str, np.ndarray] | None = None
) -> list[dict[str, Any] | tuple[Code, str]]:
    """All at once through decoder, batcher and encoder: outputs by name as (datatype, shape, raw), or what the caller is told."""
    decoder = Decoder(runtime.signature, ("m",))
    batcher = Batcher(runtime, Encoder("m", runtime.signature), delay=0.0, step_limit=10.0)
    batcher.warm_up(runtime.example())
    found: dict[int, Any] = {}
    complete = asyncio.Event()

    def done(index: int, outcome: Outcome) -> None:
        if isinstance(outcome, Failed):
            found[index] = (outcome.error.code, outcome.error.message)
        else:
            assert isinstance(outcome, Ran)
            reply = inference_pb2.ModelInferResponse.FromString(outcome.reply)
            found[index] = {
                t.name: (t.datatype, list(t.shape), raw) for t, raw in zip(reply.outputs, reply.raw_output_contents, strict=True)
            }
        if len(found) == len(messages):
            complete.set()

    for index, message in enumerate(messages):
        try:
            request = decoder.decode(message.SerializeToString())
        except InvalidArgument as error:
            found[index] = (error.code, error.message)
        else:
            batcher.run(request, dict(states or {}), 0, False, False, lambda o, i=index: done(i, o), float("inf"))  # type: ignore[misc]
    if len(found) < len(messages):
        await complete.wait()
    return [found[index] for index in range(len(messages))]


def raw(inputs: dict[str, tuple[str, list[int], bytes]], *outputs: str) -> inference_pb2.ModelInferRequest:
    message = inference_pb2.ModelInferRequest(model_name="m")
    for name, (datatype, shape, data) in inputs.items():
        message.inputs.add(name=name, datatype=datatype, shape=shape)
        message.raw_input_contents.append(data)
    for name in outputs:
        message.outputs.add(name=name)
    return message
