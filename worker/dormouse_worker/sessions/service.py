"""The parts put together: what the worker's service calls.

transport -> Sessions.submit -> Shards (whose is it?) -> Turns (when, on which state?) -> Runner -> Turns -> Committer -> step.answer
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from dormouse_core.clocks import Reading, Skew
from dormouse_core.errors import Again
from dormouse_core.keys import Function, Keys
from dormouse_core.seams import Clock, Store
from dormouse_core.sessions import shard_of
from dormouse_kit import log
from dormouse_proto import control_pb2

from dormouse_worker.sessions.boundary import Runner, SessionsReport, Settings, StateInfo, Step
from dormouse_worker.sessions.census import Census
from dormouse_worker.sessions.commits import Committer
from dormouse_worker.sessions.loading import Loader
from dormouse_worker.sessions.registration import Registration
from dormouse_worker.sessions.removal import Sweeper
from dormouse_worker.sessions.shards import Shards
from dormouse_worker.sessions.turns import Turns

POLL_SECONDS = 0.01
SHORTEST_SWEEP_SECONDS = 1.0


class Sessions:
    """See the package's docstring. `worker` is a name that no process had before. `time`: what sessions expire by; without it nothing."""

    def __init__(
        self,
        function: Function,
        settings: Settings,
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
        time: Reading | None = None,
    ) -> None:
        self.function = function
        self.on_change: Callable[[], None] = lambda: None
        self._settings = settings
        self._clock = clock
        self._time = time or Skew(clock)
        self._tasks: set[asyncio.Task[None]] = set()
        self._leaving = asyncio.Event()  # no taker: what is owned is given up
        self.registration = Registration(
            function, store, clock, worker=worker, address=address, instance=instance, revision=revision, keys=keys
        )
        self.registration.on_lost = self._lost
        self._shards = Shards(function, settings.shards, store, clock, worker=worker, keys=keys, spawn=self._spawn)
        self._shards.on_change = lambda: self.on_change()
        self._shards.mover.step_limit = settings.step_limit
        self._turns = Turns(function, settings, states, clock, runner, self._time, worker=worker, keys=keys, reads=self._shards)
        self._turns.loader = Loader(store, self._turns, self._spawn)
        self._turns.committer = Committer(store, clock, self._turns, self._spawn)
        self._turns.all_shards = lambda: self._shards.all
        self._shards.turns = self._turns
        self.census = Census(settings, clock.monotonic)
        self.census.owned = self._shards.owned
        self._shards.census = self._turns.census = self.census
        self.sweeper = Sweeper(function, store, clock, keys, self.census, self._turns, self._time.now_us)
        self._shards.on_owned = self._acquired

    @property
    def lost(self) -> asyncio.Event:
        """Set when the lease ended for good. Nothing starts any more; what runs may still commit, or fails its fence."""
        return self.registration.lost

    async def start(self) -> None:
        """Registers, reads the map and follows it. Raises Unavailable or StoreError."""
        await self.registration.start()
        try:
            await self._shards.watch.start()
        except BaseException:
            await self.registration.close()
            raise
        self._spawn(self._shards.watch.run(), "watch of the map")
        self._spawn(self._evict(), "eviction")
        self._spawn(self.sweeper.run(), "removal")

    def submit(self, step: Step) -> None:
        self._turns.open += 1
        if self.registration.lapsed:
            text = "this worker has not heard from the store for longer than its lease"
            self._turns.refuse(step, Again.DROPPED, text)
        else:
            self._shards.submit(step)

    def cancel(self, step: Step) -> None:
        """Its caller went away. A step that has not begun is not run; one that runs is committed like any other."""
        step.cancelled = True

    def hear(self, limits: control_pb2.WorkerOrder.Limits) -> None:
        """What the leader knows: other workers' figures, how full the store is, and whose records it has written."""
        self.census.hear(limits)
        for key in limits.replaced:
            shard = self._shards.all[shard_of(key, len(self._shards.all))]
            session = shard.sessions.get(key)
            if session is not None:
                self._turns.forget(session)
            self.census.doubt(shard)
            self.sweeper.wake()

    def report(self) -> SessionsReport:
        turns = self._turns
        now_us = self._time.now_us()
        if now_us is not None:
            self.census.total.advance(now_us)
        shards = self._shards.owned()
        running = sum(len(shard.running) for shard in shards)
        return SessionsReport(
            sessions=turns.sessions,
            state_bytes=turns.state_bytes,
            shards=len(shards),
            running=running,
            queued=turns.open - running,
            steps=turns.acknowledged,
            kept_replies=turns.kept_replies,
            stored_sessions=self.census.total.live,
            stored_bytes=self.census.total.live_bytes,
            hibernated_bytes=max(0, self.census.total.bytes - turns.stored_bytes),
            counted=self.census.counted,
            memory_bytes=turns.memory_bytes,
            removed=self.sweeper.removed,
            stopped=[(shard.number, shard.stopped_us) for shard in shards if shard.stopped_us],
        )

    async def drain(self) -> None:
        """Says that it drains; hands over what the leader plans away; returns when nothing is owned and nothing runs."""
        if not await self.registration.drain():
            self.no_taker()
        while not self._shards.settled or self._turns.committer.busy:
            if self._leaving.is_set():
                self._shards.stop()
                if not self._turns.committer.busy and not any(shard.running for shard in self._shards.all):
                    self._shards.leave(Again.DRAINING)
            await self._clock.sleep(POLL_SECONDS)
        self.on_change()

    def no_taker(self) -> None:
        """Nobody can take this worker's shards: `drain` lets running steps commit, then gives all up."""
        self._leaving.set()

    async def close(self) -> None:
        """Ends every loop and revokes the lease. What was not drained is left to failover."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.registration.close()

    def _acquired(self) -> None:
        self.census.acquired()
        self.sweeper.wake()

    def _lost(self) -> None:
        log.warning("the lease has ended", function=self.function.label, worker=self.registration.worker)
        self._shards.leave(Again.NOT_MINE)
        self.on_change()

    async def _evict(self) -> None:
        every = max(self._settings.evict_after / 10, SHORTEST_SWEEP_SECONDS)
        while True:
            await self._clock.sleep(every)
            before = self._clock.monotonic() - self._settings.evict_after
            for shard in self._shards.all:
                self._turns.evict(shard, before)
                await asyncio.sleep(0)  # a million sessions are not swept in one go

    def _spawn(self, coroutine: Coroutine[Any, Any, None], name: str) -> "asyncio.Task[None]":
        task = asyncio.get_running_loop().create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # A bug of ours. The loop that died leaves steps without answers, which no caller can tell from a slow one: better no worker.
            log.warning("a loop of the sessions failed", function=self.function.label, loop=task.get_name(), error=repr(error))
            self.registration.lost.set()
            self._lost()
