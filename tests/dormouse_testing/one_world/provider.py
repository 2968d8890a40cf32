"""The provider of workers, a double: starts and ends simulated workers. Its instances start their process anew when it has died."""

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dormouse_core.errors import Unavailable
from dormouse_core.seams import Instance, Wanted

from dormouse_testing.lives import NETWORK
from dormouse_testing.one_world.workers import Worker

if TYPE_CHECKING:
    from dormouse_testing.one_world.world import OneWorld

GRACE = 20.0  # seconds until one that is to stop is killed


class Provider:
    def __init__(self, world: "OneWorld") -> None:
        self._world = world
        self._instances: dict[str, Instance] = {}
        self._count = 0
        self.silent = False
        self.tasks: set[asyncio.Task[None]] = set()

    async def observe(self) -> Sequence[Instance] | None:
        await asyncio.sleep(0.001)
        return None if self.silent else list(self._instances.values())

    async def apply(self, wanted: Wanted) -> None:
        await asyncio.sleep(0.001)
        if self.silent:
            raise Unavailable("nobody answers")
        entry = wanted.function
        running = [i.name for i in self._instances.values() if (i.uid, i.revision) == (entry.uid, wanted.revision) and not i.stopping]
        first = [name for name in wanted.victims if name in running] + [name for name in running if name not in wanted.victims]
        for name in first[: max(len(running) - wanted.count, 0)]:
            self._instances[name] = replace(self._instances[name], stopping=True)
            self._later(self._stop(name))
        for _ in range(wanted.count - len(running)):
            self._count += 1
            name = f"i{self._count}"
            self._instances[name] = Instance(name, f"{entry.namespace}/{entry.name}", entry.uid, wanted.revision, self._world.clock.now())
            self._later(self._live(name, wanted.revision))

    @property
    def stopping(self) -> bool:
        return any(instance.stopping for instance in self._instances.values())

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work, context=NETWORK)
        self.tasks.add(task)
        task.add_done_callback(self._world.ended)

    async def _live(self, name: str, revision: str) -> None:
        """A supervisor: while its instance is wanted there is a process of it."""
        world = self._world
        number = int(name[1:])
        await asyncio.sleep(world.rng.uniform(0.05, 0.6))
        while name in self._instances and not self._instances[name].stopping:
            worker = Worker(world, name, f"10.0.0.{number}:9000", revision)
            world.instances[name] = worker  # type: ignore[assignment]
            world.trace(f"{worker.name} starts, its clock {worker.timed.clock.skew:+.3f} s")
            worker.life.begin(worker.run()).add_done_callback(world.ended, context=NETWORK)
            await worker.life.ended
            await asyncio.sleep(world.rng.uniform(0.0, 0.5))

    async def _stop(self, name: str) -> None:
        worker: Worker | None = self._world.instances.get(name)  # type: ignore[assignment]
        if worker is not None and worker.alive:
            worker.life.soon(worker.drain)
            await asyncio.wait({worker.drained, worker.life.ended}, timeout=GRACE, return_when=asyncio.FIRST_COMPLETED)
            worker.die()
        self._world.instances.pop(name, None)
        del self._instances[name]
