"""What one caller can make the gateway's Envoy hold, and what its neighbours notice of it: nothing.

Each attack has its control: the guard taken away, and the harm is there. Envoy's heap is small, so that the controls do not fill a machine.
"""

import asyncio
import time
from collections import Counter
from typing import Any

import grpc
import pytest
from dormouse_core import limits
from dormouse_proto import inference_pb2
from dormouse_testing import hostile
from dormouse_testing.etcd_server import EtcdServer
from dormouse_testing.gateway import INFER, Answer, infer, request
from dormouse_testing.hostile import MIB, Attacker, codes, headers, indexed, message, neighbours, scene, unfinished, until
from dormouse_testing.http2 import literal

Code = grpc.StatusCode
HEAP = 256
OPTIONS = ("--max-heap-bytes", str(HEAP * MIB))
CONTAINER = 4 / 3  # of the heap: what its container has, for code and threads (66 MiB) and for what comes before a look at the heap
SERVICE = "/inference.GRPCInferenceService/"


def without_metadata_filter(config: dict[str, Any]) -> None:
    filters = hostile.manager(config)["http_filters"]
    hostile.manager(config)["http_filters"] = [each for each in filters if each["name"] != "dormouse.metadata"]


def without(*actions: str) -> Any:
    def change(config: dict[str, Any]) -> None:
        manager = config["overload_manager"]
        manager["actions"] = [each for each in manager["actions"] if each["name"].rpartition(".")[2] not in actions]

    return change


async def repeated(attacker: Attacker, count: int) -> None:
    """One header of 3.9 KB, and calls that name it fourteen times: 55 KB each, for 14 bytes on the wire."""
    attacker.send(attacker.call(headers(more=indexed(b"x-t", b"a" * 3900))))
    block = headers(more=b"\xbe" * 14)
    await attacker.many(count, lambda: attacker.call(block))


async def until_quiet(seen: hostile.Scene, seconds: float = 20) -> None:
    """Returns when Envoy has read what was sent: it takes no more memory."""
    end, last = time.monotonic() + seconds, 0.0
    while time.monotonic() < end and (now := seen.envoy_mib()) != last:
        last = now
        await asyncio.sleep(0.5)


@pytest.mark.parametrize("acknowledge", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["settings ignored", "settings taken"])
async def test_headers_that_repeat_one_hold_nothing(etcd_server: EtcdServer, installation: str, acknowledge: bool) -> None:
    async with scene(etcd_server.endpoint, installation, *OPTIONS) as seen, neighbours(seen.gateway) as near:
        before = seen.envoy_mib()
        attacker = Attacker(seen.gateway.listen, acknowledge=acknowledge)
        await repeated(attacker, 3000)
        await until(lambda: attacker.ended >= 3000)
        assert attacker.ended >= 3000, "each is refused at once"
        assert seen.envoy_mib() - before < 40
        attacker.close()
    assert codes(near).keys() == {Code.OK}


async def test_negative_control_without_counting_them_they_fill_the_heap(etcd_server: EtcdServer, installation: str) -> None:
    async with scene(etcd_server.endpoint, installation, *OPTIONS, without=without_metadata_filter) as seen:
        before = seen.envoy_mib()
        attacker = Attacker(seen.gateway.listen)
        await repeated(attacker, 3000)
        await until(lambda: seen.envoy_mib() - before > 80)
        assert seen.envoy_mib() - before > 80
        attacker.close()


async def held(channel: grpc.aio.Channel, seen: hostile.Scene) -> tuple["asyncio.Task[Answer]", Any]:
    """What is silent for good reasons: a call that waits for a worker, and a stream before its first message."""
    call = asyncio.create_task(infer(channel, request("asleep", 1), timeout=180))
    stream: Any = channel.stream_stream(f"{SERVICE}ModelStreamInfer")(timeout=180)
    await seen.under_way(2)
    return call, stream


async def test_bodies_that_never_end_are_ended_and_nobody_else_is(etcd_server: EtcdServer, installation: str) -> None:
    """More than the heap may hold, 100 MiB each second (what comes faster than the second that each is left is refused with everybody's
    for a moment). What waited before it, for a worker or for a first message, waits on and is served."""
    heap = 768
    options = ("--max-heap-bytes", str(heap * MIB))
    async with scene(etcd_server.endpoint, installation, *options) as seen, seen.gateway.channel() as channel:
        call, stream = await held(channel, seen)
        async with neighbours(seen.gateway) as near:
            attacker = Attacker(seen.gateway.listen)
            block, body = headers(), unfinished(12 * MIB)
            for _ in range(heap * 3 // 2 // 12):
                await asyncio.to_thread(attacker.send, attacker.call(block, body))
                await asyncio.sleep(0.12)
            await until(lambda: attacker.ended + attacker.resets.total() > 0)
            assert attacker.ended + attacker.resets.total() > 0
            assert seen.envoy_mib() < heap * CONTAINER
            attacker.close()
        assert codes(near).keys() == {Code.OK}, [each.texts for each in near]
        assert not call.done()
        await seen.wake()
        assert (await call).code is Code.OK
        await stream.write(request("steps", 1).SerializeToString())
        answer = inference_pb2.ModelStreamInferResponse.FromString(await stream.read())
        assert not answer.error_message


async def test_negative_control_without_shedding_neighbours_are_refused(etcd_server: EtcdServer, installation: str) -> None:
    """And told so, with the code and the text of what is short."""
    config = without("reduce_timeouts", "reset_high_memory_stream")
    async with scene(etcd_server.endpoint, installation, *OPTIONS, without=config) as seen, neighbours(seen.gateway) as near:
        attacker = Attacker(seen.gateway.listen)
        block, body = headers(), unfinished(12 * MIB)
        for _ in range(HEAP * 2 // 12):
            attacker.send(attacker.call(block, body))
            await asyncio.sleep(0)
            if Code.RESOURCE_EXHAUSTED in codes(near):
                break
        await until(lambda: Code.RESOURCE_EXHAUSTED in codes(near))
        attacker.close()
    assert codes(near)[Code.RESOURCE_EXHAUSTED] > 0
    assert set().union(*(each.texts for each in near)) == {"the gateway is short of memory; try again later"}


@pytest.mark.slow
async def test_bodies_that_go_on_by_a_byte_are_reset_the_largest_first(etcd_server: EtcdServer, installation: str) -> None:
    """They make progress, so no timer ends them. In a heap of which a body is not a large part, neighbours notice nothing."""
    heap = 768
    options = ("--max-heap-bytes", str(heap * MIB))
    config = without("reduce_timeouts")
    async with scene(etcd_server.endpoint, installation, *options, without=config) as seen, neighbours(seen.gateway) as near:
        attacker = Attacker(seen.gateway.listen)
        block, body = headers(), unfinished(12 * MIB)
        await attacker.many(heap * 2 // 12, lambda: attacker.call(block, body), per=1)
        assert attacker.resets.total() > 0
        assert seen.envoy_mib() < heap * CONTAINER
        attacker.close()
    assert codes(near).keys() == {Code.OK}, [each.texts for each in near]


async def test_calls_with_much_metadata_are_ended_when_memory_is_short(etcd_server: EtcdServer, installation: str) -> None:
    """Streams before their first message, of 60 KiB of metadata each, 20 MiB each second: what comes faster than the second that each is
    left is refused with everybody's for a moment. One of a neighbour's, with little of it, stays."""
    async with scene(etcd_server.endpoint, installation, *OPTIONS) as seen, seen.gateway.channel() as channel:
        call, stream = await held(channel, seen)
        async with neighbours(seen.gateway) as near:
            attacker = Attacker(seen.gateway.listen)
            block = headers(hostile.STREAM, literal(b"x-t", b"a" * 60_000))
            for _ in range(50):
                await attacker.many(50, lambda: attacker.call(block), per=1)
                await asyncio.sleep(0.15)
            await until_quiet(seen)
            await until(lambda: attacker.ended > 0)
            assert attacker.ended > 0
            assert seen.envoy_mib() < HEAP * CONTAINER
            attacker.close()
        assert codes(near).keys() == {Code.OK}, [each.texts for each in near]
        assert not call.done()
        await stream.write(request("steps", 1).SerializeToString())
        assert not inference_pb2.ModelStreamInferResponse.FromString(await stream.read()).error_message
        call.cancel()


async def stalled(gateway: Any, seconds: float) -> Answer:
    """A call of grpcio's that writes half of its message, as a stream to a unary method would."""
    async with gateway.channel() as channel:
        call = channel.stream_unary(INFER, request_serializer=lambda data: data)

        async def halves() -> Any:
            yield request("steps", 1).SerializeToString()
            await asyncio.sleep(seconds)

        try:
            await call(halves(), timeout=seconds)
        except grpc.aio.AioRpcError as error:
            return Answer(error.code(), error.details() or "")
        return Answer(Code.OK)


@pytest.mark.slow
async def test_a_message_without_progress_is_ended_with_a_code_and_a_text(etcd_server: EtcdServer, installation: str) -> None:
    async with scene(etcd_server.endpoint, installation) as seen:
        began = time.monotonic()
        answer = await stalled(seen.gateway, 60)
        assert answer.code is Code.RESOURCE_EXHAUSTED
        assert "made no progress" in answer.details
        assert time.monotonic() - began == pytest.approx(limits.MESSAGE_STALL_SECONDS, abs=3)


async def test_honest_calls_of_64_mib_pass_beside_an_attack(etcd_server: EtcdServer, installation: str) -> None:
    heap = 768  # what a container of 1 GiB gives it
    options = ("--max-heap-bytes", str(heap * MIB), "--max-message-bytes", str(64 * MIB))
    async with scene(etcd_server.endpoint, installation, *options) as seen, seen.gateway.channel() as channel:
        attacker = Attacker(seen.gateway.listen)
        block, body = headers(), unfinished(12 * MIB)
        attack = asyncio.create_task(attacker.many(heap // 12, lambda: attacker.call(block, body), per=1))
        answers = [await infer(channel, request("open", size=64 * MIB - 1024), timeout=60) for _ in range(3)]
        await attack
        attacker.close()
        assert [(answer.code, answer.details) for answer in answers] == [(Code.OK, "")] * 3


@pytest.mark.slow
async def test_ten_thousand_calls_are_held_on_one_connection(etcd_server: EtcdServer, installation: str) -> None:
    count = limits.CONNECTION_CALLS
    async with scene(etcd_server.endpoint, installation) as seen:
        honest = Attacker(seen.gateway.listen)
        block = headers()
        numbers = iter(range(1, count + 1))
        await honest.many(count, lambda: honest.call(block, message(request("asleep", next(numbers))), end=True))
        await seen.under_way(count)
        await seen.wake()
        for _ in range(2400):
            if honest.ended == count:
                break
            await asyncio.sleep(0.1)
        assert (honest.ended, honest.resets, honest.closed) == (count, Counter(), "")
        assert len({each.key for each in seen.worker.calls}) == count
        honest.close()
