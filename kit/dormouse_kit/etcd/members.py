"""etcd's members one by one, as a `dormouse_core.seams.StoreMembers`: how full each is, and what gives its space back.

A client elsewhere talks to one member that answers; here each endpoint has a connection of its own, because a file's size and a
defragmentation are one member's. Where an endpoint leads to several members (a load balancer), the ones behind it are not told apart: name
them all.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, Final

from aetcd.rpc import rpc_pb2
from dormouse_core.seams import Compacted, MemberSeen, StoreError
from google.protobuf.unknown_fields import UnknownFieldSet

from dormouse_kit.etcd.credentials import Password, TlsFiles
from dormouse_kit.etcd.store import EtcdStore

LOOK_SECONDS: Final = 2.0  # until a member counts as one that does not answer
COMPACT_TIMEOUT: Final = 60.0
DEFRAGMENT_TIMEOUT: Final = 600.0  # 8 GiB at 15 MB/s

_STATUS: Final = rpc_pb2.StatusRequest().SerializeToString()
# etcd counts what was compacted as free with the next write only. The end of a lease is one, leaves nothing behind and makes no revision.
# A full store grants none, but ends those that it has: so a few are kept for it.
COUNTED_SECONDS: Final = 1
SPARES: Final = 4
SPARE_SECONDS: Final = 600  # a process that ended leaves them for as long
_QUOTA_FIELD: Final = 12  # dbSizeQuota of StatusResponse, from 3.6 on; the messages at hand are older


class EtcdMembers:
    """One client for each endpoint; `close` it at the end."""

    def __init__(self, endpoints: Sequence[str], *, tls: TlsFiles | None = None, user: str = "", password: Password = "") -> None:
        self._clients = {endpoint: EtcdStore([endpoint], tls=tls, user=user, password=password, probing=False) for endpoint in endpoints}
        self._spares: deque[tuple[float, int]] = deque()  # leases: until when they can be relied on, which

    async def close(self) -> None:
        await asyncio.gather(*(client.close() for client in self._clients.values()))

    async def look(self) -> tuple[Sequence[MemberSeen], Sequence[str]]:
        found = await asyncio.gather(*(self._one(endpoint) for endpoint in self._clients))
        members: dict[int, MemberSeen] = {}
        for seen in found:
            if seen is not None:
                members.setdefault(seen.member, seen)
        return list(members.values()), [endpoint for endpoint, seen in zip(self._clients, found, strict=True) if seen is None]

    async def compact(self, revision: int) -> None:
        try:
            await self._any("Compact", rpc_pb2.CompactionRequest(revision=revision, physical=True).SerializeToString(), COMPACT_TIMEOUT)
        except Compacted:
            return  # by another, or by etcd itself
        with contextlib.suppress(StoreError):  # refused where the store is full
            await self._grant(COUNTED_SECONDS)
            now = time.monotonic()
            while self._spares and self._spares[0][0] <= now:
                self._spares.popleft()
            if len(self._spares) < SPARES:
                self._spares.append((now + SPARE_SECONDS / 2, await self._grant(SPARE_SECONDS)))

    async def count_free(self) -> bool:
        while self._spares:
            _, lease = self._spares.popleft()
            try:
                await self._any("LeaseRevoke", rpc_pb2.LeaseRevokeRequest(ID=lease).SerializeToString(), LOOK_SECONDS)
            except StoreError as error:
                if "lease not found" in str(error):  # the store was restored to an earlier one
                    continue
                raise
            return True
        return False

    async def defragment(self, endpoint: str) -> None:
        await self._clients[endpoint].unary("Defragment", rpc_pb2.DefragmentRequest().SerializeToString(), DEFRAGMENT_TIMEOUT)

    async def disarm(self) -> None:
        """Each alarm is of a member, and is taken back by its name."""
        request = rpc_pb2.AlarmRequest(action=rpc_pb2.AlarmRequest.GET, alarm=rpc_pb2.NOSPACE)
        response = await self._any("Alarm", request.SerializeToString(), LOOK_SECONDS)
        for alarm in response.alarms:
            request = rpc_pb2.AlarmRequest(action=rpc_pb2.AlarmRequest.DEACTIVATE, memberID=alarm.memberID, alarm=alarm.alarm)
            await self._any("Alarm", request.SerializeToString(), LOOK_SECONDS)

    async def _grant(self, seconds: int) -> int:
        lease: int = (await self._any("LeaseGrant", rpc_pb2.LeaseGrantRequest(TTL=seconds).SerializeToString(), LOOK_SECONDS)).ID
        return lease

    async def _one(self, endpoint: str) -> MemberSeen | None:
        try:
            status = await self._clients[endpoint].unary("Status", _STATUS, LOOK_SECONDS)
        except StoreError:
            return None
        header = status.header
        return MemberSeen(
            endpoint=endpoint,
            member=header.member_id,
            leads=status.leader == header.member_id,
            revision=header.revision,
            size=status.dbSize,
            used=status.dbSizeInUse,
            full=any("NOSPACE" in text for text in status.errors),
            quota=_quota(status),
            version=status.version,
        )

    async def _any(self, name: str, request: bytes, timeout: float) -> Any:
        """By the first member that answers. Each of these requests may be sent twice."""
        failure = StoreError("no etcd endpoint is named", definite=True)
        for client in self._clients.values():
            try:
                return await client.unary(name, request, timeout)
            except Compacted:
                raise
            except StoreError as error:
                failure = error
        raise failure


def _quota(status: Any) -> int:
    unknown = UnknownFieldSet(status)
    fields = (unknown[at] for at in range(len(unknown)))
    return next((int(field.data) for field in fields if field.field_number == _QUOTA_FIELD), 0)
