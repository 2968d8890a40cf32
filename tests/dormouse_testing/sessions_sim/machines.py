"""Clocks of simulated processes: off by some seconds, by an hour, jumping, and measured by a leader that is away at times."""

import random
from dataclasses import dataclass, field

from dormouse_core.clocks import Rising, Skew

from dormouse_testing.clock import SimClock

HOUR = 3600.0
EVERY = 0.5


@dataclass
class Timed:
    """One process's clock, and what it knows of it."""

    clock: SimClock
    near: float
    """How far it is off while nothing is wrong with it, in seconds."""
    skew: Skew = field(init=False)
    rising: Rising = field(init=False)

    def __post_init__(self) -> None:
        self.skew = Skew(self.clock)
        self.rising = Rising(self.skew)

    def mend(self) -> None:
        self.clock.skew = self.near


class Machines:
    """`wrong`: how many of the clocks are off by an hour at a time. `measured`: the leader tells the reference, its own clock."""

    def __init__(self, rng: random.Random, leader: SimClock, skew: float, wrong: float, measured: bool) -> None:
        self._rng = rng
        self._leader = leader
        self._skew = skew
        self._wrong = wrong
        self._measured = measured
        self._away = 0
        self.all: list[Timed] = []

    def start(self, *, never_wrong: bool = False) -> Timed:
        near = self._rng.uniform(-self._skew, self._skew)
        timed = Timed(SimClock(near), near)
        if not never_wrong:
            self.all.append(timed)
            self._break(timed, self._wrong)
        if self._measured and (never_wrong or not self._wrong or self._rng.random() < 0.5):
            self.measure(timed)
        return timed

    def tick(self, troubled: bool) -> None:
        """Each EVERY seconds."""
        rng = self._rng
        for timed in self.all:
            if not troubled:
                timed.mend()
            elif rng.random() < 0.1:
                timed.mend()
                self._break(timed, self._wrong)
        if self._wrong and troubled and not self._away and rng.random() < 0.2:
            self._away = rng.choice((4, 10))
        self._away = max(0, self._away - 1) if troubled else 0
        if self._measured and not self._away:
            for timed in self.all:
                self.measure(timed)

    def measure(self, timed: Timed) -> None:
        timed.skew.heard(timed.skew.mark(), round(self._leader.now() * 1e6), 0, 3)

    def _break(self, timed: Timed, share: float) -> None:
        if share and self._rng.random() < share:
            timed.clock.skew += self._rng.choice((-HOUR, HOUR))
