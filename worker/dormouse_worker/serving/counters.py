"""What a worker counts: for the leader's autoscaler and for Prometheus.

Concurrency is an integral over time, not a sample: whoever reads it twice knows the true average between, however short the calls were. An
error is counted under its code; a call that was refused with `dormouse-again` ran nothing and is counted apart, so that one that succeeds
at its second try counts once.
"""

import time
from collections.abc import Callable

from dormouse_core.errors import Code, DormouseError, Unavailable


class Counters:
    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._since = monotonic()
        self.active = 0
        """Calls that arrived and are not finished."""
        self._seconds = 0.0
        self.codes: dict[int, int] = {int(Code.OK): 0}
        self.ok_seconds = 0.0
        self.failed_seconds = 0.0
        """From first byte to answer, of all calls under a code."""
        self.again: dict[str, int] = {}
        self.kept = 0
        self.bytes_in = 0
        self.bytes_out = 0

    def change(self, by: int) -> None:
        """So many calls more (or fewer) are active from now on."""
        now = self._monotonic()
        self._seconds += self.active * (now - self._since)
        self._since = now
        self.active += by

    def concurrency_seconds(self) -> float:
        return self._seconds + self.active * (self._monotonic() - self._since)

    def failed(self, error: DormouseError, seconds: float = 0.0) -> None:
        if isinstance(error, Unavailable) and error.again is not None:
            self.again[error.again.value] = self.again.get(error.again.value, 0) + 1
        else:
            self.codes[int(error.code)] = self.codes.get(int(error.code), 0) + 1
            self.failed_seconds += seconds

    @property
    def finished(self) -> int:
        """Calls that were served, well or not; kept replies and refusals apart."""
        return sum(self.codes.values())
