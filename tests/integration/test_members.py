"""Members of a real etcd that form a cluster, join it, lose their data and come back, each started by the program that the chart runs."""

import asyncio
import contextlib
import functools
import itertools
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import unavailable
from dormouse_core.members import Answer, Member, Own
from dormouse_core.seams import Put, StoreError, Txn
from dormouse_kit.clock import SystemClock
from dormouse_kit.etcd import EtcdStore, log
from dormouse_kit.etcd.membership import Membership, asked
from dormouse_kit.etcd.users import ROOT, Users
from dormouse_operator.kubernetes.api.kinds import SECRETS
from dormouse_operator.kubernetes.members.admitting import Admitting
from dormouse_operator.kubernetes.members.joining import Joining, Place
from dormouse_operator.kubernetes.secret_options import Members
from dormouse_operator.kubernetes.secrets.objects import Secrets
from dormouse_testing.cluster.layout import Layout
from dormouse_testing.etcd_server import NoEtcd
from dormouse_testing.joining import Joined
from dormouse_testing.memory_api import MemoryApi

PASSWORD = "correct horse"
CHARTS = Layout.here().bin / "etcd"
"""The chart's version; where it has not been built, whatever is on PATH."""


@pytest.fixture
def three(tmp_path: Path) -> Iterator[list[Joined]]:
    try:
        found = Joined.of(tmp_path / "members", program=str(CHARTS) if CHARTS.exists() else "")
    except NoEtcd as error:
        unavailable(str(error))
        return
    (tmp_path / "password").write_text(PASSWORD)
    for each in found:
        each.password_file = tmp_path / "password"
    try:
        yield found
    finally:
        for each in found:
            each.cut_short()


class Operator:
    """The operator's part: it makes root, gives votes, and remembers, in an API server in memory and a file that members see."""

    def __init__(self, three: list[Joined]) -> None:
        self.api = MemoryApi()
        self.cluster = Membership([each.endpoint for each in three], user=ROOT, password=PASSWORD)
        self.file = three[0].formed
        self.told: list[str] = []
        secrets = Secrets(self.api, "system", {})
        wanted = Members(secret="etcd-formed", selector="part=etcd")
        self.admitting = Admitting(self.api, SystemClock(), self.cluster, secrets, wanted, "system", self.warn)

    async def warn(self, reason: str, text: str) -> None:
        self.told.append(text)

    async def look(self) -> None:
        with contextlib.suppress(StoreError):
            await self.admitting.look()
        if (SECRETS.plural, "system", "etcd-formed") in self.api.objects:
            self.file.touch()  # as the kubelet mounts it

    async def run(self) -> None:
        while True:
            await self.look()
            await asyncio.sleep(0.1)


@pytest.fixture
async def operator(three: list[Joined]) -> AsyncIterator[Operator]:
    found = Operator(three)
    try:
        yield found
    finally:
        await found.cluster.close()


async def prepare(three: list[Joined]) -> None:
    users = Users([three[0].endpoint], PASSWORD)
    try:
        await users.prepare()
    finally:
        await users.close()


async def until(what: str, look: Callable[[], Awaitable[Any]], seconds: float = 40.0) -> None:
    async with asyncio.timeout(seconds):
        while True:
            with contextlib.suppress(StoreError, OSError):
                if await look():
                    return
            await asyncio.sleep(0.1)
    raise AssertionError(what)


async def formed(three: list[Joined], operator: Operator, size: int = 3) -> None:
    """As an installation begins: the first one alone, the others join it. A third one waits until etcd has seen five good seconds."""
    await asyncio.to_thread(three[0].join)
    await asyncio.to_thread(three[0].ready)
    await prepare(three)
    for number in range(1, size):
        await asyncio.to_thread(three[number].join)
        await until("it has its vote", functools.partial(whole, three, operator, number + 1))


async def whole(three: list[Joined], operator: Operator, size: int = 3) -> bool:
    await operator.look()
    found = await operator.cluster.members()
    voting = [each.name for each in found if not each.learner]
    return sorted(voting) == [each.name for each in three[:size]] and len(found) == size


def store_of(three: list[Joined]) -> EtcdStore:
    return EtcdStore([each.endpoint for each in three], user=ROOT, password=PASSWORD)


class Steps:
    """Writes one number after the other, each once, as steps of a session are; `failed`: those that were refused or not answered."""

    def __init__(self, store: EtcdStore) -> None:
        self.store = store
        self.done = 0
        self.failed: list[str] = []

    async def run(self) -> None:
        for number in itertools.count(1):
            try:
                await self.store.txn(Txn((), (Put("/step", b"%d" % number),)), timeout=5)
                self.done = number
            except StoreError as error:
                self.failed.append(f"{number}: {error}")
            await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def stepping(store: EtcdStore) -> AsyncIterator[Steps]:
    steps = Steps(store)
    task = asyncio.create_task(steps.run())
    try:
        yield steps
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_one_becomes_three_and_a_wiped_one_comes_back_while_steps_go_on(three: list[Joined], operator: Operator) -> None:
    """The first one last: without its data it is no more than any other."""
    await asyncio.to_thread(three[0].join)
    await asyncio.to_thread(three[0].ready)
    await prepare(three)
    store = store_of(three)
    giving = asyncio.create_task(operator.run())
    async with stepping(store) as steps:
        await until("steps go on", lambda: at(steps, 5))
        await asyncio.gather(*(asyncio.to_thread(each.join) for each in three[1:]))  # both at once, as a StatefulSet starts them
        await until("three have a vote", lambda: whole(three, operator))
        assert steps.failed == [], "one becomes three"
        for place in (2, 0):
            used = (await store._connections.get(5)).endpoint
            lost = next(each for each in (three[place], *three) if each.endpoint != used)  # a client's own member is another test's
            before = {each.id for each in await operator.cluster.members() if each.name == lost.name}
            lost.wipe()
            await asyncio.to_thread(lost.join)
            await until("it is back", lambda: whole(three, operator))
            after = {each.id for each in await operator.cluster.members() if each.name == lost.name}
            assert before.isdisjoint(after), "under its former id others would count on what it voted for"
            await until("steps go on", functools.partial(at, steps, steps.done + 5))
        assert steps.failed == [], "a wiped one comes back"
        for each in three:
            await asyncio.to_thread(each.ready)
    for each in three:
        alone = EtcdStore([each.endpoint], user=ROOT, password=PASSWORD)
        assert int((await alone.get(["/step"]))[1]["/step"].value) >= steps.done
        await alone.close()
    giving.cancel()
    await asyncio.gather(giving, return_exceptions=True)
    await store.close()


async def at(steps: Steps, number: int) -> bool:
    return steps.done >= number


async def ended(member: Joined) -> bool:
    assert member.joining is not None
    return member.joining.poll() == 0


@pytest.mark.parametrize("size", [2, pytest.param(3, marks=pytest.mark.slow)])
async def test_a_wiped_member_waits_for_the_others_and_never_forms_a_second_cluster(
    three: list[Joined], operator: Operator, size: int
) -> None:
    """Of two, one is no majority; of three the others take it in."""
    await formed(three, operator, size)
    assert three[0].formed.exists(), "it is remembered before another one has a vote"
    for each in three[:size]:  # each knows of the last vote: else the one that is wiped would be needed for the majority before it
        alone = EtcdStore([each.endpoint], user=ROOT, password=PASSWORD)
        await alone.get(["/step"])
        await alone.close()
    await all_stopped(three)
    three[0].wipe()
    three[0].begin()
    await until("it says what it waits for", lambda: says(three[0], "there was a cluster of several members"))
    assert not (three[0].folder / "etcd.json").exists()
    await asyncio.to_thread(three[1].join)  # with its data; alone it decides nothing
    await until("it cannot be taken in yet", lambda: says(three[0], "not yet"))
    assert not (three[0].folder / "etcd.json").exists()
    if size == 3:
        await asyncio.to_thread(three[2].join)
        await until("it is taken in", lambda: ended(three[0]))
        three[0].launch()
        await until("three again", lambda: whole(three, operator))


async def test_negative_control_one_that_remembers_nothing_forms_a_second_cluster(three: list[Joined], operator: Operator) -> None:
    await formed(three, operator, 2)
    before = await asked(three[1].peer, None)
    await all_stopped(three)
    three[0].wipe()
    three[0].formed.unlink()
    await asyncio.to_thread(three[0].join)
    await asyncio.to_thread(three[0].ready)
    after = await asked(three[0].peer, None)
    assert isinstance(before, Answer)
    assert isinstance(after, Answer)
    assert (len(before.members), len(after.members)) == (2, 1)


async def emptied(member: Joined, *, whole: bool = True) -> None:
    """Its data goes while it runs, and its container alone is started again: the program is not. `whole`: the folder itself stays."""
    await asyncio.to_thread(member.kill)
    for each in list(member.data.iterdir()) if whole else [member.data]:
        shutil.rmtree(each)
    member.launch()


async def test_a_container_that_starts_again_without_its_data_ends_until_its_pod_is_another(
    three: list[Joined], operator: Operator
) -> None:
    """Whatever it was told when the pod began: to form a cluster, to join one, or to start."""
    await asyncio.to_thread(three[0].join)
    await asyncio.to_thread(three[0].ready)
    await asyncio.to_thread(three[0].kill)
    three[0].launch()
    await asyncio.to_thread(three[0].ready)  # with its data it is no matter how often
    await emptied(three[0])
    await until("who formed a cluster forms no other", lambda: died(three[0]))
    await asyncio.to_thread(three[0].cut_short)
    await formed(three, operator, 2)
    await emptied(three[1], whole=False)
    await until("who joined does not come back as who it was", lambda: died(three[1]))
    await asyncio.to_thread(three[0].kill)
    await asyncio.to_thread(three[0].join)  # a pod that finds its data
    await emptied(three[0])
    await until("who started with its data forms no cluster", lambda: died(three[0]))


async def died(member: Joined) -> bool:
    """By itself: then its pod is one whose container has ended."""
    if member.process is None or member.process.poll() is None:
        return False
    member.process = None
    return True


async def test_negative_control_told_once_and_for_all_it_would_form_a_second_cluster(three: list[Joined]) -> None:
    await asyncio.to_thread(three[0].join)
    await asyncio.to_thread(three[0].ready)
    told = (three[0].folder / "etcd.json").read_text()
    (three[0].folder / "etcd.json").unlink()
    (three[0].folder / "etcd.json").write_text(told)
    await emptied(three[0])
    await asyncio.to_thread(three[0].ready)
    assert log.has_log(three[0].data)


async def all_stopped(three: list[Joined]) -> None:
    await asyncio.gather(*(asyncio.to_thread(each.kill) for each in three))


async def says(member: Joined, text: str) -> bool:
    return text in member.said()


async def test_a_learner_is_not_ready_for_clients(three: list[Joined], operator: Operator) -> None:
    """It would refuse what they ask."""
    if not CHARTS.exists():
        pytest.skip("the chart's etcd has not been built here (tests/cluster/cluster prepare)")
    await asyncio.to_thread(three[0].join)
    await asyncio.to_thread(three[0].ready)
    await prepare(three)
    await asyncio.to_thread(three[1].join)

    async def started() -> bool:
        return [each.learner for each in await operator.cluster.members() if each.name == three[1].name] == [True]

    await until("the learner runs", started)
    assert await asyncio.to_thread(three[0].ready_for_clients)
    assert not await asyncio.to_thread(three[1].ready_for_clients)
    await until("it has its vote", lambda: whole(three, operator, 2))
    await until("it is ready", lambda: asyncio.to_thread(three[1].ready_for_clients))


class Cut(Exception):
    """The process ends here."""


class Cutting:
    """What changes the cluster; cut short at a point: before or after a change has been made."""

    def __init__(self, cluster: Membership, point: str) -> None:
        self.cluster = cluster
        self.point = point
        self.seen: list[str] = []

    def at(self, point: str) -> None:
        self.seen.append(point)
        if point == self.point:
            raise Cut

    async def remove(self, member: int) -> None:
        self.at("before remove")
        await self.cluster.remove(member)
        self.at("after remove")

    async def add_learner(self, url: str) -> list[Member]:
        self.at("before add")
        found = await self.cluster.add_learner(url)
        self.at("after add")
        return found


POINTS = ("before remove", "after remove", "before add", "after add", "after write", "first start")


@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS)
async def test_one_that_was_cut_short_while_it_joined_joins(three: list[Joined], operator: Operator, point: str) -> None:
    await formed(three, operator)
    lost = three[1]
    lost.wipe()
    lost.folder.mkdir()
    urls = {each.name: each.peer for each in three}
    place = Place(lost.name, urls, lost.data, lost.formed, "formed", {}, lost.folder / "etcd.json")
    cutting = Cutting(operator.cluster, point)
    with contextlib.suppress(Cut):
        await Joining(place, cutting, lambda url: asked(url, None), SystemClock()).run()
    assert point in cutting.seen or point in ("after write", "first start")
    if point == "first start":  # etcd made its folder, and no log yet
        (lost.data / "member" / "snap").mkdir(parents=True)
        (lost.data / "member" / "snap" / "db").write_bytes(b"half")
    await asyncio.to_thread(lost.join)
    await until("three again", lambda: whole(three, operator))
    assert log.has_log(lost.data)
    await until("it is ready", lambda: asyncio.to_thread(lost._healthy))


async def test_what_one_member_had_before_there_was_such_a_program_is_kept(three: list[Joined], operator: Operator) -> None:
    """An installation of one, made with etcd's own options, becomes several."""
    old = three[0]
    before = ["--initial-cluster-token", "test"]
    old.options, old.members = tuple(before), [old]
    super(Joined, old).launch()
    await asyncio.to_thread(old.ready)
    await prepare(three)
    store = EtcdStore([old.endpoint], user=ROOT, password=PASSWORD)
    await store.txn(Txn((), (Put("/kept", b"since then"),)))
    await store.close()
    await asyncio.to_thread(old.stop)
    await asyncio.to_thread(old.join)
    await asyncio.to_thread(old.ready)
    await asyncio.to_thread(three[1].join)
    await until("two", lambda: whole(three, operator, 2))
    store = EtcdStore([three[1].endpoint], user=ROOT, password=PASSWORD)
    assert (await store.get(["/kept"]))[1]["/kept"].value == b"since then"
    await store.close()


async def test_a_log_says_whose_it_is(three: list[Joined]) -> None:
    await asyncio.to_thread(three[0].join)
    await asyncio.to_thread(three[0].ready)
    answer = await asked(three[0].peer, None)
    assert isinstance(answer, Answer)
    assert log.own(three[0].data) == Own(answer.cluster, answer.members[0].id)
    assert log.own(three[1].data) is None
    await asyncio.to_thread(three[0].wipe)
    await asyncio.to_thread(three[0].join)
    await asyncio.to_thread(three[0].ready)
    again = await asked(three[0].peer, None)
    assert isinstance(again, Answer)
    assert again.cluster != answer.cluster, "no two clusters share an id"


async def test_volumes_of_an_earlier_cluster_wait_and_overwrite_nobody(three: list[Joined], operator: Operator) -> None:
    """Claims outlive a release: the first one's is removed, another cluster is made, and the others' are found again."""
    await earlier(three, operator)
    for each in three[1:]:
        each.begin()
    for each in three[1:]:
        await until("it says why it waits", functools.partial(says, each, "does not know this member"))
    three[0].kill()  # and while it is away they wait, too
    for each in three[1:]:
        await until("it waits on", functools.partial(says, each, "nobody answers now"))
    three[0].launch()
    await asyncio.to_thread(three[0].ready)
    assert await step_of(three[0]) == b"new"
    three[1].wipe()
    await asyncio.to_thread(three[1].join)  # its claim was deleted
    await until("it has its vote", lambda: whole(three, operator, 2))
    assert await step_of(three[1]) == b"new"


async def test_negative_control_started_unasked_they_would_be_the_earlier_cluster(three: list[Joined], operator: Operator) -> None:
    await earlier(three, operator)
    for each in three[1:]:
        each.launch()  # with the configuration of their last start
    await until("they serve what was", functools.partial(serves, three[1], b"old"))
    assert await step_of(three[0]) == b"new", "which has another id now, so it is not overwritten"


async def earlier(three: list[Joined], operator: Operator) -> None:
    await formed(three, operator)
    await put(three[0], b"old")
    await all_stopped(three)
    three[0].wipe()
    three[0].formed.unlink()
    await asyncio.to_thread(three[0].join)
    await asyncio.to_thread(three[0].ready)
    await prepare(three)
    await put(three[0], b"new")


async def put(member: Joined, value: bytes) -> None:
    store = EtcdStore([member.endpoint], user=ROOT, password=PASSWORD)
    await store.txn(Txn((), (Put("/step", value),)))
    await store.close()


async def step_of(member: Joined) -> bytes:
    store = EtcdStore([member.endpoint], user=ROOT, password=PASSWORD)
    try:
        return (await store.get(["/step"]))[1]["/step"].value
    finally:
        await store.close()


async def serves(member: Joined, value: bytes) -> bool:
    return await step_of(member) == value
