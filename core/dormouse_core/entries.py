"""Small messages of the store, read in one place. One that does not parse is that one item's trouble.

Each reader says so in its log and goes on as if the item said nothing: a shard whose entry cannot be read is nobody's, until the leader
gives it to a worker with a new entry; a plan that cannot be read is no plan, and the leader takes it back. A loop that ended over it would
take every session of its worker along, and the next owner's after it.
"""

from typing import TypeVar

from dormouse_proto import state_pb2
from google.protobuf.message import DecodeError

from dormouse_core.seams import Item

T = TypeVar(
    "T", state_pb2.ShardEntry, state_pb2.Move, state_pb2.WorkerEntry, state_pb2.FunctionEntry, state_pb2.GatewayEntry, state_pb2.Retained
)


class Unreadable(Exception):
    """The item's bytes are no such message."""


def parse(kind: type[T], item: Item) -> T:
    """Raises Unreadable."""
    try:
        return kind.FromString(item.value)
    except DecodeError:
        raise Unreadable(
            f"{item.key} in the store holds no {kind.__name__}: {len(item.value)} bytes of revision {item.mod_revision}"
        ) from None
