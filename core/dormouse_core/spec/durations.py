"""Durations as people write them: ``60s``, ``10m``, ``0ms``, ``1h30m``.

The grammar is a part of Go's (https://pkg.go.dev/time#ParseDuration), so that the API server's CEL function `duration()` reads the same
text: whole numbers, the units h, m, s and ms. Days are not a unit there, and so not here.
"""

import functools
import re

PATTERN = r"^([0-9]{1,9}(h|m|s|ms))+$"
MAX_LENGTH = 32

_PARTS = re.compile(r"([0-9]{1,9})(ms|h|m|s)")
_WHOLE = re.compile(r"(?:[0-9]{1,9}(?:h|m|s|ms))+")
_MILLISECONDS = {"h": 3_600_000, "m": 60_000, "s": 1_000, "ms": 1}


@functools.total_ordering
class Duration:
    """A length of time in whole milliseconds. Equal when the time is: ``60s`` is ``1m``."""

    __slots__ = ("milliseconds",)
    milliseconds: int

    def __init__(self, text: str) -> None:
        """ValueError: `text` is no duration."""
        if len(text) > MAX_LENGTH or not _WHOLE.fullmatch(text):
            raise ValueError(f'"{text}" found, a duration such as "250ms", "60s", "10m" or "1h30m" is allowed')
        object.__setattr__(self, "milliseconds", sum(int(number) * _MILLISECONDS[unit] for number, unit in _PARTS.findall(text)))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a Duration does not change: {name}")

    def __reduce__(self) -> tuple[type["Duration"], tuple[str]]:
        return Duration, (str(self),)

    @property
    def seconds(self) -> float:
        return self.milliseconds / 1_000

    @property
    def microseconds(self) -> int:
        return self.milliseconds * 1_000

    def __str__(self) -> str:
        """In the largest unit that divides it, so that equal durations have one text."""
        for unit, factor in _MILLISECONDS.items():
            if self.milliseconds and self.milliseconds % factor == 0 and self.milliseconds // factor < 10**9:
                return f"{self.milliseconds // factor}{unit}"
        if self.milliseconds:  # over 10^9 seconds or so: no single part of nine digits holds it
            hours, rest = divmod(self.milliseconds, _MILLISECONDS["h"])
            seconds, milliseconds = divmod(rest, 1_000)
            return "".join(f"{n}{unit}" for n, unit in ((hours, "h"), (seconds, "s"), (milliseconds, "ms")) if n)
        return "0ms"

    def __repr__(self) -> str:
        return f"Duration({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Duration) and self.milliseconds == other.milliseconds

    def __lt__(self, other: "Duration") -> bool:
        return self.milliseconds < other.milliseconds

    def __hash__(self) -> int:
        return hash(self.milliseconds)
