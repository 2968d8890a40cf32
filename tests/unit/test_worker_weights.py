"""A model that runs is what was loaded, whatever is written to its files meanwhile: none of them is mapped."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from dormouse_core.errors import DormouseError
from dormouse_kit import contents
from dormouse_kit.windows import Window
from dormouse_testing import models
from dormouse_worker.models import ModelInvalid
from dormouse_worker.runtimes import onnx as runtimes
from dormouse_worker.runtimes.onnx import OnnxRuntime

SIZE = 1_000_000
TENSOR = ("x", models.FLOAT, [1])


def saved(folder: Path, location: str | None) -> Path:
    path = folder / "m.onnx"
    made = models.write(
        path, [models.node("Mul", ["x", "w"], ["y"])], [TENSOR], [("y", models.FLOAT, [SIZE])], {"w": np.ones(SIZE, np.float32)}
    )
    if location is not None:
        (folder / location).parent.mkdir(exist_ok=True)
        onnx.save(onnx.load(made), str(path), save_as_external_data=True, location=location, size_threshold=0)
    return path


def answer(runtime: OnnxRuntime) -> list[float]:
    (found,) = runtime.run({"x": np.ones(1, np.float32)})
    return np.unique(found).tolist()


def overwrite(file: Path) -> None:
    with file.open("r+b") as opened:
        opened.write(b"\7" * file.stat().st_size)


@pytest.mark.parametrize("location", [None, "w.bin", "below/w.bin"])
@pytest.mark.parametrize("harm", [overwrite, lambda file: os.truncate(file, 0)], ids=["overwritten", "truncated"])
def test_a_model_that_runs_does_not_change_with_its_files(tmp_path: Path, location: str | None, harm: Callable[[Path], None]) -> None:
    path = saved(tmp_path, location)
    runtime = OnnxRuntime(path, (), 1)
    for _, file in contents.files(path):
        harm(file)
    assert answer(runtime) == [1.0]
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()


def test_negative_control_mapped_weights_change_under_it(tmp_path: Path) -> None:
    runtime = OnnxRuntime(saved(tmp_path, "w.bin"), (), 1, private=True)
    overwrite(tmp_path / "w.bin")
    assert answer(runtime) != [1.0]


def test_weights_that_lead_out_of_the_folder_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    path = saved(tmp_path / "in", "w.bin")
    (tmp_path / "in" / "w.bin").rename(tmp_path / "out.bin")
    (tmp_path / "in" / "w.bin").symlink_to(tmp_path / "out.bin")
    assert runtimes._hold_weights(path, None) == []
    path.write_bytes(path.read_bytes().replace(b"w.bin", b"/e/pw"))
    with pytest.raises(ModelInvalid):
        OnnxRuntime(path, (), 1)


def test_weights_that_are_not_there_are_named(tmp_path: Path) -> None:
    path = saved(tmp_path, "w.bin")
    (tmp_path / "w.bin").unlink()
    with pytest.raises(DormouseError, match=r"w\.bin"):
        OnnxRuntime(path, (), 1)


def test_a_window_reads_what_a_mapping_would_show(tmp_path: Path) -> None:
    data = np.random.default_rng(1).bytes(300_000) + b"location" + bytes(70_000)
    (tmp_path / "f").write_bytes(data)
    with (tmp_path / "f").open("rb") as file:
        window = Window(file.fileno())
        assert (len(window), window.find(b"location"), window.find(b"nowhere")) == (len(data), 300_000, -1)
        assert [window[at] for at in (0, 5000, 299_999)] == [data[at] for at in (0, 5000, 299_999)]
        part = window[100:200_100]
        assert isinstance(part, Window)
        assert (len(part), part[7], bytes(part[9:20])) == (200_000, data[107], data[109:120])  # type: ignore[arg-type]
        assert part.find(data[150_000:150_020]) == 149_900
        with pytest.raises(IndexError):
            part[200_000]
        os.truncate(tmp_path / "f", 100)
        for look in (lambda: window[200], lambda: window[200:300], lambda: window.find(b"x" * 9)):
            with pytest.raises(OSError, match="truncated"):
                look()


def test_what_is_found_across_two_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dormouse_kit.windows.CHUNK", 16)
    (tmp_path / "f").write_bytes(b"." * 13 + b"location")
    with (tmp_path / "f").open("rb") as file:
        assert Window(file.fileno()).find(b"location") == 13


def test_a_model_that_is_truncated_while_its_files_are_looked_for_ends_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The operator looks at each `apply`, `dormouse up` each second: under a mapping they would be killed."""
    path = saved(tmp_path, "w.bin")
    real = Window.find

    def truncated(window: Window, wanted: bytes) -> int:
        found = real(window, wanted)
        os.truncate(path, 10)
        return found

    monkeypatch.setattr(Window, "find", truncated)
    with pytest.raises(OSError, match="truncated"):
        contents.digest(path)
