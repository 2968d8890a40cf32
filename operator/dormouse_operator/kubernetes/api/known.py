"""What is known of the InferenceFunctions of the cluster.

Two sources: kopf's watch, which brings a change in milliseconds and may go deaf without knowing it; and a complete list, read now and then,
which is slow and always right. Every object is taken from whichever has the newer version. Only a complete list says that an object is
gone: a watch's word that it was deleted makes us list, no more. What a list lacked stays gone, however late somebody brings what it was
before: a function would be made anew of it, for an object that nobody can delete any more.

Whether the watch is deaf is found by comparing the two: a version that a list brought and the watch has not brought by the next list was
lost.
"""

from collections.abc import Callable, Iterable, Mapping

from dormouse_core.seams import Clock

from dormouse_operator.kubernetes.api.http import Object, key_of

Key = tuple[str, str]


class Objects:
    """`changed(key)` is called when an object is new, differs, or is gone; `doubt()` when a complete list should be read soon."""

    def __init__(self, clock: Clock, changed: Callable[[Key], None], doubt: Callable[[], None]) -> None:
        self._clock = clock
        self._changed = changed
        self._doubt = doubt
        self._versions: Mapping[str, int] = {}  # namespace ('': all) -> the version of its last complete list
        self._unheard: dict[str, int] = {}  # uid -> the version that a list brought and the watch has not
        self.items: dict[Key, Object] = {}
        self.listed_at: float | None = None
        """When the last complete list was taken, monotonic; None: never, so nothing is known to be absent."""
        self.heard_at = clock.monotonic()
        """When the watch last brought something."""
        self.missed = 0
        """Lists in a row that found what the watch had lost."""

    def heard(self, kind: str | None, found: Object) -> None:
        """From the watch. `kind` None: of its own first listing."""
        self.heard_at = self._clock.monotonic()
        uid = found["metadata"]["uid"]
        if self._unheard.get(uid, 0) <= version(found):
            self._unheard.pop(uid, None)
        if kind == "DELETED":
            self._doubt()
        else:
            self.take(found)

    def take(self, found: Object) -> None:
        """An object as somebody saw it, the answer to our own write included."""
        key = key_of(found)
        before = self.items.get(key)
        if before is None and 0 < version(found) <= self._versions.get("", self._versions.get(key[0], 0)):
            return
        same = before is not None and before["metadata"]["uid"] == found["metadata"]["uid"]
        if before is not None and (version(found) < version(before) or (same and version(found) == version(before))):
            return
        found["metadata"].pop("managedFields", None)  # the larger half of an object, and nothing in it is ours to read
        self.items[key] = found
        self._changed(key)

    def doubt(self, found: Object) -> None:
        """Something was made of it, which nobody looks for if it is gone by now: a list is read soon."""
        now = self.items.get(key_of(found))
        if now is None or now["metadata"]["uid"] != found["metadata"]["uid"]:
            self._doubt()

    def listed(self, found: Iterable[Object], versions: Mapping[str, int]) -> None:
        """A complete list of all objects that we serve. `versions`: at which each namespace was read; of '': all of them."""
        self.missed = self.missed + 1 if self._unheard else 0
        self._unheard = {}
        whole = {key_of(item): item for item in found}
        for key in self.items.keys() - whole.keys():
            del self.items[key]
            self._changed(key)
        self._versions = {}  # the list itself is not judged by the one before
        for key, item in whole.items():
            before = self.items.get(key)
            if self.listed_at is not None and (before is None or version(before) < version(item)):
                self._unheard[item["metadata"]["uid"]] = version(item)
            self.take(item)
        self._versions = versions
        self.listed_at = self._clock.monotonic()


def version(found: Object) -> int:
    """Resource versions of one kind rise; every API server in use counts them so, and since 1.35 Kubernetes says that it must."""
    return number(found["metadata"].get("resourceVersion", ""))


def number(version: str) -> int:
    """0: not one that can be compared."""
    return int(version) if version.isdigit() else 0
