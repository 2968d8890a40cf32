"""Members of the chart's etcd: the steps of one that starts, in every state in which it may have been cut short, and in random lives."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from dormouse_core import members
from dormouse_core.members import Answer, Do, Member, Own, Unclear

URLS = {f"e-{number}": f"https://e-{number}.peers:2380" for number in range(3)}


def member(number: int, *, name: str | None = None, learner: bool = False) -> Member:
    return Member(number + 1, f"e-{number}" if name is None else name, (URLS[f"e-{number}"],), learner)


ALL = Answer("c", (member(0), member(1), member(2)))


@pytest.mark.parametrize(
    ("name", "answers", "data", "formed", "do"),
    [
        ("e-0", [], True, True, Do.START),
        ("e-1", [ALL], True, False, Do.START),
        ("e-1", [Unclear("e-0 does not answer in time")], True, True, Do.START),
        ("e-1", [Answer("c", (member(0), member(2))), ALL], True, True, Do.START),
        ("e-1", [Answer("c", (member(0), member(1, name="", learner=True)))], True, True, Do.START),
        ("e-1", [Answer("c", (member(0),))], True, True, Do.WAIT),
        ("e-1", [Answer("c", (member(0),)), Unclear("e-2 does not answer in time")], True, False, Do.WAIT),
        ("e-0", [], False, False, Do.FORM),
        ("e-0", [Unclear("e-1 does not answer in time")], False, False, Do.WAIT),
        ("e-0", [Unclear("e-1 does not answer in time"), ALL], False, False, Do.REMOVE),
        ("e-1", [Unclear("e-0 does not answer in time")], False, False, Do.WAIT),
        ("e-0", [], False, True, Do.WAIT),
        ("e-1", [], False, False, Do.WAIT),
        ("e-1", [], False, True, Do.WAIT),
        ("e-1", [Answer("c", (member(0),))], False, False, Do.ADD),
        ("e-1", [ALL], False, True, Do.REMOVE),
        ("e-0", [ALL], False, False, Do.REMOVE),
        ("e-1", [Answer("c", (member(0), member(1, name="", learner=True)))], False, True, Do.REMOVE),
        ("e-1", [ALL, Answer("d", (member(2),))], False, True, Do.WAIT),
    ],
)
def test_the_next_step_of_a_member_that_starts(name: str, answers: list[Answer | Unclear], data: bool, formed: bool, do: Do) -> None:
    step = members.plan(name, URLS, answers, data=data, formed="d-etcd-formed" if formed else "")
    assert step.do is do
    assert step.why
    assert step.member == (int(name[-1]) + 1 if do is Do.REMOVE else 0)


def test_one_that_waits_for_a_cluster_that_is_no_more_says_what_remembers_it() -> None:
    """The Secret outlives a release, as claims do."""
    step = members.plan("e-0", URLS, [], data=False, formed="d-etcd-formed")
    assert step.do is Do.WAIT
    assert "delete the Secret d-etcd-formed" in step.why


@pytest.mark.parametrize(
    ("own", "answers", "stranger", "do"),
    [
        (Own("c", 2), [ALL], False, Do.START),
        (Own("c", 2), [ALL], True, Do.START),
        (Own("d", 2), [ALL], False, Do.WAIT),
        (Own("d", 2), [ALL, Answer("d", (member(1),))], False, Do.START),
        (Own("c", 2), [Answer("c", (Member(2, "e-1", ("https://its-former-name:2380",)),))], False, Do.START),
        (Own("c", 7), [Answer("c", (member(0),))], False, Do.WAIT),
        (Own("d", 2), [], False, Do.START),
        (Own("d", 2), [Unclear("e-0 does not answer in time")], False, Do.START),
        (Own("d", 2), [Unclear("e-0 does not answer in time")], True, Do.WAIT),
        (None, [], True, Do.WAIT),
    ],
)
def test_one_with_data_is_started_unless_the_cluster_that_is_there_is_anothers(
    own: Own | None, answers: list[Answer | Unclear], stranger: bool, do: Do
) -> None:
    """It is another member's address or another cluster's log; nobody who answers is nobody who objects, but for one that had objected."""
    step = members.plan("e-1", URLS, answers, data=True, formed="d-etcd-formed", own=own, stranger=stranger)
    assert step.do is do
    if do is Do.WAIT and answers and not stranger:
        assert "does not know this member" in step.why
        assert "delete its claim" in step.why


def test_one_of_those_that_answer_may_know_more_than_the_others() -> None:
    behind = Answer("c", (member(0), member(2)))
    assert members.plan("e-1", URLS, [behind, ALL], data=False, formed="d-etcd-formed").do is Do.REMOVE


def test_members_are_named_by_their_addresses_as_many_as_there_are() -> None:
    """etcd refuses to start where the number is another, or an address is missing."""
    found = [member(0), member(1, name="", learner=True), Member(255, "", ("http://elsewhere:2380",))]
    assert members.initial(URLS, found) == f"e-0={URLS['e-0']},e-1={URLS['e-1']},ff=http://elsewhere:2380"


def test_a_learner_that_has_started_may_have_a_vote_and_nobody_else() -> None:
    found = [member(0), member(1, learner=True), member(2, name="", learner=True)]
    assert members.candidates(found) == [found[1]]
    assert members.several(found)
    assert not members.several(found[:1])


@pytest.mark.parametrize(
    ("nodes", "told"),
    [
        ({"e-0": "a", "e-1": "b", "e-2": "c"}, ""),
        ({"e-0": "a", "e-1": "", "e-2": ""}, ""),
        ({}, ""),
        ({"e-0": "a", "e-1": "b", "e-2": "a"}, "e-0 and e-2 are on a"),
        ({"e-0": "a", "e-1": "a", "e-2": "a"}, "e-0 and e-1 and e-2 are on a"),
    ],
)
def test_people_are_told_of_members_on_one_node(nodes: dict[str, str], told: str) -> None:
    assert told in members.crowded(nodes)
    assert bool(members.crowded(nodes)) is bool(told)


# ------------------------------------------------------------------------------------------------------------------ lives


@dataclass
class Disk:
    cluster: str
    id: int


@dataclass
class World:
    """etcd as it behaves: members by id, a majority of voters with data decides, a learner copies what the majority has."""

    remembers: bool = True
    learners: bool = True
    asks: bool = True
    strangers: set[str] = field(default_factory=set)  # pods that wait because nobody knew them
    clusters: dict[str, dict[int, Member]] = field(default_factory=dict)
    disks: dict[str, Disk] = field(default_factory=dict)
    orders: dict[str, Disk] = field(default_factory=dict)  # what the configuration that is written makes of a disk
    up: set[str] = field(default_factory=set)
    formed: bool = False
    ids: int = 0

    def decides(self, cluster: str) -> bool:
        voters = [each for each in self.clusters[cluster].values() if not each.learner]
        there = [each for each in voters if each.name in self.up and self.disks.get(each.name) == Disk(cluster, each.id)]
        return len(there) > len(voters) // 2

    def answers(self, name: str) -> list[Answer]:
        others = [disk for other, disk in self.disks.items() if other != name and other in self.up]
        return [Answer(disk.cluster, tuple(self.clusters[disk.cluster].values())) for disk in others if self.clusters[disk.cluster]]

    def step(self, name: str) -> None:
        """One step of the program of a member that has no data. It may be the last before it is cut short."""
        plan = members.plan(
            name, URLS, self.answers(name), data=name in self.disks, formed="d-etcd-formed" if self.formed and self.remembers else ""
        )
        match plan.do:
            case Do.FORM:
                self.ids += 1
                cluster = f"c{self.ids}"
                self.orders[name] = Disk(cluster, self.ids)
            case Do.REMOVE:
                cluster = self.answers(name)[0].cluster
                if self.decides(cluster):
                    self.clusters[cluster].pop(plan.member, None)
            case Do.ADD:
                cluster = self.answers(name)[0].cluster
                learning = any(each.learner for each in self.clusters[cluster].values())
                if self.decides(cluster) and not (learning and self.learners):
                    self.ids += 1
                    self.clusters[cluster][self.ids] = Member(self.ids, "", (URLS[name],), self.learners)
                    self.orders[name] = Disk(cluster, self.ids)

    def start(self, name: str) -> None:
        """etcd, with the configuration that was written, or with the data that it has, where it may."""
        if name in self.disks and name not in self.up and not self.may_start(name):
            return
        self.up.add(name)
        disk = self.disks.get(name) or self.orders.get(name)
        if disk is None:
            return
        self.disks[name] = disk
        known = self.clusters.setdefault(disk.cluster, {})
        if disk.cluster == f"c{disk.id}" and not known:
            known[disk.id] = Member(disk.id, name, (URLS[name],))
        elif disk.id in known:
            known[disk.id] = Member(disk.id, name, (URLS[name],), known[disk.id].learner)

    def may_start(self, name: str) -> bool:
        """What the program says to a disk that has something."""
        if not self.asks:
            return True
        own = Own(self.disks[name].cluster, self.disks[name].id)
        do = members.plan(name, URLS, self.answers(name), data=True, formed="", own=own, stranger=name in self.strangers).do
        (self.strangers.discard if do is Do.START else self.strangers.add)(name)
        return do is Do.START

    def wipe(self, name: str) -> None:
        self.strangers.discard(name)
        self.disks.pop(name, None)
        self.orders.pop(name, None)
        self.up.discard(name)

    def restart(self, name: str) -> None:
        """The pod: its configuration is gone, its disk is not."""
        self.orders.pop(name, None)
        self.strangers.discard(name)
        self.up.discard(name)

    def promote(self) -> None:
        for cluster, found in self.clusters.items():
            if members.several(list(found.values())):
                self.formed = True
            for each in members.candidates(list(found.values())):
                if self.decides(cluster) and self.disks.get(each.name) == Disk(cluster, each.id) and each.name in self.up:
                    found[each.id] = Member(each.id, each.name, each.peers)

    def may_be_wiped(self, name: str) -> bool:
        """Whether the majority goes on without it, whoever else is away now."""
        for cluster, found in self.clusters.items():
            voters = [each for each in found.values() if not each.learner]
            kept = [each for each in voters if each.name != name and self.disks.get(each.name) == Disk(cluster, each.id)]
            if voters and len(kept) <= len(voters) // 2:
                return False
        return bool(self.clusters)


def live(world: World, seed: int, rounds: int = 80) -> None:
    chance = random.Random(seed)
    for _ in range(rounds):
        name = chance.choice(list(URLS))
        [action] = chance.choices(["step", "start", "promote", "restart", "wipe", "cut"], [5, 7, 5, 1, 2, 1])
        match action:
            case "step":
                if name not in world.up and name not in world.orders:
                    world.step(name)
            case "start":
                if name in world.orders or name in world.disks:
                    world.start(name)
            case "promote":
                world.promote()
            case "restart":
                world.restart(name)
            case "cut":  # everybody at once, and the first one comes back before the others, perhaps without its disk
                name = "e-0"
                for each in URLS:
                    world.restart(each)
                if chance.random() < 0.5 and world.may_be_wiped(name):
                    world.wipe(name)
                if name not in world.disks:
                    world.step(name)
            case "wipe":
                if world.may_be_wiped(name):
                    world.wipe(name)
    for _ in range(12):  # and then nothing happens to anybody
        for name in URLS:
            if name not in world.disks and name not in world.orders:
                world.up.discard(name)
                world.step(name)
            if name in world.orders or name in world.disks:
                world.start(name)
        world.promote()


def faults(world: World) -> list[str]:
    found = []
    if len(world.clusters) > 1:
        found.append("there are two clusters")
    voters = [each.name for members_ in world.clusters.values() for each in members_.values() if not each.learner]
    if sorted(voters) != sorted(URLS):
        found.append(f"{voters} have a vote")
    return found


@pytest.mark.parametrize("chunk", range(5))
def test_whatever_member_is_wiped_or_cut_short_there_is_one_cluster_and_in_the_end_it_has_three(chunk: int) -> None:
    for seed in range(chunk * 200, (chunk + 1) * 200):
        world = World()
        live(world, seed)
        assert faults(world) == [], seed


def seeds_with(fault: str, make: Callable[[], World], seeds: Sequence[int] = range(400)) -> list[int]:
    found = []
    for seed in seeds:
        world = make()
        live(world, seed)
        if any(fault in each for each in faults(world)):
            found.append(seed)
    return found


def test_negative_control_without_remembering_that_there_was_a_cluster_there_would_be_two() -> None:
    assert seeds_with("two clusters", lambda: World(remembers=False))


def test_negative_control_with_a_vote_before_it_has_the_data_a_majority_would_be_lost() -> None:
    assert seeds_with("have a vote", lambda: World(learners=False))


def test_negative_control_where_everybody_may_form_a_cluster_there_would_be_two(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = members.plan

    def anybody(name: str, urls: Mapping[str, str], answers: Sequence[Answer | Unclear], **more: Any) -> members.Step:
        return plan(name, {name: urls[name], **urls}, answers, **more)

    monkeypatch.setattr(members, "plan", anybody)
    assert seeds_with("two clusters", World)


def revived(seed: int, *, asks: bool) -> bool:
    """The first member began anew, and the disks of two others are those of the cluster before. Whether that one ever decides anything."""
    world, chance = World(asks=asks), random.Random(seed)
    for number, name in enumerate(URLS):
        world.clusters.setdefault("before", {})[90 + number] = Member(90 + number, name, (URLS[name],))
        world.disks[name] = Disk("before", 90 + number)
    world.wipe("e-0")
    world.clusters["c1"] = {1: Member(1, "e-0", (URLS["e-0"],))}
    world.disks["e-0"] = Disk("c1", 1)
    for name in URLS:
        world.start(name)
    seen = world.decides("before")
    for _ in range(60):
        name = chance.choice(list(URLS))
        match chance.choice(["start", "away", "claim", "promote"]):
            case "start":
                if name in world.disks or name in world.orders:
                    world.start(name)
                else:
                    world.step(name)
            case "away":
                if name == "e-0":  # the pods of the others wait meanwhile
                    world.restart(name)
            case "claim":
                if name != "e-0" and world.disks.get(name, Disk("", 0)).cluster == "before":
                    world.wipe(name)
            case "promote":
                world.promote()
        seen = seen or world.decides("before")
    return seen


def test_disks_of_an_earlier_cluster_never_become_it_again_beside_the_one_that_is_there() -> None:
    assert not [seed for seed in range(300) if revived(seed, asks=True)]


def test_negative_control_where_data_is_started_unasked_the_earlier_cluster_comes_back() -> None:
    assert revived(0, asks=False)
