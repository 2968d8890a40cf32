"""Streams through the real relay, on simulated workers and in simulated time: what they outlive, what ends them, what they cost."""

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from dormouse_core import limits, streamed
from dormouse_core.errors import Again, Code
from dormouse_core.seams import Reply
from dormouse_core.spec import Duration, Timeouts
from dormouse_gateway import sending, streaming
from dormouse_proto import inference_pb2, state_pb2
from dormouse_testing import simloop
from dormouse_testing.relaying import RESET, Sent, Sim, again, infers

Body = Callable[[Sim], Coroutine[Any, Any, None]]
A, B, C = "10.0.0.1:9000", "10.0.0.2:9000", "10.0.0.3:9000"


def simulate(body: Body, **options: int) -> None:
    async def main() -> None:
        async with Sim(**options).running() as sim:
            await body(sim)
            await asyncio.sleep(1)
            assert sim.workers.running == 0
            assert all(each.held == 0 for each in sim.demand.report())
            assert sim.relay.bodies.held == 0

    simloop.run(main())


async def stateful(sim: Sim, *owners: str, epoch: int = 1) -> None:
    """Function `steps` of 8 shards, dealt out to `owners`."""
    function = await sim.world.function("steps", shards=8, uid="u")
    for number, address in enumerate(owners):
        await sim.world.register(function, None, name=f"w-{address}", address=address)
        await sim.world.own(function, f"w-{address}", list(range(number, 8, len(owners))), epoch=epoch)
        sim.workers.behave.setdefault(address, infers)
    await asyncio.sleep(0.1)


async def talking(sim: Sim, address: str, behave: Callable[[Sent], Coroutine[Any, Any, Reply]], **more: Any) -> None:
    """Stateless function `talk`, which streams."""
    function = await sim.world.function("talk", uid="t", metadata=state_pb2.ModelMetadata(decoupled=True), **more)
    await sim.world.register(function, None, name=f"w-{address}", address=address)
    sim.workers.behave[address] = behave
    await asyncio.sleep(0.1)


async def say(sent: Sent, count: int) -> None:
    assert sent.part is not None
    for number in range(count):
        reply = inference_pb2.ModelInferResponse(id=f"{sent.id}.{number}").SerializeToString()
        await sent.part(streamed.response(reply, final=False))
        await asyncio.sleep(0.01)


DONE = Reply(0, b"", "", {"dormouse-decoupled": "1"})

# ------------------------------------------------------------------------------------------------------------------------ order


class Sequences:
    """Workers that check what Triton's clients expect: START first, then in order. They answer after a time of their own."""

    def __init__(self) -> None:
        self.at: dict[int, int] = {}
        self.wrong: list[str] = []
        self._random = random.Random(1)

    async def __call__(self, sent: Sent) -> Reply:
        await asyncio.sleep(self._random.random() / 50)
        sequence, _, step = sent.id.partition("_")
        if int(step) != self.at.get(int(sequence), 0):
            self.wrong.append(sent.id)
        self.at[int(sequence)] = int(step) + 1
        await asyncio.sleep(self._random.random() / 50)
        return Reply(0, inference_pb2.ModelInferResponse(id=sent.id).SerializeToString())


async def interleaved(sim: Sim, count: int = 200, in_order: bool = True) -> Sequences:
    check = Sequences()
    for address in (A, B, C):
        sim.workers.behave[address] = check
    await stateful(sim, A, B, C)
    caller = sim.open()
    for step in range(5):
        for sequence in range(1, count + 1):
            caller.send("steps", f"{sequence}_{step}", sequence, sequence_start=step == 0, sequence_end=step == 4)
    caller.half_close()
    await caller.ended()
    assert caller.code == 0
    assert len(caller.responses) == 5 * count
    by_sequence: dict[str, list[str]] = {}
    for each in caller.ids:
        by_sequence.setdefault(each.partition("_")[0], []).append(each)
    assert in_order == all(of == [f"{sequence}_{step}" for step in range(5)] for sequence, of in by_sequence.items())
    return check


def test_two_hundred_sequences_on_one_stream_without_waiting() -> None:
    async def body(sim: Sim) -> None:
        check = await interleaved(sim)
        assert check.wrong == []
        keys = [sent.metadata["dormouse-call"] for sent in sim.workers.sent]
        assert len(set(keys)) == 1000
        assert sim.workers.most <= limits.STREAM_MESSAGES

    simulate(body)


def test_without_one_step_at_a_time_they_would_overtake_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guard of the test above, taken away: the relay's own turns hold back the second step, but a third passes it by."""
    from dormouse_gateway import streams, turns

    def all_at_once(self: streams.Stream, line: streams.Line) -> None:
        flying = [step for step in line.steps if step.reply is None and step not in self._ready and id(step) not in begun]
        begun.update(map(id, flying))
        self._ready += flying

    def done(self: streams.Stream, step: streams.Step, reply: Reply) -> None:
        line = self._lines[streams._key(step)]
        line.steps.remove(step)
        self._answer(line, step, reply)

    begun: set[int] = set()
    monkeypatch.setattr(streams.Stream, "_next", all_at_once)
    monkeypatch.setattr(streams.Stream, "done", done)
    monkeypatch.setattr(turns.Turn, "mine", property(lambda self: True))
    monkeypatch.setattr(turns.Turn, "depart", lambda self: None)

    async def body(sim: Sim) -> None:
        check = await interleaved(sim, 20, in_order=False)
        assert check.wrong

    simulate(body)


# ------------------------------------------------------------------------------------------------------------- what it outlives


def test_a_stream_outlives_its_owner() -> None:
    async def body(sim: Sim) -> None:
        await stateful(sim, A)
        caller = sim.open()
        caller.send("steps", "0", 1)
        await caller.answers(1)

        async def dies(sent: Sent) -> Reply:
            await asyncio.sleep(0.01)
            del sim.workers.behave[A]
            await stateful(sim, B, epoch=2)
            return RESET

        sim.workers.behave[A] = dies
        caller.send("steps", "1", 1)
        caller.send("steps", "2", 1)
        await caller.answers(3)
        assert caller.ids == ["0", "1", "2"]
        assert [each.error_message for each in caller.responses] == [""] * 3
        first, second = [sent for sent in sim.workers.sent if sent.id == "1"][:2]
        assert (first.address, second.address) == (A, B)
        assert first.metadata["dormouse-call"] == second.metadata["dormouse-call"], "the same key, so that it runs once"
        caller.half_close()
        await caller.ended()

    simulate(body)


def test_a_stream_outlives_a_handoff_and_a_sleep() -> None:
    async def body(sim: Sim) -> None:
        await stateful(sim, A)
        caller = sim.open()
        caller.send("steps", "0", 1)
        await caller.answers(1)

        async def not_mine(sent: Sent) -> Reply:
            return again(Again.NOT_MINE)

        await stateful(sim, B, epoch=2)
        sim.workers.behave[A] = not_mine
        caller.send("steps", "1", 1)
        await caller.answers(2)
        function = await sim.world.function("steps", shards=8, uid="u")
        await sim.world.unregister(function, f"w-{A}")
        await sim.world.unregister(function, f"w-{B}")
        await asyncio.sleep(0.1)
        caller.send("steps", "2", 1)
        await asyncio.sleep(5)
        assert [each.held for each in sim.demand.report()] == [1], "a message is demand"
        await stateful(sim, C, epoch=3)
        await caller.answers(3)
        assert [each.error_message for each in caller.responses] == [""] * 3
        await caller.cancel()

    simulate(body)


def test_a_silent_stream_is_no_demand() -> None:
    async def body(sim: Sim) -> None:
        await stateful(sim, A)
        callers = [sim.open() for _ in range(100)]
        await asyncio.sleep(3600)
        assert sim.demand.report() == []
        assert sim.workers.sent == []
        for caller in callers:
            caller.half_close()
            await caller.ended()
            assert caller.code == 0

    simulate(body)


# ------------------------------------------------------------------------------------------------------------------------ errors


def test_an_error_is_in_the_stream_and_the_stream_goes_on() -> None:
    async def body(sim: Sim) -> None:
        await stateful(sim, A)
        caller = sim.open()
        caller.send("nobody", "x", 1)
        caller.send("steps", "no session")
        caller.send("steps", "good", 1)
        await caller.answers(3)
        found = {each.infer_response.id: each for each in caller.responses}
        assert "there is no function" in found["x"].error_message
        assert "must specify a non-zero or non-empty correlation ID" in found["no session"].error_message
        assert found["good"].error_message == ""
        assert sorted(sim.counted) == [0, Code.INVALID_ARGUMENT, Code.NOT_FOUND]
        caller.half_close()
        await caller.ended()

    simulate(body)


def test_or_it_ends_the_stream_as_its_status() -> None:
    async def body(sim: Sim) -> None:
        await stateful(sim, A)
        caller = sim.open({"triton_grpc_error": "true"})
        caller.send("steps", "good", 1)
        await caller.answers(1)
        caller.send("nobody", "x", 1)
        await caller.ended()
        assert caller.code == Code.NOT_FOUND
        assert "there is no function" in caller.details
        assert len(caller.responses) == 1

    simulate(body)


def test_one_failure_fails_what_was_sent_behind_it() -> None:
    async def body(sim: Sim) -> None:
        await stateful(sim, A)

        async def moody(sent: Sent) -> Reply:
            await asyncio.sleep(0.01)
            return Reply(Code.INTERNAL, b"", "boom") if sent.id == "1" else await infers(sent)

        sim.workers.behave[A] = moody
        caller = sim.open()
        for ident in "0123":
            caller.send("steps", ident, 1)
        caller.half_close()
        await caller.ended()
        assert caller.ids == list("0123")
        assert [sent.id for sent in sim.workers.sent] == ["0", "1"]
        assert all("boom" in each.error_message for each in caller.responses[1:])

    simulate(body)


# ----------------------------------------------------------------------------------------------------------------- cancel, deadline


def test_a_cancel_reaches_what_runs_and_what_is_held_at_once() -> None:
    async def body(sim: Sim) -> None:
        await stateful(sim, A)
        await sim.world.function("asleep", shards=8, uid="z")

        async def slow(sent: Sent) -> Reply:
            await asyncio.sleep(60)
            return await infers(sent)

        sim.workers.behave[A] = slow
        caller = sim.open()
        for number in range(1, 11):
            caller.send("steps", f"runs {number}", number)
            caller.send("steps", f"queued {number}", number)
            caller.send("asleep", f"held {number}", number)
        await asyncio.sleep(1)
        assert sim.workers.running == 10
        began = asyncio.get_running_loop().time()
        await caller.cancel()
        assert asyncio.get_running_loop().time() == began
        assert sim.workers.cancelled == 10
        await asyncio.sleep(120)
        assert len(sim.workers.sent) == 10, "nothing is sent for a caller that is gone"

    simulate(body)


def test_the_streams_deadline_ends_what_runs_what_is_held_and_what_is_queued() -> None:
    async def body(sim: Sim) -> None:
        await stateful(sim, A)
        await sim.world.function("asleep", shards=8, uid="z")

        async def slow(sent: Sent) -> Reply:
            await asyncio.sleep(60)
            return await infers(sent)

        sim.workers.behave[A] = slow
        caller = sim.open(timeout=2.0)
        caller.send("steps", "runs", 1)
        caller.send("steps", "queued", 1)
        caller.send("asleep", "held", 1)
        await asyncio.gather(caller.task, return_exceptions=True)
        assert len(sim.workers.sent) == 1

    simulate(body)


def test_the_hold_limit_is_each_messages_own() -> None:
    async def body(sim: Sim) -> None:
        await sim.world.function("asleep", shards=8, uid="z", timeouts=Timeouts(hold=Duration("5s")))
        await asyncio.sleep(0.1)
        caller = sim.open()
        caller.send("asleep", "a", 1)
        await asyncio.sleep(3)
        caller.send("asleep", "b", 2)
        await asyncio.sleep(2.1)
        assert caller.ids == ["a"]
        assert "within the hold limit" in caller.responses[0].error_message
        await asyncio.sleep(3)
        assert caller.ids == ["a", "b"]
        await caller.cancel()

    simulate(body)


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

    async def forget(self: sending.Parts, message: bytes) -> None:
        await self.take(message)

    monkeypatch.setattr(sending.Parts, "__call__", forget)

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


def test_nor_is_the_worker_that_streams_to_it() -> None:
    async def body(sim: Sim) -> None:
        said = 0

        async def talks(sent: Sent) -> Reply:
            nonlocal said
            assert sent.part is not None
            for _ in range(1000):
                await sent.part(streamed.response(b"", final=False))
                said += 1
            return DONE

        await talking(sim, A, talks)
        caller = sim.open()
        caller.stop_reading()
        caller.send("talk", "x")
        await asyncio.sleep(60)
        assert said <= 66
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
