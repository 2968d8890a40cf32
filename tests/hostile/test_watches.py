"""Thousands of watches of names that are nobody's, on one connection: refused beyond its share, and no trouble to anybody else."""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import grpc
import grpc.aio
import pytest
from conftest import unavailable
from dormouse.client import Client
from dormouse_core import limits
from dormouse_proto import health_pb2, health_pb2_grpc
from dormouse_testing.up import DOUBLE, Up, missing, row, save_models, system

MANY = 2500


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    if reason := missing():
        unavailable(reason)
    folder = tmp_path / "up"
    folder.mkdir()
    save_models(folder)
    (folder / "double.yaml").write_text(DOUBLE.replace("scaleToZeroAfter: 3s", "scaleToZeroAfter: 10m"))
    with system(folder) as started:
        started.wait_ready()
        with Client(started.gateway) as client:
            client.infer("double", {"x": row(1, 2, 3, 4)}, timeout=60)
        yield started


async def attack(address: str, over: threading.Event) -> Counter[str]:
    """How many of MANY watches on one connection are opened, and how many ended with which code. They stay open for a while."""
    found: Counter[str] = Counter()
    answered = asyncio.Event()

    def heard(what: str) -> None:
        found[what] += 1
        if found.total() >= MANY:
            answered.set()

    async with grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        stub = health_pb2_grpc.HealthStub(channel)

        async def watch(number: int) -> None:
            call = stub.Watch(health_pb2.HealthCheckRequest(service=f"default/nobody-{number}"))
            try:
                async for _ in call:
                    heard("open")
            except grpc.aio.AioRpcError as error:
                heard(error.code().name)

        tasks = [asyncio.create_task(watch(number)) for number in range(MANY)]
        async with asyncio.timeout(180):
            await answered.wait()
        await asyncio.sleep(3)
        over.set()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return found


def neighbour(up: Up, over: threading.Event) -> list[float]:
    """How long another caller's calls took."""
    took = []
    with Client(up.gateway) as client:
        while not over.is_set():
            began = time.monotonic()
            client.infer("double", {"x": row(1, 2, 3, 4)}, timeout=60)
            took.append(time.monotonic() - began)
    return took


def test_thousands_of_watches_on_one_connection_have_its_share_and_nobody_waits(up: Up) -> None:
    async def both() -> tuple[Counter[str], list[float]]:
        over = threading.Event()
        return await asyncio.gather(attack(up.gateway, over), asyncio.to_thread(neighbour, up, over))

    found, took = asyncio.run(both())
    assert found["RESOURCE_EXHAUSTED"] == MANY - limits.CONNECTION_WATCHES, found
    assert found["open"] == limits.CONNECTION_WATCHES
    assert "the lease" not in up.log
    took.sort()
    print(f"{len(took)} calls beside them: the median {1000 * took[len(took) // 2]:.1f} ms, the longest {1000 * took[-1]:.0f} ms")
    assert took[-1] < 15
