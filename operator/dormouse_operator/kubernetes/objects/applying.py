"""Keeping what a function consists of in the cluster as its entry wants it.

Created where it is missing, replaced where it differs, left alone where it does not: whether it does is told by a digest that the object
carries, so that nothing is compared with what the API server made of it, and by whether it is as it was (`editing`). An object of the name
that is somebody else's is never touched; one that an older function of the same name left is removed, and made anew when it is gone.

Nor is what another installation made, even of the same function: the namespace was its before, say, and its workers have the sessions. Of a
function that another one serves nothing is made beside it, either: a policy would close its workers to its gateways.

Deployments, Services, ConfigMaps, budgets and policies are known from a watch. Secrets are not watched: the right to list every Secret is
not one that this operator should have; it looks at its own by name.
"""

from collections.abc import Mapping
from typing import Any, Protocol

from dormouse_core.errors import DormouseError
from dormouse_kit import log
from dormouse_proto import state_pb2

from dormouse_operator.kubernetes.api.http import Api, ApiError, Object, key_of
from dormouse_operator.kubernetes.api.kinds import BUDGETS, CONFIG_MAPS, DEPLOYMENTS, SECRETS, SERVICES, Kind, kind_of
from dormouse_operator.kubernetes.api.reflecting import Reflector
from dormouse_operator.kubernetes.objects import editing, names
from dormouse_operator.kubernetes.objects.manifests import Manifest, build_all, digest, proved
from dormouse_operator.kubernetes.settings import ClusterSettings

SERVED_BY_ANOTHER = "ServedByAnother"


class NotApplied(DormouseError):
    """`reason`: CamelCase, for the condition. `final`: the object's own spec is at fault, so trying again does not help."""

    def __init__(self, reason: str, message: str, *, final: bool = False) -> None:
        super().__init__(message)
        self.reason = reason
        self.final = final


class Pace(Protocol):
    """When running workers may be replaced."""

    def may(self, uid: str, deployment: Object) -> bool:
        """Whether this Deployment of the function, which has replicas, may be changed now; if not, the function is to be applied again."""

    def written(self, uid: str) -> None:
        """All of the function is as it is to be written, or it is gone."""


class AtOnce:
    """Without a pace."""

    def may(self, uid: str, deployment: Object) -> bool:
        return True

    def written(self, uid: str) -> None:
        """Nothing waits."""


class Applier:
    """`copies`: by kind; one for each watched kind. `settings` may be replaced: what differs is written when applied next."""

    def __init__(
        self,
        api: Api,
        settings: ClusterSettings,
        copies: Mapping[Kind, Reflector],
        pace: Pace | None = None,
    ) -> None:
        self._pace = pace or AtOnce()
        self._put_off: set[str] = set()  # uids of functions of which a Deployment waits for its turn
        self._api = api
        self.settings = settings
        self._copies = copies
        self._right: dict[tuple[Kind, str, str], tuple[str, str, str]] = {}  # -> uid, digest as applied, content as it was then
        self._secrets: dict[tuple[str, str], tuple[str, str]] = {}  # name -> (uid of the function, digest) as last applied

    async def apply(self, entry: state_pb2.FunctionEntry) -> None:
        """NotApplied: something could not be made so; what does not depend on it was. InvalidArgument: the spec cannot become a pod."""
        failed: NotApplied | None = None
        self._put_off.discard(entry.uid)
        await self._others(entry)
        for manifest in build_all(entry, self.settings):
            try:
                await self._one(entry, manifest)
            except NotApplied as error:
                if error.reason == SERVED_BY_ANOTHER:
                    raise
                failed = failed or error
        if failed is not None:
            raise failed
        if entry.uid not in self._put_off:
            self._pace.written(entry.uid)
        await self._clean(entry)

    def doubt(self, entry: state_pb2.FunctionEntry) -> None:
        """The function's pods cannot start: look at what is not watched, too, when applied next."""
        self._secrets.pop((entry.namespace, names.secret(entry.name)), None)

    async def _others(self, entry: state_pb2.FunctionEntry) -> None:
        """NotApplied: another installation serves it. Its Service tells, which every function has: ours is in the copy."""
        key = (entry.namespace, names.service(entry.name))
        if key in self._copies[SERVICES].items:
            return
        try:
            live = await self._get(SERVICES, key)
        except ApiError as error:
            raise _not_applied(SERVICES, key, error) from error
        if live is not None:
            self._refuse_others(SERVICES, live)

    def _refuse_others(self, kind: Kind, live: Object) -> None:
        labels = live["metadata"].get("labels", {})
        theirs = labels.get(names.INSTALLATION, self.settings.installation)
        if labels.get(names.MANAGED_BY) == names.MANAGER and theirs != self.settings.installation:
            raise NotApplied(SERVED_BY_ANOTHER, _served_by(theirs, kind, live, self.settings.installation))

    # ------------------------------------------------------------------------------------------------------------------ one object

    async def _one(self, entry: state_pb2.FunctionEntry, manifest: Manifest) -> None:
        kind, key, wanted = kind_of(manifest), key_of(manifest), digest(manifest)
        manifest["metadata"]["annotations"] = {names.APPLIED: wanted}
        try:
            live = await self._live(kind, key, entry.uid, wanted)
            if live is None:
                live = await self._create(kind, key, manifest)
            else:
                live = await self._change(kind, live, manifest, wanted)
        except ApiError as error:
            raise _not_applied(kind, key, error) from error
        if kind is SECRETS:
            self._secrets[key] = (entry.uid, wanted)
        elif live is not None:
            self._right[(kind, *key)] = (live["metadata"]["uid"], wanted, editing.content(live))
            self._copies[kind].take("MODIFIED", live)

    async def _live(self, kind: Kind, key: tuple[str, str], uid: str, wanted: str) -> Object | None:
        if kind is not SECRETS:
            return self._copies[kind].items.get(key)
        if self._secrets.get(key) == (uid, wanted):
            return _unchanged(key, uid, wanted)
        return await self._get(kind, key)

    async def _get(self, kind: Kind, key: tuple[str, str]) -> Object | None:
        try:
            return await self._api.get(kind, *key)
        except ApiError as error:
            if error.missing:
                return None
            raise

    async def _create(self, kind: Kind, key: tuple[str, str], manifest: Manifest) -> Object | None:
        try:
            return await self._api.create(kind, manifest)
        except ApiError as error:
            if not error.conflict:
                raise
        # It is there and our copy does not have it: somebody else's (our labels are not on it), or the copy is behind.
        live = await self._get(kind, key)
        if live is None:
            raise NotApplied("Retrying", f"The {kind.name} {key[1]} is created and deleted by somebody else; it is tried again.")
        return await self._change(kind, live, manifest, manifest["metadata"]["annotations"][names.APPLIED])

    async def _change(self, kind: Kind, live: Object, manifest: Manifest, wanted: str) -> Object | None:
        """The object as it is now; None: it was as wanted."""
        metadata, key = live["metadata"], key_of(live)
        self._refuse_others(kind, live)
        if _owner(live) != manifest["metadata"]["ownerReferences"][0]["uid"]:
            await self._not_ours(kind, live, manifest)
        if "deletionTimestamp" in metadata:
            raise NotApplied("Retrying", f"The {kind.name} {key[1]} is being deleted; it is made again when it is gone.")
        if metadata.get("annotations", {}).get(names.APPLIED) == wanted and not self._edited(kind, live, wanted):
            return None
        changed: dict[str, Any] = {**manifest, "metadata": {**manifest["metadata"], "resourceVersion": metadata["resourceVersion"]}}
        changed["metadata"]["annotations"] = {**metadata.get("annotations", {}), names.APPLIED: wanted}
        if kind is DEPLOYMENTS:
            uid = manifest["metadata"]["ownerReferences"][0]["uid"]
            if live["spec"]["replicas"] and not self._pace.may(uid, live):
                self._put_off.add(uid)
                return None
            changed["spec"] = {**manifest["spec"], "replicas": live["spec"]["replicas"]}
            if at := editing.restarted(live):
                changed["spec"]["template"] = _annotated(manifest["spec"]["template"], {editing.RESTARTED: at})
        elif kind is BUDGETS:
            changed["spec"] = {**manifest["spec"], "maxUnavailable": live["spec"].get("maxUnavailable", 1)}
        log.event("object changed", kind=kind.name, namespace=key[0], name=key[1])
        return await self._api.replace(kind, changed)

    def _edited(self, kind: Kind, live: Object, wanted: str) -> bool:
        """An object that this process sees for the first time is taken to be as it was applied: its digest says so."""
        if kind is SECRETS:
            return False
        key, metadata, found = (kind, *key_of(live)), live["metadata"], editing.content(live)
        uid, applied, right = self._right.get(key, ("", "", ""))
        if (uid, applied) != (metadata["uid"], wanted):
            self._right[key] = (metadata["uid"], wanted, found)
            return False
        return found != right

    async def _not_ours(self, kind: Kind, live: Object, manifest: Manifest) -> None:
        """Always raises. What an older function of this very name left goes; anything else of the name is foreign."""
        metadata, labels = live["metadata"], live["metadata"].get("labels", {})
        ours = manifest["metadata"]["labels"]
        if all(labels.get(name) == ours[name] for name in (names.MANAGED_BY, names.INSTALLATION, names.FUNCTION)):
            await self._api.delete(kind, metadata["namespace"], metadata["name"], uid=metadata["uid"])
            raise NotApplied("Retrying", f"The {kind.name} {metadata['name']} of an older function of this name is being removed.")
        text = (
            f"A {kind.name} named {metadata['name']} exists that is not Dormouse's; it is left as it is. Rename the function or remove it."
        )
        raise NotApplied("NameTaken", text)

    # ------------------------------------------------------------------------------------------------------------------ what is over

    async def remove(self, entry: state_pb2.FunctionEntry) -> None:
        """Everything of a function whose object is gone. The garbage collector does the same, unless somebody asked it to leave orphans."""
        self._put_off.discard(entry.uid)
        self._pace.written(entry.uid)
        for kind in self._copies:
            for live in self._of(kind, entry.uid):
                await self._remove(kind, live, "of a deleted function")
        secret = await self._get(SECRETS, (entry.namespace, names.secret(entry.name)))
        if secret is not None and _belongs(secret, entry.uid):
            await self._remove(SECRETS, secret, "of a deleted function")
        self.doubt(entry)
        owners = {key: _owner(self._copies[key[0]].items.get(key[1:], {"metadata": {}})) for key in self._right}
        self._right = {key: right for key, right in self._right.items() if owners[key] not in ("", entry.uid)}

    async def _clean(self, entry: state_pb2.FunctionEntry) -> None:
        """Deployments of other revisions that have no worker any more and need none, and spec files that no Deployment uses."""
        before = proved(entry)
        used = {entry.revision}
        for live in self._of(DEPLOYMENTS, entry.uid):
            revision = live["metadata"]["labels"][names.REVISION]
            if revision == entry.revision:
                continue
            needed = before is not None and revision == before.revision
            if not needed and live["spec"]["replicas"] == 0 and not live.get("status", {}).get("replicas"):
                await self._remove(DEPLOYMENTS, live, "of an older revision")
            else:
                used.add(revision)
        for live in self._of(CONFIG_MAPS, entry.uid):
            if live["metadata"]["labels"].get(names.REVISION) not in used:
                await self._remove(CONFIG_MAPS, live, "of an older revision")

    def _of(self, kind: Kind, uid: str) -> list[Object]:
        return [item for item in self._copies[kind].items.values() if _belongs(item, uid)]

    async def _remove(self, kind: Kind, live: Object, why: str) -> None:
        metadata = live["metadata"]
        log.event("object removed", why=why, kind=kind.name, namespace=metadata["namespace"], name=metadata["name"])
        try:
            await self._api.delete(kind, metadata["namespace"], metadata["name"], uid=metadata["uid"])
        except ApiError as error:
            raise _not_applied(kind, key_of(live), error) from error


def _served_by(theirs: str, kind: Kind, live: Object, own: str) -> str:
    metadata = live["metadata"]
    return (
        f"The installation {theirs} serves a function of this name: its {kind.name} {metadata['name']} stands (label "
        f"{names.INSTALLATION}). The installation {own} makes nothing of it until that has gone."
    )


def _annotated(template: dict[str, Any], annotations: dict[str, str]) -> dict[str, Any]:
    metadata = template["metadata"]
    return {**template, "metadata": {**metadata, "annotations": {**metadata.get("annotations", {}), **annotations}}}


def _owner(found: Object) -> str:
    """The uid of its controller."""
    return next((str(o["uid"]) for o in found["metadata"].get("ownerReferences", ()) if o.get("controller")), "")


def _belongs(found: Object, uid: str) -> bool:
    """Whether it is the function's of this uid and not on its way out. Who deletes a function and leaves orphans takes their owner away."""
    metadata = found["metadata"]
    orphan = not _owner(found) and metadata.get("labels", {}).get(names.UID) == uid and names.APPLIED in metadata.get("annotations", {})
    return (_owner(found) == uid or orphan) and "deletionTimestamp" not in metadata


def _unchanged(key: tuple[str, str], uid: str, wanted: str) -> Object:
    """Stands for an object that is known to be as wanted."""
    metadata = {"namespace": key[0], "name": key[1], "ownerReferences": [{"uid": uid, "controller": True}]}
    return {"metadata": {**metadata, "annotations": {names.APPLIED: wanted}}}


def _not_applied(kind: Kind, key: tuple[str, str], error: ApiError) -> NotApplied:
    """`final`: the server understood it and will not have it, whoever asks how often."""
    where = f"The {kind.name} {key[1]}"
    if error.code == 422:
        return NotApplied("Invalid", f"{where} is refused by the API server: {error.message}", final=True)
    if error.code == 403:
        return NotApplied("Forbidden", f"{where} cannot be made: {error.message}")
    return NotApplied("Retrying", f"{where} could not be applied and is tried again: {error.message}")
