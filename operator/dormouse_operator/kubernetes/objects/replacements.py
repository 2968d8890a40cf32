"""Workers whose Deployment's template changed while they run, replaced a few functions at a time (`dormouse_core.replacing`)."""

from collections.abc import Callable

from dormouse_core.replacing import Replacing
from dormouse_core.seams import Clock

from dormouse_operator.kubernetes.api.http import Object
from dormouse_operator.kubernetes.api.reflecting import Reflector
from dormouse_operator.kubernetes.objects import names

INTERVAL = 1.0  # seconds


class Replacements:
    """`nodes()`: how many are known. `turn(uid)`: what this function consists of is to be written now."""

    def __init__(self, clock: Clock, deployments: Reflector, nodes: Callable[[], int], turn: Callable[[str], None]) -> None:
        self._clock = clock
        self._deployments = deployments
        self._nodes = nodes
        self._turn = turn
        self._replacing = Replacing()

    def may(self, uid: str) -> bool:
        """Whether the template of one of its Deployments that has replicas may be changed now."""
        return self._replacing.ask(uid, self._nodes(), self._clock.monotonic())

    async def run(self) -> None:
        """Never returns."""
        while True:
            await self._clock.sleep(INTERVAL)
            self.look()

    def look(self) -> None:
        going = {item["metadata"].get("labels", {}).get(names.UID, "") for item in self._deployments.items.values() if not rolled_out(item)}
        for uid in self._replacing.look(lambda uid: uid not in going, self._nodes(), self._clock.monotonic()):
            self._turn(uid)


def rolled_out(deployment: Object) -> bool:
    """Each of its pods is of its template, and ready."""
    status, replicas = deployment.get("status", {}), deployment["spec"]["replicas"]
    if status.get("observedGeneration", 0) < deployment["metadata"].get("generation", 0):
        return False
    counts = (status.get(name, 0) for name in ("replicas", "updatedReplicas", "availableReplicas"))
    return all(count == replicas for count in counts)
