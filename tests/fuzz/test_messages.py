"""Whatever bytes arrive as a message, frame or metadata: an answer in words, never another exception. `make slow`: 1,000,000 messages.

A failure shows the seed and the message's number and bytes: the seed is the whole reproduction.
"""

import gzip
import itertools
import random
import zlib

import numpy as np
import pytest
from dormouse_core.errors import Code, DormouseError, InvalidArgument
from dormouse_core.keys import Function
from dormouse_core.sessions.names import session_key
from dormouse_core.tensors import DATATYPES, encode_raw
from dormouse_gateway import naming
from dormouse_testing import fuzzing
from dormouse_worker.batches.replies import Encoder
from dormouse_worker.batches.requests import Decoder, Digester
from dormouse_worker.models.signatures import Signature, TensorSpec
from dormouse_worker.transport import calls, frames
from dormouse_worker.transport.calls import SessionReader

TOLD = {Code.INVALID_ARGUMENT, Code.RESOURCE_EXHAUSTED, Code.UNIMPLEMENTED, Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED}
INPUTS: dict[str, tuple[str, list[int]]] = {
    "x": ("FP32", [-1, 3]),
    "b": ("BYTES", [-1, 2]),
    "t": ("INT64", []),
    "flag": ("BOOL", [-1, 1]),
    "half": ("BF16", [-1, 2]),
}
SIGNATURE = Signature(
    "test",
    tuple(
        TensorSpec(name, datatype, tuple(shape), name == "half", 0 if shape and name != "half" else None)
        for name, (datatype, shape) in INPUTS.items()
    ),
    (TensorSpec("y", "FP32", (-1, 3), axis=0), TensorSpec("z", "BYTES", (-1, 2), axis=0)),
    max_batch=8,
)
FUNCTION = Function("tests", "fn", "uid")


def tell(error: DormouseError) -> None:
    """A caller's mistake has a caller's code, and words."""
    assert error.code in TOLD
    assert error.message


def count(quick: int, slow: int) -> pytest.MarkDecorator:
    """Seeds and how many messages each."""
    return pytest.mark.parametrize(
        ("seed", "many"), [(1, quick), (2, quick), *(pytest.param(seed, slow, marks=pytest.mark.slow) for seed in range(10, 20))]
    )


@count(20_000, 100_000)
def test_messages(seed: int, many: int) -> None:
    """What is decoded is whole and as declared, and can be digested and answered; what is not is told."""
    decoder, digester, encoder = Decoder(SIGNATURE, ("fn", "tests/fn")), Digester("tests/fn", SIGNATURE), Encoder("fn", SIGNATURE)
    good = 0
    for number, data in enumerate(itertools.islice(fuzzing.messages(seed, INPUTS), many)):
        try:
            request = decoder.decode(data)
        except DormouseError as error:
            tell(error)
            continue
        except Exception as error:
            raise AssertionError(f"message {number} of seed {seed}: {data.hex()}") from error
        good += 1
        for name, array in request.inputs.items():
            datatype, shape = INPUTS[name]
            assert array.dtype == DATATYPES[datatype].dtype
            assert len(array.shape) == len(shape)
            assert all(declared in (-1, found) for declared, found in zip(shape, array.shape, strict=True)), data.hex()
        assert len(digester.digest(request)) == 16
        assert {"x", "b", "t", "flag"} <= request.inputs.keys()
        rows = request.rows
        outputs = [np.zeros((rows, 3), np.float32), np.full((rows, 2), b"", object)]
        assert encoder.encode(request, outputs)
    assert good > many // 50, "the makers have gone astray: nothing is right any more"


@count(20_000, 100_000)
def test_a_digest_tells_contents_apart(seed: int, many: int) -> None:
    """Two messages with one digest say the same: inputs bit for bit, parameters, outputs (rule *same-request*)."""
    decoder, digester = Decoder(SIGNATURE, ("fn", "tests/fn")), Digester("tests/fn", SIGNATURE)
    seen: dict[bytes, object] = {}
    for data in itertools.islice(fuzzing.messages(seed + 100, INPUTS), many // 4):
        try:
            request = decoder.decode(data)
        except DormouseError:
            continue
        message = request.message
        says = (
            {name: (array.shape, encode_raw(array, INPUTS[name][0])) for name, array in request.inputs.items()},
            {name: value.SerializeToString(deterministic=True) for name, value in message.parameters.items()},
            [output.name for output in message.outputs],
            {t.name: {name: value.SerializeToString() for name, value in t.parameters.items()} for t in message.inputs if t.parameters},
        )
        assert seen.setdefault(digester.digest(request), says) == says, data.hex()


@count(20_000, 200_000)
def test_frames(seed: int, many: int) -> None:
    """A body is one message, or is refused; a decompressor never makes more than the limit; a stream cut anywhere gives the same."""
    rng = random.Random(seed)
    limit = 4096
    for number in range(many):
        message = rng.randbytes(rng.randrange(200)) if rng.random() < 0.9 else bytes(rng.randrange(3 * limit))
        encoding = rng.choice([b"", b"gzip", b"deflate", b"snappy", b"identity"])
        packed = {b"gzip": gzip.compress, b"deflate": zlib.compress}.get(encoding, bytes)(message)
        flags = rng.choice([0, 1, 1, 1, 2, 255]) if rng.random() < 0.9 else rng.randrange(256)
        body = bytes([flags]) + len(packed).to_bytes(4, "big") + packed
        if rng.random() < 0.6:
            body = fuzzing.damaged(rng, body, message)
        try:
            found = frames.unframe(body, {b"grpc-encoding": encoding}, limit)
        except DormouseError as error:
            tell(error)
        except Exception as error:
            raise AssertionError(f"body {number} of seed {seed}: {body.hex()} {encoding!r}") from error
        else:
            assert len(found) <= limit
        whole, cut = _cut(body, [len(body)]), _cut(body, [rng.randrange(1, 8) for _ in range(len(body))])
        # An error ends a stream: what was complete before it in the same chunk may go with it, and nothing else.
        assert whole[1] == cut[1], body.hex()
        assert whole[0] == (cut[0][: len(whole[0])] if whole[1] else cut[0]), body.hex()


def _cut(data: bytes, sizes: list[int]) -> tuple[list[bytes], str]:
    reader = frames.Reader(4096)
    messages: list[bytes] = []
    at = 0
    for size in sizes:
        try:
            messages += reader.feed(data[at : at + size])
        except DormouseError as error:
            return messages, error.code.name
        at += size
        if at >= len(data):
            break
    return messages, ""


@count(40_000, 400_000)
def test_metadata(seed: int, many: int) -> None:
    """A worker and a gateway read the same metadata: each tells what is wrong, and where both accept they mean the same session."""
    rng = random.Random(seed)
    reader = SessionReader(FUNCTION, "nonce")
    agreed = 0
    for number in range(many):
        pairs = fuzzing.metadata(rng)
        message = fuzzing.request(rng, {})
        here = there = None
        try:
            headers = calls.read(pairs)
            if b"grpc-timeout" in headers:
                frames.timeout(headers[b"grpc-timeout"])
            calls.check_function(headers, FUNCTION)
            here = reader.read(headers, message.parameters, 1_700_000_000_000_000)
        except DormouseError as error:
            tell(error)
        except Exception as error:
            raise AssertionError(f"metadata {number} of seed {seed}: {pairs} {message}") from error
        try:  # as grpcio hands it over: text, binary only under -bin
            single = naming.single((key.decode(), value.decode()) for key, value in pairs)
            there = naming.infer(single, message, "tests")
            naming.timestamp(single, message, 1_700_000_000_000_000)
        except UnicodeDecodeError:
            continue  # grpcio would not have handed it over
        except DormouseError as error:
            tell(error)
        except Exception as error:
            raise AssertionError(f"metadata {number} of seed {seed}: {pairs} {message}") from error
        if here is not None and there is not None and there.session:
            assert there.session == here.key, (pairs, message)
            agreed += 1
    assert agreed > many // 50


@count(20_000, 200_000)
def test_session_keys_are_one_to_one(seed: int, many: int) -> None:
    """Two sessions never share a key, whatever their ids and tenants hold: a key is a path in the store."""
    rng = random.Random(seed)
    alphabet = ["/", "%", "2F", "i:", "s:", "a", "é", "é", "\0", "..", "7", "-", " "]
    seen: dict[str, tuple[str, int | str]] = {}
    for _ in range(many):
        tenant = "".join(rng.choice(alphabet) for _ in range(rng.randrange(4)))
        session: int | str = (
            rng.randrange(-20, 20) if rng.random() < 0.3 else "".join(rng.choice(alphabet) for _ in range(rng.randrange(1, 5)))
        )
        try:
            key = session_key(tenant, session)
        except InvalidArgument:
            continue
        assert seen.setdefault(key, (tenant, session)) == (tenant, session)
        assert key.count("/") == 1
