"""When a call that is held gives up: at its own deadline, or at its function's hold limit, whichever comes first."""

from dataclasses import dataclass

from dormouse_core.errors import DeadlineExceeded, DormouseError, Unavailable
from dormouse_core.spec.durations import Duration

ROUNDED = 1e-6
"""Seconds by which a sum of times may be off: less than that is no time to wait for."""


@dataclass(frozen=True, slots=True)
class Patience:
    """`hold`: `timeouts.hold` of the function. `deadline`: the caller's, on the clock that `now` is of; infinite: none."""

    hold: Duration
    deadline: float

    def left(self, now: float, waited: float) -> float:
        """Seconds until it gives up, 0 or less: it does so now. `waited`: seconds that it was held, without those in workers."""
        return min(self.hold.seconds - waited, self.deadline - now)

    def refusal(self, now: float, waited: float, *, late: str, long: str) -> DormouseError | None:
        """What its caller is told where it gives up now. `late`: at its deadline; `long`: at the hold limit."""
        if now >= self.deadline:
            return DeadlineExceeded(late)
        if waited >= self.hold.seconds - ROUNDED:
            return Unavailable(long)
        return None
