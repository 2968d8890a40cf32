"""Small ONNX models, made on the spot, each for one question."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, load, numpy_helper, save

Value = tuple[str, int, Sequence[Any]]
FLOAT, INT64, STRING, FLOAT16, BFLOAT16, BOOL = (
    TensorProto.FLOAT,
    TensorProto.INT64,
    TensorProto.STRING,
    TensorProto.FLOAT16,
    TensorProto.BFLOAT16,
    TensorProto.BOOL,
)


def write(
    path: Path,
    nodes: Sequence[Any],
    inputs: Sequence[Value],
    outputs: Sequence[Value],
    constants: dict[str, np.ndarray] | None = None,
    *,
    opset: int = 17,
    ir_version: int = 8,
) -> Path:
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info(*value) for value in outputs],
        [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
    path.parent.mkdir(parents=True, exist_ok=True)
    save(model, str(path))
    return path


def node(kind: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> Any:
    return helper.make_node(kind, list(inputs), list(outputs), **attributes)


def double(path: Path) -> Path:
    """y = 2 x, of rows of 4."""
    return write(path, [node("Add", ["x", "x"], ["y"])], [("x", FLOAT, ["n", 4])], [("y", FLOAT, ["n", 4])])


def identity(path: Path, kind: int, shape: Sequence[Any] = ("n", 4)) -> Path:
    return write(path, [node("Identity", ["x"], ["y"])], [("x", kind, shape)], [("y", kind, shape)])


def three_outputs(path: Path) -> Path:
    """a = x (FP32), b = x as INT64, c = x > 0 (BOOL)."""
    nodes = [
        node("Identity", ["x"], ["a"]),
        node("Cast", ["x"], ["b"], to=INT64),
        node("Greater", ["x", "zero"], ["c"]),
    ]
    outputs = [("a", FLOAT, ["n", 2]), ("b", INT64, ["n", 2]), ("c", BOOL, ["n", 2])]
    return write(path, nodes, [("x", FLOAT, ["n", 2])], outputs, {"zero": np.zeros((), np.float32)})


def threshold(path: Path) -> Path:
    """y = x + t, where t is a scalar: calls with another t must not be joined."""
    return write(path, [node("Add", ["x", "t"], ["y"])], [("x", FLOAT, ["n", 4]), ("t", FLOAT, [])], [("y", FLOAT, ["n", 4])])


def optional(path: Path) -> Path:
    """y = x + w, where w is [1, 2] unless a caller gives another."""
    inputs = [("x", FLOAT, ["n", 2]), ("w", FLOAT, [2])]
    return write(path, [node("Add", ["x", "w"], ["y"])], inputs, [("y", FLOAT, ["n", 2])], {"w": np.array([1, 2], np.float32)})


def scaled(path: Path, scale: float, location: str) -> Path:
    """y = x * scale, of rows of 4, with the scale in a file of its own: `location`, beside `path` or below."""
    constants = {"w": np.full((4,), scale, np.float32)}
    write(path, [node("Mul", ["x", "w"], ["y"])], [("x", FLOAT, ["n", 4])], [("y", FLOAT, ["n", 4])], constants)
    (path.parent / location).parent.mkdir(exist_ok=True)
    save(load(path), str(path), save_as_external_data=True, location=location, size_threshold=0)
    return path


def mean(path: Path) -> Path:
    """Looks like a batch and is none: y is one row, the mean of all."""
    nodes = [node("ReduceMean", ["x"], ["y"], axes=[0], keepdims=1)]
    return write(path, nodes, [("x", FLOAT, ["n", 4])], [("y", FLOAT, ["m", 4])])


def divide(path: Path) -> Path:
    """y = table[x]: an index that is out of bounds fails the whole run."""
    nodes = [node("Gather", ["table", "x"], ["y"], axis=0)]
    return write(path, nodes, [("x", INT64, ["n", 1])], [("y", FLOAT, ["n", 1])], {"table": np.arange(10, dtype=np.float32)})


def counter(path: Path, width: int = 4) -> Path:
    """Stateful: stateN = state + x, y = stateN."""
    nodes = [node("Add", ["state", "x"], ["stateN"]), node("Identity", ["stateN"], ["y"])]
    inputs = [("x", FLOAT, ["n", width]), ("state", FLOAT, ["n", width])]
    return write(path, nodes, inputs, [("y", FLOAT, ["n", width]), ("stateN", FLOAT, ["n", width])])


def two_states(path: Path) -> Path:
    """Pairs of equal type and shape whose outputs are in the other order: a swap would stay silent."""
    nodes = [
        node("Add", ["cache", "x"], ["cache_next"]),
        node("Sub", ["cache_len", "x"], ["cache_len_next"]),
        node("Concat", ["cache_next", "cache_len_next"], ["y"], axis=1),
    ]
    inputs = [("x", FLOAT, ["n", 1]), ("cache", FLOAT, ["n", 1]), ("cache_len", FLOAT, ["n", 1])]
    outputs = [("y", FLOAT, ["n", 2]), ("cache_len_next", FLOAT, ["n", 1]), ("cache_next", FLOAT, ["n", 1])]
    return write(path, nodes, inputs, outputs)


def caches(path: Path, count: int) -> tuple[Path, list[dict[str, Any]]]:
    """The caches of a streaming encoder: `count` states, each of which is a sum of x; y is the last. And the states in a manifest."""
    nodes = [node("Add", [f"s{n}", "x"], [f"t{n}"]) for n in range(count)] + [node("Identity", [f"t{count - 1}"], ["y"])]
    inputs = [("x", FLOAT, ["N", 4]), *((f"s{n}", FLOAT, ["N", 4]) for n in range(count))]
    outputs = [("y", FLOAT, ["N", 4]), *((f"t{n}", FLOAT, ["N", 4]) for n in range(count))]
    states = [{"input": f"s{n}", "output": f"t{n}", "shape": [-1, 4], "batchAxis": 0} for n in range(count)]
    return write(path, nodes, inputs, outputs), states


def rows(path: Path, din: int, dout: int, hidden: int = 0) -> Path:
    """A plain network, for load: x [n, din] to y [n, dout]."""
    rng = np.random.default_rng(0)
    inner = hidden or dout
    constants = {"w1": rng.standard_normal((din, inner)).astype(np.float32)}
    nodes = [node("MatMul", ["x", "w1"], ["h"])]
    if hidden:
        constants["w2"] = rng.standard_normal((inner, dout)).astype(np.float32)
        nodes += [node("Relu", ["h"], ["r"]), node("MatMul", ["r", "w2"], ["y"])]
    else:
        nodes.append(node("Identity", ["h"], ["y"]))
    return write(path, nodes, [("x", FLOAT, ["n", din])], [("y", FLOAT, ["n", dout])], constants)


def slow(path: Path) -> Path:
    """y = x after `n` rounds of a loop that ONNX Runtime cannot shorten: how long it runs is the caller's choice."""
    body = helper.make_graph(
        [
            node("MatMul", ["acc", "acc"], ["square"]),
            node("Clip", ["square", "low", "high"], ["next"]),
            node("Identity", ["go"], ["go_on"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", INT64, []),
            helper.make_tensor_value_info("go", BOOL, []),
            helper.make_tensor_value_info("acc", FLOAT, [64, 64]),
        ],
        [helper.make_tensor_value_info("go_on", BOOL, []), helper.make_tensor_value_info("next", FLOAT, [64, 64])],
    )
    nodes = [node("Loop", ["n", "yes", "start"], ["y"], body=body)]
    constants = {
        "yes": np.array(True),
        "start": np.full((64, 64), 0.1, np.float32),
        "low": np.array(0, np.float32),
        "high": np.array(1, np.float32),
    }
    return write(path, nodes, [("n", INT64, [])], [("y", FLOAT, [64, 64])], constants)
