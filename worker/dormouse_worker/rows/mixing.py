"""What a model's graph says about rows that depend on each other.

The batch axis of the inputs is followed through the nodes as far as it can be followed for certain; a node that works *along* it makes
numbers of one row out of those of others. Where an axis is lost (a Reshape, an operator that is not listed) nothing is claimed: the graph
is looked at beside the experiment (`independence`), not in its place. Axes and defaults are those of the ONNX operators' documentation,
https://onnx.ai/onnx/operators.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from dormouse_worker.rows.graphs import Graph, Node


def _kinds(*lines: str) -> frozenset[str]:
    return frozenset(kind for line in lines for kind in line.split())


ELEMENTWISE = _kinds(
    "Abs Acos Acosh Add And Asin Asinh Atan Atanh BitShift Cast Ceil Celu Clip Cos Cosh Div Dropout Elu Equal Erf Exp Floor Gelu Greater",
    "GreaterOrEqual HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Less LessOrEqual Log Max Mean Min Mish Mod Mul Neg Not Or PRelu",
    "Pow Reciprocal Relu Round Selu Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Sub Sum Swish Tan Tanh ThresholdedRelu Where Xor",
)
REDUCTIONS = _kinds(
    "ArgMax ArgMin ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare"
)
LOCAL = _kinds("AveragePool Conv ConvTranspose GlobalAveragePool GlobalMaxPool InstanceNormalization LRN LpPool MaxPool")
RANGES = _kinds("DynamicQuantizeLinear DynamicQuantizeLSTM DynamicQuantizeMatMul")
FINDINGS = _kinds("NonMaxSuppression NonZero Unique")
RECURRENT = _kinds("GRU LSTM RNN")


@dataclass(frozen=True, slots=True)
class Rows:
    """A tensor whose dimension `axis`, of `rank`, is the batch."""

    axis: int
    rank: int


class _Mixed(Exception):
    """A node makes numbers of one row out of those of others."""


def look(graph: Graph, axes: Mapping[str, int]) -> str | None:
    """What mixes the rows that lie along `axes` of the inputs, as half a sentence; None: nothing that is certain."""
    looking = _Looking(graph, axes)
    try:
        for node in graph.nodes:
            looking.follow(node)
    except _Mixed as found:
        return str(found)
    return None


class _Looking:
    def __init__(self, graph: Graph, axes: Mapping[str, int]) -> None:
        self._graph = graph
        self._rows: dict[str, Rows | None] = dict.fromkeys((*graph.constants, ""))
        """None: the same whatever rows there are. A tensor that is not here: not known."""
        for name, shape in graph.inputs.items():
            if name not in axes:
                self._rows[name] = None
            elif shape is not None:
                self._rows[name] = Rows(axes[name], len(shape))

    def follow(self, node: Node) -> None:
        moving = [name for name in node.inputs if name not in self._rows or self._rows[name] is not None]
        if not moving:
            self._rows |= dict.fromkeys(node.outputs)
            return
        inner = [each for body in node.bodies for each in body.all_nodes()]
        for each in (node, *inner):
            if each.kind in RANGES and (each is not node or node.inputs[0] in moving):
                raise _Mixed(f"{_named(each)} takes the range of all rows together")
        if any(name not in self._rows for name in node.inputs):
            return
        for output, rows in zip(node.outputs, self._through(node), strict=False):
            if rows is not None:
                self._rows[output] = rows

    def _through(self, node: Node) -> Sequence[Rows | None]:
        """The rows of each output; None: not known. _Mixed: rows are mixed for certain."""
        kind = node.kind
        if kind in ELEMENTWISE:
            return [self._aligned(node)] * len(node.outputs)
        if kind in FINDINGS:
            raise _Mixed(f"{_named(node)} counts what it finds in all rows together")
        rule = _RULES.get(kind) or (_reduced if kind in REDUCTIONS else _recurrent if kind in RECURRENT else None)
        first = self._rows[node.inputs[0]]
        if kind in LOCAL:
            return [first] if first is not None and first.axis == 0 else []
        return rule(self, node, first) if rule is not None else []

    def _aligned(self, node: Node) -> Rows | None:
        """Operands are aligned at their last dimensions."""
        found = [rows for name in node.inputs if (rows := self._rows[name]) is not None]
        still = [len(self.constants[name]) for name in node.inputs if name in self.constants and self._rows[name] is None]
        known = len(found) + len(still) == len([name for name in node.inputs if name])
        if not known or len({rows.rank - rows.axis for rows in found}) != 1:
            return None
        rank = max([*still, *(rows.rank for rows in found)])
        return Rows(rank - found[0].rank + found[0].axis, rank)

    @property
    def constants(self) -> Mapping[str, tuple[int, ...]]:
        return self._graph.constants

    def rows(self, name: str) -> Rows | None:
        return self._rows[name]

    def axes(self, node: Node, rank: int, key: str = "axes") -> tuple[int, ...] | None:
        """What `axes` (an attribute, or an input since opset 13 or 18) says; None: nothing, or what is not known."""
        given = node.attributes.get(key)
        if given is None and len(node.inputs) > 1 and node.inputs[1]:
            given = self.integers(node.inputs[1])
            if given is None:
                return None
        if given is None:
            return None
        return tuple(axis % rank for axis in (given if isinstance(given, tuple) else (given,)))

    def integers(self, name: str) -> tuple[int, ...] | None:
        """The elements of a small constant."""
        return self._graph.integers.get(name)

    @property
    def opset(self) -> int:
        return self._graph.opset


Rule = Callable[[_Looking, Node, Rows | None], Sequence[Rows | None]]


def _named(node: Node) -> str:
    return f"the node {node.name!r} ({node.kind})" if node.name else f"a node {node.kind} of its graph"


def _along(node: Node, axis: int) -> _Mixed:
    return _Mixed(f"{_named(node)} works along the axis {axis} of its input, on which the rows lie")


def _attribute(node: Node, key: str, default: int) -> int:
    value = node.attributes.get(key, default)
    return value if isinstance(value, int) else default


def _reduced(of: _Looking, node: Node, rows: Rows | None) -> Sequence[Rows | None]:
    if rows is None:
        return []
    axes = of.axes(node, rows.rank)
    if node.kind in ("ArgMax", "ArgMin"):
        axes = (_attribute(node, "axis", 0) % rows.rank,)
    elif axes is None:
        if (len(node.inputs) > 1 and node.inputs[1]) or _attribute(node, "noop_with_empty_axes", 0):
            return []
        axes = tuple(range(rows.rank))
    if rows.axis in axes:
        raise _along(node, rows.axis)
    if _attribute(node, "keepdims", 1):
        return [rows]
    return [Rows(rows.axis - sum(axis < rows.axis for axis in axes), rows.rank - len(axes))]


def _recurrent(of: _Looking, node: Node, rows: Rows | None) -> Sequence[Rows | None]:
    if rows is None or rows.rank != 3:
        return []
    batch = 0 if _attribute(node, "layout", 0) else 1
    if rows.axis == 1 - batch:
        raise _Mixed(f"{_named(node)} takes the axis {rows.axis}, on which the rows lie, for time")
    return [Rows(0 if batch == 0 else 2, 4), Rows(0 if batch == 0 else 1, 3), Rows(0 if batch == 0 else 1, 3)] if rows.axis == batch else []


def _scan(of: _Looking, node: Node, rows: Rows | None) -> Sequence[Rows | None]:
    count = _attribute(node, "num_scan_inputs", 0)
    given = node.attributes.get("scan_input_axes", (0,) * count)
    for name, axis in zip(node.inputs[len(node.inputs) - count :], given if isinstance(given, tuple) else (given,), strict=False):
        found = of.rows(name)
        if found is not None and axis % found.rank == found.axis:
            raise _Mixed(f"{_named(node)} takes the axis {found.axis}, on which the rows lie, one after the other")
    return []


def _one_axis(default: int) -> Rule:
    """Works along one axis, an attribute, and keeps the shape of every output."""

    def rule(of: _Looking, node: Node, rows: Rows | None) -> Sequence[Rows | None]:
        if rows is None:
            return []
        if _attribute(node, "axis", default) % rows.rank == rows.axis:
            raise _along(node, rows.axis)
        return [rows] * len(node.outputs)

    return rule


def _from_axis(default: int) -> Rule:
    """Works along all axes from one on."""

    def rule(of: _Looking, node: Node, rows: Rows | None) -> Sequence[Rows | None]:
        if rows is None:
            return []
        if rows.axis >= _attribute(node, "axis", default) % rows.rank:
            raise _along(node, rows.axis)
        return [rows]

    return rule


def _softmax(of: _Looking, node: Node, rows: Rows | None) -> Sequence[Rows | None]:
    return (_one_axis(-1) if of.opset >= 13 else _from_axis(1))(of, node, rows)


def _cumulated(of: _Looking, node: Node, rows: Rows | None) -> Sequence[Rows | None]:
    axes = None if rows is None else of.axes(node, rows.rank)
    if rows is None or axes is None:
        return []
    if rows.axis in axes:
        raise _along(node, rows.axis)
    return [rows]


def _normalized(of: _Looking, node: Node, rows: Rows | None) -> Sequence[Rows | None]:
    if rows is not None and _attribute(node, "training_mode", 0):
        raise _Mixed(f"{_named(node)} takes the mean of all rows together (training_mode)")
    return [rows] if rows is not None and rows.axis != 1 else []


def _joined(of: _Looking, node: Node, rows: Rows | None) -> Sequence[Rows | None]:
    found = {each for name in node.inputs if (each := of.rows(name)) is not None}
    if len(found) != 1:
        return []
    (only,) = found
    if _attribute(node, "axis", 0) % only.rank == only.axis:
        raise _along(node, only.axis)
    return [only]


def _split(of: _Looking, node: Node, rows: Rows | None) -> Sequence[Rows | None]:
    return [rows] * len(node.outputs) if rows is not None and _attribute(node, "axis", 0) % rows.rank != rows.axis else []


def _multiplied(of: _Looking, node: Node, rows: Rows | None) -> Sequence[Rows | None]:
    left, right = rows, of.rows(node.inputs[1])
    inner = [each for each, axis in ((left, -1), (right, -2)) if each is not None and each.rank > 1 and each.axis == each.rank + axis]
    if inner:
        raise _along(node, inner[0].axis)
    ranks = [len(of.constants[name]) for name in node.inputs if name in of.constants]
    if left is not None and right is not None:
        return [left] if left == right and left.axis < left.rank - 2 else []
    one = left or right
    return [one] if one is not None and one.rank > 1 and ranks and max(ranks) <= 2 else []


def _gemm(of: _Looking, node: Node, rows: Rows | None) -> Sequence[Rows | None]:
    if rows is None or of.rows(node.inputs[1]) is not None:
        return []
    if rows.axis == (0 if _attribute(node, "transA", 0) else 1):
        raise _along(node, rows.axis)
    return [Rows(0, 2)]


def _transposed(of: _Looking, node: Node, rows: Rows | None) -> Sequence[Rows | None]:
    if rows is None:
        return []
    order = node.attributes.get("perm", tuple(reversed(range(rows.rank))))
    return [Rows(order.index(rows.axis), rows.rank)] if isinstance(order, tuple) and rows.axis in order else []


def _unsqueezed(of: _Looking, node: Node, rows: Rows | None) -> Sequence[Rows | None]:
    given = node.attributes.get("axes") or (of.integers(node.inputs[1]) if len(node.inputs) > 1 else None)
    if rows is None or not isinstance(given, tuple):
        return []
    rank = rows.rank + len(given)
    added = {axis % rank for axis in given}
    return [Rows([axis for axis in range(rank) if axis not in added][rows.axis], rank)]


def _squeezed(of: _Looking, node: Node, rows: Rows | None) -> Sequence[Rows | None]:
    axes = None if rows is None else of.axes(node, rows.rank)
    if rows is None or axes is None or rows.axis in axes:
        return []
    return [Rows(rows.axis - sum(axis < rows.axis for axis in axes), rows.rank - len(axes))]


def _flattened(of: _Looking, node: Node, rows: Rows | None) -> Sequence[Rows | None]:
    return [Rows(0, 2)] if rows is not None and rows.axis == 0 and _attribute(node, "axis", 1) == 1 else []


def _gathered(of: _Looking, node: Node, rows: Rows | None) -> Sequence[Rows | None]:
    """A table in which is looked up: an embedding."""
    index = of.rows(node.inputs[1])
    table = of.constants.get(node.inputs[0])
    if rows is not None or index is None or not table or _attribute(node, "axis", 0) != 0:
        return []
    return [Rows(index.axis, index.rank + len(table) - 1)]


_RULES: Mapping[str, Rule] = {
    "BatchNormalization": _normalized,
    "Concat": _joined,
    "CumSum": _cumulated,
    "Flatten": _flattened,
    "Gather": _gathered,
    "Gemm": _gemm,
    "Hardmax": _softmax,
    "LayerNormalization": _from_axis(-1),
    "LogSoftmax": _softmax,
    "MatMul": _multiplied,
    "Scan": _scan,
    "Softmax": _softmax,
    "Split": _split,
    "Squeeze": _squeezed,
    "TopK": _one_axis(-1),
    "Transpose": _transposed,
    "Unsqueeze": _unsqueezed,
}
