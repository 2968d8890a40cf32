"""An error of ours in a loop: the loop goes on, or its process ends and says so. None ends without anybody's knowing."""

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc.aio
import numpy as np
import pytest
from dormouse import parts, supervisors
from dormouse.parts import Part
from dormouse.supervisors import Supervisors
from dormouse_core import workerfile
from dormouse_core.backoff import Backoff
from dormouse_core.clocks import Skew
from dormouse_core.errors import Code, DormouseError
from dormouse_core.keys import Keys
from dormouse_core.spec import parse_manifest
from dormouse_core.workerfile import StoreAccess, WorkerFile
from dormouse_gateway.leader.leading import LeaderStream
from dormouse_kit.election import Election
from dormouse_kit.etcd import connections
from dormouse_kit.etcd.connections import Connections
from dormouse_operator.kubernetes.api.http import Change
from dormouse_operator.kubernetes.api.kinds import Kind
from dormouse_operator.kubernetes.pods.copies import Copies
from dormouse_operator.kubernetes.running import Term
from dormouse_operator.links import Links
from dormouse_proto import control_pb2
from dormouse_testing.clock import ManualClock
from dormouse_testing.manifests import onnx
from dormouse_testing.memory_api import MemoryApi
from dormouse_testing.memory_store import MemoryStore
from dormouse_worker.batches import batching
from dormouse_worker.batches.batching import Batcher
from dormouse_worker.batches.replies import Encoder
from dormouse_worker.batches.requests import Request
from dormouse_worker.models.signatures import Signature, TensorSpec
from dormouse_worker.serving.worker import LOST, Worker
from dormouse_worker.transport import asgi
from dormouse_worker.transport.asgi import Transport


class Bug(Exception):
    """What nobody foresaw."""


class Quick(ManualClock):
    """Its sleeps are over at once."""

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0)


@pytest.fixture(autouse=True)
async def raised() -> list[Exception]:
    """What callbacks raise, which the event loop would log."""
    found: list[Exception] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: found.append(context.get("exception", Bug(context["message"]))))
    return found


# ------------------------------------------------------------------------------------------------------------- the worker


class Call(asgi.Call):
    def __init__(self, transport: Transport, trouble: bool) -> None:
        super().__init__(transport, [], self._nobody, self._nobody)  # type: ignore[arg-type]
        self.trouble = trouble

    @staticmethod
    def _nobody(*_: object) -> None:
        pass

    def poll(self) -> None:
        if self.trouble:
            raise Bug


async def test_one_calls_trouble_keeps_no_others_deadline_from_passing(
    monkeypatch: pytest.MonkeyPatch, events: pytest.LogCaptureFixture
) -> None:
    """Also at later looks, for the look schedules the next one."""
    monkeypatch.setattr(asgi, "SWEEP", 0.0)
    transport = Transport(1000, lambda exchange: asyncio.sleep(0))
    ended: asyncio.Queue[tuple[asgi.Call, DormouseError | None]] = asyncio.Queue()
    transport.ended = lambda call, error: ended.put_nowait((call, error))
    wrong, *others = Call(transport, True), Call(transport, False), Call(transport, False)
    transport.arrived(wrong)
    for call in others:
        transport.arrived(call)
        call.deadline = 0.0
        found, error = await ended.get()
        assert (found, error and error.code) == (call, Code.DEADLINE_EXCEEDED)
    assert events.text.count("the deadline of a call could not be checked") == 1, "said once"
    transport.leave(wrong)


class Runtime:
    signature = Signature("t", (TensorSpec("x", "FP32", (-1, 1), axis=0),), (TensorSpec("y", "FP32", (-1, 1)),))

    def run(self, feeds: dict[str, Any]) -> list[Any]:
        return [feeds["x"]]

    def stop(self) -> None: ...


@pytest.mark.parametrize("threads", [False, True])
async def test_what_waits_behind_a_run_that_failed_runs_all_the_same(
    threads: bool, monkeypatch: pytest.MonkeyPatch, raised: list[Exception]
) -> None:
    monkeypatch.setattr(batching, "RETRY_SECONDS", 0.0)
    batcher = Batcher(Runtime(), Encoder("fn", Runtime.signature), delay=0.0, step_limit=10.0)
    batcher._average = None if threads else 0.0
    answered = asyncio.Event()

    def fails(*_: object) -> None:
        monkeypatch.undo()
        monkeypatch.setattr(batching, "RETRY_SECONDS", 0.0)
        raise Bug

    monkeypatch.setattr(Batcher, "_answer", fails)
    for number, done in enumerate((lambda outcome: None, lambda outcome: answered.set())):
        request = Request()
        request.id, request.rows, request.group, request.outputs = str(number), 1, (number,), (0,)
        request.inputs = {"x": np.ones((1, 1), np.float32)}
        batcher.run(request, {}, 1, False, False, done, float("inf"))
    await answered.wait()
    assert [type(each) for each in raised] == [Bug], "the event loop was told"


@pytest.mark.parametrize("where", ["_drain", "_alone"])
async def test_a_drain_that_fails_ends_the_process(where: str, monkeypatch: pytest.MonkeyPatch, events: pytest.LogCaptureFixture) -> None:
    """Nobody else would: its shards would stay with it until it is killed."""
    exits: asyncio.Queue[int] = asyncio.Queue()

    async def fails(self: Worker) -> None:
        raise Bug

    monkeypatch.setattr(Worker, where, fails)
    monkeypatch.setattr(os, "_exit", exits.put_nowait)
    never = asyncio.Event()
    worker = Worker.__new__(Worker)
    worker._draining = None
    worker._settings = SimpleNamespace(worker="w")  # type: ignore[assignment]
    worker.control = SimpleNamespace(changed=lambda: None)  # type: ignore[assignment]
    worker._member = SimpleNamespace(drain=never.wait)  # type: ignore[assignment]
    worker.drain()
    assert await exits.get() == LOST
    assert "draining failed" in events.text
    assert worker._draining is not None
    worker._draining.cancel()


# ------------------------------------------------------------------------------------------------------------- the operator


class Stream:
    async def send(self, order: control_pb2.WorkerOrder) -> None: ...

    async def reports(self) -> AsyncIterator[control_pb2.WorkerReport]:
        yield control_pb2.WorkerReport(worker="w")
        await asyncio.Event().wait()

    async def close(self) -> None: ...


class Dialer:
    async def open(self, address: str) -> Stream:
        return Stream()


async def test_a_worker_whose_report_nobody_foresaw_is_heard_again(events: pytest.LogCaptureFixture) -> None:
    heard = 0
    again = asyncio.Event()

    def hear(worker: str, report: control_pb2.WorkerReport) -> None:
        nonlocal heard
        heard += 1
        if heard == 1:
            raise Bug
        again.set()

    links = Links(Dialer(), Quick(), "leader", 1, hear, lambda worker: None, lambda report: control_pb2.WorkerOrder.Time())
    links.follow("w", "a")
    await again.wait()
    assert "the control stream failed worker=w" in events.text
    await links.close()


class Failing(MemoryApi):
    async def watch(self, kind: Kind, namespace: str = "", *, labels: str = "", version: str) -> AsyncGenerator[Change, None]:
        raise Bug
        yield


async def test_a_copy_of_the_cluster_that_nothing_keeps_any_more_ends_the_term() -> None:
    """It would go on being taken for fresh, and workers counted by it."""
    settings: Any = SimpleNamespace(installation="i", namespaces=(), network_policies=False)
    copies = Copies(Failing(), Quick(), settings, lambda key, uid: None, lambda: None)
    async with copies:
        with pytest.raises(ExceptionGroup) as found:
            await copies.run()
    assert found.group_contains(Bug)


def test_a_term_ends_with_each_of_its_loops() -> None:
    term = Term.__new__(Term)
    of_pods = ("copies", "serving", "watching", "survey", "tending", "losing", "replacements")
    parts_of_it = (*of_pods, "budgets", "rotating", "marking", "defining")
    for name in parts_of_it:
        setattr(term, name, SimpleNamespace(run=name))
    assert sorted(map(str, term.loops())) == sorted(parts_of_it)


# ------------------------------------------------------------------------------------------------------------- gateway and store


async def test_the_stream_to_the_leader_is_opened_again_and_what_ended_it_is_told(
    monkeypatch: pytest.MonkeyPatch, events: pytest.LogCaptureFixture
) -> None:
    tries = 0
    again = asyncio.Event()

    async def report_to(self: LeaderStream, address: str) -> None:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise Bug
        again.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(LeaderStream, "_report_to", report_to)
    clock = Quick()
    none: Any = None
    stream = LeaderStream(MemoryStore(clock), clock, Keys("i"), none, Skew(clock), lambda: None)
    stream._address = "leader:1"
    talking = asyncio.create_task(stream._talk())
    await again.wait()
    assert "the stream to the leader failed" in events.text
    talking.cancel()
    await asyncio.gather(talking, return_exceptions=True)


@pytest.mark.parametrize("guard", ["_follow", "_probe"])
async def test_a_connection_that_is_looked_after_no_more_is_not_kept(guard: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def stands(self: Connections, connection: object) -> None:
        await asyncio.Event().wait()

    async def fails(self: Connections, connection: object) -> None:
        raise Bug

    async def open_(self: Connections, place: int) -> connections.Connection:
        return connections.Connection("a", grpc.aio.insecure_channel("127.0.0.1:1"))

    monkeypatch.setattr(Connections, "_follow", stands)
    monkeypatch.setattr(Connections, "_probe", stands)
    monkeypatch.setattr(Connections, guard, fails)
    monkeypatch.setattr(Connections, "_open", open_)
    pool = Connections(["a"])
    first = await pool.get(10)
    assert "Bug" in await first.lost
    assert await pool.get(10) is not first
    await pool.close()


async def test_a_leader_whose_lease_nobody_keeps_leads_no_more_and_says_why(events: pytest.LogCaptureFixture) -> None:
    clock = Quick()
    store = MemoryStore(clock)
    election = Election(store, clock, "/leader", b"a")

    async def fails(lease: int, timeout: float = 0.0) -> int:
        raise Bug

    store.keep_alive = fails  # type: ignore[assignment, method-assign]
    await election.campaign()
    await election.lost.wait()
    assert "no longer leading" in events.text
    await election.resign()


# ------------------------------------------------------------------------------------------------------------- one machine


class Child:
    """The first cannot be started; the others run until they are ended. `pids` of those."""

    pids: list[int]
    pid = 1
    returncode: int | None = None

    def __init__(self) -> None:
        self._end = asyncio.Event()

    async def wait(self) -> int:
        await self._end.wait()
        return 0

    def signal(self, number: int) -> None:
        self.returncode = 0
        self._end.set()

    async def stop(self, grace: float = 0.0) -> int:
        return 0

    async def kill(self) -> int:
        return 0


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> Iterator[asyncio.Event]:
    """Set when one was started after one that could not be."""
    started, tries = asyncio.Event(), 0

    class Starting:
        @staticmethod
        async def start(*_: object, **__: object) -> Child:
            nonlocal tries
            tries += 1
            if tries == 1:
                raise BlockingIOError(11, "Resource temporarily unavailable")
            started.set()
            return Child()

    for module in (parts, supervisors):
        monkeypatch.setattr(module, "Child", Starting)
        monkeypatch.setattr(module, "BACKOFF", Backoff(0.0, 0.0))
    yield started
    assert tries == 2


async def test_a_part_that_could_not_be_started_is_tried_again(starts: asyncio.Event, events: pytest.LogCaptureFixture) -> None:
    part = Part("operator", lambda: ["operator"])
    part.start()
    await starts.wait()
    assert "a part could not be started part=operator" in events.text
    await part.stop(0.0)


async def test_a_worker_that_could_not_be_started_is_tried_again(
    starts: asyncio.Event, tmp_path: Path, events: pytest.LogCaptureFixture
) -> None:
    folders: list[Path] = [tmp_path / name for name in ("sockets", "specs", "reasons")]
    for folder in folders:
        folder.mkdir()
    command: Callable[..., list[str]] = lambda *_: ["worker"]  # noqa: E731
    store = StoreAccess(endpoints=["e"])
    spec = parse_manifest(onnx(model={"uri": "file://m.onnx"})).spec
    file = WorkerFile(installation="i", namespace="ns", name="fn", uid="u", revision="r", spec=spec, store=store)
    workers = Supervisors(folders[0], folders[1], folders[2], command)
    workers.start("a", workerfile.dump(file).decode(), 5.0)
    await starts.wait()
    assert "a worker could not be started instance=a" in events.text
    await workers.close(0.0)
