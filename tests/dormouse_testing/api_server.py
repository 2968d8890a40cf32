"""An API server over HTTP, of one process: lists, watches and writes of whatever kind, and what goes wrong with them."""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator
from typing import Any

from aiohttp import web
from dormouse_core.spec.objects import GROUP, VERSION
from dormouse_operator.kubernetes.api.access import Access
from dormouse_operator.kubernetes.api.kinds import FUNCTIONS
from kubernetes.aio.client.configuration import Configuration

Object = dict[str, Any]


def _resource(plural: str, kind: str, namespaced: bool) -> Object:
    return {"name": plural, "singularName": kind.lower(), "namespaced": namespaced, "kind": kind, "verbs": ["list", "watch", "patch"]}


def _group(name: str, version: str) -> Object:
    found = {"groupVersion": f"{name}/{version}", "version": version}
    return {"name": name, "versions": [found], "preferredVersion": found}


DISCOVERY: dict[str, Object] = {
    "/api": {"versions": ["v1"]},
    "/api/v1": {"resources": [_resource("namespaces", "Namespace", False)]},
    "/apis": {"groups": [_group(GROUP, VERSION), _group("apiextensions.k8s.io", "v1")]},
    f"/apis/{GROUP}/{VERSION}": {"resources": [_resource(FUNCTIONS.plural, FUNCTIONS.name, True)]},
    "/apis/apiextensions.k8s.io/v1": {"resources": [_resource("customresourcedefinitions", "CustomResourceDefinition", False)]},
}
"""What kopf asks for before it watches."""


class ApiServer:
    """`refuse`: what every watch is answered with, while it is set. `asked`: (method, path, query, headers, body) of each request."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str, str], Object] = {}  # (plural, namespace, name)
        self.refuse = 0
        self.refuse_all = 0
        self.asked: list[tuple[str, str, dict[str, str], dict[str, str], Any]] = []
        self.url = ""
        self.watches = 0
        """How many are open now."""
        self._version = 100
        self._history: list[tuple[int, str, str, Object]] = []
        self._watched, self._refused = asyncio.Semaphore(0), asyncio.Semaphore(0)
        self._queues: set[tuple[str, str, asyncio.Queue[Object | None]]] = set()

    def access(self) -> Access:
        configuration = Configuration(host=self.url)
        configuration.api_key["BearerToken"] = "Bearer token"
        return Access(configuration)

    def put(self, plural: str, namespace: str, name: str, **more: Any) -> Object:
        key = (plural, namespace, name)
        kind = "MODIFIED" if key in self.objects else "ADDED"
        self._version += 1
        metadata = {"namespace": namespace, "name": name, "uid": f"uid-{name}", **more.pop("metadata", {})}
        self.objects[key] = {"metadata": {**metadata, "resourceVersion": str(self._version)}, **more}
        self._tell(kind, key)
        return self.objects[key]

    def remove(self, plural: str, namespace: str, name: str, *, told: bool = True) -> None:
        self._version += 1
        if told:
            self._tell("DELETED", (plural, namespace, name))
        del self.objects[(plural, namespace, name)]

    async def watched(self, count: int) -> None:
        """Until so many more watches were opened."""
        await _taken(self._watched, count)

    async def refused(self, count: int) -> None:
        """Until so many more watches were refused."""
        await _taken(self._refused, count)

    def end_watches(self, error: int = 0) -> None:
        """`error`: the code that each is told before; 410: what was before is forgotten."""
        if error == 410:
            self._history.clear()
        for _, _, queue in self._queues:
            if error:
                queue.put_nowait({"type": "ERROR", "object": {"kind": "Status", "code": error, "reason": "R", "message": "m"}})
            queue.put_nowait(None)

    def _tell(self, kind: str, key: tuple[str, str, str]) -> None:
        self._history.append((self._version, kind, key[0], self.objects[key]))
        for plural, namespace, queue in self._queues:
            if plural == key[0] and namespace in ("", key[1]):
                queue.put_nowait({"type": kind, "object": self.objects[key]})

    async def handle(self, request: web.Request) -> web.StreamResponse:
        text = await request.text()
        query = dict(request.query)
        self.asked.append((request.method, request.path, query, dict(request.headers), json.loads(text) if text else None))
        if self.refuse_all:
            return _status(self.refuse_all)
        parts = request.path.strip("/").split("/")
        if request.path in DISCOVERY:
            return web.json_response(DISCOVERY[request.path])
        parts = parts[2:] if parts[0] == "api" else parts[3:]
        namespace, parts = (parts[1], parts[2:]) if parts[:1] == ["namespaces"] and len(parts) > 2 else ("", parts)
        if len(parts) > 1:
            found_one = self.objects.get((parts[0], namespace, parts[1]))
            return web.json_response(found_one) if found_one is not None else _status(404)
        if query.get("watch"):
            return await self._watch(request, parts[0], namespace)
        items = [each for (plural, space, _), each in self.objects.items() if plural == parts[0] and namespace in ("", space)]
        return web.json_response({"kind": "List", "apiVersion": "v1", "items": items, "metadata": {"resourceVersion": str(self._version)}})

    async def _watch(self, request: web.Request, plural: str, namespace: str) -> web.StreamResponse:
        if self.refuse:
            self._refused.release()
            return _status(self.refuse)
        answer = web.StreamResponse()
        await answer.prepare(request)
        entry = (plural, namespace, asyncio.Queue[Object | None]())
        for version, kind, of, found in self._history:
            if version > int(request.query["resourceVersion"]) and of == plural and namespace in ("", found["metadata"]["namespace"]):
                entry[2].put_nowait({"type": kind, "object": found})
        self._queues.add(entry)
        self.watches += 1
        self._watched.release()
        try:
            while (change := await entry[2].get()) is not None:
                await answer.write(json.dumps(change).encode() + b"\n")
        finally:
            self.watches -= 1
            self._queues.discard(entry)
        return answer


async def _taken(of: asyncio.Semaphore, count: int) -> None:
    async with asyncio.timeout(20):
        for _ in range(count):
            await of.acquire()


def _status(code: int) -> web.Response:
    return web.json_response({"kind": "Status", "code": code, "reason": f"Reason{code}", "message": f"message {code}"}, status=code)


@contextlib.asynccontextmanager
async def api_server() -> AsyncGenerator[ApiServer, None]:
    server = ApiServer()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield server
    finally:
        server.end_watches()
        await runner.cleanup()
