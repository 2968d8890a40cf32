"""docs/sessions.md, held against whoever cites its rules and against the controls that take them away."""

import dataclasses
import functools
import inspect
import re
from collections.abc import Iterable
from pathlib import Path

import pytest
from dormouse_core import transactions
from dormouse_core.seams import Txn
from dormouse_testing.one_world.controls import CONTROLS as OF_ONE_WORLD
from dormouse_testing.session_model.rules import Rules
from dormouse_testing.sessions_sim.controls import CONTROLS

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/sessions.md").read_text()
SECTION = re.compile(r"^### (\S+)\n\n(.+?)(?=^##|\Z)", re.MULTILINE | re.DOTALL)
SECTIONS = dict(SECTION.findall(PAGE))
CODE = ("core", "kit", "worker", "gateway", "operator", "cli", "proto")
TEXT = (*CODE, "tests", "docs", "bench", "tools", "deploy", "examples")
KINDS = {".py", ".lua", ".proto", ".md", ".yaml", ".toml", ".sh"}

_NAME = r"\*([\w-]+)\*"
CITED = re.compile(rf"\brules? {_NAME}(?:(?:, | and |, and | or ){_NAME})*")
NUMBERED = re.compile(r"\brules? \d", re.IGNORECASE)
BROKEN = re.compile(r"\s*\n\s*(?:(?:#|//|--) ?)?")


@functools.cache
def texts(folders: tuple[str, ...] = TEXT) -> dict[str, str]:
    """What is written, by path, each as one line: a citation may go over the end of one."""
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in KINDS]
    if folders == TEXT:
        paths += ROOT.glob("*.md")
    return {str(path.relative_to(ROOT)): BROKEN.sub(" ", path.read_text()) for path in paths if path.is_file()}


def cited(text: str) -> set[str]:
    return {name for found in CITED.finditer(text) for name in re.findall(_NAME, found[0])}


def unknown(written: Iterable[tuple[str, str]]) -> set[tuple[str, str]]:
    """(path, name) of each citation of a rule that the page does not have."""
    return {(path, name) for path, text in written for name in cited(text) - SECTIONS.keys()}


def test_every_rule_that_is_cited_is_there() -> None:
    assert len(SECTIONS) >= 30
    assert unknown(texts().items()) == set()


def test_every_rule_is_cited_in_the_code() -> None:
    found = set().union(*map(cited, texts(CODE).values()))
    assert SECTIONS.keys() - found == set()


def test_no_rule_is_cited_by_number() -> None:
    assert {path for path, text in texts().items() if NUMBERED.search(text)} == set()


def test_negative_control_a_wrong_name_and_a_number_are_found() -> None:
    wrong = "the key is not run (rules *{}*,\n    # *{}* and *{}*)".format("horizon", "floors", "floor")
    assert unknown([("x.py", BROKEN.sub(" ", wrong))]) == {("x.py", "floors")}
    assert NUMBERED.search(BROKEN.sub(" ", f"as the\n# rules\n# {7} and {8} say"))


@pytest.mark.parametrize("name", SECTIONS)
def test_a_rule_has_its_reason_and_what_happens_without_it(name: str) -> None:
    said, why, without = re.split(r"\*\*(?:Why|Without it):\*\* ", SECTIONS[name])
    assert said.strip()
    assert why.strip()
    assert shown(without), "a field of the model's rules, a control of the simulation, or a test"


def shown(without: str) -> set[str]:
    names = set(re.findall(r"`([^`]+)`", re.sub(r"\s+", " ", without)))
    return names & (controls() | {name for name in names if name.startswith("test_")})


def controls() -> set[str]:
    """All that can be taken away: of the model and of the simulation."""
    return {field.name for field in dataclasses.fields(Rules)} | {control.name for control in (*CONTROLS, *OF_ONE_WORLD)}


def test_every_control_is_named_with_the_rule_that_it_takes_away() -> None:
    named = {name for section in SECTIONS.values() for name in shown(section.partition("**Without it:**")[2])}
    assert controls() - named == set()


def test_the_table_of_transactions_is_that_of_the_code() -> None:
    made = {name for name, it in vars(transactions).items() if inspect.isfunction(it) and inspect.signature(it).return_annotation is Txn}
    assert set(re.findall(r"^\| (\w+) \| [^|]+ \| [^|]+ \|$", PAGE, re.MULTILINE)) - {"transaction"} == made - {"counted"}
