"""Whether an operator hears what happens in its cluster: by watch and by list, what only a list may say, and when the probe fails."""

import asyncio
import contextlib
import urllib.error
import urllib.request
from typing import Any

import pytest
from dormouse_core.keys import Function
from dormouse_operator.kubernetes.api.access import Access
from dormouse_operator.kubernetes.api.http import ApiError, HttpApi, Listed, Object
from dormouse_operator.kubernetes.api.kinds import FUNCTIONS
from dormouse_operator.kubernetes.api.known import Key, Objects
from dormouse_operator.kubernetes.health import Health
from dormouse_operator.kubernetes.objects.credentials import Credentials
from dormouse_operator.kubernetes.watching.surveying import BLIND, DEAF_LISTS, Survey
from dormouse_operator.view import Registered
from dormouse_proto import state_pb2
from dormouse_testing.clock import ManualClock
from dormouse_testing.memory_api import MemoryApi
from dormouse_testing.namespaces_served import everywhere
from kubernetes.aio.client.configuration import Configuration


class Reconciler:
    """Stands for the one that works: notes what it is told."""

    def __init__(self) -> None:
        self.gone_uids: list[str] = []

    async def gone(self, namespace: str, name: str, uid: str) -> None:
        self.gone_uids.append(uid)

    def retry(self) -> None:
        pass


class Operator:
    """What hears, and nothing else of an operator. Its watch brings what `watch` is given."""

    def __init__(self) -> None:
        self.api, self.clock, self.reconciler = MemoryApi(), ManualClock(), Reconciler()
        self.changed: list[Key] = []
        self.deaf = 0
        self.registered: dict[str, Registered] = {}
        self.objects = Objects(self.clock, self.changed.append, lambda: self.survey.doubt())
        none: Any = Credentials(None, None, None)  # type: ignore[arg-type]  # a store without users: neither is asked
        self.survey = Survey(
            self.api, self.clock, (), self.objects, self.reconciler, none, everywhere(),  # type: ignore[arg-type]
            registered=lambda: self.registered, deaf=self._deaf,
        )  # fmt: skip

    def _deaf(self) -> None:
        self.deaf += 1

    def change(self, name: str, *, heard: bool) -> None:
        made = self.api.put(FUNCTIONS, {"metadata": {"namespace": "ns", "name": name, "uid": f"uid-{name}"}})
        self.registered[f"uid-{name}"] = Registered(Function("ns", name, f"uid-{name}"), state_pb2.FunctionEntry(), 1, 1)
        if heard:
            self.objects.heard("MODIFIED", made)

    async def list(self) -> None:
        await self.survey._once()


async def test_a_deaf_watch_is_begun_anew_and_in_the_end_the_probe_says_so() -> None:
    """Case 5.O2. Objects are handled meanwhile, at the pace of the lists."""
    operator = Operator()
    await operator.list()
    for number in range(DEAF_LISTS + 1):
        assert operator.survey.trouble() == "", number
        operator.change("f", heard=False)
        await operator.list()
        assert ("ns", "f") in operator.changed
        operator.changed.clear()
    assert operator.deaf == DEAF_LISTS, "what one list found and the next still misses was lost"
    assert "lost changes" in operator.survey.trouble()
    operator.change("f", heard=True)
    await operator.list()
    assert operator.survey.trouble() == ""


async def test_a_watch_that_hears_is_left_alone() -> None:
    operator = Operator()
    for _ in range(10):
        operator.change("f", heard=True)
        await operator.list()
    assert (operator.deaf, operator.survey.trouble()) == (0, "")


async def test_an_api_server_that_is_away_deletes_nothing_and_after_five_minutes_the_probe_says_so() -> None:
    """Also a right that was lost: 403 is an answer, and no list."""
    for error in (ApiError(0, "NoAnswer", "away"), ApiError(403, "Forbidden", "no right")):
        operator = Operator()
        operator.change("f", heard=True)
        await operator.list()
        operator.api.refuse = error
        operator.clock.advance(BLIND)
        await operator.list()
        assert operator.survey.trouble() == ""
        operator.clock.advance(1)
        assert "no complete list" in operator.survey.trouble()
        assert operator.reconciler.gone_uids == []
        operator.api.refuse = None
        await operator.list()
        assert operator.survey.trouble() == ""
        operator.api.objects.clear()
        await operator.list()
        assert operator.reconciler.gone_uids == ["uid-f"], "and a complete list says who is gone"


async def test_a_list_is_all_of_its_pages_or_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    pages = [["a", "b"], ["c"], ["d"]]
    asked: list[str] = []
    lost = [-1]

    async def send(self: HttpApi, method: str, path: str, *, params: dict[str, str]) -> Object:
        asked.append(params.get("continue", ""))
        number = int(asked[-1] or 0)
        if number == lost[0]:
            raise ApiError(410, "Expired", "the list is too old")
        following = str(number + 1) if number + 1 < len(pages) else ""
        return {"items": pages[number], "metadata": {"resourceVersion": "7", "continue": following}}

    monkeypatch.setattr(HttpApi, "_send", send)
    api = HttpApi(Access(Configuration()))
    assert await api.list(FUNCTIONS) == Listed("7", ["a", "b", "c", "d"])  # type: ignore[list-item]
    assert asked == ["", "1", "2"]
    for number in range(3):
        lost[0] = number
        with pytest.raises(ApiError, match="too old"):
            await api.list(FUNCTIONS)


async def gone_where_one_namespaces_list_fails() -> list[str]:
    """The list of ns is read and has what it should, the other's is not."""
    operator = Operator()
    operator.survey._namespaces = ("ns", "other")
    for namespace in ("ns", "other"):
        uid = f"uid-{namespace}"
        operator.api.put(FUNCTIONS, {"metadata": {"namespace": namespace, "name": "f", "uid": uid}})
        operator.registered[uid] = Registered(Function(namespace, "f", uid), state_pb2.FunctionEntry(), 1, 1)
    real = operator.api.list

    async def listed(kind: Any, namespace: str = "", **more: Any) -> Any:
        if namespace == "other":
            raise ApiError(403, "Forbidden", "no right")
        return await real(kind, namespace, **more)

    operator.api.list = listed  # type: ignore[method-assign]
    await operator.list()
    return operator.reconciler.gone_uids


async def test_a_list_that_is_not_whole_deletes_nothing() -> None:
    assert await gone_where_one_namespaces_list_fails() == []


async def test_negative_control_taken_for_the_whole_it_would_end_whatever_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    async def partly(self: Survey) -> tuple[list[Object], dict[str, int]]:
        found: list[Object] = []
        for namespace in self._namespaces:
            with contextlib.suppress(ApiError):
                found += (await self._api.list(FUNCTIONS, namespace)).items
        return found, {}

    monkeypatch.setattr(Survey, "_list", partly)
    assert await gone_where_one_namespaces_list_fails() == ["uid-other"]


async def test_the_probe_is_answered_with_the_trouble() -> None:
    health = Health()
    await health.start(0, "127.0.0.1")

    def ask() -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{health.port}/healthz", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    assert await asyncio.to_thread(ask) == (200, "ok\n")
    health.trouble = lambda: "it is deaf"
    assert await asyncio.to_thread(ask) == (503, "it is deaf\n")
    await health.close()
