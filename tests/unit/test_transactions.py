"""Every transaction of the protocol against a store: each of its comparisons alone stops it, and nothing happens then."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from dormouse_core import transactions
from dormouse_core.keys import Function, Keys
from dormouse_core.seams import CreatedIs, Delete, Exists, ModIs, Put, Txn
from dormouse_proto import state_pb2
from dormouse_testing.clock import ManualClock
from dormouse_testing.memory_etcd import MemoryEtcd

K = Keys("t")
F = Function("ns", "fn", "uid")
RECORD = K.state(F, 3, "/i:1")


class Scene:
    """A store with a leader, two workers, shard 3 with a plan, a floor and a record; and the revisions of all that."""

    def __init__(self) -> None:
        self.etcd = MemoryEtcd(ManualClock())
        self.mods: dict[str, int] = {}
        entry = state_pb2.ShardEntry(owner="w1", epoch=4).SerializeToString()
        for key, value in (
            (K.function("ns", "fn"), b"f"),
            (K.leader, b"l"),
            (K.worker(F, "w1"), b"w"),
            (K.worker(F, "w2"), b"w"),
            (K.shard(F, 3), entry),
            (K.move(F, 3), state_pb2.Move(target="w2").SerializeToString()),
            (K.floor(F, 3), state_pb2.Floor(timestamp_us=5).SerializeToString()),
            (RECORD, b"record"),
        ):
            self.mods[key] = self.etcd.txn(Txn((), (Put(key, value),))).revision

    def entry(self, shard: int = 3) -> tuple[str, int]:
        item = self.etcd.item(K.shard(F, shard))
        assert item is not None
        found = state_pb2.ShardEntry.FromString(item.value)
        return found.owner, found.epoch


def _assign(s: Scene) -> Txn:
    m = s.mods
    return transactions.assign(K, F, "w2", [1, 2], function_new=m[K.function("ns", "fn")], leader_new=m[K.leader])


def _disown(s: Scene) -> Txn:
    s.etcd.txn(Txn((), (Delete(K.shard(F, 3)),)))
    floors = {3: s.mods[K.floor(F, 3)]}
    return transactions.disown(K, F, floors, 9, function_new=s.mods[K.function("ns", "fn")], leader_new=s.mods[K.leader])


def _failover(s: Scene) -> Txn:
    return transactions.failover(K, F, "w2", {3: (s.mods[K.shard(F, 3)], 4)}, leader_new=s.mods[K.leader])


def _plan(s: Scene) -> Txn:
    return transactions.plan(K, F, 3, "w2", shard_mod=s.mods[K.shard(F, 3)], leader_new=s.mods[K.leader])


def _cancel(s: Scene) -> Txn:
    return transactions.cancel(K, F, 3, shard_mod=s.mods[K.shard(F, 3)], leader_new=s.mods[K.leader])


def _handoff(s: Scene) -> Txn:
    return transactions.handoff(K, F, 3, "w2", shard_mod=s.mods[K.shard(F, 3)], move_mod=s.mods[K.move(F, 3)], epoch=4)


def _commit(s: Scene) -> Txn:
    m = s.mods
    shard, floor = K.shard(F, 3), K.floor(F, 3)
    created = K.state(F, 3, "/i:2")
    bases = ((RECORD, m[RECORD]), (created, 0))
    return transactions.commit({shard: m[shard]}, bases, {floor: m[floor]}, (Put(RECORD, b"next"), Put(created, b"first")))


def _remove(s: Scene) -> Txn:
    m = s.mods
    removal = transactions.Removal(3, {RECORD: m[RECORD]}, shard_mod=m[K.shard(F, 3)], floor_mod=m[K.floor(F, 3)], floor_us=9)
    return transactions.remove(K, F, [removal], leader_new=m[K.leader])


def _register(s: Scene) -> Txn:
    return transactions.register(K, F, "w3", state_pb2.WorkerEntry(address="a:1"), 0)


def _change(s: Scene) -> Txn:
    return transactions.change(K, F, "w2", state_pb2.WorkerEntry(address="a:1"), 0)


ALL: dict[str, tuple[Callable[[Scene], Txn], int]] = {
    "assign": (_assign, 7),
    "disown": (_disown, 4),
    "failover": (_failover, 3),
    "plan": (_plan, 2),
    "cancel": (_cancel, 2),
    "handoff": (_handoff, 3),
    "commit": (_commit, 4),
    "remove": (_remove, 4),
    "register": (_register, 1),
    "change": (_change, 1),
}


@pytest.mark.parametrize("name", ALL)
def test_it_happens_when_all_is_as_seen(name: str) -> None:
    build, compares = ALL[name]
    scene = Scene()
    txn = build(scene)
    assert len(txn.compares) == compares
    assert scene.etcd.txn(txn).succeeded


@pytest.mark.parametrize(("name", "at"), [(name, at) for name, (_, compares) in ALL.items() for at in range(compares)])
def test_each_comparison_alone_stops_it(name: str, at: int) -> None:
    scene = Scene()
    txn = ALL[name][0](scene)
    compare = txn.compares[at]
    key = compare.key
    if isinstance(compare, ModIs) or (isinstance(compare, CreatedIs) and compare.revision == 0):
        scene.etcd.txn(Txn((), (Put(key, b"changed"),)))
    else:
        scene.etcd.txn(Txn((), (Delete(key),)))
        if isinstance(compare, CreatedIs):
            scene.etcd.txn(Txn((), (Put(key, b"again"),)))  # the same value: another leader, another function of this name
    before = scene.etcd.revision
    assert not scene.etcd.txn(txn).succeeded
    assert scene.etcd.revision == before
    others = replace(txn, compares=tuple(c for n, c in enumerate(txn.compares) if n != at))
    assert scene.etcd.txn(others).succeeded, "nothing else had changed"


def test_epochs_rise() -> None:
    for build in (_failover, _handoff):
        scene = Scene()
        scene.etcd.txn(build(scene))
        assert scene.entry() == ("w2", 5)
        assert scene.etcd.item(K.move(F, 3)) is None
    scene = Scene()
    scene.etcd.txn(_assign(scene))
    assert scene.entry(1) == ("w2", 1)


def test_a_removal_raises_the_floor_and_a_late_commit_that_creates_fails() -> None:
    scene = Scene()
    late = _commit(scene)
    created_only = Txn(
        (ModIs(K.shard(F, 3), scene.mods[K.shard(F, 3)]), ModIs(K.state(F, 3, "/i:2"), 0), late.compares[-1]), (late.writes[1],)
    )
    scene.etcd.txn(_remove(scene))
    floor = scene.etcd.item(K.floor(F, 3))
    assert floor is not None
    assert state_pb2.Floor.FromString(floor.value).timestamp_us == 9
    assert scene.etcd.item(RECORD) is None
    assert not scene.etcd.txn(created_only).succeeded


def test_the_largest_failover_fits_into_one_transaction() -> None:
    scene = Scene()
    shards = range(transactions.MAX_SHARDS)
    assign = transactions.assign(
        K, F, "w1", [n for n in shards if n != 3], function_new=scene.mods[K.function("ns", "fn")], leader_new=scene.mods[K.leader]
    )
    revision = scene.etcd.txn(assign).revision
    seen = {n: (revision if n != 3 else scene.mods[K.shard(F, 3)], 1) for n in shards}
    assert scene.etcd.txn(transactions.failover(K, F, "w2", seen, leader_new=scene.mods[K.leader])).succeeded


def test_a_worker_without_a_leader_may_remove_too() -> None:
    scene = Scene()
    removal = transactions.Removal(3, {}, shard_mod=scene.mods[K.shard(F, 3)], floor_mod=scene.mods[K.floor(F, 3)], floor_us=9)
    txn = transactions.remove(K, F, [removal])
    assert not any(isinstance(compare, CreatedIs | Exists) for compare in txn.compares)
