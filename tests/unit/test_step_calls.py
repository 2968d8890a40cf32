"""What stands behind `ctx.call` in a worker and in a gateway: threads and tasks, cancels, deadlines, wrong arguments, who may call."""

import asyncio
import math
import sys
import threading
import types
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from dormouse import Code, Context, DormouseError, Handler, Tensor
from dormouse_core import asking, childcalls, headernames
from dormouse_core.callkeys import CallKey
from dormouse_core.childcalls import Calling
from dormouse_core.errors import FailedPrecondition, InvalidArgument
from dormouse_core.keys import Function
from dormouse_core.seams import StoreError
from dormouse_gateway.relay.gates import Gate
from dormouse_gateway.serving import calling as port
from dormouse_proto import inference_pb2
from dormouse_worker.batches.replies import Encoder
from dormouse_worker.batches.requests import Request
from dormouse_worker.runtimes.calling import StepCalls
from dormouse_worker.runtimes.python import HandlerRunner, PythonRuntime
from dormouse_worker.sessions import Failed, Outcome, Ran
from dormouse_worker.transport import gateways
from dormouse_worker.transport.gateways import Gateways

SHOP = Function("shop", "orders", "uid-1")
KEY = CallKey(1_700_000_000_000_000, "g-aa-1")
ONE = np.ones(1, np.float32)


class Way:
    """A gateway: keeps what is asked until it is told to answer."""

    def __init__(self, *, answers: bool = True) -> None:
        self.asked: list[Mapping[str, str]] = []
        self.cancelled = 0
        self.until: list[float] = []
        self.go = asyncio.Event()
        self._came = asyncio.Event()
        if answers:
            self.go.set()

    async def has(self, count: int) -> None:
        """Until so many calls came."""
        async with asyncio.timeout(10):
            while len(self.asked) < count:
                self._came.clear()
                await self._came.wait()

    async def infer(self, message: bytes, metadata: Mapping[str, str], until: float) -> bytes:
        self.asked.append(metadata)
        self.until.append(until)
        self._came.set()
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        request = inference_pb2.ModelInferRequest.FromString(message)
        answer = inference_pb2.ModelInferResponse()
        for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True):
            answer.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
            answer.raw_output_contents.append(raw)
        return answer.SerializeToString()


def step_calls(way: Way | None, *, deadline: float = math.inf, waits: Callable[[bool], None] | None = None, **more: Any) -> StepCalls:
    calling = Calling(SHOP, KEY, "/s:7", **more)
    return StepCalls(way, lambda: calling, deadline, asyncio.get_running_loop(), waits, lambda: 100.0)


def call(
    calls: StepCalls,
    function: Any = "ledger",
    inputs: Any = None,
    session: Any = "a",
    outputs: Any = (),
    timeout: Any = None,
    key: Any = None,
) -> Any:
    return calls.call(function, {"x": ONE} if inputs is None else inputs, session, outputs, timeout, key)


# ----------------------------------------------------------------------------------------------------------------- what is asked


async def test_what_goes_along() -> None:
    way = Way()
    found = await call(step_calls(way, tenant="acme", path=("shop/front",), deadline=107.0))
    assert found["x"].tolist() == [1.0]
    (asked,) = way.asked
    assert asked[headernames.FUNCTION] == "shop/ledger"
    assert asked[headernames.SESSION] == "a"
    assert asked[headernames.TENANT] == "acme"
    assert asked[headernames.PATH] == "shop/front,shop/orders"
    assert asked[headernames.IDEMPOTENCY_KEY].startswith(f"{KEY.timestamp_us}-")
    assert way.until == [107.0]


async def test_calls_that_are_made_before_they_are_awaited_run_side_by_side_under_their_own_keys() -> None:
    way = Way(answers=False)
    calls = step_calls(way)
    tasks = [call(calls), call(calls), call(calls, session="b")]
    await way.has(3)
    way.go.set()
    await asyncio.gather(*tasks)
    keys = [asked[headernames.IDEMPOTENCY_KEY] for asked in way.asked]
    again = step_calls(way)
    assert [again._make().next("ledger", session)[1] for session in ("a", "a", "b")] == keys


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"function": "no name"}, "call: function: 'no name' found"),
        ({"function": "orders"}, "call: function: 'shop/orders' found, which is the one that calls"),
        ({"function": "front"}, "call: function: 'shop/front' found, whose step waits"),
        ({"session": 7}, "call: session: int found"),
        ({"inputs": [1]}, "call: inputs: list found"),
        ({"inputs": {7: ONE}}, "call: inputs: dict found"),
        ({"inputs": {"x": [[1], [1, 2]]}}, r"call: inputs\['x'\]: "),
        ({"inputs": {"x": ONE.astype(np.complex64)}}, r"call: inputs\['x'\]: .*complex64"),
        ({"inputs": {"x": np.array([object()])}}, r"call: inputs\['x'\]: "),
        ({"inputs": {"x": asking.Input(ONE, "FP99")}}, r"call: inputs\['x'\]: .*FP99"),
        ({"inputs": {"x": asking.Input(ONE, "INT8")}}, r"call: inputs\['x'\]: .*float32"),
        ({"outputs": "y"}, "call: outputs: 'y' found"),
        ({"outputs": [7]}, "call: outputs: "),
        ({"outputs": None}, "call: outputs: None found"),
        ({"outputs": 7}, "call: outputs: 7 found"),
        ({"outputs": ["\ud800"]}, "call: outputs: "),
        ({"inputs": {"\ud800": ONE}}, "call: inputs"),
        ({"session": "\ud800"}, "call: session: "),
        ({"function": "\ud800"}, "call: function: "),
        ({"key": ""}, "call: key: '' found"),
        ({"key": 7}, "call: key: int found"),
        ({"timeout": 0}, "call: timeout: 0 found"),
        ({"timeout": "1s"}, "call: timeout: '1s' found"),
        ({"timeout": float("nan")}, "call: timeout: nan found"),
    ],
)
async def test_a_wrong_call_names_its_field_and_asks_nobody(wrong: dict[str, Any], says: str) -> None:
    way = Way()
    with pytest.raises(InvalidArgument, match=says):
        call(step_calls(way, path=("shop/front",)), **wrong)
    assert not way.asked


async def test_a_call_that_was_refused_where_it_was_made_takes_no_number() -> None:
    """A handler that catches it makes the next one under the same key, when it is run and when it is run again."""
    way = Way()
    calls = step_calls(way)
    with pytest.raises(InvalidArgument):
        call(calls, inputs={"x": np.array([object()])})
    await call(calls)
    assert way.asked[0][headernames.IDEMPOTENCY_KEY] == step_calls(way)._make().next("ledger", "a")[1]


async def test_a_call_that_is_made_again_after_an_error_is_the_same_call_under_the_handlers_key_and_another_without() -> None:
    class Late(Way):
        async def infer(self, message: bytes, metadata: Mapping[str, str], until: float) -> bytes:
            self.asked.append(metadata)
            raise DormouseError("late", Code.DEADLINE_EXCEEDED)

    for name, count in (("charge", 1), (None, 2)):
        way = Late()
        calls = step_calls(way)
        for _ in range(2):
            with pytest.raises(DormouseError, match="late"):
                await call(calls, timeout=0.5, key=name)
        assert len({asked[headernames.IDEMPOTENCY_KEY] for asked in way.asked}) == count


async def test_after_its_deadline_and_where_no_gateway_is_known_nothing_is_called() -> None:
    way = Way()
    with pytest.raises(DormouseError, match="the step's deadline has passed") as late:
        call(step_calls(way, deadline=99.0))
    assert late.value.code == Code.DEADLINE_EXCEEDED
    with pytest.raises(FailedPrecondition, match="knows no gateway"):
        call(step_calls(None))
    with pytest.raises(FailedPrecondition, match="outside of a step"):
        Context(function="shop/orders", revision="r").call("ledger", {"x": ONE})
    assert not way.asked


# ------------------------------------------------------------------------------------------------------------ it ends with its step


async def test_who_goes_away_cancels_what_the_step_waits_for() -> None:
    way = Way(answers=False)
    calls = step_calls(way)
    task = call(calls)
    await way.has(1)
    calls.gone()
    with pytest.raises(DormouseError, match="went away") as gone:
        await task
    assert (gone.value.code, way.cancelled) == (Code.CANCELLED, 1)
    with pytest.raises(DormouseError, match="went away"):
        call(calls)


async def test_what_a_step_leaves_behind_is_cancelled_and_it_makes_no_further_call() -> None:
    way = Way(answers=False)
    calls = step_calls(way)
    task = call(calls)
    await way.has(1)
    calls.end()
    await asyncio.wait([task])
    assert way.cancelled == 1
    with pytest.raises(FailedPrecondition, match="after the step had ended"):
        call(calls)


async def test_an_async_handler_does_not_call_from_a_thread() -> None:
    way = Way()
    with pytest.raises(FailedPrecondition, match="made from a thread"):
        await asyncio.to_thread(call, step_calls(way))
    assert not way.asked


# -------------------------------------------------------------------------------------------------------------------- in threads


def runner(step: Callable[..., Any], way: Way, *, threads: int = 1) -> HandlerRunner:
    class Orders(Handler):
        inputs = (Tensor("x", "FP32", [1]),)
        outputs = (Tensor("x", "FP32", [1]),)

    Orders.step = step  # type: ignore[method-assign]
    module = types.ModuleType("ordering")
    module.Orders = Orders  # type: ignore[attr-defined]  # a module made by hand
    sys.modules["ordering"] = module
    runtime = PythonRuntime("ordering:Orders", None, function=SHOP, revision="r", stateful=False)
    made = HandlerRunner(runtime, Encoder("orders", runtime.signature), threads=threads, step_limit=60.0)
    made.way = way
    return made


def begin(running: HandlerRunner, path: childcalls.Path = ()) -> "asyncio.Future[Outcome]":
    request = Request()
    request.outputs, request.inputs, request.path = (0,), {"x": ONE}, path
    request.identify = lambda: (KEY, b"asked")
    done: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
    running.run(request, {}, 0, False, False, done.set_result, math.inf)
    return done


async def test_steps_that_wait_for_their_calls_leave_their_threads_places_to_others() -> None:
    way = Way(answers=False)
    running = runner(lambda self, inputs, state, ctx: ctx.call("ledger", inputs, "a"), way)
    steps = [begin(running) for _ in range(5)]
    await way.has(5)
    way.go.set()
    for outcome in await asyncio.gather(*steps):
        assert isinstance(outcome, Ran)
    assert running.quiet
    level = running._slots._level(0)
    assert (level.running, level.waiting, len(level.due)) == (0, 0, 0), "every place is free again"


async def test_one_that_runs_keeps_its_place_until_it_has_ended() -> None:
    go, begun = threading.Event(), threading.Semaphore(0)

    def step(self: Any, inputs: Any, state: Any, ctx: Context) -> Any:
        begun.release()
        go.wait(10)
        return inputs

    running = runner(step, Way())
    steps = [begin(running) for _ in range(3)]
    assert await asyncio.to_thread(begun.acquire, timeout=10)
    level = running._slots._level(0)
    assert (level.running, len(level.due)) == (1, 2)
    deeper = begin(running, ("shop/front",))
    assert await asyncio.to_thread(begun.acquire, timeout=10), "for whom another step waits there is a place all the same"
    assert not begun.acquire(blocking=False)
    go.set()
    await asyncio.gather(*steps, deeper)


async def test_a_call_that_fails_is_the_steps_own_answer_with_its_code() -> None:
    class Refusing(Way):
        async def infer(self, message: bytes, metadata: Mapping[str, str], until: float) -> bytes:
            raise DormouseError("function shop/ledger not found", Code.NOT_FOUND)

    outcome = await begin(runner(lambda self, inputs, state, ctx: ctx.call("ledger", inputs), Refusing()))
    assert isinstance(outcome, Failed)
    assert (outcome.error.code, outcome.error.message) == (Code.NOT_FOUND, "call of shop/ledger: function shop/ledger not found")


async def test_a_step_that_streams_calls_between_its_parts() -> None:
    def step(self: Any, inputs: Any, state: Any, ctx: Context) -> Any:
        for _ in range(2):
            yield ctx.call("ledger", inputs, "a")

    async def step_async(self: Any, inputs: Any, state: Any, ctx: Context) -> Any:
        for _ in range(2):
            yield await ctx.call("ledger", inputs, "a")

    asked = []
    for each in (step, step_async):
        way = Way()
        assert isinstance(await begin(runner(each, way)), Ran)
        asked.append([one[headernames.IDEMPOTENCY_KEY] for one in way.asked])
    assert asked[0] == asked[1]
    assert len(set(asked[0])) == 2


# ------------------------------------------------------------------------------------------------------------------- to the gateway


class Scripted(grpc.GenericRpcHandler):
    """Answers as it is told: (code, whether it signs), or None for OK."""

    def __init__(self, answers: list[tuple[grpc.StatusCode, bool] | None]) -> None:
        self.answers = answers
        self.keys: list[str] = []

    def service(self, handler_call_details: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(self._serve)

    async def _serve(self, message: bytes, context: Any) -> bytes:
        self.keys.append(dict(context.invocation_metadata())["key"])
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if answer is None:
            return message
        await context.abort(answer[0], "so it is", port.SIGNED if answer[1] else ())
        return b""


@pytest.fixture
async def scripted(tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    servers: list[grpc.aio.Server] = []
    ways: list[Gateways] = []

    async def start(*answers: tuple[grpc.StatusCode, bool] | None) -> tuple[Scripted, Gateways]:
        server, handler = grpc.aio.server(), Scripted(list(answers))
        server.add_generic_rpc_handlers((handler,))
        address = f"unix:{tmp_path}/{len(servers)}.sock"
        server.add_insecure_port(address)
        await server.start()
        servers.append(server)
        ways.append(Gateways(address, "shop/orders/w", "s"))
        return handler, ways[-1]

    yield start
    for way in ways:
        await way.close()
    for server in servers:
        await server.stop(0)


async def test_an_error_that_no_gateway_signed_is_asked_again_under_the_same_key(scripted: Callable[..., Any]) -> None:
    handler, way = await scripted((grpc.StatusCode.UNAVAILABLE, False), (grpc.StatusCode.CANCELLED, False), None)
    assert await way.infer(b"m", {"key": "k"}, way._monotonic() + 10) == b"m"
    assert handler.keys == ["k"] * 3


async def test_a_gateways_own_word_is_the_answer(scripted: Callable[..., Any]) -> None:
    handler, way = await scripted((grpc.StatusCode.UNAVAILABLE, True))
    with pytest.raises(DormouseError, match="so it is") as refused:
        await way.infer(b"m", {"key": "k"}, way._monotonic() + 10)
    assert (refused.value.code, handler.keys) == (Code.UNAVAILABLE, ["k"])


async def test_a_gateway_that_does_not_answer_is_asked_until_the_time_is_over_and_no_longer(tmp_path: Path) -> None:
    way = Gateways(f"unix:{tmp_path}/none.sock", "shop/orders/w", "s")
    with pytest.raises(DormouseError, match="did not answer") as late:
        await way.infer(b"m", {}, way._monotonic() + 0.2)
    assert late.value.code == Code.DEADLINE_EXCEEDED
    await way.close()


def test_the_method_is_the_gateways() -> None:
    assert gateways.INFER == port.INFER


# --------------------------------------------------------------------------------------------------------------------- who may call


class Seen:
    def __init__(self, workers: Mapping[str, bytes]) -> None:
        self.workers = {name: types.SimpleNamespace(calls=calls) for name, calls in workers.items()}


class Store:
    """The watched table, and what the store says now; None: it does not answer."""

    def __init__(self, watched: Mapping[str, bytes], now: Mapping[str, bytes] | None) -> None:
        self.watched, self.now = watched, now
        self.reads = 0

    def function(self, label: str) -> Any:
        return Seen(self.watched) if label == "shop/orders" else None

    async def read(self, label: str) -> Any:
        self.reads += 1
        if self.now is None:
            raise StoreError("away")
        return types.SimpleNamespace(function=Seen(self.now) if label == "shop/orders" else None)


def callers(store: Store) -> port.Callers:
    return port.Callers(store, types.SimpleNamespace(function=store.read, stranger=store.read))  # type: ignore[arg-type]


MINE = {"w": childcalls.shown("secret"), "old": b""}


async def test_a_worker_is_known_by_what_is_watched_and_else_by_a_read() -> None:
    known = Store(MINE, None)
    assert await callers(known).proved("shop/orders/w", "secret") == "shop/orders"
    assert known.reads == 0
    late = Store({}, MINE)
    assert await callers(late).proved("shop/orders/w", "secret") == "shop/orders"
    assert late.reads == 1


WRONGS = {
    ("shop/orders/w", "guess"): Code.UNAUTHENTICATED,
    ("shop/orders/w", ""): Code.UNAUTHENTICATED,
    ("shop/orders/old", ""): Code.UNAUTHENTICATED,
    ("", ""): Code.UNAUTHENTICATED,
    ("w", "secret"): Code.UNAUTHENTICATED,
    ("Shop/orders/w", "secret"): Code.UNAUTHENTICATED,
    ("bank/ledger/w", "secret"): Code.UNAVAILABLE,
    ("shop/orders/gone", "secret"): Code.UNAVAILABLE,
}


@pytest.mark.parametrize(("claimed", "secret"), WRONGS)
async def test_who_is_not_that_worker_calls_nobody(claimed: str, secret: str) -> None:
    """Who is not known is not refused for good: it may be about to end, and its step about to run elsewhere."""
    with pytest.raises(DormouseError, match=headernames.WORKER) as refused:
        await callers(Store(MINE, MINE)).proved(claimed, secret)
    assert refused.value.code == WRONGS[claimed, secret]


async def test_negative_control_believed_without_its_proof_it_would_be_let_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(childcalls, "proves", lambda stored, secret: True)
    assert await callers(Store(MINE, MINE)).proved("shop/orders/w", "guess") == "shop/orders"


async def test_where_the_store_does_not_answer_it_is_not_known() -> None:
    with pytest.raises(DormouseError, match="is not known") as unknown:
        await callers(Store({}, None)).proved("shop/orders/w", "secret")
    assert unknown.value.code == Code.UNAVAILABLE


# -------------------------------------------------------------------------------------------------------------------------- places


def full(gate: Gate, level: int) -> int:
    """How many calls of the level it lets in."""
    count = 0
    while gate.open(0.0, level):
        gate.sent(level)
        count += 1
    return count


@pytest.mark.parametrize("levels", [(0, 1, 2), (2, 1, 0)])
def test_calls_of_steps_have_places_of_their_own_and_take_nobodys(levels: tuple[int, ...]) -> None:
    gate = Gate(2)
    assert [full(gate, level) for level in levels] == [2, 2, 2]
    gate.answered(1)
    assert [full(gate, level) for level in levels] == [int(level == 1) for level in levels]
    gate.busy(0.0, 1)
    gate.busy(0.0, 1)
    assert not gate.open(0.0, 1), "for a moment, where nobody comes back"
    gate.answered(0)
    assert gate.open(0.0, 0), "which holds for those calls alone"
    for level, flying in ((0, 1), (2, 2)):
        for _ in range(flying):
            gate.cancelled(level)
    assert gate.idle


def test_negative_control_with_places_for_all_in_common_steps_keep_out_who_calls_directly(monkeypatch: pytest.MonkeyPatch) -> None:
    apart = Gate.at
    monkeypatch.setattr(Gate, "at", lambda gate, level: apart(gate, 0))
    gate = Gate(2)
    assert [full(gate, level) for level in (1, 0)] == [2, 0]


def waiting(gate: Gate, *levels: int) -> list[asyncio.Event]:
    events = [asyncio.Event() for _ in levels]
    for level, event in zip(levels, events, strict=True):
        gate.at(level).room.enter(event)
    return events


def test_a_place_that_becomes_free_wakes_who_waits_for_one_of_its_level() -> None:
    gate = Gate(1)
    for level in (0, 1):
        gate.sent(level)
    direct, other, step = waiting(gate, 0, 0, 1)
    gate.answered(1)
    assert (direct.is_set(), other.is_set(), step.is_set()) == (False, False, True)
    gate.cancelled(0)
    assert (direct.is_set(), other.is_set()) == (True, False)


def test_of_a_worker_that_was_away_all_who_wait_hear() -> None:
    gate = Gate(1)
    gate.sent(1)
    direct, step = waiting(gate, 0, 1)
    gate.broken(0.0, 1)
    assert (direct.is_set(), step.is_set()) == (False, True), "one of them tries"
    gate.sent(1)
    assert not gate.open(9.0, 0), "and nobody beside it"
    gate.cancelled(1)
    assert direct.is_set(), "nor is it anybody's alone to find out"
    (direct,) = waiting(gate, 0)
    gate.sent(1)
    gate.answered(1)
    assert direct.is_set()
    assert gate.open(9.0, 0)
