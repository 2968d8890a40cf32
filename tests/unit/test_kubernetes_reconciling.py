"""One object's round: what of it reaches the registry, and what its conditions then say."""

import base64
from dataclasses import replace
from typing import Any

import pytest
from dormouse_core.autoscaling import Decision
from dormouse_core.errors import Code
from dormouse_core.keys import Keys
from dormouse_core.observations import FunctionSeen
from dormouse_core.seams import Delete, Put, Txn
from dormouse_core.spec import parse_manifest
from dormouse_core.spec.status import UNSEEN
from dormouse_operator.kubernetes.api.http import Object
from dormouse_operator.kubernetes.api.kinds import APPLIED, DEPLOYMENTS, SECRETS
from dormouse_operator.kubernetes.api.known import Objects
from dormouse_operator.kubernetes.api.reflecting import Reflector
from dormouse_operator.kubernetes.objects import names
from dormouse_operator.kubernetes.objects.applying import Applier
from dormouse_operator.kubernetes.objects.manifests import build_all
from dormouse_operator.kubernetes.objects.object_entries import NameInUse, ObjectEntries
from dormouse_operator.kubernetes.settings import ClusterSettings
from dormouse_operator.kubernetes.telling.statuses import Said, build_status
from dormouse_operator.kubernetes.watching.reconciling import Reconciler
from dormouse_operator.kubernetes.watching.surveying import Survey
from dormouse_operator.status import Times, status
from dormouse_proto import control_pb2, state_pb2
from dormouse_testing.clock import SimClock
from dormouse_testing.functions_seen import worker
from dormouse_testing.manifests import Data, onnx, python, stateful
from dormouse_testing.memory_api import MemoryApi
from dormouse_testing.memory_store import FULL, FULL_APPLIED, REQUEST_LOST, Fault, MemoryStore
from dormouse_testing.namespaces_served import everywhere
from dormouse_testing.waiting import kstatus_waits, kubectl_waits

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
        self.let_be: set[str] = set()  # namespaces whose labels do not match
        self.version = 0
        self.seen: control_pb2.FunctionStatus | None = None  # what the leader says
        self.status: Object = {"observedGeneration": UNSEEN}  # the object's, as the definition has it begin
        self.kept: state_pb2.FunctionEntry | None = None

    async def lead(self) -> None:
        result = await self.store.txn(Txn((), (Put(KEYS.leader, b"me"),)))
        self.entries: Any = ObjectEntries(self.store, KEYS, self.clock, result.revision)
        self.reconciler = Reconciler(
            self.clock, self.objects, self.entries, self, self, self, self,  # type: ignore[arg-type]  # the rest is played by this world
            entry=self.entry, status=lambda uid: self.seen, waiting=lambda uid: "", turn=lambda uid: self.turn, began=self.ended.append,
            serves=lambda namespace: namespace not in self.let_be,
        )  # fmt: skip

    async def round(self, manifest: Data, *, generation: int, **annotations: str) -> None:
        self.apply_object(manifest, generation, annotations)
        assert await self.reconciler._round(KEY)

    def apply_object(self, manifest: Data, generation: int, annotations: dict[str, str] | None = None) -> None:
        """What `kubectl apply` does: the operator has not looked yet."""
        self.version += 1
        metadata = {
            "namespace": KEY[0],
            "uid": "u",
            "generation": generation,
            "resourceVersion": str(self.version),
            "annotations": annotations or {},
            "creationTimestamp": "2026-01-01T00:00:00Z",
        }
        self.objects.take({**manifest, "metadata": {**manifest["metadata"], **metadata}, "status": self.status})

    @property
    def found(self) -> Object:
        return {**self.objects.items[KEY], "status": self.status}

    def leads(self, *, proved: str, problem: bool = False, workers: str = "") -> None:
        """The leader looks at the entry, of which `proved` is the revision that a worker has loaded, and `workers` those that run."""
        assert self.kept is not None
        entry = state_pb2.FunctionEntry()
        entry.CopyFrom(self.kept)
        entry.proved_revision = proved
        if proved != entry.revision:
            entry.proved_spec = entry.spec
        if problem:
            entry.problem.CopyFrom(
                state_pb2.Problem(code=9, reason="ModelInvalid", message="hello.py has no Nope", revision=entry.revision)
            )
        seen = FunctionSeen(entry, 1, 1, {"w": worker("w", revision=workers)} if workers else {})
        self.seen = status(seen, Decision(len(seen.workers), "by load"), Times(), 5)

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

    async def tell(self, found: Object, told: control_pb2.FunctionStatus | None, said: list[Said], generation: int) -> None:
        self.said = said
        self.status = build_status({**found, "status": self.status}, told, said, ClusterSettings(), self.clock.now(), generation)


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
    await world.round(onnx(), generation=1)
    world.leads(proved="")
    world.turn = "it waits for its turn to start; workers that are starting: 4"
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


# ------------------------------------------------------------------------------------------------- whether it is as it was applied


def waits(world: World) -> bool:
    assert kubectl_waits(world.found) == kstatus_waits(world.found)
    return kubectl_waits(world.found)


async def served(world: World) -> str:
    """The revision that is served, and ready."""
    await world.round(python(), generation=1)
    assert waits(world), "the registry has it, and nobody has looked at its workers"
    assert world.kept is not None
    revision = world.kept.revision
    world.leads(proved=revision, workers=revision)
    await world.reconciler._round(KEY)
    assert not waits(world)
    return revision


async def test_who_waits_for_ready_waits_for_the_spec_that_was_applied(world: World) -> None:
    """From the moment in which it was applied; the revision before serves, and a condition of its own says so."""
    first = await served(world)
    world.apply_object(python(handler="hello:Nope"), 2)
    assert waits(world), "before the operator has looked"
    await world.reconciler._round(KEY)
    assert waits(world), "the leader has looked at nothing but the spec before: nothing is written"
    assert world.status["observedGeneration"] == 1
    for problem in (False, True):
        world.leads(proved=first, problem=problem, workers=first)
        await world.reconciler._round(KEY)
        assert waits(world)
        assert (world.status["observedGeneration"], world.status["phase"]) == (2, "Serving")
        assert not kubectl_waits(world.found, "Serving")
    ready = next(c for c in world.status["conditions"] if c["type"] == "Ready")
    assert (ready["status"], ready["reason"]) == ("False", "ModelInvalid")
    assert world.kept is not None
    world.leads(proved=world.kept.revision, workers=world.kept.revision)
    await world.reconciler._round(KEY)
    assert not waits(world)


async def test_negative_control_what_the_leader_sees_of_an_earlier_spec_would_be_told_of_the_new_one(world: World) -> None:
    await served(world)
    world.apply_object(python(handler="hello:Nope"), 2)
    await world.reconciler._accept(world.objects.items[KEY], world.reconciler._known["u"])
    world.reconciler._known["u"].entered = 0
    await world.reconciler._round(KEY)
    assert not waits(world)


async def test_a_spec_that_is_refused_is_not_ready_while_the_one_before_serves(world: World) -> None:
    first = await served(world)
    await world.round(stateful(), generation=2)
    await world.reconciler._round(KEY)
    assert world.kept is not None
    assert world.kept.revision == first
    assert waits(world)
    ready = next(c for c in world.status["conditions"] if c["type"] == "Ready")
    assert (ready["status"], ready["reason"], ready["observedGeneration"]) == ("False", "ChangeRefused", 2)
    assert not kubectl_waits(world.found, "Serving")
    assert world.status["phase"] == "Serving"
    await world.round(python(), generation=3)
    assert not waits(world), "it was put back"


async def test_while_the_store_does_not_answer_nothing_is_said_of_the_new_spec(world: World) -> None:
    await served(world)
    world.store.fault("txn", REQUEST_LOST)
    world.apply_object(python(maxConcurrency=7), 2)
    assert not await world.reconciler._round(KEY)
    assert (world.status["observedGeneration"], waits(world)) == (1, True)
    assert await world.reconciler._round(KEY), "it is tried again"


async def test_stopped_is_not_ready_from_the_first_word_on(world: World) -> None:
    """Whatever was decided before it was stopped."""
    revision = await served(world)
    await world.round(python(replicas=0), generation=2)
    assert waits(world)
    world.leads(proved=revision, workers=revision)
    await world.reconciler._round(KEY)
    assert (waits(world), world.status["phase"], world.status["observedGeneration"]) == (True, "Stopped", 2)


async def kept_of_a_namespace_that_is_let_be(world: World) -> tuple[int, int]:
    """The revisions of a function before and after its object was changed there; and after the namespace matched again."""
    await world.round(python(), generation=1)
    [before] = world.applied
    world.let_be = {KEY[0]}
    world.said = []
    await world.round(python(handler="chat:Other"), generation=2)
    meanwhile = len(world.applied) - 1
    assert (world.ended, world.removed) == ([], []), "what there is goes on"
    world.let_be = set()
    await world.reconciler._round(KEY)
    return meanwhile, len(set(world.applied) - {before})


async def test_changes_in_a_namespace_whose_labels_do_not_match_are_taken_when_they_do_again(world: World) -> None:
    assert await kept_of_a_namespace_that_is_let_be(world) == (0, 1)


async def test_negative_control_without_asking_for_labels_they_would_be_taken_at_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.reconciler._serves = lambda namespace: True
    assert await kept_of_a_namespace_that_is_let_be(world) == (1, 1)


class Kept:
    """A function in a namespace that is let be, what it consists of, and an applier of its installation."""

    def __init__(self, world: World) -> None:
        self.world, self.api = world, MemoryApi()
        self.settings = ClusterSettings(store_secret=b"s", store_ca="before")
        self.copies = {kind: Reflector(self.api, world.clock, kind) for kind in APPLIED if kind is not SECRETS}
        self.applier = Applier(self.api, self.settings, self.copies)
        world.reconciler._applier = self.applier

    async def begin(self) -> None:
        await self.world.round(onnx(), generation=1)
        self.world.let_be, self.world.said = {KEY[0]}, []
        self.api.written.clear()

    async def round(self) -> list[tuple[str, str]]:
        """What is written when something about it may have changed."""
        for kind, copied in self.copies.items():
            found = {key[1:]: item for key, item in self.api.objects.items() if key[0] == kind.plural}
            copied.items = {key: item for key, item in found.items() if item["metadata"]["labels"][names.INSTALLATION] == "default"}
        self.api.written.clear()
        assert self.world.kept is not None
        self.applier.doubt(self.world.kept)
        self.world.reconciler._known["u"].tried = None
        await self.world.reconciler._round(KEY)
        assert self.world.said == [], "its status is another's to write"
        return self.api.written

    def authority(self) -> str:
        [secret] = [item for key, item in self.api.objects.items() if key[0] == SECRETS.plural]
        return base64.b64decode(secret["data"]["ca.crt"]).decode()


async def test_what_is_let_be_is_kept_alive_with_credentials_of_now_and_what_goes_is_made_again(world: World) -> None:
    kept = Kept(world)
    await kept.begin()
    before = world.kept
    world.apply_object(onnx(model={"uri": "https://h/other.onnx"}), 2)
    assert await kept.round() == []
    kept.applier.settings = replace(kept.settings, store_ca="renewed")
    assert (names.secret(KEY[1]), "replaced") in await kept.round()
    assert kept.authority() == "renewed"
    [name] = [key for key in kept.api.objects if key[0] == DEPLOYMENTS.plural]
    del kept.api.objects[name]
    assert await kept.round() == [(name[2], "created")]
    assert world.kept == before, "what people wrote is not taken"


async def test_what_is_let_be_is_not_kept_where_another_installation_serves_it(world: World) -> None:
    kept = Kept(world)
    await kept.begin()
    assert world.kept is not None
    kept.api.objects.clear()
    theirs = replace(kept.settings, installation="b")
    await Applier(kept.api, theirs, {kind: Reflector(kept.api, world.clock, kind) for kind in kept.copies}).apply(world.kept)
    assert await kept.round() == []


async def test_of_a_namespace_that_was_never_served_nothing_is_kept(world: World) -> None:
    world.let_be = {KEY[0]}
    await world.round(onnx(), generation=1)
    assert (world.applied, world.kept, world.reconciler._known) == ([], None, {})


async def test_negative_control_without_rounds_workers_there_keep_the_authority_that_ends(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nothing(self: Reconciler, uid: str) -> bool:
        return True

    monkeypatch.setattr(Reconciler, "_keep", nothing)
    kept = Kept(world)
    await kept.begin()
    kept.applier.settings = replace(kept.settings, store_ca="renewed")
    assert await kept.round() == []
    assert kept.authority() == "before"


async def test_the_registry_is_whole_when_each_object_has_its_entry_or_was_refused(world: World) -> None:
    """Before, a function that the store lacks may exist: see `absences`."""
    survey = Survey(
        None, world.clock, (), world.objects, world.reconciler, world, everywhere(), registered=dict, deaf=lambda: None  # type: ignore[arg-type]
    )  # fmt: skip
    assert not survey.whole(), "no list was read"
    world.objects.listed([], {"": 0})
    assert survey.whole(), "there is none"
    world.store.fault("txn", REQUEST_LOST)
    world.apply_object(python(), 1)
    assert not survey.whole()
    assert not await world.reconciler._round(KEY)
    assert not survey.whole(), "the store did not answer"
    assert await world.reconciler._round(KEY)
    assert survey.whole()
    world.reconciler._known.clear()
    world.kept = None
    await world.round({**python(), "spec": {"runtime": "fortran"}}, generation=2)
    assert survey.whole(), "one that is refused keeps nobody waiting"


async def test_an_object_that_waits_for_its_name_will_have_an_entry_and_the_registry_is_not_whole_without(world: World) -> None:
    """After a restore each object of another uid does so, and its callers would be told that there is no such function."""
    key = KEYS.function(*KEY)
    await world.store.txn(Txn((), (Put(key, state_pb2.FunctionEntry(uid="restored", deleting=True).SerializeToString()),)))
    survey = Survey(
        None, world.clock, (), world.objects, world.reconciler, world, everywhere(), registered=dict, deaf=lambda: None  # type: ignore[arg-type]
    )  # fmt: skip
    world.objects.listed([], {"": 0})
    world.apply_object(python(), 1)
    assert not await world.reconciler._round(KEY)
    assert [(said.status, said.reason) for said in world.said if said.type == "Accepted"] == [("False", "NameInUse")]
    assert not survey.whole()
    await world.store.txn(Txn((), (Delete(key),)))
    assert await world.reconciler._round(KEY)
    assert survey.whole()


@pytest.mark.parametrize("key", [KEYS.retained(*KEY), KEYS.function(*KEY)], ids=["kept sessions", "the entry"])
async def test_what_the_store_has_and_nobody_can_read_is_told_and_heals(world: World, key: str) -> None:
    await world.store.txn(Txn((), (Put(key, b"\xff\xff"),)))
    survey = Survey(
        None, world.clock, (), world.objects, world.reconciler, world, everywhere(), registered=dict, deaf=lambda: None  # type: ignore[arg-type]
    )  # fmt: skip
    world.objects.listed([], {"": 0})
    for _ in range(2):
        await world.round(stateful(), generation=1)
        (accepted,) = [said for said in world.said if said.type == "Accepted"]
        assert (accepted.status, accepted.reason) == ("False", "Unreadable")
        assert key in accepted.message
    assert survey.whole(), "one that is refused keeps nobody waiting"
    await world.store.txn(Txn((), (Delete(key),)))
    await world.round(stateful(), generation=1)
    assert world.kept is None, "it is looked at now and then"
    world.reconciler.retry()
    await world.round(stateful(), generation=1)
    assert world.kept is not None
    assert world.applied == [world.kept.revision]


async def test_a_namespaces_label_that_was_set_right_is_noticed_without_an_edit_of_the_object(world: World) -> None:
    kept = state_pb2.Retained(store_id="old", shards=64, tenant="red")
    await world.store.txn(Txn((), (Put(KEYS.retained(*KEY), kept.SerializeToString()),)))
    await world.round(stateful(), generation=1)
    assert [(said.status, said.reason) for said in world.said if said.type == "Accepted"] == [("False", "ChangeRefused")]

    async def red(namespace: str) -> str:
        return "red"

    world.entries._tenant = red
    await world.round(stateful(), generation=1)
    assert world.kept is None
    world.reconciler.retry()
    await world.round(stateful(), generation=1)
    assert world.kept is not None
    assert (world.kept.store_id, world.kept.tenant) == ("old", "red")


async def test_negative_control_without_a_first_generation_flux_would_take_a_new_object_for_ready(world: World) -> None:
    world.apply_object(python(), 1)
    assert kstatus_waits(world.found)
    world.status = {}
    assert not kstatus_waits(world.found)
