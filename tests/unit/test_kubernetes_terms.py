"""What each term of an operator of a cluster begins with: files as they are then, not as they were at the start of the process."""

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from dormouse_operator import terms
from dormouse_operator.kubernetes import running
from dormouse_operator.kubernetes.api import access
from dormouse_operator.kubernetes.options import Options
from dormouse_operator.kubernetes.settings import ClusterSettings
from dormouse_operator.kubernetes.watching.claiming import Seen


class Reached:
    """What a term reaches and none of these tests is about."""

    election = 1
    leading = True

    def __init__(self, *arguments: object, **more: object) -> None: ...

    async def start(self, port: int) -> None: ...
    async def close(self) -> None: ...
    async def resign(self) -> None: ...
    async def run(self, leading: Callable[[], bool]) -> None: ...


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[Options]:
    """The options that each term was given."""
    found: list[Options] = []

    def begun(options: Options, *arguments: object) -> object:
        found.append(options)
        return SimpleNamespace()

    async def won(*arguments: object) -> bool:
        return True

    async def reached() -> object:
        return SimpleNamespace()

    async def lost(*arguments: object) -> int:
        return terms.LOST

    for name in ("Health", "EtcdStore", "EtcdMembers", "HttpApi", "Election", "Space"):
        monkeypatch.setattr(running, name, Reached)
    replaced: dict[tuple[Any, str], object] = {
        (access, "find"): reached,
        (running, "Term"): begun,
        (terms, "tls"): lambda options: None,
        (terms, "campaigned"): won,
        (running, "_lead"): lost,
    }
    for (where, name), what in replaced.items():
        monkeypatch.setattr(where, name, what)
    return found


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    path = tmp_path / "ca.crt"
    path.write_text("the first")
    return path


def test_a_later_term_begins_with_the_certificates_that_there_are_then(given: list[Options], authority: Path) -> None:
    parsed = Options(store_ca=str(authority), functions=ClusterSettings(store_ca="the first", image="chosen"))
    for text in ("the first", "the second"):
        authority.write_text(text)
        assert asyncio.run(running.run(parsed, Seen())) == terms.LOST
    assert [each.functions.store_ca for each in given] == ["the first", "the second"]
    assert {each.functions.image for each in given} == {"chosen"}


async def test_negative_control_with_what_was_parsed_it_would_begin_with_the_old_ones(
    given: list[Options], authority: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Options, "now", lambda self: self)
    await running.run(Options(store_ca=str(authority), functions=ClusterSettings(store_ca="older")), Seen())
    assert [each.functions.store_ca for each in given] == ["older"]


def test_where_they_cannot_be_read_the_process_ends_and_begins_no_term(given: list[Options], authority: Path) -> None:
    authority.unlink()
    assert asyncio.run(running.run(Options(store_ca=str(authority)), Seen())) == 1
    assert given == []


@pytest.mark.parametrize(
    ("claim", "shared", "out"),
    [
        ("mine", True, "it is not known yet whether another installation"),
        ("", True, "it is not known yet whether the store keeps its users apart"),
        ("", False, ""),
    ],
)
async def test_an_operator_of_a_cluster_is_ready_where_both_its_claim_and_its_store_allow_it(
    claim: str, shared: bool, out: str, given: list[Options], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []

    class Health(Reached):
        def __init__(self) -> None:
            made.append(self)

    async def stopped(work: Coroutine[Any, Any, object], stop: object) -> bool:
        work.close()
        return False

    monkeypatch.setattr(running, "Health", Health)
    monkeypatch.setattr(terms, "first", stopped)
    monkeypatch.setattr(Options, "store_shared", shared)
    assert await running.run(Options(functions=ClusterSettings(claim=claim)), Seen()) == 0
    [health] = made
    assert health.kept_out().startswith(out)
    assert bool(health.kept_out()) is bool(out)
