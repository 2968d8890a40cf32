"""An event is one line, whatever its values contain."""

import io
import logging
import re
from collections.abc import Iterator

import pytest
from dormouse_kit import log


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    stream = io.StringIO()
    log.setup("worker", stream=stream)
    yield stream
    root.handlers[:] = before
    root.setLevel(level)
    logging.captureWarnings(False)


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


def test_without_setup_events_are_silent(capsys: pytest.CaptureFixture[str]) -> None:
    log.event("nobody listens")
    assert capsys.readouterr().err == ""
