"""The content of what a worker loads: read beside the load, or known by its seal, and the same at its end as at its beginning."""

import os
from pathlib import Path

import msgspec
import pytest
from dormouse_core.spec import parse_manifest
from dormouse_core.workerfile import StoreAccess, WorkerFile
from dormouse_kit import contents
from dormouse_testing import models
from dormouse_testing.manifests import onnx
from dormouse_worker import loading
from dormouse_worker.models import ModelUnavailable
from dormouse_worker.reading import Reading


@pytest.fixture
def file(tmp_path: Path) -> WorkerFile:
    models.rows(tmp_path / "m.onnx", 2, 2)
    os.utime(tmp_path / "m.onnx", ns=(1, 1))
    spec = parse_manifest(onnx(model={"uri": "file://m.onnx"})).spec
    access = StoreAccess(endpoints=["e"])
    return WorkerFile(installation="i", namespace="n", name="f", uid="u", revision="r", spec=spec, store=access, model_root=str(tmp_path))


@pytest.fixture
def path(file: WorkerFile) -> Path:
    return Path(file.model_root) / "m.onnx"


def test_what_was_loaded_says_its_content(file: WorkerFile, path: Path) -> None:
    loaded = loading.from_file(file)
    assert loaded.content == contents.digest(path)


def test_files_with_the_seal_of_the_proof_are_not_read(file: WorkerFile, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "SETTLED", -1e9)
    sealed = Reading(path, file).seal
    proved = msgspec.structs.replace(file, content="what it was", seal=sealed)
    assert Reading(path, proved).digest() == "what it was"
    path.write_bytes(path.read_bytes())
    assert Reading(path, proved).digest() == contents.digest(path), "another seal: it is read"


def test_a_file_that_changes_while_it_loads_is_neither(file: WorkerFile, path: Path) -> None:
    reading = Reading(path, file)
    path.write_bytes(b"something else")
    with pytest.raises(ModelUnavailable, match=r"m\.onnx (changed while it was loaded|cannot be read)"):
        reading.digest()


def test_whatever_reading_raises_is_told_and_not_waited_for(file: WorkerFile, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def emptied(path: Path, more: object = ()) -> str:
        raise ValueError("cannot mmap an empty file")

    monkeypatch.setattr(contents, "digest", emptied)
    with pytest.raises(ModelUnavailable, match="cannot be read: cannot mmap an empty file"):
        Reading(path, file).digest()


def test_a_handlers_folder_is_what_it_was_before_its_code_ran(file: WorkerFile, tmp_path: Path) -> None:
    code = (
        "import dormouse\n"
        "class Mine(dormouse.Handler):\n"
        "    inputs = outputs = [dormouse.Tensor('x', 'FP32', [1])]\n"
        "    def setup(self, ctx): (ctx.model / 'cache').write_text('x')\n"
        "    def step(self, inputs, state, ctx): return inputs\n"
    )
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "writes_beside.py").write_text(code)
    before = contents.digest(tmp_path / "code")
    manifest = {"runtime": "python", "handler": "writes_beside:Mine", "model": {"uri": "file://code"}}
    spec = parse_manifest({**onnx(), "spec": manifest}).spec
    assert loading.from_file(msgspec.structs.replace(file, spec=spec)).content == before != contents.digest(tmp_path / "code")
