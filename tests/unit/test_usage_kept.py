"""Where what was used would be lost: a session's removal and deletion, a worker's end, a function's."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from dormouse_core import limits, records, transactions, usages
from dormouse_core.errors import Again, InvalidArgument, NotFound, Unavailable
from dormouse_core.keys import Function
from dormouse_core.observations import FunctionSeen
from dormouse_core.seams import Compacted, CreatedIs, Delete, ModIs, Put, Txn
from dormouse_core.usages import SECOND_US, Usage
from dormouse_operator import metrics, usage_keeping, usage_sums
from dormouse_operator.deleting import tombstone
from dormouse_operator.usage_keeping import DAY_US, OLD_EVERY, UsageKeeper
from dormouse_operator.usage_rows import Reader
from dormouse_operator.writes import Writer
from dormouse_proto import control_pb2, state_pb2
from dormouse_testing.memory_store import FULL, FULL_APPLIED, REFUSED, REPLY_LOST, REQUEST_LOST, UNREACHED, Fault
from dormouse_testing.sleeping import KEYS, Sleeping, simulated
from dormouse_worker.serving.used import UsageKeeper as WorkersUsage
from dormouse_worker.serving.used import Used

DAY = 24 * 3600.0


class World(Sleeping):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.function = self.functions[0]
        self.keeper = UsageKeeper(self.store, self.clock, KEYS, self.view, self.leader_new)
        self.reader = Reader(self.store, self.clock, KEYS, self.view)

    def stepped(self, name: str, count: int, tenant: str = "", **more: Any) -> str:
        return self.put(name, tenant=tenant, usage=Usage(count, since_us=self.now_us()), **more)

    async def totals(self) -> usages.Totals:
        return (await usage_sums.of_function(self.store, self.clock, KEYS, self.function, 4, self.now_us())).totals

    async def rows(self, **request: str) -> list[control_pb2.UsageRow]:
        asked = control_pb2.UsageRequest(**request)
        return [row async for response in self.reader.rows(asked, self.now_us()) for row in response.rows]

    def seen(self) -> FunctionSeen:
        seen = self.view.seen("uid-0")
        assert seen is not None
        return seen

    async def days(self, count: int = 1) -> str:
        """Leads until `count` days have begun; returns the last of them."""
        for _ in range(count):
            await asyncio.sleep(usages.day_us(usages.day_of(self.now_us() + DAY_US)) / SECOND_US - self.clock.now() + 1.0)
            await self.keeper.begin_day()
        return usages.day_of(self.now_us())

    async def purge(self, writer: Writer | None = None) -> int:
        seen, entry = self.view.seen("uid-0"), self.store.etcd.item(KEYS.function("ns", "fn0"))
        assert seen is not None
        assert entry is not None
        writer = writer or Writer(self.store, KEYS, self.leader_new, None, self.keeper)
        return await writer.purge(replace(seen, entry_mod=entry.mod_revision))

    def gone(self) -> None:
        item = self.store.etcd.item(KEYS.function("ns", "fn0"))
        key = KEYS.function("ns", "fn0")
        self.view.function_changed(key, item or _entry(self.entries[0]), None)


def _entry(entry: state_pb2.FunctionEntry) -> Any:
    from dormouse_core.seams import Item

    return Item("", entry.SerializeToString(), 1, 1)


# ------------------------------------------------------------------------------------------------------------- sessions that go


@simulated
async def test_removed_sessions_are_in_the_totals_by_tenant_with_the_time_that_they_lay_there() -> None:
    w = World()
    key = w.stepped("a", 3, "acme", ttl=100.0)
    w.stepped("b", 4, "acme", ttl=100.0)
    w.stepped("c", 5, ended=True)
    size = len(w.store.etcd.item(key).value)  # type: ignore[union-attr]
    await asyncio.sleep(200.0)
    await w.sweeper.once()
    assert w.stored() == []
    found = await w.totals()
    assert {tenant: usage.steps for tenant, usage in found.items()} == {"acme": 7, "": 5}
    assert found["acme"].hibernated_us == 2 * size * 100 * SECOND_US, "until it expired, not until it was removed"
    assert found[""].hibernated_us == 0, "a tombstone is no state"


@pytest.mark.parametrize("fault", [REQUEST_LOST, REPLY_LOST, REFUSED, Fault(request_delay=9.0)])
def test_a_removal_that_is_refused_or_whose_outcome_is_lost_counts_once(fault: Fault) -> None:
    @simulated
    async def play() -> None:
        w = World()
        for n in range(30):
            w.stepped(f"s{n}", 1, ended=True)
        await asyncio.sleep(20.0)
        for _ in range(3):
            w.store.fault("txn", fault)
        for _ in range(12):
            await w.sweeper.once()
            assert usages.whole(await w.totals()).steps == 30, "at every moment"
            await asyncio.sleep(10.0)
        assert w.stored() == []

    play()


def test_negative_control_in_a_transaction_of_its_own_it_would_count_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    @simulated
    async def play() -> None:
        w = World()
        for n in range(30):
            w.stepped(f"s{n}", 1, ended=True)
        real = w.store.txn

        async def txn(txn: Txn, **options: Any) -> Any:
            totals = tuple(write for write in txn.writes if isinstance(write, Put) and "/usage/s/" in write.key)
            if totals:
                await real(Txn((), totals))
                w.store.fault("txn", REFUSED)
            return await real(Txn(txn.compares, tuple(write for write in txn.writes if write not in totals)), **options)

        monkeypatch.setattr(w.store, "txn", txn)
        await asyncio.sleep(20.0)
        await w.sweeper.once()
        assert usages.whole(await w.totals()).steps > 30

    play()


@simulated
async def test_a_deleted_session_keeps_its_usage_in_its_tombstone_and_made_again_goes_on_with_it() -> None:
    w = World()
    key = w.stepped("a", 3, "acme")
    data = w.store.etcd.item(key).value  # type: ignore[union-attr]
    now = w.now_us() + 7 * SECOND_US
    body = records.decode(tombstone(data, now)).body
    assert body.usage == Usage(3, hibernated_us=7 * SECOND_US * len(data), since_us=now)
    assert records.decode(tombstone(tombstone(data, now), now + 99)).body.usage == body.usage, "deleted again"
    again = usages.stepped(body.usage, 0, 10, now + 5, busy_us=0, bytes_in=0, bytes_out=0, read=True)
    assert (again.steps, again.hibernated_us) == (4, body.usage.hibernated_us)  # type: ignore[union-attr]


# ---------------------------------------------------------------------------------------------------------------------- workers


async def counted(w: World, worker: str, *tenants: str) -> Used:
    w.write(KEYS.worker(w.function, worker), b"entry")
    used = Used()
    kept = WorkersUsage(w.function, w.store, w.clock, KEYS, worker, lambda: used)
    for tenant in tenants:
        used.ended(tenant, None, Usage(calls=1, busy_us=10), kept=False)
    await asyncio.sleep(2.0)
    await kept.write()
    return used


@simulated
async def test_what_a_worker_counted_stays_when_it_is_gone_and_counts_once() -> None:
    w = World()
    await counted(w, "w-1", "acme", "acme", "")
    await counted(w, "w-2", "acme")
    expected = {"acme": Usage(calls=3, busy_us=30), "": Usage(calls=1, busy_us=10, worker_us=4 * SECOND_US)}
    assert await w.totals() == expected
    for faults in ((), (REPLY_LOST,), ()):
        for fault in faults:
            w.store.fault("txn", fault)
        w.store.etcd.txn(Txn((), (Delete(KEYS.worker(w.function, "w-1")),)))
        await w.keeper.once()
        assert await w.totals() == expected
    assert w.store.etcd.item(KEYS.usage_of_worker(w.function, "w-1")) is None, "folded"
    assert w.store.etcd.item(KEYS.usage_of_worker(w.function, "w-2")) is not None, "lives"


@simulated
async def test_a_worker_whose_lease_has_ended_writes_nothing_more_so_that_nothing_counts_twice() -> None:
    w = World()
    used = await counted(w, "w-1", "acme")
    kept = WorkersUsage(w.function, w.store, w.clock, KEYS, "w-1", lambda: used)
    w.store.etcd.txn(Txn((), (Delete(KEYS.worker(w.function, "w-1")),)))
    await w.keeper.fold(w.function)
    await kept.write()
    assert (await w.totals())["acme"].calls == 1


def test_negative_control_written_without_a_look_at_its_entry_it_would_count_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    real = transactions.count
    monkeypatch.setattr(transactions, "count", lambda *args: replace(real(*args), compares=()))

    @simulated
    async def play() -> None:
        w = World()
        used = await counted(w, "w-1", "acme")
        w.store.etcd.txn(Txn((), (Delete(KEYS.worker(w.function, "w-1")),)))
        await w.keeper.fold(w.function)
        await WorkersUsage(w.function, w.store, w.clock, KEYS, "w-1", lambda: used).write()
        assert (await w.totals())["acme"].calls == 2

    play()


@simulated
async def test_what_a_worker_counts_is_written_after_five_seconds_and_its_own_time_each_minute() -> None:
    w = World()
    w.write(KEYS.worker(w.function, "w-1"), b"entry")
    used = Used()
    running = asyncio.create_task(WorkersUsage(w.function, w.store, w.clock, KEYS, "w-1", lambda: used).run())
    used.ended("acme", None, Usage(calls=1), kept=False)
    await asyncio.sleep(limits.USAGE_SECONDS + 0.5)
    assert (await w.totals())["acme"].calls == 1
    await asyncio.sleep(limits.USAGE_IDLE_SECONDS - limits.USAGE_SECONDS)
    assert (await w.totals())[""].worker_us == limits.USAGE_SECONDS * SECOND_US, "nothing new"
    await asyncio.sleep(limits.USAGE_SECONDS + 0.5)
    assert (await w.totals())[""].worker_us >= limits.USAGE_IDLE_SECONDS * SECOND_US
    w.store.fault("txn", FULL)
    used.ended("acme", None, Usage(calls=1), kept=False)
    await asyncio.sleep(2 * limits.USAGE_SECONDS + 1)
    assert (await w.totals())["acme"].calls == 2, "a full store takes it the next time"
    running.cancel()


def test_failed_refused_and_repeated_calls_are_counted_apart() -> None:
    used = Used()
    used.ended("t", InvalidArgument("no"), None, kept=False)
    used.ended("t", Unavailable("elsewhere", Again.NOT_MINE), None, kept=False)
    used.ended("t", None, None, kept=True)
    used.ended("t", None, Usage(calls=1, busy_us=5), kept=False)
    used.ended("t", None, None, kept=False)  # a step: in its record
    used.ended("x" * 5000, None, Usage(calls=1), kept=False)
    assert used.totals == {"t": Usage(calls=1, busy_us=5, failed=1, refused=1, repeated=1), usages.OTHERS: Usage(calls=1)}
    for n in range(10_000):
        used.ended(f"t{n}", None, Usage(calls=1), kept=False)
    assert len(used.totals) <= 2 * limits.USAGE_TENANTS
    assert usages.whole(used.totals).calls == 10_002


# -------------------------------------------------------------------------------------------------------------------- functions


@pytest.mark.parametrize("fault", [REFUSED, REPLY_LOST])
@pytest.mark.parametrize("at", range(8))
def test_a_deleted_functions_usage_counts_once_wherever_its_end_is_interrupted(at: int, fault: Fault) -> None:
    @simulated
    async def play() -> None:
        w = World()
        w.stepped("a", 3, "acme")
        w.write(KEYS.usage(w.function, 1), usages.encode({"acme": Usage(10), "b": Usage(1)}))
        await counted(w, "w-1", "acme")
        tried = 0

        def hook(method: str, request: object) -> Fault | None:
            nonlocal tried
            tried += method == "txn"
            return fault if method == "txn" and tried == at else None

        w.store.hook = hook
        while w.store.etcd.item(KEYS.function("ns", "fn0")) is not None:
            await w.purge()
        w.gone()
        (row,) = await w.rows(namespace="ns", name="fn0")
        assert (row.usage.steps, row.usage.calls, row.deleted_us > 0) == (14, 1, True)
        assert {r.tenant: r.usage.steps for r in await w.rows(by="tenant")} == {"": 0, "acme": 13, "b": 1}

    play()


@simulated
async def test_a_deleted_functions_usage_is_kept_for_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage_keeping, "USAGE_DAYS", 20)
    w = World()
    w.stepped("a", 3, "acme")
    assert await w.purge()
    w.gone()
    await asyncio.sleep(19 * DAY)
    await w.keeper.once()
    assert len(await w.rows()) == 1
    await asyncio.sleep(2 * DAY)
    await w.keeper.once()
    assert await w.rows() == []


@simulated
async def test_an_owner_that_commits_while_its_function_ends_is_counted_or_committed_nothing() -> None:
    w = World()
    entry = w.write(KEYS.shard(w.function, 0), b"owner")
    fence = w.store.etcd.item(entry)
    assert fence is not None
    landed = 0

    def commit(method: str, request: object) -> None:
        nonlocal landed
        key = KEYS.state(w.function, 0, f"/s:{landed}")
        data = records.encode(records.Body("v", False, 1, (), 0, 0, 1 << 61, usage=Usage(1)), (), b"w")
        landed += w.store.etcd.txn(transactions.commit({entry: fence.mod_revision}, [(key, 0)], {}, [Put(key, data)])).succeeded

    w.store.hook = commit  # type: ignore[assignment]
    assert await w.purge()
    w.store.hook = None
    w.gone()
    assert [row.usage.steps for row in await w.rows()] == [landed]


@simulated
async def test_negative_control_summed_before_its_map_is_gone_steps_would_be_missing() -> None:
    w = World()
    w.stepped("a", 1)
    assert await w.keeper.keep(w.seen(), (CreatedIs(KEYS.leader, w.leader_new),))
    w.stepped("b", 1)
    assert await w.purge()
    w.gone()
    assert [row.usage.steps for row in await w.rows()] == [1]


@simulated
async def test_a_full_store_keeps_no_function_from_its_end_and_takes_its_usage_later() -> None:
    w = World()
    w.stepped("a", 3)
    full = True

    def hook(method: str, request: object) -> Fault | None:
        puts = isinstance(request, Txn) and any(isinstance(write, Put) for write in request.writes)
        return FULL if full and puts else None

    w.store.hook = hook
    assert await w.purge()
    assert w.stored() == []
    full = False
    await w.keeper.once()
    w.gone()
    assert [row.usage.steps for row in await w.rows()] == [3]


@pytest.mark.parametrize("fault", [FULL, FULL_APPLIED], ids=["not written", "written"])
@pytest.mark.parametrize("at", range(1, 9))
def test_what_a_full_store_says_of_usage_costs_nothing_and_counts_once(at: int, fault: Fault) -> None:
    """What a worker counts, its fold, the day, the end of its function, and what is written later: each in turn."""

    @simulated
    async def play() -> None:
        w = World()
        tried = 0

        def hook(method: str, request: object) -> Fault | None:
            nonlocal tried
            puts = isinstance(request, Txn) and any(isinstance(write, Put) for write in request.writes)
            tried += puts
            return fault if puts and at <= tried <= at + 1 else None

        w.store.hook = hook
        used = await counted(w, "w-1", "acme")
        kept = WorkersUsage(w.function, w.store, w.clock, KEYS, "w-1", lambda: used)
        for _ in range(2):
            await kept.write()
        w.store.etcd.txn(Txn((), (Delete(KEYS.worker(w.function, "w-1")),)))
        for _ in range(3):
            await w.keeper.once()
            assert (await w.totals())["acme"].calls == 1
        await w.days()
        await w.keeper.begin_day()
        await w.keeper.begin_day()
        (day,) = w.store.etcd.range(KEYS.usage_histories).items
        assert day.key.endswith(usages.day_of(w.now_us()))
        while w.store.etcd.item(KEYS.function("ns", "fn0")) is not None:
            await w.purge()
        w.gone()
        for _ in range(3):
            await w.keeper.once()
        assert [row.usage.calls for row in await w.rows()] == [1]

    play()


@simulated
async def test_a_function_made_again_under_its_name_is_another() -> None:
    w = World()
    w.stepped("a", 3)
    assert await w.purge()
    w.gone()
    entry = state_pb2.FunctionEntry(namespace="ns", name="fn0", uid="uid-new", spec=w.entries[0].spec, shards=4)
    key = KEYS.function("ns", "fn0")
    w.write(key, entry.SerializeToString())
    w.view.function_changed(key, None, w.store.etcd.item(key))
    w.write(KEYS.usage(Function("ns", "fn0", "uid-new"), 0), usages.encode({"": Usage(5)}))
    found = await w.rows(name="fn0")
    assert [(row.uid, row.usage.steps, row.deleted_us > 0) for row in found] == [("uid-new", 5, False), ("uid-0", 3, True)]


@simulated
async def test_sessions_that_are_kept_for_the_next_function_are_shown_and_go_on_counting() -> None:
    w = World()
    w.stepped("a", 3)
    seen, entry = w.view.seen("uid-0"), w.store.etcd.item(KEYS.function("ns", "fn0"))
    assert seen is not None
    assert entry is not None
    writer = Writer(w.store, KEYS, w.leader_new, None, w.keeper)
    assert await writer.retain(replace(seen, entry_mod=entry.mod_revision), 1)
    w.gone()
    (row,) = await w.rows()
    assert (row.usage.steps, row.deleted_us) == (3, 0)
    entry = state_pb2.FunctionEntry(namespace="ns", name="fn0", uid="uid-2", store_id="uid-0", spec=w.entries[0].spec, shards=4)
    key = KEYS.function("ns", "fn0")
    w.write(key, entry.SerializeToString())
    w.store.etcd.txn(Txn((), (Delete(KEYS.retained("ns", "fn0")),)))
    w.view.function_changed(key, None, w.store.etcd.item(key))
    assert [(row.uid, row.usage.steps) for row in await w.rows()] == [("uid-2", 3)]


# ------------------------------------------------------------------------------------------------------------------------ asked


@simulated
async def test_while_the_store_is_away_nothing_is_said_and_no_series_says_zero() -> None:
    w = World()
    w.stepped("a", 3)
    w.store.down = True
    with pytest.raises(Unavailable, match="not known"):
        await w.rows()
    metrics.USAGE.only(set())
    await w.keeper.once()
    assert series() == {}
    w.store.down = False
    await w.keeper.once()
    assert series() == {("ns/fn0", "", "false"): 3}
    w.store.fault("list", UNREACHED)
    w.stepped("a", 4)
    await w.keeper.once()
    assert series() == {("ns/fn0", "", "false"): 3}, "as it was summed last"
    w.gone()
    await w.keeper.once()
    assert series() == {}


def series() -> dict[tuple[str, ...], float]:
    (family,) = [family for family in metrics.USAGE.collect() if family.name == "dormouse_usage_steps"]
    return {(s.labels["function"], s.labels["tenant"], s.labels["others"]): s.value for s in family.samples}


@simulated
async def test_no_series_has_a_session_and_tenants_have_a_bound() -> None:
    w = World()
    for n in range(1000):
        w.stepped(f"s{n}", 1, f"tenant{n}")
    await w.keeper.once()
    for family in metrics.USAGE.collect():
        assert all(set(sample.labels) <= {"function", "tenant", "others"} for sample in family.samples)
    found = series()
    assert (len(found), sum(found.values())) == (limits.USAGE_TENANTS + 1, 1000)
    assert len(await w.rows(by="tenant", name="fn0", namespace="ns")) == 1000, "people are shown all"


def compacting(w: World, function: int = 0, mib: int = 0, every: float = 1.0) -> asyncio.Task[None]:
    """So much state, steps of other functions each second, and a store whose leader drops history that is ten seconds old."""
    pad = state_pb2.Tensor(name="s", datatype="FP32", shape=[1], data=bytes(900 * 1024))
    now = w.now_us()
    record = records.encode(records.Body("v", False, 3, (), now - 5, now, now + 10**15, usage=Usage(3, since_us=now)), (pad,), b"w")
    for n in range(mib * 1024 // 900):
        w.write(w.key(f"s{n}", function=function), record)

    async def run() -> None:
        revisions: list[int] = []
        while True:
            w.write("/other", b"x")
            revisions.append(w.store.etcd.revision)
            if len(revisions) % 10 == 0 and len(revisions) > 10:
                w.store.etcd.compact(revisions[-11])
            await asyncio.sleep(every)

    return asyncio.create_task(run())


@simulated
async def test_a_function_larger_than_the_history_that_the_store_keeps_is_summed_and_deleted() -> None:
    w = World(count=2)
    w.stepped("small", 5, function=1, ttl=1e9)
    running = compacting(w, mib=1000)
    count = len(w.stored()) * 3
    assert {row.name: (row.usage.steps, row.unknown) for row in await w.rows()} == {"fn0": (count, ""), "fn1": (5, "")}
    assert len(await w.rows(by="session", name="fn0")) * 3 == count
    assert await w.purge()
    w.gone()
    assert [row.usage.steps for row in await w.rows(name="fn0")] == [count]
    running.cancel()


@pytest.mark.parametrize("moving", [False, True])
def test_sessions_that_are_removed_while_a_large_function_is_read_count_once(monkeypatch: pytest.MonkeyPatch, moving: bool) -> None:
    @simulated
    async def play() -> None:
        w = World()
        monkeypatch.setattr(usage_sums, "AT_ONCE_BYTES", 0)
        for n in range(200):
            w.stepped(f"s{n}", 1, ended=True)
        await asyncio.sleep(20.0)
        real, removed = w.store.list, False
        shards = [KEYS.states(w.function, shard) for shard in range(4)]

        async def listing(prefix: str, **options: Any) -> Any:
            nonlocal removed
            if moving and options.get("revision") and prefix in shards:
                raise Compacted("compacted")
            if options.get("start") and prefix in shards and not removed:
                removed = True
                w.store.list = real  # type: ignore[method-assign]
                await w.sweeper.once()
                w.store.list = listing  # type: ignore[method-assign]
            return await real(prefix, **options)

        w.store.list = listing  # type: ignore[method-assign]
        assert usages.whole(await w.totals()).steps == 200
        assert removed

    play()


def test_negative_control_without_a_look_at_the_total_what_is_removed_meanwhile_would_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage_sums, "_mod", lambda item: 0)
    with pytest.raises(AssertionError, match="200"):
        test_sessions_that_are_removed_while_a_large_function_is_read_count_once(monkeypatch, True)


@simulated
async def test_one_function_that_cannot_be_read_keeps_nobody_from_the_others() -> None:
    w = World(count=2)
    w.stepped("a", 3)
    w.stepped("b", 4, function=1)
    real = w.store.list

    async def listing(prefix: str, **options: Any) -> Any:
        if prefix.startswith(KEYS.states(w.function)) and options.get("revision"):
            raise Compacted("compacted")
        if prefix.startswith(KEYS.states(w.function)):
            w.write(KEYS.usage(w.function, 0), usages.encode({"": Usage(w.store.etcd.revision)}))
        return await real(prefix, **options)

    w.store.list = listing  # type: ignore[method-assign]
    first, second = await w.rows()
    assert "removed faster than they are read" in first.unknown
    assert (second.usage.steps, second.unknown) == (4, "")


@simulated
async def test_a_function_that_was_restored_counts_once_and_its_next_end_has_all() -> None:
    w = World()
    w.stepped("a", 3, ttl=1e9)
    kept = [(item.key, item.value) for item in w.store.etcd.range(KEYS.root).items if not item.key.startswith(KEYS.leader)]
    assert await w.purge()
    w.gone()
    for key, value in kept:
        w.write(key, value)
    key = KEYS.function("ns", "fn0")
    w.view.function_changed(key, None, w.store.etcd.item(key))
    assert [(row.usage.steps, row.deleted_us) for row in await w.rows()] == [(3, 0)]
    w.stepped("b", 1000, ttl=1e9)
    assert await w.purge()
    w.gone()
    assert [(row.usage.steps, row.deleted_us > 0) for row in await w.rows()] == [(1003, True)]


@simulated
async def test_a_function_whose_records_go_while_it_is_asked_about_is_shown_whole_and_once() -> None:
    w = World()
    for n in range(40):
        w.stepped(f"s{n}", 10)
    tried = 0

    def hook(method: str, request: object) -> Fault | None:
        nonlocal tried
        tried += method == "txn"
        return REFUSED if tried == 5 else None

    w.store.hook = hook
    assert not await w.purge()
    w.store.hook = None
    assert 0 < len(w.stored()) < 40
    assert [(row.usage.steps, row.deleted_us > 0) for row in await w.rows()] == [(400, True)]


@simulated
async def test_a_restored_function_whose_end_was_under_way_is_not_summed_again_from_what_is_left() -> None:
    w = World()
    w.write(KEYS.deleted_usage(w.function), usages.at({"acme": Usage(50)}, w.now_us()))
    w.write(KEYS.function("ns", "fn0"), b"")
    w.store.etcd.txn(Txn((), (Delete(KEYS.function("ns", "fn0")),)))
    key = w.write(KEYS.function("ns", "fn0"), w.entries[0].SerializeToString())
    w.view.function_changed(key, None, w.store.etcd.item(key))
    w.stepped("a", 3)
    assert await w.purge()
    w.gone()
    assert [row.usage.steps for row in await w.rows()] == [50]


@simulated
async def test_a_function_that_is_being_deleted_keeps_its_last_sum() -> None:
    metrics.USAGE.only(set())
    w = World()
    w.stepped("a", 400)
    await w.keeper.once()
    w.entries[0].deleting = True
    key = KEYS.function("ns", "fn0")
    before = w.store.etcd.item(key)
    w.write(key, w.entries[0].SerializeToString())
    w.view.function_changed(key, before, w.store.etcd.item(key))
    w.store.etcd.txn(Txn((), (Delete(KEYS.states(w.function), prefix=True),)))
    await w.keeper.once()
    assert series() == {("ns/fn0", "", "false"): 400}
    day = await w.days()
    assert w.store.etcd.item(KEYS.usage_history(w.function, day)) is None


@simulated
async def test_a_clock_that_is_not_known_to_be_right_removes_nothing_and_begins_no_day() -> None:
    w = World()
    w.write(KEYS.deleted_usage(Function("ns", "gone", "u")), usages.at({"": Usage(7)}, w.now_us()))
    w.stepped("a", 3, ttl=1e9)
    await w.days()
    known = len(w.store.etcd.range(KEYS.root).items)
    w.clock.skew = 500 * DAY
    ahead = UsageKeeper(w.store, w.clock, KEYS, w.view, w.leader_new, lambda: None, w.now_us)
    await ahead.once()
    await ahead.begin_day()
    assert len(w.store.etcd.range(KEYS.root).items) == known
    w.clock.skew = 0.0
    assert [row.usage.steps for row in await w.rows()] == [3, 7]


# ------------------------------------------------------------------------------------------------------------------ since a day


@simulated
async def test_since_a_day_what_was_written_down_then_is_taken_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage_keeping, "USAGE_DAYS", 20)
    w = World()
    w.stepped("a", 3, "acme", ttl=1e9)
    day = await w.days()
    w.stepped("a", 10, "acme", ttl=1e9)
    w.stepped("b", 1, ttl=1e9)
    (row,) = await w.rows(since=day)
    assert (row.usage.steps, row.since_us) == (8, w.now_us())
    assert {row.tenant: row.usage.steps for row in await w.rows(by="tenant", since=day)} == {"acme": 7, "": 1}
    await asyncio.sleep(DAY + 2 * usage_sums.LATE_US / SECOND_US)
    late = usages.day_of(w.now_us())
    await w.keeper.begin_day()
    await w.keeper.once()
    (row,) = await w.rows(since=late)
    assert (row.usage.steps, "is not known" in row.unknown) == (0, True), "nobody led when it began"
    w.write(KEYS.usage_history(w.function, late), usages.at({"": Usage(5)}, w.now_us()))
    assert [row.unknown != "" for row in await w.rows(since=late)] == [True], "as a build of before wrote it"
    await asyncio.sleep(20 * DAY + OLD_EVERY)
    await w.keeper.once()
    assert [row.unknown != "" for row in await w.rows(since=day)] == [True]


@simulated
async def test_since_a_day_many_tenants_are_billed_what_they_used_since() -> None:
    w = World()
    for n in range(1000):
        w.stepped(f"s{n}", 1000, f"tenant{n}", ttl=1e9)
    day = await w.days()
    w.stepped("s0", 1001, "tenant0", ttl=1e9)
    assert [row.usage.steps for row in await w.rows(since=day)] == [1]
    assert sum(row.usage.steps for row in await w.rows(since=day, by="tenant")) == 1
    totals = usages.bounded({f"tenant{n}": Usage(2000 - n) for n in range(1000)})
    w.store.etcd.txn(Txn((), (Delete(KEYS.states(w.function), prefix=True), Put(KEYS.usage(w.function, 0), usages.encode(totals)))))
    used = usages.whole(totals).steps - 1_000_000
    assert [row.usage.steps for row in await w.rows(since=day)] == [used]
    assert sum(row.usage.steps for row in await w.rows(since=day, by="tenant")) == used


@simulated
async def test_since_a_day_what_was_deleted_before_is_left_out_and_what_began_since_counts_whole() -> None:
    w = World(count=2)
    w.stepped("a", 3)
    await w.days()
    assert await w.purge()
    w.gone()
    day = await w.days()
    made = entered(w, created_us=w.now_us())
    w.write(KEYS.usage(Function("ns", "new", "uid-new"), 0), usages.encode({"": Usage(500)}))
    assert [(row.name, row.usage.steps, row.unknown) for row in await w.rows(since=day)] == [("fn1", 0, ""), ("new", 500, "")]
    w.write(KEYS.usage_history(Function("ns", "new", "uid-new"), day), usages.at({"": Usage(400)}, w.now_us()))
    assert [row.usage.steps for row in await w.rows(since=day, name="new")] == [500], "whatever was written down after it began"
    seen, item = w.view.seen("uid-new"), w.store.etcd.item(made)
    assert seen is not None
    assert item is not None
    assert await Writer(w.store, KEYS, w.leader_new, None, w.keeper).purge(replace(seen, entry_mod=item.mod_revision))
    w.view.function_changed(made, item, None)
    assert [row.usage.steps for row in await w.rows(since=day, name="new")] == [500], "also when it is gone"


def entered(w: World, **more: Any) -> str:
    entry = state_pb2.FunctionEntry(namespace="ns", name="new", uid="uid-new", spec=w.entries[0].spec, shards=4, **more)
    key = w.write(KEYS.function("ns", "new"), entry.SerializeToString())
    w.view.function_changed(key, None, w.store.etcd.item(key))
    return key


@simulated
async def test_since_a_day_adopted_sessions_are_billed_what_they_used_since() -> None:
    w = World()
    w.store.etcd.txn(Txn((), (Delete(KEYS.function("ns", "fn0")),)))
    w.gone()
    w.write(KEYS.usage(Function("ns", "new", "old"), 0), usages.encode({"acme": Usage(1_000_000)}))
    w.write(KEYS.retained("ns", "new"), state_pb2.Retained(store_id="old", shards=4, since_us=w.now_us()).SerializeToString())
    first = usages.day_of(w.now_us())
    assert [row.unknown != "" for row in await w.rows(since=first)] == [True]
    day = await w.days()
    assert [row.usage.steps for row in await w.rows(since=day)] == [0], "kept, for nobody yet"
    w.store.etcd.txn(Txn((), (Delete(KEYS.retained("ns", "new")),)))
    entered(w, store_id="old", created_us=w.now_us())
    w.write(KEYS.usage(Function("ns", "new", "old"), 0), usages.encode({"acme": Usage(1_000_007)}))
    assert [row.usage.steps for row in await w.rows(since=day)] == [7]
    assert [row.unknown != "" for row in await w.rows(since=first)] == [True]


@simulated
async def test_a_session_is_shown_by_its_name_and_others_say_what_is_wrong() -> None:
    w = World()
    w.stepped("a", 3, "acme")
    w.put("old")
    w.write(w.key("broken"), b"broken")
    await asyncio.sleep(10.0)
    found = {row.session: row for row in await w.rows(by="session", namespace="ns", name="fn0")}
    assert {name: row.usage.steps for name, row in found.items()} == {"acme/s:a": 3, "/s:old": 0}
    assert found["acme/s:a"].unsettled_byte_seconds > 0
    for request, error, text in (
        ({"by": "planet"}, InvalidArgument, 'by: "planet" found, function, tenant and session are allowed'),
        ({"since": "1h"}, InvalidArgument, 'since: "1h" found'),
        ({"since": "2026-02-30"}, InvalidArgument, 'since: "2026-02-30" found'),
        ({"by": "session"}, InvalidArgument, "name: none found"),
        ({"by": "session", "name": "fn0", "since": "2026-01-01"}, InvalidArgument, "not with by session"),
        ({"name": "none", "namespace": "ns"}, NotFound, "no function ns/none"),
    ):
        with pytest.raises(error, match=text):
            await w.rows(**request)


@simulated
async def test_of_days_that_are_long_past_the_first_of_each_month_is_kept() -> None:
    w = World()
    w.stepped("a", 3)
    for ago in range(500):
        day = usages.day_of(w.now_us() - ago * 24 * 3600 * SECOND_US)
        w.write(KEYS.usage_history(w.function, day), usages.at({"": Usage(1)}, usages.day_us(day)))
    await w.keeper.once()
    now = w.now_us() // SECOND_US // 24 // 3600
    found = [item.key.rpartition("/")[2] for item in w.store.etcd.range(KEYS.usage_histories).items]
    ages = {day: now - usages.day_us(day) // SECOND_US // 24 // 3600 for day in found}
    assert {age for age in ages.values() if age <= limits.USAGE_EACH_DAYS} == set(range(limits.USAGE_EACH_DAYS + 1))
    older = [day for day in found if ages[day] > limits.USAGE_EACH_DAYS]
    assert [day[-2:] for day in older] == ["01"] * len(older)
    assert max(ages.values()) <= limits.USAGE_DAYS
    assert len(older) in (11, 12)


@simulated
async def test_beyond_the_tenants_that_are_kept_apart_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage_sums, "MOST_TENANTS", 200)
    w = World()
    for n in range(300):
        w.stepped(f"s{n}", 1, f"tenant{n}")
    await asyncio.sleep(10.0)
    (whole,) = await w.rows(name="fn0", namespace="ns")
    found = await w.rows(by="tenant", name="fn0", namespace="ns")
    assert sum(row.usage.steps for row in found) == whole.usage.steps == 300
    assert sum(row.unsettled_byte_seconds for row in found) == pytest.approx(whole.unsettled_byte_seconds, abs=len(found))
    assert whole.unsettled_byte_seconds > 0


@simulated
async def test_a_session_whose_key_is_no_text_is_shown_beside_the_others() -> None:
    w = World()
    w.stepped("a", 3)
    data = w.store.etcd.item(w.key("a")).value  # type: ignore[union-attr]
    w.write(w.key("b") + "\udcff", data)
    found = await w.rows(by="session", namespace="ns", name="fn0")
    assert {row.session: row.usage.steps for row in found} == {"/s:a": 3, "/s:b?": 3}


@simulated
async def test_who_no_longer_leads_folds_and_writes_nothing() -> None:
    w = World()
    await counted(w, "w-1", "acme")
    w.store.etcd.txn(Txn((), (Delete(KEYS.worker(w.function, "w-1")), Delete(KEYS.leader))))
    before = w.store.etcd.revision
    await w.keeper.once()
    assert not await w.keeper.keep(w.seen(), (CreatedIs(KEYS.leader, w.leader_new), ModIs(KEYS.function("ns", "fn0"), 1)))
    assert w.store.etcd.revision == before
