"""The copies of the cluster's objects that belong to functions of this installation, and whom their changes concern."""

import asyncio
from collections.abc import Callable
from types import TracebackType

from dormouse_core.seams import Clock

from dormouse_operator.kubernetes.api.http import Api, Object
from dormouse_operator.kubernetes.api.kinds import BUDGETS, CONFIG_MAPS, DEPLOYMENTS, PODS, POLICIES, SERVICES, Kind
from dormouse_operator.kubernetes.api.reflecting import Key, Reflector
from dormouse_operator.kubernetes.objects import budgets, editing, names
from dormouse_operator.kubernetes.pods.provider import KubernetesProvider, trim, trim_pod, trim_to_metadata
from dormouse_operator.kubernetes.settings import ClusterSettings

Derived = Callable[[Key, str], None]


class Copies:
    """`derived((namespace, function), uid)` is called when something that a function consists of went, was edited, or was left over;
    `pods()` when a pod changed. As a context: the watches run."""

    def __init__(self, api: Api, clock: Clock, settings: ClusterSettings, derived: Derived, pods: Callable[[], None]) -> None:
        self._derived = derived
        self._pods = pods
        self._settings = settings
        self._provider: KubernetesProvider | None = None
        self._tasks: list[asyncio.Task[None]] = []
        labels = f"{names.INSTALLATION}={settings.installation},{names.UID}"
        kinds: list[tuple[Kind, Callable[[Object], Object]]] = [(PODS, trim_pod), (DEPLOYMENTS, trim), (SERVICES, trim_to_metadata)]
        kinds += [(CONFIG_MAPS, trim_to_metadata), (BUDGETS, budgets.trim)]
        kinds += [(POLICIES, trim_to_metadata)] if settings.network_policies else []
        made = [
            Reflector(api, clock, kind, namespaces=settings.namespaces, labels=labels, changed=self._changed(kind), trim=shorten)
            for kind, shorten in kinds
        ]
        self.all = tuple(made)
        self.pods, self.deployments = made[0], made[1]
        self.applied = {copy.kind: copy for copy in made[1:]}

    def follow(self, provider: KubernetesProvider) -> None:
        self._provider = provider

    async def __aenter__(self) -> "Copies":
        self._tasks = [asyncio.create_task(copy.run(), name=f"copy of {copy.kind.plural}") for copy in self.all]
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def run(self) -> None:
        """Returns only by raising what ended one of the watches: a copy that nothing keeps any more would go on being taken for fresh."""
        await asyncio.gather(*self._tasks)

    def _changed(self, kind: Kind) -> Callable[[Key, Object | None, Object | None], None]:
        def changed(key: Key, before: Object | None, after: Object | None) -> None:
            assert self._provider is not None
            if kind is PODS:
                self._provider.pods_changed(key, before, after)
                self._pods()
                return
            if kind is DEPLOYMENTS:
                self._provider.deployments_changed(key, before, after)
            subject = after or before
            if subject is not None and (after is None or editing.edited(before, after) or (kind is DEPLOYMENTS and _idle(after))):
                labels = subject["metadata"]["labels"]
                self._derived((key[0], labels.get(names.FUNCTION, "")), labels[names.UID])

        return changed


def _idle(deployment: Object) -> bool:
    """It has no pod and shall have none: of an older revision, it can go."""
    return deployment["spec"]["replicas"] == 0 and not deployment.get("status", {}).get("replicas")
