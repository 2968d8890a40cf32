"""ONNX models in the real runtime: which dimension is the batch, exact bits, strings, optional inputs, what does not load."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dormouse_core import spec as specs
from dormouse_core.errors import Code
from dormouse_core.tensors import decode_raw, encode_raw
from dormouse_proto import inference_pb2
from dormouse_testing import models
from dormouse_testing.onnx_calls import infer, load, raw
from dormouse_worker.fetching import fetch
from dormouse_worker.models.refusals import ModelInvalid, ModelUnavailable
from dormouse_worker.serving import loading, methods


def floats(*values: float) -> bytes:
    return np.array(values, np.float32).tobytes()


async def test_fp16_is_bit_exact(tmp_path: Path) -> None:
    data = np.array([1.123, 65504, -0.0, np.inf, np.nan, 6e-8, 0, 1], np.float16).tobytes()
    runtime = load(models.identity(tmp_path / "m.onnx", models.FLOAT16))
    assert await infer(runtime, raw({"x": ("FP16", [2, 4], data)})) == [{"y": ("FP16", [2, 4], data)}]


async def test_every_bf16_bit_pattern_comes_back(tmp_path: Path) -> None:
    data = np.arange(65536, dtype=np.uint16).tobytes()
    runtime = load(models.identity(tmp_path / "m.onnx", models.BFLOAT16, ["n", 65536]))
    assert await infer(runtime, raw({"x": ("BF16", [1, 65536], data)})) == [{"y": ("BF16", [1, 65536], data)}]


async def test_strings_are_exact_or_refused(tmp_path: Path) -> None:
    runtime = load(models.identity(tmp_path / "m.onnx", models.STRING, ["n", 3]))
    good = [b"", b"a\0b", "\U0001f400".encode(), b"x" * 70_000, b"1", b"2"]
    data = encode_raw(np.array([*good, None], object)[:-1].reshape(2, 3), "BYTES")
    bad = encode_raw(np.array([b"ok", b"\xff\xfe", b"", None], object)[:-1].reshape(1, 3), "BYTES")
    found = await infer(
        runtime, raw({"x": ("BYTES", [2, 3], data)}), raw({"x": ("BYTES", [1, 3], bad)}), raw({"x": ("BYTES", [1, 3], data[:-1])})
    )
    assert isinstance(found[0], dict)
    assert decode_raw("BYTES", [2, 3], found[0]["y"][2]).reshape(-1).tolist() == good
    assert found[1] == (Code.INVALID_ARGUMENT, "inputs['x']: element 1 is not UTF-8, which an ONNX model's strings are")
    assert isinstance(found[2], tuple)
    assert found[2][0] is Code.INVALID_ARGUMENT
    typed = inference_pb2.ModelInferRequest(model_name="m")
    typed.inputs.add(name="x", datatype="BYTES", shape=[1, 3]).contents.bytes_contents.extend([b"ok", b"", b"\xff\xfe"])
    (told,) = await infer(runtime, typed)
    assert told == (Code.INVALID_ARGUMENT, "inputs['x']: element 2 is not UTF-8, which an ONNX model's strings are")


async def test_wanted_outputs(tmp_path: Path) -> None:
    runtime = load(models.three_outputs(tmp_path / "m.onnx"))
    given = {"x": ("FP32", [1, 2], floats(3, -1))}
    a, b, c = ("FP32", [1, 2], floats(3, -1)), ("INT64", [1, 2], np.array([3, -1]).tobytes()), ("BOOL", [1, 2], b"\1\0")
    found = await infer(runtime, raw(given), raw(given, "b"), raw(given, "c", "a"), raw(given, "nope"))
    assert found[:3] == [{"a": a, "b": b, "c": c}, {"b": b}, {"c": c, "a": a}]
    assert isinstance(found[2], dict)
    assert list(found[2]) == ["c", "a"]
    assert isinstance(found[3], tuple)


async def test_scalars_are_scalars_and_are_not_shared(tmp_path: Path) -> None:
    runtime = load(models.threshold(tmp_path / "m.onnx"))

    def call(x: float, t: float, shape: list[int]) -> inference_pb2.ModelInferRequest:
        return raw({"x": ("FP32", [1, 4], floats(x, x, x, x)), "t": ("FP32", shape, floats(*[t] * max(1, *shape, 1)))})

    found = await infer(runtime, call(1, 10, []), call(2, 20, []), call(3, 10, []), call(1, 1, [1]), call(1, 1, [2]))
    assert [value["y"][2] for value in found[:3] if isinstance(value, dict)] == [floats(*[v] * 4) for v in (11, 22, 13)]
    assert all(isinstance(value, tuple) and value[0] is Code.INVALID_ARGUMENT and "'t'" in value[1] for value in found[3:])


async def test_optional_inputs_may_be_left_out(tmp_path: Path) -> None:
    runtime = load(models.optional(tmp_path / "m.onnx"))
    x, w = ("FP32", [1, 2], floats(0, 0)), ("FP32", [2], floats(7, 8))
    found = await infer(runtime, raw({"x": x}), raw({"x": x, "w": w}), raw({"x": x}), raw({"w": w}))
    assert [value["y"][2] for value in found[:3] if isinstance(value, dict)] == [floats(1, 2), floats(7, 8), floats(1, 2)]
    assert isinstance(found[3], tuple)
    assert "'x' missing" in found[3][1]
    assert [t.name for t in runtime.signature.metadata("").inputs if t.optional] == ["w"]


async def test_a_bad_row_fails_alone(tmp_path: Path) -> None:
    runtime = load(models.divide(tmp_path / "m.onnx"))
    found = await infer(runtime, *[raw({"x": ("INT64", [1, 1], np.int64(n).tobytes())}) for n in (1, 99, 3)])
    assert [found[0], found[2]] == [{"y": ("FP32", [1, 1], floats(n))} for n in (1, 3)]
    assert isinstance(found[1], tuple)
    assert found[1][0] is Code.INTERNAL
    assert "99" in found[1][1]


async def test_what_only_looks_like_a_batch(tmp_path: Path) -> None:
    runtime = load(models.mean(tmp_path / "m.onnx"))
    found = await infer(runtime, *[raw({"x": ("FP32", [1, 4], floats(n, n, n, n))}) for n in range(3)])
    assert found == [{"y": ("FP32", [1, 4], floats(n, n, n, n))} for n in range(3)]


@pytest.mark.parametrize(
    ("inputs", "outputs", "expected"),
    [
        ([["n", 4]], [["n", 4]], 8),
        ([[None, 4]], [[None, 4]], 8),
        ([["batch", 4]], [[None, 4]], 8),
        ([[1, 4]], [[1, 4]], 0),
        ([["n"]], [["n"]], 8),
        ([[]], [[]], 0),
        ([["n", 4]], [[1, 4]], 0),
    ],
)
def test_which_models_batch(tmp_path: Path, inputs: list[Any], outputs: list[Any], expected: int) -> None:
    path = models.write(tmp_path / "m.onnx", [models.node("Identity", ["x"], ["y"])], [("x", 1, inputs[0])], [("y", 1, outputs[0])])
    assert load(path).signature.max_batch == expected


STATE = specs.StateSpec(input="state", output="stateN", shape=[-1, 4], batch_axis=0)


def test_states_are_hidden_and_checked(tmp_path: Path) -> None:
    path = models.counter(tmp_path / "m.onnx")
    signature = load(path, STATE).signature
    assert ([t.name for t in signature.inputs], [t.name for t in signature.outputs], signature.max_batch) == (["x"], ["y"], 8)
    metadata = signature.metadata("v1")
    config = methods.model_config("m", metadata, 0, 5)
    assert (config.max_batch_size, list(config.input[0].dims), config.sequence_batching.state[0].input_name) == (8, [4], "state")
    for change, word in (
        ({"input": "nope"}, "no input 'nope'"),
        ({"output": "nope"}, "no output 'nope'"),
        ({"shape": [-1, 5]}, "[-1,5]"),
        ({"shape": [-1]}, "[-1]"),
    ):
        fields = {"input": "state", "output": "stateN", "shape": [-1, 4], "batch_axis": 0} | change
        with pytest.raises(ModelInvalid) as raised:
            load(path, specs.StateSpec(**fields))  # type: ignore[arg-type]
        assert word in raised.value.message
    one_at_a_time = specs.StateSpec(input="state", output="stateN", shape=[1, 4], batch_axis=0)
    assert load(path, one_at_a_time).signature.max_batch == 0


@pytest.mark.parametrize(("opset", "ir", "word"), [(99, 8, "99"), (17, 99, "99")])
def test_newer_than_the_runtime(tmp_path: Path, opset: int, ir: int, word: str) -> None:
    nodes = [models.node("Identity", ["x"], ["y"])]
    path = models.write(tmp_path / "m.onnx", nodes, [("x", 1, ["n"])], [("y", 1, ["n"])], opset=opset, ir_version=ir)
    with pytest.raises(ModelInvalid) as raised:
        load(path)
    assert word in raised.value.message
    assert "ONNX Runtime" in raised.value.message


def test_weights_in_a_file_beside_the_model(tmp_path: Path) -> None:
    import onnx

    path = models.rows(tmp_path / "in" / "m.onnx", 64, 64)
    onnx.save(onnx.load(path), str(path), save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert (path.parent / "weights.bin").exists()
    load(path)
    (path.parent / "weights.bin").unlink()
    with pytest.raises(ModelInvalid, match=r"weights\.bin"):
        load(path)


def test_an_unknown_operator(tmp_path: Path) -> None:
    nodes = [models.node("Frobnicate", ["x"], ["y"], domain="com.example")]
    path = models.write(tmp_path / "m.onnx", nodes, [("x", 1, ["n"])], [("y", 1, ["n"])])
    with pytest.raises(ModelInvalid, match=r"com\.example"):
        load(path)


def test_fetching(tmp_path: Path) -> None:
    root = tmp_path / "root"
    models.double(root / "a" / "m.onnx")
    (tmp_path / "secret.onnx").write_bytes(b"")
    (root / "link.onnx").symlink_to(tmp_path / "secret.onnx")
    assert fetch("file://a/m.onnx", None, str(root)) == root / "a" / "m.onnx"
    assert fetch("file:///a/m.onnx", None, str(root)) == root / "a" / "m.onnx"
    for uri, kind in (
        ("file://../secret.onnx", ModelInvalid),
        ("file://link.onnx", ModelInvalid),
        ("file://none.onnx", ModelUnavailable),
        ("s3://bucket/m.onnx", ModelUnavailable),
    ):
        with pytest.raises(kind):
            fetch(uri, None, str(root))


def initial(tmp_path: Path, value: Any, shape: list[int]) -> np.ndarray:
    state = specs.StateSpec(input="state", output="stateN", shape=shape, batch_axis=0, initial=value)
    inner = load(models.identity(tmp_path / "m.onnx", models.FLOAT, [None] * len(shape))).signature
    from dormouse_worker.models.signatures import StateSpec

    assert inner.max_batch
    return loading.initial(state, StateSpec("state", "stateN", "FP32", tuple(shape), 0), tmp_path / "m.onnx")


def test_first_states(tmp_path: Path) -> None:
    assert initial(tmp_path, "zeros", [-1, 3]).tolist() == [[0, 0, 0]]
    assert initial(tmp_path, specs.Initial(shape=[1, 2]), [-1, -1]).shape == (1, 2)
    np.save(tmp_path / "first.npy", np.array([[1, 2]], np.float32))
    assert initial(tmp_path, specs.Initial(file="first.npy"), [-1, 2]).tolist() == [[1, 2]]
    np.save(tmp_path / "object.npy", np.array([None], object), allow_pickle=True)
    for value, shape, word in (
        ("zeros", [-1, -1], "varies"),
        (specs.Initial(shape=[2, 2]), [-1, 2], "[2, 2]"),
        (specs.Initial(file="first.npy"), [-1, 3], "[1, 2]"),
        (specs.Initial(file="none.npy"), [-1, 2], "cannot be read"),
        (specs.Initial(file="object.npy"), [-1, 2], "cannot be read"),
        (specs.Initial(file="../first.npy"), [-1, 2], "points outside"),
    ):
        with pytest.raises(ModelInvalid) as raised:
            initial(tmp_path, value, shape)  # type: ignore[arg-type]
        assert word in raised.value.message
