"""One object's round: what of it reaches the registry, and what its conditions then say."""

from typing import Any

import pytest
from dormouse_core.errors import Code
from dormouse_core.keys import Keys
from dormouse_core.seams import Put, Txn
from dormouse_core.spec import parse_manifest
from dormouse_operator.kubernetes.api.http import Object
from dormouse_operator.kubernetes.api.known import Objects
from dormouse_operator.kubernetes.objects import names
from dormouse_operator.kubernetes.objects.manifests import build_all
from dormouse_operator.kubernetes.objects.object_entries import NameInUse, ObjectEntries
from dormouse_operator.kubernetes.settings import ClusterSettings
from dormouse_operator.kubernetes.telling.statuses import Said
from dormouse_operator.kubernetes.watching.reconciling import Reconciler
from dormouse_proto import control_pb2, state_pb2
from dormouse_testing.clock import SimClock
from dormouse_testing.manifests import Data, onnx
from dormouse_testing.memory_store import FULL, FULL_APPLIED, Fault, MemoryStore

KEYS = Keys("default")
KEY = ("default", "vad")


class World:
    """A reconciler between one object and a store in memory. `said`: the conditions of the last round; `applied`: revisions. `ended`,
    `removed`: uids of functions whose deletion has begun, and whose objects were removed."""

    def __init__(self) -> None:
        self.clock = SimClock()
        self.store = MemoryStore(self.clock)
        self.objects = Objects(self.clock, lambda key: None, lambda: None)
        self.said: list[Said] = []
        self.applied: list[str] = []
        self.ended: list[str] = []
        self.removed: list[str] = []
        self.turn = ""
        self.told: control_pb2.FunctionStatus | None = None  # of the leader
        self.version = 0
        self.kept: state_pb2.FunctionEntry | None = None

    async def lead(self) -> None:
        result = await self.store.txn(Txn((), (Put(KEYS.leader, b"me"),)))
        self.entries: Any = ObjectEntries(self.store, KEYS, self.clock, result.revision)
        self.reconciler = Reconciler(
            self.clock, self.objects, self.entries, self, self, self, self,  # type: ignore[arg-type]  # the rest is played by this world
            entry=self.entry, status=lambda uid: self.told, waiting=lambda uid: "", turn=lambda uid: self.turn, began=self.ended.append,
        )  # fmt: skip

    async def round(self, manifest: Data, *, generation: int, **annotations: str) -> None:
        self.version += 1
        metadata = {
            "namespace": KEY[0],
            "uid": "u",
            "generation": generation,
            "resourceVersion": str(self.version),
            "annotations": annotations,
        }
        found: Object = {**manifest, "metadata": {**manifest["metadata"], **metadata, "creationTimestamp": "2026-01-01T00:00:00Z"}}
        self.objects.take(found)
        assert await self.reconciler._round(KEY)

    # ---------------------------------------------------------------------------------- a mirror, an applier, credentials, a teller

    def entry(self, uid: str) -> state_pb2.FunctionEntry | None:
        return self.kept if self.kept is not None and self.kept.uid == uid else None

    async def wait_for(self, revision: int) -> bool:
        key = KEYS.function(*KEY)
        self.kept = state_pb2.FunctionEntry.FromString((await self.store.get([key]))[1][key].value)
        return True

    async def apply(self, entry: state_pb2.FunctionEntry) -> None:
        build_all(entry, ClusterSettings())
        self.applied.append(entry.revision)

    async def remove(self, entry: state_pb2.FunctionEntry) -> None:
        self.removed.append(entry.uid)

    async def ensure(self, entry: state_pb2.FunctionEntry) -> None: ...

    def forget(self, uid: str) -> None: ...

    async def tell(self, found: Object, told: object, said: list[Said]) -> None:
        self.said = said


@pytest.fixture
async def world() -> World:
    made = World()
    await made.lead()
    return made


async def test_another_value_of_the_annotation_reaches_the_registry_although_it_counts_no_generation(world: World) -> None:
    await world.round(onnx(), generation=1)
    await world.round(onnx(), generation=1)
    assert len(world.applied) == 1, "nothing changed"
    await world.round(onnx(), generation=1, **{names.REFRESH: "now"})
    assert len(set(world.applied)) == 2, "a new revision is a new Deployment, whose pod starts at once"
    await world.round(onnx(), generation=1, **{names.REFRESH: "now"})
    assert len(world.applied) == 2


async def test_a_change_that_the_api_server_should_have_refused_is_told_and_not_taken(world: World) -> None:
    await world.round(onnx(), generation=1)
    before = world.kept
    await world.round(onnx(sessions={"states": [{"input": "s", "output": "t", "shape": [1]}]}), generation=2)
    await world.reconciler._round(KEY)
    assert world.kept == before
    assert world.reconciler._known["u"].accepted is not None
    accepted = world.reconciler._known["u"].accepted
    assert (accepted.status, accepted.reason) == ("False", "ChangeRefused")
    assert "spec.sessions" in accepted.message
    assert accepted in world.said


async def test_what_this_version_does_not_understand_is_told_with_its_field(world: World) -> None:
    await world.round({**onnx(), "spec": {"runtime": "fortran"}}, generation=1)
    [accepted] = world.said
    assert (accepted.reason, world.kept) == ("Invalid", None)
    assert accepted.message.startswith("spec.runtime")


async def test_what_the_installations_policy_refuses_is_told_with_its_field_and_heals(world: World) -> None:
    asks = onnx(workers={"priorityClassName": "system-node-critical"})
    await world.round(asks, generation=1)
    await world.reconciler._round(KEY)
    [applied] = [each for each in world.said if each.type == "Applied"]
    assert (applied.status, applied.reason) == ("False", "NotAllowed")
    assert applied.message.startswith("spec.workers.priorityClassName: ")
    assert world.kept is not None
    problem = world.reconciler.refused("u", world.kept.revision)
    assert problem is not None
    assert world.reconciler.refused("u", "the next one") is None, "which was not tried yet"
    assert (problem.code, problem.reason) == (Code.FAILED_PRECONDITION, "NotAllowed")
    assert not world.applied
    await world.round(onnx(), generation=2)
    await world.reconciler._round(KEY)
    assert len(world.applied) == 1
    assert world.reconciler.refused("u", world.kept.revision) is None


async def test_a_worker_that_waits_for_its_turn_is_told_and_is_nothing_that_somebody_should_look_at(world: World) -> None:
    world.turn, world.told = "it waits for its turn to start; workers that are starting: 4", control_pb2.FunctionStatus()
    await world.round(onnx(), generation=1)
    said = Said("Scheduled", "False", "WaitsForTurn", "It waits for its turn to start; workers that are starting: 4.")
    assert said in world.said
    assert not said.bad
    world.turn = ""
    await world.round(onnx(), generation=1)
    assert [each for each in world.said if each.type == "Scheduled"] == []


@pytest.mark.parametrize("fault", [None, FULL, FULL_APPLIED], ids=["room", "full", "full-and-written"])
async def test_the_deletion_of_a_function_whose_object_is_gone_begins_once_also_in_a_full_store(world: World, fault: Fault | None) -> None:
    """A full store takes no mark, and what follows it are deletions, so the leader is told, and nothing else says that it is deleted."""
    await world.round(onnx(), generation=1)
    await world.reconciler.gone(*KEY, "another")
    assert world.ended == []
    if fault is not None:
        world.store.fault("txn", fault)
    for _ in range(2):
        await world.reconciler.gone(*KEY, "u")
    assert (world.ended, world.removed[-1]) == (["u"], "u")
    _, items = await world.store.get([KEYS.function(*KEY)])
    marked = state_pb2.FunctionEntry.FromString(items[KEYS.function(*KEY)].value).deleting
    assert (marked, world.entries.ending) == ((False, {"u"}) if fault is FULL else (True, set()))
    if fault is FULL:
        world.entries.ending.clear()  # the next leader, which knows of no deletion, has no object either
        await world.reconciler.gone(*KEY, "u")
        assert world.ended == ["u", "u"]
    wanted = parse_manifest(onnx())
    with pytest.raises(NameInUse):
        await world.entries.keep({"metadata": {**onnx()["metadata"], "uid": "next"}}, wanted)
