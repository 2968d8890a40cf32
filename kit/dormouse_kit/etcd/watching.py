"""A watch: changes from a revision on, without a gap, or an error.

Four traps of etcd's watch are closed here. A watch whose history was compacted is *cancelled by a message*, not by a status. One from a
revision that the store has not reached waits for it in silence: so it would at an etcd that came back without its data and counts from one
again. A response may come in fragments, and a revision is complete only with the last. And a silent watch may be dead: it is asked for a
sign of life, but the revision in that answer is not used, because the server may send it ahead of events that it already counts
(etcd-io/etcd#15220, fixed in 3.4.25 and 3.5.8; we support older ones).
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Final

import grpc.aio
from aetcd.rpc import kv_pb2, rpc_pb2
from dormouse_core.seams import Compacted, Event, StoreError, WatchBatch

from dormouse_kit.etcd import messages
from dormouse_kit.etcd.connections import Connection, write

ASK_AFTER: Final = 5.0  # of silence; the seam promises a batch each 10 s
LOST_AFTER: Final = 15.0

_ASK: Final = rpc_pb2.WatchRequest(progress_request=rpc_pb2.WatchProgressRequest()).SerializeToString()
_ON_DEMAND: Final = -1  # the watch id of answers to progress requests


def create_request(prefix: str, revision: int) -> bytes:
    key = messages.raw(prefix)
    create = rpc_pb2.WatchCreateRequest(
        key=key or b"\0", range_end=messages.prefix_end(key), start_revision=revision, progress_notify=True, fragment=True
    )
    encoded: bytes = rpc_pb2.WatchRequest(create_request=create).SerializeToString()
    return encoded


async def watch(connection: Connection, prefix: str, revision: int) -> AsyncGenerator[WatchBatch, None]:
    """One stream on one connection, until something ends it: always an exception."""
    complete = max(revision - 1, 0)
    events: list[Event] = []
    call = None
    try:
        call = connection.watch(metadata=connection.metadata)
        await write(call, create_request(prefix, revision))
        async with aclosing(_responses(call, connection)) as responses:
            async for response in responses:
                if response.compact_revision:
                    raise Compacted(f"watch of {prefix!r} from {revision}: compacted up to {response.compact_revision}", definite=True)
                if response.canceled:
                    raise StoreError(f"watch of {prefix!r} from {revision}: ended by {connection.endpoint}: {response.cancel_reason}")
                if response.created and response.header.revision < complete:  # a member that lags behind says so, too: listing waits for it
                    raise Compacted(f"watch of {prefix!r} from {revision}: the store is at {response.header.revision}", definite=True)
                events.extend(map(_event, response.events))
                if response.fragment:
                    continue
                if events:
                    complete = events[-1].mod_revision
                elif not response.created and response.watch_id != _ON_DEMAND:
                    complete = max(complete, response.header.revision)  # a notice that the server sends in line with the events
                yield WatchBatch(complete, tuple(events))
                events.clear()
        raise StoreError(f"watch of {prefix!r}: ended by {connection.endpoint}")
    except grpc.aio.AioRpcError as error:
        raise messages.store_error("Watch", connection.endpoint, error) from error
    except grpc.aio.UsageError as error:
        raise StoreError(f"watch of {prefix!r} at {connection.endpoint}: {error}") from error
    finally:
        if call is not None:
            call.cancel()


async def _responses(call: Any, connection: Connection) -> AsyncGenerator[Any, None]:
    """What the server sends; asks where it is silent. A read must not be cancelled by a timeout of ours: that would cancel the call."""
    reading: asyncio.Task[Any] | None = None
    silent_since = asyncio.get_running_loop().time()
    try:
        while True:
            reading = reading or asyncio.create_task(_read(call), name="etcd watch read")
            await asyncio.wait({reading, connection.lost}, timeout=ASK_AFTER, return_when=asyncio.FIRST_COMPLETED)
            now = asyncio.get_running_loop().time()
            if reading.done():
                if reading.cancelled():
                    why = connection.lost.result() if connection.lost.done() else "cancelled"
                    raise StoreError(f"watch at {connection.endpoint}: {why}")
                response = reading.result()
                reading = None
                if response is grpc.aio.EOF:
                    return
                silent_since = now
                connection.hear()
                yield response
            elif connection.lost.done():
                raise StoreError(f"watch at {connection.endpoint}: {connection.lost.result()}")
            elif now - silent_since >= LOST_AFTER:
                raise StoreError(f"watch at {connection.endpoint}: silent for {LOST_AFTER:g} s")
            else:
                await write(call, _ASK)
    finally:
        if reading is not None and not reading.cancel() and not reading.cancelled():
            reading.exception()  # seen: whoever left the watch does not want to know how it ended


async def _read(call: Any) -> Any:
    return await call.read()


def _event(event: Any) -> Event:
    kv = event.kv
    deleted = event.type == kv_pb2.Event.DELETE
    return Event(messages.text(kv.key), kv.mod_revision, None if deleted else messages.item(kv))
