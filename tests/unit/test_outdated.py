"""Which member of etcd starts again, one after the other; and what the operator reads from the cluster for it."""

import itertools
from dataclasses import replace
from typing import Any

import pytest
from dormouse_core import outdated
from dormouse_core.outdated import MemberPod, Start, Wanted, next_member
from dormouse_operator.kubernetes.api.http import ApiError
from dormouse_operator.kubernetes.api.kinds import PODS, STATEFUL_SETS
from dormouse_operator.kubernetes.members.restarting import DIGEST, Restarting, pod_of, wanted_of
from dormouse_operator.kubernetes.secret_options import MemberPods
from dormouse_testing.clock import SimClock
from dormouse_testing.memory_api import MemoryApi

NEW, OLD = Start("new", "etcd:2", "2", "{}"), Start("old", "etcd:2", "2", "{}")
THREE, ONE = Wanted(3, NEW, True), Wanted(1, NEW, True)


def pod(number: int, start: Start = OLD, *, ready: bool = True, going: bool = False) -> MemberPod:
    return MemberPod(f"e-{number}", f"uid-{number}", ready, going, start)


def chosen(wanted: Wanted, *found: MemberPod) -> str:
    member = next_member(wanted, found)
    return "" if member is None else member.name


def test_the_last_one_goes_first_and_the_next_when_it_is_back() -> None:
    assert chosen(THREE, pod(0), pod(1), pod(2)) == "e-2"
    assert chosen(THREE, pod(0), pod(1)) == "", "one is missing"
    assert chosen(THREE, pod(0), pod(1), pod(2, going=True)) == ""
    assert chosen(THREE, pod(0), pod(1), pod(2, NEW, ready=False)) == ""
    assert chosen(THREE, pod(0), pod(1), pod(2, NEW)) == "e-1"
    assert chosen(THREE, pod(0), pod(1, NEW), pod(2, NEW)) == "e-0"
    assert chosen(THREE, pod(0, NEW), pod(1, NEW), pod(2, NEW)) == ""


def test_of_many_the_number_decides_and_not_the_text() -> None:
    assert chosen(Wanted(11, NEW, True), *(pod(number) for number in range(11))) == "e-10"


def test_one_that_serves_nobody_goes_first_and_never_beside_another() -> None:
    assert chosen(THREE, pod(0), pod(1, ready=False), pod(2)) == "e-1", "its image cannot be pulled, and there is another now"
    assert chosen(THREE, pod(0), pod(1, ready=False), pod(2, ready=False)) == ""
    assert chosen(ONE, pod(0, ready=False)) == "e-0"


def test_the_only_one_goes_only_with_a_disk() -> None:
    assert chosen(ONE, pod(0)) == "e-0"
    assert chosen(replace(ONE, keeps=False), pod(0)) == ""
    assert chosen(replace(THREE, keeps=False), pod(0), pod(1), pod(2)) == "e-2", "the two others have what it had"


def test_of_an_earlier_release_only_what_is_seen_counts() -> None:
    before = replace(NEW, digest="")
    assert chosen(ONE, pod(0, before)) == ""
    for other in (replace(before, image="etcd:1"), replace(before, quota="1"), replace(before, resources='{"limits": {}}')):
        assert chosen(ONE, pod(0, other)) == "e-0"
    assert chosen(Wanted(1, before, True), pod(0)) == "", "the chart does not say"
    assert chosen(ONE, pod(0, replace(NEW, image="mirror/etcd:2", quota="", resources="{}"))) == "", "others may change a pod on its way"


def test_whatever_is_seen_at_most_one_is_missing_and_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """From each mixture of old and new members every one becomes new, and no two are ever away together."""
    for starts in itertools.product((OLD, NEW, replace(OLD, digest="", image="etcd:1")), repeat=3):
        pods = [pod(number, start) for number, start in enumerate(starts)]
        for _ in range(20):
            member = next_member(THREE, pods)
            if member is None and all(each.ready for each in pods):
                break
            away = [each for each in pods if not each.ready]
            if member is None:
                pods = [replace(each, ready=True) for each in pods]
                continue
            assert not away
            pods = [replace(each, start=NEW, ready=False) if each is member else each for each in pods]
        assert all(each.start == NEW for each in pods)


# ------------------------------------------------------------------------------------------------------------------ in the cluster


def template(digest: str = "", *, words: tuple[str, ...] = (), first: tuple[str, ...] = (), image: str = "etcd:2") -> dict[str, Any]:
    spec: dict[str, Any] = {"containers": [{"name": "etcd", "image": image, "args": list(words)}]}
    if first:
        spec["initContainers"] = [{"name": "members", "image": "dormouse:1", "args": list(first)}]
    return {"metadata": {"annotations": {DIGEST: digest} if digest else {}}, "spec": spec}


def stateful_set(spec: dict[str, Any], *, strategy: str = "OnDelete", replicas: int = 1) -> dict[str, Any]:
    metadata = {"name": "d-etcd", "namespace": "system", "uid": "s"}
    claims = [{"metadata": {"name": "data"}}]
    return {
        "metadata": metadata,
        "spec": {"replicas": replicas, "updateStrategy": {"type": strategy}, "template": spec, "volumeClaimTemplates": claims},
    }


def running(number: int, spec: dict[str, Any], *, ready: bool = True) -> dict[str, Any]:
    metadata = {**spec["metadata"], "name": f"d-etcd-{number}", "namespace": "system", "uid": f"u{number}", "labels": {"part": "etcd"}}
    return {
        "metadata": metadata,
        "spec": spec["spec"],
        "status": {"conditions": [{"type": "Ready", "status": "True" if ready else "False"}]},
    }


NOW = template("new", words=("--config-file=/run/etcd/etcd.json",), first=('--etcd={"name":"x","quota-backend-bytes":2147483648}',))


async def evicted(found: dict[str, Any], *pods: dict[str, Any]) -> list[tuple[str, str]]:
    api = MemoryApi()
    api.put(STATEFUL_SETS, found)
    for each in pods:
        api.put(PODS, each)
    await Restarting(api, SimClock(), MemberPods(name="d-etcd", selector="part=etcd"), "system").look()
    return api.written


async def test_a_member_with_another_digest_goes_and_one_with_another_image_of_ours_stays() -> None:
    assert await evicted(stateful_set(NOW), running(0, template("old"))) == [("d-etcd-0", "evicted")]
    other = template("new", first=("--etcd={}",))
    other["spec"]["initContainers"][0]["image"] = "dormouse:2"
    assert await evicted(stateful_set(NOW), running(0, other)) == []


async def test_one_of_the_release_before_is_known_by_its_arguments() -> None:
    before = template(words=("--name=$(POD_NAME)", "--quota-backend-bytes=2147483648"))
    assert await evicted(stateful_set(NOW), running(0, before)) == []
    smaller = template(words=("--name=$(POD_NAME)", "--quota-backend-bytes=1073741824"))
    assert await evicted(stateful_set(NOW), running(0, smaller)) == [("d-etcd-0", "evicted")]


async def test_where_kubernetes_replaces_them_or_there_is_none_nobody_goes() -> None:
    assert await evicted(stateful_set(NOW, strategy="RollingUpdate"), running(0, template("old"))) == []
    assert wanted_of(stateful_set(NOW, strategy="RollingUpdate")) is None
    await Restarting(MemoryApi(), SimClock(), MemberPods(name="d-etcd", selector="part=etcd"), "system").look()


async def test_one_whose_budget_does_not_let_it_go_is_tried_again_and_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tries, told = 0, []

    class Ended(Exception):
        pass

    class Refusing(MemoryApi):
        async def evict(self, namespace: str, name: str, *, uid: str) -> bool:
            nonlocal tries
            tries += 1
            raise ApiError(429, "TooManyRequests", "the disruption budget needs 2 healthy pods")

    class Clock(SimClock):
        async def sleep(self, seconds: float) -> None:
            if tries == 3:
                raise Ended

    monkeypatch.setattr("dormouse_kit.log.event", lambda text, **fields: told.append(fields))
    api = Refusing()
    api.put(STATEFUL_SETS, stateful_set(NOW))
    api.put(PODS, running(0, template("old")))
    with pytest.raises(Ended):
        await Restarting(api, Clock(), MemberPods(name="d-etcd", selector="part=etcd"), "system").run()
    assert (tries, told) == (3, [{"error": "the disruption budget needs 2 healthy pods"}])


async def test_a_pod_that_is_another_by_now_stays() -> None:
    class Late(MemoryApi):
        async def evict(self, namespace: str, name: str, *, uid: str) -> bool:
            self.objects["pods", namespace, name]["metadata"]["uid"] = "another"
            return await super().evict(namespace, name, uid=uid)

    api = Late()
    api.put(STATEFUL_SETS, stateful_set(NOW))
    api.put(PODS, running(0, template("old")))
    await Restarting(api, SimClock(), MemberPods(name="d-etcd", selector="part=etcd"), "system").look()
    assert api.written == []


async def test_a_strangers_pod_with_their_labels_neither_goes_nor_keeps_others() -> None:
    stranger = running(7, template("old"), ready=False)
    assert await evicted(stateful_set(NOW), running(0, template("old")), stranger) == [("d-etcd-0", "evicted")]
    assert await evicted(stateful_set(NOW), running(0, NOW), stranger) == []


@pytest.mark.parametrize(
    "spec", [{"containers": []}, {"containers": [{"name": "other"}]}, {"containers": [{"name": "etcd"}], "initContainers": None}]
)
async def test_a_pod_that_is_not_as_the_chart_makes_it_is_read_all_the_same(spec: dict[str, Any]) -> None:
    odd = {"metadata": {"annotations": None}, "spec": spec}
    assert pod_of({**running(0, NOW), "spec": spec}).start.image == ""
    assert await evicted(stateful_set(odd), running(0, NOW)) == [], "the chart does not say"


def test_a_pod_without_a_status_is_not_ready() -> None:
    found = running(0, NOW)
    del found["status"]
    assert not pod_of(found).ready


def test_negative_control_without_the_look_at_the_others_two_are_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """What keeps the majority is the look at who is ready."""
    pods = [pod(0), pod(1), pod(2, NEW, ready=False)]
    assert outdated.next_member(THREE, pods) is None
    assert outdated.next_member(THREE, [replace(each, ready=True) for each in pods]) is not None
