"""Processes on one simulated loop: each can stand still, go on, and die between two of its steps, as the kernel does it to real ones.

What belongs to a process is told by the context that asyncio hands on to every task and callback: whatever is begun inside of one is its
own. A process that stands still (SIGSTOP) runs nothing; what comes to it meanwhile waits, and runs in its order when it goes on, deadlines
that have passed among it. One that died (SIGKILL) never runs again: no `finally`, no cancellation. What it had sent is on its way all the
same, for the network is no process's (`NETWORK`).
"""

import asyncio
import contextvars
import heapq
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from dormouse_testing.simloop import SimLoop

T = TypeVar("T")
NETWORK = contextvars.Context()
"""Nobody's: for what is on its way, and for what stands outside of every process."""
_LIFE: contextvars.ContextVar["Life"] = contextvars.ContextVar("life")


class Life:
    """One process's, on a `LivesLoop`. At the `end` of a simulation all of them go on, the dead ones too, so that they can be cancelled."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.alive = True
        self.still = False
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._stash: list[asyncio.Handle] = []
        self._loop = asyncio.get_running_loop()
        assert isinstance(self._loop, LivesLoop)
        self._loop.lives.append(self)
        self._context = contextvars.Context()
        self._context.run(_LIFE.set, self)

    # ------------------------------------------------------------------------------------------------------------ from outside

    def begin(self, work: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        """A task of this process."""
        return asyncio.get_running_loop().create_task(work, name=self.name, context=self._context.copy())

    def soon(self, call: Callable[..., object], *args: Any) -> None:
        """Something comes to this process: it is called inside of it, unless it has died by then."""
        if self.alive:
            asyncio.get_running_loop().call_soon(call, *args, context=self._context.copy())

    async def done(self, work: Coroutine[Any, Any, T]) -> T | None:
        """What `work` comes to, inside of this process; None: it died before."""
        task = self.begin(work)
        await asyncio.wait({task, self.ended}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None

    def stop(self) -> None:
        """It stands still."""
        self.still = True

    def go_on(self) -> None:
        self.still = False
        if self.alive:
            self.release()

    def die(self) -> None:
        if self.alive:
            self.alive = False
            self.ended.set_result(None)

    def release(self) -> None:
        """Whatever waits for it runs next."""
        stash, self._stash = self._stash, []
        self._loop._ready.extend(stash)  # type: ignore[attr-defined]  # where the loop has its handles

    # ------------------------------------------------------------------------------------------------------------ from the loop

    def withholds(self, handle: asyncio.Handle) -> bool:
        """Whether `handle` is not to run now."""
        if (self.alive and not self.still) or self._loop.over:
            return False
        self._stash.append(handle)
        return True


class _Handle(asyncio.Handle):
    def _run(self) -> None:
        life = self._context.get(_LIFE)  # type: ignore[attr-defined]
        if life is None or not life.withholds(self):
            super()._run()


class _Timer(asyncio.TimerHandle):
    def _run(self) -> None:
        life = self._context.get(_LIFE)  # type: ignore[attr-defined]
        if life is None or not life.withholds(self):
            super()._run()


class LivesLoop(SimLoop):
    """Asks before each callback whether its process may run it."""

    def __init__(self) -> None:
        self.lives: list[Life] = []
        self.over = False
        super().__init__()

    def end(self) -> None:
        """All processes go on, the dead ones too: whoever plays them cancels them now."""
        self.over = True
        for life in self.lives:
            life.release()

    def _call_soon(self, callback: Any, args: Any, context: Any) -> asyncio.Handle:
        handle = _Handle(callback, args, self, context)
        self._ready.append(handle)  # type: ignore[attr-defined]
        return handle

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> asyncio.TimerHandle:
        timer = _Timer(when, callback, args, self, context)
        heapq.heappush(self._scheduled, timer)  # type: ignore[attr-defined]
        timer._scheduled = True  # type: ignore[attr-defined]
        return timer
