"""The complete list of InferenceFunctions, read now and then, and what follows from it alone: which functions are gone, whether the watch
is deaf, whose user in the store nobody needs.

An entry of the registry that was there before a complete list began, and whose uid the list lacks, has no object any more: an entry is made
from an object, so the object was there before it. The order matters. A list that could not be read to its end, or not at all, says nothing:
neither an API server that is away nor a right that was lost deletes a function (rule *complete-list*).
"""

import asyncio
from collections.abc import Callable, Collection

from dormouse_core.seams import Clock, StoreError
from dormouse_kit import log

from dormouse_operator.kubernetes import metrics
from dormouse_operator.kubernetes.api.http import Api, ApiError, Object
from dormouse_operator.kubernetes.api.kinds import FUNCTIONS
from dormouse_operator.kubernetes.api.known import Objects, number
from dormouse_operator.kubernetes.objects.credentials import Credentials
from dormouse_operator.kubernetes.watching.reconciling import Reconciler
from dormouse_operator.kubernetes.watching.serving import Serving
from dormouse_operator.view import Registered

INTERVAL = 30.0  # seconds between lists
GATHER = 0.2  # seconds in which deletions are gathered before a list of their own
RETRY = 2.0  # seconds after a list that failed

DEAF_LISTS = 3  # lists in a row that found what the watch had lost, begun anew between them, before this process counts as deaf
BLIND = 300.0  # seconds without a complete list after which it does


class Survey:
    """`registered()`: the registry's functions by uid. `deaf()` is called when the watch lost something."""

    def __init__(
        self,
        api: Api,
        clock: Clock,
        namespaces: Collection[str],
        objects: Objects,
        reconciler: Reconciler,
        credentials: Credentials,
        serving: Serving,
        *,
        registered: Callable[[], dict[str, Registered]],
        deaf: Callable[[], None],
    ) -> None:
        self._api = api
        self._clock = clock
        self._namespaces = namespaces
        self._objects = objects
        self._reconciler = reconciler
        self._credentials = credentials
        self._serving = serving
        self._registered = registered
        self._deaf = deaf
        self._soon = asyncio.Event()
        self._users_of: frozenset[str] | None = None  # the functions when users were last pruned
        self._began = clock.monotonic()
        self._failing = False

    def doubt(self) -> None:
        """Something was deleted, as somebody says."""
        self._soon.set()

    def trouble(self) -> str:
        """Why this process does not know what happens in the cluster; '': it does."""
        listed = self._objects.listed_at
        age = self._clock.monotonic() - (self._began if listed is None else listed)
        if age > BLIND:
            return f"no complete list of functions was read for {age:.0f} s"
        if self._objects.missed >= DEAF_LISTS:
            return f"the watch of functions lost changes {self._objects.missed} times in a row"
        return ""

    def whole(self) -> bool:
        """Each object of a complete list, and each that was heard of since, has its entry or was refused."""
        if self._objects.listed_at is None or not self._serving.known:
            return False
        found = [each["metadata"] for key, each in self._objects.items.items() if self._serving.serves(key[0])]
        return all(self._reconciler.judged(each["uid"]) for each in found)

    async def run(self) -> None:
        """Never returns."""
        while True:
            self._soon.clear()
            done = await self._once()
            try:
                async with asyncio.timeout(INTERVAL if done else RETRY):
                    await self._soon.wait()
                await self._clock.sleep(GATHER)
            except TimeoutError:
                pass

    async def _once(self) -> bool:
        before = {uid: r.function for uid, r in self._registered().items() if self._served(r.function.namespace)}
        try:
            found, versions = await self._list()
        except ApiError as error:
            if not self._failing:
                log.warning("functions cannot be listed; known ones are served as before", error=error.message)
            self._failing = True
            return False
        self._failing = False
        self._objects.listed(found, versions)
        if self._objects.missed:
            metrics.MISSED.inc()
            self._deaf()
        there = {item["metadata"]["uid"] for item in found}
        for uid in before.keys() - there:
            await self._reconciler.gone(before[uid].namespace, before[uid].name, uid)
        self._reconciler.retry()
        await self._prune(there)
        return True

    def _served(self, namespace: str) -> bool:
        return not self._namespaces or namespace in self._namespaces

    async def _list(self) -> tuple[list[Object], dict[str, int]]:
        """And the version of each namespace's list. Of many namespaces together: one after the other two hundred took seconds."""
        namespaces = list(self._namespaces) or [""]
        lists = await asyncio.gather(*(self._api.list(FUNCTIONS, namespace) for namespace in namespaces))
        versions = {namespace: number(listed.version) for namespace, listed in zip(namespaces, lists, strict=True)}
        return [item for listed in lists for item in listed.items], versions

    async def _prune(self, there: set[str]) -> None:
        now = frozenset(self._registered())
        if now == self._users_of:
            return
        try:
            await self._credentials.prune(lambda: self._registered().keys() | there)
            self._users_of = now
        except StoreError as error:
            log.event("the store's users could not be checked; tried again", error=str(error))
