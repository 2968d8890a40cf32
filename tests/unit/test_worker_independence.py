"""The experiment about a model's rows, on models that are functions: what it must find, and what it must not take for a fault."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from dormouse_core import limits
from dormouse_core.tensors import bf16_from_fp32
from dormouse_worker.batches.forms import Form, Trial
from dormouse_worker.rows.comparing import apart, difference, wide
from dormouse_worker.rows.drawing import MANNERS, SCALARS, Choice, Port, draw
from dormouse_worker.rows.independence import Late, Mixed, Out, Shown, Unknown, Verdict, experiment

X = Port("x", "FP32", ("n", 4), 0)
Y = Out("y", "FP32")
Model = Callable[..., Any]


def judged(model: Model, ports: tuple[Port, ...] = (X,), outs: tuple[Out, ...] = (Y,), most: int = 32) -> Verdict:
    def run(feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        with np.errstate(all="ignore"):
            found = model(**feeds)
        return list(found) if isinstance(found, tuple) else [found]

    return experiment(run, ports, outs, most)


def f32(model: Model) -> Model:
    return lambda **feeds: np.asarray(model(**feeds), np.float32)


def above(limit: float) -> Model:
    return f32(lambda x: x * (2 if np.nanmax(x) > limit else 1))


MIXING: dict[str, Model] = {
    "a mean over the rows": f32(lambda x: x - x.mean(0)),
    "a sum over all": f32(lambda x: x + x.sum()),
    "a softmax over the rows": f32(lambda x: np.exp(x - x.max(0)) / np.exp(x - x.max(0)).sum(0)),
    "a cumulated sum": f32(lambda x: np.cumsum(x, 0)),
    "a recurrence": f32(lambda x: np.stack([x[: i + 1].max(0) for i in range(len(x))])),
    "a sort": f32(lambda x: np.sort(x, 0)),
    "the reversed order": f32(lambda x: x[::-1]),
    "the largest rows": f32(lambda x: x * (x >= np.sort(x, 0)[-2:][0])),
    "the row before": f32(lambda x: x - 0.01 * np.vstack([x[:1], x[:-1]])),
    "the number of rows": f32(lambda x: x / len(x)),
    "a tenth of a thousandth": f32(lambda x: x + 1e-4 * x.mean()),
    "a threshold that one row passes": above(1.5),
    "a high threshold": above(1000),
    "a low threshold": f32(lambda x: x * (2 if np.nanmin(x) < -20 else 1)),
    "a zero row": f32(lambda x: x * (2 if (x == 0).all(-1).any() else 1)),
    "a NaN": f32(lambda x: x if np.isfinite(x).all() else np.full_like(x, np.nan)),
    "an infinity that is taken away": f32(lambda x: x * np.isfinite(x).all()),
    "signs that differ": f32(lambda x: x * (2 if {*np.sign(x.sum(-1))} >= {1.0, -1.0} else 1)),
    "a range for all": f32(lambda x: np.round(x / (np.nanmax(np.abs(x)) / 127)) * (np.nanmax(np.abs(x)) / 127)),
    "a minus infinity": f32(lambda x: x * (2 if np.isneginf(x).any() else 1)),
    "a one": f32(lambda x: x * (2 if (x == 1).any() else 1)),
    "a place beside larger numbers": f32(lambda x: np.hstack([1e7 * x, np.arange(len(x))[:, None]])),
    "from 9 to 30 rows": f32(lambda x: x if not 8 < len(x) < 31 else x + 1),
    "more than 20 rows": f32(lambda x: x if len(x) < 21 else x + 1),
}


@pytest.mark.parametrize("name", MIXING)
def test_rows_that_depend_on_each_other_are_found(name: str) -> None:
    verdict = judged(MIXING[name])
    assert isinstance(verdict, Mixed), verdict
    assert 'output "y"' in verdict.message


@pytest.mark.parametrize(
    "model",
    [
        f32(lambda x: x * 2 + 1),
        f32(lambda x: x - x.mean(-1, keepdims=True)),
        f32(lambda x: np.exp(x) / np.exp(x).sum(-1, keepdims=True)),
        f32(lambda x: np.sort(x, -1)),
        f32(lambda x: np.where(x > 3, np.nan, x)),
        f32(lambda x: x.sum(-1, keepdims=True)),
        f32(lambda x: x * (1 + 3e-7 * len(x))),  # as another kernel for another number of rows may round
    ],
)
def test_rows_that_do_not_are_not(model: Model) -> None:
    assert isinstance(judged(model), Shown)


def test_it_says_which_output_and_how_far() -> None:
    verdict = judged(lambda x: (x, x + x.mean()), outs=(Y, Out("z", "FP32")))
    assert isinstance(verdict, Mixed)
    assert verdict.message.startswith('output "z" of a call differs by ')
    assert verdict.message.endswith(" of its largest value when another call's rows run with it")


def test_findings_are_no_rows() -> None:
    verdict = judged(lambda x: np.argwhere(x > 0), outs=(Out("hits", "INT64"),))
    assert isinstance(verdict, Mixed)
    assert 'output "hits" does not have the rows of its call' in verdict.message


@pytest.mark.parametrize(
    ("axis", "outs", "axes"),
    [(0, (Y,), (1,)), (1, (Y,), (0,)), (0, (Out("y", "FP32", 1),), (1,))],
)
def test_the_axis_of_an_output_is_found(axis: int, outs: tuple[Out, ...], axes: tuple[int, ...]) -> None:
    x = Port("x", "FP32", ("n", 4) if axis == 0 else (4, "n"), axis)
    found = judged(lambda x: x.T.copy(), (x,), outs)
    assert isinstance(found, Shown)
    assert found.axes == axes


def test_an_axis_that_was_said_wrongly_is_told() -> None:
    found = judged(lambda x: x, outs=(Out("y", "FP32", 1),))
    assert isinstance(found, Mixed)
    assert "on axis 1" in found.message


def test_states_belong_to_the_experiment() -> None:
    ports = (X, Port("h", "FP32", (2, "n", 4), 1, state=True))
    outs = (Y, Out("hn", "FP32", 1, state=True))
    assert isinstance(judged(lambda x, h: (x + h[0], h + x), ports, outs), Shown)
    mixed = judged(lambda x, h: (x + h[0], h + h.mean(1, keepdims=True)), ports, outs)
    assert isinstance(mixed, Mixed)
    assert 'state "hn"' in mixed.message


def test_what_all_rows_share_is_the_same_for_all() -> None:
    ports = (X, Port("t", "FP32", (), None))
    assert isinstance(judged(f32(lambda x, t: x + t), ports), Shown)


@pytest.mark.parametrize("switch", SCALARS)
def test_each_way_that_a_switch_leads_is_tried(switch: int) -> None:
    ports = (X, Port("rate", "INT64", (), None))
    verdict = judged(f32(lambda x, rate: x - x.mean(0) if rate == switch else x), ports)
    assert isinstance(verdict, Mixed)


# --------------------------------------------------------------------------------------------------- what is no valid input


def refusing(valid: Callable[..., bool], model: Model) -> Model:
    def run(**feeds: np.ndarray) -> Any:
        if not valid(**feeds):
            raise ValueError("Status Message: this is no valid input.\nmore")
        return model(**feeds)

    return run


def test_ids_beyond_a_vocabulary_are_not_tried_for_long() -> None:
    table = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)
    ports = (Port("ids", "INT64", ("n", "length"), 0),)
    model = refusing(lambda ids: bool((ids >= 0).all() and (ids < 5).all()), lambda ids: table[ids])
    assert isinstance(judged(model, ports), Shown)
    mixing = refusing(lambda ids: bool((ids >= 0).all() and (ids < 5).all()), lambda ids: table[ids] + table[ids].mean())
    assert isinstance(judged(mixing, ports), Mixed)


def test_windows_of_one_length() -> None:
    ports = (Port("x", "FP32", ("n", "samples"), 0),)
    model = refusing(lambda x: x.shape[1] == 512, lambda x: x * 2)
    assert isinstance(judged(model, ports), Shown)


def test_a_length_that_leads_another_way() -> None:
    ports = (Port("x", "FP32", ("n", "samples"), 0),)
    assert isinstance(judged(f32(lambda x: x - x.mean(0) if x.shape[1] < 4 else x), ports), Mixed)


def test_a_model_that_refuses_everything_is_not_known() -> None:
    verdict = judged(refusing(lambda x: False, lambda x: x))
    assert verdict == Unknown("the model refuses random values (this is no valid input)")


def test_a_joined_run_that_fails_is_no_batch() -> None:
    verdict = judged(refusing(lambda x: len(x) < 4, lambda x: x))
    assert isinstance(verdict, Mixed)
    assert "refuses rows together that it takes alone" in verdict.message


def test_an_output_that_never_changes_shows_nothing() -> None:
    verdict = judged(lambda x: (x, (x == 12345).any() * np.ones((len(x), 1), bool)), outs=(Y, Out("alarm", "BOOL")))
    assert verdict == Unknown('output "alarm" was the same in every run of the experiment, which shows nothing')


def test_its_time_is_bounded() -> None:
    left = [20]

    def model(x: np.ndarray) -> np.ndarray:
        left[0] -= 1
        if left[0] < 0:
            raise Late
        return x

    assert judged(model) == Unknown(f"the experiment takes longer than {limits.BATCHING_SECONDS:g} s")


def test_its_memory_is_bounded() -> None:
    verdict = judged(lambda x: x, (Port("x", "FP32", ("n", 1 << 20), 0),))
    assert isinstance(verdict, Unknown)
    assert str(limits.BATCHING_BYTES) in verdict.message


@pytest.mark.parametrize("most", [limits.BATCH_SIZE, limits.BATCH_SIZE_MAX])
def test_at_its_bound_of_memory_it_is_made_and_beyond_it_is_not(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """As many rows as run together where nobody says how many, however many are said: of those so many as there is room for are tried."""
    width = 16
    monkeypatch.setattr(limits, "BATCHING_BYTES", 4 * width * limits.BATCH_SIZE)
    largest = 0

    def model(x: np.ndarray) -> np.ndarray:
        nonlocal largest
        largest = max(largest, x.nbytes)
        return x

    assert isinstance(judged(model, (Port("x", "FP32", ("n", width), 0),), most=most), Shown)
    assert largest == limits.BATCHING_BYTES
    assert isinstance(judged(model, (Port("x", "FP32", ("n", width + 1), 0),), most=most), Unknown)


# ------------------------------------------------------------------------------------------------------------- comparing, drawing


@pytest.mark.parametrize(("alone", "part", "found"), [([1e6, 1], [1e6, 1.5], 1 / 3), ([0, 1], [0, 1], 0), ([np.nan, 1], [1, 1], np.inf)])
def test_each_element_by_its_own_measure(alone: list[float], part: list[float], found: float) -> None:
    assert apart(np.array(alone, np.float32), np.array(part, np.float32), "FP32") == pytest.approx(found)


@pytest.mark.parametrize(
    ("datatype", "alone", "part", "found"),
    [
        ("FP32", [1, 2], [1, 2], 0),
        ("FP32", [1, 4], [1.5, 4], 0.125),
        ("FP32", [np.nan, 4], [np.nan, 4], 0),
        ("FP32", [np.inf, 4], [-np.inf, 4], np.inf),
        ("FP32", [1, 4], [np.nan, 4], np.inf),
        ("FP32", [0, 0], [0, 1e-9], np.inf),
        ("INT64", [1, 4], [1, 4], 0),
        ("INT64", [1, 4], [1, 5], np.inf),
    ],
)
def test_differences(datatype: str, alone: list[float], part: list[float], found: float) -> None:
    dtype = np.float32 if datatype == "FP32" else np.int64
    assert difference(np.array(alone, dtype), np.array(part, dtype), datatype) == pytest.approx(found)


TOLERATED = {"FP64": 1e-11, "FP32": 1e-5, "FP16": 2e-3, "BF16": 2e-2}
"""As docs/reference/limits.md has it."""


def rounded(datatype: str, off: float) -> Model:
    """1 or -1, and in a run of several rows by `off` of that further from 0."""

    def run(x: np.ndarray) -> np.ndarray:
        y = np.where(wide(x, datatype) < 0, -1.0, 1.0) * (1.0 if len(x) == 1 else 1.0 + off)
        return bf16_from_fp32(y.astype(np.float32)) if datatype == "BF16" else y.astype(x.dtype)

    return run


@pytest.mark.parametrize("datatype", TOLERATED)
def test_what_is_rounded_by_less_than_the_tolerance_is_joined_and_by_more_is_not(datatype: str) -> None:
    ports, outs = (Port("x", datatype, ("n", 4), 0),), (Out("y", datatype),)
    assert isinstance(judged(rounded(datatype, 0.7 * TOLERATED[datatype]), ports, outs), Shown)
    assert isinstance(judged(rounded(datatype, 1.5 * TOLERATED[datatype]), ports, outs), Mixed)


@pytest.mark.parametrize("datatype", ["FP32", "FP64"])
def test_an_element_that_is_small_beside_others_has_a_tolerance_by_its_own_measure(datatype: str) -> None:
    """A hundred times the other, of the largest that it is in any row."""
    ports, outs = (Port("x", datatype, ("n", 4), 0),), (Out("y", datatype),)
    for part, kind in ((0.7, Shown), (1.5, Mixed)):
        model = rounded(datatype, part * 100 * TOLERATED[datatype])
        large, small = np.array([1, 1, 1, 0]), np.array([0, 0, 0, 1e-4])
        assert isinstance(judged(lambda x: (large * np.sign(x) + small * model(x)).astype(x.dtype), ports, outs), kind)  # noqa: B023


@pytest.mark.parametrize("datatype", TOLERATED)
def test_the_same_holds_of_two_calls_of_a_form(datatype: str) -> None:
    x = np.ones((1, 4), {"FP64": np.float64, "FP16": np.float16}.get(datatype, np.float32))
    given = bf16_from_fp32(x) if datatype == "BF16" else x
    signature: Any = SimpleNamespace(outputs=[SimpleNamespace(name="y", datatype=datatype, axis=0)], states=[])
    works: Any = [SimpleNamespace(request=SimpleNamespace(rows=1))] * 2
    for part, differs in ((0.7, False), (1.5, True)):
        model = rounded(datatype, part * TOLERATED[datatype])
        trial = Trial(Form(b""), works, [[model(given)]] * 2)
        told = trial.judge(signature, [model(np.vstack([given, given]))])
        assert (told is not None) is differs


@pytest.mark.parametrize("datatype", ["FP32", "FP16", "BF16", "FP64", "INT8", "UINT8", "INT64", "UINT64", "BOOL", "BYTES"])
def test_every_datatype_is_drawn_in_every_manner(datatype: str) -> None:
    ports = [Port("a", datatype, ("n", 3), 0), Port("b", datatype, (2, None), 1), Port("c", datatype, (), None)]
    for manner in MANNERS:
        found = draw(ports, 4, 2, manner, Choice(5, 0, 2), np.random.default_rng(0))
        assert [array.shape for array in found.values()] == [(4, 3), (2, 4), ()]
        assert len({array.dtype for array in found.values()}) == 1
