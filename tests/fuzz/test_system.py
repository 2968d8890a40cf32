"""The same against the whole system: Envoy, relay and workers take whatever comes, answer it, and go on. No process dies, no call hangs."""

import itertools
import random
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
from conftest import unavailable
from dormouse_testing import fuzzing
from dormouse_testing.http2 import Connection
from dormouse_testing.up import DOUBLE, TOTAL, Up, missing, row, save_models, system
from dormouse_testing.workers import Client, outputs_of, request_of

INFER = "/inference.GRPCInferenceService/ModelInfer"
STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
METHODS = [INFER, INFER, INFER, STREAM, "/inference.GRPCInferenceService/ModelMetadata", "/grpc.health.v1.Health/Check",
           "/inference.GRPCInferenceService/ModelStatistics", "/x/y",
           "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"]  # fmt: skip
ALLOWED = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.ABORTED,  # rule *late-start*: a START that a step of its session, sent beside it, has overtaken; seldom
}
FUNCTIONS = {"double": {"x": ("FP32", [-1, 4])}, "total": {"x": ("FP32", [1, 1])}}


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    if reason := missing():
        unavailable(reason)
    folder = tmp_path_factory.mktemp("fuzz")
    save_models(folder)
    for name, text in (("double", DOUBLE), ("total", TOTAL)):
        (folder / f"{name}.yaml").write_text(text.replace("scaleToZeroAfter: 3s", "minReplicas: 1"))
    with system(folder) as started:
        started.wait_ready()
        for name in FUNCTIONS:
            started.until(lambda name=name: started.get(name)["readyReplicas"] == 1)  # type: ignore[misc]
        yield started


def alive(up: Up) -> tuple[object, ...]:
    """What must be the same afterwards: who runs."""
    return (
        {name: up.part(name) for name in ("etcd", "operator", "agent", "envoy")},
        {name: up.get(name)["workers"] for name in FUNCTIONS},
    )


def well(up: Up) -> None:
    with Client(up.gateway) as client:
        assert outputs_of(client.infer(request_of("double", x=row(1, 2, 3, 4))))["y"].tolist() == [[2, 4, 6, 8]]
        found = client.infer(request_of("total", x=np.ones((1, 1), np.float32)), [("dormouse-session", "well")])
        assert outputs_of(found)["y"].shape == (1, 1)


@pytest.mark.parametrize(("seed", "many"), [(1, 4_000), pytest.param(2, 200_000, marks=pytest.mark.slow)])
def test_messages(up: Up, seed: int, many: int) -> None:
    """Messages in good frames, through the fast path, the relay and both kinds of workers."""
    before = alive(up)
    codes: Counter[grpc.StatusCode] = Counter()
    with Client(up.gateway) as client:
        infer = client.channel.unary_unary(INFER)

        def send(item: tuple[int, bytes, str]) -> grpc.StatusCode:
            number, data, name = item
            metadata = [("dormouse-function", f"default/{name}")] if number % 3 else []
            if number % 4 == 0:
                metadata.append(("dormouse-session", f"s{number % 50}"))
            compression = grpc.Compression.Gzip if number % 7 == 0 else grpc.Compression.NoCompression
            try:
                infer(data, metadata=metadata, timeout=20, compression=compression)
                return grpc.StatusCode.OK
            except grpc.RpcError as error:
                if error.code() not in ALLOWED or not error.details():  # or a refusal without words
                    raise AssertionError(f"{number} {data.hex()} {metadata}: {error.code()} {error.details()!r}") from None
                return error.code()

        makers = {name: fuzzing.messages(seed, inputs, name) for name, inputs in FUNCTIONS.items()}
        names = list(FUNCTIONS)
        items = ((number, next(makers[names[number % 2]]), names[number % 2]) for number in range(many))
        with ThreadPoolExecutor(16) as pool:
            for batch in iter(lambda: list(itertools.islice(items, 512)), []):
                codes.update(pool.map(send, batch))
    assert codes[grpc.StatusCode.OK] > many // 100, codes
    assert codes[grpc.StatusCode.INVALID_ARGUMENT] > many // 4, codes
    assert codes[grpc.StatusCode.ABORTED] <= many // 1000, codes
    print(f"{many} messages: {dict(codes)}")
    well(up)
    assert alive(up) == before


@pytest.mark.parametrize(("seed", "many"), [(1, 1_500), pytest.param(2, 50_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("where", ["gateway", "worker"])
def test_bytes(up: Up, where: str, seed: int, many: int) -> None:
    """Frames that lie, headers of any bytes, bodies in any pieces, by a client that keeps to HTTP/2 and nothing else; and the same to a
    worker that is dialled without a gateway."""
    before = alive(up)
    rng = random.Random(seed)
    made = fuzzing.messages(seed, FUNCTIONS["double"], "double")
    address = up.gateway if where == "gateway" else worker_of(up)

    def calls(requests: list[tuple[list[tuple[bytes, bytes]], list[bytes]]]) -> list[str]:
        """On one connection while it lasts."""
        ends: list[str] = []
        with Connection(address) as connection:
            for headers, chunks in requests:
                ends.append(connection.call(headers, chunks))
                if ends[-1] == "closed":
                    break
        return ends

    batches = ([request(rng, next(made)) for _ in range(20)] for _ in range(many // 20))
    with ThreadPoolExecutor(64) as pool:  # most of them wait for a deadline
        ends = Counter(end for found in pool.map(calls, batches) for end in found)
    assert ends["answered"] > many // 3, ends
    print(f"{many} calls to the {where}: {dict(ends)}")
    well(up)
    assert alive(up) == before


def request(rng: random.Random, message: bytes) -> tuple[list[tuple[bytes, bytes]], list[bytes]]:
    path = rng.choice(METHODS)
    body = bytes([rng.choice([0, 0, 0, 1, 7])]) + len(message).to_bytes(4, "big") + message
    if rng.random() < 0.5:
        body = fuzzing.damaged(rng, body, message)
    body = body[:16_000]
    headers = [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", path.encode()),
        (b":authority", rng.choice([b"127.0.0.1", b"double.default", b"x", b"a.b.svc"])),
        (b"content-type", b"application/grpc" if rng.random() < 0.95 else rng.choice([b"application/json", b"", b"application/grpc+x"])),
        (b"te", b"trailers"),
        *(pair for pair in fuzzing.metadata(rng) if pair[0] != b"content-type"),
    ]
    # The mistakes in it are tried in test_metadata. Here no deadline ends a call: whatever it is, it is answered.
    headers = [pair for pair in headers if pair[0] != b"grpc-timeout"]
    cuts = sorted(rng.randrange(len(body) + 1) for _ in range(rng.randrange(4)))
    return headers, [body[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(body)], strict=True)]


def worker_of(up: Up) -> str:
    """The address of a worker of `double`."""
    import re

    found: list[str] = re.findall(r"worker ready worker=\S+ function=default/double address=(\S+)", up.log)
    assert found, up.log[-3000:]
    return found[-1]


@pytest.mark.parametrize("where", ["gateway", "worker"])
def test_a_forbidden_header_ends_its_own_call_alone(up: Up, where: str) -> None:
    """A connection is shared by all callers of a proxy, and by all calls of a gateway to a worker."""
    address = up.gateway if where == "gateway" else worker_of(up)
    body = request_of("double", x=row(1, 2, 3, 4)).SerializeToString()
    headers = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", INFER.encode()), (b":authority", b"x"),
               (b"content-type", b"application/grpc"), (b"te", b"trailers")]  # fmt: skip
    chunks = [b"\0" + len(body).to_bytes(4, "big") + body]
    with Connection(address) as connection:
        for _ in range(3):
            assert connection.call([*headers, (b"dormouse-tenant", b"a\x7f\x01b")], chunks) in ("reset", "answered")
            assert connection.call(headers, chunks) == "answered"


@pytest.mark.parametrize("method", [INFER, "/inference.GRPCInferenceService/ModelReady", "/grpc.health.v1.Health/Check", "/x/y"])
def test_a_call_that_ends_before_its_message_is_answered(up: Up, method: str) -> None:
    """Without a deadline: grpcio's own servers leave such a call alone for ever. A method that is not there is refused unread."""
    with grpc.insecure_channel(up.gateway) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.stream_unary(method)(iter([]), timeout=10)
    told = {
        "/x/y": (grpc.StatusCode.UNIMPLEMENTED, "/x/y: no such method here"),
        "": (grpc.StatusCode.INVALID_ARGUMENT, "message: the call ended without a whole one; a unary call carries one message"),
    }
    assert (caught.value.code(), caught.value.details()) == told.get(method, told[""])
    headers = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", method.encode()), (b":authority", b"x"),
               (b"content-type", b"application/grpc"), (b"te", b"trailers")]  # fmt: skip
    body = request_of("double", x=row(1, 2, 3, 4)).SerializeToString()
    framed = b"\0" + len(body).to_bytes(4, "big") + body
    with Connection(up.gateway, timeout=10) as connection:
        for size in (0, 1, 4, 5, len(framed) - 1):
            for encoding in ([], [(b"grpc-encoding", b"gzip")]):
                assert connection.call([*headers, *encoding], [framed[:size]]) == "answered"
