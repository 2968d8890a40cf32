"""Workers whose Deployment's template changed while they run, replaced a few functions at a time (`dormouse_core.replacing`)."""

from collections.abc import Callable

from dormouse_core.limits import REPLACE_TURN_SECONDS
from dormouse_core.replacing import Replacing
from dormouse_core.seams import Clock

from dormouse_operator.kubernetes.api.http import Object
from dormouse_operator.kubernetes.api.reflecting import Reflector
from dormouse_operator.kubernetes.objects import names
from dormouse_operator.kubernetes.objects.object_entries import seconds

INTERVAL = 1.0  # seconds


class Replacements:
    """`nodes()`: how many are known. `turn(uid)`: what this function consists of is to be written now."""

    def __init__(self, clock: Clock, deployments: Reflector, nodes: Callable[[], int], turn: Callable[[str], None]) -> None:
        self._clock = clock
        self._deployments = deployments
        self._nodes = nodes
        self._turn = turn
        self._replacing = Replacing()

    def may(self, uid: str, deployment: Object) -> bool:
        """Whether the template of this Deployment of a function, which has replicas, may be changed now."""
        first = _has_former(deployment) or serves_nobody(deployment, self._clock.now())
        return self._replacing.ask(uid, self._nodes(), self._clock.monotonic(), first=first)

    def written(self, uid: str) -> None:
        """Nothing of the function waits for its turn."""
        self._replacing.written(uid)

    async def run(self) -> None:
        """Never returns."""
        while True:
            await self._clock.sleep(INTERVAL)
            self.look()

    def look(self) -> None:
        """Begins turns that have come. While the copy is old it is not known whose have ended."""
        items = list(self._deployments.items.values()) if self._deployments.fresh else None
        going = None if items is None else {_uid(item) for item in items if not rolled_out(item)}
        begun = {_uid(item) for item in items or () if being_replaced(item)}
        for uid in self._replacing.look(going, begun, self._nodes(), self._clock.monotonic()):
            self._turn(uid)


def rolled_out(deployment: Object) -> bool:
    """Each of its pods is of its template, and ready."""
    status, replicas = deployment.get("status", {}), deployment["spec"]["replicas"]
    if _unread(deployment):
        return False
    counts = (status.get(name, 0) for name in ("replicas", "updatedReplicas", "availableReplicas"))
    return all(count == replicas for count in counts)


def being_replaced(deployment: Object) -> bool:
    """It has pods of an earlier template, or may have them. One that starts its first pods, or more of them, or whose pods fail, is not."""
    if not deployment["spec"]["replicas"]:
        return False
    return _unread(deployment) or _has_former(deployment)


def _has_former(deployment: Object) -> bool:
    """By its status, it had pods of an earlier template."""
    status = deployment.get("status", {})
    return bool(status.get("replicas", 0) > status.get("updatedReplicas", 0))


def serves_nobody(deployment: Object, now: float) -> bool:
    """None of its pods has been ready for as long as a turn lasts. One that has just been woken is to go on starting: callers wait for it.
    `now`: wall time."""
    status = deployment.get("status", {})
    since = [c.get("lastTransitionTime") for c in status.get("conditions") or () if (c["type"], c["status"]) == ("Available", "False")]
    if status.get("availableReplicas") or not since or since[0] is None:
        return False
    return now - seconds(since[0]) >= REPLACE_TURN_SECONDS


def _unread(deployment: Object) -> bool:
    """Its status is of before it was last changed."""
    return bool(deployment.get("status", {}).get("observedGeneration", 0) < deployment["metadata"].get("generation", 0))


def _uid(deployment: Object) -> str:
    return str(deployment["metadata"].get("labels", {}).get(names.UID, ""))
