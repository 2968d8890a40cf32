"""What docs/operating.md says and no other test holds."""

import re
from pathlib import Path

import pytest
from dormouse_core import separate
from dormouse_core.errors import Code, Internal
from dormouse_worker.process import bootstrap
from dormouse_worker.runtimes import python

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/operating.md").read_text()
CODE = {
    part: "".join(path.read_text() for path in (ROOT / part).rglob("*.py")) for part in ("operator", "gateway", "worker", "core", "cli")
}


def section(title: str) -> str:
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def firsts(title: str) -> set[str]:
    """The first column of the tables under `title`."""
    return set(re.findall(r"^\| `?(\w+)`? \|", section(title), re.MULTILINE))


def test_each_metric_that_a_page_names_is_one_that_a_process_serves() -> None:
    pages = "".join(path.read_text() for path in (ROOT / "docs").rglob("*.md"))
    parameters = {"dormouse_code", "dormouse_step", "dormouse_idempotency_key"}
    named = set(re.findall(r"`(dormouse_[a-z_]+)`", pages)) - parameters
    assert len(named) > 8
    assert {name for name in named if not re.search(rf"\b{name}\b", "".join(CODE.values()))} == set()


def test_the_reasons_for_running_alone_are_those_that_the_worker_gives_and_the_leaders() -> None:
    reasons = firsts("Why calls run alone") - {"reason", separate.REASON}
    assert separate.REASON in firsts("Why calls run alone")
    assert {reason for reason in reasons if f'"{reason}"' not in CODE["worker"]} == set()
    assert set(re.findall(r'reason="(\w+)"', CODE["worker"])) <= reasons


def test_the_codes_that_a_caller_is_told_are_codes() -> None:
    told = firsts("What a caller is told") - {"code"}
    assert len(told) > 8
    assert told <= set(Code.__members__)


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"])
def test_a_handlers_libraries_have_one_thread_unless_they_are_told_otherwise(name: str) -> None:
    assert bootstrap.environment({})[name] == "1"
    assert bootstrap.environment({name: "7"})[name] == "7"


def test_of_what_steps_raise_ten_tracebacks_a_second_are_in_the_log_and_the_others_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, object]] = []
    monkeypatch.setattr(python.log, "warning", lambda event, **fields: told.append((event, fields.get("steps"))))
    now = [5.0]
    raised = python.Raised(lambda: now[0])
    for _ in range(30):
        assert raised.told(ValueError("no")).message == "ValueError: no"
    assert raised.told(Internal("on purpose: for the caller alone")).message == "on purpose: for the caller alone"
    now[0] = 6.0
    raised.told(ValueError("no"))
    one = ("a step raised", None)
    assert told == [*[one] * 10, ("further steps raised; their tracebacks are left out", 20), one]
