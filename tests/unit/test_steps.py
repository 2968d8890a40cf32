"""What becomes of one step: kept keys and the horizon, ends, expiry, starts, versions, broken records, unknown outcomes."""

import itertools
from dataclasses import dataclass

import msgspec
import pytest
from dormouse_core import marks, records, steps
from dormouse_core.callkeys import CALLERS, CallKey
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
    made_by: str | None = None
    gateway_us: int = 0

    @property
    def key(self) -> CallKey:
        return CallKey(self.at, self.id or f"g-{self.at}", self.made_by, self.gateway_us)


def admit(body: Body | None, call: Call, now: int | None = NOW, trouble: Exception | None = None, floor: int = 0) -> steps.Decision:
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
    assert isinstance(error(admit(body, Call(11, id="g-new"))), Aborted)
    assert admit(body, Call(11, id="c-new")) == Run(begins=False), "a caller's own timestamps have a horizon of their own"


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
    largest = b"x" * steps.KEPT_REPLY_BYTES
    assert [k.reply for k in ran(STARTED, Call(11), reply=largest).kept] == [None, largest]


MAKERS = ("", "g-a", "g-b", "g-c", "g-d", "?")
copies = st.lists(st.tuples(st.sampled_from(MAKERS), st.integers(1, 12)), min_size=1, max_size=40)


def of(maker: str, at: int) -> Call:
    """One call for each maker and time. "?": a caller's opaque key, whose maker a build of before did not write down."""
    if maker == "?":
        return Call(at, id=f"c-opaque-{at}", create=True, made_by="g-a")
    return Call(at, id=f"{maker}-{at}" if maker else f"c-{at}", create=True)


def forgotten(kept: records.Kept) -> records.Kept:
    return msgspec.structs.replace(kept, maker="?")


def play(times: list[tuple[str, int]]) -> None:
    body: Body | None = None
    done: set[str] = set()
    for maker, at in times:
        call = of(maker, at)
        decision = admit(body, call)
        if isinstance(decision, Run):
            assert call.id not in done, "a second effect"
            done.add(call.id)
            body = steps.advance(body, None, 0, call, decision.begins, b"r", NOW, TTL, "v1", b"w")
            if maker == "?":  # as a build of before would leave it
                body = msgspec.structs.replace(body, kept=tuple(forgotten(k) if k.id == call.id else k for k in body.kept))
        elif isinstance(decision, Repeat):
            assert call.id in done
        assert body is not None
        assert len(body.known().makers) <= steps.KEY_MAKERS
        assert body.horizon_us == body.known().highest_us


@given(copies, st.integers(1, 4), st.integers(1, 3), st.integers(0, 3), st.sampled_from((2e-6, 6e-6, 1.0)))
def test_no_call_ever_runs_twice_whatever_the_order(
    times: list[tuple[str, int]], keep: int, makers: int, marked: int, seconds: float
) -> None:
    """Copies of calls in any order, of makers whose clocks are wrong: once run, a key is repeated or refused."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "KEPT_KEYS", keep)  # fewer than in earnest, so that short lists evict and fold
        patch.setattr(steps, "KEY_MAKERS", makers)
        patch.setattr(marks, "MARKED_KEYS", marked)
        patch.setattr(marks, "KEY_MARK_SECONDS", seconds)
        play(times)


def test_negative_control_a_folded_maker_that_comes_back_without_the_common_horizon_would_run_a_call_again() -> None:
    def raised(known: records.Horizons, maker: str, at: int) -> records.Horizons:
        listed = dict(known.makers)
        listed[maker] = max(listed.get(maker, 0), at)
        makers = sorted(listed.items(), key=lambda pair: pair[1])
        common = known.common_us
        while len(makers) > steps.KEY_MAKERS:
            common = max(common, makers.pop(0)[1])
        return msgspec.structs.replace(known, common_us=common, makers=tuple(makers))

    # g-a's 3 is evicted and folded; its 2 follows, is evicted with an entry of its own; a late copy of 3 comes.
    times = [("g-a", 2), ("g-a", 3), ("g-b", 9), ("g-a", 3)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "KEPT_KEYS", 1)
        patch.setattr(steps, "KEY_MAKERS", 1)
        body = msgspec.structs.replace(ran(None, of("g-a", 2)), horizons=records.Horizons(3, (), 0, 9, 0))
        late = of("g-a", 3)
        assert isinstance(error(admit(body, late)), Aborted)
        body = steps.advance(body, None, 0, of("g-a", 7), False, b"r", NOW, TTL, "v1", b"w")
        assert isinstance(error(admit(body, late)), Aborted), "begins at the common horizon"
        play(times)
        patch.setattr(steps, "raised", raised)
        body = msgspec.structs.replace(ran(None, of("g-a", 2)), horizons=records.Horizons(3, (), 0, 9, 0))
        body = steps.advance(body, None, 0, of("g-a", 7), False, b"r", NOW, TTL, "v1", b"w")
        assert isinstance(admit(body, late), Run), "the call is run a second time"


@given(st.lists(st.tuples(st.sampled_from(MAKERS[1:5]), st.integers(0, 5)), min_size=1, max_size=80), st.integers(-90, 90))
def test_gateways_that_differ_and_are_alternated_by_a_caller_that_waits_refuse_nothing(calls: list[tuple[str, int]], skew: int) -> None:
    """Each maker's clock is off by its own amount; every call comes after the answer to the one before."""
    body: Body | None = None
    for now, (maker, _) in enumerate(calls, start=1000):
        call = of(maker, now + skew * MAKERS.index(maker))
        decision = admit(body, call)
        assert isinstance(decision, Run), decision
        body = steps.advance(body, None, 0, call, decision.begins, b"r", NOW, TTL, "v1", b"w")
        assert isinstance(admit(body, call), Repeat), "and its retry gets the reply"


def test_negative_control_with_one_horizon_fresh_steps_would_be_refused() -> None:
    body: Body | None = None
    refused = 0
    for now in range(1000, 1040):
        call = of("g-a", now + 90) if now % 2 else of("g-b", now)
        if body is not None:
            body = msgspec.structs.replace(body, horizons=None)
        decision = admit(body, call)
        if isinstance(decision, Run):
            body = steps.advance(body, None, 0, call, decision.begins, b"r", NOW, TTL, "v1", b"w")
        refused += isinstance(decision, Refuse)
    assert refused > 5


def test_a_callers_key_from_ahead_locks_nobody_out() -> None:
    """60 s ahead are allowed. Plain calls go on, and so does a start."""
    body = STARTED
    for n in range(12):
        body = ran(body, Call(60_000_000 + n, id=f"c-{n}", gateway_us=20 + n))
    assert admit(body, Call(40)) == Run(begins=False)
    assert admit(body, Call(40, start=True, create=True)) == Run(begins=True)
    assert isinstance(error(admit(body, Call(60_000_000, id="c-0", gateway_us=41))), Aborted), "his own that ran are known"
    assert admit(body, Call(60_000_000, id="c-late", gateway_us=41)) == Run(begins=False), "and only those refused"
    assert body.newest_us == 60_000_011, "what a removal waits for"


def test_a_late_start_is_refused_whoever_made_its_key() -> None:
    """An abandoned start of a gateway's key behind steps of callers' keys, and the other way round."""
    body = ran(STARTED, Call(5, id="c-1", gateway_us=20))
    assert isinstance(error(admit(body, Call(15, start=True, create=True))), Aborted)
    assert isinstance(error(admit(body, Call(9, id="c-2", gateway_us=15, start=True, create=True))), Aborted)
    assert isinstance(error(admit(body, Call(4, id="c-3", gateway_us=30, start=True, create=True))), Aborted), "his own order"
    assert admit(body, Call(9, id="c-4", gateway_us=30, start=True, create=True)) == Run(begins=True)


def test_a_session_does_not_expire_by_a_clock_that_is_not_known_to_be_good() -> None:
    assert admit(STARTED, Call(11, create=True), NOW + 2 * TTL) == Run(begins=True)
    assert admit(STARTED, Call(11, create=True), None) == Run(begins=False)
    assert admit(STARTED, Call(11), None) == Run(begins=False)
    ended = ran(STARTED, Call(11, end=True))
    assert isinstance(error(admit(ended, Call(12), None)), InvalidArgument), "an end needs no clock"


def test_a_worker_that_is_behind_shortens_no_session() -> None:
    body = steps.advance(None, None, 0, Call(NOW, create=True), True, b"r", NOW - 3_600_000_000, TTL, "v1", b"w")
    assert body.expires_us == NOW + TTL


def test_a_record_of_a_build_that_knew_one_horizon() -> None:
    old = Body("v1", False, 9, (records.keep(30, "c-x", b"d", b"r", 9, made_by="?"),), 20, 40, NOW + TTL)
    for maker in (CALLERS, "g-a"):
        assert isinstance(error(admit(old, of(maker, 20))), Aborted)
        assert admit(old, of(maker, 21)) == Run(begins=False)
    assert isinstance(error(admit(old, Call(39, start=True, create=True))), Aborted)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "KEPT_KEYS", 1)
        body = steps.advance(old, None, 0, of("g-a", 50), False, b"r", NOW, TTL, "v1", b"w")
    for maker in (CALLERS, "g-a", "g-b"):
        assert isinstance(error(admit(body, of(maker, 30))), Aborted), "whoever made the evicted key"


@given(st.lists(st.tuples(st.integers(0, 100), st.integers(0, 9000), st.sampled_from(MAKERS)), min_size=1, max_size=40))
def test_what_is_kept(calls: list[tuple[int, int, str]]) -> None:
    kept: tuple[records.Kept, ...] = ()
    known = records.common(0)
    for n, (at, size, maker) in enumerate(calls):
        before = {k.id for k in kept}
        kept, following = steps.remember(kept, known, records.keep(at, str(n), b"", b"r" * size, n, made_by=maker))
        assert all(following.of(m) >= known.of(m) for m in MAKERS[:-1])
        known = following
        assert len(kept) <= steps.KEPT_KEYS
        assert [k.step for k in kept] == sorted(k.step for k in kept)
        assert sum(len(k.reply or b"") for k in kept) <= steps.KEPT_REPLY_BYTES
        for gone in (before | {str(n)}) - {k.id for k in kept}:
            at, _, maker = calls[int(gone)]
            makers = MAKERS[:-1] if maker == "?" else (maker,)
            under = all(at <= known.of(m) for m in makers)
            assert under or (maker == CALLERS and known.marks.has(gone, at)), "an evicted key is under its maker's horizon, or marked"


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
    for seen_fence, record, creates, floor in itertools.product((5, 6, 0), states, (True, False), (3, 4)):
        entry = seen_fence == 5
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
                seen_fence=seen_fence,
                seen_base={"as it was": base, "gone": 0}.get(record, 9),
                seen=seen,
                seen_floor=floor,
                seen_floor_us=floor_us,
            )
            never = Resolution.DROPPED if entry else Resolution.LOST
            as_it_was = record == "as it was" or (record == "gone" and creates)
            if not seen_fence and (record == "gone" or (record == "as it was" and creates)):
                expected = Resolution.ERASED
            elif as_it_was and (floor == 3 or not creates):
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
            assert found is expected, (seen_fence, record, creates, floor, floor_us)


def test_the_versions_known_are_named() -> None:
    with pytest.raises(FailedPrecondition, match=r"'v0'.*v1"):
        raise error(admit(msgspec.structs.replace(STARTED, state_version="v0"), Call(11)))
