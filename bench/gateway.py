"""What the gateway adds to a call's latency at 1,000 calls a second: Envoy, the Lua filter, one more connection.

    python bench/gateway.py [--rate 1000] [--seconds 3] [--rounds 4]

An open loop: each call leaves at its time, whatever became of the others, and its latency runs from that time. Rounds alternate between
the worker's own port and the gateway's, for a stateless function and for steps of 64 sessions (there the function and the session are read
out of the message, and the worker commits each step).
"""

import argparse
import asyncio
import pathlib
import re
import statistics
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "tests"))

import grpc
import grpc.aio
import numpy as np
from dormouse_proto import inference_pb2
from dormouse_testing import models
from dormouse_testing.system import System, manifest
from dormouse_testing.workers import request_of

GOAL_MS = 1.0
ROW = np.ones((1, 4), np.float32)
STATES = {"states": [{"input": "state", "output": "stateN", "shape": [-1, 4], "batchAxis": 0, "initial": "zeros"}]}
METHOD = "/inference.GRPCInferenceService/ModelInfer"


def requests(function: str) -> list[bytes]:
    """64 different ones: of a session each, where the function has sessions."""
    found = []
    for i in range(64):
        request: inference_pb2.ModelInferRequest = request_of(function, x=ROW)
        if function == "counter":
            request.parameters["sequence_id"].int64_param = i + 1
        found.append(request.SerializeToString())
    return found


async def load(address: str, messages: list[bytes], rate: int, seconds: float) -> list[float]:
    """Latencies in milliseconds."""
    latencies: list[float] = []
    loop = asyncio.get_running_loop()
    async with grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        infer = channel.unary_unary(METHOD)
        await infer(messages[0], timeout=10)

        async def one(due: float, message: bytes) -> None:
            await infer(message, timeout=10)
            latencies.append((loop.time() - due) * 1000)

        began = loop.time()
        calls = []
        for i in range(int(rate * seconds)):
            due = began + i / rate
            if due > loop.time():
                await asyncio.sleep(due - loop.time())
            calls.append(asyncio.create_task(one(due, messages[i % len(messages)])))
        await asyncio.gather(*calls)
    return latencies


def quantile(values: list[float], q: float) -> float:
    return sorted(values)[int(q * len(values))]


async def measure(name: str, direct: str, gateway: str, options: argparse.Namespace) -> None:
    messages = requests(name)
    async with grpc.aio.insecure_channel(gateway) as channel:  # begins the sessions
        for message in messages:
            request = inference_pb2.ModelInferRequest.FromString(message)
            if name == "counter":
                request.parameters["sequence_start"].bool_param = True
            await channel.unary_unary(METHOD)(request.SerializeToString(), timeout=10)
    added = []
    for round_ in range(options.rounds):
        there = await load(direct, messages, options.rate, options.seconds)
        through = await load(gateway, messages, options.rate, options.seconds)
        added.append(statistics.median(through) - statistics.median(there))
        print(
            f"| {round_ + 1} | {name} | {statistics.median(there):.2f} | {quantile(there, 0.99):.2f} "
            f"| {statistics.median(through):.2f} | {quantile(through, 0.99):.2f} | {added[-1]:.2f} |"
        )
    print(f"\n{name}: the gateway adds p50 {statistics.median(added):.2f} ms, {statistics.median(added) / GOAL_MS:.2f} of {GOAL_MS:g} ms\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=4)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder_name:
        folder = pathlib.Path(folder_name)
        models.double(folder / "double.onnx")
        models.counter(folder / "counter.onnx")
        for name, spec in {"double": {}, "counter": {"sessions": STATES}}.items():
            text = manifest(name, runtime="onnx", model={"uri": f"file://{name}.onnx"}, replicas=1, maxConcurrency=4096, **spec)
            (folder / f"{name}.yaml").write_text(text)
        with System(folder) as system:
            print("| round | function | direct p50 ms | p99 | through the gateway p50 ms | p99 | added p50 |")
            print("| --- | --- | --- | --- | --- | --- | --- |")
            for name in ("double", "counter"):
                system.wait(name, lambda s: s["readyReplicas"] == 1)
                port = re.findall(rf"worker ready worker=\S+ function=default/{name} port=(\d+)", system.log)[-1]
                asyncio.run(measure(name, f"127.0.0.1:{port}", system.address, options))


if __name__ == "__main__":
    main()
