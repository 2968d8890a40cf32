"""Sessions by pages: each once, whatever their names; one that does not verify harms no other."""

from collections.abc import Awaitable, Callable

import pytest
from dormouse_core import records
from dormouse_core.errors import FailedPrecondition, InvalidArgument, NotFound
from dormouse_core.keys import Function
from dormouse_core.records import Body
from dormouse_core.seams import Put, Txn
from dormouse_core.sessions.names import session_key, shard_of
from dormouse_operator import listing
from dormouse_proto import control_pb2, state_pb2
from dormouse_testing import simloop
from dormouse_testing.clock import SimClock
from dormouse_testing.functions_seen import World, entry, worker
from dormouse_testing.leader_world import KEYS
from dormouse_testing.memory_store import MemoryStore

FUNCTION = Function("ns", "fn", "uid-1")
NAMES = [session_key(tenant, name) for tenant in ("", "t/x") for name in ("a", "a/b", "ä ü", "x" * 128, 7, -7)]


def record(step: int, *, ended: bool = False) -> bytes:
    body = Body(state_version="v", tombstone=ended, step=step, kept=(), horizon_us=0, newest_us=1, expires_us=99)
    tensor = state_pb2.Tensor(name="s", datatype="FP32", shape=[1, 4], data=b"\0" * 16)
    return records.encode(body, [] if ended else [tensor], b"w" * 8)


def on_a_store(story: Callable[[MemoryStore, World], Awaitable[None]]) -> None:
    async def main() -> None:
        store, world = MemoryStore(SimClock()), World()
        for step, name in enumerate(NAMES, 1):
            key = KEYS.state(FUNCTION, shard_of(name, 8), name)
            await store.txn(Txn((), (Put(key, record(step)),)))
        await story(store, world)
        await store.close()

    simloop.run(main())


async def ask(store: MemoryStore, world: World, **request: object) -> control_pb2.SessionsResponse:
    return await listing.page(store, KEYS, world.seen(), control_pb2.SessionsRequest(namespace="ns", name="fn", **request))  # type: ignore[arg-type]


@pytest.mark.parametrize("limit", [1, 5, 12, 100])
def test_each_session_once(limit: int) -> None:
    async def story(store: MemoryStore, world: World) -> None:
        found: list[str] = []
        page = ""
        while True:
            response = await ask(store, world, limit=limit, page=page)
            assert len(response.sessions) <= limit
            found += [s.session for s in response.sessions]
            page = response.next
            if not page:
                break
        assert sorted(found) == sorted(NAMES)

    on_a_store(story)


def test_a_listing_goes_on_after_a_compaction() -> None:
    async def story(store: MemoryStore, world: World) -> None:
        first = await ask(store, world, limit=5)
        await store.txn(Txn((), (Put("other", b""),)))
        await store.compact(store.etcd.revision)
        rest = await ask(store, world, limit=100, page=first.next)
        found = [s.session for s in (*first.sessions, *rest.sessions)]
        assert sorted(found) == sorted(NAMES)

    on_a_store(story)


def test_one_session_with_its_tensors() -> None:
    async def story(store: MemoryStore, world: World) -> None:
        shard = shard_of(NAMES[2], 8)
        world.add(worker("a"))
        world.own("a", [shard])
        (one,) = (await ask(store, world, session=NAMES[2])).sessions
        assert (one.step, one.owner, one.expires_us, one.state_version) == (3, "a", 99, "v")
        assert [(t.name, t.datatype, list(t.shape)) for t in one.tensors] == [("s", "FP32", [1, 4])]
        world.change("a", gone=True)
        assert (await ask(store, world, session=NAMES[2])).sessions[0].owner == "", "hibernated"
        with pytest.raises(NotFound, match="no session /s:nope"):
            await ask(store, world, session="/s:nope")
        for wrong in ("nope", "/s:ä"):
            with pytest.raises(InvalidArgument, match="as the list shows it"):
                await ask(store, world, session=wrong)

    on_a_store(story)


def test_a_record_that_does_not_verify_is_shown_as_such() -> None:
    async def story(store: MemoryStore, world: World) -> None:
        broken = bytearray(record(1))
        broken[-1] ^= 1
        key = KEYS.state(FUNCTION, shard_of("/s:broken", 8), "/s:broken")
        await store.txn(Txn((), (Put(key, bytes(broken)),)))
        found = {s.session: s for s in (await ask(store, world)).sessions}
        assert len(found) == len(NAMES) + 1
        assert found["/s:broken"].state_version.startswith("unreadable: ")

    on_a_store(story)


def test_stateless_functions_have_none_and_a_made_up_page_is_refused() -> None:
    async def story(store: MemoryStore, world: World) -> None:
        with pytest.raises(InvalidArgument, match="page"):
            await ask(store, world, page="x:y")
        world.entry = entry(shards=0)
        with pytest.raises(FailedPrecondition, match="stateless"):
            await ask(store, world)

    on_a_store(story)
