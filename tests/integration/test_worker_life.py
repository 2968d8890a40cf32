"""A real worker and a real etcd: sessions, crashes, hangs, drains, handlers, and models that do not load."""

import json
import os
import signal
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from dormouse_proto import control_pb2, control_pb2_grpc, inference_pb2
from dormouse_testing import models
from dormouse_testing.etcd_server import EtcdServer
from dormouse_testing.workers import Client, WorkerProcess, give_shards, outputs_of, patient, registered, request_of, spec_file

COUNTER: dict[str, Any] = {
    "runtime": "onnx",
    "model": {"uri": "file://counter.onnx"},
    "sessions": {"states": [{"input": "state", "output": "stateN", "shape": [-1, 4], "batchAxis": 0}], "shards": 8},
}
ONE = np.ones((1, 4), np.float32)
Start = Callable[..., WorkerProcess]


@pytest.fixture
def start(tmp_path: Path, etcd_server: EtcdServer, installation: str) -> Iterator[Start]:
    """start(spec) -> a ready worker of tests/fn. More of them: other instances."""
    running: list[WorkerProcess] = []

    def begin(spec: dict[str, Any], instance: str = "first") -> WorkerProcess:
        path = spec_file(tmp_path, spec, etcd_server.endpoint, installation=installation)
        worker = WorkerProcess(tmp_path, "--spec", str(path), instance=instance)
        running.append(worker)
        return worker.__enter__()

    yield begin
    for worker in running:
        worker.kill()  # a drain without a leader would take its three seconds


@pytest.fixture
def own(etcd_server: EtcdServer, installation: str) -> Callable[..., str]:
    return lambda besides=(): give_shards(etcd_server.endpoint, installation, 8, besides=besides)


def handler(folder: Path, text: str) -> dict[str, Any]:
    (folder / "handlers").mkdir(exist_ok=True)
    (folder / "handlers" / "mine.py").write_text(textwrap.dedent(text))
    return {"runtime": "python", "model": {"uri": "file://handlers"}, "handler": "mine:Mine"}


def fails(call: Callable[[], Any]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as raised:
        call()
    return raised.value.code(), raised.value.details()


# ---------------------------------------------------------------------------------------------------------------------- sessions


def test_sessions_of_many_callers(start: Start, own: Callable[..., str], tmp_path: Path) -> None:
    models.counter(tmp_path / "counter.onnx")
    worker = start(COUNTER)
    own()
    with worker.client() as client, ThreadPoolExecutor(16) as pool:

        def run(n: int) -> None:
            for step in range(1, 11):
                array = np.full((1, 4), n, np.float32)
                assert patient(lambda: client.step(array, f"s{n}")).tolist() == [[n * step] * 4]  # noqa: B023

        list(pool.map(run, range(40)))


def test_the_wire_of_sessions(start: Start, own: Callable[..., str], tmp_path: Path) -> None:
    models.counter(tmp_path / "counter.onnx")
    worker = start(COUNTER)
    own()
    with worker.client() as client:
        patient(lambda: client.step(ONE, "warm"))

        def sequence(value: Any, **flags: bool) -> inference_pb2.ModelInferRequest:
            request = request_of("fn", x=ONE)
            kind = {int: "int64_param", str: "string_param"}[type(value)]
            setattr(request.parameters["sequence_id"], kind, value)
            for name, flag in flags.items():
                request.parameters[name].bool_param = flag
            return request

        def step(value: Any, metadata: tuple[tuple[str, str], ...] = (), **flags: bool) -> float:
            return float(outputs_of(client.infer(sequence(value, **flags), metadata))["y"][0, 0])

        # Triton's sequences: 7 and "7" are two; a start begins anew; an end is an end.
        assert [step(7, sequence_start=True), step("7", sequence_start=True), step(7), step(7)] == [1, 1, 2, 3]
        assert step(7, sequence_start=True) == 1
        assert step(7, sequence_end=True) == 2
        code, text = fails(lambda: step(7))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert "must specify the START flag on the first request of the sequence" in text
        # No session at all.
        code, text = fails(lambda: client.infer(request_of("fn", x=ONE)))
        assert (code, text) == (
            grpc.StatusCode.INVALID_ARGUMENT,
            "inference request to model 'fn' must specify a non-zero or non-empty correlation ID",
        )
        unsigned = request_of("fn", x=ONE)
        unsigned.parameters["sequence_id"].uint64_param = 7
        code, text = fails(lambda: client.infer(unsigned))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert "uint64_param" in text
        code, text = fails(lambda: step("x" * 129, sequence_start=True))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert "129" in text
        # Metadata and message disagree; one header twice.
        code, text = fails(lambda: step(7, (("dormouse-session", "other"),)))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert "'other'" in text
        code, text = fails(lambda: client.infer(request_of("fn", x=ONE), [("dormouse-session", "a"), ("dormouse-session", "b")]))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert "dormouse-session" in text
        code, text = fails(lambda: client.infer(request_of("fn", x=ONE), [("dormouse-function", "tests/other")]))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        # State tensors are not a caller's business, and one step is one row.
        code, text = fails(lambda: client.infer(request_of("fn", x=ONE, state=ONE), [("dormouse-session", "a")]))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert "'state' is a state" in text
        code, text = fails(lambda: client.step(np.ones((2, 4), np.float32), "a"))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        # A key that comes again gets its kept reply; with another body it is refused.
        key = (("dormouse-session", "keyed"), ("dormouse-idempotency-key", "k1"))
        first = client.infer(request_of("fn", x=ONE), key)
        assert client.infer(request_of("fn", x=ONE), key) == first
        code, text = fails(lambda: client.infer(request_of("fn", x=2 * ONE), key))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert client.step(ONE, "keyed").tolist() == [[2] * 4]
        # Routed for another life of this name.
        code, _ = fails(lambda: client.infer(request_of("fn", x=ONE), [("dormouse-session", "a"), ("dormouse-uid", "uid-2")]))
        assert code is grpc.StatusCode.UNAVAILABLE


def test_step_count_and_refusals_are_in_metadata(start: Start, own: Callable[..., str], tmp_path: Path) -> None:
    models.counter(tmp_path / "counter.onnx")
    worker = start(COUNTER)
    with worker.client() as client:
        call = client.stub.ModelInfer.future(request_of("fn", x=ONE), metadata=[("dormouse-session", "a")], timeout=20)
        assert call.code() is grpc.StatusCode.UNAVAILABLE
        assert "not-mine" in str(call.initial_metadata()) + str(call.trailing_metadata())
        own()
        patient(lambda: client.step(ONE, "a"))
        call = client.stub.ModelInfer.future(request_of("fn", x=ONE), metadata=[("dormouse-session", "a")], timeout=20)
        assert ("dormouse-step", "2") in [tuple(pair) for pair in call.initial_metadata()]


def test_two_states_are_paired_by_name(start: Start, own: Callable[..., str], tmp_path: Path) -> None:
    models.two_states(tmp_path / "two.onnx")
    states = [
        {"input": "cache", "output": "cache_next", "shape": [-1, 1], "batchAxis": 0},
        {"input": "cache_len", "output": "cache_len_next", "shape": [-1, 1], "batchAxis": 0},
    ]
    worker = start({"runtime": "onnx", "model": {"uri": "file://two.onnx"}, "sessions": {"states": states, "shards": 8}})
    own()
    with worker.client() as client:
        one = np.ones((1, 1), np.float32)
        found = [patient(lambda: client.step(one, "s")).tolist() for _ in range(3)]
    assert found == [[[1, -1]], [[2, -2]], [[3, -3]]]


def test_a_handler_with_one_more_state(start: Start, own: Callable[..., str], tmp_path: Path) -> None:
    """11.O7: v1 has `sum`; v2 has `count` too, and reads v1; then back to v1, which reads v2."""
    text = """
        import numpy as np
        from dormouse import Handler, State, Tensor

        class Mine(Handler):
            inputs = [Tensor("x", "FP32", [1])]
            outputs = [Tensor("y", "FP32", [2])]
            states = [State("sum", "FP32", [1])%s]

            def step(self, inputs, state, ctx):
                state["sum"] = state["sum"] + inputs["x"]
                if "count" in state:
                    state["count"] = state["count"] + 1
                return {"y": np.concatenate([state["sum"], state.get("count", np.zeros(1, np.float32))])}
    """
    count = ', State("count", "FP32", [1], initial=np.full(1, 10, np.float32)%s)'
    one = np.ones(1, np.float32)
    owners: list[str] = []

    def run(version: str, states: str) -> Client:
        for worker in running:
            worker.kill()
        accepts = [other for other in ("v1", "v2", "v3") if other != version]
        spec = handler(tmp_path, text % states) | {"sessions": {"shards": 8, "stateVersion": version, "accepts": accepts}}
        running.append(start(spec, f"{version}-{len(running)}"))
        owners.append(own(owners))
        return running[-1].client()

    running: list[WorkerProcess] = []
    with run("v1", "") as client:
        assert patient(lambda: client.step(one, "s")).tolist() == [1, 0]
    with run("v2", count % ', when_missing="initial"') as client:
        assert patient(lambda: client.step(one, "s")).tolist() == [2, 11]
        assert client.step(one, "s").tolist() == [3, 12]
    with run("v1", "") as client:
        assert patient(lambda: client.step(one, "s")).tolist() == [4, 0]
    with run("v3", count % "") as client:
        patient(lambda: client.step(one, "another"))
        code, details = fails(lambda: client.step(one, "s"))
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        assert 'state "count"' in details
        request = request_of("fn", x=one)
        request.parameters["sequence_start"].bool_param = True
        assert outputs_of(client.infer(request, [("dormouse-session", "s")]))["y"].tolist() == [1, 11]


# ----------------------------------------------------------------------------------------------------------------- crash and hang


def test_a_killed_child_is_replaced_and_sessions_go_on(start: Start, own: Callable[..., str], tmp_path: Path) -> None:
    models.counter(tmp_path / "counter.onnx")
    worker = start(COUNTER)
    name = own()
    with worker.client() as client:
        for _ in range(3):
            patient(lambda: client.step(ONE, "s"))
        old = worker.child
        os.kill(old, signal.SIGKILL)
        assert own([name]) != name
        assert patient(lambda: client.step(ONE, "s")).tolist() == [[4] * 4]
        assert worker.child != old


@pytest.mark.parametrize("kills", [2, 3])
def test_a_child_that_is_killed_while_it_starts_is_replaced(tmp_path: Path, etcd_server: EtcdServer, kills: int) -> None:
    """The first two say nothing of the model: nothing is reported that callers would be refused with."""
    waits = handler(tmp_path, """
        import pathlib, time
        import dormouse
        class Mine(dormouse.Handler):
            inputs = [dormouse.Tensor("x", "FP32", [1])]
            outputs = [dormouse.Tensor("y", "FP32", [1])]
            def setup(self, ctx):
                with (ctx.model / "started").open("a") as file:
                    file.write("x")
                while not (ctx.model / "go").exists():
                    time.sleep(0.01)
            def step(self, inputs, state, ctx):
                return {"y": inputs["x"]}
    """)  # fmt: skip
    started = tmp_path / "handlers" / "started"
    worker = WorkerProcess(tmp_path, "--spec", str(spec_file(tmp_path, waits, etcd_server.endpoint)))
    worker.start()
    try:
        for number in range(1, kills + 1):
            limit = time.monotonic() + 60
            while not started.exists() or len(started.read_text()) < number:
                assert time.monotonic() < limit, worker.log
                time.sleep(0.01)
            os.kill(worker.child, signal.SIGKILL)
        if kills < 3:
            (tmp_path / "handlers" / "go").touch()
            worker.wait_ready()
            assert not worker.reason.exists()
            assert worker.stop() == 0
        else:
            assert worker.process is not None
            assert worker.process.wait(60) == 1
            text = "the worker ended with status -9 before it was ready, 3 times in a row"
            assert json.loads(worker.reason.read_text()) == {"code": 14, "reason": "WorkerFailed", "message": text}
    finally:
        worker.kill()


def test_a_killed_child_never_acknowledges_half(start: Start, own: Callable[..., str], tmp_path: Path) -> None:
    """Callers in a closed loop with keys of their own; the child is killed in the middle. Sent again, each step counts once."""
    models.counter(tmp_path / "counter.onnx")
    worker = start(COUNTER)
    name = own()
    stop = threading.Event()
    steps: dict[int, int] = dict.fromkeys(range(8), 0)
    ended: list[int] = []
    statuses: list[grpc.StatusCode] = []

    def run(n: int) -> None:
        count = 0
        with worker.client() as client:
            while not stop.is_set():
                key = (("dormouse-session", f"s{n}"), ("dormouse-idempotency-key", f"{n}-{count}"))

                def call(key: Any = key, client: Client = client) -> Any:
                    try:
                        return client.infer(request_of("fn", x=ONE), key)
                    except grpc.RpcError as error:
                        statuses.append(error.code())
                        raise

                reply = patient(call)
                count += 1
                assert outputs_of(reply)["y"][0, 0] == count
                steps[n] = count
        ended.append(n)

    def stepped(least: dict[int, int]) -> None:
        """Every caller has come so far, or is gone for a reason that the end tells."""
        limit = time.monotonic() + 60
        while any(steps[n] < count for n, count in least.items()) and all(thread.is_alive() for thread in threads):
            assert time.monotonic() < limit, steps
            time.sleep(0.01)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    stepped(dict.fromkeys(steps, 20))
    os.kill(worker.child, signal.SIGKILL)
    own([name])
    stepped({n: count + 2 for n, count in steps.items()})  # one may have been answered before
    stop.set()
    for thread in threads:
        thread.join()
    assert sorted(ended) == list(range(8))
    assert set(statuses) <= {grpc.StatusCode.UNAVAILABLE}


def test_a_step_that_never_returns_is_answered_and_ends_the_child(start: Start, own: Callable[..., str], tmp_path: Path) -> None:
    spec = handler(
        tmp_path,
        """
        import time
        from dormouse_core.handlers import Handler, State, Tensor
        class Mine(Handler):
            inputs = [Tensor("x", "FP32", [1])]
            outputs = [Tensor("y", "FP32", [1])]
            states = [State("sum", "FP32", [1])]
            def step(self, inputs, state, ctx):
                state["sum"] += inputs["x"]
                while inputs["x"][0] < 0:
                    time.sleep(0.01)
                return {"y": state["sum"]}
        """,
    )
    spec |= {"sessions": {"shards": 8}, "timeouts": {"step": "2s"}}
    worker = start(spec)
    name = own()
    with worker.client() as client:
        assert patient(lambda: client.step(np.array([5], np.float32), "s")).tolist() == [5]
        old = worker.child
        code, text = fails(lambda: client.step(np.array([-1], np.float32), "s"))
        assert code is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "longer than 2 s (timeouts.step)" in text
        # Others go on meanwhile, on the second thread where there are two CPUs; the session itself waits for the next owner.
        own([name])
        assert patient(lambda: client.step(np.array([2], np.float32), "s")).tolist() == [7], "the late step changed nothing"
        assert worker.child != old
    assert "is killed: a run is over its step limit at 3 probes in a row" in worker.log


def test_an_interpreter_that_hangs_is_killed(start: Start, tmp_path: Path) -> None:
    """A native call that keeps the GIL: Envoy goes on accepting, Python does not answer."""
    spec = handler(
        tmp_path,
        """
        import ctypes
        from dormouse_core.handlers import Handler, Tensor
        class Mine(Handler):
            inputs = [Tensor("x", "FP32", [1])]
            outputs = [Tensor("y", "FP32", [1])]
            def step(self, inputs, state, ctx):
                if inputs["x"][0] < 0:
                    ctypes.PyDLL(None).sleep(60)
                return {"y": inputs["x"]}
        """,
    )
    worker = start({**spec, "timeouts": {"step": "3s"}})
    with worker.client() as client:
        old = worker.child
        began = time.monotonic()
        code, _ = fails(lambda: client.infer(request_of("fn", x=np.array([-1], np.float32)), timeout=30))
        assert code is grpc.StatusCode.UNAVAILABLE
        assert time.monotonic() - began < 25
        patient(lambda: client.infer(request_of("fn", x=np.array([1], np.float32))))
        assert worker.child != old


def test_a_drain_loses_no_step(start: Start, own: Callable[..., str], tmp_path: Path) -> None:
    """No leader listens: the worker leaves by itself, and the next owner goes on."""
    models.counter(tmp_path / "counter.onnx")
    first = start(COUNTER)
    name = own()
    with first.client() as client:
        for _ in range(5):
            patient(lambda: client.step(ONE, "s"))
    assert first.stop() == 0
    second = start(COUNTER, "second")
    own([name])
    with second.client() as client:
        assert patient(lambda: client.step(ONE, "s")).tolist() == [[6] * 4]


# ---------------------------------------------------------------------------------------------------------------------- handlers

ERRORS = """
    from dormouse_core.errors import ResourceExhausted
    from dormouse_core.handlers import Handler, State, Tensor
    class Mute(Exception):
        def __str__(self):
            raise RuntimeError("no")
    class MuteExit(BaseException):
        __str__ = __repr__ = Mute.__str__
    class Mine(Handler):
        inputs = [Tensor("x", "FP32", [1])]
        outputs = [Tensor("y", "FP32", [1])]
        states = [State("sum", "FP32", [1])]
        {how} step(self, inputs, state, ctx):
            state["sum"] += inputs["x"]
            kind = int(-inputs["x"][0])
            if kind == 1:
                raise ValueError("nothing below zero")
            if kind == 2:
                raise SystemExit(3)
            if kind == 3:
                return {{}}
            if kind == 4:
                return {{"y": "text"}}
            if kind == 5:
                state["sum"] = state["sum"].astype("f8")
            if kind == 6:
                raise ResourceExhausted("too much")
            if kind == 7:
                raise ValueError("a file named \\udcff")
            if kind == 8:
                raise Mute()
            if kind == 9:
                raise MuteExit()
            if kind == 10:
                raise ValueError("雪" * 5000)
            if kind == 11:
                state["\\udcff"] = 1
            return {{"y": state["sum"] * 1}}
"""


@pytest.mark.parametrize("how", ["def", "async def"])
def test_a_handler_that_fails_changes_nothing(start: Start, own: Callable[..., str], tmp_path: Path, how: str) -> None:
    worker = start(handler(tmp_path, ERRORS.format(how=how)) | {"sessions": {"shards": 8}})
    own()
    with worker.client() as client:
        assert patient(lambda: client.step(np.array([1], np.float32), "s")).tolist() == [1]
        expected = {
            1: "nothing below zero", 2: "SystemExit", 3: "y are declared", 4: "FP32", 5: "float64", 7: "a file named \\udcff",
            8: "Mute, which has no text", 9: "MuteExit, which has no text", 10: "ValueError: 雪雪", 11: "\\udcff, sum",
        }  # fmt: skip
        for kind, word in expected.items():
            code, text = fails(lambda kind=kind: client.step(np.array([-kind], np.float32), "s"))
            assert code is grpc.StatusCode.INTERNAL, kind
            assert word in text
        assert fails(lambda: client.step(np.array([-6], np.float32), "s")) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "too much")
        assert client.step(np.array([1], np.float32), "s").tolist() == [2]


def test_calls_that_nobody_waits_for_are_not_run(start: Start, tmp_path: Path) -> None:
    spec = handler(
        tmp_path,
        """
        import time
        from dormouse_core.handlers import Handler, Tensor
        class Mine(Handler):
            inputs = [Tensor("x", "FP32", [1])]
            outputs = [Tensor("y", "INT64", [1])]
            count = 0
            def step(self, inputs, state, ctx):
                Mine.count += 1
                time.sleep(float(inputs["x"][0]))
                return {"y": [Mine.count]}
        """,
    )
    worker = start(spec)
    threads = len(os.sched_getaffinity(0))
    with worker.client() as client:
        request = request_of("fn", x=np.array([3], np.float32))
        calls = [client.stub.ModelInfer.future(request, timeout=0.1) for _ in range(20)]
        calls += [client.stub.ModelInfer.future(request, timeout=30) for _ in range(10)]
        time.sleep(0.3)
        for call in calls[20:]:
            call.cancel()
        began = time.monotonic()
        reply = client.infer(request_of("fn", x=np.array([0], np.float32)))
        assert time.monotonic() - began < 10
        assert outputs_of(reply)["y"][0] <= threads * 2 + 1


def test_busy_beyond_max_concurrency(start: Start, tmp_path: Path) -> None:
    spec = handler(
        tmp_path,
        """
        import asyncio, pathlib
        from dormouse_core.handlers import Handler, Tensor
        class Mine(Handler):
            inputs = [Tensor("x", "FP32", [1])]
            outputs = [Tensor("y", "FP32", [1])]
            async def step(self, inputs, state, ctx):
                while not pathlib.Path(__file__).with_name("go").exists():
                    await asyncio.sleep(0.01)
                return {"y": inputs["x"]}
        """,
    )
    worker = start(spec | {"maxConcurrency": 4})
    with worker.client() as client:
        calls = [client.stub.ModelInfer.future(request_of("fn", x=np.array([1], np.float32)), timeout=60) for _ in range(10)]
        limit = time.monotonic() + 30
        while sum(call.done() for call in calls) < 6 and time.monotonic() < limit:
            time.sleep(0.02)
        (tmp_path / "handlers" / "go").touch()
        codes = [call.code() for call in calls]
        refused = [call for call in calls if call.code() is grpc.StatusCode.UNAVAILABLE]
        assert codes.count(grpc.StatusCode.OK) == 4
        assert len(refused) == 6
        assert all("busy" in str(call.initial_metadata()) + str(call.trailing_metadata()) for call in refused)


# ------------------------------------------------------------------------------------------------------- models that do not load


def broken(folder: Path, spec: dict[str, Any], endpoint: str) -> dict[str, Any]:
    """The reason that the supervisor leaves."""
    worker = WorkerProcess(folder, "--spec", str(spec_file(folder, spec, endpoint)), instance="broken")
    worker.start()
    try:
        assert worker.process is not None
        assert worker.process.wait(60) == 1
        found: dict[str, Any] = json.loads(worker.reason.read_text())
        return found
    finally:
        worker.kill()


def test_models_that_do_not_load(tmp_path: Path) -> None:
    def onnx(name: str, **more: Any) -> dict[str, Any]:
        return broken(tmp_path, {"runtime": "onnx", "model": {"uri": f"file://{name}", **more}}, "127.0.0.1:1")

    (tmp_path / "junk.onnx").write_bytes(b"junk")
    found = onnx("junk.onnx")
    assert (found["code"], found["reason"]) == (9, "ModelInvalid")
    assert "junk.onnx" in found["message"]
    models.write(tmp_path / "new.onnx", [models.node("Identity", ["x"], ["y"])], [("x", 1, ["n"])], [("y", 1, ["n"])], opset=99)
    found = onnx("new.onnx")
    assert found["reason"] == "ModelInvalid"
    assert "99" in found["message"]
    models.double(tmp_path / "good.onnx")
    found = onnx("good.onnx", sha256="0" * 64)
    assert found["reason"] == "ModelInvalid"
    assert "0" * 64 in found["message"]
    assert onnx("absent.onnx")["reason"] == "ModelUnavailable"
    (tmp_path / "link.onnx").symlink_to("/etc/hostname")
    found = onnx("link.onnx")
    assert found["reason"] == "ModelInvalid"
    assert "points outside the model root" in found["message"]
    found = broken(tmp_path, {"runtime": "onnx", "model": {"uri": "https://example.com/m.onnx"}}, "127.0.0.1:1")
    assert (found["code"], found["reason"]) == (14, "ModelUnavailable")
    states = {"states": [{"input": "nope", "output": "stateN", "shape": [-1, 4], "batchAxis": 0}]}
    found = broken(tmp_path, {"runtime": "onnx", "model": {"uri": "file://good.onnx"}, "sessions": states}, "127.0.0.1:1")
    assert found["reason"] == "ModelInvalid"
    assert "'nope'" in found["message"]


def test_handlers_that_do_not_load(tmp_path: Path) -> None:
    found = broken(tmp_path, handler(tmp_path, "raise RuntimeError('not today')"), "127.0.0.1:1")
    assert found["reason"] == "ModelInvalid"
    assert "not today" in found["message"]


# ------------------------------------------------------------------------------------------------------------------------ control


def test_the_control_stream(start: Start, own: Callable[..., str], tmp_path: Path) -> None:
    models.counter(tmp_path / "counter.onnx")
    worker = start(COUNTER)
    name = own()
    orders: list[control_pb2.WorkerOrder] = [
        control_pb2.WorkerOrder(hello=control_pb2.WorkerOrder.Hello(leader="test", report_interval_ms=50))
    ]
    more = threading.Event()

    def requests() -> Iterator[control_pb2.WorkerOrder]:
        yield orders[0]
        more.wait(20)
        yield control_pb2.WorkerOrder(drain=control_pb2.WorkerOrder.Drain())
        yield control_pb2.WorkerOrder(no_taker=control_pb2.WorkerOrder.NoTaker())
        time.sleep(20)

    with worker.client() as client:
        patient(lambda: client.step(ONE, "s"))
        stream = control_pb2_grpc.WorkerStub(client.channel).Control(requests(), timeout=60)
        first = next(stream)
        assert (first.worker, first.uid, first.ready) == (name, "uid-1", True)
        assert [t.name for t in first.metadata.inputs] == ["x"]
        assert [t.name for t in first.metadata.states] == ["state"]
        assert first.metadata.state_version
        for _ in range(3):
            report = next(stream)
            assert not report.HasField("metadata")
        assert (report.calls, report.sessions, report.shards, report.in_flight) == (1, 1, 8, 0)
        assert report.concurrency_seconds > 0
        more.set()
        reports = list(stream)
        assert any(report.draining for report in reports)
        assert reports[-1].shards == 0
    assert worker.process is not None
    assert worker.process.wait(60) == 0


def test_a_worker_that_gave_up_its_shards_leaves_though_callers_come_without_a_pause(
    start: Start, own: Callable[..., str], tmp_path: Path, etcd_server: EtcdServer, installation: str
) -> None:
    """Whoever looks at the map comes as long as the worker's entry stands: the map still names it as the owner."""
    models.counter(tmp_path / "counter.onnx")
    worker = start({**COUNTER, "timeouts": {"step": "20s"}})
    name = own()
    came, ended, refused = threading.Barrier(5), threading.Event(), list[str]()

    def requests() -> Iterator[control_pb2.WorkerOrder]:
        yield control_pb2.WorkerOrder(hello=control_pb2.WorkerOrder.Hello(leader="test", report_interval_ms=50))
        came.wait(30)
        yield control_pb2.WorkerOrder(drain=control_pb2.WorkerOrder.Drain())
        yield control_pb2.WorkerOrder(no_taker=control_pb2.WorkerOrder.NoTaker())
        ended.wait(60)

    def come(session: str) -> None:
        client.step(ONE, session)
        came.wait(30)
        while not ended.is_set() and registered(etcd_server.endpoint, installation, name):
            for _ in range(20):
                try:
                    client.step(ONE, session)
                except grpc.RpcError as error:
                    refused.append(str(error.details()))

    with worker.client() as client, ThreadPoolExecutor() as pool:
        patient(lambda: client.step(ONE, "s"))
        coming = [pool.submit(come, f"s{number}") for number in range(4)]
        stream = control_pb2_grpc.WorkerStub(client.channel).Control(requests(), timeout=45)
        next(report for report in stream if report.draining)
        began = time.monotonic()
        try:
            for _ in stream:
                pass
        finally:
            ended.set()
        assert time.monotonic() - began < 5
        for each in coming:
            each.result()
    assert refused
    assert worker.process is not None
    assert worker.process.wait(60) == 0


def test_a_drain_for_which_nobody_finds_a_taker_ends_within_the_grace_period(start: Start, own: Callable[..., str], tmp_path: Path) -> None:
    """A leader listens and is still looking, as for a pod that no node takes: the worker serves on, and then leaves by itself."""
    models.counter(tmp_path / "counter.onnx")
    worker = start({**COUNTER, "timeouts": {"step": "1s"}})
    own()
    ended = threading.Event()

    def requests() -> Iterator[control_pb2.WorkerOrder]:
        yield control_pb2.WorkerOrder(hello=control_pb2.WorkerOrder.Hello(leader="test", report_interval_ms=50))
        yield control_pb2.WorkerOrder(drain=control_pb2.WorkerOrder.Drain())
        ended.wait(60)

    with worker.client() as client:
        assert patient(lambda: client.step(ONE, "s")).tolist() == [[1] * 4]
        stream = control_pb2_grpc.WorkerStub(client.channel).Control(requests(), timeout=60)
        began = time.monotonic()
        assert next(report for report in stream if report.draining).shards == 8
        assert client.step(ONE, "s").tolist() == [[2] * 4], "it serves on meanwhile"
        for _ in stream:
            pass
        assert 10 < time.monotonic() - began < 30
        ended.set()
    assert worker.process is not None
    assert worker.process.wait(60) == 0


def test_a_worker_that_is_asked_to_leave_without_a_store_leaves(tmp_path: Path, own_etcd: EtcdServer) -> None:
    """Nothing can be handed over or committed. Not only when the pod's grace period is over."""
    models.counter(tmp_path / "counter.onnx")
    path = spec_file(tmp_path, COUNTER, own_etcd.endpoint, installation="alone")
    with WorkerProcess(tmp_path, "--spec", str(path)) as worker:
        give_shards(own_etcd.endpoint, "alone", 8)
        with worker.client() as client:
            assert patient(lambda: client.step(ONE, "s")).tolist() == [[1] * 4]
        own_etcd.kill()
        began = time.monotonic()
        worker.stop(60)
        assert time.monotonic() - began < 30
