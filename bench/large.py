"""64 MiB there and back, beside a bare grpcio echo of the same bytes: what a large message costs on each way in.

    python bench/large.py [--rounds 7] [--mebibytes 64]

In turns, so that all meet the same machine: a grpcio server that returns its bytes (the peer: no Dormouse); the worker's
own port; the gateway by metadata (function and session named there: Envoy sends the message on as it comes); the gateway
by message (Envoy holds it whole and router.lua reads the function out of it); the same as a step of a session (the worker
also digests the message and commits the step); and a message on a stream (by the relay). The model is an Identity, the
messages are encoded once and replies are not decoded. The first call of each way stands apart: memory that no process has
touched before costs it as much again. Nothing is pinned.
"""

import argparse
import multiprocessing
import pathlib
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "tests"))

import grpc
import numpy as np
from dormouse_testing import models
from dormouse_testing.system import System, manifest
from dormouse_testing.workers import OPTIONS, request_of

GOAL = 1.0
METHOD = "/inference.GRPCInferenceService/ModelInfer"
STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
STATES = {"states": [{"input": "s", "output": "t", "shape": [-1, 1], "batchAxis": 0, "initial": "zeros"}]}
ROOM = 4096  # of the largest message, for what stands around the tensor
BY_METADATA = (("dormouse-function", "default/big"), ("dormouse-session", "one"))
Metadata = tuple[tuple[str, str], ...]


def echo(ready: Connection) -> None:
    """The peer, a process of its own. Ends with its parent."""
    server = grpc.server(ThreadPoolExecutor(1), options=OPTIONS)
    handler = grpc.method_handlers_generic_handler(
        "inference.GRPCInferenceService", {"ModelInfer": grpc.unary_unary_rpc_method_handler(lambda request, context: request)}
    )
    server.add_generic_rpc_handlers((handler,))
    ready.send(server.add_insecure_port("127.0.0.1:0"))
    server.start()
    server.wait_for_termination()


def stepped(path: pathlib.Path) -> None:
    """y = x, of any size; the state counts."""
    nodes = [models.node("Identity", ["x"], ["y"]), models.node("Add", ["s", "one"], ["t"])]
    inputs: list[models.Value] = [("x", models.FLOAT, ["n", "m"]), ("s", models.FLOAT, ["n", 1])]
    outputs: list[models.Value] = [("y", models.FLOAT, ["n", "m"]), ("t", models.FLOAT, ["n", 1])]
    models.write(path, nodes, inputs, outputs, {"one": np.ones((1, 1), np.float32)})


def caller(address: str, message: bytes, metadata: Metadata = ()) -> Callable[[], float]:
    infer: Callable[..., bytes] = grpc.insecure_channel(address, options=OPTIONS).unary_unary(METHOD)

    def once() -> float:
        began = time.perf_counter()
        reply = infer(message, metadata=metadata, timeout=60)
        took = time.perf_counter() - began
        assert len(reply) > len(message) - ROOM
        return took

    return once


def streamer(address: str, message: bytes) -> Callable[[], float]:
    infer: Callable[..., Iterator[bytes]] = grpc.insecure_channel(address, options=OPTIONS).stream_stream(STREAM)

    def once() -> float:
        began = time.perf_counter()
        (reply,) = infer(iter((message,)), timeout=60)
        took = time.perf_counter() - began
        assert len(reply) > len(message) - ROOM
        return took

    return once


def measure(ways: dict[str, Callable[[], float]], rounds: int) -> None:
    times: dict[str, list[float]] = {way: [] for way in ways}
    firsts = {way: once() for way, once in ways.items()}
    for _ in range(rounds):
        for way, once in ways.items():
            times[way].append(once())
    peer = statistics.median(times["bare grpcio echo"])
    print("| way | first s | median s | least s | most s | beside the echo |\n| --- | --- | --- | --- | --- | --- |")
    for way, found in times.items():
        middle = statistics.median(found)
        print(f"| {way} | {firsts[way]:.2f} | {middle:.2f} | {min(found):.2f} | {max(found):.2f} | {middle / peer:.2f} |")
    slowest = max(statistics.median(found) for found in times.values())
    print(f"\nthe slowest way takes {slowest:.2f} s, {slowest / GOAL:.2f} of {GOAL:g} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--mebibytes", type=int, default=64)
    options = parser.parse_args()
    values = np.random.default_rng(1).random((1, ((options.mebibytes << 20) - ROOM) // 4), np.float32)
    message = request_of("big", x=values).SerializeToString()
    step = request_of("stepped", x=values)
    step.parameters["sequence_id"].int64_param = 1
    step.parameters["sequence_start"].bool_param = True
    ours, theirs = multiprocessing.Pipe()
    peer = multiprocessing.get_context("spawn").Process(target=echo, args=(theirs,), daemon=True)
    peer.start()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        models.identity(folder / "big.onnx", models.FLOAT, ["n", "m"])
        stepped(folder / "stepped.onnx")
        for function, sessions in {"big": {}, "stepped": {"sessions": STATES}}.items():
            text = manifest(function, runtime="onnx", model={"uri": f"file://{function}.onnx"}, replicas=1, **sessions)
            (folder / f"{function}.yaml").write_text(text)
        with System(folder, "--max-message", f"{options.mebibytes}MiB") as system:
            for function in ("big", "stepped"):
                system.wait(function, lambda status: status["readyReplicas"] == 1)
            port = re.findall(r"worker ready worker=\S+ function=default/big port=(\d+)", system.log)[-1]
            ways = {
                "bare grpcio echo": caller(f"127.0.0.1:{ours.recv()}", message),
                "the worker's port": caller(f"127.0.0.1:{port}", message),
                "the gateway, by metadata": caller(system.address, message, BY_METADATA),
                "the gateway, by message": caller(system.address, message),
                "the gateway, a step": caller(system.address, step.SerializeToString()),
                "the gateway, on a stream": streamer(system.address, message),
            }
            measure(ways, options.rounds)
    peer.terminate()


if __name__ == "__main__":
    main()
