"""Makes `model.onnx` of the trained weights: `python export.py weights.npz model.onnx`. Needs onnx and numpy.

Names as Optimum exports a decoder: `past_key_values.N.key` is what the run before gave as `present.N.key`. The cache is FP16. The weights
are INT8 with a scale for each column; ONNX Runtime multiplies them once, when it loads the file, so that a run is as fast as with FP32.
"""

import pathlib
import sys
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

LAYERS, HEADS, SIZE, WIDTH = 4, 6, 32, 192
OPSET, IR = 20, 10
FP16, FP32 = TensorProto.FLOAT16, TensorProto.FLOAT


class Graph:
    """Nodes in their order. A method that adds some returns the name of the last one's value."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def add(self, op: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        name = name or f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], **attributes))
        return name

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.array(value, dtype), name))
        return name

    def weight(self, matrix: np.ndarray) -> str:
        """[in, out] as INT8."""
        scale = np.abs(matrix).max(0, keepdims=True) / 127
        return self.add("Mul", self.add("Cast", self.constant(np.round(matrix / scale), np.int8), to=FP32), self.constant(scale))

    def halves(self, x: str, parts: int) -> list[str]:
        names = [f"part_{len(self.nodes)}_{n}" for n in range(parts)]
        self.nodes.append(helper.make_node("Split", [x], names, axis=-1, num_outputs=parts))
        return names

    def norm(self, x: str, weight: np.ndarray) -> str:
        mean = self.add("ReduceMean", self.add("Mul", x, x), self.constant([-1], np.int64), keepdims=1)
        return self.add("Mul", self.add("Div", x, self.add("Sqrt", self.add("Add", mean, self.constant(1e-5)))), self.constant(weight))

    def heads(self, x: str) -> str:
        """[batch, length, width] as [batch, heads, length, size]."""
        return self.add("Transpose", self.add("Reshape", x, self.constant([0, 0, HEADS, SIZE], np.int64)), perm=[0, 2, 1, 3])

    def turned(self, x: str, cos: str, sin: str) -> str:
        a, b = self.halves(x, 2)
        left = self.add("Sub", self.add("Mul", a, cos), self.add("Mul", b, sin))
        right = self.add("Add", self.add("Mul", b, cos), self.add("Mul", a, sin))
        return self.add("Concat", left, right, axis=-1)

    def kept(self, x: str, number: int, what: str) -> str:
        """The cache of a layer with what this run adds, as FP32: rounded to FP16 first, so it is the same whether it was stored or not."""
        new = self.add("Cast", x, to=FP16)
        whole = self.add("Concat", f"past_key_values.{number}.{what}", new, axis=2, name=f"present.{number}.{what}")
        return self.add("Cast", whole, to=FP32)


def graph(weights: dict[str, np.ndarray]) -> Any:
    g = Graph()
    angles = g.add("Cast", g.add("Unsqueeze", "position_ids", g.constant([1, 3], np.int64)), to=FP32)
    angles = g.add("Mul", angles, g.constant(10000.0 ** (-np.arange(SIZE // 2) / (SIZE // 2))))
    cos, sin = g.add("Cos", angles), g.add("Sin", angles)
    table = g.weight(weights["words.weight"].T)
    x = g.add("Gather", g.add("Transpose", table, perm=[1, 0]), "input_ids")

    # Who must not be seen: of [length, past + length] what lies above the diagonal that ends in the last corner.
    past = g.add("Shape", "past_key_values.0.key", start=2, end=3)
    length = g.add("Shape", "input_ids", start=1, end=2)
    square = g.add("Concat", length, g.add("Add", past, length), axis=0)
    ones = g.add("ConstantOfShape", square, value=numpy_helper.from_array(np.array([-1e9], np.float32)))
    above = g.add("Squeeze", g.add("Add", past, g.constant([1], np.int64)))
    mask = g.add("Trilu", ones, above, upper=1)

    for n in range(LAYERS):
        at = f"layers.{n}."
        qkv = g.add("MatMul", g.norm(x, weights[at + "before.weight"]), g.weight(weights[at + "qkv.weight"].T))
        q, k, v = (g.heads(part) for part in g.halves(qkv, 3))
        q, k = g.turned(q, cos, sin), g.turned(k, cos, sin)
        keys, values = g.kept(k, n, "key"), g.kept(v, n, "value")
        scores = g.add("MatMul", g.add("Mul", q, g.constant(SIZE**-0.5)), g.add("Transpose", keys, perm=[0, 1, 3, 2]))
        seen = g.add("MatMul", g.add("Softmax", g.add("Add", scores, mask), axis=-1), values)
        seen = g.add("Reshape", g.add("Transpose", seen, perm=[0, 2, 1, 3]), g.constant([0, 0, WIDTH], np.int64))
        x = g.add("Add", x, g.add("MatMul", seen, g.weight(weights[at + "out.weight"].T)))
        up = g.add("Relu", g.add("MatMul", g.norm(x, weights[at + "between.weight"]), g.weight(weights[at + "up.weight"].T)))
        x = g.add("Add", x, g.add("MatMul", g.add("Mul", up, up), g.weight(weights[at + "down.weight"].T)))
    g.add("MatMul", g.norm(x, weights["after.weight"]), table, name="logits")

    names = [f"{n}.{what}" for n in range(LAYERS) for what in ("key", "value")]
    rows, old, new = "batch_size", "past_sequence_length", "past_sequence_length + sequence_length"
    value = helper.make_tensor_value_info
    inputs = [value(name, TensorProto.INT64, [rows, "sequence_length"]) for name in ("input_ids", "position_ids")]
    inputs += [value(f"past_key_values.{name}", FP16, [rows, HEADS, old, SIZE]) for name in names]
    outputs = [value("logits", FP32, [rows, "sequence_length", len(weights["words.weight"])])]
    outputs += [value(f"present.{name}", FP16, [rows, HEADS, new, SIZE]) for name in names]
    return helper.make_graph(g.nodes, "story", inputs, outputs, g.constants)


def main(source: str, target: str) -> None:
    model = helper.make_model(graph(dict(np.load(source))), opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)
    onnx.checker.check_model(model, full_check=True)
    pathlib.Path(target).write_bytes(model.SerializeToString(deterministic=True))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
