"""Every write to the store, with the comparisons that make it safe: the table of `docs/sessions.md`.

No clock and no lease is trusted for safety. A stale owner, a stale leader, a message that lands late: each fails a comparison here.
"mod" is a key's mod_revision, 0 where it is absent; "new" its create_revision.

A failed compare is not "no": the transaction may have been applied by an earlier copy of itself. Who needs to know reads
(rule *read-outcome*).
"""

from collections.abc import Iterable, Mapping, Sequence

import msgspec
from dormouse_proto import state_pb2

from dormouse_core.keys import Function, Keys
from dormouse_core.limits import ETCD_TXN_OPS, FAILOVER_SHARDS
from dormouse_core.seams import Compare, CreatedIs, Delete, Exists, ModIs, Put, Txn

MAX_SHARDS = FAILOVER_SHARDS
"""Shards in one `assign`, `disown` or `failover`: each takes two writes."""


class TooLarge(ValueError):
    """A transaction with more comparisons, or more writes, than etcd takes in one: whoever made it did not count."""


def counted(txn: Txn) -> Txn:
    """`txn`, which etcd will not refuse for its number of operations. Comparisons and writes are counted each by themselves, as etcd does.

    A transaction that is refused for its size is refused for ever, with everything in it: so those who fill one count what they put in, and
    this is the last that looks.
    """
    if len(txn.compares) > ETCD_TXN_OPS or len(txn.writes) > ETCD_TXN_OPS:
        raise TooLarge(f"{len(txn.compares)} comparisons and {len(txn.writes)} writes found, {ETCD_TXN_OPS} of each are allowed")
    return txn


def _entry(owner: str, epoch: int) -> bytes:
    return bytes(state_pb2.ShardEntry(owner=owner, epoch=epoch).SerializeToString())


def _floor(timestamp_us: int) -> bytes:
    return bytes(state_pb2.Floor(timestamp_us=timestamp_us).SerializeToString())


# ------------------------------------------------------------------------------------------------------------------- the leader


def assign(keys: Keys, f: Function, target: str, shards: Sequence[int], *, function_new: int, leader_new: int) -> Txn:
    """Gives shards that have no entry yet to `target`, for the first time, and a floor: a shard that has a floor and no entry has lost its
    entry (`erase`), and is not given away before it is settled."""
    assert len(shards) <= MAX_SHARDS
    compares: tuple[Compare, ...] = (
        CreatedIs(keys.function(f.namespace, f.name), function_new),
        CreatedIs(keys.leader, leader_new),
        Exists(keys.worker(f, target)),
        *(ModIs(keys.shard(f, shard), 0) for shard in shards),
        *(ModIs(keys.floor(f, shard), 0) for shard in shards),
    )
    entries = (Put(keys.shard(f, shard), _entry(target, 1)) for shard in shards)
    return counted(Txn(compares, (*entries, *(Put(keys.floor(f, shard), _floor(0)) for shard in shards))))


def disown(keys: Keys, f: Function, floors: Mapping[int, int], floor_us: int, *, function_new: int, leader_new: int) -> Txn:
    """Settles shards whose entries went with records that nobody can name any more: calls up to `floor_us` begin no session in them, and
    nobody owns them. `floors`: shard -> mod of its floor as read."""
    assert len(floors) <= MAX_SHARDS
    compares: list[Compare] = [CreatedIs(keys.function(f.namespace, f.name), function_new), CreatedIs(keys.leader, leader_new)]
    compares += [ModIs(keys.shard(f, shard), 0) for shard in floors]
    compares += [ModIs(keys.floor(f, shard), mod) for shard, mod in floors.items()]
    writes = [write for shard in floors for write in (Put(keys.floor(f, shard), _floor(floor_us)), nobodys(keys, f, shard))]
    return counted(Txn(tuple(compares), tuple(writes)))


def nobodys(keys: Keys, f: Function, shard: int) -> Put:
    """An entry in place of one that was erased, once what was owed is paid: it names nobody."""
    return Put(keys.shard(f, shard), _entry("", 1))


def failover(keys: Keys, f: Function, target: str, shards: Mapping[int, tuple[int, int]], *, leader_new: int) -> Txn:
    """Gives shards of dead owners to `target`. `shards`: shard -> (mod of its entry as seen, epoch as seen)."""
    assert len(shards) <= MAX_SHARDS
    compares: tuple[Compare, ...] = (
        CreatedIs(keys.leader, leader_new),
        Exists(keys.worker(f, target)),
        *(ModIs(keys.shard(f, shard), mod) for shard, (mod, _) in shards.items()),
    )
    writes: list[Put | Delete] = []
    for shard, (_, epoch) in shards.items():
        writes += (Put(keys.shard(f, shard), _entry(target, epoch + 1)), Delete(keys.move(f, shard)))
    return counted(Txn(compares, tuple(writes)))


def plan(keys: Keys, f: Function, shard: int, target: str, *, shard_mod: int, leader_new: int) -> Txn:
    """Asks the owner to hand `shard` over to `target`."""
    move = bytes(state_pb2.Move(target=target).SerializeToString())
    return Txn((CreatedIs(keys.leader, leader_new), ModIs(keys.shard(f, shard), shard_mod)), (Put(keys.move(f, shard), move),))


def cancel(keys: Keys, f: Function, shard: int, *, shard_mod: int, leader_new: int) -> Txn:
    """Takes a plan back: the owner stays."""
    return Txn((CreatedIs(keys.leader, leader_new), ModIs(keys.shard(f, shard), shard_mod)), (Delete(keys.move(f, shard)),))


def retain(keys: Keys, f: Function, record: bytes, *, entry_mod: int, leader_new: int) -> Txn:
    """The end of a function whose sessions are kept: its map goes, so that no owner commits any more, and with its entry, in whose place
    stands `record`, by which the next function of its name finds them."""
    name = keys.function(f.namespace, f.name)
    kept = Put(keys.retained(f.namespace, f.name), record)
    return Txn((CreatedIs(keys.leader, leader_new), ModIs(name, entry_mod)), (Delete(keys.map(f), prefix=True), Delete(name), kept))


def prepare(keys: Keys, f: Function, shards: Iterable[int], *, retained_mod: int, leader_new: int) -> Txn:
    """Before `f` adopts kept sessions: shards that a function before it has had get entries that name nobody, for a shard with a floor and
    without an entry is one whose entry was erased. Nobody goes by them before `f` is registered."""
    shards = tuple(shards)
    assert len(shards) <= MAX_SHARDS
    kept = ModIs(keys.retained(f.namespace, f.name), retained_mod)
    absent = (ModIs(keys.shard(f, shard), 0) for shard in shards)
    return counted(Txn((CreatedIs(keys.leader, leader_new), kept, *absent), tuple(nobodys(keys, f, shard) for shard in shards)))


def begin(keys: Keys, f: Function, entry: bytes, *, retained_mod: int, leader_new: int) -> Txn:
    """A function begins. `retained_mod`: of the record of the kept sessions that it adopts; 0: there are none, and none came meanwhile."""
    name, kept = keys.function(f.namespace, f.name), keys.retained(f.namespace, f.name)
    writes: tuple[Put | Delete, ...] = (Put(name, entry), *((Delete(kept),) if retained_mod else ()))
    return Txn((CreatedIs(keys.leader, leader_new), ModIs(name, 0), ModIs(kept, retained_mod)), writes)


# -------------------------------------------------------------------------------------------------------------------- the owner


def register(keys: Keys, f: Function, worker: str, entry: state_pb2.WorkerEntry, lease: int) -> Txn:
    """A worker makes itself known, once its model is loaded, under a name that nobody had before."""
    key = keys.worker(f, worker)
    return Txn((CreatedIs(key, 0),), (Put(key, bytes(entry.SerializeToString()), lease),))


def change(keys: Keys, f: Function, worker: str, entry: state_pb2.WorkerEntry, lease: int) -> Txn:
    """A registered worker changes its own entry (it drains). Never brings back an entry whose lease took it away."""
    key = keys.worker(f, worker)
    return Txn((Exists(key),), (Put(key, bytes(entry.SerializeToString()), lease),))


def handoff(keys: Keys, f: Function, shard: int, target: str, *, shard_mod: int, move_mod: int, epoch: int) -> Txn:
    """The owner gives `shard` to the planned `target`: only while that plan stands and the target lives."""
    compares = (ModIs(keys.shard(f, shard), shard_mod), ModIs(keys.move(f, shard), move_mod), Exists(keys.worker(f, target)))
    return Txn(compares, (Put(keys.shard(f, shard), _entry(target, epoch + 1)), Delete(keys.move(f, shard))))


def commit(fences: Mapping[str, int], bases: Iterable[tuple[str, int]], floors: Mapping[str, int], writes: Iterable[Put | Delete]) -> Txn:
    """Makes one step of each of many sessions durable. All three are key -> mod as read.

    `fences`: the entries of every shard touched. `bases`: every record. `floors`: of every shard in which a record is created; without them
    a late write could find "absent" again after a removal (rules *compare-all* and *floor*). `writes`: the records, and with one whose
    earliest alarm is another now the key that says when it is due (rule *alarm*).
    """
    compares = [ModIs(key, mod) for key, mod in fences.items()]
    compares += [ModIs(key, mod) for key, mod in bases]
    compares += [ModIs(key, mod) for key, mod in floors.items()]
    return counted(Txn(tuple(compares), tuple(writes)))


def preserve(fence: tuple[str, int], base: tuple[str, int], copy: Put) -> Txn:
    """Copies a record that does not verify into quarantine, before a commit replaces it (rule *quarantine*). `fence`, `base`: key -> mod as
    read.

    In a transaction of its own, because a record and its copy together can be larger than a request. The record is not touched, so whatever
    interrupts this leaves the broken bytes where they were; the same copy may be made twice.
    """
    return counted(Txn((ModIs(*fence), ModIs(*base)), (copy,)))


def count(keys: Keys, f: Function, worker: str, usage: bytes) -> Txn:
    """A worker writes down what it has counted since it began, as long as its entry is there: what is folded it cannot write again."""
    return Txn((Exists(keys.worker(f, worker)),), (Put(keys.usage_of_worker(f, worker), usage),))


def fold(keys: Keys, f: Function, workers: Mapping[str, int], usage: bytes, *, usage_mod: int, leader_new: int) -> Txn:
    """The leader adds what workers that are gone (name -> mod of what they left) have counted to `usage`, the totals of all former ones."""
    total = keys.usage_of_former(f)
    compares: list[Compare] = [CreatedIs(keys.leader, leader_new), ModIs(total, usage_mod)]
    for worker, mod in workers.items():
        compares += [ModIs(keys.worker(f, worker), 0), ModIs(keys.usage_of_worker(f, worker), mod)]
    return counted(Txn(tuple(compares), (Put(total, usage), *(Delete(keys.usage_of_worker(f, worker)) for worker in workers))))


def due(key: str, due_us: int | None) -> Put | Delete:
    """When a session's earliest alarm is to be tried; None: it has none."""
    return Delete(key) if due_us is None else Put(key, bytes(state_pb2.AlarmEntry(due_us=due_us).SerializeToString()))


def remind(fence: tuple[str, int], base: tuple[str, int], write: Put | Delete) -> Txn:
    """The owner puts right when a session's alarms are looked at next, and changes no record. `fence`, `base`: key -> mod as read."""
    return Txn((ModIs(*fence), ModIs(*base)), (write,))


# ------------------------------------------------------------------------------------------------------------- owner and leader


class Removal(msgspec.Struct, frozen=True):
    """What is removed of one shard. `records`: key -> mod. `floor_us`: the shard's next floor, at least the old one and the newest
    timestamp of each of them. `quarantined`: keys of broken copies of theirs, which go with them. `usage`: the shard's next totals, with
    what these sessions have used, made of those that were read with the floor: who writes one writes both; None: they say nothing."""

    shard: int
    records: Mapping[str, int]
    shard_mod: int
    floor_mod: int
    floor_us: int
    quarantined: Sequence[str] = ()
    usage: bytes | None = None


def remove(keys: Keys, f: Function, removals: Iterable[Removal], *, leader_new: int | None = None) -> Txn:
    """Removes records whose time is over (rule *removal*), of one shard or of several. `leader_new`: where the leader does it, for want of
    live owners."""
    compares: list[ModIs | CreatedIs] = [] if leader_new is None else [CreatedIs(keys.leader, leader_new)]
    writes: list[Delete | Put] = []
    for one in removals:
        floor_key = keys.floor(f, one.shard)
        compares += [ModIs(keys.shard(f, one.shard), one.shard_mod), ModIs(floor_key, one.floor_mod)]
        compares += [ModIs(key, mod) for key, mod in one.records.items()]
        writes += [*map(Delete, one.records), *map(Delete, one.quarantined), Put(floor_key, _floor(one.floor_us))]
        if one.usage is not None:
            writes.append(Put(keys.usage(f, one.shard), one.usage))
    return counted(Txn(tuple(compares), tuple(writes)))


def erase(keys: Keys, f: Function, shard: int, records: Mapping[str, int], *, shard_mod: int, leader_new: int) -> Txn:
    """The leader deletes sessions while the store is full and takes no tombstone: their records (key -> mod as read) go, and the shard's
    entry, so that nothing that is under way to the shard can land. The tombstones are owed (`dormouse_operator.owing`)."""
    compares: list[Compare] = [CreatedIs(keys.leader, leader_new), ModIs(keys.shard(f, shard), shard_mod)]
    compares += [ModIs(key, mod) for key, mod in records.items()]
    alarms = (Delete(keys.alarm_of(f, key)) for key in records)
    return counted(Txn(tuple(compares), (*map(Delete, records), *alarms, Delete(keys.shard(f, shard)), Delete(keys.move(f, shard)))))


def replace(
    keys: Keys,
    f: Function,
    shard: int,
    tombstones: Mapping[str, tuple[int, bytes]],
    *,
    shard_mod: int,
    leader_new: int,
) -> Txn:
    """The leader deletes sessions: their records (key -> mod as read, next value) become tombstones, whoever owns the shard. The owner's
    next commit to one of them fails the comparison of its record. Their alarms go."""
    compares: list[Compare] = [CreatedIs(keys.leader, leader_new), ModIs(keys.shard(f, shard), shard_mod)]
    compares += [ModIs(key, mod) for key, (mod, _) in tombstones.items()]
    writes = [write for key, (_, value) in tombstones.items() for write in (Put(key, value), Delete(keys.alarm_of(f, key)))]
    return counted(Txn(tuple(compares), tuple(writes)))


def silence(
    keys: Keys, f: Function, shard: int, record: tuple[str, int, bytes], due_us: int | None, *, shard_mod: int, leader_new: int
) -> Txn:
    """The leader takes an alarm out of a record, whoever owns the shard. `record`: its key, mod as read, and next value; `due_us`: of the
    earliest alarm that is left."""
    key, mod, value = record
    compares = (CreatedIs(keys.leader, leader_new), ModIs(keys.shard(f, shard), shard_mod), ModIs(key, mod))
    return Txn(compares, (Put(key, value), due(keys.alarm_of(f, key), due_us)))
