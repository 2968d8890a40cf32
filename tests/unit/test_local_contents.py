"""What the operator of one machine reads of a model when its function is applied."""

import asyncio
from pathlib import Path

import pytest
from dormouse_core.errors import Unavailable
from dormouse_core.spec import parse_manifest
from dormouse_kit import contents
from dormouse_operator import local_contents
from dormouse_testing import models
from dormouse_testing.manifests import onnx


class Now:
    """A clock on which nobody waits."""

    def __init__(self) -> None:
        self.slept = 0

    def now(self) -> float:
        return 0.0

    def monotonic(self) -> float:
        return 0.0

    async def sleep(self, seconds: float) -> None:
        self.slept += 1


SPEC = parse_manifest(onnx(model={"uri": "file://m.onnx"})).spec


def content(root: Path, clock: Now) -> str:
    async def read() -> str:
        return await local_contents.reader(str(root), clock)(SPEC)

    return asyncio.run(read())


@pytest.mark.parametrize("writes", [3, 100])
def test_a_model_that_is_being_written_is_read_again_and_never_taken_for_unchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    path = models.rows(tmp_path / "m.onnx", 2, 2)
    left, real, clock = [writes], contents._file, Now()

    def written(file: Path) -> str:
        found = real(file)
        if left[0]:
            left[0] -= 1
            path.write_bytes(path.read_bytes() + b"\x00")
        return found

    monkeypatch.setattr(contents, "_file", written)
    if writes == 3:
        assert content(tmp_path, clock) == real(path)
        assert clock.slept == 3
    else:
        with pytest.raises(Unavailable, match=r"m\.onnx is being written; nothing was applied"):
            content(tmp_path, clock)


def test_what_cannot_be_read_is_the_workers_to_tell(tmp_path: Path) -> None:
    assert content(tmp_path, Now()) == ""
