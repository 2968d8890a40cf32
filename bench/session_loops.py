"""What the session loops alone cost: microseconds of Python a step, beside a store that answers at once and a model that does nothing.

    python bench/session_loops.py [--profile] [--callers 64] [--shards 64] [--seconds 3] [--etcd 127.0.0.1:2379]

Callers wait for each answer; every caller has a session of its own. No transport. With --etcd the store is that etcd, which must be empty.
"""

import argparse
import asyncio
import cProfile
import pstats
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import numpy as np
from dormouse_core.callkeys import CallKey
from dormouse_core.keys import Function, Keys
from dormouse_core.seams import Delete, Item, Listing, Put, Txn, TxnResult, WatchBatch
from dormouse_core.sessions.names import session_key
from dormouse_kit.clock import SystemClock
from dormouse_kit.etcd import EtcdStore
from dormouse_proto import state_pb2
from dormouse_worker.sessions import Answer, Outcome, Ran, Sessions, SessionSettings, StateInfo, Step

FUNCTION = Function("bench", "steps", "uid")
KEYS = Keys("bench")


class InstantStore:
    """Agrees to everything at once. Its map gives every shard to the one worker."""

    def __init__(self, shards: int) -> None:
        self.revision = 100
        self.txns = self.puts = 0
        entry = state_pb2.ShardEntry(owner="w-1", epoch=1).SerializeToString()
        self.entries = {key: Item(key, entry, 2, 2) for key in (KEYS.shard(FUNCTION, n) for n in range(shards))}

    async def get(self, keys: Sequence[str], *, timeout: float = 5.0) -> tuple[int, dict[str, Item]]:
        return self.revision, {key: self.entries[key] for key in keys if key in self.entries}

    async def list(self, prefix: str, **options: Any) -> Listing:
        return Listing(self.revision, tuple(item for key, item in self.entries.items() if key.startswith(prefix)))

    async def txn(self, txn: Txn, *, timeout: float = 5.0) -> TxnResult:
        self.txns += 1
        self.puts += len(txn.writes)
        self.revision += 1
        await asyncio.sleep(0)
        return TxnResult(True, self.revision)

    async def watch(self, prefix: str, revision: int) -> AsyncIterator[WatchBatch]:
        yield WatchBatch(self.revision)
        await asyncio.Event().wait()

    async def grant(self, ttl: int) -> int:
        return 1

    async def keep_alive(self, lease: int, *, timeout: float = 1.0) -> int:
        return 3

    async def revoke(self, lease: int) -> None: ...

    async def compact(self, revision: int) -> None: ...


class Nothing:
    """A model that adds one, in batches of what waits; its own time is measured and taken off."""

    def __init__(self, reply: int) -> None:
        self.waiting: list[tuple[dict[str, np.ndarray], Callable[[Outcome], None]]] = []
        self.reply = b"r" * reply
        self.batches = 0

    def run(self, call: Any, states: dict[str, np.ndarray], step: int, start: bool, end: bool, done: Any, deadline: float) -> None:
        if not self.waiting:
            asyncio.get_running_loop().call_soon(self.batch)
        self.waiting.append((states, done))

    def batch(self) -> None:
        waiting, self.waiting = self.waiting, []
        self.batches += 1
        for states, done in waiting:
            done(Ran(self.reply, states))


class Counting(EtcdStore):
    """Real etcd, counted."""

    txns = puts = 0

    async def txn(self, txn: Txn, *, timeout: float = 5.0) -> TxnResult:
        self.txns += 1
        self.puts += len(txn.writes)
        return await super().txn(txn, timeout=timeout)


async def prepared(endpoint: str, shards: int) -> Counting:
    store = Counting([endpoint])
    entry = state_pb2.ShardEntry(owner="w-1", epoch=1).SerializeToString()
    await store.txn(Txn((), (Delete(KEYS.root, prefix=True),)))
    await store.txn(Txn((), tuple(Put(KEYS.shard(FUNCTION, n), entry) for n in range(shards))))
    return store


async def measure(callers: int, shards: int, seconds: float, state: int, reply: int, profile: bool, etcd: str) -> None:
    store: Any = await prepared(etcd, shards) if etcd else InstantStore(shards)
    runner = Nothing(reply)
    infos = [StateInfo("s", "s", "s", "FP32", (1, state), 0, np.zeros((1, state), np.float32))]
    sessions = Sessions(
        FUNCTION,
        SessionSettings(shards, "v1"),
        infos,
        store,
        SystemClock(),
        runner,
        worker="w-1",
        address="a",
        instance="w",
        revision="r",
        keys=KEYS,
    )
    await sessions.start()
    count = 0
    stop = time.monotonic() + seconds
    finished = asyncio.Event()
    digest = b"d" * 16

    def caller(n: int) -> None:
        name = session_key("", n + 1)
        key = CallKey(time.time_ns() // 1000, f"g-{n}-0")

        def send() -> None:
            sessions.submit(Step(name, key, digest, False, False, True, None, answer))

        def answer(it: Answer) -> None:
            nonlocal count, key
            assert it.error is None, it.error
            count += 1
            key = CallKey(key.timestamp_us + 1, f"g-{n}-{count}")
            if time.monotonic() < stop:
                send()
            else:
                finished.set()

        send()

    profiler = cProfile.Profile() if profile else None
    began, cpu = time.monotonic(), time.process_time()
    if profiler:
        profiler.enable()
    for n in range(callers):
        caller(n)
    await finished.wait()
    if profiler:
        profiler.disable()
    took = time.process_time() - cpu
    print(
        f"callers={callers} shards={shards} steps/s={count / (time.monotonic() - began):.0f} us/step={took / count * 1e6:.1f} "
        f"steps/txn={store.puts / store.txns:.1f} steps/batch={count / runner.batches:.1f}"
    )
    if profiler:
        pstats.Stats(profiler).sort_stats("tottime").print_stats(22)
    await sessions.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--callers", type=int, default=64)
    parser.add_argument("--shards", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--state", type=int, default=64, help="FP32 numbers a session")
    parser.add_argument("--reply", type=int, default=300, help="bytes")
    parser.add_argument("--etcd", default="", help="host:port; absent: a store that answers at once")
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    asyncio.run(measure(options.callers, options.shards, options.seconds, options.state, options.reply, options.profile, options.etcd))


if __name__ == "__main__":
    main()
