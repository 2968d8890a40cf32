"""etcd's users: who may reach which keys.

Each part of a cluster has a user of its own, and each function one that reaches its own keys alone, because a handler is user code. A role
carries the user's name. Everything here says how it should be and writes where it is not so: a change of any user makes etcd refuse every
token made before it once, so a start that changes nothing should write nothing.

An installation's etcd begins without users. `Users.prepare` makes root, who alone may do the rest, and turns authentication on.
"""

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final

import grpc
import grpc.aio
from aetcd.rpc import auth_pb2, rpc_pb2
from dormouse_core import passwords
from dormouse_core.seams import StoreError

from dormouse_kit import log
from dormouse_kit.etcd import messages
from dormouse_kit.etcd.connections import Connection, Connections
from dormouse_kit.etcd.credentials import Credentials, Password, TlsFiles

ROOT: Final = "root"
TIMEOUT: Final = 5.0

_METHODS: Final = (
    "AuthEnable", "UserAdd", "UserGet", "UserList", "UserDelete", "UserChangePassword", "UserGrantRole",
    "RoleAdd", "RoleGet", "RoleDelete", "RoleGrantPermission", "RoleRevokePermission",
)  # fmt: skip
_MESSAGES: Final = {name: f"Auth{name.removeprefix('Auth')}" for name in _METHODS}

_OFF: Final = "authentication is not enabled"
_NO_USER: Final = "user name not found"
_NO_ROLE: Final = "role name not found"
_EXISTS: Final = "already exists"
_OLD: Final = ("invalid auth token", "revision of auth store is old")


@dataclass(frozen=True, slots=True)
class Grant:
    """A key, or with `prefix` all keys that begin so."""

    key: str
    prefix: bool = True
    write: bool = True

    def permission(self) -> auth_pb2.Permission:
        kind = auth_pb2.Permission.READWRITE if self.write else auth_pb2.Permission.READ
        end = messages.prefix_end(self.key.encode()) if self.prefix else b""
        return auth_pb2.Permission(permType=kind, key=self.key.encode(), range_end=end)


class Users:
    """Root's view of one etcd. Every method raises StoreError when etcd cannot be reached or refuses."""

    def __init__(self, endpoints: Sequence[str], password: Password, *, tls: TlsFiles | None = None) -> None:
        self._endpoints, self._tls = list(endpoints), tls
        self._credentials = Credentials(tls, password)
        self._connections = Connections(endpoints, tls, ROOT, password)

    async def close(self) -> None:
        await self._connections.close()

    async def prepare(self) -> None:
        """Root exists with this password, and nobody gets in without one. Several may do it at once."""
        anybody = Connections(self._endpoints, self._tls)
        try:
            connection = await anybody.get(TIMEOUT)
            if await self._can_log_in(connection):
                return
            try:
                await self._turn_on(connection)
            except StoreError:
                if not await self._can_log_in(connection):  # another start was faster, and etcd no longer listens to anybody
                    raise
        finally:
            await anybody.close()

    async def _turn_on(self, connection: Connection) -> None:
        password = self._credentials.passwords()[-1]  # while it is replaced: the one that everybody has
        await self._tolerate(_EXISTS, connection, "UserAdd", name=ROOT, password=password)
        await self._call(connection, "UserChangePassword", name=ROOT, password=password)
        await self._tolerate(_EXISTS, connection, "RoleAdd", name=ROOT)
        await self._call(connection, "UserGrantRole", user=ROOT, role=ROOT)
        await self._call(connection, "AuthEnable")
        log.event("authentication is now enabled in the store")

    async def ensure(self, user: str, password: str, grants: Collection[Grant]) -> None:
        """`user` exists with this password and may reach what `grants` say, and nothing else. Of a password that is being replaced, of two
        lines, either will do; where neither is valid it gets the one before, which everybody has."""
        roles = await self._find(_NO_USER, "UserGet", name=user)
        valid = passwords.lines(password)
        if roles is None:
            await self._as_root("UserAdd", name=user, password=valid[-1])
        elif not [each for each in valid if await self._password_is(user, each)]:
            await self._as_root("UserChangePassword", name=user, password=valid[-1])
        role = await self._find(_NO_ROLE, "RoleGet", role=user)
        if role is None:
            await self._as_root("RoleAdd", name=user)
        have = {(bytes(each.key), bytes(each.range_end)): each.permType for each in (role.perm if role is not None else ())}
        want = {(bytes(each.key), bytes(each.range_end)): each for each in (grant.permission() for grant in grants)}
        for place in have.keys() - want.keys():
            await self._as_root("RoleRevokePermission", role=user, key=place[0], range_end=place[1])
        for place, permission in want.items():
            if have.get(place) != permission.permType:
                await self._as_root("RoleGrantPermission", name=user, perm=permission)
        if roles is None or user not in roles.roles:
            await self._as_root("UserGrantRole", user=user, role=user)

    async def change(self, user: str, password: str) -> None:
        """The user, which exists, has this password and no other."""
        if not await self._password_is(user, password):
            await self._as_root("UserChangePassword", name=user, password=password)

    async def remove(self, user: str) -> None:
        """Also where half of it is gone already."""
        await self._find(_NO_USER, "UserDelete", name=user)
        await self._find(_NO_ROLE, "RoleDelete", role=user)

    async def names(self, prefix: str) -> list[str]:
        """Of the users whose name begins so."""
        response = await self._as_root("UserList")
        return [name for name in response.users if name.startswith(prefix)]

    async def _can_log_in(self, connection: Connection) -> bool:
        """False: there is no authentication yet."""
        try:
            await connection.authenticate(ROOT, self._credentials.passwords(), TIMEOUT)
        except grpc.aio.AioRpcError as error:
            if _OFF in (error.details() or ""):
                return False
            raise messages.store_error("Authenticate", connection.endpoint, error) from error
        return True

    async def _password_is(self, user: str, password: str) -> bool:
        connection = await self._connections.get(TIMEOUT)
        request = rpc_pb2.AuthenticateRequest(name=user, password=password).SerializeToString()
        try:
            await connection.unary["Authenticate"](request, timeout=TIMEOUT)
        except grpc.aio.AioRpcError as error:
            if messages.WRONG_PASSWORD in (error.details() or ""):
                return False
            raise messages.store_error("Authenticate", connection.endpoint, error) from error
        return True

    async def _find(self, missing: str, method: str, **fields: Any) -> Any:
        """None: there is none."""
        try:
            return await self._as_root(method, **fields)
        except StoreError as error:
            if missing in str(error):
                return None
            raise

    async def _tolerate(self, known: str, connection: Connection, method: str, **fields: Any) -> None:
        try:
            await self._call(connection, method, **fields)
        except StoreError as error:
            if known not in str(error):
                raise

    async def _as_root(self, method: str, **fields: Any) -> Any:
        """Each change of a user makes the tokens before it old: then a new one, and again."""
        connection = await self._connections.get(TIMEOUT)
        for _ in range(5):
            used = connection.metadata
            try:
                return await self._call(connection, method, **fields)
            except StoreError as error:
                if not any(text in str(error) for text in _OLD):
                    raise
                await asyncio.sleep(0)
                await self._connections.renew_token(connection, used, TIMEOUT)
        return await self._call(connection, method, **fields)

    async def _call(self, connection: Connection, method: str, **fields: Any) -> Any:
        message = _MESSAGES[method]
        request = getattr(rpc_pb2, f"{message}Request")(**fields)
        parse = getattr(rpc_pb2, f"{message}Response").FromString
        call: Any = connection.channel.unary_unary(
            f"/etcdserverpb.Auth/{method}", request_serializer=type(request).SerializeToString, response_deserializer=parse
        )
        try:
            return await call(request, timeout=TIMEOUT, metadata=connection.metadata)
        except grpc.aio.AioRpcError as error:
            raise messages.store_error(method, connection.endpoint, error) from error
