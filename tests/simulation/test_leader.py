"""The real leader, on simulated time, a store in memory and simulated workers: waking, dying, draining, rolling out, being cut off."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from dormouse_core import lifecycle, limits
from dormouse_core.errors import Aborted, FailedPrecondition, NotFound, Unavailable
from dormouse_core.keys import Function
from dormouse_core.observations import FunctionSeen, WorkerSeen
from dormouse_core.reaching import Reaches
from dormouse_core.seams import Delete, Instance, Put, Txn
from dormouse_operator.function_entries import FunctionEntries
from dormouse_operator.view import View
from dormouse_proto import state_pb2
from dormouse_testing.leader_scene import Scene, simulated
from dormouse_testing.leader_world import KEYS, LEASE, SimAgent, SimWorker, manifest
from dormouse_testing.memory_store import FULL, REPLY_LOST, Fault

# ----------------------------------------------------------------------------------------------------------- the life of a function


def test_it_is_proved_sleeps_and_wakes_by_the_first_held_call() -> None:
    async def story(s: Scene) -> None:
        assert await s.apply(manifest(idle="10s")) == "created"
        assert s.phase() == "Verifying"
        await s.world.until(lambda: (e := s.world.entry()) is not None and e.proved_revision == e.revision, 1.0)
        assert s.phase() == "Ready"
        took = await s.world.until(lambda: not s.world.instances, 30.0)
        assert 9.0 < took < 13.0
        assert s.phase() == "Asleep"
        assert set(s.world.owners().values()) - {w.name for w in s.world.living()}, "entries stay and name the dead"

        s.agent.hold(s.uid, 1)
        began = s.world.clock.monotonic()
        await s.world.until(lambda: bool(s.world.living()), 2.0)
        (worker,) = s.world.living()
        assert s.world.registered_at[worker.name] - began < s.world.start + 0.1, "the wake waits for no tick"
        took = await s.world.until(lambda: s.owned_by(worker), 1.0)
        assert took < 0.05, "64 shards fail over without waiting for a tick"
        s.agent.hold(s.uid, 0)
        assert s.phase() == "Ready"

    simulated(story)


def test_of_many_that_are_applied_at_once_few_start_together_and_who_is_called_comes_first() -> None:
    """Forty, on one machine, beside one that sleeps and is called while they wait."""

    async def story(s: Scene) -> None:
        await s.apply(manifest(idle="5s"))
        await s.world.until(lambda: (e := s.world.entry()) is not None and e.proved_revision == e.revision and not s.world.instances, 30.0)
        s.world.start = 3.0
        crowd = [f"crowd-{number}" for number in range(40)]
        for name in crowd:
            await s.apply(manifest(idle="5s", shards=1).replace("name: fn", f"name: {name}"))
        most = 0

        def starting() -> int:
            nonlocal most
            serving = {worker.instance for worker in s.world.living()}
            most = max(most, sum(not each.stopping and name not in serving for name, each in s.world.instances.items()))
            return most

        await s.world.until(lambda: starting() == limits.STARTS_A_NODE, 2.0)
        told = [s.leader.status("ns", name).reason for name in crowd]
        assert sum("it waits for its turn to start; workers that are starting: 4" in each for each in told) == 40 - limits.STARTS_A_NODE
        s.agent.hold(s.uid, 1)
        began = s.world.clock.monotonic()
        await s.world.until(lambda: starting() > 0 and any(w.function.name == "fn" for w in s.world.living()), 10.0)
        assert s.world.clock.monotonic() - began < s.world.start + 0.2, "it waits for nobody's proof"
        s.agent.hold(s.uid, 0)
        await s.world.until(lambda: starting() > 0 and all(s.leader.find("ns", name).proved for name in crowd), 90.0)
        assert most == limits.STARTS_A_NODE + 1
        assert not any("waits" in s.leader.status("ns", name).reason for name in crowd)

    simulated(story)


def test_running_work_is_never_cut_however_long_it_runs() -> None:
    async def story(s: Scene) -> None:
        await s.apply(manifest(idle="5s"))
        await s.world.until(lambda: bool(s.world.living()))
        (worker,) = s.world.living()
        worker.in_flight = 1
        await asyncio.sleep(300)
        assert worker.alive
        worker.in_flight = 0
        await s.world.until(lambda: not s.world.living(), 10.0)

    simulated(story)


def test_scaling_up_and_down_moves_shards_by_handoff_alone() -> None:
    async def story(s: Scene) -> None:
        (first,) = await s.awake(1)
        await s.scale(3)
        await s.world.until(lambda: len(s.world.living()) == 3 and s.owned_by(*s.world.living()))
        assert first.alive
        await s.scale(1)
        await s.world.until(lambda: len(s.world.living()) == 1 and s.owned_by(*s.world.living()))
        assert len(s.world.instances) == 1

    simulated(story)


def test_stopped_is_stopped_and_auto_is_autoscaled_again() -> None:
    async def story(s: Scene) -> None:
        await s.awake(1)
        await s.scale(0)
        await s.world.until(lambda: not s.world.instances)
        s.agent.hold(s.uid, 5)
        await asyncio.sleep(20)
        assert s.phase() == "Stopped"
        assert not s.world.instances
        await s.scale(None)
        await s.world.until(lambda: bool(s.world.living()))

    simulated(story)


# ----------------------------------------------------------------------------------------------------------- faults of workers


def test_a_killed_owner_is_replaced_before_its_lease_ends() -> None:
    async def story(s: Scene) -> None:
        first, second = await s.awake(2)
        first.kill()
        took = await s.world.until(lambda: s.owned_by(second), LEASE)
        assert took < 0.1

    simulated(story)


def test_a_process_restarted_in_place_is_a_new_worker() -> None:
    async def story(s: Scene) -> None:
        (first,) = await s.awake(1)
        first.kill()
        entry = s.world.entry()
        assert entry is not None
        again = await s.world.process(first.instance, entry)
        took = await s.world.until(lambda: s.owned_by(again), LEASE)
        assert took < 0.5, "its port answers under another name: the old process is gone"

    simulated(story)


def test_a_worker_that_starts_again_is_not_stopped_for_want_of_calls() -> None:
    async def story(s: Scene) -> None:
        await s.apply(manifest(idle="60s"))
        await s.world.until(lambda: bool(s.world.living()))
        (first,) = s.world.living()
        first.kill()
        await asyncio.sleep(10)
        entry = s.world.entry()
        assert entry is not None
        assert list(s.world.instances) == [first.instance], "its supervisor is starting it again"
        again = await s.world.process(first.instance, entry)
        await s.world.until(lambda: s.owned_by(again), 1.0)

    simulated(story)


def test_an_unreachable_worker_keeps_its_shards_while_its_lease_lives() -> None:
    async def story(s: Scene) -> None:
        first, second = await s.awake(2)
        first.cut = True
        first.changed.set()
        before = s.world.owners()
        await asyncio.sleep(20)
        assert s.world.owners() == before
        first.kill()
        took = await s.world.until(lambda: s.owned_by(second), 10.0)
        assert took > LEASE - 1.1, "silence is settled by the lease"

    simulated(story)


def test_an_owner_that_stops_and_does_not_hand_over_loses_the_shard_after_two_seconds() -> None:
    async def story(s: Scene) -> None:
        (first,) = await s.awake(1)
        first.hung = True
        await s.scale(2)
        await s.world.until(lambda: bool(first.stopped))
        took = await s.world.until(lambda: len(set(s.world.owners().values())) == 2)
        assert 1.9 < took < 2.3

    simulated(story)


def test_a_worker_that_is_not_heard_keeps_the_function_awake() -> None:
    async def story(s: Scene) -> None:
        await s.apply(manifest(idle="5s"))
        await s.world.until(lambda: bool(s.world.living()))
        (worker,) = s.world.living()
        worker.mute = True
        await asyncio.sleep(120)
        assert worker.alive
        assert not s.leader._loops[s.uid].decision.valid
        worker.mute = False
        worker.changed.set()
        await s.world.until(lambda: not s.world.living(), 20.0)

    simulated(story)


@pytest.mark.parametrize("silent", ["connected", "complete"])
def test_a_gateway_that_is_not_heard_keeps_the_function_awake(silent: str) -> None:
    async def story(s: Scene) -> None:
        await s.apply(manifest(idle="5s"))
        await s.world.until(lambda: bool(s.world.living()))
        setattr(s.agent, silent, False)
        await asyncio.sleep(120)
        assert s.world.living()
        setattr(s.agent, silent, True)
        await s.world.until(lambda: not s.world.living(), 20.0)

    simulated(story)


def test_a_provider_that_does_not_answer_is_not_a_provider_without_workers() -> None:
    async def story(s: Scene) -> None:
        await s.awake(2)
        s.world.silent = True
        await asyncio.sleep(30)
        s.world.silent = False
        await asyncio.sleep(5)
        assert len(s.world.instances) == 2
        assert s.world.ordered[-1][1] == 2

    simulated(story)


# ----------------------------------------------------------------------------------------------------------- faults of the store


def test_a_store_that_stalls_is_no_reason_to_reassign() -> None:
    async def story(s: Scene) -> None:
        await s.awake(2)
        before = s.world.owners()
        s.store.down = True
        await asyncio.sleep(30)
        s.store.down = False
        await asyncio.sleep(5)
        assert s.world.owners() == before

    simulated(story)


def test_a_write_of_unknown_outcome_is_decided_anew() -> None:
    async def story(s: Scene) -> None:
        first, second = await s.awake(2)
        s.store.fault("txn", REPLY_LOST, 2)
        first.kill()
        await s.world.until(lambda: s.owned_by(second), 2.0)
        entries = s.world.store.etcd.range(KEYS.maps, "", 0, 0, False).items
        epochs = [state_pb2.ShardEntry.FromString(i.value).epoch for i in entries if "/shards/" in i.key]
        assert max(epochs) <= 4, "a transaction that landed is not made again"

    simulated(story)


def test_what_happened_behind_a_compaction_is_seen() -> None:
    async def story(s: Scene) -> None:
        first, second = await s.awake(2)
        s.store.down = True
        first.kill()
        await asyncio.sleep(LEASE + 2)
        etcd = s.world.store.etcd
        etcd.compact(etcd.revision)
        s.store.down = False
        await s.world.until(lambda: s.owned_by(second), 5.0)

    simulated(story)


def test_history_that_is_dropped_at_once_harms_nothing() -> None:
    """As where much is written: nobody finds the history that their watch would go on from."""

    async def compact(s: Scene) -> None:
        etcd = s.world.store.etcd
        while True:
            if etcd.revision > etcd.compacted:
                etcd.compact(etcd.revision)
            await asyncio.sleep(0.02)

    async def story(s: Scene) -> None:
        compacting = asyncio.create_task(compact(s))
        first, second = await s.awake(2)
        first.kill()
        await s.world.until(lambda: s.owned_by(second), LEASE + 3)
        s.store.break_watches()
        await s.scale(3)
        await s.world.until(lambda: len(s.world.living()) == 2 and s.owned_by(*s.world.living()), 20)
        compacting.cancel()

    simulated(story)


# ----------------------------------------------------------------------------------------------------------- leaders


def test_a_new_leader_finds_workers_in_the_list_and_moves_nothing() -> None:
    async def story(s: Scene) -> None:
        workers = await s.awake(3)
        before, ordered = s.world.owners(), len(s.world.ordered)
        await s.stop_leading()
        await asyncio.sleep(5)
        await s.lead()
        await asyncio.sleep(60)
        assert s.world.living() == workers
        assert s.world.owners() == before
        assert len(s.world.ordered) == ordered

    simulated(story)


def test_a_function_deleted_while_nobody_led_loses_its_workers() -> None:
    async def story(s: Scene) -> None:
        await s.awake(2)
        await s.stop_leading()
        await s.world.store.txn(Txn((), (Delete(KEYS.function("ns", "fn")),)))
        await s.lead()
        await s.world.until(lambda: not s.world.instances)

    simulated(story)


def test_a_leader_of_before_writes_nothing() -> None:
    async def story(s: Scene) -> None:
        first, second = await s.awake(2)
        old, old_task = s.leader, s._task
        s.agent.leader = None
        s.store.down = True  # the old one is cut off, and does not know that another leads
        old_store = s.store
        await s.lead()
        new_store = s.store
        new_store.down = True  # so that only the old one could move shards
        old_store.down = False
        first.kill()
        await asyncio.sleep(LEASE + 5)
        assert first.name in s.world.owners().values(), "the store refused every write of the former leader"
        with pytest.raises(Aborted):
            await old.entries.apply(manifest("v2.onnx"))
        new_store.down = False
        await s.world.until(lambda: s.owned_by(second), 10.0)
        assert old_task is not None
        old_task.cancel()
        await asyncio.gather(old_task, return_exceptions=True)

    simulated(story)


def test_negative_control_without_its_election_key_the_former_leader_would_write() -> None:
    async def story(s: Scene) -> None:
        first, second = await s.awake(2)
        old, old_task, old_store = s.leader, s._task, s.store
        s.agent.leader = None
        old_store.down = True
        await s.lead()
        s.store.down = True
        old._parts.writer.leader_new = s.leader._parts.writer.leader_new  # the guard is gone
        old_store.down = False
        first.kill()
        await s.world.until(lambda: s.owned_by(second), LEASE + 5)
        s.store.down = False
        assert old_task is not None
        old_task.cancel()
        await asyncio.gather(old_task, return_exceptions=True)

    simulated(story)


# ----------------------------------------------------------------------------------------------------------- rollouts, deletion


def test_a_new_revision_takes_over_when_it_is_ready() -> None:
    async def story(s: Scene) -> None:
        old = await s.awake(2)
        assert await s.apply(manifest("v2.onnx")) == "configured"
        await s.world.until(lambda: s.owned_by(*s.world.living()) and not set(old) & set(s.world.living()))
        assert len(s.world.living()) == 2
        entry = s.world.entry()
        assert entry is not None
        assert {w.revision for w in s.world.living()} == {entry.revision} == {entry.proved_revision}

    simulated(story)


def test_a_new_revision_that_fails_leaves_the_old_one_serving() -> None:
    async def story(s: Scene) -> None:
        old = await s.awake(2)
        entry = s.world.entry()
        assert entry is not None
        s.world.problem = _failing_but(entry.revision)
        await s.apply(manifest("broken.onnx"))
        await s.world.until(lambda: (e := s.world.entry()) is not None and e.HasField("problem"), 5.0)
        await asyncio.sleep(60)
        assert s.world.living() == old
        assert s.owned_by(*old)
        status = s.leader.status("ns", "fn")
        assert status.phase == "Serving"
        conditions = {c.type: c for c in status.conditions}
        assert conditions["ModelReady"].status == "False"
        assert "opset" in conditions["ModelReady"].message
        assert conditions["RolledOut"].status == "False"

        s.world.problem = {}
        await s.apply(manifest("v3.onnx"))
        await s.world.until(lambda: s.owned_by(*s.world.living()) and not set(old) & set(s.world.living()))
        entry = s.world.entry()
        assert entry is not None
        assert not entry.HasField("problem")

    simulated(story)


class _failing_but(dict[str, state_pb2.Problem]):  # noqa: N801 - a dictionary for one test
    """Every revision but one fails."""

    def __init__(self, good: str) -> None:
        super().__init__()
        self._good = good

    def __contains__(self, revision: object) -> bool:
        return revision != self._good

    def __getitem__(self, revision: str) -> state_pb2.Problem:
        return state_pb2.Problem(code=9, reason="ModelInvalid", message="opset 99 found, up to 21 is allowed")


def test_a_function_that_never_loads_says_why_and_heals_by_itself() -> None:
    async def story(s: Scene) -> None:
        s.world.problem = _failing_but("none")
        await s.apply(manifest())
        await s.world.until(lambda: s.phase() == "Failed", 3.0)
        s.world.problem = {}
        entry = s.world.entry()
        assert entry is not None
        (name,) = s.world.instances
        await s.world._start(name, entry)  # what `up` does after its back-off
        await s.world.until(lambda: s.phase() == "Ready", 3.0)

    simulated(story)


def test_deleting_removes_everything_and_frees_the_name() -> None:
    async def story(s: Scene) -> None:
        await s.awake(2)
        uid = s.uid
        await s.store.txn(Txn((), (Put(f"{KEYS.root}data/ns/fn/{uid}/state/3//s:a", b"record"),)))
        await s.store.txn(Txn((), (Put(f"{KEYS.root}data/ns/fn2/other/state/3//s:a", b"a neighbour's"),)))
        await s.leader.entries.delete("ns", "fn")
        with pytest.raises(FailedPrecondition, match="is being deleted"):
            await s.leader.entries.apply(manifest())
        await s.world.until(lambda: s.world.entry() is None)
        left = [i.key for i in s.world.store.etcd.range(KEYS.root, "", 0, 0, False).items if uid in i.key]
        assert left == [KEYS.deleted_usage(Function("ns", "fn", uid))], "but for what it used"
        assert s.world.store.etcd.range(f"{KEYS.root}data/ns/fn2/", "", 0, 0, False).items
        await s.world.until(lambda: not s.leader.view.functions)
        with pytest.raises(NotFound):
            s.leader.status("ns", "fn")
        assert await s.apply(manifest()) == "created"
        assert s.uid != uid

    simulated(story)


async def made_again_over_kept_sessions(s: Scene) -> set[int]:
    """The floors of a function that was deleted and made again, once workers own all of its shards. It had floors at 5, and one
    session."""
    await s.apply(manifest(reclaim="Retain"))
    await s.scale(2)
    await s.world.until(lambda: s.owned_by(*s.world.living()) if s.world.living() else False)
    first = s.uid
    for shard in range(64):
        key = f"{KEYS.root}data/ns/fn/{first}/floors/{shard}"
        await s.store.txn(Txn((), (Put(key, state_pb2.Floor(timestamp_us=5).SerializeToString()),)))
    record = f"{KEYS.root}data/ns/fn/{first}/state/3//s:a"
    await s.store.txn(Txn((), (Put(record, b"record"),)))
    await s.leader.entries.delete("ns", "fn")
    await s.world.until(lambda: s.world.entry() is None)
    await s.world.until(lambda: not s.world.living(), 60)
    assert await s.apply(manifest(reclaim="Retain")) == "created"
    entry = s.world.entry()
    assert entry is not None
    assert (entry.uid != first, entry.store_id) == (True, first)
    await s.scale(2)
    await s.world.until(lambda: len(s.world.living()) == 2 and s.owned_by(*s.world.living()), 120)
    assert all(worker.function.uid == entry.uid for worker in s.world.living())
    assert s.world.store.etcd.item(record) is not None
    found = s.world.store.etcd.range(f"{KEYS.root}data/ns/fn/{first}/floors/", "", 0, 0, False).items
    return {state_pb2.Floor.FromString(item.value).timestamp_us for item in found}


async def beside_a_worker_from_before(s: Scene) -> set[str]:
    """Who was given shards of a function that adopted kept sessions, beside a worker of its uid that was started before it had."""
    await s.apply(manifest(reclaim="Retain"))
    await s.scale(0)
    await s.leader.entries.delete("ns", "fn")
    await s.world.until(lambda: s.world.entry() is None)
    await s.apply(manifest(reclaim="Retain"))
    entry = s.world.entry()
    assert entry is not None
    assert entry.store_id
    early = Function("ns", "fn", entry.uid)
    worker = SimWorker(s.world, "early", "pod-early", early, entry.revision, entry.shards, "host:pod-early")
    s.world.workers[worker.name] = worker
    await worker.run()
    s.world.instances["pod-early"] = Instance("pod-early", "ns/fn", entry.uid, entry.revision, s.world.clock.now(), stopping=False)
    await s.scale(2)
    given: set[str] = set()
    began = s.world.clock.monotonic()
    while s.world.clock.monotonic() - began < 30:
        given |= set(s.world.owners().values())
        await asyncio.sleep(0.01)
    return given - {""}


def test_a_worker_from_before_its_function_adopted_kept_sessions_is_given_no_shards() -> None:
    async def story(s: Scene) -> None:
        given = await beside_a_worker_from_before(s)
        assert ("early" in given, len(given)) == (False, 2), "two others are started in its place"

    simulated(story)


def test_negative_control_without_comparing_store_ids_it_would_be(monkeypatch: pytest.MonkeyPatch) -> None:
    real = View._worker

    def believing(self: View, *arguments: Any) -> WorkerSeen:
        return replace(real(self, *arguments), elsewhere=False)

    monkeypatch.setattr(View, "_worker", believing)

    async def story(s: Scene) -> None:
        assert "early" in await beside_a_worker_from_before(s)

    simulated(story)


def test_a_function_made_again_over_kept_sessions_owns_them_at_once() -> None:
    async def story(s: Scene) -> None:
        assert await made_again_over_kept_sessions(s) == {5}

    simulated(story)


def test_negative_control_without_prepared_shards_its_new_sessions_would_be_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its shards look as if their entries had been erased, so the leader raises their floors."""

    async def skipped(*arguments: object) -> bool:
        return True

    monkeypatch.setattr(FunctionEntries, "_prepare", skipped)

    async def story(s: Scene) -> None:
        assert min(await made_again_over_kept_sessions(s)) > 5

    simulated(story)


def refuse_puts(method: str, request: object) -> Fault | None:
    """What a full store refuses."""
    return FULL if method == "txn" and isinstance(request, Txn) and any(isinstance(w, Put) for w in request.writes) else None


def test_a_function_is_deleted_while_the_store_is_full() -> None:
    async def story(s: Scene) -> None:
        await s.awake(2)
        uid = s.uid
        await s.store.txn(Txn((), (Put(f"{KEYS.root}data/ns/fn/{uid}/state/3//s:a", b"record"),)))
        s.store.hook = refuse_puts
        with pytest.raises(Unavailable, match=r"fn is not changed: the store is full .* deletions are taken"):
            await s.leader.entries.scale("ns", "fn", 1)
        ordered = len(s.world.ordered)
        s.agent.hold(uid, 1)  # the gateway has not heard of the deletion: nothing is written that says so
        await s.leader.delete("ns", "fn")
        assert s.phase() == "Deleting"
        with pytest.raises(FailedPrecondition, match="is being deleted"):
            await s.leader.entries.apply(manifest())
        await s.world.until(lambda: s.world.entry() is None)
        assert [i.key for i in s.world.store.etcd.range(KEYS.root, "", 0, 0, False).items if uid in i.key] == []
        assert not s.world.living()
        assert {count for _, count in s.world.ordered[ordered:]} == {0}, "what is held wakes nobody"
        s.store.hook = None
        assert await s.apply(manifest()) == "created"

    simulated(story)


def test_a_deletion_that_a_leader_began_in_a_full_store_and_did_not_end_is_asked_for_again() -> None:
    async def story(s: Scene) -> None:
        await s.awake(2)
        s.store.hook = refuse_puts
        await s.leader.delete("ns", "fn")
        await s.stop_leading()
        await s.lead()  # with room, or nobody would
        await asyncio.sleep(10.0)
        assert s.phase() == "Ready"
        s.store.hook = refuse_puts
        await s.leader.delete("ns", "fn")
        await s.world.until(lambda: s.world.entry() is None)

    simulated(story)


# ----------------------------------------------------------------------------------------------------------- bursts


def test_a_burst_at_zero_orders_once() -> None:
    async def story(s: Scene) -> None:
        await s.apply(manifest(idle="5s"))
        await s.world.until(lambda: bool(s.world.living()))
        await s.world.until(lambda: not s.world.instances)
        ordered, s.world.start = len(s.world.ordered), 60.0
        s.agent.hold(s.uid, 1)
        await asyncio.sleep(0.1)
        for held in range(40, 2000, 100):
            s.agent.hold(s.uid, held)
            await asyncio.sleep(1.0)
        counts = [count for _, count in s.world.ordered[ordered:]]
        assert counts[0] == 1
        assert len(set(counts)) <= 4
        assert max(counts) == counts[-1]
        raised_until = next(n for n, c in enumerate(counts) if c == max(counts))
        assert raised_until <= 3, "it rises while the burst is young, and then waits for what it ordered"

    simulated(story)


# ------------------------------------------------------------------------------------------------ out of the gateways' reach


@contextlib.asynccontextmanager
async def more_agents(s: Scene, count: int) -> AsyncIterator[list[SimAgent]]:
    """So many gateways besides the scene's."""
    agents = [SimAgent(s.world, f"agent-{number}") for number in range(1, count + 1)]
    tasks = [asyncio.create_task(agent.run()) for agent in agents]
    for agent in agents:
        agent.leader = s.leader
    await s.world.until(lambda: len(s.leader.view.gateways) == count + 1)
    try:
        yield [s.agent, *agents]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def test_a_living_worker_that_the_gateway_does_not_reach_hands_its_shards_over() -> None:

    async def story(s: Scene) -> None:
        lost, _ = await s.awake(2)
        s.agent.cannot_reach(lost)
        took = await s.world.until(lambda: s.owns_nothing(lost))
        assert limits.UNREACHABLE_SECONDS <= took < limits.UNREACHABLE_SECONDS + 3
        assert lost.alive
        assert not lost.draining
        s.agent.knows = False  # no call waits for it any more; it is tried because the leader asks
        await asyncio.sleep(30)
        assert s.owns_nothing(lost), "not given back while it is out of reach"
        s.agent.unreached.clear()
        await s.world.until(lambda: len(s.world.living()) == 2 and s.owned_by(*s.world.living()))

    simulated(story)


def test_one_that_does_not_hand_over_fails_over() -> None:
    """It runs something, and would for long; nobody can be told of it."""

    async def story(s: Scene) -> None:
        lost, _ = await s.awake(2)
        lost.busy_shards = True
        s.agent.cannot_reach(lost)
        took = await s.world.until(lambda: s.owns_nothing(lost))
        assert limits.UNREACHABLE_FAILOVER_SECONDS <= took < limits.UNREACHABLE_FAILOVER_SECONDS + 3

    simulated(story)


def test_one_wrong_gateway_among_several_takes_no_worker_out() -> None:

    async def story(s: Scene) -> None:
        lost, other = await s.awake(2)
        async with more_agents(s, 2) as (wrong, second, _):
            wrong.cannot_reach(lost)
            await asyncio.sleep(60)
            assert s.owned_by(lost, other)
            second.unreached = dict(wrong.unreached)  # it has no calls for it, and finds out because the leader asks
            await s.world.until(lambda: s.owns_nothing(lost))

    simulated(story)


def test_negative_control_with_one_voice_enough_a_wrong_gateway_would(monkeypatch: pytest.MonkeyPatch) -> None:

    async def story(s: Scene) -> None:
        seconds = Reaches.seconds
        monkeypatch.setattr(
            Reaches, "seconds", lambda self, worker, gateways, now: max((seconds(self, worker, {g}, now) for g in gateways), default=0)
        )
        lost, _ = await s.awake(2)
        async with more_agents(s, 2) as (wrong, *_):
            wrong.cannot_reach(lost)
            await s.world.until(lambda: s.owns_nothing(lost))

    simulated(story)


def test_one_that_the_leader_does_not_hear_either_is_left_to_its_lease() -> None:
    """It may be busy: a step may hold it for as long as a step may run."""

    async def story(s: Scene) -> None:
        both = await s.awake(2)
        both[0].mute = True
        s.agent.cannot_reach(both[0])
        await asyncio.sleep(60)
        assert s.owned_by(*both)

    simulated(story)


def test_a_worker_out_of_reach_gets_one_beside_it_and_no_more() -> None:
    async def story(s: Scene) -> None:
        (lost,) = await s.awake(1)
        s.agent.cannot_reach(lost)
        await s.world.until(lambda: len(s.world.living()) == 2 and not s.owned_by(lost))
        (other,) = set(s.world.living()) - {lost}
        await s.world.until(lambda: s.owned_by(other))
        await asyncio.sleep(60)
        assert set(s.world.living()) == {lost, other}, "it may be reached again"
        s.agent.cannot_reach(lost, other)  # the gateway itself is cut off
        for _ in range(300):
            await asyncio.sleep(1)
            assert len(s.world.living()) == 2
        s.agent.unreached.clear()
        await s.world.until(lambda: len(s.world.living()) == 1 and s.owned_by(*s.world.living()))

    simulated(story)


def test_negative_control_without_a_bound_a_gateway_that_is_cut_off_would_start_one_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    def unbounded(seen: FunctionSeen, running: list[Instance], wanted: int) -> int:
        return sum(w.cut_off for w in seen.workers.values()) if wanted else 0

    monkeypatch.setattr(lifecycle, "_spare", unbounded)

    async def story(s: Scene) -> None:
        await s.awake(1)
        for _ in range(100):
            await asyncio.sleep(1)
            s.agent.cannot_reach(*s.world.living())
            s.agent.unreached = dict.fromkeys(s.agent.unreached, 0.0)
        assert len(s.world.living()) > 3

    simulated(story)
