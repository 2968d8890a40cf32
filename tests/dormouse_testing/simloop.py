"""asyncio on simulated time.

`run(coroutine)` runs it on an event loop whose clock stands still while anything can run and jumps to the next timer when nothing can. An
hour of timeouts takes milliseconds, and the same program gives the same history each time: ready callbacks run in the order in which they
were scheduled, and no other source of time or input exists. Sockets, subprocesses and threads are refused: they would wait for the real
world.
"""

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")
TURNS = 100_000  # of the loop at one moment: what a simulation does at most before somebody waits is a fiftieth of it
START = 1_000.0  # the loop's time at the start; not 0, so that "0 means never" bugs show


class Deadlock(AssertionError):
    """Nothing can run and no timer is set: whatever is awaited will never happen."""


class Livelock(AssertionError):
    """Something runs again and again and waits for nothing: the clock would stand still for ever."""


class _Selector(selectors.SelectSelector):
    """Waiting is a jump of the clock."""

    def __init__(self, jump: Callable[[float | None], None]) -> None:
        super().__init__()
        self._jump = jump
        self._turns = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self._turns += 1
        if timeout is None or timeout > 0:
            self._jump(timeout)
            self._turns = 0
        elif self._turns > TURNS:
            raise Livelock(f"{TURNS} turns of the loop, and the clock stands still")
        return []


class SimLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._now = START
        super().__init__(_Selector(self._jump))

    def time(self) -> float:
        return self._now

    def _jump(self, seconds: float | None) -> None:
        if seconds is None:
            raise Deadlock("nothing can run and no timer is set")
        self._now += seconds

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:  # type: ignore[override]  # refuses whatever it is given
        raise RuntimeError("simulated time: no threads")

    async def create_connection(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("simulated time: no sockets")

    async def subprocess_exec(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("simulated time: no subprocesses")


def run(main: Coroutine[Any, Any, T], *, limit: float | None = 7_200.0, loop: type[SimLoop] = SimLoop) -> T:
    """The result of `main`. Fails after `limit` simulated seconds (None: never), and where a task ended in an exception that nobody saw."""
    unseen: list[BaseException] = []

    def handler(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        unseen.append(context.get("exception") or AssertionError(context["message"]))

    async def limited() -> T:
        async with asyncio.timeout(limit):
            return await main

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.get_loop().set_exception_handler(handler)
        result = runner.run(limited())
    if unseen:
        raise AssertionError(f"{len(unseen)} errors that nobody saw; the first: {unseen[0]!r}") from unseen[0]
    return result
