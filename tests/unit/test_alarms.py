"""Alarms as rules: what a step asks for, what is due, what a step that ran or failed leaves."""

import msgspec
import pytest
from dormouse_core import alarms, limits, records, steps
from dormouse_core.alarms import Cancel, Set
from dormouse_core.callkeys import CallKey
from dormouse_core.errors import DataLoss, DormouseError, FailedPrecondition, InvalidArgument, ResourceExhausted
from dormouse_core.lifetimes import NEVER_US
from dormouse_core.records import Alarm, Body

NOW = 1_700_000_000_000_000
TTL = 60_000_000
EMPTY = Body("v", False, 3, (), 0, NOW, NOW + TTL)


def body(*names: str, due_us: int = NOW, **more: object) -> Body:
    found = tuple(Alarm(name, due_us, f"id-{name}", b"r", due_us) for name in names)
    return alarms.onto(msgspec.structs.replace(EMPTY, **more), found)


def after(before: Body | None, *changes: alarms.Change, **more: object) -> tuple[Alarm, ...]:
    given = {"begins": False, "end": False, "rung": None, "now_us": NOW, "write_id": b"w/1", **more}
    return alarms.after(before, changes=changes, **given)  # type: ignore[arg-type]


def test_a_second_alarm_of_a_name_replaces_the_first_and_has_a_key_of_its_own() -> None:
    first = after(None, Set("a", NOW + 5, b"1"))
    second = after(msgspec.structs.replace(EMPTY, alarms=first), Set("a", NOW + 9, b"2"), write_id=b"w/2")
    assert [(alarm.name, alarm.due_us, alarm.request) for alarm in second] == [("a", NOW + 9, b"2")]
    assert second[0].id != first[0].id
    both = after(None, Set("a", NOW + 5, b"1"), Set("a", NOW + 7, b"2"))
    assert [alarm.request for alarm in both] == [b"2"], "also within one step"


def test_alarms_are_cancelled_by_name_and_those_of_another_life_are_gone() -> None:
    before = body("a", "b")
    assert [alarm.name for alarm in after(before, Cancel("a"), Cancel("none"))] == ["b"]
    assert after(before, begins=True) == ()
    assert after(before, end=True) == ()
    assert [alarm.name for alarm in after(before, Set("c", NOW, b""), begins=True)] == ["c"]


def test_the_step_of_an_alarm_consumes_it_and_may_set_it_again_a_second_later_at_the_soonest() -> None:
    before = body("a", "b")
    rung = before.alarms[0]
    assert [alarm.name for alarm in after(before, rung=rung)] == ["b"]
    again = after(before, Set("a", 0, b""), rung=rung)[-1]
    assert again.due_us == NOW + int(limits.ALARM_AGAIN_SECONDS * 1e6)
    assert again.id != rung.id


def test_what_is_past_is_due_at_once() -> None:
    assert after(None, alarms.check("a", -5, b"", NOW))[0].due_us == NOW


def test_as_many_alarms_as_the_limit_says_and_no_more() -> None:
    full = [Set(f"a{n}", NOW, b"") for n in range(limits.ALARMS)]
    assert len(after(None, *full)) == limits.ALARMS
    with pytest.raises(ResourceExhausted, match="would have 101 alarms, at most 100 are allowed"):
        after(None, *full, Set("one more", NOW, b""))


def test_an_alarm_at_its_limits_is_taken_and_beyond_them_refused() -> None:
    most = limits.ALARM_AHEAD_DAYS * 86_400_000_000
    assert alarms.check("n" * limits.ALARM_NAME_CHARACTERS, NOW + most, b"x" * limits.ALARM_REQUEST_BYTES, NOW)
    for name in ("", "n" * (limits.ALARM_NAME_CHARACTERS + 1), "ü", "a\n", 7):
        with pytest.raises(InvalidArgument, match="alarm: name: "):
            alarms.check(name, NOW, b"", NOW)
    with pytest.raises(InvalidArgument, match="alarm: at: 3654 days ahead found, at most 3653 are allowed"):
        alarms.check("a", NOW + most + 86_400_000_000, b"", NOW)
    with pytest.raises(ResourceExhausted, match="alarm: inputs: 65537 bytes found, at most 65536 are allowed"):
        alarms.check("a", NOW, b"x" * (limits.ALARM_REQUEST_BYTES + 1), NOW)


def test_a_session_with_an_alarm_to_run_does_not_expire() -> None:
    assert body("a", due_us=NOW + 99 * TTL).expires_us == NEVER_US
    assert not steps.is_over(body("a"), NOW + 1_000 * TTL), "also long after it was due"
    given_up = tuple(msgspec.structs.replace(alarm, failed=True) for alarm in body("a").alarms)
    assert alarms.onto(EMPTY, given_up).expires_us == NOW + TTL


def test_due_is_the_earliest_and_none_before_its_time() -> None:
    before = alarms.onto(EMPTY, body("late", due_us=NOW + 5).alarms + body("early", due_us=NOW + 3).alarms)
    assert alarms.admit(before, None, NOW + 2, frozenset("v")) is None
    found = alarms.admit(before, None, NOW + 9, frozenset("v"))
    assert found is not None
    assert found.name == "early"
    assert alarms.earliest(before.alarms) == NOW + 3
    ended = msgspec.structs.replace(before, tombstone=True)
    assert alarms.admit(ended, None, NOW + 9, frozenset("v")) is None
    assert alarms.admit(None, None, NOW + 9, frozenset("v")) is None


def test_a_record_or_a_state_that_cannot_be_read_here_runs_no_alarm_and_says_so() -> None:
    with pytest.raises(DataLoss):
        alarms.admit(None, DataLoss("broken"), NOW, frozenset("v"))
    with pytest.raises(FailedPrecondition, match="has version 'v', this revision of the function reads w"):
        alarms.admit(body("a"), None, NOW, frozenset("w"))
    assert alarms.admit(body("a", due_us=NOW + 1), None, NOW, frozenset("w")) is None, "nothing is asked of it yet"


def test_a_step_that_fails_is_tried_again_later_each_time_and_given_up_in_the_end() -> None:
    before, now, waits = body("a"), NOW, []
    for number in range(limits.ALARM_TRIES):
        rung = alarms.admit(before, None, now, frozenset("v"))
        assert rung is not None
        assert alarms.key_of(rung) == CallKey(NOW, "a-id-a"), "always the same step"
        before = alarms.failed(before, rung, f"INTERNAL: {number}", now, TTL)
        assert before.step == EMPTY.step
        due_us = alarms.earliest(before.alarms)
        waits.append((due_us or now) - now)
        now = due_us or now
    assert [wait // 1_000_000 for wait in waits[:4]] == [1, 2, 4, 8]
    assert max(waits) == int(limits.ALARM_RETRY_SECONDS * 1e6)
    assert 18 * 3600 < sum(waits) / 1e6 < 20 * 3600
    (kept,) = before.alarms
    assert kept.failed
    assert kept.error == "INTERNAL: 29"
    assert before.expires_us == now + TTL, "it keeps the session no more"
    assert alarms.admit(before, None, now + 10 * TTL, frozenset("v")) is None


def test_an_error_is_kept_up_to_its_limit() -> None:
    before = body("a")
    assert len(alarms.failed(before, before.alarms[0], "x" * 5_000, NOW, TTL).alarms[0].error) == limits.ALARM_ERROR_CHARACTERS


def test_a_step_that_begins_late_has_a_key_that_says_when_it_began_whenever_it_runs() -> None:
    before = body("a")
    soon, late = NOW + int(limits.ALARM_KEY_SECONDS * 1e6), NOW + int(limits.ALARM_KEY_SECONDS * 1e6) + 1
    assert not alarms.is_late(before.alarms[0], soon)
    assert alarms.is_late(before.alarms[0], late)
    timed = alarms.timed(before, before.alarms[0], late, TTL)
    assert not alarms.is_late(timed.alarms[0], late + 10**9)
    assert alarms.key_of(timed.alarms[0]) == CallKey(late, "a-id-a")
    failed = alarms.failed(timed, timed.alarms[0], "", late, TTL)
    assert alarms.key_of(failed.alarms[0]) == CallKey(late, "a-id-a")
    tried = alarms.failed(before, before.alarms[0], "", NOW, TTL)
    assert alarms.key_of(tried.alarms[0]) == CallKey(NOW, "a-id-a"), "it has called under this key"


def test_an_alarms_step_takes_no_callers_key_and_refuses_none() -> None:
    kept = (records.keep(NOW, "g-1-1", b"d", b"r", 1),)
    before = body("a", kept=kept)
    found = alarms.stepped(before, NOW + 5, TTL, "v")
    assert (found.step, found.kept, found.known(), found.newest_us) == (4, kept, before.known(), before.newest_us)
    assert found.expires_us == NOW + 5 + TTL
    assert found.alarms == ()


def test_a_record_with_alarms_is_read_as_it_was_written_and_no_older_build_takes_it_for_one_without() -> None:
    alarm = Alarm("a", NOW, "id", b"request", NOW + 1, 2, "INTERNAL: x", True, NOW + 2)
    data = records.encode(alarms.onto(EMPTY, (alarm,)), (), b"w")
    assert records.decode(data).body.alarms == (alarm,)
    assert data[0] == 2, "a build that knows format 1 alone leaves it untouched"
    assert records.encode(EMPTY, (), b"w")[0] == 1
    assert records.glance(data).expires_us == EMPTY.expires_us


def test_an_alarm_is_taken_out_of_a_record_by_name_and_what_else_is_in_it_stays() -> None:
    data = records.encode(body("a", "b", kept=(records.keep(NOW, "g-1-1", b"d", b"r", 1),)), (), b"w")

    def edit(name: str) -> "bytes | None":
        found: list[bool] = []
        made = records.edited(data, b"w2", lambda record: found.append(alarms.without(record, name, NOW + 7, TTL)))
        return made if found[0] else None

    assert edit("none") is None
    left = records.decode(edit("a") or b"")
    assert [alarm.name for alarm in left.body.alarms] == ["b"]
    assert left.body.expires_us == NEVER_US
    assert left.write_id == b"w2"
    assert [kept.id for kept in left.body.kept] == ["g-1-1"]
    data = records.encode(body("a"), (), b"w")
    assert records.decode(edit("a") or b"").body.expires_us == NOW + 7 + TTL


def test_errors_are_of_the_tree() -> None:
    assert issubclass(FailedPrecondition, DormouseError)
