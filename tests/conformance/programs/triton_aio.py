"""tritonclient.grpc.aio. As `triton.py`."""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import tritonclient.grpc.aio as triton
from tritonclient.utils import InferenceServerException


async def say(call: str, run: Callable[[], Awaitable[Any]]) -> None:
    try:
        answer = {"call": call, "result": await run()}
    except InferenceServerException as error:
        answer = {"call": call, "error": error.message(), "code": error.status()}
    print(json.dumps(answer), flush=True)


def tensor(name: str, array: np.ndarray, datatype: str) -> triton.InferInput:
    return triton.InferInput(name, list(array.shape), datatype).set_data_from_numpy(array)


async def main() -> None:
    async with triton.InferenceServerClient(sys.argv[1]) as client:

        async def double(**options: Any) -> Any:
            given = [tensor("x", np.array([[1, 2, 3, 4]], np.float32), "FP32")]
            return (await client.infer("double", given, **options)).as_numpy("y").tolist()

        async def step(sequence: int, value: int, start: bool = False, end: bool = False) -> Any:
            given = [tensor("INPUT", np.array([[value]], np.int64), "INT64")]
            found = await client.infer("sequence", given, sequence_id=sequence, sequence_start=start, sequence_end=end)
            return [*found.as_numpy("OUTPUT")[0].tolist(), *found.as_numpy("ID")[0].tolist()]

        async def text() -> Any:
            values = np.array([b"", b"a\0b", b"\xff\xfe", "\U0001f400".encode(), b"x" * 70_000], np.object_)
            found = await client.infer("echo", [tensor("bytes", values, "BYTES")])
            return found.as_numpy("bytes_out").tolist() == values.tolist()

        async def statistics() -> Any:
            found = (await client.get_inference_statistics("double", as_json=True))["model_stats"][0]
            return [found["name"], int(found["inference_count"]) >= 1, int(found["inference_stats"]["success"]["count"]) >= 1]

        async def metadata() -> Any:
            return [(t.name, t.datatype, list(t.shape)) for t in (await client.get_model_metadata("double")).inputs]

        async def none() -> Any:
            return str(await client.infer("none", [tensor("x", np.ones((1, 1), np.float32), "FP32")]))

        async def late() -> Any:
            given = [tensor("seconds", np.array([2], np.float32), "FP32")]
            return str(await client.infer("sleepy", given, client_timeout=0.2))

        async def crowd() -> Any:
            """Many sequences at once: each is its own."""

            async def one(sequence: int) -> Any:
                await step(sequence, sequence, start=True)
                await step(sequence, 1)
                return (await step(sequence, 1, end=True))[0] == sequence + 2

            return all(await asyncio.gather(*(one(sequence) for sequence in range(1000, 1050))))

        await say("server live", client.is_server_live)
        await say("server ready", client.is_server_ready)
        await say("model ready", lambda: client.is_model_ready("double"))
        await say("model metadata", metadata)
        await say("infer", double)
        await say("infer gzip", lambda: double(compression_algorithm="gzip"))
        await say("infer deflate", lambda: double(compression_algorithm="deflate"))
        await say("statistics", statistics)
        await say("BYTES", text)
        await say("sequence start", lambda: step(77, 5, start=True))
        await say("sequence go on", lambda: step(77, 1))
        await say("sequence end", lambda: step(77, 1, end=True))
        await say("sequence unknown", lambda: step(77, 1))
        await say("50 sequences at once", crowd)
        await say("unknown model", none)
        await say("timeout", late)


asyncio.run(main())
