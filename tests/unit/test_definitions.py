"""A definition in the cluster that is older than the operator: which fields it lacks is said, and what would be dropped is not written."""

import copy
from typing import Any

import pytest
from dormouse_core.spec import definitions, schema
from dormouse_core.spec.objects import GROUP, KIND, VERSION
from dormouse_operator.kubernetes import metrics
from dormouse_operator.kubernetes.api.http import ApiError
from dormouse_operator.kubernetes.api.kinds import EVENTS, FUNCTIONS
from dormouse_operator.kubernetes.settings import ClusterSettings
from dormouse_operator.kubernetes.telling.own_events import OwnEvents
from dormouse_operator.kubernetes.telling.teller import Teller
from dormouse_operator.kubernetes.watching.defining import NAMED, PATH, REASON, Defining
from dormouse_proto import control_pb2
from dormouse_testing.clock import ManualClock
from dormouse_testing.memory_api import MemoryApi

LACKED = ["spec.sessions.ttl", "spec.batching", "spec.sessions.states[].initial", "status.wantedRevision"]


def without(*paths: str) -> dict[str, Any]:
    """The schema of a definition that lacks these."""
    root = copy.deepcopy(schema.root())
    for path in paths:
        node = root
        *way, last = path.split(".")
        for step in way:
            node = node["properties"][step.removesuffix("[]")]
            node = node["items"] if step.endswith("[]") else node
        del node["properties"][last]
    return root


def published(served: dict[str, Any]) -> dict[str, Any]:
    kind = {"group": GROUP, "version": VERSION, "kind": KIND}
    return {
        "components": {
            "schemas": {
                "dev.dormouse.Other": {"x-kubernetes-group-version-kind": [{**kind, "kind": "Other"}]},
                "dev.dormouse.One": {**served, "x-kubernetes-group-version-kind": [kind]},
            }
        }
    }


def said(api: MemoryApi) -> list[tuple[str, str]]:
    return [(each["type"], each["message"]) for (plural, _, _), each in api.objects.items() if plural == EVENTS.plural]


def test_what_a_definition_lacks_is_named_by_its_path_and_nothing_else_is() -> None:
    assert definitions.lacks(schema.root()) == []
    assert sorted(definitions.lacks(without(*LACKED))) == sorted(LACKED)
    newer = copy.deepcopy(schema.root())
    newer["properties"]["spec"]["properties"]["later"] = {"type": "string"}
    assert definitions.lacks(newer) == [], "a newer one has all of ours"
    assert "spec.runtime" in definitions.lacks({}), "one that describes nothing keeps nothing"
    open_spec = without()
    open_spec["properties"]["spec"] = {"type": "object", definitions.OPEN: True}
    assert definitions.lacks(open_spec) == [], "it keeps whatever comes"


def test_the_schema_is_found_among_what_the_server_publishes() -> None:
    served = definitions.schema_of(published(without("spec.batching")), GROUP, VERSION, KIND)
    assert served is not None
    assert definitions.lacks(served) == ["spec.batching"]
    assert definitions.schema_of({}, GROUP, VERSION, KIND) is None


async def test_the_operator_says_what_is_dropped_once_and_when_it_is_mended() -> None:
    api, clock = MemoryApi(), ManualClock()
    found = Defining(api, clock, OwnEvents(api, clock, "system", "operator-1"))
    api.documents[PATH] = published(without(*LACKED))
    for _ in range(3):
        await found.look()
    [(kind, message)] = said(api)
    assert kind == "Warning"
    assert all(path in message for path in LACKED)
    assert "crds/inferencefunctions.yaml" in message
    assert metrics.LACKS._value.get() == len(LACKED)
    api.refuse = ApiError(0, "NoAnswer", "the API server does not answer")
    await found.look()
    assert sorted(found.lacks) == sorted(LACKED), "what cannot be read says nothing"
    api.refuse = None
    api.documents[PATH] = {}
    await found.look()
    assert found.lacks, "nor does a document without it"
    api.documents[PATH] = published(schema.root())
    await found.look()
    assert (found.lacks, metrics.LACKS._value.get(), len(said(api))) == ((), 0, 1)
    api.documents[PATH] = published(without(*LACKED))
    await found.look()
    assert len(said(api)) == 2, "it was put back"
    assert [each["reason"] for (plural, _, _), each in api.objects.items() if plural == EVENTS.plural] == [REASON] * 2


async def test_of_many_fields_the_first_are_named_and_the_others_counted() -> None:
    api, clock = MemoryApi(), ManualClock()
    found = Defining(api, clock, OwnEvents(api, clock, "system", "operator-1"))
    names = [f"spec.{name}" for name in schema.root()["properties"]["spec"]["properties"]]
    api.documents[PATH] = published(without(*names))
    await found.look()
    [(_, message)] = said(api)
    assert f"{names[0]}," in message
    assert (f" and {len(names) - NAMED} more" in message) == (len(names) > NAMED)


@pytest.mark.parametrize("known", [True, False])
async def test_a_status_field_that_is_dropped_is_not_written_again_and_again(known: bool) -> None:
    """The negative control is the operator that does not know what is dropped."""

    class Dropping(MemoryApi):
        async def patch(self, kind: Any, namespace: str, name: str, changes: Any, *, part: str = "") -> Any:
            changes["status"].pop("wantedRevision", None)
            return await super().patch(kind, namespace, name, changes, part=part)

    api, clock = Dropping(), ManualClock()
    lacks = ("spec.batching", "status.wantedRevision") if known else ()
    teller = Teller(api, clock, ClusterSettings(), "operator-1", lambda: lacks)
    found = api.put(FUNCTIONS, {"metadata": {"namespace": "ns", "name": "f", "uid": "u", "generation": 1}})
    told = control_pb2.FunctionStatus(phase="Ready", revision="r1", wanted_revision="r1")
    for _ in range(5):
        found = await teller.tell(found, told, [], 1) or found
        clock.advance(60)
    assert len([what for _, what in api.written if what == "patched"]) == (1 if known else 5)
