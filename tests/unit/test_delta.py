"""The xDS state machine before a fake Envoy that takes, refuses and forgets as the real one was seen to do."""

import random

import pytest
from dormouse_gateway.envoy.delta import CHUNK, Answer, Ask, DeltaStream
from dormouse_gateway.envoy.resources import CLUSTER, ENDPOINTS, SCOPE, TYPES, Resource, Route, entry, resources
from dormouse_gateway.envoy.snapshot import Snapshot
from dormouse_gateway.settings import GatewaySettings

SETTINGS = GatewaySettings()


class FakeEnvoy:
    """Subscribes to clusters and scopes by wildcard, to the endpoints of each cluster by name. A response with a bad resource is refused,
    and the good ones in it are lost. `violations`: what would have been an error to callers."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.has: dict[str, dict[str, Resource]] = {type_url: {} for type_url in TYPES}
        self.bad: set[tuple[str, str]] = set()  # names that are refused
        self.bad_versions: set[str] = set()
        self.violations: list[str] = []
        self.responses: list[Answer] = []
        self._snapshot = snapshot
        self.connect()

    def connect(self) -> None:
        self.stream = DeltaStream(self._snapshot)
        for type_url in TYPES:
            versions = {name: each.version for name, each in self.has[type_url].items()}
            names = tuple(versions) if type_url == ENDPOINTS else ()
            if type_url != ENDPOINTS or names:
                self.stream.receive(Ask(type_url, initial=versions, subscribe=names))

    def run(self, limit: int = 10_000) -> int:
        """Until nothing is said any more; how many responses that took."""
        count = 0
        while answers := self.stream.answers():
            for answer in answers:
                count += 1
                assert count < limit, "it does not come to rest"
                self.responses.append(answer)
                self._take(answer)
        return count

    def _take(self, answer: Answer) -> None:
        bad = [each for each in answer.resources if (each.type_url, each.name) in self.bad or each.version in self.bad_versions]
        if bad:
            self.stream.receive(Ask(answer.type_url, answer.nonce, error=f"bad {bad[0].name}"))
            return
        has = self.has[answer.type_url]
        subscribe, unsubscribe = [], []
        for each in answer.resources:
            if answer.type_url == CLUSTER and each.name not in has:
                subscribe.append(each.name)
            for (type_url, name), _ in each.needs:
                if name not in self.has[type_url]:
                    self.violations.append(f"{each.name} needs {name}")
            has[each.name] = each
        for name in answer.removed:
            has.pop(name, None)
            if answer.type_url == CLUSTER:
                unsubscribe.append(name)
                for scope in self.has[SCOPE].values():
                    if any(need == (CLUSTER, name) for need, _ in scope.needs):
                        self.violations.append(f"{scope.name} lost {name}")
        self.stream.receive(Ask(answer.type_url, answer.nonce))
        if unsubscribe:
            self.has[ENDPOINTS] = {name: each for name, each in self.has[ENDPOINTS].items() if name not in unsubscribe}
        if subscribe or unsubscribe:
            self.stream.receive(Ask(ENDPOINTS, subscribe=tuple(subscribe), unsubscribe=tuple(unsubscribe)))

    def matches(self) -> bool:
        return all(
            {name: each.version for name, each in self.has[type_url].items()}
            == {name: each.version for name, each in self._snapshot.resources[type_url].items()}
            for type_url in TYPES
        )


def put(snapshot: Snapshot, label: str, uid: str = "u", *hosts: str, owners: tuple[int, ...] = ()) -> None:
    namespace, _, name = label.partition("/")
    snapshot.put(label, resources(Route(namespace, name, uid, hosts or ("10.0.0.1:9000",), owners), SETTINGS))


@pytest.fixture
def snapshot() -> Snapshot:
    made = Snapshot()
    made.put("+", [entry(SETTINGS)])
    made.complete = True
    return made


def test_nothing_is_said_before_the_first_full_listing() -> None:
    snapshot = Snapshot()
    snapshot.put("+", [entry(SETTINGS)])
    envoy = FakeEnvoy(snapshot)
    assert envoy.run() == 0
    snapshot.complete = True
    assert envoy.run() > 0
    assert envoy.matches()


def test_an_empty_wildcard_is_answered_once(snapshot: Snapshot) -> None:
    envoy = FakeEnvoy(snapshot)
    envoy.run()
    assert [answer.resources for answer in envoy.responses if answer.type_url == CLUSTER] == [()]


def test_a_name_that_does_not_exist_is_answered_with_removed(snapshot: Snapshot) -> None:
    envoy = FakeEnvoy(snapshot)
    envoy.stream.receive(Ask(ENDPOINTS, subscribe=("default/x/u",)))
    envoy.run()
    assert [answer.removed for answer in envoy.responses if answer.type_url == ENDPOINTS] == [("default/x/u",)]


def test_a_route_goes_out_after_its_cluster_and_endpoints_are_accepted(snapshot: Snapshot) -> None:
    for n in range(3):
        put(snapshot, f"default/f{n}")
    envoy = FakeEnvoy(snapshot)
    envoy.run()
    assert envoy.matches()
    assert envoy.violations == []
    kinds = [answer.type_url for answer in envoy.responses for each in answer.resources if each.name != "+"]
    assert kinds == [CLUSTER] * 3 + [ENDPOINTS] * 3 + [SCOPE] * 3


def test_without_the_order_a_route_would_name_what_is_not_there(snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DeltaStream, "_may_send", lambda self, each: True)
    put(snapshot, "default/f")
    envoy = FakeEnvoy(snapshot)
    envoy.run()
    assert envoy.violations == ["default/f needs default/f/u"]


def test_a_deleted_function_loses_its_route_before_its_cluster(snapshot: Snapshot) -> None:
    put(snapshot, "default/f")
    put(snapshot, "default/g")
    envoy = FakeEnvoy(snapshot)
    envoy.run()
    snapshot.put("default/f", ())
    envoy.run()
    assert envoy.matches()
    assert envoy.violations == []


def test_without_that_order_a_route_would_lose_its_cluster(snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DeltaStream, "_may_remove", lambda self, type_url, name: True)
    put(snapshot, "default/f", "one")
    envoy = FakeEnvoy(snapshot)
    envoy.run()
    put(snapshot, "default/f", "two")
    envoy.run()
    assert "default/f lost default/f/one" in envoy.violations


def test_a_function_made_anew_moves_to_its_new_cluster_first(snapshot: Snapshot) -> None:
    put(snapshot, "default/f", "one")
    envoy = FakeEnvoy(snapshot)
    envoy.run()
    put(snapshot, "default/f", "two")
    envoy.run()
    assert envoy.matches()
    assert envoy.violations == []


def test_a_bad_resource_takes_no_good_one_with_it_and_is_named(snapshot: Snapshot) -> None:
    for n in range(20):
        put(snapshot, f"default/f{n}")
    envoy = FakeEnvoy(snapshot)
    envoy.bad = {(CLUSTER, "default/f3/u"), (ENDPOINTS, "default/f5/u"), (SCOPE, "default/f7")}
    envoy.run()
    assert set(envoy.has[SCOPE]) == {"+", *(f"default/f{n}" for n in range(20) if n not in (3, 5, 7))}
    assert set(envoy.stream.refused()) == {"default/f3", "default/f5", "default/f7"}
    assert "the function's cluster: bad default/f3/u" in envoy.stream.refused()["default/f3"]
    assert envoy.run() == 0, "what was refused is not sent again in that version"
    envoy.bad.clear()
    put(snapshot, "default/f5", "u", "10.0.0.9:9000")
    put(snapshot, "default/f7", "u", "10.0.0.1:9000", owners=(0,))
    snapshot.put("default/f3", ())
    envoy.run()
    assert envoy.matches()
    assert envoy.stream.refused() == {}


def test_without_the_second_sending_the_good_ones_would_be_lost(snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DeltaStream, "_refused", lambda self, sub, answer, error: None)
    for n in range(20):
        put(snapshot, f"default/f{n}")
    envoy = FakeEnvoy(snapshot)
    envoy.bad = {(CLUSTER, "default/f3/u")}
    envoy.run()
    assert set(envoy.has[SCOPE]) == {"+"}


def test_the_last_good_version_stays_when_a_newer_one_is_refused(snapshot: Snapshot) -> None:
    put(snapshot, "default/f")
    envoy = FakeEnvoy(snapshot)
    envoy.run()
    good = envoy.has[SCOPE]["default/f"]
    put(snapshot, "default/f", "u", "10.0.0.9:9000")
    envoy.bad_versions = {snapshot.resources[ENDPOINTS]["default/f/u"].version}
    envoy.run()
    assert envoy.has[SCOPE]["default/f"] is good
    assert set(envoy.stream.refused()) == {"default/f"}


def test_a_restarted_agent_sends_nothing_that_envoy_has(snapshot: Snapshot) -> None:
    for n in range(50):
        put(snapshot, f"default/f{n}")
    envoy = FakeEnvoy(snapshot)
    envoy.run()
    envoy.responses.clear()
    envoy.connect()
    envoy.run()
    assert [each.name for answer in envoy.responses for each in answer.resources] == []
    put(snapshot, "default/f7", "u", "10.0.0.9:9000")
    snapshot.put("default/f8", ())
    envoy.run()
    assert {each.name for answer in envoy.responses for each in answer.resources} == {"default/f7/u"}
    assert envoy.matches()


def test_an_empty_snapshot_is_why_an_agent_waits(snapshot: Snapshot) -> None:
    """The guard of the first test, taken away: to an Envoy that reconnects, nothing means everything goes."""
    put(snapshot, "default/f")
    envoy = FakeEnvoy(snapshot)
    envoy.run()
    empty = Snapshot()
    empty.complete = True
    envoy._snapshot = empty
    envoy.connect()
    envoy.run()
    assert envoy.has[CLUSTER] == {}


def test_large_responses_are_cut(snapshot: Snapshot) -> None:
    for n in range(CHUNK + 10):
        put(snapshot, f"default/f{n}")
    envoy = FakeEnvoy(snapshot)
    envoy.run()
    assert envoy.matches()
    assert max(len(answer.resources) for answer in envoy.responses) == CHUNK


@pytest.mark.parametrize("seed", range(20))
def test_any_history_comes_to_rest_where_it_should(seed: int) -> None:
    """Functions come, go, move, are made anew; Envoy reconnects and refuses; in the end it has what is good, and callers met no gap."""
    rng = random.Random(seed)
    snapshot = Snapshot()
    snapshot.put("+", [entry(SETTINGS)])
    snapshot.complete = True
    envoy = FakeEnvoy(snapshot)
    for _ in range(120):
        label = f"default/f{rng.randrange(6)}"
        kind = rng.randrange(10)
        if kind < 6:
            put(snapshot, label, rng.choice("ab"), f"10.0.0.{rng.randrange(9)}:9000", owners=rng.choice([(), (0,), (-1, 0)]))
        elif kind < 8:
            snapshot.put(label, ())
        elif kind == 8:
            envoy.bad = {(rng.choice(TYPES), f"{label}{rng.choice(['', '/a', '/b'])}")} if rng.random() < 0.5 else set()
        else:
            envoy.connect()
        if rng.random() < 0.7:
            envoy.run()
    envoy.bad = set()
    for n in range(6):
        put(snapshot, f"default/f{n}", "c", f"10.1.0.{n}:9000")
    envoy.run()
    assert envoy.matches()
    assert envoy.violations == []
