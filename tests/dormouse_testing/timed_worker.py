"""A worker whose calls have keys of the present moment, as gateways make them: for tests of what ends, expires and is removed."""

import asyncio
from dataclasses import dataclass
from typing import Any

from dormouse_core.callkeys import CallKey
from dormouse_core.seams import Item
from dormouse_core.sessions.names import session_key, shard_of
from dormouse_worker.sessions import Answer, Step

from dormouse_testing.clock import SimClock
from dormouse_testing.memory_store import MemoryStore
from dormouse_testing.session_worker import SHARDS, F, K, Worker


@dataclass
class TimedWorker(Worker):
    calls: int = 0

    async def own(self, *shards: int) -> None:
        await super().own(*shards)
        await asyncio.sleep(0.3)  # they are counted

    def submit(self, name: str, n: Any, at: int = 0, **options: Any) -> "asyncio.Future[Answer]":
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.calls += 1
        flags = {"start": False, "end": False, "create": True, **options}
        key = CallKey(at or now_us(), flags.pop("call_id", f"g-{self.name}-{self.calls}"), *flags.pop("by", ()))
        session = session_key(flags.pop("tenant", ""), name)
        self.sessions.submit(Step(session, key, b"%d" % n, call=n, answer=future.set_result, **flags))
        return future


def now_us() -> int:
    return int(SimClock().now() * 1e6)


def state_key(name: str, tenant: str = "") -> str:
    session = session_key(tenant, name)
    return K.state(F, shard_of(session, SHARDS), session)


def stored(store: MemoryStore) -> dict[str, Item]:
    """Every record."""
    return {item.key: item for item in store.etcd.range(K.states(F)).items}
