"""An installation's new image, and the workers of all functions that are awake: a few functions at a time."""

import random
from collections import Counter
from typing import Any

import pytest
from dormouse_core import replacing
from dormouse_core.limits import REPLACE_BEGIN_SECONDS, REPLACE_TURN_SECONDS, REPLACED, REPLACED_A_NODE
from dormouse_core.replacing import Replacing, most
from dormouse_operator.kubernetes.api.kinds import DEPLOYMENTS
from dormouse_operator.kubernetes.api.reflecting import Reflector
from dormouse_operator.kubernetes.objects.object_entries import timestamp
from dormouse_operator.kubernetes.objects.replacements import Replacements, being_replaced, rolled_out, serves_nobody
from dormouse_testing.clock import ManualClock
from dormouse_testing.cluster_objects import NOW, deployment
from dormouse_testing.memory_api import MemoryApi

FUNCTIONS = [f"u{number:05}" for number in range(10_000)]
TAKES = 5.0  # seconds for which one function's workers are being replaced


NOBODY = frozenset[str]()


class Rollouts:
    """An operator that writes a template some seconds after it may, and Deployments that are rolled out some seconds later.

    `lag()`: seconds from a turn to its round; `writing()`: from there until the write is heard; `stuck`: never end."""

    def __init__(self, nodes: int, stuck: frozenset[str] = NOBODY, lag: Any = lambda: 0.0, writing: Any = lambda: 0.0) -> None:
        self.found, self.nodes, self.stuck, self.now = Replacing(), nodes, stuck, 0.0
        self.lag, self.writing = lag, writing
        self.rounds: dict[str, float] = {}
        self.writes: dict[str, float] = {}
        self.ends: dict[str, float] = {}  # of those that are being replaced
        self.order: list[str] = []
        self.begun: set[str] = set()
        self.most = 0

    def lead(self) -> None:
        """Another leader: what the one before had not written yet it never writes, and every function is looked at again."""
        self.found = Replacing()
        self.writes.clear()
        self.rounds = dict.fromkeys(FUNCTIONS[:60], self.now)

    def step(self, known: bool = True) -> None:
        """A second."""
        self.now += 1.0
        for uid in [uid for uid, at in self.rounds.items() if at <= self.now]:
            del self.rounds[uid]
            if uid in self.begun:
                self.found.written(uid)
            elif uid not in self.writes and self.found.ask(uid, self.nodes, self.now):
                self.writes[uid] = self.now + self.writing()
        for uid in [uid for uid, at in self.writes.items() if at <= self.now]:
            del self.writes[uid]
            self.order.append(uid)
            self.begun.add(uid)
            self.ends[uid] = self.now + (1e9 if uid in self.stuck else TAKES)
            self.found.written(uid)
        self.ends = {uid: end for uid, end in self.ends.items() if end > self.now}
        going = self.ends.keys()
        self.most = max(self.most, len(going - self.stuck))
        for uid in self.found.look(going if known else None, going, self.nodes, self.now):
            self.rounds[uid] = self.now + self.lag()


def replaced(nodes: int, functions: list[str], stuck: frozenset[str] = NOBODY) -> tuple[float, int, list[str]]:
    """When all have had their turn, how many were replaced together at most, and in which order they began."""
    world = Rollouts(nodes, stuck)
    world.rounds = dict.fromkeys(functions, 0.0)
    while len(world.order) < len(functions):
        world.step()
    return world.now, world.most, world.order


@pytest.mark.parametrize(("nodes", "together"), [(0, REPLACED_A_NODE), (1, REPLACED_A_NODE), (3, 3 * REPLACED_A_NODE), (50, REPLACED)])
def test_few_are_replaced_together_on_each_node_and_in_all_and_all_are_in_their_order(nodes: int, together: int) -> None:
    functions = FUNCTIONS[:400]
    took, found, order = replaced(nodes, functions)
    assert (found, order) == (together, functions)
    assert took <= len(functions) / together * (TAKES + 2)


def test_ten_thousand_are_replaced_in_half_an_hour() -> None:
    took, found, order = replaced(50, FUNCTIONS)
    assert found == REPLACED
    assert len(order) == len(FUNCTIONS)
    assert took < 2200


def test_an_image_that_does_not_start_harms_a_few_at_a_time_and_one_function_keeps_nobody_waiting_for_ever() -> None:
    took, _, _ = replaced(1, FUNCTIONS[:12], frozenset(FUNCTIONS))
    assert 2 * REPLACE_TURN_SECONDS <= took <= 2 * REPLACE_TURN_SECONDS + 5
    took, _, _ = replaced(1, FUNCTIONS[:40], frozenset(FUNCTIONS[:1]))
    assert took < REPLACE_TURN_SECONDS


def behind(seed: int) -> Rollouts:
    """An operator that is behind by up to 20 s with its rounds and up to 8 s with its writes, over two changes of the leader."""
    chosen = random.Random(seed)
    world = Rollouts(1, lag=lambda: chosen.uniform(0, 20), writing=lambda: chosen.uniform(0, 8))
    world.rounds = {uid: chosen.uniform(0, 20) for uid in FUNCTIONS[:60]}
    changes = {chosen.randrange(20, 200) for _ in range(2)}
    while len(world.order) < 60:
        if world.now in changes:
            world.lead()
        world.step(known=chosen.random() < 0.9)
        assert world.now < 3000, f"{len(world.order)} of 60"
    return world


@pytest.mark.parametrize("seed", range(40))
def test_no_more_are_replaced_together_where_the_operator_is_behind_and_when_another_leads(seed: int) -> None:
    world = behind(seed)
    assert world.most <= most(1)
    assert sorted(world.order) == FUNCTIONS[:60], "each once"


@pytest.mark.parametrize("guard", ["written", "known"])
def test_negative_control_where_turns_end_before_they_begin_or_nobody_asks_who_has_begun_there_are_more(
    guard: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if guard == "written":
        over = lambda self, going, now: not going or now - self.since >= REPLACE_TURN_SECONDS  # noqa: E731
        monkeypatch.setattr(replacing._Turn, "over", over)
    else:
        begin = Replacing.__init__

        def knows(self: Replacing) -> None:
            begin(self)
            self._known = True

        monkeypatch.setattr(Replacing, "__init__", knows)
    assert max(behind(seed).most for seed in range(40)) > most(1)


def known() -> Replacing:
    found = Replacing()
    assert found.look(NOBODY, NOBODY, 1, 0.0) == []
    return found


def test_until_it_is_known_who_is_being_replaced_nobody_begins_and_nothing_ends() -> None:
    found = Replacing()
    assert not found.ask("a", 1, 0.0)
    assert found.look(None, NOBODY, 1, 1.0) == []
    assert not found.ask("a", 1, 1.0)
    before = frozenset(FUNCTIONS[:REPLACED_A_NODE])
    assert found.look(before, before, 1, 2.0) == [], "those of the leader before are as many as may be"
    assert found.look(None, NOBODY, 1, 3.0) == []
    assert found.look(before - {FUNCTIONS[0]}, NOBODY, 1, 4.0) == ["a"]


def test_who_asks_again_while_it_waits_waits_in_its_place() -> None:
    found = known()
    assert [found.ask(uid, 1, 0.0) for uid in FUNCTIONS[:6]] == [True] * 4 + [False] * 2
    assert not found.ask(FUNCTIONS[4], 1, 0.0)
    for uid in FUNCTIONS[:4]:
        found.written(uid)
    assert found.look(NOBODY, NOBODY, 1, 1.0) == FUNCTIONS[4:6]
    assert found.look(NOBODY, NOBODY, 1, 2.0) == []
    assert [found.ask(uid, 1, 3.0) for uid in FUNCTIONS[6:10]] == [True] * 2 + [False] * 2
    assert not found.ask("late", 2, 3.0), "a node more, and those who wait come first"
    assert found.look(frozenset(FUNCTIONS), NOBODY, 2, 4.0) == [*FUNCTIONS[8:10], "late"]


def test_a_turn_ends_once_it_is_written_and_rolled_out_and_not_before() -> None:
    found = known()
    assert all(found.ask(uid, 1, 0.0) for uid in FUNCTIONS[:4])
    assert not found.ask("next", 1, 0.0)
    assert found.look(NOBODY, NOBODY, 1, REPLACE_TURN_SECONDS - 1) == [], "it may be written at any moment"
    found.written(FUNCTIONS[0])
    assert found.look({FUNCTIONS[0]}, {FUNCTIONS[0]}, 1, REPLACE_TURN_SECONDS - 1) == []
    assert found.look(NOBODY, NOBODY, 1, REPLACE_TURN_SECONDS - 1) == ["next"]


def test_who_does_not_ask_when_its_turn_has_come_loses_it_and_who_has_nothing_to_write_ends_it() -> None:
    found = known()
    assert all(found.ask(uid, 1, 0.0) for uid in FUNCTIONS[:4])
    assert [found.ask(uid, 1, 0.0) for uid in FUNCTIONS[4:9]] == [False] * 5
    found.written(FUNCTIONS[8])  # went to sleep, or is gone
    for uid in FUNCTIONS[:4]:
        found.written(uid)
    assert found.look(NOBODY, NOBODY, 1, 1.0) == FUNCTIONS[4:8]
    assert [found.ask(uid, 1, 2.0) for uid in FUNCTIONS[9:13]] == [False] * 4
    found.written(FUNCTIONS[4])
    assert found.look(NOBODY, NOBODY, 1, 2.0) == [FUNCTIONS[9]]
    assert found.look(NOBODY, NOBODY, 1, REPLACE_BEGIN_SECONDS) == []
    assert found.look(NOBODY, NOBODY, 1, 1.0 + REPLACE_BEGIN_SECONDS) == FUNCTIONS[10:13]
    assert not found.ask(FUNCTIONS[5], 1, 2.0 + REPLACE_BEGIN_SECONDS)


def test_who_has_nothing_to_lose_comes_first() -> None:
    found = known()
    assert all(found.ask(uid, 1, 0.0) for uid in FUNCTIONS[:4])
    assert not any(found.ask(uid, 1, 0.0) for uid in FUNCTIONS[4:7])
    assert not found.ask(FUNCTIONS[6], 1, 0.0, first=True), "it serves no more"
    assert not found.ask("down", 1, 0.0, first=True)
    for uid in FUNCTIONS[:3]:
        found.written(uid)
    assert found.look(NOBODY, NOBODY, 1, 1.0) == [FUNCTIONS[6], "down", FUNCTIONS[4]]


def test_who_comes_first_for_a_moment_does_not_lose_its_place() -> None:
    found = known()
    assert all(found.ask(uid, 1, 0.0) for uid in FUNCTIONS[:4])
    assert not any(found.ask(uid, 1, 0.0) for uid in FUNCTIONS[4:7])
    assert not found.ask(FUNCTIONS[4], 1, 1.0, first=True)
    assert not found.ask(FUNCTIONS[4], 1, 2.0)
    found.written(FUNCTIONS[0])
    assert found.look(NOBODY, NOBODY, 1, 3.0) == [FUNCTIONS[4]]


def of(uid: str, **status: int) -> dict[str, Any]:
    made = deployment(1)
    made["metadata"] = {**made["metadata"], "generation": 2, "name": uid, "labels": {**made["metadata"]["labels"], "dormouse.dev/uid": uid}}
    return {**made, "status": status}


DONE = {"observedGeneration": 2, "replicas": 1, "updatedReplicas": 1, "availableReplicas": 1}


@pytest.mark.parametrize("lack", [{"observedGeneration": 1}, {"replicas": 2}, {"updatedReplicas": 0}, {"availableReplicas": 0}])
def test_a_deployment_has_replaced_its_pods_when_it_says_so_of_what_it_is_now(lack: dict[str, int]) -> None:
    assert rolled_out(of("u", **DONE))
    assert not rolled_out(of("u", **{**DONE, **lack}))


@pytest.mark.parametrize(
    ("status", "replaced"),
    [
        (DONE, False),
        ({**DONE, "observedGeneration": 1}, True),
        ({**DONE, "replicas": 2}, True),
        ({**DONE, "updatedReplicas": 0}, True),  # under a quota with no room for one more
        ({**DONE, "availableReplicas": 0}, False),  # it starts, or fails
        ({"observedGeneration": 2}, False),  # it is being woken
    ],
)
def test_a_deployment_is_being_replaced_while_it_has_pods_of_before(status: dict[str, int], replaced: bool) -> None:
    assert being_replaced(of("u", **status)) is replaced


def down(ago: float) -> dict[str, Any]:
    return {"type": "Available", "status": "False", "lastTransitionTime": timestamp(NOW - ago)}


@pytest.mark.parametrize(
    ("ready", "conditions", "nobody"),
    [
        (0, [down(REPLACE_TURN_SECONDS)], True),
        (0, [down(REPLACE_TURN_SECONDS - 1)], False),  # it was just woken, and callers wait
        (1, [down(REPLACE_TURN_SECONDS)], False),
        (0, [], False),
        (0, [{"type": "Available", "status": "False"}], False),
        (0, [{**down(REPLACE_TURN_SECONDS), "status": "True"}], False),
    ],
)
def test_of_a_deployment_nobody_serves_when_that_has_been_so_for_long(ready: int, conditions: list[Any], nobody: bool) -> None:
    found = of("u", **{**DONE, "availableReplicas": ready})
    found["status"]["conditions"] = conditions
    assert serves_nobody(found, NOW) is nobody


class Copied:
    """Replacements over a copy of Deployments."""

    def __init__(self, *uids: str, **status: int) -> None:
        self.clock, self.turns = ManualClock(), list[str]()
        self.copies = Reflector(MemoryApi(), self.clock, DEPLOYMENTS)
        self.copies.items = {("ns", uid): of(uid, **{**DONE, **status}) for uid in uids}
        self.found = Replacements(self.clock, self.copies, lambda: 1, self.turns.append)

    def listed(self) -> None:
        self.copies._unlisted.clear()
        self.found.look()

    def may(self, uid: str) -> bool:
        return self.found.may(uid, self.copies.items[("ns", uid)])

    def becomes(self, uid: str, **status: int) -> None:
        self.copies.items[("ns", uid)] = of(uid, **{**DONE, **status})
        self.found.look()


def test_the_next_one_is_written_when_one_has_ended() -> None:
    world = Copied(*FUNCTIONS[:6])
    world.listed()
    assert Counter(world.may(uid) for uid in FUNCTIONS[:6]) == {True: REPLACED_A_NODE, False: 2}
    world.found.look()
    assert world.turns == [], "all are rolled out as they were before"
    world.becomes(FUNCTIONS[1], updatedReplicas=0)
    assert world.turns == []
    world.becomes(FUNCTIONS[1])
    assert world.turns == [FUNCTIONS[4]]
    assert world.may(FUNCTIONS[4])
    del world.copies.items[("ns", FUNCTIONS[2])]
    world.found.written(FUNCTIONS[2])
    world.found.look()
    assert world.turns == FUNCTIONS[4:6], "who is gone keeps nobody waiting"


def test_one_that_is_scaled_while_it_waits_waits_in_its_place() -> None:
    """Until Kubernetes has seen that, the Deployment's status is of before: it is not known to be replaced by anything."""
    world = Copied(*FUNCTIONS[:8])
    world.listed()
    assert [world.may(uid) for uid in FUNCTIONS[:7]] == [True] * 4 + [False] * 3
    world.becomes(FUNCTIONS[6], observedGeneration=1)
    assert not world.may(FUNCTIONS[6])
    world.becomes(FUNCTIONS[7], observedGeneration=1, replicas=2)
    assert not world.may(FUNCTIONS[7]), "an image that does not start replaces it, and it was scaled"
    for uid in FUNCTIONS[:2]:
        world.found.written(uid)
    world.found.look()
    assert world.turns == [FUNCTIONS[7], FUNCTIONS[4]]


def test_another_leader_counts_whom_it_finds_being_replaced_and_begins_nobody_before() -> None:
    world = Copied(*FUNCTIONS[:8])
    for uid in FUNCTIONS[:3]:
        world.copies.items[("ns", uid)] = of(uid, **{**DONE, "replicas": 2})
    failing = of(FUNCTIONS[3], **{**DONE, "availableReplicas": 0})
    failing["status"]["conditions"] = [down(REPLACE_TURN_SECONDS)]
    world.copies.items[("ns", FUNCTIONS[3])] = failing
    assert not any(world.may(uid) for uid in FUNCTIONS[4:7])
    world.found.look()
    assert world.turns == []
    world.listed()
    assert world.turns == FUNCTIONS[4:5]
    world.becomes(FUNCTIONS[0])
    assert world.turns == FUNCTIONS[4:6]
    assert not world.may(FUNCTIONS[7])
    assert not world.may(FUNCTIONS[3])
    world.becomes(FUNCTIONS[1])
    assert world.turns == [*FUNCTIONS[4:6], FUNCTIONS[3]], "nobody of it has served for long: it comes first"
