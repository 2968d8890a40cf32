"""Which workers take calls, which may be given shards, and which of several a call goes to now."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, TypeVar


class OfRevision(Protocol):
    @property
    def revision(self) -> str: ...


W = TypeVar("W", bound=OfRevision)


def takers(serving: Iterable[W], wanted: str, proved: str) -> list[W]:
    """Of the workers that serve, those that take stateless calls: of the wanted revision; of the proved one only until the wanted one is
    proved, never after."""
    serving = list(serving)
    found = [worker for worker in serving if worker.revision == wanted]
    if found or proved == wanted:
        return found
    return [worker for worker in serving if worker.revision == proved]


def receivers(serving: Sequence[W], wanted: str, *, is_proved: bool) -> list[W]:
    """Of the workers that serve, those that may be given shards: of the wanted revision; until that is proved, and where none of it is
    there, of any."""
    found = [worker for worker in serving if worker.revision == wanted]
    return found if found or is_proved else list(serving)


def least_busy(calls: Mapping[str, int]) -> list[str]:
    """Of workers by name, with the calls that are with each of them now, those that have fewest. Any of them is as good."""
    fewest = min(calls.values())
    return [name for name, count in calls.items() if count == fewest]
