"""Backup and restore of a real etcd: what a snapshot holds, what is no snapshot, and that a system goes on from one."""

import asyncio
import contextlib
import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from conftest import unavailable
from dormouse import main
from dormouse.client import Client
from dormouse_core.errors import DormouseError
from dormouse_core.keys import Keys
from dormouse_core.seams import Delete, Put, StoreError, Txn
from dormouse_kit.etcd import EtcdStore, snapshots
from dormouse_kit.etcd.connections import Connections
from dormouse_kit.etcd.databases import Database, NoSnapshot
from dormouse_kit.etcd.users import ROOT, Grant, Users
from dormouse_proto import state_pb2
from dormouse_testing.etcd_server import EtcdServer
from dormouse_testing.up import TOTAL, Up, missing, row, save_models, system


@contextlib.asynccontextmanager
async def client(endpoint: str) -> AsyncIterator[EtcdStore]:
    store = EtcdStore([endpoint])
    try:
        yield store
    finally:
        await store.close()


async def taken(server: EtcdServer, path: Path) -> int:
    connections = Connections([server.endpoint])
    try:
        return await snapshots.save(connections, path)
    finally:
        await connections.close()


# ------------------------------------------------------------------------------------------------------------------- the file


async def test_a_snapshot_is_read_as_etcd_would_read_it(own_etcd: EtcdServer, tmp_path: Path) -> None:
    """Random writes, deletions, prefixes, leases and compactions, over several levels of pages."""
    rng = random.Random(7)
    async with client(own_etcd.endpoint) as store:
        lease = await store.grant(600)
        for turn in range(400):
            writes = {
                f"/dormouse/a/{rng.randrange(3000):04}": os.urandom(rng.choice((0, 5, 300, 9000))) for _ in range(rng.randrange(1, 60))
            }
            result = await store.txn(Txn((), tuple(Put(key, value, lease * (rng.random() < 0.1)) for key, value in writes.items())))
            if turn % 7 == 0:
                await store.txn(Txn((), (Delete(f"/dormouse/a/{rng.randrange(300):03}", prefix=True),)))
            if turn % 50 == 49:
                await store.compact(result.revision)
        await store.txn(Txn((), (Put("/dormouse/b/1", b"another's"), Put("/dormouse/a/\udcff\udcfe", b"no text"))))
        revision = await taken(own_etcd, tmp_path / "backup")
        listing = await store.list("/dormouse/a/")
    assert revision == listing.revision
    with Database(tmp_path / "backup", "/dormouse/a/") as found:
        assert found.newest == revision
        assert found.keys() == sorted(item.key for item in listing.items)
        for item in listing.items:
            stored = found.get(item.key)
            assert (stored.value, stored.lease) == (item.value, item.lease)
    assert (tmp_path / "backup").stat().st_mode & 0o777 == 0o600
    assert len(listing.items) > 1000


async def test_it_holds_what_was_acknowledged_before_while_much_is_written(own_etcd: EtcdServer, tmp_path: Path) -> None:
    """And is of one moment: each transaction is there as a whole, whatever is compacted meanwhile."""
    async with client(own_etcd.endpoint) as store:
        written, end = 0, False

        async def write() -> None:
            nonlocal written
            while not end:
                value = b"%d" % (written + 1) + b"x" * 20_000
                result = await store.txn(Txn((), tuple(Put(f"/dormouse/a/{n}", value) for n in range(20))))
                written += 1
                if written % 20 == 0:
                    await store.compact(result.revision)

        writing = asyncio.create_task(write())
        for n in range(8):
            await asyncio.sleep(0.1)
            before = written
            await taken(own_etcd, tmp_path / f"{n}")
            with Database(tmp_path / f"{n}", "/dormouse/a/") as found:
                values = {found.get(key).value for key in found.keys()}  # noqa: SIM118 - it is no mapping
            assert len(values) <= 1
            assert all(int(value.partition(b"x")[0]) >= before for value in values)
        end = True
        await writing
    assert written > 50


@pytest.fixture
async def whole(own_etcd: EtcdServer, tmp_path: Path) -> bytes:
    async with client(own_etcd.endpoint) as store:
        for n in range(200):
            await store.txn(Txn((), (Put(f"/dormouse/a/{n}", b"v" * 100),)))
        await taken(own_etcd, tmp_path / "whole")
    return (tmp_path / "whole").read_bytes()


async def test_what_is_no_whole_snapshot_is_refused(whole: bytes, own_etcd: EtcdServer, tmp_path: Path) -> None:
    cases = {
        "empty": (b"", "an empty file found"),
        "digest alone": (whole[-32:], "it was cut off, or is no snapshot"),
        "cut off": (whole[:-1], "it was cut off"),
        "without its digest": (whole[:-32], "it was cut off|SHA-256"),
        "a page short": (whole[:4096] + whole[8192:], "SHA-256 is not the one at its end"),
        "one bit": (whole[:9000] + bytes([whole[9000] ^ 1]) + whole[9001:], "SHA-256 is not the one at its end"),
        "text": (b"functions: []\n" * 100, "it was cut off, or is no snapshot"),
        "another database": (sealed(os.urandom(512 * 8)), "no page of bbolt's version 2"),
        "zeros": (sealed(bytes(4096 * 4)), "no page of bbolt's version 2"),
    }
    for name, (content, message) in cases.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(NoSnapshot, match=message):
            Database(path, "/dormouse/")
    with pytest.raises(NoSnapshot, match="No such file"):
        Database(tmp_path / "none", "/dormouse/")
    with pytest.raises(NoSnapshot, match="Is a directory"):
        Database(tmp_path, "/dormouse/")


def sealed(database: bytes) -> bytes:
    return database + hashlib.sha256(database).digest()


async def test_a_damaged_database_with_a_right_digest_is_an_error_and_nothing_else(whole: bytes, tmp_path: Path) -> None:
    """Whoever can write the file can make the digest right: then pages lead anywhere."""
    rng, path, refused = random.Random(3), tmp_path / "damaged", 0
    for _ in range(300):
        damaged = bytearray(whole[:-32])
        for _ in range(rng.randrange(1, 40)):
            at = rng.choice((rng.randrange(len(damaged)), rng.randrange(0, len(damaged), 4096) + rng.randrange(80)))
            damaged[at] = rng.randrange(256)
        path.write_bytes(sealed(bytes(damaged)))
        try:
            with Database(path, "/dormouse/") as found:
                for key in found.keys():  # noqa: SIM118
                    found.get(key)
        except NoSnapshot:
            refused += 1
    assert refused > 30


async def test_what_was_not_written_whole_is_not_there(own_etcd: EtcdServer, tmp_path: Path) -> None:
    """etcd ends, the disk refuses: no file, and none that is half of one."""
    own_etcd.kill()
    connections = Connections([own_etcd.endpoint])
    with pytest.raises(StoreError):
        await snapshots.save(connections, tmp_path / "backup")
    await connections.close()
    own_etcd.start()
    with pytest.raises(OSError, match="No such file"):
        await taken(own_etcd, tmp_path / "nowhere" / "backup")
    assert not (tmp_path / "backup").exists()


async def test_with_users_root_alone_takes_one_and_a_new_etcd_gets_its_root(
    own_server: Callable[..., EtcdServer], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = own_server("--bcrypt-cost", "4"), own_server("--bcrypt-cost", "4")
    users = Users([first.endpoint], "old root")
    await users.prepare()
    await users.ensure("f/1", "pass", [Grant("/dormouse/a/")])
    await users.close()
    store = EtcdStore([first.endpoint], user=ROOT, password="old root")
    key = Keys("a").function("ns", "fn")
    await store.txn(Txn((), (Put(key, b""),)))
    await store.close()
    for name, password in {"old": "old root", "new": "new root", "function": "pass"}.items():
        (tmp_path / name).write_text(password)

    async def dormouse(*words: str) -> int:
        return await asyncio.to_thread(main.main, [*words, "--installation", "a"])

    def at(server: EtcdServer, user: str, file: str) -> list[str]:
        return ["--store", server.endpoint, "--store-user", user, "--store-password-file", str(tmp_path / file)]

    backup = str(tmp_path / "backup.db")
    assert await dormouse("backup", backup, *at(first, "f/1", "function")) == 1
    assert "permission denied" in capsys.readouterr().err
    assert await dormouse("backup", backup, *at(first, ROOT, "new")) == 1
    assert "invalid user ID or password" in capsys.readouterr().err
    assert await dormouse("backup", backup, "--store", first.endpoint) == 1
    assert await dormouse("backup", backup, *at(first, ROOT, "old")) == 0
    assert await dormouse("restore", backup, *at(second, ROOT, "new")) == 0
    assert "1 functions, 0 sessions restored" in capsys.readouterr().out
    anybody, root = EtcdStore([second.endpoint]), EtcdStore([second.endpoint], user=ROOT, password="new root")
    with pytest.raises(StoreError, match="user name is empty"):
        await anybody.get([key])
    assert key in (await root.get([key]))[1], "the old installation's passwords did not come along"
    await anybody.close()
    await root.close()


# --------------------------------------------------------------------------------------------------------------------- one machine


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    if reason := missing():
        unavailable(reason)
    return made(tmp_path / "one")


def made(folder: Path) -> Path:
    folder.mkdir()
    save_models(folder)
    (folder / "total.yaml").write_text(TOTAL.replace("scaleToZeroAfter: 3s", "scaleToZeroAfter: 600s"))
    return folder


SESSIONS = [f"s{number}" for number in range(8)]


def steps(up: Up) -> list[int]:
    with contextlib.closing(Client(up.gateway)) as caller:
        answers = [caller.infer("total", {"x": row(1)}, session=session, timeout=60) for session in SESSIONS]
    assert [answer.outputs["y"].tolist() for answer in answers] == [[[float(answer.step)]] for answer in answers]
    return [answer.step for answer in answers]


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "dormouse.main", *map(str, words)], capture_output=True, text=True, timeout=120)


def test_a_machine_is_restored_on_another(folder: Path, tmp_path: Path) -> None:
    """Backed up while it runs, and once more when it is stopped; each restored into a folder that never ran."""
    backups = tmp_path / "backups"
    backups.mkdir()
    with system(folder) as up:
        up.wait_ready()
        assert [steps(up), steps(up)] == [[1] * 8, [2] * 8]
        done = run("backup", backups / "running.db", "--dir", folder)
        assert "1 functions, 8 sessions at revision" in done.stdout, done.stderr
        assert "it exists; name another file" in run("backup", backups / "running.db", "--dir", folder).stderr
        refused = run("restore", backups / "running.db", "--dir", folder, "--replace")
        assert (refused.returncode, "stop it, restore, and start it again" in refused.stderr) == (1, True)
        assert steps(up) == [3] * 8
        assert up.stop() == 0
    assert run("backup", backups, "--dir", folder, "--keep", "2").returncode == 0
    [stopped] = backups.glob("dormouse-local-*.db")
    for name, backup, expected in (("two", backups / "running.db", 3), ("three", backups, 4)):
        other = made(tmp_path / name)
        done = run("restore", backup, "--dir", other)
        assert (done.returncode, "dormouse:" in done.stderr) == (0, False), done.stderr
        assert "1 functions, 8 sessions restored" in done.stdout
        assert "--replace removes" in run("restore", backup, "--dir", other).stderr, "it has been restored"
        with system(other) as up:
            up.wait_ready()
            assert steps(up) == [expected] * 8
            assert up.stop() == 0
    assert run("restore", stopped, "--dir", folder, "--replace").returncode == 0
    (backups / "dormouse-local-20010101T000000Z.db").write_bytes(b"the oldest")
    (backups / "dormouse-local-other.db").write_bytes(b"somebody's own")
    assert run("backup", backups, "--dir", folder, "--keep", "2").returncode == 0
    left = sorted(path.name for path in backups.iterdir())
    assert "dormouse-local-20010101T000000Z.db" not in left
    assert len(left) == 4
    assert "--keep: 2 found, but" in run("backup", backups / "x.db", "--dir", folder, "--keep", "2").stderr


@pytest.fixture
def up(folder: Path, own_etcd: EtcdServer) -> Iterator[Up]:
    with system(folder, "--etcd-endpoints", own_etcd.endpoint) as started:
        started.wait_ready()
        yield started


def test_living_workers_and_gateways_notice_a_restore_by_themselves(up: Up, own_etcd: EtcdServer, tmp_path: Path) -> None:
    """The operator stands still meanwhile, as one that was stopped; worker, agent and Envoy live on."""
    assert [steps(up), steps(up)] == [[1] * 8, [2] * 8]
    backup = tmp_path / "backup.db"
    assert run("backup", backup, "--dir", up.folder).returncode == 0
    assert [steps(up), steps(up)] == [[3] * 8, [4] * 8]
    restore = ("restore", backup, "--store", own_etcd.endpoint, "--replace")
    assert "an operator leads (operator)" in run(*restore).stderr
    operator, agent = up.part("operator"), up.part("agent")
    os.kill(operator, signal.SIGSTOP)
    up.until(lambda: "an operator leads" not in (done := run(*restore)).stderr and done.returncode == 0, 30)
    os.kill(operator, signal.SIGCONT)
    began = time.monotonic()
    assert steps(up) == [3] * 8, "what came after the backup is gone, and nobody answers from what they remember of it"
    print(f"right after {time.monotonic() - began:.1f} s")
    assert steps(up) == [4] * 8
    assert up.part("agent") == agent


def test_nobody_leads_over_half_a_restore(folder: Path, own_etcd: EtcdServer, tmp_path: Path) -> None:
    """What a restore that was cut short leaves: the leader's key."""
    with system(folder, "--etcd-endpoints", own_etcd.endpoint) as up:
        up.wait_ready()
        assert steps(up) == [1] * 8
        assert up.stop() == 0
    backup = tmp_path / "backup.db"
    assert run("backup", backup, "--store", own_etcd.endpoint).returncode == 0

    async def cut_short() -> None:
        async with client(own_etcd.endpoint) as store:
            keys = Keys("local")
            await store.txn(Txn((), (Put(keys.leader, state_pb2.Leader(name="restore 1234").SerializeToString()),)))
            await store.txn(Txn((), (Delete(keys.functions, prefix=True), Delete(keys.maps, prefix=True))))

    asyncio.run(cut_short())
    with system(folder, "--etcd-endpoints", own_etcd.endpoint) as up:
        up.until(lambda: "agent" in up.log)
        time.sleep(3)
        assert "leading" not in up.log
        assert run("restore", backup, "--store", own_etcd.endpoint).returncode == 0, "of itself it replaces what was begun"
        up.wait_ready()
        assert steps(up) == [2] * 8
        with pytest.raises(DormouseError), contextlib.closing(Client(up.gateway)) as caller:
            caller.infer("none", {"x": row(1)}, timeout=1)
