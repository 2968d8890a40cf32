"""From zero to the first answer, through the gateway, on one machine.

    python bench/wake.py [--rounds 15]

A stateless and a stateful function (a model of a few kilobytes) sleep; a caller calls; the time to the answer is taken. Beside it in the
same run: the same call when the function is awake. Nothing is pinned: gateway, leader, store and worker share the machine, as they will.
"""

import argparse
import pathlib
import statistics
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "tests"))

import numpy as np
from dormouse_testing import models
from dormouse_testing.system import System, manifest
from dormouse_testing.workers import Client, request_of

GOAL = 0.8
ROW = np.ones((1, 4), np.float32)
STATES = {"states": [{"input": "state", "output": "stateN", "shape": [-1, 4], "batchAxis": 0, "initial": "zeros"}]}
METADATA = {"double": [], "counter": [("dormouse-session", "bench")]}


def timed(client: Client, name: str) -> float:
    began = time.monotonic()
    client.infer(request_of(name, x=ROW), METADATA[name], 60)
    return time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        models.double(folder / "double.onnx")
        models.counter(folder / "counter.onnx")
        for function, spec in {"double": {}, "counter": {"sessions": STATES}}.items():
            spec = {"runtime": "onnx", "model": {"uri": f"file://{function}.onnx"}, "scaleToZeroAfter": "1s", **spec}
            (folder / f"{function}.yaml").write_text(manifest(function, **spec))
        with System(folder) as system, system.client() as client:
            for function in METADATA:
                woken, awake = [], []
                for _ in range(rounds):
                    system.wait(function, lambda s: s["phase"] == "Asleep" and not s["readyReplicas"])
                    time.sleep(1.0)  # the drained worker leaves
                    woken.append(timed(client, function))
                    timed(client, function)
                    awake += [timed(client, function) for _ in range(20)]
                p50, p95 = statistics.median(woken), sorted(woken)[int(0.95 * len(woken))]
                ready = statistics.median(awake)
                print(
                    f"{function}: zero to first answer p50 {p50:.3f} s, p95 {p95:.3f} s, {min(woken):.3f} to {max(woken):.3f}"
                    f" (goal p50 {GOAL} s: {p50 / GOAL:.2f} of it); awake p50 {ready * 1e3:.2f} ms, {p50 / ready:.0f} times less"
                )


if __name__ == "__main__":
    main()
