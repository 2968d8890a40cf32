"""Streams through the real relay, on simulated workers and in simulated time: order, what they outlive, what ends them."""

import asyncio
import random

import pytest
from dormouse_core import limits
from dormouse_core.errors import Again, Code
from dormouse_core.seams import Reply
from dormouse_core.spec import Duration, Timeouts
from dormouse_proto import inference_pb2
from dormouse_testing.relaying import RESET, Sent, Sim, again, infers
from dormouse_testing.streaming_sim import A, B, C, simulate, stateful

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
    from dormouse_gateway.relay import turns
    from dormouse_gateway.serving import streams

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
        assert "not found (looked up" in found["x"].error_message
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
        assert "not found (looked up" in caller.details
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


def test_a_stream_whose_deadline_the_gateway_sees_first_ends_with_that_status() -> None:
    """Not with a response: which of the two clocks is ahead is nothing that a caller should have to know."""

    async def body(sim: Sim) -> None:
        await stateful(sim, A)
        await sim.world.function("asleep", shards=8, uid="z")
        caller = sim.open()
        caller.time_remaining = lambda: 2.0  # type: ignore[method-assign]  # and the caller waits for longer
        caller.send("steps", "runs", 1)
        caller.send("asleep", "held", 1)
        caller.half_close()
        await caller.ended()
        assert caller.ids == ["runs"]
        assert caller.code == Code.DEADLINE_EXCEEDED
        assert "the deadline passed while the call waited" in caller.details

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
