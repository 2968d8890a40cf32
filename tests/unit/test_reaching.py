"""Which workers are out of reach: what one gateway says, what many say, and who is asked."""

import asyncio

from dormouse_core.errors import Code
from dormouse_core.reaching import FRESH_SECONDS, Reaches
from dormouse_core.seams import Reply
from dormouse_gateway.leader.reach import TRY_SECONDS
from dormouse_proto import control_pb2
from dormouse_testing import simloop
from dormouse_testing.relaying import RESET, Sent, Sim, good


def fails(seconds: float, worker: str = "w") -> list[control_pb2.WorkerReach]:
    return [control_pb2.WorkerReach(worker=worker, seconds=seconds)]


def reaches(worker: str = "w") -> list[control_pb2.WorkerReach]:
    return [control_pb2.WorkerReach(worker=worker, reached=True)]


def test_the_only_gateway_is_believed() -> None:
    heard = Reaches()
    heard.take("a", fails(4), 100.0)
    assert heard.seconds("w", {"a"}, 102.0) == 6
    assert heard.seconds("w", set(), 102.0) == 0, "it has no lease"
    heard.take("a", reaches(), 103.0)
    assert heard.seconds("w", {"a"}, 103.0) == 0


def test_more_than_half_must_fail_and_the_last_of_them_counts() -> None:
    heard = Reaches()
    gateways = {"a", "b", "c"}
    heard.take("a", fails(50), 100.0)
    assert heard.seconds("w", gateways, 100.0) == 0, "one among several takes nobody out"
    heard.take("b", reaches(), 100.0)
    assert heard.seconds("w", gateways, 100.0) == 0
    heard.take("c", fails(7), 100.0)
    assert heard.seconds("w", gateways, 100.0) == 7
    assert heard.seconds("w", {*gateways, "d"}, 100.0) == 0, "two of four"
    heard.take("b", fails(1), 101.0)
    assert heard.seconds("w", {*gateways, "d"}, 101.0) == 1


def test_what_was_said_long_ago_says_nothing() -> None:
    heard = Reaches()
    heard.take("a", fails(9), 100.0)
    assert heard.to_try(100.0) == ["w"]
    late = 100.0 + FRESH_SECONDS + 0.1
    assert heard.seconds("w", {"a"}, late) == 0
    assert heard.to_try(late) == []


def test_all_are_asked_while_one_fails() -> None:
    heard = Reaches()
    heard.take("a", fails(1), 100.0)
    heard.take("b", reaches(), 101.0)
    assert heard.to_try(101.0) == ["w"]
    heard.take("a", reaches(), 102.0)
    assert heard.to_try(102.0) == []


# ------------------------------------------------------------------------------------------------------------------ the gateway

A = "10.0.0.1:9000"


async def steps(sim: Sim) -> None:
    function = await sim.world.function("steps", shards=8, uid="u")
    await sim.world.register(function, None, name="w", address=A)
    await sim.world.own(function, "w", list(range(8)))
    await asyncio.sleep(0.1)


def test_a_gateway_tells_of_a_live_owner_that_it_cannot_connect_to_until_it_can() -> None:
    async def main() -> None:
        async with Sim().running() as sim:
            await steps(sim)
            call = sim.call("steps", 1)
            await asyncio.sleep(8)
            (found,) = sim.relay.reach.report()
            assert (found.worker, found.reached, 7 < found.seconds <= 8) == ("w", False, True)
            sim.workers.behave[A] = good
            assert (await call).code == 0
            (found,) = sim.relay.reach.report()
            assert found.reached
            await asyncio.sleep(FRESH_SECONDS + 1)
            assert sim.relay.reach.report() == []

    simloop.run(main())


def test_a_connection_that_breaks_while_a_call_runs_is_no_sign_of_it() -> None:
    """A call that kills its worker does so at a worker that was reached."""

    async def main() -> None:
        async with Sim().running() as sim:
            await steps(sim)

            async def dies(sent: Sent) -> Reply:
                return RESET

            sim.workers.behave[A] = dies
            await sim.call("steps", 1)
            assert sim.relay.reach.report() == []

    simloop.run(main())


def test_calls_that_cannot_wait_for_a_connection_have_it_tried() -> None:
    """Their deadlines pass first, which alone says nothing of the worker: a slow one is reached."""

    async def slow(sent: Sent) -> Reply:
        await asyncio.sleep(100)
        return RESET

    async def main() -> None:
        for reached in (False, True):
            async with Sim().running() as sim:
                await steps(sim)
                sim.workers.behave[A] = slow
                sim.workers.silent = set() if reached else {A}
                for _ in range(16):
                    assert (await sim.call("steps", 1, timeout=0.5)).code == Code.DEADLINE_EXCEEDED
                (found,) = sim.relay.reach.report()
                assert found.reached == reached
                assert reached or found.seconds > 4
                assert len(sim.workers.tried) <= 8, "not asked at every call"

    simloop.run(main())


def test_a_gateway_without_calls_tries_whom_the_leader_names() -> None:
    async def main() -> None:
        async with Sim().running() as sim:
            tries = [control_pb2.AgentOrder.Try(worker="w", address=A), control_pb2.AgentOrder.Try(worker="v", address="10.0.0.9:9000")]
            sim.workers.behave[A] = good
            for _ in range(4):
                sim.relay.reach.ask(tries)
                await asyncio.sleep(1)
            v, w = sim.relay.reach.report()
            assert (w.worker, w.reached) == ("w", True)
            assert (v.worker, v.reached, 2.5 < v.seconds < 4) == ("v", False, True)

            sim.workers.silent.add(A)
            tried = len(sim.workers.tried)
            for _ in range(4):
                sim.relay.reach.ask(tries[:1])
                await asyncio.sleep(TRY_SECONDS / 4)
            assert len(sim.workers.tried) - tried == 1, "one try at a time"
            await asyncio.sleep(0.1)
            assert not sim.relay.reach.report()[1].reached

    simloop.run(main())
