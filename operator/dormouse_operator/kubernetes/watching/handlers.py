"""kopf: the watch of InferenceFunctions.

It runs in a thread with an event loop of its own, because an operator of kopf's that ends cancels every task of its loop that it did not
find there at its start, and takes the process's signal handlers; ours lead a system. Only `on.event` is used: no annotation, no finalizer,
no peering (`standalone`), no write of any kind. What it hears goes to `Objects`, which judges nothing by one event.

Its connections are those of every other request (`http.session`). A request that is refused is made again without end: after six refusals
kopf ends a watch for good, and goes on as if it had it. Should it end all the same, or go deaf (a watch that is open and brings nothing),
the complete lists say so (`Objects.missed`), and it is begun again. Objects are handled meanwhile, at the pace of the lists. Why kopf
watches this kind and no other: docs/decisions/0215.
"""

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import kopf
from dormouse_core.backoff import Backoff
from dormouse_core.spec.objects import GROUP, VERSION
from dormouse_kit import log

from dormouse_operator.kubernetes.api.access import Access
from dormouse_operator.kubernetes.api.http import TIMEOUT, WATCH_SECONDS, Object, session
from dormouse_operator.kubernetes.api.kinds import FUNCTIONS

BACKOFF = Backoff(0.2, 5.0)  # of a request that fails, without end
RESTART = Backoff(1.0, 30.0)  # after it ended
STOP = 5.0  # seconds in which it has to end
HEALTHY = 60.0  # seconds of running after which the next end counts as the first

Heard = Callable[[str | None, Object], None]


class Watching:
    """`heard(kind, object)` is called in the loop of whoever calls `run`. `namespaces` empty: all."""

    def __init__(self, access: Access, namespaces: Sequence[str], heard: Heard) -> None:
        self._access = access
        self._namespaces = namespaces
        self._heard = heard
        self._again = asyncio.Event()

    def restart(self) -> None:
        """It is deaf."""
        self._again.set()

    async def run(self) -> None:
        """Never returns by itself; cancel it."""
        failures = 0
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            self._again.clear()
            why = await self._once(loop)
            failures = 1 if loop.time() - began > HEALTHY else failures + 1
            pause = RESTART.after(failures)
            log.warning("the watch of functions ended; it starts again", why=why, again_in=pause)
            await asyncio.sleep(pause)

    async def _once(self, loop: asyncio.AbstractEventLoop) -> str:
        """Why it ended."""
        stop = threading.Event()
        ended = loop.create_future()

        def tell(kind: str | None, found: Object) -> None:
            loop.call_soon_threadsafe(self._heard, kind, found)

        def end(why: str) -> None:
            if not ended.done():
                ended.set_result(why)

        def work() -> None:
            why = "it returned"
            try:
                asyncio.run(kopf.operator(**self._arguments(tell, stop)))
            except BaseException as error:  # whatever it is, it ends this thread, and is told
                why = repr(error)
            if not loop.is_closed():
                loop.call_soon_threadsafe(end, why)

        thread = threading.Thread(target=work, name="kopf", daemon=True)
        thread.start()
        again = asyncio.ensure_future(self._again.wait())
        try:
            await asyncio.wait({ended, again}, return_when=asyncio.FIRST_COMPLETED)
            return ended.result() if ended.done() else "it lost events"
        finally:
            again.cancel()
            stop.set()
            await asyncio.to_thread(thread.join, STOP)

    def _arguments(self, tell: Heard, stop: threading.Event) -> dict[str, Any]:
        return {
            "registry": handlers(self._access, tell),
            "settings": settings(),
            "standalone": True,
            "clusterwide": not self._namespaces,
            "namespaces": list(self._namespaces),
            "stop_flag": stop,
        }


def handlers(access: Access, tell: Heard) -> kopf.OperatorRegistry:
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)
    async def login(**_: Any) -> kopf.AiohttpSession:
        """Called at the start and whenever the server answers 401: kopf closes the session that it was given before."""
        access.refused()
        await access.renew()
        return kopf.AiohttpSession(server=access.server, aiohttp_session=session(access))

    @kopf.on.event(GROUP, VERSION, FUNCTIONS.plural, registry=registry)
    async def event(event: Any, **_: Any) -> None:
        tell(event["type"], dict(event["object"]))

    return registry


class _Again:
    """Pauses for each request from the first one on."""

    def __iter__(self) -> Iterator[float]:
        return iter(BACKOFF.pauses())


def settings() -> kopf.OperatorSettings:
    chosen = kopf.OperatorSettings()
    chosen.scanning.disabled = True  # one kind, whose definition is there before we are: no rights to watch definitions are needed
    chosen.posting.enabled = False
    chosen.process.ultimate_exiting_timeout = None  # or it kills the process ten minutes after a restart
    chosen.networking.request_timeout = TIMEOUT
    chosen.networking.error_backoffs = _Again()
    chosen.watching.connect_timeout = TIMEOUT
    chosen.watching.server_timeout = WATCH_SECONDS  # a black hole is noticed by the connection, as of every watch
    chosen.watching.client_timeout = WATCH_SECONDS + 30.0
    return chosen
