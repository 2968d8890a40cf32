"""Linux's scheduling policy, switched by load.

Three threads of this process wake one another for every call (Envoy's, the one that takes the GIL, the event loop's). Under the normal
policy each wake-up preempts the waker, so that little gathers: 12,900 calls/s at 16 in flight on one core. Under SCHED_BATCH it does not:
26,500. But a batch process beside a busy one waits longer for its turn: 2,300 calls/s at one in flight fall to 290. So: batch while several
calls are in flight, normal otherwise. (Measured on Envoy 1.39, pyvoy 1.3; see bench/README.md.)
"""

import os

EVERY = 64
"""Turns between two decisions."""
ON = 3.5
OFF = 2.5
"""Mean calls in flight above which, and below which, to switch."""


class Scheduling:
    def __init__(self) -> None:
        self._turns = 0
        self._sum = 0
        self.batch = False

    def turn(self, active: int) -> None:
        """To be called once a turn of the loop that began calls."""
        self._turns += 1
        self._sum += active
        if self._turns < EVERY:
            return
        mean = self._sum / self._turns
        self._turns = self._sum = 0
        wanted = mean > (OFF if self.batch else ON)
        if wanted != self.batch:
            self.batch = wanted
            _switch(os.SCHED_BATCH if wanted else os.SCHED_OTHER)


def _switch(policy: int) -> None:
    for thread in os.listdir("/proc/self/task"):
        try:
            os.sched_setscheduler(int(thread), policy, os.sched_param(0))
        except OSError:
            continue  # it has ended, or a sandbox forbids it: a slower worker is no error
