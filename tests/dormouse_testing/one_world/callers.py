"""Callers of one session: unary calls and streams through the real relays, from one gateway or another."""

import asyncio
import math
from dataclasses import replace
from typing import TYPE_CHECKING

from dormouse_core import headernames
from dormouse_core.seams import Reply
from dormouse_core.sessions.names import shard_of
from dormouse_gateway.envoy.bootstrap import ENTRY
from dormouse_gateway.paths import INFER
from dormouse_gateway.relay.relaying import Request
from dormouse_gateway.relay.sending import outgoing
from dormouse_proto import inference_pb2

from dormouse_testing import relaying
from dormouse_testing.gateway import request
from dormouse_testing.one_world.gateways import Gateway
from dormouse_testing.sessions_sim.clients import PATIENCE
from dormouse_testing.sessions_sim.history import ALARMS, Call, Violation
from dormouse_testing.sessions_sim.world import FUNCTION

if TYPE_CHECKING:
    from dormouse_testing.one_world.world import OneWorld

GONE = Reply(14, b"", "the gateway is gone")
EXHAUSTED = 8
UNKNOWN = (14, 4, 13, EXHAUSTED)
"""Codes of answers that say nothing of whether the call has an effect: UNAVAILABLE, DEADLINE_EXCEEDED, INTERNAL, RESOURCE_EXHAUSTED."""


SLACK_US = 100_000
OTHER = 0.4
"""Of the calls under a key that was used before: they ask something else."""


class Caller:
    """One caller of one session: it waits for each answer, or sends some messages at once on a stream."""

    def __init__(self, world: "OneWorld", session: int) -> None:
        self._world = world
        self._id = session
        self._session = world.session_key(session)
        self._going = False  # in a sequence, as far as it knows
        self._sure = True  # of every call before it is known what became of it
        self._used: list[tuple[str, tuple[bool, bool]]] = []

    async def run(self) -> None:
        rng, shape = self._world.rng, self._world.shape
        left = shape.calls
        await asyncio.sleep(shape.begins)
        while left > 0:
            await asyncio.sleep(rng.choice((0.0, 0.01, 0.3, shape.ttl if shape.ttl < 10 else 0.3)))
            gateway = await self._gateway()
            if rng.random() < shape.streams:
                count = min(left, rng.choice((1, 2, 4)))
                await self._stream(gateway, count)
                left -= count
            else:
                await self._unary(gateway)
                left -= 1
            if left % 4 == 3:
                await asyncio.sleep(rng.choice((0.0, 1.0)))

    async def _gateway(self) -> Gateway:
        """Some gateway that is there, as far as a caller can see."""
        while not (found := [g for g in self._world.places.values() if g.ready]):  # noqa: ASYNC110 - processes come and go
            await asyncio.sleep(0.05)
        gateway = self._world.rng.choice(found)
        if not gateway.stamps.good or gateway.stamps.ahead:
            self._world.guessed[self._session] = self._world.clock.now()
        return gateway

    # ------------------------------------------------------------------------------------------------------------------- calls

    def _next(self, same: str = "", flags: tuple[bool, bool] | None = None) -> Call:
        world, rng, shape = self._world, self._world.rng, self._world.shape
        number = sum(made < ALARMS for made in world.history.calls) + 1
        start = shape.starts and (not self._going or rng.random() < 0.05)
        end = self._going and rng.random() < shape.ends
        start, end = flags or (start, end)
        issued = round(world.clock.now() * 1e6)
        call = Call(number, self._session, issued, start, end, start or not shape.starts, 0, issued, same)
        world.history.calls[number] = call
        self._going = shape.starts and not end and (start or self._going)
        world.trace(f"call {call}")
        return call

    def _message(self, call: Call) -> inference_pb2.ModelInferRequest:
        named = self._id if self._world.shape.starts else None
        made = request(f"{FUNCTION.namespace}/{FUNCTION.name}", named, id=str(call.number))
        for name, value in (("sequence_start", call.start), ("sequence_end", call.end)):
            if value:
                made.parameters[name].bool_param = True
        return made

    def _metadata(self) -> dict[str, str]:
        return {} if self._world.shape.starts else {headernames.SESSION: str(self._id)}

    async def _unary(self, gateway: Gateway) -> None:
        world, rng = self._world, self._world.rng
        own = rng.random() < world.shape.own_keys
        call, key = self._keyed() if own else (self._next(), "")
        until = asyncio.get_running_loop().time() + PATIENCE
        gives_up = world.troubled and rng.random() < world.shape.gives_up
        while asyncio.get_running_loop().time() < until:
            reply = await self._sent(gateway, call, key)
            self._say(call, reply)
            if reply.code not in UNKNOWN:
                self._judge(call, reply)
                return
            if not own or gives_up or reply.code == EXHAUSTED:
                self._unknown()
                return
            await asyncio.sleep(rng.uniform(0.005, 0.1))
            gateway = await self._gateway()
        raise AssertionError(f"call {call} has no answer after {PATIENCE} s")

    def _keyed(self) -> tuple[Call, str]:
        """A call under a key of this caller's own, or under one that it used before for the same request."""
        world, rng = self._world, self._world.rng
        if self._used and rng.random() < world.shape.reuses:
            key, flags = rng.choice(self._used)
            if rng.random() < OTHER:
                return self._next(), key
            return self._next(key, flags), key
        call = self._next()
        # A key without a timestamp is known only as long as it is kept: not where others' steps, or a removal, may come between two copies.
        if world.opaque and rng.random() < 0.5:
            if world.shape.reuses:
                call = world.history.calls[call.number] = replace(call, same=f"k{call.number}")
                self._used.append((call.same, (call.start, call.end)))
            return call, f"k{call.number}"
        return call, f"{call.issued_us:016d}-k{call.number}"

    async def _sent(self, gateway: Gateway, call: Call, key: str) -> Reply:
        """Once, by one gateway."""
        world = self._world
        metadata = self._metadata() | {headernames.CALL: gateway.call_key(), headernames.FN: ENTRY}
        if key:
            metadata[headernames.IDEMPOTENCY_KEY] = key
        message = self._message(call).SerializeToString()
        attempt = 1
        if world.rng.random() < world.shape.straight and (function := gateway.table.function(FUNCTION.label)) is not None:
            owner = function.owner(shard_of(call.session, world.shape.shards))
            if owner is not None:
                metadata[headernames.FN] = FUNCTION.label
                sent = gateway.way.call(owner.address, INFER, message, outgoing(metadata, function), timeout=None)
                reply = await gateway.life.done(sent)
                if reply is None:
                    return GONE
                if headernames.BY in reply.metadata and not reply.again:
                    return reply
                attempt = 2
        made = Request(INFER, message, metadata, math.inf, attempt)
        answer = await gateway.life.done(gateway.relay.call(made))
        return GONE if answer is None else answer

    async def _stream(self, gateway: Gateway, count: int) -> None:
        world = self._world
        opened = await gateway.life.done(self._opened(gateway))
        if opened is None:
            return
        calls = [self._next() for _ in range(count)]
        for call in calls:
            opened.put(self._message(call).SerializeToString())
        opened.half_close()
        await asyncio.wait({opened.task, gateway.life.ended}, return_when=asyncio.FIRST_COMPLETED)
        for call, response in zip(calls, opened.responses, strict=False):
            reply = _reply(response)
            self._say(call, reply)
            if "not run: an earlier step" in reply.details:
                world.history.said_never(call, reply.details)
                self._going = False
            elif reply.code in UNKNOWN:
                self._unknown()
            else:
                self._judge(call, reply)
        if len(opened.responses) < count:
            self._unknown()
        if opened.code:
            world.trace(f"a stream ends with {opened.code} {opened.details}")

    async def _opened(self, gateway: Gateway) -> relaying.Caller:
        return relaying.Caller(gateway, None, self._metadata())  # type: ignore[arg-type]  # what it needs of one

    # ----------------------------------------------------------------------------------------------------------------- answers

    def _say(self, call: Call, reply: Reply) -> None:
        self._world.trace(f"call {call.number} is answered {reply.code} {reply.details}")

    def _unknown(self) -> None:
        self._sure = False
        self._going = False

    def _judge(self, call: Call, reply: Reply) -> None:
        world, history = self._world, self._world.history
        match reply.code:
            case 0:
                history.acknowledged(call, reply.message)
            case 6:
                history.said_committed(call)
            case 3 if "START flag" in reply.details:
                self._going = False
                self._never(call, reply.details)
            case 3 if "with different content" in reply.details and world.shape.reuses:
                self._going = False
                self._never(call, reply.details)
            case 10:
                self._going = False
                guessed = call.issued_us / 1e6 - world.guessed.get(self._session, -math.inf) < 2 * world.shape.skew + 1.0
                alone = world.shape.callers == 1 and not world.shape.removal_wait
                # What a leader owed at its end nobody can name: calls until then are refused in the whole shard.
                settled = world.settled.get(shard_of(call.session, world.shape.shards), 0) + SLACK_US
                if self._sure and alone and not guessed and not world.anew and call.issued_us > settled and not history.before(call):
                    history.refused_as_old(call)
            case _:
                raise Violation("strange", f"call {call} is answered {reply.code} {reply.details}")

    def _never(self, call: Call, text: str) -> None:
        """Nothing of the call is under way, as far as workers know, and its caller was told that it has no effect."""
        if not self._world.copies_of.get(call.number) and not self._world.history.before(call):
            self._world.history.said_never(call, text)


def _reply(response: inference_pb2.ModelStreamInferResponse) -> Reply:
    if response.error_message:
        code = response.infer_response.parameters["dormouse_code"].string_param
        return Reply(_CODES[code], b"", response.error_message)
    return Reply(0, response.infer_response.SerializeToString())


_CODES = {
    "UNAVAILABLE": 14, "DEADLINE_EXCEEDED": 4, "INTERNAL": 13, "RESOURCE_EXHAUSTED": 8, "INVALID_ARGUMENT": 3, "ABORTED": 10,
    "ALREADY_EXISTS": 6,
}  # fmt: skip
