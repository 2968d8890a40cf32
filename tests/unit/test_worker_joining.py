"""Whether calls run together: what is tried, whose word counts, and what is kept with a proof."""

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from dormouse_core import limits
from dormouse_core import spec as specs
from dormouse_core.errors import Code
from dormouse_proto import state_pb2
from dormouse_testing import models
from dormouse_testing.models import FLOAT, INT64, node, write
from dormouse_testing.onnx_calls import infer, load, most_rows, raw
from dormouse_worker.models.refusals import ModelInvalid
from dormouse_worker.rows import joining
from dormouse_worker.rows.independence import Shown, Unknown
from dormouse_worker.rows.layouts import Layout, Tensor, layouts
from dormouse_worker.runtimes.onnx import OnnxRuntime
from onnx import helper

NOTHING = {"max_batch_size": None}


def told(path: Path, *states: specs.StateSpec, **batching: Any) -> state_pb2.Batching:
    found = load(path, *states, **(batching or NOTHING)).signature.batching
    assert found is not None
    return found


def centred(path: Path) -> Path:
    nodes = [node("ReduceMean", ["x"], ["m"], axes=[0], keepdims=1), node("Sub", ["x", "m"], ["y"])]
    return write(path, nodes, [("x", FLOAT, ["time", 4])], [("y", FLOAT, ["time", 4])])


def test_the_experiment_has_the_time_that_is_stated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of processor time, and three times that by the clock."""
    ends: list[tuple[float, float]] = []
    monkeypatch.setattr(joining, "_verdict", lambda model, layout, most, until: ends.append(until) or Unknown("not tried"))
    monkeypatch.setattr(joining, "time", SimpleNamespace(thread_time=lambda: 100.0, monotonic=lambda: 1000.0))
    assert told(models.double(tmp_path / "m.onnx")).reason == "NotShown"
    assert {*ends} == {(100.0 + limits.BATCHING_SECONDS, 1000.0 + 3 * limits.BATCHING_SECONDS)}


def unranked(path: Path) -> Path:
    """y = 2 x, of any shape."""
    x, y = (helper.make_tensor_value_info(name, FLOAT, None) for name in "xy")
    graph = helper.make_graph([node("Add", ["x", "x"], ["y"])], "t", [x], [y])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


def picky(path: Path) -> Path:
    """Refuses every input but ids from 500 to 502: random ones are no valid input."""
    nodes = [node("Sub", ["x", "base"], ["at"]), node("Abs", ["at"], ["distance"]), node("Gather", ["table", "distance"], ["y"])]
    constants = {"base": np.array(501), "table": np.arange(2, dtype=np.float32)}
    return write(path, nodes, [("x", INT64, ["n", 1])], [("y", FLOAT, ["n", 1])], constants)


def test_by_default_the_experiment_decides(tmp_path: Path) -> None:
    found = told(models.double(tmp_path / "m.onnx"))
    assert (found.reason, found.rows, dict(found.axes)) == ("Independent", limits.BATCH_SIZE, {"x": 0, "y": 0})
    found = told(centred(tmp_path / "c.onnx"))
    assert (found.reason, found.rows, dict(found.axes)) == ("Dependent", 0, {})
    assert found.message.startswith('Every call runs alone: output "y" of a call differs by ')


@pytest.mark.parametrize("most", [2, 8, 100])
def test_a_number_of_the_users_bounds_what_is_joined(tmp_path: Path, most: int) -> None:
    assert told(models.double(tmp_path / "m.onnx"), max_batch_size=most).rows == most


def test_their_number_is_not_followed_against_the_experiment(tmp_path: Path) -> None:
    found = told(centred(tmp_path / "m.onnx"), max_batch_size=16)
    assert (found.reason, found.rows) == ("Contradicted", 0)
    assert 'output "y"' in found.message
    assert "batching.maxBatchSize is 16, which is not followed" in found.message


def test_their_number_is_their_word_where_no_experiment_can_be_made(tmp_path: Path) -> None:
    path = picky(tmp_path / "m.onnx")
    alone = told(path)
    assert (alone.reason, alone.rows) == ("NotShown", 0)
    assert "the model refuses random values" in alone.message
    found = told(path, max_batch_size=16)
    assert (found.reason, found.rows, dict(found.axes)) == ("Declared", 16, {"x": 0, "y": 0})
    assert "the model refuses random values" in found.message


@pytest.mark.parametrize("batching", [{"max_batch_size": 1}, {"axes": {}}, {"axes": {}, "max_batch_size": 8}])
def test_what_is_said_not_to_batch_is_not_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batching: dict[str, Any]) -> None:
    monkeypatch.setattr(joining, "experiment", lambda *_: pytest.fail("an experiment"))
    found = told(models.double(tmp_path / "m.onnx"), **batching)
    assert (found.reason, found.rows) == ("Declared", 0)


def test_the_graph_is_looked_at_beside_the_experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = centred(tmp_path / "m.onnx")
    monkeypatch.setattr(joining, "experiment", lambda run, ports, outs, most: Shown((0,), 0.0, ""))
    found = told(path)
    assert (found.reason, found.rows) == ("Dependent", 0)
    assert "a node ReduceMean of its graph works along the axis 0" in found.message
    monkeypatch.setattr(joining.mixing, "look", lambda graph, axes: None)
    assert told(path).reason == "Independent", "negative control: without the look it would be joined"


def test_it_ends_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "BATCHING_SECONDS", 0.0)
    found = told(models.double(tmp_path / "m.onnx"))
    assert (found.reason, found.rows) == ("NotShown", 0)
    assert "takes longer than" in found.message


def test_a_slow_run_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run that is under way when the time is over ends by `stop`, not by itself."""
    loaded = OnnxRuntime(models.double(tmp_path / "m.onnx"), (), 1)
    stopped = threading.Event()

    def run(feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        assert stopped.wait(20)
        raise RuntimeError("terminated")

    monkeypatch.setattr(limits, "BATCHING_SECONDS", 0.05)
    found = joining.decide(joining.Model(loaded.signature, loaded.dims, None, run, stopped.set), specs.Batching(), "key")
    assert found.reason == "NotShown"
    assert "takes longer than" in found.message


def hungry(path: Path) -> Path:
    """y = x and the most of four million copies of each row: 64 MB a row, more than the allocator has from what ran here before."""
    nodes = [node("Tile", ["x", "copies"], ["many"]), node("ReduceMax", ["many"], ["most"], axes=[1]), node("Add", ["x", "most"], ["y"])]
    constants = {"copies": np.array([1, 1 << 22])}
    return write(path, nodes, [("x", FLOAT, ["n", 4])], [("y", FLOAT, ["n", 4])], constants)


def test_its_memory_is_what_the_worker_has(tmp_path: Path) -> None:
    path = hungry(tmp_path / "m.onnx")
    found, rows = most_rows(path, 160 << 20, **NOTHING)
    assert (found.reason, found.rows) == ("NotShown", 0)
    assert "more memory than the worker has" in found.message
    assert rows == 1
    _, rows = most_rows(path, 40 << 30, max_batch_size=2)
    assert rows > 1, "negative control: with room enough they are run"


# ----------------------------------------------------------------------------------------------------------------------------- axes


@pytest.mark.parametrize(
    ("axes", "word"),
    [
        ({"z": 0}, "no public input or output of this name; it has x, y"),
        ({"x": 2}, "the model's 'x' has 2 dimensions"),
        ({"x": 1}, "'x' has the fixed size 4"),
    ],
)
def test_axes_that_do_not_fit_the_model(tmp_path: Path, axes: dict[str, int], word: str) -> None:
    with pytest.raises(ModelInvalid) as raised:
        load(models.double(tmp_path / "m.onnx"), axes=axes)
    assert word in raised.value.message
    assert raised.value.message.startswith("spec.batching.axes[")


async def test_an_input_without_a_shape_need_not_have_the_axis(tmp_path: Path) -> None:
    runtime = load(unranked(tmp_path / "m.onnx"), axes={"x": 1}, max_batch_size=8)
    assert runtime.signature.max_batch == 8, "as the user says, for no experiment could be made"
    calls = [np.ones(shape, np.float32) for shape in ((3,), (2, 1), (), (2, 2), (3,))]
    found = await infer(runtime, *[raw({"x": ("FP32", list(x.shape), x.tobytes())}) for x in calls])
    assert [answer["y"] if isinstance(answer, dict) else answer for answer in found] == [
        ("FP32", list(x.shape), (2 * x).tobytes()) for x in calls
    ]


async def test_rows_on_another_axis(tmp_path: Path) -> None:
    """y = x cumulated over time, its first axis; rows lie on the second."""
    shape = [None, None, 2]
    path = write(
        tmp_path / "m.onnx", [node("CumSum", ["x", "at"], ["y"])], [("x", FLOAT, shape)], [("y", FLOAT, shape)], {"at": np.array(0)}
    )
    assert told(path).reason == "Dependent", "nothing in the model names the second axis"
    runtime = load(path, axes={"x": 1})
    assert dict(runtime.signature.joined(runtime.signature.batching).batching.axes) == {"x": 1, "y": 1}  # type: ignore[union-attr, arg-type]
    assert runtime.signature.metadata("").max_batch_size == 0, "Triton's clients know the first axis only"
    rng = np.random.default_rng(0)
    calls = [rng.standard_normal((3, rows, 2)).astype(np.float32) for rows in (1, 2, 1, 3, 1, 2)]
    runs = runtime.run
    sizes = []
    runtime.run = lambda feeds: (sizes.append(feeds["x"].shape), runs(feeds))[1]  # type: ignore[func-returns-value, method-assign]
    found = await infer(runtime, *[raw({"x": ("FP32", list(x.shape), x.tobytes())}) for x in calls])
    assert [answer["y"] for answer in found if isinstance(answer, dict)] == [
        ("FP32", list(x.shape), np.cumsum(x, 0).astype(np.float32).tobytes()) for x in calls
    ]
    assert (3, 7, 2) in sizes


def T(name: str, *dims: Any) -> Tensor:
    return Tensor(name, dims)


@pytest.mark.parametrize(
    ("inputs", "outputs", "states", "first"),
    [
        ([T("x", "n", 4)], [T("y", "n", 4)], [], Layout({"x": 0}, {"y": 0})),
        ([T("x", None, 4)], [T("y", None, 4)], [], Layout({"x": 0}, {"y": 0})),
        ([T("x", "batch", 4)], [T("y", None, 4)], [], Layout({"x": 0}, {"y": 0})),
        ([T("x", "unk__1", 4)], [T("y", "unk__2", 4)], [], Layout({"x": 0}, {"y": 0})),
        ([T("x", "T", "N", 3)], [T("y", "T", "N", 3)], ["N"], Layout({"x": 1}, {"y": 1})),
        ([T("x", "T", "N", 3)], [T("y", "T", "N", 3)], [], Layout({"x": 0}, {"y": 0})),
        ([T("x", "n", 4), T("t")], [T("y", "n", 4)], [], Layout({"x": 0}, {"y": 0})),
        ([T("x", "n", 4)], [T("y", 1, 4)], [], None),
        ([T("x", 1, 4)], [T("y", 1, 4)], [], None),
        ([T("x", "n", 4)], [Tensor("y", None)], [], Layout({"x": 0}, {})),
        ([], [T("y", "n", 4)], [None], Layout({}, {})),
    ],
)
def test_layouts(inputs: list[Tensor], outputs: list[Tensor], states: list[Any], first: Layout | None) -> None:
    found = layouts(inputs, outputs, states)
    assert (found[0] if found else None) == first


# ----------------------------------------------------------------------------------------------------------------------- no shape


@pytest.mark.parametrize("shape", [[], [0], [2, 3], [1, 2, 3, 1]])
async def test_an_input_without_a_shape_takes_any_rank(tmp_path: Path, shape: list[int]) -> None:
    """Case 11.O9. ONNX Runtime says of such an input what it says of a scalar."""
    runtime = load(unranked(tmp_path / "m.onnx"), **NOTHING)
    x = np.ones(shape, np.float32)
    found = await infer(runtime, raw({"x": ("FP32", shape, x.tobytes())}))
    assert found == [{"y": ("FP32", shape, (x + x).tobytes())}]


async def test_a_declared_scalar_is_still_one(tmp_path: Path) -> None:
    runtime = load(models.threshold(tmp_path / "m.onnx"))
    x, t = np.ones((1, 4), np.float32).tobytes(), np.ones(1, np.float32).tobytes()
    (found,) = await infer(runtime, raw({"x": ("FP32", [1, 4], x), "t": ("FP32", [1], t)}))
    assert isinstance(found, tuple)
    assert found[0] is Code.INVALID_ARGUMENT


# ------------------------------------------------------------------------------------------------------------------------ the proof


def test_what_was_found_is_kept_and_not_looked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = models.double(tmp_path / "m.onnx")
    found = told(path)
    made = 0

    def counted(*_: Any) -> Shown:
        nonlocal made
        made += 1
        return Shown((0,), 0.0, "")

    monkeypatch.setattr(joining, "experiment", counted)
    woken = OnnxRuntime(path, (), 1)
    woken.batch(specs.Batching(), (), found)
    assert (made, woken.signature.batching, woken.signature.max_batch) == (0, found, limits.BATCH_SIZE)
    for change, batching in ((lambda: None, specs.Batching(max_batch_size=4)), (lambda: centred(path), specs.Batching())):
        change()
        other = OnnxRuntime(path, (), 1)
        other.batch(batching, (), found)
        assert other.signature.batching is not None
        assert other.signature.batching.key != found.key
    assert made == 2, "another manifest and another file are looked at"


def test_weights_beside_the_file_count_by_their_size(tmp_path: Path) -> None:
    path = models.scaled(tmp_path / "m.onnx", 2.0, "w.bin")
    before = told(path).key
    with (tmp_path / "w.bin").open("ab") as file:
        file.write(b"more")
    assert told(path).key != before


def test_many_states(tmp_path: Path) -> None:
    """Case 11.O10: the caches of a streaming zipformer."""
    path, states = models.caches(tmp_path / "m.onnx", 97)
    manifest = {
        "apiVersion": "dormouse.dev/v1alpha1", "kind": "InferenceFunction", "metadata": {"name": "zip"},
        "spec": {"runtime": "onnx", "model": {"uri": "file://m.onnx"}, "sessions": {"states": states}},
    }  # fmt: skip
    sessions = specs.parse_manifest(manifest).spec.sessions
    assert sessions is not None
    assert told(path, *sessions.states).reason == "Independent"
