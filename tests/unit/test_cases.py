"""tests/CASES.md, held against the tests that are there."""

import ast
import functools
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
ROW = re.compile(r"^\| (\d+\.O\d+) \| (.+) \| (.+) \|$", re.MULTILINE)
NAMED = re.compile(r"`([\w/]+\.py)::(\w+)`")
MENTION = re.compile(r"\b\d+\.O\d+\b")
ROWS = {case: set(NAMED.findall(tests)) for case, _, tests in ROW.findall((TESTS / "CASES.md").read_text())}


@functools.cache
def docstrings(path: str) -> dict[str, str]:
    """Name -> docstring of the module's tests."""
    functions = [n for n in ast.parse((TESTS / path).read_text()).body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    return {f.name: ast.get_docstring(f) or "" for f in functions if f.name.startswith("test_")}


def test_each_case_has_one_row_in_order() -> None:
    cases = [case for case, _, _ in ROW.findall((TESTS / "CASES.md").read_text())]
    assert len(cases) == len(set(cases)) > 20
    assert cases == sorted(cases, key=lambda case: [int(part) for part in case.split(".O")])


@pytest.mark.parametrize("case", ROWS)
def test_a_test_that_is_named_exists(case: str) -> None:
    assert ROWS[case], "a case without a test"
    assert {f"{path}::{name}" for path, name in ROWS[case] if name not in docstrings(path)} == set()


def test_a_test_that_names_a_case_of_the_table_is_in_its_row() -> None:
    missing = []
    for path in sorted(TESTS.glob("*/test_*.py")):
        module = str(path.relative_to(TESTS))
        for name, docstring in docstrings(module).items():
            missing += [
                f"{case}: {module}::{name}" for case in MENTION.findall(docstring) if (module, name) not in ROWS.get(case, {(module, name)})
            ]
    assert missing == []
