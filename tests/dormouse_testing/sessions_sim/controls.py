"""Rules taken away, one at a time. Each of them must be missed: a checker that finds nothing without a rule proves nothing with it.

Every control says which promises may break without it. They are applied with pytest's monkeypatch to the functions that the loops call.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import msgspec
from dormouse_core import lifetimes, records, steps, transactions, usages
from dormouse_core.clocks import Skew
from dormouse_core.seams import Delete, Full, Put, Txn
from dormouse_core.sessions.commands import Wake
from dormouse_core.sessions.groups import Groups, Pending
from dormouse_core.sessions.turns import Turns
from dormouse_core.steps import Refuse, Resolution
from dormouse_operator.owing import Owed
from dormouse_operator.sweeping import Sweeper as LeaderSweeper
from dormouse_worker.sessions import Answer
from dormouse_worker.sessions.removal import Sweeper

from dormouse_testing.memory_store import MemoryStore
from dormouse_testing.sessions_sim.leader import Leader

Patch = Callable[[Any, str, Any], None]  # monkeypatch.setattr


@dataclass(frozen=True)
class Control:
    name: str
    apply: Callable[[Patch], None]
    breaks: frozenset[str]  # kinds of Violation


def no_compares(patch: Patch) -> None:
    real = transactions.commit
    patch(transactions, "commit", lambda *args: replace(real(*args), compares=()))


def fence_only(patch: Patch) -> None:
    """The first draft: the shard's entry is compared, the record's own revision is not."""
    patch(transactions, "commit", _without(bases=True))


def no_floor_compare(patch: Patch) -> None:
    patch(transactions, "commit", _without(floors=True))


def _without(bases: bool = False, floors: bool = False) -> Callable[..., Txn]:
    real = transactions.commit

    def commit(fences: Mapping[str, int], based: Iterable[tuple[str, int]], floored: Mapping[str, int], writes: Iterable[Put]) -> Txn:
        return real(fences, () if bases else based, {} if floors else floored, writes)

    return commit


def reply_before_commit(patch: Patch) -> None:
    real = Groups.add

    def add(self: Groups, pending: Pending) -> None:
        pending.step.answer(Answer(pending.reply, pending.body.step))
        pending.step.answer = lambda answer: None
        real(self, pending)

    patch(Groups, "add", add)


def kept_in_memory_only(patch: Patch) -> None:
    real = records.decode

    def decode(data: bytes) -> records.Record:
        record = real(data)
        return msgspec.structs.replace(record, body=msgspec.structs.replace(record.body, kept=()))

    patch(records, "decode", decode)


def no_horizon(patch: Patch) -> None:
    real = steps.remember
    patch(steps, "remember", lambda kept, known, new: (real(kept, known, new)[0], records.common(0, known.newest_us)))


def no_tombstone(patch: Patch) -> None:
    real = transactions.commit

    def commit(fences: Mapping[str, int], bases: Iterable[tuple[str, int]], floors: Mapping[str, int], writes: Iterable[Put]) -> Txn:
        return real(fences, bases, floors, [Delete(w.key) if records.decode(w.value).body.tombstone else w for w in writes])  # type: ignore[misc]

    patch(transactions, "commit", commit)


def no_floor(patch: Patch) -> None:
    real = Turns.loaded
    patch(Turns, "loaded", lambda self, session, record, floor: real(self, session, record, None))
    no_floor_compare(patch)


def no_start_order(patch: Patch) -> None:
    real = steps.admit

    def admit(body: Any, *args: Any) -> Any:
        return real(
            msgspec.structs.replace(body, horizons=msgspec.structs.replace(body.known(), newest_us=0)) if body is not None else None, *args
        )

    patch(steps, "admit", admit)


def one_horizon(patch: Patch) -> None:
    """The second draft: one horizon for all makers of keys."""
    real = steps.admit

    def admit(body: Any, *args: Any) -> Any:
        return real(msgspec.structs.replace(body, horizons=None) if body is not None else None, *args)

    patch(steps, "admit", admit)


def expiry_by_any_clock(patch: Patch) -> None:
    patch(Skew, "now_us", lambda self: self._wall())


def keys_by_any_clock(patch: Patch) -> None:
    """Gateways' timestamps are not corrected."""
    patch(Skew, "best_us", lambda self: self._wall())


def unconfirmed_refusals(patch: Patch) -> None:
    real = steps.admit

    def admit(*args: Any) -> Any:
        decision = real(*args)
        return Refuse(decision.error) if isinstance(decision, Refuse) else decision

    patch(steps, "admit", admit)


def failed_compare_means_no(patch: Patch) -> None:
    """An unknown outcome taken for a no, and the session kept as it was: its next step builds on a state that the store may not have."""
    patch(steps, "resolve", lambda call, **seen: Resolution.DROPPED)
    real = Turns.refused
    patch(Turns, "refused", lambda self, pending, error, drop: real(self, pending, error, False))
    fence_only(patch)


def memory_survives_a_move(patch: Patch) -> None:
    """A shard that comes back to the same owner keeps its sessions, and the records are not compared."""

    def empty(self: Turns, shard: Any) -> None:
        for session in shard.sessions.values():
            shard.waiting += session.queue
            session.queue.clear()
        shard.running.clear()
        if shard.parked:
            self._out.append(Wake(shard))

    patch(Turns, "empty", empty)
    fence_only(patch)


def unread_outcomes_are_acknowledged(patch: Patch) -> None:
    patch(steps, "resolve", lambda call, **seen: Resolution.COMMITTED if seen["seen_base"] else Resolution.RESEND)


def only_the_last_write_counts(patch: Patch) -> None:
    """A record with another write id, or a shard that is another's: taken for a step that never landed."""

    def resolve(call: Any, **it: Any) -> Resolution:
        if it["seen"] is not None and it["seen"].write_id == it["write_id"]:
            return Resolution.COMMITTED
        if it["seen_fence"] != it["fence"]:
            return Resolution.LOST
        same = it["seen_base"] == it["base"] and it["floor"] in (None, it["seen_floor"])
        return Resolution.RESEND if same else Resolution.DROPPED

    patch(steps, "resolve", resolve)


def the_kept_keys_remember_all(patch: Patch) -> None:
    """A key that is not kept is taken for one that never was, though it may have been evicted."""
    real = steps.resolve

    def resolve(call: Any, **it: Any) -> Resolution:
        found = real(call, **it)
        return Resolution.LOST if found is Resolution.UNKNOWN else found

    patch(steps, "resolve", resolve)


def unfenced_removal(patch: Patch) -> None:
    real = transactions.remove
    patch(transactions, "remove", lambda *args, **given: replace(real(*args, **given), compares=()))
    patch(Sweeper, "_is_free", lambda self, session, mod: True)  # else the comparisons are seldom what saves a session
    patch(LeaderSweeper, "_owned", _none)


def removal_by_fence_only(patch: Patch) -> None:
    """A removal compares the shard's entry, and neither the floor nor the records that it takes."""
    real = transactions.remove

    def remove(keys: Any, function: Any, *args: Any, **given: Any) -> Txn:
        txn, fences = real(keys, function, *args, **given), keys.shards(function)
        return replace(txn, compares=tuple(compare for compare in txn.compares if compare.key.startswith(fences)))

    patch(transactions, "remove", remove)
    patch(Sweeper, "_is_free", lambda self, session, mod: True)  # as in `unfenced_removal`


async def _none(*_: object) -> frozenset[int]:
    return frozenset()


def believed_when_full(patch: Patch) -> None:
    """A full store's no is taken for one."""
    real = Full.__init__
    patch(Full, "__init__", lambda self, message, definite=False: real(self, message, True))


def no_owed_tombstones(patch: Patch) -> None:
    """Of a session that was deleted while the store was full nothing is left."""

    async def written(self: Owed, one: Any, shard: int, *_: object, **__: object) -> bool:
        await self._store.txn(Txn((), (transactions.nobodys(self._keys, one.function, shard),)))
        return True

    patch(Owed, "_write", written)


def assigned_whatever_the_floor(patch: Patch) -> None:
    real = transactions.assign

    def assign(keys: Any, function: Any, target: str, shards: Any, **given: Any) -> Txn:
        txn, floors = real(keys, function, target, shards, **given), keys.floors(function)
        compares = tuple(compare for compare in txn.compares if not compare.key.startswith(floors))
        return Txn(compares, tuple(write for write in txn.writes if not write.key.startswith(floors)))

    patch(transactions, "assign", assign)


def given_while_owed(patch: Patch) -> None:
    """A shard finds an owner before the tombstones that are owed are written."""
    patch(Leader, "_owes", lambda self, shard: False)
    assigned_whatever_the_floor(patch)


def debts_end_with_a_leader(patch: Patch) -> None:
    """The next leader does not know that a shard lost its entry, and gives it away as if for the first time."""
    patch(Owed, "doubt", lambda *_: None)
    assigned_whatever_the_floor(patch)


def erased_with_an_owner(patch: Patch) -> None:
    """A record goes while the store is full, and its shard keeps its owner."""
    real = transactions.erase

    def erase(keys: Any, function: Any, shard: int, *args: Any, **given: Any) -> Txn:
        txn = real(keys, function, shard, *args, **given)
        return replace(txn, writes=tuple(w for w in txn.writes if w.key != keys.shard(function, shard)))

    patch(transactions, "erase", erase)


def removal_at_once(patch: Patch) -> None:
    """Ended and expired records are removed without a wait."""
    patch(lifetimes, "due_us", lambda glance, wait_us: glance.expires_us)


def counted_with_the_answer(patch: Patch) -> None:
    """A step is counted when it is answered, and written down with the next one."""
    answered: dict[str, int] = {}
    stepped, committed = Turns._usage, Turns.committed

    def usage(self: Turns, session: Any, step: Any, ran: Any, now_us: int) -> usages.Usage:
        found = stepped(self, session, step, ran, now_us)
        return msgspec.structs.replace(found, steps=found.steps - 1 + answered.pop(session.key, 0))

    def answer(self: Turns, pending: Pending, revision: int) -> None:
        committed(self, pending, revision)
        answered[pending.session.key] = answered.get(pending.session.key, 0) + 1

    patch(Turns, "_usage", usage)
    patch(Turns, "committed", answer)


def counted_when_it_ran(patch: Patch) -> None:
    """Each run is counted at once under the shard, whether it is committed or not."""
    stepped = Turns._usage

    def usage(self: Turns, session: Any, step: Any, ran: Any, now_us: int) -> usages.Usage:
        found = stepped(self, session, step, ran, now_us)
        runs[step.key.id, step.session] = runs.get((step.key.id, step.session), 0) + 1
        return msgspec.structs.replace(found, steps=found.steps + runs[step.key.id, step.session] - 1)

    runs: dict[tuple[str, str], int] = {}
    patch(Turns, "_usage", usage)


def folded_by_itself(patch: Patch) -> None:
    """Totals are written in a transaction of their own, before the one that removes the records."""
    real = MemoryStore.txn

    async def txn(self: MemoryStore, txn: Txn, **given: Any) -> Any:
        totals = tuple(w for w in txn.writes if isinstance(w, Put) and "/usage/s/" in w.key)
        if totals:
            await real(self, Txn((), totals), **given)
        return await real(self, Txn(txn.compares, tuple(w for w in txn.writes if w not in totals)), **given)

    patch(MemoryStore, "txn", txn)


def removed_with_what_they_used(patch: Patch) -> None:
    real = transactions.remove

    def remove(keys: Any, function: Any, removals: Any, **given: Any) -> Txn:
        return real(keys, function, [msgspec.structs.replace(one, usage=None) for one in removals], **given)

    patch(transactions, "remove", remove)


LOSSES = frozenset({"lost", "fork", "twice", "ack-uncommitted", "reply-differs"})
CONTROLS = [
    Control("no compares at all", no_compares, LOSSES),
    Control("the fence alone is compared", fence_only, LOSSES),
    Control("reply before commit", reply_before_commit, frozenset({"ack-uncommitted"})),
    Control("kept keys in memory only", kept_in_memory_only, LOSSES | {"false-missing"}),
    Control("no horizon", no_horizon, frozenset({"twice"})),
    Control("no tombstones", no_tombstone, LOSSES | {"false-missing"}),
    Control("no floors", no_floor, frozenset({"twice", "reply-differs"})),
    Control("removals compare nothing", unfenced_removal, LOSSES | {"removed-early", "false-missing"}),
    Control("removals compare the fence alone", removal_by_fence_only, LOSSES | {"removed-early", "false-missing"}),
    Control("removal without a wait", removal_at_once, frozenset({"removed-early"})),
    Control("no order of starts", no_start_order, frozenset({"late-start"})),
    Control("one horizon for gateways that differ", one_horizon, frozenset({"false-refusal"})),
    Control("gateways' keys by their own clocks", keys_by_any_clock, frozenset({"false-refusal", "late-start"})),
    Control("expiry by any clock", expiry_by_any_clock, frozenset({"lost", "false-missing"})),
    Control("'no such session' from memory", unconfirmed_refusals, frozenset({"false-missing", "reply-differs"})),
    Control("a failed compare means no", failed_compare_means_no, LOSSES | {"false-again"}),
    Control("memory survives a move", memory_survives_a_move, LOSSES),
    Control("whatever was read counts as committed", unread_outcomes_are_acknowledged, LOSSES),
    Control("only the last write counts", only_the_last_write_counts, frozenset({"false-again"})),
    Control("a full store's no is believed", believed_when_full, frozenset({"false-again"})),
    Control("owed tombstones are never written", no_owed_tombstones, frozenset({"twice"})),
    Control("shards are given away while tombstones are owed", given_while_owed, LOSSES),
    Control("debts end with their leader", debts_end_with_a_leader, frozenset({"twice"})),
    Control("a full store's deletions leave the owner", erased_with_an_owner, LOSSES),
    Control("a key that is not kept was never there", the_kept_keys_remember_all, frozenset({"false-again"})),
    Control("usage is counted with the answer", counted_with_the_answer, frozenset({"usage"})),
    Control("usage is counted when a step ran", counted_when_it_ran, frozenset({"usage"})),
    Control("usage is folded outside of the removal", folded_by_itself, frozenset({"usage"})),
    Control("removals fold no usage", removed_with_what_they_used, frozenset({"usage"})),
]
