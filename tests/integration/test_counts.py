"""Case 9.O1 through the gateway: relay and worker count under each code what callers saw, and an attempt that was refused and sent again to
another worker is one call.
"""

import json
import re
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest
from conftest import unavailable
from dormouse_proto import inference_pb2
from dormouse_testing.places import page
from dormouse_testing.streams_system import missing, scale, streams_system, workers
from dormouse_testing.system import System, manifest
from dormouse_testing.workers import metric_of, request_of

MINE = """
import asyncio
import dormouse

class Mine(dormouse.Handler):
    inputs = [dormouse.Tensor("mode", "INT64", [1])]
    outputs = [dormouse.Tensor("y", "INT64", [1])]

    async def step(self, inputs, state, ctx):
        mode = int(inputs["mode"][0])
        if mode == 1:
            raise ValueError("no")
        if mode == 2:
            with open(__file__ + ".begun", "a") as file:
                file.write("x")
            await asyncio.sleep(5.0)
        return {"y": inputs["mode"]}
"""


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    if reason := missing():
        unavailable(reason)
    folder = tmp_path_factory.mktemp("counts")
    (folder / "code").mkdir()
    (folder / "code" / "mine.py").write_text(MINE)
    spec = {"runtime": "python", "handler": "mine:Mine", "model": {"uri": "file://code"}, "replicas": 1}
    (folder / "mine.yaml").write_text(manifest("mine", **spec))
    with streams_system(folder) as started:
        started.wait("mine", lambda status: status["readyReplicas"] == 1)
        yield started


def counted(address: str, pattern: str) -> Counter[str]:
    return Counter({code: int(float(value)) for code, value in re.findall(rf"^{pattern} (\S+)$", page(address), re.MULTILINE)})


def test_relay_and_worker_count_what_callers_saw(system: System) -> None:
    """Compressed, so that each call goes by the relay."""
    (worker,) = workers(system, "mine")
    agent = f"127.0.0.1:{json.loads((system.folder / '.dormouse' / 'run.json').read_text())['metrics']['gateway']}"
    relays = r'dormouse_relay_calls_total\{code="(\w+)",method="ModelInfer"\}'
    theirs = r'dormouse_worker_calls_total\{code="(\w+)"\}'
    before = counted(agent, relays), counted(worker, theirs)
    seen: Counter[str] = Counter()

    def ask(request: inference_pb2.ModelInferRequest, timeout: float = 20.0) -> Any:
        return client.stub.ModelInfer.future(request, timeout=timeout, compression=grpc.Compression.Gzip)

    with system.client() as client:
        good, bad, slow = (request_of("mine", mode=np.array([mode], np.int64)) for mode in range(3))
        calls = [ask(request) for request in (good, bad, request_of("mine", nope=np.zeros(1, np.int64))) for _ in range(10)]
        calls += [ask(slow, 3.0) for _ in range(10)]  # enough to come to the worker, less than it takes
        gone = [ask(slow, 60.0) for _ in range(10)]
        begun = system.folder / "code" / "mine.py.begun"
        system.until(lambda: begun.exists() and len(begun.read_text()) == 20)
        for call in gone:
            call.cancel()
            seen["CANCELLED"] += 1
        seen.update(call.code().name for call in calls)
    assert seen == dict.fromkeys(("OK", "INTERNAL", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "CANCELLED"), 10)
    for address, pattern, first in ((agent, relays, before[0]), (worker, theirs, before[1])):
        limit = time.monotonic() + 30
        while (found := counted(address, pattern) - first).total() < 50 and time.monotonic() < limit:
            time.sleep(0.05)
        assert {code: found[code] for code in ("OK", "INTERNAL", "INVALID_ARGUMENT")} == dict.fromkeys(
            ("OK", "INTERNAL", "INVALID_ARGUMENT"), 10
        ), (pattern, found)
        # A caller's own deadline resets its call: which of the two a server sees first is a race.
        assert found["DEADLINE_EXCEEDED"] + found["CANCELLED"] == 20, (pattern, found)
        assert found.total() == 50


def test_an_attempt_that_was_refused_is_no_call(system: System) -> None:
    """Shards move while they are stepped: calls meet workers that own them no longer, and are sent on."""
    scale(system, "counter", 1)
    first = set(workers(system, "counter"))
    before = sum(metric_of(address, "dormouse_worker_calls_total") for address in first)

    def live(session: int) -> int:
        steps = 0
        while not done:
            request = request_of("counter", x=np.ones((1, 1), np.float32))
            reply = client.infer(request, [("dormouse-session", f"counted-{session}")])
            steps += 1
            assert np.frombuffer(reply.raw_output_contents[0], np.float32) == steps
        return steps

    done = False
    with system.client() as client, ThreadPoolExecutor(32) as pool:
        lives = [pool.submit(live, session) for session in range(32)]
        try:
            scale(system, "counter", 3)  # only upwards: who leaves takes its counts along
        finally:
            done = True
        steps = sum(life.result() for life in lives)
    alive = workers(system, "counter")
    assert len(alive) == 3
    assert sum(metric_of(address, "dormouse_worker_calls_total") for address in alive) - before == steps
    assert sum(metric_of(address, "dormouse_worker_refusals_total") for address in alive) > 0


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_compressed_steps_run_once_each_where_their_session_is(system: System, compression: grpc.Compression) -> None:
    """Case 1.O8. Function and session stand in the message alone, which Envoy cannot read: 50 sessions, five steps, three workers."""
    scale(system, "counter", 3)
    addresses = workers(system, "counter")
    assert len(addresses) == 3
    pattern = r'dormouse_worker_calls_total\{code="(\w+)"\}'
    before = [counted(address, pattern) for address in addresses]

    def live(session: int) -> list[float]:
        found = []
        for turn in range(5):
            request = request_of("counter", x=np.ones((1, 1), np.float32))
            request.parameters["sequence_id"].int64_param = session
            request.parameters["sequence_start"].bool_param = turn == 0
            reply = client.stub.ModelInfer(request, timeout=20, compression=compression)
            found.append(float(np.frombuffer(reply.raw_output_contents[0], np.float32)[0]))
        return found

    with system.client() as client, ThreadPoolExecutor(50) as pool:
        assert list(pool.map(live, range(1, 51))) == [[1.0, 2.0, 3.0, 4.0, 5.0]] * 50
    ran = [counted(address, pattern) - first for address, first in zip(addresses, before, strict=True)]
    assert sum(ran, Counter()) == {"OK": 250}
    assert all(each["OK"] > 0 for each in ran), "the sessions are spread over all three"
