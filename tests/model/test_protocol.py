"""Every interleaving of small instances of the session protocol, and each rule taken away. `README.md` here says what is modelled.

A scenario is an instance and what it must show: nothing, or the promise that a missing rule breaks. The large ones are marked slow.
"""

from dataclasses import dataclass
from typing import Any

import pytest
from dormouse_testing.session_model.exploring import Found, explore, walk
from dormouse_testing.session_model.rules import CALLER, END, MESSAGE, PROMISES, START, STEP, Budget, Instance, Rules

STEPS = (START, STEP, STEP)
SHORT = (START, STEP)
AGAIN = (START, END, START)
MESSAGES = (MESSAGE, MESSAGE, MESSAGE)
CLOCKS = PROMISES - {"false refusal", "late start"}
"""What holds whatever the clocks say."""
LOST = frozenset({"lost"})
EFFECTS = PROMISES - {"false again"}
"""A worker that looks for a key which nothing remembers says something false before the second effect: here that effect is looked for."""
SKEWED = {"stamps": ((11, 2, 13, 4),), "makers": ((0, 1, 0, 1),)}
"""Two gateways, one far ahead of the other, alternated by one caller."""
UNKNOWN = {"reassign": 1, "timeout": 1}


@dataclass(frozen=True)
class Scenario:
    name: str
    instance: Instance
    breaks: str = ""
    """The promise that must be broken; '': none."""


def scenario(name: str, *calls: tuple[str, ...], breaks: str = "", without: dict[str, Any] | None = None, **more: Any) -> Any:
    """`without`: the rules that are taken away, by their fields."""
    slow = more.pop("slow", False)
    faults = {key: more.pop(key) for key in Budget._fields if key in more}
    made = Scenario(name, Instance(calls, Rules(**(without or {})), Budget(**faults), **more), breaks)
    return pytest.param(made, id=name, marks=[pytest.mark.slow] if slow else [])


HOLD = [
    scenario("three steps", STEPS, crash=1, reassign=1, timeout=1),
    scenario("three steps, two reassignments", STEPS, crash=1, reassign=2, timeout=1, slow=True),
    scenario("end, start again, removal", AGAIN, kept=1, removal=1, **UNKNOWN),
    scenario("one key is kept", STEPS, kept=1, **UNKNOWN),
    scenario("an abandoned start", (START, START, STEP), kept=3, give_up=1, **UNKNOWN),
    scenario("a commit that the way doubles", STEPS, kept=1, duplicate=1, **UNKNOWN),
    scenario("three workers, handoffs", SHORT, workers=3, kept=1, move=2, timeout=1),
    scenario("clocks that run backwards", AGAIN, kept=1, stamps=((3, 2, 1),), promises=CLOCKS, removal=1, **UNKNOWN),
    scenario("clocks that stand still", AGAIN, kept=1, stamps=((2, 2, 2),), promises=CLOCKS, removal=1, **UNKNOWN),
    scenario("two gateways that differ, alternated", (*MESSAGES, MESSAGE), kept=1, **SKEWED, **UNKNOWN),
    scenario(
        "a caller's own keys beside a gateway's",
        (*MESSAGES, MESSAGE),
        kept=1,
        stamps=((30, 31, 3, 4),),
        makers=((CALLER, CALLER, 0, 0),),
        **UNKNOWN,
    ),
    scenario(
        "more gateways than horizons, and clocks of any order",
        (*MESSAGES, MESSAGE),
        kept=1,
        remembered=1,
        stamps=((11, 2, 13, 4),),
        makers=((0, 1, 2, 0),),
        promises=CLOCKS,
        **UNKNOWN,
    ),
    scenario("end, start again, removal, a crash", AGAIN, kept=1, crash=1, removal=1, **UNKNOWN, slow=True),
    scenario(
        "two sessions of one shard, removals",
        SHORT,
        (START, END),
        shard=(0, 0),
        kept=1,
        promises=PROMISES - {"false refusal"},
        removal=1,
        **UNKNOWN,
        slow=True,
    ),
    scenario(
        "group commit over two shards",
        SHORT,
        (START,),
        shard=(0, 1),
        group=True,
        kept=1,
        promises=PROMISES - {"false refusal"},
        crash=1,
        **UNKNOWN,
        slow=True,
    ),
    scenario("three workers, handoffs and a reassignment", SHORT, workers=3, kept=1, move=2, **UNKNOWN, slow=True),
    scenario("three workers, three steps", STEPS, workers=3, kept=1, crash=1, reassign=1, timeout=2, slow=True),
    scenario("messages that begin their session, removals", MESSAGES, kept=1, crash=1, removal=2, **UNKNOWN, slow=True),
]


@pytest.mark.parametrize("it", HOLD)
def test_no_promise_is_broken(it: Scenario) -> None:
    found = explore(it.instance)
    assert not found.violation, report(found)
    assert found.whole, f"cut at {found.states} states"
    print(f"{it.name}: {found.states} states")


CONTROLS = [
    scenario("no record compare", STEPS, without={"record_compare": False}, breaks="twice", kept=1, crash=1, reassign=2, timeout=1),
    scenario(
        "neither record compare nor fence, every outcome known",
        STEPS,
        without={"record_compare": False, "fence": False, "outcome_read": False},
        breaks="lost",
        kept=1,
        promises=LOST,
        reassign=1,
    ),
    scenario("reply before commit", STEPS, without={"reply_after_commit": False}, breaks="uncommitted", kept=1, **UNKNOWN),
    scenario("reply before commit: a loss", STEPS, without={"reply_after_commit": False}, breaks="lost", kept=1, promises=LOST, reassign=1),
    scenario("kept in memory only", STEPS, without={"keys_in_record": False}, breaks="twice", kept=1, promises=EFFECTS, **UNKNOWN),
    scenario("no horizon", STEPS, without={"horizon": False}, breaks="twice", kept=1, promises=EFFECTS, **UNKNOWN),
    scenario("no tombstone", AGAIN, without={"tombstone": False}, breaks="reply differs", kept=1, removal=1, **UNKNOWN),
    scenario("no floor", AGAIN, without={"floor": False}, breaks="twice", kept=1, promises=EFFECTS, removal=1, **UNKNOWN),
    scenario(
        "no floor inherited", AGAIN, without={"floor_inherited": False}, breaks="twice", kept=1, promises=EFFECTS, removal=1, **UNKNOWN
    ),
    scenario(
        "removal without a compare", AGAIN, without={"removal": "bare"}, breaks="twice", kept=1, promises=EFFECTS, removal=1, **UNKNOWN
    ),
    scenario("no start order", (START, START, STEP), without={"start_order": False}, breaks="late start", kept=3, give_up=1),
    scenario("no move compare", SHORT, without={"move_compare": False}, breaks="stale move", workers=3, move=2),
    scenario(
        "leaders do not compare", SHORT, without={"leader_compare": False, "process_identity": False}, breaks="epoch", leaders=2, reassign=3
    ),
    scenario(
        "absence from memory",
        SHORT,
        without={"absence_remembered": True, "absence_confirmed": False, "entry_before_record": False},
        breaks="false absence",
        reassign=2,
        stale=1,
    ),
    scenario(
        "a record read before the entry",
        STEPS,
        without={"entry_before_record": False, "record_compare": False, "outcome_read": False},
        breaks="lost",
        kept=3,
        promises=LOST,
        reassign=2,
        stale=1,
    ),
    scenario(
        "a group compares one entry of two",
        SHORT,
        SHORT,
        without={"fence_every_shard": False, "record_compare": False, "outcome_read": False},
        breaks="lost",
        shard=(0, 1),
        group=True,
        promises=LOST,
        reassign=1,
    ),
    scenario("the key is not looked up", STEPS, without={"key_looked_up": False}, breaks="false again", kept=1, **UNKNOWN),
    scenario(
        "one horizon for gateways that differ",
        (*MESSAGES, MESSAGE),
        without={"horizons_apart": False},
        breaks="false refusal",
        kept=1,
        **SKEWED,
    ),
    scenario(
        "one horizon for callers and gateways",
        (*MESSAGES, MESSAGE),
        without={"horizons_apart": False},
        breaks="false refusal",
        kept=1,
        stamps=((30, 31, 3, 4),),
        makers=((CALLER, CALLER, 0, 0),),
    ),
]


@pytest.mark.parametrize("it", CONTROLS)
def test_a_rule_that_is_taken_away_is_missed(it: Scenario) -> None:
    found = explore(it.instance)
    assert found.violation == it.breaks, report(found)


REDUNDANT = [
    scenario("no fence", AGAIN, without={"fence": False}, kept=1, removal=1, **UNKNOWN),
    scenario("one name for all processes of a worker", STEPS, without={"process_identity": False}, kept=1, crash=1, **UNKNOWN),
    scenario("absence from a fresh read without the fence", AGAIN, without={"absence_confirmed": False}, kept=1, removal=1, **UNKNOWN),
    scenario("an unknown outcome drops the session", STEPS, without={"outcome_read": False}, kept=1, crash=1, **UNKNOWN, slow=True),
]


@pytest.mark.parametrize("it", REDUNDANT)
def test_what_the_record_compare_makes_redundant(it: Scenario) -> None:
    """These rules have other reasons, which the README names: beside the others, no promise needs them."""
    found = explore(it.instance)
    assert not found.violation, report(found)


ALIVE = [
    scenario("a crash, a reassignment, an unknown outcome", SHORT, alive=True, crash=1, **UNKNOWN),
    scenario("handoffs", SHORT, alive=True, workers=3, crash=1, move=1, timeout=1),
    scenario("end, start again, removal", AGAIN, alive=True, kept=1, removal=1, **UNKNOWN),
    scenario("two crashes", STEPS, alive=True, kept=1, crash=2, **UNKNOWN, slow=True),
    scenario("group commit", (START,), (START,), alive=True, shard=(0, 1), group=True, crash=1, **UNKNOWN, slow=True),
]


@pytest.mark.parametrize("it", ALIVE)
def test_from_every_state_every_call_can_be_answered(it: Scenario) -> None:
    found = explore(it.instance)
    assert not found.violation, report(found)
    assert not found.stuck, report(found)


def test_negative_control_without_failover_a_crash_leaves_calls_unanswered() -> None:
    assert explore(Instance((SHORT,), Rules(failover=False), Budget(crash=1), alive=True)).stuck


FAULTS = Budget(crash=2, reassign=3, timeout=3, move=2, removal=2, duplicate=1)
LONG = ((START, STEP, END, START), (MESSAGE,) * 4)


def large(rules: Rules, shard: tuple[int, int], kept: int, group: bool) -> Instance:
    # A removal waits ten minutes, so its floor is below every fresh call. Time is not modelled: here it may be above a neighbour's.
    promises = PROMISES - {"false refusal"}
    return Instance(LONG, rules, FAULTS, workers=3, shard=shard, copies=3, kept=kept, group=group, promises=promises)


@pytest.mark.parametrize(("shard", "kept", "group"), [((0, 1), 2, False), ((0, 0), 1, True)])
@pytest.mark.parametrize("walks", [300, pytest.param(20_000, marks=pytest.mark.slow)])
def test_random_walks_of_what_is_too_large(shard: tuple[int, int], kept: int, group: bool, walks: int) -> None:
    found = walk(large(Rules(), shard, kept, group), 1, walks)
    assert not found.violation, report(found)


def test_negative_control_of_the_walks() -> None:
    assert walk(large(Rules(floor_inherited=False), (0, 1), 2, False), 1, 2_000).violation
    assert walk(large(Rules(record_compare=False), (0, 0), 1, True), 1, 2_000).violation


def report(found: Found) -> str:
    return "\n".join([found.text or f"{found.violation or 'no violation'}, {found.states} states, {found.stuck} stuck", *found.trace])
