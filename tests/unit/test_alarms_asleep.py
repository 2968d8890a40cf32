"""Alarms of a function that sleeps, as the leader sees them: due, cancelled, deleted with their session."""

import asyncio
from typing import Any

import msgspec
import pytest
from dormouse_core import alarms, records
from dormouse_core.errors import DataLoss, InvalidArgument, NotFound, Unavailable
from dormouse_core.keys import Function
from dormouse_core.records import Alarm
from dormouse_core.seams import Delete, Put, Txn
from dormouse_core.sessions.names import session_key, shard_of
from dormouse_operator import listing
from dormouse_operator.alarms import AlarmWatch
from dormouse_operator.cancelling import Canceller
from dormouse_operator.deleting import Deleter
from dormouse_operator.demands import Demands
from dormouse_operator.owing import Owed
from dormouse_proto import control_pb2, state_pb2
from dormouse_testing.memory_store import FULL, FULL_APPLIED
from dormouse_testing.sleeping import KEYS, SHARDS, Sleeping, simulated


class Scene:
    def __init__(self, s: Sleeping) -> None:
        self.s = s
        self.told: list[str] = []
        self.woken: list[str] = []
        self.now_us: int | None = None
        self.demands = Demands(s.clock, self.woken.append)
        self.watch = AlarmWatch(s.store, s.clock, KEYS, s.view, self.demands, lambda: self.now_us)
        self.canceller = Canceller(s.store, s.clock, KEYS, s.leader_new, self._told)
        self.deleter = Deleter(s.store, s.clock, KEYS, s.leader_new, self._told, Owed(s.store, s.clock, KEYS, s.leader_new, self._told))

    async def looks(self) -> None:
        self.watch.tell()
        await self.watch.read()
        self.watch.tell()

    async def _told(self, function: Function, shard: int, sessions: Any) -> None:
        self.told += sessions
        self.watch.forget(function.uid)

    def put(self, name: str, **due: int) -> str:
        """A session with these alarms, due so many seconds from now."""
        key = self.s.put(name)
        now_us = self.s.now_us()
        found = tuple(
            Alarm(name, now_us + seconds * 1_000_000, f"id-{name}", b"r", now_us + seconds * 1_000_000) for name, seconds in due.items()
        )
        item = self.s.store.etcd.item(key)
        assert item is not None
        read = records.decode(item.value)
        self.s.write(key, records.encode(alarms.onto(read.body, found), read.tensors, b"w"))
        due_us = alarms.earliest(found)
        if due_us is not None:
            self.s.write(self.key(name), state_pb2.AlarmEntry(due_us=due_us).SerializeToString())
        return key

    def key(self, name: str) -> str:
        session = session_key("", name)
        return KEYS.alarm(self.s.functions[0], shard_of(session, SHARDS), session)

    def due(self, name: str) -> int | None:
        item = self.s.store.etcd.item(self.key(name))
        return None if item is None else state_pb2.AlarmEntry.FromString(item.value).due_us

    async def cancel(self, name: str, alarm: str) -> None:
        seen = self.s.view.seen("uid-0")
        assert seen is not None
        await self.canceller.cancel(seen, control_pb2.CancelAlarmRequest(namespace="ns", name="fn0", session=name, alarm=alarm))

    def body(self, key: str) -> records.Body:
        item = self.s.store.etcd.item(key)
        assert item is not None
        return records.decode(item.value).body


@simulated
async def test_alarms_that_are_due_are_work_for_a_function_that_sleeps() -> None:
    s = Sleeping(2)
    scene = Scene(s)
    scene.put("a", one=5, two=50)
    scene.put("b", one=7)
    scene.now_us = s.now_us()
    await scene.looks()
    assert scene.demands.measure("uid-0").alarms == 0
    scene.now_us += 5_000_000
    await scene.looks()
    assert scene.demands.measure("uid-0").alarms == 1
    scene.now_us += 60_000_000
    await scene.looks()
    assert scene.demands.measure("uid-0").alarms == 2, "sessions; each is looked at"
    assert scene.woken == ["uid-0"], "once"
    assert scene.demands.measure("uid-1").alarms == 0


@simulated
async def test_nothing_is_due_by_a_clock_that_is_not_known_and_what_was_due_stays_so() -> None:
    s = Sleeping()
    scene = Scene(s)
    scene.put("a", one=-5)
    await scene.looks()
    assert scene.demands.measure("uid-0").alarms == 0
    scene.now_us = s.now_us()
    await scene.looks()
    scene.now_us = None
    await scene.looks()
    assert scene.demands.measure("uid-0").alarms == 1


@simulated
async def test_another_leader_and_one_that_could_not_read_find_the_same() -> None:
    s = Sleeping()
    Scene(s).put("a", one=-5)
    scene = Scene(s)
    scene.now_us = s.now_us()
    s.store.hook = lambda method, request: FULL if method == "list" else None
    await scene.looks()
    assert scene.demands.measure("uid-0").alarms == 0
    s.store.hook = lambda method, request: None
    await s.clock.sleep(2.0)
    await scene.looks()
    assert scene.demands.measure("uid-0").alarms == 1


@simulated
async def test_a_function_with_much_to_list_keeps_no_other_asleep() -> None:
    s = Sleeping(2)
    scene = Scene(s)
    scene.now_us = s.now_us()
    scene.put("a", one=90)
    await scene.looks()

    async def stands(prefix: str, **more: Any) -> Any:
        await asyncio.sleep(1000)

    s.store.list = stands  # type: ignore[method-assign]
    running = asyncio.get_running_loop().create_task(scene.watch.run())
    for _ in range(4):
        await s.clock.sleep(30.0)
        scene.now_us += 30_000_000
    await s.clock.sleep(1.0)
    assert scene.demands.measure("uid-0").alarms == 1
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


@simulated
async def test_what_a_worker_wrote_last_is_seen_within_a_minute() -> None:
    s = Sleeping()
    scene = Scene(s)
    scene.now_us = s.now_us()
    await scene.looks()
    scene.put("a", one=-5)
    await s.clock.sleep(60.0)
    await scene.looks()
    assert scene.demands.measure("uid-0").alarms == 1


@simulated
async def test_an_alarm_is_cancelled_with_its_key_and_the_session_expires_like_any_other() -> None:
    s = Sleeping()
    scene = Scene(s)
    key = scene.put("a", one=5, two=50)
    await scene.cancel("/s:a", "one")
    assert [alarm.name for alarm in scene.body(key).alarms] == ["two"]
    assert scene.due("a") == s.now_us() + 50_000_000
    await scene.cancel("/s:a", "two")
    assert scene.body(key).alarms == ()
    assert scene.due("a") is None
    ttl_us = int(3_600 * 1e6)
    assert scene.body(key).expires_us > s.now_us() + ttl_us // 100
    assert scene.told == ["/s:a", "/s:a"]
    assert scene.body(key).step == 3
    assert [kept.id for kept in scene.body(key).kept] == ["g-1"], "what else is in the record stays"


@simulated
async def test_what_cannot_be_cancelled_is_told_and_changes_nothing() -> None:
    s = Sleeping()
    scene = Scene(s)
    key = scene.put("a", one=5)
    before = s.store.etcd.item(key)
    with pytest.raises(NotFound, match='has no alarm "two"'):
        await scene.cancel("/s:a", "two")
    with pytest.raises(NotFound, match="has no session /s:b"):
        await scene.cancel("/s:b", "one")
    with pytest.raises(InvalidArgument, match="as the list shows it"):
        await scene.cancel("a", "one")
    s.write(s.key("broken"), b"\x02broken record")
    with pytest.raises(DataLoss, match="no alarm of the session can be cancelled"):
        await scene.cancel("/s:broken", "one")
    s.store.etcd.txn(Txn((), (Delete(KEYS.leader),)))
    s.store.etcd.txn(Txn((), (Put(KEYS.leader, b"another"),)))
    with pytest.raises(Unavailable, match="no longer leads"):
        await scene.cancel("/s:a", "one")
    assert s.store.etcd.item(key) == before


@pytest.mark.parametrize("fault", [FULL, FULL_APPLIED], ids=["not written", "written"])
def test_an_alarm_that_a_store_took_out_as_it_became_full_is_cancelled(fault: Any) -> None:
    @simulated
    async def main() -> None:
        s = Sleeping()
        scene = Scene(s)
        key = scene.put("a", one=5)
        s.store.hook = lambda method, request: fault if method == "txn" else None
        if fault is FULL_APPLIED:
            await scene.cancel("/s:a", "one")
        else:
            with pytest.raises(Unavailable, match="the alarm is not cancelled: the store is full"):
                await scene.cancel("/s:a", "one")
        assert bool(scene.body(key).alarms) == (scene.due("a") is not None) == (fault is FULL)

    main()


@simulated
async def test_a_deleted_session_has_no_alarm_any_more() -> None:
    s = Sleeping()
    scene = Scene(s)
    key = scene.put("a", one=5)
    seen = s.view.seen("uid-0")
    assert seen is not None
    await scene.deleter.delete(seen, control_pb2.DeleteSessionsRequest(namespace="ns", name="fn0", session="/s:a"))
    assert (scene.body(key).tombstone, scene.body(key).alarms, scene.due("a")) == (True, (), None)
    assert scene.body(key).expires_us == s.now_us()


@simulated
async def test_a_session_with_an_alarm_is_not_removed_though_its_time_would_be_over_many_times() -> None:
    s = Sleeping()
    scene = Scene(s)
    scene.put("a", one=500)
    scene.put("b")
    await s.clock.sleep(100_000.0)
    await s.sweeper.once()
    assert s.stored() == [s.key("a")]


@simulated
async def test_alarms_are_listed_with_their_session() -> None:
    s = Sleeping()
    scene = Scene(s)
    key = scene.put("a", one=5, two=7)
    body = scene.body(key)
    gone = msgspec.structs.replace(body.alarms[1], failed=True, tries=30, error="INTERNAL: no")
    s.write(key, records.encode(alarms.onto(body, (body.alarms[0], gone)), (), b"w"))
    seen = s.view.seen("uid-0")
    assert seen is not None
    found = await listing.page(s.store, KEYS, seen, control_pb2.SessionsRequest(namespace="ns", name="fn0"))
    (session,) = found.sessions
    assert session.expires_us == 0, "not while it has an alarm to run"
    due = body.alarms[0].due_us
    assert [(a.name, a.due_us, a.next_us, a.tries, a.error) for a in session.alarms] == [
        ("one", due, due, 0, ""),
        ("two", due + 2_000_000, 0, 30, "INTERNAL: no"),
    ]
