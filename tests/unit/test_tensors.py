"""Tensors on the wire and in NumPy: round trips, exact bits, exact sentences."""

import struct
from typing import Any

import numpy as np
import pytest
from dormouse_core import tensors
from dormouse_core.errors import Code, Internal, InvalidArgument
from dormouse_core.tensors import DATATYPES, as_array, decode_contents, decode_raw, encode_raw, from_onnx, size_of, zeros
from dormouse_proto import inference_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

FIXED = sorted(DATATYPES.keys() - {"BYTES"})
typed: Any = inference_pb2.InferTensorContents
SHAPES = st.lists(st.integers(0, 4), max_size=4)


@settings(deadline=None)
@given(st.data(), st.sampled_from(FIXED), SHAPES)
def test_raw_bytes_come_back_bit_by_bit(data: st.DataObject, datatype: str, shape: list[int]) -> None:
    size = int(np.prod(shape)) * DATATYPES[datatype].itemsize
    raw = data.draw(st.binary(min_size=size, max_size=size))
    if datatype == "BOOL":
        raw = bytes(byte & 1 for byte in raw)
    array = decode_raw(datatype, shape, raw)
    assert array.shape == tuple(shape)
    assert array.dtype == DATATYPES[datatype].dtype
    assert encode_raw(array, datatype) == raw
    assert size_of(array, datatype) == len(raw)


@settings(deadline=None)
@given(st.lists(st.binary(max_size=20), max_size=12))
def test_bytes_come_back_exactly(values: list[bytes]) -> None:
    raw = b"".join(struct.pack("<I", len(value)) + value for value in values)
    array = decode_raw("BYTES", [len(values)], raw)
    assert list(array) == values
    assert encode_raw(array, "BYTES") == raw
    assert size_of(array, "BYTES") == len(raw)
    assert list(decode_contents("BYTES", [len(values)], typed(bytes_contents=values))) == values


@settings(deadline=None)
@given(st.binary(max_size=40), st.integers(0, 4))
def test_any_buffer_of_bytes_is_read_or_refused(raw: bytes, count: int) -> None:
    try:
        array = decode_raw("BYTES", [count], raw)
    except InvalidArgument:
        return
    assert encode_raw(array, "BYTES") == raw


INTEGERS = [name for name in FIXED if "INT" in name]


@settings(deadline=None)
@given(st.data(), st.sampled_from(INTEGERS))
def test_typed_integers_come_back_or_are_refused(data: st.DataObject, datatype: str) -> None:
    field, bounds = DATATYPES[datatype].contents, np.iinfo(DATATYPES[datatype].dtype)
    carrier = np.iinfo({"int_contents": "i4", "int64_contents": "i8", "uint_contents": "u4", "uint64_contents": "u8"}[field])
    values = data.draw(
        st.lists(st.integers(int(carrier.min), int(carrier.max)) | st.integers(int(bounds.min), int(bounds.max)), max_size=5)
    )
    contents = typed(**{field: values})
    outside = [value for value in values if not bounds.min <= value <= bounds.max]
    if outside:
        with pytest.raises(InvalidArgument, match=f"{outside[0]} found at element {values.index(outside[0])}, "):
            decode_contents(datatype, [len(values)], contents)
    else:
        array = decode_contents(datatype, [len(values)], contents)
        assert array.tolist() == values
        assert array.dtype == DATATYPES[datatype].dtype


def test_typed_floats_and_booleans() -> None:
    contents = typed
    assert decode_contents("FP32", [2, 1], contents(fp32_contents=[1.5, -0.0])).tobytes() == np.array([1.5, -0.0], "<f4").tobytes()
    assert decode_contents("FP64", [1], contents(fp64_contents=[0.1])).tolist() == [0.1]
    assert decode_contents("BOOL", [2], contents(bool_contents=[True, False])).tolist() == [True, False]
    assert decode_contents("FP32", [], contents(fp32_contents=[2])).shape == ()
    assert decode_contents("INT8", [0, 3], contents()).shape == (0, 3)


def test_raw_contents_are_a_view_of_the_message() -> None:
    message = bytearray(b"\x00\x00\x80\x3f" * 4)
    array = decode_raw("FP32", [2, 2], memoryview(message))
    message[0:4] = b"\x00\x00\x00\x40"
    assert array[0, 0] == 2
    assert not decode_raw("FP32", [1], bytes(4)).flags.writeable


def test_every_pattern_of_16_bits_survives() -> None:
    patterns = np.arange(2**16, dtype=np.uint16)
    for datatype in ("BF16", "FP16"):
        assert encode_raw(decode_raw(datatype, [2**16], patterns.tobytes()), datatype) == patterns.tobytes()


def test_every_bfloat16_survives_a_calculation_in_fp32() -> None:
    patterns = np.arange(2**16, dtype=np.uint16)
    assert np.array_equal(tensors.bf16_from_fp32(tensors.bf16_to_fp32(patterns)), patterns)


@pytest.mark.parametrize(
    ("number", "pattern"),
    [(1.0, 0x3F80), (-2.0, 0xC000), (1.00390625, 0x3F80), (1.01171875, 0x3F82), (3.4e38, 0x7F80), (float("inf"), 0x7F80), (1e-45, 0x0000)],
)
def test_bfloat16_rounds_to_the_nearest_and_ties_to_even(number: float, pattern: int) -> None:
    assert tensors.bf16_from_fp32(np.array([number], np.float32))[0] == pattern


def test_a_nan_never_becomes_infinity() -> None:
    low = np.array([0x7F800001, 0xFF800001, 0x7FFFFFFF], np.uint32).view(np.float32)
    assert np.isnan(tensors.bf16_to_fp32(tensors.bf16_from_fp32(low))).all()


REFUSED: list[tuple[str, list[int], bytes, str]] = [
    ("FP32", [2, 2], bytes(15), 'tensor "x": 15 bytes of raw contents found, 16 are allowed (FP32 of shape [2, 2])'),
    ("FP32", [2], bytes(12), 'tensor "x": 12 bytes of raw contents found, 8 are allowed (FP32 of shape [2])'),
    ("INT64", [0], bytes(8), 'tensor "x": 8 bytes of raw contents found, 0 are allowed (INT64 of shape [0])'),
    ("FP32", [-1], bytes(4), 'tensor "x": shape [-1] found, dimensions of 0 and more are allowed'),
    ("FP32", [-2, -2], bytes(16), 'tensor "x": shape [-2, -2] found, dimensions of 0 and more are allowed'),
    ("BOOL", [3], b"\0\1\2", 'tensor "x": the byte 2 found at element 2 of a BOOL, 0 or 1 is allowed'),
    ("BYTES", [1], b"\5\0\0\0abc", 'tensor "x": a length of 5 found at element 0 of BYTES, 3 bytes are left'),
    ("BYTES", [1], b"\1\0\0\0abc", 'tensor "x": 2 bytes of raw contents found after the last of 1 elements of BYTES'),
    ("BYTES", [2], b"\4\0\0\0abcd", 'tensor "x": the raw contents end after 1 of 2 elements of BYTES'),
    (
        "BYTES",
        [2**40],
        b"",
        'tensor "x": 0 bytes of raw contents found, at least 4398046511104 are needed (BYTES of shape [1099511627776]: 4 bytes of length '
        "and the element, 1099511627776 times)",
    ),
    (
        "FLOAT",
        [1],
        bytes(4),
        'tensor "x": datatype "FLOAT" found, one of BOOL, INT8, INT16, INT32, INT64, UINT8, UINT16, UINT32, UINT64, FP16, BF16, FP32, '
        "FP64, BYTES is allowed",
    ),
]


@pytest.mark.parametrize(("datatype", "shape", "raw", "message"), REFUSED, ids=[message[12:50] for *_, message in REFUSED])
def test_wrong_raw_contents_are_told(datatype: str, shape: list[int], raw: bytes, message: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        decode_raw(datatype, shape, raw, "x")
    assert refused.value.message == message
    assert refused.value.code == Code.INVALID_ARGUMENT


TYPED: list[tuple[str, list[int], dict[str, Any], str]] = [
    ("FP16", [1], {"fp32_contents": [1]}, 'tensor "x": typed contents found, FP16 is allowed in raw contents only'),
    ("BF16", [1], {}, 'tensor "x": typed contents found, BF16 is allowed in raw contents only'),
    ("FP32", [1], {"fp64_contents": [1]}, 'tensor "x": fp64_contents found, fp32_contents is allowed for FP32'),
    ("FP32", [1], {"fp32_contents": [1], "int_contents": [1]}, 'tensor "x": int_contents found, fp32_contents is allowed for FP32'),
    ("FP32", [2, 2], {"fp32_contents": [1]}, 'tensor "x": 1 elements of fp32_contents found, 4 are allowed (shape [2, 2])'),
    ("FP32", [2], {}, 'tensor "x": 0 elements of fp32_contents found, 2 are allowed (shape [2])'),
    ("INT8", [2], {"int_contents": [1, 128]}, 'tensor "x": 128 found at element 1, -128 to 127 is allowed for INT8'),
    ("UINT16", [1], {"uint_contents": [65536]}, 'tensor "x": 65536 found at element 0, 0 to 65535 is allowed for UINT16'),
]


@pytest.mark.parametrize(("datatype", "shape", "fields", "message"), TYPED, ids=[message[12:60] for *_, message in TYPED])
def test_wrong_typed_contents_are_told(datatype: str, shape: list[int], fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        decode_contents(datatype, shape, typed(**fields), "x")
    assert refused.value.message == message


def test_an_array_that_is_not_of_the_datatype_is_our_own_fault() -> None:
    with pytest.raises(Internal) as wrong:
        encode_raw(np.zeros(1), "FP32", "y")
    assert wrong.value.message == 'tensor "y": NumPy\'s float64 found, float32 is required for FP32'
    with pytest.raises(Internal) as wrong:
        encode_raw(np.array([3], dtype=object), "BYTES", "y")
    assert wrong.value.message == 'tensor "y": an element of int found, bytes or str is required for BYTES'


def test_text_in_bytes_is_utf8() -> None:
    assert encode_raw(np.array(["é"], dtype=object), "BYTES") == b"\2\0\0\0\xc3\xa9"


def test_arrays_that_are_not_contiguous_are_sent_in_order() -> None:
    array = np.arange(6, dtype=np.int32).reshape(2, 3).T
    assert encode_raw(array, "INT32") == np.array([0, 3, 1, 4, 2, 5], "<i4").tobytes()
    columns = np.array([[b"a", b"b"], [b"c", b"d"]], dtype=object).T
    assert list(decode_raw("BYTES", [2, 2], encode_raw(columns, "BYTES")).ravel()) == [b"a", b"c", b"b", b"d"]


RETURNED: list[tuple[Any, str, list[int], Any]] = [
    ([1, 2], "INT8", [2], np.array([1, 2], "i1")),
    (3.5, "FP32", [], np.array(3.5, "f4")),
    (np.float32(3.5), "FP32", [], np.array(3.5, "f4")),
    ([["a", b"\xff"]], "BYTES", [1, -1], np.array([[b"a", b"\xff"]], dtype=object)),
    (np.array(["a", "bc"]), "BYTES", [-1], np.array([b"a", b"bc"], dtype=object)),
    (b"a\0", "BYTES", [], np.array(b"a\0", dtype=object)),
    (np.zeros((2, 0), "f4"), "FP32", [2, -1], np.zeros((2, 0), "f4")),
]


@pytest.mark.parametrize(("value", "datatype", "shape", "wanted"), RETURNED)
def test_what_a_handler_returns_is_taken(value: Any, datatype: str, shape: list[int], wanted: Any) -> None:
    array = as_array(value, datatype, shape)
    assert array.dtype == wanted.dtype
    assert np.array_equal(array, wanted)


UNTAKEN: list[tuple[Any, str, list[int], str]] = [
    (np.zeros(1), "FP32", [1], 'tensor "y": NumPy\'s float64 found, float32 is required for FP32'),
    (np.zeros(2, "f4"), "FP32", [1], 'tensor "y": shape [2] found, [1] is required'),
    (np.zeros((1, 1), "f4"), "FP32", [1], 'tensor "y": shape [1, 1] found, [1] is required'),
    ([1.7], "INT64", [1], 'tensor "y": numbers like NumPy\'s float64 found, int64 is required for INT64'),
    (["2"], "FP32", [1], 'tensor "y": numbers like NumPy\'s <U1 found, float32 is required for FP32'),
    ([1], "BOOL", [1], 'tensor "y": numbers like NumPy\'s int64 found, bool is required for BOOL'),
    ([0.5], "BF16", [1], 'tensor "y": numbers like NumPy\'s float64 found, uint16 is required for BF16'),
    ([b"a", 3], "BYTES", [-1], 'tensor "y": an element of int found, bytes or str is required for BYTES'),
    ([300], "UINT8", [1], 'tensor "y": list found, which UINT8 cannot hold: '),
    ([], "FP32", [1], 'tensor "y": shape [0] found, [1] is required'),
    ([[1], [1, 2]], "INT32", [-1, -1], 'tensor "y": list found, which INT32 cannot hold: '),
    (None, "INT32", [], 'tensor "y": numbers like NumPy\'s object found, int32 is required for INT32'),
]


@pytest.mark.parametrize(("value", "datatype", "shape", "message"), UNTAKEN)
def test_what_a_handler_returns_wrongly_is_told(value: Any, datatype: str, shape: list[int], message: str) -> None:
    with pytest.raises(Internal) as wrong:
        as_array(value, datatype, shape, "y")
    assert wrong.value.message.startswith(message)


def test_zeros_are_writable_and_of_the_datatype() -> None:
    array = zeros("BF16", [2, 3])
    array[0, 0] = 1
    assert (array.dtype, array.shape) == (np.dtype("<u2"), (2, 3))
    assert zeros("BYTES", [2]).tolist() == [b"", b""]


def test_names_of_others() -> None:
    assert [from_onnx(name) for name in ("tensor(float)", "tensor(string)", "tensor(bfloat16)", "seq(tensor(float))")] == [
        "FP32",
        "BYTES",
        "BF16",
        None,
    ]
    for datatype in DATATYPES.values():
        assert from_onnx(datatype.onnx) == datatype.name
        assert inference_pb2.DataType.Value(datatype.triton) > 0
