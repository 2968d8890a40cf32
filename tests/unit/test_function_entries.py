"""Apply, scale, delete on a store in memory: what is written, what is refused, and two people at once."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import yaml
from dormouse_core import editions
from dormouse_core.errors import Aborted, DataLoss, FailedPrecondition, InvalidArgument, NotFound, Unavailable
from dormouse_core.seams import Delete, Put, Txn
from dormouse_core.spec import FunctionSpec, spec_from_json
from dormouse_operator.function_entries import FunctionEntries
from dormouse_proto import state_pb2
from dormouse_testing import simloop
from dormouse_testing.clock import SimClock
from dormouse_testing.leader_world import KEYS, manifest
from dormouse_testing.memory_store import REPLY_LOST, MemoryStore

Story = Callable[[FunctionEntries, MemoryStore], Awaitable[None]]


def on_a_store(story: Story) -> None:
    async def main() -> None:
        store = MemoryStore(SimClock())
        result = await store.txn(Txn((), (Put(KEYS.leader, b"me"),)))
        await story(FunctionEntries(store, KEYS, SimClock(), result.revision), store)
        await store.close()

    simloop.run(main())


def with_spec(**fields: Any) -> str:
    """A manifest of v2.onnx with these fields; None: without."""
    data = yaml.safe_load(manifest("v2.onnx"))
    data["spec"] = {name: value for name, value in {**data["spec"], **fields}.items() if value is not None}
    return json.dumps(data)


async def entry_of(store: MemoryStore) -> state_pb2.FunctionEntry:
    key = KEYS.function("ns", "fn")
    return state_pb2.FunctionEntry.FromString((await store.get([key]))[1][key].value)


def test_created_unchanged_configured() -> None:
    async def story(entries: FunctionEntries, store: MemoryStore) -> None:
        made, outcome, revision = await entries.apply(manifest())
        assert (outcome, made.shards, made.generation, made.namespace) == ("created", 64, 1, "ns")
        assert (await entries.apply(manifest()))[1:] == ("unchanged", revision)
        changed, outcome, _ = await entries.apply(manifest(idle="5s"))
        assert (outcome, changed.uid, changed.generation) == ("configured", made.uid, 2)
        assert changed.revision == made.revision, "scaling makes no revision"
        other, _, _ = await entries.apply(manifest("v2.onnx"))
        assert other.revision != made.revision
        assert await entry_of(store) == other

    on_a_store(story)


def test_a_restored_function_is_as_any_other_once_somebody_speaks_of_it() -> None:
    async def story(entries: FunctionEntries, store: MemoryStore) -> None:
        for spoken in (lambda: entries.apply(manifest()), lambda: entries.scale("ns", "fn", 1), lambda: entries.delete("ns", "fn")):
            made, _, _ = await entries.apply(manifest(idle="9s"))
            made.restored = True
            await store.txn(Txn((), (Put(KEYS.function("ns", "fn"), made.SerializeToString()),)))
            await spoken()
            assert not (await entry_of(store)).restored

    on_a_store(story)


def test_a_new_revision_has_no_problem_and_keeps_the_proof_of_the_old() -> None:
    async def story(entries: FunctionEntries, store: MemoryStore) -> None:
        made, _, _ = await entries.apply(manifest())
        made.proved_revision = made.revision
        made.problem.message = "404"
        await store.txn(Txn((), (Put(KEYS.function("ns", "fn"), made.SerializeToString()),)))
        scaled, _, _ = await entries.apply(manifest(idle="7s"))
        assert scaled.problem.message == "404", "scaling heals nothing"
        changed, _, _ = await entries.apply(manifest("v2.onnx"))
        assert not changed.HasField("problem")
        assert changed.proved_revision == made.revision
        assert changed.proved_spec == scaled.spec, "it can be started until the new one is proved"
        third, _, _ = await entries.apply(manifest("v3.onnx"))
        assert third.proved_spec == scaled.spec, "never that of one that was not proved"
        back, _, _ = await entries.apply(manifest(idle="9s"))
        assert (back.revision, back.proved_spec) == (made.revision, b"")

    on_a_store(story)


def test_other_bytes_under_the_same_uri_are_a_new_revision_and_what_was_refused_is_tried_again() -> None:
    async def main() -> None:
        lies, store = ["a"], MemoryStore(SimClock())
        result = await store.txn(Txn((), (Put(KEYS.leader, b"me"),)))

        async def content(spec: FunctionSpec) -> str:
            assert spec.model is not None
            return lies[0] if spec.model.uri.startswith("file:") else ""

        entries = FunctionEntries(store, KEYS, SimClock(), result.revision, content)

        async def prove(entry: state_pb2.FunctionEntry, content: str) -> None:
            entry.proved_revision = entry.revision
            editions.remember(entry, entry.revision, content)
            await store.txn(Txn((), (Put(KEYS.function("ns", "fn"), entry.SerializeToString()),)))

        first, outcome, _ = await entries.apply(manifest())
        await prove(first, "a")
        assert (await entries.apply(manifest()))[1] == "unchanged"
        lies[0] = "b"
        assert (await entries.scale("ns", "fn", 1))[0].revision == first.revision, "scaling reads nothing"
        second, outcome, _ = await entries.apply(manifest())
        assert outcome == "refreshed"
        assert second.revision != first.revision
        assert (second.proved_revision, second.proved_spec) == (first.revision, second.spec), "the one before serves on"
        lies[0] = "a"
        assert (await entries.apply(manifest()))[0].revision == first.revision, "put back, it is the revision of before"
        await entries.apply(manifest("v2.onnx"))
        lies[0] = "b"
        back, _, _ = await entries.apply(manifest())
        assert back.revision == second.revision, "a rollback to a spec whose bytes changed is not a rollback to the first revision"

        back.problem.message = "opset 99"
        await store.txn(Txn((), (Put(KEYS.function("ns", "fn"), back.SerializeToString()),)))
        again, outcome, _ = await entries.apply(manifest())
        assert (outcome, again.HasField("problem")) == ("refreshed", False)
        assert again.revision != back.revision, "so that its worker starts at once"
        assert (await entries.apply(manifest()))[1] == "unchanged"
        assert (await entries.apply(manifest(), refresh=True))[1] == "refreshed"
        await store.close()

    simloop.run(main())


def test_what_may_not_change_is_refused_and_nothing_is_written() -> None:
    async def story(entries: FunctionEntries, store: MemoryStore) -> None:
        made, _, _ = await entries.apply(manifest())
        with pytest.raises((FailedPrecondition, InvalidArgument), match="shards"):
            await entries.apply(manifest(shards=8))
        with pytest.raises(InvalidArgument):
            await entries.apply("kind: Nothing")
        assert await entry_of(store) == made

    on_a_store(story)


def test_who_scaled_by_hand_keeps_it_until_they_say_auto() -> None:
    async def story(entries: FunctionEntries, store: MemoryStore) -> None:
        await entries.apply(manifest())
        await entries.scale("ns", "fn", 3)
        entry, outcome, _ = await entries.apply(manifest())
        assert (outcome, spec_from_json(entry.spec).replicas) == ("unchanged", 3)
        entry, _, _ = await entries.apply(manifest("v2.onnx"))
        assert spec_from_json(entry.spec).replicas == 3
        kept, revision = await entries.scale("ns", "fn", 3)
        assert (kept, revision) == (entry, (await store.get([KEYS.function("ns", "fn")]))[1][KEYS.function("ns", "fn")].mod_revision)
        entry, _, _ = await entries.apply(with_spec(replicas=1))
        assert spec_from_json(entry.spec).replicas == 1, "a manifest that says a number is obeyed"
        entry, _ = await entries.scale("ns", "fn", None)
        assert spec_from_json(entry.spec).replicas is None
        entry, _, _ = await entries.apply(with_spec(replicas=1))
        assert spec_from_json(entry.spec).replicas == 1
        for wrong in (-1, 1_001):
            with pytest.raises(InvalidArgument, match="replicas"):
                await entries.scale("ns", "fn", wrong)

    on_a_store(story)


def test_an_entry_that_cannot_be_read_is_not_written_over() -> None:
    """As a later release may have written it."""

    async def story(entries: FunctionEntries, store: MemoryStore) -> None:
        await store.txn(Txn((), (Put(KEYS.function("ns", "fn"), b"\xff"),)))
        for asked in (entries.apply(manifest()), entries.scale("ns", "fn", 1), entries.delete("ns", "fn")):
            with pytest.raises(DataLoss, match="ns/fn cannot be changed"):
                await asked
        assert (await store.get([KEYS.function("ns", "fn")]))[1][KEYS.function("ns", "fn")].value == b"\xff"

    on_a_store(story)


def test_a_stateless_function_has_no_shards() -> None:
    async def story(entries: FunctionEntries, store: MemoryStore) -> None:
        assert (await entries.apply(with_spec(sessions=None)))[0].shards == 0

    on_a_store(story)


def test_deleting_marks_once_and_refuses_the_rest() -> None:
    async def story(entries: FunctionEntries, store: MemoryStore) -> None:
        with pytest.raises(NotFound, match="no function ns/fn"):
            await entries.delete("ns", "fn")
        with pytest.raises(NotFound, match="no function ns/fn"):
            await entries.scale("ns", "fn", 1)
        await entries.apply(manifest())
        revision = await entries.delete("ns", "fn")
        assert await entries.delete("ns", "fn") == revision
        for asked in (entries.apply(manifest()), entries.scale("ns", "fn", 1)):
            with pytest.raises(FailedPrecondition, match="is being deleted"):
                await asked

    on_a_store(story)


def test_two_people_at_once_get_one_after_the_other() -> None:
    async def story(entries: FunctionEntries, store: MemoryStore) -> None:
        await entries.apply(manifest())
        await asyncio.gather(*(entries.scale("ns", "fn", n) for n in range(1, 5)))
        entry = await entry_of(store)
        assert entry.generation == 5

    on_a_store(story)


def test_a_leader_of_before_writes_nothing() -> None:
    async def story(entries: FunctionEntries, store: MemoryStore) -> None:
        await entries.apply(manifest())
        before = await entry_of(store)
        await store.txn(Txn((), (Delete(KEYS.leader),)))
        await store.txn(Txn((), (Put(KEYS.leader, b"another"),)))
        with pytest.raises(Aborted, match="no longer leads"):
            await entries.scale("ns", "fn", 2)
        assert await entry_of(store) == before

    on_a_store(story)


def test_an_unknown_outcome_is_said_and_asking_again_is_safe() -> None:
    async def story(entries: FunctionEntries, store: MemoryStore) -> None:
        store.fault("txn", REPLY_LOST)
        with pytest.raises(Unavailable, match="is not known"):
            await entries.apply(manifest())
        assert (await entries.apply(manifest()))[1] == "unchanged"

    on_a_store(story)
