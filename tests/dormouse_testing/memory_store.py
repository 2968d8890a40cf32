"""A client of an etcd in memory, with the faults that a network and a store have.

    store = MemoryStore(clock)              # its own etcd
    other = store.client()                  # another process's client of the same etcd
    store.fault("txn", REPLY_LOST)          # the next transaction is applied, and its outcome unknown
    store.fault("txn", Fault(request_delay=9))  # the next times out and lands afterwards
    store.down = True                       # this client reaches nothing until it is False again; its watches break

A request that is on its way lands even if whoever sent it was cancelled or gave up: that is what makes a late transaction late.
"""

import asyncio
import contextvars
from collections import defaultdict, deque
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from dormouse_core.histories import History
from dormouse_core.seams import Clock, Full, Item, Listing, Put, Rewound, StoreError, Txn, TxnResult, Unreached, WatchBatch

from dormouse_testing.memory_etcd import MemoryEtcd, Ordered

T = TypeVar("T")
SIGN_OF_LIFE = 5.0  # a silent watch says that it is alive


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to one request. Delays: seconds of the loop's time; where they pass the timeout, the caller knows no outcome."""

    request_delay: float = 0.0
    reply_delay: float = 0.0
    lose_request: bool = False  # it never arrives; the caller is told at once that the connection broke
    lose_reply: bool = False  # it is applied; the caller is told at once that the connection broke
    unreached: bool = False  # no connection was had within its timeout, so it was never sent
    refuse: str = ""  # the store's no, which is definite if it is not Full
    applied: bool = False  # with `refuse`: it is applied all the same, as etcd does when it becomes full


REQUEST_LOST = Fault(lose_request=True)
REPLY_LOST = Fault(lose_reply=True)
UNREACHED = Fault(unreached=True)
REFUSED = Fault(refuse="etcdserver: request is too large")
FULL = Fault(refuse="etcdserver: mvcc: database space exceeded")
FULL_APPLIED = Fault(refuse=FULL.refuse, applied=True)
_NONE = Fault()


def _refusal(text: str) -> StoreError:
    return Full(text) if "space exceeded" in text else StoreError(text, definite=True)


class MemoryStore:
    """`dormouse_core.seams.Store`. `hook`, if set, is asked for each request's fault first: (method, its main argument)."""

    def __init__(self, clock: Clock, *, etcd: MemoryEtcd | None = None) -> None:
        self.clock = clock
        self.etcd = etcd or MemoryEtcd(clock)
        self.hook: Callable[[str, object], Fault | None] | None = None
        self.watch_delay = 0.0  # how much later than the store this client's watches see things
        self.calls: dict[str, int] = defaultdict(int)
        self.on_rewound: Callable[[str], None] = lambda why: None
        self.network: contextvars.Context | None = None  # whose what is on its way is; None: the caller's
        self.notices = True  # when the store has another history; False: as before there was `on_rewound`
        self._history_known = History()
        self._checked = self.etcd.starts  # of which start the history was looked at
        self._faults: dict[str, deque[Fault]] = defaultdict(deque)
        self._down = False
        self._generation = 0
        self._wakers = Ordered[asyncio.Event]()
        self._tasks = Ordered[asyncio.Task[None]]()

    def client(self, clock: Clock | None = None) -> "MemoryStore":
        return MemoryStore(clock or self.clock, etcd=self.etcd)

    def fault(self, method: str, fault: Fault, times: int = 1) -> None:
        """The next `times` calls of `method` meet `fault`."""
        self._faults[method].extend([fault] * times)

    @property
    def down(self) -> bool:
        return self._down

    @down.setter
    def down(self, value: bool) -> None:
        self._down = value
        if value:
            self.break_watches()

    def break_watches(self) -> None:
        """Every watch of this client ends with StoreError."""
        self._generation += 1
        for waker in self._wakers:
            waker.set()

    async def close(self) -> None:
        self.break_watches()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    # --------------------------------------------------------------------------------------------------------------- the seam

    async def get(self, keys: Sequence[str], *, timeout: float = 5.0) -> tuple[int, dict[str, Item]]:
        return await self._run("get", keys, timeout, lambda: self.etcd.get(keys))

    async def list(
        self,
        prefix: str,
        *,
        start: str = "",
        limit: int = 0,
        revision: int = 0,
        keys_only: bool = False,
        timeout: float = 5.0,
    ) -> Listing:
        return await self._run("list", prefix, timeout, lambda: self.etcd.range(prefix, start, limit, revision, keys_only))

    async def txn(self, txn: Txn, *, timeout: float = 5.0) -> TxnResult:
        return await self._run("txn", txn, timeout, lambda: self.etcd.txn(txn))

    async def grant(self, ttl: int) -> int:
        lease = await self._run("grant", ttl, 5.0, lambda: self.etcd.grant(ttl))
        task = asyncio.create_task(self._end_in_time(lease), name=f"lease {lease}", context=self.network)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return lease

    async def keep_alive(self, lease: int, *, timeout: float = 1.0) -> int:
        return await self._run("keep_alive", lease, timeout, lambda: self.etcd.keep_alive(lease))

    async def revoke(self, lease: int) -> None:
        await self._run("revoke", lease, 5.0, lambda: self.etcd.revoke(lease))

    async def compact(self, revision: int) -> None:
        await self._run("compact", revision, 5.0, lambda: self.etcd.compact(revision))

    async def watch(self, prefix: str, revision: int) -> AsyncGenerator[WatchBatch, None]:
        await self._run("watch", prefix, 5.0, lambda: None)
        generation = self._generation
        changed = asyncio.Event()
        self._wakers.add(changed)
        self.etcd.listeners.add(changed.set)
        following = revision or self.etcd.revision + 1
        complete = following - 1
        try:
            self.etcd.events(prefix, following)  # raises Compacted at once, as a batch without events would promise too much
            yield WatchBatch(complete)
            while True:
                changed.clear()
                events = self.etcd.events(prefix, following)
                following = max(following, self.etcd.revision + 1)
                if not events:
                    try:
                        async with asyncio.timeout(SIGN_OF_LIFE):
                            await changed.wait()
                    except TimeoutError:
                        yield WatchBatch(complete)
                if self.watch_delay and events:
                    await asyncio.sleep(self.watch_delay)
                if self._generation != generation:
                    raise StoreError(f"watch of {prefix!r}: the connection broke")
                if events:
                    complete = events[-1].mod_revision
                    self._history_known.seen(complete)
                    yield WatchBatch(complete, tuple(events))
        finally:
            self._wakers.discard(changed)
            self.etcd.listeners.discard(changed.set)

    # ------------------------------------------------------------------------------------------------------------------- faults

    def _next_fault(self, method: str, request: object) -> Fault:
        self.calls[method] += 1
        if self.hook is not None and (fault := self.hook(method, request)) is not None:
            return fault
        waiting = self._faults[method]
        return waiting.popleft() if waiting else _NONE

    async def _run(self, method: str, request: object, timeout: float, apply: Callable[[], T]) -> T:
        fault = self._next_fault(method, request)
        if fault.unreached:
            await asyncio.sleep(timeout)
            raise Unreached(f"{method}: no member could be reached in {timeout:g} s")
        loop = asyncio.get_running_loop()
        known, starts = self._history_known.revision, self.etcd.starts
        outcome: asyncio.Future[T] = loop.create_future()
        outcome.add_done_callback(lambda done: done.cancelled() or done.exception())  # seen, also where the caller is gone

        def answer(result: T | StoreError) -> None:
            if outcome.done():
                return
            if isinstance(result, StoreError):
                outcome.set_exception(result)
            else:
                outcome.set_result(result)

        def land() -> None:
            result: T | StoreError
            if self._down or fault.lose_request or self.etcd.starts != starts:
                answer(StoreError(f"{method}: the store cannot be reached"))
                return
            if self._checked != starts and (why := self._another()):
                answer(Rewound(why))
                return
            try:
                result = _refusal(fault.refuse) if fault.refuse and not fault.applied else apply()
                if fault.refuse:
                    result = _refusal(fault.refuse)
            except StoreError as error:
                result = error
            self._history_known.answered(1, self.etcd.revision, known)
            if isinstance(request, Txn) and isinstance(result, TxnResult) and result.succeeded:
                self._wrote(request, result)
            if fault.lose_reply:
                result = StoreError(f"{method}: the connection broke")
            if fault.reply_delay:
                loop.call_later(fault.reply_delay, answer, result, context=self.network)
            else:
                answer(result)

        if fault.request_delay:
            loop.call_later(fault.request_delay, land, context=self.network)
        else:
            loop.call_soon(land, context=self.network)
        done, _ = await asyncio.wait({outcome}, timeout=timeout)
        if not done:
            raise StoreError(f"{method}: no answer in {timeout:g} s")
        return outcome.result()

    def _another(self) -> str:
        """As the product's client asks before its first request on a new connection: why the store has another history, or ''."""
        self._checked = self.etcd.starts
        if not self.notices:
            return ""
        known, written = self._history_known.revision, self._history_known.written
        why = self._history_known.answered(1, self.etcd.revision, known)
        if not why and written is not None and written == self._history_known.written:
            item = self.etcd.item(written[0])
            why = self._history_known.found(item.mod_revision if item else 0, 1, self.etcd.revision)
        if why:
            self.on_rewound(why)
        return why

    def _wrote(self, txn: Txn, result: TxnResult) -> None:
        if key := next((write.key for write in txn.writes if isinstance(write, Put)), ""):
            self._history_known.wrote(key, result.revision)

    async def _end_in_time(self, lease: int) -> None:
        """So that a lease's end is seen by watches though nobody calls."""
        while (left := self.etcd.left(lease)) > 0:
            await self.clock.sleep(left)
        self.etcd.expire()
