"""The leader counts and removes the sessions of functions that sleep, deletes sessions for people, and clears up after gone functions."""

import asyncio
import time
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from dormouse_core import records, transactions
from dormouse_core.coordination import Assign
from dormouse_core.errors import InvalidArgument, NotFound, Unavailable
from dormouse_core.keys import Function
from dormouse_core.seams import CreatedIs, Delete, Put, Txn
from dormouse_core.sessions.names import session_key, shard_of
from dormouse_core.spec import Duration, spec_from_json, spec_to_json
from dormouse_operator.counting import Figures
from dormouse_operator.deleting import PAGE, Deleter
from dormouse_operator.orphans import Orphans
from dormouse_operator.owing import Owed
from dormouse_operator.writes import Writer
from dormouse_proto import control_pb2, state_pb2
from dormouse_testing.memory_store import FULL, FULL_APPLIED, REPLY_LOST, REQUEST_LOST, Fault
from dormouse_testing.sleeping import KEYS, SHARDS, Sleeping, simulated

# ------------------------------------------------------------------------------------------------------------------------ removal


@simulated
async def test_ended_and_expired_sessions_of_a_sleeping_function_are_removed_and_counted() -> None:
    s = Sleeping()
    sweeping = asyncio.create_task(s.sweeper.run())
    for n in range(20):
        s.put(f"ended{n}", ended=True)
        s.put(f"idle{n}", ttl=30.0)
    floor_us = s.now_us()
    size = sum(len(i.value) for i in s.store.etcd.range(KEYS.states(s.functions[0])).items)
    await asyncio.sleep(2.0)
    figures = s.counts.figures("uid-0")
    assert figures is not None
    assert (figures.sessions, figures.hibernated) == (20, size)
    await asyncio.sleep(6.0)
    assert len(s.stored()) == 40, "10 s have not passed"
    await asyncio.sleep(8.0)
    assert sorted(s.stored()) == sorted(s.key(f"idle{n}") for n in range(20))
    assert s.floor("ended0") == floor_us
    await asyncio.sleep(35.0)
    assert not s.stored()
    figures = s.counts.figures("uid-0")
    assert figures is not None
    assert (figures.sessions, figures.hibernated) == (0, 0)
    sweeping.cancel()


@simulated
async def test_more_than_one_transaction_takes_are_removed_in_several() -> None:
    """The store takes 128 operations at once."""
    s = Sleeping()
    for n in range(4 * SHARDS * 128):
        s.put(f"s{n}", ended=True)
    await asyncio.sleep(12.0)
    await s.sweeper.once()
    assert s.stored() == []


@simulated
async def test_as_many_tombstones_are_written_once_the_store_has_room() -> None:
    s = Sleeping()
    people = People(s)
    keys = [s.put(f"s{n}", tenant="t") for n in range(4 * SHARDS * 128)]
    full = FullStore(s)
    assert await people.delete(tenant="t") == len(keys)
    full.room = True
    await people.owed.pay()
    assert all(record_of(s, key).body.tombstone for key in keys)
    assert people.owed.shards == {}


@simulated
async def test_an_expired_session_of_a_sleeping_function_counts_no_longer_though_its_record_stays() -> None:
    s = Sleeping(removal_wait=600.0)
    sweeping = asyncio.create_task(s.sweeper.run())
    for n in range(20):
        s.put(f"s{n}", ttl=30.0)
    await asyncio.sleep(29.0)
    stored = bytes_of(s)
    assert (s.counts.figures("uid-0"), len(s.stored())) == (Figures(20, stored, stored), 20)
    await asyncio.sleep(86_400 / 256 + 3.0)
    assert (s.counts.figures("uid-0"), len(s.stored())) == (Figures(0, 0, stored), 20), "within ttl/256"
    sweeping.cancel()


def bytes_of(s: Sleeping) -> int:
    return sum(len(item.value) for item in s.store.etcd.range(KEYS.states(s.functions[0])).items)


@simulated
async def test_a_hold_that_was_made_longer_while_it_sleeps_counts() -> None:
    s = Sleeping(removal_wait=None)
    sweeping = asyncio.create_task(s.sweeper.run())
    s.put("a", ended=True)
    await asyncio.sleep(10.0)
    key = KEYS.function("ns", "fn0")
    before = s.store.etcd.item(key)
    spec = spec_from_json(s.entries[0].spec)
    s.entries[0].spec = spec_to_json(msgspec.structs.replace(spec, timeouts=msgspec.structs.replace(spec.timeouts, hold=Duration("3600s"))))
    s.write(key, s.entries[0].SerializeToString())
    s.view.function_changed(key, before, s.store.etcd.item(key))
    await asyncio.sleep(3600.0)
    assert len(s.stored()) == 1
    await asyncio.sleep(1200.0)  # a quarter of the wait is 915 s
    assert not s.stored()
    sweeping.cancel()


@simulated
async def test_without_a_time_that_can_be_trusted_nothing_is_over() -> None:
    s = Sleeping(trusted=False)
    sweeping = asyncio.create_task(s.sweeper.run())
    s.put("a", ended=True)
    await asyncio.sleep(3600.0)
    assert len(s.stored()) == 1
    sweeping.cancel()


@simulated
async def test_a_former_leader_and_a_shard_that_found_an_owner_are_left_alone() -> None:
    s = Sleeping()
    sweeping = asyncio.create_task(s.sweeper.run())
    for n in range(20):
        s.put(f"s{n}", ended=True)
    for shard in range(SHARDS):
        s.own(shard, "w-1", alive=True)
    await asyncio.sleep(60.0)
    assert len(s.stored()) == 20, "its owner removes them; the leader's copy of the map has not heard of it"
    s.store.etcd.txn(Txn((), (Delete(KEYS.worker(s.functions[0], "w-1")), Delete(KEYS.leader))))
    s.store.etcd.txn(Txn((), (Put(KEYS.leader, b"another"),)))
    await asyncio.sleep(60.0)
    assert len(s.stored()) == 20, "it leads no more"
    sweeping.cancel()


def test_negative_control_without_its_election_key_the_former_leader_would_remove(monkeypatch: pytest.MonkeyPatch) -> None:
    real = transactions.remove

    def unfenced(*args: Any, **given: Any) -> Txn:
        txn = real(*args, **given)
        return Txn(tuple(c for c in txn.compares if not isinstance(c, CreatedIs)), txn.writes)

    monkeypatch.setattr(transactions, "remove", unfenced)

    @simulated
    async def play() -> None:
        s = Sleeping()
        sweeping = asyncio.create_task(s.sweeper.run())
        s.put("a", ended=True)
        s.store.etcd.txn(Txn((), (Delete(KEYS.leader),)))
        s.store.etcd.txn(Txn((), (Put(KEYS.leader, b"another"),)))
        await asyncio.sleep(60.0)
        assert not s.stored()
        sweeping.cancel()

    play()


@simulated
async def test_trouble_with_the_store_or_with_one_record_stops_no_sweep() -> None:
    s = Sleeping(2)
    sweeping = asyncio.create_task(s.sweeper.run())
    broken = s.write(s.key("broken"), b"\x01garbage")
    newer = s.write(s.key("newer"), b"\x09from the future")
    s.write(KEYS.floor(s.functions[0], shard_of(session_key("", "a"), SHARDS)), b"\xff\xff")
    s.put("a", ended=True)
    s.put("b", ended=True, function=1)
    for fault in (REQUEST_LOST, REPLY_LOST):
        s.store.fault("txn", fault)
        s.store.fault("list", fault)
    await asyncio.sleep(120.0)
    assert sorted(s.stored(0)) == sorted([broken, newer])
    assert s.stored(1) == []
    sweeping.cancel()


@simulated
async def test_a_sleeping_function_costs_no_read_until_something_is_due() -> None:
    s = Sleeping(100)
    sweeping = asyncio.create_task(s.sweeper.run())
    for n in range(100):
        s.put("a", function=n, ttl=86_400.0)
    await asyncio.sleep(60.0)
    reads, began = sum(s.store.calls.values()), time.process_time()
    await asyncio.sleep(3600.0)
    assert sum(s.store.calls.values()) == reads
    assert time.process_time() - began < 0.01 * 3600, "1 % of a core"
    sweeping.cancel()


# ----------------------------------------------------------------------------------------------------------------------- deletion


class People:
    def __init__(self, s: Sleeping) -> None:
        self.s = s
        self.told: list[str] = []
        self.owed = Owed(s.store, s.clock, KEYS, s.leader_new, self._told)
        self.deleter = Deleter(s.store, s.clock, KEYS, s.leader_new, self._told, self.owed)

    async def _told(self, function: Function, shard: int, sessions: Any) -> None:
        self.told += sessions

    async def delete(self, **which: str) -> int:
        seen = self.s.view.seen("uid-0")
        assert seen is not None
        return await self.deleter.delete(seen, control_pb2.DeleteSessionsRequest(namespace="ns", name="fn0", **which))


def record_of(s: Sleeping, key: str) -> records.Record:
    item = s.store.etcd.item(key)
    assert item is not None
    return records.decode(item.value)


@simulated
async def test_a_deleted_session_leaves_a_tombstone_without_content_and_no_floor() -> None:
    s = Sleeping()
    people = People(s)
    key = s.put("a")
    s.put("b")
    copy = s.write(KEYS.quarantine(s.functions[0], shard_of("/s:a", SHARDS), "/s:a", 7), b"broken")
    other = s.write(KEYS.quarantine(s.functions[0], shard_of("/s:a", SHARDS), "/s:ab", 7), b"broken")
    assert await people.delete(session="/s:a") == 1
    record = record_of(s, key)
    assert (record.body.tombstone, record.tensors, record.body.expires_us) == (True, (), s.now_us())
    assert [(k.id, k.reply) for k in record.body.kept] == [("g-1", None)], "its keys stay: a call that ran does not run again"
    assert not record_of(s, s.key("b")).body.tombstone
    assert s.floor("a") == 0
    assert people.told == ["/s:a"]
    assert s.store.etcd.item(copy) is None
    assert s.store.etcd.item(other) is not None
    with pytest.raises(NotFound):
        await people.delete(session="/s:none")
    for wrong in ("none", "ü/i:1"):
        with pytest.raises(InvalidArgument, match="percent-encoded"):
            await people.delete(session=wrong)


@simulated
async def test_broken_records_and_those_of_a_newer_build_can_be_deleted() -> None:
    s = Sleeping()
    people = People(s)
    for name, value in (("a", b"\x01garbage"), ("b", b"\x09from the future"), ("c", b"")):
        key = s.write(s.key(name), value)
        assert await people.delete(session=f"/s:{name}") == 1
        body = record_of(s, key).body
        assert (body.tombstone, body.horizon_us, body.newest_us) == (True, s.now_us(), s.now_us())


@simulated
async def test_a_tenants_sessions_are_deleted_and_no_neighbours() -> None:
    s = Sleeping()
    people = People(s)
    tenants = ["", "a", "ab", "a/b", "a%2Fb", "A", "ä"]
    for tenant in tenants:
        for n in range(30):
            s.put(f"s{n}", tenant=tenant)
    for gone in (6, 1, 3, 0):
        copy = s.write(KEYS.quarantine(s.functions[0], 1, session_key(tenants[gone], "x"), 7), b"broken")
        assert await people.delete(tenant=tenants[gone]) == 30
        assert await people.delete(tenant=tenants[gone]) == 0
        assert s.store.etcd.item(copy) is None
        for n, tenant in enumerate(tenants):
            over = {record_of(s, s.key(f"s{m}", tenant)).body.tombstone for m in range(30)}
            assert over == {n in (6, 1, 3, 0)[: (6, 1, 3, 0).index(gone) + 1]}, tenant


@simulated
async def test_a_tenants_name_is_as_long_as_a_callers_may_be() -> None:
    s = Sleeping()
    s.put("a", tenant="t" * 128)
    assert await People(s).delete(tenant="t" * 128) == 1
    with pytest.raises(InvalidArgument, match="129 characters found, at most 128 are allowed"):
        await People(s).delete(tenant="t" * 129)


@simulated
async def test_a_tenant_with_more_sessions_in_a_shard_than_are_read_at_once() -> None:
    s = Sleeping()
    keys = [s.put(f"s{n}", tenant="t") for n in range(SHARDS * 3 * PAGE)]
    assert await People(s).delete(tenant="t") == len(keys)
    assert all(record_of(s, key).body.tombstone for key in keys)


@simulated
async def test_a_session_that_is_written_meanwhile_is_deleted_all_the_same() -> None:
    s = Sleeping()
    people = People(s)
    for n in range(10):
        s.put(f"s{n}", tenant="t")
    once = iter([True] * 3)

    def step(method: str, request: object) -> None:
        if method == "txn" and next(once, False):
            s.put("s3", tenant="t")

    s.store.hook = step  # type: ignore[assignment]
    assert await people.delete(tenant="t") == 10
    assert all(record_of(s, s.key(f"s{n}", "t")).body.tombstone for n in range(10))


@simulated
async def test_a_former_leader_deletes_nothing() -> None:
    s = Sleeping()
    people = People(s)
    key = s.put("a")
    s.store.etcd.txn(Txn((), (Delete(KEYS.leader),)))
    s.store.etcd.txn(Txn((), (Put(KEYS.leader, b"another"),)))
    for which in ({"session": "/s:a"}, {"tenant": ""}):
        with pytest.raises(Unavailable, match="no longer leads"):
            await people.delete(**which)
    assert not record_of(s, key).body.tombstone
    copy = s.write(KEYS.quarantine(s.functions[0], shard_of("/s:none", SHARDS), "/s:none", 7), b"broken")
    with pytest.raises(NotFound):
        await people.delete(session="/s:none")
    assert s.store.etcd.item(copy) is not None


class FullStore:
    """The store refuses what etcd refuses at its quota: every transaction with a put, until `room`."""

    def __init__(self, s: Sleeping) -> None:
        self.room = False
        s.store.hook = self._fault

    def _fault(self, method: str, request: object) -> Fault | None:
        full = method == "txn" and not self.room and isinstance(request, Txn) and any(isinstance(w, Put) for w in request.writes)
        return FULL if full else None


@simulated
async def test_a_full_store_deletes_all_the_same_and_its_tombstones_follow_before_anybody_owns_the_shard() -> None:
    s = Sleeping()
    people = People(s)
    key, other, neighbour = s.put("a", tenant="t"), s.put("b", tenant="t"), s.put("c")
    shards = {shard_of(session_key("t", name), SHARDS) for name in "ab"}
    for shard in shards:
        s.write(KEYS.shard(s.functions[0], shard), state_pb2.ShardEntry(owner="w", epoch=7).SerializeToString())
    full = FullStore(s)
    assert await people.delete(tenant="t") == 2
    assert s.store.etcd.item(key) is None
    assert s.store.etcd.item(other) is None
    assert s.store.etcd.item(neighbour) is not None
    assert all(s.store.etcd.item(KEYS.shard(s.functions[0], shard)) is None for shard in shards), "what is under way to its owner fails"
    assert {shard for _, shard in people.owed.shards} == shards
    await people.owed.pay()
    assert {shard for _, shard in people.owed.shards} == shards, "it is full still"
    full.room = True
    await people.owed.pay()
    assert people.owed.shards == {}
    body = record_of(s, key).body
    assert (body.tombstone, [(k.id, k.reply) for k in body.kept]) == (True, [("g-1", None)]), "a copy of a call that ran does not run again"
    assert s.floor("a") == 0
    assert not record_of(s, neighbour).body.tombstone
    for shard in shards:
        assert owner(s, shard) == "", "it can be given away again"


def owner(s: Sleeping, shard: int) -> str:
    item = s.store.etcd.item(KEYS.shard(s.functions[0], shard))
    assert item is not None
    return state_pb2.ShardEntry.FromString(item.value).owner


async def assigned(s: Sleeping) -> None:
    """Every shard of the function, for the first time."""
    key = KEYS.function("ns", "fn0")
    function = s.store.etcd.item(s.write(key, b"entry"))
    s.write(KEYS.worker(s.functions[0], "w"), b"")
    assert function is not None
    made = {"function_new": function.create_revision, "leader_new": s.leader_new}
    for first in range(0, SHARDS, transactions.MAX_SHARDS):
        shards = range(first, min(first + transactions.MAX_SHARDS, SHARDS))
        assert (await s.store.txn(transactions.assign(KEYS, s.functions[0], "w", shards, **made))).succeeded


def another_leads(s: Sleeping) -> People:
    """A leader that knows nothing of the one before it."""
    s.store.etcd.txn(Txn((), (Delete(KEYS.leader),)))
    s.write(KEYS.leader, b"another")
    item, function = s.store.etcd.item(KEYS.leader), s.store.etcd.item(KEYS.function("ns", "fn0"))
    assert item is not None
    assert function is not None
    s.leader_new = item.create_revision
    people = People(s)
    missing = [shard for shard in range(SHARDS) if s.store.etcd.item(KEYS.shard(s.functions[0], shard)) is None]
    people.owed.doubt(s.functions[0], function.create_revision, missing)
    return people


@simulated
async def test_what_a_leader_owed_at_its_end_the_next_one_settles_before_anybody_owns_the_shard() -> None:
    """It cannot name the sessions, so nothing that was called until now begins one."""
    s = Sleeping()
    await assigned(s)
    people = People(s)
    s.put("a")
    shard = shard_of("/s:a", SHARDS)
    full = FullStore(s)
    assert await people.delete(session="/s:a") == 1
    people = another_leads(s)
    assert ("uid-0", shard) in people.owed
    await people.owed.settle()
    assert ("uid-0", shard) in people.owed, "it is full still"
    full.room = True
    await people.owed.settle()
    assert ("uid-0", shard) not in people.owed
    assert owner(s, shard) == ""
    assert s.floor("a") == s.now_us() + 60_000_000, "a caller's own key may be from so far ahead"
    other = next(n for n in range(SHARDS) if n != shard)
    assert owner(s, other) == "w", "others keep their owners"
    item = s.store.etcd.item(KEYS.floor(s.functions[0], other))
    assert item is not None
    assert state_pb2.Floor.FromString(item.value).timestamp_us == 0


@simulated
async def test_debts_of_a_leaders_own_do_not_hide_what_it_inherited() -> None:
    s = Sleeping()
    await assigned(s)
    people = People(s)
    s.put("a")
    shard = shard_of("/s:a", SHARDS)
    other = next(name for name in map("n{}".format, range(1000)) if shard_of(f"/s:{name}", SHARDS) == shard)
    key = s.put(other)
    full = FullStore(s)
    assert await people.delete(session="/s:a") == 1
    people = another_leads(s)
    assert await people.delete(session=f"/s:{other}") == 1
    full.room = True
    await people.owed.pay()
    assert s.store.etcd.item(KEYS.shard(s.functions[0], shard)) is None
    await people.owed.settle()
    await people.owed.pay()
    assert s.floor("a") == s.now_us() + 60_000_000
    assert owner(s, shard) == ""
    assert record_of(s, key).body.tombstone
    assert ("uid-0", shard) not in people.owed


@simulated
async def test_shards_that_nobody_ever_owned_are_not_held_back() -> None:
    s = Sleeping()
    s.write(KEYS.function("ns", "fn0"), b"entry")
    people = another_leads(s)
    assert ("uid-0", 0) in people.owed, "not known yet"
    await people.owed.settle()
    assert not any(("uid-0", shard) in people.owed for shard in range(SHARDS))
    assert s.floor("a") == 0
    await assigned(s)


@simulated
async def test_negative_control_without_floors_from_the_first_assignment_the_next_leader_would_not_know() -> None:
    s = Sleeping()
    await assigned(s)
    people = People(s)
    s.put("a")
    shard = shard_of("/s:a", SHARDS)
    full = FullStore(s)
    assert await people.delete(session="/s:a") == 1
    full.room = True
    s.store.etcd.txn(Txn((), (Delete(KEYS.floor(s.functions[0], shard)),)))
    people = another_leads(s)
    await people.owed.settle()
    assert ("uid-0", shard) not in people.owed
    assert s.floor("a") == 0


@simulated
async def test_a_shard_that_lost_its_entry_is_settled_by_a_leader_that_could_not_assign_it() -> None:
    s = Sleeping()
    await assigned(s)
    people = People(s)
    s.write(KEYS.worker(s.functions[0], "w"), b"")
    s.store.etcd.txn(Txn((), (Delete(KEYS.shard(s.functions[0], 1)),)))
    function = s.store.etcd.item(KEYS.function("ns", "fn0"))
    seen = s.view.seen("uid-0")
    assert function is not None
    assert seen is not None
    seen = replace(seen, entry_created=function.create_revision)
    writer = Writer(s.store, KEYS, s.leader_new, people.owed)
    wanted = [Assign("w", (1,), "new")]
    assert await writer.shards(seen, writer.allowed(seen, wanted)) == 0
    assert writer.allowed(seen, wanted) == []
    await people.owed.settle()
    assert owner(s, 1) == ""


@simulated
async def test_a_tombstone_that_a_store_took_as_it_became_full_is_a_deletion() -> None:
    s = Sleeping()
    people = People(s)
    key = s.put("a")
    first = iter([FULL_APPLIED])
    s.store.hook = lambda method, request: next(first, None) if method == "txn" else None
    assert await people.delete(session="/s:a") == 1
    assert record_of(s, key).body.tombstone
    assert people.owed.shards == {}
    assert people.told, "its owner hears of it"


@simulated
async def test_a_deletion_of_unknown_outcome_in_a_full_store_ends_in_a_tombstone() -> None:
    for fault in (REQUEST_LOST, REPLY_LOST, Fault(request_delay=30.0)):
        s = Sleeping()
        people = People(s)
        key = s.put("a")
        full = FullStore(s)
        refuse = s.store.hook
        lose = iter([fault])
        assert refuse is not None
        s.store.hook = lambda method, request, refuse=refuse, lose=lose: (
            refuse(method, request)
            or (  # type: ignore[misc]
                next(lose, None) if method == "txn" else None
            )
        )
        with pytest.raises(Unavailable):
            await people.delete(session="/s:a")
        full.room = True
        await people.owed.pay()
        assert people.owed.shards == {}
        await asyncio.sleep(60.0)
        assert record_of(s, key).body.tombstone, "also where it lands late"


@simulated
async def test_shards_whose_tombstones_are_owed_are_given_to_nobody() -> None:
    s = Sleeping()
    key = s.write(KEYS.function("ns", "fn0"), b"entry")
    item = s.store.etcd.item(key)
    seen = s.view.seen("uid-0")
    assert item is not None
    assert seen is not None
    seen = replace(seen, entry_created=item.create_revision)
    s.write(KEYS.worker(s.functions[0], "w"), b"")

    def given() -> list[int]:
        return [shard for shard in range(SHARDS) if s.store.etcd.item(KEYS.shard(s.functions[0], shard)) is not None]

    wanted = [Assign("w", (0, 1, 2), "new")]
    owed = Owed(s.store, s.clock, KEYS, s.leader_new, People(s)._told)
    writer = Writer(s.store, KEYS, s.leader_new, owed)
    for shard in (0, 1, 2):
        owed.owe(s.functions[0], shard, {f"key{shard}": (1, b"")})
    assert writer.allowed(seen, wanted) == []
    for shard in (0, 2):
        owed.forgive(s.functions[0], shard, [f"key{shard}"])
    await writer.shards(seen, writer.allowed(seen, wanted))
    assert given() == [0, 2]


@simulated
async def test_a_tombstone_that_was_owed_does_not_land_again_when_its_record_is_gone_for_the_next_time() -> None:
    """A copy of the transaction that paid comes late: record and entry are absent again, as they were when it was made."""
    s = Sleeping()
    function, shard = s.functions[0], shard_of("/s:a", SHARDS)
    owed = Owed(s.store, s.clock, KEYS, s.leader_new, People(s)._told)
    s.write(KEYS.function("ns", "fn0"), b"entry")
    s.write(KEYS.floor(function, shard), state_pb2.Floor(timestamp_us=7).SerializeToString())
    key = KEYS.state(function, shard, "/s:a")
    sent: list[Txn] = []
    txn = s.store.txn

    async def seen(it: Txn, **more: Any) -> Any:
        sent.append(it)
        return await txn(it, **more)

    s.store.txn = seen  # type: ignore[method-assign]
    owed.owe(function, shard, {key: (3, b"the first")})
    await owed.pay()
    item = s.store.etcd.item(key)
    assert item is not None
    assert item.value == b"the first"
    assert not owed.shards
    s.store.etcd.txn(Txn((), (Delete(key), Delete(KEYS.shard(function, shard)))))
    assert not (await txn(sent[-1])).succeeded
    assert s.store.etcd.item(key) is None
    floor = s.store.etcd.item(KEYS.floor(function, shard))
    assert floor is not None
    assert state_pb2.Floor.FromString(floor.value).timestamp_us == 7


@simulated
async def test_a_session_is_deleted_once() -> None:
    s = Sleeping()
    people = People(s)
    key = s.put("a")
    assert await people.delete(session="/s:a") == 1
    first = s.store.etcd.item(key)
    copy = s.write(KEYS.quarantine(s.functions[0], shard_of("/s:a", SHARDS), "/s:a", 7), b"broken")
    with pytest.raises(NotFound):
        await people.delete(session="/s:a")
    assert s.store.etcd.item(copy) is None, "where a first deletion ended halfway, asking again completes it"
    assert s.store.etcd.item(key) == first, "its removal does not begin to wait anew"


# ------------------------------------------------------------------------------------------------------------- gone functions


@simulated
async def test_what_gone_functions_left_is_removed_and_nothing_else() -> None:
    s = Sleeping()
    kept = s.put("a")
    gone, replaced = Function("ns", "gone", "uid-x"), Function("ns", "fn0", "uid-before")
    alive = Function("ns", "alive", "uid-y")
    unread = Function("ns", "unread", "uid-z")
    for function in (gone, replaced, alive, unread):
        s.write(KEYS.state(function, 1, "/s:a"), b"x")
        s.write(KEYS.floor(function, 1), b"")
        s.write(KEYS.shard(function, 1), b"")
    s.write(KEYS.state(Function("ns", "gone", "uid-data-alone"), 1, "/s:a"), b"x")
    s.write(KEYS.worker(alive, "w"), b"")
    s.write(KEYS.function("ns", "unread"), b"\xff\xff")
    late = Function("ns", "late", "uid-late")  # registered a moment ago: not yet in the leader's copy
    s.write(KEYS.function("ns", "late"), state_pb2.FunctionEntry(namespace="ns", name="late", uid="uid-late").SerializeToString())
    s.write(KEYS.state(late, 1, "/s:a"), b"x")
    await Orphans(s.store, s.clock, KEYS, s.view, s.leader_new).once()
    left = {item.key for root in (KEYS.maps, KEYS.root + "data/") for item in s.store.etcd.range(root).items}
    of = {name: {key for key in left if f"/{name}/" in key} for name in ("uid-x", "uid-before", "uid-y", "uid-z", "uid-late")}
    assert {name: len(keys) for name, keys in of.items()} == {"uid-x": 0, "uid-before": 0, "uid-y": 4, "uid-z": 3, "uid-late": 1}
    assert kept in left
    assert not [key for key in left if "uid-data-alone" in key]


@simulated
async def test_what_a_function_has_that_is_registered_while_they_are_looked_for_stays() -> None:
    s = Sleeping()
    new = Function("ns", "new", "uid-new")
    keys = [s.write(KEYS.state(new, 1, "/s:a"), b"x"), s.write(KEYS.shard(new, 1), b"")]

    def registered(method: str, request: object) -> None:
        if method == "txn":
            s.write(KEYS.function("ns", "new"), state_pb2.FunctionEntry(namespace="ns", name="new", uid="uid-new").SerializeToString())

    s.store.hook = registered  # type: ignore[assignment]
    await Orphans(s.store, s.clock, KEYS, s.view, s.leader_new).once()
    assert all(s.store.etcd.item(key) is not None for key in keys)


# ------------------------------------------------------------------------------------------------------------- the end of a function


async def left_by_a_function_that_ends_under_an_owner_that_commits() -> list[str]:
    """An owner that does not know that it has none left to serve tries to commit before each of the purge's transactions."""
    s = Sleeping()
    function = s.functions[0]
    entry = s.write(KEYS.shard(function, 0), b"owner")
    function_entry = s.store.etcd.item(KEYS.function("ns", "fn0"))
    fence = s.store.etcd.item(entry)
    seen = s.view.seen("uid-0")
    assert seen is not None
    assert fence is not None
    assert function_entry is not None
    tried = 0

    def commit(method: str, request: object) -> None:
        nonlocal tried
        tried += 1
        key = KEYS.state(function, 0, f"/s:{tried}")
        s.store.etcd.txn(transactions.commit({entry: fence.mod_revision}, [(key, 0)], {}, [Put(key, b"record")]))

    s.store.hook = commit
    writer = Writer(s.store, KEYS, s.leader_new, None)
    assert await writer.purge(replace(seen, entry_mod=function_entry.mod_revision)) > 0
    assert tried > 3
    return [item.key for item in s.store.etcd.range(KEYS.root).items if item.key != KEYS.leader]


@simulated
async def test_a_function_that_is_gone_leaves_nothing_whatever_its_owners_still_try() -> None:
    assert await left_by_a_function_that_ends_under_an_owner_that_commits() == []


def test_negative_control_without_taking_its_map_first_records_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Writer._one

    async def one(self: Writer, txn: Txn, timeout: float = 5.0) -> Any:
        if txn.writes == (Delete(KEYS.map(Function("ns", "fn0", "uid-0")), prefix=True),):
            txn = Txn(txn.compares, ())
        return await real(self, txn, timeout)

    monkeypatch.setattr(Writer, "_one", one)

    @simulated
    async def play() -> None:
        assert [key for key in await left_by_a_function_that_ends_under_an_owner_that_commits() if "/data/" in key]

    play()


# ------------------------------------------------------------------------------------------------------- keys that nobody of ours wrote

STRANGE = ("²", "٣", "9" * 5000, "\udcff", "-1", "01")


@simulated
async def test_records_below_what_is_no_shard_are_left_and_the_others_are_removed() -> None:
    s = Sleeping(2)
    s.put("ended", ended=True)
    item = s.store.etcd.item(s.key("ended"))
    assert item is not None
    for name in STRANGE:
        s.write(f"{KEYS.states(s.functions[0])}{name}/x", item.value)
    sweeping = asyncio.create_task(s.sweeper.run())
    await asyncio.sleep(60.0)
    assert not sweeping.done()
    assert s.store.etcd.item(s.key("ended")) is None
    sweeping.cancel()


@simulated
async def test_an_error_with_one_function_keeps_no_other_from_being_swept(monkeypatch: pytest.MonkeyPatch) -> None:
    s = Sleeping(2)
    s.put("ended", ended=True)
    scan = s.sweeper._scan

    async def failing(registered: Any, state: Any) -> None:
        if registered.function == s.functions[1]:
            raise ValueError("nobody foresaw it")
        await scan(registered, state)

    monkeypatch.setattr(s.sweeper, "_scan", failing)
    sweeping = asyncio.create_task(s.sweeper.run())
    await asyncio.sleep(60.0)
    assert not sweeping.done()
    assert not s.stored()
    sweeping.cancel()


@simulated
async def test_floors_of_what_is_no_shard_keep_no_leader_from_settling_the_others() -> None:
    s = Sleeping()
    function = s.functions[0]
    for name in ("1", *STRANGE):
        s.write(f"{KEYS.floors(function)}{name}", state_pb2.Floor().SerializeToString())
    registered = s.store.etcd.item(KEYS.function(function.namespace, function.name))
    assert registered is not None

    async def hear(function: Function, shard: int, sessions: object) -> None: ...

    owed = Owed(s.store, s.clock, KEYS, s.leader_new, hear)
    owed.doubt(function, registered.create_revision, [1])
    await owed.settle()
    assert (function.uid, 1) not in owed
    after = s.store.etcd.item(KEYS.shard(function, 1))
    assert after is not None
