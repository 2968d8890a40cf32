"""One tenant's callers open streams and watches of its function without end, or all at once, from many connections; another tenant opens
its own."""

import asyncio
import contextlib
import struct
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import grpc
from dormouse_core import limits
from dormouse_gateway.envoy.bootstrap import OPENING, RELAY_CLUSTER
from dormouse_proto import health_pb2, inference_pb2
from dormouse_testing.etcd_server import EtcdServer
from dormouse_testing.gateway import request
from dormouse_testing.hostile import STREAM, Attacker, Scene, codes, headers, message, neighbours, scene, without_filter

MOST = 1000
EACH = 400
AT_ONCE = 1000
OPTIONS = ("--max-streams", f"{MOST}", "--concurrency", "1")
WATCH = b"/grpc.health.v1.Health/Watch"


@contextlib.asynccontextmanager
async def attacked(endpoint: str, installation: str, namespace: str) -> AsyncIterator[tuple[Scene, list[Attacker]]]:
    """Four connections with 400 streams each, and one with 400 watches, of the function `namespace`/open: as many stay open as may."""
    async with scene(endpoint, installation, *OPTIONS) as seen:
        if namespace != "default":
            await seen.world.register(await seen.world.function("open", namespace=namespace, uid="evil"), seen.worker)
        asked = health_pb2.HealthCheckRequest(service=f"{namespace}/open").SerializeToString()
        calls = [(headers(STREAM), message(request(f"{namespace}/open")))] * 4 + [
            (headers(WATCH), b"\0" + struct.pack(">I", len(asked)) + asked)
        ]
        made = [Attacker(seen.gateway.listen) for _ in calls]
        for attacker, call in zip(made, calls, strict=True):
            await attacker.many(EACH, lambda attacker=attacker, call=call: attacker.call(*call))  # type: ignore[misc]
        room = MOST if namespace == "default" else MOST // 2
        ended, since, limit = 0, time.monotonic(), time.monotonic() + 60
        while len(made) * EACH - ended > room or time.monotonic() < since + 1:  # until no more of them end
            assert time.monotonic() < limit, f"{len(made) * EACH - ended} stay open"
            if ended != (ended := sum(each.ended for each in made)):
                since = time.monotonic()
            await asyncio.sleep(0.05)
        yield seen, made
        for attacker in made:
            attacker.close()


async def streams(seen: Scene, count: int, channel: grpc.aio.Channel | None = None) -> tuple[Counter[str], float]:
    """What so many streams of `open`, each opened beside those before it, were told; and the seconds of the slowest answer."""
    told: Counter[str] = Counter()
    longest = 0.0
    async with contextlib.AsyncExitStack() as stack:
        channel = channel or await stack.enter_async_context(seen.gateway.channel())
        calls: list[Any] = []
        for _ in range(count):
            began = time.monotonic()
            calls.append(channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")(timeout=60))
            answer = grpc.aio.EOF
            with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):  # it has ended
                await calls[-1].write(request("open").SerializeToString())
                answer = await calls[-1].read()
            longest = max(longest, time.monotonic() - began)
            if answer is grpc.aio.EOF:
                told[(await calls[-1].code()).name] += 1
            else:
                told[inference_pb2.ModelStreamInferResponse.FromString(answer).error_message or "answered"] += 1
    return told, longest


async def test_a_namespaces_streams_from_many_connections_leave_room_for_anothers(etcd_server: EtcdServer, installation: str) -> None:
    async with attacked(etcd_server.endpoint, installation, "evil") as (seen, made), neighbours(seen.gateway, 2) as near:
        ended = sum(each.ended for each in made)
        told, longest = await streams(seen, 100)
        print(f"{len(made) * EACH - ended} stayed open; of a neighbour's 100 {dict(told)}, the longest answer {longest:.2f} s")
        assert 0 < len(made) * EACH - ended <= MOST // 2
        assert told == {"answered": 100}
        assert sum(each.ended for each in made) == ended, "nobody that runs is cut for them"
        assert codes(near).keys() == {grpc.StatusCode.OK}, [each.texts for each in near]


async def test_negative_control_in_one_namespace_they_take_all_and_the_neighbour_is_refused(
    etcd_server: EtcdServer, installation: str
) -> None:
    async with attacked(etcd_server.endpoint, installation, "default") as (seen, _):
        assert (await streams(seen, 2))[0] == {"RESOURCE_EXHAUSTED": 2}


async def opened_at_once(seen: Scene) -> tuple[list[Attacker], int]:
    """Eight connections, each with 1,000 streams of evil/open at once; with how many of all streams the relay got to see."""
    made = [Attacker(seen.gateway.listen) for _ in range(8)]
    block, body = headers(STREAM), message(request("evil/open"))
    await asyncio.gather(*(one.many(AT_ONCE, lambda one=one: one.call(block, body)) for one in made))  # type: ignore[misc]
    came, went = "http.gateway.downstream_rq_total", f"cluster.{RELAY_CLUSTER}.upstream_rq_total"
    async with asyncio.timeout(60):
        while (found := await seen.stats("_rq_total"))[came] < len(made) * AT_ONCE:  # noqa: ASYNC110 - Envoy's counts
            await asyncio.sleep(0.1)
    return made, found[went]


async def test_streams_that_are_opened_at_once_are_refused_before_the_agent_has_them(etcd_server: EtcdServer, installation: str) -> None:
    async with scene(etcd_server.endpoint, installation, *OPTIONS) as seen, contextlib.AsyncExitStack() as stack:
        await seen.world.register(await seen.world.function("open", namespace="evil", uid="evil"), seen.worker)
        # A connection that is there, and has no patience of its own: attacker and neighbour are one process here.
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(seen.gateway.listen))
        await channel.channel_ready()
        began = time.monotonic()
        attack = asyncio.create_task(opened_at_once(seen))
        await seen.under_way(100)
        told, longest = await streams(seen, 8, channel)
        made, count = await attack
        for attacker in made:
            attacker.close()
        print(f"the agent got {count} of {len(made) * AT_ONCE}; of a neighbour's 8 {dict(told)}, the longest answer {longest:.2f} s")
        # All that may be open; what is let in meanwhile; and a part for each that comes when that is taken.
        assert count < MOST * (1 + (time.monotonic() - began) / limits.OPENING_SECONDS + sum(1 / n for n in range(2, 11)))
        assert told == {"answered": 8}
        assert longest < 10
        assert "the agent's lease ended" not in seen.gateway.log("dormouse_gateway")


async def test_negative_control_without_the_guard_the_agent_has_them_all(etcd_server: EtcdServer, installation: str) -> None:
    async with scene(etcd_server.endpoint, installation, *OPTIONS, without=lambda config: without_filter(config, OPENING)) as seen:
        await seen.world.register(await seen.world.function("open", namespace="evil", uid="evil"), seen.worker)
        made, count = await opened_at_once(seen)
        for attacker in made:
            attacker.close()
        assert count >= len(made) * AT_ONCE
