"""Tensors as the Open Inference Protocol carries them, and as NumPy holds them.

The protocol has two ways: *raw* (`raw_input_contents`: little-endian elements, BYTES as four length bytes and then the bytes, each element)
and *typed* (`contents`: one repeated field per family of types). NumPy lacks two things. It has no bfloat16: those are held as their bit
patterns in uint16, so that no bit is lost on the way (`bf16_to_fp32` and `bf16_from_fp32` are for handlers that calculate). And it has no
arrays of bytes that keep trailing NULs: BYTES are object arrays whose elements are `bytes`, exactly as they came, UTF-8 or not.

What a caller sent wrongly is InvalidArgument and names the tensor; what a model or handler returned wrongly is Internal.
"""

import math
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from dormouse_proto import inference_pb2
from numpy.typing import NDArray

from dormouse_core.errors import Internal, InvalidArgument

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Datatype:
    """`dtype`: how NumPy holds an element. `itemsize`: bytes an element on the wire; 0: they differ (BYTES).

    `contents`: the field of InferTensorContents; "": the type travels raw only. `onnx`: what ONNX Runtime calls it.
    """

    name: str
    dtype: np.dtype[Any]
    itemsize: int
    contents: str
    onnx: str

    @property
    def triton(self) -> str:
        """The name in Triton's `DataType` (ModelConfig)."""
        return "TYPE_STRING" if self.name == "BYTES" else f"TYPE_{self.name}"


DATATYPES: dict[str, Datatype] = {
    name: Datatype(name, np.dtype(dtype), itemsize, contents, f"tensor({onnx})")
    for name, dtype, itemsize, contents, onnx in (
        ("BOOL", "?", 1, "bool_contents", "bool"),
        ("INT8", "<i1", 1, "int_contents", "int8"),
        ("INT16", "<i2", 2, "int_contents", "int16"),
        ("INT32", "<i4", 4, "int_contents", "int32"),
        ("INT64", "<i8", 8, "int64_contents", "int64"),
        ("UINT8", "<u1", 1, "uint_contents", "uint8"),
        ("UINT16", "<u2", 2, "uint_contents", "uint16"),
        ("UINT32", "<u4", 4, "uint_contents", "uint32"),
        ("UINT64", "<u8", 8, "uint64_contents", "uint64"),
        ("FP16", "<f2", 2, "", "float16"),
        ("BF16", "<u2", 2, "", "bfloat16"),
        ("FP32", "<f4", 4, "fp32_contents", "float"),
        ("FP64", "<f8", 8, "fp64_contents", "double"),
        ("BYTES", "O", 0, "bytes_contents", "string"),
    )
}
_BY_ONNX = {datatype.onnx: datatype.name for datatype in DATATYPES.values()}
_LENGTH = struct.Struct("<I")

assert sys.byteorder == "little", "raw contents are views of memory: this code has not been written for big-endian machines"


def datatype_of(name: str, tensor: str = "") -> Datatype:
    """InvalidArgument: the protocol has no such type."""
    try:
        return DATATYPES[name]
    except KeyError:
        raise InvalidArgument(f'{_label(tensor)}datatype "{name}" found, one of {", ".join(DATATYPES)} is allowed') from None


def from_onnx(name: str) -> str | None:
    """The protocol's type for ONNX Runtime's, such as "tensor(float)"; None: it has none (sequences, maps, complex, float8)."""
    return _BY_ONNX.get(name)


def elements(shape: Sequence[int], tensor: str = "") -> int:
    """How many elements; InvalidArgument: a negative dimension."""
    for size in shape:
        if size < 0:
            raise InvalidArgument(f"{_label(tensor)}shape {list(shape)} found, dimensions of 0 and more are allowed")
    return math.prod(shape)


def zeros(datatype: str, shape: Sequence[int]) -> Array:
    """A writable array of zeros; of empty elements for BYTES."""
    if datatype == "BYTES":
        return np.full(tuple(shape), b"", dtype=object)
    return np.zeros(tuple(shape), dtype=datatype_of(datatype).dtype)


def size_of(array: Array, datatype: str) -> int:
    """Bytes of `array` as raw contents."""
    if datatype == "BYTES":
        return sum(_LENGTH.size + len(element) for element in array.ravel())
    return array.size * datatype_of(datatype).itemsize


# ---------------------------------------------------------------------------------------------------------------------------- raw


def decode_raw(datatype: str, shape: Sequence[int], data: bytes | bytearray | memoryview, tensor: str = "") -> Array:
    """The array in raw contents: a view of `data` where it can be (read-only if `data` is), a copy for BYTES.

    InvalidArgument: a length that does not fit the shape, a BOOL that is neither 0 nor 1, a BYTES length that leads out of the buffer.
    """
    kind = datatype_of(datatype, tensor)
    count = elements(shape, tensor)
    if not kind.itemsize:
        return _decode_bytes(shape, count, memoryview(data).cast("B"), tensor)
    length = memoryview(data).nbytes
    if length != count * kind.itemsize:
        raise InvalidArgument(
            f"{_label(tensor)}{length} bytes of raw contents found, {count * kind.itemsize} are allowed ({datatype} of shape {list(shape)})"
        )
    if datatype == "BOOL":
        raw = np.frombuffer(data, dtype=np.uint8)
        if count and raw.max() > 1:
            at = int(np.argmax(raw > 1))
            raise InvalidArgument(f"{_label(tensor)}the byte {raw[at]} found at element {at} of a BOOL, 0 or 1 is allowed")
    return np.frombuffer(data, dtype=kind.dtype).reshape(tuple(shape))


def _decode_bytes(shape: Sequence[int], count: int, data: memoryview, tensor: str) -> Array:
    if count * _LENGTH.size > len(data):  # before anything is allocated: a shape is cheap to write
        raise InvalidArgument(
            f"{_label(tensor)}{len(data)} bytes of raw contents found, at least {count * _LENGTH.size} are needed "
            f"(BYTES of shape {list(shape)}: 4 bytes of length and the element, {count} times)"
        )
    array = np.empty(count, dtype=object)
    at = 0
    for index in range(count):
        begin = at + _LENGTH.size
        if begin > len(data):
            raise InvalidArgument(f"{_label(tensor)}the raw contents end after {index} of {count} elements of BYTES")
        (length,) = _LENGTH.unpack_from(data, at)
        at = begin + length
        if at > len(data):
            raise InvalidArgument(
                f"{_label(tensor)}a length of {length} found at element {index} of BYTES, {len(data) - begin} bytes are left"
            )
        array[index] = bytes(data[begin:at])
    if at != len(data):
        raise InvalidArgument(f"{_label(tensor)}{len(data) - at} bytes of raw contents found after the last of {count} elements of BYTES")
    return array.reshape(tuple(shape))


def encode_raw(array: Array, datatype: str, tensor: str = "") -> bytes:
    """Raw contents of `array`. Internal: its dtype is not the datatype's; an element of BYTES is no bytes (str is taken as UTF-8)."""
    kind = datatype_of(datatype, tensor)
    if not kind.itemsize:
        parts = []
        for element in array.ravel():
            data = _as_bytes(element, tensor)
            parts += [_LENGTH.pack(len(data)), data]
        return b"".join(parts)
    if array.dtype != kind.dtype:
        raise Internal(f"{_label(tensor)}NumPy's {array.dtype} found, {kind.dtype.name} is required for {datatype}")
    return array.tobytes()


def _as_bytes(element: Any, tensor: str) -> bytes:
    if isinstance(element, bytes):
        return element
    if isinstance(element, str):
        return element.encode()
    raise Internal(f"{_label(tensor)}an element of {type(element).__name__} found, bytes or str is required for BYTES")


# -------------------------------------------------------------------------------------------------------------------------- typed


def decode_contents(datatype: str, shape: Sequence[int], contents: inference_pb2.InferTensorContents, tensor: str = "") -> Array:
    """The array in typed contents.

    InvalidArgument: a type that has no typed field (FP16, BF16), another type's field, too many or too few elements, a number out of range.
    """
    kind = datatype_of(datatype, tensor)
    if not kind.contents:
        raise InvalidArgument(f"{_label(tensor)}typed contents found, {datatype} is allowed in raw contents only")
    filled = {field.name: values for field, values in contents.ListFields()}
    others = sorted(filled.keys() - {kind.contents})
    if others:
        raise InvalidArgument(f"{_label(tensor)}{', '.join(others)} found, {kind.contents} is allowed for {datatype}")
    count = elements(shape, tensor)
    values = filled.get(kind.contents, ())
    if len(values) != count:
        raise InvalidArgument(f"{_label(tensor)}{len(values)} elements of {kind.contents} found, {count} are allowed (shape {list(shape)})")
    if not kind.itemsize:
        array = np.empty(count, dtype=object)
        array[:] = list(values)
        return array.reshape(tuple(shape))
    # Without a list of Python's numbers in between, which would be eight times as large.
    if kind.contents in ("fp32_contents", "fp64_contents"):
        return _packed(contents, count, kind).reshape(tuple(shape))
    if kind.contents not in ("int_contents", "uint_contents") or kind.itemsize == 4:
        return np.fromiter(values, kind.dtype, count).reshape(tuple(shape))
    wide = np.fromiter(values, np.int64, count)
    bounds = np.iinfo(kind.dtype)
    outside = (wide < bounds.min) | (wide > bounds.max)
    if outside.any():
        at = int(np.argmax(outside))
        raise InvalidArgument(f"{_label(tensor)}{wide[at]} found at element {at}, {bounds.min} to {bounds.max} is allowed for {datatype}")
    return wide.astype(kind.dtype).reshape(tuple(shape))


def _packed(contents: inference_pb2.InferTensorContents, count: int, kind: Datatype) -> Array:
    """The elements of the one field that is filled, of a fixed size each: its last bytes on the wire."""
    size = count * kind.itemsize
    data = contents.SerializeToString()
    return np.frombuffer(data, kind.dtype, count, len(data) - size) if size else np.empty(0, kind.dtype)


# ---------------------------------------------------------------------------------------------------------- what a handler returns


def as_array(value: Any, datatype: str, shape: Sequence[int], tensor: str = "") -> Array:
    """What a handler returned for an output of this declaration (-1: any size), as the array that is sent.

    Lists and numbers are converted; an array must have the datatype's dtype already, since a silent cast loses digits. Internal: neither.
    """
    kind = datatype_of(datatype, tensor)
    if isinstance(value, np.ndarray | np.generic):
        array = np.asarray(value)
        if datatype == "BYTES" and array.dtype.kind in "US":
            array = array.astype(object)
        if array.dtype != kind.dtype:
            raise Internal(f"{_label(tensor)}NumPy's {array.dtype} found, {kind.dtype.name} is required for {datatype}")
    else:
        try:
            if kind.itemsize:
                _check_kind(np.array(value), kind, tensor)
            array = np.array(value, dtype=kind.dtype)
        except (TypeError, ValueError, OverflowError) as error:
            raise Internal(f"{_label(tensor)}{type(value).__name__} found, which {datatype} cannot hold: {error}") from error
    if len(array.shape) != len(shape) or any(wanted not in (-1, size) for wanted, size in zip(shape, array.shape, strict=True)):
        raise Internal(f"{_label(tensor)}shape {list(array.shape)} found, {list(shape)} is required")
    return array if kind.itemsize else _all_bytes(array, tensor)


def _all_bytes(array: Array, tensor: str) -> Array:
    """str as UTF-8: a state that was str in memory would come back from its record as bytes."""
    if all(type(element) is bytes for element in array.flat):
        return array
    clean = np.empty(array.size, dtype=object)
    clean[:] = [_as_bytes(element, tensor) for element in array.flat]
    return clean.reshape(array.shape)


_CONVERTED = {"b": "b", "i": "biu", "u": "biu", "f": "biuf"}


def _check_kind(found: Array, kind: Datatype, tensor: str) -> None:
    """NumPy would make 1 of 1.7 for INT64, and 2.0 of "2" for FP32: neither was meant."""
    if found.size and found.dtype.kind not in _CONVERTED[kind.dtype.kind]:
        raise Internal(f"{_label(tensor)}numbers like NumPy's {found.dtype} found, {kind.dtype.name} is required for {kind.name}")


# ----------------------------------------------------------------------------------------------------------------------- bfloat16


def bf16_to_fp32(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """The numbers that bfloat16 bit patterns stand for; exact."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def bf16_from_fp32(numbers: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The nearest bfloat16's bit pattern, ties to even; a NaN keeps its upper bits."""
    bits = np.ascontiguousarray(numbers, dtype=np.float32).view(np.uint32)
    rounded = ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(np.uint16)
    upper = (bits >> np.uint32(16)).astype(np.uint16)
    nan = np.where(upper & np.uint16(0x7F), upper, upper | np.uint16(0x40))  # with a fraction of 0 it would be infinity
    return np.where(np.isnan(numbers), nan, rounded)


def _label(tensor: str) -> str:
    return f'tensor "{tensor}": ' if tensor else ""
