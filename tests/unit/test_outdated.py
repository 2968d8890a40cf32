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
from dormouse_operator.kubernetes.objects.object_entries import timestamp
from dormouse_operator.kubernetes.secret_options import MemberPods
from dormouse_testing.clock import EPOCH, SimClock
from dormouse_testing.memory_api import MemoryApi

NEW, OLD = Start("new", "etcd:2", "2", "{}"), Start("old", "etcd:2", "2", "{}")
THREE, ONE = Wanted(3, NEW, True), Wanted(1, NEW, True)


def pod(number: int, start: Start = OLD, *, ready: bool = True, going: bool = False) -> MemberPod:
    return MemberPod(f"e-{number}", f"uid-{number}", ready, going, start)


def stuck(number: int, start: Start = NEW, template: str = "t1") -> MemberPod:
    """Its first image cannot be pulled, say."""
    return MemberPod(f"e-{number}", f"uid-{number}", False, False, start, template, runs=False, ran=False)


def ending(number: int, start: Start = NEW, template: str = "t1", away: float = 1e3) -> MemberPod:
    """Its etcd ends again and again, for want of memory, say."""
    return replace(stuck(number, start, template), ran=True, away=away)


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


def test_one_that_serves_nobody_goes_first() -> None:
    assert chosen(THREE, pod(0), pod(1, ready=False), pod(2)) == "e-1", "its image cannot be pulled, and there is another now"
    assert chosen(ONE, pod(0, ready=False)) == "e-0"


def test_one_that_cannot_start_for_what_is_in_its_template_alone_gets_the_next_one() -> None:
    """Our image or its pull Secret, which the digest leaves out."""
    three, one = replace(THREE, template="t2"), replace(ONE, template="t2")
    assert chosen(three, stuck(0), stuck(1), stuck(2)) == "e-0", "a first install that an upgrade mends"
    assert chosen(three, stuck(0), pod(1, NEW), pod(2, NEW)) == "e-0", "what a drain met in mid-upgrade, after the rollback"
    assert chosen(three, stuck(0, template="t2"), stuck(1), stuck(2)) == "e-1"
    assert chosen(three, stuck(0, template="t2"), pod(1, NEW), pod(2, NEW)) == ""
    assert chosen(THREE, stuck(0), stuck(1), stuck(2)) == "", "not known"
    assert chosen(three, stuck(0, template="")) == ""
    assert chosen(one, stuck(0)) == "e-0"
    assert chosen(replace(one, keeps=False), stuck(0)) == "e-0", "there is nothing to lose"


def test_one_whose_etcd_runs_stays_whatever_its_template_and_its_readiness() -> None:
    """Every release leaves members of an earlier template, and a slow disk has one be not ready for seconds."""
    three = replace(THREE, template="t2")
    late = replace(pod(0, NEW, ready=False), template="t1", away=1e3)
    assert chosen(three, late, pod(1, NEW), pod(2, NEW)) == ""
    assert chosen(three, late, *(replace(late, name=f"e-{number}") for number in (1, 2))) == ""
    assert chosen(replace(ONE, template="t2"), late) == ""


@pytest.mark.parametrize("down", [(0, 1), (0, 1, 2), (1, 2)])
def test_those_that_cannot_start_do_not_wait_for_each_other(down: tuple[int, ...]) -> None:
    for made in (stuck, ending):
        found = [made(number, OLD) if number in down else pod(number) for number in range(3)]
        assert chosen(THREE, *found) == f"e-{down[0]}"
        assert chosen(THREE, replace(found[down[0]], going=True), *(each for each in found if each is not found[down[0]])) == ""
        assert chosen(THREE, *(each for each in found if each is not found[down[0]])) == f"e-{down[1]}", "the next one is not made yet"
        assert chosen(THREE, *(ending(number, NEW) if each.ready is False else each for number, each in enumerate(found))) == ""


def test_one_that_is_not_ready_for_a_moment_beside_another_stays() -> None:
    """It may be half of the majority."""
    beside = pod(2, NEW, ready=False)
    assert chosen(THREE, pod(0), ending(1, OLD, away=59.0), beside) == ""
    assert chosen(THREE, pod(0), ending(1, OLD, away=60.0), beside) == "e-1"


def test_without_disks_what_ran_goes_only_where_all_others_have_what_it_had() -> None:
    three = replace(THREE, keeps=False)
    assert chosen(three, ending(0, OLD), ending(1, OLD), ending(2, OLD)) == ""
    assert chosen(three, ending(0, OLD), pod(1), pod(2)) == "e-0"
    assert chosen(three, stuck(0, OLD), ending(1, OLD), ending(2, OLD)) == "e-0"
    assert chosen(replace(ONE, keeps=False), ending(0, OLD)) == ""


def test_the_only_one_goes_only_with_a_disk() -> None:
    assert chosen(ONE, pod(0)) == "e-0"
    assert chosen(replace(ONE, keeps=False), pod(0)) == ""
    assert chosen(replace(THREE, keeps=False), pod(0), pod(1), pod(2)) == "e-2", "the two others have what it had"


def test_of_an_earlier_release_only_what_is_seen_counts() -> None:
    before = replace(NEW, digest="")
    assert chosen(ONE, pod(0, before)) == ""
    for other in (
        replace(before, image="etcd:1"),
        replace(before, quota="1"),
        replace(before, resources='{"limits": {}}'),
        replace(before, secret="s"),
    ):
        assert chosen(ONE, pod(0, other)) == "e-0"
    assert chosen(Wanted(1, before, True), pod(0)) == "", "the chart does not say"
    assert chosen(ONE, pod(0, replace(NEW, image="mirror/etcd:2", quota="", resources="{}"))) == "", "others may change a pod on its way"


@pytest.mark.parametrize("keeps", [True, False])
def test_whatever_is_seen_at_most_one_is_missing_and_it_ends(keeps: bool) -> None:
    """From each mixture of old and new members, of which some run and others cannot, every one becomes new. Nobody that serves goes beside
    another, and nothing that only a pod has while another is away. Who cannot start never becomes ready by itself."""
    wanted = replace(THREE, keeps=keeps, template="t2")
    old = replace(OLD, digest="", image="etcd:1")
    kinds = [pod(0), pod(0, NEW), pod(0, old), stuck(0), stuck(0, OLD), ending(0), ending(0, old, away=0.0)]
    for seen in itertools.product(kinds, repeat=3):
        pods = [replace(each, name=f"e-{number}") for number, each in enumerate(seen)]
        lost = not keeps and sum(each.ran and not each.ready for each in pods) > 1  # somebody's decision
        for _ in range(20):
            member = next_member(wanted, pods)
            if member is None:
                if all(each.ready and each.start == NEW for each in pods):
                    break
                # a minute: what was made from what the chart says now is ready by then
                pods = [
                    replace(each, ready=True)
                    if each.ready or (each.template == "t2" and each.start == NEW)
                    else replace(each, away=each.away + 60)
                    for each in pods
                ]
                continue
            others = [each for each in pods if each is not member]
            if member.ready or (member.ran and not keeps):
                assert all(each.ready for each in others)
            pods = [stuck(int(each.name[2:]), NEW, "t2") if each is member else each for each in pods]
        assert lost or all(each.ready and each.start == NEW for each in pods), seen


# ------------------------------------------------------------------------------------------------------------------ in the cluster


def template(
    digest: str = "", *, words: tuple[str, ...] = (), first: tuple[str, ...] = (), image: str = "etcd:2", secret: str = "d-etcd-tls"
) -> dict[str, Any]:
    volumes = [{"name": "server", "secret": {"secretName": secret}}, {"name": "config", "emptyDir": {}}]
    spec: dict[str, Any] = {"containers": [{"name": "etcd", "image": image, "args": list(words)}], "volumes": volumes}
    if first:
        spec["initContainers"] = [{"name": "members", "image": "dormouse:1", "args": list(first)}]
    return {"metadata": {"annotations": {DIGEST: digest} if digest else {}}, "spec": spec}


def stateful_set(spec: dict[str, Any], *, strategy: str = "OnDelete", replicas: int = 1) -> dict[str, Any]:
    metadata = {"name": "d-etcd", "namespace": "system", "uid": "s", "generation": 2}
    claims = [{"metadata": {"name": "data"}}]
    return {
        "metadata": metadata,
        "spec": {"replicas": replicas, "updateStrategy": {"type": strategy}, "template": spec, "volumeClaimTemplates": claims},
        "status": {"observedGeneration": 2, "updateRevision": "t2"},
    }


def running(number: int, spec: dict[str, Any], *, ready: bool = True, **state: Any) -> dict[str, Any]:
    labels = {"part": "etcd", "controller-revision-hash": "t1"}
    metadata = {**spec["metadata"], "name": f"d-etcd-{number}", "namespace": "system", "uid": f"u{number}", "labels": labels}
    return {
        "metadata": metadata,
        "spec": spec["spec"],
        "status": {
            "conditions": [{"type": "Ready", "status": "True" if ready else "False", "lastTransitionTime": timestamp(EPOCH - 50)}],
            "containerStatuses": [{"name": "etcd", **(state or {"state": {"running": {}}})}],
        },
    }


PULLS = {"state": {"waiting": {"reason": "PodInitializing"}}, "lastState": {}, "restartCount": 0}


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


async def test_one_whose_first_image_cannot_be_pulled_gets_the_template_of_now_once_that_is_known() -> None:
    assert await evicted(stateful_set(NOW), running(0, NOW, ready=False, **PULLS)) == [("d-etcd-0", "evicted")]
    assert await evicted(stateful_set(NOW), running(0, NOW, ready=False)) == [], "its etcd runs"
    again = running(0, NOW, ready=False, **PULLS)
    again["metadata"]["labels"]["controller-revision-hash"] = "t2"
    assert await evicted(stateful_set(NOW), again) == []
    for status in ({"observedGeneration": 1, "updateRevision": "t2"}, {"observedGeneration": 2}, {}):
        unread = stateful_set(NOW)
        unread["status"] = status
        assert await evicted(unread, running(0, NOW, ready=False, **PULLS)) == [], "the template of now has no name yet"


async def test_one_that_mounts_a_secret_of_an_earlier_release_goes() -> None:
    assert await evicted(stateful_set(NOW), running(0, template(secret="d-etcd-server", first=("--quota-backend-bytes=2147483648",)))) == [
        ("d-etcd-0", "evicted")
    ]


@pytest.mark.parametrize(
    ("state", "runs", "ran"),
    [
        (PULLS, False, False),
        ({"state": {"running": {}}}, True, True),
        ({"state": {"terminated": {}}}, False, True),
        ({"state": {"waiting": {}}, "lastState": {"terminated": {}}}, False, True),
        ({"state": {"waiting": {}}, "restartCount": 1}, False, True),
    ],
)
def test_whether_etcd_runs_in_a_pod_or_ever_did(state: dict[str, Any], runs: bool, ran: bool) -> None:
    found = pod_of(running(0, NOW, ready=False, **state), EPOCH)
    assert (found.runs, found.ran, found.away) == (runs, ran, 50.0)


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
    assert pod_of({**running(0, NOW), "spec": spec}, EPOCH).start.image == ""
    assert await evicted(stateful_set(odd), running(0, NOW)) == [], "the chart does not say"


def test_a_pod_without_a_status_is_not_ready() -> None:
    found = running(0, NOW)
    del found["status"]
    member = pod_of(found, EPOCH)
    assert (member.ready, member.runs, member.ran, member.away) == (False, False, False, 0.0)
    found["metadata"]["creationTimestamp"] = timestamp(EPOCH - 50)
    assert pod_of(found, EPOCH).away == 50.0


def test_negative_control_without_the_look_at_the_others_two_are_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """What keeps the majority is the look at who is ready."""
    pods = [pod(0), pod(1), pod(2, NEW, ready=False)]
    assert outdated.next_member(THREE, pods) is None
    assert outdated.next_member(THREE, [replace(each, ready=True) for each in pods]) is not None
