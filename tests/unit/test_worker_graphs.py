"""What is read of an ONNX file beside ONNX Runtime, against the `onnx` package; and what its nodes say of rows that mix."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from dormouse_testing import models
from dormouse_testing.models import FLOAT, node, write
from dormouse_testing.random_graphs import random_model
from dormouse_worker.rows import graphs, mixing
from onnx import helper

EXAMPLES = Path(__file__).parents[2] / "examples"


def shape_of(value: Any) -> graphs.Shape | None:
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return tuple(getattr(dim, dim.WhichOneof("value")) if dim.WhichOneof("value") else None for dim in tensor.shape.dim)


def agree(path: Path) -> None:
    graph = graphs.read(path)
    assert graph is not None
    expected = onnx.load(str(path), load_external_data=False)
    assert [(n.kind, n.inputs, n.outputs) for n in graph.nodes] == [(n.op_type, list(n.input), list(n.output)) for n in expected.graph.node]
    for node_, proto in zip(graph.nodes, expected.graph.node, strict=True):
        for attribute in proto.attribute:
            value = helper.get_attribute_value(attribute)
            if isinstance(value, int):
                assert node_.attributes[attribute.name] == value
            elif isinstance(value, list) and value and isinstance(value[0], int):
                assert node_.attributes[attribute.name] == tuple(value)
    assert graph.inputs == {value.name: shape_of(value) for value in expected.graph.input}
    assert graph.outputs == {value.name: shape_of(value) for value in expected.graph.output}
    for tensor in expected.graph.initializer:
        assert graph.constants[tensor.name] == tuple(tensor.dims)
    assert graph.opset == next(each.version for each in expected.opset_import if each.domain in ("", "ai.onnx"))


def test_it_reads_what_the_onnx_package_reads(tmp_path: Path) -> None:
    for seed in range(20):
        agree(random_model(tmp_path / "m.onnx", seed))
    agree(EXAMPLES / "vad" / "model.onnx")
    agree(EXAMPLES / "filetype" / "model.onnx")


def test_no_shape_is_not_a_scalar(tmp_path: Path) -> None:
    values = [helper.make_tensor_value_info("x", FLOAT, None), helper.make_tensor_value_info("s", FLOAT, [])]
    graph = helper.make_graph([node("Add", ["x", "s"], ["y"])], "t", values, [helper.make_tensor_value_info("y", FLOAT, None)])
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    found = graphs.read(path)
    assert found is not None
    assert (found.inputs, found.outputs) == ({"x": None, "s": ()}, {"y": None})
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert [value.shape for value in session.get_inputs()] == [[], []], "which is why the file is looked at"


def test_weights_beside_the_file_are_named_and_not_read(tmp_path: Path) -> None:
    path = models.scaled(tmp_path / "m.onnx", 2.0, "weights.bin")
    (tmp_path / "weights.bin").unlink()
    graph = graphs.read(path)
    assert graph is not None
    assert graph.files == {"weights.bin"}
    assert graph.constants == {"w": (4,)}


def test_what_is_no_model_cannot_be_looked_at(tmp_path: Path) -> None:
    whole = models.double(tmp_path / "m.onnx").read_bytes()
    for data in (b"", b"ORTM", b"\x08\x00\x00\x00ORTM" + bytes(40), bytes(range(256)), np.random.default_rng(0).bytes(500)):
        (tmp_path / "other").write_bytes(data)
        assert graphs.read(tmp_path / "other") is None
    for length in range(1, len(whole)):
        graphs.parse(memoryview(whole[:length]))  # does not raise
    assert graphs.read(tmp_path / "missing") is None


# -------------------------------------------------------------------------------------------------------------------------- mixing

ROWS2, ROWS3 = ["n", 4], ["n", "m", 4]


def looked(tmp_path: Path, nodes: Sequence[Any], shape: Sequence[Any], axis: int = 0, opset: int = 17, **constants: Any) -> str | None:
    arrays = {name: np.asarray(value) for name, value in constants.items()}
    write(tmp_path / "m.onnx", nodes, [("x", FLOAT, shape)], [("y", FLOAT, None)], arrays, opset=opset)  # type: ignore[list-item]
    graph = graphs.read(tmp_path / "m.onnx")
    assert graph is not None
    return mixing.look(graph, {"x": axis})


def one(kind: str, *more: str, **attributes: Any) -> list[Any]:
    return [node(kind, ["x", *more], ["y"], **attributes)]


W = np.ones((4, 4), np.float32)
ZERO, FIRST, SECOND = np.array(0), np.array([0]), np.array([1])
RNN = {"w": np.ones((1, 4, 4), np.float32), "r": np.ones((1, 4, 4), np.float32)}
MIXING: list[tuple[str, list[Any], list[Any], int, int, dict[str, Any]]] = [
    ("ReduceMean", one("ReduceMean", axes=[0]), ROWS2, 0, 17, {}),
    ("ReduceMax over all", one("ReduceMax"), ROWS2, 0, 17, {}),
    ("ReduceSum", one("ReduceSum", "axes"), ROWS2, 0, 17, {"axes": FIRST}),
    ("ReduceMean", one("ReduceMean", "axes"), ROWS3, 1, 18, {"axes": SECOND}),
    ("CumSum", one("CumSum", "at"), ROWS3, 0, 17, {"at": ZERO}),
    ("Softmax", one("Softmax", axis=0), ROWS2, 0, 17, {}),
    ("Softmax before 13", one("Softmax", axis=0), ROWS2, 0, 12, {}),
    ("TopK", [node("TopK", ["x", "k"], ["y", "i"], axis=0)], ROWS2, 0, 17, {"k": SECOND}),
    ("NonZero", one("NonZero"), ROWS2, 0, 17, {}),
    ("Unique", one("Unique"), ROWS2, 0, 17, {}),
    ("DynamicQuantizeLinear", [node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]), node("DequantizeLinear", ["q", "s", "z"], ["y"])],
     ROWS2, 0, 17, {}),
    ("RNN", [node("RNN", ["x", "w", "r"], ["y"], hidden_size=4)], ROWS3, 0, 17, RNN),
    ("RNN", [node("RNN", ["x", "w", "r"], ["y"], hidden_size=4, layout=1)], ROWS3, 1, 17, RNN),
    ("RNN behind a transposition",
     [node("Transpose", ["x"], ["t"], perm=[1, 0, 2]), node("RNN", ["t", "w", "r"], ["y"], hidden_size=4)], ROWS3, 1, 17, RNN),
    ("Concat", [node("Concat", ["x", "x"], ["y"], axis=0)], ROWS2, 0, 17, {}),
    ("Gemm", [node("Gemm", ["x", "w"], ["y"], transA=1)], ROWS2, 0, 17, {"w": W}),
    ("MatMul of all rows with all", [node("Transpose", ["x"], ["t"]), node("MatMul", ["t", "x"], ["y"])], ROWS2, 0, 17, {}),
    ("LayerNormalization", one("LayerNormalization", "scale", axis=0), ROWS2, 0, 17, {"scale": np.ones(4, np.float32)}),
    ("behind others", [node("MatMul", ["x", "w"], ["a"]), node("Relu", ["a"], ["b"]), node("Add", ["b", "w1"], ["c"]),
                       node("Flatten", ["c"], ["d"]), node("CumSum", ["d", "at"], ["y"])], ROWS2, 0, 17,
     {"w": W, "w1": np.ones(4, np.float32), "at": ZERO}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "nodes", "shape", "axis", "opset", "constants"), MIXING, ids=[each[0] for each in MIXING])
def test_nodes_that_mix_rows(
    tmp_path: Path, name: str, nodes: list[Any], shape: list[Any], axis: int, opset: int, constants: dict[str, Any]
) -> None:
    told = looked(tmp_path, nodes, shape, axis, opset, **constants)
    assert told is not None
    assert nodes[-1].op_type in told or nodes[0].op_type in told


INDEPENDENT: list[tuple[str, list[Any], list[Any], int, int, dict[str, Any]]] = [
    ("along another axis", one("ReduceMean", axes=[1]), ROWS2, 0, 17, {}),
    ("CumSum", one("CumSum", "at"), ROWS3, 1, 17, {"at": ZERO}),
    ("Softmax", one("Softmax"), ROWS2, 0, 17, {}),
    ("RNN", [node("RNN", ["x", "w", "r"], ["y"], hidden_size=4)], ROWS3, 1, 17, RNN),
    ("RNN behind a transposition",
     [node("Transpose", ["x"], ["t"], perm=[1, 0, 2]), node("RNN", ["t", "w", "r"], ["y"], hidden_size=4)], ROWS3, 0, 17, RNN),
    ("what is lost", [node("Reshape", ["x", "flat"], ["f"]), node("Softmax", ["f"], ["y"], axis=0)], ROWS2, 0, 17,
     {"flat": np.array([-1])}),
    ("a constant's NonZero", [node("NonZero", ["w"], ["i"]), node("Cast", ["i"], ["c"], to=FLOAT), node("ReduceSum", ["c"], ["s"]),
                              node("Add", ["x", "s"], ["y"])], ROWS2, 0, 17, {"w": W}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "nodes", "shape", "axis", "opset", "constants"), INDEPENDENT, ids=[each[0] for each in INDEPENDENT])
def test_nodes_that_do_not_for_certain(
    tmp_path: Path, name: str, nodes: list[Any], shape: list[Any], axis: int, opset: int, constants: dict[str, Any]
) -> None:
    assert looked(tmp_path, nodes, shape, axis, opset, **constants) is None
