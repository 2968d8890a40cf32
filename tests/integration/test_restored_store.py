"""A real etcd that is restored to an earlier state under living processes: each begins afresh by itself, and is right in seconds."""

import asyncio
import contextlib
import json
import shutil
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from conftest import unavailable
from dormouse.client import Client
from dormouse_core.errors import DormouseError
from dormouse_core.seams import Put, Rewound, StoreError, Txn
from dormouse_kit.etcd import EtcdStore
from dormouse_testing.etcd_server import EtcdServer
from dormouse_testing.proxy import Proxy
from dormouse_testing.up import DOUBLE, TOTAL, Up, missing, row, save_models, system

AWAKE = "scaleToZeroAfter: 600s"


def copy(server: EtcdServer) -> None:
    """Its files as they are now, aside."""
    server.stop()
    shutil.copytree(server.folder / "data", server.folder / "copy")
    server.start()


def restore(server: EtcdServer) -> None:
    """The copy in place of its files."""
    server.stop()
    shutil.rmtree(server.folder / "data")
    shutil.copytree(server.folder / "copy", server.folder / "data")
    server.start()


@contextlib.asynccontextmanager
async def client(endpoint: str) -> AsyncIterator[tuple[EtcdStore, list[str]]]:
    """A client, and why it was told to begin again."""
    store, told = EtcdStore([endpoint]), list[str]()
    store.on_rewound = told.append
    try:
        yield store, told
    finally:
        await store.close()


async def put(store: EtcdStore, key: str, times: int = 1) -> None:
    for _ in range(times):
        await store.txn(Txn((), (Put(key, b"v"),)))


async def first_answer(store: EtcdStore) -> str:
    """Once the store answers."""
    async with asyncio.timeout(60):
        while True:
            try:
                await store.get(["/a"])
            except Rewound:
                return "rewound"
            except StoreError:
                await asyncio.sleep(0.05)
            else:
                return "as before"


async def test_a_client_notices_that_it_was_restored(own_etcd: EtcdServer) -> None:
    async with client(own_etcd.endpoint) as (store, told):
        await put(store, "/a", 3)
        await asyncio.to_thread(copy, own_etcd)
        assert await first_answer(store) == "as before", "a restart alone is none"
        await put(store, "/a", 3)
        await asyncio.to_thread(restore, own_etcd)
        assert await first_answer(store) == "rewound"
        assert await first_answer(store) == "as before", "it is said once"
        assert len(told) == 1
        await put(store, "/a")


async def test_a_client_notices_it_although_others_have_written_past_what_it_knew(own_etcd: EtcdServer) -> None:
    async with (
        Proxy(own_etcd.endpoint) as way,
        client(way.endpoint) as (store, told),
        client(own_etcd.endpoint) as (other, _),
    ):
        await put(store, "/a", 3)
        await asyncio.to_thread(copy, own_etcd)
        await first_answer(store)
        await put(store, "/a", 3)
        way.hold()  # so that it connects later than the other
        await asyncio.to_thread(own_etcd.stop)
        await asyncio.to_thread(shutil.rmtree, own_etcd.folder / "data")
        await asyncio.to_thread(shutil.copytree, own_etcd.folder / "copy", own_etcd.folder / "data")
        await asyncio.to_thread(own_etcd.start)
        await first_answer(other)
        await put(other, "/b", 50)
        way.cut()
        way.open()
        assert await first_answer(store) == "rewound"
        assert "/a has revision" in told[0]


# --------------------------------------------------------------------------------------------------------------------- the whole system


@pytest.fixture
def up(tmp_path: Path, own_etcd: EtcdServer) -> Iterator[Up]:
    if reason := missing():
        unavailable(reason)
    folder = tmp_path / "up"
    folder.mkdir()
    save_models(folder)
    (folder / "double.yaml").write_text(DOUBLE.replace("scaleToZeroAfter: 3s", AWAKE))
    (folder / "total.yaml").write_text(TOTAL.replace("scaleToZeroAfter: 3s", AWAKE))
    with system(folder, "--etcd-endpoints", own_etcd.endpoint) as started:
        started.wait_ready()
        yield started


def step(up: Up, session: str) -> float:
    with contextlib.closing(Client(up.gateway)) as caller:
        return float(caller.infer("total", {"x": row(1)}, session=session, timeout=60).outputs["y"][0, 0])


def doubled(up: Up) -> float:
    with contextlib.closing(Client(up.gateway)) as caller:
        return float(caller.infer("double", {"x": row(1, 2, 3, 4)}, timeout=60).outputs["y"][0, 0])


def answers(true: Callable[[], bool]) -> Callable[[], bool]:
    def asked() -> bool:
        with contextlib.suppress(DormouseError):
            return true()
        return False

    return asked


def requests(server: EtcdServer) -> float:
    """What etcd was asked since it started."""
    with urllib.request.urlopen(f"http://{server.endpoint}/metrics", timeout=20) as reply:
        lines = reply.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("grpc_server_started_total") and 'grpc_type="unary"' in line)


SESSIONS = [f"s{number}" for number in range(8)]


def test_the_system_goes_on_from_what_was_saved(up: Up, own_etcd: EtcdServer) -> None:
    """Shards went to a second worker and back after the copy was made: the first one knows later entries of theirs than the store then has,
    which it read again and again, 60,000 times a minute, and never answered."""
    for expected in (1, 2, 3):
        assert [step(up, session) for session in SESSIONS] == [expected] * 8
    assert doubled(up) == 2
    copy(own_etcd)
    for count in (2, 1):
        up.until(lambda count=count: up.command("scale", "total", str(count), check=False).returncode == 0)  # type: ignore[misc]
        up.until(lambda count=count: owners(up) == count)  # type: ignore[misc]
    for session in SESSIONS:
        assert step(up, session) == 4
        assert step(up, session) == 5
    assert step(up, "new") == 1
    restore(own_etcd)
    began = time.monotonic()
    for session in SESSIONS:
        assert step(up, session) == 4, "what came after the copy is gone with it, and nobody answers from what they remember of that"
    print(f"right after {time.monotonic() - began:.1f} s")
    assert step(up, "new") == 1
    assert doubled(up) == 2
    assert [step(up, "s0") for _ in range(3)] == [5, 6, 7]
    up.until(lambda: up.command("get", "total", check=False).returncode == 0)

    def rests() -> bool:
        """Nobody spins: who begins again asks much, and not for ever."""
        before = requests(own_etcd)
        time.sleep(2)
        return requests(own_etcd) - before < 2 * 100

    up.until(rests, 30)


def owners(up: Up) -> int:
    """How many workers own shards; 0: not known now."""
    found = up.command("get", "total", "-o", "json", "--owners", check=False)
    if found.returncode:
        return 0
    return len(set(json.loads(found.stdout)["owners"].values()))
