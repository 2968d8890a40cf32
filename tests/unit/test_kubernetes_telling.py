"""What happened to a function is said once: in its status, as an Event, and in the log, in the same words."""

import logging
from typing import Any

import pytest
from dormouse_operator.kubernetes.api.http import ApiError, Object
from dormouse_operator.kubernetes.api.kinds import EVENTS, FUNCTIONS, Kind
from dormouse_operator.kubernetes.settings import ClusterSettings
from dormouse_operator.kubernetes.telling.statuses import Said
from dormouse_operator.kubernetes.telling.teller import SELDOM, Teller
from dormouse_proto import control_pb2
from dormouse_testing.clock import ManualClock
from dormouse_testing.memory_api import MemoryApi

ACCEPTED = Said("Accepted", "True", "Accepted", "The object is valid.")
READY = Said("Ready", "True", "Ready", "It serves.")
INVALID = Said("ModelReady", "False", "ModelInvalid", "m.onnx: no such operator.")


class Server(MemoryApi):
    """Names Events as a server does. `without`: the kinds that it refuses to write."""

    def __init__(self) -> None:
        super().__init__()
        self.without: dict[Kind, ApiError] = {}

    async def create(self, kind: Kind, manifest: Object) -> Object:
        if kind in self.without:
            raise self.without[kind]
        metadata = manifest["metadata"]
        name = f"{metadata['generateName']}{len(self.objects)}"
        return await super().create(kind, {**manifest, "metadata": {**metadata, "name": name}})

    async def patch(self, kind: Kind, namespace: str, name: str, changes: Object, *, part: str = "") -> Object:
        if kind in self.without:
            raise self.without[kind]
        assert part == "status"
        assert changes["metadata"] == {"uid": "u"}, "another object of the name is not written to"
        return await super().patch(kind, namespace, name, changes, part=part)


class World:
    def __init__(self) -> None:
        self.api, self.clock = Server(), ManualClock()
        self.found: Object = self.api.put(FUNCTIONS, {"metadata": {"namespace": "ns", "name": "f", "uid": "u", "generation": 1}})
        self.teller = Teller(self.api, self.clock, ClusterSettings(), "operator-1")

    async def tell(self, *conditions: Said, said: list[Said] | None = None, **fields: Any) -> bool:
        """Whether it was written."""
        what = control_pb2.FunctionStatus(**{"phase": "Ready", "replicas": 1, "reason": "one call", **fields})
        for each in conditions:
            what.conditions.add(type=each.type, status=each.status, reason=each.reason, message=each.message)
        written = await self.teller.tell(self.found, what, [ACCEPTED] if said is None else said, 1)
        self.found = written or self.found
        return written is not None

    @property
    def events(self) -> list[Object]:
        return [each for (plural, _, _), each in self.api.objects.items() if plural == EVENTS.plural]

    @property
    def sentences(self) -> list[str]:
        return [each["message"] for each in self.events]


async def test_nothing_is_written_where_nothing_changed() -> None:
    world = World()
    assert await world.tell(READY)
    before = list(world.api.written)
    world.clock.advance(1_000)
    assert not await world.tell(READY)
    assert world.api.written == before


async def test_a_condition_and_its_event_and_the_log_are_one_sentence(events: pytest.LogCaptureFixture) -> None:
    world = World()
    await world.tell(INVALID)
    [kept] = [each for each in world.found["status"]["conditions"] if each["type"] == "ModelReady"]
    [event] = [each for each in world.events if each["reason"] == "ModelInvalid"]
    [record] = [each for each in events.records if INVALID.message in each.getMessage()]
    assert kept["message"] == event["message"] == INVALID.message
    assert (event["type"], record.levelno) == ("Warning", logging.WARNING)
    await world.tell(READY)
    [event] = [each for each in world.events if each["reason"] == "Ready"]
    [record] = [each for each in events.records if READY.message in each.getMessage()]
    assert (event["type"], record.levelno) == ("Normal", logging.INFO), "what is good warns nobody"
    [event] = [each for each in world.events if each["reason"] == "ModelInvalid"]
    assert event["involvedObject"]["uid"] == "u"
    assert (event["metadata"]["namespace"], event["reportingInstance"]) == ("ns", "operator-1")


async def test_a_sentence_is_said_once_however_many_conditions_have_it_and_however_often_it_is_told() -> None:
    world = World()
    taken = "A Service named f exists that is not Dormouse's."
    said = [Said("Applied", "False", "NameTaken", taken), Said("NameTaken", "True", "NameTaken", taken)]
    for sessions in range(5):
        await world.tell(said=said, sessions=sessions)
        world.clock.advance(SELDOM)
    assert world.sentences.count(taken) == 1


async def test_another_operator_does_not_say_again_what_stands_in_the_status() -> None:
    world = World()
    await world.tell(READY, INVALID)
    before = world.sentences
    world.teller = Teller(world.api, world.clock, ClusterSettings(), "operator-2")
    await world.tell(READY, INVALID, sessions=9)
    assert world.sentences == before


async def test_what_changes_back_and_forth_is_said_each_time() -> None:
    """The negative control of the one above."""
    world = World()
    for condition in (INVALID, Said("ModelReady", "True", "Loaded", "It is loaded."), INVALID):
        await world.tell(condition)
    assert [text for text in world.sentences if "Workers" not in text] == [INVALID.message, "It is loaded.", INVALID.message]


async def test_a_first_word_that_is_good_is_no_event_but_ready_is() -> None:
    world = World()
    await world.tell(READY, Said("RolledOut", "True", "RolledOut", "All workers are of this revision."), replicas=0)
    assert world.sentences == [READY.message]


async def test_numbers_that_always_change_are_written_seldom() -> None:
    world = World()
    await world.tell(READY, sessions=1)
    world.clock.advance(SELDOM - 1)
    assert not await world.tell(READY, sessions=2)
    assert await world.tell(READY, sessions=3, ready_replicas=1), "anything else at once"
    world.clock.advance(SELDOM)
    assert await world.tell(READY, sessions=4, ready_replicas=1)
    assert world.found["status"]["sessions"] == 4


async def test_how_many_workers_are_wanted_and_why_is_said_when_it_changes() -> None:
    world = World()
    for replicas, reason in ((0, "no call"), (2, "32 calls in flight"), (2, "30 calls in flight"), (0, "no call for 30s")):
        await world.tell(READY, replicas=replicas, reason=reason)
    assert [text for text in world.sentences if "Workers" in text] == [
        "Workers wanted: 2 (32 calls in flight).", "Workers wanted: 0 (no call for 30s).",
    ]  # fmt: skip


async def test_of_a_function_that_nobody_sees_yet_no_workers_are_said_to_be_wanted() -> None:
    """What the registry does not have has 0 replicas in its status, which nobody wants."""
    world = World()
    await world.tell(READY, replicas=2)
    written = await world.teller.tell(world.found, None, [ACCEPTED], 1)
    assert written is not None
    assert written["status"]["replicas"] == 0
    assert [text for text in world.sentences if "Workers" in text] == ["Workers wanted: 2 (one call)."]


async def test_a_first_word_of_no_workers_is_none() -> None:
    world = World()
    await world.tell(READY, replicas=0)
    assert not [text for text in world.sentences if "Workers" in text]


@pytest.mark.parametrize("code", [404, 409])
async def test_an_object_that_is_gone_or_anothers_is_left_alone(code: int) -> None:
    world = World()
    world.api.without[FUNCTIONS] = ApiError(code, "", "gone")
    assert not await world.tell(INVALID)
    assert world.events == []


async def test_a_server_that_is_away_is_told_again_and_an_event_that_is_refused_is_no_trouble() -> None:
    world = World()
    world.api.without[FUNCTIONS] = ApiError(0, "NoAnswer", "away")
    with pytest.raises(ApiError):
        await world.tell(INVALID)
    world.api.without = {EVENTS: ApiError(403, "Forbidden", "the namespace is going")}
    assert await world.tell(INVALID), "the status says the same"
