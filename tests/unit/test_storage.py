"""The store's space, on simulated members: history is dropped before it fills them, files become smaller, a full store heals."""

import asyncio
import dataclasses
import itertools
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from dormouse_core import limits, storage
from dormouse_core.seams import Full, MemberSeen, StoreError
from dormouse_core.storage import Compact, CountFree, Defragment, Disarm, Storage, Used
from dormouse_operator.space import Space
from dormouse_testing import simloop
from dormouse_testing.clock import SimClock
from dormouse_testing.memory_members import MemoryMembers

MIB = 1024 * 1024
QUOTA = 16 * MIB


def run(
    body: Callable[[MemoryMembers, Space], Coroutine[Any, Any, None]], *, leading: bool = True, others: int = 0, **fields: Any
) -> MemoryMembers:
    """`body` beside a process's loop that looks after the space, and `others` that do not lead."""
    members: list[MemoryMembers] = []

    async def main() -> None:
        clock = SimClock()
        store = MemoryMembers(clock, QUOTA, **fields)
        members.append(store)
        space = Space(store, clock, QUOTA)
        loops = [asyncio.create_task(space.run(lambda: leading))]
        loops += [asyncio.create_task(Space(store, clock, QUOTA).run(lambda: False)) for _ in range(others)]
        await body(store, space)
        for loop in loops:
            loop.cancel()
        await asyncio.gather(*loops, return_exceptions=True)

    simloop.run(main())
    return members[0]


async def steps(store: MemoryMembers, seconds: float, *, size: int = 64 * 1024, a_second: int = 50) -> None:
    for _ in range(int(seconds * a_second)):
        store.put("one session", size)
        await asyncio.sleep(1 / a_second)


def fill(store: MemoryMembers, *keys: str) -> None:
    """Until the alarm, faster than anybody looks."""
    for key in itertools.cycle(keys):
        try:
            store.put(key, 64 * 1024)
        except Full:
            return


def test_one_busy_session_never_fills_the_store() -> None:
    """6.O4: 64 KiB, 50 times a second, a quota of 16 MiB."""

    async def body(store: MemoryMembers, space: Space) -> None:
        await steps(store, 120)
        assert not store.full
        assert space.used is not None
        assert space.used.fraction < 0.5, "what is history is not taken for keys"

    store = run(body)
    assert not [did for did in store.done if did == "disarm"]


def test_negative_control_with_time_alone_it_would_be_full_in_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """6.O4, as it was."""
    monkeypatch.setattr(storage, "COMPACT_FRACTION", 1e9)
    monkeypatch.setattr(storage, "PRESSED_SECONDS", 0.0)

    async def body(store: MemoryMembers, space: Space) -> None:
        with pytest.raises(Full):
            await steps(store, 120)

    run(body)


async def burst(store: MemoryMembers, space: Space) -> None:
    """Keys take 68 % of the quota, and after a quiet time sessions that exist are stepped, 64 KiB 150 times a second."""
    for number in range(174):
        store.put(f"session {number}", 64 * 1024)
        await asyncio.sleep(0.05)
    await asyncio.sleep(300)
    await steps(store, 20, a_second=150)


def test_a_burst_where_seventy_percent_are_taken_is_no_step_refused() -> None:
    run(burst)


def test_negative_control_with_a_look_a_second_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "BURST", 1)

    async def body(store: MemoryMembers, space: Space) -> None:
        with pytest.raises(Full):
            await burst(store, space)

    run(body)


def test_negative_control_by_what_was_written_alone_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "PRESSED_SECONDS", 0.0)

    async def body(store: MemoryMembers, space: Space) -> None:
        with pytest.raises(Full):
            await burst(store, space)

    run(body)


RATES = (0.0005, 0.005, 0.02, 0.05, 0.1, 0.3)  # of the quota a second


def heard(rate: float, since: float) -> tuple[float, float]:
    """Others begin sessions at `rate`, for `since` seconds before 70 % are taken: how long after that the leader's figure says so, in
    seconds, and what of the quota is taken then."""
    quota = 2048 * MIB
    found: list[tuple[float, float]] = []

    async def main() -> None:
        store = MemoryMembers(SimClock(), quota)
        space = Space(store, store.clock, quota)
        loop = asyncio.create_task(space.run(lambda: True))
        a_second = 20
        store.put("before", int((limits.STORE_FULL_FRACTION - rate * since) * quota))
        await asyncio.sleep(15.0)
        passed = None
        for number in itertools.count():
            store.put(f"session {number}", int(rate * quota / a_second))
            live = sum(store.live.values()) / quota
            if passed is None and live > limits.STORE_FULL_FRACTION:
                passed = store.clock.monotonic()
            if space.used is not None and space.used.fraction > limits.STORE_FULL_FRACTION:
                assert passed is not None, "nobody is refused before"
                found.append((store.clock.monotonic() - passed, live - limits.STORE_FULL_FRACTION))
                break
            await asyncio.sleep(1 / a_second)
        loop.cancel()
        await asyncio.gather(loop, return_exceptions=True)

    simloop.run(main())
    return found[0]


@pytest.mark.parametrize("rate", RATES)
def test_what_others_wrote_counts_once_history_is_dropped(rate: float) -> None:
    """13 s with what a report takes to reach a worker, and a sixth of the quota at most."""
    for since in (0.7, 1.3, 2.0):
        seconds, more = heard(rate, since)
        assert seconds < 12.0
        assert more < 1 / 6


def test_negative_control_compacted_half_as_often_it_would_count_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "COMPACT_SECONDS", 2 * storage.COMPACT_SECONDS)
    assert max(heard(RATES[0], since)[0] for since in (0.7, 1.3, 7.0)) > 12.0
    monkeypatch.setattr(storage, "COMPACT_FRACTION", 2 * storage.COMPACT_FRACTION)
    assert max(heard(rate, 2.0)[1] for rate in RATES) > 1 / 6


def test_one_that_does_not_lead_stands_in_where_nobody_leads() -> None:
    async def body(store: MemoryMembers, space: Space) -> None:
        await steps(store, 60)
        assert not store.full

    run(body, leading=False)


@pytest.mark.parametrize(("leading", "part"), [(True, 0.1), (False, 0.2)])
def test_it_does_so_at_twice_what_a_leader_waits_for(leading: bool, part: float) -> None:
    async def body(store: MemoryMembers, space: Space) -> None:
        await asyncio.sleep(3)
        written, before = 0, len(store.done)
        while len(store.done) == before:
            store.put("one session", 64 * 1024)
            written += 64 * 1024
            await asyncio.sleep(0.05)
        assert part * QUOTA <= written <= (part + 0.05) * QUOTA

    run(body, leading=leading)


def test_an_idle_store_is_left_alone() -> None:
    async def body(store: MemoryMembers, space: Space) -> None:
        store.put("a", 1000)
        await asyncio.sleep(60)
        done = list(store.done)
        await asyncio.sleep(600)
        assert store.done == done

    run(body)


def test_history_is_kept_for_a_while_where_there_is_room() -> None:
    """A watch that lags by less than a second, and a listing in pages that takes that long, go on."""

    async def body(store: MemoryMembers, space: Space) -> None:
        await asyncio.sleep(5)
        at: list[tuple[float, int]] = []
        kept: list[float] = []
        seen = len(store.done)
        for _ in range(50 * 20):
            store.put("one session", 16 * 1024)
            at.append((store.clock.monotonic(), store.revision))
            for did in store.done[seen:]:
                revision = int(did.split()[1])
                written = next(when for when, after in at if after >= revision)
                kept.append(store.clock.monotonic() - written)
            seen = len(store.done)
            await asyncio.sleep(0.02)
        assert len(kept) > 4
        assert 0.85 <= min(kept) <= 1.1

    run(body)


def test_a_store_full_of_history_heals() -> None:
    async def body(store: MemoryMembers, space: Space) -> None:
        await asyncio.sleep(3)
        fill(store, "one session")
        await asyncio.sleep(5)
        assert not store.full
        store.put("one session", 64 * 1024)

    store = run(body)
    assert [did.split()[0] for did in store.done[-3:]] == ["compact", "defragment", "disarm"]


@pytest.mark.parametrize("lazy", [False, True])
def test_a_store_full_of_keys_heals_once_they_are_deleted(lazy: bool) -> None:
    async def body(store: MemoryMembers, space: Space) -> None:
        fill(store, *(f"session {number}" for number in range(1000)))
        await asyncio.sleep(60)
        assert store.full, "an alarm that would be raised at once is not taken back"
        assert space.used is not None
        assert space.used.fraction > limits.ROOM_FRACTION
        assert "defragment 0" not in store.done, "a file without free space is not copied"
        for number in range(30):
            store.delete(f"session {number}")
        await asyncio.sleep(10)
        assert not store.full
        store.put("new", 64 * 1024)

    run(body, lazy=lazy)


@pytest.mark.parametrize("spares", [0, 4])
def test_a_store_full_of_history_heals_whether_or_not_its_free_space_can_be_counted(spares: int) -> None:
    async def body(store: MemoryMembers, space: Space) -> None:
        fill(store, "one session")
        await asyncio.sleep(10)
        assert not store.full

    done = run(body, lazy=True, spares=spares).done
    assert [did.split()[0] for did in done] == ["compact", *["count"][:spares], "defragment", "disarm"]


def test_negative_control_where_free_space_is_not_counted_a_file_full_of_keys_is_copied_for_nothing() -> None:
    async def body(store: MemoryMembers, space: Space) -> None:
        fill(store, *(f"session {number}" for number in range(1000)))
        await asyncio.sleep(60)
        assert "defragment 0" in store.done

    run(body, lazy=True, spares=0)


def test_negative_control_without_a_defragmentation_it_would_stay_full(monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing(self: MemoryMembers, endpoint: str) -> None: ...

    monkeypatch.setattr(MemoryMembers, "defragment", nothing)

    async def body(store: MemoryMembers, space: Space) -> None:
        fill(store, "one session")
        await asyncio.sleep(60)
        assert store.full

    run(body)


@pytest.mark.parametrize("leading", [False, True])
def test_several_processes_heal_it_at_once(leading: bool) -> None:
    async def body(store: MemoryMembers, space: Space) -> None:
        fill(store, "one session")
        await asyncio.sleep(10)
        assert not store.full

    run(body, leading=leading, others=3, count=3, seconds_a_byte=1e-7)


def test_one_member_at_a_time_and_the_one_that_leads_last() -> None:
    async def body(store: MemoryMembers, space: Space) -> None:
        for number in range(100):
            store.put(f"session {number}", 64 * 1024)
        for number in range(95):
            store.delete(f"session {number}")
        await asyncio.sleep(600)
        assert max(store.sizes) < 1 * MIB

    store = run(body, count=3, seconds_a_byte=1e-6)
    order = [endpoint for endpoint, _, _ in store.defragmenting]
    assert sorted(order) == ["0", "1", "2"], "each once"
    assert order[-1] == "0"
    spans = [(begun, ended) for _, begun, ended in store.defragmenting]
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))
    assert all(after[0] - before[0] >= storage.SPACING_SECONDS for before, after in itertools.pairwise(spans))


def test_the_one_that_leads_waits_for_a_member_that_does_not_say_yet_what_is_free() -> None:
    """Each counts it with its own next write: two of three said so when the leader's turn came, and the third did after it."""

    async def body(store: MemoryMembers, space: Space) -> None:
        store.uncounted.add("2")
        for number in range(100):
            store.put(f"session {number}", 64 * 1024)
        for number in range(95):
            store.delete(f"session {number}")
        await asyncio.sleep(600)
        assert [endpoint for endpoint, _, _ in store.defragmenting] == ["1"]
        store.uncounted.clear()
        await asyncio.sleep(600)
        assert [endpoint for endpoint, _, _ in store.defragmenting] == ["1", "2", "0"]

    run(body, count=3)


@pytest.mark.parametrize("since", [1, 15, 29])
def test_free_space_is_given_back_once_nothing_took_it_for_half_a_minute(since: float) -> None:
    """Whenever it became free: `since` seconds after the beginning."""

    async def body(store: MemoryMembers, space: Space) -> None:
        for number in range(100):
            store.put(f"session {number}", 64 * 1024)
        await asyncio.sleep(since)
        for number in range(95):
            store.delete(f"session {number}")
        await asyncio.sleep(29)
        assert store.defragmenting == []
        await asyncio.sleep(50)
        assert len(store.defragmenting) == 1

    run(body)


def test_one_that_does_not_lead_makes_no_file_smaller_while_there_is_room() -> None:
    async def body(store: MemoryMembers, space: Space) -> None:
        await asyncio.sleep(2)
        for number in range(100):
            store.put(f"session {number}", 64 * 1024)
        for number in range(95):
            store.delete(f"session {number}")
        await steps(store, 2)  # its history is dropped
        await asyncio.sleep(300)
        assert store.sizes[0] - store.used > 3 * MIB, "which a leader gives back"
        assert store.defragmenting == []

    run(body, leading=False)


def test_nothing_is_defragmented_while_a_member_does_not_answer() -> None:
    async def body(store: MemoryMembers, space: Space) -> None:
        store.away.add("2")
        for number in range(100):
            store.put(f"session {number}", 64 * 1024)
        for number in range(95):
            store.delete(f"session {number}")
        await asyncio.sleep(300)
        assert store.defragmenting == []
        store.away.clear()
        await asyncio.sleep(300)
        assert len(store.defragmenting) == 3

    run(body, count=3)


def test_a_member_whose_standstill_would_end_leases_is_left_alone_while_there_is_room() -> None:
    """Its followers are not: a client moves to another member within a lease."""

    async def body(store: MemoryMembers, space: Space) -> None:
        store.quota = 1000 * MIB
        space._storage.quota = 1000 * MIB
        for number in range(300):
            store.put(f"session {number}", 1 * MIB)
        over = 300 - limits.DEFRAGMENT_BYTES // MIB - 1
        for number in range(over):
            store.delete(f"session {number}")
        await asyncio.sleep(600)
        assert sorted(endpoint for endpoint, _, _ in store.defragmenting) == ["1", "2"]
        for number in range(over, over + 2):
            store.delete(f"session {number}")
        await asyncio.sleep(600)
        assert store.defragmenting[-1][0] == "0", "little is to be copied: it takes a moment"

    run(body, count=3)


def test_free_space_that_is_used_again_is_not_given_back() -> None:
    async def body(store: MemoryMembers, space: Space) -> None:
        await steps(store, 300, a_second=20)

    assert run(body).defragmenting == []


def test_a_file_near_the_quota_is_made_smaller_before_the_alarm() -> None:
    async def body(store: MemoryMembers, space: Space) -> None:
        for number in range(215):  # 13.4 MiB
            store.put(f"session {number}", 64 * 1024)
        for number in range(60):
            store.delete(f"session {number}")
        await asyncio.sleep(30)
        assert max(store.sizes) < limits.DEFRAGMENT_FRACTION * QUOTA

    store = run(body)
    assert "disarm" not in store.done


def test_an_alarm_that_comes_back_at_once_is_not_fought() -> None:
    """etcd's quota is smaller than the operator was told."""

    async def body(store: MemoryMembers, space: Space) -> None:
        store.quota = 1 * MIB
        for _ in range(3000):
            try:
                store.put("one session", 2 * MIB)
            except StoreError:
                await asyncio.sleep(0.1)

    assert run(body).done.count("disarm") < 15


def test_a_quota_that_members_say_themselves_counts() -> None:
    machine = Storage(quota=1000 * MIB)
    member = MemberSeen("e", 1, True, 5, 8 * MIB, 8 * MIB, False, quota=QUOTA)
    machine.look(0.0, [member], [], leading=True)
    machine.compacted(0.0, 5)
    machine.look(1.0, [member], [], leading=True)
    assert machine.used(1.0) == Used(0.5, 0.0, QUOTA)


def test_what_is_not_known_is_not_zero() -> None:
    machine = Storage(QUOTA)
    member = MemberSeen("e", 1, True, 5, 8 * MIB, 8 * MIB, False)
    assert machine.look(0.0, [member], [], leading=True).action is None
    assert machine.used(0.0) is None, "what of it is history is not known"
    machine.compacted(1.0, 5)
    machine.look(2.0, [member], [], leading=True)
    machine.look(3.0, [dataclasses.replace(member, used=9 * MIB)], [], leading=True)
    assert machine.used(3.5) == Used(0.5, 1.5, QUOTA), "what was written since is not known to be keys"
    machine.look(4.0, [], ["e"], leading=True)
    assert machine.used(4.0) is None


def test_a_store_that_was_restored_to_an_earlier_revision_is_compacted_again() -> None:
    machine = Storage(QUOTA)
    machine.look(0.0, [MemberSeen("e", 1, True, 500, 1, 1, False)], [], leading=True)
    machine.compacted(0.0, 500)
    actions = [machine.look(20.0 + at, [MemberSeen("e", 1, True, 100 + int(at), 1, 1, False)], [], leading=True).action for at in range(30)]
    assert any(isinstance(action, Compact) and action.revision < 500 for action in actions)


def test_the_steps_of_a_healing() -> None:
    machine = Storage(QUOTA)

    def look(at: float, *, size: int, used: int, full: bool = True) -> object:
        return machine.look(at, [MemberSeen("e", 7, True, 9, size, used, full)], [], leading=False).action

    assert look(0, size=QUOTA, used=QUOTA) is None, "left to the leader at first"
    assert look(5, size=QUOTA, used=QUOTA) == Compact(9)
    assert look(5.1, size=QUOTA, used=QUOTA) == Compact(9), "what was not done is asked for again"
    machine.compacted(5.2, 9)
    assert look(5.3, size=QUOTA, used=QUOTA) is None
    assert look(5.6, size=QUOTA, used=QUOTA) == CountFree(), "space that is free may not count as free yet"
    assert look(5.7, size=QUOTA, used=QUOTA) == CountFree(), "it had no answer"
    machine.counted(5.8, done=False)
    assert look(5.9, size=QUOTA, used=QUOTA) == Defragment("e", 7), "what is free is not known: a try"
    machine.defragmented(6.1, 7, 0.1)
    assert look(6.2, size=QUOTA, used=QUOTA) is None, "it was none"
    machine.compacted(6.3, 9)
    machine.counted(6.3, done=False)
    assert look(7.0, size=QUOTA, used=QUOTA) is None, "nothing changed since"
    assert look(7.1, size=QUOTA, used=1000) == Defragment("e", 7)
    machine.defragmented(7.1, 7, 0.1)
    machine.defragmented(7.1, 7, 1.0, done=False)
    assert look(7.2, size=QUOTA, used=1000) is None, "one that failed may still be under way"
    assert look(17.2, size=QUOTA, used=1000) == Defragment("e", 7)
    machine.defragmented(17.3, 7, 0.1)
    assert look(17.4, size=2000, used=1000) == Disarm()
    machine.disarmed(17.5)
    assert look(17.6, size=2000, used=1000, full=False) is None


def test_a_try_for_free_space_that_is_not_known_is_not_made_all_the_time() -> None:
    machine = Storage(QUOTA)
    tries: list[float] = []
    for tenth in range(600):
        now = tenth / 10
        match machine.look(now, [MemberSeen("e", 7, True, 9 + tenth, QUOTA, QUOTA, True)], [], leading=True).action:
            case Compact(revision) if tenth % 10 == 0:  # somebody deletes a little all the time
                machine.compacted(now, revision)
            case CountFree():
                machine.counted(now, done=False)
            case Defragment():
                tries.append(now)
                machine.defragmented(now, 7, 1.0)
    assert all(after - before >= 10 for before, after in itertools.pairwise(tries))


def test_what_was_counted_and_is_not_free_is_not_copied_for_nothing() -> None:
    machine = Storage(QUOTA)

    def look(at: float, used: int) -> object:
        return machine.look(at, [MemberSeen("e", 7, True, 9, QUOTA, used, True)], [], leading=True).action

    assert look(0, QUOTA) == Compact(9)
    machine.compacted(0.1, 9)
    assert look(0.5, QUOTA) == CountFree()
    machine.counted(0.5, done=True)
    assert look(0.6, QUOTA) is None, "it does not count yet"
    assert look(1.0, QUOTA) is None
    assert look(60.0, QUOTA) is None
    assert look(61.0, QUOTA // 2) == Defragment("e", 7)
