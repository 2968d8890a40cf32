"""The real relay on simulated parts: memory store, simulated time, workers that are functions."""

import asyncio
import contextlib
import math
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass

import grpc
import grpc.aio
from dormouse_core import headernames, limits
from dormouse_core.clearing import CLEAR, Clearing
from dormouse_core.errors import Again, Code
from dormouse_core.keys import Keys
from dormouse_core.seams import Part, Reply
from dormouse_gateway.leader.demand import Demand
from dormouse_gateway.leader.reach import LIVE
from dormouse_gateway.paths import INFER, STREAM
from dormouse_gateway.relay.relaying import Relay, Request
from dormouse_gateway.serving.quotas import Quotas
from dormouse_gateway.serving.streaming import Streaming
from dormouse_gateway.watching.keeping import Watching
from dormouse_gateway.watching.reads import Reads
from dormouse_gateway.watching.table import Table
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
    part: Part | None = None
    """Sent as a stream: the worker's parts go here."""

    @property
    def id(self) -> str:
        return self.message.id


Behaviour = Callable[[Sent], Awaitable[Reply]]


class Door:
    """A worker's process, as far as it can be cleared for a call: as `dormouse_worker.serving.door`, without what is behind it."""

    def __init__(self) -> None:
        self.running = 0
        self._clearing: Clearing[asyncio.Future[Reply]] = Clearing()
        self._waiting: list[asyncio.Future[Reply]] = []
        self.dead = False

    async def ask(self, key: str) -> Reply:
        asked = self._future()
        self._clearing.ask(asked, key, self._now())
        asyncio.get_running_loop().call_soon(self.look)
        try:
            return await asked
        finally:
            self._clearing.leave(asked, self._now())
            self.look()

    async def run(self, sent: Sent, behave: Behaviour) -> Reply:
        cleared = sent.metadata.get(headernames.ALONE) == Again.CLEARED
        if cleared and not self._clearing.enter(sent.metadata[headernames.CALL], self._now()):
            return again(Again.UNCLEAR)
        if self._clearing.closed and not cleared:
            waits = self._future()
            self._waiting.append(waits)
            if (reply := await waits).code:
                return reply
        self.running += 1
        try:
            reply = await behave(sent)
            if reply is RESET:
                self.die()
            return reply
        finally:
            self.running -= 1
            if cleared:
                self._clearing.left(self._now())
            self.look()

    def die(self) -> None:
        self.dead = True
        for asked, _ in self._clearing.look(1e9, False) + self._clearing.look(2e9, False):
            _tell(asked, RESET)
        for waits in self._waiting:
            _tell(waits, RESET)

    def look(self) -> None:
        if self.dead:
            return
        now = self._now()
        for asked, cleared in self._clearing.look(now, not self.running):
            _tell(asked, again(Again.CLEARED if cleared else Again.UNTRIED if cleared is None else Again.UNCLEAR))
        if not self._clearing.closed:
            waiting, self._waiting = self._waiting, []
            for waits in waiting:
                _tell(waits, Reply(0))
        if (at := self._clearing.next_look()) < math.inf:
            asyncio.get_running_loop().call_at(at, self.look)

    def _future(self) -> "asyncio.Future[Reply]":
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        if self.dead:
            future.set_result(RESET)
        return future

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


def _tell(future: "asyncio.Future[Reply]", reply: Reply) -> None:
    if not future.done():
        future.set_result(reply)


class Workers:
    """A Transport. `behave[address]` is a worker; an address without one refuses connections. One that answers RESET has died, and the next
    is there at once."""

    def __init__(self) -> None:
        self.behave: dict[str, Behaviour] = {}
        self.sent: list[Sent] = []
        self.tried: list[str] = []  # addresses that were asked whether they are there
        self.silent: set[str] = set()  # these do not say
        self.clears = True
        """False: they are of a version that cannot be cleared for a call."""
        self.asked: Counter[str] = Counter()  # to be cleared, by address
        self._asks = asyncio.Event()
        self._doors: dict[str, Door] = {}
        self.running = 0
        self.most = 0
        self.cancelled = 0

    async def call(self, address: str, method: str, message: bytes, metadata: Mapping[str, str], *, timeout: float | None) -> Reply:
        if method == LIVE:
            self.tried.append(address)
            return await self._live(address, timeout)
        if method == CLEAR:
            self.asked[address] += 1
            self._asks.set()
            return await self._clear(address, metadata, timeout)
        assert method == INFER
        return await self._call(address, message, metadata, None, timeout)

    async def stream(
        self, address: str, method: str, message: bytes, metadata: Mapping[str, str], part: Part, *, timeout: float | None
    ) -> Reply:
        assert method == STREAM
        return await self._call(address, message, metadata, part, timeout)

    async def _call(self, address: str, message: bytes, metadata: Mapping[str, str], part: Part | None, timeout: float | None) -> Reply:
        sent = Sent(asyncio.get_running_loop().time(), address, inference_pb2.ModelInferRequest.FromString(message), metadata, part)
        self.sent.append(sent)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            async with asyncio.timeout(timeout):
                await asyncio.sleep(TRAVEL)
                behave = self.behave.get(address)
                return NOBODY if behave is None else await self._door(address).run(sent, behave)
        except TimeoutError:
            return Reply(4, b"", "Deadline Exceeded")
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1

    async def asking(self, count: int) -> None:
        """Returns when so many asks to be cleared have been made."""
        async with asyncio.timeout(60):
            while self.asked.total() < count:
                self._asks.clear()
                await self._asks.wait()

    def _door(self, address: str) -> Door:
        door = self._doors.get(address)
        if door is None or door.dead:
            door = self._doors[address] = Door()
        return door

    async def _clear(self, address: str, metadata: Mapping[str, str], timeout: float | None) -> Reply:
        try:
            async with asyncio.timeout(timeout):
                await asyncio.sleep(TRAVEL)
                if address not in self.behave:
                    return NOBODY
                if not self.clears:
                    return Reply(int(Code.UNIMPLEMENTED), b"", "not supported", {headernames.BY: "worker"})
                return await self._door(address).ask(metadata[headernames.CALL])
        except TimeoutError:
            return Reply(4, b"", "Deadline Exceeded")

    async def _live(self, address: str, timeout: float | None) -> Reply:
        await asyncio.sleep(TRAVEL)
        if address in self.silent:
            await asyncio.sleep(timeout or 0)
            return Reply(4, b"", "Deadline Exceeded")
        return Reply(0) if address in self.behave else NOBODY


async def good(sent: Sent) -> Reply:
    """Answers with the id that it was asked with, after 10 ms."""
    await asyncio.sleep(0.01)
    return Reply(0, sent.id.encode())


async def infers(sent: Sent) -> Reply:
    """The same as an encoded response."""
    await asyncio.sleep(0.01)
    return Reply(0, inference_pb2.ModelInferResponse(id=sent.id).SerializeToString())


class Sim:
    """One relay and its watch; `world` writes what operators, coordinators and workers would."""

    def __init__(self, max_streams: int = limits.HELD_STREAMS, **options: int) -> None:
        self.clock = SimClock()
        keys = Keys()
        self.store = MemoryStore(self.clock)
        self.world = World(self.store.client(), keys)
        self.table = Table(keys)
        self.workers = Workers()
        self.demand = Demand(self.clock)
        self.relay = Relay(self.table, Reads(keys, self.store, self.clock), self.clock, self.workers, self.demand, seed=1, **options)
        self.counted: list[int] = []
        self.quotas = Quotas(self.table.sharing, max_streams)
        self.streaming = Streaming(self.relay, self.clock, "sim", self.counted.append, self.quotas)
        self.watching = Watching(self.table, keys, self.store, self.clock, self.relay.changed)
        self._count = 0
        self.died: dict[str, str] = {}
        """Who serves at an address after one has died there."""
        self.words: list[asyncio.Task[None]] = []
        """What is written after a death."""

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["Sim"]:
        await self.world.mark()
        watching = asyncio.create_task(self.watching.run())
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

    def open(self, metadata: Mapping[str, str] | None = None, timeout: float | None = None) -> "Caller":
        """A stream through the relay, from here on."""
        return Caller(self, timeout, metadata or {})

    def reads(self) -> int:
        return self.store.calls["get"]


class Caller:
    """The client's side of one stream: also the context that the relay's servicer is given."""

    def __init__(self, sim: Sim, timeout: float | None, metadata: Mapping[str, str]) -> None:
        self._timeout = timeout
        self._metadata = metadata
        self._messages: asyncio.Queue[object] = asyncio.Queue()
        self._reading = asyncio.Event()
        self._reading.set()
        self._answered = asyncio.Event()
        self.responses: list[inference_pb2.ModelStreamInferResponse] = []
        self.read_by_relay = 0
        self.code = 0
        self.details = ""
        self.task = asyncio.create_task(self._serve(sim))

    async def _serve(self, sim: Sim) -> None:
        async with asyncio.timeout(self._timeout):
            await sim.streaming.serve(_nothing(), self)

    # what a caller does
    def send(self, model: str, ident: str, sequence: int | str | None = None, *, size: int = 0, **flags: bool) -> None:
        message = request(model, sequence, size, id=ident)
        for name, value in flags.items():
            message.parameters[name].bool_param = value
        self.put(message.SerializeToString())

    def put(self, message: bytes) -> None:
        self._messages.put_nowait(message)

    def half_close(self) -> None:
        self._messages.put_nowait(grpc.aio.EOF)

    def stop_reading(self) -> None:
        self._reading.clear()

    def read_on(self) -> None:
        self._reading.set()

    async def cancel(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    async def ended(self) -> None:
        await self.task

    async def answers(self, count: int, seconds: float = 1000.0) -> list[inference_pb2.ModelStreamInferResponse]:
        """The first `count` responses, once they are there."""
        async with asyncio.timeout(seconds):
            while len(self.responses) < count:
                self._answered.clear()
                await self._answered.wait()
        return self.responses[:count]

    @property
    def ids(self) -> list[str]:
        return [each.infer_response.id for each in self.responses]

    # what grpc.aio's context does
    def time_remaining(self) -> float | None:
        return self._timeout

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return tuple(self._metadata.items())

    async def read(self) -> object:
        message = await self._messages.get()
        self.read_by_relay += 1
        return message

    async def write(self, response: bytes) -> None:
        await self._reading.wait()
        self.responses.append(inference_pb2.ModelStreamInferResponse.FromString(response))
        self._answered.set()

    def set_code(self, code: grpc.StatusCode) -> None:
        self.code = code.value[0]

    def set_details(self, details: str) -> None:
        self.details = details


async def _nothing() -> AsyncIterator[bytes]:
    return
    yield b""
