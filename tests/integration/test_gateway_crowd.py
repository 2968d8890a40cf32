"""Case 3.O5: thousands of calls at once through a real Envoy and a real agent. The limit that is stated is the one that holds."""

import asyncio
import contextlib
import itertools
import json
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import grpc.aio
import pytest
from dormouse_core import limits
from dormouse_core.keys import Keys
from dormouse_gateway.envoy.bootstrap import bootstrap
from dormouse_gateway.settings import parse
from dormouse_kit.etcd import EtcdStore
from dormouse_testing.etcd_server import EtcdServer
from dormouse_testing.gateway import Answer, FakeWorker, Gateway, World, infer, request, running
from dormouse_testing.workers import metric_of

INSTALLATION = "gateway-crowd"
LIMIT = 3200
Code = grpc.StatusCode


@pytest.fixture(scope="module")
def gateway(etcd_server: EtcdServer) -> Iterator[Gateway]:
    with running(etcd_server.endpoint, INSTALLATION, "--max-held", str(LIMIT)) as made:
        yield made


@contextlib.asynccontextmanager
async def calls(gateway: Gateway, model: str, count: int, **options: Any) -> AsyncIterator[list[asyncio.Task[Answer]]]:
    """All at once, over six connections."""
    async with contextlib.AsyncExitStack() as stack:
        channels = [await stack.enter_async_context(gateway.channel()) for _ in range(6)]
        yield [asyncio.create_task(infer(channels[n % 6], request(model), timeout=60, **options)) for n in range(count)]


async def until_held(gateway: Gateway, count: int) -> None:
    for _ in range(600):
        if await asyncio.to_thread(metric_of, gateway.metrics, "dormouse_relay_held") == count:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"{await asyncio.to_thread(metric_of, gateway.metrics, 'dormouse_relay_held')} calls are held")


async def overflows(gateway: Gateway) -> int:
    """Of every cluster and kind, by Envoy's own counters."""
    stats = json.loads(await gateway.ask("/stats?format=json&filter=overflow"))["stats"]
    return sum(each["value"] for each in stats if "value" in each)


async def test_thousands_of_calls_are_held_up_to_the_limit_that_is_stated(gateway: Gateway, world: World, worker: FakeWorker) -> None:
    function = await world.function("asleep")
    await gateway.routed(function.label)
    async with calls(gateway, "asleep", LIMIT + 100) as tasks:
        refused = [await first for first in itertools.islice(asyncio.as_completed(tasks), 100)]
        assert Counter((answer.code, answer.details) for answer in refused).keys() == {(Code.RESOURCE_EXHAUSTED, refused[0].details)}
        await until_held(gateway, LIMIT)
        await world.register(function, worker)
        answers = await asyncio.gather(*tasks)
    assert Counter(answer.code for answer in answers) == {Code.OK: LIMIT, Code.RESOURCE_EXHAUSTED: 100}
    assert all(f"{LIMIT} calls of function default/asleep wait already" in answer.details for answer in refused)
    assert len({seen.key for seen in worker.calls}) == LIMIT
    assert await overflows(gateway) == 0


async def test_while_the_agent_is_slow(gateway: Gateway, world: World, worker: FakeWorker) -> None:
    """It stands still for half of the time. Compressed, so that every call goes by it."""
    function = await world.function("slowly")
    await world.register(function, worker)
    await gateway.routed(function.label, function.uid)
    assert gateway.agent is not None
    async with calls(gateway, "slowly", 3000, compression=grpc.Compression.Gzip) as tasks:
        while not all(task.done() for task in tasks):
            os.kill(gateway.agent.pid, signal.SIGSTOP)
            await asyncio.sleep(0.3)
            os.kill(gateway.agent.pid, signal.SIGCONT)
            await asyncio.sleep(0.3)
        answers = await asyncio.gather(*tasks)
    assert Counter(answer.code for answer in answers) == {Code.OK: 3000}
    assert len({seen.key for seen in worker.calls}) == 3000
    assert await overflows(gateway) == 0


async def test_negative_control_with_envoys_own_limits_they_would_be_refused(etcd_server: EtcdServer) -> None:
    gateway = Gateway(etcd_server.endpoint, f"{INSTALLATION}-control")
    config = bootstrap(parse(gateway.options, "test"))
    clusters = config["static_resources"]["clusters"]
    assert [cluster.pop("circuit_breakers") for cluster in clusters]
    gateway.start_agent()
    gateway.start_envoy_with(json.dumps(config))
    store = EtcdStore([etcd_server.endpoint])
    try:
        gateway.wait_ready()
        function = await World(store, Keys(f"{INSTALLATION}-control")).function("asleep")
        await gateway.routed(function.label)
        async with calls(gateway, "asleep", limits.ENVOY_CIRCUIT_BREAKER + 76) as tasks:
            refused, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED, timeout=30)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        assert next(iter(refused)).result().code is Code.RESOURCE_EXHAUSTED
        assert await overflows(gateway) > 0
    finally:
        await store.close()
        gateway.stop()
