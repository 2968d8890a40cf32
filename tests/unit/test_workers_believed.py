"""Entries of workers that are not their pods': what the leader and the gateways make of them."""

from typing import Any

from dormouse_core.addresses import WAIT_SECONDS, Rule
from dormouse_core.keys import Function, Keys
from dormouse_core.seams import Event, Item
from dormouse_gateway.watching.table import Guard, Table
from dormouse_operator.kubernetes.api.reflecting import PATIENCE
from dormouse_operator.view import View
from dormouse_proto import state_pb2
from dormouse_testing.clock import ManualClock
from dormouse_testing.cluster_objects import pod
from dormouse_testing.provider_world import World

KEYS = Keys()
F = Function("ns", "f", "u")
MINE, OTHER = "10.244.1.7:9000", "10.244.1.8:9000"


def entry(address: str, instance: str = "f-r1") -> state_pb2.WorkerEntry:
    return state_pb2.WorkerEntry(address=address, instance=instance, state=state_pb2.WorkerEntry.READY)


def at(ip: str, **more: Any) -> Any:
    found = pod(**more)
    found["status"]["podIP"] = ip
    return found


class Links:
    """Whom the leader connects to."""

    def __init__(self) -> None:
        self.open: dict[str, str] = {}
        self.follow = self.open.setdefault

    def drop(self, worker: str) -> None:
        del self.open[worker]


class Scene:
    """A leader's view over a cluster's pods."""

    def __init__(self) -> None:
        self.world, self.changed, self.links, self.count = World(), list[str](), Links(), 0
        vouch = self.world.provider.vouch
        self.view = View(KEYS, self.world.clock, self.changed.append, rule=Rule(frozenset({"10.0.0.9:9002"}), pods=True), vouch=vouch)
        self.view.links = self.links  # type: ignore[assignment]
        self.before: Item | None = None

    def write(self, value: state_pb2.WorkerEntry | None, worker: str = "w") -> None:
        self.count += 1
        key = KEYS.worker(F, worker)
        after = None if value is None else Item(key, value.SerializeToString(), self.count, self.count)
        self.view.map_changed(key, self.before, after)
        self.before = after

    @property
    def refused(self) -> list[tuple[str, str]]:
        return [(each.worker, each.address) for each in self.view.refused()]


async def test_an_entry_with_its_pods_address_is_a_worker_and_one_with_anothers_is_not() -> None:
    scene = Scene()
    await scene.world.heard(at("10.244.1.7"))
    scene.write(entry(MINE))
    assert (scene.links.open, scene.refused) == ({"w": MINE}, [])
    assert list(scene.view.workers("u")) == ["w"]
    scene.write(entry(OTHER))
    assert (scene.links.open, scene.refused) == ({}, [("w", OTHER)])
    assert list(scene.view.workers("u")) == []
    scene.write(entry(MINE))
    assert (scene.links.open, scene.refused) == ({"w": MINE}, [])
    scene.write(None)
    assert (scene.links.open, scene.refused, scene.view._maps) == ({}, [], {})


async def test_the_pod_of_another_function_or_no_pod_vouches_for_nothing() -> None:
    scene = Scene()
    await scene.world.heard(at("10.244.1.7", function_uid="other"))
    scene.write(entry(MINE))
    assert (scene.links.open, scene.refused) == ({}, [("w", MINE)])
    scene.write(entry(MINE, instance="nobody"))
    assert (scene.links.open, scene.refused) == ({}, [("w", MINE)])


async def test_an_address_that_no_pod_has_is_refused_before_any_pod_is_asked() -> None:
    scene = Scene()
    await scene.world.heard(at("127.0.0.1"))
    scene.write(entry("127.0.0.1:9000"))
    scene.write(entry("10.0.0.9:9002"))
    assert (scene.links.open, scene.refused) == ({}, [("w", "10.0.0.9:9002")])


async def test_a_pod_whose_address_is_not_told_yet_is_waited_for_and_then_refused() -> None:
    scene = Scene()
    waiting = pod()
    await scene.world.heard(waiting)
    scene.write(entry(MINE))
    assert (scene.links.open, scene.refused) == ({}, [])
    known = at("10.244.1.7")
    known["metadata"]["resourceVersion"] = "2"
    await scene.world.heard(known)
    scene.changed.clear()
    scene.view.judge_again(believed=False)
    assert (scene.links.open, scene.changed) == ({"w": MINE}, ["u"])

    scene = Scene()
    await scene.world.heard(waiting)
    scene.write(entry(MINE))
    scene.world.clock.advance(WAIT_SECONDS)
    scene.view.judge_again()
    assert (scene.links.open, scene.refused) == ({}, [("w", MINE)])


async def test_what_is_not_known_refuses_nobody() -> None:
    scene = Scene()
    await scene.world.heard()
    scene.world.pods._broken[""] = scene.world.clock.monotonic()
    scene.world.clock.advance(PATIENCE + 1)
    scene.write(entry(MINE))
    assert (scene.links.open, scene.refused) == ({}, [])


async def test_it_is_logged_once_a_minute_a_function_however_often_it_is_written(events: Any) -> None:
    scene = Scene()
    await scene.world.heard(at("10.244.1.7"))
    for _ in range(100):
        scene.write(entry(OTHER))
        scene.view.judge_again()
    assert events.text.count("a worker's entry is refused") == 1
    assert "10.244.1.8:9000 is not its pod's address, which is 10.244.1.7:9000" in events.text


async def test_negative_control_without_a_voucher_the_leader_would_connect_to_it() -> None:
    view, links = View(KEYS, ManualClock(), lambda uid: None), Links()
    view.links = links  # type: ignore[assignment]
    key = KEYS.worker(F, "w")
    view.map_changed(key, None, Item(key, entry("169.254.169.254:80").SerializeToString(), 1, 1))
    assert links.open == {"w": "169.254.169.254:80"}


def test_a_gateway_forgets_what_the_leader_refuses_and_nothing_else() -> None:
    table = Table(KEYS, Guard(Rule(pods=True)))
    function = state_pb2.FunctionEntry(
        namespace="ns", name="f", uid="u", revision="r", spec=b'{"runtime":"onnx","model":{"uri":"file:///m"}}'
    )
    key = KEYS.function("ns", "f")
    table.replace(KEYS.functions, [Item(key, function.SerializeToString(), 1, 1)], 1)
    items = [Item(KEYS.worker(F, name), entry(address).SerializeToString(), 1, 1) for name, address in (("w", OTHER), ("v", MINE))]
    table.replace(KEYS.maps, items, 1)

    def workers() -> set[str]:
        found = table.function("ns/f")
        assert found is not None
        return set(found.workers)

    assert workers() == {"v", "w"}
    assert table.refuse(frozenset({("w", OTHER), ("v", OTHER)})) == {"ns/f"}
    assert workers() == {"v"}
    assert table.refuse(frozenset({("w", OTHER), ("v", OTHER)})) == set()
    assert table.apply([Event(items[0].key, 2, Item(items[0].key, entry(MINE).SerializeToString(), 2, 1))], KEYS.maps, 2) == ({"ns/f"}, {})
    assert workers() == {"v", "w"}, "an entry of another address is another claim"
    assert table.refuse(frozenset()) == {"ns/f"}
