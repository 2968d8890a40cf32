"""Fixtures that every kind of test may use: real etcd, and two stores that must behave alike."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from dormouse_testing.etcd_server import EtcdServer, NoEtcd


def unavailable(reason: str) -> None:
    """A test of real parts that cannot run skips and says why; in CI that is a failure."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def etcd_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    """One etcd for the whole run: for tests that do not stop it, compact it or fill it."""
    yield from _server(tmp_path_factory.mktemp("etcd"))


@pytest.fixture
def own_etcd(tmp_path: Path) -> Iterator[EtcdServer]:
    """An etcd of the test's own, to kill, stop and compact."""
    yield from _server(tmp_path / "etcd")


@pytest.fixture
def installation(request: pytest.FixtureRequest) -> str:
    """A fresh installation's name, so that tests share one etcd without seeing each other's keys."""
    _installations.append(request.node.name)
    return f"t{len(_installations)}"


_installations: list[str] = []


def _server(folder: Path) -> Iterator[EtcdServer]:
    try:
        server = EtcdServer(folder)
    except NoEtcd as error:
        unavailable(str(error))
        return
    with server:
        yield server
