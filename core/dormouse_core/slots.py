"""Which steps of a handler may begin: as many run as there are CPUs, and a step that waits for a call of its own does not count.

Were a waiting step counted, steps that wait for each other's functions could take every place that these need. It is not enough that they
do not count: their threads exist, so there is a limit of them too. Hence **levels**: a step that was called by a step that was called ...
has a level of its own for each of these calls, with its own places and its own limit. A step waits only for steps of the next level, and
the last level (`limits.CALL_DEPTH`) calls nobody: so some step can always go on.
"""

from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Level(Generic[T]):
    def __init__(self) -> None:
        self.due: deque[T] = deque()
        self.running = 0
        self.waiting = 0


class Slots(Generic[T]):
    """`running`: steps of a level that run at once. `waiting`: how many more there are at most, which wait for calls of theirs."""

    def __init__(self, running: int, waiting: int) -> None:
        self._most_running = running
        self._most_waiting = waiting
        self._levels: dict[int, Level[T]] = {}

    def enter(self, step: T, level: int) -> list[T]:
        """One more step. This, and each of the others, returns the steps that begin now; each is `left` when it has ended."""
        self._level(level).due.append(step)
        return self._begin(level)

    def waits(self, level: int) -> list[T]:
        """A running step waits for a call of its own."""
        found = self._level(level)
        found.running -= 1
        found.waiting += 1
        return self._begin(level)

    def resumes(self, level: int) -> None:
        """One has its answer. It goes on at once, also where as many run as may: it has begun."""
        found = self._level(level)
        found.running += 1
        found.waiting -= 1

    def left(self, level: int) -> list[T]:
        """A running step has ended."""
        self._level(level).running -= 1
        return self._begin(level)

    def _begin(self, number: int) -> list[T]:
        level, begun = self._level(number), []
        while level.due and level.running < self._most_running and level.running + level.waiting < self._most_running + self._most_waiting:
            level.running += 1
            begun.append(level.due.popleft())
        return begun

    def _level(self, number: int) -> Level[T]:
        level = self._levels.get(number)
        if level is None:
            level = self._levels[number] = Level()
        return level
