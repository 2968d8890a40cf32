"""What is asked of an API server, over HTTP: as it was meant, with an end, and however many watches there are."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from dormouse_operator.kubernetes.api import http
from dormouse_operator.kubernetes.api.access import Access
from dormouse_operator.kubernetes.api.http import KEEPALIVE, OPEN, REQUESTS, ApiError, Change, HttpApi
from dormouse_operator.kubernetes.api.kinds import DEPLOYMENTS, FUNCTIONS, PODS, SECRETS
from dormouse_testing.api_server import ApiServer, api_server
from kubernetes.aio.client.configuration import Configuration


@contextlib.asynccontextmanager
async def asking(access: Access | None = None) -> AsyncGenerator[tuple[ApiServer, HttpApi], None]:
    async with api_server() as server:
        api = HttpApi(access or server.access())
        try:
            yield server, api
        finally:
            await api.close()


@contextlib.asynccontextmanager
async def watched(api: HttpApi, namespaces: int, kinds: int) -> AsyncGenerator[list[tuple[int, Change]], None]:
    """That many watches stand of each of so many namespaces; what they bring."""
    heard: list[tuple[int, Change]] = []
    standing = asyncio.Semaphore(0)

    async def follow(number: int) -> None:
        watch = api.watch(FUNCTIONS if number % kinds else PODS, f"ns-{number // kinds}", version="1")
        with contextlib.suppress(ApiError):  # at the end of the test
            async for change in watch:
                heard.append((number, change))
                if change.kind == OPEN:
                    standing.release()

    tasks = [asyncio.create_task(follow(number)) for number in range(namespaces * kinds)]
    try:
        async with asyncio.timeout(20):
            for _ in tasks:
                await standing.acquire()
        yield heard
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_watches_of_two_hundred_namespaces_leave_requests_their_connections() -> None:
    """Of two kinds; eleven namespaces' of six are more than requests have connections."""
    async with asking() as (server, api), watched(api, 200, 2) as heard:
        assert server.watches == 400 > REQUESTS
        server.put("pods", "ns-199", "p")
        assert (await api.get(PODS, "ns-199", "p"))["metadata"]["name"] == "p"
        await asyncio.gather(*(api.list(PODS, f"ns-{number}") for number in range(200)))
        assert [(number, change.kind) for number, change in heard if change.kind != OPEN] == [(398, "ADDED")]


async def test_negative_control_with_connections_in_common_eleven_namespaces_leave_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "TIMEOUT", 0.5)
    async with asking() as (server, api):
        api._watches = api._requests
        async with watched(api, 10, 6):  # 60, and four more
            four = [api.watch(PODS, f"other-{number}", version="1") for number in range(4)]
            for each in four:
                await anext(each)
            assert server.watches == REQUESTS
            with pytest.raises(ApiError, match="does not answer"):
                await api.list(PODS)
            await four.pop().aclose()
            await api.list(PODS)
            for each in four:
                await each.aclose()


async def test_what_is_asked_arrives_as_it_was_meant() -> None:
    odd = "a=b,c in (d,e),!f,g!=ä+& %"
    async with asking() as (server, api):
        await api.list(PODS, "ns", labels=odd, fields="metadata.name=x")
        change = {
            "metadata": {"annotations": {"a": None, "ü": 1, "empty": ""}},
            "list": [],
            "none": None,
            "no": False,
            "nested": [{"a": {}}],
        }
        server.put("deployments", "ns", "d")
        await api.patch(DEPLOYMENTS, "ns", "d", change, part="scale")
        with pytest.raises(ApiError) as missing:
            await api.get(SECRETS, "ns", "none")
        await api.delete(SECRETS, "ns", "none", uid="u")
    listed, patched, got, deleted = server.asked
    assert listed[:3] == ("GET", "/api/v1/namespaces/ns/pods", {"limit": "500", "labelSelector": odd, "fieldSelector": "metadata.name=x"})
    assert patched[:3] == ("PATCH", "/apis/apps/v1/namespaces/ns/deployments/d/scale", {})
    assert patched[4] == change, "null removes: it must arrive"
    assert patched[3]["Content-Type"] == "application/merge-patch+json"
    assert got[3]["Authorization"] == "Bearer token"
    assert got[3]["User-Agent"] == "dormouse-operator"
    assert (missing.value.code, missing.value.reason, missing.value.message) == (404, "Reason404", "message 404")
    assert (deleted[4]["preconditions"], deleted[4]["propagationPolicy"]) == ({"uid": "u"}, "Background")


async def test_an_answer_that_is_an_error_is_told_once_and_not_tried_again() -> None:
    """Who asked knows whether it may be asked twice."""
    async with asking() as (server, api):
        for code in (400, 401, 403, 409, 410, 422, 429, 500, 503):
            server.refuse_all = code
            with pytest.raises(ApiError) as refused:
                await api.list(PODS)
            assert (refused.value.code, refused.value.message) == (code, f"message {code}")
            assert len(server.asked) == 1
            server.asked.clear()


async def test_each_request_ends_and_nobody_knows_then_whether_it_was_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "TIMEOUT", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        api = HttpApi(Access(Configuration(host=f"http://127.0.0.1:{silent.getsockname()[1]}")))
        began = asyncio.get_running_loop().time()
        with pytest.raises(ApiError) as unknown:
            await api.get(PODS, "ns", "p")
        assert unknown.value.code == 0
        assert asyncio.get_running_loop().time() - began < 3
        await api.close()


async def test_a_peer_that_is_gone_is_noticed_by_the_kernel_on_watches_requests_and_kopfs_connections() -> None:
    made: list[socket.socket] = []
    real = http._socket

    def noted(address: Any) -> socket.socket:
        made.append(real(address))
        return made[-1]

    async with asking() as (server, api):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(http, "_socket", noted)
            await api.list(PODS)
            watch = api.watch(PODS, version="1")
            await anext(watch)
            async with http.session(server.access()) as kopfs, kopfs.get(server.url + "/api/v1/pods"):
                assert len(made) == 3
                for each in made:
                    options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
                    assert tuple(each.getsockopt(socket.IPPROTO_TCP, option) for option in options) == KEEPALIVE
                    assert each.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 25_000
            assert server.asked[-1][3]["Authorization"] == "Bearer token"
        await watch.aclose()


async def test_an_object_of_a_watch_may_have_a_megabyte() -> None:
    async with asking() as (server, api):
        watch = api.watch(PODS, version="1")
        assert (await anext(watch)).kind == OPEN
        server.put("pods", "ns", "p", data="x" * 3_000_000)
        assert len((await anext(watch)).object["data"]) == 3_000_000
        await watch.aclose()


async def test_a_watch_that_is_told_an_error_says_which() -> None:
    async with asking() as (server, api):
        watch = api.watch(PODS, version="1")
        await anext(watch)
        server.end_watches(410)
        with pytest.raises(ApiError) as gone:
            await anext(watch)
        assert gone.value.gone
        server.refuse = 403
        with pytest.raises(ApiError, match="message 403"):
            await anext(api.watch(PODS, version="1"))


async def test_what_the_server_no_longer_takes_is_read_again_and_a_request_has_the_next_token() -> None:
    now, tokens = [0.0], iter(["Bearer second", "Bearer third"])

    async def read(anew: bool) -> Configuration:
        found = Configuration(host=server.url)
        found.api_key["BearerToken"] = next(tokens)
        return found

    async with api_server() as server:
        access = Access(server.access().configuration, read, clock=lambda: now[0])
        api = HttpApi(access)
        await api.list(PODS)
        server.refuse_all = 401
        for seconds in (1, 4, 5):  # refused; not yet asked again; asked again
            now[0] = seconds
            with pytest.raises(ApiError):
                await api.list(PODS)
        server.refuse_all = 0
        now[0] = 66
        await api.list(PODS)
        sent = [headers["Authorization"] for _, _, _, headers, _ in server.asked]
        assert sent == ["Bearer token"] * 3 + ["Bearer second", "Bearer third"]
        await api.close()
