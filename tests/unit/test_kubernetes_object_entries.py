"""An object's uid is its function's: what the registry keeps of it, and for how long."""

from typing import Any

import pytest
from dormouse_core import spec as specs
from dormouse_core.errors import Aborted, FailedPrecondition, Unavailable
from dormouse_core.keys import Keys
from dormouse_core.seams import Put, Txn
from dormouse_operator.kubernetes.api.http import Object
from dormouse_operator.kubernetes.objects import names
from dormouse_operator.kubernetes.objects.object_entries import NameInUse, ObjectEntries, seconds, timestamp
from dormouse_proto import state_pb2
from dormouse_testing.clock import ManualClock
from dormouse_testing.cluster_objects import NOW
from dormouse_testing.manifests import Data, onnx, stateful
from dormouse_testing.memory_store import REPLY_LOST, REQUEST_LOST, MemoryStore
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
        (world.entries.scale("ns", "f", 2), "kubectl -n ns scale ifn f"),
        (world.entries.delete("ns", "f"), "kubectl -n ns delete ifn f"),
    ):
        with pytest.raises(FailedPrecondition, match=text):
            await asked


@given(st.integers(0, 4_102_444_800))
def test_a_time_is_the_same_after_it_was_written_and_read(at: int) -> None:
    assert seconds(timestamp(at)) == at
    assert seconds(timestamp(at).replace("Z", ".250000Z")) == at + 0.25
