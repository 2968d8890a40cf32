"""Sessions that outlive their function (rule *retained*): kept at its end, adopted by the next of its name, and by nobody else."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from dormouse_core import retaining, transactions
from dormouse_core.errors import DataLoss, DormouseError, FailedPrecondition, Unavailable
from dormouse_core.keys import Function, function_of
from dormouse_core.observations import FunctionSeen
from dormouse_core.seams import Item, Put, Txn
from dormouse_core.workerfile import WorkerFile
from dormouse_operator import function_entries, store_users
from dormouse_operator.function_entries import FunctionEntries
from dormouse_operator.orphans import Orphans
from dormouse_operator.view import View
from dormouse_operator.writes import Writer
from dormouse_proto import state_pb2
from dormouse_testing import simloop
from dormouse_testing.clock import SimClock
from dormouse_testing.leader_world import KEYS, manifest
from dormouse_testing.memory_store import FULL, FULL_APPLIED, REPLY_LOST, REQUEST_LOST, Fault, MemoryStore

SHARDS = 200
"""More than one transaction takes."""
USED = range(0, SHARDS, 3)
"""Those that were given to somebody, and so have floors."""


class World:
    def __init__(self, store: MemoryStore) -> None:
        self.store = store
        result = store.etcd.txn(Txn((), (Put(KEYS.leader, b"me"),)))
        self.leader_new = result.revision
        self.entries = FunctionEntries(store, KEYS, SimClock(), self.leader_new)
        self.writer = Writer(store, KEYS, self.leader_new)

    async def apply(self, reclaim: str = "Retain", shards: int = SHARDS) -> state_pb2.FunctionEntry:
        return (await self.entries.apply(manifest(shards=shards, reclaim=reclaim)))[0]

    def serve(self, entry: state_pb2.FunctionEntry) -> None:
        """As its workers left it: shards that a worker owned, sessions in them."""
        function = function_of(entry)
        for shard in USED:
            self.write(KEYS.shard(function, shard), state_pb2.ShardEntry(owner="w", epoch=7).SerializeToString())
            self.write(KEYS.floor(function, shard), state_pb2.Floor(timestamp_us=shard).SerializeToString())
            self.write(KEYS.state(function, shard, "/s:a"), b"record")

    def write(self, key: str, value: bytes) -> int:
        return self.store.etcd.txn(Txn((), (Put(key, value),))).revision

    def stored(self, prefix: str = "") -> set[str]:
        return {item.key for item in self.store.etcd.range(KEYS.root + prefix).items}

    def seen(self, entry: state_pb2.FunctionEntry) -> FunctionSeen:
        item = self.store.etcd.item(KEYS.function("ns", "fn"))
        assert item is not None
        return FunctionSeen(entry, item.mod_revision, item.create_revision)

    async def end(self, entry: state_pb2.FunctionEntry) -> int:
        return await self.writer.retain(self.seen(entry), 1)

    def owners(self, entry: state_pb2.FunctionEntry) -> dict[int, str]:
        prefix = KEYS.shards(function_of(entry))
        return {
            int(i.key.removeprefix(prefix)): state_pb2.ShardEntry.FromString(i.value).owner for i in self.store.etcd.range(prefix).items
        }


Story = Callable[[World], Awaitable[None]]


def told(story: Story) -> None:
    async def main() -> None:
        store = MemoryStore(SimClock())
        await story(World(store))
        await store.close()

    simloop.run(main())


def test_the_next_function_of_the_name_goes_on_with_them() -> None:
    async def story(w: World) -> None:
        first = await w.apply()
        w.serve(first)
        records = w.stored("data/")
        assert await w.end(first)
        assert w.stored() == {KEYS.leader, KEYS.retained("ns", "fn"), *records}, "its map and its entry are gone, its sessions are not"
        second = await w.apply()
        assert (second.uid != first.uid, second.store_id, second.shards) == (True, first.uid, SHARDS)
        assert w.stored("data/") == records
        assert KEYS.retained("ns", "fn") not in w.stored()
        assert w.owners(second) == dict.fromkeys(USED, ""), "no floor without an entry, and those that nobody ever had are as new"
        w.serve(second)
        assert w.stored("data/") == records, "the same keys"
        assert await w.end(second)
        third = await w.apply()
        assert (third.store_id, third.uid != second.uid) == (first.uid, True), "again and again"
        assert w.stored("data/") == records

    told(story)


def test_by_default_they_go_with_it() -> None:
    async def story(w: World) -> None:
        first = await w.apply("Delete")
        assert not retaining.retains(first)
        w.serve(first)
        assert await w.writer.purge(w.seen(first))
        assert w.stored() == {KEYS.leader}
        second = await w.apply("Delete")
        assert second.store_id == ""
        assert w.stored("data/") == set()

    told(story)


def test_the_policy_of_the_function_that_ends_counts_and_one_that_says_delete_takes_them_along() -> None:
    async def story(w: World) -> None:
        first = await w.apply("Delete")
        changed = await w.apply("Retain")
        assert (changed.uid, changed.revision, retaining.retains(changed)) == (first.uid, first.revision, True), "no worker starts again"
        w.serve(changed)
        await w.end(changed)
        second = await w.apply("Delete")
        assert (second.store_id, retaining.retains(second)) == (first.uid, False)
        assert await w.writer.purge(w.seen(second))
        assert w.stored() == {KEYS.leader}

    told(story)


@pytest.mark.parametrize(("shards", "found"), [(SHARDS + 1, "201 found"), (1, "1 found")])
def test_another_number_of_shards_is_refused_and_changes_nothing(shards: int, found: str) -> None:
    async def story(w: World) -> None:
        first = await w.apply()
        w.serve(first)
        await w.end(first)
        before = w.stored()
        with pytest.raises(FailedPrecondition, match=rf"spec\.sessions\.shards: {found}, 200 is allowed: .* earlier ns/fn were kept"):
            await w.apply(shards=shards)
        assert w.stored() == before
        assert (await w.apply()).store_id == first.uid

    told(story)


def test_a_stateless_function_does_not_take_their_place() -> None:
    item = Item("k", state_pb2.Retained(store_id="u", shards=8).SerializeToString(), 1, 1, 0)
    with pytest.raises(FailedPrecondition, match="no sessions found, 8 is allowed"):
        retaining.adopted(item, "ns/fn", 0)
    for value in (b"\xff\xff", b"", state_pb2.Retained(store_id="../other", shards=8).SerializeToString()):
        with pytest.raises(DataLoss, match="ns/fn cannot begin: k in the store"):
            retaining.adopted(Item("k", value, 1, 1, 0), "ns/fn", 8)


def test_nobody_of_another_namespace_or_name_is_given_them() -> None:
    async def story(w: World) -> None:
        first = await w.apply()
        w.serve(first)
        await w.end(first)
        for place in ("{name: fn, namespace: other}", "{name: fn2, namespace: ns}"):
            text = manifest(shards=SHARDS, reclaim="Retain").replace("{name: fn, namespace: ns}", place)
            assert (await w.entries.apply(text))[0].store_id == ""
        assert KEYS.retained("ns", "fn") in w.stored()

    told(story)


def test_an_owner_of_the_function_that_ended_commits_nothing_more() -> None:
    async def story(w: World) -> None:
        first = await w.apply()
        w.serve(first)
        function = function_of(first)
        fence = w.store.etcd.item(KEYS.shard(function, 0))
        record = w.store.etcd.item(KEYS.state(function, 0, "/s:a"))
        assert fence is not None
        assert record is not None
        commit = transactions.commit(
            {fence.key: fence.mod_revision}, [(record.key, record.mod_revision)], {}, [Put(record.key, b"a former owner's")]
        )
        await w.end(first)
        assert not w.store.etcd.txn(commit).succeeded
        await w.apply()
        assert not w.store.etcd.txn(commit).succeeded

    told(story)


def test_a_leader_that_no_longer_leads_neither_keeps_nor_gives_them() -> None:
    async def story(w: World) -> None:
        first = await w.apply()
        w.serve(first)
        seen = w.seen(first)
        former = World(w.store)  # the key is written again, so its create_revision stays; another's is another number
        former.writer = Writer(w.store, KEYS, w.leader_new + 1000)
        assert await former.writer.retain(seen, 1) == 0
        assert await w.end(first)
        former.entries = FunctionEntries(w.store, KEYS, SimClock(), w.leader_new + 1000)
        before = w.stored()
        with pytest.raises(DormouseError, match="no longer leads"):
            await former.entries.apply(manifest(shards=SHARDS, reclaim="Retain"))
        assert w.stored() == before

    told(story)


@pytest.mark.parametrize(
    "fault", [REQUEST_LOST, REPLY_LOST, FULL, FULL_APPLIED], ids=["request-lost", "reply-lost", "full", "full-and-written"]
)
@pytest.mark.parametrize("at", range(4))
def test_interrupted_anywhere_and_asked_again_it_ends_the_same(at: int, fault: Any) -> None:
    """The third of the transactions registers the function."""

    async def story(w: World) -> None:
        first = await w.apply()
        w.serve(first)
        records = w.stored("data/")
        w.store.fault("txn", fault)
        done = await w.end(first)
        if not done and KEYS.function("ns", "fn") in w.stored():
            assert w.stored("retained/") == set()
            assert await w.end(first)
        for _ in range(at):
            w.store.fault("txn", Fault())
        w.store.fault("txn", fault)
        try:
            await w.apply()
        except Unavailable:
            assert records <= w.stored("data/")
        second = await w.apply()
        assert (second.store_id, w.stored("data/")) == (first.uid, records)
        assert w.owners(second) == dict.fromkeys(USED, "")

    told(story)


async def left_by_a_function_that_ends_between_two_looks(w: World) -> tuple[state_pb2.FunctionEntry, set[str]]:
    """Another's apply and deletion, between the read and the write of one who makes a function of the same name."""
    other = World(w.store.client())
    other.entries, other.writer = (
        FunctionEntries(other.store, KEYS, SimClock(), w.leader_new),
        Writer(other.store, KEYS, w.leader_new),
    )
    done = False

    async def between() -> None:
        nonlocal done
        done = True
        first = await other.apply()
        other.serve(first)
        await other.end(first)

    class Slow(MemoryStore):
        async def txn(self, txn: Txn, *, timeout: float = 5.0) -> Any:
            if not done:
                await between()
            return await super().txn(txn, timeout=timeout)

    slow = Slow(w.store.clock, etcd=w.store.etcd)
    w.entries = FunctionEntries(slow, KEYS, SimClock(), w.leader_new)
    made = await w.apply()
    await slow.close()
    await other.store.close()
    return made, w.stored("data/")


def test_what_was_kept_since_it_was_looked_for_is_adopted() -> None:
    async def story(w: World) -> None:
        made, records = await left_by_a_function_that_ends_between_two_looks(w)
        assert {key.split("/")[6] for key in records} == {made.store_id}

    told(story)


def test_negative_control_without_comparing_that_none_are_kept_they_would_be_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    real = transactions.begin

    def blind(*arguments: Any, **options: Any) -> Txn:
        txn = real(*arguments, **options)
        return Txn(txn.compares[:-1], txn.writes)

    monkeypatch.setattr(function_entries.transactions, "begin", blind)

    async def story(w: World) -> None:
        made, records = await left_by_a_function_that_ends_between_two_looks(w)
        assert records
        assert made.store_id == ""

    told(story)


class Debts:
    def __init__(self, *owed: int) -> None:
        self.owed = set(owed)

    def __contains__(self, shard: tuple[str, int], /) -> bool:
        return shard[1] in self.owed

    def doubt(self, function: Function, created: int, shards: Any) -> None:
        return


def test_while_tombstones_are_owed_nothing_is_kept_for_anybody() -> None:
    async def story(w: World) -> None:
        first = await w.apply()
        w.serve(first)
        debts = Debts(3)
        w.writer = Writer(w.store, KEYS, w.leader_new, debts)
        assert await w.end(first) == 0
        assert KEYS.function("ns", "fn") in w.stored()
        debts.owed.clear()
        assert await w.end(first)

    told(story)


async def left_by_orphans(w: World) -> set[str]:
    """What lies there after the search for keys of functions that are gone, before and after the adoption."""
    first = await w.apply()
    w.serve(first)
    await w.end(first)
    view = View(KEYS, SimClock(), lambda uid: None)
    orphans = Orphans(w.store, SimClock(), KEYS, view, w.leader_new)
    await orphans.once()
    if not w.stored("data/"):
        return set()
    await w.apply()
    await orphans.once()  # not yet in the leader's copy
    key = KEYS.function("ns", "fn")
    view.function_changed(key, None, w.store.etcd.item(key))
    await orphans.once()
    return w.stored("data/")


def test_who_looks_for_keys_of_deleted_functions_leaves_them() -> None:
    async def story(w: World) -> None:
        assert len(await left_by_orphans(w)) == 2 * len(USED)

    told(story)


def test_negative_control_without_their_record_they_would_be_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = transactions.retain

    def forgetful(*arguments: Any, **options: Any) -> Txn:
        txn = real(*arguments, **options)
        return Txn(txn.compares, txn.writes[:-1])

    monkeypatch.setattr(transactions, "retain", forgetful)

    async def story(w: World) -> None:
        assert await left_by_orphans(w) == set()

    told(story)


# ------------------------------------------------------------------------------------------------------------ what follows from the uid


def test_a_worker_and_its_user_reach_the_sessions_that_its_function_adopted_and_its_own_map() -> None:
    function = Function("ns", "fn", "new", "old")
    grants = {grant.key for grant in store_users.function_grants(KEYS, function)}
    assert grants == {"/dormouse/sim/map/ns/fn/new/", "/dormouse/sim/data/ns/fn/old/", "/dormouse/sim/functions/ns/fn"}
    names = WorkerFile.__struct_fields__
    assert "store_id" in names
    assert KEYS.state(function, 3, "/s:a") == "/dormouse/sim/data/ns/fn/old/state/3//s:a"
    assert KEYS.floor(function, 3) == "/dormouse/sim/data/ns/fn/old/floors/3"
    assert KEYS.shard(function, 3) == "/dormouse/sim/map/ns/fn/new/shards/3"
