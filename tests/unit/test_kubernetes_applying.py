"""What a function consists of is made, kept and cleared away: by name, owner and digest, and nobody else's is touched."""

from typing import Any

import pytest
from dormouse_core import spec as specs
from dormouse_core.errors import Unavailable
from dormouse_core.seams import Wanted
from dormouse_operator.kubernetes import names
from dormouse_operator.kubernetes.api import ApiError
from dormouse_operator.kubernetes.applying import Applier, NotApplied
from dormouse_operator.kubernetes.kinds import BUDGETS, CONFIG_MAPS, DEPLOYMENTS, POLICIES, SECRETS, SERVICES
from dormouse_operator.kubernetes.provider import KubernetesProvider
from dormouse_operator.kubernetes.reflecting import Reflector
from dormouse_operator.kubernetes.settings import Settings
from dormouse_operator.registering import with_spec
from dormouse_proto import state_pb2
from dormouse_testing.clock import ManualClock
from dormouse_testing.manifests import onnx
from dormouse_testing.memory_api import MemoryApi

KINDS = (DEPLOYMENTS, SERVICES, CONFIG_MAPS, BUDGETS, POLICIES)


def entry(uid: str = "u", **spec: Any) -> state_pb2.FunctionEntry:
    wanted = specs.parse_manifest(onnx(model={"uri": "https://h/m.onnx"}, **spec))
    made = state_pb2.FunctionEntry(namespace="ns", name="vad", uid=uid, created_us=1)
    return with_spec(made, wanted.spec)


def proved(before: state_pb2.FunctionEntry) -> state_pb2.FunctionEntry:
    made = state_pb2.FunctionEntry()
    made.CopyFrom(before)
    made.proved_revision = before.revision
    return made


def changed(before: state_pb2.FunctionEntry, **spec: Any) -> state_pb2.FunctionEntry:
    return with_spec(before, specs.parse_manifest(onnx(**{"model": {"uri": "https://h/other.onnx"}, **spec})).spec)


class World:
    """An applier over an API server, and the copies that watches would keep."""

    def __init__(self) -> None:
        self.api, self.missing = MemoryApi(), list[str]()
        clock = ManualClock()
        self.copies = {kind: Reflector(self.api, clock, kind) for kind in KINDS}
        self.pods = Reflector(self.api, clock, DEPLOYMENTS)
        self.applier = Applier(self.api, Settings(store_secret=b"s"), self.copies)
        self.provider = KubernetesProvider(
            self.api, clock, self.pods, self.copies[DEPLOYMENTS], lambda uid: None, self.missing.append
        )  # fmt: skip

    def there(self) -> set[tuple[str, str]]:
        return {(plural, name) for plural, _, name in self.api.objects}

    def deployments(self) -> set[str]:
        return {name for plural, name in self.there() if plural == DEPLOYMENTS.plural}

    async def apply(self, found: state_pb2.FunctionEntry) -> list[tuple[str, str]]:
        """What was written."""
        self.api.written.clear()
        for kind, copy in self.copies.items():
            copy.items = {(space, name): item for (plural, space, name), item in self.api.objects.items() if plural == kind.plural}
        await self.applier.apply(found)
        return list(self.api.written)

    def remove(self, name: str) -> None:
        del self.api.objects[(DEPLOYMENTS.plural, "ns", name)]


async def test_everything_is_made_once_and_then_nothing_is_written() -> None:
    world, function = World(), entry()
    await world.apply(function)
    assert {plural for plural, _ in world.there()} == {kind.plural for kind in (*KINDS, SECRETS)}
    assert await world.apply(function) == []


async def test_what_somebody_removed_is_made_again() -> None:
    world, function = World(), entry()
    await world.apply(function)
    name = names.deployment("vad", function.revision)
    world.remove(name)
    assert await world.apply(function) == [(name, "created")]


async def test_how_many_replicas_there_are_is_not_its_to_say() -> None:
    world, function = World(), entry()
    await world.apply(function)
    key = (DEPLOYMENTS.plural, "ns", names.deployment("vad", function.revision))
    scaled = world.api.objects[key]
    world.api.objects[key] = {**scaled, "spec": {**scaled["spec"], "replicas": 5}}
    world.applier.settings = Settings(store_secret=b"s", image="dormouse:next")
    assert (key[2], "replaced") in await world.apply(function)
    assert world.api.objects[key]["spec"]["replicas"] == 5


@pytest.mark.parametrize("kind", [SERVICES, DEPLOYMENTS, BUDGETS])
async def test_an_object_of_the_name_that_is_somebody_elses_is_left_as_it_is(kind: Any) -> None:
    world, function = World(), entry()
    await world.apply(function)
    key = next(key for key in world.api.objects if key[0] == kind.plural)
    world.api.objects[key]["metadata"] = {"namespace": key[1], "name": key[2], "uid": "x", "labels": {}}
    before = dict(world.api.objects[key])
    with pytest.raises(NotApplied) as caught:
        await world.apply(function)
    assert (caught.value.reason, world.api.objects[key]) == ("NameTaken", before)


async def test_what_an_older_function_of_the_name_left_goes_first() -> None:
    world = World()
    await world.apply(entry("old"))
    with pytest.raises(NotApplied) as caught:
        await world.apply(entry("new"))
    assert caught.value.reason == "Retrying"
    await world.apply(entry("new"))
    await world.applier.remove(entry("old"))
    assert {item["metadata"]["ownerReferences"][0]["uid"] for item in world.api.objects.values()} == {"new"}


async def test_one_object_that_is_refused_does_not_stop_the_others() -> None:
    world, function = World(), entry()
    create = world.api.create

    async def refusing(kind: Any, manifest: Any) -> Any:
        if kind is SECRETS:
            raise ApiError(403, "Forbidden", "no right")
        return await create(kind, manifest)

    world.api.create = refusing  # type: ignore[method-assign]
    with pytest.raises(NotApplied, match="no right") as caught:
        await world.apply(function)
    assert caught.value.reason == "Forbidden"
    assert {plural for plural, _ in world.there()} == {kind.plural for kind in KINDS}


# ------------------------------------------------------------------------------------------------------------------ two revisions


async def test_until_a_new_revision_is_proved_the_one_that_was_is_kept_and_made_again() -> None:
    world, old = World(), proved(entry())
    await world.apply(old)
    new = changed(old)
    await world.apply(new)
    both = {names.deployment("vad", old.revision), names.deployment("vad", new.revision)}
    assert world.deployments() == both
    world.remove(names.deployment("vad", old.revision))
    await world.apply(new)
    assert world.deployments() == both


async def test_a_deployment_of_the_proved_revision_that_is_missing_is_asked_for() -> None:
    world, old = World(), proved(entry())
    new = changed(old)
    await world.provider.apply(Wanted(new, old.revision, 2))
    await world.provider.apply(Wanted(new, new.revision, 1))
    assert world.missing == ["u", "u"]
    assert sorted(revision for _, revision in world.provider._asked) == sorted([old.revision, new.revision])


async def test_a_revision_that_is_neither_wanted_nor_proved_is_not_started() -> None:
    world, old = World(), proved(entry())
    newest = changed(changed(old), model={"uri": "https://h/third.onnx"})
    await world.provider.apply(Wanted(changed(old), changed(old).revision, 1))
    with pytest.raises(Unavailable, match="no longer the function's"):
        await world.provider.apply(Wanted(newest, changed(old).revision, 1))
    assert world.provider._asked == {}, "nor is what was asked of it before"


async def test_an_older_revision_goes_when_it_has_no_worker_and_the_new_one_is_proved() -> None:
    world, old = World(), proved(entry())
    await world.apply(old)
    new = changed(old)
    await world.apply(new)
    assert len(world.deployments()) == 2
    done = proved(new)
    done.ClearField("proved_spec")
    await world.apply(done)
    assert world.deployments() == {names.deployment("vad", new.revision)}
    await world.apply(done)
    maps = {name for plural, name in world.there() if plural == CONFIG_MAPS.plural}
    assert maps == {names.deployment("vad", new.revision)}


async def test_negative_control_a_function_without_a_proved_revision_has_one_deployment() -> None:
    world, old = World(), entry()
    await world.apply(old)
    new = changed(old)
    await world.apply(new)
    assert world.deployments() == {names.deployment("vad", new.revision)}
