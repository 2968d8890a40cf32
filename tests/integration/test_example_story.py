"""examples/story under callers that leave, come twice or come at once, and under a version whose state is another."""

import shutil
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import unavailable
from dormouse import Client, Code, DormouseError
from dormouse_testing.streams_system import missing
from dormouse_testing.system import System

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def handler() -> Iterator[Any]:
    """The handler, run here."""
    sys.path.insert(0, str(EXAMPLES / "story"))
    try:
        import story  # type: ignore[import-not-found]

        made = story.Story()
        made.setup(SimpleNamespace(model=EXAMPLES / "story"))
        yield made
    finally:
        sys.path.pop(0)
        for name in ("story", "tokens"):
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    if reason := missing():
        unavailable(reason)
    folder = tmp_path_factory.mktemp("story")
    shutil.copytree(EXAMPLES / "story", folder / "story", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "story.yaml").write_text((EXAMPLES / "story.yaml").read_text().replace("scaleToZeroAfter: 5s", "scaleToZeroAfter: 10m"))
    with System(folder) as started:
        started.wait_proved("story")
        yield started


@pytest.fixture
def client(system: System) -> Iterator[Client]:
    with Client(system.address) as made:
        yield made


def sent(prompt: bytes = b"", **inputs: int) -> dict[str, Any]:
    return {"prompt": np.array([prompt], object), **{name: np.array([number]) for name, number in inputs.items()}}


def heard(client: Client, session: str, *, key: str = "", **inputs: Any) -> list[bytes]:
    return [part.outputs["text"][0] for part in client.stream("story", sent(**inputs), session=session, idempotency_key=key, timeout=60)]


def directly(handler: Any, *turns: dict[str, Any]) -> list[list[bytes]]:
    state = {each.name: each.first() for each in handler.states}
    return [[part["text"][0] for part in handler.step(sent(**turn), state, None)] for turn in turns]


def steps(system: System) -> dict[str, int]:
    import json

    return {each["session"].split(":")[-1]: int(each["step"]) for each in json.loads(system.command("sessions", "story", "-o", "json"))}


def test_a_turn_that_is_cancelled_leaves_the_session_as_it_was(system: System, client: Client, handler: Any) -> None:
    right = directly(handler, {"prompt": b"Emma"}, {"tokens": 100}, {"prompt": b" He", "tokens": 30})
    assert heard(client, "left", prompt=b"Emma") == right[0]
    turn = client.stream("story", sent(tokens=100), session="left")
    assert [next(turn).outputs["text"][0] for _ in range(3)] == right[1][:3]
    turn.close()
    key = f"{time.time_ns() // 1000}-left"
    assert heard(client, "left", key=key, tokens=100) == right[1], "from where the first turn ended"
    assert heard(client, "left", key=key, tokens=100) == right[1], "sent again: the kept one"
    assert steps(system)["left"] == 2
    with pytest.raises(DormouseError) as other:
        heard(client, "left", key=key, tokens=99)
    assert other.value.code is Code.INVALID_ARGUMENT, "a key is of one turn"
    assert heard(client, "left", prompt=b" He", tokens=30) == right[2]


def test_two_turns_at_once_come_one_after_the_other(system: System, client: Client, handler: Any) -> None:
    right = directly(handler, *[{"tokens": 40}] * 4)
    with ThreadPoolExecutor(4) as threads:
        turns = list(threads.map(lambda _: heard(client, "both", tokens=40), range(4)))
    assert sorted(turns) == sorted(right)
    assert steps(system)["both"] == 4


@pytest.mark.parametrize("prompt", [b"x" * 2001, b"\xff\xfe", "Café".encode(), b"\0"])
def test_what_is_no_turn_changes_nothing(system: System, client: Client, handler: Any, prompt: bytes) -> None:
    with pytest.raises(DormouseError, match="prompt: ") as refused:
        heard(client, "hostile", prompt=prompt)
    assert refused.value.code is Code.INVALID_ARGUMENT
    assert "hostile" not in steps(system)


def test_a_prompt_longer_than_the_window_slides(client: Client, handler: Any) -> None:
    long = (b"She was the youngest of the two daughters of a most affectionate father. " * 40)[:2000]
    right = directly(handler, {"prompt": long}, {})
    assert [heard(client, "long", prompt=long), heard(client, "long")] == right


def test_a_version_with_another_state_refuses_the_story_and_keeps_it(system: System, client: Client, handler: Any) -> None:
    """Last: the folder's handler is another for a while. Its cache has another name, so that nobody can go on with what is stored."""
    right = directly(handler, {"prompt": b"Emma"}, {})
    assert heard(client, "kept", prompt=b"Emma") == right[0]
    file = system.folder / "story" / "story.py"
    before = file.read_text()
    try:
        file.write_text(before.replace('"place", "last", "seed"', '"place", "last", "seed", "mood"'))
        system.command("apply", "-f", str(system.folder / "story.yaml"))
        system.until(lambda: refused(client) is not None)
        error = refused(client)
        assert error is not None
        assert error.code is Code.FAILED_PRECONDITION, error
    finally:
        file.write_text(before)
    system.command("apply", "-f", str(system.folder / "story.yaml"))
    system.until(lambda: refused(client) is None)
    assert heard(client, "kept") == right[1]


def refused(client: Client) -> DormouseError | None:
    """What a turn of one token hears that is not to be stored: of a session that is asked for too much."""
    try:
        heard(client, "kept", tokens=101)
    except DormouseError as error:
        return None if error.code is Code.INVALID_ARGUMENT else error
    raise AssertionError("101 tokens are no turn")
