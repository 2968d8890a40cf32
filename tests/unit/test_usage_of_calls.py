"""What a worker counts of calls of a function without sessions, also of those whose callers do not stay for their end."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from dormouse_core.errors import Code, DeadlineExceeded, DormouseError
from dormouse_core.keys import Function
from dormouse_core.usages import Totals, Usage
from dormouse_proto import inference_pb2
from dormouse_worker.batches.requests import Request
from dormouse_worker.batches.work import Figures, Runs
from dormouse_worker.models.signatures import Signature, TensorSpec
from dormouse_worker.serving.counters import Counters
from dormouse_worker.serving.service import Service
from dormouse_worker.sessions import Failed, Outcome, Ran
from dormouse_worker.transport import frames
from dormouse_worker.transport.asgi import Call, Transport
from dormouse_worker.transport.streamed import StreamedCall, part

PART = part(inference_pb2.ModelInferResponse(id="i").SerializeToString())
CANCELLED = Failed(DormouseError("the caller went away while the step ran", Code.CANCELLED), busy_us=30_000_000)


class Engine:
    """Runs one call for as long as it is let."""

    forms, quiet = None, True

    def __init__(self) -> None:
        self.runs, self.figures = Runs(60.0), Figures()
        self.end: Callable[[Outcome], None] = lambda outcome: None
        self.call: Any = None

    def run(self, request: Request, states: Any, step: int, start: bool, end: bool, done: Callable[[Outcome], None], until: float) -> None:
        self.call, self.end = request.call, done


class Bench:
    """A service with one call that runs. `size`: of its message."""

    def __init__(self, kind: type[Call]) -> None:
        self.engine, self.transport = Engine(), Transport(1 << 20, self._other)
        signature = Signature("t", (TensorSpec("x", "FP32", (-1, 4), axis=0),), (TensorSpec("y", "FP32", (-1, 4), axis=0),), max_batch=8)
        function = Function("ns", "fn", "uid")
        engine: Any = self.engine
        self.service = Service(
            function, signature, engine, self.transport, names=("fn",), nonce="n", max_concurrency=3, counters=Counters()
        )
        self.service.ready = True
        request = inference_pb2.ModelInferRequest(model_name="fn")
        request.inputs.add(name="x", datatype="FP32", shape=[1, 4])
        request.raw_input_contents.append(bytes(16))
        self.call = kind(self.transport, [(b"dormouse-tenant", b"acme")], self._receive, self._send)
        self.call.body = frames.frame(request.SerializeToString())
        self.size = len(self.call.body)
        self.transport.arrived(self.call)
        self.service.turn()
        assert self.engine.call is self.call

    async def _other(self, exchange: object) -> None:
        raise AssertionError

    def _receive(self) -> "asyncio.Future[dict[str, Any]]":
        return asyncio.get_running_loop().create_future()

    def _send(self, event: dict[str, Any]) -> "asyncio.Future[None]":
        sent: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        sent.set_result(None)
        return sent

    @property
    def used(self) -> Totals:
        return self.service.usage.totals


async def test_of_a_streamed_reply_the_parts_count() -> None:
    bench = Bench(StreamedCall)
    assert isinstance(bench.call, StreamedCall)
    for _ in range(3):
        bench.call.part(PART)
    bench.engine.end(Ran(b"", {}, busy_us=7))
    assert bench.used == {"acme": Usage(calls=1, busy_us=7, bytes_in=bench.size, bytes_out=3 * len(PART))}


@pytest.mark.parametrize("outcome", [Ran(b"", {}, busy_us=30_000_000), CANCELLED], ids=["to its end", "until it noticed"])
async def test_a_caller_that_resets_after_the_last_part_that_it_wants_pays_for_what_it_had(outcome: Outcome) -> None:
    bench = Bench(StreamedCall)
    assert isinstance(bench.call, StreamedCall)
    for _ in range(40):
        bench.call.part(PART)
    bench.transport.leave(bench.call)
    bench.call.part(PART)
    bench.engine.end(outcome)
    assert bench.used == {"acme": Usage(failed=1, busy_us=30_000_000, bytes_in=bench.size, bytes_out=40 * len(PART))}


@pytest.mark.parametrize("error", [None, DeadlineExceeded("the caller's deadline passed")], ids=["went away", "its deadline passed"])
async def test_a_run_beyond_its_callers_stay_counts(error: DormouseError | None) -> None:
    bench = Bench(Call)
    bench.transport.leave(bench.call, error)
    assert bench.used == {"acme": Usage(failed=1)}
    bench.service.usage.changed = False
    bench.engine.end(Ran(b"reply", {}, busy_us=5))
    assert bench.used == {"acme": Usage(failed=1, busy_us=5, bytes_in=bench.size)}, "it got no reply"
    assert bench.service.usage.changed, "and it is written down"


async def test_what_never_ran_and_what_failed_by_itself_takes_nothing() -> None:
    bench = Bench(Call)
    bench.transport.leave(bench.call)
    bench.engine.end(Failed(DeadlineExceeded("it went away, before the step ran")))
    assert bench.used == {"acme": Usage(failed=1)}
    bench = Bench(Call)
    bench.engine.end(Failed(DormouseError("the handler raised", Code.INTERNAL), busy_us=5))
    assert bench.used == {"acme": Usage(failed=1)}
