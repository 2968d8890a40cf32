"""Models that hide how their rows depend on each other: many callers at once get what they get alone, and who does batch still batches."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from dormouse_core import limits
from dormouse_core import spec as specs
from dormouse_testing import hostile_models, models
from dormouse_testing.hostile_models import MODELS, Hostile
from dormouse_testing.models import FLOAT, node, write
from dormouse_testing.onnx_calls import infer, load, raw
from dormouse_worker.batches import forms
from dormouse_worker.rows import deciding, graphs, independence

CALLS = 86
"""Not a multiple of 32: the last joined run is a smaller one."""
DATATYPES = {"float32": "FP32", "int64": "INT64", "bool": "BOOL", "uint8": "UINT8"}


@pytest.fixture(autouse=True)
def enough_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine may be busy; what is asked here is what is found."""
    monkeypatch.setattr(limits, "BATCHING_SECONDS", 60.0)


async def wrong_answers(path: Path, hostile: Hostile, seed: int = 0) -> int:
    runtime = load(hostile.make(path), **(hostile.batching or {"max_batch_size": None}))
    rng = np.random.default_rng(seed)
    calls = [hostile.draw(rng) for _ in range(CALLS)]
    messages = [raw({k: (DATATYPES[str(v.dtype)], list(v.shape), v.tobytes()) for k, v in call.items()}) for call in calls]
    direct = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    wrong = 0
    for call, answer in zip(calls, await infer(runtime, *messages), strict=True):
        (alone,) = direct.run(["y"], call)
        wrong += not (isinstance(answer, dict) and _same(answer["y"], alone))
    return wrong


def _same(answer: tuple[str, list[int], bytes], alone: np.ndarray) -> bool:
    """Each element by its own measure: what is mixed is small beside the rest."""
    if answer[1] != list(alone.shape):
        return False
    found = np.frombuffer(answer[2], alone.dtype).reshape(alone.shape)
    return bool(np.allclose(found, alone, rtol=1e-4, atol=1e-6, equal_nan=True))


@pytest.mark.parametrize("name", MODELS)
async def test_every_caller_gets_what_it_gets_alone(tmp_path: Path, name: str) -> None:
    assert await wrong_answers(tmp_path / "m.onnx", MODELS[name]) == 0


UNHIDDEN = {
    "what a row stands beside": (independence._Experiment, "_beside", lambda self: None, "any that is -1"),
    "each element by its own measure": (independence, "OWN", 1e12, "its place beside numbers ten million times larger"),
    "numbers of rows": (independence._Experiment, "_totals", lambda self: [32], "from 9 to 30 rows"),
    "forms": (forms.Form, "rows", lambda self, most, work, seconds: most, "sequences longer than 600"),
    "what values decide": (deciding, "look", lambda graph, rows: None, "as long as the longest, and most are"),
}


@pytest.mark.parametrize("name", UNHIDDEN)
async def test_without_each_of_these_looks_they_get_each_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Negative controls."""
    where, what, instead, model = UNHIDDEN[name]
    monkeypatch.setattr(where, what, instead)
    if name == "forms":
        shown = forms.Forms.of
        monkeypatch.setattr(forms.Forms, "of", lambda self, group: setattr(form := shown(self, group), "joins", True) or form)
    assert await wrong_answers(tmp_path / "m.onnx", MODELS[model]) > 0


# ------------------------------------------------------------------------------------------------------------------------ sessions


def recurrent(path: Path, gain: float) -> Path:
    """h' = tanh of a random matrix of h and x: what is rounded dies out below a gain of 1, and grows step by step above."""
    size = 32
    rng = np.random.default_rng(0)
    w, r = ((gain * rng.standard_normal((1, size, size)) / np.sqrt(size)).astype(np.float32) for _ in range(2))
    nodes = [
        node("Unsqueeze", ["x", "zero"], ["xs"]),
        node("Unsqueeze", ["h", "zero"], ["hs"]),
        node("RNN", ["xs", "w", "r", "", "", "hs"], ["", "hns"], hidden_size=size),
        node("Squeeze", ["hns", "zero"], ["hn"]),
        node("Identity", ["hn"], ["y"]),
    ]
    inputs = [("x", FLOAT, ["n", size]), ("h", FLOAT, ["n", size])]
    return write(path, nodes, inputs, [("y", FLOAT, ["n", size]), ("hn", FLOAT, ["n", size])], {"w": w, "r": r, "zero": np.array([0])})


def told(path: Path) -> Any:
    state = specs.StateSpec(input="h", output="hn", shape=[-1, 32], batch_axis=0)
    return load(path, state, max_batch_size=None).signature.batching


def test_what_is_rounded_may_not_grow_from_step_to_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert told(recurrent(tmp_path / "calm.onnx", 0.5)).reason == "Independent"
    wild = told(recurrent(tmp_path / "wild.onnx", 2.5))
    assert wild.reason == "Dependent"
    assert "steps of a session" in wild.message
    monkeypatch.setattr(independence, "STEPS", 0)
    assert told(tmp_path / "wild.onnx").reason == "Independent", "negative control: one step shows nothing"


# ----------------------------------------------------------------------------------------------------------- what is told, and what batches


def test_a_model_that_answers_at_random_is_told_so(tmp_path: Path) -> None:
    nodes = [node("RandomNormalLike", ["x"], ["r"]), node("Add", ["x", "r"], ["y"])]
    path = write(tmp_path / "m.onnx", nodes, [("x", FLOAT, ["n", 4])], [("y", FLOAT, ["n", 4])])
    found = load(path, max_batch_size=None).signature.batching
    assert found is not None
    assert found.message == "Every call runs alone: the model answers the same call differently each time."


@pytest.mark.parametrize("name", ["tanh", "embedding"])
def test_what_does_batch_is_still_joined(tmp_path: Path, name: str) -> None:
    path = {"tanh": _tanh, "embedding": _embedding}[name](tmp_path / "m.onnx")
    found = load(path, max_batch_size=None).signature.batching
    assert found is not None
    assert found.reason == "Independent", found.message


def _tanh(path: Path) -> Path:
    return models.rows(path, 300, 20, 200)


def _embedding(path: Path) -> Path:
    table = np.random.default_rng(0).standard_normal((50, 8)).astype(np.float32)
    nodes = [node("Gather", ["table", "ids"], ["e"]), node("ReduceMean", ["e"], ["y"], axes=[1], keepdims=0)]
    return write(path, nodes, [("ids", 7, ["n", "t"])], [("y", FLOAT, ["n", 8])], {"table": table})


def _masked(path: Path) -> Path:
    """Numbers that are not below 0 are found, and written into a tensor of zeros: findings that change no size."""
    nodes = [
        node("Shape", ["x"], ["shape"]),
        node("GreaterOrEqual", ["x", "zero"], ["mask"]),
        node("NonZero", ["mask"], ["at"]),
        node("Transpose", ["at"], ["places"]),
        node("GatherND", ["x", "places"], ["found"]),
        node("ConstantOfShape", ["shape"], ["empty"]),
        node("ScatterND", ["empty", "places", "found"], ["y"]),
    ]
    return write(path, nodes, [("x", FLOAT, ["n", 4])], [("y", FLOAT, ["n", 4])], {"zero": np.float32(0)})


def test_a_graph_that_values_of_rows_lead_is_not_joined(tmp_path: Path) -> None:
    assert deciding.look(_read(hostile_models.MODELS["as long as the longest"], tmp_path), ["lengths"]) == (
        "a node Slice of its graph is led by the values of all rows together"
    )
    assert deciding.look(_read(hostile_models.MODELS["another way above 77"], tmp_path), ["x"]) == (
        "a node If of its graph is led by the values of all rows together"
    )
    assert deciding.look(_read(hostile_models.MODELS["sequences longer than 600"], tmp_path), ["x"]) is None, "a length is no value"
    assert deciding.look(_read(hostile_models.MODELS["one finding a row"], tmp_path), ["x"]) == (
        'how large "y" is follows from what is found in all rows together'
    )
    masked = graphs.read(_masked(tmp_path / "masked.onnx"))
    assert masked is not None
    assert deciding.look(masked, ["x"]) is None, "as large as what it is written into"
    counted = graphs.read(models.slow(tmp_path / "loop.onnx"))
    assert counted is not None
    assert deciding.look(counted, ["n"]) == "a node Loop of its graph is led by the values of all rows together"
    assert deciding.look(counted, []) is None


def _read(hostile: Hostile, folder: Path) -> graphs.Graph:
    graph = graphs.read(hostile.make(folder / "m.onnx"))
    assert graph is not None
    return graph
