"""An object's uid is its function's: what the registry keeps of it, and for how long."""

from typing import Any

import pytest
from dormouse_core import retaining
from dormouse_core import spec as specs
from dormouse_core.errors import Aborted, FailedPrecondition, Unavailable
from dormouse_core.keys import Keys
from dormouse_core.observations import FunctionSeen
from dormouse_core.seams import Put, Txn
from dormouse_operator import function_entries
from dormouse_operator.kubernetes.api.http import Object
from dormouse_operator.kubernetes.api.kinds import NAMESPACES
from dormouse_operator.kubernetes.objects import names
from dormouse_operator.kubernetes.objects.object_entries import NameInUse, ObjectEntries, seconds, timestamp
from dormouse_operator.kubernetes.objects.tenants import LABEL, Tenants
from dormouse_operator.writes import Writer
from dormouse_proto import state_pb2
from dormouse_testing.clock import ManualClock
from dormouse_testing.cluster_objects import NOW
from dormouse_testing.manifests import Data, onnx, stateful
from dormouse_testing.memory_api import MemoryApi
from dormouse_testing.memory_store import FULL, REPLY_LOST, REQUEST_LOST, MemoryStore
from hypothesis import given
from hypothesis import strategies as st

KEYS = Keys("default")


class World:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.store = MemoryStore(self.clock)
        self.entries = ObjectEntries(self.store, KEYS, self.clock, 0)

    async def lead(self) -> None:
        result = await self.store.txn(Txn((), (Put(KEYS.leader, b"me"),)))
        self.entries = ObjectEntries(self.store, KEYS, self.clock, result.revision)

    async def keep(self, manifest: Data, uid: str = "u") -> tuple[state_pb2.FunctionEntry, int]:
        found: Object = {**manifest, "metadata": {**manifest["metadata"], "uid": uid, "creationTimestamp": timestamp(NOW)}}
        return await self.entries.keep(found, specs.parse_manifest(manifest))

    async def entry(self) -> state_pb2.FunctionEntry:
        key = KEYS.function("default", "vad")
        _, items = await self.store.get([key])
        return state_pb2.FunctionEntry.FromString(items[key].value)


@pytest.fixture
async def world() -> World:
    made = World()
    await made.lead()
    return made


async def test_an_object_becomes_the_function_of_its_uid_and_age(world: World) -> None:
    made, _ = await world.keep(stateful())
    assert (made.uid, made.namespace, made.name, made.shards, made.generation) == ("u", "default", "vad", 64, 1)
    assert made.created_us == int(NOW) * 1_000_000
    assert await world.entry() == made


def kept() -> Data:
    """As one whose sessions are kept at its end."""
    return stateful(reclaimPolicy="Retain")


async def ended(world: World, uid: str) -> bool:
    """The function's object is gone, and its workers too; whether its sessions are kept."""
    await world.entries.forget("default", "vad", uid)
    entry = await world.entry()
    key = KEYS.function("default", "vad")
    _, items = await world.store.get([key, KEYS.leader])
    writer = Writer(world.store, KEYS, items[KEYS.leader].create_revision)
    seen = FunctionSeen(entry, items[key].mod_revision, items[key].create_revision)
    assert await (writer.retain(seen, 1) if retaining.retains(entry) else writer.purge(seen))
    return KEYS.retained("default", "vad") in (await world.store.get([KEYS.retained("default", "vad")]))[1]


async def test_an_object_of_another_uid_goes_on_with_kept_sessions_and_waits_for_their_end(world: World) -> None:
    await world.keep(kept(), "u")
    with pytest.raises(NameInUse):
        await world.keep(kept(), "v")
    assert await ended(world, "u")
    with pytest.raises(FailedPrecondition, match=r"spec\.sessions\.shards: 8 found, 64 is allowed"):
        await world.keep(stateful(shards=8), "w")
    made, _ = await world.keep(kept(), "v")
    assert (made.uid, made.store_id) == ("v", "u")


async def test_a_namespace_that_is_another_tenants_by_now_is_not_given_them(world: World) -> None:
    """It was deleted, and made again under its name."""
    asked: list[str] = []
    tenants = {"default": "red"}

    async def tenant(namespace: str) -> str:
        asked.append(namespace)
        if not tenants:
            raise Unavailable("no API server")
        return tenants[namespace]

    item = (await world.store.get([KEYS.leader]))[1][KEYS.leader]
    world.entries = ObjectEntries(world.store, KEYS, world.clock, item.create_revision, tenant=tenant)
    await world.keep(kept(), "u")
    assert (await world.entry()).tenant == "red"
    await world.keep(kept(), "u")
    assert asked == ["default"], "where a function begins"
    assert await ended(world, "u")
    for other, found in (("blue", 'tenant "blue" found'), ("", "no tenant found")):
        tenants["default"] = other
        with pytest.raises(FailedPrecondition, match=f'metadata.namespace: {found}, tenant "red" is allowed'):
            await world.keep(kept(), "v")
    tenants.clear()
    with pytest.raises(Unavailable):
        await world.keep(kept(), "v")
    assert KEYS.retained("default", "vad") in (await world.store.get([KEYS.retained("default", "vad")]))[1], "they are not touched"
    tenants["default"] = "red"
    assert (await world.keep(kept(), "v"))[0].store_id == "u"


async def test_a_function_from_before_its_namespace_had_a_label_is_its_tenants(world: World) -> None:
    """One that lives is of the namespace that is there, so whose that is it is."""
    made, revision = await world.keep(kept(), "u")
    assert made.tenant == ""
    known = True

    async def red(namespace: str) -> str:
        if not known:
            raise Unavailable("no API server")
        return "red"

    item = (await world.store.get([KEYS.leader]))[1][KEYS.leader]
    world.entries = ObjectEntries(world.store, KEYS, world.clock, item.create_revision, tenant=red)
    known = False
    assert await world.keep(kept(), "u") == (made, revision), "nobody waits for what is only not known"
    assert (await world.keep(stateful(reclaimPolicy="Retain", ttl="1h"), "u"))[0].tenant == ""
    known = True
    world.store.fault("txn", FULL)
    assert (await world.keep(stateful(reclaimPolicy="Retain", ttl="1h"), "u"))[0].tenant == "", "nor for what a full store does not take"
    assert (await world.keep(kept(), "u"))[0].tenant == "red"
    assert await ended(world, "u")
    made, _ = await world.keep(kept(), "v")
    assert (made.store_id, made.tenant) == ("u", "red")


async def test_negative_control_without_comparing_tenants_it_would_be(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    real = retaining.adopted
    monkeypatch.setattr(function_entries.retaining, "adopted", lambda item, label, shards, tenant: real(item, label, shards, "red"))

    async def red(namespace: str) -> str:
        return "red"

    item = (await world.store.get([KEYS.leader]))[1][KEYS.leader]
    world.entries = ObjectEntries(world.store, KEYS, world.clock, item.create_revision, tenant=red)
    await world.keep(kept(), "u")
    assert await ended(world, "u")
    world.entries = ObjectEntries(world.store, KEYS, world.clock, item.create_revision)
    made, _ = await world.keep(kept(), "v")
    assert (made.tenant, made.store_id) == ("", "u")


async def test_the_label_of_the_namespace_says_whose_it_is() -> None:
    api = MemoryApi()
    for name, labels in {"a": {LABEL: "red"}, "b": {}, "c": None}.items():
        api.put(NAMESPACES, {"metadata": {"name": name, **({} if labels is None else {"labels": labels})}})
    assert [await Tenants(api).of(name) for name in "abc"] == ["red", "", ""]
    with pytest.raises(Unavailable, match="whose the namespace d is cannot be read"):
        await Tenants(api).of("d")


async def test_by_default_an_object_of_another_uid_begins_without(world: World) -> None:
    await world.keep(stateful(), "u")
    assert not await ended(world, "u")
    assert (await world.keep(stateful(), "v"))[0].store_id == ""


async def restored(world: World) -> None:
    """As a restore writes it."""
    made, _ = await world.keep(stateful(), "u")
    made.restored = True
    await world.store.txn(Txn((), (Put(KEYS.function("default", "vad"), made.SerializeToString()),)))


async def test_what_a_restore_brought_is_kept_for_an_object_of_another_uid(world: World) -> None:
    """In another cluster each object has another uid, so every function of the store looks deleted there."""
    await restored(world)
    with pytest.raises(NameInUse):
        await world.keep(stateful(), "v")
    assert await ended(world, "u")
    made, _ = await world.keep(stateful(), "v")
    assert (made.store_id, made.restored) == ("u", False)


async def test_what_a_restore_brought_and_its_own_object_is_as_its_policy_says(world: World) -> None:
    await restored(world)
    made, _ = await world.keep(stateful(), "u")
    assert not made.restored
    assert not await ended(world, "u")


async def test_what_is_already_so_is_not_written(world: World) -> None:
    _, first = await world.keep(onnx())
    calls = world.store.calls["txn"]
    assert (await world.keep(onnx()))[1] == first
    assert world.store.calls["txn"] == calls


async def test_another_value_of_the_annotation_reads_the_content_again(world: World) -> None:
    def asked(value: str) -> Data:
        return {**onnx(), "metadata": {**onnx()["metadata"], "annotations": {names.REFRESH: value}}}

    first, _ = await world.keep(onnx())
    second, _ = await world.keep(asked("monday"))
    assert second.revision != first.revision
    calls = world.store.calls["txn"]
    for same in (asked("monday"), onnx()):
        assert (await world.keep(same))[0].revision == second.revision, "an annotation that somebody drops asks for nothing"
    assert world.store.calls["txn"] == calls
    third, _ = await world.keep(asked("t" * 10_000))
    assert third.revision != second.revision
    assert len(third.edition) == 12


async def test_a_change_is_a_generation_and_what_may_not_change_does_not(world: World) -> None:
    await world.keep(onnx())
    assert (await world.keep(onnx(maxReplicas=3)))[0].generation == 2
    with pytest.raises(FailedPrecondition):
        await world.keep(stateful())
    assert (await world.entry()).generation == 2


async def test_an_object_of_the_same_name_waits_until_the_first_is_gone(world: World) -> None:
    await world.keep(onnx(), "old")
    with pytest.raises(NameInUse):
        await world.keep(onnx(), "new")
    await world.entries.forget("default", "vad", "old")
    for uid in ("old", "new"):
        with pytest.raises(NameInUse):
            await world.keep(onnx(), uid)


async def test_the_end_of_an_object_marks_its_function_once_and_nobody_elses(world: World) -> None:
    await world.keep(onnx())
    assert await world.entries.forget("default", "vad", "another") is False
    assert await world.entries.forget("default", "nobody", "u") is False
    assert not (await world.entry()).deleting
    assert await world.entries.forget("default", "vad", "u") is True
    assert (await world.entry()).deleting
    assert await world.entries.forget("default", "vad", "u") is False


@pytest.mark.parametrize("fault", [REPLY_LOST, REQUEST_LOST])
async def test_a_write_whose_outcome_is_not_known_is_made_again_without_harm(world: World, fault: Any) -> None:
    world.store.fault("txn", fault)
    with pytest.raises(Unavailable):
        await world.keep(onnx())
    assert (await world.keep(onnx()))[0].generation == 1


async def test_who_no_longer_leads_writes_nothing(world: World) -> None:
    other = World()
    other.store = world.store.client()
    other.entries = ObjectEntries(other.store, KEYS, other.clock, 999)
    with pytest.raises(Aborted):
        await other.keep(onnx())


async def test_what_kubectl_does_is_not_done_here(world: World) -> None:
    for asked, text in (
        (world.entries.apply(""), "kubectl"),
        (world.entries.scale("ns", "f", 2), """kubectl -n ns patch ifn f --type=merge -p '{"spec":{"replicas":2}}'"""),
        (world.entries.scale("ns", "f", None), '{"spec":{"replicas":null}}'),
        (world.entries.delete("ns", "f"), "kubectl -n ns delete ifn f"),
    ):
        with pytest.raises(FailedPrecondition, match=text):
            await asked


@given(st.integers(0, 4_102_444_800))
def test_a_time_is_the_same_after_it_was_written_and_read(at: int) -> None:
    assert seconds(timestamp(at)) == at
    assert seconds(timestamp(at).replace("Z", ".250000Z")) == at + 0.25
