"""Random models, many callers at once: each is answered as the model answers it alone, whatever its first axis means."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from dormouse_core.limits import BATCHING_TOLERANCE_FP32
from dormouse_testing.onnx_calls import infer, load, raw
from dormouse_testing.random_graphs import random_calls, random_model
from dormouse_worker.batches.forms import Form, Forms
from dormouse_worker.rows import deciding, joining, mixing
from dormouse_worker.rows.independence import Shown

GRAPHS = 32
CALLS = 16


async def wrong_answers(path: Path, seed: int) -> tuple[int, bool]:
    """How many of the calls got something else than the model gives them alone, and whether any ran together."""
    random_model(path, seed)
    runtime = load(path, max_batch_size=None)
    rank = len(runtime.signature.inputs[0].shape)
    calls = random_calls(rank, seed, CALLS)
    found = await infer(runtime, *[raw({"x": ("FP32", list(x.shape), x.tobytes())}) for x in calls])
    direct = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    wrong = 0
    for x, answer in zip(calls, found, strict=True):
        (alone,) = direct.run(["y"], {"x": x})
        wrong += not (isinstance(answer, dict) and _same(answer["y"], alone))
    return wrong, runtime.signature.max_batch > 0


def _same(answer: tuple[str, list[int], bytes], alone: np.ndarray) -> bool:
    """Within the tolerance that the reference states."""
    if answer[1] != list(alone.shape):
        return False
    found = np.frombuffer(answer[2], np.float32).reshape(alone.shape)
    return bool(np.allclose(found, alone, rtol=0, atol=BATCHING_TOLERANCE_FP32 * np.max(np.abs(alone), initial=1.0)))


async def test_every_answer_is_the_models_own_to_the_call_alone(tmp_path: Path) -> None:
    joined = 0
    for seed in range(GRAPHS):
        wrong, together = await wrong_answers(tmp_path / f"{seed}.onnx", seed)
        assert wrong == 0, f"graph {seed}"
        joined += together
    assert GRAPHS // 4 < joined < GRAPHS, "some models batch, some do not: else this shows nothing"


async def test_without_the_experiment_callers_get_each_others_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: every first axis that varies is taken for a batch, as if an experiment had shown it."""

    def shown(run: Any, ports: Any, outs: Any, most: int) -> Shown:
        return Shown(tuple(0 for _ in outs), 0.0, "")

    monkeypatch.setattr(joining, "experiment", shown)
    monkeypatch.setattr(mixing, "look", lambda graph, axes: None)
    monkeypatch.setattr(deciding, "look", lambda graph, axes: None)
    monkeypatch.setattr(Forms, "of", lambda self, group: Form(b"", joins=True))
    monkeypatch.setattr(joining, "layouts", lambda inputs, outputs, states: [joining.Layout({"x": 0}, {"y": 0})])
    wrong = [(await wrong_answers(tmp_path / f"{seed}.onnx", seed))[0] for seed in range(16)]
    assert sum(each > 0 for each in wrong) > 3


@pytest.mark.slow
async def test_many_more_models(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    for seed in range(1000, 6000):
        wrong, _ = await wrong_answers(path, seed)
        assert wrong == 0, f"graph {seed}"
