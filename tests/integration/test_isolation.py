"""The operator of a cluster, over a real etcd of a version that does not keep its users apart."""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from dormouse_core import storeversions
from dormouse_core.keys import Keys
from dormouse_kit import processes
from dormouse_kit.etcd import EtcdStore
from dormouse_kit.etcd.users import ROOT
from dormouse_testing.etcd_server import EtcdServer
from dormouse_testing.ports import free_port

LEADER = Keys("default").leader


@pytest.fixture
def server(own_server: Callable[..., EtcdServer]) -> EtcdServer:
    found = processes.find_etcd(wheel=False)
    if found is not None and storeversions.keeps_apart(found.version):
        pytest.skip(f"etcd {found.version} on PATH keeps its users apart")
    return own_server("--bcrypt-cost", "4")


@contextlib.contextmanager
def operator(server: EtcdServer, folder: Path, *words: str) -> Iterator[Path]:
    """Its log. There is no API server, of which it needs to know only once it leads."""
    for name, text in {"root": "a password", "gateway": "another"}.items():
        (folder / name).write_text(text)
    user = {"name": "u", "user": {"token": "t"}}
    cluster = {"name": "c", "cluster": {"server": "http://127.0.0.1:1"}}
    context = {"name": "x", "context": {"cluster": "c", "user": "u"}}
    (folder / "kubeconfig").write_text(json.dumps({"clusters": [cluster], "users": [user], "contexts": [context], "current-context": "x"}))
    log = folder / "log"
    store = ["--store", server.endpoint, "--store-user", ROOT, "--store-password-file", str(folder / "root")]
    command = [sys.executable, "-m", "dormouse_operator", "--kubernetes", *store, "--gateway-password-file", str(folder / "gateway")]
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*command, "--metrics", str(free_port()), "--control", f"127.0.0.1:{free_port()}", *words],
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "KUBECONFIG": str(folder / "kubeconfig")},
        )
        try:
            yield log
        finally:
            process.kill()
            process.wait()


def until(true: Callable[[], bool], log: Path, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


def led(server: EtcdServer) -> bool:
    async def ask() -> bool:
        store = EtcdStore([server.endpoint], user=ROOT, password="a password")
        try:
            return LEADER in (await store.get([LEADER]))[1]
        finally:
            await store.close()

    return asyncio.run(ask())


def test_nobody_leads_where_tenants_share_it_and_the_log_says_why(server: EtcdServer, tmp_path: Path) -> None:
    with operator(server, tmp_path) as log:
        until(lambda: "this operator does not lead" in log.read_text(), log)
        time.sleep(1.0)
        assert not led(server)
        assert f"at {server.endpoint} found, {storeversions.ALLOWED} is allowed" in log.read_text()


def test_negative_control_of_one_tenant_it_is_led(server: EtcdServer, tmp_path: Path) -> None:
    with operator(server, tmp_path, "--store-one-tenant") as log:
        until(lambda: "  leading " in log.read_text() or "leading key" in log.read_text(), log)
        assert "does not lead" not in log.read_text()
