"""Random small ONNX models, whose first axis is the batch or is not, and random calls of them.

Every operator keeps its tensor's shape, so that any of them fits behind any other; those that work along an axis choose one at random.
"""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from onnx import helper

from dormouse_testing.models import BOOL, FLOAT, node, write

WIDTH = 4
MARKS = (0.0, 1.0, -1.0)
"""What calls have in some of their numbers."""
Operator = Callable[["Graph", str], str]


class Graph:
    """A model in the making. `rank` 2: [n, 4]; 3: [n, m, 4]."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.rank = rng.choice((2, 2, 3))
        self.nodes: list[Any] = []
        self.constants: dict[str, np.ndarray] = {}
        self._count = 0

    def name(self) -> str:
        self._count += 1
        return f"t{self._count}"

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        result = self.name()
        self.nodes.append(node(kind, inputs, [result], **attributes))
        return result

    def constant(self, array: Any) -> str:
        name = f"c{self.name()}"
        self.constants[name] = np.asarray(array)
        return name

    def numbers(self, *shape: int) -> str:
        return self.constant(np.array([self.rng.uniform(-1, 1) for _ in range(int(np.prod(shape)))], np.float32).reshape(shape))

    def axis(self) -> int:
        """The batch's seldom, else most graphs would mix rows."""
        return self.rng.choice([0, *range(1, self.rank), *range(1, self.rank)])

    def axes(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))


def _unary(graph: Graph, x: str) -> str:
    return graph.add(graph.rng.choice(("Tanh", "Relu", "Neg", "Abs", "Sigmoid", "Erf")), x)


def _scaled(graph: Graph, x: str) -> str:
    return graph.add(graph.rng.choice(("Add", "Mul", "Sub", "Max")), x, graph.numbers(WIDTH))


def _matmul(graph: Graph, x: str) -> str:
    return graph.add("MatMul", x, graph.numbers(WIDTH, WIDTH))


def _centred(graph: Graph, x: str) -> str:
    reduced = graph.add("ReduceMean", x, axes=[graph.axis()], keepdims=1)
    return graph.add(graph.rng.choice(("Sub", "Add")), x, reduced)


def _below_the_largest(graph: Graph, x: str) -> str:
    return graph.add("Sub", x, graph.add("ReduceMax", x, axes=[graph.axis()], keepdims=1))


def _switched(graph: Graph, x: str) -> str:
    """Doubled where something along the axis is above a threshold: most inputs do not show it."""
    largest = graph.add("ReduceMax", x, axes=[graph.axis()], keepdims=1)
    above = graph.add("Greater", largest, graph.constant(np.float32(graph.rng.choice((1, 3, 20)))))
    return graph.add("Where", above, graph.add("Add", x, x), x)


def _marked(graph: Graph, x: str) -> str:
    """Doubled where any number along the axis is a mark: no random number is."""
    found = graph.add("Cast", graph.add("Equal", x, graph.constant(np.float32(graph.rng.choice(MARKS)))), to=FLOAT)
    largest = graph.add("ReduceMax", found, axes=[graph.axis()], keepdims=1)
    return graph.add("Where", graph.add("Cast", largest, to=BOOL), graph.add("Add", x, x), x)


def _led(graph: Graph, x: str) -> str:
    """Another way where any number of all is above a threshold."""
    largest = graph.add("ReduceMax", graph.add("Reshape", x, graph.axes(-1)), keepdims=0)
    above = graph.add("Greater", largest, graph.constant(np.float32(graph.rng.choice((3, 100)))))
    ways = []
    for kind, inputs in (("Add", [x, x]), ("Identity", [x])):
        way = graph.name()
        value = helper.make_tensor_value_info(way, FLOAT, [None] * graph.rank)
        ways.append(helper.make_graph([node(kind, inputs, [way])], f"way {way}", [], [value]))
    return graph.add("If", above, then_branch=ways[0], else_branch=ways[1])


def _cumulated(graph: Graph, x: str) -> str:
    return graph.add("CumSum", x, graph.constant(np.array(graph.axis(), np.int64)))


def _softmax(graph: Graph, x: str) -> str:
    return graph.add("Softmax", x, axis=graph.axis())


def _concat(graph: Graph, x: str) -> str:
    return graph.add("MatMul", graph.add("Concat", x, graph.add("Tanh", x), axis=graph.rank - 1), graph.numbers(2 * WIDTH, WIDTH))


def _halves(graph: Graph, x: str) -> str:
    """Its second half, of which a copy is put in front: along the batch this needs two rows at least, so never there."""
    return graph.add("Concat", *[graph.add("Slice", x, graph.axes(2), graph.axes(4), graph.axes(graph.rank - 1))] * 2, axis=graph.rank - 1)


def _reversed(graph: Graph, x: str) -> str:
    return graph.add("Slice", x, graph.axes(-1), graph.axes(-(1 << 31)), graph.axes(graph.axis()), graph.axes(-1))


def _recurrent(graph: Graph, x: str) -> str:
    """Along time, the first axis, or the second after a transposition."""
    if graph.rank != 3:
        return x
    turned = graph.rng.random() < 0.6
    inner = graph.add("Transpose", x, perm=[1, 0, 2]) if turned else x
    y = graph.add("RNN", inner, graph.numbers(1, WIDTH, WIDTH), graph.numbers(1, WIDTH, WIDTH), hidden_size=WIDTH)
    y = graph.add("Squeeze", y, graph.axes(1))
    return graph.add("Transpose", y, perm=[1, 0, 2]) if turned else y


def _quantised(graph: Graph, x: str) -> str:
    parts = [graph.name() for _ in range(3)]
    graph.nodes.append(node("DynamicQuantizeLinear", [x], parts))
    return graph.add("DequantizeLinear", *parts)


OPERATORS: tuple[Operator, ...] = (
    _unary, _unary, _scaled, _scaled, _matmul, _matmul, _concat, _halves, _recurrent,
    _centred, _below_the_largest, _switched, _cumulated, _softmax, _reversed, _quantised,
    _marked, _led,
)  # fmt: skip


def random_model(path: Path, seed: int) -> Path:
    rng = random.Random(seed)
    graph = Graph(rng)
    x = graph.add("Identity", "x")
    for _ in range(rng.randint(1, 4)):
        x = rng.choice(OPERATORS)(graph, x)
    graph.nodes.append(node("Identity", [x], ["y"]))
    names: list[Any] = rng.choice((["n", "m"], [None, None], ["time", "batch"], ["a", "b"]))
    given, back = [*names[: graph.rank - 1], WIDTH], [*names[: graph.rank - 1], WIDTH]
    if rng.random() < 0.2:
        back[0] = "made_up"
    return write(path, graph.nodes, [("x", FLOAT, given)], [("y", FLOAT, back)], graph.constants)


def random_calls(rank: int, seed: int, count: int) -> list[np.ndarray]:
    """Inputs of 1 to 3 rows mostly, sometimes of many, sometimes of none; of magnitudes that differ."""
    rng = np.random.default_rng(seed)
    calls = []
    for _ in range(count):
        rows = int(rng.choice([1, 1, 1, 2, 3, 40]))
        shape = [rows, int(rng.choice([2, 5])), WIDTH][:: 1 if rank == 3 else 2]
        scale = rng.choice([0.1, 1.0, 1.0, 3.0, 30.0])
        x = (scale * rng.standard_normal(shape)).astype(np.float32)
        if x.size and rng.random() < 0.2:
            x.reshape(-1)[rng.integers(x.size)] = rng.choice(MARKS)
        calls.append(x)
    return calls
