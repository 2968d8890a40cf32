"""KServe's InferenceGRPCClient, as its users write it. As `triton.py`."""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import numpy as np
from kserve import InferenceGRPCClient, InferInput, InferRequest


async def say(call: str, run: Callable[[], Awaitable[Any]]) -> None:
    try:
        answer = {"call": call, "result": await run()}
    except grpc.RpcError as error:
        answer = {"call": call, "error": error.details(), "code": f"StatusCode.{error.code().name}"}
    print(json.dumps(answer), flush=True)


def tensor(name: str, array: np.ndarray, datatype: str) -> InferInput:
    made = InferInput(name=name, shape=list(array.shape), datatype=datatype)
    made.set_data_from_numpy(array, binary_data=True)
    return made


async def main() -> None:
    async with InferenceGRPCClient(url=sys.argv[1], retries=0) as client:

        async def infer(model: str, *inputs: InferInput, headers: Any = None, **parameters: Any) -> dict[str, np.ndarray]:
            request = InferRequest(model_name=model, infer_inputs=list(inputs), parameters=parameters or None)
            found = await client.infer(request, headers=headers)
            return {output.name: output.as_numpy() for output in found.outputs}

        async def double() -> Any:
            return (await infer("double", tensor("x", np.array([[1, 2, 3, 4]], np.float32), "FP32")))["y"].tolist()

        async def half() -> Any:
            values = np.array([[1.123, 65504, -0.0, np.inf, np.nan]], np.float16)
            found = (await infer("half", tensor("x", values, "FP16")))["y"]
            return ["FP16", found.dtype == np.float16 and found.tobytes() == values.tobytes()]

        async def text() -> Any:
            values = np.array([b"", b"a\0b", b"\xff\xfe", "\U0001f400".encode(), b"x" * 70_000], np.object_)
            return (await infer("text", tensor("bytes", values, "BYTES")))["bytes_out"].tolist() == values.tolist()

        async def three() -> Any:
            found = await infer("three", tensor("x", np.array([[3, -1]], np.float32), "FP32"))
            return {name: array.tolist() for name, array in found.items()}

        async def step(value: int, **flags: bool) -> Any:
            found = await infer("sequence", tensor("INPUT", np.array([[value]], np.int64), "INT64"), sequence_id=777, **flags)
            return [*found["OUTPUT"][0].tolist(), *found["ID"][0].tolist()]

        async def session() -> Any:
            headers = (("dormouse-session", "kserve"),)
            for _ in range(3):
                found = await infer("counter", tensor("x", np.ones((1, 1), np.float32), "FP32"), headers=headers)
            return found["y"].tolist()

        async def wrong() -> Any:
            return str(await infer("double", tensor("x", np.ones((1, 5), np.float32), "FP32")))

        async def none() -> Any:
            return str(await infer("none", tensor("x", np.ones((1, 1), np.float32), "FP32")))

        await say("server live", client.is_server_live)
        await say("server ready", client.is_server_ready)
        await say("model ready", lambda: client.is_model_ready("double"))
        await say("infer", double)
        await say("FP16", half)
        await say("BYTES", text)
        await say("outputs all", three)
        await say("sequence start", lambda: step(5, sequence_start=True))
        await say("sequence go on", lambda: step(1))
        await say("sequence end", lambda: step(1, sequence_end=True))
        await say("sequence unknown", lambda: step(1))
        await say("session by header", session)
        await say("wrong shape", wrong)
        await say("unknown model", none)


asyncio.run(main())
