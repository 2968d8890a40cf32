"""Whose turn it is to start a worker: bounds, order, and that everybody's turn comes."""

from dataclasses import dataclass, field
from random import Random

import pytest
from dormouse_core import starts
from dormouse_core.limits import START_ORDER_SECONDS, START_TURN_SECONDS, STARTS, STARTS_A_NODE, STARTS_A_NODE_CALLED
from dormouse_core.seams import Instance
from dormouse_core.starts import Order, Room, Starts, room, turns


def order(uid: str, more: int = 1, *, called: bool = False, since: float = 0.0) -> Order:
    return Order((uid, "r"), more, called, since, since)


def instance(uid: str, name: str = "", *, node: str = "", **more: bool) -> Instance:
    return Instance(name or f"{uid}-1", f"ns/{uid}", uid, "r", 0.0, node=node, **more)  # type: ignore[arg-type]


def granted(orders: list[Order], found: Room) -> dict[str, int]:
    return {uid: count for (uid, _), count in turns(orders, found, 9.0).items()}


# ------------------------------------------------------------------------------------------------------------------ room and turns


def test_one_machine_has_the_room_of_a_node() -> None:
    assert room({}, ()) == Room(STARTS_A_NODE_CALLED, STARTS_A_NODE, 0)
    assert room({"": 3}, ()) == Room(STARTS_A_NODE_CALLED - 3, STARTS_A_NODE - 3, 3)


def test_nodes_have_room_together_and_what_one_has_too_many_all_have() -> None:
    assert room({}, ("a", "b", "c")).others == 3 * STARTS_A_NODE
    assert room({"a": STARTS_A_NODE}, ("a", "b")).others == STARTS_A_NODE
    assert room({"a": STARTS_A_NODE + 3}, ("a", "b")).others == STARTS_A_NODE - 3
    assert room({"a": 1, "": 2}, ("a", "b")).others == 2 * STARTS_A_NODE - 3


def test_however_many_nodes_there_are_there_is_a_bound_in_all() -> None:
    assert room({}, [str(n) for n in range(100)]) == Room(STARTS, STARTS // 2, 0)
    assert room({"0": STARTS}, [str(n) for n in range(100)]) == Room(0, 0, STARTS)


@pytest.mark.parametrize("nodes", [1, 3, 15, 16, 20, 50, 100])
def test_however_many_start_that_nobody_calls_there_is_room_for_who_is_called(nodes: int) -> None:
    found = Starts()
    found.look([instance(f"old{n}", node=f"n{n}", stopping=True) for n in range(nodes)], (), 0.0)
    for now in (0.0, 1.0, START_TURN_SECONDS, START_TURN_SECONDS + 1):
        for n in range(4 * STARTS):
            found.ask(f"f{n}", "r", 1, called=False, now=now)
    assert found.room().others == 0
    assert found.ask("called", "r", 1, called=True, now=START_TURN_SECONDS + 2) == 1


def test_who_is_called_comes_first_and_has_more_room() -> None:
    orders = [order("first"), order("second", since=1), order("called", called=True, since=9)]
    assert granted(orders, Room(called=2, others=1, starting=0)) == {"called": 1}
    assert granted(orders, Room(called=5, others=2, starting=0)) == {"called": 1, "first": 1}
    assert granted(orders, Room(called=0, others=0, starting=9)) == {}


def test_one_each_in_the_order_in_which_they_asked_and_then_the_rest() -> None:
    orders = [order("many", 5), order("late", since=2), order("early", since=1)]
    assert granted(orders, Room(9, 2, 0)) == {"many": 1, "early": 1}
    assert granted(orders, Room(9, 5, 0)) == {"many": 3, "early": 1, "late": 1}


# ------------------------------------------------------------------------------------------------------------------ what is seen


def filled() -> Starts:
    """No node is known, and as many start as may."""
    found = Starts()
    assert [found.ask(f"f{n}", "r", 1, called=False, now=0.0) for n in range(STARTS_A_NODE + 2)] == [1] * STARTS_A_NODE + [0, 0]
    return found


def test_what_is_granted_counts_before_it_is_seen_and_once() -> None:
    found = filled()
    found.look([instance(f"f{n}") for n in range(STARTS_A_NODE)], (), 1.0)
    for n in range(STARTS_A_NODE):
        found.seen(f"f{n}", "r")
    assert found.room() == Room(STARTS_A_NODE_CALLED - STARTS_A_NODE, 0, STARTS_A_NODE)


@pytest.mark.parametrize(
    "over", [{"serves": True}, {"stopping": True}, {"exited": True}, {"unplaced": True}, {"lost": True}, {"late": True}]
)
def test_who_serves_failed_goes_has_no_place_or_takes_too_long_starts_no_more(over: dict[str, bool]) -> None:
    found = filled()
    for n in range(STARTS_A_NODE):
        found.seen(f"f{n}", "r")
    serves, late = over.pop("serves", False), over.pop("late", False)
    there = [instance(f"f{n}") for n in range(STARTS_A_NODE)]
    assert found.look(there, (), 1.0) == []
    there[0] = instance("f0", **over)
    serving = {("f0", "f0-1")} if serves else set()
    if late:
        assert found.look(there, serving, START_TURN_SECONDS - 1) == []
        assert found.ask(f"f{STARTS_A_NODE}", "r", 1, called=False, now=START_TURN_SECONDS - 1) == 0
    left = found.look(there, serving, 1.0 + START_TURN_SECONDS if late else 2.0)
    assert left[0] == f"f{STARTS_A_NODE}", "who asked first"


def test_an_unknown_provider_leaves_it_as_it_was() -> None:
    found = filled()
    found.look([instance(f"f{n}") for n in range(STARTS_A_NODE)], (), 1.0)
    assert found.look(None, (), 2.0) == []
    assert found.room().others == 0


def test_who_waits_is_told_the_same_until_its_turn_comes() -> None:
    found = filled()
    said = found.waits(f"f{STARTS_A_NODE}")
    assert said == f"it waits for its turn to start; workers that are starting: {STARTS_A_NODE}"
    assert found.waits("f0") == ""
    found.seen("f0", "r")
    assert found.ask(f"f{STARTS_A_NODE + 1}", "r", 1, called=False, now=1.0) == 0, "another asked before"
    assert found.waits(f"f{STARTS_A_NODE}") == said
    assert found.ask(f"f{STARTS_A_NODE}", "r", 1, called=False, now=1.0) == 1
    found.only(f"f{STARTS_A_NODE}", ())
    assert found.waits(f"f{STARTS_A_NODE}") == ""


def test_who_asks_no_more_keeps_nobody_waiting() -> None:
    found = filled()
    there = [instance(f"f{n}") for n in range(STARTS_A_NODE - 1)]
    for n in range(STARTS_A_NODE):
        found.seen(f"f{n}", "r")
    assert found.look(there, (), 1.0) == [f"f{STARTS_A_NODE}"]
    found.only(f"f{STARTS_A_NODE}", ("another",))
    assert found.look(there, (), 1.0) == [f"f{STARTS_A_NODE + 1}"]
    assert found.look(there, (), START_ORDER_SECONDS + 1) == []


def test_who_is_called_while_it_waits_comes_before_those_that_wait_with_it() -> None:
    found = filled()
    assert found.ask(f"f{STARTS_A_NODE + 1}", "r", 1, called=True, now=2.0) == 1


# ------------------------------------------------------------------------------------------------------------------ called all the time


def steady(each_second: int, proofs: int, seconds: int) -> tuple[dict[str, float], float]:
    """Beside functions that are called and wake all the time, and take 6 s each, on one node: when each proof's turn came, and how long a
    called one waited at most. Proofs ask from the tenth second on."""
    found, ends, proved, waited = Starts(), dict[str, float](), dict[str, float](), 0.0
    waiting: dict[str, float] = {}
    for now in map(float, range(seconds)):
        found.look([instance(uid, node="n") for uid, end in ends.items() if end > now], (), now)
        for uid in ends:
            found.seen(uid, "r")
        waiting |= {f"c{now:.0f}-{n}": now for n in range(each_second)}
        asking = [f"p{n}" for n in range(proofs) if f"p{n}" not in proved] if now >= 10 else []
        for uid in [*asking, *waiting]:
            if found.ask(uid, "r", 1, called=uid in waiting, now=now):
                ends[uid] = now + 6
                if uid in waiting:
                    waited = max(waited, now - waiting.pop(uid))
                else:
                    proved[uid] = now
        starting = {uid for uid, end in ends.items() if end > now}
        assert len(starting) <= STARTS_A_NODE_CALLED
        late = [uid for uid in starting if uid in proved and proved[uid] >= 10 + START_TURN_SECONDS]
        assert len(late) <= 1, "one place a node"
    return proved, waited


def test_beside_workers_that_wake_all_the_time_a_proof_has_its_turn_and_who_is_called_does_not_wait_for_it() -> None:
    proved, waited = steady(each_second=1, proofs=10, seconds=200)
    assert sorted(proved.values()) == [10 + START_TURN_SECONDS + 6 * n for n in range(10)]
    assert waited == 0


def test_also_where_more_wake_than_may_start() -> None:
    assert len(steady(each_second=2, proofs=3, seconds=120)[0]) == 3


def test_negative_control_where_waiting_long_is_no_reason_a_proof_never_has_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starts, "_late", lambda since, now: False)
    assert steady(each_second=1, proofs=1, seconds=3_600)[0] == {}


# ------------------------------------------------------------------------------------------------------------------ many at once


@dataclass
class Crowd:
    """Functions that want a worker, on nodes that a scheduler chooses; time in seconds. Some are called while they wait; some hang."""

    random: Random
    found: Starts = field(default_factory=Starts)
    now: float = 0.0
    running: dict[str, Instance] = field(default_factory=dict)
    ends: dict[str, float] = field(default_factory=dict)
    serving: set[tuple[str, str]] = field(default_factory=set)

    def play(self, functions: int, nodes: int) -> list[str]:
        """Whose turn came, in its order."""
        waiting = {f"f{n:03}" for n in range(functions)}
        called, heard, order = set[str](), set[str](), list[str]()
        while waiting and self.now < 4_000:
            self.now += 1
            called |= {uid for uid in sorted(waiting) if self.random.random() < 0.005}
            for uid in self.random.sample(sorted(waiting), len(waiting)):
                late = self.found.room().late and self.now >= 1 + START_TURN_SECONDS
                granted = self.found.ask(uid, "r", 1, called=uid in called, now=self.now)
                heard |= {uid} & called
                if granted:
                    first = uid in called or self.found.room().called >= len(heard & waiting)
                    assert first or late, "in the room of who is called"
                    waiting.discard(uid)
                    order.append(uid)
                    self.running[uid] = instance(uid, node=self.random.choice(("", f"n{self.random.randrange(nodes)}")))
                    self.ends[uid] = self.now + (1e9 if self.random.random() < 0.05 else self.random.randint(1, 30))
                    self._look()
                    self.found.seen(uid, "r")
                self._check(nodes, len(called))
            self._look()
        return order

    def _look(self) -> None:
        for uid, each in self.running.items():
            if not each.node and self.random.random() < 0.5:
                self.running[uid] = instance(uid, node=f"n{self.random.randrange(3)}")
        self.serving = {(uid, f"{uid}-1") for uid, end in self.ends.items() if end <= self.now}
        self.found.look(list(self.running.values()), self.serving, self.now)

    def _check(self, nodes: int, called: int) -> None:
        starting = self.found.room().starting
        assert starting <= STARTS
        assert starting <= max(nodes, 3) * (STARTS_A_NODE_CALLED if called else STARTS_A_NODE), "on these nodes together"


@pytest.mark.parametrize("seed", range(6))
def test_of_two_hundred_at_once_everybody_has_a_turn_and_few_start_together(seed: int) -> None:
    random = Random(seed)
    assert sorted(Crowd(random).play(200, random.randint(1, 40))) == [f"f{n:03}" for n in range(200)]


def test_negative_control_without_turns_all_start_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starts, "room", lambda starting, nodes: Room(STARTS, STARTS, sum(starting.values())))
    with pytest.raises(AssertionError, match=r"on these nodes together|in the room of who is called"):
        Crowd(Random(0)).play(200, 3)


def test_negative_control_where_who_asks_first_comes_first_who_is_called_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    def by_time(orders: list[Order], found: Room, now: float) -> dict[starts.Key, int]:
        return TURNS([order(each.key[0], each.more, since=each.since) for each in orders], found, now)

    monkeypatch.setattr(starts, "turns", by_time)
    with pytest.raises(AssertionError, match="in the room of who is called"):
        Crowd(Random(0)).play(200, 3)


TURNS = turns
