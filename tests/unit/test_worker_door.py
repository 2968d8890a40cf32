"""A worker that is cleared for one call: what waits meanwhile, in which order it goes on, and that nobody keeps it closed."""

import asyncio
import types
from collections.abc import Callable
from typing import Any

import pytest
from dormouse_core import clearing, hanging
from dormouse_core.alarms import key_of
from dormouse_core.clearing import CLEAR
from dormouse_core.keys import Function
from dormouse_core.records import Alarm
from dormouse_proto import inference_pb2
from dormouse_worker.batches.batching import Batcher
from dormouse_worker.batches.replies import Encoder
from dormouse_worker.batches.requests import Request
from dormouse_worker.batches.work import Figures, Runs, Work
from dormouse_worker.models.signatures import Signature, StateSpec, TensorSpec
from dormouse_worker.process import bootstrap
from dormouse_worker.process.marks import Marks
from dormouse_worker.runtimes.python import HandlerRunner
from dormouse_worker.serving.counters import Counters
from dormouse_worker.serving.door import Door
from dormouse_worker.serving.service import Service
from dormouse_worker.sessions import Answer, Outcome, Ran, Step
from dormouse_worker.transport import frames
from dormouse_worker.transport.asgi import Ask, Call, Transport

X, Y = TensorSpec("x", "FP32", (-1, 1), axis=0), TensorSpec("y", "FP32", (-1, 1))
STATE = StateSpec("state", "stateN", "FP32", (1, -1, 2), 1)


class Engine:
    """Runs what it is given until it is told to end it."""

    forms = None

    def __init__(self) -> None:
        self.runs = Runs(60.0)
        self.figures = Figures()
        self.ids: list[str] = []
        self.most = 0
        self._under_way: dict[str, tuple[int, Callable[[Outcome], None]]] = {}
        self._begun = asyncio.Event()

    @property
    def quiet(self) -> bool:
        return not self._under_way

    def run(self, call: Request, states: Any, step: int, start: bool, end: bool, done: Callable[[Outcome], None], deadline: float) -> None:
        self.ids.append(call.id)
        self._under_way[call.id] = (self.runs.begin(0.0, (Work(call, states, step, start, end, done, deadline, 0.0),)), done)
        self.most = max(self.most, len(self._under_way))
        self._begun.set()

    def end(self, *ids: str) -> None:
        for ident in ids:
            token, done = self._under_way.pop(ident)
            self.runs.end(token)
            done(Ran(b"", {}))

    async def has(self, *ids: str) -> None:
        """Returns when these have begun, in this order."""
        async with asyncio.timeout(10):
            while len(self.ids) < len(ids):
                self._begun.clear()
                await self._begun.wait()
        assert self.ids == list(ids)


class Steps:
    """Sessions that run every step at once."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def submit(self, step: Step) -> None:
        def done(_: Outcome) -> None:
            step.answer(Answer(b"", 1))

        self._engine.run(step.call, {}, 1, False, False, done, step.deadline)

    def cancel(self, step: Step) -> None:
        step.cancelled = True


class Caller:
    """pyvoy's side of one call, and what came of it."""

    def __init__(self, bench: "Bench", path: str, ident: str, headers: dict[str, str]) -> None:
        self.answered = asyncio.Event()
        self.gone = False
        self.headers: dict[bytes, bytes] = {}
        message = inference_pb2.ModelInferRequest(model_name="fn", id=ident)
        message.inputs.add(name="x", datatype="FP32", shape=[1, 1])
        message.raw_input_contents.append(bytes(4))
        self._body: bytes | None = frames.frame(b"" if path == CLEAR else message.SerializeToString())
        given = {"dormouse-call": f"{len(ident):016}-g-envoy-{ident}"} | headers
        scope = {"type": "http", "path": path, "headers": [(name.encode(), value.encode()) for name, value in given.items()]}
        bench.transport(scope, self._receive, self._send)

    def _receive(self) -> "asyncio.Future[dict[str, Any]]":
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        body, self._body = self._body, None
        kind = "http.disconnect" if self.gone else "http.request"
        future.set_result({"type": kind, "body": body or b"", "more_body": False})
        return future

    def _send(self, event: dict[str, Any]) -> None:
        self.headers |= dict(event.get("headers", ()))
        if event["type"] == "http.response.body":
            self.answered.set()

    async def again(self) -> str:
        async with asyncio.timeout(10):
            await self.answered.wait()
        return self.headers.get(b"dormouse-again", b"").decode()


class Bench:
    def __init__(self, *, stateful: bool = False, limit: int = 100, engine: Any = None) -> None:
        self.engine: Engine = engine or Engine()
        self.transport = Transport(1 << 20, self._other, {bootstrap.INFER: Call, CLEAR: Ask})
        self.service = Service(
            Function("ns", "fn", "uid"),
            Signature("fn", (X,), (Y,), (STATE,) if stateful else (), max_batch=8),
            self.engine,
            self.transport,
            names=("fn",),
            nonce="n",
            max_concurrency=limit,
            counters=Counters(),
        )
        self.service.sessions = Steps(self.engine)
        self.service.ready = True
        self._session = {"dormouse-session": "s"} if stateful else {}

    async def _other(self, exchange: object) -> None:
        raise AssertionError

    def call(self, ident: str, **headers: str) -> Caller:
        given = {key.replace("_", "-"): value for key, value in headers.items()}
        return Caller(self, bootstrap.INFER, ident, self._session | given)

    def ask(self, ident: str) -> Caller:
        return Caller(self, CLEAR, ident, {})

    def cleared(self, ident: str) -> Caller:
        return self.call(ident, dormouse_alone="cleared")


async def turns() -> None:
    """As many of the loop as it takes until what was sent has begun, or waits."""
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.mark.parametrize("stateful", [False, True])
async def test_a_call_for_which_it_was_cleared_runs_alone_and_the_others_go_on_in_their_order(stateful: bool) -> None:
    bench = Bench(stateful=stateful)
    bench.call("first")
    await bench.engine.has("first")
    asked = bench.ask("k")
    await turns()
    names = [f"w{number}" for number in range(20)]
    waiting = [bench.call(name) for name in names]
    await turns()
    assert not asked.answered.is_set()
    bench.engine.end("first")
    assert await asked.again() == "cleared"
    call = bench.cleared("k")
    await bench.engine.has("first", "k")
    late = bench.call("late")
    await turns()
    await bench.engine.has("first", "k")
    bench.engine.end("k")
    assert await call.again() == ""
    await bench.engine.has("first", "k", *names, "late")
    bench.engine.end(*names, "late")
    for each in (*waiting, late):
        assert await each.again() == ""
    assert bench.service.counters.active == 0


async def test_negative_control_without_a_door_it_is_not_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Door, "keeps_out", lambda *_: False)
    bench = Bench()
    assert await bench.ask("k").again() == "cleared"
    bench.call("other")
    bench.cleared("k")
    await bench.engine.has("other", "k")
    assert bench.engine.most == 2


async def test_what_waits_keeps_its_deadline_and_goes_when_its_caller_goes() -> None:
    bench = Bench()
    assert await bench.ask("k").again() == "cleared"
    call = bench.cleared("k")
    await bench.engine.has("k")
    late, gone, patient = bench.call("late", grpc_timeout="100m"), bench.call("gone"), bench.call("patient")
    gone.gone = True
    await late.again()
    assert late.headers[b"grpc-status"] == b"4"
    bench.engine.end("k")
    await call.again()
    await bench.engine.has("k", "patient")
    bench.engine.end("patient")
    await patient.again()
    assert bench.service.counters.active == 0


@pytest.mark.parametrize("when", ["asking", "kept", "running"])
async def test_a_gateway_that_goes_away_leaves_it_open(when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clearing, "CLEARED_SECONDS", 0.1)
    bench = Bench()
    if when == "asking":
        bench.call("long")
        await bench.engine.has("long")
        asked = bench.ask("k")
        await turns()
        bench.call("other")
        asked.gone = True
        await bench.engine.has("long", "other")
        return
    assert await bench.ask("k").again() == "cleared"
    if when == "kept":
        bench.call("other")
        await bench.engine.has("other")
        assert await bench.cleared("k").again() == "unclear", "too late: it would not be alone"
        return
    call = bench.cleared("k")
    await bench.engine.has("k")
    bench.call("other")
    call.gone = True
    await bench.engine.has("k", "other")


async def test_what_runs_for_nobody_any_more_is_waited_for_too() -> None:
    bench = Bench()
    bench.call("left")
    await bench.engine.has("left")
    bench.transport.leave(next(iter(bench.transport._open)))
    assert bench.service.counters.active == 0
    asked = bench.ask("k")
    await turns()
    assert not asked.answered.is_set()
    bench.engine.end("left")
    assert await asked.again() == "cleared"


async def test_what_does_not_end_in_its_time_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clearing, "CLEAR_SECONDS", 0.1)
    bench = Bench()
    bench.call("long")
    await bench.engine.has("long")
    asked = bench.ask("k")
    await turns()
    bench.call("other")
    assert await asked.again() == "unclear"
    await bench.engine.has("long", "other")


async def test_it_can_be_cleared_where_it_takes_one_call_at_a_time() -> None:
    bench = Bench(limit=1)
    bench.call("one")
    await bench.engine.has("one")
    asked = bench.ask("k")
    assert await bench.call("two").again() == "busy"
    bench.engine.end("one")
    assert await asked.again() == "cleared"
    bench.call("three")
    await turns()
    call = bench.cleared("k")
    await bench.engine.has("one", "k")
    bench.engine.end("k")
    assert await call.again() == ""
    await bench.engine.has("one", "k", "three")


async def gone_before_it_is_taken(bench: Bench, caller: Callable[[], Caller]) -> None:
    """As where more calls come at once than are begun in one turn of the loop, and that stands still for a moment."""
    ready, bench.transport.ready = bench.transport.ready, None
    caller()
    await turns()
    (call,) = (call for call in bench.transport._open if not call.taken)
    bench.transport.leave(call)
    bench.transport.ready = ready
    bench.service.turn()
    await turns()


@pytest.mark.parametrize("what", ["ask", "call", "cleared"])
async def test_a_call_that_is_gone_before_it_is_taken_closes_nothing_and_counts_nowhere(what: str) -> None:
    bench = Bench()
    if what == "cleared":
        assert await bench.ask("k").again() == "cleared"
    else:
        bench.call("first")
        await bench.engine.has("first")
        asked = bench.ask("z")
        await turns()
    await gone_before_it_is_taken(bench, lambda: getattr(bench, what)("k"))
    if what == "cleared":
        call = bench.cleared("k")
        await bench.engine.has("k")
        bench.engine.end("k")
        assert await call.again() == ""
    else:
        assert bench.service.counters.active == 2
        assert not asked.answered.is_set(), "what was begun has not ended"
        bench.engine.end("first")
        assert await asked.again() == "cleared"
    assert bench.service.counters.active == 0
    assert bench.engine.ids == ["k" if what == "cleared" else "first"]


async def test_a_call_is_alone_in_it_only_where_no_other_waits_to_run() -> None:
    bench = Bench()
    bench.engine.runs.marks = marks = Marks()
    try:
        bench.call("runs")
        await bench.engine.has("runs")
        assert marks.alone()
        bench.engine.run = lambda *_: None  # type: ignore[method-assign]
        waits = bench.call("waits")
        await turns()
        assert [len(run.calls) for run in marks.runs()] == [1], "no other runs"
        assert not marks.alone()
        waits.gone = True
        bench.transport.leave(list(bench.transport._open)[1])
        assert marks.alone()
        goes = bench.call("goes")
        await turns()
        bench.engine.figures.waiting = 1
        goes.gone = True
        bench.transport.leave(list(bench.transport._open)[1])
        assert not marks.alone(), "its message is there until its turn comes"
        bench.engine.figures.waiting = 0
        bench.service._change(0)
        assert marks.alone()
        bench.engine.runs.begin(0.0)  # of which there is no room for a name
        assert not marks.alone()
    finally:
        marks.close()


class Bell:
    """What begins alarms' steps: begins one when the door lets it."""

    def __init__(self, bench: Bench) -> None:
        self.under_way = 0
        self.admits: Callable[[], bool] = lambda: True
        self.on_change: Callable[[], None] = lambda: None
        self._bench = bench
        bench.service.ring(self)

    def wake(self) -> None:
        if self.admits() and not self.under_way:
            self.look()
            self.begin()

    def look(self) -> None:
        self.under_way += 1
        self.on_change()

    def begin(self) -> None:
        """The try is noted: its step runs."""
        message = inference_pb2.ModelInferRequest(model_name="fn", id="alarm")
        message.inputs.add(name="x", datatype="FP32", shape=[1, 1])
        message.raw_input_contents.append(bytes(4))
        alarm = Alarm("a", 1, "abc", message.SerializeToString(), 1, time_us=5)
        step = Step("/s:s", key_of(alarm), b"", False, False, False, None, lambda _: None, rings=True, alarm=alarm)
        self._bench.engine.run(self._bench.service.alarmed(step), {}, 1, False, False, self._ended, 1e9)

    def _ended(self, _: Outcome) -> None:
        self.under_way -= 1
        self.on_change()


async def test_no_alarm_begins_beside_a_call_for_which_it_was_cleared_and_one_that_is_looked_at_is_waited_for() -> None:
    bench = Bench(stateful=True)
    bell = Bell(bench)
    bell.look()
    asked = bench.ask("k")
    await turns()
    assert not asked.answered.is_set(), "its try is being noted, and its step runs then"
    bell.begin()
    await bench.engine.has("alarm")
    bench.engine.end("alarm")
    assert await asked.again() == "cleared"
    bell.wake()
    call = bench.cleared("k")
    await bench.engine.has("alarm", "k")
    bell.wake()
    await bench.engine.has("alarm", "k")
    bench.engine.end("k")
    assert await call.again() == ""
    await bench.engine.has("alarm", "k", "alarm")


async def test_a_worker_that_is_killed_for_an_alarms_step_names_it_and_a_call_beside_it_is_not_alone() -> None:
    bench = Bench(stateful=True)
    bench.engine.runs.marks = marks = Marks()
    try:
        bell = Bell(bench)
        bench.call("runs")
        await bench.engine.has("runs")
        assert marks.alone()
        bell.look()
        assert not marks.alone(), "it uses the worker's memory too"
        bell.begin()
        assert [run.calls for run in marks.runs()] == [("0000000000000004-g-envoy-runs",), ("0000000000000005-a-abc",)]
        assert hanging.blamed([marks.runs()[0], marks.runs()[1]._replace(on_loop=True)], ()) == ["0000000000000005-a-abc"]
        bench.engine.end("alarm")
        assert marks.alone()
    finally:
        marks.close()


class Later:
    """A pool whose threads come when they are told to."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[], None]] = []

    def submit(self, what: Callable[..., None], *arguments: Any) -> None:
        self.waiting.append(lambda: what(*arguments))


@pytest.mark.parametrize("kind", ["batcher", "threads"])
async def test_a_call_that_is_dropped_before_it_runs_is_waited_for_no_longer(kind: str) -> None:
    signature, pool = Signature("fn", (X,), (Y,), max_batch=8), Later()
    runtime: Any = types.SimpleNamespace(
        signature=signature,
        function=Function("ns", "fn", "uid"),
        declaration=types.SimpleNamespace(is_async=False, decoupled=False, states=(), outputs=()),
    )
    engine: Any
    if kind == "batcher":
        engine = Batcher(runtime, Encoder("fn", signature), delay=0.05, step_limit=60.0)
    else:
        engine = HandlerRunner(runtime, Encoder("fn", signature), threads=1, step_limit=60.0)
        engine._pool = pool
    bench = Bench(engine=engine)
    bench.call("gone")
    await turns()
    asked = bench.ask("k")
    await turns()
    bench.transport.leave(next(iter(bench.transport._open)))
    await turns()
    assert not asked.answered.is_set(), "it is in the queue, and nothing runs that could tell of its end"
    for thread in pool.waiting:
        thread()
    assert await asked.again() == "cleared"


async def test_a_handler_says_when_a_step_has_begun_and_how_many_can() -> None:
    signature, pool, begun = Signature("fn", (X,), (Y,)), Later(), []
    declaration = types.SimpleNamespace(is_async=False, decoupled=False, states=(), outputs=())
    runtime: Any = types.SimpleNamespace(signature=signature, function=Function("ns", "fn", "uid"), declaration=declaration)
    engine: Any = HandlerRunner(runtime, Encoder("fn", signature), threads=3, step_limit=60.0)
    engine._pool = pool
    assert engine.places == 3
    ended: list[Outcome] = []
    for _ in range(4):
        request = Request()
        request.on_begin = lambda: begun.append(1)
        engine.run(request, {}, 1, False, False, ended.append, 1e9)
    await turns()
    assert (len(pool.waiting), begun) == (3, []), "none has begun"
    pool.waiting[0]()
    await turns()
    assert begun == [1]
