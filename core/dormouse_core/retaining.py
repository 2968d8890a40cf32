"""Whether a function's sessions outlive it, and who is given them (rule *retained* of `docs/sessions.md`). Pure."""

from dormouse_proto import state_pb2

from dormouse_core import entries
from dormouse_core.entries import Unreadable
from dormouse_core.errors import DataLoss, FailedPrecondition
from dormouse_core.keys import function_of
from dormouse_core.seams import Item
from dormouse_core.spec import spec_from_json


def retains(entry: state_pb2.FunctionEntry) -> bool:
    """Whether the sessions of this function are kept when it is deleted. Also of one that a restore wrote and nobody has applied since: in
    another cluster its object has another uid, so that its function looks deleted there."""
    if not entry.shards:
        return False
    sessions = spec_from_json(entry.spec).sessions
    return entry.restored or (sessions is not None and sessions.reclaim_policy == "Retain")


def record(entry: state_pb2.FunctionEntry, now_us: int) -> bytes:
    """What is left of a function whose sessions are kept."""
    store_id = function_of(entry).data_path.rpartition("/")[2]
    return bytes(state_pb2.Retained(store_id=store_id, shards=entry.shards, since_us=now_us, tenant=entry.tenant).SerializeToString())


class OtherTenant(FailedPrecondition):
    """The sessions were kept for another tenant than the one whose the namespace is: its label may be set right."""


def adopted(item: Item, label: str, shards: int, tenant: str = "") -> str:
    """The store id of the sessions that the new function `label` with so many shards, in a namespace of this tenant, is given.
    FailedPrecondition: it cannot have them (OtherTenant: as whose its namespace is now); DataLoss: whose they are cannot be read."""
    try:
        found = _parse(item)
    except Unreadable as error:
        raise DataLoss(f"{label} cannot begin: {error}") from error
    if found.tenant != tenant:
        have, allowed = (f'tenant "{name}"' if name else "no tenant" for name in (tenant, found.tenant))
        raise OtherTenant(
            f"metadata.namespace: {have} found, {allowed} is allowed (the namespace's label dormouse.dev/tenant): the sessions of an "
            f"earlier {label} were kept for that one. They are not touched; choose another name, or set the label right"
        )
    if found.shards != shards:
        have = f"{shards} found" if shards else "no sessions found"
        raise FailedPrecondition(
            f"spec.sessions.shards: {have}, {found.shards} is allowed: the sessions of an earlier {label} were kept, and are spread over "
            f"{found.shards}. To remove them, apply it with shards: {found.shards} and reclaimPolicy: Delete, then delete it"
        )
    return str(found.store_id)


def _parse(item: Item) -> state_pb2.Retained:
    found = entries.parse(state_pb2.Retained, item)
    if not found.store_id or "/" in found.store_id:
        raise Unreadable(f"{item.key} in the store names no store id: {found.store_id!r}")
    return found
