"""examples/story: the handler with nothing around it, and the model that it runs."""

import hashlib
import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from dormouse.initial import manifest
from dormouse_core import spec as specs
from dormouse_core.errors import InvalidArgument
from dormouse_core.handlers import Declaration, declaration_of
from dormouse_core.limits import KEPT_REPLY_BYTES
from dormouse_proto import inference_pb2

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
FOLDER = EXAMPLES / "story"
MODEL = FOLDER / "model.onnx"


def loaded(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"story_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


@pytest.fixture(scope="module")
def use() -> Iterator[Any]:
    """The folder's modules, as `make examples` loads them."""
    own = ("running", "showing", "story", "tokens")
    sys.path[:0] = [str(EXAMPLES), str(FOLDER)]
    try:
        yield loaded("use")
    finally:
        del sys.path[:2]
        for name in own:
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def story(use: Any) -> Any:
    return sys.modules["story"]


@pytest.fixture(scope="module")
def handler(story: Any) -> Any:
    made = story.Story()
    made.setup(SimpleNamespace(model=FOLDER))
    return made


@pytest.fixture(scope="module")
def declaration(story: Any) -> Declaration:
    return declaration_of(story.Story, stateful=True)


def first(handler: Any) -> dict[str, Any]:
    return {each.name: each.first() for each in handler.states}


def said(handler: Any, state: dict[str, Any], prompt: bytes = b"", **inputs: int) -> list[str]:
    sent = {name: np.array([number]) for name, number in inputs.items()}
    parts = handler.step({"prompt": np.array([prompt], object), **sent}, state, None)
    return [part["text"][0].decode() for part in parts]


def test_the_model_is_the_one_that_its_page_names() -> None:
    data = MODEL.read_bytes()
    assert f"sha256 `{hashlib.sha256(data).hexdigest()}`" in (FOLDER / "README.md").read_text()
    assert len(data) < 3_000_000
    assert len(json.loads((FOLDER / "tokens.json").read_text())) == 1024


def test_init_proposes_the_cache_as_the_session_and_says_when_it_is_full(story: Any) -> None:
    text = manifest("story", MODEL, "file://story/model.onnx")
    sessions = specs.parse_manifest(text).spec.sessions
    assert sessions is not None
    found = [(each.input, each.output, list(each.shape), each.batch_axis) for each in sessions.states]
    assert found == [(name, name.replace("past_key_values", "present"), [-1, 6, -1, 32], 0) for name in story.CACHE]
    assert "grows, by 3072 bytes with each place: with 330\n" in text


def test_the_manifest_is_a_stateful_function_that_streams(declaration: Declaration) -> None:
    function = specs.parse_manifest((EXAMPLES / "story.yaml").read_text())
    assert function.spec.handler == "story:Story"
    assert function.spec.sessions is not None
    assert declaration.decoupled


def test_turns_of_a_session_say_what_the_model_says_run_directly(use: Any, handler: Any, declaration: Declaration) -> None:
    """The state goes through what a worker does with it between any two turns."""
    right, state, turns = use.directly(), first(handler), []
    for prompt in use.PROMPTS:
        turns.append(said(handler, state, prompt.encode()))
        stored = {name: array.tobytes() for name, array in declaration.check_states(state).items()}
        state = {name: np.frombuffer(stored[name], array.dtype).reshape(array.shape).copy() for name, array in state.items()}
    assert turns == right
    assert len(set(map(tuple, turns))) == len(turns)


def test_negative_control_without_its_cache_a_turn_says_something_else(use: Any, handler: Any, story: Any) -> None:
    right, state = use.directly(), first(handler)
    assert said(handler, state, use.PROMPTS[0].encode()) == right[0]
    for name in story.CACHE:
        state[name] = state[name][:, :, :0]
    assert said(handler, state, use.PROMPTS[1].encode()) != right[1]


def test_a_turn_that_was_cut_says_the_same_when_it_is_run_again(handler: Any) -> None:
    state = first(handler)
    said(handler, state, b"Emma", tokens=20)
    cut = dict(state)
    parts = handler.step({}, cut, None)
    begun = [next(parts)["text"][0].decode() for _ in range(7)]
    parts.close()
    assert int(cut["place"][0]) > int(state["place"][0]), "the part that was run is nobody's: its state is thrown away"
    whole = said(handler, state)
    assert (whole[:7], len(whole)) == (begun, 100)


def test_another_seed_tells_another_story_and_stays(handler: Any) -> None:
    one, two, three = first(handler), first(handler), first(handler)
    assert said(handler, one, b"Emma", tokens=30) != said(handler, two, b"Emma", tokens=30, seed=5)
    said(handler, three, b"Emma", tokens=30, seed=5)
    assert said(handler, two, tokens=30) == said(handler, three, tokens=30)
    assert said(handler, first(handler), b"Emma", tokens=2, seed=-(2**63)), "any number is one"


def test_the_cache_slides_and_stays_below_its_limit(handler: Any, story: Any, declaration: Declaration) -> None:
    """A prompt that is longer than the window, and a turn behind it."""
    state = first(handler)
    prompt = (b"She was the youngest of the two daughters of a most affectionate father. " * 40)[: story.PROMPT]
    said(handler, state, prompt)
    assert state["place"][0] > 2 * story.WINDOW
    assert {state[name].shape for name in story.CACHE} == {(1, story.HEADS, story.WINDOW, story.SIZE)}
    assert sum(array.nbytes for array in declaration.check_states(state).values()) < 900 * 1024
    assert len(said(handler, state)) == story.TURN


def test_a_turns_reply_is_kept_with_its_record(use: Any, story: Any) -> None:
    """What a turn says is at most 16 KiB, so that it is not lost with its worker: here with the longest token each time."""
    reply = inference_pb2.ModelInferResponse(model_name="story", model_version="0123456789ab", id="x" * 36)
    reply.outputs.add(name="text", datatype="BYTES", shape=[1])
    reply.raw_output_contents.append(b"0000" + b"x" * max(map(len, sys.modules["tokens"].TOKENS)))
    assert story.TURN * (reply.ByteSize() + 8) < KEPT_REPLY_BYTES


@pytest.mark.parametrize(
    ("prompt", "inputs", "told"),
    [
        (b"x" * 2001, {}, "prompt: 2001 characters found, at most 2000 are allowed"),
        (b"\xff\xfe", {}, "prompt: 'utf-8' codec can't decode byte 0xff in position 0"),
        ("Caf\u00e9".encode(), {}, "prompt: character '\u00e9' found, a line break and printable ASCII are allowed"),
        (b"\0", {}, r"prompt: character '\\x00' found"),
        (b"Emma", {"tokens": 0}, "tokens: 0 found, 1 to 100 are allowed"),
        (b"Emma", {"tokens": 101}, "tokens: 101 found"),
        (b"Emma", {"tokens": -(2**63)}, "tokens: -9223372036854775808 found"),
    ],
)
def test_what_is_no_turn_is_refused_and_changes_nothing(handler: Any, prompt: bytes, inputs: dict[str, int], told: str) -> None:
    state = first(handler)
    before = {name: array.copy() for name, array in state.items()}
    with pytest.raises(InvalidArgument, match=told):
        said(handler, state, prompt, seed=3, **inputs)
    assert all(np.array_equal(state[name], before[name]) for name in before)


def test_an_empty_prompt_begins_a_story(handler: Any) -> None:
    assert said(handler, first(handler), b"", tokens=5) == [
        part["text"][0].decode() for part in handler.step({"tokens": np.array([5])}, first(handler), None)
    ]


def test_what_is_encoded_is_what_was_written(use: Any) -> None:
    tokens = sys.modules["tokens"]
    for text in ("", " ", "Mr. Knightley\n", "".join(map(chr, range(32, 127)))):
        assert "".join(tokens.TOKENS[number] for number in tokens.encode(text)) == text
    assert len(tokens.encode(" the")) == 1
    logits = np.zeros(1024, np.float32)
    logits[7] = 50
    assert {tokens.drawn(logits, 0, place) for place in range(50)} == {7}
    logits[8] = 50
    assert {tokens.drawn(logits, 0, place) for place in range(50)} == {7, 8}
