"""The order in which etcd's certificates are replaced: at no moment does somebody meet one that he does not trust."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
from dormouse_core import certificates
from dormouse_core.certificates import BACKDATED, DAY, Authority, Do, Lifetime, Observed, Server, plan
from dormouse_core.limits import AUTHORITY_DAYS, AUTHORITY_RENEWAL_DAYS, AUTHORITY_TRUSTED_DAYS, CERTIFICATE_DAYS, CREDENTIAL_SPREAD_SECONDS

HOSTS = ("etcd-0", "etcd-1")
NOW = 1_800_000_000.0


def life(days: float, at: float = NOW) -> Lifetime:
    return Lifetime(at - BACKDATED, at + days * DAY)


def observed(*, issuer: str = "a", at: float = NOW, **changes: object) -> Observed:
    """All is well, and a certificate was made just now."""
    server = Server(issuer, life(CERTIFICATE_DAYS, at), frozenset(HOSTS))
    found = Observed(Authority("a", life(AUTHORITY_DAYS)), {"a": life(AUTHORITY_DAYS)}, NOW, server, (NOW,))
    return replace(found, **changes)  # type: ignore[arg-type]


def step(found: Observed, now: float, several: bool = False) -> Do:
    return plan(found, HOSTS, several, now).do


def test_from_nothing_to_a_certificate_in_two_steps() -> None:
    assert step(Observed(), NOW) is Do.AUTHORITY
    assert step(Observed(Authority("a", life(AUTHORITY_DAYS))), NOW) is Do.ISSUE
    assert step(observed(), NOW) is Do.NOTHING


def test_a_certificate_is_replaced_in_time_when_its_names_change_and_when_asked_for() -> None:
    found = observed()
    assert found.server is not None
    assert step(found, NOW + (CERTIFICATE_DAYS * 2 / 3 - 1) * DAY) is Do.NOTHING
    assert step(found, NOW + CERTIFICATE_DAYS * 2 / 3 * DAY) is Do.ISSUE
    assert step(replace(found, server=replace(found.server, hosts=frozenset({"etcd-0"}))), NOW) is Do.ISSUE
    assert step(replace(found, server=replace(found.server, hosts=frozenset((*HOSTS, "more")))), NOW) is Do.NOTHING
    assert step(replace(found, server=replace(found.server, asked=True)), NOW) is Do.ISSUE


def test_another_authority_is_made_years_before_the_end_or_when_asked_for() -> None:
    end = NOW + (AUTHORITY_DAYS - AUTHORITY_RENEWAL_DAYS) * DAY
    found = observed(at=end - 1)
    assert found.authority is not None
    assert [step(found, end - 1), step(found, end)] == [Do.NOTHING, Do.AUTHORITY]
    assert step(replace(found, authority=replace(found.authority, asked=True)), NOW) is Do.AUTHORITY
    assert AUTHORITY_RENEWAL_DAYS > CERTIFICATE_DAYS, "what it issued ends before it does"
    pending = replace(observed(issuer="o", trusted={"o": life(CERTIFICATE_DAYS)}), authority=replace(found.authority, asked=True))
    assert step(pending, NOW) is Do.TRUST, "the one that has not issued yet comes first"


@pytest.mark.parametrize("several", [False, True])
def test_another_authority_is_trusted_first_and_issues_later_and_the_one_before_goes(several: bool) -> None:
    old = {"o": life(CERTIFICATE_DAYS)}
    found = observed(issuer="o", trusted=old, trusted_since=None)
    assert step(found, NOW, several) is Do.TRUST
    assert found.server is not None
    found = replace(found, trusted={**old, "a": life(AUTHORITY_DAYS)}, trusted_since=NOW)
    month = NOW + AUTHORITY_TRUSTED_DAYS * DAY
    for now, expected in ((month - 1, Do.NOTHING), (month, Do.WAIT if several else Do.ISSUE)):
        assert step(found, now, several) is expected, "who rolls back for a month needs the one before"
    found = replace(found, server=replace(found.server, asked=True))
    assert step(found, NOW + CREDENTIAL_SPREAD_SECONDS - 1, several) is Do.WAIT
    for since in (None, NOW + 2 * DAY):
        assert step(replace(found, trusted_since=since), NOW + DAY, several) is Do.TRUST, "not known is not long ago"
    later = NOW + CREDENTIAL_SPREAD_SECONDS
    if several:
        for early in ((NOW,), (later, NOW), None, ()):
            assert step(replace(found, members=early), later, several) is Do.WAIT, "etcd reads ca.crt when it starts, and only then"
        found = replace(found, members=(later, later))
    assert step(found, later, several) is Do.ISSUE
    found = replace(observed(trusted=found.trusted, at=later))
    assert step(found, later + DAY - 1, several) is Do.NOTHING
    last = plan(found, HOSTS, several, later + DAY)
    assert (last.do, last.ids) == (Do.FORGET, ("o",))


def test_one_that_has_ended_is_replaced_whoever_does_not_trust_the_next() -> None:
    found = observed(issuer="o", trusted={"o": life(1), "a": life(AUTHORITY_DAYS)}, at=NOW - CERTIFICATE_DAYS * DAY)
    assert step(found, NOW, several=True) is Do.ISSUE


# ------------------------------------------------------------------------------------------------------------------------ a world


@dataclass
class World:
    """What is in the Secrets, and what each part has of it by now: files with the kubelet's delay, `ca.crt` in etcd since its start."""

    random: random.Random
    now: float = NOW
    found: Observed = field(default_factory=Observed)
    written: list[tuple[float, Observed]] = field(default_factory=list)
    starts: list[float] = field(default_factory=lambda: [NOW, NOW, NOW])
    made: int = 0

    def carry_out(self, done: certificates.Step) -> None:
        self.made += 1
        trusted, authority = dict(self.found.trusted or {}), self.found.authority
        if done.do is Do.AUTHORITY:
            self.found = replace(self.found, authority=Authority(f"a{self.made}", life(AUTHORITY_DAYS, self.now)))
        elif done.do is Do.FORGET:
            self.found = replace(self.found, trusted={key: each for key, each in trusted.items() if key not in done.ids})
        elif done.do in (Do.TRUST, Do.ISSUE):
            assert authority is not None
            if authority.id not in trusted:
                self.found = replace(self.found, trusted={**trusted, authority.id: authority.lifetime}, trusted_since=self.now)
            if done.do is Do.ISSUE:
                self.found = replace(self.found, server=Server(authority.id, life(CERTIFICATE_DAYS, self.now), frozenset(HOSTS)))
        self.written.append((self.now, self.found))

    def seen(self, at: float) -> Observed:
        """By a part whose file is up to two and a half minutes behind."""
        delay = self.random.uniform(0, certificates.START_SPREAD)
        known = [each for when, each in self.written if when <= max(at - delay, NOW)]
        return known[-1]

    def judge(self) -> None:
        """Every member shows its certificate to a client and to every other member."""
        for start in self.starts:
            server = self.seen(self.now).server
            assert server is not None
            assert self.now < server.lifetime.not_after, "an expired certificate is shown"
            for reader in (self.seen(self.now), *(self.seen(member) for member in self.starts)):
                assert server.issuer in (reader.trusted or {}), f"{server.issuer} is not trusted since {start}"


def play(seed: int, decide: Callable[[Observed, float], certificates.Step]) -> World:
    """Twelve years: people ask for new ones at any time, and members are restarted now and then, and soon where that is waited for."""
    world = World(random.Random(seed))
    for _ in range(8):
        world.carry_out(decide(world.found, world.now))
    while world.now < NOW + 12 * 365 * DAY:
        world.now += world.random.choice((60.0, 300.0, 700.0, DAY, 20 * DAY))
        if world.random.random() < 0.1:
            world.starts[world.random.randrange(3)] = world.now
        if world.random.random() < 0.05 and world.found.server is not None and world.found.authority is not None:
            world.found = replace(world.found, server=replace(world.found.server, asked=True))
            if world.random.random() < 0.3:
                world.found = replace(world.found, authority=replace(world.found.authority, asked=True))
        for _ in range(8):
            done = decide(replace(world.found, members=tuple(world.starts)), world.now)
            if done.do is Do.WAIT and world.random.random() < 0.3:
                world.starts = [world.now] * 3
            if done.do in (Do.NOTHING, Do.WAIT):
                break
            world.carry_out(done)
        world.judge()
    return world


def test_at_no_moment_of_twelve_years_is_a_certificate_shown_that_somebody_does_not_trust() -> None:
    for seed in range(8):
        world = play(seed, lambda found, now: plan(found, HOSTS, True, now))
        authorities = {found.server.issuer for _, found in world.written if found.server is not None}
        assert len(authorities) > 1, "another authority has followed the first"
        assert len(world.found.trusted or {}) < 5, "those before go"


@pytest.mark.parametrize("guard", ["spread", "members", "forget"])
def test_negative_control_without_a_guard_somebody_meets_one_that_he_does_not_trust(guard: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if guard == "spread":
        monkeypatch.setattr(certificates, "CREDENTIAL_SPREAD_SECONDS", 0.0)
        monkeypatch.setattr(certificates, "START_SPREAD", -1e12)
        certificates_plan: Callable[[Observed, float], certificates.Step] = lambda found, now: plan(found, HOSTS, False, now)  # noqa: E731
    elif guard == "members":
        certificates_plan = lambda found, now: plan(found, HOSTS, False, now)  # noqa: E731
    else:
        monkeypatch.setattr(certificates, "FORGOTTEN_AFTER", 0.0)
        certificates_plan = lambda found, now: plan(found, HOSTS, True, now)  # noqa: E731
    with pytest.raises(AssertionError, match="is not trusted"):
        [play(seed, certificates_plan) for seed in range(30)]
