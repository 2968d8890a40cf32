"""What is counted on the wire before a request is built: honest messages pass, and what would become much is refused."""

import contextlib
import random
import tracemalloc

import pytest
from dormouse_core import limits, wire
from dormouse_core.errors import InvalidArgument, ResourceExhausted
from dormouse_gateway import naming
from dormouse_proto import inference_pb2
from dormouse_testing import fuzzing

MIB = 1 << 20


def sized(number: int, data: bytes) -> bytes:
    out, size = [number << 3 | 2], len(data)
    while size > 0x7F:
        out.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([*out, size]) + data


def large(message: inference_pb2.ModelInferRequest) -> bytes:
    """Long enough to be counted."""
    return message.SerializeToString() + sized(7, bytes(wire.SHORT))


HOSTILE = {
    "inputs with one empty parameter": b"\x2a\x02\x22\x00" * (4 * MIB),
    "empty inputs": b"\x2a\x00" * (8 * MIB),
    "empty outputs": b"\x32\x00" * (8 * MIB),
    "empty parameters": b"\x22\x00" * (8 * MIB),
    "empty raw contents": b"\x3a\x00" * (8 * MIB),
    "parameters of one input": sized(5, b"\x22\x00" * (8 * MIB)),
    "parameters of one output": sized(6, b"\x12\x00" * (8 * MIB)),
    "a shape of 15 million dimensions": sized(5, sized(3, b"\x01" * (15 * MIB))),
    "the same, not packed": sized(5, b"\x18\x01" * (7 * MIB)),
    "empty elements of BYTES": sized(5, sized(5, b"\x42\x00" * (8 * MIB))),
    "packed booleans": sized(5, sized(5, sized(1, b"\x01" * (15 * MIB)))),
    "packed integers": sized(5, sized(5, sized(3, b"\x01" * (15 * MIB)))),
    "integers, not packed": sized(5, sized(5, b"\x18\x01" * (7 * MIB))),
    "contents in many pieces": sized(5, sized(5, sized(3, b"\x01" * 1000)) * 15000),
    "unknown fields": b"\x7a\x00" * (8 * MIB),
}


@pytest.mark.parametrize("attack", HOSTILE)
def test_what_would_become_much_is_refused_before_it_is_built(attack: str) -> None:
    message = HOSTILE[attack]
    tracemalloc.start()
    try:
        with pytest.raises(ResourceExhausted, match=r"at most [0-9]+ are allowed"):
            wire.check(message)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * MIB


def test_the_relay_builds_nothing_but_what_routes() -> None:
    for message in HOSTILE.values():
        with contextlib.suppress(ResourceExhausted):
            assert wire.routing(message) == b""
    request = inference_pb2.ModelInferRequest(model_name="fn", model_version="1", id="an id")
    request.parameters["sequence_id"].int64_param = 7
    request.inputs.add(name="x", datatype="FP32", shape=[1])
    parsed = naming.parse(large(request))
    assert (parsed.model_name, parsed.model_version, parsed.id, naming.sequence(parsed)) == ("fn", "1", "an id", 7)
    assert not parsed.inputs
    assert not parsed.raw_input_contents


def test_what_is_at_a_limit_passes_and_one_more_does_not() -> None:
    fields = b"\x2a\x00" * limits.MESSAGE_FIELDS
    wire.check(fields)
    assert wire.routing(fields + b"") == fields  # too short to hold more
    with pytest.raises(ResourceExhausted, match="16384 inputs"):
        wire.check(fields + b"\x2a\x00")
    with pytest.raises(ResourceExhausted, match="16384 inputs"):
        wire.routing(fields + b"\x2a\x00")
    for count, field, text in (
        (limits.MESSAGE_DIMENSIONS, lambda n: sized(5, sized(3, b"\x01" * n)), "64 dimensions"),
        (limits.MESSAGE_ELEMENTS, lambda n: sized(5, sized(5, b"\x42\x00" * n)), "262144 elements"),
        (limits.MESSAGE_INTEGERS, lambda n: sized(5, sized(5, sized(3, b"\x81\x00" * n))), "4194304 integers"),
    ):
        pad = sized(7, bytes(wire.SHORT))
        wire.check(field(count) + pad)
        with pytest.raises(ResourceExhausted, match=text):
            wire.check(field(count + 1) + pad)


def test_floats_and_raw_contents_have_no_limit_but_the_message() -> None:
    request = inference_pb2.ModelInferRequest(model_name="fn")
    request.inputs.add(name="x", datatype="FP32", shape=[5 * MIB]).contents.fp32_contents.extend([1.5] * (5 * MIB))
    wire.check(request.SerializeToString())
    wire.check(sized(7, bytes(60 * MIB)))


@pytest.mark.parametrize("seed", range(20))
def test_whatever_protobuf_takes_is_taken_and_routed_alike(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(25):
        message = fuzzing.request(rng, {"x": ("FP32", [-1, 4]), "b": ("BYTES", [-1])})
        data = large(message)
        wire.check(data)
        routed = naming.parse(data)
        assert (routed.id, routed.model_name) == (message.id, message.model_name)
        assert routed.parameters == message.parameters


@pytest.mark.parametrize("seed", range(20))
def test_damage_raises_nothing_else(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(25):
        data = bytearray(large(fuzzing.request(rng, {"x": ("FP32", [-1, 4])})))
        for _ in range(rng.randrange(1, 6)):
            data[rng.randrange(min(len(data), 200))] = rng.randrange(256)
        for look in (wire.check, wire.routing, naming.parse):
            with contextlib.suppress(InvalidArgument, ResourceExhausted):
                look(bytes(data))


def test_the_numbers_are_those_of_the_protocol() -> None:
    def numbers(message: str) -> dict[str, int]:
        descriptor = inference_pb2.DESCRIPTOR.message_types_by_name.get(message)
        if descriptor is None:
            descriptor = inference_pb2.ModelInferRequest.DESCRIPTOR.nested_types_by_name[message]
        return {field.name: field.number for field in descriptor.fields}

    request, tensor = numbers("ModelInferRequest"), numbers("InferInputTensor")
    assert {request[name] for name in ("model_name", "model_version", "id", "parameters")} == wire._ROUTING
    assert (request["inputs"], request["outputs"]) == (wire._INPUTS, wire._OUTPUTS)
    assert (tensor["shape"], tensor["parameters"], tensor["contents"]) == (wire._SHAPE, wire._PARAMETERS, wire._CONTENTS)
    assert numbers("InferRequestedOutputTensor")["parameters"] == wire._OUTPUT_PARAMETERS
    contents = numbers("InferTensorContents")
    assert {contents["fp32_contents"], contents["fp64_contents"]} == wire._FIXED_CONTENTS
    assert contents["bytes_contents"] == wire._BYTES_CONTENTS
