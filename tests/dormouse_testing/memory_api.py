"""An API server in a dictionary: what the operator's parts ask of one, without watches and without admission."""

from collections.abc import AsyncGenerator
from typing import Any

from dormouse_operator.kubernetes.api.http import ApiError, Change, Listed, Object, key_of
from dormouse_operator.kubernetes.api.kinds import Kind


class MemoryApi:
    """`refuse`: what every request fails with, while it is set."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str, str], Object] = {}
        self.documents: dict[str, Object] = {}
        self.refuse: ApiError | None = None
        self.written: list[tuple[str, str]] = []  # (name, what) of every write that was made
        self._version = 0

    def put(self, kind: Kind, found: Object) -> Object:
        self._version += 1
        key = (kind.plural, *key_of(found))
        before = self.objects.get(key, {"metadata": {}})["metadata"]
        given = {"uid": before.get("uid", f"uid-{self._version}"), **found["metadata"]}
        made = {**found, "metadata": {**given, "resourceVersion": str(self._version)}}
        self.objects[key] = made
        return made

    def _ask(self) -> None:
        if self.refuse is not None:
            raise self.refuse

    async def list(self, kind: Kind, namespace: str = "", *, labels: str = "", fields: str = "") -> Listed:
        self._ask()
        wanted = dict(pair.split("=") for pair in labels.split(",") if "=" in pair)
        found = [each for (plural, space, _), each in self.objects.items() if plural == kind.plural and namespace in ("", space)]
        return Listed(str(self._version), [each for each in found if wanted.items() <= each["metadata"].get("labels", {}).items()])

    async def watch(self, kind: Kind, namespace: str = "", *, labels: str = "", version: str) -> AsyncGenerator[Change, None]:
        raise ApiError(0, "NoAnswer", "there are no watches here")
        yield

    async def get(self, kind: Kind, namespace: str, name: str) -> Object:
        self._ask()
        try:
            return self.objects[(kind.plural, namespace, name)]
        except KeyError:
            raise ApiError(404, "NotFound", f"{kind.plural} {name} not found") from None

    async def document(self, path: str) -> Object:
        self._ask()
        return self.documents[path]

    async def create(self, kind: Kind, manifest: Object) -> Object:
        self._ask()
        if "name" not in manifest["metadata"]:
            name = f"{manifest['metadata']['generateName']}{len(self.objects)}"
            manifest = {**manifest, "metadata": {**manifest["metadata"], "name": name}}
        if (kind.plural, *key_of(manifest)) in self.objects:
            raise ApiError(409, "AlreadyExists", f"{kind.plural} {manifest['metadata']['name']} already exists")
        self.written.append((manifest["metadata"]["name"], "created"))
        return self.put(kind, manifest)

    async def replace(self, kind: Kind, manifest: Object) -> Object:
        self._ask()
        there = self.objects.get((kind.plural, *key_of(manifest)), {"metadata": {}})["metadata"].get("resourceVersion")
        if manifest["metadata"].get("resourceVersion", there) != there:
            raise ApiError(409, "Conflict", f"{kind.plural} {manifest['metadata']['name']} was changed meanwhile")
        self.written.append((manifest["metadata"]["name"], "replaced"))
        return self.put(kind, manifest)

    async def patch(self, kind: Kind, namespace: str, name: str, changes: Object, *, part: str = "") -> Object:
        before = await self.get(kind, namespace, name)
        self.written.append((name, "patched"))
        return self.put(kind, _merged(before, changes))

    async def delete(self, kind: Kind, namespace: str, name: str, *, uid: str, force: bool = False) -> None:
        self._ask()
        self.written.append((name, "deleted by force" if force else "deleted"))
        self.objects.pop((kind.plural, namespace, name), None)

    async def evict(self, namespace: str, name: str, *, uid: str) -> bool:
        self._ask()
        found = self.objects.get(("pods", namespace, name))
        if found is None or found["metadata"]["uid"] != uid:
            return False
        self.written.append((name, "evicted"))
        del self.objects["pods", namespace, name]
        return True


def _merged(before: Any, changes: Any) -> Any:
    """RFC 7386."""
    if not isinstance(changes, dict):
        return changes
    merged = dict(before) if isinstance(before, dict) else {}
    for name, change in changes.items():
        if change is None:
            merged.pop(name, None)
        else:
            merged[name] = _merged(merged.get(name), change)
    return merged
