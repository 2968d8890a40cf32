"""Calls that come late to a session that others call meanwhile run, once: what a record remembers of keys that it keeps no more."""

import random
from collections import Counter
from dataclasses import dataclass

import msgspec
import pytest
from dormouse_core import marks, records, steps
from dormouse_core.callkeys import CALLERS, CallKey
from dormouse_core.errors import Aborted
from dormouse_core.limits import KEPT_KEYS, KEY_MARK_SECONDS, MARKED_KEYS
from dormouse_core.marks import Marks
from dormouse_core.records import Body
from dormouse_core.steps import Refuse, Run
from dormouse_proto import state_pb2
from hypothesis import given
from hypothesis import strategies as st

NOW = 1_700_000_000_000_000


@dataclass
class Call:
    """Of a step that was asked for at `at`, and comes `late` microseconds later."""

    at: int
    name: str
    late: int = 0
    session: str = "/s:x"
    digest: bytes = b"d"
    start = end = False
    create = True

    @property
    def key(self) -> CallKey:
        return CallKey(self.at, f"c-{self.name}", CALLERS, self.at + self.late)


def admit(body: Body | None, call: Call) -> steps.Decision:
    return steps.admit(body, None, 0, call, None, frozenset("v"), "f")


def ran(body: Body | None, call: Call) -> Body:
    decision = admit(body, call)
    assert isinstance(decision, Run), decision
    return steps.advance(body, None, 0, call, decision.begins, b"r", call.at, 1 << 50, "v", b"w")


def others(count: int, since: int = NOW, apart: int = 1000) -> Body:
    body: Body | None = None
    for number in range(1, count + 1):
        body = ran(body, Call(since + number * apart, f"other-{number}"))
    assert body is not None
    return body


def is_refused(body: Body, call: Call) -> bool:
    decision = admit(body, call)
    return isinstance(decision, Refuse) and isinstance(decision.error, Aborted)


# ------------------------------------------------------------------------------------------------------------------- late calls


def test_a_call_that_many_younger_ones_overtook_runs_once_as_long_as_the_session_has_marks_of_them() -> None:
    late = Call(NOW, "late", 300_000)
    body = others(KEPT_KEYS + MARKED_KEYS)
    assert len(body.known().marks) == MARKED_KEYS
    assert is_refused(others(KEPT_KEYS + MARKED_KEYS + 1), late), "one more: a mark was dropped"
    body = ran(body, late)
    assert isinstance(admit(body, late), steps.Repeat), "its reply is there, though it is the oldest of all"
    for number in range(KEPT_KEYS + 20):
        body = ran(body, Call(NOW + 400_000 + number, f"more-{number}"))
        assert not isinstance(admit(body, late), Run)
    assert is_refused(body, late)


def test_what_a_mark_is_of_is_not_run_again_under_its_time_or_an_earlier_one() -> None:
    body = others(30)
    for number in range(1, 31):
        for time in (0, number * 1000 - 1, number * 1000):
            assert not isinstance(admit(body, Call(NOW + time, f"other-{number}")), Run)


def test_a_caller_that_numbers_its_calls_and_begins_again_runs_the_next_number_one() -> None:
    """Its key says a later time: it is another call, as soon as the first is no longer kept."""
    body = others(30)
    assert isinstance(admit(body, Call(NOW + 10**6, "other-1")), Run)
    assert isinstance(admit(body, Call(NOW + 10**6, "other-30")), steps.Repeat), "while it is, an id is one call"


def test_marks_are_dropped_after_a_while_so_that_a_session_that_is_seldom_called_has_none() -> None:
    apart = int(KEY_MARK_SECONDS * 1e6) // 4
    body = others(40, apart=apart)
    known = body.known()
    assert not len(known.marks)
    assert is_refused(body, Call(known.callers_us, "late"))
    assert isinstance(admit(body, Call(known.callers_us + 1, "late")), Run)
    assert len(others(40, apart=apart // 10).known().marks) > 20, "of one that is called often"


def history(seed: int, most: int) -> tuple[Counter[str], int]:
    """Calls of steps that take long or short before, and are sent again at any time after; how often each ran, and the refusals of such
    that never had."""
    chance = random.Random(seed)
    body: Body | None = None
    ran_: Counter[str] = Counter()
    refused = 0
    waiting: list[tuple[int, Call]] = []
    now = NOW
    for number in range(most):
        now += chance.randrange(1, 100_000)
        late = chance.choice((0, 10, 1_000, 200_000, 2_000_000, 5_000_000))
        waiting.append((now + late, Call(now, f"{number}", late)))
        due = [each for each in waiting if each[0] <= now]
        for each in due:
            if chance.random() < 0.6:
                waiting.remove(each)
            call = each[1]
            decision = admit(body, call)
            if isinstance(decision, Run):
                ran_[call.name] += 1
                body = steps.advance(body, None, 0, call, decision.begins, b"r", now, 1 << 50, "v", b"w")
            elif isinstance(decision, Refuse) and not ran_[call.name]:
                refused += 1
            if body is not None and chance.random() < 0.2:  # another worker has the session, and reads its record
                body = records.decode(records.encode(body, (), b"w")).body
    return ran_, refused


def test_late_calls_and_their_copies_run_once_and_are_not_refused() -> None:
    found = [history(seed, 400) for seed in range(20)]
    assert max(max(ran_.values()) for ran_, _ in found) == 1
    assert sum(refused for _, refused in found) == 0


def test_they_run_once_also_where_marks_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    for most, seconds in ((0, 600.0), (3, 600.0), (256, 0.5)):
        monkeypatch.setattr(marks, "MARKED_KEYS", most)
        monkeypatch.setattr(marks, "KEY_MARK_SECONDS", seconds)
        found = [history(seed, 400) for seed in range(20)]
        assert max(max(ran_.values()) for ran_, _ in found) == 1
        assert sum(refused for _, refused in found) > 100, "as without marks"


def test_negative_control_without_looking_at_the_marks_they_would_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Marks, "has", lambda self, ident, timestamp_us: False)
    assert max(max(history(seed, 400)[0].values()) for seed in range(20)) > 1


def test_negative_control_with_marks_dropped_below_no_horizon_they_would_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Marks.shed
    monkeypatch.setattr(marks, "MARKED_KEYS", 3)
    monkeypatch.setattr(Marks, "shed", lambda self, now_us: (real(self, now_us)[0], 0))
    assert max(max(history(seed, 400)[0].values()) for seed in range(20)) > 1


# ----------------------------------------------------------------------------------------------------------------- how they lie


@given(st.lists(st.tuples(st.integers(0, 2**50), st.text(max_size=3)), max_size=20))
def test_they_lie_in_the_order_of_their_times_and_each_is_found(added: list[tuple[int, str]]) -> None:
    found = marks.NONE
    for time, ident in added:
        found = found.added(time, ident)
    times = [int.from_bytes(found.times[at : at + 8]) for at in range(0, len(found.times), 8)]
    assert times == sorted(time for time, _ in added)
    assert found.newest_us == max(times, default=0)
    assert all(found.has(ident, time) for time, ident in added)
    assert not found.has("another", 0)
    assert marks.read(found.times, found.prints) == found


def test_two_halves_of_neighbours_are_nobodys() -> None:
    one = marks.NONE.added(1, "a").added(2, "b")
    found = Marks(one.times, one.prints[3:] + one.prints[:3])
    assert not found.has("a", 0)
    assert not found.has("b", 0), "the bytes are there, but begin in the middle"


def test_a_build_that_knows_no_marks_goes_by_the_newest_and_what_it_writes_again_refuses_what_they_did() -> None:
    """And nothing runs twice where a session goes there and back."""
    body = others(30)
    late = Call(NOW, "late", 300_000)
    assert isinstance(admit(body, late), Run)
    message = state_pb2.Record.FromString(records.encode(body, (), b"w")[5:])
    for name in ("mark_times", "mark_prints", "below_marks_us"):
        message.horizons.ClearField(name)
    there = records._read_horizons(message.horizons)
    newest = NOW + (30 - KEPT_KEYS) * 1000
    assert (there.callers_us, message.horizon_us, len(there.marks)) == (newest, newest, 0)
    back = msgspec.structs.replace(body, horizons=there)
    assert is_refused(back, late), "whether it ran is not known there"
    assert not any(isinstance(admit(back, Call(NOW + number * 1000, f"other-{number}")), Run) for number in range(1, 31))


@pytest.mark.parametrize(("times", "prints"), [(b"1234567", b"123456"), (b"12345678", b"12345"), (b"12345678", b"123456" * 2)])
def test_what_has_not_the_form_of_marks_is_none_and_the_horizon_is_above_them(times: bytes, prints: bytes) -> None:
    assert marks.read(times, prints) is None
    written = state_pb2.Horizons(callers_us=9, mark_times=times, mark_prints=prints, below_marks_us=2)
    assert records._read_horizons(written).of(CALLERS) == 9
