"""The leader's part of knowing whose clock is wrong: it answers each report with its own time, the reference and the median of all clocks,
and looks at its own beside them. A leader that is off by more than the bound, where others agree, ends its term: `off` is set, and who runs
it lets another lead (`terms`). What is decided, and why, is in `dormouse_core.clocks`.
"""

import asyncio
from collections.abc import Callable

from dormouse_core.clocks import Clocks, Skew, agreed
from dormouse_core.seams import Clock
from dormouse_kit import log
from dormouse_proto import control_pb2

from dormouse_operator import metrics

EVERY = 1.0
LOOKS = 3
"""Looks in a row that must find the clock off: one that is being set back is given the time for it."""


class Timekeeper:
    """`skew`: the leader's own clock, for whatever it must not do by a wrong one. `function_of(worker)`: its uid; None: not known."""

    def __init__(self, clock: Clock, function_of: Callable[[str], str | None]) -> None:
        self._function_of = function_of
        self.skew = Skew(clock)
        self.off = asyncio.Event()
        self._clock = clock
        self._clocks = Clocks(clock)

    def worker(self, report: control_pb2.WorkerReport) -> control_pb2.WorkerOrder.Time:
        if (function := self._function_of(report.worker)) is not None:  # what a worker says of itself is its tenant's code's word
            self._hear(report.worker, function, report)
        us, count, median_us = agreed(self._clocks.reference())
        return control_pb2.WorkerOrder.Time(
            mark=report.mark, leader_us=self._clocks.now_us(), reference_us=us, agreed=count, median_us=median_us
        )

    def agent(self, report: control_pb2.AgentReport) -> control_pb2.AgentOrder:
        self._hear(report.agent, None, report)
        us, count, median_us = agreed(self._clocks.reference())
        return control_pb2.AgentOrder(
            echo_us=report.sent_us, leader_us=self._clocks.now_us(), reference_us=us, agreed=count, median_us=median_us
        )

    @property
    def anew(self) -> bool | None:
        """As `Clocks.anew`."""
        return self._clocks.anew

    def forget(self, process: str, function: str | None) -> None:
        """As `Clocks.forget`."""
        self._clocks.forget(process, function)

    async def run(self) -> None:
        looks = 0
        while True:
            await self._clock.sleep(EVERY)
            self.skew.heard(self.skew.mark(), self._clocks.now_us(), *agreed(self._clocks.reference()))
            deviation = self.skew.deviation_us()
            metrics.CLOCK_DEVIATION.set(float("nan") if deviation is None else deviation / 1e6)
            looks = looks + 1 if self.skew.off else 0
            if looks == LOOKS:
                log.warning("the leader's clock is off", reason=self.skew.text())
                self.off.set()

    def _hear(self, process: str, function: str | None, report: control_pb2.WorkerReport | control_pb2.AgentReport) -> None:
        offset = report.offset_us if report.HasField("offset_us") else None
        self._clocks.report(process, function, offset, report.reference_us if report.HasField("reference_us") else None)
