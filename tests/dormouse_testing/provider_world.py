"""A cluster's provider over an API server in memory."""

from typing import Any

from dormouse_core.seams import Instance, Wanted
from dormouse_operator.kubernetes.api.http import Object
from dormouse_operator.kubernetes.api.kinds import DEPLOYMENTS, PODS
from dormouse_operator.kubernetes.api.reflecting import Reflector
from dormouse_operator.kubernetes.pods.provider import KubernetesProvider, trim, trim_pod
from dormouse_proto import state_pb2

from dormouse_testing.clock import ManualClock
from dormouse_testing.cluster_objects import container
from dormouse_testing.memory_api import MemoryApi

RUNS = [container({"running": {}})]
"""Of a pod: the statuses of its containers."""
REASON = state_pb2.Problem(code=14, reason="Invalid", message="The Deployment f-r1 is refused.")


def function(revision: str = "r1", **more: Any) -> state_pb2.FunctionEntry:
    return state_pb2.FunctionEntry(namespace="ns", name="f", uid="u", revision=revision, **more)


class World:
    """`heard` makes the copies as watches would. `problem`: why a Deployment cannot be made, where there is one."""

    def __init__(self) -> None:
        self.api, self.clock, self.missing, self.problem = MemoryApi(), ManualClock(), list[str](), list[state_pb2.Problem]()
        self.pods = Reflector(self.api, self.clock, PODS, trim=trim_pod, changed=lambda *news: self.provider.pods_changed(*news))
        self.deployments = Reflector(
            self.api, self.clock, DEPLOYMENTS, trim=trim, changed=lambda *news: self.provider.deployments_changed(*news)
        )
        self.provider = KubernetesProvider(
            self.api, self.clock, self.pods, self.deployments, lambda uid, revision: next(iter(self.problem), None), self.missing.append
        )

    async def heard(self, *found: Object) -> None:
        """`found`: pods and Deployments that are there now."""
        for each in found:
            self.api.put(DEPLOYMENTS if "replicas" in each["spec"] else PODS, each)
        for copy in (self.pods, self.deployments):
            await copy._list("")

    async def seen(self) -> list[Instance]:
        found = await self.provider.observe()
        assert found is not None
        return sorted(found, key=lambda each: each.name)

    async def apply(self, count: int, revision: str = "r1", *victims: str, of: state_pb2.FunctionEntry | None = None) -> list[Any]:
        """What was written."""
        self.api.written.clear()
        await self.provider.apply(Wanted(of or function(), revision, count, victims))
        return list(self.api.written)
