"""A copy of one kind of objects, kept by list and watch.

The list is complete or it is not taken; the watch goes on from it, across its own ends, until the server no longer has the history: then
the list is read anew, and what vanished meanwhile is told as deleted. While the server cannot be reached the copy is old, and says so.
"""

import contextlib
from collections.abc import Callable

from dormouse_core.seams import Clock
from dormouse_kit import log

from dormouse_operator.kubernetes.api import OPEN, Api, ApiError, Object, key_of
from dormouse_operator.kubernetes.kinds import Kind
from dormouse_operator.kubernetes.objects import version as version_of

BACKOFF = (0.2, 5.0)  # seconds: first, longest
PATIENCE = 10.0  # seconds without a standing watch after which the copy is called old

Key = tuple[str, str]


class Reflector:
    """`changed(key, before, after)` is called for each change, after the copy has it. `namespace` empty: all."""

    def __init__(
        self,
        api: Api,
        clock: Clock,
        kind: Kind,
        *,
        namespace: str = "",
        labels: str = "",
        changed: Callable[[Key, Object | None, Object | None], None] | None = None,
        trim: Callable[[Object], Object] = lambda found: found,
    ) -> None:
        self._api = api
        self._clock = clock
        self._changed = changed or (lambda key, before, after: None)
        self._trim = trim
        self._labels = labels
        self._namespace = namespace
        self._broken_at: float | None = clock.monotonic()
        self.kind = kind
        self.items: dict[Key, Object] = {}
        self.listed = False
        self.heard_at = clock.monotonic()

    @property
    def fresh(self) -> bool:
        """Whether the copy is of now: listed once, and not cut off for long."""
        return self.listed and (self._broken_at is None or self._clock.monotonic() - self._broken_at < PATIENCE)

    async def run(self) -> None:
        """Never returns; the server's absence is waited out."""
        version = ""
        pause, longest = BACKOFF
        while True:
            try:
                if not version:
                    version = await self._list()
                    self._stands()
                began = self._clock.monotonic()
                watching = self._api.watch(self.kind, self._namespace, labels=self._labels, version=version)
                async with contextlib.aclosing(watching) as changes:
                    async for change in changes:
                        self._stands()
                        if change.kind != OPEN:
                            version = change.object["metadata"]["resourceVersion"]
                            self.take(change.kind, change.object)
                if self._clock.monotonic() - began > longest:
                    pause = BACKOFF[0]
            except ApiError as error:
                if error.gone:
                    version = ""
                    continue
                if error.code:
                    version = ""  # it answered, and not with the watch: begin from what is certain
                if self._broken_at is None:
                    self._broken_at = self._clock.monotonic()
                    log.event("the watch was cut", kind=self.kind.plural, error=error.message)
            await self._clock.sleep(pause)
            pause = min(2 * pause, longest)

    def take(self, kind: str, found: Object) -> None:
        """A change that was heard, or the answer to a write of our own, which may come before the watch tells of it."""
        if kind == "BOOKMARK":
            return
        key = key_of(found)
        before = self.items.get(key)
        if before is not None and _same(before, found) and version_of(found) < version_of(before):
            return  # the watch lags behind our own write
        if kind == "DELETED":
            self._apply(key, None)
        else:
            self._apply(key, self._trim(found))

    async def _list(self) -> str:
        listed = await self._api.list(self.kind, self._namespace, labels=self._labels)
        found = {key_of(item): item for item in listed.items}
        for key in self.items.keys() - found.keys():
            self._apply(key, None)
        for key, item in found.items():
            before = self.items.get(key)
            if before is None or before["metadata"]["resourceVersion"] != item["metadata"]["resourceVersion"]:
                self._apply(key, self._trim(item))
        self.listed = True
        return listed.version

    def _stands(self) -> None:
        self._broken_at = None
        self.heard_at = self._clock.monotonic()

    def _apply(self, key: Key, after: Object | None) -> None:
        before = self.items.get(key)
        if after is None:
            self.items.pop(key, None)
        else:
            self.items[key] = after
        if before is not None or after is not None:
            self._changed(key, before, after)


def _same(before: Object, after: Object) -> bool:
    return bool(before["metadata"].get("uid") == after["metadata"].get("uid"))
