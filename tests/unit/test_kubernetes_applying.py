"""What a function consists of is made, kept and cleared away: by name, owner and digest, and nobody else's is touched."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
from dormouse_core import spec as specs
from dormouse_core.errors import Unavailable
from dormouse_core.seams import Wanted
from dormouse_operator.function_entries import with_spec
from dormouse_operator.kubernetes.api.http import ApiError
from dormouse_operator.kubernetes.api.kinds import BUDGETS, CONFIG_MAPS, DEPLOYMENTS, POLICIES, SECRETS, SERVICES
from dormouse_operator.kubernetes.api.reflecting import Reflector
from dormouse_operator.kubernetes.objects import editing, names
from dormouse_operator.kubernetes.objects.applying import Applier, NotApplied
from dormouse_operator.kubernetes.pods.provider import KubernetesProvider, trim, trim_to_metadata
from dormouse_operator.kubernetes.settings import ClusterSettings
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
        self.applier = Applier(self.api, ClusterSettings(store_secret=b"s"), self.copies)
        self.provider = KubernetesProvider(
            self.api, clock, self.pods, self.copies[DEPLOYMENTS], lambda uid, revision: None, self.missing.append
        )  # fmt: skip

    def there(self) -> set[tuple[str, str]]:
        return {(plural, name) for plural, _, name in self.api.objects}

    def deployments(self) -> set[str]:
        return {name for plural, name in self.there() if plural == DEPLOYMENTS.plural}

    async def apply(self, found: state_pb2.FunctionEntry) -> list[tuple[str, str]]:
        """What was written."""
        self.look()
        self.api.written.clear()
        await self.applier.apply(found)
        return list(self.api.written)

    def look(self) -> None:
        for kind, copied in self.copies.items():
            there = {key[1:]: item for key, item in self.api.objects.items() if key[0] == kind.plural}
            copied.items = {key: item for key, item in there.items() if names.INSTALLATION in item["metadata"]["labels"]}

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
    world.applier.settings = ClusterSettings(store_secret=b"s", image="dormouse:next")
    assert (key[2], "replaced") in await world.apply(function)
    assert world.api.objects[key]["spec"]["replicas"] == 5


class Turns:
    """A pace that says yes when `turn` is set."""

    def __init__(self) -> None:
        self.turn, self.told = False, list[str]()

    def may(self, uid: str, deployment: dict[str, Any]) -> bool:
        self.told.append(f"{uid} asks with {deployment['spec']['replicas']}")
        return self.turn

    def written(self, uid: str) -> None:
        self.told.append(f"{uid} is written")


async def test_running_workers_are_replaced_in_their_functions_turn_and_who_sleeps_at_once() -> None:
    world, function, pace = World(), entry(), Turns()
    await world.apply(function)
    key = (DEPLOYMENTS.plural, "ns", names.deployment("vad", function.revision))
    world.applier = Applier(world.api, ClusterSettings(store_secret=b"s", image="next"), world.copies, pace)
    scaled = world.api.objects[key]
    world.api.objects[key] = {**scaled, "spec": {**scaled["spec"], "replicas": 1}}
    assert (key[2], "replaced") not in await world.apply(function)
    assert pace.told == ["u asks with 1"]
    pace.turn = True
    assert (key[2], "replaced") in await world.apply(function)
    assert pace.told[1:] == ["u asks with 1", "u is written"]
    assert (key[2], "replaced") not in await world.apply(function)
    assert pace.told[3:] == ["u is written"], "it does not ask, and waits for nothing"
    pace.told.clear()
    scaled = world.api.objects[key]
    world.api.objects[key] = {**scaled, "spec": {**scaled["spec"], "replicas": 0}}
    world.applier.settings = ClusterSettings(store_secret=b"s", image="after")
    assert (key[2], "replaced") in await world.apply(function)
    assert pace.told == ["u is written"]


async def test_what_could_not_be_written_is_not_said_to_be_and_what_is_gone_waits_for_nothing() -> None:
    world, function, pace = World(), entry(), Turns()
    await world.apply(function)
    key = (DEPLOYMENTS.plural, "ns", names.deployment("vad", function.revision))
    world.applier = Applier(world.api, ClusterSettings(store_secret=b"s", image="next"), world.copies, pace)
    scaled, pace.turn = world.api.objects[key], True
    world.api.objects[key] = {**scaled, "spec": {**scaled["spec"], "replicas": 1}}
    world.api.refuse = ApiError(500, "InternalError", "no")
    with pytest.raises(NotApplied):
        await world.apply(function)
    assert pace.told == ["u asks with 1"]
    world.api.refuse = None
    await world.applier.remove(function)
    assert pace.told[1:] == ["u is written"]


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


@pytest.mark.parametrize("orphans", [False, True])
async def test_nothing_is_left_of_a_function_that_is_gone(orphans: bool) -> None:
    """Also where it was deleted with `--cascade=orphan`; but what somebody else gave these labels is his."""
    world, function = World(), entry()
    await world.apply(function)
    theirs = {
        "metadata": {"namespace": "ns", "name": "theirs", "labels": dict(next(iter(world.api.objects.values()))["metadata"]["labels"])}
    }
    world.api.put(SERVICES, theirs)
    for item in world.api.objects.values():
        if orphans:
            item["metadata"].pop("ownerReferences", None)
    world.look()
    await world.applier.remove(function)
    assert world.there() == {(SERVICES.plural, "theirs")}


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


# ------------------------------------------------------------------------------------------------------------------ another installation


class Second:
    """Another installation's applier beside the world's, with copies of what has its own label."""

    def __init__(self, world: World, **settings: Any) -> None:
        self.world = world
        self.settings = ClusterSettings(installation="b", store=("b-etcd:2379",), store_secret=b"b", image="b-image", **settings)
        copies = {kind: Reflector(world.api, ManualClock(), kind, labels=f"{names.INSTALLATION}=b,{names.UID}") for kind in KINDS}
        self.applier = Applier(world.api, self.settings, copies)

    async def refused(self, found: state_pb2.FunctionEntry) -> str:
        """Why; nothing was written."""
        before = copy.deepcopy(self.world.api.objects)
        self.world.api.written.clear()
        with pytest.raises(NotApplied) as caught:
            await self.applier.apply(found)
        assert (self.world.api.written, self.world.api.objects) == ([], before)
        assert (caught.value.reason, caught.value.final) == ("ServedByAnother", False)
        return caught.value.message


@pytest.mark.parametrize("made", [entry(), changed(entry()), entry("later")], ids=["the same", "another revision", "made anew"])
async def test_what_another_installation_serves_is_left_as_it_is_and_said_until_it_has_gone(made: state_pb2.FunctionEntry) -> None:
    """The namespace was the other's before, say; without policies and without a store's Secret, too, so that its places are free."""
    world = World()
    world.applier = Applier(world.api, ClusterSettings(network_policies=False, store_auth=False), world.copies)
    await world.apply(entry())
    second = Second(world)
    message = await second.refused(made)
    assert message.startswith("The installation default serves a function of this name: its Service vad stands")
    world.look()
    await world.applier.remove(entry())
    await second.applier.apply(made)
    assert {item["metadata"]["labels"][names.INSTALLATION] for item in world.api.objects.values()} == {"b"}


@pytest.mark.parametrize("kind", [SERVICES, DEPLOYMENTS, BUDGETS, POLICIES, CONFIG_MAPS, SECRETS])
async def test_each_object_of_another_installation_is_left_as_it_is(kind: Any) -> None:
    """Also where its Service went, so that one's own is there, and of an object that somebody labels as another's."""
    world, function = World(), entry()
    second = Second(world)
    await second.applier.apply(function)
    theirs = copy.deepcopy(next(item for key, item in world.api.objects.items() if key[0] == kind.plural))
    world.api.objects.clear()
    await world.apply(function)
    world.api.put(kind, theirs)
    world.applier.doubt(function)
    before = copy.deepcopy(world.api.objects)
    with pytest.raises(NotApplied, match="The installation b serves") as caught:
        await world.apply(function)
    assert (caught.value.reason, world.api.objects) == ("ServedByAnother", before)


async def test_when_it_is_not_known_whether_another_installation_serves_it_nothing_is_made() -> None:
    world = World()
    world.api.refuse = ApiError(0, "NoAnswer", "the API server does not answer")
    with pytest.raises(NotApplied) as caught:
        await world.applier.apply(entry())
    assert (caught.value.reason, world.api.objects) == ("Retrying", {})


async def test_negative_control_without_the_labels_it_would_be_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Applier, "_refuse_others", lambda self, kind, live: None)
    world = World()
    await world.apply(entry())
    await Second(world).applier.apply(entry())
    taken = [item for key, item in world.api.objects.items() if key[0] == DEPLOYMENTS.plural]
    assert [item["spec"]["template"]["spec"]["containers"][0]["image"] for item in taken] == ["b-image"]


# ------------------------------------------------------------------------------------------------------------------ edits


def edit(world: World, kind: Any, change: Callable[[Any], None]) -> tuple[str, str, str]:
    key = next(key for key in world.api.objects if key[0] == kind.plural and "-w-" not in key[2])
    found = copy.deepcopy(world.api.objects[key])
    change(found)
    world.api.put(kind, found)
    return key


def spec(**changes: Any) -> Callable[[Any], None]:
    return lambda found: found["spec"].update(changes)


def annotate(found: Any) -> None:
    found["spec"]["template"]["metadata"].setdefault("annotations", {})[editing.RESTARTED] = "2026-01-01T00:00:00Z"


def environment(found: Any) -> None:
    found["spec"]["template"]["spec"]["containers"][0].setdefault("env", []).append({"name": "A", "value": "b"})


def data(found: Any) -> None:
    found["data"] = {"spec.json": "{}"}


def label(found: Any) -> None:
    del found["metadata"]["labels"][names.INSTALLATION]


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        (SERVICES, spec(externalName="elsewhere")),
        (DEPLOYMENTS, environment),
        (POLICIES, spec(ingress=[])),
        (CONFIG_MAPS, data),
        (BUDGETS, spec(selector={})),
        (SERVICES, label),
    ],
)
async def test_what_somebody_edits_is_put_back(kind: Any, change: Callable[[Any], None]) -> None:
    world, function = World(), entry()
    await world.apply(function)
    before = {key: editing.content(item) for key, item in world.api.objects.items()}
    key = edit(world, kind, change)
    assert await world.apply(function) == [(key[2], "replaced")]
    assert {key: editing.content(item) for key, item in world.api.objects.items()} == before
    assert await world.apply(function) == []


async def test_an_object_that_an_operator_sees_for_the_first_time_is_taken_as_it_is_and_held_to_that() -> None:
    world, function = World(), entry()
    await world.apply(function)
    world.applier = Applier(world.api, world.applier.settings, world.copies)
    assert await world.apply(function) == []
    key = edit(world, SERVICES, spec(externalName="elsewhere"))
    assert await world.apply(function) == [(key[2], "replaced")]


@pytest.mark.parametrize(
    ("kind", "change"),
    [(DEPLOYMENTS, spec(replicas=3)), (BUDGETS, spec(maxUnavailable=2)), (DEPLOYMENTS, annotate), (DEPLOYMENTS, lambda found: None)],
)
async def test_what_others_have_a_say_in_is_no_edit(kind: Any, change: Callable[[Any], None]) -> None:
    world, function = World(), entry()
    await world.apply(function)
    edit(world, kind, change)
    assert await world.apply(function) == []


async def test_a_restart_that_was_asked_for_is_kept_when_an_edit_is_put_back() -> None:
    world, function = World(), entry()
    await world.apply(function)
    edit(world, DEPLOYMENTS, annotate)
    key = edit(world, DEPLOYMENTS, environment)
    assert await world.apply(function) == [(key[2], "replaced")]
    assert editing.restarted(world.api.objects[key])
    assert await world.apply(function) == []


async def test_what_the_server_makes_of_a_manifest_is_no_edit() -> None:
    world, function = World(), entry()
    create = world.api.create

    async def defaulting(kind: Any, manifest: Any) -> Any:
        return await create(kind, {**manifest, "spec": {**manifest.get("spec", {}), "default": True}})

    world.api.create = defaulting  # type: ignore[method-assign]
    await world.apply(function)
    assert await world.apply(function) == []


def test_an_edit_is_news_and_a_status_is_not() -> None:
    before = {"metadata": {"uid": "u", "resourceVersion": "1"}, "spec": {"a": 1}, "status": {"x": 1}}
    for trimming in (trim, trim_to_metadata):
        kept = trimming(copy.deepcopy(before))
        assert not editing.edited(kept, trimming({**copy.deepcopy(before), "status": {"x": 2}}))
        assert editing.edited(kept, trimming({**copy.deepcopy(before), "spec": {"a": 2}}))
        assert not editing.edited(kept, None)
        assert not editing.edited(None, kept)


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
