"""Cases 1.O1 to 1.O3 and 7.O2 to 7.O6 in the real runtime: every datatype bit for bit, typed and raw; empty tensors; what may be left out;
weights in files of their own.
"""

from pathlib import Path

import numpy as np
import onnx
import pytest
from dormouse_core import spec as specs
from dormouse_core.errors import Code
from dormouse_core.tensors import DATATYPES, encode_raw
from dormouse_proto import inference_pb2
from dormouse_testing import models
from dormouse_testing.onnx_calls import infer, load, raw
from dormouse_worker.models.refusals import ModelInvalid
from onnx import TensorProto, helper

ONNX = {"BOOL": 9, "INT8": 3, "INT16": 5, "INT32": 6, "INT64": 7, "UINT8": 2, "UINT16": 4, "UINT32": 12, "UINT64": 13,
        "FP16": 10, "BF16": 16, "FP32": 1, "FP64": 11, "BYTES": 8}  # fmt: skip


def values(datatype: str) -> np.ndarray:
    """24 values of any bits; BYTES: empty, NULs, several bytes a character."""
    kind = DATATYPES[datatype]
    if datatype == "BYTES":
        array = np.empty(24, object)
        array[:] = [b"", b"\0", b"a\0b", "é\U0001f400".encode()] * 6
        return array
    if datatype == "BOOL":
        return np.arange(24) % 2 == 1
    return np.frombuffer(np.random.default_rng(7).bytes(24 * kind.itemsize), kind.dtype)


def test_every_datatype_is_tried() -> None:
    assert ONNX.keys() == DATATYPES.keys()


@pytest.mark.parametrize("datatype", ONNX)
async def test_raw_contents_come_back_bit_for_bit(tmp_path: Path, datatype: str) -> None:
    runtime = load(models.identity(tmp_path / "m.onnx", ONNX[datatype], ["n", 3, 4]))
    data = encode_raw(values(datatype), datatype)
    assert await infer(runtime, raw({"x": (datatype, [2, 3, 4], data)})) == [{"y": (datatype, [2, 3, 4], data)}]


@pytest.mark.parametrize("datatype", [name for name, kind in DATATYPES.items() if kind.contents and name not in ("FP32", "FP64")])
async def test_typed_contents_say_the_same(tmp_path: Path, datatype: str) -> None:
    runtime = load(models.identity(tmp_path / "m.onnx", ONNX[datatype], ["n", 24]))
    message = inference_pb2.ModelInferRequest(model_name="m")
    tensor = message.inputs.add(name="x", datatype=datatype, shape=[1, 24])
    getattr(tensor.contents, DATATYPES[datatype].contents).extend(values(datatype).tolist())
    assert await infer(runtime, message) == [{"y": (datatype, [1, 24], encode_raw(values(datatype), datatype))}]


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
async def test_types_without_a_typed_field_are_told_so(tmp_path: Path, datatype: str) -> None:
    runtime = load(models.identity(tmp_path / "m.onnx", ONNX[datatype], ["n", 1]))
    message = inference_pb2.ModelInferRequest(model_name="m")
    message.inputs.add(name="x", datatype=datatype, shape=[1, 1]).contents.fp32_contents.append(1)
    (found,) = await infer(runtime, message)
    assert isinstance(found, tuple)
    assert found[0] is Code.INVALID_ARGUMENT
    assert f"{datatype} is allowed in raw contents only" in found[1]


# --------------------------------------------------------------------------------------------------------------------------- empty


@pytest.mark.parametrize("datatype", ["FP32", "BF16", "BYTES", "BOOL"])
async def test_empty_tensors_where_the_model_takes_them(tmp_path: Path, datatype: str) -> None:
    """Any dimension that varies may be 0, the batch too, whether or not calls run together otherwise."""
    path = models.identity(tmp_path / "m.onnx", ONNX[datatype], ["n", "m"])
    for most in (8, 1):
        runtime = load(path, max_batch_size=most)
        assert runtime.signature.max_batch == (most if most > 1 else 0)
        for shape in ([2, 0], [0, 3], [0, 0]):
            assert await infer(runtime, raw({"x": (datatype, shape, b"")})) == [{"y": (datatype, shape, b"")}]


async def test_empty_tensors_where_the_model_does_not(tmp_path: Path) -> None:
    runtime = load(models.identity(tmp_path / "m.onnx", models.FLOAT, ["n", 4]))
    (columns,) = await infer(runtime, raw({"x": ("FP32", [1, 0], b"")}))
    assert columns == (Code.INVALID_ARGUMENT, "inputs['x'].shape: [1,0] found, [-1,4] is expected")


# ------------------------------------------------------------------------------------------------------------------------ optional


def optional_type(path: Path) -> Path:
    """y = x + w where w, an ONNX optional, is given; else y = x."""
    tensor = helper.make_tensor_type_proto(TensorProto.FLOAT, ["n", 2])
    y = helper.make_tensor_value_info
    given = helper.make_graph(
        [models.node("OptionalGetElement", ["w"], ["found"]), models.node("Add", ["x", "found"], ["sum"])],
        "given",
        [],
        [y("sum", 1, ["n", 2])],
    )
    absent = helper.make_graph([models.node("Identity", ["x"], ["same"])], "absent", [], [y("same", 1, ["n", 2])])
    nodes = [
        models.node("OptionalHasElement", ["w"], ["has"]),
        models.node("If", ["has"], ["y"], then_branch=given, else_branch=absent),
    ]
    inputs = [y("x", 1, ["n", 2]), helper.make_value_info("w", helper.make_optional_type_proto(tensor))]
    graph = helper.make_graph(nodes, "test", inputs, [y("y", 1, ["n", 2])])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), str(path))
    return path


def floats(*numbers: float) -> bytes:
    return np.array(numbers, np.float32).tobytes()


async def test_an_optional_input_may_be_left_out(tmp_path: Path) -> None:
    """Case 7.O5. Calls with and without it wait together and are not joined."""
    runtime = load(optional_type(tmp_path / "m.onnx"))
    assert [(t.name, t.optional) for t in runtime.signature.inputs] == [("x", False), ("w", True)]
    x, w = ("FP32", [1, 2], floats(1, 1)), ("FP32", [1, 2], floats(7, 8))
    found = await infer(runtime, raw({"x": x}), raw({"x": x, "w": w}), raw({"x": x}), raw({"w": w, "x": x}), raw({"w": w}))
    assert [each["y"][2] for each in found[:4] if isinstance(each, dict)] == [floats(1, 1), floats(8, 9)] * 2
    assert isinstance(found[4], tuple)
    assert "'x' missing" in found[4][1]


# ------------------------------------------------------------------------------------------------------------------- external data


async def test_weights_of_one_name_in_two_folders(tmp_path: Path) -> None:
    """Case 7.O2."""
    first = load(models.scaled(tmp_path / "a" / "m.onnx", 2, "weights.bin"))
    second = load(models.scaled(tmp_path / "b" / "m.onnx", 3, "weights.bin"))
    call = raw({"x": ("FP32", [1, 4], floats(1, 1, 1, 1))})
    for runtime, expected in ((first, 2), (second, 3), (first, 2)):
        assert await infer(runtime, call) == [{"y": ("FP32", [1, 4], floats(*[expected] * 4))}]


async def test_weights_in_a_folder_below(tmp_path: Path) -> None:
    runtime = load(models.scaled(tmp_path / "m.onnx", 2, "data/weights.bin"))
    call = raw({"x": ("FP32", [1, 4], floats(1, 1, 1, 1))})
    assert await infer(runtime, call) == [{"y": ("FP32", [1, 4], floats(2, 2, 2, 2))}]


async def test_weights_in_a_configmap(tmp_path: Path) -> None:
    """Its keys are links to links, as the kubelet makes them."""
    models.scaled(tmp_path / "..2026_01" / "m.onnx", 2, "weights.bin")
    (tmp_path / "..data").symlink_to("..2026_01")
    for name in ("m.onnx", "weights.bin"):
        (tmp_path / name).symlink_to(f"..data/{name}")
    call = raw({"x": ("FP32", [1, 4], floats(1, 1, 1, 1))})
    for path in (tmp_path / "m.onnx", tmp_path):
        assert await infer(load(path), call) == [{"y": ("FP32", [1, 4], floats(2, 2, 2, 2))}]


@pytest.mark.parametrize("location", ["../weights.bin", "/etc/hostname"])
def test_weights_outside_the_models_folder_are_not_read(tmp_path: Path, location: str) -> None:
    path = models.scaled(tmp_path / "in" / "m.onnx", 2, "weights.bin")
    (path.parent / "weights.bin").rename(tmp_path / "weights.bin")
    model = onnx.load(path, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = location
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelInvalid):
        load(path)


# --------------------------------------------------------------------------------------------------------------------------- states


async def test_states_are_not_among_the_outputs(tmp_path: Path) -> None:
    """Case 1.O3's last half sentence."""
    state = specs.StateSpec(input="state", output="stateN", shape=[-1, 4], batch_axis=0)
    runtime = load(models.counter(tmp_path / "m.onnx"), state)
    (found,) = await infer(
        runtime, raw({"x": ("FP32", [1, 4], floats(1, 1, 1, 1))}, "stateN"), states={"state": np.zeros((1, 4), np.float32)}
    )
    assert found == (Code.INVALID_ARGUMENT, "outputs: 'stateN' is not an output; allowed are y")
