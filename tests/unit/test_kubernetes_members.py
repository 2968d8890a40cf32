"""What the operator does for etcd's members: remembers that there are several, gives votes, tells who shares a node."""

import contextlib
import json
import shutil
from pathlib import Path

import pytest
from dormouse_core.members import Answer, Member
from dormouse_core.seams import StoreError
from dormouse_operator.kubernetes.api.http import ApiError
from dormouse_operator.kubernetes.api.kinds import PODS, SECRETS
from dormouse_operator.kubernetes.members import __main__ as program
from dormouse_operator.kubernetes.members.admitting import REASON, Admitting
from dormouse_operator.kubernetes.members.joining import Joining, Place
from dormouse_operator.kubernetes.secret_options import Members
from dormouse_operator.kubernetes.secrets.objects import Secrets
from dormouse_testing.memory_api import MemoryApi

FORMED = (SECRETS.plural, "system", "d-etcd-formed")
URLS = {f"e-{number}": f"https://e-{number}.peers:2380" for number in range(3)}


class Clock:
    def __init__(self) -> None:
        self.time = 0.0

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        self.time += seconds
        if self.time > 100:
            raise TimeoutError


class Cluster:
    """`order`: what was asked for and whether it was remembered then."""

    def __init__(self, api: MemoryApi, *found: Member) -> None:
        self.api = api
        self.found = list(found)
        self.behind = False
        self.order: list[tuple[int, bool]] = []

    async def members(self) -> list[Member]:
        return self.found

    async def promote(self, member: int) -> bool:
        self.order.append((member, FORMED in self.api.objects))
        return not self.behind


class Scene:
    def __init__(self, *found: Member) -> None:
        self.api = MemoryApi()
        self.cluster = Cluster(self.api, *found)
        self.told: list[tuple[str, str]] = []
        wanted = Members(secret="d-etcd-formed", selector="part=etcd")
        secrets = Secrets(self.api, "system", {"dormouse.dev/part": "etcd"})
        self.admitting = Admitting(self.api, Clock(), self.cluster, secrets, wanted, "system", self.warn)

    async def warn(self, reason: str, text: str) -> None:
        self.told.append((reason, text))

    def pod(self, name: str, node: str) -> None:
        metadata = {"name": name, "namespace": "system", "labels": {"part": "etcd"}}
        self.api.put(PODS, {"metadata": metadata, "spec": {"nodeName": node} if node else {}})


def member(number: int, *, started: bool = True, learner: bool = False) -> Member:
    return Member(number + 1, f"e-{number}" if started else "", (URLS[f"e-{number}"],), learner)


async def test_it_is_remembered_before_a_second_one_has_a_vote() -> None:
    scene = Scene(member(0), member(1, learner=True))
    assert not await scene.admitting.look()
    assert scene.cluster.order == [(2, True)]
    assert scene.api.objects[FORMED]["metadata"]["labels"] == {"dormouse.dev/part": "etcd"}, "removed with the other Secrets"


async def test_where_it_cannot_be_remembered_nobody_has_a_vote() -> None:
    scene = Scene(member(0), member(1, learner=True))
    scene.api.refuse = ApiError(500, "Oops", "not now")
    with pytest.raises(ApiError):
        await scene.admitting.look()
    assert scene.cluster.order == []


async def test_nothing_is_remembered_of_one_alone_and_what_is_stays() -> None:
    scene = Scene(member(0))
    await scene.admitting.look()
    assert FORMED not in scene.api.objects
    scene.cluster.found.append(member(1, started=False, learner=True))
    await scene.admitting.look()
    before = scene.api.objects[FORMED]
    scene.cluster.found.append(member(2, started=False, learner=True))
    await scene.admitting.look()
    assert scene.api.objects[FORMED] == before
    assert scene.cluster.order == [], "neither has started"


async def test_one_that_lacks_something_waits_for_its_vote() -> None:
    scene = Scene(member(0), member(1, learner=True))
    scene.cluster.behind = True
    assert await scene.admitting.look()


async def test_who_shares_a_node_is_told_until_nobody_does() -> None:
    scene = Scene(member(0))
    for name, node in (("e-0", "a"), ("e-1", "a"), ("e-2", "")):
        scene.pod(name, node)
    await scene.admitting.look()
    scene.pod("e-1", "b")
    await scene.admitting.look()
    [(reason, shared), (_, ended)] = scene.told
    assert reason == REASON
    assert "e-0 and e-1 are on a" in shared
    assert ended == ""


async def test_a_store_that_does_not_answer_ends_nothing() -> None:
    scene = Scene(member(0), member(1, learner=True))

    async def no_answer() -> list[Member]:
        raise StoreError("no answer", definite=True)

    scene.cluster.members = no_answer  # type: ignore[method-assign]
    with contextlib.suppress(TimeoutError):
        await scene.admitting.run()
    assert scene.cluster.order == []


# ------------------------------------------------------------------------------------------------------------------ the program

GIVEN = ("--name=e-0", "--member=e-0=https://a:2380", "--data=/d", "--out=/o", "--formed=/f", "--formed-secret=f", "--store=a:2379")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--etcd={}", "--name=e-7"), "'e-7' found, one of --member (e-0) is allowed"),
        (("--etcd=[]",), "list found, an object is allowed"),
        (("--etcd={",), "--etcd: "),
        (("--etcd={}", "--member=e-1"), "no URL found for 'e-1', NAME=https://HOST:PORT is allowed"),
    ],
)
def test_a_wrong_command_line_is_refused_with_what_is_allowed(
    words: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        program.parse([*GIVEN, *words])
    assert told in capsys.readouterr().err


class Refusing:
    """Takes nobody in."""

    async def add_learner(self, url: str) -> list[Member]:
        raise StoreError("too many learner members in cluster", definite=True)

    async def remove(self, member: int) -> None:
        raise StoreError("unhealthy cluster", definite=True)


@pytest.mark.parametrize("known", [True, False], ids=["was a member", "is new"])
async def test_one_that_is_not_taken_in_waits_and_leaves_nothing_to_start_with(tmp_path: Path, known: bool) -> None:
    async def ask(url: str) -> Answer:
        return Answer("c", (member(0), member(1), member(2)) if known else (member(0), member(2)))

    place = Place("e-1", URLS, tmp_path / "data", tmp_path / "formed", "formed", {}, tmp_path / "etcd.json")
    with pytest.raises(TimeoutError):
        await Joining(place, Refusing(), ask, Clock()).run()
    assert not place.out.exists()


@pytest.mark.parametrize("log", [True, False], ids=["with a log", "without"])
async def test_what_forms_a_cluster_goes_with_the_data(tmp_path: Path, log: bool) -> None:
    """What it starts with has etcd form none, so it may stay when the data goes."""

    async def nobody(url: str) -> None:
        return None

    place = Place("e-0", URLS, tmp_path / "data", tmp_path / "formed", "formed", {"name": "e-0"}, tmp_path / "etcd.json")
    if log:
        (place.data / "member" / "wal").mkdir(parents=True)
        (place.data / "member" / "wal" / "0-0.wal").touch()
    for _ in range(2):  # as if it had been cut short
        await Joining(place, Refusing(), nobody, Clock()).run()
    assert json.loads(place.out.read_text())["initial-cluster-state"] == ("existing" if log else "new")
    shutil.rmtree(place.data / "member")
    assert place.out.exists() is log


async def test_silence_is_no_leave_for_one_that_nobody_knew(tmp_path: Path) -> None:
    answers: list[Answer | None] = [Answer("c", (member(0),)), None, None, Answer("c", (member(0), member(1)))]
    asked: list[Answer | None] = []

    async def ask(url: str) -> Answer | None:
        if url == URLS["e-2"]:
            return None
        asked.append(answers[len(asked)])
        return asked[-1]

    place = Place("e-1", URLS, tmp_path / "data", tmp_path / "formed", "formed", {"name": "e-1"}, tmp_path / "etcd.json")
    (place.data / "member" / "wal").mkdir(parents=True)
    (place.data / "member" / "wal" / "0-0.wal").touch()
    await Joining(place, Refusing(), ask, Clock()).run()
    assert asked == answers
