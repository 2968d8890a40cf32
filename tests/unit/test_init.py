"""`dormouse init`: where it writes, what it refuses, and that what it writes is a manifest that loads."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from dormouse.initial import manifest
from dormouse.main import main
from dormouse_core import spec as specs
from dormouse_core.errors import DormouseError
from dormouse_testing import models, sequence_models


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_manifest_is_written_beside_and_not_over(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models.counter(here / "Deep_Net" / "model.onnx")
    assert main(["init", "Deep_Net/model.onnx"]) == 0
    text = (here / "deep-net.yaml").read_text()
    function = specs.parse_manifest(text)
    assert function.metadata.name == "deep-net"
    assert function.spec.model is not None
    assert function.spec.model.uri == "file://Deep_Net/model.onnx"
    assert function.spec.sessions is not None
    assert [(s.input, s.output, s.shape, s.batch_axis) for s in function.spec.sessions.states] == [("state", "stateN", [-1, 4], 0)]
    assert main(["init", "Deep_Net/model.onnx"]) == 1
    assert "exists already" in capsys.readouterr().err
    assert main(["init", "Deep_Net/model.onnx", "--force", "--name", "deep-net"]) == 0


def test_it_prints(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models.double(here / "m.onnx")
    assert main(["init", "m.onnx", "--name", "stateless", "-o", "-"]) == 0
    function = specs.parse_manifest(capsys.readouterr().out)
    assert (function.metadata.name, function.spec.sessions) == ("stateless", None)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["none.onnx"], "no such file"),
        (["."], "a folder"),
        (["text.onnx"], "does not load"),
        (["/m.onnx"], "not under"),
        (["m.onnx", "--name", "No Name"], "metadata.name"),
    ],
)
def test_what_is_refused(
    here: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    (here / "text.onnx").write_text("not a model")
    models.double(here / "m.onnx")
    if words[0] == "/m.onnx":
        words = [str(models.double(tmp_path_factory.mktemp("elsewhere") / "m.onnx"))]
    assert main(["init", *words]) == 1
    error = capsys.readouterr().err
    assert told in error
    assert not list(here.glob("*.yaml"))


def test_what_is_not_certain_is_a_comment(tmp_path: Path) -> None:
    nodes = [models.node("Add", ["x", "memory"], ["y"]), models.node("Identity", ["y"], ["z"])]
    values = [("x", models.FLOAT, ["n", 2]), ("memory", models.FLOAT, ["n", 2])]
    path = models.write(tmp_path / "m.onnx", nodes, values, [("y", models.FLOAT, ["n", 2]), ("z", models.FLOAT, ["n", 2])])
    text = manifest("fn", path, "file://m.onnx")
    assert specs.parse_manifest(text).spec.sessions is None
    assert "#   'memory' with 'y' or 'z': the names differ" in text


def test_names_that_yaml_would_misread(tmp_path: Path) -> None:
    nodes = [models.node("Identity", ["mem: {in}"], ["mem: {out}"]), models.node("Identity", ["x"], ["y"])]
    values = [("x", models.FLOAT, ["n", 2]), ("mem: {in}", models.FLOAT, ["n", 2])]
    path = models.write(tmp_path / "m.onnx", nodes, values, [("y", models.FLOAT, ["n", 2]), ("mem: {out}", models.FLOAT, ["n", 2])])
    sessions = specs.parse_manifest(manifest("fn", path, "file://m.onnx")).spec.sessions
    assert sessions is not None
    assert (sessions.states[0].input, sessions.states[0].output) == ("mem: {in}", "mem: {out}")


def test_the_command_needs_no_running_system(tmp_path: Path) -> None:
    path = sequence_models.accumulate(tmp_path / "m.onnx")
    environment = {**os.environ, "DORMOUSE_DIR": ""}
    found = subprocess.run(
        [Path(sys.executable).with_name("dormouse"), "init", path.name, "-o", "-"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr
    assert "controls: {start: START, end: END, ready: READY, correlationId: CORRID}" in found.stdout


def test_an_error_of_the_runtime_is_the_commands(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"")
    with pytest.raises(DormouseError):
        manifest("fn", tmp_path / "m.onnx", "file://m.onnx")
