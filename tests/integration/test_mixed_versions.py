"""A rolling upgrade and the way back, part by part, under steps and calls without a pause: operators, gateways and workers of an earlier
version beside those of this one. No step is lost or runs twice, and nobody is refused.

Slow: it takes two minutes, and the earlier code from this repository's history.
"""

import asyncio
import random
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import grpc.aio
import numpy as np
import pytest
from dormouse_proto import control_pb2, inference_pb2_grpc
from dormouse_testing import up
from dormouse_testing.etcd_server import EtcdServer
from dormouse_testing.versions import NOW, ROOT, Versions, checked_out
from dormouse_testing.workers import outputs_of, request_of

pytestmark = pytest.mark.slow

EARLIER = "b18a8d8f390bd5653739da024cf0b64bbb48f177"
BEFORE = "before"
PATIENCE = 60.0


@pytest.fixture
def versions(tmp_path: Path, own_etcd: EtcdServer) -> Iterator[Versions]:
    code = checked_out(EARLIER, tmp_path)
    if code is None:
        pytest.skip(f"the history of this clone does not have {EARLIER[:7]}")
    folder = Path(tempfile.mkdtemp(prefix="vs-", dir="/tmp"))  # a Unix socket's path must be short
    yield Versions({BEFORE: code, NOW: ROOT}, folder, own_etcd.endpoint)
    shutil.rmtree(folder)


class Caller:
    """Calls through the gateways in turn, by chance, until it is stopped. `session`: it steps that one, each step under a key, and each
    answer must be the sum of all; else it calls the stateless function."""

    def __init__(self, versions: Versions, session: str = "") -> None:
        self.count = 0
        self.stopped = False
        self._versions = versions
        self._session = session
        self._total = 0.0
        self._channels: dict[str, grpc.aio.Channel] = {}

    async def run(self) -> None:
        while not self.stopped:
            await self._call()
            self.count += 1
            await asyncio.sleep(0.02)
        for channel in self._channels.values():
            await channel.close()

    async def _call(self) -> None:
        address = random.choice(list(self._versions.gateways.values()))
        channel = self._channels.setdefault(address, grpc.aio.insecure_channel(address))
        infer = inference_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer
        if not self._session:
            reply = await infer(request_of("double", x=np.ones((1, 4), np.float32)), timeout=30)
            assert outputs_of(reply)["y"].tolist() == [[2.0] * 4]
            return
        x = float(self.count % 7 + 1)
        key = f"{int(time.time() * 1e6):016d}-{self._session}-{self.count}"
        metadata = [("dormouse-session", self._session), ("dormouse-idempotency-key", key)]
        self._total += x
        for _ in range(1 + (self.count % 5 == 0)):  # each fifth is sent again under its key, maybe elsewhere
            reply = await infer(request_of("total", x=np.array([[x]], np.float32)), metadata=metadata, timeout=30)
            assert outputs_of(reply)["y"].tolist() == [[self._total]]
            address = random.choice(list(self._versions.gateways.values()))
            infer = inference_pb2_grpc.GRPCInferenceServiceStub(
                self._channels.setdefault(address, grpc.aio.insecure_channel(address))
            ).ModelInfer


async def reached(address: str) -> str:
    async with grpc.aio.insecure_channel(address) as channel:
        await asyncio.wait_for(channel.channel_ready(), PATIENCE)
        return address


def test_part_by_part_and_back(versions: Versions) -> None:
    try:
        asyncio.run(upgraded_and_back(versions))
    except BaseException:
        print("\n".join(versions.logs()))
        raise


async def upgraded_and_back(versions: Versions) -> None:
    async with versions.provider():
        versions.workers = BEFORE
        versions.operator(BEFORE)
        versions.gateways[BEFORE] = await reached(versions.gateway(BEFORE))
        for text in (up.DOUBLE, up.TOTAL):
            text = text.replace("scaleToZeroAfter: 3s", "minReplicas: 2\n  scaleToZeroAfter: 60s")
            await versions.ask(BEFORE, "Apply", control_pb2.ApplyRequest(manifest=text))
        callers: list[Caller] = []
        tasks: list[asyncio.Task[None]] = []

        async def go_on(leader: str, workers: int = 2, patience: float = PATIENCE) -> None:
            """Until each has had ten more answers and so many workers of each function are ready."""
            before = [caller.count for caller in callers]
            limit = time.monotonic() + patience
            while True:
                for task in tasks:
                    if task.done():
                        task.result()
                found = (await versions.ask(leader, "Get", control_pb2.GetRequest())).functions
                ready = len(found) == 2 and all(f.phase == "Ready" and f.ready_replicas >= workers for f in found)
                if ready and all(caller.count >= b + 10 for caller, b in zip(callers, before, strict=True)):
                    return
                assert time.monotonic() < limit, str(found)
                await asyncio.sleep(0.2)

        async def led_by(version: str, former: str) -> None:
            versions.operator(version)
            await asyncio.sleep(1)
            versions.stop(f"operator-{former}")
            await go_on(version)

        await go_on(BEFORE, patience=2 * PATIENCE)  # four cold starts together, which a busy machine does not do in a call's 30 s
        callers += [Caller(versions), *(Caller(versions, f"s{n}") for n in range(5))]
        tasks += [asyncio.create_task(caller.run()) for caller in callers]
        await go_on(BEFORE)
        await led_by(NOW, BEFORE)
        versions.kill_worker(versions.of(BEFORE, "total")[0])
        await go_on(NOW)
        versions.gateways[NOW] = await reached(versions.gateway(NOW))
        await go_on(NOW)
        versions.workers = NOW
        for instance in versions.of(BEFORE):
            versions.supervisors.stop(instance)
            await asyncio.sleep(1)
            await go_on(NOW)
        assert not versions.of(BEFORE)
        versions.kill_worker(versions.of(NOW, "total")[0])
        await go_on(NOW)
        await led_by(BEFORE, NOW)
        versions.kill_worker(versions.of(NOW, "total")[0])
        await go_on(BEFORE)
        kept = versions.gateways.pop(NOW)
        await go_on(BEFORE)
        versions.gateways = {NOW: kept}
        await go_on(BEFORE)
        for caller in callers:
            caller.stopped = True
        await asyncio.gather(*tasks)
