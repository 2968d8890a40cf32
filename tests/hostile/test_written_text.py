"""What others wrote reaches logs, conditions and terminals as text: it starts no line, moves no cursor, turns nothing round."""

import io
import json
import logging
import re
import unicodedata
from collections.abc import Callable, Iterator

import pytest
from dormouse import initial, printing
from dormouse.main import _guard
from dormouse_core import proposing
from dormouse_core.errors import InvalidArgument, text_of
from dormouse_core.plain import plain
from dormouse_kit import log
from dormouse_operator.kubernetes.pods import problems
from dormouse_proto import control_pb2, state_pb2
from dormouse_testing.logged import logged
from dormouse_worker.process.printed import Printed
from hypothesis import given
from hypothesis import strategies as st

ATTACK = (
    "kind\n2026-01-01T00:00:00.000Z operator  all is well\r\x1b[2J\x1b]0;title\x07\x9b31m\x85"
    "\u202eten\u2066\u2028\u2029\ud800\ufeff\U000e0041\x00"
)
LETTERS = "zażółć ß Ω Ж אָ عربي فارسی\u200cها देवनागरी\u200d 漢字 かな 한글 👩\u200d💻 é e\u0301 ½ ™"
ANYTHING = st.text(st.characters(exclude_categories=()), max_size=200)


def acts(text: str, keep: str = "") -> list[str]:
    """The characters that something acts on, by Unicode's own categories."""
    controls = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    return [
        c
        for c in text
        if c not in keep
        and (unicodedata.category(c) in ("Cc", "Zl", "Zp", "Cs") or unicodedata.bidirectional(c) in controls or c in "\u200e\u200f\u061c")
    ]


@given(ANYTHING)
def test_nothing_is_acted_on_and_nothing_else_is_changed(text: str) -> None:
    told = plain(text)
    assert acts(told) == []
    told.encode()
    assert plain(told) == told
    assert json.loads(plain(json.dumps(text, ensure_ascii=False))) == text, "JSON stays JSON, and says the same"
    if acts(text) == [] and not re.search("[\u200b\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]", text):
        assert told == text


def test_letters_of_all_scripts_stay() -> None:
    assert plain(LETTERS) == LETTERS


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    with logged("worker") as stream:
        yield stream


def raised(message: str) -> ValueError:
    try:
        raise type(message, (ValueError,), {})(message) if "\0" not in message else ValueError(message)
    except ValueError as error:
        return error


WAYS: dict[str, Callable[[str], object]] = {
    "an event's text": lambda text: log.event(text),
    "a field": lambda text: log.event("x", field=text),
    "an exception of a handler": lambda text: log.warning("a step raised", error=text_of(raised(text)), raised=raised(text)),
    "a library's message": lambda text: logging.getLogger("library").warning("%s", text),
    "a logger's name": lambda text: logging.getLogger(f"name.{text}").warning("x"),
    "an exception of a library": lambda text: logging.getLogger("library").warning("x", exc_info=raised(text)),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_log_stays_one_line_an_event(lines: io.StringIO, way: str) -> None:
    WAYS[way](ATTACK)
    written = lines.getvalue()
    assert written.count("\n") == 1, written
    assert acts(written, keep="\n") == [], written


def test_a_property_of_every_way(lines: io.StringIO) -> None:
    @given(ANYTHING, st.sampled_from(sorted(WAYS)))
    def holds(text: str, way: str) -> None:
        lines.seek(0)
        lines.truncate()
        WAYS[way](text)
        written = lines.getvalue()
        assert written.count("\n") == 1
        assert acts(written, keep="\n") == []

    holds()


def test_negative_control_quoting_alone_lets_them_through() -> None:
    """As it was: JSON's quotes, which stop at U+001F."""
    assert acts(json.dumps(ATTACK, ensure_ascii=False)) != []


@given(st.binary(max_size=300) | ANYTHING.map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_what_a_handler_prints_is_lines_of_its_own(data: bytes) -> None:
    made = Printed("tests/fn")
    made.feed(data, 1_764_000_000.25)
    made.flush(1_764_000_000.25)
    text = b""
    while made.waiting:
        text += made.take()
    for line in text.decode().split("\n")[:-1]:
        assert line.startswith("2025-11-24T16:00:00.250Z worker tests/fn  | ")
        assert acts(line, keep="\t") == []


def status() -> control_pb2.FunctionStatus:
    attack = ATTACK.replace("\ud800", "")
    condition = control_pb2.Condition(type="ModelReady", status="False", reason="ModelInvalid", message=f"{attack}\nops/other  Ready")
    return control_pb2.FunctionStatus(namespace="ops", name=attack, phase="Failed", reason=attack, conditions=[condition])


@pytest.mark.parametrize("form", ["", "wide", "yaml", "json"])
def test_what_get_prints(capsys: pytest.CaptureFixture[str], form: str) -> None:
    """A row is a line, and a condition's further lines are set in."""
    printing.say(printing.functions([status()], form))
    shown = capsys.readouterr().out
    assert acts(shown, keep="\n") == []
    if form in ("", "wide"):
        assert [line for line in shown.splitlines()[2:] if not line.startswith((" ", "ops/kind"))] == []


def test_what_sessions_prints(capsys: pytest.CaptureFixture[str]) -> None:
    attack = ATTACK.replace("\ud800", "")
    one = control_pb2.SessionInfo(session=attack, owner=attack, tensors=[state_pb2.TensorMetadata(name=attack, datatype="FP32")])
    printing.say(printing.session(one))
    shown = capsys.readouterr().out
    assert acts(shown, keep="\n") == []
    assert len(shown.splitlines()) == 4


def test_an_error_at_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    def fails() -> None:
        raise InvalidArgument(ATTACK)

    assert _guard(fails) == 1
    assert acts(capsys.readouterr().err, keep="\n") == []


def test_a_reason_from_a_pod(capsys: pytest.CaptureFixture[str]) -> None:
    told = problems._told(json.dumps({"code": 9, "reason": ATTACK, "message": ATTACK}))
    assert told is not None
    assert acts(told.reason + told.message, keep="\n") == []
    assert acts(problems.unavailable("x", ATTACK).message) == []


def test_a_models_names_add_no_line_to_a_proposed_manifest() -> None:
    """`dormouse init` writes what it doubts as comments: a name with a line end would be YAML."""
    doubt = "state\nreplicas: 99"
    proposal = proposing.Proposal((), None, (f"{doubt} looks like a state",))
    text = initial.render("fn", "file://x", proposal, [])
    assert "\nreplicas" not in text
    assert "\\nreplicas" in text
