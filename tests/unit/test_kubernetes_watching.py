"""kopf's watch of functions, over HTTP: what it hears, through what an API server does to it."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterator, Sequence

import pytest
from dormouse_core.backoff import Backoff
from dormouse_operator.kubernetes.api.http import Object
from dormouse_operator.kubernetes.watching import handlers
from dormouse_operator.kubernetes.watching.handlers import Watching
from dormouse_testing.api_server import ApiServer, api_server

PLURAL = "inferencefunctions"


class Heard:
    def __init__(self) -> None:
        self.queue = asyncio.Queue[tuple[str | None, str]]()

    def __call__(self, kind: str | None, found: Object) -> None:
        self.queue.put_nowait((kind, found["metadata"]["name"]))

    async def next(self, within: float = 20) -> tuple[str | None, str]:
        async with asyncio.timeout(within):
            return await self.queue.get()


@contextlib.asynccontextmanager
async def watching(namespaces: Sequence[str] = ()) -> AsyncGenerator[tuple[ApiServer, Heard]]:
    """With an object of the first listing in each of `namespaces`, or in one."""
    heard = Heard()
    async with api_server() as server:
        for namespace in namespaces or ("ns",):
            server.put(PLURAL, namespace, f"of-{namespace}")
        running = asyncio.create_task(Watching(server.access(), namespaces, heard).run())
        try:
            yield server, heard
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


async def test_in_two_hundred_namespaces_a_change_is_heard() -> None:
    names = [f"ns-{number}" for number in range(200)]
    async with watching(names) as (server, heard):
        assert {await heard.next() for _ in names} == {(None, f"of-{name}") for name in names}
        await server.watched(len(names))
        server.put(PLURAL, "ns-150", "late")
        assert await heard.next() == ("ADDED", "late")


async def heard_after_refusals(count: int) -> tuple[str | None, str]:
    """What is heard after so many requests for a watch were refused."""
    async with watching() as (server, heard):
        await heard.next()
        await server.watched(1)
        server.refuse = 403
        server.end_watches()
        await server.refused(count)
        server.refuse = 0
        server.put(PLURAL, "ns", "late")
        return await heard.next(within=2)


async def test_however_often_a_watch_is_refused_it_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """As an API server does that starts and has no roles yet."""
    monkeypatch.setattr(handlers, "BACKOFF", Backoff(0.001, 0.01))
    assert await heard_after_refusals(20) == ("ADDED", "late")


async def test_negative_control_with_an_end_of_trying_kopf_is_deaf_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    class FiveTimes:
        def __iter__(self) -> Iterator[float]:
            return iter([0.001] * 5)

    monkeypatch.setattr(handlers, "_Again", FiveTimes)
    with pytest.raises(TimeoutError):
        await heard_after_refusals(6)
