"""A full store's no is not definite: etcd looks at its quota again when it applies, and may say that it is full of what it wrote (decision
0106). For every place that writes to the store: what is told and believed afterwards is what the store has, whether it wrote or not."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest
from dormouse_core.errors import FailedPrecondition, Unavailable
from dormouse_core.keys import Function, Keys
from dormouse_core.limits import LEASE_SECONDS
from dormouse_core.seams import Delete, Item, Put, Txn
from dormouse_core.sessions.names import session_key, shard_of
from dormouse_gateway.leader.leading import GatewayRegistration
from dormouse_kit.election import Election
from dormouse_operator.function_entries import FunctionEntries
from dormouse_operator.owing import Owed
from dormouse_proto import state_pb2
from dormouse_testing import sleeping
from dormouse_testing.clock import SimClock
from dormouse_testing.leader_scene import Scene
from dormouse_testing.leader_scene import simulated as told
from dormouse_testing.leader_world import KEYS, manifest
from dormouse_testing.memory_store import FULL, FULL_APPLIED, Fault, MemoryStore
from dormouse_testing.session_worker import SHARDS, F, K, Worker, simulated
from dormouse_testing.sleeping import Sleeping
from dormouse_testing.timed_worker import TimedWorker, stored
from dormouse_worker.sessions import SessionSettings, WorkerRegistration

ROOT = Path(__file__).parents[2]
DELETIONS = "nothing but deletions, which a full store takes"
WRITERS: dict[str, tuple[str, ...]] = {
    "gateway/dormouse_gateway/leader/leading.py": ("test_a_gateways_entry",),
    "kit/dormouse_kit/election.py": ("test_an_election",),
    "operator/dormouse_operator/deleting.py": (
        "test_a_tombstone_that_a_store_took_as_it_became_full_is_a_deletion",
        DELETIONS,
        DELETIONS,
    ),
    "operator/dormouse_operator/cancelling.py": ("test_an_alarm_that_a_store_took_out_as_it_became_full_is_cancelled",),
    "operator/dormouse_operator/orphans.py": (DELETIONS,),
    "operator/dormouse_operator/owing.py": ("test_what_a_leader_before_this_one_owed", "test_owed_tombstones"),
    "operator/dormouse_operator/function_entries.py": (
        "test_the_leader_leaves_the_mark_when_every_function_has_its_entry_and_however_often_it_takes",
        "test_interrupted_anywhere_and_asked_again_it_ends_the_same",
        "test_what_people_change",
        "test_interrupted_anywhere_and_asked_again_it_ends_the_same",
    ),
    "cli/dormouse/restoring.py": (
        "test_a_full_store_is_told_and_the_restore_can_be_made_again",
        "test_a_full_store_is_told_and_the_restore_can_be_made_again",
    ),
    "operator/dormouse_operator/sweeping.py": ("test_a_removal_by_the_leader",),
    "operator/dormouse_operator/writes.py": ("test_what_the_leader_writes",),
    "worker/dormouse_worker/process/jsonstore.py": ("nobody is told what became of a supervisor's word; it is read where it stands",),
    "core/dormouse_core/sessions/groups.py": (
        "test_the_broken_bytes_are_there_or_in_quarantine_at_every_moment",
        "test_what_a_full_store_refuses_is_read_before_anybody_is_told",
    ),
    "core/dormouse_core/sessions/turns.py": ("when an alarm is looked at next: nobody is told, and the next look finds it as it is",),
    "core/dormouse_core/sessions/moves.py": ("test_a_handoff",),
    "worker/dormouse_worker/sessions/driver.py": ("what the plans of the session machine write; they are looked at where they stand",),
    "worker/dormouse_worker/sessions/registration.py": ("test_a_workers_entry",),
    "worker/dormouse_worker/sessions/removal.py": ("test_a_removal_by_the_owner",),
}
"""Each place that writes, in the order of its module: the test that shows it."""

both = pytest.mark.parametrize("fault", [FULL, FULL_APPLIED], ids=["not written", "written"])


def test_each_place_that_writes_is_looked_at() -> None:
    places = {}
    for part in ("core", "kit", "operator", "gateway", "worker", "cli"):
        for path in sorted((ROOT / part).rglob("*.py")):
            calls = re.findall(r"\.txn\(|yield Transact\(|/kv/txn", path.read_text())
            if calls and "dormouse_kit/etcd/" not in str(path):
                places[str(path.relative_to(ROOT))] = len(calls)
    assert places == {module: len(tests) for module, tests in WRITERS.items()}
    names = "".join(path.read_text() for path in (ROOT / "tests" / "unit").glob("*.py"))
    named = [test for tests in WRITERS.values() for test in tests if test.startswith("test_")]
    assert [test for test in named if f"def {test}(" not in names] == []


def refusing(store: MemoryStore, fault: Fault, times: int = 1) -> None:
    """The next `times` transactions with a put meet `fault`."""
    left = [fault] * times

    def hook(method: str, request: object) -> Fault | None:
        puts = method == "txn" and isinstance(request, Txn) and any(isinstance(write, Put) for write in request.writes)
        return left.pop() if puts and left else None

    store.hook = hook


# --------------------------------------------------------------------------------------------------------------------- the registry

Change = Callable[[FunctionEntries], Awaitable[tuple[object, ...] | int]]
CHANGES: dict[str, Change] = {
    "created": lambda r: r.apply(manifest()),
    "configured": lambda r: r.apply(manifest("v2.onnx")),
    "scaled": lambda r: r.scale("ns", "fn", 3),
    "deleted": lambda r: r.delete("ns", "fn"),
}
ENTRY = KEYS.function("ns", "fn")


def registry(store: MemoryStore) -> FunctionEntries:
    store.etcd.txn(Txn((), (Put(KEYS.leader, b"me"),)))
    leader = store.etcd.item(KEYS.leader)
    assert leader is not None
    return FunctionEntries(store, KEYS, SimClock(), leader.create_revision)


@both
@pytest.mark.parametrize("name", CHANGES)
@simulated
async def test_what_people_change(name: str, fault: Fault) -> None:
    store = MemoryStore(SimClock())
    entries = registry(store)
    if name != "created":
        await entries.apply(manifest())
    before = store.etcd.item(ENTRY)
    refusing(store, fault)
    told_of = ""
    try:
        answer = await CHANGES[name](entries)
    except Unavailable as error:
        told_of = error.message
        assert store.etcd.item(ENTRY) == before
        answer = await CHANGES[name](entries)  # asked again
    # What follows a deletion are deletions, so it is begun without its mark.
    assert ("is not changed: the store is full" in told_of) == (fault is FULL and name != "deleted")
    after = store.etcd.item(ENTRY)
    assert after is not None
    revision = answer if isinstance(answer, int) else answer[-1]
    if name == "deleted" and fault is FULL:
        assert (revision, after, entries.ending) == (0, before, {state_pb2.FunctionEntry.FromString(after.value).uid})
        for change in ("configured", "scaled"):
            with pytest.raises(FailedPrecondition, match="is being deleted"):
                await CHANGES[change](entries)
        assert store.etcd.item(ENTRY) == before
        return
    assert after != before
    assert revision == after.mod_revision
    assert not entries.ending
    if not isinstance(answer, int):
        assert answer[0] == state_pb2.FunctionEntry.FromString(after.value)
        assert name == "scaled" or answer[1] == name


@pytest.mark.parametrize("name", CHANGES)
@simulated
async def test_what_people_change_and_the_leader_changes_again_before_it_is_read(name: str) -> None:
    """ "Is not changed" would be untrue: the leader has proved the revision meanwhile, of the entry that was written."""
    store = MemoryStore(SimClock())
    entries = registry(store)
    if name != "created":
        await entries.apply(manifest())
    refused = iter([FULL_APPLIED])
    reads = iter(range(9))

    def hook(method: str, request: object) -> Fault | None:
        if method == "get" and next(reads) == 1:
            item = store.etcd.item(ENTRY)
            assert item is not None
            entry = state_pb2.FunctionEntry.FromString(item.value)
            entry.proved_revision = entry.revision
            store.etcd.txn(Txn((), (Put(ENTRY, entry.SerializeToString()),)))
        return next(refused, None) if method == "txn" else None

    store.hook = hook
    answer = await CHANGES[name](entries)
    after = store.etcd.item(ENTRY)
    assert after is not None
    entry = state_pb2.FunctionEntry.FromString(after.value)
    assert (entry.proved_revision, entry.deleting) == (entry.revision, name == "deleted")
    assert entry.generation == (1 if name in ("created", "deleted") else 2), "and is not written twice"
    assert (answer if isinstance(answer, int) else answer[-1]) == after.mod_revision


@simulated
async def test_negative_control_believed_and_not_read_the_no_would_be_untrue(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore(SimClock())
    entries = registry(store)
    read = await store.get([ENTRY])

    async def blind(keys: Sequence[str], *, timeout: float = 5.0) -> tuple[int, dict[str, Item]]:
        return read

    monkeypatch.setattr(store, "get", blind)
    refusing(store, FULL_APPLIED)
    with pytest.raises(Unavailable, match="is not changed"):
        await entries.apply(manifest())
    assert store.etcd.item(ENTRY) is not None


# ----------------------------------------------------------------------------------------------------------------------- the leader


@both
def test_what_the_leader_writes(fault: Fault) -> None:
    """Proofs, and shards: each write is refused once. What was written is not written again."""

    async def story(s: Scene) -> None:
        refused: set[tuple[str, ...]] = set()

        def hook(method: str, request: object) -> Fault | None:
            if method != "txn" or not isinstance(request, Txn):
                return None
            keys = tuple(write.key for write in request.writes if isinstance(write, Put) and write.key.startswith((KEYS.maps, ENTRY)))
            if not keys or keys in refused:
                return None
            refused.add(keys)
            return fault

        await s.apply(manifest())
        s.store.hook = hook
        await s.world.until(lambda: bool(s.world.living()) and s.owned_by(*s.world.living()), 10.0)
        entry = s.world.entry()
        assert entry is not None
        assert entry.proved_revision == entry.revision
        assert (ENTRY,) in refused
        assert len(refused) > 1
        items = s.world.store.etcd.range(KEYS.maps, "", 0, 0, False).items
        assert {state_pb2.ShardEntry.FromString(i.value).epoch for i in items if "/shards/" in i.key} == {1}

    told(story)


@both
@sleeping.simulated
async def test_a_removal_by_the_leader(fault: Fault) -> None:
    s = Sleeping()
    s.put("a", ended=True)
    s.put("b")
    refusing(s.store, fault)
    task = asyncio.create_task(s.sweeper.run())
    await asyncio.sleep(60.0)
    task.cancel()
    assert s.stored() == [s.key("b")]
    assert s.floor("a") > 0


@both
@sleeping.simulated
async def test_owed_tombstones(fault: Fault) -> None:
    s = Sleeping()
    key = s.put("a")
    item = s.store.etcd.item(key)
    assert item is not None
    heard: list[str] = []

    async def hear(function: Function, shard: int, sessions: object) -> None:
        heard.extend(sessions)  # type: ignore[arg-type]

    owed = Owed(s.store, s.clock, KEYS_OF_SLEEPING, s.leader_new, hear)
    shard = shard_of(session_key("", "a"), SHARDS)
    owed.owe(s.functions[0], shard, {key: (item.mod_revision, b"tombstone")})
    s.store.etcd.txn(Txn((), (Delete(key),)))
    refusing(s.store, fault)
    await owed.pay()
    assert (owed.shards, heard) != ({}, []), "nobody is told before it is known"
    written = s.store.etcd.item(key)
    assert (written is not None) == (fault is FULL_APPLIED)
    await owed.pay()
    after = s.store.etcd.item(key)
    assert after is not None
    assert (after.value, owed.shards, heard) == (b"tombstone", {}, ["/s:a"])
    assert written in (None, after), "it is written once"


KEYS_OF_SLEEPING = sleeping.KEYS


@both
@sleeping.simulated
async def test_what_a_leader_before_this_one_owed(fault: Fault) -> None:
    s = Sleeping()
    function, shard = s.functions[0], 1
    key = KEYS_OF_SLEEPING.shard(function, shard)
    s.write(KEYS_OF_SLEEPING.floor(function, shard), state_pb2.Floor().SerializeToString())
    registered = s.store.etcd.item(KEYS_OF_SLEEPING.function("ns", "fn0"))
    assert registered is not None

    async def hear(function: Function, shard: int, sessions: object) -> None:
        raise AssertionError("nobody can name them")

    owed = Owed(s.store, s.clock, KEYS_OF_SLEEPING, s.leader_new, hear)
    owed.doubt(function, registered.create_revision, [shard])
    refusing(s.store, fault)
    await owed.settle()
    assert (function.uid, shard) in owed, "nobody is given it before it is known"
    written = s.store.etcd.item(key)
    assert (written is not None) == (fault is FULL_APPLIED)
    await owed.settle()
    after = s.store.etcd.item(key)
    assert after is not None
    assert state_pb2.ShardEntry.FromString(after.value).owner == ""
    assert written in (None, after), "it is written once"
    assert (function.uid, shard) not in owed


@both
@simulated
async def test_an_election(fault: Fault) -> None:
    store = MemoryStore(SimClock())
    election = Election(store, store.clock, "/leader", b"a")
    refusing(store, fault)
    won = await election.campaign()
    item = store.etcd.item("/leader")
    assert item is not None
    assert won == item.create_revision
    await asyncio.sleep(3.0 * LEASE_SECONDS)
    assert election.leading
    assert store.etcd.item("/leader") == item
    await election.resign()


# ---------------------------------------------------------------------------------------------------------------------- the gateway


@both
@simulated
async def test_a_gateways_entry(fault: Fault) -> None:
    store = MemoryStore(SimClock())
    keys = Keys("t")
    refusing(store, fault)
    task = asyncio.create_task(GatewayRegistration(store, SimClock(), keys, "g", "a:1").run())
    await asyncio.sleep(4.0 * LEASE_SECONDS)
    for _ in range(20):
        await asyncio.sleep(0.5)
        assert store.etcd.item(keys.gateway("g")) is not None, "under a lease that is kept"
    task.cancel()


@simulated
async def test_a_gateway_that_leaves_before_it_knows_that_it_registered_leaves_no_entry() -> None:
    store, keys = MemoryStore(SimClock()), Keys("t")
    registration = GatewayRegistration(store, SimClock(), keys, "g", "a:1")
    store.fault("txn", Fault(reply_delay=0.5))
    task = asyncio.create_task(registration.run())
    await asyncio.sleep(0.2)
    assert store.etcd.item(keys.gateway("g")) is not None
    task.cancel()
    await registration.leave()
    assert store.etcd.item(keys.gateway("g")) is None, "nobody waits for the lease to end"


# --------------------------------------------------------------------------------------------------------------------------- workers


@both
@simulated
async def test_a_workers_entry(fault: Fault) -> None:
    store = MemoryStore(SimClock())
    registration = WorkerRegistration(F, store, SimClock(), worker="w-1", address="a:1", instance="w", revision="r", keys=K)
    key = K.worker(F, "w-1")
    refusing(store, fault)
    await registration.start()
    ready = store.etcd.item(key)
    assert ready is not None
    assert state_pb2.WorkerEntry.FromString(ready.value).state == state_pb2.WorkerEntry.READY
    await asyncio.sleep(3.0 * LEASE_SECONDS)
    assert store.etcd.item(key) == ready, "under a lease that is kept"
    refusing(store, fault)
    await registration.drain()
    after = store.etcd.item(key)
    assert after is not None
    assert state_pb2.WorkerEntry.FromString(after.value).state == state_pb2.WorkerEntry.DRAINING
    assert not registration.lost.is_set()
    await registration.close()
    assert store.etcd.item(key) is None


@both
@simulated
async def test_a_handoff(fault: Fault) -> None:
    store = MemoryStore(SimClock())
    async with Worker(store) as w, Worker(store.client(), "w-2") as other:
        await w.own()
        shard = shard_of(session_key("", "a"), SHARDS)
        assert (await w.call("a", 1)).reply == b"1"
        refusing(w.store, fault)
        await other.store.txn(Txn((), (Put(K.move(F, shard), state_pb2.Move(target="w-2").SerializeToString()),)))
        await asyncio.sleep(3.0)
        assert (w.sessions.report().shards, other.sessions.report().shards) == (SHARDS - 1, 1)
        assert (await other.call("a", 1)).reply == b"2"
        entry = store.etcd.item(K.shard(F, shard))
        assert entry is not None
        assert state_pb2.ShardEntry.FromString(entry.value).epoch == 2, "it is handed over once"


@both
@simulated
async def test_a_removal_by_the_owner(fault: Fault) -> None:
    store = MemoryStore(SimClock())
    async with TimedWorker(store, settings=SessionSettings(SHARDS, "v1", ttl=50.0, removal_wait=5.0)) as w:
        await w.own()
        await w.call("a", 1, start=True)
        await w.call("a", 1, end=True)
        await w.call("b", 1, start=True)
        refusing(store, fault)
        await asyncio.sleep(15.0)
        assert [key.rpartition(":")[2] for key in stored(store)] == ["b"]
        assert (await w.call("a", 5)).reply == b"5", "it begins anew"
        assert (await w.call("b", 1)).reply == b"2"
        report = w.sessions.report()
        assert (report.stored_sessions, report.counted) == (2, True)
