"""Everything that Envoy should have: the resources of all functions, and who wants to know when they change.

Nothing is served from here before `complete` is set, which happens with the first full listing of the store: to an
Envoy that reconnects, an empty snapshot means "remove everything".
"""

import asyncio
from collections.abc import Iterable

from dormouse_gateway.envoy.resources import TYPES, Resource


class Snapshot:
    def __init__(self) -> None:
        self.resources: dict[str, dict[str, Resource]] = {type_url: {} for type_url in TYPES}
        self.complete = False
        self.generation = 0
        self._owned: dict[str, tuple[Resource, ...]] = {}
        self._changed = asyncio.Event()

    def put(self, owner: str, resources: Iterable[Resource]) -> None:
        """These and no others are `owner`'s resources from now on."""
        new = tuple(resources)
        names = {(each.type_url, each.name) for each in new}
        for old in self._owned.get(owner, ()):
            if (old.type_url, old.name) not in names:
                del self.resources[old.type_url][old.name]
        for each in new:
            self.resources[each.type_url][each.name] = each
        if new:
            self._owned[owner] = new
        else:
            self._owned.pop(owner, None)

    def owners(self) -> set[str]:
        return set(self._owned)

    def publish(self) -> None:
        """Tells the streams. Apart from `put`, so that a burst of changes is one response."""
        self.generation += 1
        self._changed.set()
        self._changed = asyncio.Event()

    def changed(self) -> asyncio.Event:
        """Set at the next `publish`."""
        return self._changed
