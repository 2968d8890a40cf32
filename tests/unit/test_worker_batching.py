"""The batcher on a runtime that is a function: what is joined, what fails alone, what is dropped, what is late."""

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from dormouse_core import limits
from dormouse_core.errors import Again, Code, Decoupled, DormouseError, FailedPrecondition, Unavailable
from dormouse_proto import inference_pb2, state_pb2
from dormouse_worker.batches import batching
from dormouse_worker.batches.batching import Batcher, as_error
from dormouse_worker.batches.replies import Encoder
from dormouse_worker.batches.requests import Request
from dormouse_worker.models.signatures import Signature, StateSpec, TensorSpec
from dormouse_worker.sessions import Failed, Outcome, Ran
from dormouse_worker.transport.asgi import error_headers

X = TensorSpec("x", "FP32", (-1, 1), axis=0)
Y = TensorSpec("y", "FP32", (-1, 1))
STATE = StateSpec("state", "stateN", "FP32", (1, -1, 2), 1)


class Fake:
    """y = 10 x; stateN = state + 1. Remembers how many rows each run had."""

    def __init__(self, signature: Signature, run: Callable[[dict[str, np.ndarray]], None] | None = None) -> None:
        self.signature = signature
        self.sizes: list[int] = []
        self._run = run

    def run(self, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        self.sizes.append(len(feeds["x"]))
        if self._run is not None:
            self._run(feeds)
        return [feeds["x"] * np.float32(10), *(feeds[s.input] + np.float32(1) for s in self.signature.states)]

    def stop(self) -> None: ...


class Bench:
    def __init__(self, fake: Fake, **options: Any) -> None:
        self.now = 0.0
        self.fake = fake
        self.batcher = Batcher(
            fake, Encoder("fn", fake.signature), **{"delay": 0.0, "step_limit": 10.0, "monotonic": lambda: self.now} | options
        )
        self.batcher._average = 0.0  # measured, and short: everything runs on the loop
        self.outcomes: dict[str, Outcome] = {}
        self.twice: list[str] = []
        self.answered = asyncio.Event()

    def call(self, name: str, value: float, *, rows: int = 1, group: tuple[Any, ...] = (), **options: Any) -> Request:
        request = Request()
        request.id, request.rows, request.group, request.outputs = name, rows, group, (0,)
        request.inputs = {"x": np.full((rows, 1), value, np.float32)}
        states = options.get("states", {})
        self.batcher.run(request, states, 1, False, False, lambda o: self.answer(name, o), options.get("deadline", float("inf")))
        return request

    def answer(self, name: str, outcome: Outcome) -> None:
        if name in self.outcomes:  # what is raised here goes to the log: `settle` and `until` tell
            self.twice.append(name)
        self.outcomes[name] = outcome
        self.answered.set()

    async def until(self, name: str) -> None:
        async with asyncio.timeout(10):
            while name not in self.outcomes:
                self.answered.clear()
                await self.answered.wait()
        assert not self.twice, "answered once"

    async def settle(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)
        assert not self.twice, "answered once"

    def reply(self, name: str) -> list[float]:
        outcome = self.outcomes[name]
        assert isinstance(outcome, Ran), outcome
        found = inference_pb2.ModelInferResponse.FromString(outcome.reply)
        assert found.id == name
        return [float(value) for value in np.frombuffer(found.raw_output_contents[0], np.float32)]

    def error(self, name: str) -> tuple[Code, str]:
        outcome = self.outcomes[name]
        assert isinstance(outcome, Failed)
        return outcome.error.code, outcome.error.message


def stateless(run: Callable[[dict[str, np.ndarray]], None] | None = None, max_batch: int = 4, **options: Any) -> Bench:
    return Bench(Fake(Signature("t", (X,), (Y,), (), max_batch), run), **options)


async def test_what_waits_runs_together_and_each_gets_its_own() -> None:
    bench = stateless()
    for n in range(6):
        bench.call(f"c{n}", n)
    await bench.settle()
    assert bench.fake.sizes == [4, 2]
    assert [bench.reply(f"c{n}") for n in range(6)] == [[10.0 * n] for n in range(6)]


async def test_rows_count_not_calls() -> None:
    bench = stateless()
    for n, rows in enumerate([3, 1, 2, 3]):
        bench.call(f"c{n}", n, rows=rows)
    await bench.settle()
    assert bench.fake.sizes == [4, 2, 3]
    assert bench.reply("c3") == [30.0] * 3


async def test_groups_do_not_mix_and_take_turns() -> None:
    bench = stateless()
    for n in range(12):
        bench.call(f"c{n}", n, group=("odd",) if n % 2 else ())
    await bench.settle()
    assert bench.fake.sizes == [4, 1, 1, 2, 2, 4], "the odd ones are a form that was not seen before"
    assert all(bench.reply(f"c{n}") == [10.0 * n] for n in range(12))


async def test_a_failing_row_fails_alone() -> None:
    def run(feeds: dict[str, np.ndarray]) -> None:
        if (feeds["x"] == 2).any():
            raise ValueError("no two")

    bench = stateless(run)
    for n in range(4):
        bench.call(f"c{n}", n)
    await bench.settle()
    assert bench.fake.sizes == [4, 1, 1, 1, 1]
    assert [bench.reply(f"c{n}") for n in (0, 1, 3)] == [[0], [10], [30]]
    assert bench.error("c2") == (Code.INTERNAL, "ValueError: no two")


class Wrong:
    """Calls whose answers cannot be given, in each place where one is: alone, joined, again one by one, dropped; on the loop and off it."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.raised = 0

    def call(self, value: float, *, group: tuple[Any, ...] = (), deadline: float = float("inf")) -> None:
        request = Request()
        request.id, request.rows, request.group, request.outputs = "wrong", 1, group, (0,)
        request.inputs = {"x": np.full((1, 1), value, np.float32)}
        self.bench.batcher.run(request, {}, 1, False, False, self._answer, deadline)

    def _answer(self, outcome: Outcome) -> None:
        self.raised += 1
        raise RuntimeError("nobody can be told")


@pytest.mark.parametrize("inline", [True, False])
async def test_an_answer_that_cannot_be_given_keeps_nobody_elses(inline: bool) -> None:
    """Nor does it keep those who wait behind it from being run."""

    def run(feeds: dict[str, np.ndarray]) -> None:
        if (feeds["x"] == 2).any():
            raise ValueError("no two")

    bench = stateless(run)
    bench.batcher._average = 0.0 if inline else 1.0
    bench.batcher._slow = not inline
    wrong = Wrong(bench)
    wrong.call(0, deadline=-1.0)  # dropped where it is gathered
    wrong.call(1)  # joined with the next
    bench.call("beside it", 1)
    wrong.call(0, group=("long",))  # the first two of a form: a trial
    bench.call("in its trial", 3, group=("long",))
    wrong.call(2, group=("fails",))  # fails together, then by itself
    bench.call("fails beside it", 2, group=("fails",))
    bench.call("behind it", 4, group=("last",))
    for name in ("beside it", "in its trial", "fails beside it", "behind it"):
        await bench.until(name)
    assert [bench.reply(name) for name in ("beside it", "in its trial", "behind it")] == [[10.0], [30.0], [40.0]]
    assert bench.error("fails beside it") == (Code.INTERNAL, "ValueError: no two")
    assert wrong.raised == 4


class NoText(DormouseError):
    """Of a handler's own, as all below: its fields are not what they should be."""

    def __init__(self) -> None: ...


class NoCode(DormouseError):
    def __init__(self) -> None:
        super().__init__("text")
        self.code = "code"  # type: ignore[assignment]


class NoAgain(Unavailable):
    def __init__(self) -> None: ...


@pytest.mark.parametrize(
    ("raised", "code", "text"),
    [
        (ValueError("no"), Code.INTERNAL, "ValueError: no"),
        (FailedPrecondition("not now"), Code.FAILED_PRECONDITION, "not now"),
        (DormouseError("own", Code.OUT_OF_RANGE), Code.OUT_OF_RANGE, "own"),
        (DormouseError("all is well", Code.OK), Code.INTERNAL, "all is well"),
        (Unavailable("nothing ran", Again.NOT_MINE), Code.INTERNAL, "nothing ran"),
        (Unavailable("away"), Code.UNAVAILABLE, "away"),
        (Decoupled("make it a stream"), Code.INVALID_ARGUMENT, "make it a stream"),
        (NoText(), Code.INTERNAL, "NoText: "),
        (NoCode(), Code.INTERNAL, "NoCode: text"),
        (NoAgain(), Code.INTERNAL, "NoAgain: "),
    ],
    ids=lambda found: type(found).__name__ if isinstance(found, Exception) else "",
)
def test_what_a_handler_raises_is_told_by_a_sound_code_and_text_alone(raised: Exception, code: Code, text: str) -> None:
    """Anything else would end the answer instead of the call, or say what only a worker may say."""
    told = as_error(raised)
    headers = dict(error_headers(told))
    assert (told.code, told.message) == (code, text)
    assert (headers[b"grpc-status"], headers[b"grpc-message"]) == (b"%d" % code, text.encode())
    assert not headers.keys() & {b"dormouse-again", b"dormouse-decoupled"}


async def test_calls_that_nobody_waits_for_are_not_run() -> None:
    bench = stateless()
    bench.now = 5.0
    bench.call("late", 1, deadline=4.0)
    gone = bench.call("gone", 2)
    gone.call = type("Call", (), {"gone": True})()  # type: ignore[assignment]  # all that a batcher asks of a call
    bench.call("here", 3)
    await bench.settle()
    assert bench.fake.sizes == [1]
    assert bench.error("late")[0] is Code.DEADLINE_EXCEEDED
    assert bench.error("gone")[0] is Code.DEADLINE_EXCEEDED
    assert bench.reply("here") == [30.0]
    assert bench.batcher.figures.dropped == 2


async def test_a_model_that_does_not_batch_is_found_out() -> None:
    class Mean(Fake):
        def run(self, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
            super().run(feeds)
            return [feeds["x"].mean(axis=0, keepdims=True)]

    bench = Bench(Mean(Signature("t", (X,), (Y,), (), 4)))
    for n in range(4):
        bench.call(f"c{n}", n)
    await bench.settle()
    assert [bench.reply(f"c{n}") for n in range(4)] == [[n] for n in range(4)], "never somebody else's mean"
    bench.call("c4", 4)
    bench.call("c5", 5)
    await bench.settle()
    assert bench.fake.sizes[-2:] == [1, 1], "and not tried again"


async def test_states_are_joined_along_their_axis_and_copied() -> None:
    bench = Bench(Fake(Signature("t", (X,), (Y,), (STATE,), 4)))
    before = {name: np.full((1, 1, 2), n, np.float32) for n, name in enumerate("abc")}
    for n, name in enumerate("abc"):
        bench.call(name, n, states={"state": before[name]})
    await bench.settle()
    assert bench.fake.sizes == [3]
    for n, name in enumerate("abc"):
        outcome = bench.outcomes[name]
        assert isinstance(outcome, Ran)
        assert outcome.states["state"].tolist() == [[[n + 1, n + 1]]]
        assert outcome.states["state"].base is None, "a view would keep the whole batch alive"
        assert before[name].tolist() == [[[n, n]]], "the session's own array is as it was"


async def test_states_of_different_shapes_do_not_mix() -> None:
    varies = StateSpec("state", "stateN", "FP32", (-1, -1), 0)
    bench = Bench(Fake(Signature("t", (X,), (Y,), (varies,), 4)))
    for name, width in (("a", 1), ("b", 2), ("c", 1), ("d", 1), ("e", 1)):
        bench.call(name, 1, states={"state": np.zeros((1, width), np.float32)})
    await bench.settle()
    assert bench.fake.sizes == [1, 1, 2, 1, 2]


# ------------------------------------------------------------------------------------------------------------ forms of calls


async def test_the_first_two_calls_of_a_form_run_alone_and_then_together_unseen() -> None:
    bench = stateless()
    for n in range(8):
        bench.call(f"c{n}", n, group=("long",))
    await bench.settle()
    assert bench.fake.sizes == [1, 1, 2, 4, 2]
    assert [bench.reply(f"c{n}") for n in range(8)] == [[10.0 * n] for n in range(8)]
    assert bench.batcher.figures.runs == 4, "what nobody is answered by counts for nobody"


class Mixing(Fake):
    """Rows depend on each other: y = x less the mean of all."""

    def run(self, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        super().run(feeds)
        return [feeds["x"] - feeds["x"].mean(axis=0, keepdims=True)]


async def test_a_form_whose_rows_depend_on_each_other_is_not_joined() -> None:
    bench = Bench(Mixing(Signature("t", (X,), (Y,), (), 4)))
    for n in range(8):
        bench.call(f"c{n}", n, group=("long",))
    await bench.settle()
    assert [bench.reply(f"c{n}") for n in range(8)] == [[0.0]] * 8
    assert bench.fake.sizes == [1, 1, 2, *[1] * 6]
    for n in range(4):
        bench.call(f"other {n}", n)
    await bench.settle()
    assert bench.fake.sizes[-1] == 4, "negative control: a form that counts as shown is joined, and mixed"
    assert bench.reply("other 3") == [1.5]


async def mixing(signature: Signature) -> Bench:
    """Eight calls of a form whose rows depend on each other."""
    bench = Bench(Mixing(signature))
    for n in range(8):
        bench.call(f"c{n}", n, group=("long",))
    await bench.settle()
    assert [bench.reply(f"c{n}") for n in range(8)] == [[0.0]] * 8
    return bench


def signature(alone: Mapping[bytes, str]) -> Signature:
    forms = [state_pb2.Batching.Form(key=key, why=why) for key, why in alone.items()]
    return Signature("t", (X,), (Y,), (), 4, batching=state_pb2.Batching(key="kept", rows=4, alone=forms))


async def test_what_one_worker_found_of_a_form_another_does_not_try_again() -> None:
    first = await mixing(signature({}))
    found = first.batcher.forms.alone
    assert list(found.values()) == ['x [1,1]: the output "y" of a call differs when another call\'s rows run with it']
    assert (await mixing(signature(found))).fake.sizes == [1] * 8
    assert (await mixing(signature({b"another": "why"}))).fake.sizes == [1, 1, 2, *[1] * 6], "negative control: where it is not known"


async def test_what_another_worker_found_holds_also_against_what_was_joined_already() -> None:
    """Two calls whose numbers happened to show nothing; another worker's did."""
    bench = stateless()
    for n in range(4):
        bench.call(f"c{n}", n, group=("long",))
    await bench.settle()
    assert bench.fake.sizes == [1, 1, 2, 2]
    found = state_pb2.Batching.Form(key=bench.batcher.forms.of(("long",)).key, why="why")
    assert bench.batcher.forms.learn([found])
    assert not bench.batcher.forms.learn([found]), "it is news once"
    for n in range(4, 8):
        bench.call(f"c{n}", n, group=("long",))
    await bench.settle()
    assert bench.fake.sizes[4:] == [1] * 4


async def test_a_worker_says_what_it_found_and_not_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "FORMS_KEPT", 2)
    told: list[int] = []
    bench = Bench(Mixing(signature({})))
    forms = bench.batcher.forms
    forms.on_found = lambda: told.append(len(forms.alone))
    for group in ("a", "b", "c"):
        for n in range(2):
            bench.call(f"{group}{n}", n, group=(group,))
    await bench.settle()
    assert told == [1, 2]
    assert forms.of(("c",)).joins is False, "it runs alone all the same"


async def test_a_form_that_is_refused_together_is_not_joined() -> None:
    def run(feeds: dict[str, np.ndarray]) -> None:
        if len(feeds["x"]) > 1:
            raise ValueError("one at a time")

    bench = stateless(run)
    for n in range(6):
        bench.call(f"c{n}", n, group=("long",))
    await bench.settle()
    assert bench.fake.sizes == [1, 1, 2, *[1] * 4]
    assert bench.reply("c5") == [50.0]


async def test_a_row_is_as_long_and_as_large_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """A joined run takes a second at most, by what rows took, and the bytes of the experiment's largest run."""
    bench = stateless(lambda feeds: setattr(bench, "now", bench.now + 0.4 * len(feeds["x"])), max_batch=8)
    bench.batcher._average, slow = 0.0, "SLOW_SECONDS"
    monkeypatch.setattr(batching, slow, 100.0)
    monkeypatch.setattr(batching, "INLINE_SECONDS", 100.0)
    for n in range(20):
        bench.call(f"c{n}", n)
    await bench.settle()
    assert bench.fake.sizes == [8, *[2] * 6]
    monkeypatch.setattr(limits, "BATCHING_BYTES", 12)
    small = stateless(max_batch=8)
    for n in range(8):
        small.call(f"c{n}", n)
    await small.settle()
    assert small.fake.sizes == [3, 3, 2]


class Slow(Fake):
    """0.05 s a row, unless it is stopped."""

    stopped = False

    def run(self, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        self.stopped = False
        until = time.monotonic() + 0.05 * len(feeds["x"])
        while time.monotonic() < until:
            if self.stopped:
                raise RuntimeError("terminated")
            time.sleep(0.002)
        return super().run(feeds)

    def stop(self) -> None:
        self.stopped = True


async def test_company_makes_nobody_late() -> None:
    """Each takes a tenth of its limit alone; sixteen together would pass it, be refused, and look like a hang."""
    bench = Bench(Slow(Signature("t", (X,), (Y,), (), 16)), step_limit=0.5, monotonic=time.monotonic)
    bench.batcher._average = 1.0
    for n in range(16):
        bench.call(f"c{n}", n)
    for n in range(16):
        await bench.until(f"c{n}")
        assert bench.batcher.runs.oldest(time.monotonic()) < 0.4
    assert [bench.reply(f"c{n}") for n in range(16)] == [[10.0 * n] for n in range(16)]


async def test_a_run_that_took_too_long_is_late_even_if_it_ended() -> None:
    bench = stateless(lambda feeds: setattr(bench, "now", bench.now + 11.0))
    bench.call("slow", 1)
    await bench.settle()
    assert bench.error("slow") == (Code.DEADLINE_EXCEEDED, "the step ran longer than 10 s (timeouts.step)")


async def test_a_slow_model_leaves_the_loop() -> None:
    loop = asyncio.get_running_loop()
    threads: list[bool] = []

    def run(feeds: dict[str, np.ndarray]) -> None:
        try:
            threads.append(asyncio.get_running_loop() is not loop)
        except RuntimeError:
            threads.append(True)
        bench.now += 0.06

    bench = stateless(run, max_batch=1)
    for name in ("first", "second"):
        bench.call(name, 1)
        await bench.until(name)
    assert threads == [False, True], "the first was expected to be short; one slow run is enough"


async def test_the_oldest_run_tells_whether_the_worker_hangs() -> None:
    bench = stateless()
    runs = bench.batcher.runs
    token = runs.begin(0.0)
    later = runs.begin(9.0)
    assert not runs.hangs(11.0)
    assert runs.hangs(11.1)
    runs.end(token)
    assert not runs.hangs(11.1)
    assert runs.oldest(11.0) == pytest.approx(2.0)
    runs.end(later)
    assert runs.oldest(11.0) == 0.0


async def test_a_delay_waits_for_company_but_not_for_a_full_batch() -> None:
    bench = stateless(delay=0.005)
    for n in range(4):
        bench.call(f"c{n}", n)
    await bench.settle()
    assert bench.fake.sizes == [4]
    bench.call("alone", 7)
    await bench.settle()
    assert bench.fake.sizes == [4], "it waits"
    bench.now = 1.0
    await bench.until("alone")
    assert bench.fake.sizes == [4, 1]
