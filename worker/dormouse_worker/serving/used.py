"""What a worker counts of use beside the steps of sessions, and writes down for whoever comes after it.

The steps themselves are counted in their sessions' records. Here are calls of a function without sessions, what failed, was refused or
repeated, and for how long the worker was registered. It lies under the worker's name without a lease: the leader folds it when the worker
is gone. What was counted since it was written last is lost where the worker is killed.
"""

from collections.abc import Callable

from dormouse_core import limits, transactions, usages
from dormouse_core.errors import DormouseError, Unavailable
from dormouse_core.keys import Function, Keys
from dormouse_core.seams import Clock, Store, StoreError
from dormouse_core.usages import Totals, Usage

_REFUSED, _FAILED, _REPEATED = Usage(refused=1), Usage(failed=1), Usage(repeated=1)


class Used:
    """Cumulative, by tenant."""

    def __init__(self) -> None:
        self.totals: Totals = {}
        self.changed = False

    def ended(self, tenant: str, error: DormouseError | None, used: Usage | None, *, kept: bool) -> None:
        """A call has its answer. `used`: of one without a session that ran; `kept`: the answer is that of an earlier copy."""
        if error is not None:
            usage = _REFUSED if isinstance(error, Unavailable) and error.again is not None else _FAILED
        elif kept:
            usage = _REPEATED
        elif used is not None:
            usage = used
        else:
            return  # a step: in its record
        self.add(tenant, usage)

    def add(self, tenant: str, usage: Usage) -> None:
        usages.add(self.totals, tenant if len(tenant) <= limits.TENANT_CHARACTERS else usages.OTHERS, usage)
        if len(self.totals) > 2 * limits.USAGE_TENANTS:
            self.totals = usages.bounded(self.totals)
        self.changed = True


class UsageKeeper:
    """Writes one worker's usage down. `worker`: as it is registered."""

    def __init__(self, function: Function, store: Store, clock: Clock, keys: Keys, worker: str, used: Callable[[], Used]) -> None:
        self._function = function
        self._store = store
        self._clock = clock
        self._keys = keys
        self._worker = worker
        self._used = used
        self._began = clock.monotonic()
        self._written = self._began

    async def run(self) -> None:
        while True:
            await self._clock.sleep(limits.USAGE_SECONDS)
            if self._used().changed or self._clock.monotonic() - self._written >= limits.USAGE_IDLE_SECONDS:
                await self.write()

    async def write(self) -> None:
        """What a store that does not answer, or is full, does not take is written the next time: it is cumulative."""
        used, now = self._used(), self._clock.monotonic()
        used.changed = False
        totals = dict(used.totals)
        usages.add(totals, "", Usage(worker_us=round((now - self._began) * 1e6)))
        try:
            await self._store.txn(transactions.count(self._keys, self._function, self._worker, usages.encode(totals)))
            self._written = now
        except StoreError:
            used.changed = True
