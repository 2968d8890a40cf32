"""Calls that steps make: whom they may call, under which keys, and that a child's step runs once, whoever dies."""

import dataclasses
import itertools
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from dormouse_core import callkeys, childcalls, marks, steps
from dormouse_core.callkeys import CallKey
from dormouse_core.childcalls import Calling, check, key_of, read, target, written
from dormouse_core.errors import Aborted, Code, DormouseError, FailedPrecondition, InvalidArgument, ResourceExhausted
from dormouse_core.keys import Function
from dormouse_core.limits import CALL_DEPTH, KEPT_KEYS, MARKED_KEYS, SESSION_CALLS
from dormouse_core.records import Body

NOW = 1_700_000_000_000_000
SHOP = Function("shop", "orders", "uid-1")
KEY = CallKey(NOW, "g-aa-1")


def calling(**more: Any) -> Calling:
    return Calling(**{"function": SHOP, "key": KEY, "session": "/s:7", **more})


# ------------------------------------------------------------------------------------------------------------------------ whom


def test_a_function_is_named_as_callers_name_it() -> None:
    assert target("ledger", "shop") == "shop/ledger"
    assert target("bank/ledger", "shop") == "bank/ledger"
    assert target("My_Model.v2", "shop") == "shop/my-model-v2"


@pytest.mark.parametrize("wrong", ["", "a b", "a/b/c", "/", "-", None, 7, b"ledger", "x" * 300, "a\nb", "é"])
def test_what_names_no_function_is_refused_with_the_field(wrong: object) -> None:
    with pytest.raises(InvalidArgument, match="call: function: "):
        target(wrong, "shop")


def test_a_function_stands_once_in_a_path() -> None:
    check(("shop/orders",), "shop/ledger")
    with pytest.raises(InvalidArgument, match="does not call itself"):
        check(("shop/orders",), "shop/orders")
    with pytest.raises(InvalidArgument, match="shop/orders -> shop/ledger -> shop/orders"):
        check(("shop/orders", "shop/ledger"), "shop/orders")


def test_a_path_at_its_limit_is_taken_and_one_deeper_is_refused() -> None:
    path = tuple(f"shop/f{n}" for n in range(CALL_DEPTH - 1))
    check(path, "shop/last")
    with pytest.raises(InvalidArgument, match=f"at most {CALL_DEPTH - 1} are allowed"):
        check((*path, "shop/last"), "shop/more")


def test_functions_of_other_namespaces_are_not_called() -> None:
    with pytest.raises(DormouseError, match="calls functions of its own namespace") as refused:
        check(("shop/orders",), "bank/ledger")
    assert refused.value.code == Code.PERMISSION_DENIED


def test_a_path_is_read_as_it_is_written() -> None:
    for path in ((), ("shop/orders",), ("shop/orders", "shop/ledger")):
        assert read(written(path)) == path


@pytest.mark.parametrize(
    "wrong", ["orders", "shop/orders,", ",", "Shop/Orders", "shop/a b", "shop/o\n", ",".join(["shop/f"] * (CALL_DEPTH + 1))]
)
def test_what_nobody_of_ours_wrote_is_no_path(wrong: str) -> None:
    with pytest.raises(InvalidArgument, match="the path of a call"):
        read(wrong)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("", "empty"), (7, "int found"), (b"7", "bytes found"), ("é", "'é' found, printable ASCII"), ("a\nb", "printable ASCII"),
        (" a", "neither begins nor ends with a space"), ("x" * 2_000, "characters"),
    ],
)  # fmt: skip
def test_a_session_has_a_name(wrong: object, says: str) -> None:
    with pytest.raises(InvalidArgument, match=f"call: session: .*{says}"):
        calling().next("ledger", wrong)


def test_a_session_is_called_as_often_in_a_step_as_it_remembers() -> None:
    assert SESSION_CALLS == KEPT_KEYS
    step = calling()
    for _ in range(SESSION_CALLS):
        step.next("ledger", "a")
    with pytest.raises(ResourceExhausted, match=f"was called {SESSION_CALLS} times in this step"):
        step.next("ledger", "a")
    step.next("ledger", "b")
    named = calling()
    for number in range(SESSION_CALLS - 1):
        named.next("ledger", "a", f"k{number}")
    named.next("ledger", "a")
    named.next("ledger", "a", "k0")  # which it made before
    for name in ("new", None):
        with pytest.raises(ResourceExhausted, match=f"was called {SESSION_CALLS} times in this step"):
            named.next("ledger", "a", name)


# ------------------------------------------------------------------------------------------------------------------------- keys


def test_a_childs_key_follows_from_what_is_the_same_when_the_step_is_run_again() -> None:
    once, again = calling(), calling(path=("shop/front",))
    keys = [once.next("ledger", "a")[1] for _ in range(3)]
    assert keys == [again.next("ledger", "a")[1] for _ in range(3)]
    assert [int(key.partition("-")[0]) for key in keys] == [NOW, NOW + 1, NOW + 2], "none passes for older than the one before it"
    others = [
        calling(key=CallKey(NOW, "g-aa-2")),
        calling(session="/s:8"),
        calling(session="acme/s:7"),
        calling(tenant="acme"),
        calling(function=dataclasses.replace(SHOP, uid="uid-2")),
    ]
    found = {key_of(step, "shop/ledger", "a", 0) for step in (once, *others)}
    found |= {key_of(once, label, session, number) for label, session, number in (("shop/l", "a", 0), ("shop/ledger", None, 0))}
    found |= {key_of(once, "shop/ledger", "b", 0), key_of(once, "shop/ledger", "a", 1)}
    assert len(found) == 10


def test_a_function_that_adopted_sessions_asks_under_the_keys_of_the_one_before() -> None:
    """What its sessions keep of their calls is the former function's: a step that ran there before is run again here under its key."""
    before, after = SHOP, Function("shop", "orders", "uid-2", store_id="uid-1")
    assert key_of(calling(function=before), "shop/ledger", "a", 0) == key_of(calling(function=after), "shop/ledger", "a", 0)


def test_a_call_that_the_handler_names_is_the_same_call_wherever_it_is_made() -> None:
    once, again = calling(), calling()
    first = once.next("ledger", "a", "charge")
    assert first == once.next("ledger", "a", "charge"), "also made again after an error"
    for _ in range(3):
        again.next("ledger", "a")
    assert again.next("ledger", "a", "charge") == first, "and whatever came before it"
    others = {once.next("ledger", *which)[1] for which in (("a", "refund"), ("b", "charge"), ("a", "0"), ("a",))}
    assert len(others | {first[1]}) == 5, "a name that is a number is no number"


@pytest.mark.parametrize("wrong", ["", 7, b"k", "é", "a\nb", "\ud800", "k" * 129])
def test_the_name_of_a_call_is_text(wrong: object) -> None:
    step = calling()
    with pytest.raises(InvalidArgument, match="call: key: "):
        step.next("ledger", "a", wrong)
    assert step.next("ledger", "a") == calling().next("ledger", "a"), "and takes no number"


def test_steps_without_a_session_that_were_asked_for_different_things_under_one_key_share_no_calls() -> None:
    """Nobody refuses the second one: two users who number their calls."""
    keys = {calling(session="", content=content).next("ledger", "a")[1] for content in (b"1", b"2", b"")}
    assert len(keys) == 3


TIMELESS = CallKey(NOW, "c-click-1", "g-aa")


def test_a_step_whose_key_says_no_time_calls_no_function_with_sessions_and_says_which_key_it_may_have() -> None:
    step = calling(key=TIMELESS)
    with pytest.raises(FailedPrecondition, match=r"shop/ledger has sessions.*says no time: 'click-1' found.*\{16 digits\}-\{id\} "):
        step.next("ledger", "a")
    calling(key=CallKey(NOW, "c-click-1", callkeys.CALLERS, NOW + 5)).next("ledger", "a")


def test_nor_does_one_that_such_a_step_called() -> None:
    """Its key would look as if it said the time, and be another one whenever the first is sent."""
    keys = [calling(session="", key=CallKey(NOW + later, TIMELESS.id, "g-aa")).next("middle", None)[1] for later in (0, 60_000_000)]
    assert keys[0] == keys[1]
    taken = callkeys.parse(f"{NOW + 9:016d}-g-bb-1", keys[0], NOW + 9, callkeys.LocalKeys("n"))
    assert taken.opaque
    with pytest.raises(FailedPrecondition, match="says no time"):
        calling(key=taken, function=Function("shop", "middle", "uid-3")).next("ledger", "a")


def test_calls_of_different_sessions_may_be_made_in_any_order() -> None:
    first, second = calling(), calling()
    one = {session: first.next("ledger", session)[1] for session in ("a", "b")}
    assert one == {session: second.next("ledger", session)[1] for session in ("b", "a")}


def test_every_key_is_one_that_a_worker_takes() -> None:
    local = callkeys.LocalKeys("n")
    for key in (KEY, CallKey(NOW, "c-order/7", callkeys.CALLERS, NOW + 5), CallKey(NOW, "w-x-1")):
        made = calling(key=key).next("ledger", "a")[1]
        taken = callkeys.parse(f"{NOW + 9:016d}-g-bb-1", made, NOW + 9, local)
        assert (taken.timestamp_us, taken.maker, taken.opaque) == (NOW, callkeys.CALLERS, False)


def test_a_workers_proof_is_its_secret_and_nothing_else() -> None:
    stored = childcalls.shown("a" * 64)
    assert childcalls.proves(stored, "a" * 64)
    for wrong in ("", "b" * 64, stored.hex()):
        assert not childcalls.proves(stored, wrong)
    assert not childcalls.proves(b"", ""), "a worker that calls nobody is nobody's"


# ------------------------------------------------------------------------------------------ a child's step runs once, whoever dies


class Lost(Exception):
    """The step's worker died."""


class World:
    """Sessions as their records are (`dormouse_core.steps`), of parents and of children; steps that die at any point and are run again."""

    def __init__(self, seed: int, key: Callable[..., str]) -> None:
        self.random = random.Random(seed)
        self.key = key
        self.now = NOW
        self.records: dict[str, Body] = {}
        self.ran: Counter[tuple[str, str, int]] = Counter()
        self.answered: set[tuple[str, str, int]] = set()
        self.refused = 0
        self._writes = itertools.count()

    def commit(self, session: str, key: CallKey, asked: bytes) -> bool:
        """A step of the session: whether it ran, or was answered with what is kept. Aborted: too old to be known."""
        call = Asked(session, key, asked)
        body = self.records.get(session)
        decision = steps.admit(body, None, 0, call, None, frozenset("v"), "f")
        if isinstance(decision, steps.Refuse):
            raise decision.error
        if isinstance(decision, steps.Repeat):
            return False
        write = b"%d" % next(self._writes)
        self.records[session] = steps.advance(body, None, 0, call, decision.begins, b"reply", self.now, 1 << 50, "v", write)
        return True

    def call(self, made: str, child: str) -> bool:
        """Whether a child's step ran."""
        taken = callkeys.parse(f"{self.now:016d}-g-bb-{self.now}", made, self.now, callkeys.LocalKeys("n"))
        return self.commit(child, taken, made.encode())

    def die(self) -> None:
        if self.random.random() < 0.12:
            raise Lost

    def parent(self, name: str, at: Callable[[int], CallKey], targets: list[str]) -> None:
        """One delivery of a parent's step: its calls, then its commit. Its worker may die anywhere."""
        key = at(self.now)
        step = Calling(SHOP, key, session=name)
        for number, child in enumerate(targets):
            self.die()
            label, made = step.next("ledger", child)
            assert label == "shop/ledger"
            count = targets[:number].count(child)
            made = self.key(step, label, child, count)
            self.now += self.random.randrange(1, 50)
            taken = callkeys.parse(f"{self.now:016d}-g-bb-{self.now}", made, self.now, callkeys.LocalKeys("n"))
            if self.commit(child, taken, f"{name} {key.id} {child} {count}".encode()):
                self.ran[key.id, child, count] += 1
            self.die()  # it is committed; the answer is lost
        self.commit(name, key, b"parent")
        self.answered |= {(key.id, child, targets[:number].count(child)) for number, child in enumerate(targets)}
        self.die()


class Asked:
    start = end = False
    create = True

    def __init__(self, session: str, key: CallKey, digest: bytes) -> None:
        self.session, self.key, self.digest = session, key, digest


def gateways(number: int, made: int) -> Callable[[int], CallKey]:
    """The key of a step whose caller sends none: the same at each delivery."""
    return lambda now: CallKey(made, f"g-aa-{number}")


def timed(number: int, made: int) -> Callable[[int], CallKey]:
    """A caller's, with its own time."""
    return lambda now: callkeys.parse(f"{now:016d}-g-aa-{now}", f"{made:016d}-click-{number}", now, callkeys.LocalKeys("n"))


def timeless(number: int, made: int) -> Callable[[int], CallKey]:
    """A caller's without a time."""
    return lambda now: callkeys.parse(f"{now:016d}-g-aa-{now}", f"click-{number}", now, callkeys.LocalKeys("n"))


def history(seed: int, key: Callable[..., str] = key_of, parents: int = 24, keys: Callable[..., Any] = gateways) -> World:
    """Steps of several parents' sessions, side by side, that call children in common; each is sent again until it is answered. `keys`: of
    the parents' steps, by number and the time when it is made: its key by the time of the delivery."""
    world = World(seed, key)
    waiting: list[tuple[str, str, Callable[[int], CallKey], list[str]]] = []
    for number in range(parents):
        world.now += world.random.randrange(1, 400)
        targets = [f"child-{world.random.randrange(3)}" for _ in range(world.random.randrange(1, 5))]
        waiting.append((str(number), f"parent-{number % 5}", keys(number, world.now), targets))
    tries: Counter[str] = Counter()
    while waiting:
        step = waiting[0] if world.random.random() < 0.7 else world.random.choice(waiting)
        tries[step[0]] += 1
        try:
            world.parent(*step[1:])
        except Lost:
            if tries[step[0]] < 60:
                continue
        except (Aborted, FailedPrecondition):
            world.refused += 1  # it has been overtaken by more than a session remembers, or its key says no time
        waiting.remove(step)
        if world.ran and world.random.random() < 0.2:
            waiting.append(step)  # its caller never heard, and sends it once more
            if tries[step[0]] > 4:
                waiting.remove(step)
    return world


def doubled(world: World) -> int:
    return sum(count > 1 for count in world.ran.values())


def test_a_childs_step_runs_once_for_each_step_of_its_parent_whoever_dies() -> None:
    worlds = [history(seed) for seed in range(150)]
    assert sum(map(doubled, worlds)) == 0
    assert sum(sum(world.ran.values()) for world in worlds) > 5_000
    assert sum(len(world.answered) for world in worlds) > 2_500
    assert all(world.ran[call] == 1 for world in worlds for call in world.answered)
    assert sum(world.refused for world in worlds) < 900, "of those that many others overtook"


def test_it_runs_once_under_keys_of_callers_that_say_their_time_and_not_at_all_under_those_that_do_not() -> None:
    worlds = [history(seed, keys=timed) for seed in range(50)]
    assert sum(map(doubled, worlds)) == 0
    assert sum(sum(world.ran.values()) for world in worlds) > 1_500
    worlds = [history(seed, keys=timeless) for seed in range(50)]
    assert sum(sum(world.ran.values()) for world in worlds) == 0
    assert sum(world.refused for world in worlds) > 1_000


def test_negative_control_with_the_time_of_each_delivery_in_place_of_the_keys_own_children_run_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Once their session has forgotten them: here at once, else after 256 others or ten minutes."""
    monkeypatch.setattr(marks, "MARKED_KEYS", 0)
    assert any(doubled(history(seed, keys=anew)) for seed in range(50))


def test_negative_control_with_marks_that_ask_for_the_time_they_would_run_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CallKey, "of_step", False)
    assert any(doubled(history(seed, keys=anew)) for seed in range(50))


def late(world: World, others: int) -> int:
    """A step that waits for something slow before it calls a session, which as many others call meanwhile: how often its call ran."""
    key = CallKey(world.now, "g-aa-late")
    child = key_of(Calling(SHOP, key, session="slow"), "shop/ledger", "shared", 0)
    for number in range(others):
        world.now += 10_000
        world.call(key_of(Calling(SHOP, CallKey(world.now, f"g-aa-{number}"), session=f"{number}"), "shop/ledger", "shared", 0), "shared")
    return sum(world.call(child, "shared") for _ in range(3))


def test_a_step_that_is_slower_than_many_calls_of_others_makes_its_call_once_all_the_same() -> None:
    assert late(World(0, key_of), KEPT_KEYS + MARKED_KEYS) == 1
    with pytest.raises(Aborted):
        late(World(0, key_of), KEPT_KEYS + MARKED_KEYS + 1)


def anew(number: int, made: int) -> Callable[[int], CallKey]:
    """A caller's whose time is made for each sending."""
    return lambda now: CallKey(now, f"c-click-{number}", callkeys.CALLERS)


def test_a_callers_key_whose_time_is_made_anew_for_each_sending_makes_no_second_call_as_long_as_there_are_marks() -> None:
    """It must not be, but often will."""
    assert sum(doubled(history(seed, keys=anew)) for seed in range(50)) == 0


def test_negative_control_with_a_horizon_alone_it_would_be_refused_though_it_never_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(marks, "MARKED_KEYS", 0)
    with pytest.raises(Aborted):
        late(World(0, key_of), KEPT_KEYS + 1)


def test_negative_control_under_keys_that_do_not_follow_from_the_steps_own_children_run_twice() -> None:
    fresh = itertools.count()

    def anew(step: Calling, label: str, session: str | None, number: int) -> str:
        return f"{step.key.timestamp_us + number:016d}-{next(fresh):032x}"

    assert any(doubled(history(seed, anew)) for seed in range(20))


def test_negative_control_under_keys_without_the_steps_time_children_run_twice() -> None:
    """One that a session has forgotten is not known to be old."""

    def opaque(step: Calling, label: str, session: str | None, number: int) -> str:
        return key_of(step, label, session, number).partition("-")[2]

    assert any(doubled(history(seed, opaque)) for seed in range(150))


def test_negative_control_under_keys_without_the_steps_own_the_next_step_is_refused() -> None:
    def same(step: Calling, label: str, session: str | None, number: int) -> str:
        return key_of(dataclasses.replace(step, key=CallKey(step.key.timestamp_us, "g-aa-0")), label, session, number)

    with pytest.raises(InvalidArgument, match="was made before with different content"):
        history(0, same)
