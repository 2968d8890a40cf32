"""Two installations that both serve all namespaces, or are called alike: the older one serves, the younger one says so and touches
nothing."""

import asyncio

import pytest
from dormouse_core.claims import Claim, elder, younger
from dormouse_operator.kubernetes.api.http import ApiError, Listed
from dormouse_operator.kubernetes.api.kinds import CLUSTER_ROLES, EVENTS, Kind
from dormouse_operator.kubernetes.health import Health
from dormouse_operator.kubernetes.objects import names
from dormouse_operator.kubernetes.settings import ClusterSettings
from dormouse_operator.kubernetes.telling.own_events import OwnEvents
from dormouse_operator.kubernetes.watching.claiming import AGAIN, LABEL, LOOK, NO_RIGHT, Claiming, Seen, own_claim
from dormouse_testing.clock import ManualClock, SimClock
from dormouse_testing.memory_api import MemoryApi
from hypothesis import given
from hypothesis import strategies as st

SINCE = st.sampled_from(["2026-01-01", "2026-01-02"])
EVERYWHERE = st.lists(st.builds(Claim, st.sampled_from("abcd"), st.sampled_from("xy"), st.just(True), SINCE), unique_by=lambda c: c.name)
CLAIMS = st.lists(
    st.builds(Claim, st.sampled_from("abcd"), st.sampled_from(["x", "y", ""]), st.booleans(), SINCE), unique_by=lambda c: c.name
)


@given(CLAIMS)
def test_no_two_serve_that_collide_and_who_collides_with_nobody_serves(found: list[Claim]) -> None:
    serving = [claim for claim in found if elder(claim, found) is None]
    assert not any(one.collides(other) for one in serving for other in serving)
    for claim in found:
        others = [each for each in found if claim.collides(each)]
        first = elder(claim, found)
        assert (claim in serving) or (first in others and (first.since, first.name) < (claim.since, claim.name))
        if claim in serving:
            assert {each.name for each in younger(claim, found)} == {each.name for each in others}
        if not others:
            assert claim in serving


def test_who_collides() -> None:
    everywhere, chosen = Claim("a", "x", True), Claim("b", "x", False)
    assert everywhere.collides(chosen), "of one name"
    assert chosen.collides(Claim("c", "x", False))
    assert everywhere.collides(Claim("c", "y", True)), "both everywhere"
    assert not chosen.collides(Claim("c", "y", False))
    assert not everywhere.collides(Claim("c", "y", False))
    assert not Claim("c", "", False).collides(Claim("d", "", False)), "no name is no name in common"
    assert not chosen.collides(chosen), "its own"


@given(EVERYWHERE)
def test_of_several_one_serves_and_all_others_keep_out_for_it(found: list[Claim]) -> None:
    serving = [claim for claim in found if elder(claim, found) is None]
    assert len(serving) == bool(found)
    for claim in serving:
        assert {each.name for each in younger(claim, found)} == {each.name for each in found} - {claim.name}
    for claim in found:
        assert elder(claim, found) in (None, *serving)
    assert (elder(Claim("without", "z", True), found) is None) == (not found), "who has none of its own is younger than all"


class Server(MemoryApi):
    """Lists claims to who asks for their label."""

    def claim(self, name: str, since: str, *, installation: str = "", chosen: bool = False) -> None:
        labels = {LABEL: "chosen-namespaces" if chosen else "all-namespaces", names.INSTALLATION: installation or name}
        self.put(CLUSTER_ROLES, {"metadata": {"namespace": "", "name": name, "creationTimestamp": since, "labels": labels}})

    @property
    def said(self) -> list[tuple[str, str]]:
        return [(each["type"], each["message"]) for (plural, _, _), each in self.objects.items() if plural == EVENTS.plural]

    async def list(self, kind: Kind, namespace: str = "", *, labels: str = "", fields: str = "") -> Listed:
        listed = await super().list(kind, namespace, labels=labels, fields=fields)
        return Listed(listed.version, [each for each in listed.items if labels in each["metadata"]["labels"]])


def claiming(api: Server, own: str = "mine", *, clock: ManualClock | None = None, seen: Seen | None = None) -> Claiming:
    clock = clock or ManualClock()
    return Claiming(api, clock, claim_of(own), OwnEvents(api, clock, "system", "operator-1"), seen or Seen())


def claim_of(name: str) -> Claim | None:
    return Claim(name, name, everywhere=True) if name else None


async def test_the_second_installation_says_who_serves_once_and_is_not_ready() -> None:
    api = Server()
    api.claim("theirs", "2026-01-01T00:00:00Z")
    api.claim("mine", "2026-01-02T00:00:00Z")
    second, first = claiming(api), claiming(api, "theirs")
    health = Health()
    health.kept_out = lambda: second.out
    for _ in range(3):
        await second.look()
        await first.look()
    assert "serves all namespaces since 2026-01-01T00:00:00Z (ClusterRole theirs)" in second.out
    assert first.out == ""
    assert len(api.said) == 2
    assert ("Warning", second.out) in api.said
    assert any("keep out for this one: mine." in message for _, message in api.said)
    answer = await health._readyz(None)  # type: ignore[arg-type]
    assert (answer.status, answer.text) == (503, f"{second.out}\n")
    assert (await health._healthz(None)).status == 200, "to start it anew would not help"  # type: ignore[arg-type]
    del api.objects[(CLUSTER_ROLES.plural, "", "theirs")]
    await second.look()
    assert second.out == ""
    assert (await health._readyz(None)).status == 200  # type: ignore[arg-type]


async def test_who_chooses_namespaces_keeps_out_for_an_older_installation_of_its_name_and_says_which() -> None:
    api, clock = Server(), ManualClock()
    api.claim("theirs", "2026-01-01T00:00:00Z", installation="default", chosen=True)
    api.claim("mine", "2026-01-02T00:00:00Z", installation="default", chosen=True)

    def of(installation: str, claim: str = "mine") -> Claiming:
        settings = ClusterSettings(installation=installation, namespace_selector="team=a", claim=claim)
        return Claiming(api, clock, own_claim(settings), OwnEvents(api, clock, "system", "operator-1"), Seen())

    second, first = of("default"), of("default", "theirs")
    await second.look()
    await first.look()
    assert second.out.startswith("Another installation is called default, too, since 2026-01-01T00:00:00Z (ClusterRole theirs)")
    assert ("Warning", second.out) in api.said
    assert first.out == ""
    api.claim("mine", "2026-01-02T00:00:00Z", installation="other", chosen=True)
    renamed = of("other")
    await renamed.look()
    assert renamed.out == "", "with a name of its own it serves beside the other"
    assert (own_claim(ClusterSettings()), own_claim(ClusterSettings(namespaces=("a",)))) == (None, None)


async def test_it_waits_for_as_long_as_the_other_is_there_and_a_term_ends_when_it_has_to_keep_out() -> None:
    api, clock = Server(), SimClock()
    api.claim("theirs", "2026-01-01T00:00:00Z")
    api.claim("mine", "2026-01-02T00:00:00Z")
    second = Claiming(api, clock, claim_of("mine"), OwnEvents(api, clock, "system", "operator-1"), Seen())
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 3:
            del api.objects[(CLUSTER_ROLES.plural, "", "theirs")]
        if len(waited) == 5:
            api.claim("theirs", "2026-01-01T00:00:00Z")
        await asyncio.sleep(0)

    clock.sleep = sleep  # type: ignore[method-assign]
    await second.wait()
    assert waited == [LOOK] * 3
    await second.run()
    assert len(waited) == 5
    assert second.out


async def test_who_could_not_see_looks_again_soon_and_serves_when_the_api_server_answers() -> None:
    api, clock = Server(), SimClock()
    api.claim("mine", "2026-01-02T00:00:00Z")
    api.refuse = ApiError(0, "NoAnswer", "the API server does not answer")
    waiting = Claiming(api, clock, claim_of("mine"), OwnEvents(api, clock, "system", "operator-1"), Seen())
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 4:
            api.refuse = None
        await asyncio.sleep(0)

    clock.sleep = sleep  # type: ignore[method-assign]
    await waiting.wait()
    assert waited == [AGAIN] * 4


@pytest.mark.parametrize(
    ("error", "served", "out"),
    [
        (ApiError(0, "NoAnswer", "the API server does not answer"), False, True),  # not known: it goes on waiting
        (ApiError(0, "NoAnswer", "the API server does not answer"), True, False),  # and who serves goes on serving
        (ApiError(403, "Forbidden", "may not list"), False, True),  # once: the API server has no roles yet, perhaps
        (ApiError(403, "Forbidden", "may not list"), True, False),
    ],
)
async def test_what_cannot_be_seen_changes_nothing(error: ApiError, served: bool, out: bool) -> None:
    api = Server()
    api.claim("mine", "2026-01-02T00:00:00Z")
    found = claiming(api)
    if served:
        await found.look()
    api.refuse = error
    await found.look()
    assert bool(found.out) is out
    assert api.said == []


FORBIDDEN = ApiError(403, "Forbidden", "may not list")


async def refused(api: Server, seen: Seen, *, kept_out: bool = False) -> bool:
    """Whether it serves after refusals for NO_RIGHT."""
    clock = ManualClock()
    found = claiming(api, clock=clock, seen=seen)
    if kept_out:
        await found.look()
        assert found.out
    api.refuse = FORBIDDEN
    for _ in range(int(NO_RIGHT // LOOK)):
        await found.look()
        assert found.out, "it may be told any moment"
        clock.advance(LOOK)
    await found.look()
    return not found.out


async def test_who_was_never_shown_anything_has_no_such_right_and_serves_also_in_its_next_term() -> None:
    api, seen, clock = Server(), Seen(), ManualClock()
    assert await refused(api, seen)
    clock.advance(NO_RIGHT)
    again = claiming(api, clock=clock, seen=seen)
    await again.look()
    assert again.out == ""


async def test_who_keeps_out_goes_on_so_however_long_it_is_refused_to_look_also_in_its_next_term() -> None:
    api, seen = Server(), Seen()
    api.claim("theirs", "2026-01-01T00:00:00Z")
    api.claim("mine", "2026-01-02T00:00:00Z")
    assert not await refused(api, seen, kept_out=True)
    assert not await refused(api, seen)


async def test_refusals_count_from_the_last_other_answer() -> None:
    api, seen, clock = Server(), Seen(), ManualClock()
    found = claiming(api, clock=clock, seen=seen)
    for error in (FORBIDDEN, ApiError(0, "NoAnswer", "the API server does not answer"), FORBIDDEN):
        api.refuse = error
        await found.look()
        clock.advance(NO_RIGHT)
        assert found.out
    await found.look()
    assert found.out == ""


async def test_negative_control_where_a_list_that_was_read_is_forgotten_it_would_serve() -> None:
    api = Server()
    api.claim("theirs", "2026-01-01T00:00:00Z")
    api.claim("mine", "2026-01-02T00:00:00Z")
    assert not await refused(api, Seen(listed=True))
    assert await refused(api, Seen())


async def test_an_installation_of_some_namespaces_asks_nobody() -> None:
    api = Server()
    api.claim("theirs", "2026-01-01T00:00:00Z")
    api.refuse = ApiError(500, "", "is not asked")
    found = claiming(api, "")
    await found.look()
    await found.wait()
    assert found.out == ""


async def test_negative_control_without_a_look_it_would_serve_what_another_serves() -> None:
    api = Server()
    api.claim("theirs", "2026-01-01T00:00:00Z")
    assert claiming(api, "").out == ""
    assert claiming(api).out, "before the first look it is not known"
