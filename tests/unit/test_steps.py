"""What becomes of one step: kept keys and the horizon, ends, expiry, starts, versions, broken records, unknown outcomes."""

import itertools
from dataclasses import dataclass

import msgspec
import pytest
from dormouse_core import records, steps
from dormouse_core.callkeys import CallKey
from dormouse_core.errors import Aborted, DataLoss, FailedPrecondition, InvalidArgument
from dormouse_core.records import Body
from dormouse_core.steps import Refuse, Repeat, Resolution, Run
from hypothesis import given
from hypothesis import strategies as st

NOW = 1_000_000
TTL = 500_000
VERSIONS = frozenset({"v1"})


@dataclass
class Call:
    at: int
    id: str = ""
    start: bool = False
    end: bool = False
    create: bool = False
    digest: bytes = b"d"
    session: str = "/i:42"

    @property
    def key(self) -> CallKey:
        return CallKey(self.at, self.id or f"g-{self.at}")


def admit(body: Body | None, call: Call, now: int = NOW, trouble: Exception | None = None, floor: int = 0) -> steps.Decision:
    return steps.admit(body, trouble, floor, call, now, VERSIONS, "vad")  # type: ignore[arg-type]


def ran(body: Body | None, call: Call, reply: bytes = b"r", now: int = NOW, floor: int = 0) -> Body:
    decision = admit(body, call, now, floor=floor)
    assert isinstance(decision, Run)
    return steps.advance(body, None, floor, call, decision.begins, reply, now, TTL, "v1", b"w")


def error(decision: steps.Decision) -> Exception:
    assert isinstance(decision, Refuse)
    return decision.error


STARTED = ran(None, Call(10, start=True, create=True))


# ------------------------------------------------------------------------------------------------------------------ there or not


def test_a_step_of_an_unknown_session_needs_a_start_in_tritons_words() -> None:
    decision = admit(None, Call(10))
    assert isinstance(decision, Refuse)
    assert isinstance(decision.error, InvalidArgument)
    assert decision.error.message == (
        "inference request for sequence 42 to model 'vad' must specify the START flag on the first request of the sequence"
    )
    assert decision.confirm


def test_a_session_named_by_metadata_begins_with_its_first_step() -> None:
    assert admit(None, Call(10, create=True)) == Run(begins=True)


def test_the_next_step_continues() -> None:
    assert admit(STARTED, Call(11)) == Run(begins=False)
    body = ran(STARTED, Call(11))
    assert (body.step, [k.id for k in body.kept], body.newest_us, body.expires_us) == (2, ["g-10", "g-11"], 11, NOW + TTL)


def test_a_start_begins_again_and_keeps_the_keys() -> None:
    body = ran(ran(STARTED, Call(11)), Call(12, start=True, create=True))
    assert (body.step, [k.id for k in body.kept]) == (1, ["g-10", "g-11", "g-12"])


def test_an_end_leaves_a_tombstone_with_keys() -> None:
    body = ran(STARTED, Call(11, end=True))
    assert body.tombstone
    assert isinstance(error(admit(body, Call(12))), InvalidArgument)
    assert isinstance(admit(body, Call(11, end=True)), Repeat)
    assert admit(body, Call(12, create=True)) == Run(begins=True)


def test_an_expired_session_is_over() -> None:
    late = NOW + TTL
    assert admit(STARTED, Call(11), late - 1) == Run(begins=False)
    assert isinstance(error(admit(STARTED, Call(11), late)), InvalidArgument)
    assert admit(STARTED, Call(11, create=True), late) == Run(begins=True)
    assert isinstance(admit(STARTED, Call(10, start=True), late), Repeat)


# ------------------------------------------------------------------------------------------------------------------- exactly once


def test_a_kept_key_gets_its_reply() -> None:
    decision = admit(STARTED, Call(10))
    assert isinstance(decision, Repeat)
    assert (decision.kept.reply, decision.kept.step) == (b"r", 1)


def test_keys_are_equal_by_id_whatever_the_timestamp() -> None:
    assert isinstance(admit(STARTED, Call(99, id="g-10")), Repeat)


def test_the_same_key_with_another_content_is_refused() -> None:
    assert isinstance(error(admit(STARTED, Call(10, digest=b"other"))), InvalidArgument)


def test_a_key_at_or_below_the_horizon_is_not_run() -> None:
    body: Body | None = None
    for at in range(10, 10 + steps.KEPT_KEYS + 2):
        body = ran(body, Call(at, create=True))
    assert body is not None
    assert body.horizon_us == 11
    assert [k.timestamp_us for k in body.kept] == list(range(12, 12 + steps.KEPT_KEYS))
    for at in (10, 11):
        assert isinstance(error(admit(body, Call(at))), Aborted)
    assert isinstance(error(admit(body, Call(11, id="c-new"))), Aborted)


def test_an_absent_session_refuses_below_the_floor_and_inherits_it() -> None:
    assert isinstance(error(admit(None, Call(50, create=True), floor=50)), Aborted)
    body = ran(None, Call(51, create=True), floor=50)
    assert body.horizon_us == 50
    assert isinstance(error(admit(body, Call(50))), Aborted)


def test_a_start_older_than_the_newest_step_is_refused() -> None:
    body = ran(STARTED, Call(20))
    assert isinstance(error(admit(body, Call(15, start=True, create=True))), Aborted)
    assert admit(body, Call(15)) == Run(begins=False)  # an older step is only late


def test_replies_stay_within_16_kib_and_keys_remain() -> None:
    body: Body | None = None
    for at in range(10, 16):
        body = ran(body, Call(at, create=True), reply=b"x" * 6000)
    assert body is not None
    assert [k.reply is not None for k in body.kept] == [False, False, False, False, True, True]
    decision = admit(body, Call(10))
    assert isinstance(decision, Repeat)
    assert steps.gone(decision.kept).code == 6


def test_a_reply_over_16_kib_is_not_kept_and_takes_no_other_with_it() -> None:
    body = ran(STARTED, Call(11), reply=b"x" * (steps.KEPT_REPLY_BYTES + 1))
    assert [k.reply for k in body.kept] == [b"r", None]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=60), st.integers(1, 4))
def test_no_call_ever_runs_twice_whatever_the_order(times: list[int], keep: int) -> None:
    """Copies of calls in any order, also with clocks that are wrong: once run, a key is repeated or refused."""
    body: Body | None = None
    done: set[str] = set()
    for at in times:
        decision = admit(body, Call(at, create=True))
        if isinstance(decision, Run):
            assert str(at) not in done
            done.add(str(at))
            body = steps.advance(body, None, 0, Call(at, create=True), decision.begins, b"r", NOW, TTL, "v1", b"w")
            # fewer kept keys than in earnest, so that short lists evict
            kept = body.kept[-keep:]
            horizon = max([body.horizon_us, *(k.timestamp_us for k in body.kept[:-keep])])
            body = msgspec.structs.replace(body, kept=kept, horizon_us=horizon)
        elif isinstance(decision, Repeat):
            assert str(at) in done


@given(st.lists(st.tuples(st.integers(0, 100), st.integers(0, 9000)), min_size=1, max_size=40))
def test_what_is_kept(calls: list[tuple[int, int]]) -> None:
    kept: tuple[records.Kept, ...] = ()
    horizon = 0
    for n, (at, size) in enumerate(calls):
        before = {k.id for k in kept}
        kept, raised = steps.remember(kept, horizon, records.keep(at, str(n), b"", b"r" * size, n))
        assert raised >= horizon
        horizon = raised
        assert len(kept) <= steps.KEPT_KEYS
        assert [k.timestamp_us for k in kept] == sorted(k.timestamp_us for k in kept)
        assert sum(len(k.reply or b"") for k in kept) <= steps.KEPT_REPLY_BYTES
        for gone in (before | {str(n)}) - {k.id for k in kept}:
            assert calls[int(gone)][0] <= horizon, "an evicted key is under the horizon"


# -------------------------------------------------------------------------------------------------------- versions, broken records


def test_a_record_of_another_version_is_left_alone() -> None:
    other = msgspec.structs.replace(STARTED, state_version="v0")
    for call in (Call(11), Call(11, end=True), Call(11, create=True)):
        decision = admit(other, call)
        assert isinstance(decision, Refuse)
        assert isinstance(decision.error, FailedPrecondition)
        assert decision.confirm
    assert admit(other, Call(11, start=True, create=True)) == Run(begins=True), "the caller asks for another"
    assert isinstance(admit(other, Call(10, start=True)), Repeat), "a reply that it keeps has no version"
    assert admit(msgspec.structs.replace(other, tombstone=True), Call(11, create=True)) == Run(begins=True)


def test_a_broken_record_is_data_loss_until_a_start_replaces_it() -> None:
    broken = DataLoss("the session's record fails its checksum")
    assert error(admit(None, Call(11, create=True), trouble=broken)) is broken
    call = Call(11, start=True, create=True)
    assert admit(None, call, trouble=broken) == Run(begins=True)
    body = steps.advance(None, broken, 0, call, True, b"r", NOW, TTL, "v1", b"w")
    assert body.horizon_us == 11, "whatever the broken record had kept is not run again"


def test_an_unknown_format_is_not_replaced_by_a_start() -> None:
    newer = FailedPrecondition("the session's record has format 2")
    assert error(admit(None, Call(11, start=True, create=True), trouble=newer)) is newer


# ---------------------------------------------------------------------------------------------------------------------- outcomes


def test_every_unknown_outcome() -> None:
    """The whole table: the entry, the record, the floor, each as it was or changed; what the record says of the call where it changed."""
    call = Call(50)
    mine = records.keep(50, "g-50", b"d", b"r", 3)
    kept = {
        "mine": (b"mine", (), 0),
        "kept": (b"other", (mine,), 0),
        "other content": (b"other", (records.keep(50, "g-50", b"x", b"r", 3),), 0),
        "forgotten": (b"other", (), 50),
        "never": (b"other", (), 49),
    }
    states = (*kept, "as it was", "gone", "unreadable")
    for entry, record, creates, floor in itertools.product((True, False), states, (True, False), (3, 4)):
        base = 0 if creates else 7
        seen = None
        if record in kept:
            write_id, keys, horizon = kept[record]
            seen = records.Record(Body("v1", False, 4, keys, horizon, 60, NOW), (), write_id)
        elif record == "as it was" and not creates:
            seen = records.Record(Body("v1", False, 2, (), 0, 40, NOW), (), b"before")
        for floor_us in (49, 50):
            found = steps.resolve(
                call,
                write_id=b"mine",
                fence=5,
                base=base,
                floor=3 if creates else None,
                seen_fence=5 if entry else 6,
                seen_base={"as it was": base, "gone": 0}.get(record, 9),
                seen=seen,
                seen_floor=floor,
                seen_floor_us=floor_us,
            )
            never = Resolution.DROPPED if entry else Resolution.LOST
            as_it_was = record == "as it was" or (record == "gone" and creates)
            if as_it_was and (floor == 3 or not creates):
                expected = Resolution.RESEND if entry else Resolution.LOST
            elif record in ("gone", "as it was"):
                expected = Resolution.UNKNOWN if floor_us == 50 else never
            else:
                expected = {
                    "mine": Resolution.COMMITTED,
                    "kept": Resolution.LANDED,
                    "other content": never,
                    "forgotten": Resolution.UNKNOWN,
                    "never": never,
                    "unreadable": Resolution.UNKNOWN,
                }[record]
            assert found is expected, (entry, record, creates, floor, floor_us)


def test_the_versions_known_are_named() -> None:
    with pytest.raises(FailedPrecondition, match=r"'v0'.*v1"):
        raise error(admit(msgspec.structs.replace(STARTED, state_version="v0"), Call(11)))
