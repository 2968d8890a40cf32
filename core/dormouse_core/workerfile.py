"""The file from which a worker learns what it is: one JSON file, a ConfigMap in a cluster, a plain file on one machine.

Whoever starts a worker writes it; the supervisor reads it before it starts anything. It holds the whole spec with defaults filled in, so
that a worker never asks anybody what an absent field means. It may hold the store's password: its mode is 0600 on one machine, and in a
cluster the credentials come from a Secret instead (paths here, no values).
"""

from typing import Any

import msgspec
from dormouse_proto import state_pb2
from google.protobuf.json_format import MessageToDict

from dormouse_core import keys
from dormouse_core.errors import InvalidArgument
from dormouse_core.spec import FunctionSpec, from_json, to_json


class StoreAccess(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """How to reach etcd. The three of TLS are paths of PEM files; empty: none."""

    endpoints: list[str]
    ca: str = ""
    cert: str = ""
    key: str = ""
    user: str = ""
    password: str = ""
    password_file: str = ""
    """The path of a file with the password, in place of `password`: a Secret's, in a cluster."""


class WorkerFile(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    installation: str
    namespace: str
    name: str
    uid: str
    revision: str
    spec: FunctionSpec
    store: StoreAccess
    store_id: str = ""
    """Where its sessions lie in the store (`keys.Function`)."""
    model_root: str = ""
    """The folder under which file:// lies."""
    content: str = ""
    """What the revision was proved with, while the model's files have this seal (`dormouse_kit.contents`); empty: not known."""
    seal: str = ""
    files: list[str] = msgspec.field(default_factory=list)
    """The files that a model's folder had at the proof; none: all that are there count."""
    removal_wait: float | None = None
    """The installation's wait from a session's end to its removal, in seconds; absent: see `lifetimes.removal_wait`."""
    gateway: str = ""
    """Where gateways take the calls that steps of this worker make, host:port or unix:PATH; empty: they make none."""
    batching: dict[str, Any] | None = None
    """`state_pb2.Batching` as JSON: what was found when this revision was proved, so that a wake does not look again."""

    @property
    def function(self) -> keys.Function:
        return keys.Function(self.namespace, self.name, self.uid, self.store_id)

    @property
    def keys(self) -> keys.Keys:
        return keys.Keys(self.installation)


def batching_of(entry: state_pb2.FunctionEntry, revision: str) -> dict[str, Any] | None:
    """What the entry knows of `revision`; None: nothing, since another one was proved, or none."""
    if entry.proved_revision != revision or not entry.metadata.HasField("batching"):
        return None
    found: dict[str, Any] = MessageToDict(entry.metadata.batching)
    return found


def dump(file: WorkerFile) -> bytes:
    return to_json(file)


def load(text: bytes | str) -> WorkerFile:
    """InvalidArgument: no such file's text."""
    try:
        return from_json(text, WorkerFile)
    except (msgspec.DecodeError, ValueError) as error:
        raise InvalidArgument(f"worker's spec file: {error}") from error
