"""Callers that wait for each answer, as a gateway sends for them: again under the same key, to whom the map names or to anybody, with
copies that arrive late."""

import asyncio
from typing import TYPE_CHECKING

from dormouse_core.callkeys import CallKey
from dormouse_core.errors import Aborted, Code, DormouseError, Internal, InvalidArgument, Unavailable
from dormouse_core.sessions.names import shard_of
from dormouse_proto import state_pb2
from dormouse_worker.sessions import Answer, Step

from dormouse_testing.sessions_sim.history import Call

if TYPE_CHECKING:
    from dormouse_testing.sessions_sim.world import World

PATIENCE = 400.0  # seconds of simulated time until a call counts as never answered


class Client:
    def __init__(self, world: "World", session: str) -> None:
        self.world = world
        self.session = session
        self.copies: list[asyncio.Task[None]] = []
        self._gave_up = False
        self._known: tuple[str, int] = ("", 0)  # a map that may be old: owner's instance, revision

    def finish(self) -> None:
        for copy in self.copies:
            if copy.done() and not copy.cancelled():
                copy.result()

    async def run(self) -> None:
        rng = self.world.rng
        shape = self.world.shape
        in_sequence = False
        for n in range(shape.calls):
            await asyncio.sleep(rng.choice((0.0, 0.01, 0.3, shape.ttl if shape.ttl < 10 else 0.3)))
            number = len(self.world.history.calls) + 1
            start = shape.starts and (not in_sequence or rng.random() < 0.05)
            end = in_sequence and rng.random() < shape.ends
            gateway = rng.randrange(len(self.world.gateways))
            timestamp = self.world.gateways[gateway].rising.next()
            issued = round(self.world.clock.now() * 1e6)
            call = Call(number, self.session, timestamp, start, end, start or not shape.starts, gateway, issued)
            self.world.history.calls[number] = call
            in_sequence = not end
            self.world.trace(f"call {call}")
            ran = await self._call(call)
            if not ran:
                in_sequence = False if shape.starts else in_sequence
            if n % 4 == 3:
                await asyncio.sleep(rng.choice((0.0, 1.0)))

    async def _call(self, call: Call) -> bool:
        """Sends until there is an answer. False: it was refused for good, or given up."""
        rng = self.world.rng
        loop = asyncio.get_running_loop()
        until = loop.time() + PATIENCE
        give_up = self.world.troubled and rng.random() < self.world.shape.gives_up
        attempt = 0
        while loop.time() < until:
            attempt += 1
            if self.world.troubled and rng.random() < self.world.shape.copies:
                self.copies.append(asyncio.create_task(self._copy(call, rng.choice((0.0, 0.05, 1.0, 4.0, 10.0)))))
            if give_up and attempt > 1:
                self.world.trace(f"call {call.number} is given up")
                self._gave_up = True
                return False
            settled = await self._attempt(call, fresh=not self._gave_up)
            if settled is not None:
                return settled
            await asyncio.sleep(rng.uniform(0.005, 0.1))
        raise AssertionError(f"call {call} has no answer after {PATIENCE} s")

    async def _copy(self, call: Call, delay: float) -> None:
        await asyncio.sleep(delay)
        try:
            await self._attempt(call, fresh=False)
        except AssertionError as violation:
            self.world.violations.append(violation)

    async def _attempt(self, call: Call, fresh: bool) -> bool | None:
        world = self.world
        instance, revision = await self._choose()
        arrived: list[int] = []

        def step(answer: object) -> Step:
            arrived.append(len(world.history.of(call.session).versions))
            return Step(
                session=call.session,
                key=CallKey(call.timestamp_us, f"g-{call.gateway}-{call.number}"),
                digest=b"d%d" % call.number,
                start=call.start,
                end=call.end,
                create=call.create,
                call=call,
                answer=answer,  # type: ignore[arg-type]
                rev=revision,
            )

        answer = await world.send(instance, step)
        world.trace(f"call {call.number} at {instance}: {answer.error!r} {answer.step}")
        return self._judge(call, answer, arrived, fresh)

    def _judge(self, call: Call, answer: Answer, arrived: list[int], fresh: bool) -> bool | None:
        world = self.world
        match answer.error:
            case None:
                assert answer.reply is not None
                world.history.acknowledged(call, answer.reply)
                return True
            case Unavailable() | Internal():
                return None
            case InvalidArgument():
                world.history.said_missing(call, arrived[0], int(world.clock.now() * 1e6))
                return False
            case DormouseError(code=Code.ALREADY_EXISTS):
                world.history.said_committed(call)
                return True
            case Aborted():
                # Clocks of gateways that nobody measured put starts into a wrong order; nothing else.
                one = world.shape.callers == 1
                # What a leader owed at its end nobody can name: calls until then are refused in the whole shard.
                settled = call.timestamp_us <= world.settled.get(shard_of(self.session, world.shape.shards), 0)
                if fresh and one and not settled and not world.shape.removal_wait and (world.shape.measured or not call.start):
                    world.history.refused_as_old(call)
                return False
        raise AssertionError(f"unexpected answer to {call}: {answer.error!r}")

    async def _choose(self) -> tuple[str, int]:
        """Whom to send to: by the map as it is, by a map that is old, or anybody."""
        from dormouse_testing.sessions_sim.world import FUNCTION, KEYS

        world = self.world
        dice = world.rng.random()
        instances = list(world.instances)
        if dice < 0.6 or not self._known[0]:
            shard = shard_of(self.session, world.shape.shards)
            item = world.etcd.item(KEYS.shard(FUNCTION, shard))
            if item is not None:
                owner = str(state_pb2.ShardEntry.FromString(item.value).owner)
                self._known = (owner.partition("-")[0], item.mod_revision)
        elif dice > 0.9:
            return world.rng.choice(instances), world.rng.choice((0, self._known[1]))
        return (self._known[0] or world.rng.choice(instances), self._known[1])
