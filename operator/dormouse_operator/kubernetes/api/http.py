"""The API server over HTTP, by `kubernetes.aio`: the requests that the operator makes.

The library has the connection, how the server knows us, and what a URL and a body look like. What it leaves open is set here: every request
ends (a limit for each, and the kernel's keepalive for watches, so that a black hole is noticed in half a minute however silent the watch
is), a list is whole or it is an error, a watch's line may have a megabyte, and an error says what the server said. Its models of
Kubernetes' objects are not used (docs/decisions/0214).
"""

import asyncio
import json
import socket
import ssl
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import aiohttp
from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.client.rest import RESTClientObject

from dormouse_operator.kubernetes.api.access import Access
from dormouse_operator.kubernetes.api.kinds import PODS, Kind

Object = dict[str, Any]

TIMEOUT = 10.0  # seconds for anything but a watch
PAGE = 500
REQUESTS = 64  # connections of requests, watches apart
LISTS = 32  # of these, what lists may take: a start with many namespaces leaves room for writes
WATCH_SECONDS = 240  # after which the server ends a watch, and we begin the next
KEEPALIVE = (10, 5, 3)  # seconds idle, seconds between probes, probes: a peer that is gone is noticed after 25 s
AGENT = "dormouse-operator"
OPEN = "OPEN"
_MERGE = "application/merge-patch+json"


class ApiError(Exception):
    """The server's answer, or its absence. `code` is HTTP's; 0: no answer, and whether a write happened is not known."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message

    @property
    def missing(self) -> bool:
        return self.code == 404

    @property
    def conflict(self) -> bool:
        """409: it exists already, or was changed meanwhile."""
        return self.code == 409

    @property
    def gone(self) -> bool:
        """410: the history that was asked for is no more; list anew."""
        return self.code == 410


@dataclass(frozen=True, slots=True)
class Listed:
    """A complete list."""

    version: str
    items: list[Object]


@dataclass(frozen=True, slots=True)
class Change:
    """`kind`: ADDED, MODIFIED, DELETED or BOOKMARK; or OPEN, which the server does not send: the watch stands."""

    kind: str
    object: Object


class Api(Protocol):
    """What the operator asks of an API server; the tests have one in a dictionary. All raise ApiError."""

    async def list(self, kind: Kind, namespace: str = "", *, labels: str = "", fields: str = "") -> Listed: ...

    def watch(self, kind: Kind, namespace: str = "", *, labels: str = "", version: str) -> AsyncGenerator[Change, None]: ...

    async def get(self, kind: Kind, namespace: str, name: str) -> Object: ...

    async def document(self, path: str) -> Object: ...

    async def create(self, kind: Kind, manifest: Object) -> Object: ...

    async def replace(self, kind: Kind, manifest: Object) -> Object: ...

    async def patch(self, kind: Kind, namespace: str, name: str, changes: Object, *, part: str = "") -> Object: ...

    async def delete(self, kind: Kind, namespace: str, name: str, *, uid: str, force: bool = False) -> None: ...

    async def evict(self, namespace: str, name: str, *, uid: str) -> bool: ...


class _Connections(RESTClientObject):
    """`limit`: how many there may be at a time; 0: as many as are asked for."""

    def __init__(self, access: Access, limit: int) -> None:
        super().__init__(access.configuration)
        self._limit = limit
        self._access = access
        self._loaded = access.reads

    def _create_connector(self) -> aiohttp.TCPConnector:
        return connector(self.ssl_context, self._limit)

    async def renew(self) -> None:
        """Connections from now on show the certificate that there is by now."""
        await self._access.renew()
        if self._loaded != self._access.reads:
            self._loaded = self._access.reads
            if self.configuration.cert_file:
                self.ssl_context.load_cert_chain(self.configuration.cert_file, keyfile=self.configuration.key_file)


class _Client(ApiClient):
    def __init__(self, access: Access, limit: int) -> None:
        super().__init__(access.configuration)
        self.rest_client = self.connections = _Connections(access, limit)
        self.user_agent = AGENT


class HttpApi:
    """Belongs to the event loop in which it is made.

    Watches have connections of their own, as many as there are watches: they are held for minutes, and where they share a limit with
    requests, those of eleven namespaces leave none (`REQUESTS`).
    """

    def __init__(self, access: Access) -> None:
        self._access = access
        self._requests, self._watches = (_Client(access, limit) for limit in (REQUESTS, 0))
        self._listing = asyncio.Semaphore(LISTS)

    async def close(self) -> None:
        for each in (self._requests, self._watches):
            await each.connections.close()

    async def list(self, kind: Kind, namespace: str = "", *, labels: str = "", fields: str = "") -> Listed:
        """All pages; a list that could not be read to its end is an error, never a shorter list."""
        items: list[Object] = []
        params = {"limit": str(PAGE)} | ({"labelSelector": labels} if labels else {}) | ({"fieldSelector": fields} if fields else {})
        while True:
            async with self._listing:
                page = await self._send("GET", kind.path(namespace), params=params)
            items += page["items"]
            metadata = page["metadata"]
            if not metadata.get("continue"):
                return Listed(metadata["resourceVersion"], items)
            params["continue"] = metadata["continue"]

    async def watch(self, kind: Kind, namespace: str = "", *, labels: str = "", version: str) -> AsyncGenerator[Change, None]:
        """Ends when the server ends it; then watch on from the last version."""
        params = {"watch": "true", "allowWatchBookmarks": "true", "resourceVersion": version, "timeoutSeconds": str(WATCH_SECONDS)}
        if labels:
            params["labelSelector"] = labels
        timeout = aiohttp.ClientTimeout(total=WATCH_SECONDS + 30, sock_connect=TIMEOUT)
        try:
            async with await self._open(self._watches, "GET", kind.path(namespace), params=params, timeout=timeout) as response:
                await self._check(response)
                yield Change(OPEN, {})
                async for line in _lines(response.content):
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        status = event["object"]
                        raise ApiError(status.get("code", 500), status.get("reason", ""), status.get("message", "the watch failed"))
                    yield Change(event["type"], event["object"])
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            raise ApiError(0, "NoAnswer", f"the watch of {kind.plural} broke: {error!r}") from error

    async def get(self, kind: Kind, namespace: str, name: str) -> Object:
        return await self._send("GET", kind.path(namespace, name))

    async def document(self, path: str) -> Object:
        """What the server says of itself, as JSON."""
        return await self._send("GET", path)

    async def create(self, kind: Kind, manifest: Object) -> Object:
        return await self._send("POST", kind.path(manifest["metadata"].get("namespace", "")), body=manifest)

    async def replace(self, kind: Kind, manifest: Object) -> Object:
        """Only if the object is still the one whose resourceVersion `manifest` has."""
        metadata = manifest["metadata"]
        return await self._send("PUT", kind.path(metadata["namespace"], metadata["name"]), body=manifest)

    async def patch(self, kind: Kind, namespace: str, name: str, changes: Object, *, part: str = "") -> Object:
        """A merge patch (RFC 7386): null removes, lists are replaced."""
        return await self._send("PATCH", kind.path(namespace, name, part), body=changes, content=_MERGE)

    async def delete(self, kind: Kind, namespace: str, name: str, *, uid: str, force: bool = False) -> None:
        """The object of this uid, and what it owns after it. One that is gone, or is another by now, is no error. `force`: a pod, without
        its kubelet's word that it has ended."""
        body: Object = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": uid}, "propagationPolicy": "Background"}
        if force:
            body["gracePeriodSeconds"] = 0
        try:
            await self._send("DELETE", kind.path(namespace, name), body=body)
        except ApiError as error:
            if not (error.missing or error.conflict):
                raise

    async def evict(self, namespace: str, name: str, *, uid: str) -> bool:
        """Ends the pod of this uid if its budget lets it go now. False: it is gone, or is another by now. ApiError 429: not now."""
        options = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": uid}}
        metadata = {"name": name, "namespace": namespace}
        body: Object = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": metadata, "deleteOptions": options}
        try:
            await self._send("POST", PODS.path(namespace, name, "eviction"), body=body)
        except ApiError as error:
            if error.missing or error.conflict:
                return False
            raise
        return True

    async def _send(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: Object | None = None,
        content: str = "application/json",
    ) -> Object:
        timeout = aiohttp.ClientTimeout(total=TIMEOUT, sock_connect=TIMEOUT)
        try:
            opened = self._open(self._requests, method, path, params=params, body=body, content=content, timeout=timeout)
            async with await opened as response:
                await self._check(response)
                answer: Object = json.loads(await response.read())
                return answer
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            raise ApiError(0, "NoAnswer", f"the API server does not answer: {error!r}") from error

    async def _open(
        self,
        client: _Client,
        method: str,
        path: str,
        *,
        timeout: aiohttp.ClientTimeout,
        params: Mapping[str, str] | None = None,
        body: Object | None = None,
        content: str = "application/json",
    ) -> aiohttp.ClientResponse:
        await client.connections.renew()
        headers = {"Accept": "application/json"} | ({"Content-Type": content} if body is not None else {})
        query = list((params or {}).items())
        method, url, headers, sent, _ = await client.param_serialize(
            method, path, query_params=query, header_params=headers, body=body, auth_settings=["BearerToken"]
        )
        answer = await client.call_api(method, url, header_params=headers, body=sent, _request_timeout=timeout)
        found: aiohttp.ClientResponse = answer.response
        return found

    async def _check(self, response: aiohttp.ClientResponse) -> None:
        if response.status == 401:
            self._access.refused()
        await _check(response)


async def _check(response: aiohttp.ClientResponse) -> None:
    if response.status < 400:
        return
    text = (await response.read()).decode(errors="replace")
    try:
        status = json.loads(text)
        reason, message = status.get("reason", ""), status.get("message", "")
    except (ValueError, AttributeError):
        reason, message = "", ""
    raise ApiError(response.status, reason, message or text[:500] or response.reason or f"HTTP {response.status}")


async def _lines(stream: aiohttp.StreamReader) -> AsyncGenerator[bytes, None]:
    """aiohttp's own `readline` refuses lines over 64 KiB by default; an object may have a megabyte."""
    rest = bytearray()
    async for chunk in stream.iter_any():
        rest += chunk
        *whole, last = rest.split(b"\n")
        rest = bytearray(last)
        for line in whole:
            if line:
                yield bytes(line)


def session(access: Access) -> aiohttp.ClientSession:
    """For kopf, which has requests of its own: with the connections of all others. Belongs to the running event loop."""
    configuration = access.configuration

    async def known(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        if access.authorization:  # as of now, not as of when kopf asked for a session
            request.headers["Authorization"] = access.authorization
        if configuration.tls_server_name:
            request.server_hostname = configuration.tls_server_name
        return await handler(request)

    made = connector(RESTClientObject(configuration).ssl_context, 0)
    agent = {"User-Agent": AGENT}
    return aiohttp.ClientSession(connector=made, headers=agent, proxy=configuration.proxy, trust_env=True, middlewares=(known,))


def connector(context: ssl.SSLContext, limit: int) -> aiohttp.TCPConnector:
    """Of connections whose peer is noticed to be gone (`KEEPALIVE`). Belongs to the running event loop."""
    return aiohttp.TCPConnector(ssl=context, socket_factory=_socket, limit=limit)


def _socket(address: Any) -> socket.socket:
    family, kind, protocol, _, _ = address
    made = socket.socket(family, kind, protocol)
    idle, between, probes = KEEPALIVE
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, between)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, probes)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, (idle + between * probes) * 1000)
    return made


def key_of(found: Object) -> tuple[str, str]:
    """(namespace, name)"""
    metadata = found["metadata"]
    return metadata.get("namespace", ""), metadata["name"]
