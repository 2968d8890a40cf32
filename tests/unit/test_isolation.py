"""Which etcds keep their users apart, and that nobody leads over one that does not where tenants share it."""

import asyncio
import re
from pathlib import Path

import pytest
from dormouse_core import storeversions
from dormouse_core.seams import MemberSeen
from dormouse_operator import isolation
from dormouse_operator.isolation import Isolation
from dormouse_operator.kubernetes.health import Health

ROOT = Path(__file__).resolve().parents[2]


def member(endpoint: str, version: str) -> MemberSeen:
    return MemberSeen(endpoint, 1, True, 1, 1, 1, False, version=version)


@pytest.mark.parametrize(
    "version",
    ["3.5.33", "3.5.99", "3.6.14", "3.6.16", "3.7.1", "3.7.3", "3.8.0", "4.0.0", "3.6.16+vendor.1", "3.6.15-rc.0", "3.10.0"],
)
def test_one_with_all_of_it_mended_may_be_shared(version: str) -> None:
    assert storeversions.keeps_apart(version)


@pytest.mark.parametrize(
    "version",
    ["3.4.23", "3.4.99", "3.5.1", "3.5.32", "3.6.0", "3.6.4", "3.6.13", "3.7.0", "3.6.14-rc.0", "3.3.27", "2.3.8", "", "3.6", "v3.6.16",
     "3.6.16 ", "3.6.x", "three", "3.٦.16", "3.6.16\n"],
)  # fmt: skip
def test_one_that_is_older_or_does_not_say_may_not(version: str) -> None:
    assert not storeversions.keeps_apart(version)


def test_it_is_refused_by_its_members_with_what_is_allowed_and_why() -> None:
    assert storeversions.refusal({}) is None, "nobody has said anything: that is not yes"
    assert storeversions.refusal({"a:1": "3.6.16", "b:1": "3.5.40"}) == ""
    told = storeversions.refusal({"a:1": "3.6.16", "c:1": "3.4.23", "b:1": ""})
    assert told is not None
    assert told.startswith(
        "etcd no version at b:1, 3.4.23 at c:1 found, 3.5.33+, 3.6.14+, 3.7.1+ is allowed where several namespaces share"
    )
    assert "etcd.external.oneTenant" in told


def test_the_page_and_the_chart_say_the_same() -> None:
    page = (ROOT / "docs/installing.md").read_text()
    for version in re.findall(r"\d+\.\d+\.\d+", storeversions.ALLOWED):
        assert version in page
    [tag] = re.findall(r"quay.io/coreos/etcd, tag: v([\d.]+)", (ROOT / "deploy/helm/dormouse/values.yaml").read_text())
    assert storeversions.keeps_apart(tag)
    [built] = re.findall(r"go.etcd.io/etcd/server/v3 v([\d.]+)", (ROOT / "tests/cluster/kube/etcd/go.mod").read_text())
    assert built == tag, "the cluster's tests run the chart's etcd"


async def waits(looking: asyncio.Task[None]) -> bool:
    for _ in range(5):
        await asyncio.sleep(0)
    return not looking.done()


async def test_nobody_leads_before_every_member_that_answers_is_known_to_do(events: pytest.LogCaptureFixture) -> None:
    made = Isolation(shared=True)
    sound = asyncio.create_task(made.sound())
    assert await waits(sound), "nothing is known"
    made.look([])
    assert await waits(sound), "nobody answered"
    made.look([member("a", "3.6.16"), member("b", "3.4.23")])
    made.look([member("a", "3.6.16"), member("b", "3.4.23")])
    assert await waits(sound)
    assert events.text.count("this operator does not lead") == 1, "said once"
    made.look([member("a", "3.6.16")])
    assert await waits(sound), "one that is away is what it was"
    made.look([member("b", "3.6.16")])
    assert not await waits(sound)
    assert "the store keeps its users apart" in events.text


async def test_who_leads_ends_when_a_member_comes_back_as_an_older_one() -> None:
    made = Isolation(shared=True)
    made.look([member("a", "3.6.16"), member("b", "3.6.16")])
    await made.sound()
    broken = asyncio.create_task(made.broken())
    made.look([member("a", "3.6.16")])
    assert await waits(broken)
    made.look([member("b", "3.6.4")])
    assert not await waits(broken)


async def ready(made: Isolation) -> tuple[int, str]:
    health = Health()
    health.kept_out = lambda: made.out
    answer = await health._readyz(None)  # type: ignore[arg-type]
    return answer.status, str(answer.text)


async def test_who_may_not_lead_is_not_ready_also_while_it_is_not_known_so_that_no_upgrade_replaces_who_leads() -> None:
    made = Isolation(shared=True)
    assert await ready(made) == (503, "it is not known yet whether the store keeps its users apart\n")
    made.look([])
    assert (await ready(made))[0] == 503
    made.look([member("a", "3.6.4")])
    assert (await ready(made))[0] == 503
    assert "3.6.4 at a found" in (await ready(made))[1]
    made.look([member("a", "3.6.16")])
    assert await ready(made) == (200, "ok\n")
    assert await ready(Isolation(shared=False)) == (200, "ok\n")


async def test_people_are_told_each_change_once_also_one_that_comes_while_they_are_told() -> None:
    made, said = Isolation(shared=True), list[str]()

    async def warn(reason: str, text: str) -> None:
        said.append(text)
        if "3.6.4" in text:
            made.look([member("a", "3.6.5")])
        await asyncio.sleep(0)

    telling = asyncio.create_task(made.tell(warn))
    assert await waits(telling)
    made.look([member("a", "3.6.4")])
    for _ in range(2):
        assert await waits(telling)
        made.look([member("a", "3.6.5")])
    made.look([member("a", "3.6.16")])
    assert await waits(telling)
    telling.cancel()
    assert [text[:13] for text in said] == ["", "etcd 3.6.4 at", "etcd 3.6.5 at", ""]


async def test_where_there_is_one_tenant_any_version_will_do() -> None:
    made = Isolation(shared=False)
    await made.sound()
    broken = asyncio.create_task(made.broken())
    made.look([member("a", "3.4.23")])
    assert await waits(broken)
    broken.cancel()


async def test_negative_control_where_silence_is_yes_one_would_lead_over_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation.storeversions, "refusal", lambda versions: storeversions_refusal(versions) or "")
    made = Isolation(shared=True)
    made.look([])
    await made.sound()
    made.look([member("a", "3.4.23")])
    await made.broken()


storeversions_refusal = storeversions.refusal
