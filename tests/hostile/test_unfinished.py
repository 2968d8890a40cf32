"""Messages of streams that never end: what the relay holds of them, and what a neighbour's streams and calls notice."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from dormouse_core import limits
from dormouse_gateway.envoy.bootstrap import MESSAGES
from dormouse_proto import health_pb2, inference_pb2
from dormouse_testing import hostile
from dormouse_testing.etcd_server import EtcdServer
from dormouse_testing.gateway import request
from dormouse_testing.hostile import MIB, STREAM, Attacker, codes, headers, neighbours, scene, unfinished

Code = grpc.StatusCode
SERVICE = "/inference.GRPCInferenceService/"
ROOM = limits.UNFINISHED_BYTES // MIB
WATCH = b"/grpc.health.v1.Health/Watch"


def without_announcements(config: dict[str, Any]) -> None:
    hostile.without_filter(config, MESSAGES)


def agent_mib(seen: hostile.Scene, key: str = "VmHWM") -> float:
    """The agent's memory at its highest; `VmRSS`: now."""
    assert seen.gateway.agent is not None
    lines = Path(f"/proc/{seen.gateway.agent.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


class Streamer:
    """Somebody else's stream: one message of 4 MiB after another, each answered. `longest`: seconds."""

    def __init__(self, seen: hostile.Scene) -> None:
        self.answers = 0
        self.longest = 0.0
        self.wrong: list[str] = []
        self._seen = seen

    async def run(self) -> None:
        async with self._seen.gateway.channel() as channel:
            stream: Any = channel.stream_stream(f"{SERVICE}ModelStreamInfer")()
            message = request("open", size=4 * MIB).SerializeToString()
            try:
                while True:
                    began = time.monotonic()
                    await stream.write(message)
                    answer = inference_pb2.ModelStreamInferResponse.FromString(await stream.read())
                    self.longest = max(self.longest, time.monotonic() - began)
                    if answer.error_message:
                        self.wrong.append(answer.error_message)
                    self.answers += 1
                    await asyncio.sleep(0.05)
            except (grpc.aio.AioRpcError, TypeError) as error:  # TypeError: it was ended, and there is no more to read
                self.wrong.append(repr(error))


@contextlib.asynccontextmanager
async def streaming(seen: hostile.Scene) -> AsyncIterator[Streamer]:
    made = Streamer(seen)
    task = asyncio.create_task(made.run())
    try:
        while not made.answers and not made.wrong:  # noqa: ASYNC110 - its first answer, whenever it comes
            await asyncio.sleep(0.01)
        yield made
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def attack(seen: hostile.Scene, connections: int, each: int, seconds: float = 8, idle: float = 1) -> list[Attacker]:
    """So many streams on so many connections, with 12 of 16 MiB of a message, of which the gateway takes what it takes in some seconds."""
    made = [Attacker(seen.gateway.listen) for _ in range(connections)]
    block, body = headers(STREAM), unfinished(12 * MIB)
    sent = await asyncio.gather(*(asyncio.to_thread(one.pour, block, [[body]] * each, seconds, idle) for one in made))
    print(f"{sum(sent) / MIB:.0f} MiB were taken of {connections * each * 12}")
    assert all(one.closed == "" for one in made), "the gateway did not end a connection"
    return made


async def test_messages_of_streams_that_never_end_have_a_share_and_nobody_waits(etcd_server: EtcdServer, installation: str) -> None:
    """One connection, 40 streams: 480 MiB if it were let in."""
    async with scene(etcd_server.endpoint, installation) as seen, neighbours(seen.gateway, 2) as near, streaming(seen) as streamer:
        before, answers = agent_mib(seen), streamer.answers
        [attacker] = await attack(seen, 1, 40)
        grown = agent_mib(seen) - before
        print(f"the agent grew by {grown:.0f} MiB, Envoy has {seen.envoy_mib():.0f}; a stream's longest answer {streamer.longest:.2f} s")
        assert grown < limits.UNFINISHED_CONNECTION_BYTES / MIB + 40
        await hostile.until(lambda: streamer.answers > answers)
        assert streamer.answers > answers
        share = limits.UNFINISHED_CONNECTION_BYTES // (16 * MIB)
        await hostile.until(lambda: attacker.ended >= 40 - share)
        assert attacker.ended == 40 - share, "within its share a message may take as long as it likes; the others are refused"
        attacker.close()
    assert codes(near).keys() == {Code.OK}, [each.texts for each in near]
    assert streamer.wrong == []


async def test_from_many_connections_the_oldest_are_ended(etcd_server: EtcdServer, installation: str) -> None:
    """Six connections, each within its share: more than there is room for."""
    async with scene(etcd_server.endpoint, installation) as seen, neighbours(seen.gateway, 2) as near, streaming(seen) as streamer:
        before = agent_mib(seen)
        attackers = await attack(seen, 6, 6)
        answers = streamer.answers
        await hostile.until(lambda: streamer.answers > answers + 2 and any(each.ended for each in attackers))
        grown = agent_mib(seen) - before
        print(f"the agent grew by {grown:.0f} MiB; {sum(each.ended for each in attackers)} streams ended; {streamer.longest:.2f} s")
        assert grown < ROOM + 80
        assert sum(each.ended for each in attackers) > 0
        assert streamer.answers > answers + 2
        for each in attackers:
            each.close()
    assert codes(near).keys() == {Code.OK}, [each.texts for each in near]
    assert streamer.wrong == []


async def test_negative_control_without_announcements_the_relay_holds_all_of_it(etcd_server: EtcdServer, installation: str) -> None:
    async with scene(etcd_server.endpoint, installation, without=without_announcements) as seen:
        before = agent_mib(seen)
        [attacker] = await attack(seen, 1, 40, 60, 5)
        await hostile.until(lambda: agent_mib(seen) - before > 250, 30)
        grown = agent_mib(seen) - before
        print(f"the agent grew by {grown:.0f} MiB")
        assert grown > 250
        attacker.close()


async def test_a_watch_and_a_reflection_have_small_messages_alone(etcd_server: EtcdServer, installation: str) -> None:
    """A large one is refused before it is read."""
    async with scene(etcd_server.endpoint, installation) as seen, seen.gateway.channel() as channel:
        for path in (WATCH.decode(), "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"):
            stream: Any = channel.stream_stream(path)(timeout=20)
            await stream.write(health_pb2.HealthCheckRequest(service="x" * 4 * MIB).SerializeToString())
            assert await stream.code() is Code.RESOURCE_EXHAUSTED
            assert "at most 8191 are allowed for this method" in await stream.details()


@pytest.mark.parametrize("sizes", [(8187, 8192, 5, 100_000, 0, 70_000, 8191), (4 * MIB, 1, 4 * MIB)])
async def test_every_message_arrives_as_it_was_however_its_bytes_come(
    sizes: tuple[int, ...], etcd_server: EtcdServer, installation: str
) -> None:
    """In one piece, and byte by byte around each prefix."""
    async with scene(etcd_server.endpoint, installation) as seen, seen.gateway.channel() as channel:
        stream: Any = channel.stream_stream(f"{SERVICE}ModelStreamInfer")(timeout=120)
        calls = [request("open", size=size) for size in sizes]
        for call in calls:
            await stream.write(call.SerializeToString())
        await stream.done_writing()
        for _ in calls:
            answer = inference_pb2.ModelStreamInferResponse.FromString(await stream.read())
            assert not answer.error_message
        assert await stream.read() is grpc.aio.EOF
        assert sorted(
            len(each.request.raw_input_contents[0]) if each.request.raw_input_contents else 0 for each in seen.worker.calls
        ) == sorted(sizes)
        seen.worker.calls.clear()
        slow = Attacker(seen.gateway.listen)
        raw = b"".join(map(hostile.message, calls))
        edges, at = [0], 0
        for call in calls:
            edges += [at + n for n in (1, 2, 3, 4, 5, 6) if at + n < len(raw)]
            at += 5 + call.ByteSize()
        pieces = [raw[begin:end] for begin, end in zip(edges, [*edges[1:], len(raw)], strict=True)]
        assert await asyncio.to_thread(slow.pour, headers(STREAM), [pieces], 90, 20) == len(raw)
        await hostile.until(lambda: len(seen.worker.calls) == len(calls))
        assert [each.request for each in seen.worker.calls] == calls
        slow.close()
