"""What is used, on real parts: steps as their caller counted them, whatever dies meanwhile, and totals that outlive what they are of."""

import asyncio
import csv
import io
import re
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import grpc
import grpc.aio
import numpy as np
import pytest
from conftest import unavailable
from dormouse_proto import inference_pb2, inference_pb2_grpc
from dormouse_testing.up import DOUBLE, TOTAL, Up, missing, save_models, system

BRIEF = TOTAL.replace("  sessions:\n", "  sessions:\n    ttl: 20s\n")
TENANTS = ("acme", "=1+1", "")
MANY = 100_000


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    if reason := missing():
        unavailable(reason)
    save_models(tmp_path)
    (tmp_path / "double.yaml").write_text(DOUBLE)
    (tmp_path / "total.yaml").write_text(BRIEF)
    with system(tmp_path, "--removal-wait", "2s") as started:
        started.wait_ready()
        yield started


def used(up: Up, *words: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(up.command("usage", *words, "--csv").stdout)))


def scraped(up: Up, since: float) -> Counter[str]:
    """Steps by tenant, as Prometheus reads them, summed after `since`."""
    found: Counter[str] = Counter()

    def summed() -> bool:
        port = up.run["metrics"]["operator"]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as reply:
            text = reply.read().decode()
        at = re.search(r'^dormouse_usage_summed_timestamp_seconds{function="default/total"} (\S+)', text, re.MULTILINE)
        found.clear()
        found.update(
            {
                tenant: int(float(value))
                for tenant, value in re.findall(
                    r'^dormouse_usage_steps_total{function="default/total",others="\w+",tenant="([^"]*)"} (\S+)', text, re.MULTILINE
                )
            }
        )
        return at is not None and float(at[1]) > since

    up.until(summed, 120)
    return found


class Callers:
    """So many callers, each with a session at a time, which it leaves for the next after a while. Counts what was acknowledged, once for
    each key, and sends whatever failed, and each seventh call all the same, again."""

    def __init__(self, gateway: str, callers: int, run: str) -> None:
        self.gateway, self.callers, self.run = gateway, callers, run
        self.acknowledged: Counter[str] = Counter()
        self.resent = 0
        self.go = asyncio.Event()

    async def make(self, calls: int) -> None:
        async with grpc.aio.insecure_channel(self.gateway) as channel:
            stub = inference_pb2_grpc.GRPCInferenceServiceStub(channel)
            await asyncio.gather(*(self._caller(stub, number, calls // self.callers) for number in range(self.callers)))

    async def _caller(self, stub: inference_pb2_grpc.GRPCInferenceServiceStub, number: int, calls: int) -> None:
        tenant = TENANTS[number % len(TENANTS)]
        for n in range(calls):
            await self.go.wait()
            session, key = f"{self.run}-{number}-{n // 200}", f"{self.run}-{number}-{n}"
            copies = [self._call(stub, tenant, session, key) for _ in range(2 if n % 7 == 0 else 1)]
            await asyncio.gather(*copies)
            self.acknowledged[tenant] += 1

    async def _call(self, stub: inference_pb2_grpc.GRPCInferenceServiceStub, tenant: str, session: str, key: str) -> None:
        request = inference_pb2.ModelInferRequest(model_name="total")
        request.inputs.add(name="x", datatype="FP32", shape=[1, 1])
        request.raw_input_contents.append(np.ones(1, np.float32).tobytes())
        metadata = [("dormouse-session", session), ("dormouse-idempotency-key", key), *([("dormouse-tenant", tenant)] if tenant else [])]
        while True:
            try:
                await stub.ModelInfer(request, timeout=30, metadata=metadata)
                return
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.ALREADY_EXISTS:
                    return  # committed, and its reply is no longer kept
                if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.INTERNAL):
                    raise
                self.resent += 1
                await asyncio.sleep(0.1)


async def through_kills(up: Up, callers: Callers, calls: int, every: int) -> int:
    """How many workers were killed: one after each `every` calls. Callers wait while it is looked for: else they would be done by then."""
    kills = 0

    async def kill() -> None:
        nonlocal kills
        for due in range(every, calls, every):
            while callers.acknowledged.total() < due:  # noqa: ASYNC110 - a counter that the callers raise
                await asyncio.sleep(0.005)
            callers.go.clear()
            while not (workers := (await asyncio.to_thread(up.get, "total")).get("workers", [])):  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.1)
            callers.go.set()
            await asyncio.sleep(0.005)  # some are on their way then
            up.kill_worker(workers[0])
            kills += 1

    callers.go.set()
    killing = asyncio.create_task(kill())
    await callers.make(calls)
    killing.cancel()
    return kills


def count(up: Up, calls: int, callers: int, every: int) -> None:
    before = scraped(up, 0.0)
    made = [Callers(up.gateway, callers, run) for run in ("first", "second")]
    began = time.monotonic()
    kills = 0
    for each in made:
        kills += asyncio.run(through_kills(up, each, calls // 2, every))
        up.until_phase("total", "Asleep")
    expected = made[0].acknowledged + made[1].acknowledged
    assert expected.total() == calls // 2 // callers * callers * 2
    after = scraped(up, time.time())
    print(f"{expected.total()} calls, {kills} kills, {sum(each.resent for each in made)} resent, {time.monotonic() - began:.0f} s")
    assert kills == 2 * ((calls // 2 - 1) // every)
    assert after - before == expected
    rows = used(up, "total", "--by", "tenant")
    assert {row["tenant"].removeprefix("'"): int(row["steps"]) for row in rows} == expected
    (whole,) = used(up, "total")
    assert int(whole["steps"]) == expected.total()
    assert float(whole["busy_seconds"]) > 0
    assert float(whole["worker_seconds"]) > 0
    stateless(up)
    up.command("delete", "total")
    (row,) = [row for row in used(up) if row["name"] == "total"]
    assert (int(row["steps"]), row["deleted"] != "") == (expected.total(), True), "it outlives its function"


def stateless(up: Up) -> None:
    """Calls of a function without sessions, and what failed: written down when its worker ends."""
    good = inference_pb2.ModelInferRequest(model_name="double")
    good.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    good.raw_input_contents.append(np.ones(4, np.float32).tobytes())
    wrong = inference_pb2.ModelInferRequest(model_name="double")
    wrong.inputs.add(name="y", datatype="FP32", shape=[1, 4])
    wrong.raw_input_contents.append(np.ones(4, np.float32).tobytes())
    with grpc.insecure_channel(up.gateway) as channel:
        stub = inference_pb2_grpc.GRPCInferenceServiceStub(channel)
        for request, count in ((good, 30), (wrong, 5)):
            for _ in range(count):
                try:
                    stub.ModelInfer(request, timeout=60, metadata=[("dormouse-tenant", "acme")])
                except grpc.RpcError as error:
                    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT, error  # noqa: PT017 - either way it is looked at
                    assert request is wrong
    up.until_phase("double", "Asleep")
    rows = {row["tenant"]: row for row in used(up, "double", "--by", "tenant")}
    assert (rows["acme"]["calls"], rows["acme"]["failed"], rows["acme"]["steps"]) == ("30", "5", "0")
    assert int(rows["acme"]["bytes_in"]) > 30 * 16
    assert float(rows["acme"]["busy_seconds"]) > 0
    assert float(rows[""]["worker_seconds"]) > 3


def test_steps_are_counted_as_their_callers_count_them_through_kills_and_sleep(up: Up) -> None:
    count(up, 2_000, 20, 300)


@pytest.mark.slow
def test_a_hundred_thousand_steps_are_counted_as_their_callers_count_them_through_kills_and_sleep(up: Up) -> None:
    count(up, MANY, 100, 4_500)
