"""The whole system on one machine with a full etcd, and back: nothing is started anew, nothing is acknowledged that is not committed."""

import asyncio
import contextlib
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
from dormouse_kit.etcd import EtcdStore
from dormouse_testing.up import DOUBLE, TOTAL, Up, children, missing, row, save_models, system

AWAKE = "scaleToZeroAfter: 600s"


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    if reason := missing():
        unavailable(reason)
    save_models(tmp_path)
    (tmp_path / "double.yaml").write_text(DOUBLE.replace("scaleToZeroAfter: 3s", AWAKE))
    (tmp_path / "total.yaml").write_text(TOTAL.replace("scaleToZeroAfter: 3s", AWAKE))
    with system(tmp_path, "--etcd-quota", "16MiB") as started:
        started.wait_ready()
        yield started


def with_store(up: Up, use: Callable[[EtcdStore], Awaitable[int]]) -> int:
    """`use` on the system's own etcd."""

    words = Path(f"/proc/{up.part('etcd')}/cmdline").read_bytes().decode().split("\0")
    endpoint = words[words.index("--advertise-client-urls") + 1]

    async def main() -> int:
        store = EtcdStore([endpoint])
        try:
            return await use(store)
        finally:
            await store.close()

    return asyncio.run(main())


async def fill(store: EtcdStore) -> int:
    """With keys, so that nothing but deleting them makes room; until it stays full."""
    count = refused = 0
    while refused < 30:
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
