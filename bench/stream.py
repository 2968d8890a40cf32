"""What a message on a stream costs beside a unary call, and what streams hold in memory.

    python bench/stream.py [--messages 2000] [--streams 1000] [--sequences 50] [--seconds 60]

One step of a session at a time, through the gateway, on one machine: as a unary `ModelInfer` (Envoy sends it straight to
the worker) and as a message on a `ModelStreamInfer` (by the relay), in turns, so that both meet the same machine. Then
`streams` open streams, each of which begins `sequences` sequences. A tenth of them is stepped until their records keep as
many calls as a record keeps, then for `seconds` more; resident memory of the gateway's agent and Envoy and of the worker is read
before and after. Nothing is pinned: callers, gateway, store and worker share the machine, as they will.
"""

import argparse
import asyncio
import pathlib
import statistics
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "tests"))

import grpc
import grpc.aio
import numpy as np
from dormouse_core.steps import KEPT_KEYS
from dormouse_proto import inference_pb2
from dormouse_testing import models
from dormouse_testing.system import System, manifest
from dormouse_testing.workers import request_of

GOAL_MS = 1.0
UNARY = "/inference.GRPCInferenceService/ModelInfer"
STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
STATES = {"states": [{"input": "state", "output": "stateN", "shape": [-1, 4], "batchAxis": 0, "initial": "zeros"}]}
IN_FLIGHT = 64  # messages under way at once in the second part


def message(sequence: int, start: bool) -> bytes:
    request = request_of("counter", x=np.ones((1, 4), np.float32))
    request.parameters["sequence_id"].int64_param = sequence
    request.parameters["sequence_start"].bool_param = start
    encoded: bytes = request.SerializeToString()
    return encoded


async def answered(call: grpc.aio.StreamStreamCall[bytes, bytes]) -> None:
    response = inference_pb2.ModelStreamInferResponse.FromString(await call.read())
    assert not response.error_message, response.error_message


async def cost(address: str, messages: int) -> None:
    async with grpc.aio.insecure_channel(address) as channel:
        unary, call = channel.unary_unary(UNARY), channel.stream_stream(STREAM)()
        times: dict[str, list[float]] = {"unary": [], "stream": []}
        for number in range(messages + 100):
            began = time.perf_counter()
            await unary(message(1, number == 0))
            middle = time.perf_counter()
            await call.write(message(2, number == 0))
            await answered(call)
            times["unary"].append(middle - began)
            times["stream"].append(time.perf_counter() - middle)
        await call.done_writing()
    middles = {kind: 1e3 * statistics.median(found[100:]) for kind, found in times.items()}
    tails = {kind: 1e3 * sorted(found[100:])[int(0.99 * messages)] for kind, found in times.items()}
    more = middles["stream"] - middles["unary"]
    ratio = middles["stream"] / middles["unary"]
    for kind, what in (("unary", "a step as a unary call"), ("stream", "a step on a stream")):
        print(f"{what}: p50 {middles[kind]:.2f} ms, p99 {tails[kind]:.2f} ms")
    print(f"on a stream {more:.2f} ms more at the median (goal {GOAL_MS} ms: {more / GOAL_MS:.2f} of it), {ratio:.2f} times as long")


def resident(system: System) -> dict[str, float]:
    """MiB by kind of process."""
    worker = system.process_of(system.get("counter")["workers"][0])
    found: dict[str, float] = {"agent": 0.0, "envoy": 0.0, "worker": memory(worker)}
    for pid in set(system.processes()) - {worker}:
        words = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        kind = "agent" if "dormouse_gateway" in words else "envoy" if "envoy" in words[0] else None
        if kind is not None:
            found[kind] += memory(pid)
    return found


def memory(pid: int) -> float:
    lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


async def growth(system: System, streams: int, sequences: int, seconds: float) -> None:
    channels = [grpc.aio.insecure_channel(system.address, options=[("grpc.use_local_subchannel_pool", 1)]) for _ in range(4)]
    calls = [channels[number % 4].stream_stream(STREAM)() for number in range(streams)]
    ready = asyncio.Semaphore(IN_FLIGHT)

    async def step(number: int, sequence: int, start: bool) -> None:
        async with ready:
            await calls[number].write(message(1000 + number * sequences + sequence, start))
            await answered(calls[number])

    async def around(sequence: int, start: bool) -> None:
        await asyncio.gather(*(step(number, sequence, start) for number in range(streams)))

    began = time.monotonic()
    for sequence in range(sequences):
        await around(sequence, True)
    first = time.monotonic() - began
    stepped = max(1, sequences // 10)
    for number in range(KEPT_KEYS * stepped):
        await around(number % stepped, False)
    before = await asyncio.to_thread(resident, system)
    began, rounds = time.monotonic(), 0
    while time.monotonic() - began < seconds:
        await around(rounds % stepped, False)
        rounds += 1
    after = await asyncio.to_thread(resident, system)
    took = time.monotonic() - began
    print(f"{streams} open streams, {sequences} sequences each, begun in {first:.0f} s; {rounds * streams} steps more in {took:.0f} s")
    for kind in before:
        print(f"  {kind}: {before[kind]:.0f} to {after[kind]:.0f} MiB, {after[kind] / before[kind]:.3f} times")
    for call in calls:
        await call.done_writing()
    for channel in channels:
        await channel.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=2000)
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--sequences", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        models.counter(folder / "counter.onnx")
        spec = {"runtime": "onnx", "model": {"uri": "file://counter.onnx"}, "sessions": STATES, "replicas": 1}
        (folder / "counter.yaml").write_text(manifest("counter", **spec))
        with System(folder) as system:
            system.wait_proved("counter")
            asyncio.run(cost(system.address, options.messages))
            if options.streams:
                asyncio.run(growth(system, options.streams, options.sequences, options.seconds))


if __name__ == "__main__":
    main()
