"""What one who should not may try upon a real etcd: each is a request of etcd's API on what is another function's, or on what is nobody's.

Each attack returns what it got, or '' where it got nothing and changed nothing; `refused` is what etcd said. They are written against the
protocol itself, not against our client: a handler may bring a client of its own.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from aetcd.rpc import auth_pb2, rpc_pb2
from dormouse_core.seams import Delete, Put, Txn
from dormouse_kit.etcd import EtcdStore
from dormouse_kit.etcd.users import ROOT, Grant, Users

PASSWORD = "correct horse"
MINE, THEIRS = "/f/mine/", "/f/theirs/"
GRANTED = MINE
"""What the attacker has rights to."""
SECRET = b"a session of another"
HARMLESS = {"member_list"}
"""A user of etcd may ask who its members are: they are the addresses that every worker is given."""
WATCHED = 1.0  # seconds for which a watch is listened to

KV, LEASE, MAINTENANCE = "/etcdserverpb.KV/", "/etcdserverpb.Lease/", "/etcdserverpb.Maintenance/"
CLUSTER, AUTH, WATCH = "/etcdserverpb.Cluster/", "/etcdserverpb.Auth/", "/etcdserverpb.Watch/"


@dataclass(frozen=True)
class Scene:
    """A real etcd with two functions' keys, one of them under a lease, and a connection with the token of who attacks ('' : nobody)."""

    channel: grpc.aio.Channel
    token: str
    lease: int
    """Of the other function's worker."""

    async def ask(self, method: str, request: Any, reply: Any) -> Any:
        call = self.channel.unary_unary(method, request_serializer=None, response_deserializer=reply.FromString)
        return await call(request.SerializeToString(), timeout=5.0, metadata=self.metadata)

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        return (("token", self.token),) if self.token else ()


Attack = Callable[[Scene], Awaitable[object]]
ATTACKS: dict[str, Attack] = {}


def attack(made: Attack) -> Attack:
    ATTACKS[made.__name__.strip("_")] = made
    return made


def _range(key: str, end: str = "", **more: Any) -> Any:
    return rpc_pb2.RangeRequest(key=key.encode(), range_end=end.encode(), **more)


async def _txn(s: Scene, *operations: Any, compare: Any = None) -> Any:
    request = rpc_pb2.TxnRequest(success=list(operations), failure=[])
    if compare is not None:
        request.compare.append(compare)
    return await s.ask(f"{KV}Txn", request, rpc_pb2.TxnResponse)


def _op(**which: Any) -> Any:
    return rpc_pb2.RequestOp(**which)


def _nested(*operations: Any, depth: int = 1) -> Any:
    for _ in range(depth):
        operations = (_op(request_txn=rpc_pb2.TxnRequest(success=list(operations))),)
    return operations[0]


# ------------------------------------------------------------------------------------------------------------------------ reading


@attack
async def range_one(s: Scene) -> object:
    return (await s.ask(f"{KV}Range", _range(f"{THEIRS}s"), rpc_pb2.RangeResponse)).kvs


@attack
async def range_prefix(s: Scene) -> object:
    return (await s.ask(f"{KV}Range", _range(THEIRS, f"{THEIRS[:-1]}0"), rpc_pb2.RangeResponse)).kvs


@attack
async def range_from_its_own_to_the_end(s: Scene) -> object:
    return (await s.ask(f"{KV}Range", rpc_pb2.RangeRequest(key=MINE.encode(), range_end=b"\0"), rpc_pb2.RangeResponse)).kvs


@attack
async def range_stale_or_counted(s: Scene) -> object:
    for more in ({"serializable": True}, {"count_only": True}, {"keys_only": True}, {"limit": 1}):
        with contextlib.suppress(grpc.aio.AioRpcError):
            return (await s.ask(f"{KV}Range", _range(THEIRS, f"{THEIRS[:-1]}0", **more), rpc_pb2.RangeResponse)).count
    return ""


@attack
async def txn_range(s: Scene) -> object:
    return (await _txn(s, _op(request_range=_range(f"{THEIRS}s")))).responses[0].response_range.kvs


@attack
async def txn_compare(s: Scene) -> object:
    """Guesses what a key holds."""
    compare = rpc_pb2.Compare(target=rpc_pb2.Compare.VALUE, result=rpc_pb2.Compare.EQUAL, key=f"{THEIRS}s".encode(), value=SECRET)
    return (await _txn(s, compare=compare)).succeeded


@attack
async def nested_txn_range(s: Scene) -> object:
    return str((await _txn(s, _nested(_op(request_range=_range(f"{THEIRS}s"))))).responses)


@attack
async def deeper_nested_txn_range(s: Scene) -> object:
    return str((await _txn(s, _nested(_op(request_range=_range(f"{THEIRS}s")), depth=3))).responses)


@attack
async def nested_txn_compare(s: Scene) -> object:
    compare = rpc_pb2.Compare(target=rpc_pb2.Compare.VALUE, result=rpc_pb2.Compare.EQUAL, key=f"{THEIRS}s".encode(), value=SECRET)
    return (await _txn(s, _op(request_txn=rpc_pb2.TxnRequest(compare=[compare])))).responses[0].response_txn.succeeded


async def _watched(s: Scene, **create: Any) -> object:
    """What a watch tells while somebody writes."""
    stream = s.channel.stream_stream(f"{WATCH}Watch", request_serializer=None, response_deserializer=rpc_pb2.WatchResponse.FromString)
    call = stream(metadata=s.metadata)
    try:
        request = rpc_pb2.WatchRequest(create_request=rpc_pb2.WatchCreateRequest(start_revision=1, **create))
        await call.write(request.SerializeToString())
        async with asyncio.timeout(WATCHED):
            while True:
                response = await call.read()
                if response is grpc.aio.EOF or response.canceled:
                    return ""
                told = [event for event in response.events if event.kv.key.startswith(THEIRS.encode())]
                if told:
                    return told
    except TimeoutError:
        return ""
    finally:
        call.cancel()


@attack
async def watch_one(s: Scene) -> object:
    return await _watched(s, key=f"{THEIRS}s".encode())


@attack
async def watch_prefix(s: Scene) -> object:
    return await _watched(s, key=THEIRS.encode(), range_end=f"{THEIRS[:-1]}0".encode(), prev_kv=True)


@attack
async def watch_from_its_own_to_the_end(s: Scene) -> object:
    return await _watched(s, key=f"{MINE}s".encode(), range_end=b"\0")


@attack
async def watch_from_its_own_over_others(s: Scene) -> object:
    return await _watched(s, key=f"{MINE}s".encode(), range_end=f"{THEIRS[:-1]}0".encode())


# ------------------------------------------------------------------------------------------------------------------------ writing


@attack
async def put(s: Scene) -> object:
    return await s.ask(f"{KV}Put", rpc_pb2.PutRequest(key=f"{THEIRS}s".encode(), value=b"x"), rpc_pb2.PutResponse) or "put"


@attack
async def put_before(s: Scene) -> object:
    request = rpc_pb2.PutRequest(key=f"{THEIRS}s".encode(), value=b"x", prev_kv=True)
    return (await s.ask(f"{KV}Put", request, rpc_pb2.PutResponse)).prev_kv or "put"


@attack
async def put_under_anothers_lease(s: Scene) -> object:
    """Its end would take the key along; nothing of the other's."""
    request = rpc_pb2.PutRequest(key=f"{THEIRS}new".encode(), value=b"x", lease=s.lease)
    return await s.ask(f"{KV}Put", request, rpc_pb2.PutResponse) or "put"


@attack
async def delete(s: Scene) -> object:
    return (await s.ask(f"{KV}DeleteRange", rpc_pb2.DeleteRangeRequest(key=f"{THEIRS}s".encode()), rpc_pb2.DeleteRangeResponse)).deleted


@attack
async def delete_all(s: Scene) -> object:
    request = rpc_pb2.DeleteRangeRequest(key=b"\0", range_end=b"\0", prev_kv=True)
    return (await s.ask(f"{KV}DeleteRange", request, rpc_pb2.DeleteRangeResponse)).deleted


@attack
async def txn_put_and_delete(s: Scene) -> object:
    done = ""
    for operation in (
        _op(request_put=rpc_pb2.PutRequest(key=f"{THEIRS}s".encode(), value=b"x")),
        _op(request_delete_range=rpc_pb2.DeleteRangeRequest(key=f"{THEIRS}s".encode())),
    ):
        with contextlib.suppress(grpc.aio.AioRpcError):
            done += str(await _txn(s, operation))
    return done


@attack
async def nested_txn_put(s: Scene) -> object:
    return str(await _txn(s, _nested(_op(request_put=rpc_pb2.PutRequest(key=f"{THEIRS}s".encode(), value=b"x")))))


@attack
async def nested_txn_delete(s: Scene) -> object:
    request = rpc_pb2.DeleteRangeRequest(key=f"{THEIRS}s".encode(), prev_kv=True)
    return str(await _txn(s, _nested(_op(request_delete_range=request))))


# ------------------------------------------------------------------------------------------------------------------------- leases


@attack
async def lease_revoke(s: Scene) -> object:
    """It would end another function's worker."""
    await s.ask(f"{LEASE}LeaseRevoke", rpc_pb2.LeaseRevokeRequest(ID=s.lease), rpc_pb2.LeaseRevokeResponse)
    return "revoked"


@attack
async def lease_keys(s: Scene) -> object:
    request = rpc_pb2.LeaseTimeToLiveRequest(ID=s.lease, keys=True)
    return (await s.ask(f"{LEASE}LeaseTimeToLive", request, rpc_pb2.LeaseTimeToLiveResponse)).keys


# ------------------------------------------------------------------------------------------------------------- the store and its users


@attack
async def alarm(s: Scene) -> object:
    """Everybody's store would be full."""
    request = rpc_pb2.AlarmRequest(action=rpc_pb2.AlarmRequest.ACTIVATE, memberID=1, alarm=rpc_pb2.NOSPACE)
    return str(await s.ask(f"{MAINTENANCE}Alarm", request, rpc_pb2.AlarmResponse)) or "activated"


@attack
async def defragment(s: Scene) -> object:
    return str(await s.ask(f"{MAINTENANCE}Defragment", rpc_pb2.DefragmentRequest(), rpc_pb2.DefragmentResponse)) or "done"


@attack
async def snapshot(s: Scene) -> object:
    stream = s.channel.unary_stream(
        f"{MAINTENANCE}Snapshot", request_serializer=None, response_deserializer=rpc_pb2.SnapshotResponse.FromString
    )
    call = stream(rpc_pb2.SnapshotRequest().SerializeToString(), metadata=s.metadata, timeout=5.0)
    async for response in call:
        return len(response.blob)
    return ""


@attack
async def hash_of_all(s: Scene) -> object:
    return str(await s.ask(f"{MAINTENANCE}HashKV", rpc_pb2.HashKVRequest(), rpc_pb2.HashKVResponse))


@attack
async def member_add(s: Scene) -> object:
    return str(await s.ask(f"{CLUSTER}MemberAdd", rpc_pb2.MemberAddRequest(peerURLs=["http://127.0.0.1:1"]), rpc_pb2.MemberAddResponse))


@attack
async def member_list(s: Scene) -> object:
    return str(await s.ask(f"{CLUSTER}MemberList", rpc_pb2.MemberListRequest(), rpc_pb2.MemberListResponse))


@attack
async def compact(s: Scene) -> object:
    """The history alone, which the operator drops, too."""
    return str(await s.ask(f"{KV}Compact", rpc_pb2.CompactionRequest(revision=2), rpc_pb2.CompactionResponse)) or "done"


async def _auth(s: Scene, method: str, **fields: Any) -> object:
    request, reply = (getattr(rpc_pb2, f"Auth{method.removeprefix('Auth')}{kind}") for kind in ("Request", "Response"))
    return str(await s.ask(f"{AUTH}{method}", request(**fields), reply)) or "done"


@attack
async def grant_itself_all(s: Scene) -> object:
    everything = auth_pb2.Permission(permType=auth_pb2.Permission.READWRITE, key=b"\0", range_end=b"\0")
    return await _auth(s, "RoleGrantPermission", name="f/mine", perm=everything)


@attack
async def take_the_role_of_root(s: Scene) -> object:
    return await _auth(s, "UserGrantRole", user="f/mine", role=ROOT)


@attack
async def change_roots_password(s: Scene) -> object:
    return await _auth(s, "UserChangePassword", name=ROOT, password="mine")


@attack
async def list_users(s: Scene) -> object:
    return await _auth(s, "UserList")


@attack
async def disable_authentication(s: Scene) -> object:
    return await _auth(s, "AuthDisable")


# --------------------------------------------------------------------------------------------------------------------------- all


async def succeeded(endpoint: str, *, nobody: bool) -> dict[str, str]:
    """The attacks that get or change something, as another function's user or without any, and what they got. The etcd is empty and has no
    users yet. What one changed is put right before the next."""
    users = Users([endpoint], PASSWORD)
    await users.prepare()
    for name, keys in {"f/mine": {MINE, GRANTED}, "f/theirs": {THEIRS}}.items():
        await users.ensure(name, PASSWORD, [Grant(key) for key in keys])
    root = EtcdStore([endpoint], user=ROOT, password=PASSWORD)
    worker = EtcdStore([endpoint], user="f/theirs", password=PASSWORD)
    found = {}
    try:
        async with grpc.aio.insecure_channel(endpoint) as channel:
            for name, made in ATTACKS.items():
                lease = await worker.grant(60)
                await root.txn(Txn((), (Delete(THEIRS, prefix=True),)))
                await worker.txn(Txn((), (Put(f"{THEIRS}s", SECRET), Put(f"{THEIRS}worker", b"w", lease))))
                await root.txn(Txn((), (Put(f"{MINE}s", b"my own"),)))
                got = await _tried(Scene(channel, "" if nobody else await _token(channel), lease), made)
                if await _changed(root, lease):
                    got = got or "something is changed"
                if got:
                    found[name] = got[:200]
                    await _disarm(root)
                    assert name != "disable_authentication", "nothing after it counts"
    finally:
        await root.close()
        await worker.close()
        await users.close()
    return found


async def _disarm(root: EtcdStore) -> None:
    request = rpc_pb2.AlarmRequest(action=rpc_pb2.AlarmRequest.DEACTIVATE, memberID=1, alarm=rpc_pb2.NOSPACE)
    await root.unary("Alarm", request.SerializeToString(), 5.0)


async def _tried(scene: Scene, made: Attack) -> str:
    try:
        got = await made(scene)
    except grpc.aio.AioRpcError:
        return ""
    return str(got) if got else ""


async def _changed(root: EtcdStore, lease: int) -> bool:
    listing = await root.list(THEIRS)
    as_written = {f"{THEIRS}s": SECRET, f"{THEIRS}worker": b"w"}
    return {item.key: item.value for item in listing.items} != as_written or not await root.keep_alive(lease)


async def _token(channel: grpc.aio.Channel) -> str:
    request = rpc_pb2.AuthenticateRequest(name="f/mine", password=PASSWORD).SerializeToString()
    call = channel.unary_unary(
        f"{AUTH}Authenticate", request_serializer=None, response_deserializer=rpc_pb2.AuthenticateResponse.FromString
    )
    return str((await call(request, timeout=5.0)).token)
