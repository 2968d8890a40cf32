"""Which namespaces are served: all, those that are listed, or those whose labels match (`namespaceSelector`), as the labels are now.

With a selector everything is watched cluster-wide, as for all namespaces; what differs is whose objects are read and written. A namespace
whose labels stop matching is let be: its functions go on as they were last applied, with their sessions, and are kept alive so; changes of
their objects are not taken until it matches again. A label is changed by a slip of the hand as easily as on purpose, and what is deleted
has no way back. Only who deletes the objects deletes the functions, there as everywhere. The operator says where it goes on so, in its log
and an Event; the statuses there it leaves alone, because another installation may serve the namespace by now.

While the labels are not known (at the start, or without the right to list namespaces) nobody is served anew.
"""

import asyncio
from collections.abc import Callable, Iterable

from dormouse_core.seams import Clock

from dormouse_operator.kubernetes.api.http import Api, Object
from dormouse_operator.kubernetes.api.kinds import NAMESPACES
from dormouse_operator.kubernetes.api.reflecting import Key, Reflector
from dormouse_operator.kubernetes.settings import ClusterSettings
from dormouse_operator.kubernetes.telling.own_events import OwnEvents

REASON = "NamespacesNotSelected"
LOOK = 60.0  # seconds between looks at which functions are in namespaces that are not served
NAMED = 20  # namespaces that are named; of more it is said how many


class Serving:
    """`begun(namespace)` is called when one is served from now on; `having()`: the namespaces in which the registry has functions."""

    def __init__(
        self,
        api: Api,
        clock: Clock,
        settings: ClusterSettings,
        events: OwnEvents,
        *,
        begun: Callable[[str], None],
        having: Callable[[], Iterable[str]],
    ) -> None:
        self._clock = clock
        self._events = events
        self._begun = begun
        self._having = having
        self._news = asyncio.Event()
        self._namespaces = settings.namespaces
        self._selector = settings.namespace_selector
        self.copy = Reflector(api, clock, NAMESPACES, labels=self._selector, changed=self._changed, whole=self._news.set, trim=_name)

    @property
    def known(self) -> bool:
        return not self._selector or self.copy.listed

    def serves(self, namespace: str) -> bool:
        """As far as labels say: where namespaces are listed, nothing is heard of others."""
        return not self._selector or ("", namespace) in self.copy.items

    def served(self, namespace: str) -> bool | None:
        """Whether it is served now; None: that is not known, as while the labels that were heard may be old."""
        if not self._selector:
            return not self._namespaces or namespace in self._namespaces
        return self.serves(namespace) if self.copy.fresh else None

    async def run(self) -> None:
        """Never returns."""
        if not self._selector:
            await asyncio.Event().wait()
        async with asyncio.TaskGroup() as group:
            group.create_task(self.copy.run())
            group.create_task(self._tell())

    async def _tell(self) -> None:
        while True:
            self._news.clear()
            if self.known:
                await self._events.warn(REASON, _sentence(sorted({each for each in self._having() if not self.serves(each)})))
            try:
                async with asyncio.timeout(LOOK):
                    await self._news.wait()
            except TimeoutError:
                pass

    def _changed(self, key: Key, before: Object | None, after: Object | None) -> None:
        self._news.set()
        if before is None:
            self._begun(key[1])


def _name(found: Object) -> Object:
    metadata = found["metadata"]
    return {"metadata": {name: metadata[name] for name in ("name", "uid", "resourceVersion") if name in metadata}}


def _sentence(left: list[str]) -> str:
    if not left:
        return ""
    more = f" and {len(left) - NAMED} more" if len(left) > NAMED else ""
    return (
        f"The labels of {', '.join(left[:NAMED])}{more} do not match namespaceSelector. Functions there go on as they were last applied; "
        "changes of their objects are not taken. Label the namespace again, or delete the objects."
    )
