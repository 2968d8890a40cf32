"""Case 1.O9: gRPC wants metadata keys in lower case, and its clients refuse others in words that help nobody."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PLACES = ("README.md", "CHANGELOG.md", "docs", "examples", "cli", "deploy", "tests/conformance", "bench/README.md")
KINDS = {".md", ".py", ".yaml", ".go", ".txt", ".tpl"}
KEYS = re.compile(
    r"\b(?:dormouse-(?:session|function|tenant|idempotency-key|first-message|call|fn|uid|owner|rev|again|by|step|decoupled|broken)"
    r"|triton_grpc_error|x-request-id|grpc-(?:timeout|encoding|accept-encoding|status|message))\b",
    re.IGNORECASE,
)


def capitals(text: str) -> list[str]:
    return [key for key in KEYS.findall(text) if key != key.lower()]


def files() -> Iterator[Path]:
    for place in PLACES:
        path = ROOT / place
        yield from [path] if path.is_file() else (each for each in path.rglob("*") if each.suffix in KINDS)


def test_no_document_example_or_command_shows_a_key_with_capitals() -> None:
    found = list(files())
    assert len(found) > 50
    shown = {str(path.relative_to(ROOT)): capitals(path.read_text()) for path in found}
    assert {name: keys for name, keys in shown.items() if keys} == {}
    assert sum(len(KEYS.findall(path.read_text())) for path in found) > 20, "the search finds the keys that are there"


@pytest.mark.parametrize("key", ["Dormouse-Session", "DORMOUSE-FUNCTION", "dormouse-Idempotency-Key", "X-Request-Id", "Triton_grpc_error"])
def test_the_search_finds_capitals(key: str) -> None:
    assert capitals(f'headers={{"{key}": "x"}}') == [key]
