"""Seeded makers of what no well-meaning client sends: messages, frames and metadata, valid ones first and then damaged.

Everything follows from `random.Random(seed)`, so that a seed is the whole reproduction. Damage is what protocols break on: bits flipped,
lengths that lie, ends cut off, parts doubled or moved, fields of other messages, varints without end.
"""

import random
from collections.abc import Iterator
from typing import Any

from dormouse_core.tensors import DATATYPES
from dormouse_proto import inference_pb2

NAMES = ["fn", "tests/fn", "other", "", "x" * 300, "é", "a/b/c", "FN", "\x00"]
IDS: list[int | str] = [0, 1, -1, 7, 2**31, 2**53 + 1, 2**63 - 1, -(2**63), "", "7", "a/b", "é", "\0", "x" * 128, "x" * 129, "😀" * 128]
SIZES = [0, 1, 2, 3, 4, 7, -1, 2**31, 2**62, -(2**63)]


def request(rng: random.Random, inputs: dict[str, tuple[str, list[int]]], model: str = "fn") -> inference_pb2.ModelInferRequest:
    """One that may be right. `inputs`: the function's, by name: datatype and shape."""
    message = inference_pb2.ModelInferRequest(model_name=model if rng.random() < 0.8 else rng.choice(NAMES))
    if rng.random() < 0.1:
        message.model_version = rng.choice(["1", "2", "x"])
    if rng.random() < 0.3:
        message.id = rng.choice(["", "an id", "é" * 50])
    if rng.random() < 0.5:
        _parameter(rng, message.parameters["sequence_id"])
    for flag in ("sequence_start", "sequence_end", "priority", "timeout"):
        if rng.random() < 0.2:
            _parameter(rng, message.parameters[flag]) if rng.random() < 0.2 else message.parameters[flag].CopyFrom(_true())
    typed = rng.random() < 0.3
    rows = rng.randrange(1, 4)
    for name, (datatype, shape) in inputs.items():
        if rng.random() < 0.05:
            continue
        sizes = [rng.choice(SIZES) if rng.random() < 0.03 else rows if size == -1 else size for size in shape]
        kind = rng.choice(list(DATATYPES)) if rng.random() < 0.05 else datatype
        tensor = message.inputs.add(name=name if rng.random() < 0.97 else "nope", datatype=kind, shape=sizes)
        count = 1
        for size in sizes:
            count = min(64, count * max(0, size))
        if typed:
            _contents(rng, tensor.contents, kind, count)
        else:
            message.raw_input_contents.append(_raw(rng, kind, count))
    for _ in range(rng.choice([0, 0, 0, 1, 3])):
        message.outputs.add(name=rng.choice(["y", "z", "nope", ""]))
    return message


def _true() -> Any:
    return inference_pb2.InferParameter(bool_param=True)


def _parameter(rng: random.Random, parameter: Any) -> None:
    kind = rng.randrange(6)
    if kind <= 1:
        each = rng.choice(IDS)
        setattr(parameter, "int64_param" if isinstance(each, int) else "string_param", each)
    elif kind == 2:
        parameter.uint64_param = rng.randrange(2**64)
    elif kind == 3:
        parameter.double_param = rng.random()
    elif kind == 4:
        parameter.bool_param = bool(rng.randrange(2))


def _raw(rng: random.Random, datatype: str, count: int) -> bytes:
    if datatype == "BYTES":
        elements = [rng.randbytes(rng.randrange(12)) for _ in range(count)]
        data = b"".join(len(element).to_bytes(4, "little") + element for element in elements)
    else:
        data = rng.randbytes(count * DATATYPES[datatype].itemsize)
        if datatype == "BOOL":
            data = bytes(byte & 1 for byte in data)
    return data[: rng.randrange(len(data) + 1)] if rng.random() < 0.03 else data


def _contents(rng: random.Random, contents: Any, datatype: str, count: int) -> None:
    field = DATATYPES[datatype].contents or "fp32_contents"
    values: dict[str, Any] = {
        "bool_contents": True,
        "bytes_contents": b"a\0b",
        "fp32_contents": 1.5,
        "fp64_contents": -2.5,
        "int_contents": rng.choice([1, -1, 127, 128, 2**31 - 1]),
        "int64_contents": rng.choice([1, -(2**63)]),
        "uint_contents": rng.choice([1, 255, 256, 2**32 - 1]),
        "uint64_contents": rng.choice([1, 2**64 - 1]),
    }
    if rng.random() < 0.05:
        field = rng.choice(list(values))
    getattr(contents, field).extend([values[field]] * count)


def varint(value: int) -> bytes:
    value %= 2**64
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def damaged(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """`data` with one to three things wrong with it. `other`: whose parts may be mixed in."""
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        at = rng.randrange(len(out) + 1)
        kind = rng.randrange(10)
        if kind == 0 and out:
            out[rng.randrange(len(out))] = rng.randrange(256)
        elif kind == 1 and out:
            out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
        elif kind == 2:
            del out[at:]
        elif kind == 3:
            del out[at : at + rng.randrange(1, 9)]
        elif kind == 4:
            out[at:at] = rng.randbytes(rng.randrange(1, 9))
        elif kind == 5:
            begin = rng.randrange(len(other) + 1)
            out[at:at] = other[begin : begin + rng.randrange(64)]
        elif kind == 6:  # a field: any number, any wire type, any length
            number = rng.choice([0, 1, 2, 3, 4, 5, 6, 7, 8, 15, 16, 2047, 2**28, 2**29, 2**40])
            out[at:at] = varint(number << 3 | rng.randrange(8)) + varint(rng.choice([0, 1, 5, 127, 128, 2**31, 2**32, 2**63, 2**64 - 1]))
        elif kind == 7:
            out[at:at] = b"\xff" * rng.randrange(1, 12)
        elif kind == 8:
            begin = rng.randrange(len(out) + 1)
            out[at:at] = out[begin : begin + rng.randrange(64)]
        else:
            out += other
    return bytes(out[: 1 << 16])


def messages(seed: int, inputs: dict[str, tuple[str, list[int]]], model: str = "fn") -> Iterator[bytes]:
    """Without end: a quarter as they were made, the others damaged."""
    rng = random.Random(seed)
    other = b""
    while True:
        data = request(rng, inputs, model).SerializeToString()
        yield data
        for _ in range(3):
            yield damaged(rng, data, other)
        other = data


KEYS = ["dormouse-function", "dormouse-session", "dormouse-tenant", "dormouse-idempotency-key", "dormouse-call", "dormouse-uid",
        "dormouse-rev", "grpc-timeout", "grpc-encoding", "content-type", "x-other"]  # fmt: skip
VALUES = ["tests/fn", "fn", "a", "", "7", "é", "%2F", "a" * 200, "1700000000000000-g-n-1", "1700000000000000-mine", "9999999999999999-x",
          "5S", "99999999H", "1x", "-1m", "gzip", "9" * 25, "\x7f", "a/b/c"]  # fmt: skip


def metadata(rng: random.Random) -> list[tuple[bytes, bytes]]:
    """Header names and values as a worker's transport hands them over."""
    found = []
    for _ in range(rng.randrange(6)):
        value = rng.choice(VALUES).encode() if rng.random() < 0.8 else rng.randbytes(rng.randrange(20))
        found.append((rng.choice(KEYS).encode(), value))
    return found
