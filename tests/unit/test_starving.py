"""Workers that the kernel ended for want of memory: who is told, by whose word, and for how long."""

import asyncio
from typing import Any

import pytest
from dormouse import printing
from dormouse_core import deaths, starving
from dormouse_core.autoscaling import Decision
from dormouse_core.errors import Code
from dormouse_core.keys import Function, Keys
from dormouse_core.observations import FunctionSeen
from dormouse_core.seams import Instance, Item, Reply
from dormouse_core.spec import parse_manifest, spec_to_json
from dormouse_core.starving import KEPT, LATELY, TOLD, Starving
from dormouse_gateway.relay import relaying as relay
from dormouse_gateway.relay import starved as starved_word
from dormouse_operator.kubernetes.telling.statuses import Said
from dormouse_operator.status import Times, status
from dormouse_operator.view import View
from dormouse_proto import state_pb2
from dormouse_testing import simloop
from dormouse_testing.clock import ManualClock
from dormouse_testing.cluster_objects import NOW, container, ended, pod, waits
from dormouse_testing.functions_seen import entry
from dormouse_testing.manifests import onnx
from dormouse_testing.provider_world import RUNS, World
from dormouse_testing.relaying import RESET, Sent, Sim

OOM = ended("OOMKilled", code=137, ago=5)


def instance(name: str, starved: float, uid: str = "u") -> Instance:
    return Instance(name, "ns/f", uid, "r1", 0.0, starved=starved)


# ------------------------------------------------------------------------------------------------------------------ who says it


@pytest.mark.parametrize(
    ("found", "ago"),
    [
        (container({"running": {}}, last=OOM, restarts=1), 5.0),  # it serves again, and its conditions are as before
        (container(waits("CrashLoopBackOff"), last=OOM, restarts=4), 5.0),
        (container(OOM), 5.0),
        (container({"running": {}}, last=ended("Error", code=137)), None),
        (container({"running": {}}, last=OOM, name="sidecar"), None),
        (RUNS[0], None),
    ],
)
async def test_a_pods_status_says_that_its_container_ended_for_want_of_memory(found: Any, ago: float | None) -> None:
    world = World()
    await world.heard(pod("f-1", containers=[found]))
    [seen] = await world.seen()
    assert seen.starved == (0.0 if ago is None else int(NOW - ago))


class Links:
    def follow(self, worker: str, address: str) -> None: ...
    def drop(self, worker: str) -> None: ...
    def gone(self, worker: str) -> bool:
        return False

    def report(self, worker: str) -> None:
        return None


def test_a_supervisors_word_in_the_store_is_kept_after_the_entry_has_gone() -> None:
    clock, keys = ManualClock(), Keys()
    view = View(keys, clock, lambda uid: None)
    view.links = Links()  # type: ignore[assignment]
    key = keys.worker(Function("ns", "f", "u"), "w")
    for why in (deaths.CRASH, deaths.MEMORY):
        dead = state_pb2.WorkerEntry(address="10.0.0.1:9000")
        dead.killed.cause, dead.killed.why = "worker w died", why  # type: ignore[assignment]
        item = Item(key, dead.SerializeToString(), why, why)
        for _ in range(2):  # it may be written again
            view.map_changed(key, None, item)
        view.map_changed(key, item, None)
        assert [end.name for end in view.starving.of("u", clock.now())] == (["w"] if why == deaths.MEMORY else [])
    assert view.starving.lately(clock.now()) == [], "whoever called was told by the entry"
    clock.advance(TOLD)
    assert view.starving.of("u", clock.now()) == ()


def test_each_end_is_told_once_for_its_time_and_what_is_not_known_ends_nothing() -> None:
    known = Starving()
    for now in (NOW, NOW + 1):
        known.instances([instance("a", NOW - 2), instance("b", 0.0), instance("old", NOW - TOLD - 1)], now)
        known.instances(None, now)
    assert [end.name for end in known.of("u", NOW)] == ["a"]
    known.instances([instance("a", NOW + 8)], NOW + 9)
    assert len(known.of("u", NOW + 9)) == 2, "it was killed again"
    assert known.lately(NOW + 9) == ["a"]
    assert (known.lately(NOW + 9 + LATELY), len(known.of("u", NOW + 9 + LATELY))) == ([], 2)
    assert known.of("u", NOW + TOLD + 8) == ()
    known.instances([instance(f"i{n}", NOW - n) for n in range(3 * KEPT)], NOW)
    assert len(known.of("u", NOW)) == KEPT, "as a crash loop has in all its life"
    known.forget("u")
    assert known.of("u", NOW) == ()


# ------------------------------------------------------------------------------------------------------------------ who is told


def test_the_condition_says_how_many_and_what_helps() -> None:
    assert starving.word(()) is None
    known = Starving()
    known.instances([instance("f-1", NOW - 9), instance("f-2", NOW - 5)], NOW)
    made = entry()
    made.spec = spec_to_json(parse_manifest(onnx()).spec)
    seen = FunctionSeen(made, 1, 1, starved=known.of("u", NOW))
    told = status(seen, Decision(0, "by load"), Times(), 5)
    [found] = [c for c in told.conditions if c.type == "OutOfMemory"]
    assert (found.status, found.reason) == ("True", "OOMKilled")
    assert "2 within 10 min, the last of them f-2. Raise spec.workers.resources.limits.memory" in found.message
    assert Said(found.type, found.status, found.reason, found.message).bad, "it is a warning, once"
    assert "OutOfMemory: The kernel ended" in printing.functions([told], "")
    calm = status(FunctionSeen(made, 1, 1), Decision(0, "by load"), Times(), 5)
    assert "OutOfMemory" not in [c.type for c in calm.conditions]


async def starved(sim: Sim, *, word: float | None, instances: frozenset[str] = frozenset({"pod-1"})) -> tuple[Reply, float]:
    """A call that ends the containers in which it runs, and how long it took. `word`: when the leader says why, in seconds."""
    function = await sim.world.function("plain", uid="p")
    value = state_pb2.WorkerEntry(address="10.0.0.1:9000", revision="r1", state=state_pb2.WorkerEntry.READY, instance="pod-1")
    await sim.world.put(sim.world.keys.worker(function, "pod-1-a"), value.SerializeToString())
    await asyncio.sleep(0.1)

    async def dies(sent: Sent) -> Reply:
        return RESET

    sim.workers.behave["10.0.0.1:9000"] = dies
    began, call = sim.clock.monotonic(), sim.call("plain")
    if word is not None:
        await asyncio.sleep(word)
        sim.relay.starved.told(instances)
    reply = await call
    return reply, sim.clock.monotonic() - began


@pytest.mark.parametrize(
    ("word", "instances", "told"),
    [
        (0.0, {"pod-1"}, True),
        (1.0, {"pod-1"}, True),
        (2.0, {"pod-1", "pod-9"}, True),
        (1.0, {"pod-9"}, False),  # another's
        (None, {""}, False),
    ],
)
def test_a_caller_whose_calls_containers_ran_out_of_memory_is_told_so(word: float | None, instances: set[str], told: bool) -> None:
    """Before the call is refused, or within the time that a kubelet takes; it takes no fourth worker meanwhile."""

    async def main() -> None:
        async with Sim().running() as sim:
            reply, took = await starved(sim, word=word, instances=frozenset(instances))
            assert len(sim.workers.sent) == 3
            text = starved_word.TEXT if told else relay.NOBODY_SAYS
            assert reply.details == f"3 workers died while this call ran in them, and it is not sent to another: {text}"
            assert reply.code == (Code.RESOURCE_EXHAUSTED if told else Code.UNAVAILABLE)
            assert took < (word or 0.0) + (1.0 if told else starved_word.PATIENCE + 1.0)

    simloop.run(main())


def test_negative_control_without_waiting_for_the_word_the_caller_is_told_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starved_word, "PATIENCE", 0.0)

    async def main() -> None:
        async with Sim().running() as sim:
            reply, _ = await starved(sim, word=1.5)
            assert relay.NOBODY_SAYS in reply.details

    simloop.run(main())
