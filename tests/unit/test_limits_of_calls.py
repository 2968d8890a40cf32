"""Limits of one call: of names in its metadata, and of its message and its reply."""

import asyncio
from typing import Any

import numpy as np
import pytest
from dormouse_core import limits
from dormouse_core.callkeys import LocalKeys, parse
from dormouse_core.errors import Again, Code, InvalidArgument, ResourceExhausted, Unavailable
from dormouse_core.keys import Function
from dormouse_gateway import naming
from dormouse_proto import inference_pb2
from dormouse_worker.batches.batching import Batcher
from dormouse_worker.batches.replies import Encoder
from dormouse_worker.batches.requests import Request
from dormouse_worker.batches.work import Runs
from dormouse_worker.models.signatures import Signature, TensorSpec
from dormouse_worker.serving.counters import Counters
from dormouse_worker.serving.service import Service
from dormouse_worker.serving.settings import WorkerIdentity
from dormouse_worker.sessions import Failed, Outcome, Ran
from dormouse_worker.transport import calls, frames

NOW = 1_700_000_000_000_000
READER = calls.SessionReader(Function("ns", "fn", "u"), "nonce")
LENGTHS = {
    "dormouse-session": limits.SESSION_ID_CHARACTERS,
    "dormouse-tenant": limits.TENANT_CHARACTERS,
    "dormouse-idempotency-key": limits.IDEMPOTENCY_KEY_CHARACTERS,
}


PLAIN = inference_pb2.ModelInferRequest(model_name="fn")


def at_the_relay(metadata: dict[str, str], request: inference_pb2.ModelInferRequest = PLAIN) -> None:
    naming.infer(metadata, request, "ns")
    naming.timestamp(metadata, request, NOW)


def at_a_worker(metadata: dict[str, str], request: inference_pb2.ModelInferRequest = PLAIN) -> None:
    READER.read({name.encode(): value.encode() for name, value in metadata.items()}, request.parameters, NOW)


@pytest.mark.parametrize("place", [at_the_relay, at_a_worker])
@pytest.mark.parametrize("name", LENGTHS)
def test_names_at_their_limit_and_beyond(name: str, place: Any) -> None:
    rest = {"dormouse-session": "s", "dormouse-tenant": "t"}
    place({**rest, name: "x" * LENGTHS[name]})
    with pytest.raises(InvalidArgument) as refused:
        place({**rest, name: "x" * (LENGTHS[name] + 1)})
    assert name in str(refused.value)
    assert f"{LENGTHS[name] + 1} characters found" in str(refused.value)
    assert f"{LENGTHS[name]} " in str(refused.value).partition("found")[2]


@pytest.mark.parametrize("key", ["x" * (limits.IDEMPOTENCY_KEY_CHARACTERS + 1), "ä", f"{NOW + 61_000_000:016d}-late"])
@pytest.mark.parametrize("place", [at_the_relay, at_a_worker])
def test_a_wrong_key_is_told_where_it_stands(place: Any, key: str) -> None:
    request = inference_pb2.ModelInferRequest(model_name="fn")
    request.parameters["dormouse_idempotency_key"].string_param = key
    with pytest.raises(InvalidArgument, match=r"^parameters\.dormouse_idempotency_key: "):
        place({"dormouse-session": "s"}, request)
    if key.isascii():
        with pytest.raises(InvalidArgument, match=r"^dormouse-idempotency-key: "):
            place({"dormouse-session": "s", "dormouse-idempotency-key": key})


def test_the_id_behind_a_timestamp_has_the_limit_to_itself() -> None:
    parse("", f"{NOW:016d}-{'x' * limits.IDEMPOTENCY_KEY_CHARACTERS}", NOW, LocalKeys("n"))


def test_a_worker_holds_a_call_to_what_the_gateway_says_and_to_the_highest_setting() -> None:
    highest = WorkerIdentity(worker="w", instance="i", listen="", advertise="").message_bytes
    assert highest == Request().reply_bytes == limits.MESSAGE_BYTES_MAX == 64 << 20
    assert calls.message_bytes({}, highest) == highest
    assert calls.message_bytes({b"dormouse-max-message": b"100"}, highest) == 100
    assert calls.message_bytes({b"dormouse-max-message": b"%d" % (2 * highest)}, highest) == highest
    with pytest.raises(InvalidArgument):
        calls.message_bytes({b"dormouse-max-message": b"much"}, highest)
    body = frames.frame(bytes(100))
    assert len(frames.unframe(body, {}, 100)) == 100
    with pytest.raises(ResourceExhausted, match=r"100 bytes found, at most 99 are allowed \(maxMessageBytes\)"):
        frames.unframe(body, {}, 99)


SIGNATURE = Signature("t", (TensorSpec("x", "FP32", (-1, 4), axis=0),), (TensorSpec("y", "FP32", (-1, 4), axis=0),), max_batch=8)


def wanting(rows: int, limit: int) -> Request:
    request = Request()
    request.rows, request.outputs, request.reply_bytes, request.id = rows, (0,), limit, "i"
    request.inputs = {"x": np.ones((rows, 4), np.float32)}
    return request


def test_a_reply_at_its_limit_and_beyond() -> None:
    encoder = Encoder("fn", SIGNATURE)
    outputs = [np.ones((3, 4), np.float32)]
    size = len(encoder.encode(wanting(3, 1 << 20), outputs))
    assert len(encoder.encode(wanting(3, size), outputs)) == size
    with pytest.raises(ResourceExhausted) as refused:
        encoder.encode(wanting(3, size - 1), outputs)
    assert str(refused.value) == f"reply: {size} bytes found, at most {size - 1} are allowed (maxMessageBytes)"


async def test_a_reply_that_is_too_large_fails_its_own_call_alone() -> None:
    class Same:
        signature = SIGNATURE

        def run(self, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
            return [feeds["x"]]

        def stop(self) -> None: ...

    batcher = Batcher(Same(), Encoder("fn", SIGNATURE), delay=0.0, step_limit=10.0)
    done: list[asyncio.Future[Outcome]] = []
    for limit in (1000, 50, 1000):
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        batcher.run(wanting(2, limit), {}, 0, False, False, future.set_result, float("inf"))
        done.append(future)
    first, large, last = await asyncio.gather(*done)
    assert isinstance(first, Ran)
    assert isinstance(large, Failed)
    assert large.error.code is Code.RESOURCE_EXHAUSTED
    assert isinstance(last, Ran)


@pytest.mark.parametrize("metadata", [{"dormouse-first-message": "0"}, {"dormouse-first-message": "0", "dormouse-session": "s"}])
def test_the_number_of_a_streams_first_message_is_refused_on_a_call_of_its_own(metadata: dict[str, str]) -> None:
    """It would say nothing there: a caller who sets it means a stream."""
    with pytest.raises(InvalidArgument, match="dormouse-first-message: found on a call of its own, it belongs to a stream"):
        calls.read([(name.encode(), value.encode()) for name, value in metadata.items()])
    with pytest.raises(InvalidArgument, match="dormouse-first-message: found on a call of its own, it belongs to a stream"):
        naming.unary(metadata)


class Endless:
    """An engine whose runs do not end."""

    def __init__(self) -> None:
        self.runs = Runs(1.0)
        self.taken = list[Request]()

    def run(self, request: Request, *rest: object) -> None:
        self.taken.append(request)


class Queue:
    """What the service takes calls from, without a wire."""

    def __init__(self) -> None:
        self.limit = limits.MESSAGE_BYTES_MAX
        self.calls: list[Any] = []
        self.refused: list[Unavailable] = []
        self.ended: Any = None

    def take(self, most: int) -> list[Any]:
        taken, self.calls = self.calls, []
        return taken

    def refuse(self, call: Any, error: Unavailable) -> None:
        self.refused.append(error)
        self.ended(call, error)


class Arrived:
    streams = clears = False
    taken = True
    kept = False
    used = None
    left = False
    sent_bytes = 0
    level: int | None = None
    since = 0.0
    deadline = float("inf")
    headers: tuple[tuple[bytes, bytes], ...] = ()

    def __init__(self) -> None:
        request = inference_pb2.ModelInferRequest(model_name="fn")
        request.inputs.add(name="x", datatype="FP32", shape=[1, 4])
        request.raw_input_contents.append(bytes(16))
        self.body = frames.frame(request.SerializeToString())


@pytest.mark.parametrize("together", [True, False])
def test_a_worker_takes_as_many_calls_as_it_may_and_sends_more_back_to_wait(together: bool) -> None:
    engine, queue = Endless(), Queue()
    service = Service(
        Function("ns", "fn", "uid"),
        SIGNATURE,
        engine,  # type: ignore[arg-type]
        queue,  # type: ignore[arg-type]
        names=("fn",),
        nonce="n",
        max_concurrency=3,
        counters=Counters(),
    )
    service.ready = True
    for number in range(5):
        queue.calls.append(Arrived())
        if not together or number == 4:
            service.turn()
    assert len(engine.taken) == 3, queue.refused
    assert [error.again for error in queue.refused] == [Again.BUSY] * 2


@pytest.mark.parametrize("backwards", [False, True])
def test_calls_that_steps_wait_for_have_places_of_their_own_in_a_worker_and_take_nobodys(backwards: bool) -> None:
    engine, queue = Endless(), Queue()
    service = Service(
        Function("ns", "fn", "uid"),
        SIGNATURE,
        engine,  # type: ignore[arg-type]
        queue,  # type: ignore[arg-type]
        names=("fn",),
        nonce="n",
        max_concurrency=3,
        counters=Counters(),
    )
    service.ready = True
    queue.ended = service._ended
    came = []
    for path in sorted((b"", b"ns/a", b"ns/a,ns/b"), reverse=backwards):
        before = len(engine.taken)
        for _ in range(8):
            queue.calls.append(call := Arrived())
            call.headers = ((b"dormouse-path", path),) if path else ()
            came.append(call)
            service.turn()
        assert len(engine.taken) == before + 3, path
    assert [error.again for error in queue.refused] == [Again.BUSY] * 15
    for call in came:
        if call.level is not None:
            service._ended(call, None)  # type: ignore[arg-type]
    assert not any(service._levels)
    assert service.counters.active == 0
