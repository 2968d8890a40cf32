"""`functions/` in the store, as the objects of the cluster say.

An object's uid is its function's: an object that was deleted and made again under its name is another function, and waits until the first
one is gone: with its sessions, or leaving them to this one (`reclaimPolicy: Retain`). What people may ask of the registry on one machine
(apply, scale, delete) is the API server's here.
"""

import datetime
import hashlib
from collections.abc import Awaitable, Callable
from typing import NoReturn

from dormouse_core import spec as specs
from dormouse_core.errors import Aborted, FailedPrecondition, NotFound, Unavailable
from dormouse_core.keys import Keys
from dormouse_core.seams import Clock, Store
from dormouse_core.spec import InferenceFunction
from dormouse_proto import state_pb2

from dormouse_operator.function_entries import FunctionEntries, manifest_of, marked, wanted_again, with_spec
from dormouse_operator.kubernetes.api.http import Object
from dormouse_operator.kubernetes.objects import names


class NameInUse(FailedPrecondition):
    """The name still belongs to a function that was deleted and is not gone yet."""


class _Unasked(Aborted):
    """Whose the namespace is has to be known first."""

    def __init__(self, *, begins: bool) -> None:
        super().__init__("whose the namespace is was not asked yet: ask again")
        self.begins = begins


async def nobody(namespace: str) -> str:
    """Of a namespace of which nobody says whose it is."""
    return ""


class ObjectEntries(FunctionEntries):
    """`tenant(namespace)`: whose it is; asked where a function with sessions begins, or its entry says nobody's."""

    def __init__(
        self, store: Store, keys: Keys, clock: Clock, leader_new: int, *, tenant: Callable[[str], Awaitable[str]] = nobody
    ) -> None:
        super().__init__(store, keys, clock, leader_new)
        self._tenant = tenant

    async def keep(self, found: Object, wanted: InferenceFunction) -> tuple[state_pb2.FunctionEntry, int]:
        """The entry as the object `found` wants it (`wanted`: what it says), and the revision at which the store has it. NameInUse: not
        yet; FailedPrecondition: it changes what may not change; Unavailable, Aborted: ask again. What is already so is not written."""
        uid, namespace = found["metadata"]["uid"], wanted.metadata.namespace
        tenant: str | None = None if wanted.spec.sessions else ""
        known, filled = True, False

        def change(entry: state_pb2.FunctionEntry | None) -> state_pb2.FunctionEntry | None:
            nonlocal filled
            asked = edition_of(found)
            if entry is None:
                if tenant is None:
                    raise _Unasked(begins=True)
                return with_spec(_new(found, wanted, tenant), wanted.spec, asked)
            if entry.uid != uid or entry.deleting:
                raise NameInUse("An older function of this name is being deleted; this one begins when that one is gone.")
            specs.validate_update(manifest_of(entry), wanted)
            edition = asked or entry.edition
            same = (entry.spec, entry.edition) == (specs.spec_to_json(wanted.spec), edition)
            after = with_spec(entry, wanted.spec, edition) if not same else wanted_again(entry) if entry.restored else None
            if known and entry.shards and not entry.tenant:
                # From before the namespace had a label. The function lives, so nobody else has had its namespace since.
                if tenant is None:
                    raise _Unasked(begins=False)
                if tenant:
                    after, filled = after or wanted_again(entry), True
                    after.tenant = tenant
            return after

        try:
            return await self._change(namespace, wanted.metadata.name, change)
        except _Unasked as error:
            try:
                tenant = await self._tenant(namespace)
            except Unavailable:
                if error.begins:
                    raise
                known = False  # what lives does not wait for it
        try:
            return await self._change(namespace, wanted.metadata.name, change)
        except Unavailable:
            if not filled:
                raise
            known = False  # a store that is full takes no write, and without this one there may be nothing to write
            return await self._change(namespace, wanted.metadata.name, change)

    async def forget(self, namespace: str, name: str, uid: str) -> bool:
        """The object is gone: begins its function's deletion, in which its workers end, then its map goes, then its sessions. False: it was
        begun before, or the name is another's by now."""

        def change(entry: state_pb2.FunctionEntry | None) -> state_pb2.FunctionEntry | None:
            if entry is None or entry.uid != uid or entry.deleting:
                raise NotFound(uid)
            return marked(entry)

        try:
            await self._change(namespace, name, change)
        except NotFound:
            return False
        return True

    async def apply(self, manifest: str, *, refresh: bool = False) -> NoReturn:
        raise FailedPrecondition("in a cluster functions are applied with kubectl")

    async def scale(self, namespace: str, name: str, replicas: int | None) -> NoReturn:
        change = '{"spec":{"replicas":%s}}' % ("null" if replicas is None else replicas)
        raise FailedPrecondition(
            f"in a cluster functions are scaled with kubectl: kubectl -n {namespace} patch ifn {name} --type=merge -p '{change}'"
        )

    async def delete(self, namespace: str, name: str) -> NoReturn:
        raise FailedPrecondition(f"in a cluster functions are deleted with kubectl: kubectl -n {namespace} delete ifn {name}")


def edition_of(found: Object) -> str:
    """What the object's annotation asks for: its content read again whenever it has a value that it did not have before. Empty: nothing,
    and a function stays at the edition that it has."""
    asked = (found["metadata"].get("annotations") or {}).get(names.REFRESH, "")
    return hashlib.sha256(str(asked).encode()).hexdigest()[:12] if asked else ""


def _new(found: Object, wanted: InferenceFunction, tenant: str) -> state_pb2.FunctionEntry:
    return state_pb2.FunctionEntry(
        namespace=wanted.metadata.namespace,
        name=wanted.metadata.name,
        uid=found["metadata"]["uid"],
        shards=wanted.spec.sessions.shards if wanted.spec.sessions else 0,
        tenant=tenant,
        created_us=int(seconds(found["metadata"]["creationTimestamp"]) * 1_000_000),
    )


def seconds(timestamp: str) -> float:
    """Kubernetes' text of a time (RFC 3339), in seconds since the epoch."""
    return datetime.datetime.fromisoformat(timestamp).timestamp()


def timestamp(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(int(seconds), datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
