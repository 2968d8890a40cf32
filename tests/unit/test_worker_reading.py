"""The content of what a worker loads: read beside the load, or known by its seal, and the same at its end as at its beginning."""

import hashlib
import os
import subprocess
from pathlib import Path

import msgspec
import pytest
from dormouse_core.spec import parse_manifest
from dormouse_core.workerfile import StoreAccess, WorkerFile
from dormouse_kit import contents, ignoring
from dormouse_testing import models
from dormouse_testing.manifests import onnx
from dormouse_worker.fetching import reading, written
from dormouse_worker.fetching.reading import ContentReading
from dormouse_worker.models.refusals import ModelInvalid, ModelUnavailable
from dormouse_worker.serving import loading


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
    sealed = ContentReading(path, file).seal
    proved = msgspec.structs.replace(file, content="what it was", seal=sealed)
    assert ContentReading(path, proved).digest() == "what it was"
    path.write_bytes(path.read_bytes())
    assert ContentReading(path, proved).digest() == contents.digest(path), "another seal: it is read"


def test_a_file_that_changes_while_it_loads_is_neither(file: WorkerFile, path: Path) -> None:
    reading = ContentReading(path, file)
    path.write_bytes(b"something else")
    with pytest.raises(ModelUnavailable, match=r"m\.onnx (changed while it was loaded|cannot be read)"):
        reading.digest()


def test_whatever_reading_raises_is_told_and_not_waited_for(file: WorkerFile, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failed(*given: object) -> dict[str, str]:
        raise ValueError("something else")

    monkeypatch.setattr(contents, "read", failed)
    with pytest.raises(ModelUnavailable, match="cannot be read: something else"):
        ContentReading(path, file).digest()


HANDLER = """
import dormouse, sqlite3, subprocess, pathlib
class Mine(dormouse.Handler):
    inputs = outputs = [dormouse.Tensor('x', 'FP32', [1])]
    def setup(self, ctx):
        here = ctx.model
        %s
    def step(self, inputs, state, ctx): return inputs
"""


def handler(file: WorkerFile, name: str, setup: str) -> tuple[Path, WorkerFile]:
    """A folder with a handler, whose module's name no other test has."""
    folder = Path(file.model_root) / "code"
    (folder / "data").mkdir(parents=True)
    (folder / f"{name}.py").write_text(HANDLER % setup)
    (folder / "data" / "w").write_text("1")
    manifest = {"runtime": "python", "handler": f"{name}:Mine", "model": {"uri": "file://code"}}
    return folder, msgspec.structs.replace(file, spec=parse_manifest({**onnx(), "spec": manifest}).spec)


def test_what_a_handler_writes_in_its_folder_is_not_of_the_model(file: WorkerFile) -> None:
    writes = (
        "(here / 'cache').write_text('x')",
        "(here / 'out').mkdir(exist_ok=True)",
        "subprocess.run(['touch', here / 'out' / 'of_a_child'], check=True)",
        "sqlite3.connect(here / 'data' / 'my.db').execute('create table if not exists t (x)')",
        "(here / 'tmp').write_text('x')",
        "(here / 'tmp').rename(here / 'renamed [1]')",
        "open(here / 'data' / 'w').close()",
        "(here / '.hidden').write_text('x')",
    )
    folder, spec = handler(file, "writes_beside", "; ".join(writes))
    before = contents.digest(folder)
    loaded = loading.from_file(spec)
    assert {"cache", "out", "renamed [1]"} < {each.name for each in folder.iterdir()}
    assert loaded.content == before == contents.digest(folder)
    assert loading.from_file(spec).content == before, "and at its next start"
    lines = (folder / ".dormouseignore").read_text().split("\n")
    assert lines[:3] == ["cache", "out/", "data/my.db"]
    subprocess.run(["touch", folder / "added.py"], check=True)  # by somebody else
    assert contents.digest(folder) != before


def test_negative_control_without_the_notes_it_would_be(file: WorkerFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(written.Written, "watch", lambda self: None)
    folder, spec = handler(file, "writes_unseen", "(here / 'cache').write_text('x')")
    assert loading.from_file(spec).content != contents.digest(folder)


def test_a_file_that_nobody_saw_come_is_not_of_a_revision_that_was_proved_without_it(file: WorkerFile) -> None:
    folder, spec = handler(file, "writes_by_a_child", "subprocess.run(['touch', here / 'by_a_child'], check=True)")
    loaded = loading.from_file(spec)
    proved = msgspec.structs.replace(spec, files=sorted(loaded.files))
    assert (folder / "by_a_child").exists()
    assert loading.from_file(proved).content == loaded.content != contents.digest(folder)
    (folder / "data" / "w").write_text("2")
    assert loading.from_file(proved).content != loaded.content


@pytest.mark.parametrize(
    "change", ["(here / 'data' / 'w').write_text('2')", "(here / 'data' / 'w').unlink(); (here / 'data' / 'w').touch()"]
)
def test_a_handler_that_changes_what_came_with_it_is_told_at_once(file: WorkerFile, change: str) -> None:
    folder, spec = handler(file, f"changes_{len(change)}", change)
    with pytest.raises(ModelUnavailable, match="data/w of code changed while the handler was set up; what came with it is not for it to"):
        loading.from_file(spec)
    assert not (folder / ".dormouseignore").exists()


def test_an_ignored_name_is_a_name_a_pattern_or_a_folder(tmp_path: Path) -> None:
    ignored = ignoring.parse("# *.py\n\na.db\nout/\n*.log\n")
    names = ["a.db", "out/x/y", "b.log", "c/d.log", "mine.py", "ba.db", "a.db2", "outer", "# "]
    assert [name for name in names if ignored(name)] == names[:4]
    for name in ("a[1]*?.x", "#x", "plain"):
        assert ignoring.parse(ignoring.escape(name))(name)
        assert not ignoring.parse(ignoring.escape(name))("a1bc.x")
    assert [ignoring.escape(name) for name in ("a\nb", " a", "")] == ["", "", ""]


def test_what_cannot_be_noted_stops_no_handler(tmp_path: Path) -> None:
    notes = written.Written(tmp_path / "none", [])
    for event, given in (("open", (3, "w", os.O_WRONLY)), ("open", (object(), "w", os.O_WRONLY)), ("os.mkdir", ()), ("import", ("x",))):
        notes.heard(event, given)
    notes.heard("open", (str(tmp_path / "none" / "x"), "w", os.O_WRONLY))
    assert not (tmp_path / "none").exists()


# ------------------------------------------------------------------------------------------------------------------ spec.model.sha256


def loads(file: WorkerFile, sha256: str, uri: str = "file://m.onnx") -> None:
    spec = parse_manifest(onnx(model={"uri": uri, "sha256": sha256})).spec
    assert loading.from_file(msgspec.structs.replace(file, spec=spec)).content == sha256


def test_a_digest_covers_every_file_of_the_model(file: WorkerFile, path: Path) -> None:
    loads(file, hashlib.sha256(path.read_bytes()).hexdigest())
    models.scaled(path, 2.0, "weights.bin")
    own = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(
        ModelInvalid, match=r"sha256: m\.onnx has \w+, the digest of its 2 files \(m\.onnx, weights\.bin\); \w+ is expected"
    ):
        loads(file, own)
    printed = subprocess.run(["sha256sum", "m.onnx", "weights.bin"], cwd=path.parent, check=True, capture_output=True).stdout
    loads(file, hashlib.sha256(printed).hexdigest())
    (path.parent / "weights.bin").write_bytes(b"\1" * 16)
    with pytest.raises(ModelInvalid, match="is expected"):
        loads(file, hashlib.sha256(printed).hexdigest())


def test_a_name_with_a_new_line_is_no_second_file(tmp_path: Path) -> None:
    (tmp_path / "a\nb\\").write_text("1")
    printed = subprocess.run(["sha256sum", "a\nb\\"], cwd=tmp_path, check=True, capture_output=True).stdout
    assert contents.digest(tmp_path) == hashlib.sha256(printed).hexdigest()


def test_a_file_that_is_written_after_it_was_compared_is_not_served(file: WorkerFile, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between its reading and its loading: other bytes than those that were compared would be loaded."""
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    real = contents.read

    def swapped(*given: object) -> dict[str, str]:
        found = real(*given)  # type: ignore[arg-type]
        models.rows(path.with_name("other.onnx"), 2, 2, hidden=2).rename(path)
        return found

    monkeypatch.setattr(contents, "read", swapped)
    with pytest.raises(ModelUnavailable, match=r"m\.onnx of m\.onnx changed while it was loaded"):
        loads(file, sha256)


def test_a_file_that_is_replaced_while_it_loads_is_no_invalid_model(file: WorkerFile, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is tried again, and not refused for what was half of one and half of another."""

    def half(*given: object) -> None:
        path.write_bytes(path.read_bytes())
        raise ModelInvalid("m.onnx does not load")

    monkeypatch.setattr(loading, "_onnx", half)
    with pytest.raises(ModelUnavailable, match="changed while it was loaded"):
        loading.from_file(file)
    monkeypatch.undo()
    path.write_bytes(b"no model")
    with pytest.raises(ModelInvalid, match="does not load"):
        loading.from_file(file)


def test_what_was_written_just_now_is_looked_at_again(file: WorkerFile, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a tick of the file system's clock another write shows no other time."""
    waited: list[float] = []
    monkeypatch.setattr(reading.time, "sleep", lambda seconds: (waited.append(seconds), path.write_bytes(b"more" * len(waited)))[0])
    path.write_bytes(b"more")
    with pytest.raises(ModelUnavailable, match=r"m\.onnx is being written"):
        ContentReading(path, file)
    assert len(waited) == reading.SETTLING
