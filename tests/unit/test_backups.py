"""What of a snapshot is written back, on a store in memory: whole or begun again, beside living workers, and never beside a leader."""

import contextlib
import time
from argparse import Namespace
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from dormouse import backups as commands
from dormouse import main, places
from dormouse.restoring import REMOVE_SECONDS, Restored, Restoring
from dormouse_core import backups, transactions
from dormouse_core.absences import Absences
from dormouse_core.errors import Aborted, FailedPrecondition, InvalidArgument, Unavailable
from dormouse_core.keys import Function, Keys
from dormouse_core.limits import TXN_BYTES, TXN_OPS
from dormouse_core.seams import Delete, ModIs, Put, Txn
from dormouse_kit.etcd import databases
from dormouse_proto import state_pb2
from dormouse_testing import simloop
from dormouse_testing.clock import SimClock
from dormouse_testing.memory_store import FULL, FULL_APPLIED, REPLY_LOST, REQUEST_LOST, Fault, MemoryStore

KEYS = Keys("t")
FUNCTION = Function("ns", "fn", "uid")
SESSIONS = 300


@dataclass(frozen=True)
class Value:
    value: bytes
    lease: int = 0


class Snapshot:
    def __init__(self, **more: Value) -> None:
        entry = state_pb2.FunctionEntry(namespace="ns", name="fn", uid="uid", shards=4)
        self.content = {
            KEYS.leader: Value(b"leader", 7),
            KEYS.gateway("g"): Value(b"gateway", 7),
            KEYS.function("ns", "fn"): Value(entry.SerializeToString()),
            KEYS.worker(FUNCTION, "w"): Value(b"worker", 7),
            KEYS.move(FUNCTION, 1): Value(state_pb2.Move(target="v").SerializeToString()),
            **{KEYS.shard(FUNCTION, n): Value(state_pb2.ShardEntry(owner="w", epoch=5).SerializeToString()) for n in range(4)},
            **{KEYS.floor(FUNCTION, n): Value(state_pb2.Floor(timestamp_us=9).SerializeToString()) for n in range(4)},
            **{KEYS.state(FUNCTION, n % 4, f"/s:{n}"): Value(b"record %d" % n) for n in range(SESSIONS)},
            KEYS.quarantine(FUNCTION, 1, "/s:1", 5): Value(b"broken"),
            KEYS.retained("ns", "gone"): Value(state_pb2.Retained(store_id="u", shards=4).SerializeToString()),
            KEYS.usage(FUNCTION, 1): Value(b"usage"),
            KEYS.usage_history(FUNCTION, "2026-01-01"): Value(b"usage of that day"),
            KEYS.deleted_usage(Function("ns", "gone", "u")): Value(b"usage of a function that is gone"),
            "/dormouse/t/later/x": Value(b"of a build to come"),
            **more,
        }

    def keys(self) -> Sequence[str]:
        return sorted(self.content)

    def get(self, key: str) -> Value:
        return self.content[key]

    def expected(self) -> dict[str, bytes]:
        entry = state_pb2.FunctionEntry.FromString(self.content[KEYS.function("ns", "fn")].value)
        entry.restored = True
        found = {KEYS.function("ns", "fn"): entry.SerializeToString()}
        for key, each in self.content.items():
            if key.startswith((KEYS.datas, KEYS.retaineds, KEYS.shards(FUNCTION), KEYS.usage_histories, KEYS.deleted_usages)):
                found[key] = each.value
        return found


def contents(store: MemoryStore) -> dict[str, bytes]:
    return {item.key: item.value for item in store.etcd.range(KEYS.root).items}


def restoring(store: MemoryStore, snapshot: Snapshot | None = None) -> Restoring:
    return Restoring(store, SimClock(), KEYS, snapshot or Snapshot())


def told(story: Callable[[MemoryStore], Awaitable[None]]) -> None:
    async def main() -> None:
        store = MemoryStore(SimClock())
        await story(store)
        await store.close()

    simloop.run(main())


def put(store: MemoryStore, key: str, value: bytes) -> int:
    return store.etcd.txn(Txn((), (Put(key, value),))).revision


def test_what_was_stored_is_there_again_and_what_was_under_leases_is_not() -> None:
    async def story(store: MemoryStore) -> None:
        assert await restoring(store).run(replace=False) == Restored(1, SESSIONS)
        assert contents(store) == Snapshot().expected()

    told(story)


@pytest.mark.parametrize("fault", [REQUEST_LOST, REPLY_LOST, Fault(request_delay=700)], ids=["request-lost", "reply-lost", "late"])
@pytest.mark.parametrize("at", range(9))
def test_a_transaction_without_an_answer_is_sent_again(at: int, fault: Fault) -> None:
    async def story(store: MemoryStore) -> None:
        for _ in range(at):
            store.fault("txn", Fault())
        store.fault("txn", fault)
        await restoring(store).run(replace=False)
        assert contents(store) == Snapshot().expected()

    told(story)


@pytest.mark.parametrize("at", range(10))
def test_cut_short_anywhere_nobody_leads_until_it_is_made_again(at: int) -> None:
    async def story(store: MemoryStore) -> None:
        asked = 0

        def hook(method: str, request: object) -> Fault | None:
            nonlocal asked
            asked += method == "txn"
            return REQUEST_LOST if method == "txn" and asked > at else None

        store.hook = hook
        with pytest.raises(Unavailable, match="run it again"):
            await restoring(store).run(replace=False)
        store.hook = None
        assert (KEYS.leader in contents(store)) == (at > 0), "so that no operator takes half of it for all"
        whole = {key for key in Snapshot().expected() if key.startswith(KEYS.datas)} <= contents(store).keys()
        assert whole or KEYS.function("ns", "fn") not in contents(store), "functions come last"
        assert await restoring(store).run(replace=False) == Restored(1, SESSIONS), "of itself it replaces what was begun"
        assert contents(store) == Snapshot().expected()

    told(story)


async def left_after_a_look_that_failed(store: MemoryStore, *, cut: bool) -> dict[str, bytes]:
    """A restore that was to refuse could not look, and is run again as it is told. `cut`: it could not give the key back either."""
    failing = True

    def hook(method: str, request: object) -> Fault | None:
        nonlocal looked
        looked = looked or method == "list"
        return REQUEST_LOST if failing and (method == "list" or (looked and cut)) else None

    looked = False
    put(store, KEYS.function("ns", "live"), b"there before")
    put(store, KEYS.state(FUNCTION, 1, "/s:a"), b"of a living user")
    before, store.hook = contents(store), hook
    with pytest.raises(Unavailable, match=r"nothing was removed or written.* run it again"):
        await restoring(store).run(replace=False)
    left = contents(store)
    assert (KEYS.leader in left) == cut
    assert {key: value for key, value in left.items() if key != KEYS.leader} == before
    failing = False
    with contextlib.suppress(FailedPrecondition):
        await restoring(store).run(replace=False)
    return {key: value for key, value in contents(store).items() if key in before or key == KEYS.leader}


@pytest.mark.parametrize("cut", [False, True], ids=["key-given-back", "cut"])
def test_a_restore_that_could_not_look_removes_nothing_when_it_is_run_again(cut: bool) -> None:
    async def story(store: MemoryStore) -> None:
        left = await left_after_a_look_that_failed(store, cut=cut)
        assert left == {KEYS.function("ns", "live"): b"there before", KEYS.state(FUNCTION, 1, "/s:a"): b"of a living user"}

    told(story)


def test_negative_control_if_a_look_were_taken_for_a_beginning_it_would(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backups, "LOOKING", backups.RESTORING)

    async def story(store: MemoryStore) -> None:
        assert (await left_after_a_look_that_failed(store, cut=True)).get(KEYS.state(FUNCTION, 1, "/s:a")) != b"of a living user"

    told(story)


@pytest.mark.parametrize("fault", [REQUEST_LOST, REPLY_LOST], ids=["request-lost", "reply-lost"])
def test_a_look_into_what_another_restore_began_finishes_it(fault: Fault) -> None:
    async def story(store: MemoryStore) -> None:
        put(store, KEYS.leader, state_pb2.Leader(name=f"{backups.RESTORING} other").SerializeToString())
        put(store, KEYS.state(FUNCTION, 1, "/s:a"), b"half")
        store.fault("txn", fault)
        await restoring(store).run(replace=False)
        assert contents(store) == Snapshot().expected()

    told(story)


def test_beside_a_leader_nothing_is_written() -> None:
    async def story(store: MemoryStore) -> None:
        put(store, KEYS.leader, state_pb2.Leader(address="a:1", name="operator-7").SerializeToString())
        before = contents(store)
        for replace in (False, True):
            with pytest.raises(FailedPrecondition, match=r"an operator leads \(operator-7\): stop every operator"):
                await restoring(store).run(replace=replace)
        put(store, KEYS.leader, b"\xff\xff")
        with pytest.raises(FailedPrecondition, match="cannot be read"):
            await restoring(store).run(replace=True)
        assert contents(store).keys() == before.keys()

    told(story)


def writes_records(request: object) -> bool:
    return isinstance(request, Txn) and any(isinstance(write, Put) and write.key.startswith(KEYS.datas) for write in request.writes)


async def written_over_what_came_meanwhile(store: MemoryStore) -> int:
    """Somebody removes the leader's key, and an operator takes it, in the middle; how many of the records are written after that."""
    seen = 0
    done = False

    def hook(method: str, request: object) -> Fault | None:
        nonlocal seen, done
        if writes_records(request) and not done:
            done = True
            store.etcd.txn(Txn((), (Delete(KEYS.leader),)))
            put(store, KEYS.leader, b"another's")
            seen = sum(key.startswith(KEYS.states(FUNCTION)) for key in contents(store))
        return None

    store.hook = hook
    with contextlib.suppress(Aborted):
        await restoring(store).run(replace=False)
    return sum(key.startswith(KEYS.states(FUNCTION)) for key in contents(store)) - seen


def test_once_somebody_else_leads_nothing_more_is_written() -> None:
    async def story(store: MemoryStore) -> None:
        assert await written_over_what_came_meanwhile(store) == 0
        assert contents(store)[KEYS.leader] == b"another's"

    told(story)


def test_negative_control_without_comparing_the_leaders_key_it_would_be(monkeypatch: pytest.MonkeyPatch) -> None:
    real = MemoryStore.txn

    async def blind(self: MemoryStore, txn: Txn, *, timeout: float = 5.0) -> object:
        return await real(self, Txn((), txn.writes) if txn.compares == (ModIs(KEYS.leader, txn.compares[0].revision),) else txn)

    monkeypatch.setattr(MemoryStore, "txn", blind)

    async def story(store: MemoryStore) -> None:
        assert await written_over_what_came_meanwhile(store) > 0

    told(story)


def test_what_is_there_is_replaced_where_that_is_asked_for_alone() -> None:
    async def story(store: MemoryStore) -> None:
        other = Function("ns", "other", "uid-2")
        sessions = KEYS.state(other, 1, "/s:a"), KEYS.state(FUNCTION, 1, "/s:new"), KEYS.deleted_usage(FUNCTION)
        for key in (KEYS.function("ns", "other"), KEYS.shard(other, 1), *sessions):
            put(store, key, b"there before")
        living = KEYS.worker(FUNCTION, "w9")
        put(store, living, b"of a process that lives")
        before = contents(store)
        with pytest.raises(FailedPrecondition, match="has functions or sessions of the installation t already: --replace removes them"):
            await restoring(store).run(replace=False)
        assert contents(store) == before
        await restoring(store).run(replace=True)
        assert contents(store) == {**Snapshot().expected(), living: b"of a process that lives"}

    told(story)


async def told_absent_meanwhile(store: MemoryStore) -> list[bool]:
    """A gateway reads, before each request of a restore and after it, of a function that was made since the backup; each time that the
    store lacks its entry: whether it tells NOT_FOUND."""
    found = list[bool]()
    known, new = Absences(), KEYS.function("ns", "made-since")

    def look(method: str, request: object) -> None:
        there = {item.key: item for item in store.etcd.range(KEYS.root).items}
        if new not in there:
            mark = there.get(KEYS.written)
            found.append(known.known(mark.mod_revision if mark else 0, 0, 0.0))

    put(store, new, b"an entry")
    put(store, KEYS.written, b"")
    store.hook = look
    await restoring(store).run(replace=True)
    look("", None)
    return found


def test_a_function_that_was_made_since_the_backup_is_not_told_to_be_gone() -> None:
    async def story(store: MemoryStore) -> None:
        found = await told_absent_meanwhile(store)
        assert found
        assert not any(found)

    told(story)


def test_negative_control_where_the_mark_stays_it_would_be_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    real = MemoryStore.txn

    async def keeping(self: MemoryStore, txn: Txn, *, timeout: float = 5.0) -> object:
        return await real(self, Txn(txn.compares, tuple(each for each in txn.writes if each != Delete(KEYS.written))))

    monkeypatch.setattr(MemoryStore, "txn", keeping)

    async def story(store: MemoryStore) -> None:
        assert all(await told_absent_meanwhile(store))

    told(story)


async def steps_of_a_living_owner(store: MemoryStore) -> int:
    """An owner tries to commit upon what it knows, before each request of a restore; how many of its steps are there at the end."""
    await restoring(store).run(replace=False)
    shard, record = KEYS.shard(FUNCTION, 0), KEYS.state(FUNCTION, 0, "/s:mine")
    fence = put(store, shard, state_pb2.ShardEntry(owner="w", epoch=6).SerializeToString())
    base = put(store, record, b"0")

    def commit(method: str, request: object) -> None:
        nonlocal base
        result = store.etcd.txn(transactions.commit({shard: fence}, [(record, base)], {}, [Put(record, b"a step")]))
        base = result.revision if result.succeeded else base

    store.hook = commit
    await restoring(store).run(replace=True)
    return record in contents(store)


def test_an_owner_that_lives_commits_nothing_into_what_is_restored() -> None:
    async def story(store: MemoryStore) -> None:
        assert await steps_of_a_living_owner(store) == 0

    told(story)


def test_negative_control_where_shards_are_left_to_their_owners_it_would(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backups, "replaced", lambda keys, key: False)
    real = backups.ordered

    def without_shards(keys: Keys, found: Sequence[str]) -> backups.Ordered:
        whole = real(keys, found)
        return backups.Ordered(tuple(key for key in whole.first if not key.startswith(keys.maps)), whole.last, whole.records)

    async def steps(store: MemoryStore) -> None:
        put(store, KEYS.shard(FUNCTION, 0), b"")
        monkeypatch.setattr(backups, "ordered", without_shards)
        shard, record = KEYS.shard(FUNCTION, 0), KEYS.state(FUNCTION, 0, "/s:mine")
        fence = put(store, shard, b"mine")

        def commit(method: str, request: object) -> None:
            store.etcd.txn(transactions.commit({shard: fence}, [(record, 0)], {}, [Put(record, b"a step")]))

        store.hook = commit
        await restoring(store).run(replace=True)
        assert record in contents(store)

    told(steps)


@pytest.mark.parametrize("fault", [FULL, FULL_APPLIED], ids=["not-written", "written"])
@pytest.mark.parametrize("at", range(9))
def test_a_full_store_is_told_and_the_restore_can_be_made_again(at: int, fault: Fault) -> None:
    async def story(store: MemoryStore) -> None:
        for _ in range(at):
            store.fault("txn", Fault())
        store.fault("txn", fault)
        with pytest.raises(FailedPrecondition, match=r"the store is full .* larger quota, and run it again"):
            await restoring(store).run(replace=False)
        assert KEYS.leader in contents(store) or at in (0, 1, 8)
        await restoring(store).run(replace=at == 8)
        assert contents(store) == Snapshot().expected()

    told(story)


def test_of_two_restores_the_one_that_came_last_goes_on() -> None:
    async def story(store: MemoryStore) -> None:
        done: list[Restored] = []
        begun: list[Txn] = []

        class Between(MemoryStore):
            async def txn(self, txn: Txn, *, timeout: float = 5.0) -> object:
                if writes_records(txn) and not begun:
                    begun.append(txn)
                    done.append(await restoring(store).run(replace=False))
                return await super().txn(txn, timeout=timeout)

        between = Between(store.clock, etcd=store.etcd)
        first = Restoring(between, SimClock(), KEYS, Snapshot())
        with pytest.raises(Aborted, match="another restore was begun"):
            await first.run(replace=False)
        await between.close()
        assert done == [Restored(1, SESSIONS)]
        assert contents(store) == Snapshot().expected()

    told(story)


async def left_where_a_removal_lands_late(store: MemoryStore) -> dict[str, bytes]:
    """Its caller gave up on it, removed all once more, and writes what is restored, slowly."""
    removals = 0

    def hook(method: str, request: object) -> Fault | None:
        nonlocal removals
        if not isinstance(request, Txn):
            return None
        if any(isinstance(write, Delete) and write.key == KEYS.datas for write in request.writes):
            removals += 1
            if removals == 1:
                return Fault(request_delay=REMOVE_SECONDS + 2.5)
        return Fault(reply_delay=1.0)

    store.hook = hook
    await restoring(store).run(replace=False)
    assert removals == 2
    return contents(store)


def test_a_removal_that_lands_late_removes_nothing_that_was_restored() -> None:
    async def story(store: MemoryStore) -> None:
        assert await left_where_a_removal_lands_late(store) == Snapshot().expected()

    told(story)


def test_negative_control_without_claiming_again_it_would(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Restoring._claim

    async def once(self: Restoring, word: str) -> bool:
        return self._begun or await real(self, word)

    monkeypatch.setattr(Restoring, "_claim", once)

    async def story(store: MemoryStore) -> None:
        assert not any(key.startswith(KEYS.states(FUNCTION)) for key in await left_where_a_removal_lands_late(store))

    told(story)


def test_a_snapshot_without_anything_of_the_installation_changes_nothing() -> None:
    async def story(store: MemoryStore) -> None:
        empty = Snapshot()
        empty.content = {KEYS.leader: Value(b"leader", 7), "/dormouse/t/later/x": Value(b"")}
        with pytest.raises(InvalidArgument, match="nothing of the installation t"):
            await restoring(store, empty).run(replace=True)
        assert contents(store) == {}

    told(story)


@pytest.mark.parametrize("installation", ["../x", "a/b", "", "a\nb", "a" * 63, "ä"])
@pytest.mark.parametrize("command", ["backup", "restore"])
def test_an_installation_that_can_name_no_file_is_refused(
    command: str, installation: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main([command, str(tmp_path), "--store", "127.0.0.1:1", "--installation", installation]) == 1
    assert "--installation: " in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


async def _no_snapshot(options: Namespace, target: Path) -> int:
    _write(target)
    return 7


def _write(target: Path) -> None:
    target.write_bytes(b"a snapshot")


class Nights:
    """Backups of a store into a folder, a night each, of which three are kept."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.sessions = 0
        self.night = 0
        monkeypatch.setattr(commands, "_backup", _no_snapshot)
        monkeypatch.setattr(databases, "Database", lambda path, prefix: contextlib.nullcontext(self))
        monkeypatch.setattr(time, "gmtime", lambda: (2026, 11, self.night, 3, 17, 0, 0, 0, 0))

    def keys(self) -> Sequence[str]:
        keys = Keys("local")
        return [keys.function("ns", "fn"), *(keys.state(FUNCTION, 1, f"/s:{n}") for n in range(self.sessions))]

    def pass_by(self, nights: int, sessions: int) -> None:
        self.sessions = sessions
        for _ in range(nights):
            self.night += 1
            assert main.main(["backup", str(self.folder), "--keep", "3", "--store", "127.0.0.1:1"]) == 0

    def left(self) -> list[str]:
        """As `3`, or `3-empty`."""
        names = sorted(path.name.removeprefix("dormouse-local-202611").removesuffix(".db") for path in self.folder.iterdir())
        return [name.replace("T031700Z", "").lstrip("0") for name in names]


def test_however_many_backups_a_store_without_sessions_makes_those_that_have_some_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nights = Nights(tmp_path, monkeypatch)
    nights.pass_by(5, sessions=2)
    assert nights.left() == ["3", "4", "5"]
    assert "no session" not in capsys.readouterr().out
    nights.pass_by(5, sessions=0)
    assert nights.left() == ["3", "4", "5", "8-empty", "9-empty", "10-empty"]
    assert "20261105T031700Z.db has: for the new one none is removed that has" in capsys.readouterr().out
    assert main.main(["restore", str(tmp_path), "--store", "127.0.0.1:1"]) == 1
    told = capsys.readouterr().err
    assert "20261110T031700Z-empty.db, has no session, and " in told
    assert "20261105T031700Z.db has some: name the file that is to be restored" in told
    nights.pass_by(1, sessions=1)
    assert nights.left() == ["4", "5", "8-empty", "9-empty", "10-empty", "11"], "the first sessions remove one, as each night does"


def test_negative_control_where_all_are_counted_together_none_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "NONE", commands.SOME)
    nights = Nights(tmp_path, monkeypatch)
    nights.pass_by(5, sessions=2)
    nights.pass_by(5, sessions=0)
    assert nights.left() == ["8", "9", "10"]


def test_of_a_folder_the_newest_is_restored_and_any_where_none_has_sessions(tmp_path: Path) -> None:
    place, options = places.find(str(tmp_path)), Namespace(file=str(tmp_path), installation="local")
    with pytest.raises(InvalidArgument, match="no backup of the installation local found"):
        commands._chosen(place, options)
    for name in ("1T000000Z-empty", "2T000000Z-empty"):
        (tmp_path / f"dormouse-local-2026010{name}.db").touch()
    assert commands._chosen(place, options) == "dormouse-local-20260102T000000Z-empty.db"
    (tmp_path / "dormouse-local-20260103T000000Z.db").touch()
    assert commands._chosen(place, options) == "dormouse-local-20260103T000000Z.db"


def test_portions_are_what_a_transaction_takes() -> None:
    small = [Put(f"k{n}", b"") for n in range(3 * TXN_OPS + 1)]
    assert [len(part) for part in backups.portions(small)] == [TXN_OPS] * 3 + [1]
    large = [Put("k", b"x" * (TXN_BYTES // 2 - 100)) for _ in range(5)] + [Put("k", b"x" * TXN_BYTES)]
    assert [len(part) for part in backups.portions(large)] == [2, 2, 1, 1]
    assert list(backups.portions([])) == []


def test_an_entry_that_cannot_be_read_is_restored_as_it_is() -> None:
    assert backups.written(KEYS, KEYS.function("ns", "odd"), Value(b"\xff\xff")) == Put(KEYS.function("ns", "odd"), b"\xff\xff")
