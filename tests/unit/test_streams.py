"""The state machine of a stream: order, keys, what a failure takes with it, and how much may wait. Nothing here takes time."""

import pytest
from dormouse_core import limits, streamed
from dormouse_core.callkeys import split
from dormouse_core.errors import Code, InvalidArgument, ResourceExhausted
from dormouse_core.seams import Reply
from dormouse_gateway.serving import streams
from dormouse_gateway.serving.streams import Step, Stream
from dormouse_proto import inference_pb2
from dormouse_testing.gateway import request
from hypothesis import given, settings
from hypothesis import strategies as st

NOW = 1_700_000_000_000_000
Response = inference_pb2.ModelStreamInferResponse


def message(model: str, ident: str, sequence: int | str | None = None, *, start: bool = False, final: bool = False, size: int = 0) -> bytes:
    made = request(model, sequence, size, id=ident)
    if start:
        made.parameters["sequence_start"].bool_param = True
    if final:
        made.parameters["triton_enable_empty_final_response"].bool_param = True
    encoded: bytes = made.SerializeToString()
    return encoded


def stream(**metadata: str) -> Stream:
    return Stream({key.replace("_", "-"): value for key, value in metadata.items()}, "g-nonce-1", "default")


def good(step: Step) -> Reply:
    return Reply(0, inference_pb2.ModelInferResponse(id=step.id).SerializeToString(), "", {"dormouse-step": "7"})


def bad(text: str = "no", code: Code = Code.INTERNAL) -> Reply:
    return Reply(code, b"", text)


def drain(of: Stream) -> list[inference_pb2.ModelStreamInferResponse]:
    found = []
    while (out := of.take()) is not None:
        if out.response:
            found.append(Response.FromString(out.response))
        of.written(out)
    return found


def ids(of: Stream) -> list[str]:
    return [each.infer_response.id for each in drain(of)]


def sent(of: Stream) -> list[str]:
    return [step.id for step in of.begin()]


# ------------------------------------------------------------------------------------------------------------------------ order


def test_one_step_of_a_session_is_under_way_and_other_sessions_do_not_wait() -> None:
    s = stream()
    for ident in ("a0", "a1", "b0", "a2", "b1"):
        s.receive(message("m", ident, ord(ident[0]), start=ident[1] == "0"), NOW)
    first = s.begin()
    assert [step.id for step in first] == ["a0", "b0"]
    s.done(first[1], good(first[1]))
    assert sent(s) == ["b1"]
    assert ids(s) == ["b0"]
    s.done(first[0], good(first[0]))
    assert sent(s) == ["a1"]


def test_the_same_sequence_of_two_functions_or_two_kinds_is_two_sessions() -> None:
    s = stream()
    s.receive(message("m", "1", 7), NOW)
    s.receive(message("n", "2", 7), NOW)
    s.receive(message("m", "3", "7"), NOW)
    assert sent(s) == ["1", "2", "3"]


def test_stateless_calls_run_together_and_answer_in_their_order() -> None:
    s = stream()
    for ident in "abc":
        s.receive(message("m", ident), NOW)
    a, b, c = s.begin()
    s.done(c, good(c))
    s.done(b, bad())
    assert ids(s) == []
    s.done(a, good(a))
    assert ids(s) == ["a", "b", "c"]
    assert s.idle
    assert s.lines == 0


def test_a_reply_in_parts_does_not_wait_and_lets_the_others_pass() -> None:
    s = stream()
    for ident in "abc":
        s.receive(message("m", ident, final=ident == "b"), NOW)
    a, b, c = s.begin()
    s.done(c, good(c))
    part = streamed.response(inference_pb2.ModelInferResponse(id="b").SerializeToString(), final=False)
    s.part(b, part)
    s.done(b, Reply(0, b"", "", {"dormouse-decoupled": "1", "dormouse-step": "3"}))
    first, last = drain(s)
    assert [each.infer_response.id for each in (first, last)] == ["b", "b"]
    assert not first.infer_response.parameters["triton_final_response"].bool_param
    assert last.infer_response.parameters["triton_final_response"].bool_param
    assert last.infer_response.parameters["dormouse_step"].int64_param == 3
    s.done(a, good(a))
    assert ids(s) == ["a", "c"]
    assert s.idle


def test_the_empty_last_response_goes_only_to_who_asked_for_it() -> None:
    s = stream()
    s.receive(message("m", "quiet"), NOW)
    (step,) = s.begin()
    s.done(step, Reply(0, b"", "", {"dormouse-decoupled": "1"}))
    assert drain(s) == []
    assert s.idle


def test_a_reply_carries_its_id_the_step_count_and_that_it_is_the_last() -> None:
    s = stream()
    s.receive(message("m", "x", 5), NOW)
    (step,) = s.begin()
    s.done(step, good(step))
    (found,) = drain(s)
    assert found.error_message == ""
    assert found.infer_response.id == "x"
    assert found.infer_response.parameters["dormouse_step"].int64_param == 7
    assert found.infer_response.parameters["triton_final_response"].bool_param


# ---------------------------------------------------------------------------------------------------------------------- failures


def test_a_failed_step_fails_what_had_come_before_its_error_was_written() -> None:
    s = stream()
    for ident in "abc":
        s.receive(message("m", ident, 1), NOW)
    s.receive(message("m", "other", 2), NOW)
    a, other = s.begin()
    s.done(a, bad("boom"))
    s.receive(message("m", "d", 1), NOW)
    assert sent(s) == []
    found = drain(s)
    assert [each.infer_response.id for each in found] == ["a", "b", "c", "d"]
    assert found[0].error_message == "boom"
    assert all("an earlier step of its sequence" in each.error_message and "boom" in each.error_message for each in found[1:])
    assert [each.infer_response.parameters["dormouse_code"].string_param for each in found] == ["INTERNAL"] + ["ABORTED"] * 3
    s.receive(message("m", "e", 1), NOW)
    assert sent(s) == ["e"], "the caller has seen the error: this one it meant"
    s.done(other, good(other))
    assert ids(s) == ["other"]


def test_a_start_among_them_begins_anew() -> None:
    s = stream()
    for ident in "abSc":
        s.receive(message("m", ident, 1, start=ident == "S"), NOW)
    (a,) = s.begin()
    s.done(a, bad())
    (start,) = s.begin()
    assert start.id == "S"
    s.done(start, good(start))
    assert sent(s) == ["c"]
    assert ids(s) == ["a", "b", "S"]


def test_a_message_refused_on_arrival_fails_in_its_turn() -> None:
    s = stream()
    s.receive(message("m", "a", 1), NOW)
    s.receive(message("m", "b", 1), NOW, ResourceExhausted("full"))
    s.receive(message("m", "c", 1), NOW)
    (a,) = s.begin()
    assert ids(s) == []
    s.done(a, good(a))
    assert sent(s) == []
    assert ids(s) == ["a", "b", "c"]


def test_without_the_rule_a_later_step_would_run_on_a_state_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guard of the tests above, taken away."""
    answer = Stream._answer

    def forgetful(self: Stream, line: streams.Line, step: Step, reply: Reply) -> None:
        answer(self, line, step, reply)
        line.failed = None

    monkeypatch.setattr(Stream, "_answer", forgetful)
    s = stream()
    for ident in "ab":
        s.receive(message("m", ident, 1), NOW)
    s.done(s.begin()[0], bad())
    assert sent(s) == ["b"]


def test_an_error_names_the_request_as_triton_does() -> None:
    s = stream()
    s.receive(message("m", "x", 5), NOW)
    (step,) = s.begin()
    s.done(step, bad("text", Code.UNAVAILABLE))
    (found,) = drain(s)
    assert (found.error_message, found.infer_response.id, found.infer_response.model_name) == ("text", "x", "m")


def test_what_cannot_be_read_is_answered_at_once() -> None:
    s = stream()
    s.receive(message("m", "a", 1), NOW)
    assert s.receive(b"\xff", NOW) is None
    assert s.receive(message("Not A Name", "n"), NOW) is None
    found = drain(s)
    assert "not an inference.ModelInferRequest" in found[0].error_message
    assert "model_name" in found[1].error_message
    assert found[1].infer_response.id == "n"
    assert s.unanswered == 1


# -------------------------------------------------------------------------------------------------------------------------- keys


def test_every_message_has_a_key_of_its_own_and_time_rises() -> None:
    s = stream()
    for now in (NOW, NOW, NOW - 50, NOW + 10):
        s.receive(message("m", "x"), now)
    keys = [step.metadata["dormouse-call"] for step in s.begin()]
    assert [split(key) for key in keys] == [
        (NOW, "g-nonce-1-0"), (NOW + 1, "g-nonce-1-1"), (NOW + 2, "g-nonce-1-2"), (NOW + 10, "g-nonce-1-3")
    ]  # fmt: skip


def test_a_callers_key_gives_each_message_one() -> None:
    s = stream(dormouse_idempotency_key=f"{NOW}-mine", dormouse_first_message="0", dormouse_call="forged")
    t = stream(dormouse_idempotency_key="mine", dormouse_first_message="0")
    for each in (s, t):
        each.receive(message("m", "x"), NOW)
        each.receive(message("m", "y"), NOW)
    first, second = s.begin()
    assert second.metadata["dormouse-idempotency-key"] == f"{NOW + 1}-mine/1"
    assert (first.timestamp, second.timestamp) == (NOW, NOW + 1)
    assert [step.metadata["dormouse-idempotency-key"] for step in t.begin()] == ["mine/0", "mine/1"]
    assert "dormouse-first-message" not in first.metadata


def test_a_stream_that_is_opened_again_goes_on_with_the_numbers_of_the_first() -> None:
    first = stream(dormouse_idempotency_key=f"{NOW}-job", dormouse_first_message="0")
    again = stream(dormouse_idempotency_key=f"{NOW}-job", dormouse_first_message="5")
    for number in range(8):
        first.receive(message("m", str(number)), NOW)
    for number in range(5, 8):
        again.receive(message("m", str(number)), NOW + 10**6)
    keys = [step.metadata["dormouse-idempotency-key"] for step in first.begin()]
    assert [step.metadata["dormouse-idempotency-key"] for step in again.begin()] == keys[5:]


def test_a_message_brings_its_own_key() -> None:
    s = stream(dormouse_idempotency_key="stream", dormouse_first_message="3")
    for ident, key in (("a", ""), ("b", f"{NOW - 50}-own"), ("c", "")):
        made = request("m", None, 0, id=ident)
        if key:
            made.parameters["dormouse_idempotency_key"].string_param = key
        s.receive(made.SerializeToString(), NOW)
    a, b, c = s.begin()
    assert [step.metadata["dormouse-idempotency-key"] for step in (a, b, c)] == ["stream/3", f"{NOW - 50}-own", "stream/5"]
    assert a.timestamp < b.timestamp < c.timestamp, "in the gateway's time, whatever theirs is"


def test_a_message_whose_own_key_is_no_key_is_answered_so() -> None:
    s = stream()
    made = request("m", None, 0, id="a")
    made.parameters["dormouse_idempotency_key"].int64_param = 5
    s.receive(made.SerializeToString(), NOW)
    (found,) = drain(s)
    assert "dormouse_idempotency_key: int64_param found" in found.error_message
    assert s.begin() == []


def one_without_a_sound_key(s: Stream) -> list[str]:
    """Three messages of a session, of which the second's key is no key; which of them are to be sent."""
    for ident, key in (("a", "1"), ("b", "k" * 129), ("c", "3")):
        made = request("m", 1, id=ident)
        made.parameters["dormouse_idempotency_key"].string_param = key
        s.receive(made.SerializeToString(), NOW)
    (a,) = s.begin()
    s.done(a, good(a))
    return sent(s)


def test_a_message_whose_own_key_is_no_key_fails_the_later_steps_of_its_session() -> None:
    s = stream()
    assert one_without_a_sound_key(s) == []
    found = drain(s)
    assert [each.infer_response.id for each in found] == ["a", "b", "c"]
    assert "129 characters found" in found[1].error_message
    assert "not run: an earlier step of its sequence on this stream failed" in found[2].error_message


def test_answered_as_unreadable_it_would_let_them_run_without_its_step(monkeypatch: pytest.MonkeyPatch) -> None:
    begin = Stream._next

    def skip(self: Stream, line: streams.Line) -> None:
        line.steps = type(line.steps)(step for step in line.steps if step.refusal is None)
        begin(self, line)

    monkeypatch.setattr(Stream, "_next", skip)
    assert one_without_a_sound_key(stream()) == ["c"]


@pytest.mark.parametrize(
    ("metadata", "text"),
    [
        ({"dormouse-idempotency-key": "job"}, "absent beside dormouse-idempotency-key"),
        ({"dormouse-first-message": "0"}, "'0' found without dormouse-idempotency-key"),
        ({"dormouse-idempotency-key": "job", "dormouse-first-message": "-1"}, "'-1' found, a number"),
        ({"dormouse-idempotency-key": "job", "dormouse-first-message": ""}, "'' found, a number"),
        ({"dormouse-idempotency-key": "job", "dormouse-first-message": "1" * 10}, "at most 9 digits"),
        ({"dormouse-idempotency-key": f"{NOW}-job", "dormouse-first-message": "99000000"}, "ahead"),
        ({"dormouse-idempotency-key": "k" * 127, "dormouse-first-message": "10"}, "130 characters found"),
    ],
)
def test_a_streams_key_without_a_sound_first_number_is_refused(metadata: dict[str, str], text: str) -> None:
    with pytest.raises(InvalidArgument, match=text):
        streams.check(metadata, NOW)


def test_a_streams_key_with_its_number_is_allowed_and_so_is_none() -> None:
    for metadata in ({}, {"dormouse-idempotency-key": f"{NOW}-job", "dormouse-first-message": "7"}):
        streams.check(metadata, NOW)


# ------------------------------------------------------------------------------------------------------------------------- limits


def test_a_window_of_messages_and_of_bytes() -> None:
    s = stream()
    for number in range(limits.STREAM_MESSAGES):
        assert not s.full
        s.receive(message("m", str(number), 1), NOW)
    assert s.full
    (step,) = s.begin()
    s.done(step, good(step))
    assert s.full, "answered, but not yet written: a caller that does not read is not read from"
    drain(s)
    assert not s.full
    t = stream()
    t.receive(message("m", "large", size=limits.STREAM_BYTES), NOW)
    assert t.full


# --------------------------------------------------------------------------------------------------------------------- any history


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_whatever_happens_order_holds_and_all_are_answered_once(data: st.DataObject) -> None:
    s = stream()
    sessions: list[int | None] = [None, 1, 2, 3]
    arrived: dict[int | None, list[str]] = {session: [] for session in sessions}
    answered: dict[int | None, list[str]] = {session: [] for session in sessions}
    flying: list[Step] = []
    ran: set[str] = set()
    number = 0

    def write(most: int) -> None:
        for _ in range(most):
            out = s.take()
            if out is None:
                return
            found = Response.FromString(out.response)
            ident = found.infer_response.id
            session = next(each for each, of in arrived.items() if ident in of)
            answered[session].append(ident)
            s.written(out)

    for action in data.draw(st.lists(st.sampled_from(["receive", "receive", "done", "fail", "write"]), max_size=60)):
        if action == "receive":
            session = data.draw(st.sampled_from(sessions))
            start = data.draw(st.booleans())
            ident = f"{number}{'S' if start else ''}"
            number += 1
            arrived[session].append(ident)
            s.receive(message("m", ident, session, start=start), NOW)
        elif action in ("done", "fail") and flying:
            step = flying.pop(data.draw(st.integers(0, len(flying) - 1)))
            s.done(step, good(step) if action == "done" else bad("boom"))
        elif action == "write":
            write(data.draw(st.integers(1, 3)))
        for step in s.begin():
            flying.append(step)
            assert step.id not in ran
            ran.add(step.id)
            busy = [each for each in flying if each.named.session and each.named == step.named]
            assert len(busy) <= 1
    while flying:
        step = flying.pop()
        s.done(step, good(step))
        flying += s.begin()
    write(10_000)
    assert answered == arrived
    assert s.idle
    assert s.bytes == 0
    assert s.lines == 0
