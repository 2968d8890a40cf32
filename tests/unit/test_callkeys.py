"""Call keys: who may bring what, and what is refused."""

from typing import Any

import pytest
from dormouse_core.callkeys import CALLERS, CallKey, LocalKeys, named, parse, split
from dormouse_core.errors import Again, InvalidArgument, Unavailable
from dormouse_core.limits import CLOCK_AHEAD_SECONDS
from dormouse_proto import inference_pb2

NOW = 1_790_000_000_000_000
CALL = f"{NOW}-g-ab12-7"


def test_a_gateways_key() -> None:
    assert parse(CALL, "", NOW, LocalKeys("n")) == CallKey(NOW, "g-ab12-7")


def test_a_callers_id_replaces_the_gateways_and_keeps_its_timestamp() -> None:
    assert parse(CALL, "order 17", NOW, LocalKeys("n")) == CallKey(NOW, "c-order 17", "g-ab12")


def test_a_callers_own_timestamp() -> None:
    assert parse(CALL, f"{NOW - 5}-order", NOW, LocalKeys("n")) == CallKey(NOW - 5, "c-order", CALLERS, NOW)


def test_a_uuid_of_digits_is_no_timestamp() -> None:
    uuid = "12345678-1234-4234-8234-123456789012"
    assert parse(CALL, uuid, NOW, LocalKeys("n")) == CallKey(NOW, f"c-{uuid}", "g-ab12")


def test_a_caller_cannot_make_a_gateways_or_a_workers_id() -> None:
    for text in ("g-ab12-7", "w-n-1", f"{NOW}-g-ab12-7"):
        assert parse("", text, NOW, LocalKeys("n")).id.startswith("c-")


def test_a_worker_makes_its_own_for_a_call_without() -> None:
    local = LocalKeys("n")
    assert [parse("", "", NOW, local), parse("", "", NOW, local)] == [CallKey(NOW, "w-n-1"), CallKey(NOW + 1, "w-n-2")]


@pytest.mark.parametrize(
    ("call", "idempotency", "field"),
    [
        (f"{NOW}-c-1", "", "dormouse-call"),
        ("17-g-ab-1", "", "dormouse-call"),
        ("g-ab-1", "", "dormouse-call"),
        ("", f"{NOW + 60_000_001}-x", "dormouse-idempotency-key"),
        ("", "x" * 129, "dormouse-idempotency-key"),
        ("", "schlüssel", "dormouse-idempotency-key"),
        ("", "a\nb", "dormouse-idempotency-key"),
    ],
)
def test_refused(call: str, idempotency: str, field: str) -> None:
    with pytest.raises(InvalidArgument, match=f"^{field}: "):
        parse(call, idempotency, NOW, LocalKeys("n"))


def test_a_timestamp_from_too_far_ahead_is_the_callers_fault_only_where_it_is_his_and_this_clock_is_verified() -> None:
    late = f"{NOW + 60_000_001}"
    for call, idempotency, verified in ((f"{late}-g-ab-1", "", True), (f"{late}-g-ab-1", "x", True), (CALL, f"{late}-x", False)):
        with pytest.raises(Unavailable) as found:
            parse(call, idempotency, NOW, LocalKeys("n"), verified=verified)
        assert found.value.again is Again.CLOCK
    with pytest.raises(InvalidArgument):
        parse(CALL, f"{late}-x", NOW, LocalKeys("n"))


def test_who_made_a_timestamp() -> None:
    keys = {text: parse(CALL, text, NOW, LocalKeys("n")) for text in ("", "opaque", f"{NOW - 9}-own")}
    assert [key.maker for key in keys.values()] == ["g-ab12", "g-ab12", CALLERS]
    assert [key.arrived_us for key in keys.values()] == [NOW, NOW, NOW]
    assert [key.opaque for key in keys.values()] == [False, True, False]
    assert parse("", "opaque", NOW, LocalKeys("n")).maker == "w-n"
    assert CallKey(NOW, "g-ab12-1f-7").maker == "g-ab12", "all streams of an agent have one maker"


def test_an_opaque_key_is_written_without_the_time_at_which_it_came() -> None:
    copies = [parse(f"{NOW + n}-g-ab12-{n}", "order/7", NOW, LocalKeys("n")) for n in range(3)]
    assert {str(copy) for copy in copies} == {"c-order/7"}
    assert str(parse(CALL, f"{NOW}-order/7", NOW, LocalKeys("n"))) == f"{NOW}-c-order/7"


def test_a_minute_ahead_is_allowed() -> None:
    latest = NOW + int(CLOCK_AHEAD_SECONDS * 1e6)
    assert parse(f"{latest}-g-ab-1", "", NOW, LocalKeys("n")).timestamp_us == latest
    with pytest.raises(Unavailable, match=r"the timestamp is 60 s ahead of this process's clock \(limit 60 s\)"):
        parse(f"{latest + 1}-g-ab-1", "", NOW, LocalKeys("n"))


def test_text_form() -> None:
    key = CallKey(5, "g-a-1")
    assert split(str(key)) == (5, "g-a-1")
    assert split("0000000000000005-") is None
    assert split("000000000000000x-a") is None


def parameters(**values: str) -> Any:
    made = inference_pb2.ModelInferRequest()
    for name, value in values.items():
        made.parameters[name].string_param = value
    return made.parameters


def test_a_requests_own_key_stands_for_the_metadata() -> None:
    assert named("", parameters()) == ""
    assert named("k", parameters(other="x")) == "k"
    assert named("", parameters(dormouse_idempotency_key="k")) == "k"
    assert named("k", parameters(dormouse_idempotency_key="k")) == "k"


@pytest.mark.parametrize(("key", "text"), [("other", "says 'k'"), ("", "an empty string found")])
def test_two_keys_or_an_empty_one_are_refused(key: str, text: str) -> None:
    with pytest.raises(InvalidArgument, match=text):
        named("k", parameters(dormouse_idempotency_key=key))
