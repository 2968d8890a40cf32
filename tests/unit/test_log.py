"""An event is one line, whatever its values contain."""

import io
import logging
import logging.config
import re
from collections.abc import Callable, Iterator

import pytest
from dormouse_core.errors import text_of
from dormouse_kit import log
from dormouse_testing.logged import logged


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    with logged("worker") as stream:
        yield stream


def test_an_event(lines: io.StringIO) -> None:
    log.event("shard acquired", function="speech/vad", shard=3, took=0.123456789)
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z worker  shard acquired function=speech/vad shard=3 took=0\.123457\n", lines.getvalue()
    )


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("", '""'),
        ("two words", '"two words"'),
        ('say "x"', '"say \\"x\\""'),
        ("a=b", '"a=b"'),
        ("forged\n2026-01-01T00:00:00.000Z operator  all is well", '"forged\\n2026-01-01T00:00:00.000Z operator  all is well"'),
        ("\x1b[31mred", '"\\u001b[31mred"'),
        ("zażółć", "zażółć"),
        (True, "True"),
    ],
)
def test_values_are_quoted_where_they_could_mislead(value: object, shown: str) -> None:
    assert log.line("x", {"v": value}) == f"x v={shown}"


def test_fields_without_a_value_are_left_out() -> None:
    assert log.line("x", {"a": None, "b": 0}) == "x b=0"


def test_no_text_ends_its_line_or_steers_a_terminal(lines: io.StringIO) -> None:
    text = "a\nb\u2028c\x85d\x9b31m\x1b[31m"
    log.event("told", what=text)
    logging.getLogger("library").warning(text)
    log.event(text)
    found = lines.getvalue().splitlines()
    assert len(found) == 3
    assert all(line.isprintable() for line in found)
    assert found[0].endswith('told what="a\\nb\\u2028c\\u0085d\\u009b31m\\u001b[31m"')


def test_what_is_very_long_is_cut_in_its_middle(lines: io.StringIO) -> None:
    try:
        raise ValueError("x" * 5_000_000)
    except ValueError as error:
        log.warning("a step raised", error=error, raised=error)
    logging.getLogger("library").warning("y" * 5_000_000)
    first, second = lines.getvalue().splitlines()
    assert len(first) < 3 * log.LONGEST
    assert "Traceback (most recent call last)" in first
    assert len(second) < 2 * log.LONGEST
    assert "characters are left out" in second


@pytest.mark.parametrize(
    "configure",
    [
        lambda: logging.basicConfig(force=True, level=logging.CRITICAL),
        lambda: logging.config.dictConfig({"version": 1, "root": {"level": "CRITICAL"}}),
        lambda: logging.disable(logging.CRITICAL),
    ],
)
def test_our_lines_are_written_however_a_handler_sets_up_logging(
    lines: io.StringIO, configure: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.root.manager, "disable", 0)
    log.event("before")
    known = [logger for logger in logging.root.manager.loggerDict.values() if isinstance(logger, logging.Logger)]
    disabled = [logger.disabled for logger in known]
    configure()
    log.event("after")
    log.warning("after that")
    for logger, before in zip(known, disabled, strict=True):
        logger.disabled = before
    assert [line.split("  ", 1)[1] for line in lines.getvalue().splitlines()] == ["before", "after", "warning after that"]


class _Evil(Exception):
    def __str__(self) -> str:
        raise SystemExit(3)

    def __getattribute__(self, name: str) -> object:
        raise KeyboardInterrupt(name)


def test_an_exception_whose_own_methods_raise_is_told_with_where_it_was_raised(lines: io.StringIO) -> None:
    try:
        raise _Evil
    except _Evil as error:
        log.warning("a step raised", error=text_of(error), raised=error)
    (line,) = lines.getvalue().splitlines()
    assert 'error="_Evil, which has no text: its __str__ raises" trace="' in line
    assert "test_log.py" in line


def test_warnings_say_so(lines: io.StringIO) -> None:
    log.warning("campaign interrupted", error=ValueError("two words"))
    assert lines.getvalue().endswith(' worker  warning campaign interrupted error="two words"\n')


def test_libraries_come_along_from_warning_on_one_line_each(lines: io.StringIO) -> None:
    library = logging.getLogger("library")
    library.info("not shown")
    try:
        raise ValueError("inner")
    except ValueError:
        library.exception("it\nbroke")
    (line,) = lines.getvalue().splitlines()
    assert " worker  error library: it broke trace=" in line
    assert "ValueError: inner" in line


@pytest.mark.parametrize(
    ("level", "shown"), [("", "wec"), ("debug", "diwec"), ("INFO", "iwec"), ("error", "ec"), ("critical", "c"), ("loud", "wec")]
)
def test_the_environment_names_the_level_from_which_libraries_come_along(level: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DORMOUSE_LOG_LEVEL", level)
    with logged("operator") as stream:
        for name in ("debug", "info", "warning", "error", "critical"):
            getattr(logging.getLogger("library"), name)("heard")
        log.event("ours")
    assert "".join(line.split()[2][0] for line in stream.getvalue().splitlines() if "library: heard" in line) == shown
    assert "  ours\n" in stream.getvalue(), "whatever the level is"
    assert ("DORMOUSE_LOG_LEVEL is not a level found=loud" in stream.getvalue()) is (level == "loud")


def test_without_setup_events_are_silent(capsys: pytest.CaptureFixture[str]) -> None:
    log.event("nobody listens")
    assert capsys.readouterr().err == ""
