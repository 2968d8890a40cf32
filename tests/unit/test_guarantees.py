"""docs/guarantees.md, and every other page, held against the tests that are there."""

import argparse
import functools
import re
from pathlib import Path

import pytest
from dormouse import main
from dormouse_core import readiness
from dormouse_testing.sessions_sim.controls import CONTROLS

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md", *sorted((ROOT / "tests").rglob("*.md"))]
CITED = re.compile(r"`(?:[\w./]*/)?(?:(test_\w+)\.py(?:::(\w+))?|(test_\w+))`")
PATH = re.compile(r"`(tests/[\w./]+)`")
TEST = re.compile(r"^(?:async )?def (test_\w+)\(", re.MULTILINE)
ROW = re.compile(r"^\| (?!guarantee \||---)(.+) \|$", re.MULTILINE)


@functools.cache
def there() -> tuple[frozenset[str], frozenset[str]]:
    """The names of all tests, and those of all modules of tests."""
    tests, modules = set(), set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        modules.add(path.stem)
        tests.update(TEST.findall(path.read_text()))
    return frozenset(tests), frozenset(modules)


def missing(text: str) -> set[str]:
    """The tests that `text` names and that are not there."""
    tests, modules = there()
    cited = CITED.findall(text)
    return {module for module, _, _ in cited if module} - modules | {name for _, *names in cited for name in names if name} - tests


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_test_that_a_page_names_exists(page: Path) -> None:
    text = page.read_text()
    assert missing(text) == set()
    assert [path for path in PATH.findall(text) if not (ROOT / path).exists()] == []


def test_negative_control_a_test_that_is_not_there_is_missed() -> None:
    text = "`test_gone`, `test_no.py`, `tests/unit/test_never.py`, `unit/test_cases.py::test_of_nothing`, `test_cases.py`"
    assert missing(text) == {"test_gone", "test_no", "test_never", "test_of_nothing"}


def test_each_guarantee_names_what_shows_it() -> None:
    controls = {control.name for control in CONTROLS}
    rows = ROW.findall((ROOT / "docs/guarantees.md").read_text())
    assert len(rows) > 30
    for row in rows:
        shown = row.partition(" | ")[2]
        names = re.findall(r"`([^`]+)`", shown)
        assert "the same" in shown or [name for name in names if name.startswith(("test_", "tests/")) or name in controls], row


def test_each_reason_in_the_table_of_conditions_is_one_that_the_code_gives() -> None:
    rows = re.findall(r"^\| [^|]*\| ([A-Z]\w+(?:, [A-Z]\w+)*)", (ROOT / "docs/kubernetes.md").read_text(), re.MULTILINE)
    reasons = {reason for row in rows for reason in row.split(", ")}
    assert len(reasons) > 15
    parts = [
        *(ROOT / "operator").rglob("*.py"),
        *(ROOT / "worker").rglob("*.py"),
        *(ROOT / "core/dormouse_core" / name for name in ("readiness.py", "releases.py")),
    ]
    code = "".join(path.read_text() for path in parts)
    assert {reason for reason in reasons if f'"{reason}"' not in code} == set()


def test_the_reference_names_the_conditions_and_phases_that_the_code_gives() -> None:
    code = "".join(path.read_text() for path in sorted((ROOT / "operator").rglob("*.py")))
    reference = (ROOT / "docs/reference/inferencefunction.md").read_text()

    def listed(field: str) -> set[str]:
        [text] = re.findall(rf"^\| `{field}` \| string \|[^|]*\| ([\w, ]+)\.", reference, re.MULTILINE)
        return set(re.split(", | or ", text))

    assert listed("type") == set(re.findall(r'\b(?:Said\(|_condition\(|Condition\(type=)"(\w+)"', code))
    assert listed("phase") == set(readiness.PHASES)
    section = (ROOT / "docs/operating.md").read_text().partition("## What a phase means")[2].partition("\n## ")[0]
    assert listed("phase") == set(re.findall(r"^\| ([A-Z]\w+) \|", section, re.MULTILINE))


def test_each_command_and_option_that_a_page_shows_is_one_that_the_command_line_takes() -> None:
    parser = main.parser()
    [commands] = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    shown = [line for page in PAGES for line in re.findall(r"(?:^|`)dormouse ([a-z]+[^`\n#]*)", page.read_text(), re.MULTILINE)]
    used = {(line.split()[0], option) for line in shown for option in ["", *re.findall(r"(?<![\w-])--[a-z][a-z-]*", line)]}
    assert len(used) > 15
    known = {(name, option) for name, each in commands.choices.items() for option in ["", *each._option_string_actions]}
    assert used - known == set()
