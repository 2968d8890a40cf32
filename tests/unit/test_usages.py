"""What was used, as numbers: nothing is counted twice, below nothing or beyond what the store's integers hold."""

import csv
import io
from typing import Any

import msgspec
import pytest
from dormouse import printing
from dormouse_core import limits, records, usages
from dormouse_core.records import Body
from dormouse_core.usages import NOTHING, OTHERS, SECOND_US, Usage
from dormouse_proto import control_pb2, state_pb2

FAR = 1 << 62
COUNTS: dict[str, Any] = {"busy_us": 5, "bytes_in": 7, "bytes_out": 11}


def test_a_step_adds_one_and_the_bytes_since_the_last() -> None:
    first = usages.stepped(None, 0, 0, 1000, **COUNTS, read=True)
    assert first == Usage(1, 5, 7, 11, since_us=1000), "before a session there is no state"
    second = usages.stepped(first, FAR, 100, 1500, **COUNTS, read=False)
    assert second == Usage(2, 10, 14, 22, live_us=100 * 500, since_us=1500)
    assert usages.stepped(second, FAR, 100, 2500, **COUNTS, read=True).hibernated_us == 100 * 1000, "it had to be read"


def test_state_counts_until_its_end_and_no_longer() -> None:
    first = usages.stepped(None, 0, 0, 1000, **COUNTS, read=True)
    assert usages.stepped(first, 1400, 100, 9000, **COUNTS, read=True).hibernated_us == 100 * 400, "it had expired"
    assert usages.stepped(first, 0, 100, 9000, **COUNTS, read=True).hibernated_us == 0, "of a tombstone nothing counts"
    assert usages.settled(first, 1400, 100, 9000).hibernated_us == 100 * 400


def test_a_clock_that_goes_back_takes_nothing_away_and_nothing_counts_twice() -> None:
    usage = usages.stepped(None, 0, 0, 10_000, **COUNTS, read=True)
    for now in (11_000, 4_000, 9_000, 11_500, 12_000):
        usage = usages.stepped(usage, FAR, 10, now, **COUNTS, read=False)
    assert (usage.live_us, usage.since_us) == (10 * 2_000, 12_000)


def test_what_a_record_says_is_read_as_it_was_written_also_a_gib_for_a_hundred_years() -> None:
    years = limits.GIB * 100 * 365 * 24 * 3600 * SECOND_US + 123_456
    usage = Usage(3, 2**62, 2**62, 2**62, years, years + 1, 17)
    body = Body("v", False, 3, (), 0, 0, FAR, usage=usage)
    data = records.encode(body, (), b"w")
    assert records.decode(data).body.usage == usage
    assert records.used(data)[1] == usage
    most = usages.read(usages.message(Usage(live_us=1 << 100, busy_us=1 << 70)))
    assert (most.live_us // SECOND_US, most.busy_us) == ((1 << 63) - 1, (1 << 63) - 1), "beyond, it stays at the most"


def test_a_record_of_a_build_that_counts_nothing_is_read_and_says_nothing() -> None:
    data = records.encode(Body("v", False, 3, (), 0, 0, FAR), (), b"w")
    assert (records.decode(data).body.usage, records.used(data)[1]) == (None, None)
    began = usages.stepped(None, FAR, len(data), 1000, **COUNTS, read=True)
    assert (began.steps, began.hibernated_us) == (1, 0), "counted from here on: what was before is not known"


def test_what_a_worker_writes_reduces_no_bill() -> None:
    assert usages.read(state_pb2.Usage(steps=-5, busy_us=3, live_byte_seconds=-(1 << 60))) == Usage(0, 3)
    made_up = [("t", usages.read(state_pb2.Usage(steps=2**63 - 1, calls=2**63 - 1, worker_us=2**63 - 1, live_rest=2**31 - 1)))] * 2
    assert (usages.decode(usages.folded(None, made_up)) or {})["t"].steps == 2**63 - 1, "and what is beyond all numbers stops nobody"
    assert usages.decode(b"\xff\xff") is None
    assert usages.decode(usages.folded(b"\xff\xff", [("t", Usage(2))])) == {"t": Usage(2)}


def test_no_sum_changes_where_there_are_more_tenants_than_are_named() -> None:
    totals: usages.Totals = {f"t{n}": Usage(n, n, n, n, n, n) for n in range(10_000)}
    totals[""] = Usage(1, worker_us=9)
    found = usages.bounded(totals)
    assert len([tenant for tenant in found if tenant]) == limits.USAGE_TENANTS
    assert usages.whole(found) == usages.whole(totals)
    assert found[""] == totals[""]
    assert "t9999" in found
    assert "t1" not in found, "the smallest are counted together"
    again = usages.bounded(usages.decode(usages.encode(totals)) or {})
    assert (again, usages.whole(again)) == (found, usages.whole(totals))


def test_totals_have_a_bound_of_bytes_whatever_tenants_call_themselves() -> None:
    totals: usages.Totals = {"\U0001f600" * 100 + str(n): Usage(1 + n) for n in range(200)}
    assert len(usages.encode(totals)) <= usages.BYTES + 2 * usages.USAGE_BYTES
    assert usages.whole(usages.decode(usages.encode(totals)) or {}).steps == sum(1 + n for n in range(200))


@pytest.mark.parametrize("tenant", ["", "acme", "a/b", "=1+1", "a,b", 'say "x"', "ü%20"])
def test_a_tenant_is_as_its_caller_wrote_it(tenant: str) -> None:
    from dormouse_core.sessions.names import session_key

    assert usages.tenant_of(session_key(tenant, "s/1")) == tenant


def test_of_a_key_that_is_no_text_the_tenant_is_text_all_the_same() -> None:
    assert usages.decode(usages.encode({usages.tenant_of("a\udcff%ff/s:x"): Usage(1)})) == {"a?\ufffd": Usage(1)}


def rows(*tenants: str) -> list[control_pb2.UsageRow]:
    return [
        control_pb2.UsageRow(namespace="ns", name="fn", tenant=tenant, usage=usages.message(Usage(n + 1, live_us=1 << 82)))
        for n, tenant in enumerate(tenants)
    ]


def test_a_table_for_spreadsheets_has_the_names_as_they_are_and_no_formula() -> None:
    marked = ["=cmd|' /C calc'!A0", "+1", "-1", "@x", "\t=1", "\n=1+1", " =1+1", "\u200b=1", "\uff1d1+1", "=1+1", "'=1+1", "''=1+1"]
    names = [*marked, "a,b", 'say "x"', "two\nlines", "plain", "o'clock", ""]
    text = printing.usage_csv(rows(*names), "tenant")
    found = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [row["tenant"] for row in found] == [*(f"'{name}" for name in marked), *names[len(marked) :]]
    assert len({row["tenant"] for row in found}) == len(names), "two names are two cells"
    assert [row["steps"] for row in found] == [str(n + 1) for n in range(len(names))]
    assert found[0]["live_byte_seconds"] == str((1 << 82) // SECOND_US), "whole, not rounded"


def test_a_table_for_people_is_a_line_a_row() -> None:
    lines = printing.usage(rows("two\nlines", "\x1b[31mred"), "tenant").splitlines()
    assert len(lines) == 3
    assert "\x1b" not in "".join(lines)


def test_a_table_says_what_is_not_known_and_since_when_a_row_counts() -> None:
    known, unknown = rows("a", "b")
    known.since_us, unknown.unknown = usages.day_us("2026-02-28"), "it was not written down"
    first, second = csv.DictReader(io.StringIO(printing.usage_csv([known, unknown], "tenant"), newline=""))
    assert (first["since"][:10], first["steps"]) == ("2026-02-28", "1")
    assert (second["since"], second["steps"], second["busy_seconds"]) == ("", "unknown", "unknown")


def test_what_was_used_since_then_has_the_sum_whichever_tenants_have_names() -> None:
    before = {"a": Usage(10), "b": Usage(5), "": Usage(1), usages.OTHERS: Usage(100)}
    now = {"a": Usage(12), "c": Usage(40), "": Usage(1), "d": Usage(70), usages.OTHERS: Usage(7)}
    assert usages.since(now, before) == {"a": Usage(2), "": Usage(0), usages.OTHERS: Usage(12)}
    del before[usages.OTHERS]
    assert usages.since({"a": Usage(12), "b": Usage(5), "new": Usage(3)}, before) == {"a": Usage(2), "b": Usage(0), "new": Usage(3)}


def test_days() -> None:
    assert usages.day_of(usages.day_us("2026-02-28") + 24 * 3600 * SECOND_US - 1) == "2026-02-28"
    assert [usages.is_day(text) for text in ("2026-02-28", "2026-02-30", "20260228", "1h", "2026-2-8")] == [
        True,
        False,
        False,
        False,
        False,
    ]


def test_less_is_never_below_nothing() -> None:
    assert usages.less(Usage(5, 1, live_us=3), Usage(2, 4, live_us=3)) == Usage(3)
    assert usages.plus(Usage(5), NOTHING) == Usage(5)
    assert OTHERS not in {"", "others"}
    assert msgspec.structs.asdict(NOTHING)["since_us"] == 0
