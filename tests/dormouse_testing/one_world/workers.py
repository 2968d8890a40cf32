"""Simulated workers' processes: the real sessions and the real control stream, without a model, and without Envoy in front.

`serve` stands for the worker's service: it reads a call with the product's own reader and gives it to the sessions.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import TYPE_CHECKING, Any

from dormouse_core import headernames
from dormouse_core.errors import Again, DormouseError, Unavailable
from dormouse_core.seams import Reply
from dormouse_operator.links import Refused, Unreachable
from dormouse_proto import control_pb2, inference_pb2
from dormouse_worker.serving.control import Control
from dormouse_worker.sessions import Answer, Sessions, Step
from dormouse_worker.transport import calls, frames

from dormouse_testing.lives import NETWORK, Life
from dormouse_testing.memory_store import MemoryStore
from dormouse_testing.sessions_sim.machines import Timed
from dormouse_testing.sessions_sim.world import FUNCTION

if TYPE_CHECKING:
    from dormouse_testing.one_world.world import OneWorld

TRAVEL = 0.001
RESET = Reply(14, b"", "connection reset", {headernames.BROKEN: "reset"})
UNHEARD = 3.0  # as `serving.worker`: a draining worker that no leader listens to for so long leaves without one
Answered = Callable[[Reply], None]


class Worker:
    """One process of an instance. `number` names the step counts of the `Step`s that it was given."""

    def __init__(self, world: "OneWorld", instance: str, address: str, revision: str) -> None:
        world.processes += 1
        self.world = world
        self.name = f"{instance}-{world.processes}"
        self.instance = instance
        self.address = address
        self.revision = revision
        self.life = Life(self.name)
        self.timed: Timed = world.machines.start()
        self.store: MemoryStore = world.client(self.name, self.timed.clock)
        self.ready = self.draining = self.closing = False
        self.drained: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.sessions: Sessions = world.sessions(self, instance, address, revision)  # type: ignore[arg-type]  # what it needs of a process
        self.sessions.alarmed = world.alarmed
        skew = self.timed.skew
        self.control = Control(self.report, self.drain, self.no_taker, self.sessions.hear, self._timed, skew.meet)
        self.sessions.on_change = self.control.changed
        self.store.on_rewound = lambda why: self.life.soon(self.sessions.registration.forsake, why)
        self._reader = calls.SessionReader(FUNCTION, str(world.processes), skew)
        self._waiting: dict[object, tuple[Step, Answered]] = {}
        self._lines: list[Line] = []
        self._calls = 0

    @property
    def alive(self) -> bool:
        return self.life.alive

    async def run(self) -> None:
        """In its life: registers, serves until its lease is lost. It ends where it cannot register."""
        try:
            await self.sessions.start()
        except Exception as error:
            self.world.trace(f"{self.name} does not start: {error!r}")
            self.die()
            return
        self.ready = True
        self.control.changed()
        await self.sessions.lost.wait()
        self.world.trace(f"{self.name} lost its lease")
        self.die()

    def die(self) -> None:
        """SIGKILL, or its own end: connections to it break."""
        self.ready = False
        self.life.die()
        for _, answered in list(self._waiting.values()):
            answered(RESET)
        self._waiting.clear()
        for line in self._lines:
            line.broken()

    # ------------------------------------------------------------------------------------------------------------------- calls

    def serve(self, ticket: object, message: bytes, metadata: Mapping[str, str], answered: Answered) -> None:
        """A call has come. `ticket` is what `gone` names it by."""
        self._calls += 1
        try:
            step = self._step(ticket, message, metadata)
        except DormouseError as error:
            answered(self._refusal(error))
            return
        self._waiting[ticket] = (step, answered)
        stamp, _, gateway = metadata[headernames.CALL].partition("-g-")
        self.world.arrived(self, step, f"{stamp}-g-{gateway.partition('-')[0].partition('.')[0]}")
        self.sessions.submit(step)

    def gone(self, ticket: object) -> None:
        """Its caller is gone."""
        if ticket in self._waiting:
            self.sessions.cancel(self._waiting.pop(ticket)[0])

    def _step(self, ticket: object, message: bytes, metadata: Mapping[str, str]) -> Step:
        if self.closing:
            raise Unavailable("this worker is stopping", Again.DRAINING)
        if not self.ready:
            raise Unavailable("this worker is not ready", Again.NOT_MINE)
        if self.timed.skew.off:
            raise Unavailable(self.timed.skew.text(), Again.CLOCK)
        headers = {key.encode(): value.encode() for key, value in metadata.items()}
        calls.check_function(headers, FUNCTION)
        request = inference_pb2.ModelInferRequest.FromString(message)
        of = self._reader.read(headers, request.parameters)
        call = self.world.history.calls[int(request.id)]
        digest = (call.same or request.id).encode()

        def answer(it: Answer) -> None:
            self.world.answered(self, step, it)
            waiting = self._waiting.pop(ticket, None)
            if waiting is not None:
                waiting[1](self._reply(it))

        step = Step(of.key, of.call_key, digest, of.start, of.end, of.create, call, answer, of.rev)
        return step

    def _reply(self, it: Answer) -> Reply:
        if it.error is not None:
            return self._refusal(it.error)
        assert it.reply is not None
        return Reply(0, it.reply, "", {headernames.BY: self.name, headernames.STEP: str(it.step)})

    def _refusal(self, error: DormouseError) -> Reply:
        given = {headernames.BY: self.name}
        if isinstance(error, Unavailable) and error.again is not None:
            given[headernames.AGAIN] = str(error.again)
        return Reply(int(error.code), b"", error.message, given)

    # ------------------------------------------------------------------------------------------------------------- the leader's side

    def line(self) -> "Line":
        """The leader connects."""
        line = Line(self)
        self._lines.append(line)
        serving = self.life.begin(self.control.serve(line))  # type: ignore[arg-type]  # an exchange
        serving.add_done_callback(self.world.ended, context=NETWORK)
        return line

    def report(self, whole: bool) -> control_pb2.WorkerReport:
        """As `serving.worker` makes it."""
        found, skew = self.sessions.report(), self.timed.skew
        made = control_pb2.WorkerReport(
            worker=self.name, uid=FUNCTION.uid, revision=self.revision, ready=self.ready and not skew.off, draining=self.draining,
            in_flight=found.running + found.alarms, queued=found.queued, calls=self._calls, mark=skew.mark(), offset_us=skew.offset_us(),
            reference_us=skew.reference_us(),
            clock_off=skew.off, sessions=found.sessions, state_bytes=found.state_bytes, shards=found.shards,
            stored_sessions=found.stored_sessions, stored_bytes=found.stored_bytes, hibernated_bytes=found.hibernated_bytes,
            counted=found.counted,
        )  # fmt: skip
        for shard, since in found.stopped:
            made.stopped.add(shard=shard, stopped_us=since)
        if whole:
            made.metadata.platform = "onnxruntime_onnx"
        return made

    def _timed(self, time: control_pb2.WorkerOrder.Time) -> None:
        median_us = time.median_us if time.HasField("median_us") else None
        if self.timed.skew.heard(time.mark, time.leader_us, time.reference_us, time.agreed, median_us):
            self.control.changed()

    def drain(self) -> None:
        if not self.draining:
            self.draining = True
            self.life.begin(self._drain()).add_done_callback(self.world.ended, context=NETWORK)

    def no_taker(self) -> None:
        if self.draining:
            self.sessions.no_taker()

    async def _drain(self) -> None:
        while not self.ready:  # noqa: ASYNC110 - a worker hears of it once it serves
            await asyncio.sleep(0.1)
        self.world.trace(f"{self.name} drains")
        self.control.changed()
        alone = asyncio.create_task(self._alone())
        await self.sessions.drain()
        alone.cancel()
        self.closing = True
        while self._waiting:  # noqa: ASYNC110 - as a worker waits until it is quiet
            await asyncio.sleep(0.2)
        await self.sessions.close()
        self.control.close()
        self.world.trace(f"{self.name} has drained")
        if not self.drained.done():
            self.drained.set_result(None)

    async def _alone(self) -> None:
        silent = 0.0
        while silent < UNHEARD:
            await asyncio.sleep(0.1)
            silent = 0.0 if self.control.streams else silent + 0.1
        self.sessions.no_taker()


class Line:
    """A control stream between a leader and a worker: the leader's end (`links.Stream`), and the worker's (an `asgi.Exchange`)."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._up: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._down: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._open = True

    def broken(self) -> None:
        self._open = False
        later(self._up.put_nowait, None)
        later(self._down.put_nowait, None)

    # the leader's
    async def send(self, order: control_pb2.WorkerOrder) -> None:
        if not self._open:
            raise Unreachable("broken")
        later(self._down.put_nowait, order.SerializeToString())

    async def reports(self) -> AsyncIterator[control_pb2.WorkerReport]:
        while (found := await self._up.get()) is not None:
            yield control_pb2.WorkerReport.FromString(found)
        raise Unreachable("broken")

    async def close(self) -> None:
        self.broken()

    # the worker's
    async def begin(self) -> None:
        return

    async def chunk(self) -> tuple[bytes, bool]:
        found = await self._down.get()
        if found is None:
            raise ConnectionResetError("the caller is gone")
        return frames.frame(found), True

    async def write(self, message: bytes) -> None:
        later(self._up.put_nowait, message)

    async def end(self) -> None:
        self.broken()


class Dialer:
    """One leader's."""

    def __init__(self, world: "OneWorld", life: Life) -> None:
        self._world = world
        self._lines: list[Line] = []
        world.when_dead(life, self._hang_up)

    async def open(self, address: str) -> Line:
        await asyncio.sleep(TRAVEL)
        worker = self._world.at(address)
        if worker is None:
            raise Refused
        line = worker.line()
        self._lines.append(line)
        return line

    def _hang_up(self) -> None:
        for line in self._lines:
            line.broken()


def later(call: Callable[..., object], *args: Any) -> None:
    """After the way there, whoever has died meanwhile."""
    asyncio.get_running_loop().call_later(TRAVEL, call, *args, context=NETWORK)
