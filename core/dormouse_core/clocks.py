"""How far each process's wall clock is off, and what may be done by it (rule *reference-time*).

The leader and each process exchange times on their control stream. A process learns the leader's time, half the way there and back, and
reports by how much its own clock differs; the leader takes the median of all clocks, its own included, and tells everybody. The median
exists where more than half of the clocks are within the bound of it, and of two where both agree: else nobody can say which is wrong.

Whose clock is off is judged by the median. It jumps when a process comes or goes, though, and processes hear of it one after the other. So
calls are stamped, and sessions expire, by the *reference*: a time that begins at the median and follows it slowly, also from leader to
leader.

What is measured is kept against the monotonic clock. So a wall clock that jumps shows at once, and a leader that is away takes nothing
back: the measure stays good for as long as two machines' monotonic clocks run alike.

    standing   when                                                   what follows
    GOOD       within the bound of the median, then and now           it serves; sessions expire by the reference time
    OFF        beyond the bound, then and now                         it does not serve
    UNKNOWN    never measured, long ago, or the clock jumped since    it serves; no session expires by it, no key is refused by it

Nothing here does I/O; the clock is an argument. What was weighed is in `docs/decisions/0115-clocks.md`.
"""

import enum
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from statistics import median, median_low
from typing import Protocol

from dormouse_core.limits import CLOCK_SKEW_SECONDS, CLOCK_TRUST_SECONDS
from dormouse_core.seams import Clock

BOUND_US = int(CLOCK_SKEW_SECONDS * 1e6)
BACK_US = BOUND_US * 4 // 5
"""A clock that was off counts as good again from here, so that one at the bound does not come and go."""
HEARD_SECONDS = 10.0
"""An offset that was reported longer ago has no vote."""
GATHER_SECONDS = 3.0
"""For so long a leader that begins hears the others before it says what the reference is. Else the first that reports decides with it
against all: a gateway of its machine, whose clock is as wrong as the leader's."""
TRUST_US = int(CLOCK_TRUST_SECONDS * 1e6)
SAMPLES = 16
SAMPLE_AGE_US = 60_000_000
SHORT_US = 2_000
"""There and back; half of it is the most that the measure may be wrong by."""
LONG_US = 250_000
"""Beyond this a sample may tell a clock that is off, and is no measure for timestamps: it was taken while a process stood still."""
FIRST_SAMPLES = 8
SLACK_US = 20_000
"""Beyond what their ways explain, two samples of one leader's clock differ by less than this within a minute; else it has jumped."""
FOLLOWS = 200e-6
"""Seconds in a second by which the reference nears the median: until all have heard of it, a fraction of the time of one call."""
FOLLOWS_FOR = 2.0
"""Seconds that count at once: after a while without a median the reference does not make up for them."""


class Standing(enum.Enum):
    GOOD = "within the bound"
    OFF = "beyond the bound"
    UNKNOWN = "not known"


@dataclass(frozen=True, slots=True)
class Reference:
    """In µs from the leader's clock: the reference time, and the median of the clocks; `agreed`: how many are within the bound of that."""

    us: int
    agreed: int
    median_us: int


def reference(offsets: Collection[int]) -> Reference | None:
    """Of clocks that differ from the leader's by `offsets` µs (the leader's own 0 among them), where nothing was followed before. None:
    they cannot say.

    More than half must be within the bound of the median: then a clock beyond it has at least two others, which agree, against it. Two
    clocks that agree are good; of two that do not, nobody can say which is wrong.
    """
    if len(offsets) < 2 or (len(offsets) == 2 and max(offsets) - min(offsets) > BOUND_US):
        return None
    middle = round(median(offsets))
    agreed = sum(abs(offset - middle) <= BOUND_US for offset in offsets)
    return Reference(middle, agreed, middle) if 2 * agreed > len(offsets) else None


@dataclass(frozen=True, slots=True)
class _Sample:
    at_us: int  # monotonic
    ahead_us: int  # the leader's wall clock minus the own monotonic one
    way_us: int  # there and back


class Skew:
    """One process's clock beside the others'. Fed by whoever talks to the leader; asked by whatever must not trust a wrong clock."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._samples: list[_Sample] = []
        self._reference_us: int | None = None  # the reference time minus the own monotonic clock
        self._median_us: int | None = None  # likewise
        self._measured_us = 0  # monotonic: when the leader last said the median
        self._timed_us = 0  # likewise: the reference
        self._deviation_us = 0  # then
        self._off = False

    # ------------------------------------------------------------------------------------------------------------- from the leader

    def meet(self) -> None:
        """Another leader, or the same on another stream: what was measured beside the one of before is no offset from this one. Told to a
        new leader it would be a vote about a clock that leads no more. The reference is kept: it is against the own monotonic clock."""
        self._samples.clear()

    def mark(self) -> int:
        """To be sent with a report, and to come back unchanged with the leader's time."""
        return self._monotonic()

    def heard(self, mark: int, leader_us: int, reference_us: int, agreed: int, median_us: int | None = None) -> bool:
        """The leader's answer to a report. `agreed` 0: there is no median now; what was known before stays. `median_us` None: a leader of
        before, whose reference is the median. True: what a report says has changed its meaning."""
        before = (self.standing(), bool(self._samples))
        self._hear(mark, leader_us, reference_us, agreed, reference_us if median_us is None else median_us)
        return before != (self.standing(), bool(self._samples))

    def _hear(self, mark: int, leader_us: int, reference_us: int, agreed: int, median_us: int) -> None:
        now = self._monotonic()
        if not 0 <= now - mark <= SAMPLE_AGE_US:
            return
        sample = _Sample(now, leader_us - (mark + now) // 2, now - mark)
        best = self._best()
        if best is not None and abs(sample.ahead_us - best.ahead_us) > (sample.way_us + best.way_us) // 2 + SLACK_US:
            self._samples.clear()  # the leader's clock has jumped, or another leads
        recent = [old for old in self._samples if now - old.at_us <= SAMPLE_AGE_US]
        self._samples = [*recent[1 - SAMPLES :], sample]
        if agreed:
            best = self._best()
            assert best is not None
            self._median_us = best.ahead_us + median_us
            here = best.ahead_us + reference_us
            if best.way_us <= LONG_US:
                self._reference_us, self._timed_us = here, now
            elif self._reference_us is not None and abs(here - self._reference_us) > best.way_us // 2 + SLACK_US:
                self._reference_us = None  # it has jumped, and where to is not known
            self._measured_us = now
            self._deviation_us = self._now_deviation()
            self._off = abs(self._deviation_us) > (BACK_US if self._off else BOUND_US)

    def offset_us(self) -> int | None:
        """This wall clock minus the leader's; None: not known. What a report says."""
        best = self._best()
        return None if best is None else self._wall() - self._monotonic() - best.ahead_us

    def reference_us(self) -> int | None:
        """The reference time that this process goes by, minus the leader's clock; None: none, or not known. By what a report says of it a
        leader that begins goes on from the one before."""
        best = self._best()
        known = self._reference_us if self._monotonic() - self._timed_us <= TRUST_US else None
        return None if best is None or known is None or best.way_us > LONG_US else known - best.ahead_us

    @property
    def settled(self) -> bool:
        """Whether there has been a sample with a short way, or as many as can be hoped to have one among them. Until then whoever needs the
        reference to the millisecond should ask often: the way of a stream's first report has the making of its connection in it."""
        best = self._best()
        return best is not None and (best.way_us <= SHORT_US or len(self._samples) >= FIRST_SAMPLES)

    # ----------------------------------------------------------------------------------------------------------------- what follows

    def deviation_us(self) -> int | None:
        """This wall clock minus the median; None: not known."""
        return self._now_deviation() if self._known() else None

    def standing(self) -> Standing:
        if not self._known():
            return Standing.UNKNOWN
        off = abs(self._now_deviation()) > (BACK_US if self._off else BOUND_US)
        if off != self._off:
            return Standing.UNKNOWN  # the clock jumped since: the leader's next answer tells which way, or that all have
        return Standing.OFF if off else Standing.GOOD

    @property
    def off(self) -> bool:
        return self._off and self.standing() is Standing.OFF

    def read(self) -> tuple[int, bool]:
        """The time for a timestamp, and whether this clock is known to be good. Every call asks: two looks at clocks, no more."""
        monotonic = self._monotonic()
        reference = self._reference_us
        if reference is None or monotonic - self._timed_us > TRUST_US:
            return self._wall(), False
        return monotonic + reference, self._known() and not self._off and abs(self._now_deviation()) <= BOUND_US

    def now_us(self) -> int | None:
        """The reference time, where this clock is known to be good; None: nothing may expire by it."""
        best, good = self.read()
        return best if good else None

    def best_us(self) -> int:
        """The time for a timestamp: the reference where it is known, also to a clock that is off; else the wall clock."""
        monotonic = self._monotonic()
        reference = self._reference_us
        if reference is None or monotonic - self._timed_us > TRUST_US:
            return self._wall()
        return monotonic + reference

    def correction_us(self) -> int:
        """What to add to this machine's wall clock for `best_us`."""
        return self.best_us() - self._wall()

    def text(self) -> str:
        """For a refusal."""
        deviation = self.deviation_us() or 0
        return f"the clock of this machine is {abs(deviation) / 1e6:.1f} s {'ahead of' if deviation > 0 else 'behind'} the others' median"

    # ---------------------------------------------------------------------------------------------------------------------- parts

    def _known(self) -> bool:
        return self._median_us is not None and self._monotonic() - self._measured_us <= TRUST_US

    def _now_deviation(self) -> int:
        assert self._median_us is not None
        return self._wall() - self._monotonic() - self._median_us

    def _best(self) -> _Sample | None:
        """The sample with the shortest way: half of it is the most that it can be wrong by."""
        return min(self._samples, key=lambda sample: sample.way_us, default=None)

    def _wall(self) -> int:
        return round(self._clock.now() * 1e6)

    def _monotonic(self) -> int:
        return round(self._clock.monotonic() * 1e6)


class TimeReading(Protocol):
    """What expiry and timestamps ask for: a process's `Skew`, or a clock that a test trusts."""

    def now_us(self) -> int | None:
        """The reference time where the clock is known to be good; None: nothing may expire by it."""

    def best_us(self) -> int:
        """The time for a timestamp, as well as it is known."""

    def read(self) -> tuple[int, bool]:
        """`best_us`, and whether the clock is known to be good."""


class Clocks:
    """The leader's list: what each process reported of its clock. Workers of one function have one vote among them, so that neither one
    large function nor its tenant's code outvotes everybody else; an agent votes for itself.

    Offsets are from the leader's time, `now_us`: its wall clock when it began, and its monotonic clock since. So nothing that is done to
    its wall clock changes what others have measured; it changes its own vote.

    The reference follows the median by `FOLLOWS`. A leader that begins goes on from what the processes go by. Only where the median is
    beyond the bound of it (the clocks that it was made from were wrong) does it jump.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._base_us = round((clock.now() - clock.monotonic()) * 1e6)
        self._since = clock.monotonic()
        self._reported: dict[_Voter, tuple[int, float]] = {}  # offset, when
        self._gone_by: dict[_Voter, int] = {}  # the reference that each goes by, from the leader's time
        self._reference_us: float | None = None
        self._followed = 0.0  # monotonic: when it was last moved
        self.anew: bool | None = None
        """Whether the reference began at the median, for nobody went by one of before; None: there has been none yet."""

    def now_us(self) -> int:
        return self._base_us + round(self._clock.monotonic() * 1e6)

    def report(self, process: str, function: str | None, offset_us: int | None, reference_us: int | None = None) -> None:
        """`function`: of a worker, as the leader knows it; None: an agent. `reference_us`: as `Skew.reference_us`."""
        voter = (function, process)
        if self._reference_us is None and reference_us is not None:
            self._gone_by[voter] = reference_us
        if offset_us is None:
            self._reported.pop(voter, None)
        else:
            self._reported[voter] = (offset_us, self._clock.monotonic())

    def forget(self, process: str, function: str | None) -> None:
        self._reported.pop((function, process), None)

    def reference(self) -> Reference | None:
        """Of the clocks that were heard lately and the leader's own; None, too, while the votes are gathered."""
        now = self._clock.monotonic()
        if now - self._since < GATHER_SECONDS:
            return None
        agents, functions = _grouped({voter: offset for voter, (offset, at) in self._reported.items() if now - at <= HEARD_SECONDS})
        own = round(self._clock.now() * 1e6) - self.now_us()
        found = reference([own, *agents, *(round(median(offsets)) for offsets in functions)])
        return None if found is None else replace(found, us=self._follow(found.median_us, now))

    def _follow(self, median_us: int, now: float) -> int:
        """The reference now, from the median."""
        before = self._reference_us if self._reference_us is not None else self._handed_on()
        if self.anew is None:
            self.anew = before is None
        if before is None or abs(median_us - before) > BOUND_US:
            self._reference_us = median_us
        elif self._reference_us is None:
            self._reference_us = before
        else:
            most = min(now - self._followed, FOLLOWS_FOR) * FOLLOWS * 1e6
            self._reference_us = before + max(-most, min(median_us - before, most))
        self._followed = now
        self._gone_by.clear()
        return round(self._reference_us)

    def _handed_on(self) -> int | None:
        """What the processes go by since a leader before; None: nothing. Agents' word goes before workers', which run tenants' code."""
        agents, functions = _grouped(self._gone_by)
        said = agents or [median_low(each) for each in functions]
        return median_low(said) if said else None


_Voter = tuple[str | None, str]  # a worker's function, or None of an agent; its name


def _grouped(said: Mapping[_Voter, int]) -> tuple[list[int], list[list[int]]]:
    """What agents said, and what the workers of each function did."""
    agents: list[int] = []
    functions: dict[str, list[int]] = {}
    for (function, _), us in said.items():
        (agents if function is None else functions.setdefault(function, [])).append(us)
    return agents, list(functions.values())


class Rising:
    """Timestamps of one process: `best_us`, and each above the one before, also when the clock goes back. Where it goes back far it was far
    ahead, and so would be every timestamp for as long as it was: they go on from what it says now, in another `life`. The two are not
    comparable: a life is a maker of keys of its own (`callkeys`)."""

    def __init__(self, skew: TimeReading) -> None:
        self.life = 0
        self._skew = skew
        self._last_us = 0

    @property
    def good(self) -> bool:
        return self._skew.read()[1]

    @property
    def ahead(self) -> bool:
        """Whether the next would be ahead of the time: the clock has gone back since the last one, or its correction came later."""
        return self._last_us > self._skew.best_us()

    def next(self) -> int:
        now = self._skew.best_us()
        if now < self._last_us - BOUND_US:
            self.life += 1
            self._last_us = 0
        self._last_us = max(self._last_us + 1, now)
        return self._last_us


def agreed(found: Reference | None) -> tuple[int, int, int]:
    """As it goes over a control stream: (reference_us, agreed, median_us), agreed 0 where there is none."""
    return (0, 0, 0) if found is None else (found.us, found.agreed, found.median_us)
