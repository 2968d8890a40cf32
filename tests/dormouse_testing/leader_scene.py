"""A leader on simulated time with everything around it, for tests that tell its story."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

from dormouse_core.seams import Delete, ModIs, Put, Txn
from dormouse_operator.leading import Leader

from dormouse_testing import simloop
from dormouse_testing.clock import SimClock
from dormouse_testing.leader_world import KEYS, SimAgent, SimWorker, World, manifest
from dormouse_testing.memory_store import MemoryStore


class Scene:
    """One world, one agent, one leader at a time."""

    def __init__(self, world: World, agent: SimAgent) -> None:
        self.world = world
        self.agent = agent
        self.leader: Leader
        self.store: MemoryStore
        self._task: asyncio.Task[None] | None = None

    async def lead(self) -> Leader:
        """A new leader takes over from whoever led; the old one is not told."""
        self.store = self.world.store.client()
        _, found = await self.store.get([KEYS.leader])
        mod = found[KEYS.leader].mod_revision if KEYS.leader in found else 0
        if mod:
            await self.store.txn(Txn((), (Delete(KEYS.leader),)))
        result = await self.store.txn(Txn((ModIs(KEYS.leader, 0),), (Put(KEYS.leader, b"leader"),)))
        assert result.succeeded
        self.leader = Leader(self.store, SimClock(), KEYS, self.world, self.world, leader_new=result.revision, name="leader")
        self.agent.leader = self.leader
        self._task = asyncio.create_task(self.leader.run())
        await self.leader.listed(self._task)
        return self.leader

    async def stop_leading(self) -> None:
        assert self._task is not None
        self.agent.leader = None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def apply(self, text: str) -> str:
        _, outcome, revision = await self.leader.entries.apply(text)
        await self.leader.registry.wait_for(revision)
        return outcome

    async def scale(self, replicas: int | None) -> None:
        _, revision = await self.leader.entries.scale("ns", "fn", replicas)
        await self.leader.registry.wait_for(revision)

    @property
    def uid(self) -> str:
        entry = self.world.entry()
        assert entry is not None
        return entry.uid

    def phase(self) -> str:
        return self.leader.status("ns", "fn").phase

    def owned_by(self, *workers: SimWorker) -> bool:
        owners = self.world.owners()
        return len(owners) == 64 and set(owners.values()) == {w.name for w in workers}

    def owns_nothing(self, worker: SimWorker) -> bool:
        return worker.name not in self.world.owners().values()

    async def awake(self, replicas: int) -> list[SimWorker]:
        """So many workers, each with its share."""
        await self.apply(manifest())
        await self.scale(replicas)
        await self.world.until(lambda: len(self.world.living()) == replicas and self.owned_by(*self.world.living()))
        return self.world.living()


@contextlib.asynccontextmanager
async def scene() -> AsyncIterator[Scene]:
    world = World(MemoryStore(SimClock()))
    agent = SimAgent(world)
    reporting = asyncio.create_task(agent.run())
    made = Scene(world, agent)
    await made.lead()
    try:
        yield made
    finally:
        await made.stop_leading()
        reporting.cancel()
        await world.close()
        await world.store.close()


def simulated(story: Callable[[Scene], Awaitable[None]]) -> None:
    async def main() -> None:
        async with scene() as made:
            await story(made)

    simloop.run(main())
