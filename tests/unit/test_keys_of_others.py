"""What a function's worker may write below its function's prefixes, read by everybody who reads keys."""

import pytest
from dormouse_core.keys import Function, Keys, named, number
from dormouse_core.seams import Event, Item
from dormouse_gateway.watching.table import Table
from dormouse_kit.etcd import messages
from dormouse_operator.view import View
from dormouse_testing.clock import ManualClock
from dormouse_testing.sleeping import NoLinks
from hypothesis import given
from hypothesis import strategies as st

KEYS = Keys()
F = Function("ns", "f", "u")
NO_NUMBERS = ("", "²", "٣", "9" * 10, "9" * 5000, "\udcff", "-1", "+1", " 1", "1_0", "01", "1\n")


@pytest.mark.parametrize("text", NO_NUMBERS)
def test_what_is_no_number_as_we_write_it_is_none(text: str) -> None:
    assert number(text) is None


@given(st.integers(0, 999_999_999))
def test_a_number_is_read_as_it_was_written(value: int) -> None:
    assert number(str(value)) == value


@given(st.text())
def test_a_number_has_one_spelling(text: str) -> None:
    found = number(text)
    assert found is None or str(found) == text


@pytest.mark.parametrize("name", ["", "\udcff", "wörker", "a\n", "a/b", "x" * 254])
def test_what_is_no_workers_name(name: str) -> None:
    assert not named(name)
    assert named("default.f-24bc6b-805b72")


@given(st.binary())
def test_a_key_of_any_bytes_is_text_and_the_same_bytes_again(key: bytes) -> None:
    assert messages.raw(messages.text(key)) == key


@pytest.mark.parametrize("kind", ["workers", "shards", "moves", "other"])
@pytest.mark.parametrize("name", [*NO_NUMBERS, "x/y"])
def test_a_gateway_and_a_leader_go_on_beside_them(kind: str, name: str) -> None:
    table, view = Table(KEYS), View(KEYS, ManualClock(), lambda uid: None)
    view.links = NoLinks()  # type: ignore[assignment]
    table.replace(KEYS.functions, [], 1)
    for value in (b"", b"\xff\xff"):
        item = Item(f"{KEYS.map(F)}{kind}/{name}", value, 2, 2)
        table.apply([Event(item.key, 2, item)], KEYS.maps, 2)
        table.replace(KEYS.maps, [item], 2)
        assert table.function("ns/f") is None
        view.map_changed(item.key, None, item)
        view.map_changed(item.key, item, None)
