"""tritonclient.grpc.aio. As `triton.py`."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc.aio
import numpy as np
import tritonclient.grpc.aio as triton
from tritonclient.utils import InferenceServerException


async def say(call: str, run: Callable[[], Awaitable[Any]]) -> None:
    try:
        answer = {"call": call, "result": await run()}
    except InferenceServerException as error:
        answer = {"call": call, "error": error.message(), "code": error.status()}
    except grpc.aio.AioRpcError as error:  # a stream's status: this client hands it on as it is
        answer = {"call": call, "error": error.details(), "code": error.code().name}
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
            await double()  # a worker's figures are of its own life, and it may have slept
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

        # ----------------------------------------------------------------------------------------------------------------- streams
        def ask(model: str, name: str, array: np.ndarray, datatype: str, ident: str = "", **options: Any) -> dict[str, Any]:
            return {"model_name": model, "inputs": [tensor(name, array, datatype)], "request_id": ident, **options}

        def asked(sequence: int, value: int, ident: str, **options: Any) -> dict[str, Any]:
            return ask("sequence", "INPUT", np.array([[value]], np.int64), "INT64", ident, sequence_id=sequence, **options)

        async def stream(*requests: dict[str, Any], output: str = "OUTPUT", **options: Any) -> list[Any]:
            """Of each answer [id, the first number of `output`], or the text of an error that came in the stream."""

            async def sent() -> AsyncIterator[dict[str, Any]]:
                for request in requests:
                    yield request

            found: list[Any] = []
            async for result, error in client.stream_infer(sent(), **options):
                found.append(
                    [result.get_response().id, result.as_numpy(output).flatten()[0].item()] if error is None else [error.message()]
                )
            return found

        async def many_streamed() -> Any:
            sequences = range(3000, 3050)
            requests = [
                asked(sequence, sequence if turn == 0 else 1, f"{sequence}", sequence_start=turn == 0, sequence_end=turn == 2)
                for turn in range(3)
                for sequence in sequences
            ]
            found: dict[str, list[int]] = {}
            for ident, value in await stream(*requests):
                found.setdefault(ident, []).append(value)
            return found == {f"{sequence}": [sequence, sequence + 1, sequence + 2] for sequence in sequences}

        four = np.array([[1, 2, 3, 4]], np.float32)
        three_steps = [asked(78, 5, "a", sequence_start=True), asked(78, 1, "b"), asked(78, 1, "c", sequence_end=True)]
        lost = [asked(1, 1, "lost"), asked(79, 2, "next", sequence_start=True)]

        async def one(**options: Any) -> Any:
            return (await stream(ask("double", "x", four, "FP32", "an id"), output="y", **options))[0]

        async def errors() -> Any:
            """An error in the stream, which goes on: the two are of two sessions, so they may come in either order."""
            (error,), answer = sorted(await stream(*lost), key=len)
            return [error, *answer]

        async def late_stream() -> Any:
            return await stream(ask("sleepy", "seconds", np.array([3], np.float32), "FP32"), output="slept", stream_timeout=0.5)

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
        await say("stream", one)
        await say("stream gzip", lambda: one(compression_algorithm="gzip"))
        await say("stream sequence", lambda: stream(*three_steps))
        await say("stream of 50 sequences", many_streamed)
        await say("stream error", errors)
        await say("stream error as status", lambda: stream(*lost, headers={"triton_grpc_error": "true"}))
        await say("stream timeout", late_stream)


asyncio.run(main())
