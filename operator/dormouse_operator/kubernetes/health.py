"""The operator's HTTP port: metrics, and whether it should be started anew.

It is served by the loop that does the work: a loop that hangs does not answer, and the kubelet needs no other word. Metrics are made in
a thread, one answer at a time: thousands of series take longer than a leader may be without its loop. A process that does not
lead has nothing to be deaf to. One that keeps out of what another installation serves, or that may not lead over its store, is well and not
ready, so that an upgrade does not replace the one that leads by it.
"""

import asyncio
from collections.abc import Callable

import prometheus_client
from aiohttp import web
from dormouse_core.errors import Code, DormouseError
from dormouse_kit.families import wildcard


class Health:
    """`trouble`: why this process should be started anew, set by who leads; '': it need not."""

    def __init__(self) -> None:
        self.trouble: Callable[[], str] = lambda: ""
        self.kept_out: Callable[[], str] = lambda: ""
        """Why this process may not lead; '': it may."""
        self._runner: web.AppRunner | None = None
        self._making = asyncio.Lock()
        self.port = 0

    async def start(self, port: int, host: str = "0.0.0.0") -> None:
        """DormouseError: nobody can listen there. `port` 0: a free one."""
        app = web.Application()
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        try:
            for each in dict.fromkeys((host, wildcard(host))):  # asyncio's IPv6 sockets take no IPv4
                await web.TCPSite(self._runner, each, self.port or port).start()
                self.port = self._runner.addresses[0][1]
        except OSError as error:
            raise DormouseError(f"cannot listen at {host}:{port}: {error.strerror}", Code.UNAVAILABLE) from error

    async def close(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _metrics(self, request: web.Request) -> web.Response:
        async with self._making:
            body = await asyncio.to_thread(prometheus_client.generate_latest)
        return web.Response(body=body, headers={"Content-Type": prometheus_client.CONTENT_TYPE_LATEST})

    async def _healthz(self, request: web.Request) -> web.Response:
        return _answer(self.trouble())

    async def _readyz(self, request: web.Request) -> web.Response:
        return _answer(self.kept_out())


def _answer(trouble: str) -> web.Response:
    return web.Response(status=503 if trouble else 200, text=(trouble or "ok") + "\n")
