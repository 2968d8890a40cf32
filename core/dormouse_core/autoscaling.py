"""How many workers a function should have.

The rules are those of Knative's pod autoscaler (its `config/core/configmaps/autoscaler.yaml` documents them): the wanted number is the
metric's average over the stable window divided by the target; when the average over the panic window asks for twice what there is, the
panic window decides and nothing is taken away until a stable window has passed without it. What differs, and why:

* A call that is held while nobody serves wakes at once, by the number held rather than by an average that has not filled yet.
* Alarms that are due while nobody serves wake one worker. Nobody waits for their answers: from there on what it has to do decides.
* Workers that are starting count. While they start the backlog grows without saying anything about the need, so the wanted number rises
  only within `SETTLE` of the first one's order (knative/serving#13284: a burst during a slow start asked for far more than needed).
* Zero follows `scaleToZeroAfter` since the last work, not an empty window; running work is demand, however long it runs.
* Who scales through the scale subresource (`kubectl scale`, an HPA, KEDA) raises the least number of workers, from 2 on. 1 is what the
  definition fills in before anybody asked, for an HPA reads a number before it writes one, and takes 0 for "do not scale"; so 1 can say no
  more than nothing. 0, as KEDA writes it where it sees no work, lets the function sleep, too, and a call wakes it (decision 0216).
* What is not known never takes a worker away: with anything in `unknown`, or before this leader has watched long enough, the wanted number
  may rise but not fall, and the decision says so.
"""

import math
from dataclasses import dataclass
from typing import Literal

from dormouse_core.demand import STABLE_WINDOW, Averages, Measured

PANIC_THRESHOLD = 2.0  # Knative's panic-threshold-percentage
ASKED_FROM = 2  # of the scale subresource's numbers the first that asks for something
SETTLE = 2.0  # seconds in which one wave of starts may still grow: two reports of an agent

Metric = Literal["concurrency", "rps", "sessions"]


@dataclass(frozen=True, slots=True)
class Scaling:
    """The part of a function's spec that says how it scales."""

    replicas: int | None = None  # None: autoscaled
    minimum: int = 0
    maximum: int = 10
    asked: int = 1  # through the scale subresource
    metric: Metric = "concurrency"
    target: float = 16.0  # of the metric, a worker
    scale_to_zero_after: float = 60.0  # seconds
    memory_only: bool = False  # sessions live nowhere but in workers' memory (durability Memory)

    @property
    def least(self) -> int:
        """Workers below which it does not go."""
        return min(max(self.minimum, self.asked if self.asked >= ASKED_FROM else 0), self.maximum)


@dataclass(frozen=True, slots=True)
class Workers:
    """The target revision's workers, as far as anybody knows."""

    ready: int
    starting: int = 0  # ordered, and not yet serving, or not again

    @property
    def all(self) -> int:
        return self.ready + self.starting


@dataclass(frozen=True, slots=True)
class Decision:
    """`valid` is False when too little is known to take workers away; `wanted` is then at least what there is."""

    wanted: int
    reason: str
    valid: bool = True
    panicking: bool = False
    fixed: bool = False  # by spec.replicas: not the autoscaler's choice


class Autoscaler:
    """One function's decisions in their order. Panic and waves need memory; everything else is an argument."""

    def __init__(self) -> None:
        self._panic_since: float | None = None
        self._panic_peak = 0
        self._wave_since: float | None = None
        self._wave_peak = 0

    def decide(self, scaling: Scaling, measured: Measured, workers: Workers, unknown: tuple[str, ...], now: float) -> Decision:
        if scaling.replicas is not None:
            self._calm()
            return Decision(scaling.replicas, _fixed(scaling), fixed=True)
        wanted, reason = self._demand(scaling, measured, workers, now)
        wanted, reason = self._idle(scaling, measured, workers, wanted, reason)
        wanted, reason = _bounded(scaling, wanted, reason)
        decision = self._cautious(scaling, measured, workers, wanted, reason, unknown)
        return self._one_wave(decision, workers, now)

    # -------------------------------------------------------------------------------------------------------------- the metric

    def _demand(self, scaling: Scaling, measured: Measured, workers: Workers, now: float) -> tuple[int, str]:
        average: Averages = getattr(measured, scaling.metric)
        stable = _workers_for(average.stable, scaling.target)
        panic = _workers_for(average.panic, scaling.target)
        what = f"{scaling.metric} {average.stable:.2f} over 60 s, target {scaling.target:g} a worker"
        if measured.held:
            by_held = _workers_for(measured.held, scaling.target) if scaling.metric == "concurrency" else 1
            if workers.ready == 0:
                return max(stable, by_held), f"calls held: {measured.held}, target {scaling.target:g} a worker"
        if measured.alarms and workers.ready == 0:
            return max(stable, 1), f"alarms due: {measured.alarms}"
        over = panic / max(workers.all, 1) >= PANIC_THRESHOLD
        if over:
            if self._panic_since is None:
                self._panic_peak = workers.all
            self._panic_since = now
        elif self._panic_since is not None and now - self._panic_since > STABLE_WINDOW:
            self._calm()
        if self._panic_since is None:
            return stable, what
        self._panic_peak = max(self._panic_peak, stable, panic)
        what = f"{scaling.metric} {average.panic:.2f} over 6 s, target {scaling.target:g} a worker"
        return self._panic_peak, f"{what}; panic: no worker is stopped"

    def _calm(self) -> None:
        self._panic_since = None
        self._panic_peak = 0

    # -------------------------------------------------------------------------------------------------------------- to zero

    def _idle(self, scaling: Scaling, measured: Measured, workers: Workers, wanted: int, reason: str) -> tuple[int, str]:
        if measured.running or measured.held or measured.alarms:
            if wanted >= 1:
                return wanted, reason
            return 1, f"calls running: {measured.running}, held: {measured.held}"
        if measured.idle >= scaling.scale_to_zero_after:
            if scaling.memory_only and measured.live_sessions:
                return max(wanted, 1), f"sessions live in memory only: {measured.live_sessions}"
            self._calm()
            return 0, f"no work for {_seconds(measured.idle)}, scaleToZeroAfter {_seconds(scaling.scale_to_zero_after)}"
        if workers.all and wanted < 1:
            return 1, f"no work for {_seconds(measured.idle)} of the {_seconds(scaling.scale_to_zero_after)} after which it sleeps"
        if not workers.all and not measured.held:
            # Nobody serves and nobody waits: an average of the past is no reason to wake.
            return 0, "asleep, no call is held"
        return wanted, reason

    # -------------------------------------------------------------------------------------------------------------- not knowing

    def _cautious(
        self, scaling: Scaling, measured: Measured, workers: Workers, wanted: int, reason: str, unknown: tuple[str, ...]
    ) -> Decision:
        """Takes nothing away on what is not known. maxReplicas and a higher minimum are orders, not observations: they hold."""
        panicking = self._panic_since is not None
        keep = min(workers.all, scaling.maximum)
        if wanted >= keep:
            return Decision(wanted, reason, not unknown, panicking)
        if unknown:
            return Decision(keep, f"kept at {keep}: not known: {'; '.join(unknown)}", False, panicking)
        needed = scaling.scale_to_zero_after if wanted == scaling.least == 0 else STABLE_WINDOW
        if measured.watched < min(needed, STABLE_WINDOW):
            return Decision(keep, f"kept at {keep}: watched for {_seconds(measured.watched)} of {_seconds(needed)}", False, panicking)
        return Decision(wanted, reason, True, panicking)

    def _one_wave(self, decision: Decision, workers: Workers, now: float) -> Decision:
        if not workers.starting and self._wave_since is not None and now - self._wave_since > SETTLE:
            self._wave_since = None
        if decision.wanted <= workers.all and self._wave_since is None:
            return decision
        if self._wave_since is None or now - self._wave_since > STABLE_WINDOW:
            self._wave_since, self._wave_peak = now, decision.wanted  # a start that takes longer than the window no longer holds up others
            return decision
        if now - self._wave_since <= SETTLE:
            self._wave_peak = max(self._wave_peak, decision.wanted)
            return decision
        most = max(self._wave_peak, workers.all)
        if decision.wanted <= most:
            return decision
        return Decision(most, f"workers starting: {workers.starting}; {decision.reason}", decision.valid, decision.panicking)


def _workers_for(amount: float, target: float) -> int:
    # A millionth of a worker is rounding, not demand.
    return max(0, math.ceil(amount / target - 1e-6))


def _bounded(scaling: Scaling, wanted: int, reason: str) -> tuple[int, str]:
    if wanted < scaling.least:
        return scaling.least, f"{_least(scaling)}; {reason}"
    if wanted > scaling.maximum:
        return scaling.maximum, f"maxReplicas is {scaling.maximum}; {wanted} needed: {reason}"
    return wanted, reason


def _least(scaling: Scaling) -> str:
    if scaling.asked <= scaling.minimum or scaling.asked < ASKED_FROM:
        return f"minReplicas is {scaling.minimum}"
    asked = f"the scale subresource asks for {scaling.asked}"
    return f"{asked}, maxReplicas is {scaling.maximum}" if scaling.asked > scaling.maximum else asked


def _fixed(scaling: Scaling) -> str:
    reason = f"replicas is set to {scaling.replicas}"
    unheard = scaling.asked >= ASKED_FROM and scaling.asked != scaling.replicas
    return f"{reason}; the {scaling.asked} that the scale subresource asks for do not count" if unheard else reason


def _seconds(value: float) -> str:
    return f"{value:.0f} s" if value >= 10 else f"{value:.1f} s"
