"""Decoding requests: a table of what callers get wrong, and that equal requests are equal however they are written."""

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from dormouse_core.errors import InvalidArgument, ResourceExhausted
from dormouse_proto import inference_pb2
from dormouse_worker.batches.replies import Encoder
from dormouse_worker.batches.requests import Decoder, Digester, Request
from dormouse_worker.models.signatures import Signature, StateSpec, TensorSpec
from hypothesis import given
from hypothesis import strategies as st

Message = inference_pb2.ModelInferRequest
SIGNATURE = Signature(
    "test",
    (
        TensorSpec("x", "FP32", (-1, 2), axis=0),
        TensorSpec("small", "INT8", (-1, 1), axis=0),
        TensorSpec("scalar", "INT64", (), optional=True),
        TensorSpec("flags", "BOOL", (2,), optional=True),
        TensorSpec("text", "BYTES", (-1,), optional=True),
        TensorSpec("half", "FP16", (1,), optional=True),
    ),
    (TensorSpec("y", "FP32", (-1, 2)), TensorSpec("z", "BYTES", (-1,))),
    (StateSpec("state", "stateN", "FP32", (-1, 2), 0),),
    max_batch=4,
)
DECODER = Decoder(SIGNATURE, ("fn", "ns/fn"))


def message(*, rows: int = 1, typed: bool = False) -> Message:
    made = Message(model_name="fn")
    x = made.inputs.add(name="x", datatype="FP32", shape=[rows, 2])
    small = made.inputs.add(name="small", datatype="INT8", shape=[rows, 1])
    if typed:
        x.contents.fp32_contents.extend([1.5] * 2 * rows)
        small.contents.int_contents.extend([-3] * rows)
    else:
        made.raw_input_contents.append(np.full((rows, 2), 1.5, "<f4").tobytes())
        made.raw_input_contents.append(np.full((rows, 1), -3, "i1").tobytes())
    return made


def digest(function: str, request: Request) -> bytes:
    return Digester(function, SIGNATURE).digest(request)


def decode(made: Message) -> Request:
    return DECODER.decode(made.SerializeToString())


def test_raw_and_typed_say_the_same() -> None:
    raw, typed = decode(message()), decode(message(typed=True))
    for name in ("x", "small"):
        assert np.array_equal(raw.inputs[name], typed.inputs[name])
        assert raw.inputs[name].dtype == typed.inputs[name].dtype
    assert digest("f", raw) == digest("f", typed)


def test_elements_of_bytes_are_counted_before_they_are_made() -> None:
    for count, fits in ((262_144, True), (262_145, False)):
        made = message()
        extra(made, "text", "BYTES", [count], bytes(4 * count))
        with contextlib.nullcontext() if fits else pytest.raises(ResourceExhausted, match="262145 elements of BYTES found, up to 262144"):
            assert decode(made).inputs["text"].shape == (count,)


def extra(made: Message, name: str, datatype: str, shape: list[int], raw: bytes) -> None:
    made.inputs.add(name=name, datatype=datatype, shape=shape)
    made.raw_input_contents.append(raw)


Change = Callable[[Message], Any]
WRONG: list[tuple[str, Change, list[str]]] = [
    ("model", lambda m: setattr(m, "model_name", "gn"), ["model_name", "'gn'", "'fn'"]),
    ("version", lambda m: setattr(m, "model_version", "3"), ["model_version", "'3'"]),
    ("datatype", lambda m: setattr(m.inputs[0], "datatype", "FP64"), ["'x'", "FP64", "FP32"]),
    ("no datatype", lambda m: setattr(m.inputs[0], "datatype", ""), ["'x'", "''", "FP32"]),
    ("rank", lambda m: m.inputs[0].shape.append(1), ["'x'", "[1,2,1]", "rank 2"]),
    ("size", lambda m: m.inputs[0].shape.__setitem__(1, 3), ["'x'", "[1,3]", "[-1,2]"]),
    ("negative", lambda m: m.inputs[0].shape.__setitem__(0, -1), ["'x'", "[-1,2]"]),
    ("huge", lambda m: m.inputs[0].shape.__setitem__(0, 1 << 40), ["'x'", "bytes"]),
    ("short raw", lambda m: m.raw_input_contents.__setitem__(0, b"1"), ["x", "1 bytes", "8"]),
    ("too few raws", lambda m: m.raw_input_contents.pop(), ["raw_input_contents", "1 entries", "2 inputs"]),
    ("too many raws", lambda m: m.raw_input_contents.append(b""), ["raw_input_contents", "3 entries"]),
    ("no contents", lambda m: m.raw_input_contents.__delitem__(slice(None)), ["x", "0 elements"]),
    ("mixed", lambda m: m.inputs[1].contents.int_contents.append(1), ["'small'", "typed contents beside raw"]),
    ("missing", lambda m: (m.inputs.pop(), m.raw_input_contents.pop()), ["'small'", "missing"]),
    ("doubled", lambda m: extra(m, "x", "FP32", [1, 2], bytes(8)), ["'x'", "twice"]),
    ("unknown", lambda m: extra(m, "w", "FP32", [1], bytes(4)), ["'w'", "allowed are x, small"]),
    ("state", lambda m: extra(m, "state", "FP32", [1, 2], bytes(8)), ["'state'", "state of the session"]),
    ("scalar as vector", lambda m: extra(m, "scalar", "INT64", [1], bytes(8)), ["'scalar'", "[1]", "rank 0"]),
    ("bool", lambda m: extra(m, "flags", "BOOL", [2], b"\0\2"), ["flags", "2"]),
    ("bytes too short", lambda m: extra(m, "text", "BYTES", [1], b"\5\0\0\0abc"), ["text"]),
    ("bytes too many", lambda m: extra(m, "text", "BYTES", [1], b"\1\0\0\0a\1\0\0\0b"), ["text"]),
    ("bytes too few", lambda m: extra(m, "text", "BYTES", [2], b"\1\0\0\0a"), ["text"]),
    ("bytes length cut", lambda m: extra(m, "text", "BYTES", [1], b"\1\0"), ["text"]),
    ("output", lambda m: m.outputs.add(name="nope"), ["'nope'", "y, z"]),
    ("output twice", lambda m: (m.outputs.add(name="y"), m.outputs.add(name="y")), ["'y'", "twice"]),
    ("state output", lambda m: m.outputs.add(name="stateN"), ["'stateN'"]),
    ("shared memory", lambda m: m.inputs[0].parameters["shared_memory_region"].__setattr__("string_param", "r"), ["shared memory"]),
    ("classification", lambda m: m.outputs.add(name="y").parameters["classification"].__setattr__("int64_param", 3), ["classification"]),
]


@pytest.mark.parametrize(("change", "words"), [(c, w) for _, c, w in WRONG], ids=[name for name, _, _ in WRONG])
def test_wrong_requests(change: Change, words: list[str]) -> None:
    made = message()
    change(made)
    with pytest.raises(InvalidArgument) as raised:
        decode(made)
    assert all(word in raised.value.message for word in words), raised.value.message


@pytest.mark.parametrize(
    ("field", "values", "words"),
    [
        ("int_contents", [300], ["small", "300", "-128", "127"]),
        ("int_contents", [1, 2], ["small", "2 elements"]),
        ("int64_contents", [1], ["small", "int64_contents", "int_contents"]),
    ],
)
def test_wrong_typed_contents(field: str, values: list[int], words: list[str]) -> None:
    made = message(typed=True)
    made.inputs[1].contents.Clear()
    getattr(made.inputs[1].contents, field).extend(values)
    with pytest.raises(InvalidArgument) as raised:
        decode(made)
    assert all(word in raised.value.message for word in words), raised.value.message


def test_fp16_has_no_typed_contents() -> None:
    made = message(typed=True)
    made.inputs.add(name="half", datatype="FP16", shape=[1]).contents.fp32_contents.append(1)
    with pytest.raises(InvalidArgument, match="FP16"):
        decode(made)


def uneven() -> Message:
    made = message(rows=4)
    made.inputs[1].shape[0] = 3
    made.raw_input_contents[1] = bytes(3)
    return made


@pytest.mark.parametrize(
    ("sessions", "made", "rows", "alone"),
    [
        (False, message(), 1, False),
        (False, message(rows=4), 4, False),
        (False, message(rows=5), 5, True),
        (False, message(rows=100), 100, True),
        (False, uneven(), 4, True),
        (False, message(rows=0), 1, True),
        (True, message(), 1, False),
        (True, message(rows=2), 2, True),
        (True, message(rows=0), 1, True),
    ],
)
def test_what_the_model_takes_alone_is_taken(sessions: bool, made: Message, rows: int, alone: bool) -> None:
    """Batching refuses nothing: what does not fit into a batch, or was not in the experiment, runs alone."""
    states = SIGNATURE.states if sessions else ()
    request = Decoder(Signature("t", SIGNATURE.inputs, SIGNATURE.outputs, states, 4), ("fn",)).decode(made.SerializeToString())
    assert (request.rows, request.alone) == (rows, alone)


def test_nothing_is_joined_in_a_model_that_does_not_batch() -> None:
    plain = Decoder(Signature("t", SIGNATURE.inputs, SIGNATURE.outputs, (), 0), ("fn",))
    assert plain.decode(message().SerializeToString()).alone


@pytest.mark.parametrize("shape", [[], [2, 3], [1, 1, 1, 1], [0]])
def test_an_input_without_a_declared_shape_takes_any(shape: list[int]) -> None:
    made = Message(model_name="fn")
    made.inputs.add(name="x", datatype="FP32", shape=shape)
    made.raw_input_contents.append(bytes(4 * int(np.prod(shape))))
    for ranked, taken in ((False, True), (True, shape == [])):
        decoder = Decoder(Signature("t", (TensorSpec("x", "FP32", (), ranked=ranked),), ()), ("fn",))
        with contextlib.nullcontext() if taken else pytest.raises(InvalidArgument, match="rank 0 is expected"):
            assert decoder.decode(made.SerializeToString()).inputs["x"].shape == tuple(shape)


def test_groups_keep_apart_what_does_not_fit() -> None:
    plain, again, scalar, other, words = message(), message(), message(), message(), message()
    extra(scalar, "scalar", "INT64", [], np.int64(1).tobytes())
    extra(other, "scalar", "INT64", [], np.int64(2).tobytes())
    extra(words, "text", "BYTES", [1], b"\1\0\0\0a")
    required = tuple(TensorSpec(t.name, t.datatype, t.shape, axis=t.axis) for t in SIGNATURE.inputs if t.name in ("x", "small", "scalar"))
    decoder = Decoder(Signature("t", required, SIGNATURE.outputs, (), 4), ("fn",))
    groups = [decoder.decode(made.SerializeToString()).group for made in (scalar, scalar, other)]
    assert groups[0] == groups[1] != groups[2]
    assert decode(plain).group == decode(again).group
    assert all(decode(made).alone for made in (scalar, other, words)), "an input that may be left out was not in the experiment"


def test_outputs_in_the_order_asked_for() -> None:
    made = message()
    assert decode(made).outputs == (0, 1)
    made.outputs.add(name="z")
    made.outputs.add(name="y")
    assert decode(made).outputs == (1, 0)


def keyed(key: str) -> Message:
    made = message()
    made.parameters["dormouse_idempotency_key"].string_param = key
    return made


def test_a_calls_own_key_is_no_part_of_its_digest() -> None:
    """The same call may bring its key as a parameter or as metadata, or be sent under another after its outcome was lost."""
    assert digest("f", decode(keyed("a"))) == digest("f", decode(keyed("b"))) == digest("f", decode(message()))


def test_a_reserved_parameter_that_means_nothing_is_refused() -> None:
    made = message()
    made.parameters["dormouse_idempotency-key"].string_param = "misspelt"
    with pytest.raises(InvalidArgument, match=r"parameters\.dormouse_idempotency-key: unknown"):
        decode(made)


def test_the_digest_is_of_what_is_asked_for() -> None:
    base = digest("f", decode(message()))
    swapped = Message(model_name="fn", id="x", inputs=[message().inputs[1], message().inputs[0]])
    swapped.raw_input_contents.extend(reversed(message().raw_input_contents))
    assert digest("f", decode(swapped)) == base
    assert digest("g", decode(message())) != base
    changes: list[Change] = [
        lambda m: m.raw_input_contents.__setitem__(0, bytes(8)),
        lambda m: m.outputs.add(name="y"),
        lambda m: m.parameters["sequence_end"].__setattr__("bool_param", True),
        lambda m: m.inputs[0].parameters["p"].__setattr__("int64_param", 1),
        lambda m: extra(m, "scalar", "INT64", [], bytes(8)),
    ]
    seen = {base}
    for change in changes:
        made = message()
        change(made)
        seen.add(digest("f", decode(made)))
    assert len(seen) == len(changes) + 1


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_politely_or_decoded(data: bytes) -> None:
    with contextlib.suppress(InvalidArgument):
        DECODER.decode(data)


@given(
    st.lists(st.tuples(st.integers(1, 3), st.text(max_size=5), st.sampled_from([(0, 1), (0,), (1,), (1, 0)])), min_size=1, max_size=5),
    st.booleans(),
)
def test_replies_are_what_protobuf_reads(calls: list[tuple[int, str, tuple[int, ...]]], text: bool) -> None:
    """A batch of replies against the generated classes: names, shapes, contents aligned by index, each call its own rows."""
    outputs = (TensorSpec("y", "FP32", (-1, 2)), TensorSpec("z", "BYTES" if text else "INT64", (-1,)))
    encoder = Encoder("fn", Signature("t", (), outputs))
    total = sum(rows for rows, _, _ in calls)
    y = np.arange(total * 2, dtype=np.float32).reshape(total, 2)
    z: Any = np.arange(total)
    if text:
        z = np.array([b"%d" % n for n in z] + [b""], object)[:-1]
    requests = []
    for rows, ident, wanted in calls:
        request = Request()
        request.rows, request.id, request.outputs = rows, ident, wanted
        requests.append(request)
    at = 0
    for reply, (rows, ident, wanted) in zip(encoder.encode_rows(requests, [y, z]), calls, strict=True):
        found = inference_pb2.ModelInferResponse.FromString(reply)
        assert (found.model_name, found.model_version, found.id) == ("fn", "1", ident)
        assert [tensor.name for tensor in found.outputs] == ["yz"[index] for index in wanted]
        own = [y[at : at + rows], z[at : at + rows]]
        assert [list(tensor.shape) for tensor in found.outputs] == [list(own[index].shape) for index in wanted]
        request = Request()
        request.rows, request.id, request.outputs = rows, ident, wanted
        assert encoder.encode(request, own) == reply
        if 0 in wanted:
            assert found.raw_output_contents[wanted.index(0)] == own[0].tobytes()
        at += rows
