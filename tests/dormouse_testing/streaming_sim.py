"""Functions and runs for the tests of streams in simulated time."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from dormouse_core import streamed
from dormouse_core.seams import Reply
from dormouse_proto import inference_pb2, state_pb2

from dormouse_testing import simloop
from dormouse_testing.relaying import Sent, Sim, infers

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
            assert len(sim.quotas) == 0

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
