"""A caller that means harm, and a neighbour that means none.

The first is raw HTTP/2 as fast as a socket takes it: calls whose messages never end, headers that repeat one, thousands of resets.
It sends in threads, so that the neighbour's calls go on in the test's event loop.
"""

import asyncio
import contextlib
import functools
import json
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from dormouse_core.keys import Function, Keys
from dormouse_gateway.envoy.bootstrap import bootstrap
from dormouse_gateway.envoy.process import filled, sized
from dormouse_gateway.settings import GatewaySettings, parse
from dormouse_kit.clock import SystemClock
from dormouse_kit.etcd import EtcdStore
from dormouse_kit.shedding import Pressure, Shedding
from dormouse_proto import inference_pb2

from dormouse_testing.gateway import FakeWorker, Gateway, Seen, World, infer, request
from dormouse_testing.http2 import PREFACE, frame, length, literal

INFER = b"/inference.GRPCInferenceService/ModelInfer"
STREAM = b"/inference.GRPCInferenceService/ModelStreamInfer"
MIB = 1 << 20
SHARDS = 8
FRAME = 16_000  # bytes; the largest that every receiver takes is 16,384
_WINDOW = struct.pack(">I", 1 << 30)
_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GOAWAY, _GROW, _CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
_END_STREAM, _END_HEADERS, _ACK = 1, 4, 1
_CANCEL = 8


def headers(path: bytes = INFER, more: bytes = b"") -> bytes:
    """A call's header block; `more`: encoded fields."""
    pairs = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", path), (b":authority", b"x"), (b"content-type", b"application/grpc")]
    return b"".join(literal(*pair) for pair in [*pairs, (b"te", b"trailers")]) + more


def indexed(name: bytes, value: bytes) -> bytes:
    """A field that enters the table, where it is then entry 62 (RFC 7541, 6.2.1); `b"\\xbe"` is that entry again."""
    return b"\x40" + length(name) + length(value)


def message(call: inference_pb2.ModelInferRequest) -> bytes:
    """As it goes on the wire, with gRPC's prefix."""
    data = call.SerializeToString()
    return b"\0" + struct.pack(">I", len(data)) + data


def unfinished(size: int, announced: int = 16 * MIB) -> bytes:
    """The first `size` bytes of a message of `announced` bytes."""
    return b"\0" + struct.pack(">I", announced) + bytes(size - 5)


class Attacker:
    """One connection. What comes back is counted: `resets` by code, `ended` streams."""

    def __init__(self, address: str, *, acknowledge: bool = True, reads: bool = True) -> None:
        """`acknowledge`: it takes the gateway's settings, of which one is the size of the headers' table. `reads`: it opens windows for its
        answers; else no stream of its has one."""
        host, _, port = address.rpartition(":")
        self._acknowledge = acknowledge
        self._stream = -1
        self.resets: Counter[int] = Counter()
        self.ended = 0
        self.closed = ""
        self._initial = 65_535  # a stream's window
        self._windows: Counter[int] = Counter({0: 65_535})  # what was granted, beyond the initial for streams; 0: the connection's
        self._grown = threading.Condition()
        self._over: set[int] = set()
        self._socket = socket.create_connection((host, int(port)), 60)
        opening = (b"\0\4" + _WINDOW, frame(_GROW, 0, 0, _WINDOW)) if reads else (b"\0\4" + bytes(4), b"")
        self._socket.sendall(PREFACE + frame(_SETTINGS, 0, 0, opening[0]) + opening[1])
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def call(self, block: bytes, body: bytes = b"", *, end: bool = False) -> bytes:
        """The frames of a call. `end`: its message is whole."""
        self._stream += 2
        pieces = [block[at : at + FRAME] for at in range(0, len(block), FRAME)]
        out = [frame(_HEADERS, _END_HEADERS if len(pieces) == 1 else 0, self._stream, pieces[0])]
        out += [frame(_CONTINUATION, _END_HEADERS if n == len(pieces) - 1 else 0, self._stream, each) for n, each in enumerate(pieces) if n]
        out += [frame(_DATA, 0, self._stream, body[at : at + FRAME]) for at in range(0, len(body), FRAME)]
        return b"".join([*out, frame(_DATA, _END_STREAM, self._stream, b"")] if end else out)

    def pour(self, block: bytes, bodies: Sequence[Sequence[bytes]], seconds: float, idle: float = 1.0) -> int:
        """Calls with these pieces of bodies, side by side, within the windows that the gateway grants: the bytes that were sent. Until all
        are, or nothing more was granted for `idle` seconds, or time is up. Of one connection: no other calls have bodies."""
        calls = []
        for pieces in bodies:
            self.send(self.call(block))
            calls.append([self._stream, 0, [piece[at : at + FRAME] for piece in pieces for at in range(0, len(piece), FRAME)]])
        end, sent = time.monotonic() + seconds, 0
        while calls and time.monotonic() < end and not self.closed:
            before = sent
            for one in list(calls):
                stream, used, pieces = one
                with self._grown:
                    room = min(self._initial + self._windows[stream] - used, self._windows[0] - sent)
                if stream in self._over:
                    calls.remove(one)
                elif room >= len(pieces[0]):
                    self.send(frame(_DATA, 0, stream, pieces[0]))
                    sent, one[1] = sent + len(pieces[0]), used + len(pieces[0])
                    del pieces[0]
                    if not pieces:
                        calls.remove(one)
            if sent == before:
                with self._grown:
                    if not self._grown.wait(idle):
                        break
        return sent

    def cancels(self) -> bytes:
        """A reset of each call so far."""
        return b"".join(frame(_RESET, 0, stream, struct.pack(">I", _CANCEL)) for stream in range(1, self._stream + 1, 2))

    def send(self, data: bytes) -> bool:
        """False: the gateway has ended the connection."""
        try:
            self._socket.sendall(data)
        except OSError as gone:
            self.closed = self.closed or str(gone)
        return not self.closed

    async def many(self, count: int, make: Callable[[], bytes], per: int = 50) -> None:
        """`count` calls, `per` of them at a time, from a thread."""

        def run() -> None:
            for at in range(0, count, per):
                if not self.send(b"".join(make() for _ in range(min(per, count - at)))):
                    return

        await asyncio.to_thread(run)

    def _read(self) -> None:
        got = b""
        with contextlib.suppress(OSError):
            while more := self._socket.recv(1 << 18):
                got += more
                while len(got) >= 9 and len(got) >= (size := 9 + int.from_bytes(got[:3], "big")):
                    kind, flags = got[3:5]
                    self._take(kind, flags, got[9:size], int.from_bytes(got[5:9], "big"))
                    got = got[size:]
        self.closed = self.closed or "ended"

    def _take(self, kind: int, flags: int, payload: bytes, stream: int) -> None:
        if kind == _GROW:
            with self._grown:
                self._windows[stream] += int.from_bytes(payload, "big")
                self._grown.notify()
        if kind == _SETTINGS and not flags & _ACK:
            for at in range(0, len(payload), 6):
                if payload[at : at + 2] == b"\0\4":
                    self._initial = int.from_bytes(payload[at + 2 : at + 6], "big")
        if kind == _RESET or (kind in (_DATA, _HEADERS) and flags & _END_STREAM):
            self._over.add(stream)
        if kind == _RESET:
            self.resets[int.from_bytes(payload, "big")] += 1
        elif kind == _GOAWAY:
            self.closed = f"GOAWAY {payload[8:].decode(errors='replace')}"
        elif kind == _SETTINGS and not flags & _ACK and self._acknowledge:
            self.send(frame(_SETTINGS, _ACK, 0, b""))
        elif kind == _PING and not flags & _ACK:
            self.send(frame(_PING, _ACK, 0, payload))
        if kind in (_DATA, _HEADERS) and flags & _END_STREAM:
            self.ended += 1

    def close(self) -> None:
        """At once, with everything that is under way."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._reader.join(10)
        self._socket.close()


@dataclass
class Neighbour:
    """Somebody else's calls, one after another on a connection of its own: a step each 20 ms."""

    gateway: Gateway
    codes: Counter[grpc.StatusCode] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    texts: set[str] = field(default_factory=set)

    async def run(self) -> None:
        async with self.gateway.channel() as channel:
            for number in range(1_000_000):
                began = time.monotonic()
                answer = await infer(channel, request("steps", number % 50 + 1), timeout=60)
                self.codes[answer.code] += 1
                self.texts |= {answer.details} - {""}
                self.seconds.append(time.monotonic() - began)
                await asyncio.sleep(0.02)

    def median_ms(self) -> float:
        return sorted(self.seconds)[len(self.seconds) // 2] * 1000


@contextlib.asynccontextmanager
async def neighbours(gateway: Gateway, count: int = 4) -> AsyncIterator[list[Neighbour]]:
    """Several, so that each of Envoy's threads has some. On leaving they stop; their figures stay."""
    made = [Neighbour(gateway) for _ in range(count)]
    tasks = [asyncio.create_task(each.run()) for each in made]
    try:
        while any(not each.seconds for each in made):  # noqa: ASYNC110 - their first answers, whenever they come
            await asyncio.sleep(0.01)
        yield made
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def until(true: Callable[[], object], seconds: float = 60.0) -> None:
    """Or time is up: whoever asks judges."""
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:  # noqa: ASYNC110 - what others count
        await asyncio.sleep(0.05)


def codes(found: Sequence[Neighbour]) -> Counter[grpc.StatusCode]:
    return sum((each.codes for each in found), Counter())


@dataclass
class Scene:
    """A gateway with `steps` (stateful, served), `open` (stateless, served) and `asleep` (stateful, nobody serves it)."""

    gateway: Gateway
    world: World
    worker: FakeWorker
    functions: dict[str, Function]
    go: asyncio.Event = field(default_factory=asyncio.Event)
    """Until it is set, calls with an id run on at the worker."""

    async def behave(self, seen: Seen) -> None:
        if seen.request.id:
            await self.go.wait()

    async def wake(self) -> None:
        """`asleep` is served from now."""
        function = self.functions["asleep"]
        await self.world.register(function, self.worker)
        await self.world.own(function, self.worker.name, list(range(SHARDS)))

    async def stats(self, pattern: str) -> dict[str, int]:
        """Envoy's figures whose names have `pattern`."""
        found = json.loads(await self.gateway.ask(f"/stats?format=json&filter={pattern}"))["stats"]
        return {each["name"]: each["value"] for each in found if "value" in each}

    async def under_way(self, count: int) -> None:
        """Returns when so many calls are in Envoy."""
        for _ in range(1200):
            if (await self.stats("downstream_rq_active"))["http.gateway.downstream_rq_active"] >= count:
                return
            await asyncio.sleep(0.05)
        raise AssertionError(f"{await self.stats('downstream_rq_active')} are under way, not {count}")

    def envoy_mib(self, key: str = "VmHWM") -> float:
        """Envoy's memory at its highest; `VmRSS`: now."""
        assert self.gateway.envoy is not None
        for pid in tree(self.gateway.envoy.pid):
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/comm").read_text().strip() == "envoy":
                    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
                    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024
        raise AssertionError("no Envoy")


def tree(pid: int) -> Iterator[int]:
    yield pid
    with contextlib.suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            yield from tree(int(child))


@contextlib.asynccontextmanager
async def scene(
    endpoint: str, installation: str, *options: str, without: Callable[[dict[str, Any]], None] | None = None
) -> AsyncIterator[Scene]:
    """`without` takes a guard out of Envoy's bootstrap: the negative control."""
    gateway = Gateway(endpoint, installation, *options)
    store = EtcdStore([endpoint])
    worker = await FakeWorker("w").start()
    ends: list[asyncio.Task[None]] = []
    try:
        gateway.start_agent()
        if without is None:
            gateway.start_envoy()
        else:
            config = bootstrap(parse(gateway.options, "test"))
            without(config)
            gateway.start_envoy_with(json.dumps(config))
            ends.append(told(parse(gateway.options, "test")))
        await asyncio.to_thread(gateway.wait_ready)
        world = World(store, Keys(installation))
        functions = {}
        for name in ("steps", "asleep", "open"):
            functions[name] = await world.function(name, shards=0 if name == "open" else SHARDS, uid=name)
        for name in ("steps", "open"):
            await world.register(functions[name], worker)
        await world.own(functions["steps"], worker.name, list(range(SHARDS)))
        await gateway.routed("default/steps", worker.address)
        await gateway.routed("default/asleep")
        await gateway.routed("default/open", '"open"')
        made = Scene(gateway, world, worker, functions)
        worker.behave = made.behave
        yield made
    finally:
        for task in ends:
            task.cancel()
        await worker.stop()
        await store.close()
        await asyncio.to_thread(gateway.stop)


def told(settings: GatewaySettings) -> "asyncio.Task[None]":
    """What Envoy's starter does for it: says how short of memory it is."""
    taken = functools.partial(filled, settings.admin, sized(settings).max_heap_bytes)
    return Shedding(SystemClock(), taken, Pressure(Path(settings.pressure))).start()


def manager(config: dict[str, Any]) -> dict[str, Any]:
    """The HTTP connection manager of a bootstrap's listener for callers."""
    (found,) = config["static_resources"]["listeners"][0]["filter_chains"][0]["filters"]
    return found["typed_config"]  # type: ignore[no-any-return]


def without_filter(config: dict[str, Any], name: str) -> None:
    filters = manager(config)["http_filters"]
    filters[:] = [each for each in filters if each["name"] != name]
