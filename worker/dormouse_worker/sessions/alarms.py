"""Runs the alarms of this worker's shards when they are due (rule *alarm*): lists them when a shard is acquired, waits, and submits a look
at the session, which has its turn like any step. `dormouse_core.sessions.ringing` knows what is due when; what is run, the record says.

What is listed may be much, and no alarm waits for it that is known already: lists are made beside the rest."""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Protocol
from urllib.parse import unquote

from dormouse_core.callkeys import CallKey
from dormouse_core.clocks import TimeReading
from dormouse_core.errors import DataLoss, FailedPrecondition
from dormouse_core.keys import Function, Keys, number
from dormouse_core.seams import Clock, Store, StoreError
from dormouse_core.sessions.boundary import Answer, Step
from dormouse_core.sessions.ringing import Book
from dormouse_kit import listings, log
from dormouse_proto import state_pb2
from google.protobuf.message import DecodeError

RETRY_SECONDS = 1.0
AGAIN_SECONDS = 60.0  # between two lists of all that is owned
CLOCK_SECONDS = 0.1  # between two looks at a clock that is not known yet, as of a worker that was woken for an alarm
AT_ONCE = 1000  # reminders that are read before others have their turn
LONGEST_WAIT_SECONDS = 1.0
"""The clock may be put right, or known again, meanwhile."""


class Submits(Protocol):
    def submit(self, step: Step) -> None: ...
    def busy(self, shard: int, session: str) -> bool: ...


class Ringer:
    """`time`: nothing is run by a clock that is not known to be good."""

    def __init__(self, function: Function, store: Store, clock: Clock, keys: Keys, book: Book, to: Submits, time: TimeReading) -> None:
        self._function = function
        self._store = store
        self._clock = clock
        self._keys = keys
        self._book = book
        self._to = to
        self._time = time
        self._news = asyncio.Event()
        self._wanted = asyncio.Event()
        self._said = ""
        self._again = 0.0  # monotonic
        self.under_way = 0
        """Looks that were submitted and have not ended, whether the alarm's step has begun or not."""
        self.admits: Callable[[], bool] = lambda: True
        """Whether a look may begin now."""
        self.on_change: Callable[[], None] = lambda: None
        """Called when `under_way` has changed."""

    def limit(self, places: int) -> None:
        """So many steps may the runner begin at once (`Book.places`)."""
        self._book.places = places

    def wake(self) -> None:
        """Something is due at another time, or may begin."""
        self._news.set()

    def acquired(self) -> None:
        """A shard was."""
        self._wanted.set()

    def waiting(self) -> int:
        """Alarms that run or are due; what is not known counts as one. Where this clock is not known to be good, whether one is due is said
        by the best time that there is: a worker that said that it has no work would be let go, and be woken for the alarm again."""
        now_us = self._time.now_us()
        return min(1, self._book.waiting(self._time.best_us())) if now_us is None else self._book.waiting(now_us)

    async def run(self) -> None:
        while True:
            self._news.clear()
            self._ring()
            try:
                async with asyncio.timeout(self._wait()):
                    await self._news.wait()
            except TimeoutError:
                pass

    async def lists(self) -> None:
        while True:
            self._wanted.clear()
            now = self._clock.monotonic()
            if now >= self._again:
                self._again = now + AGAIN_SECONDS
                self._book.again()
            wait = self._again - now
            try:
                await self._list_all()
                self._said = ""
            except StoreError as error:
                wait = RETRY_SECONDS
                if str(error) != self._said:
                    self._said = str(error)
                    log.event("alarms could not be listed; tried again", function=self._function.label, error=self._said)
            try:
                async with asyncio.timeout(wait):
                    await self._wanted.wait()
            except TimeoutError:
                pass

    async def _list_all(self) -> None:
        """What is wanted: where the whole function has few it is one request, else one for each shard, not to read what others own."""
        tokens = {shard: self._book.token(shard) for shard in self._book.unlisted()}
        if len(tokens) > 1:
            prefix = self._keys.alarms(self._function)
            listing = await self._store.list(prefix, limit=AT_ONCE)
            if not listing.more:
                found: dict[int, dict[str, int]] = {shard: {} for shard in tokens}
                for item in listing.items:
                    shard, _, session = item.key.removeprefix(prefix).partition("/")
                    if (at := number(shard)) is not None and at in found:
                        found[at][session] = due_us(item.value)
                for shard_number, token in tokens.items():
                    self._book.listed(shard_number, token, found[shard_number])
                self._news.set()
                return
        for shard_number in tokens:
            await self._list(shard_number)

    async def _list(self, shard: int) -> None:
        token, prefix = self._book.token(shard), self._keys.alarms(self._function, shard)
        if token is None:
            return  # it was given away meanwhile
        _, items = await listings.whole(self._store, prefix)
        found: dict[str, int] = {}
        for count, item in enumerate(items):
            if count % AT_ONCE == AT_ONCE - 1:
                await asyncio.sleep(0)
            found[item.key.removeprefix(prefix)] = due_us(item.value)
        self._book.listed(shard, token, found)
        self._news.set()

    def _ring(self) -> None:
        now_us = self._time.now_us()
        if now_us is None or not self.admits():
            return
        for shard, session, due in self._book.due(now_us, self._to.busy):
            token = self._book.token(shard)
            answer = partial(self._rung, shard, token, session)
            key = CallKey(due, "a-due")  # its place in the queue; the alarm that is found has its own
            self.under_way += 1
            began = partial(self._began, shard, token, session)
            self._to.submit(Step(session, key, b"", False, False, False, None, answer, rings=True, began=began))
            self.on_change()

    def _began(self, shard: int, token: object, session: str) -> None:
        self._book.began(shard, token, session)
        self._news.set()

    def _rung(self, shard: int, token: object, session: str, answer: Answer) -> None:
        error = answer.error
        now_us = self._time.best_us()
        blocked = isinstance(error, DataLoss | FailedPrecondition)
        self._book.rung(shard, token, session, now_us, settled=error is None, blocked=blocked)
        self.under_way -= 1
        self.on_change()
        self._news.set()

    def _wait(self) -> float:
        now_us, next_us = self._time.now_us(), self._book.next_us()
        if next_us is None or not self.admits():
            return LONGEST_WAIT_SECONDS
        if now_us is None:
            return CLOCK_SECONDS
        return min(LONGEST_WAIT_SECONDS, max(0.0, (next_us - now_us) / 1e6))


def due_us(value: bytes) -> int:
    """Of a session's key beside its record; one that cannot be read is due at once: the record is looked at, and it is put right."""
    try:
        return int(state_pb2.AlarmEntry.FromString(value).due_us)
    except DecodeError:
        return 0


def whose(session: str) -> tuple[str, int | str]:
    """(tenant, id) of a session's key (`names.session_key`)."""
    tenant, _, ident = session.partition("/")
    kind, _, name = ident.partition(":")
    return unquote(tenant), int(name) if kind == "i" else unquote(name)
