"""A function that sleeps, with records in its store, as the leader's sweeper and deleter see it."""

import functools
from collections.abc import Awaitable, Callable
from typing import Any, ParamSpec

from dormouse_core import records
from dormouse_core.keys import Function, Keys
from dormouse_core.records import Body
from dormouse_core.seams import Put, Txn
from dormouse_core.sessions.names import session_key, shard_of
from dormouse_core.spec import parse_manifest, spec_to_json
from dormouse_operator.counting import Counts
from dormouse_operator.sweeping import Sweeper
from dormouse_operator.view import View
from dormouse_proto import control_pb2, state_pb2

from dormouse_testing import simloop
from dormouse_testing.clock import SimClock
from dormouse_testing.leader_world import manifest
from dormouse_testing.memory_store import MemoryStore

SHARDS = 4
KEYS = Keys("t")


P = ParamSpec("P")


def simulated(test: Callable[P, Awaitable[None]]) -> Callable[P, None]:
    """Without a limit: hours pass."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        async def main() -> None:
            await test(*args, **kwargs)

        simloop.run(main(), limit=None)

    return run


class NoLinks:
    """Workers that report nothing."""

    def follow(self, worker: str, address: str) -> None: ...

    def drop(self, worker: str) -> None: ...

    def gone(self, worker: str) -> bool:
        return False

    def report(self, worker: str) -> control_pb2.WorkerReport | None:
        return None


class Sleeping:
    """`count` functions; a leader's key lies in the store."""

    def __init__(self, count: int = 1, *, removal_wait: float | None = 10.0, trusted: bool = True) -> None:
        self.clock = SimClock()
        self.store = MemoryStore(self.clock)
        self.view = View(KEYS, self.clock, lambda uid: None)
        self.view.links = NoLinks()  # type: ignore[assignment]
        self.functions = [Function("ns", f"fn{n}", f"uid-{n}") for n in range(count)]
        self.entries: list[state_pb2.FunctionEntry] = []
        self.store.etcd.txn(Txn((), (Put(KEYS.leader, b"me"),)))
        for function in self.functions:
            spec = spec_to_json(parse_manifest(manifest(shards=SHARDS)).spec)
            entry = state_pb2.FunctionEntry(namespace="ns", name=function.name, uid=function.uid, spec=spec, shards=SHARDS)
            key = KEYS.function("ns", function.name)
            self.entries.append(entry)
            self.store.etcd.txn(Txn((), (Put(key, entry.SerializeToString()),)))
            self.view.function_changed(key, None, self.store.etcd.item(key))
        self.counts = Counts(self.view)
        leader = self.store.etcd.item(KEYS.leader)
        assert leader is not None
        self.leader_new = leader.create_revision
        self.sweeper = Sweeper(
            self.store,
            self.clock,
            KEYS,
            self.view,
            self.counts,
            leader_new=self.leader_new,
            removal_wait=removal_wait,
            now_us=None if trusted else lambda: None,
        )

    def now_us(self) -> int:
        return int(self.clock.now() * 1e6)

    def key(self, name: str, tenant: str = "", function: int = 0) -> str:
        session = session_key(tenant, name)
        return KEYS.state(self.functions[function], shard_of(session, SHARDS), session)

    def put(self, name: str, *, tenant: str = "", ended: bool = False, ttl: float = 100.0, function: int = 0, **body: Any) -> str:
        """A session whose last step is of now."""
        now = self.now_us()
        kept = (records.keep(now, "g-1", b"d", b"reply", 3),)
        tensors = () if ended else (state_pb2.Tensor(name="s", datatype="FP32", shape=[1], data=b"\0" * 4),)
        expires = now if ended else now + int(ttl * 1e6)
        record = records.encode(Body("v", ended, 3, kept, now - 5, now, expires, **body), tensors, b"w")
        return self.write(self.key(name, tenant, function), record)

    def write(self, key: str, value: bytes) -> str:
        self.store.etcd.txn(Txn((), (Put(key, value),)))
        return key

    def stored(self, function: int = 0) -> list[str]:
        return [item.key for item in self.store.etcd.range(KEYS.states(self.functions[function])).items]

    def own(self, shard: int, worker: str, *, alive: bool) -> None:
        """`worker` stands in the shard's entry; `alive`: in the store, but not yet in the leader's copy of the map."""
        function = self.functions[0]
        self.write(KEYS.shard(function, shard), state_pb2.ShardEntry(owner=worker, epoch=1).SerializeToString())
        if alive:
            self.write(KEYS.worker(function, worker), b"")

    def floor(self, name: str) -> int:
        shard = shard_of(session_key("", name), SHARDS)
        item = self.store.etcd.item(KEYS.floor(self.functions[0], shard))
        return 0 if item is None else state_pb2.Floor.FromString(item.value).timestamp_us
