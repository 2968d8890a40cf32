"""What goes wrong in one world, and what people do meanwhile."""

import asyncio
from typing import TYPE_CHECKING

from dormouse_core.errors import DormouseError
from dormouse_core.seams import StoreError
from dormouse_proto import control_pb2

from dormouse_testing.sessions_sim.world import FUNCTION

if TYPE_CHECKING:
    from dormouse_testing.one_world.operators import Operator
    from dormouse_testing.one_world.world import OneWorld

BACKUP = 4.0  # seconds that a copy of the store is old at most when it is put back


class Weather:
    def __init__(self, world: "OneWorld") -> None:
        self._world = world

    async def run(self) -> None:
        """While the world is troubled: one event after another."""
        world, shape = self._world, self._world.shape
        rates = {
            self._still: shape.stills,
            self._die: shape.dies,
            self._compact: shape.compactions,
            self._restore: shape.restores,
            self._rescale: shape.rescales,
            self._delete: shape.deletes,
            self._cut: shape.crashes,
        }
        work: set[asyncio.Task[None]] = set()
        total = sum(rates.values())
        while world.troubled and total:
            await asyncio.sleep(world.rng.expovariate(total))
            if world.troubled:
                (event,) = world.rng.choices(list(rates), list(rates.values()))
                task = asyncio.create_task(event())  # type: ignore[arg-type]
                task.add_done_callback(world.ended)
                work.add(task)
        if work:
            await asyncio.wait(work)
        while shape.rescales and not await self._rescale(shape.replicas[0]):  # noqa: ASYNC110 - until somebody leads
            await asyncio.sleep(0.5)

    async def _still(self) -> None:
        world = self._world
        if lives := [life for life in world.lives() if not life.still]:
            life = world.rng.choice(lives)
            seconds = world.rng.choice((0.3, 1.5, 3.5, 6.0))
            world.trace(f"{life.name} stands still for {seconds} s")
            life.stop()
            await asyncio.sleep(seconds)
            life.go_on()
            world.trace(f"{life.name} goes on")

    async def _die(self) -> None:
        world = self._world
        if lives := world.lives():
            life = world.rng.choice(lives)
            world.trace(f"{life.name} is killed")
            worker = next((w for w in world.workers() if w.life is life), None)
            if worker is not None:
                worker.die()
            else:
                life.die()

    async def _cut(self) -> None:
        world = self._world
        store = world.rng.choice(world.stores)
        if not store.down:
            world.trace("somebody is cut off from the store")
            store.down = True
            await asyncio.sleep(world.rng.uniform(0.5, 6.0))
            store.down = False

    async def _compact(self) -> None:
        etcd = self._world.etcd
        revision = etcd.revision - self._world.rng.choice((0, 0, 5, 50))
        if revision > etcd.compacted:
            self._world.trace(f"compacted up to {revision}")
            etcd.compact(revision)

    async def _restore(self) -> None:
        world = self._world
        files, history, starts = world.etcd.copy(), world.history.copy(), world.etcd.starts
        await asyncio.sleep(world.rng.uniform(0.1, BACKUP))
        if world.troubled and world.etcd.starts == starts:
            world.trace(f"the store is put back from {world.etcd.revision} to {files['revision']}")
            world.etcd.restore(files)
            world.history.restore(history)
            world.restored()

    async def _rescale(self, replicas: int | None = -1) -> bool:
        """Whether it is done. -1: some number."""
        if (operator := self._world.leading()) is None:
            return False
        chosen = self._world.rng.choice(self._world.shape.replicas) if replicas == -1 else replicas
        return bool(await operator.life.done(self._scaled(operator, chosen)))

    async def _scaled(self, operator: "Operator", replicas: int | None) -> bool:
        if (leader := operator.leader) is None:
            return False
        self._world.trace(f"replicas: {replicas}")
        try:
            await leader.entries.scale(FUNCTION.namespace, FUNCTION.name, replicas)
        except DormouseError as error:
            self._world.trace(f"not scaled: {error.message}")
            return False
        return True

    async def _delete(self) -> None:
        if (operator := self._world.leading()) is not None:
            session = self._world.session_key(self._world.rng.randrange(self._world.shape.sessions) + 1)
            await operator.life.done(self._deleted(operator, session))

    async def _deleted(self, operator: "Operator", session: str) -> None:
        if (leader := operator.leader) is None:
            return
        try:
            seen = leader.find(FUNCTION.namespace, FUNCTION.name)
            await leader.deleter.delete(seen, control_pb2.DeleteSessionsRequest(session=session))
            self._world.trace(f"deleted {session}")
        except (DormouseError, StoreError) as error:
            self._world.trace(f"not deleted {session}: {error}")
