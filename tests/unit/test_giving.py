"""A worker that serves gives its place to the first of a new revision, where there is none beside it."""

from dataclasses import replace
from random import Random

import pytest
from dormouse_core import giving, lifecycle
from dormouse_core.autoscaling import Decision
from dormouse_core.giving import KEEP_SECONDS, LEAST_TRY_SECONDS, PAUSES, SETTLE_SECONDS, TRIES, GivingWay, Places, Way
from dormouse_core.lifecycle import Scale
from dormouse_core.limits import GIVE_WAY_NODE_SECONDS, GIVE_WAY_SECONDS, PLACE_SECONDS
from dormouse_core.seams import Instance
from dormouse_testing.functions_seen import NEW, OLD, World, entry, instance, worker
from dormouse_testing.overtaking import HOLD_SECONDS, LONGEST_END, LONGEST_START, TICK_SECONDS, Overtaking
from hypothesis import given, settings
from hypothesis import strategies as st

AFTER = GIVE_WAY_SECONDS + SETTLE_SECONDS


def lacking(room: str = "namespace") -> Instance:
    return replace(instance("f-new/0", revision=NEW), unplaced=True, room=room)  # type: ignore[arg-type]


def full(count: int = 1, *, room: str = "namespace") -> World:
    """`count` workers of the old revision serve; the first of the new one finds no room."""
    world = World(entry=entry(revision=NEW, proved=OLD), instances=[lacking(room)])
    world.entry.proved_spec = b"{}"
    for number in range(count):
        world.add(worker(f"{number}", revision=OLD))
        world.instances = [*(world.instances or ()), instance(f"i-{number}", revision=OLD)]
    return world


class Played:
    """Looks each second."""

    def __init__(self, world: World, places: Places | None = None) -> None:
        self.world, self.now, self.places = world, 0.0, places or Places()
        self.giving = GivingWay(self.places)

    def look(self, *, rivals: bool = False, last: bool = True, wanted: int = 1, hold: float = HOLD_SECONDS) -> Way:
        return self.giving.look(self.world.seen(), wanted, rivals=rivals, last=last, hold=hold, now=self.now)

    def until(self, at: float, *, rivals: bool = False, last: bool = True, wanted: int = 1) -> Way:
        way = self.look(rivals=rivals, last=last, wanted=wanted)
        while self.now < at:
            self.now += 1.0
            way = self.look(rivals=rivals, last=last, wanted=wanted)
        return way

    def scales(self, wanted: int = 1) -> dict[str, int]:
        steps = lifecycle.live(self.world.seen(), Decision(wanted, "by load"), self.giving.way)
        return {step.revision: step.count for step in steps if isinstance(step, Scale)}


def tried(count: int = 1) -> Played:
    """The new one has the place of one that served, which is gone."""
    found = Played(full(count))
    assert found.until(AFTER, wanted=count).most == count - 1
    found.world.die("0")
    others = [i for i in found.world.instances or () if i.revision == OLD and i.name != "i-0"]
    found.world.instances = [instance("new", revision=NEW), *others]
    found.now += 1
    assert found.look(wanted=count).most == count - 1
    return found


@pytest.mark.parametrize("count", [1, 3])
def test_after_a_while_one_that_serves_goes_and_no_more(count: int) -> None:
    found = Played(full(count))
    assert found.until(AFTER - 1, wanted=count) == Way()
    assert found.scales(count) == {}
    assert found.until(AFTER, wanted=count).most == count - 1
    assert found.scales(count) == {OLD: count - 1}


def test_where_no_node_has_room_one_may_come_first_and_others_that_wait_come_first() -> None:
    found = Played(full(room="node"))
    assert found.until(GIVE_WAY_NODE_SECONDS - 1) == Way()
    assert found.until(300, rivals=True) == Way()
    assert found.until(300 + SETTLE_SECONDS).most == 0


def test_the_last_worker_stays_where_sessions_live_in_its_memory_alone() -> None:
    assert Played(full()).until(600, last=False) == Way()
    assert Played(full(2)).until(AFTER, last=False, wanted=2).most == 1


def test_nobody_goes_while_a_worker_is_not_heard() -> None:
    """A leader that has just begun, or whose way to the worker is cut: nothing says whether sessions live in its memory alone."""
    found = Played(full())
    heard = found.world.workers["0"].report
    found.world.change("0", report=None)
    assert found.until(600) == Way()
    found.world.change("0", report=heard)
    assert found.until(600 + AFTER - 1) == Way()
    assert found.until(600 + AFTER + 1).most == 0


def test_of_those_that_are_superseded_none_goes_while_a_worker_is_not_heard() -> None:
    world = World(entry=entry(revision=NEW, proved=NEW), instances=[lacking(), instance("i-0", revision=OLD)])
    world.add(worker("0", revision=OLD))
    found = Played(world)
    heard = world.workers["0"].report
    world.change("0", report=None)
    assert found.until(600) == Way()
    world.change("0", report=heard)
    assert found.until(600 + AFTER + 1).superseded == 0


def test_nobody_goes_for_what_room_would_not_cure() -> None:
    """Refused by a policy, or it matches no node."""
    assert Played(full(room="")).until(600) == Way()


def test_who_goes_does_not_wait_for_who_comes_in_its_place() -> None:
    """Neither would ever come."""
    for room in ("namespace", "node"):
        world = full(room=room)
        world.instances = [lacking(room), instance("i-0", revision=OLD, stopping=True)]
        world.change("0", draining=True)
        assert not lifecycle.coming(world.seen(), {"0": 0.0}, 0.0, Way(most=0))
    assert lifecycle.coming(world.seen(), {"0": 0.0}, 0.0), "a node may come, where no place was given"


def test_proved_it_is_as_any_other() -> None:
    found = tried()
    found.world.entry.proved_revision = NEW
    found.world.entry.ClearField("proved_spec")
    found.world.add(worker("new"))
    assert found.look() == Way()


@pytest.mark.parametrize("count", [1, 3])
def test_a_bad_one_goes_and_the_one_before_comes_back_and_it_is_tried_again_later_each_time(count: int) -> None:
    found, pauses = tried(count), []
    for _ in range(3):
        found.world.workers.pop("0", None)
        found.world.instances = [i for i in found.world.instances or () if i.revision == OLD and i.name != "i-0"]
        found.world.instances.append(instance("new", revision=NEW, exited=True, problem="not an ONNX model"))
        failed = found.now
        assert found.until(failed + 1, wanted=count).held_back
        assert found.scales(count) == {NEW: 0, OLD: count}
        found.world.add(worker("0", revision=OLD))
        olds = [instance(f"i-{number}", revision=OLD) for number in range(count)]
        found.world.instances = olds
        while found.look(wanted=count).held_back:
            assert found.scales(count) == {}
            found.now += 1
        assert found.scales(count) == {NEW: 1}
        pauses.append(found.now - failed)
        found.world.instances = [lacking(), *olds]
        while (way := found.look(wanted=count)).most is None:
            assert way == Way()
            found.now += 1
    assert [round(each, -1) for each in pauses] == [PAUSES.after(n) for n in (1, 2, 3)]


def test_one_that_finds_no_place_though_one_was_given_or_takes_too_long_goes_too() -> None:
    found = Played(full())
    assert found.until(AFTER).most == 0
    found.world.instances = [lacking(), instance("i-0", revision=OLD, stopping=True)]
    assert found.until(AFTER + 60).most == 0, "its place is not free yet"
    found.world.instances = [lacking()]
    assert not found.until(found.now + PLACE_SECONDS - 1).held_back
    assert found.until(found.now + 3).held_back
    found = tried()
    assert found.until(AFTER + TRIES.first - 1).most == 0
    assert found.until(AFTER + TRIES.first).held_back


def test_after_two_tries_that_did_not_find_the_free_place_there_is_no_third_until_spec_or_limit_change() -> None:
    """It asks for more than the one that serves had: say, of processors."""
    found = Played(full())
    wants = replace(lacking(), limit="requests.cpu=2")
    serves, asks = [instance("i-0", revision=OLD)], [wants, instance("i-0", revision=OLD)]

    def tries() -> int:
        count, end = 0, found.now + 7200
        while found.now < end:
            way = found.look()
            if way.most == 0:
                count += 1
                found.world.instances = [wants]
                while not found.look().held_back:
                    found.now += 1
            found.world.instances = serves if way.held_back else asks
            found.now += 1
        return count

    assert tries() == 2
    assert tries() == 0
    assert not found.look().closed
    assert not found.places.taken("ns", "another", found.now)
    wants = replace(wants, limit="requests.cpu=3")
    asks = [wants, *serves]
    assert tries() == 2
    found.world.entry.revision = "revision-newer"
    wants = replace(wants, revision="revision-newer")
    asks = [wants, *serves]
    assert tries() == 2


def test_who_came_in_the_place_and_was_superseded_there_leaves_it_to_the_newest() -> None:
    found = tried()
    found.world.add(worker("new", revision=NEW))
    found.world.entry.revision = "revision-newest"
    found.world.instances = [replace(lacking(), revision="revision-newest"), instance("i-new", revision=NEW)]
    way = found.look()
    assert (way.most, way.superseded) == (0, 0)
    assert found.scales()[NEW] == 0


def test_who_is_called_gets_the_place_that_a_new_revision_has_once_that_failed() -> None:
    """It slept when a bad revision was applied, which found the only place."""
    bad = instance("new", revision=NEW, exited=True, problem="not an ONNX model")
    waits = replace(instance("f-old/0", revision=OLD), unplaced=True, room="namespace")
    found = Played(World(entry=entry(revision=NEW, proved=OLD), instances=[bad]))
    found.world.entry.proved_spec = b"{}"
    assert found.until(60, wanted=0) == Way()
    found.world.instances = [bad, waits]
    assert found.look(wanted=1).held_back
    assert found.scales() == {NEW: 0}


def test_a_bad_one_that_has_a_place_goes_before_one_that_serves_what_is_older() -> None:
    """Of three revisions: the one that serves is half rolled out, and the newest has failed in the place that its next worker lacks."""
    bad = instance("new", revision=NEW, exited=True, problem="not an ONNX model")
    waits = replace(instance("f-old/0", revision=OLD), unplaced=True, room="namespace")
    found = Played(World(entry=entry(revision=NEW, proved=OLD), instances=[bad, waits, instance("i-older", revision="revision-older")]))
    found.world.entry.proved_spec = b"{}"
    found.world.add(worker("older", revision="revision-older"))
    assert found.look().held_back


def test_what_is_not_known_changes_nothing() -> None:
    found = Played(full())
    found.until(AFTER - 1)
    found.world.instances = None
    assert found.until(600) == Way()
    found.world.instances = full().instances
    assert found.look().most == 0, "as it was before"


def test_one_of_a_namespace_at_a_time_and_the_place_is_not_anothers() -> None:
    places = Places()
    first, second = Played(full(), places), Played(full(), places)
    second.world.entry.uid = "uid-2"
    for _ in range(int(AFTER) + 1):
        for each in (first, second):
            each.now += 1
            each.look()
    assert (first.giving.way.most, second.giving.way) == (0, Way(closed=True, reason=second.giving.way.reason))
    assert second.scales() == {NEW: 0}, "it asks for no place that it would find"
    second.world.instances = [instance("i-0", revision=OLD)]
    first.world.instances = [instance("new", revision=NEW)]
    for _ in range(2):
        first.look()
        second.look()
    assert second.giving.way == Way()
    assert second.scales() == {NEW: 1}


def rolling(places: Places) -> Played:
    """Proved; two of the revision before serve beside its first, and the next finds no place."""
    world = World(
        entry=entry(revision=NEW, proved=NEW), instances=[lacking(), replace(lacking(), name="f-new/1"), instance("i-new", revision=NEW)]
    )
    world.add(worker("new", revision=NEW))
    for number in range(2):
        world.add(worker(f"{number}", revision=OLD))
        world.instances = [*(world.instances or ()), instance(f"i-{number}", revision=OLD)]
    return Played(world, places)


def test_the_place_of_one_that_is_superseded_is_kept_while_it_ends_and_until_the_next_one_has_it() -> None:
    places = Places()
    found = rolling(places)
    there = list(found.world.instances or ())
    assert found.until(AFTER).superseded == 1
    assert found.scales(3) == {OLD: 1}
    found.world.change("0", draining=True)
    found.world.instances = [*there[:3], instance("i-0", revision=OLD, stopping=True), there[4]]
    found.until(AFTER + 60)
    assert places.taken("ns", "another", found.now)
    found.world.die("0")
    found.world.instances = [*there[:3], there[4]]
    found.until(AFTER + 60 + PLACE_SECONDS - 2)
    assert places.taken("ns", "another", found.now)
    found.world.instances = [instance("i-next", revision=NEW), *there[1:3], there[4]]
    found.until(found.now + 1)
    assert not places.taken("ns", "another", found.now)


@pytest.mark.parametrize("ends", [True, False])
def test_it_is_not_kept_for_ever(ends: bool) -> None:
    places = Places()
    found = rolling(places)
    there = list(found.world.instances or ())
    found.until(AFTER)
    found.world.change("0", draining=True)
    found.world.instances = [*there[:3], there[4]] if ends else [*there[:3], instance("i-0", revision=OLD, stopping=True), there[4]]
    found.until(found.now + (PLACE_SECONDS if ends else KEEP_SECONDS) + 1)
    assert not places.taken("ns", "another", found.now)


def test_of_another_namespace_it_is_nobodys_concern() -> None:
    places = Places()
    first, second = Played(full(), places), Played(full(), places)
    second.world.entry.uid, second.world.entry.namespace = "uid-2", "another"
    assert (first.until(AFTER).most, second.until(AFTER).most) == (0, 0)


@settings(max_examples=20)
@given(st.integers(1, 3), st.lists(st.sampled_from(["bad", "good"]), min_size=1, max_size=4), st.integers(0, 1000))
def test_under_a_quota_with_no_room_a_good_one_is_proved_and_a_bad_one_takes_little_from_the_one_before(
    wanted: int, changes: list[str], seed: int
) -> None:
    changed(wanted, changes, seed)


def changed(wanted: int, changes: list[str], seed: int) -> None:
    found = Overtaking(Random(seed), wanted, quota=wanted)
    for _ in range(60):
        found.tick()
    assert found.ready_of("r0") == wanted
    for number, change in enumerate(changes):
        found.change(f"{change}-{number}")
        for _ in range(100):
            found.tick()
            assert len(found.pods) <= wanted
            assert found.ready >= wanted - 1
    newest = f"{changes[-1]}-{len(changes) - 1}"
    served = []
    for _ in range(900):
        found.tick()
        served.append(found.ready)
    if changes[-1] == "good":
        assert found.ready_of(newest) == wanted
        assert {pod.revision for pod in found.pods.values()} == {newest}
    else:
        assert sum(each < wanted for each in served) < 0.2 * len(served), "it does not flap"


CLOSED_SECONDS = 45.0
"""For longer nobody is kept closed while nothing comes or goes: until a pod has ended, and then `PLACE_SECONDS`."""
HAPPENS = ["good", "bad", "evict", "sleep", "wake", "nothing"]


@settings(max_examples=60)
@given(
    wanted=st.tuples(st.integers(1, 3), st.integers(0, 2)),
    lack=st.integers(-2, 2),
    last=st.booleans(),
    history=st.lists(st.tuples(st.sampled_from(HAPPENS), st.integers(0, 1), st.integers(1, 40)), max_size=8),
    seed=st.integers(0, 1000),
)
def test_nobody_is_kept_from_the_next_place_while_nobody_gives_or_takes_one(
    wanted: tuple[int, int], lack: int, last: bool, history: list[tuple[str, int, int]], seed: int
) -> None:
    neighbours(wanted, sum(wanted) - lack, last, history, seed)


@pytest.mark.parametrize(("wanted", "quota"), [(2, 2), (2, 1), (3, 2), (5, 3)])
def test_one_of_several_gives_its_place_also_where_fewer_have_one_than_are_wanted(wanted: int, quota: int) -> None:
    found = Overtaking(Random(1), wanted, quota=quota)
    for _ in range(60):
        found.tick()
    found.change("good-0")
    for _ in range(300):
        found.tick()
    assert found.ready_of("good-0") == quota


def test_with_sessions_in_its_memory_alone_it_keeps_nobody_of_its_namespace_out() -> None:
    places = Places()
    first, second = Played(full(), places), Played(full(), places)
    second.world.entry.uid = "uid-2"
    for _ in range(200):
        for each in (first, second):
            each.now += 1
        first.look(last=False)
        assert not second.look(last=False).closed


def neighbours(wanted: tuple[int, int], quota: int, last: bool, history: list[tuple[str, int, int]], seed: int) -> None:
    random, places = Random(seed), Places()
    both = [Overtaking(random, each, quota=max(quota, 1), giving=GivingWay(places), last=last) for each in wanted]
    both[0].others, both[1].others = lambda: len(both[1].pods), lambda: len(both[0].pods)
    both[1].world.entry.uid = "uid-2"
    since, before = [0.0, 0.0], None
    for number, (what, which, ticks) in enumerate([("nothing", 0, 30), *history, ("nothing", 0, 200)]):
        one = both[which]
        if what in ("good", "bad"):
            one.change(f"{what}-{number}")
        elif what == "evict" and (running := [pod.name for pod in one.pods.values() if not pod.stopping]):
            one.evict(random.choice(running))
        elif what in ("sleep", "wake"):
            one.wanted = 0 if what == "sleep" else max(wanted[which], 1)
        for _ in range(ticks):
            for each in random.sample(both, 2):
                each.tick()
            pods = [(pod.name, pod.stopping) for each in both for pod in each.pods.values()]
            for index, each in enumerate(both):
                if pods != before or not each.giving.way.closed:
                    since[index] = each.now
                assert each.now - since[index] <= CLOSED_SECONDS, f"{wanted} {quota} {last} {history} {seed}"
            before = pods


HOURS = 4


def hours_of_a_hanging_one(seed: int) -> list[float]:
    """A function's only worker, a quota of one pod: for how long nobody served at a stretch, in seconds."""
    found, spans = Overtaking(Random(seed), 1, quota=1), [0.0]
    for _ in range(60):
        found.tick()
    found.change("hangs-0")
    for _ in range(HOURS * 1800):
        found.tick()
        if not found.ready:
            spans[-1] += TICK_SECONDS
        elif spans[-1]:
            spans.append(0.0)
    return spans


@pytest.mark.parametrize("seed", range(3))
def test_one_that_hangs_while_it_loads_takes_the_only_worker_for_less_than_callers_are_held_and_a_tenth_of_the_time(seed: int) -> None:
    spans = hours_of_a_hanging_one(seed)
    assert max(spans) <= HOLD_SECONDS / 2 + TICK_SECONDS * (LONGEST_END + LONGEST_START + 2)
    assert 0 < sum(spans) < HOURS * 3600 / 10


def test_negative_control_without_its_cost_one_that_hangs_takes_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(giving, "COSTS", 0.0)
    assert sum(hours_of_a_hanging_one(1)) > HOURS * 3600 / 10


def test_a_try_that_takes_the_only_worker_lasts_half_as_long_as_callers_are_held() -> None:
    for hold, longest in ((100.0, 50.0), (0.0, LEAST_TRY_SECONDS), (3600.0, TRIES.first)):
        found = Played(full())
        while found.look(hold=hold).most is None:
            found.now += 1
        found.world.die("0")
        found.world.instances = [instance("new", revision=NEW)]
        began = found.now
        while not found.look(hold=hold).held_back:
            found.now += 1
        assert found.now - began == longest


def never(*_: object, **__: object) -> Way:
    return Way()


def test_negative_control_where_nobody_gives_way_it_is_never_proved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(giving.GivingWay, "look", never)
    with pytest.raises(AssertionError, match="good-0"):
        changed(1, ["good"], 1)


def test_negative_control_without_pauses_a_bad_one_takes_the_place_of_the_one_before_again_and_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(giving, "PAUSES", giving.Backoff(0.0, 0.0))
    monkeypatch.setattr(giving, "COSTS", 0.0)
    with pytest.raises(AssertionError, match="it does not flap"):
        changed(1, ["bad"], 1)


def test_negative_control_a_claim_that_nothing_follows_keeps_others_out(monkeypatch: pytest.MonkeyPatch) -> None:
    may = giving.GivingWay._may
    monkeypatch.setattr(giving.GivingWay, "_may", lambda *arguments: may(*arguments) and False)
    with pytest.raises(AssertionError, match="good"):
        neighbours((1, 0), 1, True, [("good", 0, 40)], 0)
