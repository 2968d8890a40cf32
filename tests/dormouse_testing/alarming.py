"""A worker whose steps set alarms, on a store in memory and simulated time."""

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
from dormouse_core import alarms
from dormouse_core.errors import InvalidArgument
from dormouse_core.sessions.names import session_key, shard_of
from dormouse_worker.sessions import Failed, Outcome, Ran, Step
from dormouse_worker.sessions.alarms import due_us

from dormouse_testing.clock import SimClock
from dormouse_testing.memory_store import MemoryStore
from dormouse_testing.session_worker import SHARDS, F, K, Worker


class Alarmed:
    """A call is (number to add, what to ask for, …); an alarm's request is its number as text. `fails`: names of alarms whose steps
    fail."""

    def __init__(self) -> None:
        self.ran: list[tuple[str, int]] = []  # of alarms: the key's id and the number
        self.fails: set[str] = set()
        self.times = asyncio.get_running_loop().time
        self.at: list[float] = []
        self.stands = False  # no step of an alarm ends
        self.more: dict[str, np.ndarray] = {}  # further states that each step returns
        self.why = "not this one"

    def run(
        self, call: Any, states: dict[str, np.ndarray], step: int, start: bool, end: bool, done: Callable[[Outcome], None], deadline: float
    ) -> None:
        number, changes, alarm = call if isinstance(call, tuple) else (call, (), None)
        if alarm is not None:
            self.ran.append((alarm.key.id, number))
            self.at.append(self.times())
            if self.stands:
                return
            if alarm.alarm.name in self.fails:
                asyncio.get_running_loop().call_soon(done, Failed(InvalidArgument(self.why)))
                return
        total = states["sum"] + number
        asyncio.get_running_loop().call_soon(done, Ran(b"%d" % total[0], {"sum": total, **self.more}, changes))


def alarmed(step: Step) -> Any:
    assert step.alarm is not None
    number, _, again = step.alarm.request.decode().partition(" ")
    if number == "wrong":
        raise InvalidArgument("inputs['x'].datatype: 'FP64' found, FP32 is expected")
    return int(number), (alarms.Set(step.alarm.name, 0, step.alarm.request),) if again else (), step


def worker(store: MemoryStore, name: str = "w-1", **options: Any) -> Worker:
    made = Worker(store, name, runner=Alarmed(), **options)  # type: ignore[arg-type]
    made.sessions.alarmed = alarmed
    return made


def asks(number: int, *changes: alarms.Change) -> Any:
    return number, changes, None


def at(seconds: float) -> int:
    """So many seconds from now, in µs."""
    return round((now() + seconds) * 1e6)


def now() -> float:
    return SimClock().now()


def alarm_key(name: str) -> str:
    session = session_key("", name)
    return K.alarm(F, shard_of(session, SHARDS), session)


async def due(store: MemoryStore, name: str) -> int | None:
    """What stands beside the session's record."""
    key = alarm_key(name)
    item = (await store.get([key]))[1].get(key)
    return None if item is None else due_us(item.value)
