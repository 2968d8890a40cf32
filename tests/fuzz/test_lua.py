"""router.lua's reader against protobuf, in a real Envoy: it raises, or reads what protobuf reads. Never another function or session.

Where it raises, the relay reads the message in Python; where protobuf refuses the message, so does the worker, wherever it was sent. What
must not happen is that both read it and disagree: the call would go to a worker that refuses it, for ever.
"""

import itertools
import random
from collections.abc import Iterator

import pytest
from dormouse_core.errors import DormouseError
from dormouse_core.sessions.names import session_key
from dormouse_gateway import naming
from dormouse_gateway.settings import GatewaySettings
from dormouse_proto import inference_pb2
from dormouse_testing import fuzzing
from dormouse_testing.lua import Lua, running
from google.protobuf.message import DecodeError

BATCH = 2000
INPUTS: dict[str, tuple[str, list[int]]] = {"x": ("FP32", [-1, 3]), "b": ("BYTES", [-1, 2])}


@pytest.fixture(scope="module")
def lua() -> Iterator[Lua]:
    with running(GatewaySettings(concurrency=1)) as made:
        yield made


@pytest.mark.parametrize(("seed", "many"), [(1, 40_000), *(pytest.param(seed, 100_000, marks=pytest.mark.slow) for seed in range(10, 20))])
def test_messages(lua: Lua, seed: int, many: int) -> None:
    agreed = 0
    made = fuzzing.messages(seed, INPUTS)
    for _ in range(many // BATCH):
        batch = list(itertools.islice(made, BATCH))
        for data, answer in zip(batch, lua.ask([("request", data) for data in batch]), strict=True):
            if answer is None:
                continue
            model, _, found = answer.partition(b"\0")
            try:
                request = inference_pb2.ModelInferRequest.FromString(data)
                sequence = naming.sequence(request)
                expected = "" if sequence is None else session_key("", sequence).removeprefix("/")
            except (DormouseError, DecodeError):
                continue
            if "\0" in request.model_name:  # no function's name; the harness's own separator
                continue
            assert (model.decode(), found.decode()) == (request.model_name, expected), data.hex()
            agreed += 1
    assert agreed > many // 10


@pytest.mark.parametrize(("seed", "many"), [(1, 20_000), pytest.param(2, 400_000, marks=pytest.mark.slow)])
def test_names(lua: Lua, seed: int, many: int) -> None:
    """A function's name in an authority or in model_name: Lua takes no other for one than Python does."""
    rng = random.Random(seed)
    alphabet = ["a", "b9", "-", ".", "/", "_", "A", ":", "8001", "svc", ".svc.cluster.local", "é", " ", "%", "\x01"]
    for _ in range(many // BATCH):
        texts = ["".join(rng.choice(alphabet) for _ in range(rng.randrange(7))) for _ in range(BATCH)]
        for text, found in zip(texts, lua.texts([("model", text) for text in texts]), strict=True):
            assert label(found) == label(text), text
        for text, found in zip(texts, lua.texts([("authority", text) for text in texts]), strict=True):
            if label(found):
                assert text.lower().startswith(".".join(reversed(found.split("/")))), text


def label(text: str) -> str:
    """The function that this names; "": none, and then it has no route either: the relay words the refusal."""
    try:
        return naming.function({}, text, "default").label
    except DormouseError:
        return ""
