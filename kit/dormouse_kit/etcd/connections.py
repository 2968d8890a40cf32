"""One live connection to one of several etcd members, and the move to another.

gRPC's own balancer would keep a watch on a member that stopped answering without closing its socket, and would not tell us where a
call went. So: one channel at a time to one endpoint; it is *retired* when its socket breaks, when a probe goes unanswered, or when a
call ran into its deadline while nothing else was heard. Everything on a retired connection ends with StoreError at once, watches included,
and the next call connects to the next endpoint.

HTTP/2 keepalive cannot do the probing: etcd answers pings that come oftener than each 5 s (`--grpc-keepalive-min-time`) with a GOAWAY. A
probe is a read of one member's own data (serializable), so it tells a dead member from one whose cluster has no leader; the latter refuses
calls by itself because they carry `hasleader`.
"""

import asyncio
import contextlib
import functools
from collections.abc import Sequence
from typing import Any, Final

import grpc
import grpc.aio
from aetcd.rpc import rpc_pb2
from dormouse_core.backoff import Backoff
from dormouse_core.seams import StoreError, Unreached

from dormouse_kit import log
from dormouse_kit.etcd import messages
from dormouse_kit.etcd.credentials import Credentials, Password, TlsFiles
from dormouse_kit.etcd.dialling import first_of
from dormouse_kit.grpc_options import UNLIMITED, Options

CONNECT_SECONDS: Final = 1.0
AUTHENTICATE_SECONDS: Final = 10.0
"""etcd takes a tenth of a second of a processor for each password, and all clients come at once when it was away: one that gave up soon and
asked again, or asked twice at once, would add to what it waits for."""
ASKED_SECONDS: Final = 2.5  # until the same member is asked beside it
PROBE_AFTER: Final = 1.0  # of silence
PROBE_TIMEOUT: Final = 2.0  # until a probe counts as unanswered
PAUSE: Final = Backoff(0.02, 0.3)  # after a connection that did not last

_OPTIONS: Final[Options] = [
    ("grpc.enable_retries", 0),
    ("grpc.use_local_subchannel_pool", 1),  # a new channel is a new connection, never the one that was just retired
    ("grpc.max_receive_message_length", UNLIMITED),  # or a reply's size could hide a commit
    ("grpc.max_send_message_length", UNLIMITED),
    ("grpc.enable_http_proxy", 0),
    ("grpc.client_idle_timeout_ms", 2**31 - 1),
]

_UNARY: Final = {
    "Txn": ("/etcdserverpb.KV/Txn", rpc_pb2.TxnResponse.FromString),
    "Range": ("/etcdserverpb.KV/Range", rpc_pb2.RangeResponse.FromString),
    "Compact": ("/etcdserverpb.KV/Compact", rpc_pb2.CompactionResponse.FromString),
    "LeaseGrant": ("/etcdserverpb.Lease/LeaseGrant", rpc_pb2.LeaseGrantResponse.FromString),
    "LeaseRevoke": ("/etcdserverpb.Lease/LeaseRevoke", rpc_pb2.LeaseRevokeResponse.FromString),
    "Status": ("/etcdserverpb.Maintenance/Status", rpc_pb2.StatusResponse.FromString),
    "Alarm": ("/etcdserverpb.Maintenance/Alarm", rpc_pb2.AlarmResponse.FromString),
    "Defragment": ("/etcdserverpb.Maintenance/Defragment", rpc_pb2.DefragmentResponse.FromString),
    "Authenticate": ("/etcdserverpb.Auth/Authenticate", rpc_pb2.AuthenticateResponse.FromString),
    "MemberList": ("/etcdserverpb.Cluster/MemberList", rpc_pb2.MemberListResponse.FromString),
    "MemberAdd": ("/etcdserverpb.Cluster/MemberAdd", rpc_pb2.MemberAddResponse.FromString),
    "MemberRemove": ("/etcdserverpb.Cluster/MemberRemove", rpc_pb2.MemberRemoveResponse.FromString),
    "MemberPromote": ("/etcdserverpb.Cluster/MemberPromote", rpc_pb2.MemberPromoteResponse.FromString),
}
Metadata = tuple[tuple[str, str], ...]
_PROBE: Final = rpc_pb2.RangeRequest(key=b"\0", serializable=True, limit=1, keys_only=True).SerializeToString()


class Connection:
    """A channel that was ready once. Requests are bytes, replies messages."""

    def __init__(self, endpoint: str, channel: grpc.aio.Channel) -> None:
        self.endpoint = endpoint
        self.channel = channel
        self.unary: dict[str, Any] = {
            name: channel.unary_unary(path, request_serializer=None, response_deserializer=parse) for name, (path, parse) in _UNARY.items()
        }
        self.keep_alive: Any = channel.stream_stream(
            "/etcdserverpb.Lease/LeaseKeepAlive", request_serializer=None, response_deserializer=rpc_pb2.LeaseKeepAliveResponse.FromString
        )
        self.watch: Any = channel.stream_stream(
            "/etcdserverpb.Watch/Watch", request_serializer=None, response_deserializer=rpc_pb2.WatchResponse.FromString
        )
        self.snapshot: Any = channel.unary_stream(
            "/etcdserverpb.Maintenance/Snapshot", request_serializer=None, response_deserializer=rpc_pb2.SnapshotResponse.FromString
        )
        self.metadata: Metadata = (("hasleader", "true"),)
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()  # why
        self.opened = self.heard = asyncio.get_running_loop().time()
        self.proved = False  # an answer came over it
        self.checked = False  # the store behind it has the history that is known
        self.guards: list[asyncio.Task[None]] = []
        self.renewing: asyncio.Task[None] | None = None

    def hear(self) -> None:
        """An answer came."""
        self.heard = asyncio.get_running_loop().time()
        if not self.proved:
            self.proved = True
            log.event("store connected", endpoint=self.endpoint)

    def silence(self) -> float:
        return asyncio.get_running_loop().time() - self.heard

    async def authenticate(self, user: str, passwords: Sequence[str], timeout: float) -> None:
        """With the first of `passwords`, the newest in front, that is valid. AioRpcError: none is, or etcd does not answer. Of several the
        newest is tried again at the end: it may have become the valid one when it had just been refused."""
        tries = [*passwords, *passwords[:-1]]
        for place, password in enumerate(tries, 1):
            request = rpc_pb2.AuthenticateRequest(name=user, password=password).SerializeToString()
            try:
                response = await self.unary["Authenticate"](request, timeout=timeout)
            except grpc.aio.AioRpcError as error:
                if place == len(tries) or messages.WRONG_PASSWORD not in (error.details() or ""):
                    raise
            else:
                self.metadata = (("hasleader", "true"), ("token", response.token))
                return

    async def renew(self, user: str, passwords: Sequence[str], used: Metadata, timeout: float) -> bool:
        """A token in the place of the one in `used`, asked for once for all that were refused with it. False: none in time. AioRpcError."""
        if self.metadata is not used:
            return True
        if self.renewing is None or self.renewing.done():
            self.renewing = asyncio.create_task(self.authenticate(user, passwords, AUTHENTICATE_SECONDS), name="etcd authenticate")
            self.renewing.add_done_callback(lambda task: task.cancelled() or task.exception())  # seen, also where all waiters gave up
        renewing = self.renewing
        await asyncio.wait({renewing}, timeout=timeout)
        if not renewing.done() or renewing.cancelled():
            return False
        renewing.result()
        return True


class Connections:
    """The connection in use, and how to get the next. Belongs to the event loop that first uses it."""

    def __init__(
        self, endpoints: Sequence[str], tls: TlsFiles | None = None, user: str = "", password: Password = "", *, probing: bool = True
    ) -> None:
        """`probing`: whether a silent connection is asked for a sign of life; a member that defragments its file gives none."""
        self._probing = probing
        if not endpoints:
            raise ValueError("endpoints: none given, at least one is needed")
        self.endpoints = [_address(endpoint, tls) for endpoint in endpoints]
        self._credentials = Credentials(tls, password)
        self._user = user
        self._next = 0
        self._current: Connection | None = None
        self._connecting: asyncio.Task[Connection] | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._closed = False
        self._asking: dict[int, float] = {}  # when an endpoint, by its place, was last asked for a token that it has not given
        self._short = 0  # connections in a row that did not last

    @property
    def several(self) -> bool:
        return len(self.endpoints) > 1

    async def get(self, timeout: float) -> Connection:
        """The connection in use, or a new one. Unreached: none in time, so nothing was sent."""
        if self._current is not None:
            return self._current
        if self._closed:
            raise StoreError("the store's client is closed", definite=True)
        if self._connecting is None or self._connecting.done():
            self._connecting = asyncio.create_task(self._connect(), name="etcd connect")
            self._connecting.add_done_callback(lambda task: task.cancelled() or task.exception())  # seen, also where all waiters gave up
        connecting = self._connecting
        await asyncio.wait({connecting}, timeout=timeout)
        if not connecting.done():
            raise Unreached(f"no etcd endpoint could be reached in {timeout:.1f} s: {', '.join(self.endpoints)}")
        if connecting.cancelled():
            raise StoreError("the store's client is closed", definite=True)
        return connecting.result()

    def retire(self, connection: Connection, why: str) -> None:
        """Ends everything that runs on `connection`, and the next call connects to the next endpoint."""
        if connection.lost.done():
            return
        connection.lost.set_result(why)
        if self._current is connection:
            self._current = None
            self._next += 1
        # One that did not last is followed by a pause, or a cluster without a leader would be dialled in a tight loop.
        lasted = asyncio.get_running_loop().time() - connection.opened >= PROBE_AFTER
        self._short = 0 if lasted else self._short + 1
        if connection.proved and not self._closed:
            log.event("store connection lost", endpoint=connection.endpoint, reason=why)
        closing = asyncio.create_task(_close(connection), name="etcd close")
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    async def renew_token(self, connection: Connection, used: Metadata, timeout: float) -> bool:
        """True: there is another token than in `used`. Simple tokens end with the member's process and after 5 unused minutes."""
        if not self._user or connection.lost.done():
            return False
        try:
            return await connection.renew(self._user, self._credentials.passwords(), used, timeout)
        except grpc.aio.AioRpcError as error:
            raise messages.store_error("Authenticate", connection.endpoint, error) from error

    async def close(self) -> None:
        self._closed = True
        if self._connecting is not None and not self._connecting.done():
            self._connecting.cancel()
            await asyncio.wait({self._connecting})
        if self._current is not None:
            self.retire(self._current, "closed")
        if self._closing:
            await asyncio.wait(self._closing)

    async def _connect(self) -> Connection:
        await asyncio.sleep(PAUSE.after(self._short) if self._short else 0.0)
        self._next, connection = await first_of(self._open, len(self.endpoints), self._next, lambda late: late.channel.close(None))
        connection.guards = [
            asyncio.create_task(self._follow(connection), name="etcd connection state"),
            asyncio.create_task(self._probe(connection), name="etcd probe"),
        ]
        for guard in connection.guards:
            guard.add_done_callback(functools.partial(self._unguarded, connection))
        self._current = connection
        return connection

    def _unguarded(self, connection: Connection, guard: asyncio.Task[None]) -> None:
        """A connection that nobody looks after any more would be kept when it is dead."""
        if not guard.cancelled() and (error := guard.exception()) is not None:
            self.retire(connection, f"{guard.get_name()}: {error!r}")

    async def _open(self, place: int) -> Connection | None:
        if self._asked(place):
            return None
        endpoint = self.endpoints[place]
        credentials = self._credentials.channel()
        channel = (
            grpc.aio.secure_channel(endpoint, credentials, options=_OPTIONS)
            if credentials
            else grpc.aio.insecure_channel(endpoint, options=_OPTIONS)
        )
        kept = False
        try:
            if not await _ready(channel) or self._asked(place):
                return None
            connection = Connection(endpoint, channel)
            if self._user:
                self._asking[place] = since = asyncio.get_running_loop().time()
                try:
                    await connection.authenticate(self._user, self._credentials.passwords(), AUTHENTICATE_SECONDS)
                except grpc.aio.AioRpcError as error:
                    refused = messages.store_error("Authenticate", endpoint, error)
                    if refused.definite:
                        raise refused from error
                    return None
                finally:
                    if self._asking.get(place) == since:
                        del self._asking[place]
            kept = True
            return connection
        finally:
            if not kept:
                await channel.close()

    def _asked(self, place: int) -> bool:
        """An attempt waits for a token there: another beside it would only add to what the member has to do. The network may have lost the
        first, so it is not waited for to its end."""
        since = self._asking.get(place)
        return since is not None and asyncio.get_running_loop().time() < since + ASKED_SECONDS

    async def _follow(self, connection: Connection) -> None:
        await connection.channel.wait_for_state_change(grpc.ChannelConnectivity.READY)
        self.retire(connection, "the connection broke")

    async def _probe(self, connection: Connection) -> None:
        while self._probing:
            await asyncio.sleep(max(PROBE_AFTER - connection.silence(), 0.01))
            if connection.silence() < PROBE_AFTER:
                continue
            try:
                await connection.unary["Range"](_PROBE, timeout=PROBE_TIMEOUT, metadata=connection.metadata)
            except grpc.aio.AioRpcError as error:
                # Any answer of a lone member is a sign of life; of several, one that cannot answer reads is not the one to stay with.
                if not messages.by_server(error) or (self.several and error.code() is grpc.StatusCode.UNAVAILABLE):
                    self.retire(connection, f"a probe went unanswered: {error.code().name}: {error.details()}")
                    return
            connection.hear()


async def write(call: Any, request: bytes) -> None:
    """Writes to a stream, or returns because it has ended: whoever reads it next is told why.

    grpc.aio's own write waits for ever where the channel is closed, as a retired connection's is, before the call's headers were sent.
    """
    ended = asyncio.get_running_loop().create_future()

    def end(_: object) -> None:
        if not ended.done():
            ended.set_result(None)

    call.add_done_callback(end)
    writing = asyncio.ensure_future(call.write(request))
    try:
        await asyncio.wait({writing, ended}, return_when=asyncio.FIRST_COMPLETED)
        if writing.done():
            with contextlib.suppress(asyncio.InvalidStateError, grpc.aio.AioRpcError, asyncio.CancelledError):
                writing.result()
    finally:
        writing.cancel()


async def _ready(channel: grpc.aio.Channel) -> bool:
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            while (state := channel.get_state(try_to_connect=True)) is not grpc.ChannelConnectivity.READY:
                if state in (grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.SHUTDOWN):
                    return False
                await channel.wait_for_state_change(state)
    except TimeoutError:
        return False
    return True


async def _close(connection: Connection) -> None:
    follower, probe = connection.guards
    probe.cancel()
    if connection.renewing is not None:
        connection.renewing.cancel()
    await connection.channel.close()
    # The follower ends by itself now. Cancelled, it would leave an operation in gRPC's queue, which may outlive the event loop.
    await asyncio.wait({follower, probe}, timeout=1)
    follower.cancel()


def _address(endpoint: str, tls: TlsFiles | None) -> str:
    """gRPC's target of an endpoint as etcd spells it: [http[s]://]host:port or unix:path."""
    scheme, separator, address = endpoint.rpartition("://")
    if separator and scheme not in ("http", "https"):
        raise ValueError(f"endpoints: {endpoint!r} found, [http[s]://]host:port or unix:path is allowed")
    if separator and (scheme == "https") != (tls is not None):
        raise ValueError(f"endpoints: {endpoint!r} found {'without' if tls is None else 'with'} TLS files")
    return address.rstrip("/") if separator else endpoint
