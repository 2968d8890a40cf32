"""Alarms of functions that sleep: when one is due its function has work, and is woken (rule *alarm*).

A function without workers has nobody who would run them. What stands beside its records is read once it has fallen asleep; only the leader
writes there while it sleeps, or a worker whose last transaction was still under way: so it is read again each minute. Who runs them once
they are due is the worker that is woken; what it does counts as its work from then on.
"""

import asyncio
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field

from dormouse_core.keys import Function, Keys
from dormouse_core.seams import Clock, Store, StoreError
from dormouse_kit import listings, log
from dormouse_proto import state_pb2
from google.protobuf.message import DecodeError

from dormouse_operator.demands import Demands
from dormouse_operator.view import View

TICK = 0.25  # seconds
AGAIN = 60.0  # between two listings of a function that sleeps
RETRY = 2.0


@dataclass(slots=True)
class _Asleep:
    due: list[int] = field(default_factory=list)  # rising
    again: float = 0.0  # monotonic
    told: int = 0


class AlarmWatch:
    """`now_us`: the reference time; None: it is not known, and nothing is due by it."""

    def __init__(self, store: Store, clock: Clock, keys: Keys, view: View, demands: Demands, now_us: Callable[[], int | None]) -> None:
        self._store = store
        self._clock = clock
        self._keys = keys
        self._view = view
        self._demands = demands
        self._now_us = now_us
        self._asleep: dict[str, _Asleep] = {}

    async def run(self) -> None:
        """What one function has listed at last, or slowly, keeps no other from being woken."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._reads())
            while True:
                self.tell()
                await self._clock.sleep(TICK)

    async def _reads(self) -> None:
        while True:
            await self.read()
            await self._clock.sleep(TICK)

    def tell(self) -> None:
        """Of every function that sleeps how many are due, as far as it was listed."""
        for uid in self._asleep.keys() - self._view.functions.keys():
            del self._asleep[uid]
        for uid, registered in list(self._view.functions.items()):
            if not registered.entry.shards or registered.entry.deleting or self._view.workers(uid):
                if self._asleep.pop(uid, None) is not None:
                    self._demands.alarms(uid, 0)
            else:
                self._tell(uid, self._asleep.setdefault(uid, _Asleep()))

    async def read(self) -> None:
        """Reads every function that sleeps, where that is due. One function's trouble stays with it."""
        for uid, state in list(self._asleep.items()):
            registered = self._view.functions.get(uid)
            if registered is None or self._asleep.get(uid) is not state or self._clock.monotonic() < state.again:
                continue
            state.again = self._clock.monotonic() + AGAIN  # before: somebody may write while it is read
            try:
                state.due = await self._list(registered.function)
            except StoreError as error:
                log.event("alarms could not be listed; tried again", function=registered.function.label, error=str(error))
                state.again = self._clock.monotonic() + RETRY
            except Exception as error:  # of ours: the others are looked at all the same
                log.warning("alarms could not be listed; tried again", function=registered.function.label, raised=error)

    def forget(self, uid: str) -> None:
        """Somebody wrote its records: what stands beside them is read again."""
        if (state := self._asleep.get(uid)) is not None:
            state.again = 0.0

    def _tell(self, uid: str, state: _Asleep) -> None:
        now_us = self._now_us()
        if now_us is None:
            return  # what was due before is due still
        count = bisect_right(state.due, now_us)
        if count != state.told:
            state.told = count
            self._demands.alarms(uid, count)

    async def _list(self, function: Function) -> list[int]:
        _, items = await listings.whole(self._store, self._keys.alarms(function))
        return sorted(_due_us(item.value) for item in items)


def _due_us(value: bytes) -> int:
    """One that cannot be read is due: whoever looks at the record puts it right."""
    try:
        return int(state_pb2.AlarmEntry.FromString(value).due_us)
    except DecodeError:
        return 0
