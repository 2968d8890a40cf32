"""How long to wait before something that failed is tried again."""

import itertools
from collections.abc import Iterator
from typing import NamedTuple


class Backoff(NamedTuple):
    """Seconds: the first pause, which each further failure in a row doubles, and the longest."""

    first: float
    longest: float

    def after(self, failures: int) -> float:
        """Seconds to wait after so many failures in a row, 1 and more."""
        # After a thousand failures no float would hold the power, and the loop that waits would end of it.
        return min(self.longest, self.first * (1 << min(failures - 1, 64)))

    def pauses(self) -> Iterator[float]:
        """The pause after each failure in a row."""
        return map(self.after, itertools.count(1))
