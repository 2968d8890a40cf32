"""How many pods may be evicted at once: one of a function's workers, one of the gateways, and never so few that a node cannot be drained.

A PodDisruptionBudget counts a pod that no node takes as one that is missing. Where the pods of a drained node fit nowhere else, the budget
would hold the rest of them where they are, for ever. But a pod that waits for a node is nobody's worker: it does not count, so each widens
the budget by one, once the pod that it stands for has ended.

Who does this is evicted, too, and on a cluster's only node as early as the rest. So a leader that ends because it was evicted, where no
other can take its place, lets go of every budget first. Where there is another node they stay as they are: what is evicted before the next
one leads is one of each function.
"""

import asyncio
from collections.abc import Iterable

from dormouse_core.seams import Clock
from dormouse_kit import log

from dormouse_operator.kubernetes.api.http import Api, ApiError, Object, key_of
from dormouse_operator.kubernetes.api.kinds import BUDGETS, PODS
from dormouse_operator.kubernetes.api.reflecting import Reflector
from dormouse_operator.kubernetes.objects import names
from dormouse_operator.kubernetes.objects.editing import with_content
from dormouse_operator.kubernetes.settings import ClusterSettings

INTERVAL = 5.0  # seconds between looks at the gateways, whose pods are not watched, and at budgets that could not be written
GATHER = 0.2  # seconds in which news of pods is gathered
ALL = "100%"
VERDICT, LOOKS = 0.5, 20  # seconds between looks at whether another takes this one's place, and how many
_EVICTED = "DisruptionTarget"
_HASH = "pod-template-hash"  # of a revision of its Deployment


def at_once(pods: Iterable[Object]) -> int:
    """`maxUnavailable` of a budget over these pods."""
    found = [pod for pod in pods if pod.get("status", {}).get("phase") not in ("Failed", "Succeeded")]
    going = sum("deletionTimestamp" in pod["metadata"] for pod in found)
    return max(1, 1 + sum(map(homeless, found)) - going)


def homeless(pod: Object) -> bool:
    """The scheduler found no node for it."""
    return "deletionTimestamp" not in pod["metadata"] and any(
        c.get("type") == "PodScheduled" and c.get("status") == "False" and c.get("reason") == "Unschedulable" for c in _conditions(pod)
    )


def evicted(pod: Object) -> bool:
    return any(c.get("type") == _EVICTED and c.get("status") == "True" for c in _conditions(pod))


def opens(own: Object, pods: Iterable[Object], siblings: Iterable[Object]) -> bool | None:
    """Whether nobody else will set the budgets, so that they have to be opened. None: that is not known yet. `pods`: the functions' and the
    installation's; `siblings`: operators."""
    here = own["spec"].get("nodeName", "")
    if any(_living(pod) and pod["spec"].get("nodeName", "") not in ("", here) for pod in pods):
        return False
    others = [pod for pod in siblings if pod["metadata"]["name"] != own["metadata"]["name"] and _living(pod)]
    if any(pod["spec"].get("nodeName") for pod in others):
        return False
    return True if others and all(map(homeless, others)) else None


def _living(pod: Object) -> bool:
    return "deletionTimestamp" not in pod["metadata"] and pod.get("status", {}).get("phase") not in ("Failed", "Succeeded")


def _conditions(pod: Object) -> list[Object]:
    found: list[Object] = pod.get("status", {}).get("conditions") or []
    return found


class Budgets:
    """`pods`, `budgets`: copies of the functions'. `name`: of this process's own pod."""

    def __init__(self, api: Api, clock: Clock, settings: ClusterSettings, pods: Reflector, budgets: Reflector, name: str) -> None:
        self._api = api
        self._clock = clock
        self._settings = settings
        self._pods = pods
        self._budgets = budgets
        self._name = name
        self._news = asyncio.Event()
        self._said = ""

    def pods_changed(self) -> None:
        self._news.set()

    async def run(self) -> None:
        """Never returns."""
        looked = -INTERVAL
        while True:
            try:
                await self._functions()
                if self._clock.monotonic() - looked >= INTERVAL:
                    looked = self._clock.monotonic()
                    await self._gateways()
                self._said = ""
            except ApiError as error:
                if error.message != self._said:
                    self._said = error.message
                    log.event("PodDisruptionBudgets could not be updated; tried again", error=error.message)
            await self._clock.sleep(GATHER)
            try:
                async with asyncio.timeout(INTERVAL):
                    await self._news.wait()
            except TimeoutError:
                pass
            self._news.clear()

    async def _functions(self) -> None:
        if not (self._pods.fresh and self._budgets.fresh):
            return
        by_uid: dict[str, list[Object]] = {}
        for pod in self._pods.items.values():
            by_uid.setdefault(pod["metadata"].get("labels", {}).get(names.UID, ""), []).append(pod)
        for budget in list(self._budgets.items.values()):
            pods = by_uid.get(budget["metadata"].get("labels", {}).get(names.UID, ""), ())
            changed = await self._set(budget, at_once(pods))
            if changed is not None:
                self._budgets.take("MODIFIED", changed)

    async def _gateways(self) -> None:
        budget = await self._gateways_budget()
        if budget is None:
            return
        status, wanted = budget.get("status", {}), 1
        if status.get("currentHealthy", 0) < status.get("expectedPods", 0):
            chosen = ",".join(f"{name}={value}" for name, value in budget["spec"]["selector"]["matchLabels"].items())
            wanted = at_once((await self._api.list(PODS, self._settings.system_namespace, labels=chosen)).items)
        await self._set(budget, wanted)

    async def _gateways_budget(self) -> Object | None:
        """It is called like the gateways' Service."""
        try:
            return await self._api.get(BUDGETS, self._settings.system_namespace, self._settings.gateway.partition(".")[0])
        except ApiError as error:
            if error.missing:
                return None
            raise

    async def _set(self, budget: Object, wanted: int | str) -> Object | None:
        """The budget as it is now; None: it was so, or is gone."""
        if budget["spec"].get("maxUnavailable") == wanted or "deletionTimestamp" in budget["metadata"]:
            return None
        namespace, name = key_of(budget)
        try:
            changed = await self._api.patch(BUDGETS, namespace, name, {"spec": {"maxUnavailable": wanted}})
        except ApiError as error:
            if error.missing:
                return None
            raise
        log.event("PodDisruptionBudget updated", budget=f"{namespace}/{name}", maxUnavailable=wanted)
        return changed

    async def release(self) -> None:
        """To be called at this process's end, while it leads: lets every pod go if our own was told to, and no other will lead. What cannot
        be written stays."""
        try:
            own = await self._api.get(PODS, self._settings.system_namespace, self._name)
            if not evicted(own) or not await self._alone(own):
                return
            gateways = await self._gateways_budget()
        except ApiError as error:
            log.event("whether this pod is evicted is not known; PodDisruptionBudgets stay as they are", error=error.message)
            return
        budgets = [*self._budgets.items.values(), *([gateways] if gateways is not None else [])]
        log.event("this pod is evicted; its PodDisruptionBudgets allow all evictions until the next leader sets them", count=len(budgets))
        await asyncio.gather(*(self._set(budget, ALL) for budget in budgets), return_exceptions=True)

    async def _alone(self, own: Object) -> bool:
        """Waits for the scheduler's word about the pod that takes this one's place. Where no pod does, nobody will lead."""
        labels = {name: value for name, value in own["metadata"].get("labels", {}).items() if name != _HASH}
        found, siblings = None, list[Object]()
        for _ in range(LOOKS):
            system = (await self._api.list(PODS, self._settings.system_namespace)).items
            siblings = [pod for pod in system if labels.items() <= pod["metadata"].get("labels", {}).items()]
            found = opens(own, [*self._pods.items.values(), *system], siblings)
            if found is not None:
                return found
            await self._clock.sleep(VERDICT)
        return len(siblings) < 2


def trim(found: Object) -> Object:
    """What is read of a budget; its status moves with every pod."""
    spec = {"maxUnavailable": found.get("spec", {}).get("maxUnavailable")}
    metadata = {name: part for name, part in found["metadata"].items() if name != "managedFields"}
    return with_content(found, {"metadata": metadata, "spec": spec})
