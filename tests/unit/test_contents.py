"""The digest of a model's files: which of them count, and what changes it."""

import hashlib
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from dormouse_core import externals
from dormouse_kit import contents
from dormouse_kit.windows import Window
from dormouse_testing import models
from hypothesis import given
from hypothesis import strategies as st


def with_weights(folder: Path, location: str = "weights.bin") -> Path:
    tensor = ("x", models.FLOAT, ["n", 4])
    path = folder / "m.onnx"
    weights = {"w": np.ones(4, np.float32)}
    model = onnx.load(models.write(path, [models.node("Mul", ["x", "w"], ["y"])], [tensor], [("y", models.FLOAT, ["n", 4])], weights))
    (folder / location).parent.mkdir(exist_ok=True)
    onnx.save(model, str(path), save_as_external_data=True, location=location, size_threshold=0)
    return path


def test_a_file_has_its_own_sha256(tmp_path: Path) -> None:
    path = models.rows(tmp_path / "m.onnx", 2, 2)
    assert contents.digest(path) == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("location", ["weights.bin", "below/weights.bin"])
def test_weights_in_a_second_file_belong_to_the_model(tmp_path: Path, location: str) -> None:
    path = with_weights(tmp_path, location)
    assert [name for name, _ in contents.files(path)] == sorted(["m.onnx", location])
    before = contents.digest(path)
    (tmp_path / "another.bin").write_bytes(b"not of it")
    assert contents.digest(path) == before
    weights = bytearray((tmp_path / location).read_bytes())
    weights[0] ^= 1
    (tmp_path / location).write_bytes(weights)
    assert contents.digest(path) != before


def test_a_sessions_first_state_belongs_to_the_model(tmp_path: Path) -> None:
    path = models.rows(tmp_path / "m.onnx", 2, 2)
    np.save(tmp_path / "x.npy", np.zeros(3))
    before = contents.digest(path, ["x.npy"])
    assert before != contents.digest(path)
    np.save(tmp_path / "x.npy", np.ones(3))
    assert contents.digest(path, ["x.npy"]) != before


def test_a_folder_is_its_names_and_bytes_without_what_is_hidden_or_compiled(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "mine.py").write_text("1")
    (tmp_path / "below" / "data").write_text("2")
    before, stamp = contents.digest(tmp_path), contents.stamp(tmp_path)
    for name in (".git", "__pycache__"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_text("3")
    (tmp_path / ".hidden").write_text("4")
    (tmp_path / "below" / "back").symlink_to(tmp_path)
    assert (contents.digest(tmp_path), contents.stamp(tmp_path)) == (before, stamp)
    (tmp_path / "mine.py").rename(tmp_path / "yours.py")
    assert contents.digest(tmp_path) != before
    (tmp_path / "yours.py").rename(tmp_path / "mine.py")
    assert contents.digest(tmp_path) == before
    (tmp_path / "below" / "data").write_text("5")
    assert contents.digest(tmp_path) != before


def test_a_mounted_configmap_is_followed(tmp_path: Path) -> None:
    """The kubelet's own links: ..data leads to a folder with a time in its name, and each key leads into ..data."""
    for name, text in (("..then", "1"), ("..now", "1"), ("..later", "2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.py").write_text(text)
    found = []
    for name in ("..then", "..now", "..later"):
        (tmp_path / "..data").unlink(missing_ok=True)
        (tmp_path / "..data").symlink_to(name)
        (tmp_path / "mine.py").unlink(missing_ok=True)
        (tmp_path / "mine.py").symlink_to("..data/mine.py")
        found.append(contents.digest(tmp_path))
    assert found[0] == found[1] != found[2]


def test_what_is_not_there_or_changes_while_it_is_read_has_no_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OSError, match="No such file"):
        contents.digest(tmp_path / "none")
    path = tmp_path / "m.onnx"
    path.write_bytes(b"1")
    real = contents._file

    def edited(file: Path) -> str:
        found = real(file)
        file.write_bytes(b"22")
        os.utime(file, ns=(1, 1))
        return found

    monkeypatch.setattr(contents, "_file", edited)
    with pytest.raises(OSError, match="changed while it was read"):
        contents.digest(path)


def test_the_seal_is_of_files_that_could_not_change_again_unseen(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"1")
    stamp = contents.stamp(path)
    changed = max(stamp[0][-2:]) / 1e9
    assert contents.seal(stamp, changed + 0.01) == ""
    sealed = contents.seal(stamp, changed + 1)
    assert len(sealed) == 32
    path.write_bytes(b"2")
    assert contents.seal(contents.stamp(path), changed + 100) != sealed, "the same size"


@given(st.binary(max_size=200))
def test_bytes_that_are_no_model_name_no_file_and_end(data: bytes) -> None:
    externals.external_files(data + b"location" + data)


def test_a_large_model_is_walked_and_not_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its weights are passed over: a look at 2 GiB reads its nodes."""
    path = with_weights(tmp_path)
    expected = contents.externals(path)
    assert expected == {"weights.bin"}
    monkeypatch.setattr(externals, "SEARCHED", 10)
    monkeypatch.setattr(Window, "find", lambda *given: -1)
    os.utime(path, ns=(1, 1))
    assert contents.externals(path) == expected
    read: list[int] = []
    real = Window._read
    monkeypatch.setattr(Window, "_read", lambda window, at, size: (read.append(size), real(window, at, size))[1])
    assert contents.externals(path) == expected
    assert read == [], "a file that has its times still is not read again"
    models.write(
        path, [models.node("Mul", ["x", "w"], ["y"])], [("x", models.FLOAT, [1])], [("y", models.FLOAT, ["n"])], {"w": np.ones(10**6)}
    )
    assert contents.externals(path) == set()
    assert 0 < sum(read) < 20_000
