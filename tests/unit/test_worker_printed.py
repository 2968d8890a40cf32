"""What a worker's process prints, as lines of the log."""

import re

import pytest
from dormouse_worker.process import printed
from dormouse_worker.process.printed import Printed


def lines(made: Printed) -> list[str]:
    text = b""
    while made.waiting:
        taken = made.take()
        assert 0 < len(taken) <= printed.WRITE_BYTES
        text += taken
    return text.decode().splitlines()


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        ([b"hello\n"], ["hello"]),
        ([b"two\nlines\n"], ["two", "lines"]),
        ([b"in ", b"pieces", b"\n"], ["in pieces"]),
        ([b"10 %\r20 %\r\n"], ["10 %", "20 %"]),
        ([b"\n\n"], []),
        ([b"\x1b[31mred \xff\n"], ["\\u001b[31mred \\xff"]),
        (["zażółć\t漢".encode(), b"\n"], ["zażółć\t漢"]),
        (["a\u2028b\u2029c\x85d\x9b31m\n".encode()], ["a\\u2028b\\u2029c\\u0085d\\u009b31m"]),
        ([b"2026-01-01T00:00:00.000Z operator  all is well\n"], ["2026-01-01T00:00:00.000Z operator  all is well"]),
    ],
)
def test_each_line_has_the_time_and_the_function(data: list[bytes], shown: list[str]) -> None:
    made = Printed("tests/fn")
    for part in data:
        made.feed(part, 1_764_000_000.25)
    text = b""
    while made.waiting:
        text += made.take()
    found = text.decode().splitlines()
    assert found == [f"2025-11-24T16:00:00.250Z worker tests/fn  | {line}" for line in shown]


def test_a_line_without_an_end_comes_after_a_second() -> None:
    made = Printed("f")
    made.feed(b"partial", 10.0)
    made.due(10.9)
    assert not made.waiting
    made.due(11.0)
    assert [line[-9:] for line in lines(made)] == ["| partial"]
    made.feed(b"last words", 12.0)
    made.flush(12.0)
    assert len(lines(made)) == 1


def test_a_long_line_is_cut_and_each_piece_is_a_line() -> None:
    made = Printed("f")
    made.feed(b"x" * 100_000 + b"\n", 1.0)
    made.flush(1.0)
    found = lines(made)
    assert all(re.match(r"\S+Z worker f  \| x+$", line) for line in found)
    assert sum(line.count("x") for line in found) == 100_000


@pytest.mark.parametrize("end", [b"\n", b""])
def test_no_character_is_cut_in_two(end: bytes) -> None:
    made = Printed("f")
    made.feed(b"x" + "漢".encode() * 20_000 + end, 1.0)
    made.flush(1.0)
    found = lines(made)
    assert len(found) > 3
    assert "".join(line.partition("| ")[2] for line in found) == "x" + "漢" * 20_000


def test_a_flood_is_dropped_and_counted() -> None:
    made = Printed("f")
    for _ in range(400):
        made.feed(b"0123456789\n" * 1000, 1.0)
    found = lines(made)
    assert 10_000 < len(found) < 400_000
    made.due(2.0)
    [dropped] = lines(made)
    assert int(re.findall(r"\((\d+) lines", dropped)[0]) + len(found) == 400_000
