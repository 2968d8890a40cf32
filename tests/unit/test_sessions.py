"""Names and shards of sessions: pinned by vectors that the gateway's Lua is held to as well."""

import json
from pathlib import Path

import pytest
from dormouse_core.errors import InvalidArgument
from dormouse_core.sessions.names import session_key, shard_of
from hypothesis import given
from hypothesis import strategies as st

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "sessions.json").read_text())["vectors"]


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: v["key"][:40])
def test_vectors(vector: dict[str, object]) -> None:
    session = int(str(vector["int"])) if "int" in vector else str(vector["string"])
    key = session_key(str(vector["tenant"]), session)
    assert key == vector["key"]
    shards = vector["shards"]
    assert isinstance(shards, dict)
    assert {count: shard_of(key, int(count)) for count in shards} == shards


def test_int_and_string_of_the_same_digits_are_two_sessions() -> None:
    assert session_key("", 7) != session_key("", "7")


@pytest.mark.parametrize("session", [0, 2**63, -(2**63) - 1, "", "x" * 129])
def test_refused(session: int | str) -> None:
    with pytest.raises(InvalidArgument, match="sequence_id"):
        session_key("", session)


def test_the_refusal_names_where_the_id_was_written() -> None:
    with pytest.raises(InvalidArgument, match="dormouse-session: a string of 129"):
        session_key("", "x" * 129, "dormouse-session")


def test_a_tenant_that_is_too_long_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="dormouse-tenant"):
        session_key("t" * 129, 1)


@given(st.text(max_size=20), st.text(max_size=20), st.text(min_size=1, max_size=20), st.text(min_size=1, max_size=20))
def test_no_two_sessions_share_a_key(a: str, b: str, x: str, y: str) -> None:
    assert (session_key(a, x) == session_key(b, y)) == ((a, x) == (b, y))
    assert session_key(a, x).count("/") == 1
