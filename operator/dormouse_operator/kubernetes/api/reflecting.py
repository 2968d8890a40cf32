"""A copy of one kind of objects, kept by list and watch.

The list is complete or it is not taken; the watch goes on from it, across its own ends, until the server no longer has the history: then
the list is read anew, and what vanished meanwhile is told as deleted. While the server cannot be reached the copy is old, and says so.
"""

import asyncio
import contextlib
from collections.abc import Callable, Sequence

from dormouse_core.backoff import Backoff
from dormouse_core.seams import Clock
from dormouse_kit import log

from dormouse_operator.kubernetes.api.http import OPEN, Api, ApiError, Object, key_of
from dormouse_operator.kubernetes.api.kinds import Kind
from dormouse_operator.kubernetes.api.known import number
from dormouse_operator.kubernetes.api.known import version as version_of

BACKOFF = Backoff(0.2, 5.0)
PATIENCE = 10.0  # seconds without a standing watch after which the copy is called old

Key = tuple[str, str]


class Reflector:
    """`changed(key, before, after)` is called for each change, after the copy has it, `whole()` after each complete list, which may have
    changed nothing. `namespaces`: each is followed by itself; empty: all together."""

    def __init__(
        self,
        api: Api,
        clock: Clock,
        kind: Kind,
        *,
        namespaces: Sequence[str] = (),
        labels: str = "",
        changed: Callable[[Key, Object | None, Object | None], None] | None = None,
        whole: Callable[[], None] = lambda: None,
        trim: Callable[[Object], Object] = lambda found: found,
    ) -> None:
        self._api = api
        self._clock = clock
        self._changed = changed or (lambda key, before, after: None)
        self._whole = whole
        self._trim = trim
        self._labels = labels
        self._unlisted = set(namespaces or ("",))
        self._heard: dict[str, int] = {}  # namespace -> the version up to which everything was told
        self._broken: dict[str, float] = {}  # namespace -> since when its watch does not stand
        self.kind = kind
        self.items: dict[Key, Object] = {}
        self.heard_at = clock.monotonic()

    @property
    def listed(self) -> bool:
        """Whether there was a complete list, however long ago."""
        return not self._unlisted

    @property
    def fresh(self) -> bool:
        """Whether the copy is of now: listed once, and not cut off for long."""
        return not self._unlisted and all(self._clock.monotonic() - since < PATIENCE for since in self._broken.values())

    async def run(self) -> None:
        """Never returns; the server's absence is waited out."""
        async with asyncio.TaskGroup() as group:
            for namespace in sorted(self._unlisted):
                group.create_task(self._follow(namespace))

    async def _follow(self, namespace: str) -> None:
        version = ""
        pauses = BACKOFF.pauses()
        while True:
            try:
                if not version:
                    version = await self._list(namespace)
                    self._stands(namespace)
                began = self._clock.monotonic()
                watching = self._api.watch(self.kind, namespace, labels=self._labels, version=version)
                async with contextlib.aclosing(watching) as changes:
                    async for change in changes:
                        self._stands(namespace)
                        if change.kind != OPEN:
                            self.take(change.kind, change.object)
                            version = change.object["metadata"]["resourceVersion"]
                            self._heard[namespace] = number(version)
                if self._clock.monotonic() - began > BACKOFF.longest:
                    pauses = BACKOFF.pauses()
            except ApiError as error:
                if error.gone:
                    version = ""
                    continue
                if error.code:
                    version = ""  # it answered, and not with the watch: begin from what is certain
                if namespace not in self._broken:
                    self._broken[namespace] = self._clock.monotonic()
                    log.event("the watch broke; it starts again", kind=self.kind.plural, error=error.message)
            await self._clock.sleep(next(pauses))

    def take(self, kind: str, found: Object) -> None:
        """A change that was heard, or the answer to a write of our own, which may come before the watch tells of it, or after: when the
        watch has told all up to there and the object is not in the copy, it is gone again."""
        if kind == "BOOKMARK":
            return
        key, at = key_of(found), version_of(found)
        before = self.items.get(key)
        if before is None and 0 < at <= self._heard.get("", self._heard.get(key[0], 0)):
            return
        if before is not None and 0 < at < version_of(before):
            return
        self._apply(key, None if kind == "DELETED" else self._trim(found))

    async def _list(self, namespace: str) -> str:
        listed = await self._api.list(self.kind, namespace, labels=self._labels)
        found = {key_of(item): item for item in listed.items}
        for key in [key for key in self.items if key not in found and namespace in ("", key[0])]:
            self._apply(key, None)
        for key, item in found.items():
            before = self.items.get(key)
            if before is None or before["metadata"]["resourceVersion"] != item["metadata"]["resourceVersion"]:
                self._apply(key, self._trim(item))
        self._unlisted.discard(namespace)
        self._heard[namespace] = number(listed.version)
        self._whole()
        return listed.version

    def _stands(self, namespace: str) -> None:
        self._broken.pop(namespace, None)
        self.heard_at = self._clock.monotonic()

    def _apply(self, key: Key, after: Object | None) -> None:
        before = self.items.get(key)
        if after is None:
            self.items.pop(key, None)
        else:
            self.items[key] = after
        if before is not None or after is not None:
            self._changed(key, before, after)
