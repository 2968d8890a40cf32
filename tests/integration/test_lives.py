"""The lives of sessions on the whole system: limits, removal awake and asleep, deletion, and a store that levels off under traffic."""

import json
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from conftest import unavailable
from dormouse.client import Client
from dormouse_core.errors import Code, DormouseError
from dormouse_core.keys import Keys
from dormouse_testing.etcd_server import EtcdServer, NoEtcd
from dormouse_testing.traffic import Store, Traffic
from dormouse_testing.up import Up, missing, row, save_models, system

KEYS = Keys("local")
WAIT = 2.0  # seconds: the removal wait
FEW = """
apiVersion: dormouse.dev/v1alpha1
kind: InferenceFunction
metadata: {name: few}
spec:
  runtime: onnx
  model: {uri: "file://total.onnx"}
  sessions:
    states: [{input: s, output: t, shape: [-1, 1], batchAxis: 0}]
    ttl: 1s
    maxCount: 3
  scaleToZeroAfter: 1s
"""
SLOWER = FEW.replace("After: 1s", "After: 3s")
LONG = SLOWER.replace("name: few", "name: long").replace("ttl: 1s", "ttl: 24h").replace("maxCount: 3", "maxCount: 1000")
BUSY = SLOWER.replace("name: few", "name: busy").replace("ttl: 1s", "ttl: {ttl}").replace("maxCount: 3", "maxCount: 100000")


@pytest.fixture
def up(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Up]:
    """A parameter is another removal wait."""
    if reason := missing():
        unavailable(reason)
    save_models(tmp_path)
    (tmp_path / "few.yaml").write_text(FEW)
    (tmp_path / "long.yaml").write_text(LONG)
    with system(tmp_path, "--removal-wait", getattr(request, "param", "2s")) as started:
        started.wait_ready()
        yield started


def listed(up: Up, name: str, *more: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(up.command("sessions", name, *more, "-o", "json").stdout)
    return found


@pytest.mark.parametrize("up", ["6s"], indirect=True)  # longer than it takes to fall asleep
def test_the_fourth_live_session_is_refused_and_each_is_removed_after_its_time_also_asleep(up: Up) -> None:
    begun: list[tuple[float, float]] = []  # when each was asked for, and answered: its life began between the two
    with Client(up.gateway) as client:
        client.infer("few", {"x": row(1)}, sequence_id=1000, start=True, timeout=60)  # awake
        time.sleep(1.1)
        for n in range(1, 201):
            asked, refused = time.monotonic(), None
            try:
                client.infer("few", {"x": row(1)}, sequence_id=n, start=True, timeout=60)
                begun.append((asked, time.monotonic()))
            except DormouseError as error:
                refused = error
            if refused is None:
                assert sum(begun[-1][1] - at < 0.9 for at, _ in begun) <= 3, "a fourth was taken"
            else:
                assert refused.code is Code.RESOURCE_EXHAUSTED, refused
                assert refused.message == "spec.sessions.maxCount: 3 sessions found, at most 3 are allowed"
                assert sum(asked - at < 1.1 for _, at in begun) >= 3, "three lived"
        assert 3 <= len(begun) < 200
    up.until_phase("few", "Asleep")
    workers = len(up.supervisors())
    assert listed(up, "few") or time.monotonic() - begun[-1][0] > 7.0, "their owner has left them there, unless their time had come"
    up.until(lambda: not listed(up, "few"), 30.0)
    assert time.monotonic() - begun[-1][0] > 6.0, "and not before their time"
    up.until(lambda: (up.get("few")["sessions"], up.get("few")["hibernatedBytes"]) == (0, "0"))
    assert (up.get("few")["phase"], len(up.supervisors())) == ("Asleep", workers), "nobody was woken"


def test_sessions_are_deleted_awake_and_asleep_and_no_neighbour_is_harmed(up: Up) -> None:
    with Client(up.gateway) as client:

        def step(session: str, tenant: str = "") -> float:
            return float(client.infer("long", {"x": row(1)}, session=session, tenant=tenant, timeout=60).outputs["y"][0, 0])

        tenants = ("", "a", "a/b", "ab")
        for tenant in tenants:
            for session in ("one", "two"):
                assert [step(session, tenant) for _ in range(2)] == [1.0, 2.0]
        assert "sessions deleted: 1" in up.command("sessions", "long", "/s:one", "--delete").stdout
        assert step("one") == 1.0, "its owner has it in memory no more"
        assert step("two") == 3.0
        assert "deleted: 2" in up.command("sessions", "long", "--tenant", "a", "--delete").stdout
        assert [step("one", "a"), step("one", "a/b"), step("one", "ab")] == [1.0, 3.0, 3.0]
        up.until_phase("long", "Asleep")
        up.until(lambda: up.get("long")["sessions"] == 7)
        kept = sum(int(s["bytes"]) for s in listed(up, "long"))
        up.until(lambda: int(up.get("long")["hibernatedBytes"]) == kept)  # counted by the leader, once nobody owns them
        workers = len(up.supervisors())
        assert "deleted: 2" in up.command("sessions", "long", "--tenant", "a/b", "--delete").stdout
        assert "deleted: 1" in up.command("sessions", "long", "/s:two", "--delete").stdout
        assert up.command("sessions", "long", "/s:none", "--delete", check=False).stderr.strip().endswith("has no session /s:none")
        up.until(lambda: up.get("long")["sessions"] == 4)
        assert (up.get("long")["phase"], len(up.supervisors())) == ("Asleep", workers), "nobody was woken"
        assert [step("one", "a/b"), step("two"), step("one", "ab"), step("one")] == [1.0, 1.0, 4.0, 2.0]


CALLERS = 32
QUOTA = 64 << 20


def traffic(folder: Path, seconds: float, ttl: float, callers: int = CALLERS, *, removed: bool = True) -> Traffic:
    """Sessions begun as fast as the machine can, half of them ended and half left to expire. Not `removed`: for as long as it runs."""
    save_models(folder)
    (folder / "busy.yaml").write_text(BUSY.replace("{ttl}", f"{ttl:g}s"))
    with EtcdServer(folder / "etcd", "--quota-backend-bytes", str(QUOTA)) as etcd:
        store = Store(etcd.endpoint, KEYS)
        with system(folder, "--etcd-endpoints", etcd.endpoint, "--removal-wait", f"{ttl:g}s" if removed else "1h") as up:
            up.wait_ready()
            run = Traffic(up.gateway, "busy", store, wait=ttl)
            run.play(seconds, callers)
            if removed:
                up.until_phase("busy", "Asleep", seconds=30 + ttl)
                up.until(lambda: not store.glances(), 3 * ttl + 30)
    return run


def life(ttl: float) -> float:
    """Seconds from a session's beginning until nothing is left of it: `ttl`, the wait, of which a quarter may be added, and some for calls
    and scans that take a while."""
    return 2 * ttl + max(ttl / 4, 1.0) + 10.0


def judged(run: Traffic, ttl: float) -> None:
    assert not run.refusals, run.refusals[:3]
    assert run.ended > 100
    # Removed in steps of a quarter of the wait, by scans that rest between.
    late, at = run.overdue
    assert late < max(ttl / 4, 1.0) + 5.0, f"a record lay there {late:.1f} s after it was due, {at:.0f} s after the beginning"


def assert_no_more_than_began(run: Traffic, ttl: float) -> None:
    """Whatever is older is gone, however fast they began."""
    beyond = max(sample.records - run.within(sample, life(ttl)) for sample in run.samples)
    assert beyond <= CALLERS, f"{beyond} records more than sessions began within {life(ttl):g} s"


def assert_levels_off(run: Traffic, ttl: float) -> None:
    """The store takes no more for each session that can be there than it did when the first had gone."""
    end = run.samples[-1].seconds
    first, last = run.bytes_each(life(ttl), life(ttl), end / 3), run.bytes_each(life(ttl), 2 * end / 3, end)
    print(f"in use for each session of the last {life(ttl):g} s: {first:.0f} bytes at first, {last:.0f} at last")
    assert last < 1.25 * first
    assert max(s.in_use for s in run.samples) < 0.7 * QUOTA


def test_under_steady_traffic_the_store_levels_off(tmp_path: Path) -> None:
    """A shorter one than below."""
    try:
        run = traffic(tmp_path, 10.0, 2.0, 8)
    except NoEtcd as error:
        unavailable(str(error))
    judged(run, 2.0)
    third = len(run.samples) // 3
    before, after = run.samples[third : 2 * third], run.samples[2 * third :]
    rate = max(s.begun for s in after) / max(s.seconds for s in after)
    assert max(s.records for s in after) < 1.5 * max(s.records for s in before) + 5 * rate, run.samples


@pytest.mark.slow
def test_an_hours_worth_of_traffic_in_minutes(tmp_path: Path) -> None:
    try:
        run = traffic(tmp_path, 240.0, 10.0)
    except NoEtcd as error:
        unavailable(str(error))
    print(
        f"\n{run.begun / 240:.0f} sessions/s; removed at most {run.overdue[0]:.1f} s late (at {run.overdue[1]:.0f} s); in use:",
        [round(s.in_use / 2**20, 1) for s in run.samples][::10],
    )
    judged(run, 10.0)
    assert_no_more_than_began(run, 10.0)
    assert_levels_off(run, 10.0)


@pytest.mark.slow  # 130 s
def test_negative_control_where_nothing_is_removed_the_store_does_not_level_off(tmp_path: Path) -> None:
    try:
        run = traffic(tmp_path, 120.0, 10.0, removed=False)
    except NoEtcd as error:
        unavailable(str(error))
    with pytest.raises(AssertionError, match="records more than sessions began"):
        assert_no_more_than_began(run, 10.0)
    end = run.samples[-1].seconds
    assert run.bytes_each(life(10.0), 2 * end / 3, end) > 2 * run.bytes_each(life(10.0), life(10.0), end / 3), "1.25 times are allowed"


def begin(up: Up, sessions: range, at_once: int) -> tuple[int, list[DormouseError]]:
    """Begins them from so many callers as fast as they are answered: how many began, and the refusals."""
    refused: list[DormouseError] = []

    def one(number: int) -> bool:
        try:
            with Client(up.gateway) as client:
                client.infer("many", {"x": row(1)}, sequence_id=number, start=True, timeout=60)
        except DormouseError as error:
            refused.append(error)
            return False
        return True

    with ThreadPoolExecutor(at_once) as callers:
        return sum(callers.map(one, sessions)), refused


def test_workers_keep_max_count_together_and_their_counts_survive_death_and_sleep(tmp_path: Path) -> None:
    if reason := missing():
        unavailable(reason)
    save_models(tmp_path)
    (tmp_path / "many.yaml").write_text(FEW.replace("few", "many").replace("ttl: 1s", "ttl: 24h").replace("maxCount: 3", "maxCount: 40"))
    with system(tmp_path) as up:
        up.wait_ready()
        begin(up, range(1, 2), 1)
        up.command("scale", "many", "2")

        def owners() -> Counter[str]:
            """How many shards each worker has."""
            return Counter(up.get("many", owners=True)["owners"].values())

        up.until(lambda: sorted(owners().values()) == [32, 32])
        began = time.monotonic()
        taken, refused = begin(up, range(2, 400), 8)
        seconds = time.monotonic() - began
        assert {(error.code, error.message.partition(":")[0]) for error in refused} == {(Code.RESOURCE_EXHAUSTED, "spec.sessions.maxCount")}
        time.sleep(2.1)  # two reports
        live = len(listed(up, "many"))
        assert live == 1 + taken, "whoever was taken lives"
        print(f"\n{live} sessions of 40; {398 / seconds:.0f} calls/s")
        assert 40 <= live <= 40 + 2.0 * 398 / seconds, "passed by what two seconds bring, at most"

        def none_more(since: int) -> None:
            beyond, refused = begin(up, range(since, since + 40), 4)
            assert beyond == 0
            assert all("sessions found, at most 40" in error.message for error in refused), refused[0]

        none_more(1000)  # each worker knows of the other's
        killed = min(owners())
        up.kill_worker(killed)
        up.until(lambda: killed not in owners() and owners().total() == 64)
        none_more(2000)
        up.command("scale", "many", "auto")
        up.until_phase("many", "Asleep")
        none_more(3000)
