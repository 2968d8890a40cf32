"""A snapshot of etcd in a file: etcd's own, byte for byte what `etcdctl snapshot save` writes, so that etcd's own tools read it too.

It is the member's database and, behind it, the SHA-256 of that. The member takes it at one moment, whatever is written or compacted
meanwhile, and it holds whatever any client was told is written before `save` was called: the same member answers a linearizable read first.
With users, only root may take one, and it holds what everybody stored, and the users' hashed passwords.
"""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import grpc
import grpc.aio
from aetcd.rpc import rpc_pb2
from dormouse_core.seams import StoreError

from dormouse_kit.etcd import messages
from dormouse_kit.etcd.connections import Connection, Connections

READ_SECONDS: Final = 10.0
DIGEST: Final = hashlib.sha256().digest_size
BLOCK: Final = 512
"""A database is whole blocks; with the digest behind it, it is not."""


async def save(connections: Connections, path: Path) -> int:
    """Writes `path`, whole or not at all, for this user alone; returns the revision that it holds at least. StoreError: etcd does not
    answer, refuses, or what came is not whole. OSError: the file cannot be written."""
    part = path.with_name(f".{path.name}.part")
    part.unlink(missing_ok=True)
    connection = await connections.get(READ_SECONDS)
    revision = await _revision(connection)
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
            digest, tail = hashlib.sha256(), b""
            async for blob in _blobs(connection):
                tail += blob
                await asyncio.to_thread(file.write, tail[:-DIGEST])
                digest.update(tail[:-DIGEST])
                tail = tail[-DIGEST:]
            if not file.tell() or file.tell() % BLOCK or tail != digest.digest():
                raise StoreError(f"Snapshot at {connection.endpoint}: {file.tell()} bytes came, and their digest is another")
            file.write(tail)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return revision


async def _revision(connection: Connection) -> int:
    """Of a linearizable read by this very member."""
    request = rpc_pb2.RangeRequest(key=b"\0", limit=1, keys_only=True).SerializeToString()
    try:
        response = await connection.unary["Range"](request, timeout=READ_SECONDS, metadata=connection.metadata)
    except grpc.aio.AioRpcError as error:
        raise messages.store_error("Range", connection.endpoint, error) from error
    connection.hear()
    return int(response.header.revision)


async def _blobs(connection: Connection) -> AsyncIterator[bytes]:
    call = connection.snapshot(rpc_pb2.SnapshotRequest().SerializeToString(), metadata=connection.metadata)
    try:
        async for response in call:
            connection.hear()
            yield response.blob
    except grpc.aio.AioRpcError as error:
        raise messages.store_error("Snapshot", connection.endpoint, error) from error
    finally:
        call.cancel()
