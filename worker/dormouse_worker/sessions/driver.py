"""Drives the session machine: what the worker's service calls. It has the store, the runner, the clock and the loop; it decides nothing.

An event is a call of the machine, and then `_act`: what the machine wants done is done, in its order. Plans are followed side by side, each
as a task.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any

from dormouse_core.clocks import Skew, TimeReading
from dormouse_core.errors import Again, DormouseError, FailedPrecondition, Internal
from dormouse_core.keys import Function, Keys
from dormouse_core.seams import Clock, Item, Store, StoreError
from dormouse_core.sessions.boundary import Failed, Outcome, SessionSettings, StateInfo, Step
from dormouse_core.sessions.commands import (
    Acquired,
    Alarms,
    Changed,
    Command,
    Get,
    GetAll,
    Plan,
    Quiet,
    Run,
    Say,
    Soon,
    Start,
    Tell,
    Transact,
    Wait,
    Waited,
    Wake,
)
from dormouse_core.sessions.machine import Machine
from dormouse_core.sessions.memory import Phase, Session, Shard
from dormouse_kit import log
from dormouse_proto import control_pb2

from dormouse_worker.sessions.alarms import Ringer
from dormouse_worker.sessions.mapwatch import MapWatch
from dormouse_worker.sessions.ports import Runner, SessionsReport
from dormouse_worker.sessions.registration import WorkerRegistration
from dormouse_worker.sessions.removal import Sweeper

POLL_SECONDS = 0.01
SHORTEST_SWEEP_SECONDS = 1.0


class Sessions:
    """See the package's docstring. `worker` is a name that no process had before. `time`: what sessions expire by; without it nothing."""

    def __init__(
        self,
        function: Function,
        settings: SessionSettings,
        states: Sequence[StateInfo],
        store: Store,
        clock: Clock,
        runner: Runner,
        *,
        worker: str,
        address: str,
        instance: str,
        revision: str,
        keys: Keys,
        time: TimeReading | None = None,
    ) -> None:
        self.function = function
        self.on_change: Callable[[], None] = lambda: None
        self._settings = settings
        self._store = store
        self._clock = clock
        self._runner = runner
        self._time = time or Skew(clock)
        self._tasks: set[asyncio.Task[None]] = set()
        self._leaving = asyncio.Event()  # no taker: what is owned is given up
        self._acting = False
        self._quiet: dict[Shard, asyncio.Event] = {}
        self.registration = WorkerRegistration(
            function, store, clock, worker=worker, address=address, instance=instance, revision=revision, keys=keys
        )
        self.registration.on_lost = self._lost
        self.machine = machine = Machine(function, settings, states, clock, self._time, worker=worker, keys=keys)
        self.census = machine.census
        self._out = machine.out
        self.sweeper = Sweeper(function, store, clock, keys, machine.census, self, self._time.now_us)
        self.ringer = Ringer(function, store, clock, keys, machine.turns.book, self, self._time)
        self._alarms, self._alarm_seconds, self._alarms_since = 0, 0.0, clock.monotonic()  # as reported last
        self.alarmed: Callable[[Step], Any] = _nothing_to_run
        """What the runner is given for an alarm's step. Raises DormouseError: this revision cannot run what was asked for."""
        self._watch = MapWatch(function, store, clock, keys, self)
        self._doing: dict[type[Command], Callable[[Any], None]] = {
            Tell: self._tell,
            Run: self._run,
            Start: self._start,
            Soon: self._wait_for_the_turn,
            Wake: self._wake,
            Changed: lambda _: self.on_change(),
            Acquired: lambda _: self._acquired(),
            Alarms: lambda _: self.ringer.wake(),
            Say: self._say,
        }

    @property
    def lost(self) -> asyncio.Event:
        """Set when the lease ended for good. Nothing starts any more; what runs may still commit, or fails its fence."""
        return self.registration.lost

    async def start(self) -> None:
        """Registers, reads the map and follows it. Raises Unavailable or StoreError."""
        await self.registration.start()
        try:
            await self._watch.start()
        except BaseException:
            await self.registration.close()
            raise
        self._spawn(self._watch.run(), "watch of the map")
        self._spawn(self._evict(), "eviction")
        self._spawn(self.sweeper.run(), "removal")
        self._spawn(self.ringer.run(), "alarms")
        self._spawn(self.ringer.lists(), "list of alarms")

    # ----------------------------------------------------------------------------------------------------------- from the service

    def submit(self, step: Step) -> None:
        if self.registration.lapsed:
            self.machine.refuse(step, Again.DROPPED, "this worker has not heard from the store for longer than its lease")
        else:
            self.machine.submit(step)
        self._act()

    def cancel(self, step: Step) -> None:
        """Its caller went away. A step that has not begun is not run; one that runs is committed like any other."""
        step.cancelled = True

    def busy(self, shard: int, session: str) -> bool:
        """A step of the session runs or commits."""
        found = self.machine.shards[shard].sessions.get(session)
        return found is not None and found.phase is Phase.RUNNING

    def hear(self, limits: control_pb2.WorkerOrder.Limits) -> None:
        """What the leader knows: other workers' figures, how full the store is, and whose records it has written."""
        self.census.hear(limits)
        for key in limits.replaced:
            self.machine.replaced(key)
            self.sweeper.wake()
        self._act()

    def report(self) -> SessionsReport:
        turns = self.machine.turns
        now_us = self._time.now_us()
        if now_us is not None:
            self.census.total.advance(now_us)
        shards = self.machine.owned()
        running = sum(len(shard.running) for shard in shards)
        now, looks = self._clock.monotonic(), self.ringer.under_way
        self._alarm_seconds += self._alarms * (now - self._alarms_since)
        self._alarms, self._alarms_since = self.ringer.waiting(), now
        return SessionsReport(
            sessions=turns.sessions,
            state_bytes=turns.state_bytes,
            shards=len(shards),
            running=running,
            queued=max(0, turns.open - looks - max(0, running - looks)),
            steps=turns.acknowledged,
            kept_replies=turns.kept_replies,
            stored_sessions=self.census.total.live,
            stored_bytes=self.census.total.live_bytes,
            hibernated_bytes=max(0, self.census.total.bytes - turns.stored_bytes),
            counted=self.census.counted,
            memory_bytes=turns.memory_bytes,
            removed=self.sweeper.removed,
            alarms=self._alarms,
            alarm_seconds=self._alarm_seconds,
            stopped=[(shard.number, shard.stopped_us) for shard in shards if shard.stopped_us],
        )

    async def drain(self) -> None:
        """Says that it drains; hands over what the leader plans away; returns when nothing is owned and nothing runs."""
        machine = self.machine
        if not await self.registration.drain():
            self.no_taker()
        while not machine.settled or machine.turns.groups.busy:
            if self._leaving.is_set():
                machine.stop()
                if not machine.turns.groups.busy and not any(shard.running for shard in machine.shards):
                    machine.leave(Again.DRAINING)
                self._act()
            await self._clock.sleep(POLL_SECONDS)
        if self._leaving.is_set():
            # The map still names this worker as the owner. As long as its own entry stands, too, callers come again and again.
            await self.registration.close()
        self.on_change()

    def no_taker(self) -> None:
        """Nobody can take this worker's shards: `drain` lets running steps commit, then gives all up, its lease included."""
        self._leaving.set()

    async def close(self) -> None:
        """Ends every loop and revokes the lease. What was not drained is left to failover."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.registration.close()

    # ---------------------------------------------------------------------------------------------------------------- from the map

    def listed(self, revision: int, shards: dict[int, Item], moves: dict[int, Item]) -> None:
        self.machine.listed(revision, shards, moves)
        self._act()

    def heard(self, revision: int) -> None:
        self.machine.heard(revision)
        self._act()

    def shard_changed(self, shard: int, item: Item | None, revision: int) -> None:
        self.machine.shard_changed(shard, item, revision)

    def move_changed(self, shard: int, item: Item | None, revision: int) -> None:
        self.machine.move_changed(shard, item, revision)

    # ------------------------------------------------------------------------------------------------------------ from the sweeper

    def created(self, shard: Shard) -> None:
        self.machine.turns.created(shard)
        self._act()

    def forget(self, session: Session) -> None:
        self.machine.turns.forget(session)
        self._act()

    # ------------------------------------------------------------------------------------------------------------------- commands

    def _act(self) -> None:
        """Does what the machine wants done. Whoever is told something may come back with the next event: that is done here, too."""
        out = self._out
        if self._acting or not out:
            return
        self._acting = True
        doing = self._doing
        try:
            while out:
                command = out.popleft()
                doing[type(command)](command)
        finally:
            self._acting = False
            if out:  # one of them raised, which is its caller's to hear; the others are done all the same
                asyncio.get_running_loop().call_soon(self._act)

    def _acquired(self) -> None:
        self.sweeper.wake()
        self.ringer.acquired()

    def _run(self, run: Run) -> None:
        step = run.step
        done = partial(self._ran, run)
        if step.alarm is not None:
            try:
                step.call = self.alarmed(step)
            except DormouseError as error:
                done(Failed(error))
                return
            except Exception as error:  # of ours: the alarm's try failed, and not the worker
                log.warning("an alarm's step could not be made", function=self.function.label, error=repr(error))
                done(Failed(Internal(f"the alarm's step could not be made: {error!r}")))
                return
        try:
            self._runner.run(step.call, run.states, run.number, run.begins, step.end, done, run.deadline)
        except Exception as error:
            log.warning("a step could not be run", function=self.function.label, error=repr(error))
            done(Failed(Internal(f"the step could not be run: {error}")))

    def _ran(self, run: Run, outcome: Outcome) -> None:
        self.machine.ran(run, outcome)
        if self._out and not self._acting:
            self._act()

    def _tell(self, tell: Tell) -> None:
        try:
            tell.step.answer(tell.answer)
        except Exception as error:  # one caller's trouble must not reach the other sessions of its group
            log.warning("a reply could not be delivered", function=self.function.label, error=repr(error))

    def _wait_for_the_turn(self, _: Soon) -> None:
        asyncio.get_running_loop().call_soon(self._turn_ended)

    def _turn_ended(self) -> None:
        try:
            self.machine.soon()
        except Exception as error:
            self._failed("end of a turn", error)
        self._act()

    def _start(self, start: Start) -> None:
        self._spawn(self._follow(start.plan), start.name)

    def _wake(self, wake: Wake) -> None:
        waiting = self._quiet.get(wake.shard)
        if waiting is not None:
            waiting.set()

    def _say(self, line: Say) -> None:
        (log.warning if line.warning else log.event)(line.text, function=self.function.label, **line.fields)

    async def _follow(self, plan: Plan[None]) -> None:
        """One plan to its end: it is told what came of what it waited for, and what it wants done is done before it waits again."""
        said: Any = None
        failed: StoreError | None = None
        try:
            while True:
                wanted = plan.send(said) if failed is None else plan.throw(failed)
                if isinstance(wanted, Quiet):
                    self._quiet[wanted.shard] = asyncio.Event()  # before anything is done that may wake it
                self._act()
                try:
                    said, failed = await self._wait_for(wanted), None
                except StoreError as error:
                    said, failed = None, error
        except StopIteration:
            self._act()
        finally:
            plan.close()  # now, and not when its memory is collected: it may have something to put right

    async def _wait_for(self, wanted: Waited) -> Any:
        match wanted:
            case Transact(txn, timeout):
                return await self._store.txn(txn, timeout=timeout)
            case Get(keys):
                return await self._store.get(keys)
            case GetAll(prefix):
                return await self._store.list(prefix)
            case Wait(seconds):
                await self._clock.sleep(seconds)
            case Quiet(shard):
                try:
                    await self._quiet[shard].wait()
                finally:
                    del self._quiet[shard]
        return None

    # ---------------------------------------------------------------------------------------------------------------------- loops

    def _lost(self) -> None:
        log.warning("the lease has ended", function=self.function.label, worker=self.registration.worker)
        self.machine.leave(Again.NOT_MINE)
        self._act()
        self.on_change()

    async def _evict(self) -> None:
        every = max(self._settings.evict_after / 10, SHORTEST_SWEEP_SECONDS)
        while True:
            await self._clock.sleep(every)
            before = self._clock.monotonic() - self._settings.evict_after
            for shard in self.machine.shards:
                self.machine.turns.evict(shard, before)
                await asyncio.sleep(0)  # a million sessions are not swept in one go

    def _spawn(self, coroutine: Coroutine[Any, Any, None], name: str) -> "asyncio.Task[None]":
        task = asyncio.get_running_loop().create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failed(task.get_name(), error)

    def _failed(self, what: str, error: BaseException) -> None:
        """A bug of ours. What died leaves steps without answers, which no caller can tell from slow ones: better no worker."""
        log.warning("a loop of the sessions failed; the worker ends", function=self.function.label, loop=what, error=repr(error))
        self.registration.lost.set()
        self._lost()


def _nothing_to_run(step: Step) -> Any:
    raise FailedPrecondition("alarm: this worker's function runs none")
