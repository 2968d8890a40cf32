"""A model that runs is what was loaded, whatever is written to its files meanwhile: none of them is mapped."""

import errno
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from dormouse_core.errors import DormouseError
from dormouse_kit import contents
from dormouse_kit.windows import Window
from dormouse_testing import models
from dormouse_worker.models.refusals import ModelInvalid
from dormouse_worker.runtimes import weights
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


@pytest.fixture(params=["read", "copied"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How weights are held. The copy's folder is apart from the model's, and its file system a disk, whatever it is."""
    monkeypatch.setattr(weights, "SMALL_BYTES", 0)
    monkeypatch.setattr(weights, "_has_room", lambda place, size: request.param == "copied")
    return str(request.param)


def copies() -> list[str]:
    return [line.split()[-2] for line in Path("/proc/self/maps").read_text().splitlines() if weights.PREFIX in line and "(deleted)" in line]


@pytest.mark.parametrize("location", [None, "w.bin", "below/w.bin"])
@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("harm", [overwrite, lambda file: os.truncate(file, 0)], ids=["overwritten", "truncated"])
def test_a_model_that_runs_does_not_change_with_its_files(tmp_path: Path, location: str | None, harm: Callable[[Path], None]) -> None:
    path = saved(tmp_path, location)
    runtime = OnnxRuntime(path, (), 1)
    for _, file in contents.files(path):
        harm(file)
    assert answer(runtime) == [1.0]
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()


def test_a_copy_has_no_name_once_the_model_is_loaded(tmp_path: Path, way: str) -> None:
    runtime = OnnxRuntime(saved(tmp_path, "w.bin"), (), 1)
    held = copies()
    assert bool(held) == (way == "copied")
    assert not any(Path(each).exists() for each in held)
    assert answer(runtime) == [1.0]


def test_what_a_killed_process_left_is_removed_and_what_another_loads_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(weights, "_kind", lambda place: "ext4")
    monkeypatch.setattr(weights, "SMALL_BYTES", 0)
    monkeypatch.setattr(weights, "LEFT", 0.0)
    left, loads = tmp_path / f"{weights.PREFIX}left", tmp_path / f"{weights.PREFIX}loads"
    for folder in (left, loads):
        folder.mkdir()
        (folder / "w.bin").write_bytes(b"1")
    lock = os.open(loads, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    (tmp_path / "model").mkdir()
    assert answer(OnnxRuntime(saved(tmp_path / "model", "w.bin"), (), 1)) == [1.0]
    os.close(lock)
    assert sorted(each.name for each in tmp_path.iterdir()) == [loads.name, "model"]


@pytest.mark.parametrize(("kind", "left", "room"), [("ext4", 0.0, True), ("ext4", 1.0, False), ("tmpfs", 0.0, False)])
def test_where_no_disk_has_room_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, left: float, room: bool) -> None:
    monkeypatch.setattr(weights, "_kind", lambda place: kind)
    monkeypatch.setattr(weights, "LEFT", left)
    assert weights._has_room(tmp_path, 1) == room


def test_the_kind_of_a_file_system_is_known() -> None:
    assert weights._kind(Path("/proc")) == "proc"


def test_a_copy_that_does_not_succeed_is_no_trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "SMALL_BYTES", 0)
    monkeypatch.setattr(weights, "_has_room", lambda place, size: True)

    def full(source: Path, to: Path) -> None:
        to.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    assert answer(OnnxRuntime(saved(tmp_path, "w.bin"), (), 1)) == [1.0]


def test_nor_is_a_folder_that_cannot_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "SMALL_BYTES", 0)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    assert answer(OnnxRuntime(saved(tmp_path, "w.bin"), (), 1)) == [1.0]


LOAD = """
import sys
from pathlib import Path
from dormouse_worker.process import memorylimit
from dormouse_worker.runtimes import weights
from dormouse_worker.runtimes.onnx import OnnxRuntime
weights._has_room = lambda place, size: sys.argv[2] == "copied"
before = memorylimit.resident()
memorylimit.peak(forget=True)
OnnxRuntime(Path(sys.argv[1]), (), 1)
print(memorylimit.peak() - before)
"""


def test_while_they_are_loaded_weights_take_their_size_once(tmp_path: Path) -> None:
    """Of matrix products, whose weights ONNX Runtime arranges anew: that is the once. The control is the other way: read into memory first
    they take their size once more."""
    count, size = 8, 1024
    constants = {f"w{n}": np.ones((size, 2 * size), np.float32).reshape((size, -1) if n % 2 == 0 else (-1, size)) for n in range(count)}
    nodes = [models.node("MatMul", [f"x{n}", f"w{n}"], [f"x{n + 1}"]) for n in range(count)]
    path = models.write(
        tmp_path / "m.onnx", nodes, [("x0", models.FLOAT, ["n", size])], [(f"x{count}", models.FLOAT, ["n", size])], constants
    )
    onnx.save(onnx.load(path), str(path), save_as_external_data=True, location="w.bin", size_threshold=0)
    total = sum(each.nbytes for each in constants.values())

    def peak(way: str) -> float:
        done = subprocess.run([sys.executable, "-c", LOAD, path, way], capture_output=True, text=True, check=True)
        return int(done.stdout) / total

    assert peak("copied") < 1.5
    assert peak("read") > 1.9


def test_negative_control_mapped_weights_change_under_it(tmp_path: Path) -> None:
    runtime = OnnxRuntime(saved(tmp_path, "w.bin"), (), 1, private=True)
    overwrite(tmp_path / "w.bin")
    assert answer(runtime) != [1.0]


def test_weights_that_lead_out_of_the_folder_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    path = saved(tmp_path / "in", "w.bin")
    (tmp_path / "in" / "w.bin").rename(tmp_path / "out.bin")
    (tmp_path / "in" / "w.bin").symlink_to(tmp_path / "out.bin")
    assert weights.beside(path) == []
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
