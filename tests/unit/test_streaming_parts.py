"""Streams through the real relay in simulated time: replies in parts, memory, a gateway that stops."""

import asyncio

import pytest
from dormouse_core import limits, streamed
from dormouse_core.errors import Again, Code
from dormouse_core.seams import Reply
from dormouse_gateway.relay import sending
from dormouse_gateway.serving import streaming
from dormouse_proto import inference_pb2
from dormouse_testing.relaying import RESET, Sent, Sim, again
from dormouse_testing.streaming_sim import DONE, A, say, simulate, stateful, talking

# ------------------------------------------------------------------------------------------------------------------------ in parts


def test_parts_go_to_the_caller_as_they_come_and_the_last_follows_the_commit() -> None:
    async def body(sim: Sim) -> None:
        async def talks(sent: Sent) -> Reply:
            await say(sent, 3)
            await asyncio.sleep(5)  # the commit
            return DONE

        await talking(sim, A, talks)
        caller = sim.open()
        caller.send("talk", "x", triton_enable_empty_final_response=True)
        await caller.answers(3, 0.5)
        await asyncio.sleep(1)
        assert caller.ids == ["x.0", "x.1", "x.2"]
        await caller.answers(4)
        assert caller.responses[3].infer_response.parameters[streamed.FINAL].bool_param
        await caller.cancel()

    simulate(body)


def test_after_the_first_part_the_call_is_not_sent_again() -> None:
    async def body(sim: Sim) -> None:
        async def breaks(sent: Sent) -> Reply:
            await say(sent, 1)
            return RESET

        async def dropped(sent: Sent) -> Reply:
            await say(sent, 1)
            return again(Again.DROPPED)

        await talking(sim, A, breaks)
        caller = sim.open()
        for behave in (breaks, dropped):
            sim.workers.behave[A] = behave
            caller.send("talk", "x")
            await caller.answers(len(caller.responses) + 2)
            await asyncio.sleep(1)
        assert len(sim.workers.sent) == 2
        part, unknown, other, given_up = caller.responses
        assert part.infer_response.id == other.infer_response.id == "x.0"
        assert "whether the step is committed is not known" in unknown.error_message
        assert unknown.infer_response.parameters[streamed.CODE].string_param == "ABORTED"
        assert "not committed, send it again" in given_up.error_message
        assert given_up.infer_response.parameters[streamed.CODE].string_param == "UNAVAILABLE"
        await caller.cancel()

    simulate(body)


def test_without_that_the_caller_would_get_the_first_parts_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guard of the test above, taken away."""

    async def forget(self: sending.PartsTaker, message: bytes) -> None:
        await self.take(message)

    monkeypatch.setattr(sending.PartsTaker, "__call__", forget)

    async def body(sim: Sim) -> None:
        async def breaks(sent: Sent) -> Reply:
            await say(sent, 1)
            return RESET if len(sim.workers.sent) == 1 else DONE

        await talking(sim, A, breaks)
        caller = sim.open()
        caller.send("talk", "x")
        await caller.answers(2)
        assert caller.ids == ["x.0", "x.0"]
        await caller.cancel()

    simulate(body)


def test_before_the_first_part_it_is() -> None:
    async def body(sim: Sim) -> None:
        async def second(sent: Sent) -> Reply:
            if len(sim.workers.sent) == 1:
                return RESET
            await say(sent, 1)
            return DONE

        await talking(sim, A, second)
        caller = sim.open()
        caller.send("talk", "x")
        await caller.answers(1)
        assert caller.responses[0].error_message == ""
        await caller.cancel()

    simulate(body)


def test_a_worker_corrects_what_the_relay_thinks_of_the_function() -> None:
    """A revision that streams, whose metadata nobody has proved yet."""

    async def body(sim: Sim) -> None:
        async def talks(sent: Sent) -> Reply:
            if sent.part is None:
                return Reply(Code.INVALID_ARGUMENT, b"", "decoupled", {"dormouse-decoupled": "1"})
            await say(sent, 2)
            return DONE

        await stateful(sim, A)
        sim.workers.behave[A] = talks
        caller = sim.open()
        caller.send("steps", "x", 1)
        await caller.answers(2)
        assert caller.ids == ["x.0", "x.1"]
        reply = await sim.call("steps", 1)
        assert reply.code == Code.INVALID_ARGUMENT, "a unary call stays one"
        await caller.cancel()

    simulate(body)


# ------------------------------------------------------------------------------------------------------------------------ memory


def test_a_caller_that_does_not_read_is_not_read_from() -> None:
    async def body(sim: Sim) -> None:
        await stateful(sim, A)
        caller = sim.open()
        caller.stop_reading()
        for number in range(3 * limits.STREAM_MESSAGES):
            caller.send("steps", str(number), number + 1)
        await asyncio.sleep(60)
        assert caller.read_by_relay <= limits.STREAM_MESSAGES
        caller.read_on()
        await caller.answers(3 * limits.STREAM_MESSAGES)
        await caller.cancel()

    simulate(body)


@pytest.mark.parametrize(("size", "most"), [(0, 66), (limits.STREAM_BYTES // 4, 6)])
def test_nor_is_the_worker_that_streams_to_it(size: int, most: int) -> None:
    """However large the parts are, of `size` bytes: at most 64, or 4 MiB of them, wait to be read."""

    async def body(sim: Sim) -> None:
        said = 0
        part = inference_pb2.ModelInferResponse(raw_output_contents=[b"x" * size]).SerializeToString()

        async def talks(sent: Sent) -> Reply:
            nonlocal said
            assert sent.part is not None
            for _ in range(1000):
                await sent.part(streamed.response(part, final=False))
                said += 1
            return DONE

        await talking(sim, A, talks)
        caller = sim.open()
        caller.stop_reading()
        caller.send("talk", "x")
        await asyncio.sleep(60)
        assert said <= most
        caller.read_on()
        await caller.answers(1000)
        await caller.cancel()

    simulate(body)


def test_messages_count_among_the_relays_bodies() -> None:
    async def body(sim: Sim) -> None:
        await sim.world.function("asleep", shards=8, uid="z")
        await asyncio.sleep(0.1)
        callers = [sim.open() for _ in range(3)]
        for caller in callers:
            caller.send("asleep", "x", 1, size=400_000)
        await asyncio.sleep(1)
        assert 800_000 < sim.relay.bodies.held < 1_000_000
        assert "waiting messages" in callers[2].responses[0].error_message
        for caller in callers:
            await caller.cancel()

    simulate(body, max_held_bytes=1_000_000)


# ------------------------------------------------------------------------------------------------------------------------- the end


def test_a_stopping_gateway_answers_what_it_has_read_and_ends_its_streams() -> None:
    async def body(sim: Sim) -> None:
        await stateful(sim, A)
        idle, busy = sim.open(), sim.open()
        busy.send("steps", "x", 1)
        await asyncio.sleep(0.005)
        sim.streaming.drain()
        late = sim.open()
        for caller in (idle, busy, late):
            await caller.ended()
            assert (caller.code, caller.details) == (Code.UNAVAILABLE, streaming.STOPPING)
        assert busy.ids == ["x"]

    simulate(body)


def test_half_closed_it_finishes_and_ends_well() -> None:
    async def body(sim: Sim) -> None:
        await stateful(sim, A)
        caller = sim.open()
        for number in range(10):
            caller.send("steps", str(number), 1)
        caller.half_close()
        await caller.ended()
        assert caller.ids == [str(number) for number in range(10)]
        assert caller.code == 0

    simulate(body)
