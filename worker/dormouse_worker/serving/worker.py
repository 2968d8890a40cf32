"""One worker's life, on its event loop: make itself known, serve, report, drain.

Readiness, the lease and the control stream all live here, beside the inference path, so that none of them outlives it.
"""

import asyncio
import os
import time

from dormouse_core import clearing, editions
from dormouse_core.clocks import Skew
from dormouse_core.errors import Code
from dormouse_core.limits import TERMINATION_GRACE_SECONDS
from dormouse_core.statistics import Tally
from dormouse_kit import log
from dormouse_kit.clock import SystemClock
from dormouse_proto import control_pb2, state_pb2

from dormouse_worker.process import bootstrap, memorylimit
from dormouse_worker.process.link import Link
from dormouse_worker.serving import exposition
from dormouse_worker.serving.control import Control
from dormouse_worker.serving.counters import Counters
from dormouse_worker.serving.loading import Loaded
from dormouse_worker.serving.membership import Membership
from dormouse_worker.serving.methods import Methods
from dormouse_worker.serving.service import Service
from dormouse_worker.serving.settings import WorkerIdentity
from dormouse_worker.transport.asgi import Ask, Call, Transport
from dormouse_worker.transport.streamed import StreamedCall

QUIET = 0.2
"""A draining worker ends when nothing arrived for so long and nothing is open, in seconds."""
UNHEARD = 3.0
"""A draining worker that no leader listens to for so long leaves without one."""
TAKER = TERMINATION_GRACE_SECONDS / 2
"""Seconds beyond a step's limit for which one serves on while nobody can take its shards. Then it gives them up, so that what runs can
commit before the process is killed."""
LOST = 75
"""Exit status of a process whose lease ended, or whose drain failed: the supervisor starts the next."""


class Worker:
    def __init__(self, loaded: Loaded, settings: WorkerIdentity, link: Link) -> None:
        self.loaded = loaded
        self.names = loaded.names
        self.metadata = loaded.signature.metadata(loaded.state_version)
        self.metadata.content, self.metadata.seal = loaded.content, loaded.seal
        self.metadata.files.extend(editions.listed(loaded.files))
        self.delay_us = loaded.delay_us
        self.idle_us = loaded.idle_us
        self._settings = settings
        self._link = link
        self._draining: asyncio.Task[None] | None = None
        self.drained = False
        """It has told its supervisor so: Envoy, and with it the event loop, is to end."""
        self._member: Membership | None = None
        self._counters = Counters()
        self._memory_limit = memorylimit.for_sessions()
        self._removed = 0
        self.skew = Skew(SystemClock())
        self.control = Control(self.report, self.drain, self._no_taker, self._hear, self._timed, self.skew.meet, self._informed)
        self._forms = loaded.engine.forms
        if self._forms is not None:
            self._forms.on_found = self._describe
        kinds = {bootstrap.INFER: Call, bootstrap.STREAM: StreamedCall, clearing.CLEAR: Ask}
        self.transport = Transport(settings.message_bytes, Methods(self, self.control.serve), kinds)
        self.service = Service(
            loaded.function,
            loaded.signature,
            loaded.engine,
            self.transport,
            names=loaded.names,
            nonce=settings.worker.rpartition("-")[2],
            max_concurrency=loaded.max_concurrency,
            counters=self._counters,
            skew=self.skew,
        )

    # -------------------------------------------------------------------------------------------------------------------- life
    async def run(self, member: Membership | None) -> None:
        """Makes the worker known once callers can reach it, then watches over it until the process ends."""
        await self._listening()
        if member is not None:
            self._member = member
            member.on_change(self.control.changed)
            self.service.sessions = member.sessions
            member.used = self.service.usage
            if member.sessions is not None:
                member.sessions.alarmed = self.service.alarmed
                self.service.ring(member.sessions.ringer)
                if self.loaded.handler is not None:
                    member.sessions.ringer.limit(self.loaded.handler.places)
            await member.start()
        self.service.ready = True
        self._link.send({"ready": True})
        loop = asyncio.get_running_loop()
        loop.add_reader(self._link.sock.fileno(), self._ordered)
        self.control.changed()
        log.event("worker ready", worker=self._settings.worker, function=self.loaded.function.label, address=self._settings.advertise)
        if member is not None:
            await member.lost.wait()
            log.warning("the worker's lease has ended; its process ends too", worker=self._settings.worker)
            os._exit(LOST)

    async def _listening(self) -> None:
        """Python runs before Envoy listens. A worker that registered by then would be dialled in vain."""
        while True:
            try:
                _, writer = await self._connect()
            except OSError:
                await asyncio.sleep(0.002)
            else:
                writer.close()
                return

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        listen = self._settings.listen
        if listen.startswith(bootstrap.UNIX):
            return await asyncio.open_unix_connection(listen.removeprefix(bootstrap.UNIX))
        return await asyncio.open_connection(*bootstrap.parse(listen))

    def _ordered(self) -> None:
        try:
            data = self._link.sock.recv(4096)
        except BlockingIOError:
            return
        if not data:
            asyncio.get_running_loop().remove_reader(self._link.sock.fileno())
        for message in self._link.feed(data):
            if message.get("drain"):
                self.drain()

    def drain(self) -> None:
        """Hands over what it owns, finishes what runs, then tells the supervisor. Asked twice, it drains once."""
        if self._draining is None:
            self._draining = asyncio.ensure_future(self._drain())
            self._draining.add_done_callback(_ended)

    async def _drain(self) -> None:
        log.event("draining", worker=self._settings.worker)
        self.control.changed()
        if self._member is not None:
            alone = asyncio.ensure_future(self._alone())
            alone.add_done_callback(_ended)
            await self._member.drain()
            alone.cancel()
        self.control.changed()
        await self._quiet()
        self.service.closing = True
        if self._member is not None:
            await self._member.close()
        self.control.close()
        await self._quiet()
        log.event("drained", worker=self._settings.worker)
        self.drained = True
        self._link.send({"drained": True})

    async def _alone(self) -> None:
        """Nobody will take what it owns: no leader listens, or none has found a taker for too long."""
        silent, limit = 0.0, time.monotonic() + self.loaded.engine.runs.limit + TAKER
        while silent < UNHEARD and time.monotonic() < limit:
            await asyncio.sleep(0.1)
            silent = 0.0 if self.control.streams else silent + 0.1
        self._no_taker()

    async def _quiet(self) -> None:
        """Callers that have not yet heard of the drain may still send: wait until none does."""
        seen = -1
        while self.transport.open or self.service.arrivals != seen:
            seen = self.service.arrivals
            await asyncio.sleep(QUIET)

    def _no_taker(self) -> None:
        if self._draining is not None and self._member is not None:
            self._member.no_taker()

    def _hear(self, limits: control_pb2.WorkerOrder.Limits) -> None:
        if self._member is not None:
            self._member.hear(limits)

    def _timed(self, time: control_pb2.WorkerOrder.Time) -> None:
        before = self.skew.off
        median_us = time.median_us if time.HasField("median_us") else None
        if self.skew.heard(time.mark, time.leader_us, time.reference_us, time.agreed, median_us):
            self.control.changed()
        if self.skew.off and not before:
            log.warning("this worker does not serve until its clock is right", reason=self.skew.text())
        elif before and not self.skew.off:
            log.event("this worker's clock is right again")

    def _informed(self, kept: state_pb2.Batching) -> None:
        """What the leader keeps with the proof: other workers found that calls of these forms must run alone."""
        mine = self.loaded.signature.batching
        if self._forms is not None and mine is not None and mine.key == kept.key and self._forms.learn(kept.alone):
            self._describe()

    def _describe(self) -> None:
        assert self._forms is not None
        forms = [state_pb2.Batching.Form(key=key, why=why) for key, why in self._forms.alone.items()]
        self.metadata.batching.ClearField("alone")
        self.metadata.batching.alone.extend(forms)
        self.control.described_anew()

    # ------------------------------------------------------------------------------------------------------------------- facts
    def healthy(self) -> bool:
        return self.service.healthy()

    def unready(self) -> str:
        """Why it should be sent no calls although it lives; '': it should."""
        return self.skew.text() if self.skew.off else ""

    def serving(self) -> bool:
        return self.service.ready and not self.service.closing and self.healthy() and not self.skew.off

    def report(self, whole: bool) -> control_pb2.WorkerReport:
        settings, counters, figures = self._settings, self._counters, self.loaded.engine.figures
        report = control_pb2.WorkerReport(
            worker=settings.worker,
            uid=self.loaded.function.uid,
            revision=settings.revision,
            ready=self.serving(),
            draining=self._draining is not None,
            in_flight=max(0, counters.active - figures.waiting),
            queued=figures.waiting,
            calls=counters.finished,
            kept_replies=counters.kept,
            concurrency_seconds=counters.concurrency_seconds(),
            busy_seconds=figures.busy_seconds,
            mark=self.skew.mark(),
            offset_us=self.skew.offset_us(),
            reference_us=self.skew.reference_us(),
            clock_off=self.skew.off,
        )
        if self._member is not None and self._member.sessions is not None:
            found = self._member.sessions.report()
            report.sessions = found.sessions
            report.state_bytes = found.state_bytes
            report.shards = found.shards
            report.stored_sessions = found.stored_sessions
            report.stored_bytes = found.stored_bytes
            report.hibernated_bytes = found.hibernated_bytes
            report.counted = found.counted
            report.session_memory_bytes = found.memory_bytes
            self._removed = found.removed
            report.queued += found.queued
            report.concurrency_seconds += found.alarm_seconds
            report.in_flight = max(0, report.in_flight - found.queued) + found.alarms
            for shard, since in found.stopped:
                report.stopped.add(shard=shard, stopped_us=since)
        if whole:
            report.metadata.CopyFrom(self.metadata)
        return report

    def tally(self) -> Tally:
        counters, figures = self._counters, self.loaded.engine.figures
        succeeded = counters.codes[int(Code.OK)]
        return Tally(
            succeeded=succeeded,
            succeeded_seconds=counters.ok_seconds,
            failed=counters.finished - succeeded,
            failed_seconds=counters.failed_seconds,
            runs=figures.runs,
            rows=figures.items,
            ran=figures.rows,
            queued_seconds=figures.queued_seconds,
            ran_seconds=figures.ran_seconds,
            last_ms=round(figures.last * 1000),
        )

    def metrics(self) -> str:
        counters, figures = self._counters, self.loaded.engine.figures
        found = self.report(False)
        family = exposition.family
        age = self.loaded.engine.runs.oldest(time.monotonic())
        return "".join(
            [
                family(
                    "dormouse_worker_calls_total",
                    "counter",
                    "Calls that were served, by gRPC code.",
                    [({"code": Code(code).name}, n) for code, n in sorted(counters.codes.items())],
                ),
                family(
                    "dormouse_worker_refusals_total",
                    "counter",
                    "Calls sent elsewhere before anything ran, by reason.",
                    [({"again": reason}, n) for reason, n in sorted(counters.again.items())],
                ),
                family(
                    "dormouse_worker_kept_replies_total", "counter", "Copies of calls answered from a kept reply.", [({}, counters.kept)]
                ),
                family("dormouse_worker_active_calls", "gauge", "Calls that run, commit or wait.", [({}, counters.active)]),
                family(
                    "dormouse_worker_concurrency_seconds_total",
                    "counter",
                    "Integral of active calls over time.",
                    [({}, counters.concurrency_seconds())],
                ),
                family("dormouse_worker_runs_total", "counter", "Runs of the model.", [({}, figures.runs)]),
                family("dormouse_worker_rows_total", "counter", "Calls that were run; over runs, the mean batch.", [({}, figures.rows)]),
                family("dormouse_worker_busy_seconds_total", "counter", "Time spent in the model.", [({}, figures.busy_seconds)]),
                family(
                    "dormouse_worker_dropped_total", "counter", "Calls not run because nobody waited any more.", [({}, figures.dropped)]
                ),
                family("dormouse_worker_received_bytes_total", "counter", "Bytes of requests.", [({}, counters.bytes_in)]),
                family("dormouse_worker_sent_bytes_total", "counter", "Bytes of replies.", [({}, counters.bytes_out)]),
                family("dormouse_worker_oldest_run_seconds", "gauge", "Age of the oldest run.", [({}, age)]),
                family(
                    "dormouse_worker_clock_deviation_seconds",
                    "gauge",
                    "The worker's clock minus the median of all clocks, where it is known.",
                    [] if (deviation := self.skew.deviation_us()) is None else [({}, deviation / 1e6)],
                ),
                family("dormouse_worker_sessions", "gauge", "Sessions in memory.", [({}, found.sessions)]),
                family("dormouse_worker_state_bytes", "gauge", "State in memory.", [({}, found.state_bytes)]),
                family("dormouse_worker_shards", "gauge", "Shards owned.", [({}, found.shards)]),
                family("dormouse_worker_session_memory_bytes", "gauge", "Memory that sessions take.", [({}, found.session_memory_bytes)]),
                family("dormouse_worker_session_memory_limit_bytes", "gauge", "Memory that sessions may take.", [({}, self._memory_limit)]),
                family(
                    "dormouse_worker_stored_sessions",
                    "gauge",
                    "Live sessions in the store, of the shards owned.",
                    [({}, found.stored_sessions)],
                ),
                family(
                    "dormouse_worker_hibernated_bytes",
                    "gauge",
                    "Bytes of records in the shards owned that are not in memory.",
                    [({}, found.hibernated_bytes)],
                ),
                family("dormouse_worker_removed_records_total", "counter", "Records removed after their expiry.", [({}, self._removed)]),
            ]
        )


def _ended(task: "asyncio.Task[None]") -> None:
    """A drain that failed would be waited for until the worker is killed, and its shards with it."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.warning("draining failed; the worker's process ends", raised=error)
        os._exit(LOST)
