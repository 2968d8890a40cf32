"""The store's calls over the connection in use.

Reads and keepalives may be sent again, on another member, within their timeout: they change nothing. A transaction goes out once. Whatever
could have reached the server and was not answered is a StoreError that is not definite.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Any, Final

import grpc
import grpc.aio
from aetcd.rpc import rpc_pb2
from dormouse_core.histories import History
from dormouse_core.limits import ETCD_TXN_OPS
from dormouse_core.seams import Compacted, Item, Listing, Put, Rewound, StoreError, Txn, TxnResult, WatchBatch

from dormouse_kit import log
from dormouse_kit.etcd import messages, watching
from dormouse_kit.etcd.connections import PROBE_AFTER, Connection, Connections, Metadata, write
from dormouse_kit.etcd.credentials import Password, TlsFiles

_LINEARIZABLE: Final = frozenset({"Txn", "Range"})  # others say how far the member is that answers

_INVALID_TOKEN: Final = "invalid auth token"  # noqa: S105 - etcd's message, not a secret
_OLD_REVISION: Final = "revision of auth store is old"  # some user or role, whosever, was changed while the request was under way


class EtcdStore:
    """`dormouse_core.seams.Store` on etcd 3.4 and 3.5. One client serves a whole process; `close` it at the end."""

    def __init__(
        self, endpoints: Sequence[str], *, tls: TlsFiles | None = None, user: str = "", password: Password = "", probing: bool = True
    ) -> None:
        self._connections = Connections(endpoints, tls, user, password, probing=probing)
        self._history = History()
        self.on_rewound: Callable[[str], None] = lambda why: None

    async def close(self) -> None:
        await self._connections.close()

    async def get(self, keys: Sequence[str], *, timeout: float = 5.0) -> tuple[int, dict[str, Item]]:
        try:
            return await self._read(keys, timeout)
        except Compacted:
            return await self._read(keys, timeout)  # more keys than one request reads, and much is written: once more, at a newer revision

    async def _read(self, keys: Sequence[str], timeout: float) -> tuple[int, dict[str, Item]]:
        revision = 0
        found: dict[str, Item] = {}
        for at in range(0, max(len(keys), 1), ETCD_TXN_OPS):
            # Beyond one transaction's reads: the rest at the first one's revision, which is still one consistent view.
            request = messages.get_request(keys[at : at + ETCD_TXN_OPS], revision)
            response = await self.unary("Txn", request, timeout, again=True)
            revision = revision or response.header.revision
            for part in response.responses:
                for kv in part.response_range.kvs:
                    found[messages.text(kv.key)] = messages.item(kv)
        return revision, found

    async def list(
        self,
        prefix: str,
        *,
        start: str = "",
        limit: int = 0,
        revision: int = 0,
        keys_only: bool = False,
        timeout: float = 5.0,
    ) -> Listing:
        request = messages.range_request(prefix, start=start, limit=limit, revision=revision, keys_only=keys_only)
        return messages.listing(await self.unary("Range", request, timeout, again=True), revision)

    async def txn(self, txn: Txn, *, timeout: float = 5.0) -> TxnResult:
        response = await self.unary("Txn", messages.txn_request(txn), timeout)
        if response.succeeded and (key := next((write.key for write in txn.writes if isinstance(write, Put)), "")):
            self._history.wrote(key, response.header.revision)
        return TxnResult(response.succeeded, response.header.revision)

    async def watch(self, prefix: str, revision: int) -> AsyncGenerator[WatchBatch, None]:
        connection = await self._connections.get(5.0)
        if not connection.checked:
            await self.get([])
        async with aclosing(watching.watch(connection, prefix, revision)) as batches:
            async for batch in batches:
                self._history.seen(batch.revision)
                yield batch

    async def grant(self, ttl: int) -> int:
        response = await self.unary("LeaseGrant", rpc_pb2.LeaseGrantRequest(TTL=ttl).SerializeToString(), 5.0)
        lease: int = response.ID
        return lease

    async def keep_alive(self, lease: int, *, timeout: float = 1.0) -> int:
        response = await self.unary("LeaseKeepAlive", rpc_pb2.LeaseKeepAliveRequest(ID=lease).SerializeToString(), timeout, again=True)
        ttl: int = response.TTL
        return ttl

    async def revoke(self, lease: int) -> None:
        try:
            await self.unary("LeaseRevoke", rpc_pb2.LeaseRevokeRequest(ID=lease).SerializeToString(), 5.0)
        except StoreError as error:
            if "lease not found" not in str(error):
                raise

    async def compact(self, revision: int) -> None:
        await self.unary("Compact", rpc_pb2.CompactionRequest(revision=revision).SerializeToString(), 5.0)

    async def unary(self, name: str, request: bytes, timeout: float, again: bool = False) -> Any:
        """One of `connections`' requests by its name. `again`: it changes nothing, and may be sent a second time."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        attempts = 0
        renewed = False
        while True:
            connection = await self._connections.get(deadline - loop.time())
            began = loop.time()
            limit = max(deadline - began, 0.001)
            if again and attempts == 0 and self._connections.several:
                limit /= 2  # so that a second member can still answer in time: a lease of 3 s has no second to lose
            attempts += 1
            used = connection.metadata
            try:
                if not connection.checked:
                    await self._check(connection, limit)
                    used = connection.metadata
                known = self._history.revision
                response = await self._send(connection, name, request, limit)
                connection.hear()
                if name in _LINEARIZABLE:
                    self._judge_history(self._history.answered(response.header.cluster_id, response.header.revision, known))
                return response
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if not connection.lost.done() or (task is not None and task.cancelling()):
                    raise
                failure = StoreError(f"{name} at {connection.endpoint}: {connection.lost.result()}")
            except grpc.aio.AioRpcError as error:
                failure = messages.store_error(name, connection.endpoint, error)
                # Both are refusals without effect, so sending again is no repetition of a transaction.
                if _INVALID_TOKEN in str(failure) and not renewed:
                    renewed = await self._connections.renew_token(connection, used, max(deadline - loop.time(), 0.001))
                    if renewed:
                        continue
                if _OLD_REVISION in str(failure) and loop.time() < deadline:
                    await self._after_change(connection, attempts, used, deadline - loop.time())
                    continue
                self._judge(connection, error, began, limit)
            if failure.definite or not again or loop.time() >= deadline:
                raise failure
            await asyncio.sleep(min(0.02 * attempts, max(deadline - loop.time(), 0.0)))

    async def _check(self, connection: Connection, limit: float) -> None:
        """Whether behind a new connection there is still the history that is known."""
        known, written = self._history.revision, self._history.written
        if known:
            request = messages.get_request([written[0]] if written else [], 0)
            response = await self._send(connection, "Txn", request, limit)
            cluster, revision = response.header.cluster_id, response.header.revision
            why = self._history.answered(cluster, revision, known)
            if not why and written == self._history.written:
                mods = [kv.mod_revision for part in response.responses for kv in part.response_range.kvs]
                why = self._history.found(max(mods, default=0), cluster, revision)
            self._judge_history(why)
        connection.checked = True

    def _judge_history(self, why: str) -> None:
        if why:
            log.warning(why)
            self.on_rewound(why)
            raise Rewound(why)

    async def _after_change(self, connection: Connection, attempts: int, used: Metadata, left: float) -> None:
        """Users are changed in bursts. A simple token is good at any revision; one that names its revision (JWT) has to be had anew."""
        if attempts > 1:
            await asyncio.sleep(min(0.005 * attempts, 0.1))
            await self._connections.renew_token(connection, used, max(left, 0.001))

    async def _send(self, connection: Connection, name: str, request: bytes, limit: float) -> Any:
        if name != "LeaseKeepAlive":
            return await connection.unary[name](request, timeout=limit, metadata=connection.metadata)
        call = connection.keep_alive(timeout=limit, metadata=connection.metadata)
        try:
            await write(call, request)
            response = await call.read()
            if response is grpc.aio.EOF:
                raise StoreError(f"{name} at {connection.endpoint}: ended without an answer")
            return response
        finally:
            call.cancel()

    def _judge(self, connection: Connection, error: grpc.aio.AioRpcError, began: float, limit: float) -> None:
        """Is the connection to blame? What etcd itself answered speaks against a member only where there is another."""
        code = error.code()
        several = self._connections.several
        if code is grpc.StatusCode.UNAVAILABLE and (several or not messages.by_server(error)):
            self._connections.retire(connection, f"{code.name}: {error.details()}")
        # A short deadline of the caller's proves little; it is enough where another member is there to try.
        enough = limit >= PROBE_AFTER * (0.4 if several else 0.9)
        if code is grpc.StatusCode.DEADLINE_EXCEEDED and enough and connection.heard < began:
            self._connections.retire(connection, f"nothing heard for {limit:.1f} s")
