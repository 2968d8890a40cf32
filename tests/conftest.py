"""Fixtures that every kind of test may use: real etcd, and a real Kubernetes."""

import contextlib
import itertools
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from dormouse_kit import log
from dormouse_testing.cluster import holding
from dormouse_testing.cluster.client import Cluster
from dormouse_testing.cluster.layout import ClusterError
from dormouse_testing.cluster.sharing import Shared
from dormouse_testing.etcd_server import EtcdServer, NoEtcd
from hypothesis import HealthCheck, settings

# Hypothesis' own limits, of 200 ms an example and of a second for drawing ten, measure the machine: a busy one fails a decision that takes
# 0.7 ms.
settings.register_profile("dormouse", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("dormouse")


def unavailable(reason: str) -> None:
    """A test of real parts that cannot run skips and says why; in CI that is a failure."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture
def events(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """Our own lines of the log too: they do not go through the root logger."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(log._events, "handlers", [caplog.handler])
    return caplog


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """One for the whole run: the one that KUBECONFIG names, or our own on this machine.

    Our own is started and stopped here, unless it runs already (`tests/cluster/cluster up`): then it is used and left running.
    """
    try:
        with holding.cluster() as held:
            yield held
    except holding.Unavailable as error:
        unavailable(str(error))
    except ClusterError as error:
        pytest.fail(str(error))


@pytest.fixture(scope="session")
def with_images(cluster: Cluster) -> Cluster:
    """The cluster, with the images of this tree in every node: the project's, and the one with the examples' models."""
    holding.bring_images(cluster, models=True)
    return cluster


@pytest.fixture(scope="session")
def shared(with_images: Cluster) -> Iterator[Shared]:
    """Dormouse on the cluster, for all tests that need nothing special of it."""
    found = Shared(with_images)
    try:
        yield found
    finally:
        found.end()


@pytest.fixture(scope="session")
def etcd_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    """One etcd for the whole run: for tests that do not stop it, compact it or fill it."""
    yield from _server(tmp_path_factory.mktemp("etcd"))


@pytest.fixture
def own_etcd(tmp_path: Path) -> Iterator[EtcdServer]:
    """An etcd of the test's own, to kill, stop and compact."""
    yield from _server(tmp_path / "etcd")


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Callable[..., EtcdServer]]:
    """Starts one with options, empty each time: ``own_server("--quota-backend-bytes", "8000000")``."""
    numbers = itertools.count()
    with contextlib.ExitStack() as stack:

        def start(*options: str, tls: bool = False) -> EtcdServer:
            return stack.enter_context(contextlib.contextmanager(_server)(tmp_path / f"etcd-{next(numbers)}", *options, tls=tls))

        yield start


@pytest.fixture
def etcd_cluster(tmp_path: Path) -> Iterator[list[EtcdServer]]:
    """Three members."""
    try:
        members = EtcdServer.cluster(tmp_path / "etcd", 3)
    except NoEtcd as error:
        unavailable(str(error))
        return
    try:
        for member in members:
            member.launch()
        for member in members:
            member.ready()
        yield members
    finally:
        for member in members:
            member.kill()


@pytest.fixture
def installation(request: pytest.FixtureRequest) -> str:
    """A fresh installation's name, so that tests share one etcd without seeing each other's keys."""
    _installations.append(request.node.name)
    return f"t{len(_installations)}"


_installations: list[str] = []


def _server(folder: Path, *options: str, tls: bool = False) -> Iterator[EtcdServer]:
    try:
        server = EtcdServer(folder, *options, tls=tls)
    except NoEtcd as error:
        unavailable(str(error))
        return
    with server:
        yield server
