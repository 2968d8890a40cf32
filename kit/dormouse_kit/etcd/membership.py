"""Who belongs to an etcd cluster: asked of the members' peers, who answer before anybody may log in; changed as root."""

import asyncio
import http.client
import json
import socket
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from aetcd.rpc import rpc_pb2
from dormouse_core.errors import text_of
from dormouse_core.members import Answer, Member, Unclear
from dormouse_core.seams import StoreError

from dormouse_kit.etcd.credentials import Password, TlsFiles
from dormouse_kit.etcd.store import EtcdStore

ASK_SECONDS: Final = 3.0
CHANGE_SECONDS: Final = 10.0
_CLUSTER: Final = "X-Etcd-Cluster-ID"
_MOST: Final = 1 << 20
_NO_SUCH_NAME: Final = socket.EAI_NONAME
"""Kubernetes gives a pod its name when it has an address; any other answer is a name server's trouble, also that it has no data."""


class Membership:
    """Every method raises StoreError where etcd does not answer or refuses."""

    def __init__(self, endpoints: Sequence[str], *, tls: TlsFiles | None = None, user: str = "", password: Password = "") -> None:
        self._store = EtcdStore(endpoints, tls=tls, user=user, password=password)

    async def close(self) -> None:
        await self._store.close()

    async def members(self) -> list[Member]:
        """As the cluster has agreed on."""
        request = rpc_pb2.MemberListRequest(linearizable=True).SerializeToString()
        return _members((await self._store.unary("MemberList", request, ASK_SECONDS, again=True)).members)

    async def add_learner(self, url: str) -> list[Member]:
        """All members, with the one that has been added."""
        request = rpc_pb2.MemberAddRequest(peerURLs=[url], isLearner=True).SerializeToString()
        return _members((await self._store.unary("MemberAdd", request, CHANGE_SECONDS)).members)

    async def remove(self, member: int) -> None:
        try:
            await self._store.unary("MemberRemove", rpc_pb2.MemberRemoveRequest(ID=member).SerializeToString(), CHANGE_SECONDS)
        except StoreError as error:
            if "member not found" not in str(error):
                raise

    async def promote(self, member: int) -> bool:
        """False: it does not have yet what the leader has."""
        try:
            await self._store.unary("MemberPromote", rpc_pb2.MemberPromoteRequest(ID=member).SerializeToString(), CHANGE_SECONDS)
        except StoreError as error:
            if "in sync with leader" in str(error):
                return False
            if "can only promote a learner" not in str(error):  # another process was faster
                raise
        return True


async def asked(url: str, tls: TlsFiles | None) -> Answer | Unclear | None:
    """What the member at `url`, its address for peers, says of its cluster; None: nobody is there."""
    return await asyncio.to_thread(_ask, url, tls)


def _ask(url: str, tls: TlsFiles | None) -> Answer | Unclear | None:
    try:
        connection = _connection(url, tls)
        try:
            connection.request("GET", "/members")
            response = connection.getresponse()
            body = response.read(_MOST)
        finally:
            connection.close()
        if response.status != http.client.OK:
            return Unclear(f"{url} answers with the status {response.status}")
        found = tuple(_member(each) for each in json.loads(body))
    except ConnectionRefusedError:
        return None
    except socket.gaierror as error:
        return None if error.errno == _NO_SUCH_NAME else Unclear(f"{url}: {error}")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, http.client.HTTPException) as error:
        return Unclear(f"{url}: {text_of(error)}")
    cluster = response.headers.get(_CLUSTER, "")
    return Answer(cluster, found) if cluster and found else Unclear(f"{url} names no cluster")


def _connection(url: str, tls: TlsFiles | None) -> http.client.HTTPConnection:
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port
    if tls is None:
        return http.client.HTTPConnection(host, port, timeout=ASK_SECONDS)
    context = ssl.create_default_context(cafile=_text(tls.ca))
    if tls.cert is not None:
        context.load_cert_chain(tls.cert, tls.key)
    return http.client.HTTPSConnection(host, port, timeout=ASK_SECONDS, context=context)


def _member(found: dict[str, object]) -> Member:
    """As etcd's peers write it."""
    peers = found["peerURLs"]
    if not isinstance(peers, list):
        raise ValueError(f"peerURLs: {peers!r} found, a list is allowed")
    return Member(int(str(found["id"])), str(found.get("name", "")), tuple(map(str, peers)), bool(found.get("isLearner", False)))


def _members(found: Sequence[rpc_pb2.Member]) -> list[Member]:
    return [Member(each.ID, each.name, tuple(each.peerURLs), each.isLearner) for each in found]


def _text(path: Path | None) -> str | None:
    return str(path) if path is not None else None
