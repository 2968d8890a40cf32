"""Two installations side by side, of the same name: what the one does not know is not stopped where it may be the other's."""

from collections.abc import Container, Iterable

import pytest
from dormouse_core import strangers as decision
from dormouse_core.keys import Keys
from dormouse_core.seams import Instance, Wanted
from dormouse_core.strangers import Serves, strangers
from dormouse_operator import view as viewing
from dormouse_operator.kubernetes.api.http import Object
from dormouse_operator.kubernetes.api.kinds import DEPLOYMENTS, NAMESPACES
from dormouse_operator.kubernetes.pods.copies import Copies
from dormouse_operator.kubernetes.pods.provider import KubernetesProvider
from dormouse_operator.kubernetes.settings import ClusterSettings
from dormouse_operator.kubernetes.telling.own_events import OwnEvents
from dormouse_operator.kubernetes.watching.serving import Serving
from dormouse_operator.view import View
from dormouse_proto import state_pb2
from dormouse_testing.clock import ManualClock
from dormouse_testing.memory_api import MemoryApi
from hypothesis import given
from hypothesis import strategies as st

INSTANCES = st.lists(
    st.builds(
        lambda space, uid, stopping: Instance("w", f"{space}/f", uid, "r", 0.0, stopping=stopping),
        st.sampled_from("abc"),
        st.sampled_from("uvw"),
        st.booleans(),
    )
)


@given(INSTANCES, st.sets(st.sampled_from("uvw")), st.fixed_dictionaries({name: st.sampled_from((True, False, None)) for name in "abc"}))
def test_a_stranger_is_what_the_registry_lacks_where_this_installation_surely_serves(
    instances: list[Instance], registered: set[str], served: dict[str, bool | None]
) -> None:
    found = strangers(instances, registered, served.__getitem__)
    for each in instances:
        stranger = each.uid not in registered and not each.stopping and served[each.function[0]] is True
        assert (each in found) is stranger


class World:
    """An operator with these settings, an empty registry, and a Deployment with a worker in the namespaces `one` (`team=a`) and `two`
    (`team=b`)."""

    def __init__(self, settings: ClusterSettings) -> None:
        self.api, self.clock, self.settings = MemoryApi(), ManualClock(), settings
        for name, team in (("one", "a"), ("two", "b")):
            self.api.put(NAMESPACES, {"metadata": {"namespace": "", "name": name, "labels": {"team": team}}})
            self.api.put(DEPLOYMENTS, deployment(name))
        events = OwnEvents(self.api, self.clock, "system", "operator")
        self.serving = Serving(self.api, self.clock, settings, events, begun=lambda namespace: None, having=list)
        copies = Copies(self.api, self.clock, settings, lambda key, uid: None, lambda: None)
        self.copies = copies
        self.provider = KubernetesProvider(
            self.api, self.clock, copies.pods, copies.deployments, lambda uid, revision: None, lambda uid: None
        )  # fmt: skip
        copies.follow(self.provider)
        self.view = View(Keys("default"), self.clock, lambda uid: None, serves=self.serving.served)

    async def look(self) -> set[str]:
        """What the leader does with strangers (`Leader._observe`). The namespaces whose Deployments are left."""
        for copy in self.copies.all:
            for namespace in self.settings.namespaces or ("",):
                await copy._list(namespace)
        self.view.instances = await self.provider.observe()
        for stranger in self.view.strangers():
            namespace, _, name = stranger.function.partition("/")
            entry = state_pb2.FunctionEntry(namespace=namespace, name=name, uid=stranger.uid)
            await self.provider.apply(Wanted(entry, stranger.revision, 0))
        return {namespace for plural, namespace, _ in self.api.objects if plural == DEPLOYMENTS.plural}


def deployment(namespace: str) -> Object:
    labels = {f"dormouse.dev/{name}": value for name, value in (("installation", "default"), ("function", "f"), ("revision", "r"))}
    return {
        "metadata": {
            "namespace": namespace,
            "name": "f-r",
            "uid": f"of-{namespace}",
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {**labels, "dormouse.dev/uid": f"uid-{namespace}"},
        },
        "spec": {"replicas": 1},
    }


async def test_another_installation_of_the_same_name_keeps_its_workers_where_labels_give_it_the_namespace() -> None:
    world = World(ClusterSettings(namespace_selector="team=a"))
    await world.serving.copy._list("")
    assert await world.look() == {"two"}, "what a function left that was deleted while nobody led goes where this installation serves"


async def test_while_labels_are_not_known_or_old_nobody_is_a_stranger() -> None:
    world = World(ClusterSettings(namespace_selector="team=a"))
    assert await world.look() == {"one", "two"}
    await world.serving.copy._list("")
    world.serving.copy._broken[""] = world.clock.monotonic()
    world.clock.advance(60.0)
    assert world.serving.served("one") is None
    assert await world.look() == {"one", "two"}


@pytest.mark.parametrize(("namespaces", "left"), [((), set()), (("one",), {"two"}), (("two", "three"), {"one"})])
async def test_where_namespaces_are_listed_or_all_are_served_it_is_always_known(namespaces: tuple[str, ...], left: set[str]) -> None:
    assert await World(ClusterSettings(namespaces=namespaces)).look() == left


async def test_negative_control_where_the_registry_alone_decides_the_other_installations_workers_are_stopped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def of_the_registry(instances: Iterable[Instance], registered: Container[str], serves: Serves) -> list[Instance]:
        return decision.strangers(instances, registered, lambda namespace: True)

    monkeypatch.setattr(viewing, "strangers", of_the_registry)
    world = World(ClusterSettings(namespace_selector="team=a"))
    await world.serving.copy._list("")
    assert await world.look() == set()
