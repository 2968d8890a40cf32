"""What it costs to join only rows that were shown to be independent.

    python bench/batching.py [--callers 64] [--seconds 3]

Calls a second of one row at a standalone worker, all variants in turns in one run: a network that batches, by default, with a maxBatchSize
that its user wrote, and with joining turned off; and the same network behind which the mean over the first axis is taken away, which does
not batch: before there was an experiment it was joined, and as fast as the first, with wrong answers. Then the time of the experiment,
which a function's first worker makes and no wake repeats.
"""

import argparse
import pathlib
import statistics
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "tests"))

import http2_load as load
import numpy as np
from dormouse_core import spec as specs
from dormouse_testing import models
from dormouse_testing.models import FLOAT, node, write
from dormouse_testing.workers import WorkerProcess, request_of
from dormouse_worker.process.bootstrap import INFER
from dormouse_worker.runtimes.onnx import OnnxRuntime

ROOT = pathlib.Path(__file__).resolve().parent.parent
WIDTH, HIDDEN = 64, 256
ROUNDS = 3


def network(path: pathlib.Path, mixing: bool) -> pathlib.Path:
    """Three layers; `mixing`: without its mean over the first axis."""
    rng = np.random.default_rng(0)
    shapes = {"w1": (WIDTH, HIDDEN), "w2": (HIDDEN, HIDDEN), "w3": (HIDDEN, WIDTH)}
    weights = {name: (rng.standard_normal(shape) / 16).astype(np.float32) for name, shape in shapes.items()}
    nodes = [
        node("MatMul", ["x", "w1"], ["a"]), node("Relu", ["a"], ["b"]),
        node("MatMul", ["b", "w2"], ["c"]), node("Relu", ["c"], ["d"]), node("MatMul", ["d", "w3"], ["e"]),
    ]  # fmt: skip
    nodes += (
        [node("ReduceMean", ["e"], ["m"], axes=[0], keepdims=1), node("Sub", ["e", "m"], ["y"])]
        if mixing
        else [node("Identity", ["e"], ["y"])]
    )
    return write(path, nodes, [("x", FLOAT, ["n", WIDTH])], [("y", FLOAT, ["n", WIDTH])], weights)


def rate(folder: pathlib.Path, model: pathlib.Path, more: list[str], callers: int, seconds: float) -> float:
    request = request_of("m", x=np.ones((1, WIDTH), np.float32)).SerializeToString()
    with WorkerProcess(folder, "--standalone", str(model), "--name", "m", *more) as worker:
        found = load.run("127.0.0.1", worker.port, [load.Caller(INFER, request, []) for _ in range(callers)], seconds)
    assert not found.failed
    return found.rate


def experiment(path: pathlib.Path, *states: specs.StateSpec) -> tuple[float, float]:
    """Milliseconds: made, and taken from what is kept."""
    runtime = OnnxRuntime(path, states, 1)
    plain = runtime.signature
    times = []
    known = None
    for _ in range(2):
        runtime.signature = plain
        began = time.perf_counter()
        runtime.batch(specs.Batching(), states, known)
        times.append(1e3 * (time.perf_counter() - began))
        known = runtime.signature.batching
    return times[0], times[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--callers", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        batches, mixes = network(folder / "batches.onnx", False), network(folder / "mixes.onnx", True)
        variants: dict[str, tuple[pathlib.Path, list[str]]] = {
            "batches, by default": (batches, []),
            "batches, maxBatchSize 32": (batches, ["--max-batch", "32"]),
            "batches, maxBatchSize 1": (batches, ["--max-batch", "1"]),
            "does not batch, by default": (mixes, []),
        }
        rates: dict[str, list[float]] = {variant: [] for variant in variants}
        for number in range(ROUNDS):
            order = list(variants.items())
            for variant, (model, more) in order if number % 2 else reversed(order):  # who comes first in a round is the slower by a tenth
                rates[variant].append(rate(folder, model, more, options.callers, options.seconds))
        middles = {variant: statistics.median(found) for variant, found in rates.items()}
        written = middles["batches, maxBatchSize 32"]
        for variant, found in middles.items():
            print(f"{variant}: {found:,.0f} calls/s, {found / written:.2f} of maxBatchSize 32")
        state = specs.StateSpec(input="state", output="stateN", shape=[2, -1, 128], batch_axis=1)
        for what, path, states in (
            ("the network that batches", batches, ()),
            ("the one that does not", mixes, ()),
            ("one addition", models.double(folder / "double.onnx"), ()),
            ("examples/vad", ROOT / "examples" / "vad" / "model.onnx", (state,)),
            ("examples/filetype", ROOT / "examples" / "filetype" / "model.onnx", ()),
        ):
            made, kept = experiment(path, *states)
            print(f"experiment, {what}: {made:.0f} ms, {kept:.1f} ms where it is kept")


if __name__ == "__main__":
    main()
