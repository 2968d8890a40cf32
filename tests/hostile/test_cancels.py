"""One caller ends thousands of calls at once. The connections that it shares with others, to the relay and to workers, go on."""

import asyncio
from typing import Any

import grpc
import pytest
from dormouse_core import limits
from dormouse_gateway.envoy.bootstrap import RELAY_CLUSTER
from dormouse_proto import inference_pb2
from dormouse_testing.etcd_server import EtcdServer
from dormouse_testing.gateway import infer, request
from dormouse_testing.hostile import INFER, STREAM, Attacker, Scene, headers, message, scene

Code = grpc.StatusCode
COUNT = 5000
ONE_THREAD = ("--concurrency", "1")  # each thread of Envoy's has connections of its own
SERVICE = "/inference.GRPCInferenceService/"


class Others:
    """What runs when it happens: calls that are held, calls at the worker, streams."""

    def __init__(self, seen: Scene, channel: grpc.aio.Channel) -> None:
        self._seen = seen
        self.held = [asyncio.create_task(infer(channel, request("asleep", n + 1), timeout=180)) for n in range(8)]
        self.running = [asyncio.create_task(infer(channel, request("open", id="wait"), timeout=180)) for n in range(8)]
        self.streams: list[Any] = [channel.stream_stream(f"{SERVICE}ModelStreamInfer")(timeout=180) for _ in range(6)]

    async def cut(self) -> int:
        """How many streams ended."""
        return sum(stream.done() for stream in self.streams)

    async def go_on(self) -> None:
        assert await self.cut() == 0
        assert not any(call.done() for call in [*self.running, *self.held])
        self._seen.go.set()
        assert {answer.code for answer in await asyncio.gather(*self.running)} == {Code.OK}
        await self._seen.wake()
        assert {answer.code for answer in await asyncio.gather(*self.held)} == {Code.OK}
        for number, stream in enumerate(self.streams):
            await stream.write(request("steps", number + 1).SerializeToString())
            assert not inference_pb2.ModelStreamInferResponse.FromString(await stream.read()).error_message


async def attack(seen: Scene, where: str, count: int) -> Attacker:
    """Calls under way, all of one connection: held in the relay, at the worker, or streams."""
    attacker = Attacker(seen.gateway.listen)
    path, name = (STREAM, "") if where == "streams" else (INFER, "asleep" if where == "relay" else "open")
    body = message(request(name, 99 if name == "asleep" else None, id="wait" if name == "open" else "")) if name else b""
    block = headers(path)
    await attacker.many(count, lambda: attacker.call(block, body, end=bool(name)))
    await seen.under_way(count + 22)
    return attacker


@pytest.mark.parametrize(
    ("where", "how"),
    [
        ("relay", "closes"),
        ("worker", "cancels"),
        pytest.param("worker", "closes", marks=pytest.mark.slow),
        pytest.param("streams", "cancels", marks=pytest.mark.slow),
    ],
)
async def test_who_ends_thousands_of_calls_ends_nobody_elses(etcd_server: EtcdServer, installation: str, where: str, how: str) -> None:
    async with scene(etcd_server.endpoint, installation, *ONE_THREAD) as seen, seen.gateway.channel() as channel:
        others = Others(seen, channel)
        await seen.under_way(22)
        count = limits.CONNECTION_STREAMS if where == "streams" else COUNT
        attacker = await attack(seen, where, count)
        if how == "cancels":
            attacker.send(attacker.cancels())
        else:
            attacker.close()
        for _ in range(1200):
            if sum((await seen.stats("upstream_rq_tx_reset")).values()) >= count:
                break
            await asyncio.sleep(0.05)
        assert sum((await seen.stats("upstream_rq_tx_reset")).values()) >= count
        assert sum((await seen.stats("outbound_.*flood")).values()) == 0
        await others.go_on()
        attacker.close()


async def test_negative_control_with_envoys_own_limits_the_streams_of_others_are_cut(etcd_server: EtcdServer, installation: str) -> None:
    def own_limits(config: dict[str, Any]) -> None:
        (relay,) = [each for each in config["static_resources"]["clusters"] if each["name"] == RELAY_CLUSTER]
        (options,) = relay["typed_extension_protocol_options"].values()
        for key in ("max_outbound_frames", "max_outbound_control_frames"):
            del options["explicit_http_config"]["http2_protocol_options"][key]

    async with scene(etcd_server.endpoint, installation, *ONE_THREAD, without=own_limits) as seen, seen.gateway.channel() as channel:
        others = Others(seen, channel)
        await seen.under_way(22)
        attacker = await attack(seen, "relay", 2000)
        attacker.close()
        for _ in range(1200):
            if await others.cut() == 6:
                break
            await asyncio.sleep(0.05)
        assert await others.cut() == 6
        assert (await seen.stats("cluster.relay.http2.outbound_control_flood"))["cluster.relay.http2.outbound_control_flood"] == 1
        for task in [*others.held, *others.running]:
            task.cancel()
        await asyncio.gather(*others.held, *others.running, return_exceptions=True)
