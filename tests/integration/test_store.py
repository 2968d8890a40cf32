"""One suite for the store in memory and the real one: what the protocol assumes of etcd, and what simulations may therefore rely on."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing

import pytest
from conftest import unavailable
from dormouse_core import limits
from dormouse_core.seams import Compacted, Compare, CreatedIs, Delete, Event, Exists, ModIs, Put, Store, StoreError, Txn, WatchBatch
from dormouse_kit.clock import SystemClock
from dormouse_kit.etcd import EtcdStore
from dormouse_testing.etcd_server import EtcdServer, NoEtcd
from dormouse_testing.memory_store import MemoryStore


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The endpoint of one in which nobody else writes: neither other tests, nor leases that they left and that end."""
    try:
        with EtcdServer(tmp_path_factory.mktemp("etcd")) as server:
            yield server.endpoint
    except NoEtcd as error:
        unavailable(str(error))


@pytest.fixture(params=["memory", "etcd"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    memory = request.param == "memory"
    opened = MemoryStore(SystemClock()) if memory else EtcdStore([request.getfixturevalue("etcd")])
    yield opened
    await opened.close()


@pytest.fixture
def root(installation: str) -> str:
    return f"/dormouse/{installation}/"


async def put(store: Store, key: str, value: bytes = b"v", lease: int = 0) -> int:
    result = await store.txn(Txn((), (Put(key, value, lease),)))
    assert result.succeeded
    return result.revision


async def collect(store: Store, prefix: str, revision: int, count: int) -> list[Event]:
    """The first `count` events of a watch."""
    events: list[Event] = []
    async with asyncio.timeout(20), aclosing(store.watch(prefix, revision)) as batches:
        async for batch in batches:
            events.extend(batch.events)
            if len(events) >= count:
                return events
    raise AssertionError("the watch ended")


def shape(events: Sequence[Event], root: str) -> list[tuple[str, bytes | None]]:
    return [(event.key.removeprefix(root), event.item.value if event.item else None) for event in events]


async def test_absent_keys_are_not_in_the_answer_and_all_are_read_at_one_revision(store: Store, root: str) -> None:
    first = await put(store, f"{root}a", b"1")
    second = await put(store, f"{root}b", b"2")
    revision, found = await store.get([f"{root}a", f"{root}b", f"{root}c"])
    assert revision >= second
    assert {key.removeprefix(root): (item.value, item.mod_revision, item.create_revision) for key, item in found.items()} == {
        "a": (b"1", first, first),
        "b": (b"2", second, second),
    }


async def test_more_keys_than_one_transaction_reads(store: Store, root: str) -> None:
    keys = [f"{root}{number:03}" for number in range(300)]
    await store.txn(Txn((), tuple(Put(key, key.encode()) for key in keys[:100])))
    await store.txn(Txn((), tuple(Put(key, key.encode()) for key in keys[200:])))
    _, found = await store.get(keys)
    assert set(found) == {*keys[:100], *keys[200:]}


async def test_no_keys(store: Store) -> None:
    revision, found = await store.get([])
    assert revision >= 1
    assert found == {}


async def test_a_transaction_is_one_revision_and_all_its_items_carry_it(store: Store, root: str) -> None:
    result = await store.txn(Txn((ModIs(f"{root}a", 0), ModIs(f"{root}b", 0)), (Put(f"{root}a", b""), Put(f"{root}b", b""))))
    assert result.succeeded
    _, found = await store.get([f"{root}a", f"{root}b"])
    assert {item.mod_revision for item in found.values()} == {result.revision}


async def test_compares(store: Store, root: str) -> None:
    key = f"{root}a"
    created = await put(store, key)
    modified = await put(store, key)
    cases: list[tuple[Compare, bool]] = [
        (ModIs(key, modified), True),
        (ModIs(key, created), False),
        (ModIs(key, 0), False),
        (CreatedIs(key, created), True),
        (CreatedIs(key, modified), False),
        (Exists(key), True),
        (ModIs(f"{root}none", 0), True),
        (CreatedIs(f"{root}none", 0), True),
        (Exists(f"{root}none"), False),
    ]
    for compare, holds in cases:
        result = await store.txn(Txn((compare,), ()))
        assert (compare, result.succeeded) == (compare, holds)
        assert result.revision >= modified


async def test_a_failed_compare_changes_nothing(store: Store, root: str) -> None:
    first = await put(store, f"{root}a", b"1")
    result = await store.txn(Txn((ModIs(f"{root}a", first), Exists(f"{root}b")), (Put(f"{root}a", b"2"), Put(f"{root}c", b""))))
    assert not result.succeeded
    _, found = await store.get([f"{root}a", f"{root}c"])
    assert [item.value for item in found.values()] == [b"1"]


async def test_after_a_delete_the_key_is_created_anew(store: Store, root: str) -> None:
    key = f"{root}a"
    first = await put(store, key)
    await store.txn(Txn((), (Delete(key),)))
    second = await put(store, key)
    _, found = await store.get([key])
    assert found[key].create_revision == found[key].mod_revision == second > first


async def test_deleting_nothing_is_no_revision(store: Store, root: str) -> None:
    before = await put(store, f"{root}a")
    result = await store.txn(Txn((), (Delete(f"{root}none"), Delete(f"{root}nobody/", prefix=True))))
    assert (result.succeeded, result.revision) == (True, before)


async def test_a_prefix_delete_stays_under_its_prefix(store: Store, root: str) -> None:
    for name in ("a", "a/1", "a/2", "a0", "b"):
        await put(store, f"{root}{name}")
    await store.txn(Txn((), (Delete(f"{root}a/", prefix=True),)))
    listing = await store.list(root)
    assert [item.key.removeprefix(root) for item in listing.items] == ["a", "a0", "b"]


async def test_pages_at_one_revision(store: Store, root: str) -> None:
    for number in range(5):
        await put(store, f"{root}{number}", b"old")
    page = await store.list(root, limit=2)
    await put(store, f"{root}3", b"new")
    await store.txn(Txn((), (Delete(f"{root}4"),)))
    seen, revision = list(page.items), page.revision
    while page.more:
        page = await store.list(root, limit=2, start=seen[-1].key, revision=revision)
        assert page.revision == revision
        seen.extend(page.items)
    assert [(item.key.removeprefix(root), item.value) for item in seen] == [(str(number), b"old") for number in range(5)]
    now = await store.list(root, start=f"{root}2")
    assert [(item.key.removeprefix(root), item.value) for item in now.items] == [("3", b"new")]
    assert not now.more


async def test_a_limit_that_fits_exactly_is_not_more(store: Store, root: str) -> None:
    for number in range(2):
        await put(store, f"{root}{number}")
    assert not (await store.list(root, limit=2)).more


async def test_keys_only(store: Store, root: str) -> None:
    revision = await put(store, f"{root}a", b"value")
    (item,) = (await store.list(root, keys_only=True)).items
    assert (item.value, item.mod_revision) == (b"", revision)


async def test_a_listing_of_a_compacted_revision_is_refused(store: Store, root: str) -> None:
    first = await put(store, f"{root}a")
    second = await put(store, f"{root}a")
    await store.compact(second)
    with pytest.raises(StoreError, match="compacted"):
        await store.list(root, revision=first)
    assert (await store.list(root, revision=second)).items


async def test_what_the_store_refuses_is_definite(store: Store, root: str) -> None:
    many = tuple(Put(f"{root}{number}", b"") for number in range(limits.ETCD_TXN_OPS + 1))
    refused = [
        Txn((), (Put(f"{root}a", b"1"), Put(f"{root}a", b"2"))),
        Txn((), (Put(f"{root}a", b"1"), Delete(f"{root}a"))),
        Txn((), (Put(f"{root}b/a", b"1"), Delete(f"{root}b/", prefix=True))),
        Txn((), many),
        Txn(tuple(ModIs(f"{root}{number}", 0) for number in range(limits.ETCD_TXN_OPS + 1)), (Put(f"{root}a", b"1"),)),
        Txn((), (Put(f"{root}a", b"1", lease=12345),)),
        Txn((), (Put(f"{root}a", bytes(limits.ETCD_REQUEST_BYTES)),)),
    ]
    for txn in refused:
        with pytest.raises(StoreError) as caught:
            await store.txn(txn)
        assert caught.value.definite, caught.value
    assert (await store.list(root)).items == ()


async def test_128_of_each_fit(store: Store, root: str) -> None:
    keys = [f"{root}{number}" for number in range(limits.ETCD_TXN_OPS)]
    result = await store.txn(Txn(tuple(ModIs(key, 0) for key in keys), tuple(Put(key, b"") for key in keys)))
    assert result.succeeded


async def test_watch_gets_all_from_its_revision_on_in_order(store: Store, root: str) -> None:
    await put(store, f"{root}a", b"before")
    first = await put(store, f"{root}a", b"1")
    await put(store, f"{root}b", b"2")
    await put(store, f"{root.rstrip('/')}0/other", b"not under the prefix")
    await store.txn(Txn((), (Delete(f"{root}a"), Put(f"{root}c", b"3"))))
    events = await collect(store, root, first, 4)
    assert shape(events[:2], root) == [("a", b"1"), ("b", b"2")]
    assert sorted(shape(events[2:], root)) == [("a", None), ("c", b"3")]
    assert events[2].mod_revision == events[3].mod_revision > events[1].mod_revision
    put_events = [event for event in events if event.item]
    assert all(event.item and event.item.mod_revision == event.mod_revision for event in put_events)


async def test_watch_sees_what_comes_later(store: Store, root: str) -> None:
    revision = await put(store, f"{root}a", b"0")
    watching = asyncio.create_task(collect(store, root, revision + 1, 2))
    await asyncio.sleep(0.05)
    await put(store, f"{root}a", b"1")
    await put(store, f"{root}b", b"2")
    assert shape(await watching, root) == [("a", b"1"), ("b", b"2")]


async def test_the_first_batch_says_that_the_watch_stands(store: Store, root: str) -> None:
    revision = await put(store, f"{root}a")
    async with asyncio.timeout(20):
        batch = await anext(aiter(store.watch(root, revision + 1)))
    assert batch == WatchBatch(revision)


async def test_a_batch_with_events_is_complete_up_to_its_last(store: Store, root: str) -> None:
    first = await put(store, f"{root}a")
    last = await put(store, f"{root}b")
    seen = 0
    async with asyncio.timeout(20), aclosing(store.watch(root, first)) as batches:
        async for batch in batches:
            if batch.events:
                assert batch.revision == batch.events[-1].mod_revision
            seen = max(seen, batch.revision)
            if seen >= last:
                break
    assert seen == last


async def test_a_watch_of_compacted_history_says_so(store: Store, root: str) -> None:
    first = await put(store, f"{root}a")
    for _ in range(3):
        last = await put(store, f"{root}a")
    await store.compact(last)
    with pytest.raises(Compacted):
        await collect(store, root, first, 1)
    assert len(await collect(store, root, last, 1)) == 1


async def test_a_large_transaction_arrives_whole_in_one_batch(store: Store, root: str) -> None:
    """etcd cuts a watch's answer into fragments at its request limit."""
    begin = (await put(store, f"{root}begin")) + 1
    for number in range(4):
        await store.txn(Txn((), tuple(Put(f"{root}{number}/{part}", bytes(120_000)) for part in range(10))))
    async with asyncio.timeout(20), aclosing(store.watch(root, begin)) as batches:
        revisions: list[int] = []
        async for batch in batches:
            of_batch = {event.mod_revision for event in batch.events}
            assert not of_batch & set(revisions), "a revision in two batches"
            assert all(sum(event.mod_revision == revision for event in batch.events) == 10 for revision in of_batch)
            revisions.extend(of_batch)
            if len(revisions) == 4:
                break


async def test_lease(store: Store, root: str) -> None:
    lease = await store.grant(30)
    await store.txn(Txn((), (Put(f"{root}a", b"", lease), Put(f"{root}b", b"", lease), Put(f"{root}c", b"", lease))))
    assert await store.keep_alive(lease) == 30
    await put(store, f"{root}b")  # without a lease: detached
    watching = asyncio.create_task(collect(store, root, (await put(store, f"{root}d")) + 1, 2))
    await store.revoke(lease)
    events = await watching
    assert shape(sorted(events, key=lambda event: event.key), root) == [("a", None), ("c", None)]
    assert len({event.mod_revision for event in events}) == 1
    assert [item.key.removeprefix(root) for item in (await store.list(root)).items] == ["b", "d"]
    assert await store.keep_alive(lease) == 0
    await store.revoke(lease)  # again: nothing to do


async def test_a_key_put_anew_under_another_lease_survives_the_first(store: Store, root: str) -> None:
    first, second = await store.grant(30), await store.grant(30)
    await put(store, f"{root}a", b"1", first)
    await put(store, f"{root}a", b"2", second)
    await store.revoke(first)
    _, found = await store.get([f"{root}a"])
    assert found[f"{root}a"].lease == second
    await store.revoke(second)
    assert (await store.get([f"{root}a"]))[1] == {}


async def test_a_lease_that_nobody_keeps_alive_ends(store: Store, root: str) -> None:
    lease = await store.grant(2)  # etcd's shortest with its default election timeout
    revision = await put(store, f"{root}a", b"", lease)
    (event,) = await collect(store, root, revision + 1, 1)
    assert event.item is None
    assert await store.keep_alive(lease) == 0
