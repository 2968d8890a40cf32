"""The real relay on simulated parts: memory store, simulated time, workers that are functions."""

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass

from dormouse_core.errors import Again
from dormouse_core.keys import Keys
from dormouse_core.seams import Reply
from dormouse_gateway.demand import Demand
from dormouse_gateway.reads import Reads
from dormouse_gateway.relay import Relay, Request
from dormouse_gateway.sending import INFER
from dormouse_gateway.table import Table
from dormouse_gateway.watching import Watching
from dormouse_proto import inference_pb2

from dormouse_testing.clock import SimClock
from dormouse_testing.gateway import World, request
from dormouse_testing.memory_store import MemoryStore

TRAVEL = 0.001  # seconds to a worker, and back
RESET = Reply(14, b"", "connection reset", {"dormouse-broken": "reset"})
NOBODY = Reply(14, b"", "connection refused", {"dormouse-broken": "connect"})


def again(why: Again) -> Reply:
    return Reply(14, b"", str(why), {"dormouse-again": str(why)})


@dataclass(frozen=True)
class Sent:
    """A call as it reached a worker."""

    at: float
    address: str
    message: inference_pb2.ModelInferRequest
    metadata: Mapping[str, str]

    @property
    def id(self) -> str:
        return self.message.id


Behaviour = Callable[[Sent], Awaitable[Reply]]


class Workers:
    """A Transport. `behave[address]` is a worker; an address without one refuses connections."""

    def __init__(self) -> None:
        self.behave: dict[str, Behaviour] = {}
        self.sent: list[Sent] = []
        self.running = 0
        self.most = 0
        self.cancelled = 0

    async def call(self, address: str, method: str, message: bytes, metadata: Mapping[str, str], *, timeout: float | None) -> Reply:
        assert method == INFER
        sent = Sent(asyncio.get_running_loop().time(), address, inference_pb2.ModelInferRequest.FromString(message), metadata)
        self.sent.append(sent)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            async with asyncio.timeout(timeout):
                await asyncio.sleep(TRAVEL)
                behave = self.behave.get(address)
                return NOBODY if behave is None else await behave(sent)
        except TimeoutError:
            return Reply(4, b"", "Deadline Exceeded")
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1


async def good(sent: Sent) -> Reply:
    """Answers with the id that it was asked with, after 10 ms."""
    await asyncio.sleep(0.01)
    return Reply(0, sent.id.encode())


class Sim:
    """One relay and its watch; `world` writes what operators, coordinators and workers would."""

    def __init__(self, **options: int) -> None:
        self.clock = SimClock()
        keys = Keys()
        self.store = MemoryStore(self.clock)
        self.world = World(self.store.client(), keys)
        self.table = Table(keys)
        self.workers = Workers()
        self.demand = Demand(self.clock)
        self.relay = Relay(self.table, Reads(keys, self.store), self.clock, self.workers, self.demand, seed=1, **options)
        self._watching = Watching(self.table, keys, self.store, self.clock, self.relay.changed)
        self._count = 0

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["Sim"]:
        watching = asyncio.create_task(self._watching.run())
        await asyncio.sleep(1)
        try:
            yield self
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            await self.store.close()

    def call(
        self,
        model: str,
        sequence: int | str | None = None,
        *,
        ident: str = "",
        timeout: float = math.inf,
        attempt: int = 1,
        **metadata: str,
    ) -> "asyncio.Task[Reply]":
        """`metadata`: keys with '_' for '-'."""
        self._count += 1
        now = self.clock.monotonic()
        given = {
            "dormouse-call": f"{round(self.clock.now() * 1e6)}-g-sim-{self._count}",
            "dormouse-fn": "+",
            **{key.replace("_", "-"): value for key, value in metadata.items()},
        }
        message = request(model, sequence, id=ident or str(self._count)).SerializeToString()
        return asyncio.create_task(self.relay.call(Request(INFER, message, given, now + timeout, attempt)))

    def reads(self) -> int:
        return self.store.calls["get"]
