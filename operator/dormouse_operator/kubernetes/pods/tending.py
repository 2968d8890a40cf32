"""Pods that cannot start, looked after until they can.

What keeps a pod from starting may be put right outside of the cluster: an image is pushed, a model uploaded, a quota raised. Kubernetes
tries again by itself, but its back-offs grow to five minutes for a container and to sixteen for a ReplicaSet. Callers would wait for those
long after the cause is gone, so everything that fails is tried at least once a minute: a pod that has been failing is replaced by a new
one, a Deployment that may not make pods is touched.

And what a pod's status does not say (a volume that is missing) is read from its events.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from dormouse_core.seams import Clock
from dormouse_kit import log

from dormouse_operator.kubernetes.api.http import Api, ApiError, Object, key_of
from dormouse_operator.kubernetes.api.kinds import DEPLOYMENTS, EVENTS, PODS
from dormouse_operator.kubernetes.api.reflecting import Reflector
from dormouse_operator.kubernetes.objects import names
from dormouse_operator.kubernetes.objects.object_entries import seconds, timestamp
from dormouse_operator.kubernetes.objects.pod import CONTAINER
from dormouse_operator.kubernetes.pods import problems
from dormouse_operator.kubernetes.pods.provider import KubernetesProvider

INTERVAL = 3.0  # seconds between looks
SLOW = 5.0  # seconds in which a container is made as a rule; beyond, its pod's events are read: callers are told why before they gave up
RENEW = 60.0  # seconds for which a pod may fail before it is replaced by a new one
TOUCH = 30.0  # seconds between touches of a Deployment whose pods are refused


@dataclass(frozen=True, slots=True)
class Care:
    """What to do now."""

    ask: tuple[Object, ...] = ()
    """Pods whose events should be read."""
    replace: tuple[Object, ...] = ()
    touch: tuple[Object, ...] = ()


def care(
    pods: Iterable[Object], deployments: Iterable[Object], failing: Callable[[Object], bool], freed: Callable[[str], float], now: float
) -> Care:
    """`failing(pod)`: it has a problem; `freed(namespace)`: when there was room again, as far as is known; `now`: wall time."""
    living = [pod for pod in pods if not problems.finished(pod) and "deletionTimestamp" not in pod["metadata"]]
    return Care(
        ask=tuple(pod for pod in living if problems.starting(pod) and now - _since(pod) > SLOW),
        replace=tuple(pod for pod in living if failing(pod) and now - _since(pod) > RENEW),
        touch=tuple(d for d in deployments if problems.refused(d) is not None and _again(d, freed, now)),
    )


def _since(pod: Object) -> float:
    """When its worker last ended, or the pod was made."""
    for container in pod.get("status", {}).get("containerStatuses") or ():
        for state in (container.get("state", {}), container.get("lastState", {})):
            ended = state.get("terminated", {}).get("finishedAt")
            if container["name"] == CONTAINER and ended:
                return seconds(ended)
    return seconds(pod["metadata"]["creationTimestamp"])


def _again(deployment: Object, freed: Callable[[str], float], now: float) -> bool:
    """Whether the cluster should be asked for its pods once more. By itself it asks after minutes, where the pod whose room it needs was of
    another Deployment."""
    touched = _touched(deployment)
    return now - touched > TOUCH or freed(deployment["metadata"]["namespace"]) >= touched


def _touched(deployment: Object) -> float:
    metadata = deployment["metadata"]
    return seconds(metadata.get("annotations", {}).get(names.TRIED) or metadata["creationTimestamp"])


class Tending:
    """`doubt(uid)`: the function's volumes are missing; what it consists of should be looked at."""

    def __init__(
        self, api: Api, clock: Clock, pods: Reflector, deployments: Reflector, provider: KubernetesProvider, doubt: Callable[[str], None]
    ) -> None:
        self._api = api
        self._clock = clock
        self._pods = pods
        self._deployments = deployments
        self._provider = provider
        self._doubt = doubt
        self._failed: set[str] = set()
        """What could not be done at the last look, as it was told then."""

    async def run(self) -> None:
        """Never returns."""
        while True:
            await self._clock.sleep(INTERVAL)
            await self.look()

    async def look(self) -> None:
        """What cannot be done for one is left for the next look, and keeps nothing from the others."""
        todo = care(
            self._pods.items.values(), self._deployments.items.values(), self._provider.failing, self._provider.freed, self._clock.now()
        )
        failed = set[str]()
        for step, found in ((self._ask, todo.ask), (self._replace, todo.replace), (self._touch, todo.touch)):
            for each in found:
                try:
                    await step(each)
                except ApiError as error:
                    failed.add(error.message)
        for message in sorted(failed - self._failed):
            log.event("a pod that cannot start could not be replaced or read; tried again", error=message)
        self._failed = failed

    async def _replace(self, pod: Object) -> None:
        namespace, name = key_of(pod)
        await self._api.delete(PODS, namespace, name, uid=pod["metadata"]["uid"])
        log.event("a pod that cannot start is replaced", namespace=namespace, pod=name)

    async def _touch(self, deployment: Object) -> None:
        namespace, name = key_of(deployment)
        changes = {"metadata": {"annotations": {names.TRIED: timestamp(self._clock.now())}}}
        self._deployments.take("MODIFIED", await self._api.patch(DEPLOYMENTS, namespace, name, changes))

    async def _ask(self, pod: Object) -> None:
        namespace, _ = key_of(pod)
        uid = pod["metadata"]["uid"]
        events = (await self._api.list(EVENTS, namespace, fields=f"involvedObject.uid={uid}")).items
        problem = problems.mount_failure(events)
        self._provider.mount_failed(pod, problem)
        if problem is not None:
            self._doubt(pod["metadata"]["labels"].get(names.UID, ""))
