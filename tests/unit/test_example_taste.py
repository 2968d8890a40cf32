"""examples/taste: the handler of the design, with nothing around it."""

import importlib.util
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dormouse_core import spec as specs
from dormouse_core.errors import InvalidArgument
from dormouse_core.handlers import Context, declaration_of

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(scope="module")
def module() -> Any:
    found = importlib.util.spec_from_file_location("example_taste", EXAMPLES / "taste" / "taste.py")
    assert found is not None
    assert found.loader is not None
    made = importlib.util.module_from_spec(found)
    found.loader.exec_module(made)
    return made


@pytest.fixture(scope="module")
def handler(module: Any) -> Any:
    made = module.Taste()
    made.setup(Context(function="default/taste", revision="r", model=EXAMPLES / "taste"))
    return made


def test_the_manifest_is_a_stateful_function() -> None:
    function = specs.parse_manifest((EXAMPLES / "taste.yaml").read_text())
    assert function.spec.handler == "taste:Taste"
    assert function.spec.sessions is not None


def test_what_was_liked_ranks_its_like_first(module: Any, handler: Any) -> None:
    declaration = declaration_of(module.Taste, stateful=True)
    state = {each.name: each.first() for each in declaration.states}
    context = Context(function="default/taste", revision="r", session="guest")
    first = declaration.check_outputs(handler.step({}, state, context))
    assert first["ranked"].tolist() == list(range(10)), "nothing is known of a new guest"
    noodles = [n for n, name in enumerate(handler.names) if "noodles" in name.lower()]
    for dish in noodles[:2]:
        found = declaration.check_outputs(handler.step({"liked": np.array([dish])}, state, context))
    declaration.check_states(state)
    assert not set(noodles[:2]) & set(found["ranked"].tolist()), "what was chosen is not shown again"
    assert any(name in found["name"][:4].tolist() for name in (b"Pad Thai", b"Ramen", b"Laksa"))
    assert sorted(found["score"].tolist(), reverse=True) == found["score"].tolist()


def test_a_dish_that_is_none_changes_nothing(handler: Any) -> None:
    state = {each.name: each.first() for each in handler.states}
    with pytest.raises(InvalidArgument, match="liked: 48 found, 0 to 47"):
        handler.step({"liked": np.array([48])}, state, Context(function="default/taste", revision="r"))
    assert not state["taste"].any()
    assert not state["chosen"].any()


def test_the_picture_is_a_small_png() -> None:
    data = (EXAMPLES / "taste" / "taste.png").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", data[16:24])
    assert len(data) < 100_000
    assert width < 1200
    assert height < 800
