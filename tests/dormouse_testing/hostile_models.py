"""Models whose rows depend on each other in a way that is hard to see, with calls that show it.

Each looks like a batch: every output leads with the rows. What mixes them is small beside the rest of the output, or shows with some
values, sizes or numbers of rows only.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from onnx import helper

from dormouse_testing.models import BOOL, FLOAT, INT64, node, write

Feeds = dict[str, np.ndarray]
Draw = Callable[[np.random.Generator], Feeds]
WIDTH = 4


@dataclass(frozen=True, slots=True)
class Hostile:
    """`draw`: a call of it. `mixes`: whether its rows depend on each other; if not, it must be joined. `batching`: of the spec."""

    make: Callable[[Path], Path]
    draw: Draw
    mixes: bool = True
    batching: dict[str, Any] | None = None


def normal(rng: np.random.Generator, rows: int = 1, width: int = WIDTH) -> np.ndarray:
    return rng.standard_normal((rows, width)).astype(np.float32)


def _x(rng: np.random.Generator) -> Feeds:
    return {"x": normal(rng)}


def _now_and_then(value: float, often: float = 0.2) -> Draw:
    """A row of which one element is `value`, for some of the calls."""

    def draw(rng: np.random.Generator) -> Feeds:
        x = normal(rng)
        if rng.random() < often:
            x[0, 0] = value
        return {"x": x}

    return draw


def _model(nodes: Sequence[Any], constants: dict[str, Any] | None = None, width: int = WIDTH, opset: int = 17) -> Callable[[Path], Path]:
    arrays = {name: np.asarray(value) for name, value in (constants or {}).items()}

    def make(path: Path) -> Path:
        return write(path, nodes, [("x", FLOAT, ["n", WIDTH])], [("y", FLOAT, ["n", width])], arrays, opset=opset)

    return make


def _hidden(nodes: Sequence[Any], name: str) -> list[Any]:
    """`name` made of x so that a look at the graph does not know which axis is the rows': flattened, and back."""
    return [node("Reshape", ["x", "flat"], ["x_flat"]), node("Reshape", ["x_flat", "back"], [name]), *nodes]


HIDING = {"flat": np.array([-1]), "back": np.array([-1, WIDTH])}


def _graph(nodes: Sequence[Any], outputs: Sequence[str], rank: int = 2) -> Any:
    values = [helper.make_tensor_value_info(name, FLOAT, [None] * rank) for name in outputs]
    return helper.make_graph(list(nodes), "body", [], values)


def _beside(scale: float) -> Callable[[Path], Path]:
    """Two outputs in one: x * scale, and x less the mean of all rows."""
    nodes = _hidden(
        [
            node("Mul", ["z", "scale"], ["large"]),
            node("ReduceMean", ["z"], ["mean"], axes=[0], keepdims=1),
            node("Sub", ["z", "mean"], ["small"]),
            node("Concat", ["large", "small"], ["y"], axis=1),
        ],
        "z",
    )
    return _model(nodes, {**HIDING, "scale": np.float32(scale)}, 2 * WIDTH)


def _switched(test: Sequence[Any], constants: dict[str, Any]) -> Callable[[Path], Path]:
    """y = 2 x where `test` makes `some` true of any row, else x."""
    nodes = _hidden(
        [
            *test,
            node("Cast", ["some"], ["number"], to=FLOAT),
            node("ReduceMax", ["number"], ["any"], keepdims=0),
            node("Add", ["any", "one"], ["factor"]),
            node("Mul", ["x", "factor"], ["y"]),
        ],
        "z",
    )
    return _model(nodes, {**HIDING, "one": np.float32(1), **constants})


def _above(limit: float) -> Callable[[Path], Path]:
    return _switched([node("Greater", ["z", "limit"], ["some"])], {"limit": np.float32(limit)})


def _equal(value: float) -> Callable[[Path], Path]:
    return _switched([node("Equal", ["z", "value"], ["some"])], {"value": np.float32(value)})


def _minus_infinity() -> Callable[[Path], Path]:
    return _switched([node("IsInf", ["z"], ["some"], detect_positive=0)], {})


def _if_any(limit: float) -> Callable[[Path], Path]:
    """Another way where any number is larger: an If on what all rows have in common."""
    nodes = _hidden(
        [
            node("ReduceMax", ["x_flat"], ["sum"], keepdims=0),
            node("Greater", ["sum", "limit"], ["go"]),
            node(
                "If",
                ["go"],
                ["y"],
                then_branch=_graph([node("Add", ["x", "x"], ["a"])], ["a"]),
                else_branch=_graph([node("Identity", ["x"], ["b"])], ["b"]),
            ),
        ],
        "z",
    )
    return _model(nodes, {**HIDING, "limit": np.float32(limit)})


def _rows_from(count: int, below: int = 1 << 30) -> Callable[[Path], Path]:
    """y = x + 1 where there are from `count` to `below` rows."""
    nodes = [
        node("Shape", ["x"], ["shape"]),
        node("Gather", ["shape", "first"], ["rows"]),
        node("GreaterOrEqual", ["rows", "least"], ["many"]),
        node("Less", ["rows", "most"], ["few"]),
        node("And", ["many", "few"], ["both"]),
        node("Cast", ["both"], ["more"], to=FLOAT),
        node("Add", ["x", "more"], ["y"]),
    ]
    return _model(nodes, {"first": np.array(0), "least": np.array(count), "most": np.array(below)})


def longer_than(length: int) -> Callable[[Path], Path]:
    """Of sequences longer than `length`, x less the mean of all; else x."""
    flat = node("Reshape", ["x", "flat"], ["x_flat"])
    nodes = [
        node("Shape", ["x"], ["shape"]),
        node("Gather", ["shape", "second"], ["length"]),
        node("Greater", ["length", "limit"], ["long"]),
        node(
            "If",
            ["long"],
            ["y"],
            then_branch=_graph([flat, node("ReduceMean", ["x_flat"], ["m"], keepdims=0), node("Sub", ["x", "m"], ["a"])], ["a"]),
            else_branch=_graph([node("Identity", ["x"], ["b"])], ["b"]),
        ),
    ]
    constants = {"second": np.array(1), "limit": np.array(length), "flat": np.array([-1])}
    shape = ["n", "length"]
    return lambda path: write(path, nodes, [("x", FLOAT, shape)], [("y", FLOAT, shape)], constants)


def _switch(kind: int, value: Any, shape: Sequence[int]) -> Callable[[Path], Path]:
    """A switch that all rows share: where it has this value, x less the mean of all rows."""
    nodes = _hidden(
        [
            node("ReduceMean", ["z"], ["mean"], axes=[0], keepdims=1),
            node("Equal", ["on", "value"], ["is"]),
            node("Sub", ["x", "mean"], ["less"]),
            node("Where", ["is", "less", "x"], ["y"]),
        ],
        "z",
    )
    inputs = [("x", FLOAT, ["n", WIDTH]), ("on", kind, shape)]
    constants = {**HIDING, "value": np.array(value)}
    return lambda path: write(path, nodes, inputs, [("y", FLOAT, ["n", WIDTH])], constants)


def _position(path: Path) -> Path:
    """A large number, and beside it the row's place in its run."""
    nodes = [
        node("Shape", ["x"], ["shape"]),
        node("Gather", ["shape", "first"], ["rows"]),
        node("Range", ["first", "rows", "step"], ["places"]),
        node("Cast", ["places"], ["real"], to=FLOAT),
        node("Unsqueeze", ["real", "last"], ["column"]),
        node("Mul", ["x", "scale"], ["large"]),
        node("Concat", ["large", "column"], ["y"], axis=1),
    ]
    constants = {"first": np.array(0), "step": np.array(1), "last": np.array([1]), "scale": np.float32(1e7)}
    return write(path, nodes, [("x", FLOAT, ["n", WIDTH])], [("y", FLOAT, ["n", WIDTH + 1])], constants)


def _bytes_above(limit: int) -> Callable[[Path], Path]:
    """Pictures of bytes: doubled where any of them is brighter than `limit`."""
    nodes = [
        node("Reshape", ["x", "flat"], ["x_flat"]),
        node("Cast", ["x"], ["real"], to=FLOAT),
        node("Cast", ["x_flat"], ["whole"], to=FLOAT),
        node("ReduceMax", ["whole"], ["most"], keepdims=0),
        node("Greater", ["most", "limit"], ["some"]),
        node("Add", ["real", "real"], ["double"]),
        node("Where", ["some", "double", "real"], ["y"]),
    ]
    constants = {"flat": np.array([-1]), "limit": np.float32(limit)}
    return lambda path: write(path, nodes, [("x", 2, ["n", WIDTH])], [("y", FLOAT, ["n", WIDTH])], constants)


def _ids_above(limit: int) -> Callable[[Path], Path]:
    nodes = [
        node("Reshape", ["x", "flat"], ["x_flat"]),
        node("ReduceMax", ["x_flat"], ["most"], keepdims=0),
        node("Greater", ["most", "limit"], ["some"]),
        node("Add", ["x", "x"], ["double"]),
        node("Where", ["some", "double", "x"], ["y"]),
    ]
    constants = {"flat": np.array([-1]), "limit": np.array(limit)}
    return lambda path: write(path, nodes, [("x", INT64, ["n", WIDTH])], [("y", INT64, ["n", WIDTH])], constants)


def _one_finding(path: Path) -> Path:
    """Where each row is largest: one finding a row, unless a row has none or several."""
    nodes = [
        node("Reshape", ["x", "flat"], ["x_flat"]),
        node("Reshape", ["x_flat", "back"], ["z"]),
        node("ReduceMax", ["z"], ["most"], axes=[1], keepdims=1),
        node("GreaterOrEqual", ["z", "most"], ["top"]),
        node("Greater", ["z", "low"], ["loud"]),
        node("And", ["top", "loud"], ["found"]),
        node("NonZero", ["found"], ["at"]),
        node("Transpose", ["at"], ["rows"]),
        node("Slice", ["rows", "one", "two", "one"], ["y"]),
    ]
    constants = {**HIDING, "low": np.float32(-2000), "one": np.array([1]), "two": np.array([2])}
    return write(path, nodes, [("x", FLOAT, ["n", WIDTH])], [("y", INT64, ["n", 1])], constants)


def _longest(path: Path) -> Path:
    """Frames and how many of them count: the answer is as long as the longest."""
    nodes = [
        node("Reshape", ["lengths", "flat"], ["all"]),
        node("ReduceMax", ["all"], ["most"], keepdims=0),
        node("Max", ["most", "least"], ["end"]),
        node("Unsqueeze", ["end", "zero"], ["ends"]),
        node("Slice", ["x", "zero", "ends", "one"], ["y"]),
    ]
    constants = {"flat": np.array([-1]), "least": np.array(100), "zero": np.array([0]), "one": np.array([1])}
    inputs = [("x", FLOAT, ["n", "t"]), ("lengths", INT64, ["n"])]
    return write(path, nodes, inputs, [("y", FLOAT, ["n", "t2"])], constants)


def _function(path: Path) -> Path:
    """Dynamic quantisation inside a function of the model's own."""
    import onnx

    parts = [node("DynamicQuantizeLinear", ["a"], ["q", "s", "z"]), node("DequantizeLinear", ["q", "s", "z"], ["b"])]
    made = helper.make_function("own", "Quantised", ["a"], ["b"], parts, [helper.make_opsetid("", 17)])
    graph = helper.make_graph(
        [helper.make_node("Quantised", ["x"], ["y"], domain="own")],
        "t",
        [helper.make_tensor_value_info("x", FLOAT, ["n", WIDTH])],
        [helper.make_tensor_value_info("y", FLOAT, ["n", WIDTH])],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8, functions=[made]), str(path))
    return path


def _lengths(rng: np.random.Generator) -> Feeds:
    frames = 200
    return {"x": normal(rng, 1, frames), "lengths": rng.integers(1, frames, 1)}


def _lengths_of_most(rng: np.random.Generator) -> Feeds:
    """The first ones have all frames."""
    frames = 200
    return {"x": normal(rng, 1, frames), "lengths": np.array([frames if rng.random() < 0.8 else 120])}


def _long(rng: np.random.Generator) -> Feeds:
    return {"x": normal(rng, 1, int(rng.choice([10, 700])))}


def _switched_on(dtype: Any, shape: tuple[int, ...], value: Any) -> Draw:
    return lambda rng: {"x": normal(rng), "on": np.full(shape, value, dtype)}


def _pictures(rng: np.random.Generator) -> Feeds:
    return {"x": rng.integers(0, 256 if rng.random() < 0.2 else 150, (1, WIDTH)).astype(np.uint8)}


def _ids(rng: np.random.Generator) -> Feeds:
    return {"x": rng.integers(0, 50_000 if rng.random() < 0.2 else 1000, (1, WIDTH))}


def _loud(rng: np.random.Generator) -> Feeds:
    return {"x": normal(rng) - np.float32(3000 if rng.random() < 0.3 else 0)}


MODELS: dict[str, Hostile] = {
    "a mean beside numbers a million times larger": Hostile(_beside(1e6), _x),
    "a mean beside numbers a thousand million times larger": Hostile(_beside(1e9), _x),
    "its place beside numbers ten million times larger": Hostile(_position, _x),
    "any above 20,000": Hostile(_above(20_000), _now_and_then(30_000)),
    "any above 1e30": Hostile(_above(1e30), _now_and_then(1e35)),
    "any minus infinity": Hostile(_minus_infinity(), _now_and_then(-np.inf)),
    "any that is 1": Hostile(_equal(1.0), _now_and_then(1.0)),
    "any that is -1": Hostile(_equal(-1.0), _now_and_then(-1.0)),
    "another way above 25,000": Hostile(_if_any(25_000), _now_and_then(30_000)),
    "another way above 77": Hostile(_if_any(77), _now_and_then(80)),
    "from 9 to 30 rows": Hostile(_rows_from(9, 31), _x),
    "more than 40 rows where 100 are said": Hostile(_rows_from(40), _x, batching={"max_batch_size": 100}),
    "sequences longer than 600": Hostile(longer_than(600), _long),
    "a switch of one BOOL": Hostile(_switch(BOOL, True, [1]), _switched_on(bool, (1,), True)),
    "a switch of one whole number": Hostile(_switch(INT64, 1, [1]), _switched_on(np.int64, (1,), 1)),
    "a rate of one number": Hostile(_switch(INT64, 16_000, [1]), _switched_on(np.int64, (1,), 16_000)),
    "bytes above 200": Hostile(_bytes_above(200), _pictures),
    "ids above 30,000": Hostile(_ids_above(30_000), _ids),
    "one finding a row": Hostile(_one_finding, _loud),
    "as long as the longest": Hostile(_longest, _lengths),
    "as long as the longest, and most are": Hostile(_longest, _lengths_of_most),
    "quantised in a function of its own": Hostile(_function, _x),
}
