"""Handlers that stream, in the worker: what goes onto the wire in which order, what is kept, what ends a step early."""

import asyncio
import sys
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from dormouse_core import limits, streamed
from dormouse_core.errors import Again, Code, DeadlineExceeded, Decoupled, Unavailable
from dormouse_core.handlers import Context, Handler, State, Tensor
from dormouse_core.keys import Function
from dormouse_proto import inference_pb2
from dormouse_worker.batches.replies import Encoder
from dormouse_worker.batches.requests import Request
from dormouse_worker.runtimes.python import HandlerRunner, PythonRuntime
from dormouse_worker.sessions import Failed, Outcome, Ran
from dormouse_worker.transport import frames
from dormouse_worker.transport.asgi import Call, Transport, error_headers
from dormouse_worker.transport.streamed import FRAMED, StreamedCall, part, unsent

Event = dict[str, Any]


class Wire:
    """pyvoy's side of one call. `held`: it takes nothing more until `read_on`."""

    def __init__(self, kind: type[Call] = StreamedCall) -> None:
        self.events: list[Event] = []
        self.waiting: list[asyncio.Future[None]] = []
        self.held = False
        self.gone = False
        self.began = asyncio.Event()
        self.ended = asyncio.Event()
        self.transport = Transport(1 << 20, self._other)
        self.call = kind(self.transport, [], self._receive, self._send)

    async def _other(self, exchange: object) -> None:
        raise AssertionError

    def _receive(self) -> Any:
        raise AssertionError

    def _send(self, event: Event) -> "asyncio.Future[None]":
        if self.gone:
            raise ConnectionError("nobody is there")
        self.events.append(event)
        if event["type"].endswith("trailers"):
            self.ended.set()
        sent: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self.held and "body" in event:
            self.waiting.append(sent)
            self.began.set()
        else:
            sent.set_result(None)
        return sent

    def read_on(self) -> None:
        self.held = False
        for sent in self.waiting:
            sent.set_result(None)

    @property
    def parts(self) -> list[inference_pb2.ModelInferResponse]:
        body = b"".join(event.get("body", b"") for event in self.events)
        found = frames.Reader(1 << 30).feed(body)
        return [inference_pb2.ModelStreamInferResponse.FromString(each).infer_response for each in found]

    @property
    def kinds(self) -> list[str]:
        return [event["type"].removeprefix("http.response.") for event in self.events]

    @property
    def status(self) -> dict[bytes, bytes]:
        return dict(self.events[-1].get("headers") or self.events[0]["headers"])


def streaming(steps: Callable[..., Any], *, stateful: bool = True, limit: float = 60.0) -> HandlerRunner:
    class Talk(Handler):
        inputs = (Tensor("n", "INT64", [1]),)
        outputs = (Tensor("y", "INT64", [-1]),)
        states = (State("said", "INT64", [1]),) if stateful else ()
        step = steps

    module = types.ModuleType("talking")
    module.Talk = Talk  # type: ignore[attr-defined]  # a module made by hand
    sys.modules["talking"] = module
    runtime = PythonRuntime("talking:Talk", None, function=Function("ns", "fn", "uid"), revision="r", stateful=stateful)
    assert runtime.signature.decoupled
    return HandlerRunner(runtime, Encoder("fn", runtime.signature), threads=1, step_limit=limit)


async def run(runner: HandlerRunner, wire: Wire, n: int) -> Outcome:
    request = Request()
    request.id, request.outputs, request.call = "id", (0,), wire.call
    request.inputs = {"n": np.array([n])}
    done: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
    states = {"said": np.array([0])} if runner._declaration.states else {}
    runner.run(request, states, 1, True, False, done.set_result, float("inf"))
    async with asyncio.timeout(10):
        return await done


def count(self: Handler, inputs: Any, state: Any, ctx: Context) -> Iterator[Any]:
    for number in range(int(inputs["n"][0])):
        if state:
            state["said"] += 1
        yield {"y": np.array([number])}


async def count_async(self: Handler, inputs: Any, state: Any, ctx: Context) -> Any:
    for each in count(self, inputs, state, ctx):
        yield each


@pytest.fixture(params=[count, count_async], ids=["sync", "async"])
def steps(request: pytest.FixtureRequest) -> Any:
    return request.param


async def test_parts_go_out_as_they_are_made_and_are_kept_as_they_went(steps: Any) -> None:
    wire = Wire()
    outcome = await run(streaming(steps), wire, 3)
    assert isinstance(outcome, Ran)
    assert outcome.states["said"].tolist() == [3]
    assert [each.id for each in wire.parts] == ["id"] * 3
    assert not any(each.parameters[streamed.FINAL].bool_param for each in wire.parts)
    assert outcome.reply == b"".join(event["body"] for event in wire.events[1:])
    assert outcome.reply.startswith(FRAMED)
    wire.transport.reply(((wire.call, b"", [(b"dormouse-step", b"1")]),))
    assert wire.kinds == ["start", "body", "body", "body", "body", "trailers"]
    assert wire.events[-2]["more_body"] is False
    assert wire.status == {b"dormouse-step": b"1", b"grpc-status": b"0"}


async def test_a_stateless_functions_parts_are_not_kept(steps: Any) -> None:
    wire = Wire()
    outcome = await run(streaming(steps, stateful=False), wire, 3)
    assert isinstance(outcome, Ran)
    assert (outcome.reply, outcome.states) == (b"", {})
    assert len(wire.parts) == 3


async def test_no_part_at_all_is_a_reply_too(steps: Any) -> None:
    wire = Wire()
    outcome = await run(streaming(steps), wire, 0)
    assert isinstance(outcome, Ran)
    wire.transport.reply(((wire.call, b"", None),))
    assert wire.kinds == ["start", "body", "trailers"]
    assert dict(wire.events[0]["headers"])[b"dormouse-decoupled"] == b"1"


async def test_a_reader_that_is_slow_slows_the_step(steps: Any) -> None:
    wire = Wire()
    wire.held = True
    runner = streaming(steps)
    running = asyncio.ensure_future(run(runner, wire, 100))
    await asyncio.sleep(0.1)  # a thread that did not wait would be through by now
    assert len(wire.parts) <= 8
    wire.read_on()
    assert isinstance(await running, Ran)
    assert len(wire.parts) == 100


async def test_a_caller_that_goes_away_ends_the_step_at_its_next_part(steps: Any) -> None:
    wire = Wire()
    wire.held = True
    running = asyncio.ensure_future(run(streaming(steps), wire, 1000))
    await wire.began.wait()
    wire.transport.leave(wire.call)
    outcome = await running
    assert isinstance(outcome, Failed)
    assert outcome.error.code == Code.CANCELLED
    assert outcome.busy_us > 0, "it ran until then"


async def test_so_does_one_that_the_wire_has_lost(steps: Any) -> None:
    wire = Wire()
    wire.gone = True
    outcome = await run(streaming(steps), wire, 1000)
    assert isinstance(outcome, Failed)
    assert outcome.error.code == Code.CANCELLED
    assert wire.events == []


async def test_and_one_whose_stream_broke_under_a_part(steps: Any) -> None:
    wire = Wire()
    wire.held = True
    running = asyncio.ensure_future(run(streaming(steps), wire, 1000))
    await wire.began.wait()
    wire.waiting[0].set_exception(ConnectionError("reset"))
    outcome = await running
    assert isinstance(outcome, Failed)
    assert outcome.error.code == Code.CANCELLED


async def test_the_step_limit_holds_while_it_yields(steps: Any) -> None:
    wire = Wire()
    wire.held = True
    outcome = await run(streaming(steps, limit=0.1), wire, 1000)
    assert isinstance(outcome, Failed)
    assert outcome.error.code == Code.DEADLINE_EXCEEDED
    wire.transport.refuse(wire.call, outcome.error)  # as the session does; nothing, where the watch over the limit was first
    assert wire.status[b"grpc-status"] == b"4"
    assert wire.kinds.count("trailers") == 1


async def test_a_caller_is_told_when_the_step_limit_passes_though_the_step_goes_on() -> None:
    go_on = threading.Event()

    def stuck(self: Handler, inputs: Any, state: Any, ctx: Context) -> Iterator[Any]:
        yield {"y": np.array([1])}
        go_on.wait(10)

    wire = Wire()
    running = asyncio.create_task(run(streaming(stuck, limit=0.1), wire, 1))
    async with asyncio.timeout(10):
        await wire.ended.wait()
    assert wire.status[b"grpc-status"] == b"4"
    assert not running.done(), "the session does not go on beside a step that still runs"
    go_on.set()
    assert isinstance(await running, Failed)


async def test_what_a_step_says_is_limited(steps: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "STREAMED_BYTES", 1000)
    outcome = await run(streaming(steps), Wire(), 1000)
    assert isinstance(outcome, Failed)
    assert outcome.error.code == Code.RESOURCE_EXHAUSTED
    assert isinstance(await run(streaming(steps, stateful=False), Wire(), 1000), Ran)
    kept = await run(streaming(steps), Wire(), 3)
    assert isinstance(kept, Ran)
    for most, kind in ((len(kept.reply), Ran), (len(kept.reply) - 1, Failed)):
        monkeypatch.setattr(limits, "STREAMED_BYTES", most)
        assert isinstance(await run(streaming(steps), Wire(), 3), kind)


async def test_a_part_that_is_wrong_fails_the_step() -> None:
    def wrong(self: Handler, inputs: Any, state: Any, ctx: Context) -> Iterator[Any]:
        yield {"y": np.array([1])}
        yield {"z": 1}

    wire = Wire()
    outcome = await run(streaming(wrong), wire, 1)
    assert isinstance(outcome, Failed)
    assert "step yielded the outputs z, y are declared" in outcome.error.message
    assert len(wire.parts) == 1
    wire.transport.refuse(wire.call, outcome.error)
    assert wire.kinds == ["start", "body", "body", "trailers"]
    assert (wire.status[b"grpc-status"], wire.status[b"dormouse-by"]) == (b"13", b"worker")


# -------------------------------------------------------------------------------------------------------------------- on the wire


async def test_a_refusal_before_the_first_part_is_headers_alone() -> None:
    wire = Wire()
    wire.transport.refuse(wire.call, Unavailable("elsewhere", Again.NOT_MINE))
    assert wire.kinds == ["start", "body"]
    assert wire.status[b"dormouse-again"] == b"not-mine"


async def test_what_comes_behind_the_answer_is_not_sent() -> None:
    wire = Wire()
    wire.transport.refuse(wire.call, DeadlineExceeded("late"))
    before = len(wire.events)
    assert isinstance(wire.call, StreamedCall)
    assert wire.call.part(part(b"")) is None
    wire.transport.reply(((wire.call, b"", None),))
    assert len(wire.events) == before


def test_a_unary_call_is_told_that_it_must_be_a_stream() -> None:
    assert dict(error_headers(Decoupled("no")))[b"dormouse-decoupled"] == b"1"


def test_what_is_kept_of_either_kind_is_sent_whole() -> None:
    reply = inference_pb2.ModelInferResponse(model_name="fn", id="x").SerializeToString()
    assert unsent(b"") == b""
    assert unsent(part(reply) * 2) == part(reply) * 2
    assert unsent(reply) == part(reply)
