"""Demand per function, from the workers' streams and the agents' (`Coordinator.Agent`).

An agent's list says something about functions that are not on it only when the agent has listed the store (`complete`); an agent with a
lease and no fresh complete report is unknown, and nothing is taken away on its silence.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass

from dormouse_core.demand import Demand, Measured
from dormouse_core.seams import Clock
from dormouse_proto import control_pb2

from dormouse_operator.links import SILENCE


@dataclass(slots=True)
class _Agent:
    heard_at: float
    complete: bool
    uids: frozenset[str] = frozenset()


class Demands:
    """`woken(uid)` is called when a function's calls, or its alarms, began to wait."""

    def __init__(self, clock: Clock, woken: Callable[[str], None]) -> None:
        self._clock = clock
        self._woken = woken
        self._demands: dict[str, Demand] = {}
        self._agents: dict[str, _Agent] = {}
        self._held: dict[tuple[str, str], int] = {}  # (agent, uid) -> held at the last report

    def measure(self, uid: str) -> Measured:
        return self._of(uid).measure(self._clock.monotonic())

    def worker(self, uid: str, name: str, report: control_pb2.WorkerReport) -> None:
        self._of(uid).worker(name, report, self._clock.monotonic())

    def worker_left(self, uid: str, name: str) -> None:
        if uid in self._demands:
            self._demands[uid].forget_worker(name)

    def agent(self, report: control_pb2.AgentReport) -> None:
        now = self._clock.monotonic()
        before = self._agents.get(report.agent)
        named = {demand.uid: demand for demand in report.demand}
        for uid in (before.uids if before else frozenset()) - named.keys():
            self._of(uid).agent(report.agent, None, now)
            self._held.pop((report.agent, uid), None)
        for uid, demand in named.items():
            self._of(uid).agent(report.agent, demand, now)
            began = demand.held > 0 and self._held.get((report.agent, uid), 0) == 0
            self._held[report.agent, uid] = demand.held
            if began:
                self._woken(uid)
        self._agents[report.agent] = _Agent(now, report.complete, frozenset(named))

    def alarms(self, uid: str, due: int) -> None:
        """So many alarms of a function that sleeps are due."""
        demand = self._of(uid)
        began = due > 0 and demand.due == 0
        demand.due = due
        if began:
            self._woken(uid)

    def agent_left(self, agent: str) -> None:
        """Its stream ended. What it held is not known to be zero; only its lease's end makes it so (`unknown`, `forget_agent`)."""
        if agent in self._agents:
            self._agents[agent].complete = False

    def forget_agent(self, agent: str) -> None:
        """Its lease ended: its calls are gone with it."""
        self._agents.pop(agent, None)
        for key in [k for k in self._held if k[0] == agent]:
            del self._held[key]
        for demand in self._demands.values():
            demand.forget_agent(agent)

    def unknown(self, leased: Collection[str]) -> tuple[str, ...]:
        """Why held calls may exist that nobody here knows of. `leased`: agents that have a lease."""
        now = self._clock.monotonic()
        found = []
        for agent in sorted(leased):
            seen = self._agents.get(agent)
            if seen is None or now - seen.heard_at > SILENCE:
                found.append(f"gateway {agent} has a lease but is not heard")
            elif not seen.complete:
                found.append(f"gateway {agent} has not listed the store yet")
        return tuple(found)

    def forget(self, uid: str) -> None:
        self._demands.pop(uid, None)

    def _of(self, uid: str) -> Demand:
        if uid not in self._demands:
            self._demands[uid] = Demand(self._clock.monotonic())
        return self._demands[uid]
