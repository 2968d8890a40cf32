"""How long a worker process takes from its start to its first right answer, and how much memory it and its supervisor hold.

    python bench/start.py [--times 5]

Two kinds: standalone (the model alone), and as in a system: a stateful function, registered in a real etcd, its shards given to it. Files
are in the page cache and Python's byte code is compiled, as on a machine that started one before. Memory is PSS, summed over supervisor and
child, 3 s after the first answer and again after 2,000 calls.
"""

import argparse
import pathlib
import statistics
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "tests"))

import grpc
import numpy as np
from dormouse_testing import models
from dormouse_testing.etcd_server import EtcdServer
from dormouse_testing.workers import Client, WorkerProcess, give_shards, request_of, spec_file

LIMIT_SECONDS = 0.5
LIMIT_MB = 180
STATEFUL = {
    "runtime": "onnx",
    "model": {"uri": "file://counter.onnx"},
    "sessions": {"states": [{"input": "state", "output": "stateN", "shape": [-1, 64], "batchAxis": 0}]},
}


def pss(worker: WorkerProcess) -> float:
    assert worker.process is not None
    total = 0
    for pid in (worker.process.pid, worker.child):
        for line in pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1])
    return total / 1024


def first_answer(worker: WorkerProcess, request: object, metadata: list[tuple[str, str]], prepare: object = None) -> float:
    """Seconds from the start of the process to a right answer."""
    began = time.perf_counter()
    worker.start()
    if callable(prepare):
        prepare()
    limit = began + 20
    while time.perf_counter() < limit:
        with Client(worker.address) as client:
            try:
                assert client.infer(request, metadata, timeout=5).raw_output_contents  # type: ignore[arg-type]
                return time.perf_counter() - began
            except grpc.RpcError:
                time.sleep(0.003)
    raise SystemExit(f"no answer:\n{worker.log}")


def measure(
    name: str, worker: WorkerProcess, request: object, metadata: list[tuple[str, str]], prepare: object = None
) -> tuple[float, float, float]:
    seconds = first_answer(worker, request, metadata, prepare)
    try:
        time.sleep(3)
        idle = pss(worker)
        with worker.client() as client:
            for _ in range(20):
                calls = [client.stub.ModelInfer.future(request, metadata=metadata, timeout=20) for _ in range(100)]
                assert all(call.code() is grpc.StatusCode.OK for call in calls)
        loaded = pss(worker)
        print(f"  {name}: first answer {seconds:.3f} s, PSS {idle:.0f} MB, after 2,000 calls {loaded:.0f} MB", flush=True)
        return seconds, idle, loaded
    finally:
        worker.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=5)
    times = parser.parse_args().times
    kinds: dict[str, list[tuple[float, float, float]]] = {"standalone": [], "stateful": []}
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        models.counter(folder / "counter.onnx", 64)
        models.rows(folder / "mlp.onnx", 64, 10, 128)
        row = np.ones((1, 64), np.float32)
        with EtcdServer(folder / "etcd") as etcd:
            for n in range(times):
                worker = WorkerProcess(folder, "--standalone", str(folder / "mlp.onnx"), "--name", "mlp")
                kinds["standalone"].append(measure("standalone", worker, request_of("mlp", x=row), []))
                path = spec_file(folder, STATEFUL, etcd.endpoint, installation=f"i{n}")
                kinds["stateful"].append(
                    measure(
                        "stateful",
                        WorkerProcess(folder, "--spec", str(path)),
                        request_of("fn", x=row),
                        [("dormouse-session", "s")],
                        lambda n=n: give_shards(etcd.endpoint, f"i{n}", 64),
                    )
                )
    print("\n| worker | first answer s, median [min-max] | of 0.5 s | PSS MB | after load | of 180 MB |")
    print("| --- | --- | --- | --- | --- | --- |")
    for kind, found in kinds.items():
        seconds, idle, loaded = (sorted(values) for values in zip(*found, strict=True))
        median = statistics.median(seconds)
        memory = statistics.median(loaded)
        print(
            f"| {kind} | {median:.3f} [{seconds[0]:.3f}-{seconds[-1]:.3f}] | {median / LIMIT_SECONDS:.2f} "
            f"| {statistics.median(idle):.0f} | {memory:.0f} | {memory / LIMIT_MB:.2f} |"
        )


if __name__ == "__main__":
    main()
