"""A worker's sessions on a store in memory and simulated time, for tests of one behaviour at a time."""

import asyncio
import functools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, ParamSpec

import numpy as np
from dormouse_core.callkeys import CallKey
from dormouse_core.clocks import TimeReading
from dormouse_core.errors import Again, Unavailable
from dormouse_core.keys import Function, Keys
from dormouse_core.seams import Put, Txn
from dormouse_core.sessions.names import session_key, shard_of
from dormouse_proto import state_pb2
from dormouse_worker.sessions import Answer, Failed, Outcome, Ran, Sessions, SessionSettings, StateInfo, Step

from dormouse_testing import simloop
from dormouse_testing.clock import SimClock, Trusted
from dormouse_testing.memory_store import MemoryStore

K = Keys("t")
F = Function("ns", "count", "u")
SHARDS = 4
SUM = [StateInfo("sum", "sum", "sum", "INT64", (1,), None, np.zeros(1, np.int64))]

P = ParamSpec("P")


def simulated(test: Callable[P, Awaitable[None]]) -> Callable[P, None]:
    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        async def main() -> None:
            await test(*args, **kwargs)

        times.restart()  # a test's own numbers are above these, whichever tests ran before
        simloop.run(main(), limit=120.0)

    return run


class Adder:
    """Adds the call's number to the state and answers with the sum. `hold`: steps wait until `release`."""

    def __init__(self) -> None:
        self.runs: list[tuple[Any, int, bool]] = []
        self.hold = False
        self.held: list[Callable[[], None]] = []
        self.reply = b""

    def run(
        self, call: Any, states: dict[str, np.ndarray], step: int, start: bool, end: bool, done: Callable[[Outcome], None], deadline: float
    ) -> None:
        self.runs.append((call, step, start))
        if isinstance(call, Exception):
            asyncio.get_running_loop().call_soon(done, Failed(call))  # type: ignore[arg-type]
            return
        total = states["sum"] + call

        def finish() -> None:
            done(Ran(b"%d" % total[0] + self.reply, {"sum": total}))

        if self.hold:
            self.held.append(finish)
        else:
            asyncio.get_running_loop().call_soon(finish)

    def release(self) -> None:
        held, self.held = self.held, []
        for finish in held:
            finish()


@dataclass
class Worker:
    store: MemoryStore
    name: str = "w-1"
    runner: Adder = field(default_factory=Adder)
    settings: SessionSettings = field(default_factory=lambda: SessionSettings(SHARDS, "v1", ttl=1000.0))
    states: list[StateInfo] = field(default_factory=lambda: SUM)
    time: TimeReading = field(default_factory=lambda: Trusted(SimClock()))
    sessions: Sessions = field(init=False)

    def __post_init__(self) -> None:
        self.sessions = Sessions(
            F,
            self.settings,
            self.states,
            self.store,
            SimClock(),
            self.runner,
            worker=self.name,
            address="a:1",
            instance="w",
            revision="r1",
            keys=K,
            time=self.time,
        )

    async def __aenter__(self) -> "Worker":
        await self.sessions.start()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.sessions.close()

    async def own(self, *shards: int) -> None:
        """The leader gives it these shards, or all."""
        for shard in shards or range(SHARDS):
            await give(self.store, shard, self.name)
        await asyncio.sleep(0.1)
        assert {s.number for s in self.sessions.machine.owned()} >= set(shards or range(SHARDS))

    def submit(self, name: str, n: Any, at: int = 0, **options: Any) -> "asyncio.Future[Answer]":
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.sessions.submit(make(name, n, at, future.set_result, **options))
        return future

    async def call(self, name: str, n: Any, at: int = 0, **options: Any) -> Answer:
        return await self.submit(name, n, at, **options)


class _Times:
    """Timestamps of call keys, 1 and on."""

    _last = 0

    def restart(self) -> None:
        self._last = 0

    def __next__(self) -> int:
        self._last += 1
        return self._last


times = _Times()


def make(
    name: str, n: Any, at: int, answer: Any, *, call_id: str = "", start: bool = False, end: bool = False, create: bool = True, **rest: Any
) -> Step:
    at = at or next(times)
    digest = b"%d" % n if isinstance(n, int) else b"x"
    return Step(session_key("", name), CallKey(at, call_id or f"g-{at}"), digest, start, end, create, n, answer, **rest)


async def give(store: MemoryStore, shard: int, worker: str, epoch: int = 1) -> int:
    entry = state_pb2.ShardEntry(owner=worker, epoch=epoch).SerializeToString()
    return (await store.txn(Txn((), (Put(K.shard(F, shard), entry),)))).revision


def state_key(name: str) -> str:
    session = session_key("", name)
    return K.state(F, shard_of(session, SHARDS), session)


def error(answer: Answer) -> Exception:
    assert answer.error is not None
    return answer.error


def again(answer: Answer) -> Again | None:
    assert isinstance(answer.error, Unavailable), answer
    return answer.error.again
