"""The whole system on one machine with a full etcd, and back: nothing is started anew, nothing is acknowledged that is not committed."""

import asyncio
import contextlib
import itertools
import os
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from conftest import unavailable
from dormouse.client import Client
from dormouse_core.errors import Code, DormouseError
from dormouse_core.seams import Delete, Full, Put, StoreError, Txn
from dormouse_core.sessions.names import session_key, shard_of
from dormouse_kit.etcd import EtcdStore
from dormouse_testing.etcd_server import EtcdServer, NoEtcd
from dormouse_testing.places import page
from dormouse_testing.trails import WIDTH, Trails, save_trail
from dormouse_testing.up import DOUBLE, TOTAL, Up, children, missing, row, save_models, save_wide, system

AWAKE = "scaleToZeroAfter: 600s"
TRAIL = TOTAL.replace("total", "trail").replace("-1, 1]", f"-1, {WIDTH}]")
WIDE = TOTAL.replace("total", "wide").replace("-1, 1]", "-1, 16384]")


@pytest.fixture
def up(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Up]:
    """A parameter is another quota of its etcd."""
    if reason := missing():
        unavailable(reason)
    save_models(tmp_path)
    (tmp_path / "double.yaml").write_text(DOUBLE.replace("scaleToZeroAfter: 3s", AWAKE))
    (tmp_path / "total.yaml").write_text(TOTAL.replace("scaleToZeroAfter: 3s", AWAKE))
    (tmp_path / "wide.yaml").write_text(WIDE.replace("scaleToZeroAfter: 3s", AWAKE))
    save_wide(tmp_path / "wide.onnx", 16384)  # 64 KiB a session
    (tmp_path / "trail.yaml").write_text(TRAIL.replace("scaleToZeroAfter: 3s", AWAKE))
    save_trail(tmp_path / "trail.onnx")
    with system(tmp_path, "--etcd-quota", getattr(request, "param", "16MiB")) as started:
        started.wait_ready()
        yield started


def with_store(up: Up, use: Callable[[EtcdStore], Awaitable[int]]) -> int:
    """`use` on the system's own etcd."""

    async def main() -> int:
        store = EtcdStore([up.store])
        try:
            return await use(store)
        finally:
            await store.close()

    return asyncio.run(main())


async def fill(store: EtcdStore, most: int = 1_000_000) -> int:
    """With keys of 128 KiB, so that nothing but deleting them makes room; until it stays full."""
    count = refused = 0
    while refused < 30 and count < most:
        try:
            await store.txn(Txn((), (Put(f"/filling/{count}", b"x" * 128 * 1024),)))
            count += 1
        except StoreError:
            refused += 1
            await asyncio.sleep(0.1)
    return count


async def empty(store: EtcdStore) -> int:
    await store.txn(Txn((), (Delete("/filling/", prefix=True),)), timeout=20)
    return 0


async def refusals_of_leases(store: EtcdStore) -> int:
    with contextlib.suppress(Full):
        await store.grant(3)
        return 0
    return 1


def step(up: Up, session: str = "a") -> float:
    with contextlib.closing(Client(up.gateway)) as client:
        return float(client.infer("total", {"x": row(1)}, session=session, timeout=10).outputs["y"][0, 0])


def doubled(up: Up) -> float:
    with contextlib.closing(Client(up.gateway)) as client:
        return float(client.infer("double", {"x": row(1, 2, 3, 4)}, timeout=10).outputs["y"][0, 0])


@pytest.mark.slow  # 30 s
def test_filled_to_the_last_byte_and_back(up: Up) -> None:
    """6.O4, in the whole system."""
    assert [step(up) for _ in range(3)] == [1, 2, 3]
    assert doubled(up) == 2
    with_store(up, fill)
    etcd, agent, envoy = (up.part(part) for part in ("etcd", "agent", "envoy"))
    workers = {pid: children(pid) for pid in up.supervisors().values()}

    def what_goes_on() -> None:
        assert doubled(up) == 2, "an awake stateless function answers"
        with pytest.raises(DormouseError) as refused:
            step(up)
        assert refused.value.code == Code.UNAVAILABLE
        assert "the store is full" in refused.value.message
        assert (up.part("etcd"), up.part("agent"), up.part("envoy")) == (etcd, agent, envoy), "nothing is started anew"
        assert {pid: children(pid) for pid in workers} == workers

    what_goes_on()
    assert up.get("double")["phase"] == "Ready"
    assert "a" in up.command("sessions", "total").stdout, "what exists is readable"
    # Without a leader, and none can be elected.
    os.kill(up.part("operator"), signal.SIGKILL)
    until = time.monotonic() + 8
    while time.monotonic() < until:
        what_goes_on()
        time.sleep(0.5)
    assert with_store(up, refusals_of_leases) == 1
    with_store(up, empty)

    def healed() -> bool:
        with contextlib.suppress(DormouseError):
            step(up, "new")
            return True
        return False

    began = time.monotonic()
    up.until(healed, 30)
    print(f"healed after {time.monotonic() - began:.1f} s")
    assert step(up) == 4, "each session goes on from its last saved step: what was refused was not committed"
    up.until(lambda: up.command("get", "double", check=False).returncode == 0)
    assert up.part("etcd") == etcd
    assert {pid: children(pid) for pid in workers} == workers


@pytest.mark.slow  # 25 s
def test_a_worker_that_starts_while_the_store_is_full_serves_once_it_has_room(up: Up) -> None:
    assert doubled(up) == 2
    with_store(up, fill)
    for supervisor in up.supervisors().values():
        for child in children(supervisor):
            os.kill(child, signal.SIGKILL)
    up.until(lambda: "the worker registers once it has room" in up.log)
    with_store(up, empty)

    def healed() -> bool:
        with contextlib.suppress(DormouseError):
            return doubled(up) == 2
        return False

    up.until(healed, 30)
    assert up.get("double")["phase"] == "Ready"


def fill_with_sessions(gateway: str, most: int = 1000) -> tuple[int, DormouseError | None]:
    """Begins sessions of `wide` until one is refused: how many began, and the refusal."""
    with Client(gateway) as client:
        for n in range(most):
            try:
                client.infer("wide", {"x": row(1)}, session=f"s{n}", tenant="t", timeout=30)
            except DormouseError as error:
                return n, error
    return most, None


@pytest.mark.slow  # 60 s
@pytest.mark.parametrize("up", ["32MiB"], indirect=True)
def test_filled_with_sessions_to_seventy_percent_then_to_the_last_byte_and_back(up: Up) -> None:
    """At 70 % new sessions are refused and no step of an old one; full, `dormouse delete` is taken, and heals it."""
    assert doubled(up) == 2
    with Trails(up.gateway, 4, pause=0.02) as trails:
        up.until(lambda: min(trails.acked) > 3)
        since = time.monotonic()
        began, refused = fill_with_sessions(up.gateway)
        rate = began / (time.monotonic() - since)
        assert refused is not None
        assert refused.code is Code.RESOURCE_EXHAUSTED, refused
        assert refused.message.endswith("of the store's quota is in use, at most 70% are allowed for them; end or delete sessions")
        print(f"\n{began} began, {rate:.0f} a second; {refused.message}")
        assert 0.5 * 32 * 16 < began < 0.75 * 32 * 16, "64 KiB each, of 32 MiB, however many of them begin in a second"
        with_store(up, lambda store: fill(store, 16))  # what others write, its worker cannot know
        others = itertools.count()

        def refused_elsewhere() -> bool:
            try:
                step(up, f"other{next(others)}")
            except DormouseError as error:
                return "of the store's quota" in error.message
            return False

        up.until(refused_elsewhere, 5)  # every function's workers hear of it at their next report
        at = list(trails.acked)
        until = time.monotonic() + 5
        while time.monotonic() < until:
            with Client(up.gateway) as client:
                client.infer("wide", {"x": row(1)}, session="s0", tenant="t", timeout=30)
        assert not trails.failures, "what exists goes on"
        assert min(done - before for done, before in zip(trails.acked, at, strict=True)) > 10

        parts = {part: up.part(part) for part in ("etcd", "agent", "envoy", "operator")}
        with_store(up, fill)
        workers = {pid: children(pid) for pid in up.supervisors().values()}
        assert doubled(up) == 2
        assert "true" in page(up.store, "/health?exclude=NOSPACE"), "the probe that the chart has"
        assert "trail0" in up.command("sessions", "trail").stdout, "what exists is readable"
        with pytest.raises(DormouseError):
            step(up, "new")
        up.until(lambda: trails.failures)
        assert up.command("delete", "wide").returncode == 0, "deletions are taken, and make room"

        def goes_on() -> bool:
            before = list(trails.acked)
            time.sleep(1.0)
            return all(done > was for done, was in zip(trails.acked, before, strict=True))

        began_at = time.monotonic()
        up.until(goes_on, 30)
        print(f"healed {time.monotonic() - began_at:.1f} s after the deletion; failures meanwhile: {trails.failures.total()}")
        until = time.monotonic() + 10
        while True:
            with contextlib.suppress(DormouseError):
                step(up, "new")
                break
            assert time.monotonic() < until, "new sessions are taken again"
            time.sleep(0.2)
        assert {part: up.part(part) for part in parts} == parts, "nothing is started anew"
        assert {pid: children(pid) for pid in workers if Path(f"/proc/{pid}").exists() and children(pid)}.items() <= workers.items()
    print(trails.failures)
    assert trails.wrong == []
    assert {code for code, _ in trails.failures} == {Code.UNAVAILABLE}, trails.failures
    assert any("not committed: the store is full" in text for _, text in trails.failures), trails.failures


@pytest.mark.slow  # 20 s
def test_negative_control_where_the_operator_is_told_a_wrong_quota_new_sessions_stop_the_old_ones(tmp_path: Path) -> None:
    save_models(tmp_path)
    save_wide(tmp_path / "wide.onnx", 16384)
    save_trail(tmp_path / "trail.onnx")
    (tmp_path / "trail.yaml").write_text(TRAIL)
    (tmp_path / "wide.yaml").write_text(WIDE)
    try:
        with (
            EtcdServer(tmp_path / "etcd", "--quota-backend-bytes", str(16 << 20)) as etcd,
            system(tmp_path, "--etcd-endpoints", etcd.endpoint, "--etcd-quota", "2GiB") as up,
        ):
            up.wait_ready()
            with Trails(up.gateway, 2, pause=0.02) as trails:
                up.until(lambda: min(trails.acked) > 3)
                _, refused = fill_with_sessions(up.gateway)
                assert refused is not None
                assert refused.code is Code.UNAVAILABLE
                up.until(lambda: any("the store is full" in text for _, text in trails.failures))
            assert trails.wrong == []
    except NoEtcd as error:
        unavailable(str(error))


@pytest.mark.slow  # 25 s
def test_sessions_are_deleted_while_the_store_is_full_and_it_heals(up: Up) -> None:
    assert [step(up) for _ in range(2)] == [1, 2]
    began, refused = fill_with_sessions(up.gateway)
    assert refused is not None
    with_store(up, fill)
    assert f"deleted: {began}" in up.command("sessions", "wide", "--tenant", "t", "--delete").stdout

    def taken() -> bool:
        with contextlib.suppress(DormouseError), Client(up.gateway) as client:
            client.infer("wide", {"x": row(1)}, session="s1", tenant="t", timeout=10)
            return True
        return False

    up.until(taken, 40)
    assert step(up) == 3
    up.until(lambda: up.get("wide")["sessions"] == 1, 20)


@pytest.mark.slow  # 25 s
def test_an_operator_that_ends_with_debts_is_followed_by_one_that_settles_them(up: Up) -> None:
    """What was called until then does not begin the deleted session anew; its neighbours in the shard go on."""
    shard = shard_of(session_key("", "a"), 64)
    neighbour = next(name for name in map("n{}".format, itertools.count()) if shard_of(session_key("", name), 64) == shard)
    assert [step(up, name) for name in ("a", neighbour, "other")] == [1, 1, 1]
    with_store(up, fill)
    assert "deleted: 1" in up.command("sessions", "total", "/s:a", "--delete").stdout
    os.kill(up.part("operator"), signal.SIGKILL)
    with_store(up, empty)
    up.until(lambda: "deletions that a former leader left unfinished" in up.log, 40)
    assert [step(up, name) for name in (neighbour, "other")] == [2, 2]
    with pytest.raises(DormouseError) as refused:
        step(up, "a")
    assert refused.value.code is Code.ABORTED, "for a minute"


@pytest.mark.slow  # 40 s
def test_no_step_is_lost_doubled_or_forked_while_the_store_fills_and_heals(up: Up) -> None:
    """Full twice, with sessions deleted while it is: each answer says of which steps its session is made."""
    with Trails(up.gateway, 12, deadlines=(30.0, 30.0, 2.0, 0.3)) as trails:
        up.until(lambda: trails.wrong or min(trails.acked) > 3, 60)
        for first in (0, 4):
            fill_with_sessions(up.gateway, 100)
            with_store(up, fill)
            for n in (first, first + 1):
                trails.delete(n, lambda session: up.command("sessions", "trail", session, "--delete", check=False).returncode == 0)
            with_store(up, empty)
            before = list(trails.acked)
            up.until(lambda: trails.wrong or all(now > was for now, was in zip(trails.acked, before, strict=True)), 60)  # noqa: B023
    assert trails.wrong == []
    assert any("the store is full" in text for _, text in trails.failures), trails.failures
    assert sum(trail.lives for trail in trails.trails) > 0, "some were deleted"


@pytest.mark.slow  # 25 s
def test_where_nobody_leads_a_larger_quota_and_another_start_are_the_way_out(up: Up) -> None:
    """Keys alone fill it, and no operator led when that was seen: so no command is taken."""
    assert [step(up) for _ in range(2)] == [1, 2]
    with_store(up, fill)
    assert up.stop() == 0
    with system(up.folder, "--etcd-quota", "32MiB") as larger:
        larger.wait_ready(60)
        assert step(larger) == 3
        assert "deleted" in larger.command("delete", "wide").stdout
