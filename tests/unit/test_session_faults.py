"""Faults of a worker's sessions that were found once: each with the guard that mends it, and what happens without the guard."""

import asyncio
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from dormouse_core import entries, limits, records, steps, transactions
from dormouse_core.errors import Aborted, Again, Code, DataLoss, DeadlineExceeded, FailedPrecondition, InvalidArgument
from dormouse_core.seams import Put, Txn
from dormouse_core.sessions import groups, moves
from dormouse_core.sessions.commands import Run
from dormouse_core.sessions.memory import LargeReplies, Shard
from dormouse_core.sessions.names import session_key, shard_of
from dormouse_core.sessions.turns import Turns
from dormouse_core.steps import Resolution
from dormouse_proto import state_pb2
from dormouse_testing.clock import SimClock
from dormouse_testing.memory_etcd import MemoryEtcd
from dormouse_testing.memory_store import FULL, FULL_APPLIED, REFUSED, REPLY_LOST, REQUEST_LOST, Fault, MemoryStore
from dormouse_testing.session_worker import SHARDS, SUM, Adder, F, K, Worker, again, error, make, simulated, state_key
from dormouse_worker.sessions import Answer, Ran, SessionSettings, StateInfo

# ------------------------------------------------------------------------------------------------------------------ large replies


class Numbered(Adder):
    """Replies with the number of the run, so that no two runs have the same reply, and as many bytes as asked for."""

    def __init__(self, first: int = 0) -> None:
        super().__init__()
        self.count = first
        self.bytes = 20_000

    def run(self, call: Any, states: Any, step: int, start: bool, end: bool, done: Any, deadline: float) -> None:
        self.count += 1
        reply = b"run %d " % self.count
        ran = Ran(reply + b"." * (self.bytes - len(reply)), {"sum": states["sum"] + call})
        asyncio.get_running_loop().call_soon(done, ran)


async def two_lives(first: Worker, second: Worker) -> tuple[Answer, Answer]:
    """A caller numbers its calls and begins the sequence again: the new c-1, and its retry."""
    await first.own()
    await first.call("s", 1, call_id="c-1", start=True)
    for n in range(2, 11):
        await first.call("s", n, call_id=f"c-{n}")
    second.runner.bytes = 10_000 if first is second else 20_000  # type: ignore[attr-defined]
    await second.own()
    begun = await second.call("s", 100, call_id="c-1", start=True)
    if first is second:
        await second.call("s", 101, call_id="c-2")  # two replies of 10 kB: the record keeps the newer
    else:
        await first.own()
    return begun, await first.call("s", 100, call_id="c-1", start=True)


def of_another_life(begun: Answer, repeated: Answer) -> bool:
    assert begun.reply is not None
    if repeated.reply is None:
        assert repeated.error is not None
        assert repeated.error.code is Code.ALREADY_EXISTS
    return repeated.reply not in (None, begun.reply)


@simulated
async def test_a_retry_is_never_answered_with_the_reply_of_an_earlier_life() -> None:
    async with Worker(MemoryStore(SimClock()), runner=Numbered()) as w:
        assert not of_another_life(*await two_lives(w, w))


@simulated
async def test_nor_after_the_shard_went_to_another_worker_and_came_back() -> None:
    store = MemoryStore(SimClock())
    async with Worker(store, "w-1", Numbered()) as a, Worker(store.client(), "w-2", Numbered(1_000)) as b:
        assert not of_another_life(*await two_lives(a, b))
        assert len(a.sessions.machine.turns._large) == 0, "what was remembered goes with the shard"


def test_without_a_write_id_of_its_own_it_would_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: the caller's key and the step's number in place of the write id, and nothing goes with the shard."""
    ran = Turns.ran

    def name_by_key(self: Turns, run: Run, outcome: Any) -> None:
        monkeypatch.setattr(self._write_ids, "next", lambda: f"{run.step.key.id}/{run.number}".encode())
        ran(self, run, outcome)

    monkeypatch.setattr(Turns, "ran", name_by_key)
    monkeypatch.setattr(LargeReplies, "forget", lambda self, shard: None)

    @simulated
    async def play() -> None:
        store = MemoryStore(SimClock())
        async with Worker(store, "w-1", Numbered()) as a, Worker(store.client(), "w-2", Numbered(1_000)) as b:
            assert of_another_life(*await two_lives(a, b))

    play()


@simulated
async def test_a_session_that_left_memory_still_repeats_its_large_reply() -> None:
    async with Worker(MemoryStore(SimClock()), runner=Numbered()) as w:
        await w.own()
        first = await w.call("s", 1, call_id="c-1")
        for shard in w.sessions.machine.shards:
            w.sessions.machine.turns.evict(shard, float("inf"))
        assert w.sessions.report().sessions == 0
        assert (await w.call("s", 1, call_id="c-1")).reply == first.reply


@simulated
async def test_large_replies_take_no_more_memory_than_they_may() -> None:
    """66 lives of nine calls, the first of each with a reply of 1 MiB: what is counted is what is there."""
    async with Worker(MemoryStore(SimClock()), runner=Numbered()) as w:
        await w.own()
        for _ in range(66):
            for n in range(1, 10):
                w.runner.bytes = 1024 * 1024 if n == 1 else 10  # type: ignore[attr-defined]
                await w.call("s", n, call_id=f"c-{n}", start=n == 1)
        large = w.sessions.machine.turns._large
        assert (len(large), large.bytes) == (64, 64 * 1024 * 1024)
        w.runner.bytes = 20_000  # type: ignore[attr-defined]
        innocent = await w.call("innocent", 1, call_id="c-x")
        assert (await w.call("innocent", 1, call_id="c-x")).reply == innocent.reply


def test_a_reply_that_is_remembered_again_is_counted_once() -> None:
    shard = Shard(0, "e", "f")
    large = LargeReplies(limit=100)
    for _ in range(5):
        large.add(shard, b"w", b"x" * 40)
    assert (large.bytes, large.get(b"w"), shard.large) == (40, b"x" * 40, {b"w"})
    large.add(shard, b"v", b"x" * 70)
    assert (large.bytes, large.get(b"w"), shard.large) == (70, None, {b"v"})
    large.add(shard, b"u", b"x" * 101)
    large.forget(shard)
    assert (large.bytes, len(large), shard.large) == (0, 0, set())


# ------------------------------------------------------------------------------------------------------------------ dormouse-again


async def overtaken(later: int) -> Answer:
    """A step lands and its reply is lost; before its worker reads, the shard moves and `later` steps of another caller follow on top."""
    store = MemoryStore(SimClock())
    async with Worker(store.client(), "w-1") as a, Worker(store.client(), "w-2") as b:
        await a.own()
        await a.call("s", 1)
        a.store.fault("txn", REPLY_LOST)
        a.store.fault("get", Fault(request_delay=2.0))
        waiting = a.submit("s", 10)
        await asyncio.sleep(0.1)
        await b.own()
        for n in range(later):
            assert (await b.call("s", 100)).reply == b"%d" % (11 + 100 * (n + 1))
        return await waiting


@simulated
async def test_a_step_that_landed_under_later_ones_is_answered_with_its_kept_reply() -> None:
    answer = await overtaken(1)
    assert (answer.reply, answer.step, answer.kept) == (b"11", 2, True)


@simulated
async def test_a_step_that_landed_and_may_be_forgotten_is_not_known() -> None:
    assert isinstance(error(await overtaken(steps.KEPT_KEYS)), Aborted)


def test_without_the_kept_keys_it_would_be_called_uncommitted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: whatever is not in the record under my write id never landed."""
    real = steps.resolve

    def resolve(call: Any, **seen: Any) -> Resolution:
        found = real(call, **seen)
        return Resolution.LOST if found in (Resolution.LANDED, Resolution.UNKNOWN) else found

    monkeypatch.setattr(steps, "resolve", resolve)

    @simulated
    async def play() -> None:
        for later in (1, steps.KEPT_KEYS):
            assert again(await overtaken(later)) is not None

    play()


@simulated
async def test_a_large_reply_that_landed_under_a_later_step_is_answered() -> None:
    store = MemoryStore(SimClock())
    async with Worker(store.client(), "w-1", Numbered()) as a, Worker(store.client(), "w-2", Numbered(1_000)) as b:
        await a.own()
        a.store.fault("txn", REPLY_LOST)
        waiting = a.submit("s", 10, call_id="c-1")
        await asyncio.sleep(0.001)
        a.store.fault("get", Fault(request_delay=2.0))
        await asyncio.sleep(0.1)
        await b.own()
        await b.call("s", 100)
        answer = await waiting
        assert answer.reply is not None
        assert (answer.reply[:6], answer.kept) == (b"run 1 ", False)


@simulated
async def test_a_resend_of_a_committed_call_gets_its_reply_though_its_deadline_passed() -> None:
    async with Worker(MemoryStore(SimClock())) as w:
        await w.own()
        await w.call("s", 1, call_id="c-1")
        w.runner.hold = True
        other = w.submit("s", 5)
        await asyncio.sleep(0)
        until = SimClock().monotonic() + 0.1
        resent = w.submit("s", 1, call_id="c-1", deadline=until)
        fresh = w.submit("s", 1, call_id="c-2", deadline=until)
        await asyncio.sleep(1)
        w.runner.release()
        assert (await other).reply == b"6"
        assert ((await resent).reply, (await resent).kept) == (b"1", True)
        late = error(await fresh)
        assert isinstance(late, DeadlineExceeded)
        assert "this copy of the call was not run" in late.message


# ---------------------------------------------------------------------------------------------------------------- broken records

BROKEN = b"\x01" + bytes(880 * 1024)


async def together_with_an_innocent_one(w: Worker, names: list[str]) -> list[Answer]:
    """Begins all these, whose records are broken; their steps end together with one of a session that is well, the last."""
    w.runner.hold = True
    answers = [w.submit(name, 1, start=True) for name in names] + [w.submit("innocent", 1)]
    await asyncio.sleep(1)
    w.runner.release()
    return await asyncio.gather(*answers)


async def break_record(w: Worker, name: str, data: bytes = BROKEN) -> str:
    """The session's record does not verify; returns the key of its copy in quarantine."""
    revision = (await w.store.txn(Txn((), (Put(state_key(name), data),)))).revision
    session = session_key("", name)
    return K.quarantine(F, shard_of(session, SHARDS), session, revision)


@simulated
async def test_a_broken_record_as_large_as_they_get_can_be_begun_again() -> None:
    async with Worker(MemoryStore(SimClock())) as w:
        await w.own()
        w.sessions.machine.turns._infos = [StateInfo("sum", "sum", "sum", "INT64", (-1,), None, np.zeros(100_000, np.int64))]
        w.sessions.machine.turns._initial = {"sum": np.zeros(100_000, np.int64)}
        copy = await break_record(w, "a")
        assert isinstance(error(await w.call("a", 1)), DataLoss)
        assert (await w.call("a", 7, start=True)).reply == b"7"
        kept = w.store.etcd.item(copy)
        assert kept is not None
        assert kept.value == BROKEN
        assert (await w.call("a", 1)).reply == b"8"


def test_together_with_their_copies_they_could_not_and_an_innocent_session_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: copies in the transaction of the records that replace them, comparisons counted and writes not."""
    real = groups._transaction

    def together(group: Any) -> Txn:
        txn = real(group)
        return replace(txn, writes=(*txn.writes, *(pending.quarantine for pending in group if pending.quarantine)))

    monkeypatch.setattr(groups, "_transaction", together)
    monkeypatch.setattr(groups.Groups, "add", lambda self, pending: self._ready.append(pending))

    @simulated
    async def play() -> None:
        async with Worker(MemoryStore(SimClock())) as w:
            await w.own()
            await break_record(w, "large")
            w.runner.reply = b"." * 16_000  # beside the kept replies, the record has 900,000 bytes
            w.sessions.machine.turns._infos = [StateInfo("sum", "sum", "sum", "INT64", (-1,), None, np.zeros(1, np.int64))]
            w.sessions.machine.turns._initial = {"sum": np.zeros(100_000, np.int64)}
            assert again(await w.call("large", 7, start=True)) is None
            w.runner.reply, w.sessions.machine.turns._initial = b"", {"sum": np.zeros(1, np.int64)}
            names = [f"s{n}" for n in range(70)]
            for name in names:
                await break_record(w, name, b"\x01broken")
            await w.call("innocent", 1)
            *_, innocent = await together_with_an_innocent_one(w, names)
            assert again(innocent) is None

    play()


@simulated
async def test_many_that_are_begun_together_harm_no_other_session() -> None:
    async with Worker(MemoryStore(SimClock())) as w:
        await w.own()
        names = [f"s{n}" for n in range(70)]
        copies = [await break_record(w, name, b"\x01broken") for name in names]
        await w.call("innocent", 1)
        sizes: list[tuple[int, int]] = []
        w.store.hook = lambda method, request: (
            sizes.append((len(request.compares), len(request.writes))) if isinstance(request, Txn) else None
        )
        assert [answer.error for answer in await together_with_an_innocent_one(w, names)] == [None] * 71
        assert all(w.store.etcd.item(copy) is not None for copy in copies)
        assert max(max(size) for size in sizes) <= limits.TXN_OPS


@simulated
async def test_the_broken_bytes_are_there_or_in_quarantine_at_every_moment() -> None:
    """The copy's transaction is lost, is applied without a reply, is refused, or lands late; the shard moves while it is made."""
    for fault in (REQUEST_LOST, REPLY_LOST, REFUSED, FULL, FULL_APPLIED, Fault(request_delay=5.5), None):
        store = MemoryStore(SimClock())
        async with Worker(store, f"w-{fault}") as w, Worker(store.client(), f"v-{fault}") as other:
            await w.own()
            copy = await break_record(w, "a", b"\x01broken")
            seen: list[bool] = []

            def look(etcd: MemoryEtcd = store.etcd, copy: str = copy, seen: list[bool] = seen) -> None:
                record, kept = etcd.item(state_key("a")), etcd.item(copy)
                seen.append(any(item is not None and item.value == b"\x01broken" for item in (record, kept)))

            store.etcd.listeners.add(look)
            if fault is None:
                w.store.fault("txn", Fault(request_delay=1.0))
                begun = w.submit("a", 7, start=True)
                await asyncio.sleep(0.1)
                await other.own()
                assert again(await begun) is Again.DROPPED
                assert (await other.call("a", 7, start=True)).reply == b"7"
            else:
                w.store.fault("txn", fault)
                answer = await w.call("a", 7, start=True)
                if fault in (REFUSED, FULL):
                    assert again(answer) is None
                    answer = await w.call("a", 7, start=True)
                assert answer.reply == b"7"
            await asyncio.sleep(10)
            store.etcd.listeners.discard(look)
            assert seen
            assert all(seen)


def test_without_the_copy_before_them_they_would_be_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control."""
    monkeypatch.setattr(groups.Groups, "add", lambda self, pending: self._ready.append(pending))
    with pytest.raises(AssertionError):
        test_the_broken_bytes_are_there_or_in_quarantine_at_every_moment()


def test_no_builder_of_transactions_makes_one_that_the_store_refuses_for_its_size() -> None:
    full = {f"k{n}": n for n in range(limits.ETCD_TXN_OPS + 1)}
    with pytest.raises(transactions.TooLarge, match="129 comparisons"):
        transactions.commit({}, full.items(), {}, ())
    with pytest.raises(transactions.TooLarge, match="129 writes"):
        transactions.commit({}, (), {}, [Put(key, b"") for key in full])
    with pytest.raises(transactions.TooLarge):
        transactions.remove(K, F, [transactions.Removal(0, full, shard_mod=1, floor_mod=1, floor_us=1)])


async def groups_in_one_request_each(monkeypatch: pytest.MonkeyPatch) -> list[Exception | None]:
    """What 300 steps of as many sessions with large replies end with."""
    monkeypatch.setattr(transactions, "counted", lambda txn: txn)
    async with Worker(MemoryStore(SimClock())) as w:
        await w.own()
        w.runner.reply = b"x" * 16_000
        return [answer.error for answer in await asyncio.gather(*(w.submit(f"s{n}", 1) for n in range(300)))]


@simulated
async def test_no_group_is_refused_for_its_size() -> None:
    with pytest.MonkeyPatch.context() as patch:
        assert await groups_in_one_request_each(patch) == [None] * 300


@pytest.mark.parametrize("limit", ["TXN_OPS", "TXN_BYTES"])
def test_negative_control_without_counting_a_group_is_refused_with_every_session_in_it(limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, limit, 1 << 30)
    if limit == "TXN_OPS":
        monkeypatch.setattr(groups, "TXN_BYTES", 1 << 30)

    @simulated
    async def play() -> None:
        refused = [error for error in await groups_in_one_request_each(monkeypatch) if error is not None]
        assert len(refused) > 100
        why = "too many operations in txn request" if limit == "TXN_OPS" else "request is too large"
        assert all(f"the store refused it: etcdserver: {why}" in str(error) for error in refused)

    play()


# ------------------------------------------------------------------------------------------------------------------ state versions


class Counting(Adder):
    """The next version of `Adder`: it also counts its steps."""

    def run(self, call: Any, states: Any, step: int, start: bool, end: bool, done: Any, deadline: float) -> None:
        after = {"sum": states["sum"] + call, "count": states["count"] + 1}
        asyncio.get_running_loop().call_soon(done, Ran(b"%d/%d" % (after["sum"][0], after["count"][0]), after))


def versions(store: MemoryStore, fills: bool = True) -> tuple[Worker, Worker, Worker]:
    """The old one, the new one with a state more, the old one again after a rollback: each reads the other's records."""
    count = StateInfo("count", "count", "count", "INT64", (1,), None, np.full(1, 100, np.int64), fills=fills)
    old, new = SessionSettings(SHARDS, "v1", accepts=frozenset({"v2"})), SessionSettings(SHARDS, "v2", accepts=frozenset({"v1"}))
    return (
        Worker(store.client(), "w-1", settings=old),
        Worker(store.client(), "w-2", Counting(), settings=new, states=[*SUM, count]),
        Worker(store.client(), "w-3", settings=old),
    )


@simulated
async def test_a_state_that_was_added_begins_at_its_first_value_and_goes_in_a_rollback() -> None:
    first, second, third = versions(MemoryStore(SimClock()))
    async with first as w:
        await w.own()
        await w.call("a", 5, call_id="c-1")
    async with second as w:
        await w.own()
        assert (await w.call("a", 5, call_id="c-1")).reply == b"5", "a kept reply has no version"
        assert [(await w.call("a", 1)).reply for _ in range(2)] == [b"6/101", b"7/102"]
    async with third as w:
        await w.own()
        assert (await w.call("a", 1)).reply == b"8"


@simulated
async def test_without_being_told_so_a_session_that_lacks_it_is_refused_and_left_as_it_is() -> None:
    """Negative control: the same, but the state is not declared so. A sequence_start begins again; keys count all the same."""
    store = MemoryStore(SimClock())
    first, second, _ = versions(store, fills=False)
    async with first as w:
        await w.own()
        await w.call("a", 5, call_id="c-1")
        await w.call("b", 5, call_id="c-1")
    before = store.etcd.item(state_key("a"))
    async with second as w:
        await w.own()
        for _ in range(2):
            refusal = error(await w.call("a", 1))
            assert isinstance(refusal, FailedPrecondition)
            assert "whenMissing: initial" in refusal.message
        assert store.etcd.item(state_key("a")) == before
        assert (await w.call("a", 5, call_id="c-1", start=True)).kept
        assert (await w.call("a", 1, start=True)).reply == b"1/101"
        assert (await w.call("a", 1)).reply == b"2/102"
        assert (await w.call("b", 5, call_id="c-1")).kept


@simulated
async def test_a_start_on_a_record_of_an_unknown_version_begins_again() -> None:
    store = MemoryStore(SimClock())
    async with Worker(store.client(), "w-1") as w:
        await w.own()
        await w.call("a", 5, at=900, call_id="c-1")
    async with Worker(store.client(), "w-2", settings=SessionSettings(SHARDS, "v2")) as w:
        await w.own()
        assert isinstance(error(await w.call("a", 1, at=950)), FailedPrecondition)
        assert (await w.call("a", 5, at=950, call_id="c-1", start=True)).reply == b"5", "the same call, sent again"
        assert isinstance(error(await w.call("a", 1, at=800, start=True)), Aborted), "older than the newest step (rule *late-start*)"
        assert (await w.call("a", 1, at=1000, start=True)).reply == b"1"
        assert (await w.call("a", 1, at=1001)).reply == b"2"


async def after_a_rollback_from_a_revision_that_reads_no_other() -> Answer:
    """v2 is asked for a step of a session of v1, and v1 for the next."""
    store = MemoryStore(SimClock())
    async with Worker(store.client(), "w-1") as w:
        await w.own()
        await w.call("a", 5)
    async with Worker(store.client(), "w-2", settings=SessionSettings(SHARDS, "v2")) as w:
        await w.own()
        await w.call("a", 1)
    async with Worker(store.client(), "w-3") as w:
        await w.own()
        return await w.call("a", 1)


@simulated
async def test_a_revision_that_does_not_read_a_session_costs_it_nothing() -> None:
    assert (await after_a_rollback_from_a_revision_that_reads_no_other()).reply == b"6"


def test_negative_control_run_on_whatever_version_its_record_has_it_would_be_lost_to_the_one_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Every(frozenset[str]):
        def __contains__(self, version: object) -> bool:
            return True

    real = Turns.__init__

    def init(self: Turns, *given: Any, **more: Any) -> None:
        real(self, *given, **more)
        if self._settings.state_version == "v2":
            self._versions = Every()

    monkeypatch.setattr(Turns, "__init__", init)

    @simulated
    async def play() -> None:
        assert isinstance(error(await after_a_rollback_from_a_revision_that_reads_no_other()), FailedPrecondition)

    play()


@simulated
async def test_a_start_on_a_record_of_a_newer_build_is_refused_and_leaves_it() -> None:
    """Its keys cannot be read, so nobody here can know whether this very call is in it."""
    async with Worker(MemoryStore(SimClock())) as w:
        await w.own()
        await break_record(w, "a", b"\x03of a newer build")
        before = w.store.etcd.item(state_key("a"))
        assert isinstance(error(await w.call("a", 1, start=True)), FailedPrecondition)
        assert w.store.etcd.item(state_key("a")) == before


def test_negative_control_taken_for_a_broken_one_it_would_be_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "_FORMATS", (1, 2, 3))
    with pytest.raises(AssertionError):
        test_a_start_on_a_record_of_a_newer_build_is_refused_and_leaves_it()


# ------------------------------------------------------------------------------------------------------------ one key, one request


@simulated
async def test_a_key_is_not_answered_with_the_reply_to_something_else() -> None:
    async with Worker(MemoryStore(SimClock())) as w:
        await w.own()
        assert (await w.call("a", 1, call_id="c-1")).reply == b"1"
        other = await w.call("a", 2, call_id="c-1")
        assert other.reply is None
        assert isinstance(other.error, InvalidArgument)
        assert (await w.call("a", 1, call_id="c-1")).kept
        assert len(w.runner.runs) == 1


def test_negative_control_without_its_digest_it_would_be(monkeypatch: pytest.MonkeyPatch) -> None:
    real = records.keep
    monkeypatch.setattr(records, "keep", lambda at, ident, digest, *rest, **more: real(at, ident, b"", *rest, **more))
    monkeypatch.setattr("dormouse_testing.session_worker.make", lambda *given, **more: replace(make(*given, **more), digest=b""))
    with pytest.raises(AssertionError, match=r"assert b'1' is None"):
        test_a_key_is_not_answered_with_the_reply_to_something_else()


# ----------------------------------------------------------------------------------------------------------------------- handoffs


class Busy(Adder):
    """Each step takes as many milliseconds as it adds."""

    def run(self, call: Any, states: Any, step: int, start: bool, end: bool, done: Any, deadline: float) -> None:
        asyncio.get_running_loop().call_later(call / 1000, done, Ran(b"ran", {"sum": states["sum"] + call}))


async def handed_over_after(milliseconds: int) -> float:
    """Seconds from a plan to its handoff, of a shard whose eight sessions run steps of so long without a pause."""
    store = MemoryStore(SimClock())
    clock = SimClock()
    async with Worker(store, "w-1", Busy()) as w, Worker(store.client(), "w-2"):
        await w.own(0)
        names = [name for name in (f"s{n}" for n in range(200)) if shard_of(session_key("", name), SHARDS) == 0][:8]

        async def call_on(name: str, wait: float) -> None:
            await asyncio.sleep(wait)
            while (await w.call(name, milliseconds)).error is None:
                pass

        callers = [asyncio.create_task(call_on(name, n * milliseconds / 8000)) for n, name in enumerate(names)]
        await asyncio.sleep(1)
        began = clock.monotonic()
        await store.txn(Txn((), (Put(K.move(F, 0), state_pb2.Move(target="w-2").SerializeToString()),)))
        while w.sessions.report().shards:  # noqa: ASYNC110 - simulated time
            await asyncio.sleep(0.01)
        await asyncio.gather(*callers)
        return clock.monotonic() - began


@simulated
async def test_a_busy_shard_is_handed_over_within_two_of_its_steps() -> None:
    assert await handed_over_after(150) < 0.4
    assert await handed_over_after(50) < 0.2


@simulated
async def test_a_shard_is_served_on_for_steps_of_over_100_ms_alone() -> None:
    for age, served_on in ((0.08, False), (0.12, True), (0.19, True)):
        store = MemoryStore(SimClock())
        async with Worker(store, "w-1", Busy()) as w, Worker(store.client(), "w-2"):
            await w.own(0)
            names = [name for name in (f"s{n}" for n in range(200)) if shard_of(session_key("", name), SHARDS) == 0][:2]
            first = w.submit(names[0], 1000)
            await asyncio.sleep(age)
            await store.txn(Txn((), (Put(K.move(F, 0), state_pb2.Move(target="w-2").SerializeToString()),)))
            await asyncio.sleep(0.5)
            second = await w.call(names[1], 1)
            assert (second.error is None) is served_on, age
            assert (await first).error is None


def test_waiting_for_a_moment_without_an_old_step_lasts_to_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: any step over 100 ms is waited for, whenever it began."""
    monkeypatch.setattr(moves, "_any_older", lambda since, limit: any(start < SimClock().monotonic() - 0.1 for start in since))

    @simulated
    async def play() -> None:
        assert await handed_over_after(150) > 50

    play()


# ------------------------------------------------------------------------------------------------------- entries that do not parse

GARBAGE = b"\xff\xff\xff"


async def garble(w: Worker, key: str) -> int:
    return (await w.store.txn(Txn((), (Put(key, GARBAGE),)))).revision


@simulated
async def test_a_shard_entry_that_cannot_be_read_is_nobodys_and_harms_no_other() -> None:
    async with Worker(MemoryStore(SimClock())) as w:
        await w.own()
        names = {shard_of(session_key("", name), SHARDS): name for name in (f"s{n}" for n in range(40))}
        for name in names.values():
            await w.call(name, 1)
        await garble(w, K.shard(F, 0))
        await asyncio.sleep(1)
        assert again(await w.call(names[0], 1)) is Again.NOT_MINE
        w.store.break_watches()  # listed anew, as by the next owner
        await asyncio.sleep(1)
        assert [(await w.call(names[shard], 1)).reply for shard in (1, 2, 3)] == [b"2"] * 3
        assert not w.sessions.lost.is_set()
        await w.own(0)
        assert (await w.call(names[0], 1)).reply == b"2"


@simulated
async def test_a_plan_that_cannot_be_read_is_no_plan() -> None:
    async with Worker(MemoryStore(SimClock())) as w:
        await w.own()
        await garble(w, K.move(F, 0))
        await asyncio.sleep(1)
        assert w.sessions.report().shards == SHARDS
        assert not w.sessions.lost.is_set()


@simulated
async def test_a_floor_that_cannot_be_read_refuses_new_sessions_for_a_minute_and_no_others() -> None:
    async with Worker(MemoryStore(SimClock())) as w:
        await w.own()
        old, new = [name for name in (f"s{n}" for n in range(40)) if shard_of(session_key("", name), SHARDS) == 0][:2]
        now = lambda: int(SimClock().now() * 1e6)  # noqa: E731
        await w.call(old, 1, at=now() - 1)
        await garble(w, K.floor(F, 0))
        w.sessions.machine.turns.evict(w.sessions.machine.shards[0], float("inf"))
        assert (await w.call(old, 1, at=now())).reply == b"2"
        assert isinstance(error(await w.call(new, 1, at=now())), Aborted)
        await asyncio.sleep(61)
        assert (await w.call(new, 1, at=now())).reply == b"1"


def test_a_loop_that_ended_over_one_entry_would_take_all_sessions_along(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: what does not parse raises where it is read."""
    monkeypatch.setattr(entries, "parse", lambda kind, item: kind.FromString(item.value))

    @simulated
    async def play() -> None:
        async with Worker(MemoryStore(SimClock())) as w:
            await w.own()
            await garble(w, K.shard(F, 0))
            await asyncio.sleep(1)
            assert w.sessions.lost.is_set()

    play()
