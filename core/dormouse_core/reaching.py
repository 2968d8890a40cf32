"""Whether gateways reach a worker that lives: its lease is fine and the leader hears it, but calls cannot be sent to it. Pure.

A gateway that cannot connect to a worker says so; the leader then has every gateway try that worker, for as long as one of them fails. A
worker is out of reach when more than half of the gateways cannot connect: one gateway that is cut off, or mistaken, takes no worker out,
unless it is the only one. A gateway that has not tried, or was not heard, is not counted as failing.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from dormouse_proto import control_pb2

FRESH_SECONDS = 5.0  # what was heard longer ago says nothing of now


@dataclass(frozen=True, slots=True)
class Heard:
    """What one gateway said last of one worker. Monotonic seconds of the leader. `failing_since` None: it reaches it."""

    at: float
    failing_since: float | None

    def fails(self, now: float) -> bool:
        return self.failing_since is not None and now - self.at <= FRESH_SECONDS


class Reaches:
    def __init__(self) -> None:
        self._heard: dict[str, dict[str, Heard]] = {}  # by worker, then by agent

    def take(self, agent: str, reaches: Iterable[control_pb2.WorkerReach], now: float) -> None:
        """One report. It need not name a worker that it named before."""
        for each in reaches:
            since = None if each.reached else now - each.seconds
            self._heard.setdefault(each.worker, {})[agent] = Heard(now, since)
        self._forget(now)

    def seconds(self, worker: str, gateways: Collection[str], now: float) -> float:
        """For how long `worker` has been out of reach of more than half of `gateways`, which are those with a lease; 0: it is not, or that
        is not known.
        """
        heard = self._heard.get(worker, {})
        since = [each.failing_since for agent, each in heard.items() if agent in gateways and each.fails(now)]
        failing = sorted((now - each for each in since if each is not None), reverse=True)
        needed = len(gateways) // 2 + 1
        return failing[needed - 1] if len(failing) >= needed else 0.0

    def to_try(self, now: float) -> list[str]:
        """Workers that some gateway cannot reach: all are asked to try them."""
        return sorted(worker for worker, heard in self._heard.items() if any(each.fails(now) for each in heard.values()))

    def _forget(self, now: float) -> None:
        for worker, heard in list(self._heard.items()):
            for agent in [agent for agent, each in heard.items() if now - each.at > FRESH_SECONDS]:
                del heard[agent]
            if not heard:
                del self._heard[worker]
