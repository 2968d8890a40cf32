"""`dormouse init`: where it writes, what it refuses, and that what it writes is a manifest that loads."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from dormouse.initial import manifest
from dormouse.main import main
from dormouse_core import spec as specs
from dormouse_core.errors import DormouseError
from dormouse_core.limits import STATE_BYTES
from dormouse_testing import models, sequence_models
from dormouse_worker.models.refusals import ModelInvalid
from dormouse_worker.runtimes import onnx


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


def test_a_state_that_grows_says_when_its_session_is_full(tmp_path: Path) -> None:
    """A cache with 4 KiB of FP32 for each place, 248 of which are 992 KiB; and a state that stays as it is."""
    nodes = [models.node("Concat", ["past.key", "x"], ["present.key"], axis=1), models.node("Identity", ["state"], ["state_out"])]
    sizes = [("x", models.FLOAT, ["n", "new", 1024]), ("past.key", models.FLOAT, ["n", "past", 1024]), ("state", models.FLOAT, ["n", 2])]
    kept = [("present.key", models.FLOAT, ["n", "past + new", 1024]), ("state_out", models.FLOAT, ["n", 2])]
    text = manifest("fn", models.write(tmp_path / "m.onnx", nodes, sizes, kept), "file://m.onnx")
    assert "# What begins with a size of 0 grows, by 4096 bytes with each place: with 248\n" in text
    assert 248 * 4096 <= STATE_BYTES < 249 * 4096
    assert "initial: {shape: [1, 0, 1024]}" in text
    steady = manifest("fn", sequence_models.accumulate(tmp_path / "steady.onnx"), "file://steady.onnx")
    assert "grows" not in steady


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


@pytest.mark.parametrize(("kind", "cure"), [("seq(map(int64,tensor(float)))", '"zipmap": False'), ("seq(tensor(float))", None)])
def test_a_classifier_that_answers_with_a_dictionary_is_told_how_it_is_exported_otherwise(kind: str, cure: str | None) -> None:
    with pytest.raises(ModelInvalid) as raised:
        onnx._datatype(SimpleNamespace(name="output_probability", type=kind))
    assert "the model's 'output_probability' is seq(" in raised.value.message
    assert ("skl2onnx" in raised.value.message) == (cure is not None)
    assert (cure or "datatype") in raised.value.message


def centred(path: Path) -> Path:
    nodes = [models.node("ReduceMean", ["x"], ["m"], axes=[0], keepdims=1), models.node("Sub", ["x", "m"], ["y"])]
    return models.write(path, nodes, [("x", models.FLOAT, ["time", 4])], [("y", models.FLOAT, ["time", 4])])


def refusing(path: Path) -> Path:
    """Takes ids from 500 to 502 alone."""
    nodes = [models.node("Sub", ["x", "base"], ["at"]), models.node("Abs", ["at"], ["far"]), models.node("Gather", ["table", "far"], ["y"])]
    constants = {"base": np.array(501), "table": np.arange(2, dtype=np.float32)}
    return models.write(path, nodes, [("x", models.INT64, ["n", 1])], [("y", models.FLOAT, ["n", 1])], constants)


def sequence_first(path: Path) -> Path:
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in (("w", (1, 4, 2)), ("r", (1, 4, 4)))}
    nodes = [models.node("RNN", ["x", "w", "r", "", "", "h0"], ["all", "hn"], hidden_size=4), models.node("Squeeze", ["all", "at"], ["y"])]
    inputs = [("x", models.FLOAT, ["T", "N", 2]), ("h0", models.FLOAT, [1, "N", 4])]
    outputs = [("y", models.FLOAT, ["T", "N", 4]), ("hn", models.FLOAT, [1, "N", 4])]
    return models.write(path, nodes, inputs, outputs, weights | {"at": np.array([1])})


@pytest.mark.parametrize(
    ("make", "axes", "why"),
    [
        (models.double, None, "# Up to 32 rows of several calls run together: in an experiment"),
        (centred, {}, '# Every call runs alone: output "y" of a call differs by'),
        (sequence_first, {"x": 1, "y": 1}, "# Up to 32 rows of several calls run together: in an experiment"),
        (models.slow, None, "# Every call runs alone: no first dimension varies in every output."),
        (refusing, None, "# If rows are independent of each other, say so with batching: {maxBatchSize: 32}"),
    ],
)
def test_whether_calls_run_together_is_proposed_and_why(
    tmp_path: Path, make: Callable[[Path], Path], axes: dict[str, int] | None, why: str
) -> None:
    text = manifest("fn", make(tmp_path / "m.onnx"), "file://m.onnx")
    assert specs.parse_manifest(text).spec.batching.axes == axes
    assert why in text


def test_a_sequence_first_model_keeps_its_states_batch_apart_from_time(tmp_path: Path) -> None:
    sessions = specs.parse_manifest(manifest("fn", sequence_first(tmp_path / "m.onnx"), "file://m.onnx")).spec.sessions
    assert sessions is not None
    assert [(state.input, state.batch_axis) for state in sessions.states] == [("h0", 1)]


def test_a_long_name_is_cut_to_what_a_function_may_have(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = models.double(tmp_path / f"{'Long_' * 12}model.onnx")
    monkeypatch.chdir(tmp_path)
    assert main(["init", path.name, "-o", "-"]) == 0
    found = specs.parse_manifest(capsys.readouterr().out).metadata.name
    assert found == "long-" * 10 + "lo"
    assert len(found) == 52
