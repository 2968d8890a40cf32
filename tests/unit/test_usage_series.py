"""What Prometheus is told of usage: counters that never go down, of a bounded number of tenants, made beside the loop that leads."""

import asyncio
import threading

import prometheus_client
import pytest
from dormouse_core import limits, usages
from dormouse_core.keys import Function
from dormouse_core.usages import OTHERS, Totals, Usage
from dormouse_operator.kubernetes.health import Health
from dormouse_operator.metrics import UsageSeries

FUNCTION = Function("ns", "fn", "u")
MANY = limits.USAGE_TENANTS + 50


def steps(series: UsageSeries) -> dict[tuple[str, str, str], float]:
    (family,) = [family for family in series.collect() if family.name == "dormouse_usage_steps"]
    return {(s.labels["function"], s.labels["tenant"], s.labels["others"]): s.value for s in family.samples}


def rises(rounds: list[Totals]) -> list[dict[tuple[str, str, str], float]]:
    """What is said after each; no series that was there is gone or lower, and their sum is that of the totals."""
    series, said = UsageSeries(), list[dict[tuple[str, str, str], float]]()
    for totals in rounds:
        series.put(FUNCTION, totals, 1.0)
        now = steps(series)
        for key, value in (said[-1] if said else {}).items():
            assert now[key] >= value, key
        assert sum(now.values()) == usages.whole(totals).steps
        said.append(now)
    return said


def test_a_tenant_that_comes_to_use_more_than_others_takes_no_past_out_of_them() -> None:
    first: Totals = {f"t{n}": Usage(n + 1) for n in range(MANY)}
    later = {**first, "t0": Usage(1_000_000), "new": Usage(5)}
    said = rises([first, later, {**later, "t0": Usage(2_000_000)}])
    assert ("ns/fn", f"t{MANY - 1}", "false") in said[0]
    assert ("ns/fn", "t0", "false") not in said[2], "it is among the others, and stays there"
    assert len(said[2]) == limits.USAGE_TENANTS + 1


def test_a_tenant_whose_totals_are_folded_into_others_keeps_what_was_said_of_it() -> None:
    rounds: list[Totals] = [
        {"a": Usage(10), "b": Usage(20)},
        {"b": Usage(25), OTHERS: Usage(10)},
        {"b": Usage(25), OTHERS: Usage(10), "a": Usage(3)},
        {"b": Usage(25), OTHERS: Usage(10), "a": Usage(15)},
    ]
    said = rises(rounds)
    assert said[-1] == {("ns/fn", "a", "false"): 15, ("ns/fn", "b", "false"): 25, ("ns/fn", "", "true"): 10}


def test_a_tenant_is_named_from_its_first_use_where_there_is_room() -> None:
    said = rises([{"": Usage(1)}, {"": Usage(1), "a": Usage(2)}, {"": Usage(1), "a": Usage(3), "b": Usage(1)}])
    assert said[-1] == {("ns/fn", "", "false"): 1, ("ns/fn", "a", "false"): 3, ("ns/fn", "b", "false"): 1}


def test_a_sum_that_misses_records_takes_nothing_back_and_a_function_made_again_begins_at_nothing() -> None:
    series = UsageSeries()
    series.put(FUNCTION, {"a": Usage(400)}, 1.0)
    series.put(FUNCTION, {"a": Usage(200)}, 2.0)
    assert steps(series) == {("ns/fn", "a", "false"): 400}
    series.put(Function("ns", "fn", "u2", store_id="u"), {"a": Usage(410)}, 3.0)
    assert steps(series) == {("ns/fn", "a", "false"): 410}, "its sessions were kept for it"
    series.put(Function("ns", "fn", "u3"), {"a": Usage(7)}, 4.0)
    assert steps(series) == {("ns/fn", "a", "false"): 7}


def test_negative_control_where_the_largest_are_named_each_time_others_go_down_and_series_end() -> None:
    first: Totals = {f"t{n}": Usage(n + 1, busy_us=1000 - n) for n in range(MANY)}
    before, after = usages.bounded(first), usages.bounded({**first, "t0": Usage(1_000_000)})
    assert after[OTHERS].busy_us < before[OTHERS].busy_us
    assert "t50" in before.keys() - after.keys()


def test_callers_who_make_up_tenants_make_no_scrape_longer() -> None:
    series = UsageSeries()
    for _ in range(2):
        for n in range(30):
            series.put(Function("ns", f"fn{n}", f"u{n}"), {f"t{at}": Usage(1) for at in range(MANY)}, 1.0)
    found = steps(series)
    assert sum(1 for _, tenant, _ in found if tenant) == limits.USAGE_SERIES_TENANTS
    assert sum(found.values()) == 30 * MANY
    assert {function for function, _, _ in found} == {f"ns/fn{n}" for n in range(30)}, "each has its sum"
    series.only({"ns/fn29"})
    series.put(FUNCTION, {"a": Usage(1)}, 1.0)
    assert steps(series)["ns/fn", "a", "false"] == 1, "there is room again"


async def test_a_scrape_is_made_beside_the_loop_and_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    entered, go, inside = threading.Event(), threading.Event(), list[int]()

    def generate() -> bytes:
        inside.append(threading.get_ident())
        entered.set()
        assert go.wait(10.0)
        return b"made"

    monkeypatch.setattr(prometheus_client, "generate_latest", generate)
    health = Health()
    scrapes = [asyncio.ensure_future(health._metrics(None)) for _ in range(2)]  # type: ignore[arg-type]
    await asyncio.to_thread(entered.wait, 10.0)
    assert (await health._healthz(None)).status == 200  # type: ignore[arg-type]  # the loop goes on
    assert len(inside) == 1
    assert inside[0] != threading.get_ident()
    go.set()
    assert [(await scrape).body for scrape in scrapes] == [b"made"] * 2
