"""Calls that are at a worker while the map changes: when they are given up, when the worker may still answer, and where they go then."""

import asyncio

import pytest
from dormouse_core.errors import Code
from dormouse_core.keys import Function
from dormouse_core.seams import Reply
from dormouse_gateway.relay import flights
from dormouse_gateway.relay import relaying as relay
from dormouse_testing import simloop
from dormouse_testing.relaying import RESET, Sent, Sim, good
from dormouse_testing.streaming_sim import say, talking

A, B = "10.0.0.1:9000", "10.0.0.2:9000"
KEEPALIVE = 3.0


async def black_hole(sent: Sent) -> Reply:
    """A node that lost power: nothing comes, and the connection says so after a keepalive's time."""
    await asyncio.sleep(KEEPALIVE)
    return RESET


async def steps(sim: Sim, *owners: str, epoch: int = 1) -> Function:
    """Function `steps`, all of whose shards the first of `owners` has."""
    function = await sim.world.function("steps", shards=8, uid="u")
    for address in owners:
        await sim.world.register(function, None, name=f"w-{address}", address=address)
        sim.workers.behave.setdefault(address, good)
    await sim.world.own(function, f"w-{owners[0]}", list(range(8)), epoch=epoch)
    await asyncio.sleep(0.1)
    return function


async def at_a_lost_node(sim: Sim) -> float:
    """Seconds until a step is answered whose owner's node dies and whose shards go to another after 0.2 s."""
    function = await steps(sim, A)
    sim.workers.behave[A] = black_hole
    began = sim.clock.monotonic()
    call = sim.call("steps", 1)
    await asyncio.sleep(0.2)
    await sim.world.unregister(function, f"w-{A}")
    await steps(sim, B, epoch=2)
    behind = sim.call("steps", 1)
    assert (await call).code == 0
    took = sim.clock.monotonic() - began
    assert (await behind).code == 0
    first, second, _ = sim.workers.sent
    assert (first.address, second.address) == (A, B)
    assert first.metadata["dormouse-call"] == second.metadata["dormouse-call"], "the same key, so that it runs once"
    return took


def test_a_step_at_a_lost_node_follows_its_shard() -> None:
    async def main() -> None:
        async with Sim().running() as sim:
            assert await at_a_lost_node(sim) < 0.5

    simloop.run(main())


def test_without_a_look_at_the_map_it_waits_for_the_keepalive(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guard of the test above, taken away."""
    monkeypatch.setattr(flights.Flights, "changed", lambda self, function, revision: None)

    async def main() -> None:
        async with Sim().running() as sim:
            assert await at_a_lost_node(sim) >= KEEPALIVE

    simloop.run(main())


async def handed_over(sim: Sim, late: float) -> tuple[list[str], bytes]:
    """Where a step was sent whose living owner hands its shard over and answers `late` seconds afterwards; and whose answer it got."""
    await steps(sim, A, B)

    async def answers(sent: Sent) -> Reply:
        await asyncio.sleep(0.1 + late)
        return Reply(0, b"A")

    sim.workers.behave[A] = answers
    call = sim.call("steps", 1, ident="B")
    await asyncio.sleep(0.05)
    await steps(sim, B, A, epoch=2)
    reply = await call
    assert reply.code == 0
    return [sent.address for sent in sim.workers.sent], reply.message


def test_an_owner_that_lives_may_answer_what_it_ran_before_the_handoff() -> None:
    async def main() -> None:
        async with Sim().running() as sim:
            assert await handed_over(sim, 0.8) == ([A], b"A")

    simloop.run(main())


def test_its_grace_runs_from_the_first_change_whatever_else_changes_meanwhile() -> None:
    async def main() -> None:
        async with Sim().running() as sim:
            await steps(sim, A, B)
            sim.workers.behave[A] = black_hole
            began, call = sim.clock.monotonic(), sim.call("steps", 1)
            await asyncio.sleep(0.05)
            for epoch in range(2, 7):
                await steps(sim, B, A, epoch=epoch)
                await asyncio.sleep(0.4)
            assert (await call).code == 0
            assert [sent.address for sent in sim.workers.sent] == [A, B]
            assert sim.workers.sent[1].at - began < flights.GRACE_MOVED + 0.3

    simloop.run(main())


def test_without_the_grace_its_answer_would_be_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flights, "GRACE_MOVED", 0.0)

    async def main() -> None:
        async with Sim().running() as sim:
            assert await handed_over(sim, 0.8) == ([A, B], b"B")

    simloop.run(main())


def test_an_owner_that_lives_and_does_not_answer_is_given_up_after_the_grace() -> None:
    """Its lease is fine, and this gateway does not reach it."""

    async def main() -> None:
        async with Sim().running() as sim:
            began = sim.clock.monotonic()
            assert await handed_over(sim, 60) == ([A, B], b"B")
            assert sim.clock.monotonic() - began < 0.3 + flights.GRACE_MOVED

    simloop.run(main())


def test_a_shard_that_comes_back_is_as_if_it_had_not_moved() -> None:
    async def main() -> None:
        async with Sim().running() as sim:
            await steps(sim, A, B)

            async def slow(sent: Sent) -> Reply:
                await asyncio.sleep(5)
                return Reply(0, b"A")

            sim.workers.behave[A] = slow
            call = sim.call("steps", 1)
            await steps(sim, B, A, epoch=2)
            await steps(sim, A, B, epoch=3)
            assert (await call).message == b"A"
            assert len(sim.workers.sent) == 1

    simloop.run(main())


async def with_a_watch_that_is_behind(sim: Sim) -> list[str]:
    """Where a step was sent that a read has sent to B, while the watch still tells of A."""
    await steps(sim, A)
    sim.store.watch_delay = 5.0
    function = await sim.world.function("steps", shards=8, uid="u")
    await sim.world.register(function, None, name=f"w-{A}", address=A)  # an event that the watch tells late
    await asyncio.sleep(4.5)
    await sim.world.register(function, None, name=f"w-{B}", address=B)
    await sim.world.own(function, f"w-{B}", list(range(8)), epoch=2)

    async def slow(sent: Sent) -> Reply:
        await asyncio.sleep(3)
        return Reply(0, b"B")

    sim.workers.behave[B] = slow
    assert (await sim.call("steps", 1, attempt=2)).code == 0
    return [sent.address for sent in sim.workers.sent]


def test_what_the_watch_says_of_before_a_read_recalls_nothing() -> None:
    async def main() -> None:
        async with Sim().running() as sim:
            assert await with_a_watch_that_is_behind(sim) == [B]

    simloop.run(main())


def test_without_its_revision_it_would_be_recalled(monkeypatch: pytest.MonkeyPatch) -> None:
    carry = flights.Flights.carry
    monkeypatch.setattr(
        flights.Flights, "carry", lambda self, function, worker, shard, since, answer: carry(self, function, worker, shard, 0, answer)
    )

    async def main() -> None:
        async with Sim().running() as sim:
            assert len(await with_a_watch_that_is_behind(sim)) > 1

    simloop.run(main())


@pytest.mark.parametrize("resend", [True, False])
def test_a_stateless_call_follows_where_it_may_be_sent_again_and_else_waits_for_the_connections_word(resend: bool) -> None:
    """A lease that ended is no proof that the worker died: where the call must not run twice, only its connection decides."""

    async def main() -> None:
        async with Sim().running() as sim:
            function = await sim.world.function("plain", uid="p", retry_stateless=resend)
            for address in (A, B):
                sim.workers.behave[address] = good
            sim.workers.behave[A] = black_hole
            await sim.world.register(function, None, name="w-a", address=A)
            await asyncio.sleep(0.1)
            began = sim.clock.monotonic()
            call = sim.call("plain")
            await asyncio.sleep(0.1)
            await sim.world.register(function, None, name="w-b", address=B)
            await sim.world.unregister(function, "w-a")
            reply = await call
            took = sim.clock.monotonic() - began
            if resend:
                assert (reply.code, took) == (0, pytest.approx(0.3, abs=0.15))
            else:
                assert (reply.code, reply.details) == (Code.UNAVAILABLE, relay.UNKNOWN_OUTCOME)
                assert took == pytest.approx(KEEPALIVE, abs=0.1)

    simloop.run(main())


def test_a_caller_that_has_parts_is_told_at_once_that_the_rest_will_not_come() -> None:
    async def main() -> None:
        async with Sim().running() as sim:

            async def talks(sent: Sent) -> Reply:
                await say(sent, 1)
                return await black_hole(sent)

            await talking(sim, A, talks)
            caller = sim.open()
            caller.send("talk", "x")
            await caller.answers(1)
            began = sim.clock.monotonic()
            function = Function("default", "talk", "t")
            await sim.world.register(function, None, name="w-b", address=B)
            await sim.world.unregister(function, f"w-{A}")
            found = (await caller.answers(2))[1]
            assert "whether the step is committed is not known" in found.error_message
            assert sim.clock.monotonic() - began < 0.5
            await caller.cancel()

    simloop.run(main())
