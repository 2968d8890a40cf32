"""Which namespaces are served, by their labels and by a list, and what becomes of functions in one that is served no more."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from dormouse_core.keys import Function
from dormouse_kit.clock import SystemClock
from dormouse_operator.kubernetes.api.http import ApiError, HttpApi, Object
from dormouse_operator.kubernetes.api.kinds import EVENTS, FUNCTIONS, NAMESPACES, PODS
from dormouse_operator.kubernetes.api.known import Key, Objects
from dormouse_operator.kubernetes.api.reflecting import Reflector
from dormouse_operator.kubernetes.objects.credentials import Credentials
from dormouse_operator.kubernetes.settings import ClusterSettings
from dormouse_operator.kubernetes.telling.own_events import OwnEvents
from dormouse_operator.kubernetes.watching.serving import Serving
from dormouse_operator.kubernetes.watching.surveying import Survey
from dormouse_operator.view import Registered
from dormouse_proto import state_pb2
from dormouse_testing.api_server import ApiServer, api_server
from dormouse_testing.clock import ManualClock
from dormouse_testing.memory_api import MemoryApi


class World:
    """An operator that serves namespaces with `team=a`, and a function in each of two."""

    def __init__(self) -> None:
        self.api, clock = MemoryApi(), ManualClock()
        self.begun: list[str] = []
        self.gone_uids: list[str] = []
        self.objects = Objects(clock, lambda key: None, lambda: None)
        settings = ClusterSettings(namespace_selector="team=a")
        events = OwnEvents(self.api, clock, "system", "operator")
        self.serving = Serving(self.api, clock, settings, events, begun=self.begun.append, having=lambda: ["one", "two"])
        registered = {
            f"uid-{name}": Registered(Function(name, "f", f"uid-{name}"), state_pb2.FunctionEntry(), 1, 1) for name in ("one", "two")
        }
        none: Any = Credentials(None, None, None)  # type: ignore[arg-type]  # a store without users
        world: Any = self
        self.survey = Survey(
            self.api, clock, (), self.objects, world, none, self.serving, registered=lambda: registered, deaf=lambda: None
        )  # fmt: skip
        for name in ("one", "two"):
            self.api.put(FUNCTIONS, {"metadata": {"namespace": name, "name": "f", "uid": f"uid-{name}"}})

    async def gone(self, namespace: str, name: str, uid: str) -> None:
        self.gone_uids.append(uid)

    def retry(self) -> None:
        pass

    def judged(self, uid: str) -> bool:
        return uid == "uid-one"

    async def label(self, **teams: str) -> None:
        for name, team in teams.items():
            self.api.put(NAMESPACES, {"metadata": {"namespace": "", "name": name, "labels": {"team": team}}})
        await self.serving.copy._list("")

    async def told(self) -> list[str]:
        telling = asyncio.create_task(self.serving._tell())
        await asyncio.sleep(0)
        telling.cancel()
        return [each["message"] for (plural, _, _), each in self.api.objects.items() if plural == EVENTS.plural]


async def test_namespaces_are_served_as_their_labels_are_now() -> None:
    world = World()
    assert not any(map(world.serving.serves, ("one", "two"))), "nothing is known yet"
    assert not world.survey.whole()
    await world.label(one="a", two="b")
    assert [*map(world.serving.serves, ("one", "two", "three"))] == [True, False, False]
    await world.label(two="a", three="b")
    assert [*map(world.serving.serves, ("one", "two", "three"))] == [True, True, False]
    await world.label(one="b")
    assert [*map(world.serving.serves, ("one", "two"))] == [False, True]
    assert world.begun == ["one", "two"]


async def test_what_is_not_known_of_labels_changes_nothing() -> None:
    """The list fails, and goes on failing."""
    world = World()
    await world.label(one="a")
    world.api.refuse = ApiError(403, "Forbidden", "no right")
    with pytest.raises(ApiError):
        await world.serving.copy._list("")
    assert world.serving.serves("one")


async def ended_where_labels_stop_matching(world: World) -> list[str]:
    await world.label(one="a", two="a")
    await world.survey._once()
    await world.label(one="b", two="b")
    await world.survey._once()
    return world.gone_uids


async def test_functions_of_a_namespace_whose_labels_stop_matching_go_on_and_it_is_said() -> None:
    world = World()
    assert await ended_where_labels_stop_matching(world) == []
    [said] = await world.told()
    assert said.startswith("The labels of one, two do not match namespaceSelector. Functions there go on as they were last applied;")
    del world.api.objects[(FUNCTIONS.plural, "one", "f")]
    await world.survey._once()
    assert world.gone_uids == ["uid-one"], "who deletes the object deletes the function, there as everywhere"


async def test_that_no_label_matches_is_said_as_soon_as_it_is_known() -> None:
    """An empty list changes nothing in the copy."""
    world = World()
    telling = asyncio.create_task(world.serving._tell())
    await asyncio.sleep(0)
    await world.label(one="b", two="b")
    for _ in range(5):
        await asyncio.sleep(0)
    telling.cancel()
    [said] = [each["message"] for (plural, _, _), each in world.api.objects.items() if plural == EVENTS.plural]
    assert said.startswith("The labels of one, two do not match")


async def test_negative_control_listing_only_what_is_served_would_end_them(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Survey._list

    async def of_served(self: Survey) -> tuple[list[Object], dict[str, int]]:
        found, versions = await real(self)
        return [each for each in found if self._serving.serves(each["metadata"]["namespace"])], versions

    monkeypatch.setattr(Survey, "_list", of_served)
    assert sorted(await ended_where_labels_stop_matching(World())) == ["uid-one", "uid-two"]


async def test_the_registry_is_whole_without_what_is_not_served() -> None:
    world = World()
    await world.label(one="a", two="b")
    await world.survey._once()
    assert world.survey.whole(), "of two there is no entry, and will be none"
    await world.label(two="a")
    assert not world.survey.whole()


# ------------------------------------------------------------------------------------------------------------------ a list


NAMES = tuple(f"ns-{number}" for number in range(200))


@contextlib.asynccontextmanager
async def copied() -> AsyncGenerator[tuple[ApiServer, Reflector, asyncio.Queue[tuple[Key, bool]]], None]:
    """A copy of two hundred namespaces' pods that is up to date. The third: (which, whether it is there) of each change."""
    changes = asyncio.Queue[tuple[Key, bool]]()
    async with api_server() as server:
        for name in NAMES:
            server.put("pods", name, "p")
        api = HttpApi(server.access())
        copy = Reflector(
            api, SystemClock(), PODS, namespaces=NAMES, changed=lambda key, before, after: changes.put_nowait((key, after is not None))
        )
        running = asyncio.create_task(copy.run())
        try:
            yield server, copy, changes
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await api.close()


async def test_two_hundred_namespaces_behave_as_one() -> None:
    async with copied() as (server, copy, changes), asyncio.timeout(20):
        assert {(await changes.get())[0] for _ in NAMES} == {(name, "p") for name in NAMES}
        assert copy.fresh
        server.put("pods", "ns-150", "other")
        assert await changes.get() == (("ns-150", "other"), True)
        server.remove("pods", "ns-7", "p", told=False)
        server.end_watches(410)
        assert await changes.get() == (("ns-7", "p"), False)
        assert copy.fresh


async def test_of_two_hundred_namespaces_one_that_is_refused_makes_the_copy_old(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy that lacks a namespace is not whole."""
    settings = ClusterSettings(namespaces=NAMES[:3])
    api, clock = MemoryApi(), ManualClock()
    copy = Reflector(api, clock, PODS, namespaces=settings.namespaces)
    for name in settings.namespaces[:2]:
        await copy._list(name)
    assert not copy.fresh
    await copy._list(settings.namespaces[2])
    assert copy.fresh
